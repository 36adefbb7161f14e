"""UTC, in the three forms that the runner writes."""

import time

_TICKS_PER_SECOND = 10_000_000
_NANOSECONDS_PER_TICK = 100


def console_stamp() -> str:
    """Like `2026-08-17 14:15:44Z`."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())


def log_stamp() -> str:
    """Like `2026-08-17T14:15:44.1234567Z`: seven digits, which is .NET's tick."""
    seconds, ticks = divmod(time.time_ns() // _NANOSECONDS_PER_TICK, _TICKS_PER_SECOND)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{ticks:07d}Z"


def file_stamp() -> str:
    """Like `20260817-141544`."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime())

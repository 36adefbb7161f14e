"""Waits for whatever comes first: a signal, input, the end of a child, a deadline."""

from __future__ import annotations

import os
import select
import signal
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_AT_ONCE_BYTES = 4096


class LimitReached(Exception):  # noqa: N818 - the end of a limit, not an error
    """The time that SIGTERM leaves a process is over."""


class Ready(NamedTuple):
    """What ended a wait; both are empty where time did."""

    signals: frozenset[int]
    descriptors: frozenset[int]


class Waiter:
    """The only place where a process of the runner waits, and the only one that hears its signals.

    SIGINT stays ignored where it was when the process started: .NET honours that. The first SIGTERM starts a
    limit, after which any wait raises LimitReached.
    """

    def __init__(self, term_limit_seconds: float) -> None:
        self._term_limit_seconds = term_limit_seconds
        self._limit: float | None = None
        self._wakeups, writer = os.pipe()
        os.set_blocking(self._wakeups, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            if number is not signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _heard)

    def wait(self, *descriptors: int, seconds: float | None = None) -> Ready:
        """Return at the first signal, child's end or readable descriptor, or after so many seconds."""
        readable, _, _ = select.select([self._wakeups, *descriptors], [], [], self._timeout(seconds))
        signals = frozenset(os.read(self._wakeups, _AT_ONCE_BYTES) if self._wakeups in readable else b"")
        if signal.SIGTERM in signals and self._limit is None:
            self._limit = time.monotonic() + self._term_limit_seconds
        if self._limit is not None and time.monotonic() >= self._limit:
            raise LimitReached
        return Ready(signals, frozenset(readable) - {self._wakeups})

    def forever(self) -> None:
        """Deaf to everything but the limit that a SIGTERM sets."""
        while True:
            self.wait()

    def pause(self, seconds: float | None, stop: Callable[[frozenset[int]], bool]) -> bool:
        """Wait so long, or without end; whether a signal that `stop` accepts cut it short."""
        end = None if seconds is None else time.monotonic() + seconds
        while end is None or time.monotonic() < end:
            ready = self.wait(seconds=None if end is None else end - time.monotonic())
            if stop(ready.signals):
                return True
        return False

    def _timeout(self, seconds: float | None) -> float | None:
        limits = [] if seconds is None else [seconds]
        if self._limit is not None:
            limits.append(self._limit - time.monotonic())
        return max(0.0, min(limits)) if limits else None


def _heard(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the wakeup descriptor tells. Unlike SIG_IGN, this does not pass to a child."""

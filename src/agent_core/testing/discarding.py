"""Ends coroutines as a crash does: none of their code runs any more, not even a `finally`."""

import asyncio
import gc
import operator
import sys
from typing import Any

__all__ = ["discard"]

_kept: list[object] = []
_throw_exit = operator.methodcaller("throw", GeneratorExit)


def discard(coroutines: list[Any]) -> None:
    """End suspended coroutines and async generators without running any of their code.

    Python has no way for that: closed or collected, a coroutine gets a GeneratorExit, and its `finally` runs.
    But at the end of the stack CPython can enter no frame: what is thrown into a coroutine *there* becomes a
    RecursionError that ends it, with all that its frame held, and does not resume it. Where that fails (for a
    profiler in Python, say, which needs stack of its own), all is kept for ever instead.
    """
    ran: list[bool] = []
    canary = _canary(ran)
    canary.send(None)
    collecting, tracer, report = gc.isenabled(), sys.gettrace(), sys.unraisablehook
    gc.disable()  # a collection down there would silence the finalizers of strangers
    sys.settrace(None)
    sys.unraisablehook = id  # finalizers fail there, as they should; of all hooks, only one in C can run
    try:
        _discard_at_end_of_stack(coroutines, canary, ran)
    finally:
        sys.unraisablehook = report
        sys.settrace(tracer)
        if collecting:
            gc.enable()
    if any(getattr(coroutine, "cr_frame", None) for coroutine in coroutines):
        _kept.extend(coroutines)


async def _canary(ran: list[bool]) -> None:
    try:
        await asyncio.sleep(0)
    finally:
        ran += [True]


def _discard_at_end_of_stack(coroutines: list[Any], canary: Any, ran: list[bool]) -> None:
    # Down here, all fails that needs a frame, `suppress` among it. CPython 3.11 counts some calls in C, too:
    # the throw fails in the last frames and works a few frames up. It is one call for all, since of several
    # `coroutine.throw(…)`, the specializing interpreter may count some and others not.
    try:  # noqa: SIM105
        _discard_at_end_of_stack(coroutines, canary, ran)
    except RecursionError:  # this is the end
        pass
    if canary.cr_frame is None:
        return
    for coroutine in (canary, *coroutines):
        try:  # noqa: SIM105
            _throw_exit(coroutine)
        except (Exception, GeneratorExit):  # noqa: BLE001, S110  it has ended, now or before
            pass
        if ran or canary.cr_frame is not None:
            return  # where the canary can run, or cannot be reached, the others are not touched

"""Waits that end, whatever is waited for."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from agent_core.errors import AgentFaultError, DeadlineError

__all__ = ["abandon", "wait_until_set", "while_moving", "within"]

_T = TypeVar("_T")

_UNWIND_SECONDS: Final = 2.0
"""What a cancelled call may take to put things in order."""


async def within(seconds: float | None, what: str, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`, if it comes in time; None: there is all the time that it takes.

    `asyncio.timeout` waits for as long as the cancelled work pleases; this does not: an adapter that
    swallows its cancellation is left behind. What it raises is an `Exception` that can be printed.

    Raises:
        DeadlineError: it took longer than `seconds`; the text says that `what` did.
        AgentFaultError: it raised what no `except Exception` catches, or what cannot be printed.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        await abandon(task)
        raise
    if not task.done():
        await abandon(task)
        raise DeadlineError(f"{what} took longer than {seconds:g} s")
    if task.cancelled():
        raise AgentFaultError(f"{what} was cancelled from within")
    exc = task.exception()
    if exc is not None and not _is_plain(exc):
        raise AgentFaultError(f"{what} raised {type(exc).__name__}") from exc
    return task.result()


def _is_plain(exc: BaseException) -> bool:
    """Whether the rest of the core can work with it: catch it, and say what it is."""
    try:
        return isinstance(exc, Exception) and bool(f"{exc} {exc!r}")
    except BaseException:  # noqa: BLE001 - that is what is asked
        return False


async def while_moving(
    seconds: float, stall_seconds: float, task: asyncio.Future[Any], moved: Callable[[], object]
) -> bool:
    """Whether the task is done within `seconds`, and without standing still for `stall_seconds`.

    It stands still when `moved` gives what it gave before. A task that is not done goes on.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not task.done():
        before = moved()
        await asyncio.wait({task}, timeout=min(stall_seconds, max(0.0, end - loop.time())))
        if not task.done() and (moved() == before or loop.time() >= end):
            return False
    return True


async def abandon(task: asyncio.Task[Any]) -> None:
    """Cancels the task, gives it a moment to unwind, and does not look back."""
    task.cancel()
    task.add_done_callback(_forget)
    await asyncio.wait({task}, timeout=_UNWIND_SECONDS)


def _forget(task: asyncio.Task[Any]) -> None:
    """Takes a late exception, which otherwise is reported as never retrieved."""
    if not task.cancelled():
        task.exception()


async def wait_until_set(event: asyncio.Event, seconds: float) -> bool:
    """Whether the event is set by then."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True

"""Blocking calls, off the event loop: files and vendor libraries block, and some of them for ever.

There is no pool that calls could queue up in: behind calls that hang, the request to terminate would hang
too. Each adapter has a lane of its own instead, and a thread that hangs does not keep the process alive.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

from agent_core.errors import AgentError

__all__ = ["Cancellation", "Lane", "aside", "spawn", "told_on_loop", "try_spawn"]

_BEGIN_SECONDS: Final = 1.0
_T = TypeVar("_T")
_P = ParamSpec("_P")


class Cancellation:
    """Whether a call in a thread has been given up; called, it tells."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._interrupt: Callable[[], object] = bool

    def __call__(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """A pause that ends early when the call is given up; whether it was."""
        return self._event.wait(seconds)

    @contextmanager
    def interrupting(self, interrupt: Callable[[], object]) -> Iterator[None]:
        """Around what blocks: `interrupt` ends it; it is called from other threads, more than once maybe."""
        self._interrupt = interrupt
        try:
            if self._event.is_set():
                interrupt()
            yield
        finally:
            self._interrupt = bool

    def cancel(self) -> None:
        """Gives the call up."""
        self._event.set()
        with suppress(OSError):
            self._interrupt()


class Lane:
    """One call at a time; while one hangs, the next ones fail at once.

    Args:
        name: of the adapter, for the names of threads.
        busy: makes the error of a call that finds the lane taken.
        calls: so many may be under way at a time, where a repeat does no harm.
    """

    def __init__(self, name: str, busy: Callable[[str], AgentError], *, calls: int = 1) -> None:
        self._name, self._busy = name, busy
        self._free = threading.BoundedSemaphore(calls)

    async def run(self, function: Callable[[], _T]) -> _T:
        """The function's result. A cancelled call goes on by itself, and keeps the lane taken."""
        return await asyncio.wrap_future(self._begin(function))

    async def run_cancellable(self, function: Callable[[Cancellation], _T]) -> _T:
        """The result of a long function, which asks often whether it has been cancelled.

        A cancellation is passed on when the function has ended, so that it leaves nothing half done.
        """
        cancelled = Cancellation()
        future = asyncio.wrap_future(self._begin(lambda: function(cancelled)))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            cancelled.cancel()
            await asyncio.wait({future})
            if not future.cancelled():
                future.exception()
            raise

    def _begin(self, function: Callable[[], _T]) -> Future[_T]:
        if not self._free.acquire(blocking=False):
            raise self._busy(f"{self._name}: the call before has not ended")
        return spawn(self._name, function, self._free.release)


def spawn(name: str, function: Callable[[], _T], at_end: Callable[[], object] = bool) -> Future[_T]:
    """Calls the function in a thread of its own, which keeps no process alive.

    `at_end` is called before anybody has the result.
    """
    future: Future[_T] = Future()

    def work() -> None:
        try:
            settle = partial(future.set_result, function())
        except BaseException as exc:  # noqa: BLE001 - raised where the result is awaited
            settle = partial(future.set_exception, exc)
        at_end()
        # Nobody may be left to take the outcome: the call was cancelled, or its loop is closed.
        with suppress(InvalidStateError, RuntimeError):
            settle()

    if not try_spawn(name, work):
        # A job can leave the system without a thread. To block the loop for a moment is better then than
        # to kill nothing, send nothing, and keep the machine.
        work()
    return future


def try_spawn(name: str, function: Callable[[], object]) -> bool:
    """Calls the function in a thread of its own, which nobody waits for, if there is one to be had."""
    turn = threading.Lock()

    def call() -> None:
        if turn.acquire(blocking=False):
            function()

    try:
        thread = _Thread(target=call, name=name, daemon=True)
        thread.start()
    except (RuntimeError, MemoryError):
        return False
    # One that comes to it later finds that it is not its turn any more.
    return thread.ident is not None or not turn.acquire(blocking=False)


class _Thread(threading.Thread):
    """Its start does not wait for ever: a thread without memory dies before it says that it began."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._started = _Begun()


class _Begun(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(_BEGIN_SECONDS if timeout is None else timeout)


async def aside(name: str, function: Callable[[], _T]) -> _T:
    """The function's result, from a thread of its own. A cancelled call goes on by itself."""
    return await asyncio.wrap_future(spawn(name, function))


def told_on_loop(callback: Callable[_P, object]) -> Callable[_P, None]:
    """What any thread may call to have the callback called on the loop that runs now."""
    loop = asyncio.get_running_loop()

    def tell(*args: _P.args, **kwargs: _P.kwargs) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            loop.call_soon_threadsafe(partial(callback, *args, **kwargs))

    return tell

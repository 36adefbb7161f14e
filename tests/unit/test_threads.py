"""Lanes: one blocking call at a time, off the event loop, and never in the way of another."""

import asyncio
import sys
import threading
from typing import Any

import pytest

from agent_adapters.threads import Lane, spawn
from agent_core.errors import JournalUnavailableError


def lane() -> Lane:
    return Lane("journal", JournalUnavailableError)


def test_result_and_exception_come_through() -> None:
    """A call gives what its function gives."""

    async def main() -> None:
        taken = lane()
        assert await taken.run(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await taken.run(lambda: 1 // 0)
        assert await taken.run(threading.get_ident) != threading.get_ident()

    asyncio.run(main())


def test_call_that_hangs_fails_the_next_ones() -> None:
    """They do not queue up behind it; once it ends, the lane is free."""
    release, entered = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        release.wait(60)

    async def main() -> None:
        taken = lane()
        task = asyncio.create_task(taken.run(hang))
        while not entered.is_set():  # noqa: ASYNC110 - set by a thread
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(JournalUnavailableError, match="has not ended"):
            await taken.run(lambda: None)
        release.set()
        while True:
            try:
                return await taken.run(lambda: None)
            except JournalUnavailableError:
                await asyncio.sleep(0)

    asyncio.run(main())


def test_cancellation_is_passed_on_when_the_function_has_ended() -> None:
    """A function that can be cancelled is told so, and leaves nothing half done."""
    entered, ended = threading.Event(), threading.Event()

    def work(cancelled: object) -> None:
        assert callable(cancelled)
        entered.set()
        while not cancelled():
            pass
        ended.set()

    async def main() -> None:
        task = asyncio.create_task(lane().run_cancellable(work))
        while not entered.is_set():  # noqa: ASYNC110 - set by a thread
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(main())


def test_system_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a job has left no thread to start, the call is made all the same, on the spot."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert asyncio.run(lane().run(threading.get_ident)) == threading.get_ident()


def test_thread_that_never_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that dies for lack of memory before it has begun is not waited for; the call is made, once."""
    starter = "_start_joinable_thread" if sys.version_info >= (3, 13) else "_start_new_thread"
    begun: list[Any] = []
    monkeypatch.setattr(threading, starter, lambda function, *_, **__: begun.append(function))
    calls: list[int] = []
    assert spawn("lane", lambda: calls.append(threading.get_ident())).done()
    assert calls == [threading.get_ident()]

    thread: threading.Thread = begun[0].__self__
    thread.run()  # it comes to it after all

    assert len(calls) == 1


def test_no_memory_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """What there is no thread for is done on the spot, and leaves the lane free."""

    def refuse(_: threading.Thread) -> None:
        raise MemoryError

    monkeypatch.setattr(threading.Thread, "start", refuse)
    one = lane()
    for _ in range(2):
        assert asyncio.run(one.run(threading.get_ident)) == threading.get_ident()

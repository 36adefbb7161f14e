# ruff: noqa: S101 - a suite speaks in asserts
"""What the suites share: a loop for each test, a look at errors, and cancellation at any moment."""

import asyncio
import traceback
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import wraps
from typing import Any, ClassVar, Final, TypeVar
from unittest import SkipTest

from agent_core.errors import AgentError

__all__ = [
    "Contract",
    "assert_no_secret",
    "cancel_at_any_step",
    "error_from",
    "error_of",
    "eventually",
    "impossible",
    "on_loop",
    "until",
]

_T = TypeVar("_T")
_E = TypeVar("_E", bound=BaseException)
_C = TypeVar("_C", bound="Contract")

_PAUSE_SECONDS: Final = 0.01
_BUSY_SECONDS: Final = 120.0
_CANCEL_STEPS: Final = 6
"""Iterations of the loop: more than any call needs to get under way."""


class Contract:
    """A suite: what any adapter of one port is held to.

    Its subclass says by `make` what is tested; its other abstract methods are a back door past the port.
    pytest makes a new object for each test, so `setup_method` is the place to set things up.
    """

    patience_seconds: ClassVar[float] = 180.0
    """What is awaited for so long does not come: a test that hangs fails. No promise depends on it."""

    def run(self, main: Coroutine[Any, Any, _T]) -> _T:
        """Runs a test to its end; override it to run on another loop, in virtual time for example."""
        return asyncio.run(_patiently(main, self.patience_seconds))

    async def tear_down(self) -> None:
        """Puts things in order on the test's own loop, whatever the test came to."""


async def _patiently(main: Coroutine[Any, Any, _T], seconds: float) -> _T:
    async with asyncio.timeout(seconds):
        return await main


def on_loop(test: Callable[[_C], Coroutine[Any, Any, None]]) -> Callable[[_C], None]:
    """Makes a coroutine method a test: a plain one, that runs on the suite's loop."""

    @wraps(test)
    def run(self: _C) -> None:
        self.run(_with_tear_down(self, test))

    return run


async def _with_tear_down(suite: _C, test: Callable[[_C], Coroutine[Any, Any, None]]) -> None:
    try:
        await test(suite)
    finally:
        await suite.tear_down()


def impossible(why: str) -> SkipTest:
    """To be raised by a back door that an adapter cannot have: the test is skipped, and says why."""
    return SkipTest(why)


# Errors


async def error_of(expected: type[_E], call: Coroutine[Any, Any, object]) -> _E:
    """The error that the call must end with."""
    try:
        result = await call
    except expected as exc:
        return exc
    raise AssertionError(f"this should have raised {expected.__name__}, and returned {result!r}")


def error_from(expected: type[_E], call: Callable[[], object]) -> _E:
    """The error that the function must raise."""
    try:
        result = call()
    except expected as exc:
        return exc
    raise AssertionError(f"this should have raised {expected.__name__}, and returned {result!r}")


def assert_no_secret(error: BaseException, secrets: Sequence[str]) -> None:
    """Looks for the secrets wherever an error can show them: also in what it came from, and in the trace."""
    shown = "\n".join(_shown_by(error))
    leaked = [number for number, secret in enumerate(secrets) if secret in shown]
    assert not leaked, f"{type(error).__name__} shows secret number {leaked[0]}"


def _shown_by(error: BaseException) -> Iterator[str]:
    yield from traceback.format_exception(error)
    for each in _chain(error):
        yield from (str(each), repr(each), repr(each.args), repr(vars(each)))
        for name in ("doc", "object", "filename", "strerror"):  # of JSON, Unicode and OS errors
            yield repr(getattr(each, name, None))


def _chain(error: BaseException) -> list[BaseException]:
    """The error, and all that it came from, also where its trace is told not to show it."""
    found: list[BaseException] = []
    unseen: list[BaseException | None] = [error]
    while unseen:
        each = unseen.pop()
        if each is None or any(each is other for other in found):
            continue
        found.append(each)
        unseen += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            unseen += each.exceptions
    return found


# Cancelling


async def cancel_at_any_step(
    call: Callable[[], Coroutine[Any, Any, object]],
    clear: Callable[[], Coroutine[Any, Any, object]] | None = None,
) -> None:
    """Begins the call over and over, and cancels it one step later each time; it leaves no task behind.

    What a cancelled call has in a thread may keep the next one from its work: that may then fail.
    `clear` is called after each one.
    """
    for steps in range(_CANCEL_STEPS):
        before = asyncio.all_tasks()
        task = asyncio.create_task(call(), name=f"cancelled after {steps} steps")
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            assert isinstance(error, AgentError), f"not an error of this project: {error!r}"
        if clear is not None:
            await clear()
        left = [each.get_name() for each in asyncio.all_tasks() - before if not each.done()]
        assert not left, f"tasks are left: {left}"


async def eventually(busy: type[AgentError], call: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """The call's result, once the calls that were cancelled are out of its way."""
    end = asyncio.get_running_loop().time() + _BUSY_SECONDS
    while True:
        try:
            return await call()
        except busy:
            if asyncio.get_running_loop().time() > end:
                raise
            await asyncio.sleep(_PAUSE_SECONDS)


async def until(what: str, condition: Callable[[], bool]) -> None:
    """Returns when the condition holds that nothing tells of."""
    end = asyncio.get_running_loop().time() + _BUSY_SECONDS
    while not condition():
        assert asyncio.get_running_loop().time() < end, f"this does not come: {what}"
        await asyncio.sleep(_PAUSE_SECONDS)

"""Waits that end, in virtual time: whatever the work does, and whoever cancels whom."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_core.deadline import abandon, wait_until_set, within
from agent_core.errors import AgentFaultError, DeadlineError
from agent_core.testing.simulation import run

RELAXED: Final = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
UNWIND_SECONDS: Final = 2.0
"""What a cancelled call may take, by `deadline`'s own word, before it is left behind."""

Work = Callable[[], Coroutine[Any, Any, str]]


class OddError(Exception):
    """What only the work raises."""


def now() -> float:
    return asyncio.get_running_loop().time()


async def take(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


async def fail(seconds: float = 0.0) -> str:
    await asyncio.sleep(seconds)
    raise OddError("failed")


async def hang() -> str:
    await asyncio.Event().wait()
    return "never"


async def unwind(seconds: float) -> str:
    """Hangs; cancelled, it takes some time to put things in order."""
    try:
        return await hang()
    finally:
        await asyncio.sleep(seconds)


async def swallow(seconds: float) -> str:
    """Hangs; cancelled, it goes on for some time, and then returns as if nothing had been."""
    try:
        await hang()
    except asyncio.CancelledError:
        await asyncio.sleep(seconds)
    return "too late"


async def fail_when_cancelled(seconds: float) -> str:
    try:
        return await hang()
    except asyncio.CancelledError:
        await asyncio.sleep(seconds)
        raise OddError("failed while it was cancelled") from None


async def timed(work: Coroutine[Any, Any, object]) -> tuple[object, float]:
    """The result, or the exception, and when it came."""
    begun = now()
    try:
        return await work, now() - begun
    except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001 - whatever it is, it is what is tested
        return exc, now() - begun


# within


def test_gives_the_result() -> None:
    """As soon as it is there."""
    assert run(lambda: timed(within(10, "work", take(3)))) == ("done", 3)


def test_passes_an_exception() -> None:
    """The work's own, as it is, and at once."""
    error, seconds = run(lambda: timed(within(10, "work", fail(3))))

    assert isinstance(error, OddError)
    assert seconds == 3


def test_ends_at_the_deadline() -> None:
    """With an error that says what took too long, and what its bound was."""
    error, seconds = run(lambda: timed(within(2.5, "the log sink", hang())))

    assert isinstance(error, DeadlineError)
    assert str(error) == "the log sink took longer than 2.5 s"
    assert seconds == 2.5


@RELAXED
@given(st.floats(0.001, 1e5), st.floats(0.001, 1e5), st.integers(0, 2**16))
def test_takes_the_shorter_time(bound: float, seconds: float, seed: int) -> None:
    """A result that comes in time is a result, and nothing takes longer than the bound."""
    outcome, taken = run(lambda: timed(within(bound, "work", take(seconds))), seed=seed)

    assert taken == pytest.approx(min(bound, seconds), rel=1e-6)
    if seconds < bound * 0.999:
        assert outcome == "done"
    elif seconds > bound * 1.001:
        assert isinstance(outcome, DeadlineError)


@pytest.mark.parametrize("bound", [0.0, -1.0])
def test_without_any_time_it_does_not_wait(bound: float) -> None:
    """A bound that is over is one that nothing keeps that has to wait."""
    error, seconds = run(lambda: timed(within(bound, "work", hang())))

    assert isinstance(error, DeadlineError)
    assert seconds == 0


@pytest.mark.parametrize("work", [unwind, swallow, fail_when_cancelled])
@pytest.mark.parametrize("seconds", [0.0, 1.0, 1.9])
def test_cancelled_work_may_put_things_in_order(work: Callable[[float], Any], seconds: float) -> None:
    """It is waited for, for a moment; what it comes to then changes nothing."""
    error, taken = run(lambda: timed(within(5, "work", work(seconds))))

    assert isinstance(error, DeadlineError)
    assert taken == 5 + seconds


@pytest.mark.parametrize("work", [unwind, swallow, fail_when_cancelled])
def test_work_that_does_not_end_is_left_behind(work: Callable[[float], Any]) -> None:
    """After that moment; its late end, its late exception too, is nobody's concern."""

    async def main() -> tuple[object, float]:
        outcome = await timed(within(5, "work", work(1000)))
        await asyncio.sleep(2000)
        return outcome

    error, taken = run(main)

    assert isinstance(error, DeadlineError)
    assert taken == 5 + UNWIND_SECONDS


def test_the_work_is_cancelled_at_the_deadline() -> None:
    """It does not go on behind the caller's back."""
    ended: list[float] = []

    async def work() -> str:
        try:
            return await hang()
        finally:
            ended.append(now())

    async def main() -> int:
        await timed(within(5, "work", work()))
        return len([task for task in asyncio.all_tasks() if not task.done()])

    assert run(main) == 1
    assert ended == [5]


def test_work_that_cancels_itself_is_a_fault() -> None:
    """A cancellation that nobody asked for is not taken for one of the caller."""

    async def cancel_oneself() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return await hang()

    error, _ = run(lambda: timed(within(5, "the queue", cancel_oneself())))

    assert isinstance(error, AgentFaultError)
    assert str(error) == "the queue was cancelled from within"


OUTSIDE: Final[dict[str, tuple[Work, float]]] = {
    "hangs": (hang, 0.0),
    "unwinds": (lambda: unwind(1.5), 1.5),
    "swallows": (lambda: swallow(1000), UNWIND_SECONDS),
    "returns": (lambda: swallow(0), 0.0),
    "fails": (lambda: fail_when_cancelled(0.5), 0.5),
    "fails late": (lambda: fail_when_cancelled(1000), UNWIND_SECONDS),
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_a_cancellation_from_outside_passes(kind: str) -> None:
    """It cancels the work, and arrives, after no more than the moment that the work may take."""
    work, seconds = OUTSIDE[kind]

    async def main() -> tuple[object, float]:
        begun = now()
        task = asyncio.create_task(within(100, "work", work()))
        await asyncio.sleep(3)
        task.cancel()
        await asyncio.wait({task})
        ended = now() - begun
        await asyncio.sleep(2000)
        return task.cancelled(), ended

    assert run(main) == (True, 3 + seconds)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_cancellation_passes_from_the_first_step_on(steps: int) -> None:
    """However far the caller and the work have come, it arrives, without noise."""

    async def call() -> str:
        return await within(100, "work", hang())

    async def main() -> tuple[bool, float]:
        task = asyncio.create_task(call())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled(), now()

    for seed in range(50):
        assert run(main, seed=seed) == (True, 0)


def test_an_impatient_cancellation_passes() -> None:
    """Cancelled again while the work takes its moment, it is over at once."""

    async def main() -> tuple[bool, float]:
        task = asyncio.create_task(within(100, "work", swallow(1000)))
        await asyncio.sleep(3)
        task.cancel()
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait({task})
        ended = now()
        await asyncio.sleep(2000)
        return task.cancelled(), ended

    assert run(main) == (True, 4)


def test_a_cancellation_with_the_result_at_hand() -> None:
    """At the very moment at which the work ends, either the one or the other counts, without noise."""

    async def main(work: Work) -> object:
        task = asyncio.create_task(within(100, "work", work()))
        await asyncio.sleep(3)
        task.cancel()
        await asyncio.wait({task})
        return "cancelled" if task.cancelled() else task.exception() or task.result()

    for seed in range(50):
        assert run(lambda: main(lambda: take(3)), seed=seed) in {"cancelled", "done"}
        failed = run(lambda: main(lambda: fail(3)), seed=seed)
        assert failed == "cancelled" or isinstance(failed, OddError)


@pytest.mark.parametrize(("inner", "outer", "late"), [(3, 10, "inner"), (3, 1, "outer")])
def test_bounds_may_nest(inner: float, outer: float, late: str) -> None:
    """The nearer one counts, wherever it is; each names its own work."""

    async def main() -> str:
        return await within(outer, "outer", within(inner, "inner", hang()))

    error, seconds = run(lambda: timed(main()))

    assert isinstance(error, DeadlineError)
    assert (str(error), seconds) == (f"{late} took longer than {min(inner, outer)} s", min(inner, outer))


def test_a_timeout_around_it_counts() -> None:
    """`asyncio.timeout` cancels from outside like anybody else."""

    async def main() -> str:
        async with asyncio.timeout(2):
            return await within(10, "work", hang())

    error, seconds = run(lambda: timed(main()))
    assert isinstance(error, TimeoutError)
    assert seconds == 2


# abandon


@pytest.mark.parametrize("kind", OUTSIDE)
def test_what_is_abandoned_is_forgotten(kind: str) -> None:
    """It is cancelled, has its moment, and no end of it is heard of."""
    work, seconds = OUTSIDE[kind]

    async def main() -> float:
        task = asyncio.create_task(work())
        await asyncio.sleep(3)
        begun = now()
        await abandon(task)
        taken = now() - begun
        await asyncio.sleep(2000)
        assert task.done()
        return taken

    assert run(main) == seconds


@pytest.mark.parametrize("work", [lambda: take(0), fail])
def test_what_has_ended_can_be_abandoned(work: Work) -> None:
    """It costs no time, and its exception is forgotten."""

    async def main() -> float:
        task = asyncio.create_task(work())
        await asyncio.sleep(3)
        await abandon(task)
        return now()

    assert run(main) == 3


# wait_until_set


@pytest.mark.parametrize(
    ("set_after", "seconds", "wanted"),
    [
        (None, 5, (False, 5)),
        (2, 5, (True, 2)),
        (7, 5, (False, 5)),
        (0, 5, (True, 0)),
        (None, 0, (False, 0)),
        (0, 0, (True, 0)),
        (0, -1, (True, 0)),
        (None, -1, (False, 0)),
    ],
)
def test_waits_until_it_is_set(set_after: float | None, seconds: float, wanted: tuple[bool, float]) -> None:
    """Whether it is set by then; an event that is set already needs no time."""

    async def main() -> tuple[bool, float]:
        event = asyncio.Event()
        if set_after == 0:
            event.set()
        elif set_after is not None:
            asyncio.get_running_loop().call_later(set_after, event.set)
        return await wait_until_set(event, seconds), now()

    assert run(main) == wanted


def test_a_wait_can_be_cancelled() -> None:
    """The cancellation is not taken for the end of the time."""

    async def main() -> bool:
        task = asyncio.create_task(wait_until_set(asyncio.Event(), 5))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    assert run(main)

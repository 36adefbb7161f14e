"""The simulated loop: virtual time, seeded order, errors instead of hangs, crashes without last words."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import math
import random
import sys
import threading
import weakref
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent_core.testing import discarding
from agent_core.testing.simulation import (
    EPOCH,
    DeadlineError,
    DeadlockError,
    LivelockError,
    RefusedError,
    SimulatedCrashError,
    SimulatedLoop,
    SimulationError,
    ThreadRefusedError,
    run,
    wall_clock,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator

HOUR = 3600.0
SEEDS = range(100)
ORDERS_OF_THREE = set(itertools.permutations(range(3)))
CHURN = random.Random()  # unseeded on purpose: it must not matter


def now() -> float:
    return asyncio.get_running_loop().time()


async def wait_for_ever() -> None:
    await asyncio.Event().wait()


class TestTime:
    def test_jumps_to_the_next_timer(self) -> None:
        """A 6-hour job takes 6 hours to the second, none of them real."""

        async def main() -> list[float]:
            ticks = []
            while now() < 6 * HOUR:
                await asyncio.sleep(30)
                ticks.append(now())
            return ticks

        assert run(main) == [30.0 * tick for tick in range(1, 721)]

    @given(st.lists(st.floats(0, 1e9), max_size=20), st.sampled_from([0.0, 1e6, 1.7e9]))
    @example([1.0, 1.05, 1.000001], 0.0)
    def test_is_exact_and_ordered(self, delays: list[float], start: float) -> None:
        """Each sleeper wakes at its time (within the resolution), none before an earlier one."""
        woken: list[tuple[float, float]] = []
        finest = max(1e-9, math.ulp(start + max(delays, default=0)))

        async def sleeper(delay: float) -> None:
            due = now() + delay
            await asyncio.sleep(delay)
            woken.append((due, now()))

        async def main() -> None:
            await asyncio.gather(*map(sleeper, delays))

        loop = SimulatedLoop(start=start)
        loop.run_until_complete(main())
        loop.close()
        assert len(woken) == len(delays)
        assert [at for _, at in woken] == sorted(at for _, at in woken)
        assert all(due - finest <= at <= due for due, at in woken)

    def test_timers_due_together_run_together(self) -> None:
        """Sums of floats that differ by rounding are one moment: 0.1 + 0.1 + 0.1 is not after 0.3."""

        async def main() -> tuple[int, int]:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, SimulatedLoop)
            at: dict[float, int] = {}

            def note(due: float) -> None:
                at[due] = loop.iterations

            for due in (0.1 + 0.1 + 0.1, 0.3):
                loop.call_at(due, note, due)
            await asyncio.sleep(1)
            assert len(at) == 2
            first, second = at.values()
            return first, second

        first, second = run(main)
        assert first == second

    def test_asyncio_works_as_it_is(self) -> None:
        """timeout, wait_for, Queue, Lock, wait and TaskGroup agree on the time."""

        async def main() -> list[float]:
            times = []
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await wait_for_ever()
            times.append(now())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wait_for_ever(), 5)
            times.append(now())
            queue = asyncio.Queue[float](maxsize=1)

            async def produce() -> None:
                for pause in (1.0, 2.0, 3.0):
                    await asyncio.sleep(pause)
                    await queue.put(now())

            async with asyncio.TaskGroup() as group:
                group.create_task(produce())
                times.extend([await queue.get() for _ in range(3)])
            done, pending = await asyncio.wait(
                [asyncio.create_task(asyncio.sleep(delay)) for delay in (1, 9)],
                return_when=asyncio.FIRST_COMPLETED,
            )
            assert (len(done), len(pending)) == (1, 1)
            return [*times, now()]

        assert run(main) == [5, 10, 11, 13, 16, 17]

    def test_wall_clock_follows_it(self) -> None:
        async def main(clock: Callable[[], datetime]) -> tuple[datetime, datetime]:
            before = clock()
            await asyncio.sleep(90)
            return before, clock()

        assert run(lambda: main(wall_clock())) == (EPOCH, EPOCH + timedelta(seconds=90))
        leap_day = datetime(2028, 2, 29, tzinfo=UTC)
        assert run(lambda: main(wall_clock(leap_day))) == (leap_day, leap_day + timedelta(seconds=90))


class TestFaults:
    def test_deadlock_names_who_waits_and_where(self) -> None:
        """Nothing ready and no timer: no hang, but the tasks with their chains of awaits."""

        async def main() -> None:
            waiter = asyncio.create_task(wait_for_ever(), name="the waiter")
            await waiter

        with pytest.raises(DeadlockError) as caught:
            run(main)
        message = str(caught.value)
        assert "Task-1: TestFaults." in message
        line = wait_for_ever.__code__.co_firstlineno + 1
        assert f"the waiter: wait_for_ever ({__file__}:{line}) > Event.wait (" in message

    def test_a_timer_at_infinity_is_none(self) -> None:
        with pytest.raises(DeadlockError):
            run(lambda: asyncio.sleep(float("inf")))

    def test_the_deadlocked_are_cancelled(self) -> None:
        """A fault ends the run in order: cleaning up may even sleep."""
        log = []

        async def main() -> None:
            try:
                await wait_for_ever()
            finally:
                await asyncio.sleep(7)
                log.append(now())

        with pytest.raises(DeadlockError):
            run(main)
        assert log == [7]

    def test_what_cannot_be_cancelled_is_dropped(self, caplog: pytest.LogCaptureFixture) -> None:
        """A task that goes on waiting for ever makes a second error, no noise, and ends as by a crash."""
        log = []

        async def main() -> None:
            try:
                while True:
                    with contextlib.suppress(asyncio.CancelledError):
                        await wait_for_ever()
            finally:
                log.append("finally")

        with pytest.raises(ExceptionGroup) as caught:
            run(main)
        assert [type(error) for error in caught.value.exceptions] == [DeadlockError, DeadlockError]
        del caught
        gc.collect()
        assert log == []
        assert caplog.records == []

    @pytest.mark.parametrize("limit", [10, 1000])
    def test_livelock(self, limit: int) -> None:
        """Iterations without end at one moment are an error, as many at many moments are not."""
        spins = []

        async def spin() -> None:
            for _ in itertools.repeat(None):
                spins.append(now())
                await asyncio.sleep(0)

        async def walk() -> None:
            for _ in range(10 * limit):
                await asyncio.sleep(1e-6)

        with pytest.raises(LivelockError, match=rf"in {limit} iterations.*\n.*spin"):
            run(spin, livelock_after=limit)
        assert len(spins) in (limit, limit + 1)  # one more, where the cancellation comes after it
        run(walk, livelock_after=limit)

    def test_livelock_by_default(self) -> None:
        async def spin() -> None:
            for _ in itertools.repeat(None):
                await asyncio.sleep(0)

        with pytest.raises(LivelockError, match="in 100000 iterations"):
            run(spin)

    def test_deadline(self) -> None:
        """A timer at the deadline runs; beyond it, the run ends and names who still waits."""
        ticks = []

        async def main() -> None:
            while True:
                await asyncio.sleep(10)
                ticks.append(now())

        with pytest.raises(DeadlineError, match=r"next is 40.0 s, after the 30.0 s.*\n.*main .*sleep"):
            run(main, deadline=30.0)
        assert ticks == [10, 20, 30]

    def test_deadline_does_not_cut_the_cleanup(self) -> None:
        """What is cancelled at the deadline has as long again, and no longer."""

        async def main(patience: float) -> None:
            try:
                for _ in itertools.repeat(None):
                    await asyncio.sleep(10)
            finally:
                await asyncio.sleep(patience)

        with pytest.raises(DeadlineError):
            run(lambda: main(30), deadline=30)
        with pytest.raises(ExceptionGroup) as caught:
            run(lambda: main(31), deadline=30)
        assert [type(error) for error in caught.value.exceptions] == [DeadlineError, DeadlineError]


class TestRefusal:
    @pytest.mark.parametrize(
        "reach",
        [
            lambda: asyncio.to_thread(print),
            lambda: asyncio.get_running_loop().run_in_executor(None, print),
        ],
    )
    def test_of_threads(self, reach: Callable[[], Any]) -> None:
        async def main() -> None:
            await reach()

        with pytest.raises(ThreadRefusedError, match="run_in_executor"):
            run(main)

    def test_of_calls_from_threads(self) -> None:
        """The thread gets the error, and so does the run, whatever the thread made of it."""
        caught: list[BaseException] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()

            def intrude() -> None:
                try:
                    loop.call_soon_threadsafe(print)
                except ThreadRefusedError as error:
                    caught.append(error)

            thread = threading.Thread(target=intrude)
            thread.start()
            thread.join()

        with pytest.raises(ExceptionGroup) as group:
            run(main)
        assert list(group.value.exceptions) == caught
        assert len(caught) == 1

    def test_not_of_calls_from_its_own_thread(self) -> None:
        async def main() -> str:
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon_threadsafe(future.set_result, "done")
            return str(await future)

        assert run(main) == "done"

    @pytest.mark.parametrize(
        "reach",
        [
            lambda _: asyncio.open_connection("127.0.0.1", 9),
            lambda _: asyncio.start_server(print, "127.0.0.1", 0),
            lambda _: asyncio.create_subprocess_exec("true"),
            lambda _: asyncio.create_subprocess_shell("true"),
            lambda loop: loop.add_signal_handler(15, print),
            lambda loop: loop.add_reader(0, print),
            lambda loop: loop.getaddrinfo("localhost", 80),
            lambda loop: loop.sock_recv(None, 1),
            lambda loop: loop.connect_read_pipe(asyncio.Protocol, sys.stdin),
            lambda loop: loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0)),
            lambda loop: loop.set_task_factory(None),
        ],
    )
    def test_of_the_real_world(self, reach: Callable[[asyncio.AbstractEventLoop], Any]) -> None:
        async def main() -> None:
            await reach(asyncio.get_running_loop())

        with pytest.raises(RefusedError):
            run(main)


class TestNothingIsSwallowed:
    def test_errors_of_callbacks(self) -> None:
        async def main() -> None:
            asyncio.get_running_loop().call_soon(divmod, 1, 0)
            await asyncio.sleep(1)

        with pytest.raises(ExceptionGroup) as caught:
            run(main)
        (error,) = caught.value.exceptions
        assert isinstance(error, ZeroDivisionError)
        assert "Exception in callback" in error.__notes__[0]

    @pytest.mark.parametrize("keep", [True, False])
    def test_errors_of_tasks_nobody_awaits(self, *, keep: bool) -> None:
        """Whether the task is still referred to at the end, or was dropped long before."""
        kept: list[object] = []

        async def fail() -> None:
            raise ZeroDivisionError

        async def main() -> None:
            task = asyncio.create_task(fail())
            if keep:
                kept.append(task)
            del task
            await asyncio.sleep(1)

        with pytest.raises(ExceptionGroup) as caught:
            run(main)
        assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]

    def test_errors_of_the_cancelled(self) -> None:
        async def stubborn() -> None:
            try:
                await wait_for_ever()
            finally:
                raise ZeroDivisionError

        async def main() -> None:
            tasks.append(asyncio.create_task(stubborn()))
            await asyncio.sleep(1)

        tasks: list[object] = []
        with pytest.raises(ExceptionGroup) as caught:
            run(main)
        assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]

    def test_errors_beside_the_error_of_main(self) -> None:
        async def main() -> None:
            asyncio.get_running_loop().call_soon(divmod, 1, 0)
            await asyncio.sleep(1)
            raise KeyError

        with pytest.raises(ExceptionGroup) as caught:
            run(main)
        assert [type(error) for error in caught.value.exceptions] == [KeyError, ZeroDivisionError]

    def test_the_error_of_main_alone_comes_as_it_is(self) -> None:
        async def main() -> None:
            raise KeyError

        with pytest.raises(KeyError):
            run(main)

    def test_an_exit_within_a_task_stays_an_exit(self) -> None:
        """Ctrl-C must end a test run, and not be one more failure in a group."""

        async def interrupt() -> None:
            raise KeyboardInterrupt

        async def main() -> None:
            tasks.append(asyncio.create_task(interrupt()))
            await asyncio.sleep(1)

        tasks: list[object] = []
        with pytest.raises(KeyboardInterrupt):
            run(main)

    def test_except_by_the_programs_own_handler(self) -> None:
        """A program that handles errors on the loop gets them, and the run does not."""
        handled = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: handled.append(context["exception"]))
            loop.call_soon(divmod, 1, 0)
            await asyncio.sleep(1)

        run(main)
        assert [type(error) for error in handled] == [ZeroDivisionError]

    def test_after_the_end_errors_are_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        """A future that is collected after the run has only the log left to tell."""
        kept = []

        async def main() -> None:
            future = asyncio.get_running_loop().create_future()
            future.set_exception(ZeroDivisionError())
            kept.append(future)

        run(main)
        kept.clear()
        gc.collect()
        assert "Future exception was never retrieved" in caplog.text


class TestTheEnd:
    def test_cancels_what_is_left(self) -> None:
        """In order of creation, and with it what the cancelled start; async generators are closed."""
        log: list[str] = []

        async def work(name: str) -> None:
            try:
                await wait_for_ever()
            finally:
                log.append(name)
                if name == "a":
                    asyncio.create_task(work("started late"))  # noqa: RUF006

        async def generate(name: str) -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                await asyncio.sleep(1)
                log.append(name)

        async def main() -> str:
            kept.extend([asyncio.create_task(work("a")), generator])
            await asyncio.sleep(1)
            return f"got {await anext(generator)}"

        generator = generate("generator")
        kept: list[object] = []
        assert run(main) == "got 1"
        assert log == ["a", "started late", "generator"]

    def test_closes_async_generators_in_a_seeded_order(self) -> None:
        """Not in that of their addresses, which is another in each run."""

        def trace() -> list[int]:
            log: list[int] = []

            async def generate(number: list[int]) -> AsyncIterator[int]:
                try:
                    yield 1
                finally:
                    log.extend(number)

            async def main() -> None:
                for number, (box, generator) in enumerate(generators):
                    box.append(number)
                    await anext(generator)

            boxes: list[list[int]] = [[] for _ in range(8)]
            generators = [(box, generate(box)) for box in boxes]
            CHURN.shuffle(generators)
            run(main, seed=5)
            return log

        expected = trace()
        assert sorted(expected) == list(range(8))
        assert all(trace() == expected for _ in range(50))

    def test_leaves_the_event_loop_policy_alone(self) -> None:
        policy = asyncio.get_event_loop_policy()
        before = dict(vars(policy._local))  # type: ignore[attr-defined]
        run(lambda: asyncio.sleep(1))
        assert asyncio.get_event_loop_policy() is policy
        assert vars(policy._local) == before  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()

    def test_is_the_same_under_a_runner(self) -> None:
        """The loop is one for whoever takes a loop, such as asyncio.Runner."""

        async def main() -> float:
            tasks.append(asyncio.create_task(wait_for_ever()))
            await asyncio.sleep(HOUR)
            return now()

        tasks: list[asyncio.Task[None]] = []
        with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
            assert runner.run(main()) == HOUR
        assert tasks[0].cancelled()

    def test_leaves_no_cycles(self) -> None:
        """A loop is freed as its run returns, so that thousands of them do not wait for the collector."""
        loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

        async def main() -> None:
            loops.append(weakref.ref(asyncio.get_running_loop()))
            await asyncio.gather(asyncio.sleep(1), asyncio.sleep(2))

        gc.disable()
        try:
            run(main)
            assert loops[0]() is None
        finally:
            gc.enable()

    def test_within_a_running_loop_is_refused(self) -> None:
        async def main() -> None:
            run(lambda: asyncio.sleep(1))

        with pytest.raises(RuntimeError, match="from within one"):
            run(main)


Trace = list[tuple[float, str]]


async def race(log: Trace) -> None:
    """Several tasks that are ready together, and a TaskGroup that cancels a set of them."""

    async def worker(number: int) -> None:
        try:
            for _ in range(3):
                await asyncio.sleep(1)
                log.append((now(), f"{number} in {asyncio.current_task().get_name()}"))  # type: ignore[union-attr]
            if number == 3:
                raise ZeroDivisionError
            await asyncio.sleep(HOUR)
        finally:
            log.append((now(), f"{number} ends"))

    with contextlib.suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            for number in range(7):
                group.create_task(worker(number))
    futures = [asyncio.get_running_loop().create_future() for _ in range(5)]
    for future in futures:
        future.set_result(None)
    done, _ = await asyncio.wait(futures)
    log.extend((now(), f"future {futures.index(future)}") for future in done)


def trace_of_race(seed: int) -> Trace:
    log: Trace = []
    run(lambda: race(log), seed=seed)
    return log


class TestOrder:
    def test_is_the_same_for_the_same_seed(self) -> None:
        """A thousand times in one process, with other memory and other garbage each time."""
        expected = trace_of_race(seed=11)
        heap: list[object] = []
        for attempt in range(1000):
            heap.append([object() for _ in range(CHURN.randrange(200))])
            if attempt % 3 == 0:
                cycle: list[object] = [heap]
                cycle.append(cycle)
            if attempt % 50 == 0:
                del heap[:: CHURN.randrange(1, 4)]
                gc.collect(CHURN.randrange(3))
            assert trace_of_race(seed=11) == expected

    @given(st.integers())
    def test_is_the_same_for_any_seed(self, seed: int) -> None:
        assert trace_of_race(seed) == trace_of_race(seed)

    def test_is_another_for_another_seed(self) -> None:
        """The hundred seeds give hundred traces, all with the same events at each moment."""
        traces = [trace_of_race(seed) for seed in SEEDS]
        assert len({tuple(trace) for trace in traces}) == len(SEEDS)
        assert len({tuple(sorted(at for at, _ in trace)) for trace in traces}) == 1

    @staticmethod
    def orders(play: Callable[[list[int]], Coroutine[Any, Any, None]]) -> set[tuple[int, ...]]:
        """The orders that `play` logs, over all seeds."""
        logs: list[list[int]] = [[] for _ in SEEDS]
        for seed, log in zip(SEEDS, logs, strict=True):
            run(lambda log=log: play(log), seed=seed)  # type: ignore[misc]
        return {tuple(log) for log in logs}

    def test_of_first_steps(self) -> None:
        """Tasks that start together do so in any order."""

        async def play(log: list[int]) -> None:
            async def step(number: int) -> None:
                log.append(number)

            await asyncio.gather(*map(step, range(3)))

        assert self.orders(play) == ORDERS_OF_THREE

    def test_of_wakeups(self) -> None:
        """Tasks that one event wakes go on in any order."""

        async def play(log: list[int]) -> None:
            async def wait(number: int) -> None:
                await event.wait()
                log.append(number)

            event = asyncio.Event()
            tasks = [asyncio.create_task(wait(number)) for number in range(3)]
            await asyncio.sleep(1)
            event.set()
            await asyncio.wait(tasks)

        assert self.orders(play) == ORDERS_OF_THREE

    def test_of_cancellation_by_a_task_group(self) -> None:
        """A TaskGroup cancels a set: in any order, even of what runs before the cancelled tasks do."""

        async def play(log: list[int]) -> None:
            class Witness(asyncio.Future[None]):
                def __init__(self, number: int) -> None:
                    super().__init__()
                    self.number = number

                def cancel(self, msg: object = None) -> bool:
                    log.append(self.number)
                    return super().cancel(msg)

            async def wait(number: int) -> None:
                await Witness(number)

            with contextlib.suppress(ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    for number in range(3):
                        group.create_task(wait(number))
                    await asyncio.sleep(1)
                    raise ZeroDivisionError

        assert self.orders(play) == ORDERS_OF_THREE

    @pytest.mark.parametrize("kind", ["tasks", "futures"])
    def test_of_sets(self, kind: str) -> None:
        """Sets of tasks and of futures iterate in any order."""

        async def play(log: list[int]) -> None:
            loop = asyncio.get_running_loop()
            if kind == "tasks":
                all_: list[asyncio.Future[Any]] = [asyncio.create_task(asyncio.sleep(1)) for _ in range(3)]
            else:
                all_ = [loop.create_future() for _ in range(3)]
            log.extend(all_.index(each) for each in set(all_))

        assert self.orders(play) == ORDERS_OF_THREE

    def test_of_plain_callbacks_is_kept(self) -> None:
        """call_soon remains first in, first out; also around tasks, and for methods of tasks."""

        async def play(log: list[int]) -> None:
            async def note(number: int) -> None:
                log.append(number)

            loop = asyncio.get_running_loop()
            loop.call_soon(log.append, 0)
            tasks = [asyncio.create_task(note(1))]
            loop.call_soon(lambda: log.append(2))
            tasks.append(asyncio.create_task(note(1)))
            loop.call_soon(lambda: log.append(3))
            await asyncio.wait(tasks)
            named = asyncio.create_task(asyncio.sleep(9))
            for name in "456":
                loop.call_soon(named.set_name, name)
            await asyncio.sleep(1)
            log.append(int(named.get_name()))

        assert self.orders(play) == {(0, 1, 2, 1, 3, 6)}

    def test_is_that_of_one_step_each(self) -> None:
        """Of tasks that are always ready, none is two steps ahead."""

        async def play(log: list[int]) -> None:
            async def step(number: int) -> None:
                for _ in range(4):
                    log.append(number)
                    await asyncio.sleep(0)

            await asyncio.gather(*map(step, range(3)))

        for order in self.orders(play):
            assert all(sorted(order[at : at + 3]) == [0, 1, 2] for at in range(0, 12, 3))

    def test_names_are_the_same_in_each_run(self) -> None:
        async def main() -> list[str]:
            create = asyncio.get_running_loop().create_task
            tasks = [create(asyncio.sleep(0)), create(asyncio.sleep(0), name="mine")]
            await asyncio.wait(tasks)
            return [task.get_name() for task in tasks]

        assert run(main) == run(main)
        assert run(main)[1] == "mine"


class LastWords:
    """Everything by which a coroutine could speak at its end."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextlib.contextmanager
    def sync_context(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.said.append("generator-based context manager")

    @contextlib.asynccontextmanager
    async def async_context(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self.said.append("async context manager")

    def generator(self) -> Iterator[int]:
        try:
            yield 1
        finally:
            self.said.append("generator")

    async def stream(self) -> AsyncIterator[int]:
        try:
            with self.sync_context():
                yield 1
                await self.inner()
        finally:
            self.said.append("async generator")

    async def inner(self) -> None:
        try:
            await wait_for_ever()
        except BaseException:
            self.said.append("except")
            raise
        finally:
            self.said.append("finally")
            await asyncio.sleep(0)

    async def read(self, stream: AsyncIterator[int]) -> None:
        await anext(stream, None)

    async def wait_by_hand(self) -> None:
        said = self.said

        class Awaitable:
            def __await__(self) -> Generator[Any, Any, Any]:
                return self  # type: ignore[return-value]  # an iterator is enough

            def __next__(self) -> Any:
                future = asyncio.get_running_loop().create_future()
                future._asyncio_future_blocking = True
                return future

            def throw(self, error: type[BaseException] | BaseException, *_: object) -> None:
                said.append("throw")
                raise error

            def close(self) -> None:
                said.append("close")

        await Awaitable()

    async def coroutine(self) -> None:
        said = self.said

        class Deleted:
            def __del__(self) -> None:
                said.append("__del__")

        deleted = Deleted()
        never_awaited = self.inner()
        generator = self.generator()
        next(generator)
        with contextlib.suppress(BaseException), self.sync_context():
            async with self.async_context(), asyncio.timeout(HOUR):
                async for _ in self.stream():
                    pass
        del deleted, never_awaited, generator

    async def main(self) -> None:
        self.task = asyncio.create_task(self.coroutine())
        self.streams = [self.stream() for _ in range(3)]
        for stream in self.streams:
            await anext(stream)
        self.readers: list[object] = [
            asyncio.create_task(anext(self.streams[0])),  # type: ignore[arg-type]
            asyncio.create_task(self.read(self.streams[1])),
            asyncio.create_task(self.wait_by_hand()),
        ]
        self.task.add_done_callback(lambda _: self.said.append("callback"))
        self.task_not_started = None
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(3):
                    group.create_task(self.inner())
                while True:
                    await asyncio.sleep(1)
                    self.task_not_started = group.create_task(self.inner())
        finally:
            self.said.append("main")


class TestCrash:
    @pytest.mark.parametrize("keep", [True, False])
    @pytest.mark.parametrize("iteration", range(12))
    def test_lets_nothing_speak(
        self,
        iteration: int,
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
        *,
        keep: bool,
    ) -> None:
        """No line of a pending coroutine runs: at once, when it is dropped, when it is collected."""
        words = LastWords()
        said = words.said
        unraisable: list[object] = []
        hook, sys.unraisablehook = sys.unraisablehook, unraisable.append
        try:
            with caplog.at_level(logging.INFO), pytest.raises(SimulatedCrashError):
                run(words.main, crash_at=iteration, seed=iteration)
            if not keep:
                del words
            gc.collect()
            assert said == []
            assert not keep or words.said == []
            if keep:
                del words
            gc.collect()
        finally:
            sys.unraisablehook = hook
        assert said == []
        assert unraisable == []
        assert caplog.records == []
        assert capfd.readouterr() == ("", "")

    @pytest.mark.filterwarnings("ignore:coroutine 'LastWords.inner' was never awaited")
    def test_the_words_are_there_without_it(self) -> None:
        """The last words of the test above are real ones: a cancelled program says them all."""
        words = LastWords()
        with pytest.raises(DeadlineError):
            run(words.main, deadline=5)
        gc.collect()
        assert set(words.said) == {
            "generator-based context manager",
            "async context manager",
            "generator",
            "async generator",
            "except",
            "finally",
            "__del__",
            "throw",
            "callback",
            "main",
        }

    def test_at_every_iteration(self) -> None:
        """What the program did before the crash, it did; each point of the program can be the last."""

        async def program(log: list[int]) -> str:
            try:
                for step in range(4):
                    log.append(step)
                    await asyncio.sleep(10)
            finally:
                log.append(99)
            return "done"

        logs: list[list[int]] = []
        for iteration in itertools.count():
            logs.append([])
            try:
                assert run(lambda: program(logs[-1]), crash_at=iteration) == "done"
            except SimulatedCrashError:
                continue
            break
        assert logs[0] == []
        assert logs[-1] == [0, 1, 2, 3, 99]
        assert all(later[: len(log)] == log for log, later in itertools.pairwise(logs))
        assert {len(log) for log in logs} == {0, 1, 2, 3, 4, 5}

    @given(st.integers(0, 40), st.integers())
    def test_counts_iterations(self, iteration: int, seed: int) -> None:
        """Exactly as many iterations are run; the run up to there is that of the seed without a crash."""
        whole, part = trace_of_race(seed), Trace()
        loop = SimulatedLoop(seed)
        loop.crash_at(iteration)
        try:
            loop.run_until_complete(race(part))
        except SimulatedCrashError:
            assert loop.iterations == iteration
            assert loop.is_closed()
        else:
            assert loop.iterations <= iteration
            assert part == whole
            loop.close()
        assert part == whole[: len(part)]

    def test_comes_not_after_main(self) -> None:
        """A main that ends in time has a result, though cleaning up would take it past the crash."""

        async def main() -> str:
            tasks.append(asyncio.create_task(wait_for_ever()))
            await asyncio.sleep(1)
            return "done"

        tasks: list[object] = []
        results = []
        for iteration in range(20):
            with contextlib.suppress(SimulatedCrashError):
                results.append(run(main, crash_at=iteration))
        assert 10 < len(results) < 20
        assert set(results) == {"done"}

    def test_hides_no_error_from_before(self) -> None:
        """What a callback raised before the crash is a fault of the program all the same."""

        async def main() -> None:
            asyncio.get_running_loop().call_soon(divmod, 1, 0)
            await asyncio.sleep(1)
            await asyncio.sleep(1)

        with pytest.raises(ExceptionGroup) as caught:
            run(main, crash_at=4)
        assert [type(error) for error in caught.value.exceptions] == [SimulatedCrashError, ZeroDivisionError]

    def test_leaves_the_interpreter_as_it_was(self) -> None:
        """The tracer, the hook and the collector are back in place, and nothing is kept."""
        events = []

        def tracer(*_: object, depth: int = 9) -> None:
            if depth:
                tracer(depth=depth - 1)
            else:
                events.append(1)

        def report(_: object) -> None:
            pass

        limit, before = sys.getrecursionlimit(), (sys.gettrace(), sys.unraisablehook)
        sys.settrace(tracer)
        sys.unraisablehook = report
        try:
            with pytest.raises(SimulatedCrashError):
                run(LastWords().main, crash_at=5)
            assert sys.gettrace() is tracer
            assert sys.unraisablehook is report
        finally:
            sys.settrace(before[0])
            sys.unraisablehook = before[1]
        assert events
        assert sys.getrecursionlimit() == limit
        assert gc.isenabled()
        assert discarding._kept == []

    def test_keeps_the_collector_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """While finalizers are silenced, those of strangers, which the collector may call, must wait."""
        collecting = []
        discard = discarding._discard_at_end_of_stack

        def look_and_discard(*arguments: Any) -> None:
            collecting.append(gc.isenabled())
            discard(*arguments)

        monkeypatch.setattr(discarding, "_discard_at_end_of_stack", look_and_discard)
        with pytest.raises(SimulatedCrashError):
            run(LastWords().main, crash_at=5)
        assert collecting[0] is False
        assert gc.isenabled()

    def test_silences_the_programs_own_exception_handler(self) -> None:
        """It is code of the dead program, too."""
        handled: list[object] = []
        kept: list[object] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: handled.append(context))
            future = loop.create_future()
            future.set_exception(ZeroDivisionError())
            kept.append(future)
            await asyncio.sleep(1)

        with pytest.raises(SimulatedCrashError):
            run(main, crash_at=2)
        kept.clear()
        gc.collect()
        assert handled == []

    def test_frees_the_memory(self) -> None:
        """Of a thousand dead programs, nothing is left."""

        def count() -> int:
            gc.collect()
            return len(gc.get_objects())

        def crash() -> None:
            with pytest.raises(SimulatedCrashError):
                run(LastWords().main, crash_at=6)

        crash()
        before = count()
        for _ in range(1000):
            crash()
        assert count() - before < 1000

    def test_is_silent_under_a_profiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also where a tool takes the end of the stack for itself."""
        monkeypatch.setattr(discarding, "_kept", kept := list[object]())
        words = LastWords()
        sys.setprofile(lambda *_: None)
        try:
            with pytest.raises(SimulatedCrashError):
                run(words.main, crash_at=6)
        finally:
            sys.setprofile(None)
        discarding.discard(kept)
        assert words.said == []

    def test_keeps_what_it_cannot_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If what looks like the end of the stack is none, coroutines are kept rather than let speak."""
        monkeypatch.setattr(discarding, "_kept", kept := list[object]())
        discard, calls = discarding._discard_at_end_of_stack, itertools.count()

        def end_early(*arguments: Any) -> None:
            if next(calls):
                raise RecursionError
            discard(*arguments)

        monkeypatch.setattr(discarding, "_discard_at_end_of_stack", end_early)
        words = LastWords()
        with pytest.raises(SimulatedCrashError):
            run(words.main, crash_at=6)
        assert len(kept) > 3
        monkeypatch.undo()
        discarding.discard(kept)
        gc.collect()
        assert words.said == []


def test_errors_have_one_root() -> None:
    """A crash is asked for, and no error of the program."""
    errors = [DeadlineError, DeadlockError, LivelockError, RefusedError, ThreadRefusedError]
    assert all(issubclass(error, SimulationError) for error in errors)
    assert not issubclass(SimulatedCrashError, SimulationError)

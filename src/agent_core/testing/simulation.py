"""asyncio in virtual time: a 6-hour job in milliseconds, in an order that a seed decides, crashes included.

The program stays as it is: `asyncio.sleep`, `timeout`, `TaskGroup`, `Queue`, `wait` run unmodified. When
nothing is ready, time jumps to the next timer. The same seed replays the same run; another one runs the tasks
that are ready together in another order, and iterates sets of tasks in another order.

    def test_gives_up_after_an_hour() -> None:
        with pytest.raises(TimeoutError):
            run(lambda: my_program(now=wall_clock()), seed=7)

Not seeded: hashes of strings (set PYTHONHASHSEED), and when garbage is collected, which a program notices by
`__del__` and by async generators that it neither exhausts nor closes.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import weakref
from _thread import get_ident
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from agent_core.testing.discarding import discard

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Coroutine

__all__ = [
    "EPOCH",
    "DeadlineError",
    "DeadlockError",
    "LivelockError",
    "RefusedError",
    "SimulatedCrashError",
    "SimulatedLoop",
    "SimulationError",
    "ThreadRefusedError",
    "run",
    "wall_clock",
]

T = TypeVar("T")

EPOCH = datetime(2025, 11, 25, 10, tzinfo=UTC)
LIVELOCK_ITERATIONS = 100_000
CLOCK_RESOLUTION_SECONDS = 1e-9
HASH_BITS = 60


class SimulationError(RuntimeError):
    """The program did what no program may: wait for nothing, spin, overrun, or leave the simulation."""


class DeadlockError(SimulationError):
    """Nothing is ready and no timer is set: what waits now would wait for ever."""


class LivelockError(SimulationError):
    """The loop iterates, and virtual time does not advance."""


class DeadlineError(SimulationError):
    """The program would go on beyond its deadline in virtual time."""


class RefusedError(SimulationError):
    """The program reached for the real world: network, file descriptors, signals, subprocesses."""


class ThreadRefusedError(RefusedError):
    """The program reached for a thread, or a thread for the loop."""


class SimulatedCrashError(Exception):
    """The loop stopped dead, as `crash_at` wanted."""


def run(
    main: Callable[[], Coroutine[Any, Any, T]],
    *,
    seed: int = 0,
    crash_at: int | None = None,
    deadline: float | None = None,
    livelock_after: int = LIVELOCK_ITERATIONS,
) -> T:
    """Run `main()` on a new `SimulatedLoop`, as `asyncio.run` does on a real one, and return its result.

    However main ends, unless by a crash, what is left is then cancelled and the loop is closed.

    Args:
        main: makes the coroutine to run.
        seed: decides what asyncio leaves open.
        crash_at: see `SimulatedLoop.crash_at`. A main that ends before does not crash: 0, 1, 2, … until `run`
            returns are all the points there are.
        deadline: virtual seconds for main; what is then cancelled has as long again.
        livelock_after: iterations that may pass while time does not.

    Raises:
        SimulationError: one of its subclasses, naming the tasks that wait, and where.
        SimulatedCrashError: at `crash_at`.
        BaseExceptionGroup: what callbacks, and tasks that nobody awaited, raised; after main's own exception
            or the crash, if there is one.
    """
    if asyncio._get_running_loop() is not None:  # noqa: SLF001  the public one raises
        raise RuntimeError("run() makes a loop, it cannot be called from within one")
    loop = SimulatedLoop(seed, livelock_after=livelock_after)
    loop.deadline = math.inf if deadline is None else deadline
    loop.crash_at(crash_at)
    try:
        result = loop.run_until_complete(main())
    except BaseException as error:
        if unhandled := [each for each in loop.finish() if each is not error]:
            raise BaseExceptionGroup("main failed, and nobody handled", [error, *unhandled]) from None
        raise
    if unhandled := loop.finish():
        raise BaseExceptionGroup("nobody handled", unhandled)
    return result


def wall_clock(start: datetime = EPOCH) -> Callable[[], datetime]:
    """A `now` for the program: `start` at virtual time 0, and on with the time of the running loop."""
    return lambda: start + timedelta(seconds=asyncio.get_running_loop().time())


class SimulatedLoop(asyncio.BaseEventLoop):
    """A loop without a world; for `run`, or as in `asyncio.Runner(loop_factory=SimulatedLoop)`.

    Attributes:
        seed: decides the order of tasks that are ready in the same iteration (plain callbacks remain first
            in, first out), and that of sets of tasks and futures.
        iterations: how many were run.
        deadline: virtual time after which no timer may be due.
        unhandled: exceptions that reached the default exception handler.
        random: what the seed decides, it decides through this; doubles of ports may use it, too.
    """

    # Parts of BaseEventLoop, the same in CPython 3.11 to 3.13.
    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _check_closed: Callable[[], None]

    def __init__(
        self, seed: int = 0, *, start: float = 0.0, livelock_after: int = LIVELOCK_ITERATIONS
    ) -> None:
        super().__init__()
        self.seed = seed
        self.iterations = 0
        self.deadline = math.inf
        self.unhandled: list[BaseException] = []
        self.random = random.Random(seed)  # noqa: S311  it decides an order, it keeps no secret
        self._ordinals = itertools.count(1)
        self._tasks = weakref.WeakValueDictionary[int, _Task]()
        self._pending = set[_Task]()  # asyncio holds tasks weakly: the collector could end a pending one
        self._asyncgens = _OrderedWeakSet()
        self._thread = get_ident()
        self._crash_at: int | None = None
        self._crashed = False
        self._livelock_after = livelock_after
        self._iterations_now = 0
        self._set_time(start)

    def time(self) -> float:
        """Virtual seconds."""
        return self._time

    def crash_at(self, iteration: int | None) -> None:
        """Stop dead when that many iterations have been run, as if the process were killed.

        `run_until_complete` raises `SimulatedCrashError`; the loop is closed. No callback runs any more, no
        task is cancelled, no `finally`, `except` or `__aexit__` of a pending coroutine runs, then or later.
        What only those coroutines held dies as silently: generators, context managers, `__del__`. What others
        hold too, or a cycle of references, ends when Python ends it.
        """
        self._crash_at = iteration

    def pending_tasks(self) -> list[asyncio.Task[Any]]:
        """The tasks not done, oldest first; the order of `asyncio.all_tasks()` depends on earlier runs."""
        return [task for task in self._tasks.values() if not task.done()]

    def finish(self) -> list[BaseException]:
        """Cancel what is left, close async generators and the loop; return what nobody handled."""
        if not self.is_closed():
            self._crash_at = None
            self._iterations_now = 0
            self.deadline += self._time
            try:
                self.run_until_complete(self._wind_down())
            except BaseException as error:  # noqa: BLE001  run() raises it
                self.unhandled.append(error)
                self._abandon()
            self.close()
        return self.unhandled

    async def _wind_down(self) -> None:
        while left := [task for task in self.pending_tasks() if task is not asyncio.current_task()]:
            for task in left:
                task.cancel()
            await asyncio.wait(left)
        await self.shutdown_asyncgens()
        # By themselves, failed tasks tell when they are collected, which may be too late.
        for task in [task for task in self._tasks.values() if task._log_traceback]:  # noqa: SLF001
            message = f"{task.get_name()} failed, and nobody asked for its result"
            self.call_exception_handler({"message": message, "exception": task.exception(), "task": task})

    def _abandon(self) -> None:
        self._crashed = True
        self.set_exception_handler(None)
        generators = [generator.aclose() for generator in self._asyncgens]
        discard([*(task.get_coro() for task in self._pending), *generators])
        self.close()

    def run_forever(self) -> None:
        try:
            super().run_forever()
        except SimulatedCrashError:
            self._abandon()
            raise

    @property
    def _selector(self) -> SimulatedLoop:
        return self  # as an attribute, it would leave a cycle to the collector in each run

    def select(self, timeout: float | None) -> tuple[()]:
        """Start an iteration: crash, find fault, shuffle the tasks that are ready, or let time pass."""
        if self.iterations == self._crash_at:
            raise SimulatedCrashError(f"crashed after {self.iterations} iterations, at {self._time} s")
        if timeout == 0:
            self._iterations_now += 1
            if self._iterations_now > self._livelock_after:
                raise LivelockError(self._who_waits(f"no time passed in {self._livelock_after} iterations"))
            self._shuffle_tasks()
        else:
            upcoming = self._scheduled[0].when() if self._scheduled else math.inf
            if upcoming == math.inf:
                raise DeadlockError(self._who_waits("nothing is ready, no timer is set"))
            if upcoming > self.deadline:
                raise DeadlineError(
                    self._who_waits(f"next is {upcoming} s, after the {self.deadline} s allowed")
                )
            self._iterations_now = 0
            self._set_time(upcoming)
        self.iterations += 1
        return ()

    def _process_events(self, events: tuple[()]) -> None:
        pass

    def _set_time(self, time: float) -> None:
        self._time = time
        # Timers run that are due *before* time + resolution. Were this sum the time itself, because the
        # resolution is 0 or lost in rounding, then those due at that time would never run.
        self._clock_resolution = max(CLOCK_RESOLUTION_SECONDS, math.ulp(time))

    def _shuffle_tasks(self) -> None:
        if len(self._ready) > 1:
            places = [place for place, handle in enumerate(self._ready) if _steps_a_task(handle)]
            handles = [self._ready[place] for place in places]
            self.random.shuffle(handles)
            for place, handle in zip(places, handles, strict=True):
                self._ready[place] = handle

    def _who_waits(self, problem: str) -> str:
        tasks = [f"{each.get_name()}: {_where(each)}" for each in self.pending_tasks()]
        return "\n  ".join([f"at {self._time} s: {problem}. Pending:", *tasks])

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(loop=self)

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        """As in asyncio; but a task without a name gets one that is the same in each replay."""
        self._check_closed()
        ordinal = next(self._ordinals)
        options["name"] = options.get("name") or f"Task-{ordinal}"
        task = _Task(coro, loop=self, **options)
        self._tasks[ordinal] = task
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        return task

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.is_closed():
            error = context.get("exception") or SimulationError(context["message"])
            error.add_note(context["message"])
            self.unhandled.append(error)
        elif not self._crashed:
            super().default_exception_handler(context)

    def call_soon_threadsafe(  # type: ignore[override]  # its type variables are asyncio's affair
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        if get_ident() != self._thread:
            error = ThreadRefusedError(f"another thread wants to call {callback!r}")
            self.unhandled.append(error)  # raised in that thread, it might vanish
            raise error
        return self.call_soon(callback, *args, context=context)


_REFUSED = {
    "add_ connect_ create_ remove_ sendfile sock_ start_ subprocess_": RefusedError,
    "run_in_executor set_default_executor": ThreadRefusedError,
    "set_task_factory": RefusedError,  # other tasks would not replay
}


def _refuse(name: str, error: type[RefusedError]) -> Callable[..., NoReturn]:
    def refused(*_: object, **__: object) -> NoReturn:
        raise error(f"{name} would leave the simulation: give the program a port and its memory adapter")

    return refused


for _names, _error in _REFUSED.items():
    for _name in vars(asyncio.AbstractEventLoop).keys() - vars(SimulatedLoop).keys():
        if _name.startswith(tuple(_names.split())):
            setattr(SimulatedLoop, _name, _refuse(_name, _error))


class _Seeded:
    """Hashed by a number that the loop draws, not by address: sets iterate the same in each replay."""

    _hash: int | None = None
    get_loop: Callable[[], Any]

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = self.get_loop().random.getrandbits(HASH_BITS)
        return self._hash


class _Future(_Seeded, asyncio.Future[Any]):
    pass


class _Task(_Seeded, asyncio.Task[Any]):
    _log_traceback: bool  # of asyncio.Future: it failed, and nobody asked yet


class _OrderedWeakSet(weakref.WeakKeyDictionary[Any, None]):
    """What BaseEventLoop uses of a WeakSet; iterates in the order of insertion, not of addresses."""

    add = weakref.WeakKeyDictionary.setdefault

    def discard(self, item: object) -> None:
        self.pop(item, None)


def _steps_a_task(handle: asyncio.Handle) -> bool:
    """Whether its callback is of a task, and no public method: then it starts, resumes or wakes that task."""
    callback = handle._callback  # type: ignore[attr-defined]  # noqa: SLF001  there is no public way
    task = getattr(callback, "__self__", None)
    return isinstance(task, _Task) and not hasattr(task, getattr(callback, "__name__", ""))


def _where(task: asyncio.Task[Any]) -> str:
    """The chain of awaits, from the outside inwards."""
    frames, awaitable = [], cast("Any", task.get_coro())
    while frame := getattr(awaitable, "cr_frame", None):
        frames.append(f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})")
        awaitable = getattr(awaitable, "cr_await", None)
    return " > ".join(frames) or repr(awaitable)

"""Runs the runner: races it against deadlines, floors and requests to stop, and leaves no process of it."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from attrs import evolve

from agent_core.console import Completed, Connected, Console, ConsoleEvent, Listening, Running
from agent_core.deadline import abandon, wait_until_set, within
from agent_core.ending import leave_no_process
from agent_core.errors import DeadlineError, RunnerError
from agent_core.events import JobCompleted, JobStarted, RunnerRestarting
from agent_core.host_watch import HostWatch
from agent_core.life import Life
from agent_core.messenger import Messenger
from agent_core.model import Registration, Secret
from agent_core.phases import Phase
from agent_core.policy import (
    CALL_SECONDS,
    JOURNAL_AGAIN_SECONDS,
    OUTPUT_END_SECONDS,
    Milestones,
    grace_seconds,
    next_watch,
    phase_seconds,
    restart_delay,
)

__all__ = ["Supervision"]


class Supervision:
    """LISTENING, RUNNING, STOPPING."""

    def __init__(
        self, life: Life, messenger: Messenger, host_watch: HostWatch, registration: Registration
    ) -> None:
        self._life, self._messenger, self._registration = life, messenger, registration
        self._host_watch = host_watch
        self._runner = life.ports.runner_process
        self._milestones = Milestones(started=0.0)
        self._moved_on = asyncio.Event()
        self._connected = False
        self._over = asyncio.Event()
        self._exit: asyncio.Task[int] | None = None
        self._reader: asyncio.Task[None] | None = None
        self.listening_at: float | None = None
        """When the runner first waited for a job, on the loop's clock."""
        self.exit_code: int | None = None

    async def run(self) -> None:
        """Returns when the runner has ended, by itself or not, and no process of it is left."""
        await self._life.enter(Phase.LISTENING)
        self._reach(Milestones(started=self._time()))
        async with asyncio.TaskGroup() as group:
            aides = [
                group.create_task(self._guarded(self._enforce_deadlines()), name="deadlines"),
                group.create_task(self._guarded(self._host_watch.keep_looking()), name="host watch"),
            ]
            journal = group.create_task(self._guarded(self._keep_journal()), name="journal")
            try:
                await self._start_until_done()
            except Exception as exc:  # noqa: BLE001 - the life goes to its end, and says why
                self._life.fail(exc)
            await self._stop()
            for aide in aides:
                aide.cancel()
            # Not cancelled: a save that is cut off would keep the journal from the next one.
            self._over.set()
            self._life.chronicle.dirty.set()
            await journal

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """An exception in a task is a fault that stops the runner in order; it does not tear it down."""
        try:
            await work
        except Exception as exc:  # noqa: BLE001 - becomes the reason to stop
            self._life.fail(exc)

    # Starting

    async def _start_until_done(self) -> None:
        jit_config = self._registration.jit_config
        restarts = 0
        while True:
            exit_code = await self._start_once(jit_config)
            if exit_code is None:
                return
            if self._milestones.running is not None:
                self._life.settle()
                return
            if jit_config is not None and exit_code != 0 and not self._connected and self._registration.token:
                self._life.warn("the runner refused its just-in-time config; it is registered with the token")
                await self._finish_start()
                await self._register()
                jit_config = None
                continue
            delay = restart_delay(exit_code, restarts)
            if delay is None:
                self._life.settle()
                return
            restarts += 1
            self._life.emit(RunnerRestarting(exit_code, delay))
            await self._finish_start()
            if await wait_until_set(self._life.stopping.requested, delay):
                return

    async def _start_once(self, jit_config: Secret | None) -> int | None:
        """The exit code; None: a request to stop came first, or the runner cannot be waited for."""
        self._reach(Milestones(started=self._time()))
        process = await within(CALL_SECONDS, "starting the runner", self._runner.start(jit_config))
        self._life.chronicle.note(runner=(process,))
        self._exit = asyncio.create_task(self._wait(), name="runner's exit")
        self._reader = asyncio.create_task(self._guarded(self._read()), name="runner's output")
        stop = asyncio.create_task(self._life.stopping.requested.wait(), name="stop request")
        await asyncio.wait({self._exit, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not self._exit.done():
            return None
        self.exit_code = self._exit.result()
        return self.exit_code

    async def _register(self) -> None:
        seconds = phase_seconds(Phase.REGISTERING, self._life.limits)
        registering = self._runner.register(self._registration, self._life.print)
        await within(seconds, "registering", registering)

    async def _wait(self) -> int:
        return await self._runner.wait()

    async def _finish_start(self) -> None:
        """Leaves nothing of a start that is over, and reads what it printed to its end."""
        await leave_no_process(self._life, self._life.record.runner)
        if self._reader is not None and not self._reader.done():
            await asyncio.wait({self._reader}, timeout=OUTPUT_END_SECONDS)
            if not self._reader.done():
                self._life.warn("the runner's output has no end; what came so far is kept")
                await abandon(self._reader)

    # Reading

    async def _read(self) -> None:
        console = Console()
        async for line in self._runner.output():
            self._life.print(line)
            if (event := console.feed(line)) is not None:
                self._take(event)

    def _take(self, event: ConsoleEvent) -> None:
        match event:
            case Connected():
                self._connected = True
            case Listening():
                if self.listening_at is None:
                    self.listening_at = self._time()
                self._reach(evolve(self._milestones, listening=self._time()))
            case Running(name):
                self._job_started(name)
            case Completed(name, result):
                self._life.emit(JobCompleted(name, result))
                self._life.chronicle.note(job_result=result, completed_at=self._life.now())
                self._life.settle()
                self._reach(evolve(self._milestones, completed=self._time()))

    def _job_started(self, name: str) -> None:
        if self._life.phase is Phase.LISTENING:
            self._life.move(Phase.RUNNING)
        self._life.chronicle.note(started_at=self._life.now(), job_name=name)
        self._life.emit(JobStarted(name))
        self._reach(evolve(self._milestones, running=self._time()))
        self._messenger.announce_start()

    def _reach(self, milestones: Milestones) -> None:
        self._milestones = milestones
        self._moved_on.set()

    # Watching

    async def _enforce_deadlines(self) -> None:
        while True:
            self._moved_on.clear()
            watch = next_watch(self._milestones, self._life.limits)
            if not await wait_until_set(self._moved_on, watch.at - self._time()):
                self._life.stop(watch.request)
                return

    async def _keep_journal(self) -> None:
        chronicle = self._life.chronicle
        # A save clears `dirty`, which may just have been set to end this: so that is not what ends it.
        while not self._over.is_set():
            await chronicle.dirty.wait()
            if not self._over.is_set() and not await chronicle.save():
                await asyncio.sleep(JOURNAL_AGAIN_SECONDS)

    # Stopping

    async def _stop(self) -> None:
        """One request to the runner, its grace, and then the end of whatever is left."""
        await self._life.enter(Phase.STOPPING)
        if self._exit is not None and not self._exit.done():
            await self._interrupt()
            await self._grant_grace(self._exit)
        await self._finish_start()
        if self._exit is None:
            return
        await asyncio.wait({self._exit}, timeout=OUTPUT_END_SECONDS)
        if not self._exit.done():
            await abandon(self._exit)
        elif not self._exit.cancelled() and self._exit.exception() is None:
            self.exit_code = self._exit.result()

    async def _interrupt(self) -> None:
        try:
            await within(CALL_SECONDS, "interrupting the runner", self._runner.interrupt())
        except (RunnerError, DeadlineError) as exc:
            self._life.warn(f"the runner could not be asked to stop: {exc}")

    async def _grant_grace(self, exit_: asyncio.Task[int]) -> None:
        """Waits for the runner, but no longer than a deadline allows that may come nearer meanwhile."""
        stopping, begun = self._life.stopping, self._time()
        while not exit_.done():
            stopping.changed.clear()
            waited = self._time() - begun
            left = grace_seconds(self._life.limits, waited, self._life.remaining_seconds)
            if left <= 0:
                return
            changed = asyncio.create_task(stopping.changed.wait(), name="nearer deadline")
            await asyncio.wait({exit_, changed}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()

    def _time(self) -> float:
        return asyncio.get_running_loop().time()

"""Runs the runner: races it against deadlines, floors and requests to stop, and leaves no process of it."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

from agent_core.budget import EndingStep, grace_seconds
from agent_core.deadline import abandon, wait_until_set, within
from agent_core.ending import leave_no_process
from agent_core.errors import DeadlineError, RunnerError
from agent_core.events import RunnerRestarting
from agent_core.hearing import Hearing
from agent_core.host_watch import HostWatch
from agent_core.life import Life
from agent_core.messenger import Messenger
from agent_core.model import Registration, Secret, StopReason
from agent_core.phases import Phase
from agent_core.policy import (
    CALL_SECONDS,
    JOURNAL_AGAIN_SECONDS,
    Watch,
    next_watch,
    phase_seconds,
    restart_delay,
)

__all__ = ["Supervision"]


class Supervision:
    """LISTENING, RUNNING, STOPPING."""

    def __init__(
        self,
        life: Life,
        messenger: Messenger,
        host_watch: HostWatch,
        registration: Registration,
        job_environment: Mapping[str, str | Secret],
    ) -> None:
        self._life, self._registration, self._job_environment = life, registration, job_environment
        self._hearing, self._host_watch = Hearing(life, messenger), host_watch
        self._runner = life.ports.runner_process
        self._over = asyncio.Event()
        self._exit: asyncio.Task[int] | None = None
        self._readers: tuple[asyncio.Task[None], ...] = ()
        self.exit_code: int | None = None

    @property
    def listening_at(self) -> float | None:
        """When the runner first waited for a job, on the loop's clock."""
        return self._hearing.listening_at

    async def run(self) -> None:
        """Returns when the runner has ended, by itself or not, and no process of it is left."""
        await self._life.enter(Phase.LISTENING)
        self._hearing.begin()
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
            self._hearing.judge(self.exit_code)
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
            if self._hearing.milestones.running is None:
                # Its last words may not be heard yet, and tell what it came to.
                await self._finish_start()
            if self._hearing.milestones.running is not None:
                self._life.settle()
                return
            delay = restart_delay(exit_code, restarts)
            if delay is not None:
                restarts += 1
                self._life.emit(RunnerRestarting(exit_code, delay))
                if await wait_until_set(self._life.stopping.requested, delay):
                    return
            elif jit_config is None or self._hearing.connected or self._registration.token is None:
                self._life.settle()
                return
            else:
                self._life.warn("the runner refused its just-in-time config; it is registered with the token")
                jit_config = None
                if not await self._register():
                    return

    async def _start_once(self, jit_config: Secret | None) -> int | None:
        """The exit code; None: a request to stop came first, or the runner cannot be waited for."""
        self._hearing.start_again()
        starting = self._runner.start(jit_config, self._job_environment)
        process = await within(CALL_SECONDS, "starting the runner", starting)
        self._life.chronicle.note(runner=(process,))
        # No bound: the deadlines stop it. But what these raise is plain.
        waiting = within(None, "waiting for the runner", self._runner.wait())
        reading = within(None, "reading the runner's output", self._hearing.read())
        following = within(None, "following the runner's traces", self._hearing.follow())
        self._exit = asyncio.create_task(waiting, name="runner's exit")
        self._readers = (
            asyncio.create_task(self._guarded(reading), name="runner's output"),
            asyncio.create_task(self._guarded(following), name="runner's traces"),
        )
        if not await self._life.stopping.comes_after(self._exit):
            return None
        self.exit_code = self._exit.result()
        return self.exit_code

    async def _register(self) -> bool:
        """Whether the runner is registered; False: a request to stop came first."""
        seconds = phase_seconds(Phase.REGISTERING, self._life.limits)
        registering = asyncio.create_task(
            within(seconds, "registering", self._runner.register(self._registration, self._life.print)),
            name="registering",
        )
        if not await self._life.stopping.comes_after(registering):
            await abandon(registering)
            return False
        registering.result()
        return True

    async def _finish_start(self) -> None:
        """Leaves nothing of a start that is over, and reads what it printed to its end."""
        await self._hearing.refute()
        await leave_no_process(self._life, self._life.record.runner)
        if not self._readers:
            return
        _, unfinished = await asyncio.wait(self._readers, timeout=self._life.step_seconds(EndingStep.OUTPUT))
        if unfinished:
            self._life.warn("the runner's output has no end; what came so far is kept")
            await asyncio.gather(*map(abandon, unfinished))

    # Watching

    async def _enforce_deadlines(self) -> None:
        hearing = self._hearing
        while True:
            hearing.moved_on.clear()
            watch = next_watch(hearing.milestones, self._life.limits)
            if await wait_until_set(hearing.moved_on, watch.at - self._time()):
                continue
            if not await self._is_refuted(watch):
                self._life.stop(watch.request)
                return

    async def _is_refuted(self, watch: Watch) -> bool:
        """Whether the runner is at work, though it seems to wait for a job, or to have done one."""
        if watch.request.reason is StopReason.IDLE and await self._hearing.has_worker():
            self._hearing.note_assigned()
            return True
        return await self._hearing.refute()

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
            await self._guarded(self._end_by_itself(self._exit))
        await self._finish_start()
        if self._exit is None:
            return
        await asyncio.wait({self._exit}, timeout=self._life.step_seconds(EndingStep.OUTPUT))
        if not self._exit.done():
            await abandon(self._exit)
        elif not self._exit.cancelled() and self._exit.exception() is None:
            self.exit_code = self._exit.result()

    async def _end_by_itself(self, exit_: asyncio.Task[int]) -> None:
        await self._interrupt()
        await self._grant_grace(exit_)

    async def _interrupt(self) -> None:
        seconds = min(CALL_SECONDS, max(1.0, self._grace_seconds(0.0)))
        try:
            await within(seconds, "interrupting the runner", self._runner.interrupt())
        except (RunnerError, DeadlineError) as exc:
            self._life.warn(f"the runner could not be asked to stop: {exc}")

    async def _grant_grace(self, exit_: asyncio.Task[int]) -> None:
        """Waits for the runner, but no longer than a deadline allows that may come nearer meanwhile."""
        stopping, begun = self._life.stopping, self._time()
        while not exit_.done():
            stopping.changed.clear()
            left = self._grace_seconds(self._time() - begun)
            if left <= 0:
                return
            changed = asyncio.create_task(stopping.changed.wait(), name="nearer deadline")
            await asyncio.wait({exit_, changed}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()

    def _grace_seconds(self, waited: float) -> float:
        return grace_seconds(self._life.limits, waited, self._life.remaining_seconds)

    def _time(self) -> float:
        return asyncio.get_running_loop().time()

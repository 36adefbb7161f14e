"""The end of every life, also of one that a successor ends: each step bounded, none able to skip the next."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from attrs import evolve, frozen

from agent_core.budget import EndingStep, step_seconds
from agent_core.deadline import within
from agent_core.errors import AgentError, TerminatorError, TerminatorUnavailableError
from agent_core.events import Killed, LogsDrained, PoweringOff, Terminating, TerminationRequested
from agent_core.life import Life
from agent_core.messenger import Messenger
from agent_core.model import JournalRecord, LogStats, ProcessId, StatusMessage
from agent_core.phases import Phase
from agent_core.policy import (
    KILL_CALL_SECONDS,
    POWER_OFF_SECONDS,
    STALL_SECONDS,
    TERMINATE_CALL_SECONDS,
    Backoff,
)
from agent_core.runner_logs import upload_runner_logs
from agent_core.status import Observed, final_message

__all__ = ["Ending", "Outcome", "conclude", "leave_no_process"]

_NOTHING: Final[Mapping[str, object]] = MappingProxyType({})

_LAST_RESORT: Final = "what is left is the timer that does it, where it is installed"


@frozen(kw_only=True)
class Outcome:
    """How a life ended."""

    record: JournalRecord
    """All that a successor would know."""
    logs: LogStats
    error: AgentError | None = None
    """What kept the job from its own end: bad config, a refusal, a fault."""
    terminate_error: TerminatorError | None = None
    """Why the last request to terminate was not accepted."""
    powered_off: bool = False
    """Whether the host has begun to power off, since no request to terminate was accepted."""

    @property
    def message(self) -> StatusMessage | None:
        """The final message; None where there was no job to speak of."""
        return self.record.final

    @property
    def confirmed(self) -> bool:
        """Whether the queue has the final message."""
        return self.message is not None and self.message.message_id in self.record.confirmed

    @property
    def terminated(self) -> bool:
        """Whether the request to terminate was accepted."""
        return self.record.terminated

    @property
    def stream(self) -> str | None:
        """The job's log stream."""
        return None if self.record.job_id is None else self.record.stream


async def leave_no_process(life: Life, known: Sequence[ProcessId] = ()) -> None:
    """Kills what is left of the runner, until nothing is, or the bound is reached."""
    backoff = Backoff(first=0.1, most=1.0)
    loop = asyncio.get_running_loop()
    seconds = life.step_seconds(EndingStep.KILL)
    end, attempt = loop.time() + seconds, 0
    while True:
        try:
            killing = life.ports.runner_process.kill(known)
            count = await within(min(KILL_CALL_SECONDS, seconds), "killing the runner", killing)
        except Exception as exc:  # noqa: BLE001 - whatever it was, a process that lives is worse
            if loop.time() >= end:
                life.warn(f"some of the runner's processes may be alive: {exc}")
                return
            await asyncio.sleep(backoff.delay(attempt, life.rng))
            attempt += 1
        else:
            if count:
                life.emit(Killed(count))
            return


def conclude(life: Life, observed: Observed, measured: Mapping[str, object] = _NOTHING) -> None:
    """Decides how the life ended, once, where it has a job; the journal hears of it at its next save."""
    if life.record.job_id is not None and life.record.final is None:
        life.chronicle.note(final=final_message(life.record, observed, life.now(), **measured))


class Ending:
    """STOPPING, where nothing has stopped yet; REPORTING, CLEANING, TERMINATING."""

    def __init__(self, life: Life, messenger: Messenger) -> None:
        self._life, self._messenger = life, messenger
        self._terminate_error: TerminatorError | None = None
        self._powered_off = False

    async def run(self, observed: Observed, measured: Mapping[str, object]) -> Outcome:
        """Ends the life that came to `observed`; `measured` goes into the message beside it."""
        life = self._life
        life.settle()
        if life.phase is not Phase.STOPPING:
            await self._step(life.enter(Phase.STOPPING))
            await self._step(leave_no_process(life, life.record.runner))
        await self._step(life.enter(Phase.REPORTING))
        await self._step(self._deliver_logs(observed, measured))
        await self._step(self._send(observed))
        if life.record.installed and life.step_seconds(EndingStep.CLEAN):
            await self._step(self._clean())
        await self._step(life.enter(Phase.TERMINATING))
        await self._step(self._terminate())
        if not life.record.terminated:
            await self._step(self._power_off())
        return Outcome(
            record=life.record,
            logs=life.delivery.stats,
            error=life.error,
            terminate_error=self._terminate_error,
            powered_off=self._powered_off,
        )

    async def _step(self, step: Coroutine[Any, Any, None]) -> None:
        try:
            await step
        except Exception as exc:  # noqa: BLE001 - whatever fails here, the instance must go
            self._life.fail(exc)

    async def _deliver_logs(self, observed: Observed, measured: Mapping[str, object]) -> None:
        """Concludes, once, and in the journal before anyone hears of it; then delivers logs."""
        life = self._life
        conclude(life, observed, measured)
        await life.chronicle.save()
        log_upload = await upload_runner_logs(life, life.step_seconds(EndingStep.UPLOAD))
        stats = await life.delivery.drain(STALL_SECONDS, life.step_seconds(EndingStep.DELIVER))
        life.emit(LogsDrained(stats))
        final = life.record.final
        if (
            final is not None and final.log_lines_accepted is None
        ):  # or a dead agent has told already, and a repeat says the same
            final = evolve(
                final,
                log_upload=log_upload,
                log_lines_accepted=stats.accepted,
                log_lines_delivered=stats.delivered,
                log_lines_rejected=stats.rejected,
                log_lines_dropped=stats.dropped,
            )
            await life.chronicle.save(final=final)

    async def _send(self, observed: Observed) -> None:
        conclude(self._life, observed)
        if self._life.record.final is not None:
            seconds = self._life.step_seconds(EndingStep.SEND)
            await self._messenger.send_final(self._life.record.final, seconds)

    async def _clean(self) -> None:
        life = self._life
        await life.enter(Phase.CLEANING)
        try:
            removing = life.ports.runner_process.remove()
            await within(life.step_seconds(EndingStep.CLEAN), "cleaning up", removing)
        except AgentError as exc:
            life.warn(f"the runner's root is not clean: {exc}")
        else:
            await life.chronicle.save(installed=False)

    async def _terminate(self) -> None:
        """Asks until the request is accepted, whatever the answer, for as long as the phase lasts."""
        life = self._life
        instance_id, backoff = life.record.instance_id, Backoff(first=0.5, most=8.0)
        loop = asyncio.get_running_loop()
        # As long as the machine is there, whatever was said of its end.
        end, attempt = loop.time() + step_seconds(EndingStep.TERMINATE, None), 0
        life.emit(Terminating(instance_id))
        while True:
            try:
                request = life.ports.terminator.terminate(instance_id)
                await within(TERMINATE_CALL_SECONDS, "the request to terminate", request)
            except Exception as exc:  # noqa: BLE001 - an unknown fault is no reason to keep the machine
                life.warn(f"the request to terminate {instance_id or 'this'} was not accepted: {exc}")
                self._terminate_error = exc if isinstance(exc, TerminatorError) else _unknown(exc)
            else:
                self._terminate_error = None
                life.emit(TerminationRequested(instance_id))
                life.move(Phase.TERMINATED)
                await life.chronicle.save(terminated=True)
                return
            delay = backoff.delay(attempt, life.rng)
            if loop.time() + delay >= end or not instance_id:
                return  # who has no name is not found by asking again
            await asyncio.sleep(delay)
            attempt += 1

    async def _power_off(self) -> None:
        life = self._life
        if not life.options.poweroff:
            life.warn(f"the host is not powered off, since RUNS_FLEET_POWEROFF is not 1: {_LAST_RESORT}")
            return
        life.emit(PoweringOff(f"the request to terminate was not accepted: {self._terminate_error}"))
        try:
            await within(POWER_OFF_SECONDS, "powering off", life.ports.terminator.power_off())
        except AgentError as exc:
            life.warn(f"the host does not power off: {exc}; {_LAST_RESORT}")
        else:
            self._powered_off = True


def _unknown(exc: Exception) -> TerminatorError:
    return TerminatorUnavailableError(str(exc))

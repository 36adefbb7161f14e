"""What the parts of one life share: its ports, its record, its logs, its phase and its wish to stop."""

import asyncio
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from random import Random
from typing import Any

from attrs import field, frozen

from agent_core import __version__
from agent_core.budget import EndingStep, is_overdue, step_seconds
from agent_core.chronicle import Chronicle
from agent_core.delivery import LogDelivery
from agent_core.errors import AgentError, AgentFaultError
from agent_core.events import (
    Downloading,
    Event,
    Failed,
    Observer,
    PhaseEntered,
    Printed,
    StopRequested,
    Warned,
)
from agent_core.model import JournalRecord, Limits, OutputLine, StopReason, StopRequest
from agent_core.phases import TRANSITIONS, Phase
from agent_core.ports import Ports

__all__ = ["AgentOptions", "Life", "StopSignal"]


@frozen(kw_only=True)
class AgentOptions:
    """What an operator decides about an agent, whatever its job."""

    instance_id: str
    arch: str
    """Of the runner: `x64` or `arm64`."""
    runner_version: str = "latest"
    """`2.x.y` or `latest`; a job's config may want another."""
    github_url: str = "https://github.com"
    job_environment: Mapping[str, str] = field(factory=dict, repr=False)
    """Further variables for the steps of any job."""
    poweroff: bool = False
    """The host is powered off when termination fails: the launch template says that this terminates."""
    limits: Limits = field(factory=Limits)


class StopSignal:
    """That something asks to stop, and by when: of several deadlines the nearest counts."""

    def __init__(self) -> None:
        self.deadline: datetime | None = None
        self.requested = asyncio.Event()
        self.changed = asyncio.Event()

    def ask(self, deadline: datetime | None) -> None:
        deadlines = [at for at in (self.deadline, deadline) if at is not None]
        self.deadline = min(deadlines, default=None)
        self.requested.set()
        self.changed.set()

    async def comes_after(self, task: asyncio.Task[Any]) -> bool:
        """Whether the task is done before anything asks to stop; returns at whatever comes first."""
        stop = asyncio.create_task(self.requested.wait(), name="stop request")
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        return task.done()


class Life:
    """One life, from BOOTING to TERMINATED."""

    def __init__(
        self,
        options: AgentOptions,
        ports: Ports,
        *,
        now: Callable[[], datetime],
        rng: Random,
        observer: Observer,
    ) -> None:
        self.options, self.ports, self.now, self.rng = options, ports, now, rng
        self.limits = options.limits
        self.phase = Phase.BOOTING
        self.stopping = StopSignal()
        self.delivery = LogDelivery(ports.log_sink, ports.log_spool, now=now, rng=rng, warn=self.warn)
        record = JournalRecord(
            instance_id=options.instance_id, agent_version=__version__, phase=Phase.BOOTING
        )
        self.chronicle = Chronicle(ports.journal, record, self.warn)
        self.error: AgentError | None = None
        self.error_phase: Phase | None = None
        self._settled = False
        self._observer = observer
        self._entered_at: float | None = None

    @property
    def record(self) -> JournalRecord:
        """What a successor would know."""
        return self.chronicle.record

    @property
    def remaining_seconds(self) -> float | None:
        """To the machine's end, where it has one."""
        deadline = self.stopping.deadline
        return None if deadline is None else (deadline - self.now()).total_seconds()

    @property
    def is_overdue(self) -> bool:
        """Whether it has been in its phase for longer than all bounds add up to: then it hangs."""
        now = asyncio.get_running_loop().time()
        if self._entered_at is None:
            self._entered_at = now
        return is_overdue(self.phase, now - self._entered_at, self.limits)

    def step_seconds(self, step: EndingStep) -> float:
        """How long a step of the ending may take from now; 0: it is skipped."""
        return step_seconds(step, self.remaining_seconds)

    # Telling

    def emit(self, event: Event) -> None:
        """Tells the observer, and the job's log stream what belongs there; it never raises."""
        try:
            self._observer(event)
        except BaseException as exc:  # noqa: BLE001 - an observer is a bystander: a closed terminal ends no job
            self._observer = _nobody
            self._log(f"no longer observed: {_in_short(exc)}")
        if not isinstance(event, Printed | Downloading):
            self._log(str(event))

    def _log(self, text: str) -> None:
        # Who tells of something does what matters more: an instance is not kept for a line.
        with suppress(BaseException):
            for line in text.splitlines():
                self.delivery.write(f"runs-fleet-agent: {line}")

    def print(self, line: OutputLine, step: int | None = None) -> None:
        """Passes on what the runner printed, or a step of the job."""
        printed = Printed(line, step)
        self.emit(printed)
        self.delivery.write(str(printed))

    def warn(self, text: str) -> None:
        self.emit(Warned(text))

    # Changing

    def move(self, phase: Phase) -> None:
        """Enters the phase; the journal hears of it at its next save."""
        if phase not in TRANSITIONS[self.phase]:
            raise AgentFaultError(f"there is no way from phase {self.phase} to phase {phase}")
        self.phase, self._entered_at = phase, asyncio.get_running_loop().time()
        self.chronicle.note(phase=phase)
        self.emit(PhaseEntered(phase))

    async def enter(self, phase: Phase) -> None:
        """Enters the phase, and tells the journal."""
        self.move(phase)
        await self.chronicle.save()

    # What comes to pass first decides the status: a stop, a failure, or the end of job or runner.

    def settle(self) -> None:
        """From here on a request to stop hurries the ending, but is not what ended the life."""
        self._settled = True

    def stop(self, request: StopRequest) -> None:
        """Asks to stop, any number of times."""
        counts = not self._settled
        if counts:
            self.settle()
            self.chronicle.note(stop=request)
        self.emit(StopRequested(request, counts))
        self.stopping.ask(request.deadline)

    def fail(self, exc: BaseException) -> None:
        """Takes what went wrong; what nobody expected is a fault of the agent, and stops the runner.

        It never raises, whatever it is given.
        """
        if isinstance(exc, AgentError):
            error = exc
        else:
            error = AgentFaultError(_in_short(exc))
            error.__cause__ = exc
        trace = _trace_of(exc) if isinstance(error, AgentFaultError) else None
        self.emit(Failed(self.phase, str(error), trace))
        if self.error is None:
            self.error, self.error_phase = error, self.phase
        if isinstance(error, AgentFaultError):
            self.stop(StopRequest(StopReason.AGENT_FAULT, f"fault of the agent: {error}"))
        self.settle()


def _nobody(_event: Event) -> None:
    pass


def _trace_of(exc: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(exc))
    except BaseException:  # noqa: BLE001 - without memory, or deep in a recursion, its name has to do
        return type(exc).__name__


def _in_short(exc: BaseException) -> str:
    return _trace_of(exc).strip().splitlines()[-1]

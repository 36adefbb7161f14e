"""One life of an agent: every phase, in order, top to bottom."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import datetime
from random import Random
from typing import Any, TypeVar

from agent_core.deadline import abandon, within
from agent_core.ending import Ending, Outcome, conclude
from agent_core.errors import (
    AgentAliveError,
    AgentError,
    AgentFaultError,
    ConfigError,
    JobAlreadyRunError,
)
from agent_core.events import Observer, PhaseEntered
from agent_core.host_watch import HostWatch
from agent_core.life import AgentOptions, Life
from agent_core.messenger import Messenger
from agent_core.model import Registration, StopReason, StopRequest
from agent_core.phases import Phase
from agent_core.policy import phase_seconds
from agent_core.ports import Ports
from agent_core.provisioning import provision
from agent_core.recovery import Remains, adopt, inspect, observed_of, without_journal
from agent_core.registration import job_environment_for, registration_for
from agent_core.status import Observed
from agent_core.supervision import Supervision
from agent_core.taking import look_for_job, wait_for_job

__all__ = ["Agent"]

_T = TypeVar("_T")
_Work = Callable[[], Coroutine[Any, Any, _T]]


class Agent:
    """Turns the machine into a runner for one job, and then makes it disappear.

    Args:
        options: what the operator decides.
        ports: the world.
        now: wall time, with its offset from UTC.
        rng: for jitter.
        observer: told of all that happens.
    """

    def __init__(
        self,
        options: AgentOptions,
        ports: Ports,
        *,
        now: Callable[[], datetime],
        rng: Random,
        observer: Observer,
    ) -> None:
        self._life = Life(options, ports, now=now, rng=rng, observer=observer)
        self._options, self._ports = options, ports
        self._messenger = Messenger(self._life)
        self._host_watch = HostWatch(self._life)
        self._supervision: Supervision | None = None
        self._inherited: Observed | None = None
        self._entered: dict[Phase, float] = {}

    def stop(self, request: StopRequest) -> None:
        """Asks to stop, at any moment, any number of times; the first reason is kept."""
        self._life.stop(request)

    @property
    def is_overdue(self) -> bool:
        """Whether the life hangs, in spite of all bounds: what a watchdog asks, on the loop that runs it."""
        return self._life.is_overdue

    def warn(self, text: str) -> None:
        """Tells of something that is not as it should be, in the job's log too."""
        self._life.warn(text)

    def fault(self, exc: BaseException) -> None:
        """Takes an exception from a callback or a thread that nobody waits for, and stops."""
        self._life.fail(AgentFaultError(repr(exc)) if isinstance(exc, AgentError) else exc)

    async def run(self, refused: AgentError | None = None) -> Outcome:
        """Lives, to the end. A cancellation is taken for an interruption, and raised after the end.

        Args:
            refused: a reason, known from the start, to run no job: the life goes straight to its end.

        Raises:
            AgentAliveError: another agent works here; nothing was done.
        """
        life = asyncio.create_task(self._live(refused), name="life")
        cancelled = False
        while not life.done():
            try:
                await asyncio.wait({life})
            except asyncio.CancelledError:
                cancelled = True
                self.stop(StopRequest(StopReason.INTERRUPTED, "the agent was cancelled", by="cancellation"))
        if cancelled:
            raise asyncio.CancelledError
        return life.result()

    async def _live(self, refused: AgentError | None) -> Outcome:
        life = self._life
        try:
            await self._work(refused)
        except _StoppedError:
            pass
        except AgentAliveError:
            raise
        except Exception as exc:  # noqa: BLE001 - the life goes to its end, and says why
            life.fail(exc)
        if life.record.job_id is None and not isinstance(life.error, ConfigError):
            await look_for_job(life)
        return await Ending(life, self._messenger).run(self._observed(), self._measured())

    async def _work(self, refused: AgentError | None) -> None:
        """BOOTING to STOPPING."""
        self._life.emit(PhaseEntered(Phase.BOOTING))
        await self._timed(Phase.BOOTING, lambda: self._boot(refused))
        config = await self._phase(Phase.CONFIGURING, lambda: wait_for_job(self._life))
        await self._phase(Phase.PROVISIONING, lambda: provision(self._life, config))
        registration = registration_for(config, self._options)
        await self._phase(Phase.REGISTERING, lambda: self._register(registration))
        environment = job_environment_for(config, self._options)
        self._supervision = Supervision(
            self._life, self._messenger, self._host_watch, registration, environment
        )
        await self._supervision.run()

    async def _phase(self, phase: Phase, work: _Work[_T]) -> _T:
        """One phase's work, within its deadline, unless a request to stop comes first."""
        task = asyncio.create_task(self._timed(phase, work, enter=True), name=phase)
        if not await self._life.stopping.comes_after(task):
            await abandon(task)
            raise _StoppedError
        result = task.result()
        if self._life.stopping.requested.is_set():
            raise _StoppedError
        return result

    async def _timed(self, phase: Phase, work: _Work[_T], *, enter: bool = False) -> _T:
        self._entered[phase] = asyncio.get_running_loop().time()
        if enter:
            await self._life.enter(phase)
        return await within(phase_seconds(phase, self._life.limits), f"phase {phase}", work())

    # BOOTING

    async def _boot(self, refused: AgentError | None) -> None:
        """Looks at what an earlier agent left here, and then at the host.

        In this order: whatever is wrong with the host, an earlier agent's end is told as its journal has it.
        """
        life = self._life
        try:
            remains, record = await inspect(life)
        except Exception as exc:
            self._inherited = without_journal(life, exc)
            raise
        if remains is Remains.ALIVE and record is not None:
            raise AgentAliveError(f"the agent with process ID {record.agent and record.agent.pid} works here")
        if remains is Remains.UNFINISHED and record is not None:
            self._inherited = observed_of(record)
            adopt(life, record)
            conclude(life, self._inherited)
            life.delivery.recover()
            life.delivery.open(record.stream)
            raise JobAlreadyRunError(
                f"an earlier agent took job {record.job_id!r}, and died in phase {record.phase}"
            )
        jobs_run = () if record is None or remains is Remains.FOREIGN else record.jobs_run
        life.chronicle.note(agent=life.ports.host_probe.own_process(), jobs_run=jobs_run)
        sample = await self._host_watch.look()
        await life.chronicle.save(booted_at=None if sample is None else sample.booted_at)
        if refused is not None:
            raise refused

    # REGISTERING

    async def _register(self, registration: Registration) -> None:
        """A just-in-time config needs no registration: it is one."""
        if registration.jit_config is None:
            await self._ports.runner_process.register(registration, self._life.print)

    # What is known at the end

    def _observed(self) -> Observed:
        if self._inherited is not None:
            return self._inherited
        life, record = self._life, self._life.record
        return Observed(
            stop=record.stop,
            job_ran=record.started_at is not None,
            job_result=record.job_result,
            runner_exit_code=None if self._supervision is None else self._supervision.exit_code,
            error=None if life.error is None else str(life.error),
            error_phase=life.error_phase,
        )

    def _measured(self) -> dict[str, object]:
        """How long the way to the runner's readiness took, in seconds; what was not reached is left out."""
        at: dict[str, float | None] = dict(self._entered.items())
        at["listening"] = None if self._supervision is None else self._supervision.listening_at
        spans = {
            "config": (Phase.CONFIGURING, Phase.PROVISIONING),
            "runner": (Phase.PROVISIONING, Phase.REGISTERING),
            "register": (Phase.REGISTERING, Phase.LISTENING),
            "total": (Phase.BOOTING, Phase.LISTENING),
        }
        measured: dict[str, object] = {}
        for name, (begin, end) in spans.items():
            begun, ended = at.get(begin), at.get(end)
            if begun is not None and ended is not None:
                measured[f"bootstrap_{name}_seconds"] = round(ended - begun, 3)
        return measured


class _StoppedError(Exception):
    """A request to stop came before the phase's work was done."""

"""What is known of the runner and its job: from its console, its files, its processes and its exit code."""

import asyncio
from datetime import datetime
from typing import NamedTuple

from attrs import evolve

from agent_core.console import Completed, Connected, Console, ConsoleEvent, Listening, Running
from agent_core.deadline import within
from agent_core.events import JobAssigned, JobCompleted, JobStarted
from agent_core.life import Life
from agent_core.messenger import Messenger
from agent_core.model import Assigned, JobResult, OutputMissed, StepLine, Trace, WorkerStarted
from agent_core.phases import Phase
from agent_core.policy import WORKER_LOOK_SECONDS, Milestones
from agent_core.status import disagreement, job_result

__all__ = ["Hearing"]


class _Claim(NamedTuple):
    """A line said that the job completed, and how."""

    result: JobResult
    at: datetime


class Hearing:
    """Hears one runner out, over all its starts, and passes on what it prints.

    A job may make a line of the console say what is not true: that it has completed. The runner says so when
    its worker has gone; so as long as there is a worker, such a line is not believed.
    """

    def __init__(self, life: Life, messenger: Messenger) -> None:
        self._life, self._messenger = life, messenger
        self._runner = life.ports.runner_process
        self._has_worked = self._lied = False
        self._claims: list[_Claim] = []
        """What lines on the console said of how the job ended: each result once, the last one last."""
        self._after_work: _Claim | None = None
        """The first one that came when the worker had come and gone."""
        self.milestones = Milestones(first_started=0.0, started=0.0)
        self.moved_on = asyncio.Event()
        """Set with each new milestone."""
        self.connected = False
        self.listening_at: float | None = None
        """When the runner first waited for a job, on the loop's clock."""

    def begin(self) -> None:
        """The first start comes next, or what it needs."""
        now = _time()
        self._reach(Milestones(first_started=now, started=now))

    def start_again(self) -> None:
        """A start comes next."""
        self._reach(Milestones(first_started=self.milestones.first_started, started=_time()))

    # The console

    async def read(self) -> None:
        """Reads one start's output to its end."""
        console = Console()
        async for line in self._runner.output():
            self._life.print(line)
            if (event := console.feed(line)) is not None:
                await self._heed(event)

    async def _heed(self, event: ConsoleEvent) -> None:
        match event:
            case Connected():
                self.connected = True
            case Listening():
                if self.listening_at is None:
                    self.listening_at = _time()
                self._reach(evolve(self.milestones, listening=_time()))
            case Running(name):
                self._job_started(name)
            case Completed(name, result):
                await self._job_completed(name, result)

    def _job_started(self, name: str) -> None:
        if self._life.phase is Phase.LISTENING:
            self._life.move(Phase.RUNNING)
        self._life.chronicle.note(started_at=self._life.now(), job_name=name)
        self._life.emit(JobStarted(name))
        self._reach(evolve(self.milestones, running=_time()))
        self._messenger.announce_start()

    async def _job_completed(self, name: str, result: JobResult) -> None:
        # Asked before the look: a worker that starts meanwhile has not ended.
        has_worked = self._has_worked
        works = await self._look_for_worker() if self._after_work is None else False
        if works:
            self._disbelieve()
            return
        claim = _Claim(result, self._life.now())
        self._claims = [*(each for each in self._claims if each.result is not result), claim]
        if self._after_work is not None:
            # The runner says it once.
            self._lied |= result is not self._after_work.result
            return
        self._life.emit(JobCompleted(name, result))
        # Otherwise it may be a piece of the job's name that says so; the end will tell.
        is_after_work = has_worked and works is False
        if is_after_work or self.milestones.completed is None:
            # Of what may be lies the first: a repeat would put off the runner's end, and max runtime with it.
            # But no lie takes anything from the time that the runner has to exit.
            self._reach(evolve(self.milestones, completed=_time()))
        if is_after_work:
            self._after_work = claim
            self._life.chronicle.note(job_result=claim.result, completed_at=claim.at)
            self._life.settle()

    def _disbelieve(self) -> None:
        if not self._lied:
            self._life.warn("a line says that the job completed, but its worker is at work: not believed")
        self._lied = True

    # The files

    async def follow(self) -> None:
        """Follows one start's traces to their end; whatever is wrong with them, the job goes on without."""
        try:
            async for trace in self._runner.traces():
                self._take(trace)
        except Exception as exc:  # noqa: BLE001 - see above
            self._life.warn(f"what the job's steps print cannot be followed any more: {exc}")

    def _take(self, trace: Trace) -> None:
        match trace:
            case StepLine(step, line):
                self._has_worked = True
                self._life.print(line, step)
            case WorkerStarted():
                self._has_worked = True
            case Assigned():
                if self.milestones.running is None:  # the console may have told before
                    self._life.emit(JobAssigned())
                self.note_assigned()
            case OutputMissed(detail):
                self._life.warn(detail)

    def note_assigned(self) -> None:
        """The runner has a job, by whatever sign."""
        self._reach(evolve(self.milestones, assigned=_time()))

    # The processes

    async def has_worker(self) -> bool:
        """Whether the runner works on a job now; where nobody can tell, it does not."""
        return bool(await self._look_for_worker())

    async def _look_for_worker(self) -> bool | None:
        """None: nobody can tell."""
        try:
            works = await within(WORKER_LOOK_SECONDS, "the look for a worker", self._runner.has_worker())
        except Exception as exc:  # noqa: BLE001 - a look, and no more
            self._life.warn(f"whether the runner works cannot be seen: {exc}")
            return None
        self._has_worked |= works
        return works

    async def refute(self) -> bool:
        """Whether a line said that the job completed, and was not true: there is a worker."""
        if self.milestones.completed is None or not await self.has_worker():
            return False
        self._disbelieve()
        self._claims.clear()
        self._life.chronicle.note(job_result=None, completed_at=None)
        self._reach(evolve(self.milestones, completed=None))
        return True

    # The end

    def judge(self, exit_code: int | None) -> None:
        """What the job came to, once everything has been heard."""
        first = self._after_work
        said = [claim.result for claim in self._claims]
        result = job_result(said, exit_code, first and first.result, lied=self._lied)
        claims = [first, *self._claims] if first else self._claims
        completed_at = next((claim.at for claim in claims if claim.result is result), None)
        self._life.chronicle.note(job_result=result, completed_at=completed_at)
        if (words := disagreement(result, exit_code)) is not None:
            self._life.warn(words)

    def _reach(self, milestones: Milestones) -> None:
        self.milestones = milestones
        self.moved_on.set()


def _time() -> float:
    return asyncio.get_running_loop().time()

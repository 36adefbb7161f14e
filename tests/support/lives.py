"""Random lives in a random world, and the design's invariants held against what is left of them."""

import asyncio
import math
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import pairwise
from random import Random

from attrs import asdict, evolve, field, frozen

from agent_adapters.memory import RunnerScript
from agent_adapters.wire import message_to_json
from agent_adapters.world import A_JOB, World
from agent_core.budget import SPARE_SECONDS, is_overdue, life_seconds
from agent_core.ending import Outcome
from agent_core.events import Event, JobStarted, PhaseEntered, Printed, TerminationRequested
from agent_core.model import (
    JobConfig,
    JobResult,
    Limits,
    Release,
    Secret,
    Status,
    StatusMessage,
    StopReason,
    StopRequest,
)
from agent_core.phases import Phase
from agent_core.policy import EXIT_SECONDS
from agent_core.status import message_id
from agent_core.testing.faults import FaultKind, Faults, faulty_ports
from agent_core.testing.simulation import EPOCH, SimulatedCrashError, run, wall_clock

_FOR_EVER = 1e6
"""Seconds: a life that goes on beyond has lost a bound."""
TOKEN = "JITC_this-must-not-come-out"
JIT_CONFIG = "JITCONFIG_nor-must-this"
_CONFIG = evolve(A_JOB, jit_token=Secret(TOKEN))

_COMPLETED = "completed with result"
"""How the runner, or its job, tells that the job ended."""
_CLOSE_SECONDS = 0.01
"""What comes so close to its deadline may be too late."""
_LEAST_SECONDS = 20.0
"""What an ending takes where nothing is in its way."""
_UNWIND_SECONDS = 2.0
"""What each cancelled call may cost beside its deadline."""
_ENDING_SECONDS = 10 + 10 + 5 + 60 + 10 + 30 + 60 + 30 * _UNWIND_SECONDS
"""From the runner's end to the request to terminate, with everything at its worst: killing, the output's end,
draining, sending, cleaning, terminating."""


@frozen(kw_only=True)
class Trouble:
    """What is wrong with one port: the share of its calls that each kind of fault takes."""

    fail: float = 0.0
    break_: float = 0.0
    delay: float = 0.0
    hang: float = 0.0
    stubborn: float = 0.0
    most: int = 3
    """So many calls go wrong, and no more."""


@frozen(kw_only=True)
class Stop:
    """A request to stop."""

    at: float
    reason: StopReason = StopReason.INTERRUPTED
    machine_left: float | None = None
    """Seconds from the request to the machine's end."""


@frozen(kw_only=True)
class Plan:
    """Everything that decides the lives on one machine."""

    seed: int = 0
    script: RunnerScript = field(factory=RunnerScript)
    jit: bool = False
    config_after: float | None = 0.0
    """Seconds until the config is there; None: it never comes."""
    prebaked: str | None = None
    """The version of the runner that the machine's image has."""
    tampered: bool = False
    limits: Limits = field(factory=Limits)
    stops: tuple[Stop, ...] = ()
    disk_full_after: float | None = None
    troubles: dict[str, Trouble] = field(factory=dict)
    """By the port's field in `Ports`."""
    crashes: tuple[int, ...] = ()
    """The iteration of its loop at which each process dies; after them comes one that does not."""
    successor_reaps: bool = True
    """Or it is a new agent, as after a restart of the service."""


@frozen
class Played:
    """What is left of a plan's lives."""

    plan: Plan
    world: World
    events: tuple[tuple[float, Event], ...]
    outcome: Outcome | None
    """Of the last process; None where it found nothing to do."""
    crashed: int
    """So many processes died."""
    faults: dict[str, Faults]
    spooled: tuple[str, ...]
    """The lines in the spool when the last of them died."""

    @property
    def trace(self) -> tuple[tuple[float, str], ...]:
        return tuple((at, str(event)) for at, event in self.events)

    @property
    def finals(self) -> list[StatusMessage]:
        return [message for message in self.world.notifier.received if message.status is not Status.STARTED]

    def when(self, wanted: Callable[[Event], bool]) -> float | None:
        """The moment of the first such event."""
        return next((at for at, event in self.events if wanted(event)), None)


def play(plan: Plan) -> Played:
    """Lives the plan, crash by crash; each process has a loop that goes on from the last one's time."""
    world, faults = _world_of(plan)
    events: list[tuple[float, Event]] = []

    def observe(event: Event) -> None:
        events.append(((world.now() - EPOCH).total_seconds(), event))

    async def live(number: int, begun: float) -> Outcome | None:
        loop = asyncio.get_running_loop()
        _schedule(plan, world, begun)
        if number > 0 and plan.successor_reaps:
            return await world.reap(observe)
        agent = world.agent(observe)
        for stop in plan.stops if number == 0 else ():
            loop.call_at(stop.at, agent.stop, _request(stop))
        return await agent.run()

    outcome: Outcome | None = None
    spooled: tuple[str, ...] = ()
    for number, crash_at in enumerate([*plan.crashes, None]):
        begun = events[-1][0] if events else 0.0
        world.now = wall_clock(EPOCH + timedelta(seconds=begun))
        world.log_sink.now = world.now
        try:
            outcome = run(
                partial(live, number, begun), seed=plan.seed + number, crash_at=crash_at, deadline=_FOR_EVER
            )
        except SimulatedCrashError:
            world.crash()
            spooled = tuple(event.text for event in world.machine.spooled)
        else:
            return Played(plan, world, tuple(events), outcome, number, faults, spooled)
    raise AssertionError("the last process of a plan does not crash")


def _world_of(plan: Plan) -> tuple[World, dict[str, Faults]]:
    rng = Random(plan.seed)
    faults = {port: Faults(rng, **asdict(trouble)) for port, trouble in plan.troubles.items()}
    world = World(
        config=_config_of(plan) if plan.config_after == 0 else None,
        script=plan.script,
        limits=plan.limits,
        seed=plan.seed,
        spoil=lambda ports: faulty_ports(ports, faults),
    )
    if plan.prebaked is not None:
        world.machine.installed = Release(version=plan.prebaked, arch="x64", sha256="")
        world.machine.prebaked = True
    if plan.tampered:
        world.binary_store.tampered = b"not the runner"
    return world, faults


def _config_of(plan: Plan) -> JobConfig:
    return evolve(_CONFIG, jit_config=Secret(JIT_CONFIG) if plan.jit else None)


def _schedule(plan: Plan, world: World, begun: float) -> None:
    """Lets the world change in a loop that begins at `begun`."""
    loop = asyncio.get_running_loop()
    if plan.config_after is not None:
        loop.call_at(plan.config_after - begun, setattr, world.config_source, "config", _config_of(plan))
    if plan.disk_full_after is not None:
        loop.call_at(plan.disk_full_after - begun, setattr, world.machine, "free_disk_bytes", 0)


def _request(stop: Stop) -> StopRequest:
    left = None if stop.machine_left is None else timedelta(seconds=stop.at + stop.machine_left)
    deadline = None if left is None else EPOCH + left
    return StopRequest(stop.reason, f"planned: {stop.reason}", by="plan", deadline=deadline)


# The invariants, numbered as in the design


def check(played: Played) -> None:
    """Raises AssertionError, with the number of the invariant that does not hold."""
    _asked_to_terminate(played)
    _fed_its_watchdog(played)
    _one_final_status(played)
    _nothing_unverified_ran(played)
    _no_process_left(played)
    _over_before_the_machine(played)
    _no_line_lost(played)
    _spool_delivered(played)
    _no_secret_out(played)


def _asked_to_terminate(played: Played) -> None:
    assert played.world.terminator.requests, "1: nobody asked to terminate"
    limits = played.plan.limits
    longest = life_seconds(limits) + 60 * _UNWIND_SECONDS
    end = max(at for at, event in played.events if isinstance(event, TerminationRequested))
    assert end <= longest * (1 + played.crashed), f"1: it took {end} s, longer than {longest} s"
    stopping = played.when(lambda event: event == PhaseEntered(Phase.STOPPING))
    if stopping is not None and not played.crashed:
        last = limits.shutdown_grace.total_seconds() + _ENDING_SECONDS
        assert end - stopping <= last, f"1: the end took {end - stopping} s, longer than {last} s"


def _fed_its_watchdog(played: Played) -> None:
    """No bound of the policy lets a sound life look as if it hung."""
    if played.crashed:
        return
    entered = [(at, event.phase) for at, event in played.events if isinstance(event, PhaseEntered)]
    for (begun, phase), (ended, _) in pairwise(entered):
        assert not is_overdue(phase, ended - begun, played.plan.limits), f"1: a watchdog killed it in {phase}"


def _one_final_status(played: Played) -> None:
    world, finals = played.world, played.finals
    took_job = bool(world.machine.journal and '"job_id"' in world.machine.journal)
    journal_was_sound = not _faults_of(played, "journal")
    unread = played.crashed and any(method == "load" for method, _ in _faults_of(played, "journal"))
    began = any(isinstance(event, JobStarted) for _, event in played.events)
    if (took_job or (began and journal_was_sound)) and not unread:
        assert finals, "2: the queue never heard how it ended"
    expected = message_id(world.machine.instance_id, A_JOB.job_id, "final")
    assert {message.message_id for message in finals} <= {expected}, "2: a repeat has another message_id"
    if journal_was_sound or not played.crashed:
        assert len({message.status for message in finals}) <= 1, "2: there is more than one final status"
        assert len({message_to_json(message) for message in finals}) <= 1, "2: a repeat says something else"
        assert sum(isinstance(event, JobStarted) for _, event in played.events) <= 1, "2: the job ran twice"
    for message in finals:
        if message.status is Status.SUCCESS:
            result = played.plan.script.result
            assert result is not None, "2: that was no success"
            assert result.is_success, "2: that was no success"
            assert message.job_ran, "2: that was no success"
    _true_status(played)


def _faults_of(played: Played, port: str) -> list[tuple[str, FaultKind]]:
    return played.faults[port].happened if port in played.faults else []


def _true_status(played: Played) -> None:
    """With nothing in the way, the status is what the runner's script says."""
    plan, script = played.plan, played.plan.script
    if plan.troubles or plan.stops or plan.crashes or plan.tampered or plan.disk_full_after is not None:
        return
    if plan.config_after != 0 or plan.jit or script.refuse_registration is not None:
        return
    if script.early_exits or script.crash_after is not None or not _can_be_told(script):
        return
    idle, max_runtime = plan.limits.idle.total_seconds(), plan.limits.max_runtime.total_seconds()
    told_after = [script.job_seconds, 0.0 if script.result is not None else script.exit_after]
    begins = _is_within(idle, script.listen_after) and _is_within(idle, script.assign_after)
    if begins and _is_within(max_runtime, *told_after):
        # A job that vanishes never began, whatever was to come of it.
        good = script.result is not None and script.result.is_success and not script.vanishes
        expected = [Status.SUCCESS if good else Status.FAILURE]
        assert [message.status for message in played.finals] == expected, "2: the status is not what happened"


def _is_within(limit: float, *seconds: float | None) -> bool:
    """Whether all of it takes less, and not by a hair's breadth; None takes for ever."""
    return sum(math.inf if each is None else each for each in seconds) < limit - _CLOSE_SECONDS


def _can_be_told(script: RunnerScript) -> bool:
    """Whether what is heard of the job tells how it ended, for better and for worse: ADR 0008."""
    # Of several lines after the worker's end, the runner's own exit code tells which one counts.
    code_tells = script.exit_code is None and _is_within(EXIT_SECONDS, script.exit_after)
    if script.last_words and not code_tells:
        return False
    # A worker that goes as it comes refutes nothing that is said meanwhile: the worse counts then.
    refutes = script.job_seconds is None or script.job_seconds > script.worker_after
    return refutes or not any(_COMPLETED in line for line in script.output)


def _nothing_unverified_ran(played: Played) -> None:
    if played.plan.tampered and played.plan.prebaked is None:
        assert not any(runner.starts for runner in played.world.runners), "3: it ran what it had not verified"


def _no_process_left(played: Played) -> None:
    assert not played.world.machine.runner_alive, "4: a process of the runner outlives the agent"
    began = played.when(lambda event: isinstance(event, JobStarted))
    gone = played.when(lambda event: event == PhaseEntered(Phase.REPORTING))
    if began is not None and gone is not None and not played.crashed:
        limits = played.plan.limits
        longest = (limits.max_runtime + limits.shutdown_grace).total_seconds() + 60 + 30 * _UNWIND_SECONDS
        assert gone - began <= longest, f"4: the runner lived for {gone - began} s"


def _over_before_the_machine(played: Played) -> None:
    """With nothing in the way of it but the runner, all is over 15 s before the machine is."""
    plan = played.plan
    if plan.troubles or plan.crashes or len(plan.stops) != 1:
        return
    (stop,) = plan.stops
    if stop.machine_left is None or stop.machine_left < SPARE_SECONDS + _LEAST_SECONDS:
        return
    end = max(at for at, event in played.events if isinstance(event, TerminationRequested))
    assert end <= stop.at + stop.machine_left - SPARE_SECONDS, "1: the machine went before all was over"


def _no_line_lost(played: Played) -> None:
    outcome = played.outcome
    if outcome is None or played.crashed:
        return
    stats = outcome.logs
    assert stats.pending == 0, "5: lines are not accounted for"
    if outcome.stream is None:
        return
    printed = [str(event) for _, event in played.events if isinstance(event, Printed)]
    arrived = [line for line in played.world.log_sink.lines(outcome.stream) if line in set(printed)]
    first_arrivals = list(dict.fromkeys(arrived))
    if not stats.dropped and not stats.rejected:
        assert first_arrivals == list(dict.fromkeys(printed)), "5: lines are missing, or out of order"
    if not _faults_of(played, "log_sink") and not _faults_of(played, "log_spool"):
        assert not stats.dropped, "5: lines were dropped although the sink was well"
        assert arrived == printed, "5: lines came twice although the sink was well"


def _spool_delivered(played: Played) -> None:
    """What a dead agent had on the disk its successor has delivered, in order, or counted."""
    outcome = played.outcome
    if outcome is None or outcome.stream is None or _faults_of(played, "log_spool"):
        return
    if not outcome.logs.dropped and not outcome.logs.rejected:
        arrived = played.world.log_sink.lines(outcome.stream)
        wanted = set(played.spooled)
        came = [line for line in dict.fromkeys(arrived) if line in wanted]
        assert came == list(played.spooled), "5: lines in the spool are missing, or out of order"


def _no_secret_out(played: Played) -> None:
    world = played.world
    outputs = [text for _, text in played.trace]
    outputs += [message_to_json(message) for message in world.notifier.received]
    outputs += [event.text for stream in world.log_sink.streams.values() for event in stream]
    outputs += [world.machine.journal or "", repr(played.outcome)]
    everything = "\n".join(outputs)
    assert TOKEN not in everything, "6: the token came out"
    assert JIT_CONFIG not in everything, "6: the just-in-time config came out"


__all__ = ["FaultKind", "JobResult", "Plan", "Played", "Stop", "Trouble", "check", "play"]

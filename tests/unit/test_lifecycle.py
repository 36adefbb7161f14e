"""Lives in virtual time, one behaviour each."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from attrs import evolve

from agent_adapters.memory import InMemoryLogSpool, Machine, RunnerScript
from agent_adapters.wire import journal_from_json
from agent_adapters.world import A_JOB, World
from agent_core.ending import Outcome
from agent_core.errors import (
    AgentAliveError,
    AgentFaultError,
    ConfigAbsentError,
    LogSinkUnavailableError,
    NotifierUnavailableError,
    SettingsError,
    TerminatorUnavailableError,
)
from agent_core.events import (
    Event,
    JobCompleted,
    JobStarted,
    PhaseEntered,
    PoweringOff,
    RunnerInPlace,
    RunnerRestarting,
    StopRequested,
    TerminationRequested,
)
from agent_core.lifecycle import Agent
from agent_core.model import (
    JobResult,
    Limits,
    LogEvent,
    Release,
    ReleaseRequest,
    Secret,
    Status,
    StatusMessage,
    StopReason,
    StopRequest,
)
from agent_core.phases import TRANSITIONS, Phase
from agent_core.ports import Ports
from agent_core.recovery import Death
from agent_core.status import message_id
from agent_core.testing.faults import FaultKind, Faults, faulty_ports
from agent_core.testing.simulation import EPOCH, SimulatedCrashError, run

SIGTERM = StopRequest(StopReason.INTERRUPTED, "interrupted by SIGTERM", by="SIGTERM")

Schedule = Callable[[asyncio.AbstractEventLoop, Agent], object]


def live(world: World, schedule: Schedule | None = None) -> Outcome:
    """One life, with what `schedule` has planned for it."""

    async def main() -> Outcome:
        agent = world.agent()
        if schedule is not None:
            schedule(asyncio.get_running_loop(), agent)
        return await agent.run()

    return run(main)


def stop_at(seconds: float, request: StopRequest = SIGTERM) -> Schedule:
    return lambda loop, agent: loop.call_at(seconds, agent.stop, request)


def phases(world: World) -> list[Phase]:
    return [event.phase for event in world.events if isinstance(event, PhaseEntered)]


def final(world: World) -> StatusMessage:
    *_, last = world.notifier.received
    assert last.status is not Status.STARTED
    return last


def texts(world: World) -> str:
    return "\n".join(map(str, world.events))


# From beginning to end


def test_six_hours_in_virtual_time() -> None:
    """A job of almost six hours is lived through to its end, every phase in order."""
    world = World(script=RunnerScript(job_seconds=5.9 * 60 * 60))
    outcome = live(world)
    assert phases(world) == list(Phase)
    assert (final(world).status, final(world).duration_seconds) == (Status.SUCCESS, 5.9 * 60 * 60)
    assert outcome.terminated
    assert not world.machine.runner_alive


def test_every_step_is_in_the_table() -> None:
    """A life goes from phase to phase only as the table has it."""
    world = World()
    live(world)
    gone = phases(world)
    assert all(later in TRANSITIONS[earlier] for earlier, later in pairwise(gone))


def test_started_is_sent_when_the_job_begins() -> None:
    """`started` goes out at the job's start, and before the final message."""
    world = World(script=RunnerScript(job_seconds=100))
    live(world)
    started, last = world.notifier.received
    assert (started.status, started.started_at) == (Status.STARTED, EPOCH + timedelta(seconds=7))
    assert (last.started_at, last.completed_at) == (started.started_at, EPOCH + timedelta(seconds=107))


def test_output_and_events_are_in_the_stream() -> None:
    """The job's stream has what the runner printed, beside the agent's own events."""
    world = World(script=RunnerScript(output=("one", "", "three")))
    live(world)
    lines = world.log_sink.lines("i-0123456789abcdef0/67890")
    assert lines[lines.index("one") : lines.index("three") + 1] == ["one", " ", "three"]
    assert "runs-fleet-agent: phase running" in lines


def test_bootstrap_is_measured() -> None:
    """The final message says how long the way to readiness took."""
    world = World(script=RunnerScript(register_seconds=3, listen_after=2))
    live(world)
    message = final(world)
    assert (message.bootstrap_runner_seconds, message.bootstrap_register_seconds) == (1.0, 5.0)
    assert message.bootstrap_total_seconds == 6.0


# Limits


@pytest.mark.parametrize(
    ("script", "status", "reason"),
    [
        (RunnerScript(assign_after=None), Status.FAILURE, StopReason.IDLE),
        (RunnerScript(listen_after=None), Status.FAILURE, StopReason.STALLED),
        (RunnerScript(job_seconds=None), Status.TIMEOUT, StopReason.MAX_RUNTIME),
    ],
)
def test_limits_stop_the_runner(script: RunnerScript, status: Status, reason: StopReason) -> None:
    """A runner that gets no job, does not listen, or runs too long, is stopped in order."""
    world = World(script=script)
    live(world)
    assert (final(world).status, final(world).stop_reason) == (status, reason)
    assert world.runners[0].interrupts == 1


def test_runner_that_does_not_end_after_its_job() -> None:
    """It is stopped a minute after the completion, and the job's own result stands."""
    world = World(script=RunnerScript(job_seconds=10, exit_after=None))
    live(world)
    assert (final(world).status, final(world).completed_at) == (Status.SUCCESS, EPOCH + timedelta(seconds=17))
    assert "did not end after its job had completed, within 0:01:00" in texts(world)


def test_max_runtime_counts_from_the_jobs_start() -> None:
    """Waiting for the job does not count; the config's own bound wins over the setting."""
    world = World(
        config=evolve(A_JOB, max_runtime_minutes=2),
        script=RunnerScript(assign_after=500, job_seconds=119, cancel_seconds=0),
    )
    live(world)
    assert final(world).status is Status.SUCCESS
    world = World(
        config=evolve(A_JOB, max_runtime_minutes=2), script=RunnerScript(job_seconds=121, cancel_seconds=0)
    )
    live(world)
    assert final(world).status is Status.TIMEOUT


def test_disk_floor_is_looked_at_every_half_minute() -> None:
    """A disk that runs full while the job runs stops it within 30 s."""
    world = World(script=RunnerScript(job_seconds=1000, cancel_seconds=0))
    live(world, lambda loop, _: loop.call_at(100, setattr, world.machine, "free_disk_bytes", 10 * 2**20))
    message = final(world)
    assert (message.status, message.stop_reason) == (Status.FAILURE, StopReason.DISK_FLOOR)
    assert message.error == "disk is low: 10 MB free, under the floor of 500 MB"
    assert message.completed_at is not None
    assert message.completed_at <= EPOCH + timedelta(seconds=130)


def test_low_memory_is_told_each_time_it_falls() -> None:
    """Once for each fall below the floor, not for each look; it stops nothing."""
    world = World(script=RunnerScript(job_seconds=1000))

    def schedule(loop: asyncio.AbstractEventLoop, _: Agent) -> None:
        for at, megabytes in ((100, 50), (300, 1000), (500, 60)):
            loop.call_at(at, setattr, world.machine, "available_memory_bytes", megabytes * 2**20)

    live(world, schedule)
    assert texts(world).count("memory is low") == 2
    assert final(world).status is Status.SUCCESS


# Stops


@pytest.mark.parametrize("at", [0.0, 0.5, 1.5, 4.5, 6.0, 20.0])
def test_interrupted_at_any_moment(at: float) -> None:
    """Whenever it comes before the job's end, the message is `interrupted`, and there is only one."""
    world = World()
    live(world, stop_at(at))
    assert [m.status for m in world.notifier.received if m.status is not Status.STARTED] == [
        Status.INTERRUPTED
    ]
    assert (final(world).interrupted_by, final(world).stop_reason) == ("SIGTERM", StopReason.INTERRUPTED)


def test_first_reason_is_kept() -> None:
    """Later requests to stop change nothing."""
    world = World(script=RunnerScript(job_seconds=None, cancel_seconds=50))

    def schedule(loop: asyncio.AbstractEventLoop, agent: Agent) -> None:
        loop.call_at(20, agent.stop, StopRequest(StopReason.AGENT_FAULT, "a fault"))
        loop.call_at(21, agent.stop, SIGTERM)

    live(world, schedule)
    assert final(world).stop_reason is StopReason.AGENT_FAULT
    assert [event.counts for event in world.events if isinstance(event, StopRequested)] == [True, False]
    assert world.runners[0].interrupts == 1


def test_stop_after_the_job_completed_changes_nothing() -> None:
    """A job that has its result keeps it, whatever comes while the runner says goodbye."""
    world = World(script=RunnerScript(job_seconds=10, result=JobResult.FAILED, exit_after=30))
    live(world, stop_at(20))
    assert (final(world).status, final(world).exit_code) == (Status.FAILURE, 1)
    assert final(world).stop_reason is None


def test_job_that_succeeds_while_it_is_stopped() -> None:
    """A success is a success, even in the grace."""
    world = World(script=RunnerScript(job_seconds=20, cancel_seconds=None))
    live(world, stop_at(20))
    assert final(world).status is Status.SUCCESS


def test_grace_leaves_room_before_the_machines_end() -> None:
    """With two minutes left and a runner that will not stop, all is over 15 s before the end."""
    world = World(script=RunnerScript(job_seconds=None, cancel_seconds=None))
    spot = evolve(SIGTERM, by="spot", deadline=EPOCH + timedelta(seconds=20 + 60))
    live(world, stop_at(20, spot))
    assert world.notifier.received[-1].completed_at == EPOCH + timedelta(seconds=20 + 30)
    assert final(world).interrupted_by == "spot"


def test_deadline_that_comes_nearer_cuts_the_grace() -> None:
    """A notice during the grace counts, though the reason stays."""
    world = World(script=RunnerScript(job_seconds=None, cancel_seconds=None))

    def schedule(loop: asyncio.AbstractEventLoop, agent: Agent) -> None:
        loop.call_at(20, agent.stop, SIGTERM)
        loop.call_at(25, agent.stop, evolve(SIGTERM, by="spot", deadline=EPOCH + timedelta(seconds=65)))

    live(world, schedule)
    assert final(world).completed_at == EPOCH + timedelta(seconds=35)
    assert final(world).interrupted_by == "SIGTERM"


def test_cleaning_is_skipped_when_the_end_is_near() -> None:
    """The message and the termination come first."""
    world = World(script=RunnerScript(job_seconds=None))
    live(world, stop_at(20, evolve(SIGTERM, deadline=EPOCH + timedelta(seconds=20 + 18))))
    assert Phase.CLEANING not in phases(world)
    assert world.terminator.requests


def test_cancelled_agent_still_ends_its_life() -> None:
    """Who cancels `run` gets the cancellation, after the end."""
    world = World(script=RunnerScript(job_seconds=None))

    async def main() -> None:
        task = asyncio.create_task(world.agent().run())
        asyncio.get_running_loop().call_at(20, task.cancel)
        asyncio.get_running_loop().call_at(21, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)
    assert final(world).status is Status.INTERRUPTED
    assert world.terminator.requests
    assert not world.machine.runner_alive


def test_fault_in_a_callback() -> None:
    """An exception that nobody waits for stops the runner in order, and is told in the message."""
    world = World(script=RunnerScript(job_seconds=None))
    outcome = live(world, lambda loop, agent: loop.call_at(20, agent.fault, ZeroDivisionError("oh")))
    assert (final(world).status, final(world).stop_reason) == (Status.FAILURE, StopReason.AGENT_FAULT)
    assert "ZeroDivisionError: oh" in (final(world).error or "")
    assert isinstance(outcome.error, AgentFaultError)
    assert world.runners[0].interrupts == 1


def test_observer_that_fails() -> None:
    """An observer is a bystander: what it raises ends nothing."""
    world = World()

    def fail(_event: Event) -> None:
        raise ZeroDivisionError

    assert run(lambda: world.agent(fail).run()).terminated
    assert any("no longer observed" in line for line in world.log_sink.lines("i-0123456789abcdef0/67890"))


# Config, runner, restart


def test_config_that_comes_late() -> None:
    """It is waited for, up to the standby deadline."""
    world = World(config=None)
    live(world, lambda loop, _: loop.call_at(300, setattr, world.config_source, "config", A_JOB))
    assert final(world).status is Status.SUCCESS
    assert 40 < world.config_source.fetches < 90


def test_config_that_never_comes() -> None:
    """Without a config there is no job to report, and the instance goes."""
    world = World(config=None, limits=Limits(standby=timedelta(minutes=1)))
    outcome = live(world)
    assert isinstance(outcome.error, ConfigAbsentError)
    assert (world.notifier.received, len(world.terminator.requests)) == ([], 1)


def test_pinned_runner_is_not_looked_up() -> None:
    """A version with its digest in the config needs nobody to be asked."""
    digest = "13b13d59d67d31b2e4b02d3e5d9d9a0d9ea4a9d1c5d0ff8b3f1d1a1f5ad0b6a2"
    world = World(config=evolve(A_JOB, runner_version="2.336.0", runner_sha256=digest))
    live(world)
    assert (final(world).status, final(world).error_phase) == (Status.FAILURE, Phase.PROVISIONING)
    assert digest in (final(world).error or "")


def test_restarts_are_bounded() -> None:
    """A runner that asks to be started again is, five times, each after 5 s."""
    world = World(script=RunnerScript(early_exits=(2, 3, 4, 2, 2, 2)))
    live(world)
    assert (world.runners[0].starts, final(world).status) == (6, Status.FAILURE)
    assert [event.delay for event in world.events if isinstance(event, RunnerRestarting)] == [5.0] * 5


def test_refused_jit_config_with_a_token() -> None:
    """The token is tried; without one it is a failure."""
    script = RunnerScript(refuse_jit=True)
    world = World(config=evolve(A_JOB, jit_config=Secret("jit")), script=script)
    live(world)
    assert final(world).status is Status.SUCCESS
    world = World(config=evolve(A_JOB, jit_config=Secret("jit"), jit_token=None), script=script)
    live(world)
    assert (final(world).status, final(world).exit_code) == (Status.FAILURE, 1)


# The runner that is there already


def with_prebaked(version: str, **world: Any) -> World:
    """A machine whose image has a fresh runner."""
    release = Release(version=version, arch="x64", sha256="")
    return World(machine=Machine(installed=release, prebaked=True), **world)


def installs(world: World) -> list[str]:
    """The versions that were put in place while it lived."""
    return [
        event.version for event in world.events if isinstance(event, RunnerInPlace) and not event.prebaked
    ]


def test_prebaked_runner_of_the_wanted_version() -> None:
    """It is used as it is: the store is asked for nothing, even where it could not answer."""
    world = with_prebaked("2.335.0", config=evolve(A_JOB, runner_version="2.335.0"))
    world.binary_store.archives.clear()
    live(world)
    assert (final(world).status, final(world).runner_version) == (Status.SUCCESS, "2.335.0")
    assert RunnerInPlace("2.335.0", prebaked=True) in world.events


def test_prebaked_runner_that_is_the_latest() -> None:
    """`latest` is asked for; where the prebaked one is it, nothing is downloaded."""
    world = with_prebaked("2.336.0")
    live(world)
    assert (final(world).status, installs(world)) == (Status.SUCCESS, [])


@pytest.mark.parametrize("wanted", ["2.336.0", None])
def test_prebaked_runner_of_another_version(wanted: str | None) -> None:
    """It gives way to the wanted one."""
    world = with_prebaked("2.335.0", config=evolve(A_JOB, runner_version=wanted))
    live(world)
    assert (final(world).status, installs(world)) == (Status.SUCCESS, ["2.336.0"])


def test_prebaked_runner_where_nobody_knows_the_latest() -> None:
    """It is better than none; the log says so."""
    world = with_prebaked("2.335.0")
    world.binary_store.archives.clear()
    live(world)
    assert (final(world).status, final(world).runner_version) == (Status.SUCCESS, "2.335.0")
    assert "the prebaked one is used" in texts(world)


def test_prebaked_runner_where_github_takes_its_time() -> None:
    """Who asks for the latest waits a little, and then takes what is there."""
    world = with_prebaked("2.335.0")

    async def resolve(_: ReleaseRequest) -> Release:
        await asyncio.sleep(600)
        raise AssertionError("nobody waits for this")

    world.binary_store.resolve = resolve  # type: ignore[method-assign, assignment]
    live(world)
    assert (final(world).status, final(world).runner_version) == (Status.SUCCESS, "2.335.0")
    assert final(world).bootstrap_runner_seconds == 15.0


def test_prebaked_runner_is_no_substitute_for_a_pinned_version() -> None:
    """Whoever names a version gets that one, or a failure."""
    world = with_prebaked("2.335.0", config=evolve(A_JOB, runner_version="2.999.0"))
    live(world)
    assert (final(world).status, final(world).error_phase) == (Status.FAILURE, Phase.PROVISIONING)


# The last resort


def test_power_off_where_nobody_terminates() -> None:
    """Announced, and then done; the outcome says that no request was accepted."""
    world = World(poweroff=True)
    world.terminator.denied = True
    outcome = live(world)
    assert (outcome.terminated, outcome.powered_off, world.terminator.powered_off) == (False, True, 1)
    (announced,) = [event for event in world.events if isinstance(event, PoweringOff)]
    assert "may not terminate" in str(announced)


@pytest.mark.parametrize(("armed", "denied"), [(False, True), (True, False)])
def test_no_power_off(*, armed: bool, denied: bool) -> None:
    """Neither unasked for, nor where the instance goes anyway."""
    world = World(poweroff=armed)
    world.terminator.denied = denied
    outcome = live(world)
    assert (outcome.powered_off, world.terminator.powered_off) == (False, 0)


def test_power_off_that_fails() -> None:
    """The life ends all the same, and says so."""
    world = World(poweroff=True)
    world.terminator.denied = True

    async def power_off() -> None:
        raise TerminatorUnavailableError("systemctl: not found")

    world.terminator.power_off = power_off  # type: ignore[method-assign]
    outcome = live(world)
    assert not outcome.powered_off
    assert "the host does not power off: systemctl: not found" in texts(world)


# A machine that does not know which one it is


def test_successor_without_a_name_takes_it_from_the_journal() -> None:
    """Of the same boot: the job's end is told under its own ID, and the instance goes."""
    world = World(script=RunnerScript(job_seconds=None))
    with pytest.raises(SimulatedCrashError):
        run(lambda: world.agent().run(), crash_at=100)
    world.crash()
    world.knows_itself = False
    outcome = run(world.reap)
    assert outcome is not None
    assert world.terminator.requests == [world.machine.instance_id]
    assert (final(world).instance_id, final(world).status) == (world.machine.instance_id, Status.FAILURE)


def test_successor_without_a_name_and_another_boot() -> None:
    """The journal may have come with the image: it is left as it is, and nobody is terminated."""
    world = World(script=RunnerScript(job_seconds=None))
    with pytest.raises(SimulatedCrashError):
        run(lambda: world.agent().run(), crash_at=100)
    world.crash()
    journal = world.machine.journal
    world.machine.booted_at += timedelta(days=1)
    world.knows_itself = False
    outcome = run(world.reap)
    assert outcome is not None
    assert (outcome.terminated, world.terminator.requests) == (False, [])
    assert world.machine.journal == journal


def test_agent_without_a_name_asks_once() -> None:
    """There is nothing to terminate by asking again: what is armed for that comes at once."""
    world = World(poweroff=True, knows_itself=False)
    begun: list[float] = []

    async def main() -> Outcome:
        outcome = await world.agent().run(SettingsError("RUNS_FLEET_INSTANCE_ID: not set"))
        begun.append(asyncio.get_running_loop().time())
        return outcome

    assert run(main).powered_off
    assert begun[0] < 30
    assert world.machine.journal is None


LOUD = tuple(f"line {number} ".ljust(900_000, "x") for number in range(20))
"""More than memory may hold."""


def crash_with_a_spool(world: World) -> list[str]:
    """An agent dies while the sink is away, its job prints, and goes on; the lines in its spool."""
    world.log_sink.error = LogSinkUnavailableError("away")
    with pytest.raises(SimulatedCrashError):
        run(lambda: world.agent().run(), crash_at=300)
    world.crash()
    world.log_sink.error = None
    return [event.text for event in world.machine.spooled]


@pytest.mark.parametrize("reaps", [True, False])
def test_successor_delivers_what_the_dead_agent_had_spooled(*, reaps: bool) -> None:
    """Before its own lines, in the dead agent's stream; the message counts both."""
    world = World(script=RunnerScript(output=LOUD, job_seconds=None))
    spooled = crash_with_a_spool(world)
    assert len(spooled) > 5

    outcome = run(world.reap if reaps else lambda: world.agent().run())

    assert outcome is not None
    assert outcome.stream is not None
    lines = world.log_sink.lines(outcome.stream)
    assert lines[: len(spooled)] == spooled == list(LOUD[-len(spooled) :])
    assert all(line.startswith("runs-fleet-agent: ") for line in lines[len(spooled) :])
    message = final(world)
    assert message.log_lines_delivered == message.log_lines_accepted == len(lines)


def test_image_of_a_machine_with_a_spool() -> None:
    """Another instance's lines are in nobody's stream, though an agent dies on this one too."""
    world = World(script=RunnerScript(output=LOUD, job_seconds=None))
    assert crash_with_a_spool(world)
    world.machine = Machine(
        "i-made-from-the-image", journal=world.machine.journal, spooled=world.machine.spooled
    )
    world.binary_store.machine = world.terminator.machine = world.machine
    world.script = RunnerScript(job_seconds=None)
    assert crash_with_a_spool(world) == []

    outcome = run(world.reap)

    assert outcome is not None
    assert outcome.record.instance_id == "i-made-from-the-image"
    assert not [line for line in world.log_sink.lines(outcome.stream or "") if line in LOUD]


# Services that hang


@pytest.mark.parametrize(
    "port", ["config_source", "log_sink", "notifier", "journal", "host_probe", "log_spool"]
)
def test_from_the_runners_exit_to_terminate(port: str) -> None:
    """Under 15 s with any one service hanging from the job's start."""
    hanging: dict[str, float] = {"hang": 0.0}

    class FromTheJobsStart(Faults):
        def next(self, method: str) -> FaultKind | None:
            self.hang = hanging["hang"]
            return super().next(method)

    faults = {port: FromTheJobsStart(Random(0))}
    world = World(spoil=lambda ports: faulty_ports(ports, faults))
    at: dict[type[Event], float] = {}

    def observe(event: Event) -> None:
        at[type(event)] = asyncio.get_running_loop().time()
        if isinstance(event, JobStarted):
            hanging["hang"] = 1.0

    run(lambda: world.agent(observe).run())
    # The runner exits half a second after its job has completed.
    assert at[TerminationRequested] - at[JobCompleted] - 0.5 < 15
    assert world.terminator.requests


def test_refused_settings_end_in_terminate() -> None:
    """A reason known from the start runs no job, reports the one that waits for it, and terminates."""
    world = World()
    outcome = run(lambda: world.agent().run(SettingsError("RUNS_FLEET_MAX_RUNTIME: …")))
    assert isinstance(outcome.error, SettingsError)
    (message,) = world.notifier.received
    assert (message.status, message.error, message.job_ran) == (
        Status.FAILURE,
        "RUNS_FLEET_MAX_RUNTIME: …",
        False,
    )
    assert len(world.terminator.requests) == 1


def test_agent_beside_a_live_one() -> None:
    """The second agent touches nothing."""
    world = World(script=RunnerScript(job_seconds=100))

    async def main() -> Outcome:
        first = asyncio.create_task(world.agent().run())
        await asyncio.sleep(50)
        with pytest.raises(AgentAliveError):
            await world.agent().run()
        assert await world.reap() is None
        return await first

    assert run(main).terminated
    assert [m.status for m in world.notifier.received] == [Status.STARTED, Status.SUCCESS]
    assert len(world.terminator.requests) == 1


def test_journal_of_another_instance() -> None:
    """A machine image made from a used instance starts afresh."""
    world = World()
    live(world)
    world.machine.instance_id = "i-another"
    live(world)
    assert [m.instance_id for m in world.notifier.received][-1] == "i-another"
    assert final(world).status is Status.SUCCESS


def test_damaged_journal() -> None:
    """What cannot be understood may tell of a job that has run: nothing is run, and the instance goes.

    The queue hears it, under the message_id that the end of that job would have had.
    """
    world = World()
    world.machine.journal = "{"
    live(world)
    (message,) = world.notifier.received
    assert (message.status, message.message_id) == (
        Status.FAILURE,
        message_id(world.machine.instance_id, A_JOB.job_id, "final"),
    )
    assert len(world.terminator.requests) == 1
    assert run(world.reap) is None, "its own end is in the journal"


@pytest.mark.parametrize("journal", [None, "{", '{"version": 99}'])
def test_reaped_before_it_took_its_job(journal: str | None) -> None:
    """Somebody waits for the job of an agent that left no journal, or none that can be read."""
    world = World()
    world.machine.journal = journal
    outcome = run(world.reap)
    assert outcome is not None
    assert [message.status for message in world.notifier.received] == [Status.FAILURE]
    assert len(world.terminator.requests) == 1


IN_ORDER = Death(is_certain=True, is_in_order=True)


@pytest.mark.parametrize("journal", ["none", "stale", "damaged", "unreadable", "foreign"])
def test_an_end_in_order_needs_no_journal(journal: str) -> None:
    """A full disk may have kept it from the end: there is nothing to finish all the same."""
    world = World()
    if journal == "stale":
        world.machine.journal = crashed_in(Phase.RUNNING)
    elif journal == "damaged":
        world.machine.journal = "{"
    elif journal == "unreadable":
        world.spoil = lambda ports: faulty_ports(ports, {"journal": Faults(Random(0), hang=1.0)})
    elif journal == "foreign":
        # Of an instance whose queue never answered, and from which the machine's image was made.
        world.machine.journal = crashed_in(Phase.CLEANING, NotifierUnavailableError("away"))
        world.machine.instance_id = "i-another"
    assert run(lambda: world.reap(death=IN_ORDER)) is None
    assert (world.notifier.received, world.terminator.requests) == ([], [])


@pytest.mark.parametrize("status", [69, 70, 75, 78])
def test_an_agent_that_had_no_job_to_tell_of(status: int) -> None:
    """It ended by itself, as where nobody told it who it is: its successor, which knows, tells the queue."""
    world = World()
    death = Death(cause=f"exit-code (exited {status})", is_certain=True)
    assert run(lambda: world.reap(death=death)) is not None
    assert [message.status for message in world.notifier.received] == [Status.FAILURE]


@pytest.mark.parametrize("death", [Death(), IN_ORDER])
def test_a_message_that_nobody_has_confirmed(death: Death) -> None:
    """The queue was away for the whole end, and the instance is on its way out: it is sent once more."""
    world = World()
    world.notifier.error = NotifierUnavailableError("away")
    outcome = live(world)
    assert (outcome.terminated, outcome.confirmed) == (True, False)
    world.crash()
    world.notifier.error = None
    run(lambda: world.reap(death=death))
    assert [message.status for message in world.notifier.received] == [Status.SUCCESS]
    assert run(world.reap) is None


@pytest.mark.parametrize("successor_reaps", [True, False])
def test_what_a_lost_journal_leaves_unknown(*, successor_reaps: bool) -> None:
    """Whoever finds it says that nobody knows whether the job ran, and delivers what is in the spool."""
    world = World()
    InMemoryLogSpool(machine=world.machine).push([LogEvent(int(EPOCH.timestamp() * 1000), "its last words")])
    world.machine.journal = "{"
    outcome = run(world.reap) if successor_reaps else live(world)
    assert outcome is not None
    assert world.log_sink.lines(outcome.stream or "")[0] == "its last words"
    (message,) = world.notifier.received
    assert (message.status, message.job_ran) == (Status.FAILURE, None)


def crashed_in(phase: Phase, queue: NotifierUnavailableError | None = None) -> str:
    """The journal of an agent that died in the phase."""
    world, journals = World(), list[str]()
    world.notifier.error = queue

    def look(_event: Event) -> None:
        journal = world.machine.journal
        if journal is not None and journal_from_json(journal).phase is phase:
            journals.append(journal)

    run(lambda: world.agent(look).run())
    return journals[0]


@pytest.mark.parametrize("phase", [None, Phase.CONFIGURING, Phase.PROVISIONING])
def test_reaped_after_a_signal_that_asks_to_stop(phase: Phase | None) -> None:
    """It came before there was anyone to take it: an interruption all the same."""
    world = World()
    world.machine.journal = None if phase is None else crashed_in(phase)
    run(lambda: world.reap(death=Death(cause="signal (killed TERM)", interrupted_by="SIGTERM")))
    (message,) = world.notifier.received
    assert (message.status, message.interrupted_by) == (Status.INTERRUPTED, "SIGTERM")


def test_successor_on_a_host_that_cannot_be_looked_at() -> None:
    """Its own fault is no reason to say something else of the job than the dead agent has said."""
    world = World()
    world.machine.journal = crashed_in(Phase.CLEANING)
    world.spoil = lambda ports: faulty_ports(ports, {"host_probe": Faults(Random(0), break_=1.0)})
    outcome = live(world)
    assert outcome.terminated
    assert outcome.message is not None
    assert (outcome.message.status, world.notifier.received) == (Status.SUCCESS, [])


def test_job_that_has_run_on_a_host_that_cannot_be_looked_at() -> None:
    """Nor is it one to forget which jobs have run here."""
    world = World()
    live(world)
    world.notifier.received.clear()
    world.spoil = lambda ports: faulty_ports(ports, {"host_probe": Faults(Random(0), break_=1.0)})
    assert live(world).message is None
    assert world.notifier.received == []


def test_reaped_without_a_config() -> None:
    """Where there is no job there is nobody to tell, and the instance goes all the same."""
    world = World(config=None)
    run(world.reap)
    assert (world.notifier.received, len(world.terminator.requests)) == ([], 1)


def test_lines_of_a_sink_that_is_away() -> None:
    """An outage of an hour costs no line, and does not slow the job."""
    world = World(script=RunnerScript(job_seconds=2 * 60 * 60, output=tuple(map(str, range(1000)))))
    put, away = world.log_sink.put, 60 * 60.0

    async def put_later(stream: str, events: list[LogEvent]) -> int:
        if asyncio.get_running_loop().time() < away:
            await asyncio.Event().wait()
        return await put(stream, events)

    world.log_sink.put = put_later  # type: ignore[method-assign, assignment]
    outcome = live(world)
    assert (outcome.logs.dropped, final(world).duration_seconds) == (0, 2 * 60 * 60)
    lines = [line for line in world.log_sink.lines("i-0123456789abcdef0/67890") if line.isdecimal()]
    assert lines == [str(number) for number in range(1000)]


def test_a_runner_that_cannot_be_asked_to_stop() -> None:
    """Whatever its adapter raises, the runner is killed."""
    world = World(script=RunnerScript(job_seconds=None))

    def spoil(ports: Ports) -> Ports:
        async def interrupt() -> None:
            raise RuntimeError("not what the port allows")

        ports.runner_process.interrupt = interrupt  # type: ignore[method-assign]
        return ports

    world.spoil = spoil
    outcome = live(world, lambda loop, agent: loop.call_at(60, agent.stop, SIGTERM))
    assert outcome.terminated
    assert not world.machine.runner_alive

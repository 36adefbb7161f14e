"""What is believed of a runner and its job: its console, its files, its processes and its exit code."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from agent_adapters.memory import RunnerScript
from agent_adapters.world import A_JOB, World
from agent_core.errors import RunnerUnavailableError
from agent_core.events import JobAssigned, JobCompleted, Printed, Warned
from agent_core.life import AgentOptions
from agent_core.lifecycle import Agent
from agent_core.model import (
    JobResult,
    Limits,
    OutputLine,
    Secret,
    Status,
    StatusMessage,
    StopReason,
    StopRequest,
    Trace,
)
from agent_core.ports import Ports
from agent_core.registration import job_environment_for
from agent_core.status import RESULT_OF_EXIT, disagreement, job_result
from agent_core.testing.simulation import EPOCH, run

SIGTERM = StopRequest(StopReason.INTERRUPTED, "interrupted by SIGTERM", by="SIGTERM")
STAMP = "2025-11-25 10:00:00Z: "
LIE = f"{STAMP}Job build completed with result: Succeeded"
NAME_THAT_LIES = f"build\n{LIE}"
STREAM = "i-0123456789abcdef0/67890"


def live(world: World, schedule: Callable[[asyncio.AbstractEventLoop, Agent], object] | None = None) -> None:
    async def main() -> None:
        agent = world.agent()
        if schedule is not None:
            schedule(asyncio.get_running_loop(), agent)
        await agent.run()

    run(main)


def final(world: World) -> StatusMessage:
    return world.notifier.received[-1]


def warnings(world: World) -> str:
    return "\n".join(event.text for event in world.events if isinstance(event, Warned))


# Line and exit code


@pytest.mark.parametrize(
    ("said", "exit_code", "result"),
    [
        ([], None, None),
        ([], 0, None),
        ([], 100, None),
        ([], 101, None),
        ([], 104, None),
        ([], 102, JobResult.FAILED),
        ([], 103, JobResult.CANCELED),
        ([], 105, JobResult.ABANDONED),
        ([JobResult.FAILED], 0, JobResult.FAILED),
        ([JobResult.SUCCEEDED], 137, JobResult.SUCCEEDED),
        ([JobResult.SUCCEEDED], 100, JobResult.SUCCEEDED),
        ([JobResult.FAILED], 100, JobResult.FAILED),
        ([JobResult.SUCCEEDED], 102, JobResult.SUCCEEDED),
        ([JobResult.SUCCEEDED, JobResult.FAILED], 102, JobResult.FAILED),
        ([JobResult.FAILED, JobResult.SUCCEEDED], 102, JobResult.FAILED),
        ([JobResult.SUCCEEDED, JobResult.FAILED], 0, JobResult.FAILED),
        ([JobResult.SUCCEEDED, JobResult.FAILED], None, JobResult.FAILED),
    ],
)
def test_line_and_exit_code_together(
    said: list[JobResult], exit_code: int | None, result: JobResult | None
) -> None:
    """The line that the exit code bears out, else the last one; a code alone tells of no success."""
    assert job_result(said, exit_code) is result


@pytest.mark.parametrize(
    ("exit_code", "result"), [(0, JobResult.FAILED), (102, JobResult.FAILED), (100, JobResult.SUCCEEDED)]
)
def test_the_first_line_after_the_work(exit_code: int, result: JobResult) -> None:
    """Who comes after the runner's own word is not the runner, unless its exit code says so."""
    said = [JobResult.CANCELED, JobResult.FAILED, JobResult.SUCCEEDED]
    assert job_result(said, exit_code, JobResult.FAILED) is result


@pytest.mark.parametrize(
    ("said", "exit_code", "result"),
    [
        ([JobResult.SUCCEEDED], 102, JobResult.FAILED),
        ([JobResult.SUCCEEDED], 100, JobResult.SUCCEEDED),
        ([JobResult.SUCCEEDED, JobResult.FAILED], 0, JobResult.FAILED),
        ([JobResult.FAILED, JobResult.SUCCEEDED], 0, JobResult.FAILED),
        ([JobResult.FAILED, JobResult.CANCELED], 0, JobResult.CANCELED),
        ([JobResult.SUCCEEDED], 0, JobResult.SUCCEEDED),
    ],
)
def test_a_job_that_was_caught_lying(said: list[JobResult], exit_code: int, result: JobResult) -> None:
    """Of what is left, nothing good counts; of what is not good, the last one."""
    assert job_result(said, exit_code, said[0], lied=True) is result


@given(st.lists(st.sampled_from(JobResult)), st.none() | st.integers(0, 255))
def test_a_result_has_a_source(said: list[JobResult], exit_code: int | None) -> None:
    """It was said, or it is a failure that the code tells of; that it is another than the code's is told."""
    result, told = job_result(said, exit_code), RESULT_OF_EXIT.get(exit_code or 0)

    assert result in {*said, None if said else told, None}
    assert (result is None) <= (not said)
    assert (disagreement(result, exit_code) is None) == (told in {None, result})


def test_a_disagreement_is_told() -> None:
    """The line wins."""
    world = World(script=RunnerScript(result=JobResult.SUCCEEDED, exit_code=102))
    live(world)

    assert (final(world).status, final(world).runner_exit_code) == (Status.SUCCESS, 102)
    assert "exit code 102 says that the job failed, its console said that the job succeeded" in warnings(
        world
    )


def test_an_exit_code_alone_is_no_success() -> None:
    """100 is what a fault of the runner leaves too."""
    world = World(script=RunnerScript(result=None, exit_code=100))
    live(world)

    assert (final(world).status, final(world).exit_code) == (Status.FAILURE, 100)
    assert final(world).job_result is None
    assert "exit code 100 says that the job succeeded, its console said nothing" in warnings(world)


def test_an_exit_code_alone_is_a_failure() -> None:
    """The job's result, where the line did not come."""
    world = World(script=RunnerScript(result=None, exit_code=102))
    live(world)

    assert (final(world).status, final(world).exit_code) == (Status.FAILURE, 1)
    assert final(world).job_result is JobResult.FAILED


# Lies


@pytest.mark.parametrize("exit_code", [None, 0])
@pytest.mark.parametrize("result", [JobResult.FAILED, JobResult.SUCCEEDED])
@pytest.mark.parametrize("word", ["Succeeded", "Failed", "Canceled"])
def test_a_job_that_says_how_it_ends(exit_code: int | None, result: JobResult, word: str) -> None:
    """As long as it has a worker, nobody believes that it has ended; a long job goes on."""
    lie = f"{STAMP}Job build completed with result: {word}"
    script = RunnerScript(output=(lie, lie), result=result, exit_code=exit_code, job_seconds=600)
    world = World(script=script)
    live(world)

    assert final(world).job_result is result
    assert final(world).duration_seconds == 600
    assert sum(isinstance(event, JobCompleted) for event in world.events) == 1
    assert "its worker is at work: not believed" in warnings(world)


@pytest.mark.parametrize("exit_code", [None, 0])
def test_a_daemon_that_says_how_the_job_ended(exit_code: int | None) -> None:
    """What comes after the runner's own word changes nothing, how often ever it comes."""
    script = RunnerScript(
        result=JobResult.FAILED, exit_code=exit_code, exit_after=5, last_words=(LIE,) * 1000
    )
    world = World(script=script)
    live(world)

    assert (final(world).status, final(world).job_result) == (Status.FAILURE, JobResult.FAILED)
    assert final(world).completed_at == EPOCH + timedelta(seconds=7 + 30)


@pytest.mark.parametrize("exit_code", [None, 0])
def test_a_name_that_says_how_the_job_ends(exit_code: int | None) -> None:
    """It comes before there is a worker: the job goes on all the same, and its own end counts."""
    script = RunnerScript(
        job_name=NAME_THAT_LIES, result=JobResult.FAILED, exit_code=exit_code, job_seconds=600
    )
    world = World(script=script)
    live(world)

    assert (final(world).status, final(world).job_result) == (Status.FAILURE, JobResult.FAILED)
    assert final(world).stop_reason is None
    assert final(world).duration_seconds == 600


def test_a_name_that_lies_takes_no_time_from_the_runners_exit() -> None:
    """The runner has its time from the job's own end on, not from what its name says."""
    script = RunnerScript(job_name=NAME_THAT_LIES, job_seconds=50, exit_after=30, result=JobResult.FAILED)
    world = World(script=script)
    live(world)

    assert (final(world).job_result, final(world).runner_exit_code) == (JobResult.FAILED, 102)
    assert world.runners[0].interrupts == 0


def test_a_name_that_lies_hides_no_interruption() -> None:
    """Not even where the runner dies before it can say how the job really ended."""
    for cancel_seconds in (2.0, None):
        world = World(
            script=RunnerScript(job_name=NAME_THAT_LIES, job_seconds=None, cancel_seconds=cancel_seconds)
        )
        live(world, lambda loop, agent: loop.call_at(30, agent.stop, SIGTERM))

        assert (final(world).status, final(world).interrupted_by) == (Status.INTERRUPTED, "SIGTERM")
        assert world.runners[0].interrupts == 1


def test_a_name_that_lies_hides_no_crash() -> None:
    """The runner dies under its worker."""
    world = World(script=RunnerScript(job_name=NAME_THAT_LIES, crash_after=20, exit_code=134))
    live(world)

    assert (final(world).status, final(world).exit_code) == (Status.FAILURE, 134)
    assert final(world).job_result is None
    assert not world.machine.runner_alive


def test_a_name_that_lies_hides_no_timeout() -> None:
    """The max runtime counts from the begin of the job that is still there."""
    limits = Limits(max_runtime=timedelta(minutes=5))
    world = World(script=RunnerScript(job_name=NAME_THAT_LIES, job_seconds=None), limits=limits)
    live(world)

    assert final(world).status is Status.TIMEOUT
    assert 300 <= (final(world).duration_seconds or 0) <= 303


def test_where_workers_cannot_be_seen_lines_are_believed() -> None:
    """The runner's word counts, and that nobody could look is told."""
    world = World(script=RunnerScript(job_seconds=20), spoil=blind)
    live(world)

    assert final(world).status is Status.SUCCESS
    assert "whether the runner works cannot be seen: no /proc" in warnings(world)


def blind(ports: Ports) -> Ports:
    runner: Any = ports.runner_process

    async def has_worker() -> bool:
        raise RunnerUnavailableError("no /proc")

    runner.has_worker = has_worker
    return ports


# Assignment


class Repeating:
    """Its console says again and again that the job completed, and its workers cannot be seen."""

    def __init__(self, runner: object) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    async def has_worker(self) -> bool:
        raise RunnerUnavailableError("planted")

    async def traces(self) -> AsyncIterator[Trace]:
        return
        yield

    async def output(self) -> AsyncIterator[OutputLine]:
        yield OutputLine(f"{STAMP}Running job: build")
        while True:
            await asyncio.sleep(50)
            yield OutputLine(LIE)


def test_a_completion_that_is_said_again_puts_off_nothing() -> None:
    """The runner has its time to exit from the first one on, and no longer than max runtime allows."""

    def spoil(ports: Ports) -> Ports:
        runner: Any = Repeating(ports.runner_process)
        return evolve(ports, runner_process=runner)

    world = World(script=RunnerScript(job_seconds=None), spoil=spoil)
    seconds: list[float] = []

    async def main() -> None:
        async with asyncio.timeout(3600):
            await world.agent().run()
        seconds.append(asyncio.get_running_loop().time())

    run(main)
    assert seconds[0] < 300
    assert final(world).stop_reason is StopReason.STALLED


def test_a_job_that_is_assigned_and_never_begins() -> None:
    """It is waited for, but not as long as for a job."""
    world = World(script=RunnerScript(vanishes=True), limits=Limits(idle=timedelta(hours=2)))
    live(world)

    assert any(isinstance(event, JobAssigned) for event in world.events)
    assert (final(world).status, final(world).stop_reason) == (Status.FAILURE, StopReason.STALLED)
    assert "the job that GitHub assigned did not begin within 0:03:00" in (final(world).error or "")
    assert (final(world).job_ran, final(world).started_at) == (False, None)
    assert world.notifier.received[0].completed_at == EPOCH + timedelta(seconds=7 + 180 + 2)


def test_a_job_that_comes_in_the_last_moment_is_not_stopped() -> None:
    """The idle limit is for a runner that nobody has given a job."""
    limits = Limits(idle=timedelta(minutes=5))
    script = RunnerScript(assign_after=299.99, job_seconds=100)
    world = World(script=script, limits=limits)
    live(world)

    assert final(world).status is Status.SUCCESS


def test_a_worker_that_the_console_does_not_tell_of() -> None:
    """A runner that works is not idle, whatever its console says, or does not say."""
    script = RunnerScript(assign_after=10, job_seconds=900)
    world = World(script=script, limits=Limits(idle=timedelta(minutes=5)), spoil=mute)
    live(world)

    assert final(world).stop_reason is StopReason.STALLED
    assert "the job that GitHub assigned did not begin within" in (final(world).error or "")


def mute(ports: Ports) -> Ports:
    """The runner says nothing of its job, nor do its files."""
    runner: Any = ports.runner_process
    log = runner._log
    runner._log = lambda text: None if text.startswith("Running") else log(text)

    async def traces() -> Any:
        await asyncio.Event().wait()
        yield

    runner.traces = traces
    return ports


# What steps print


def test_step_output_is_in_the_stream() -> None:
    """Each line is marked with its step, in order, beside the console's."""
    world = World(script=RunnerScript(steps=(("one", "two"), ("", "three"))))
    live(world)

    lines = world.log_sink.lines(STREAM)
    assert [line for line in lines if line.startswith("[step")] == [
        "[step 1] one",
        "[step 1] two",
        "[step 2] ",
        "[step 2] three",
    ]
    shown = [event for event in world.events if isinstance(event, Printed) and event.step is not None]
    assert [event.step for event in shown] == [1, 1, 2, 2]


def test_traces_that_fail_stop_nothing() -> None:
    """The job goes on without them, and that is told."""
    world = World(spoil=untraceable)
    live(world)

    assert final(world).status is Status.SUCCESS
    assert "what the job's steps print cannot be followed any more: broken" in warnings(world)


def untraceable(ports: Ports) -> Ports:
    runner: Any = ports.runner_process

    async def traces() -> Any:
        raise ZeroDivisionError("broken")
        yield

    runner.traces = traces
    return ports


# The job's environment


def test_what_the_config_wants_wins() -> None:
    """Over what the operator has set for every job."""
    options = AgentOptions(
        instance_id="i-1", arch="x64", job_environment={"ACTIONS_CACHE_URL": "http://a", "GREETING": "hello"}
    )
    config = evolve(A_JOB, cache_url="http://b", cache_token=Secret("planted"))

    assert job_environment_for(A_JOB, options) == {"ACTIONS_CACHE_URL": "http://a", "GREETING": "hello"}
    assert job_environment_for(config, options) == {
        "ACTIONS_CACHE_URL": "http://b",
        "ACTIONS_CACHE_TOKEN": Secret("planted"),
        "GREETING": "hello",
    }
    assert "hello" not in repr(options)


def test_the_runner_is_given_the_jobs_environment() -> None:
    """Each start is."""
    world = World(config=evolve(A_JOB, cache_url="http://b"), script=RunnerScript(early_exits=(2,)))
    live(world)

    assert world.runners[0].starts == 2
    assert world.runners[0].job_environment == {"ACTIONS_CACHE_URL": "http://b"}

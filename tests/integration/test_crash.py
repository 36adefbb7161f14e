"""The installed wheel and SIGKILL: whatever an agent or its successor leaves, `reap` brings it to one end."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import pytest
from attrs import frozen

from agent_core.phases import Phase
from support.aws import Aws
from support.github import GitHub
from support.imds import InstanceMetadata
from support.instance import Ended, Instance, instance_of
from support.wheel import TIMEOUT_SECONDS, Running, processes_of

CRASHES = int(os.environ.get("CRASHES", "12"))
"""At how many moments an agent is killed; `make crashes` kills it at 200."""

SHORT_JOB = "env -i setsid sleep 1000 >/dev/null 2>&1 &\nseq 1 1000\n"
"""It ends by itself, and leaves a daemon that the runner does not know for its own."""
LONG_JOB = "echo begun\nexec sleep 1000\n"

Note = Callable[[str, object], None]
"""Puts a value into the test's report: the summary counts crashes by phase."""


# The crash


@frozen
class Seconds:
    """How long it takes here, when nobody disturbs it."""

    run: float
    reap: float
    """Of what an agent leaves that is killed in the middle of its job."""


@pytest.fixture(scope="session")
def seconds(
    tmp_path_factory: pytest.TempPathFactory,
    whole_aws: Aws,
    whole_github: GitHub,
    whole_imds: InstanceMetadata,
) -> Seconds:
    """Moments are fractions of these; a moment after the end is one, too."""

    def measure(prepare: Callable[[Instance], Any], command: str) -> float:
        for service in (whole_aws, whole_github, whole_imds):
            service.reset()
        with instance_of(tmp_path_factory.mktemp(command), whole_aws, whole_github, whole_imds) as instance:
            prepare(instance)
            begun = perf_counter()
            ended = instance.run(command=command)
            assert ended.status == 0, ended.stderr
            return perf_counter() - begun

    return Seconds(measure(lay_out, "run"), measure(leave_a_job, "reap"))


def lay_out(instance: Instance, job: str = SHORT_JOB) -> None:
    instance.put_config()
    instance.publish(job=job)


def leave_a_job(instance: Instance) -> None:
    """What an agent leaves that is killed in the middle of its job."""
    lay_out(instance, LONG_JOB)
    running = instance.start()
    running.wait_for("sent the message started")
    kill(running)
    assert processes_of(instance.folder), "the runner lives on: that is what there is to end"


def kill(running: Running[Ended], after: float = 0) -> None:
    """SIGKILL after so many seconds, unless it has ended; what it has started lives on."""
    try:
        running.process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        running.send(signal.SIGKILL)
        running.process.communicate(timeout=TIMEOUT_SECONDS)


def phase_at_death(running: Running[Ended], instance: Instance) -> str:
    """As the journal has it."""
    if running.process.returncode != -signal.SIGKILL:
        assert running.process.returncode == 0
        return "its end"
    return str(journal_of(instance)["phase"]) if journal_path(instance).exists() else "no journal"


def journal_path(instance: Instance) -> Path:
    return instance.state_dir / "journal.json"


def journal_of(instance: Instance) -> dict[str, Any]:
    return json.loads(journal_path(instance).read_text())  # type: ignore[no-any-return]


def assert_ends(killed: Running[Ended], instance: Instance) -> None:
    """Its successor finishes what is left, and has nothing to do where it had finished itself."""
    if phase_at_death(killed, instance) in {Phase.TERMINATED, "its end"}:
        assert_nothing_to_do(instance)
    assert_one_end(instance, instance.run(command="reap"))


def assert_one_end(instance: Instance, reaped: Ended) -> None:
    """The instance was asked to terminate, and all final messages are one.

    That no process is left, `Running.end` has seen.
    """
    assert reaped.status == 0, reaped.stderr
    assert instance.aws.terminations
    assert set(instance.aws.terminations) == {instance.instance_id}
    finals = {(m["message_id"], m["status"]) for m in reaped.messages if m["status"] != "started"}
    assert len(finals) == 1, (reaped.messages, reaped.stderr)


def assert_nothing_to_do(instance: Instance) -> None:
    """A successor finds that all is over: it says nothing, and sends nothing."""
    calls = said_to_aws(instance)
    reaped = instance.run(command="reap")
    assert (reaped.status, reaped.stdout, reaped.stderr) == (0, "", "")
    assert said_to_aws(instance) == calls


def said_to_aws(instance: Instance) -> list[str]:
    return [call.operation for call in instance.aws.calls]


@pytest.mark.parametrize("seed", range(CRASHES))
def test_agent_killed_at_any_moment(
    instance: Instance, seconds: Seconds, seed: int, record_property: Note
) -> None:
    """Also before it has a journal, and when all is done but its exit."""
    lay_out(instance)
    running = instance.start()
    kill(running, Random(seed).random() * seconds.run)
    record_property("agent killed in", phase_at_death(running, instance))
    assert_ends(running, instance)


@pytest.mark.parametrize("phase", Phase)
def test_agent_killed_as_a_phase_begins(instance: Instance, phase: Phase, record_property: Note) -> None:
    """Also in phases that are over in a moment."""
    lay_out(instance)
    running = instance.start()
    running.wait_for(f'"phase {phase}"')
    kill(running)
    record_property("agent killed in", phase_at_death(running, instance))
    assert_ends(running, instance)


@pytest.mark.parametrize("seed", range(CRASHES // 2))
def test_successor_killed_at_any_moment(
    instance: Instance, seconds: Seconds, seed: int, record_property: Note
) -> None:
    """The next one goes on with it."""
    leave_a_job(instance)
    reaping = instance.start(command="reap")
    kill(reaping, Random(seed).random() * seconds.reap)
    record_property("successor killed in", phase_at_death(reaping, instance))
    assert_ends(reaping, instance)
    assert instance.aws.messages(instance.queue_url)[-1]["status"] == "failure"
    assert_nothing_to_do(instance)


@pytest.mark.parametrize("seed", range(CRASHES // 2))
def test_both_killed_at_any_moment(instance: Instance, seconds: Seconds, seed: int) -> None:
    """Whatever the one left to the other, and that to the third."""
    lay_out(instance)
    rng = Random(seed)
    kill(instance.start(), rng.random() * seconds.run)
    kill(instance.start(command="reap"), rng.random() * seconds.reap)
    assert_one_end(instance, instance.run(command="reap"))


# Not alone


def test_two_successors_at_once(instance: Instance) -> None:
    """One finishes, and the other says nothing."""
    leave_a_job(instance)
    both = [instance.start(command="reap") for _ in range(2)]
    silent, telling = sorted(running.process.communicate(timeout=TIMEOUT_SECONDS) for running in both)
    assert [running.process.returncode for running in both] == [0, 0]
    assert silent == ("", "")
    assert telling[1].count('"TerminationRequested"') == 1
    assert len(instance.aws.terminations) == 1
    assert_nothing_to_do(instance)


def test_successor_beside_a_live_agent(instance: Instance) -> None:
    """It says nothing and does nothing; the job goes on to its end."""
    lay_out(instance, instance.until_go)
    running = instance.start()
    running.wait_for("sent the message started")
    reaping = instance.start(command="reap")
    assert reaping.process.communicate(timeout=TIMEOUT_SECONDS) == ("", "")
    assert reaping.process.returncode == 0
    assert not instance.aws.terminations
    instance.go()
    ended = running.end()
    assert (ended.status, ended.statuses) == (0, ["started", "success"])


def test_numbers_that_other_processes_have_by_now(instance: Instance) -> None:
    """A stranger with the number of the agent, or of the runner, is neither taken for it, nor killed."""
    leave_a_job(instance)
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as stranger:
        journal = journal_of(instance)
        for process in (journal["agent"], *journal["runner"]):
            process["pid"] = stranger.pid
        journal_path(instance).write_text(json.dumps(journal))
        reaping = instance.start(command="reap")
        _, stderr = reaping.process.communicate(timeout=TIMEOUT_SECONDS)
        left = processes_of(instance.folder)
        alive = stranger.poll() is None
        stranger.kill()
    assert (reaping.process.returncode, alive, left) == (0, True, ["sleep 1000 "]), stderr
    assert instance.aws.terminations == [instance.instance_id]


# Journals that say nothing

DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (Path.touch, "not JSON"),
    "garbage": (lambda path: path.write_bytes(b"\x00\xff garbage"), "not JSON"),
    "truncated": (lambda path: path.write_text('{"version": 1, "instance_id": "i-0'), "not JSON"),
    "a list": (lambda path: path.write_text("[]"), "not a JSON object"),
    "another version": (lambda path: path.write_text('{"version": 2}'), "version 2, not 1"),
    "without a phase": (
        lambda path: path.write_text('{"version": 1, "instance_id": "i-0", "agent_version": "1"}'),
        "journal.phase: missing",
    ),
    "a folder": (Path.mkdir, "Is a directory"),
    "unreadable, also for root": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
}


@pytest.mark.parametrize("command", ["run", "reap"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_journal(instance: Instance, damage: str, command: str) -> None:
    """It may tell of a job that has run: none runs, an error says what is wrong where, the instance goes."""
    lay_out(instance)
    instance.state_dir.mkdir()
    make, reason = DAMAGE[damage]
    make(journal_path(instance))
    ended = instance.run(command=command)
    assert (ended.status, instance.aws.terminations) == (70, [instance.instance_id]), ended.stderr
    [error] = [line for line in ended.stderr.splitlines() if '"level": "ERROR"' in line]
    assert str(journal_path(instance)) in error
    assert reason in error
    assert set(ended.statuses) == {"failure"}


@pytest.mark.parametrize(("command", "status"), [("run", "success"), ("reap", "failure")])
def test_journal_of_another_instance(instance: Instance, command: str, status: str) -> None:
    """The image was made from a used machine: its job is not this one's, nor are its processes."""
    lay_out(instance)
    assert instance.run().final["status"] == "success"
    journal_path(instance).write_text(json.dumps(journal_of(instance) | {"terminated": False}))
    another = Instance(instance.folder, instance.aws, instance.github, instance.imds)
    lay_out(another)
    ended = another.run(command=command)
    assert (ended.status, ended.state) == (0, "terminated"), ended.stderr
    line = f"the journal is of {instance.instance_id}, not of this instance"
    assert ended.stderr.count(line) == 1
    assert ended.statuses[-1:] == [status], ended.stderr
    assert {message["instance_id"] for message in ended.messages} == {another.instance_id}

"""The installed wheel in profile `aws`, the default: whole lives of an instance, in a cloud beside it."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sample_runner.build import build_archive, jit_config

from support.faults import Answer, Hang, Lose, Refuse, Slow, denied, throttled, wall_clock
from support.instance import GROUP, VERSION, Ended, Instance
from support.wheel import JOB_ID, TIMEOUT_SECONDS, TOKEN, processes_of

LONG_JOB = "echo begun\nexec sleep 1000\n"
PHASES = ["booting", "configuring", "provisioning", "registering", "listening", "running"]


def assert_one_end(ended: Ended, status: str, *, started: bool = True) -> dict[str, Any]:
    """One final message, of that status, and an instance that is gone; the message."""
    distinct = {message["message_id"]: message["status"] for message in ended.messages}
    assert list(distinct.values()) == (["started", status] if started else [status]), ended.stderr
    assert ended.state in {"shutting-down", "terminated"}, ended.stderr
    assert {message["job_id"] for message in ended.messages} == {JOB_ID}
    return ended.final


# The job's own end


def test_success(instance: Instance) -> None:
    """From config to final message; what the job printed is in its stream, whole and in order."""
    instance.put_config()
    instance.publish(job="seq 1 1000\n")
    ended = instance.run()
    final = assert_one_end(ended, "success")
    assert ended.status == 0
    assert (final["instance_id"], final["run_id"]) == (instance.instance_id, "12345")
    assert (final["exit_code"], final["job_result"], final["job_ran"]) == (0, "succeeded", True)
    assert final["log_lines_dropped"] == 0
    assert final["log_lines_delivered"] == len(ended.log)
    assert [line for line in ended.log if line.isdecimal()] == [str(n) for n in range(1, 1001)]
    assert not instance.runner_dir.exists()


def test_failed_job(instance: Instance) -> None:
    """A red job is a failure, and the agent's own exit status is still 0."""
    instance.put_config()
    instance.publish(job="exit 3\n")
    ended = instance.run()
    final = assert_one_end(ended, "failure")
    assert (ended.status, final["exit_code"], final["job_result"]) == (0, 1, "failed")


def test_jit_config_in_the_credential(instance: Instance) -> None:
    """A just-in-time config beside the parameter needs no registration."""
    instance.put_config(jit_token=None)
    name = instance.parameter.replace("/config", "/credential")
    instance.aws.put_parameter(name, json.dumps({"jit_config": jit_config(name="jit")}), secure=True)
    instance.publish()
    ended = instance.run()
    assert_one_end(ended, "success")
    assert "phase registering" in ended.stderr
    assert "Runner successfully added" not in ended.stderr


def test_fifo_queue_of_the_config(instance: Instance) -> None:
    """The config's queue wins; a FIFO queue has both messages, in order, once."""
    fifo = instance.aws.queue(fifo=True)
    instance.put_config(termination_queue_url=fifo)
    instance.publish()
    instance.aws.faults.plan("sqs:SendMessage", Lose(), times=1)
    ended = instance.run()
    assert (ended.status, ended.messages) == (0, [])
    assert [message["status"] for message in instance.aws.delivered(fifo)] == ["started", "success"]


def test_instance_and_region_that_are_set(instance: Instance) -> None:
    """What the environment says is not asked for, nor are credentials."""
    instance.put_config()
    instance.publish()
    variables = instance.aws.environ | {
        "RUNS_FLEET_INSTANCE_ID": instance.instance_id,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    assert_one_end(instance.run(variables=variables), "success")
    assert not instance.imds.calls


def test_without_a_log_group(instance: Instance) -> None:
    """What the job prints goes to stderr only, with one warning."""
    instance.put_config()
    instance.publish()
    ended = instance.run(variables={"RUNS_FLEET_LOG_GROUP": ""})
    assert_one_end(ended, "success")
    assert ended.stderr.count("RUNS_FLEET_LOG_GROUP is not set") == 1
    assert "hello from the job" in ended.stderr
    assert not [call for call in instance.aws.calls if call.service == "logs"]


# The runner


def test_cache_miss_then_hit(instance: Instance) -> None:
    """The first boot fills the cache beside its job; the second, with a pin, asks GitHub nothing."""
    archive = instance.publish(job=instance.until_go)
    instance.put_config()
    running = instance.start()
    instance.aws.wait_for("s3:PutObject", status=200)
    running.wait_for("phase running")
    instance.go()
    assert_one_end(running.end(), "success")
    assert instance.cached() == archive.read_bytes()

    instance.github.reset()
    again = Instance(instance.folder / "second", instance.aws, instance.github, instance.imds)
    again.variables["RUNS_FLEET_CONFIG_BUCKET"] = instance.bucket
    again.put_config(runner_version=VERSION, runner_sha256=sha256_of(archive))
    assert_one_end(again.run(), "success")
    assert not instance.github.calls


def test_poisoned_cache(instance: Instance) -> None:
    """What the bucket has is never executed where its digest is wrong; the job runs from GitHub."""
    marker = instance.folder / "poisoned"
    poison = build_archive(instance.folder / "poison", job=f"touch {marker}\n", scenario={})
    s3 = instance.aws.client("s3")
    s3.put_object(Bucket=instance.bucket, Key=instance.cache_key, Body=poison.read_bytes())
    instance.publish()
    instance.put_config()
    ended = instance.run()
    assert_one_end(ended, "success")
    assert "hello from the job" in ended.log
    assert "is not used, GitHub is asked: the archive's SHA-256 is" in ended.stderr
    assert not marker.exists()


def test_wrong_digest_everywhere(instance: Instance) -> None:
    """Neither the cache's archive nor GitHub's is the pinned one: nothing runs, nothing is left."""
    marker = instance.folder / "executed"
    archive = instance.publish(job=f"touch {marker}\n")
    s3 = instance.aws.client("s3")
    s3.put_object(Bucket=instance.bucket, Key=instance.cache_key, Body=archive.read_bytes())
    instance.put_config(runner_version=VERSION, runner_sha256="0" * 64)
    ended = instance.run()
    final = assert_one_end(ended, "failure", started=False)
    assert (ended.status, final["error_phase"]) == (0, "provisioning")
    assert "0" * 64 in final["error"]
    assert not marker.exists()
    assert list(instance.runner_dir.parent.iterdir()) == []


def test_github_down(instance: Instance) -> None:
    """Where the runner is not to be had, the job's failure says so, after a bounded time."""
    instance.put_config()
    instance.github.faults.plan("github:*", Answer(503))
    ended = instance.run()
    final = assert_one_end(ended, "failure", started=False)
    assert final["error_phase"] == "provisioning"
    assert "HTTP status 503, 3 times in a row" in final["error"]


@pytest.mark.parametrize("fault", [throttled("s3"), Answer(404, "NoSuchBucket"), Refuse()])
def test_bucket_of_no_use(instance: Instance, fault: Any) -> None:
    """The job runs from GitHub."""
    instance.put_config()
    instance.publish()
    instance.aws.faults.plan("s3:*", fault)
    ended = instance.run()
    assert_one_end(ended, "success")
    assert "GitHub is asked" in ended.stderr


def test_prebaked_runner(instance: Instance) -> None:
    """A fresh runner of the wanted version that the image has is used as it is: nobody is asked for it."""
    archive = instance.publish(job="echo prebaked\n")
    unpacked(archive, instance.runner_dir)
    instance.github.reset()
    instance.put_config(runner_version=VERSION)
    ended = instance.run()
    assert_one_end(ended, "success")
    assert "prebaked" in ended.log
    assert not instance.github.calls
    assert not [call for call in instance.aws.calls if call.service == "s3"]


@pytest.mark.parametrize("stale", [".runner", ".credentials"])
def test_used_runner_is_replaced(instance: Instance, stale: str) -> None:
    """An image made from a used machine: its runner is not used again, a verified one takes its place."""
    marker = instance.folder / "stale"
    old = build_archive(instance.folder / "old", job=f"touch {marker}\n", scenario={})
    unpacked(old, instance.runner_dir)
    (instance.runner_dir / stale).write_text("{}")
    instance.publish()
    instance.put_config(runner_version=VERSION)
    assert_one_end(instance.run(), "success")
    assert not marker.exists()


def test_prebaked_runner_where_github_is_down(instance: Instance) -> None:
    """Which one is the latest is not known: the image's is better than none."""
    unpacked(instance.publish(), instance.runner_dir)
    instance.github.faults.plan("github:*", Refuse())
    instance.put_config()
    ended = instance.run()
    assert_one_end(ended, "success")
    assert "the prebaked one is used" in ended.stderr


def sha256_of(path: Path) -> str:
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout[:64]


def unpacked(archive: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    subprocess.run(["tar", "-xzf", archive, "-C", folder, "--no-same-owner"], check=True)


# The config


def test_config_that_comes_late(instance: Instance) -> None:
    """It is waited for."""
    instance.publish()
    running = instance.start()
    running.wait_for("no config yet")
    instance.put_config()
    assert_one_end(running.end(), "success")


def test_config_throttled_for_a_while(instance: Instance) -> None:
    """A service that is asked too often is asked again."""
    instance.publish()
    instance.put_config()
    instance.aws.faults.plan("ssm:GetParameter", throttled("ssm"), times=1)
    assert_one_end(instance.run(), "success")


def test_config_that_never_comes(instance: Instance) -> None:
    """There is nobody to report to, and the instance goes."""
    ended = instance.run(variables={"RUNS_FLEET_STANDBY_MINUTES": "0.01"})
    assert (ended.status, ended.messages, ended.state) == (75, [], "terminated")


def test_config_denied(instance: Instance) -> None:
    """It is not asked for again."""
    instance.put_config()
    instance.aws.faults.plan("ssm:*", denied("ssm"))
    ended = instance.run()
    assert (ended.status, ended.messages, ended.state) == (69, [], "terminated")
    assert "AccessDeniedException" in ended.stderr


def test_config_malformed(instance: Instance) -> None:
    """Every fault is named at once, and no secret with them."""
    instance.put_config(org="a b", labels=[], max_runtime_minutes="5")
    ended = instance.run()
    assert (ended.status, ended.messages, ended.state) == (78, [], "terminated")
    for path in ("config.org", "config.labels", "config.max_runtime_minutes"):
        assert path in ended.stderr
    assert TOKEN not in ended.stderr


def test_config_with_an_expired_token(instance: Instance) -> None:
    """It is reported as such, without trying it."""
    instance.put_config(created_at="2025-11-25T10:00:00Z")
    ended = instance.run()
    final = assert_one_end(ended, "failure", started=False)
    assert (ended.status, final["error_phase"]) == (69, "configuring")


def test_one_job_runs_once(instance: Instance) -> None:
    """An instance that is started again with the same config does not run its job again."""
    instance.put_config()
    instance.publish()
    first = instance.run()
    assert_one_end(first, "success")
    ended = instance.run()
    assert (ended.status, ended.messages) == (78, first.messages)
    assert len(instance.aws.terminations) == 2
    assert ended.log.count("hello from the job") == 1


def test_bad_settings(instance: Instance) -> None:
    """They are named all at once, and the instance goes: whatever is set wrongly, it must not stay."""
    instance.put_config()
    ended = instance.run(variables={"RUNS_FLEET_MAX_RUNTIME": "123abc", "RUNS_FLEET_IDLE_MINUTES": "-5"})
    final = assert_one_end(ended, "failure", started=False)
    assert (ended.status, final["job_ran"]) == (78, False)
    assert "RUNS_FLEET_MAX_RUNTIME: '123abc'" in final["error"]
    assert "RUNS_FLEET_MAX_RUNTIME: '123abc'" in ended.stderr
    assert "RUNS_FLEET_IDLE_MINUTES: '-5'" in ended.stderr


# Services that are down


def test_cloudwatch_down_for_a_while(instance: Instance) -> None:
    """Every line arrives, in order, and the job does not wait for it."""
    job = f"seq 1 500\n{instance.until_go}seq 501 1000\n"
    instance.put_config()
    instance.publish(job=job)
    instance.aws.faults.plan("logs:*", Answer(500, "InternalFailure"))
    running = instance.start()
    running.wait_for("phase running", "the log sink does not answer")
    instance.aws.faults.heal()
    instance.go()
    ended = running.end()
    final = assert_one_end(ended, "success")
    assert final["log_lines_dropped"] == 0
    assert [line for line in ended.log if line.isdecimal()] == [str(n) for n in range(1, 1001)]


@pytest.mark.parametrize("fault", [Answer(500, "InternalFailure"), denied("logs")])
def test_cloudwatch_down_for_good(instance: Instance, fault: Any) -> None:
    """The job's end waits a bounded time; what is lost is counted in the message."""
    instance.put_config()
    instance.publish(job="seq 1 100\n")
    instance.aws.faults.plan("logs:*", fault)
    final = assert_one_end(instance.run(), "success")
    assert final["log_lines_delivered"] == 0
    assert final["log_lines_dropped"] == final["log_lines_accepted"] >= 100


def test_queue_down_for_a_while(instance: Instance) -> None:
    """The message is sent again until the queue has it."""
    instance.put_config()
    instance.publish()
    instance.aws.faults.plan("sqs:SendMessage", throttled("sqs"), times=3)
    assert_one_end(instance.run(), "success")


def test_queue_down_for_good(instance: Instance) -> None:
    """The instance goes all the same."""
    instance.put_config()
    instance.publish()
    instance.aws.faults.plan("sqs:SendMessage", Refuse())
    ended = instance.run()
    assert (ended.messages, ended.state) == ([], "terminated")
    assert "the message success was not sent" in ended.stderr


def test_queue_loses_its_answer(instance: Instance) -> None:
    """What it took is sent again under the same ID."""
    instance.put_config()
    instance.publish()
    instance.aws.faults.plan("sqs:SendMessage", Lose(), times=1)
    ended = instance.run()
    assert_one_end(ended, "success")
    assert len(ended.messages) == 3


def test_terminate_fails_then_succeeds(instance: Instance) -> None:
    """It is asked for again."""
    instance.put_config()
    instance.publish()
    instance.aws.faults.plan("ec2:TerminateInstances", throttled("ec2"), times=1)
    instance.aws.faults.plan("ec2:TerminateInstances", denied("ec2"), times=1)
    ended = instance.run()
    assert_one_end(ended, "success")
    assert ended.status == 0


def stand_in(folder: Path, name: str, exit_code: int = 0) -> Path:
    """A command that writes down how it was called."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f'#!/bin/sh\necho "$0 $*" >> {folder}/called\nexit {exit_code}\n')
    program.chmod(0o755)
    return folder / "called"


def test_terminate_denied_for_good(instance: Instance) -> None:
    """Asked again for the whole of the phase; then the host is powered off, since that is armed."""
    called = stand_in(instance.folder / "bin", "systemctl")
    instance.put_config()
    instance.publish()
    instance.aws.own_instance = "i-another"
    ended = instance.run(
        variables={
            "RUNS_FLEET_POWEROFF": "1",
            # Nothing else than the stand-in can be reached that would power off this machine.
            "PATH": f"{called.parent}:{safe_path(instance.folder)}",
        }
    )
    assert (ended.status, ended.state, ended.statuses) == (69, "running", ["started", "success"]), (
        ended.stderr
    )
    attempts = [call for call in instance.aws.calls if call.operation == "ec2:TerminateInstances"]
    assert attempts[-1].at - attempts[0].at > 30
    assert called.read_text().endswith("systemctl poweroff\n")
    assert "powering off the host: the request to terminate was not accepted" in ended.stderr


def safe_path(folder: Path) -> Path:
    """A folder with all commands of the system, but for those that could power it off."""
    folder = folder / "safe"
    folder.mkdir()
    (folder / "python3").symlink_to(Path(sys.executable).resolve())
    for place in ("/usr/bin", "/bin"):
        for program in Path(place).iterdir():
            if program.name not in POWERING_OFF and not os.path.lexists(folder / program.name):
                (folder / program.name).symlink_to(program)
    return folder


POWERING_OFF = {"systemctl", "shutdown", "poweroff", "halt", "reboot", "init", "telinit"}


# Interruptions


def test_spot_notice(instance: Instance) -> None:
    """It stops the job in order; all is over well before the machine goes."""
    instance.put_config()
    instance.publish(job=LONG_JOB)
    running = instance.start()
    running.wait_for("begun", "sent the message started")
    deadline = wall_clock() + timedelta(seconds=120)
    instance.imds.spot_notice(deadline)
    ended = running.end()
    final = assert_one_end(ended, "interrupted")
    assert (final["interrupted_by"], final["job_result"]) == ("spot", "canceled")
    assert wall_clock() < deadline - timedelta(seconds=15)


def test_rebalance_recommendation(instance: Instance) -> None:
    """It is told, and the job goes on."""
    instance.put_config()
    instance.publish(job=instance.until_go)
    instance.imds.rebalance(wall_clock())
    running = instance.start()
    running.wait_for("AWS recommends to rebalance")
    instance.go()
    assert_one_end(running.end(), "success")


@pytest.mark.parametrize("phase", PHASES)
def test_sigterm_in_each_phase(instance: Instance, phase: str) -> None:
    """There is no phase in which SIGTERM goes unheard, or unreported."""
    instance.put_config()
    instance.publish(job=LONG_JOB)
    running = instance.start()
    running.wait_for(f"phase {phase}")
    running.send(signal.SIGTERM)
    ended = running.end()
    final = assert_one_end(ended, "interrupted", started="started" in ended.statuses)
    assert (ended.status, final["interrupted_by"]) == (0, "SIGTERM")


@pytest.mark.parametrize("phase", ["reporting", "terminating"])
def test_sigterm_while_it_ends(instance: Instance, phase: str) -> None:
    """It changes nothing about what has ended."""
    instance.put_config()
    instance.publish()
    running = instance.start()
    running.wait_for(f"phase {phase}")
    running.send(signal.SIGTERM)
    ended = running.end()
    assert (ended.status, assert_one_end(ended, "success")["exit_code"]) == (0, 0)


@pytest.mark.parametrize("service", ["github:download", "s3:GetObject", "ssm:GetParameter"])
def test_sigterm_while_a_service_hangs(instance: Instance, service: str) -> None:
    """A stop does not wait for a service that does not answer."""
    if service != "ssm:GetParameter":
        instance.put_config()
    instance.publish()
    (instance.aws if ":G" in service else instance.github).faults.plan(service, Hang())
    running = instance.start()
    running.wait_for("phase provisioning" if service != "ssm:GetParameter" else "phase configuring")
    fake = instance.github if service.startswith("github") else instance.aws
    fake.wait_for(service)
    running.send(signal.SIGTERM)
    ended = running.end()
    assert ended.state == "terminated"
    assert ended.statuses == ([] if service == "ssm:GetParameter" else ["interrupted"])


def test_max_runtime(instance: Instance) -> None:
    """A job that exceeds it is stopped, and reported as a timeout."""
    instance.put_config(max_runtime_minutes=1)
    instance.publish(job=LONG_JOB)
    final = assert_one_end(instance.run(), "timeout")
    assert final["stop_reason"] == "max_runtime"


# Services that hang


@pytest.mark.parametrize(
    "match", ["logs:*", "sqs:*", "s3:*", "s3:PutObject", "imds:*", "ec2:TerminateInstances"]
)
def test_service_that_hangs(instance: Instance, match: str) -> None:
    """It costs a bounded time, and the instance goes."""
    instance.put_config()
    instance.publish(job=instance.until_go + "seq 1 100\n")
    if match == "s3:PutObject":
        instance.aws.faults.plan(match, Hang())
    running = instance.start()
    running.wait_for("phase running")
    times = 2 if match.startswith("ec2") else None
    (instance.imds if match.startswith("imds") else instance.aws).faults.plan(match, Hang(), times=times)
    instance.go()
    ended = running.end()
    assert ended.state == "terminated"
    assert ended.status == 0


# A successor


def phase_at_death(instance: Instance) -> str:
    """Of an agent that was killed in the middle of its job, as its journal has it, which may be behind."""
    phase = json.loads((instance.state_dir / "journal.json").read_text())["phase"]
    assert phase in {"listening", "running"}
    return str(phase)


@pytest.mark.parametrize("command", ["reap", "run"])
def test_successor_ends_what_a_killed_agent_left(instance: Instance, command: str) -> None:
    """After SIGKILL, a successor kills the runner, reports, terminates; a second one has nothing to do."""
    instance.put_config()
    instance.publish(job=LONG_JOB)
    running = instance.start()
    running.wait_for("sent the message started")
    running.send(signal.SIGKILL)
    running.process.communicate(timeout=TIMEOUT_SECONDS)
    assert processes_of(instance.folder), "the runner lives on: that is what there is to end"
    phase = phase_at_death(instance)
    ended = instance.run(command=command)
    final = assert_one_end(ended, "failure")
    assert f"died in phase {phase}" in final["error"]
    again = instance.run(command="reap")
    assert (again.status, again.messages) == (0, ended.messages)
    assert len(instance.aws.terminations) == 1


@pytest.mark.parametrize("command", ["reap", "run"])
def test_successor_delivers_the_spool_of_a_killed_agent(instance: Instance, command: str) -> None:
    """CloudWatch is away, memory is full, the agent is killed: what it had on the disk arrives, in order."""
    lines, size = 16_000, 1_000
    # Said again and again, since stderr has no room for every line; and the script itself is printed first.
    job = f"seq -f '%05.0f {'7' * size}' {lines}\nwhile echo 'all is' 'printed'; do sleep 0.05; done\n"
    instance.put_config()
    instance.publish(job=job)
    instance.aws.faults.plan("logs:*", Answer(503))
    running = instance.start()
    # On the console, and as the step's own line: then nothing is on its way to the disk.
    running.wait_for('"all is printed"', 'Z all is printed"', "sent the message started")
    running.send(signal.SIGKILL)
    running.process.communicate(timeout=TIMEOUT_SECONDS)
    segments = [json.loads(path.read_text()) for path in sorted((instance.state_dir / "log-spool").iterdir())]
    spooled = [text for _, texts in segments for text in texts]
    assert len(spooled) * size > 5_000_000
    instance.aws.faults.heal()
    ended = instance.run(command=command)
    final = assert_one_end(ended, "failure")
    assert ended.log[: len(spooled)] == spooled
    numbers = [int(number) for number in re.findall(r"^(\d{5}) 777", "\n".join(spooled), re.MULTILINE)]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    own = ended.log[len(spooled) :]
    assert all(line.startswith("runs-fleet-agent: ") for line in own)
    assert f"{len(spooled)} log lines" in "\n".join(own)
    assert final["log_lines_accepted"] == final["log_lines_delivered"] == len(ended.log)
    assert final["log_lines_dropped"] == 0
    assert not list((instance.state_dir / "log-spool").iterdir())
    again = instance.run(command="reap")
    assert (again.messages, again.log) == (ended.messages, ended.log)


@pytest.mark.parametrize("command", ["reap", "run"])
def test_successor_while_the_metadata_service_is_down(instance: Instance, command: str) -> None:
    """The journal knows which instance this is: the queue hears how it ended, and the instance goes."""
    instance.put_config()
    instance.publish(job=LONG_JOB)
    # No role without the metadata service.
    keys = {name: value for name, value in instance.aws.environ.items() if "KEY" in name or "REGION" in name}
    running = instance.start(variables=keys)
    running.wait_for("sent the message started")
    running.send(signal.SIGKILL)
    running.process.communicate(timeout=TIMEOUT_SECONDS)
    instance.imds.faults.plan("imds:*", Refuse())
    phase = phase_at_death(instance)
    ended = instance.run(command=command, variables=keys)
    final = assert_one_end(ended, "failure")
    assert (final["instance_id"], final["error_phase"]) == (instance.instance_id, phase)


def test_reap_with_a_state_folder_that_is_none(instance: Instance) -> None:
    """A typo must not end a machine whose agent is alive elsewhere."""
    ended = instance.run(command="reap", variables={"RUNS_FLEET_STATE_DIR": "~/typo"})
    assert (ended.status, ended.state) == (78, "running")
    assert "RUNS_FLEET_STATE_DIR: '~/typo'" in ended.stderr


# Strangers in a service's place


def test_metadata_service_that_answers_garbage(instance: Instance) -> None:
    """Once is no harm; for good, it ends like one that does not answer."""
    instance.put_config()
    instance.publish()
    stranger = Answer(200, headers={"Content-Type": "text/html"})
    instance.imds.faults.plan("imds:token", stranger, times=1)
    instance.imds.faults.plan("imds:instance-id", stranger, times=1)
    assert_one_end(instance.run(), "success")


def test_metadata_endpoint_that_is_none(instance: Instance) -> None:
    """It is a fault of the settings; the last resort is taken, where it is armed."""
    called = stand_in(instance.folder / "bin", "systemctl")
    variables = {
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://[::1",
        "RUNS_FLEET_POWEROFF": "1",
        "PATH": f"{called.parent}:{safe_path(instance.folder)}",
    }
    ended = instance.run(variables=variables)
    assert ended.status == 78
    assert "RUNS_FLEET_INSTANCE_ID: not set" in ended.stderr
    assert called.read_text().endswith("systemctl poweroff\n")


def test_sigterm_while_the_metadata_service_trickles(instance: Instance) -> None:
    """It is obeyed before the agent knows who it is."""
    instance.imds.faults.plan("imds:*", Slow(2))
    running = instance.start()
    instance.imds.wait_for("imds:token")
    running.send(signal.SIGTERM)
    ended = running.end()
    assert "stop: interrupted by SIGTERM" in ended.stderr
    assert ended.status == 78


@pytest.mark.parametrize("match", ["ec2:TerminateInstances", "sqs:SendMessage"])
def test_one_answer_that_trickles(instance: Instance, match: str) -> None:
    """It does not hold up the next try."""
    instance.put_config()
    instance.publish()
    instance.aws.faults.plan(match, Slow(3), times=1)
    ended = instance.run()
    assert_one_end(ended, "success")
    assert ended.status == 0


def test_credentials_that_trickle(instance: Instance) -> None:
    """One look that does not end is not the last one."""
    instance.put_config()
    instance.publish()
    instance.imds.faults.plan("imds:security-credentials", Slow(2), times=1)
    assert_one_end(instance.run(), "success")


def test_endpoint_of_a_service_that_is_not_needed(instance: Instance) -> None:
    """The job runs without the cache."""
    instance.put_config()
    instance.publish()
    ended = instance.run(variables={"AWS_ENDPOINT_URL_S3": "garbage"})
    assert_one_end(ended, "success")
    assert "GitHub is asked" in ended.stderr


def test_proxy_that_everything_goes_through(instance: Instance) -> None:
    """The instance's credentials do not: a proxy would answer for its own host."""
    instance.put_config()
    instance.publish()
    ended = instance.run(variables={"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"})
    assert_one_end(ended, "success")


def test_password_of_a_url(instance: Instance) -> None:
    """It comes out nowhere."""
    instance.put_config()
    instance.github.faults.plan("github:*", Answer(503))
    url = instance.github.api_url.replace("http://", "http://user:planted-password@")
    ended = instance.run(variables={"RUNS_FLEET_GITHUB_API_URL": url})
    final = assert_one_end(ended, "failure", started=False)
    journal = (instance.state_dir / "journal.json").read_text()
    for text in (ended.stderr, json.dumps(final), journal, *ended.log):
        assert "planted-password" not in text


# What comes out


def test_20_000_odd_lines_and_an_outage(instance: Instance) -> None:
    """Invalid UTF-8, a line of 5 MB, and a sink that is away meanwhile: all arrives, in order."""
    odd_lines = "sys.stdout.buffer.writelines(b'%d \\xff\\xfe \\xe2\\x82 odd\\n' % n for n in range({}, {}))"
    first, second = odd_lines.format(0, 10_000), odd_lines.format(10_000, 20_000)
    long_line = "print('x' * 5_000_000)"
    away = instance.folder / "away"
    job = f"while ! test -e {away}; do sleep 0.05; done\n"
    job += "".join(f'python3 -c "import sys; {code}"\n' for code in (first, long_line))
    job += f'{instance.until_go}python3 -c "import sys; {second}"\n'
    instance.put_config()
    instance.publish(job=job)
    running = instance.start()
    running.wait_for("phase running")
    instance.aws.faults.plan("logs:PutLogEvents", Answer(503))
    away.touch()
    running.wait_for("the log sink does not answer")
    instance.aws.faults.heal()
    instance.go()
    ended = running.end()
    final = assert_one_end(ended, "success")
    assert (final["log_lines_dropped"], final["log_lines_rejected"]) == (0, 0)
    # What the runner itself prints; the sample prints what its steps do as well.
    printed = [line for line in ended.log if not line.startswith(("runs-fleet-agent:", "[step "))]
    odd = [line for line in printed if line.endswith(" odd")]
    assert odd == [f"{n} \\xff\\xfe \\xe2\\x82 odd" for n in range(20_000)]
    long = [line for line in printed if line.startswith("xxx")]
    assert "".join(long) == "x" * 5_000_000
    where = printed.index(long[0])
    assert printed[where - 1].startswith("9999 ")
    assert printed[where + len(long)].startswith("10000 ")


SECRETS = {
    "token": "JITC_planted-registration-token",
    "cache token": "planted-cache-token-0123456789",
    "role's key": "planted-secret-access-key-0123456789",
    "role's token": "planted-session-token-0123456789",
}


def test_no_secret_comes_out(instance: Instance) -> None:
    """Planted everywhere, searched for in all that came out: streams, messages, files, argument lists."""
    jit = jit_config(name="planted-jit-config")
    instance.put_config(jit_token=SECRETS["token"], jit_config=jit, cache_token=SECRETS["cache token"])
    # Every process's argument list and the job's own environment, as the job sees them.
    spy = "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'\nenv | sed 's/^/of the job: /'\n"
    instance.publish(job=spy, scenario={"reject_jit": True})
    variables = {
        "AWS_ACCESS_KEY_ID": "AKIAPLANTED",
        "AWS_SECRET_ACCESS_KEY": SECRETS["role's key"],
        "AWS_SESSION_TOKEN": SECRETS["role's token"],
        "AWS_REGION": "eu-west-1",
    }
    instance.aws.faults.plan("sqs:SendMessage", denied("sqs"), times=1)
    ended = instance.run("--json", variables=variables)
    assert ended.final["status"] == "success", ended.stderr
    kept = [path.read_text("utf-8", "replace") for path in instance.folder.rglob("*") if is_kept(path)]
    came_out = [ended.stdout, ended.stderr, *ended.log, json.dumps(ended.messages), *kept]
    for name, secret in {**SECRETS, "JIT config": jit}.items():
        assert not [text for text in came_out if secret in text], name
    # Others' argument lists may have variables too: those of tests that run beside this one.
    own = [line.removeprefix("of the job: ") for line in ended.log if line.startswith("of the job: ")]
    environment = {line.partition("=")[0] for line in own}
    assert "GITHUB_ACTIONS" in environment
    assert not [name for name in environment if name.startswith(("AWS_", "RUNS_FLEET_"))]


@pytest.mark.parametrize(
    "changes",
    [
        {"org": 5},
        {"jit_token": [SECRETS["token"]]},
        {"jit_token": f"{SECRETS['token']}\n"},
        {"created_at": "2025-11-25T10:00:00Z"},
        {"cache_token": {"value": SECRETS["cache token"]}},
    ],
)
def test_no_secret_in_errors(instance: Instance, changes: Mapping[str, object]) -> None:
    """Whatever is wrong with a config, what it holds is not shown."""
    planted = {"jit_token": SECRETS["token"], "cache_token": SECRETS["cache token"]}
    instance.put_config(**planted | dict(changes))
    ended = instance.run()
    assert ended.status in {69, 78}
    kept = [path.read_text("utf-8", "replace") for path in instance.state_dir.rglob("*") if path.is_file()]
    for text in (ended.stdout, ended.stderr, *ended.log, json.dumps(ended.messages), *kept):
        assert not [secret for secret in SECRETS.values() if secret in text]


def is_kept(path: Path) -> bool:
    """The files that the agent has left, and not what the test made."""
    return path.is_file() and not path.is_symlink() and "archives" not in path.parts


def test_group_is_as_the_log_says(instance: Instance) -> None:
    """The stream is named for instance and job, in the group of the settings."""
    instance.put_config()
    instance.publish()
    instance.run()
    streams = instance.aws.client("logs").describe_log_streams(logGroupName=GROUP)["logStreams"]
    assert f"{instance.instance_id}/{JOB_ID}" in [stream["logStreamName"] for stream in streams]
    assert os.path.lexists(instance.state_dir / "journal.json")

"""The installed wheel in profile `local`: whole lives, through real processes and real files."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sample_runner.build import jit_config

from support.github import GitHub
from support.local import Ended, Local
from support.wheel import COMMAND, JOB_ID, TIMEOUT_SECONDS, TOKEN, processes_of

LONG_JOB = "echo begun\nexec sleep 1000\n"


def assert_one_end(ended: Ended, status: str, *, started: bool = True) -> dict[str, Any]:
    """One final message, of that status, and one termination; the message."""
    assert ended.statuses == (["started", status] if started else [status]), ended.stderr
    assert [request["instance_id"] for request in ended.terminations] == ["local"]
    assert len({message["message_id"] for message in ended.messages}) == len(ended.messages)
    assert all(message["job_id"] == JOB_ID for message in ended.messages)
    for name in ("exit_code", "duration_seconds"):
        assert type(ended.final.get(name, 0)) is int
    return ended.final


def test_success(local: Local) -> None:
    """A job runs from config to final message, and leaves its output in the log."""
    ended = local.run(job="for n in 1 2 3; do echo line $n; done\n")
    final = assert_one_end(ended, "success")
    assert ended.status == 0
    assert (final["exit_code"], final["job_result"], final["job_ran"]) == (0, "succeeded", True)
    assert final["log_lines_dropped"] == 0
    assert [line for line in ended.log if line.startswith("line ")] == ["line 1", "line 2", "line 3"]
    assert not (local.state_dir / "runner").exists()


def test_runner_from_github(local: Local, github: GitHub) -> None:
    """Without an archive, GitHub has it: the latest, verified."""
    ended = local.run(github=github)
    final = assert_one_end(ended, "success")
    assert final["runner_version"] == "2.336.0"
    assert "hello from the job" in ended.log


def test_runner_from_github_into_a_folder_in_use(local: Local, github: GitHub) -> None:
    """Somebody's own runner is neither used nor replaced."""
    folder = local.folder / "mine"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "Runner.Listener").write_text("mine")
    ended = local.run("--runner-dir", str(folder), github=github)
    assert "not empty" in assert_one_end(ended, "failure", started=False)["error"]
    assert (folder / "bin" / "Runner.Listener").read_text() == "mine"


def test_failed_job(local: Local) -> None:
    """A red job is a failure, and the agent's own exit status is still 0."""
    ended = local.run(job="exit 3\n")
    final = assert_one_end(ended, "failure")
    assert ended.status == 0
    assert (final["exit_code"], final["job_result"], final["runner_exit_code"]) == (1, "failed", 102)


def test_reflected_job_and_json(local: Local) -> None:
    """`--reflect-job` makes a red job exit status 1; `--json` ends stdout with the final message."""
    ended = local.run("--reflect-job", "--json", job="exit 3\n")
    assert ended.status == 1
    assert json.loads(ended.stdout.splitlines()[-1]) == ended.final


@pytest.mark.parametrize("result", ["SucceededWithIssues", "Skipped", "Canceled", "Abandoned"])
def test_other_results(local: Local, result: str) -> None:
    """What the runner says of its job is what is reported."""
    ended = local.run(scenario={"result": result})
    assert_one_end(ended, "success" if result in {"SucceededWithIssues", "Skipped"} else "failure")


def test_jit_config_instead_of_token(local: Local) -> None:
    """A just-in-time config needs no registration."""
    local.config |= {"jit_token": None, "jit_config": jit_config(name="jit-runner")}
    assert_one_end(local.run(), "success")


def test_refused_jit_config_falls_back_to_token(local: Local) -> None:
    """Where the runner refuses the just-in-time config and a token is there, the token is tried."""
    local.config["jit_config"] = jit_config(name="jit-runner")
    assert_one_end(local.run(scenario={"reject_jit": True}), "success")


# Limits


def test_max_runtime(local: Local) -> None:
    """A job that exceeds its config's max runtime is stopped, and reported as a timeout."""
    local.config["max_runtime_minutes"] = 1
    final = assert_one_end(local.run(job=LONG_JOB), "timeout")
    assert final["stop_reason"] == "max_runtime"
    assert 60 <= final["duration_seconds"] < 120


def test_idle_runner(local: Local) -> None:
    """A runner that gets no job is stopped."""
    ended = local.run("--idle-minutes", "0.01", scenario={"never_assign": True})
    final = assert_one_end(ended, "failure", started=False)
    assert (final["stop_reason"], final["job_ran"]) == ("idle", False)
    assert ended.status == 0


def test_disk_floor(local: Local) -> None:
    """Less free disk space than the floor ends the life, and the message says why."""
    ended = local.run("--min-free-disk-mb", "99999999", job=LONG_JOB)
    final = assert_one_end(ended, "failure", started=False)
    assert final["stop_reason"] == "disk_floor"
    assert "99999999 MB" in final["error"]


def test_memory_floor_only_warns(local: Local) -> None:
    """Less available memory than the floor is a warning, once, and no stop."""
    ended = local.run("--min-free-memory-mb", "99999999")
    assert_one_end(ended, "success")
    assert ended.stderr.count("memory is low") == 1


# Interruptions


def test_sigterm_in_the_middle(local: Local) -> None:
    """SIGTERM stops the runner in order: it says goodbye to GitHub, and the job is canceled."""
    running = local.start(job=LONG_JOB)
    running.wait_for("begun", "sent the message started")
    running.send(signal.SIGTERM)
    ended = running.end()
    final = assert_one_end(ended, "interrupted")
    assert (ended.status, final["interrupted_by"], final["job_result"]) == (0, "SIGTERM", "canceled")
    assert any("completed with result: Canceled" in line for line in ended.log)


@pytest.mark.parametrize(
    "phase", ["booting", "configuring", "provisioning", "registering", "listening", "running"]
)
def test_sigterm_in_each_phase(local: Local, phase: str) -> None:
    """There is no phase in which SIGTERM goes unheard, or unreported."""
    running = local.start(job=LONG_JOB)
    running.wait_for(f"phase {phase}")
    running.send(signal.SIGTERM)
    ended = running.end()
    assert ended.status == 0
    assert_one_end(ended, "interrupted", started="started" in ended.statuses)


def test_sigterm_while_importing(local: Local) -> None:
    """SIGTERM before the agent is even imported is kept, and obeyed."""
    program = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'agent_app.cli':\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Finder)\n"
        "from agent_app.entry import main\n"
        "sys.argv[0:2] = ['runs-fleet-agent']\n"
        "main()\n"
    )
    ended = local.run(job=LONG_JOB, wrapper=(sys.executable, "-c", program))
    final = assert_one_end(ended, "interrupted", started=False)
    assert (ended.status, final["interrupted_by"]) == (0, "SIGTERM")


def test_sigterm_while_waiting_for_a_config(local: Local) -> None:
    """Where there is no config there is no job to report, and the instance goes all the same."""
    running = local.start("--job", str(local.folder / "not-yet.json"))
    running.wait_for("no config yet")
    running.send(signal.SIGTERM)
    ended = running.end()
    assert (ended.messages, len(ended.terminations)) == ([], 1)


def test_runner_that_ignores_sigint(local: Local) -> None:
    """When the grace is over, a runner that does not stop is killed, with all its descendants."""
    running = local.start("--shutdown-grace-seconds", "2", job=LONG_JOB, scenario={"ignore_sigint": True})
    running.wait_for("begun", "sent the message started")
    running.send(signal.SIGTERM)
    ended = running.end()
    final = assert_one_end(ended, "interrupted")
    assert final["exit_code"] == 137
    assert "killed" in ended.stderr


def test_more_signals_do_not_break_the_first_ones_work(local: Local) -> None:
    """A second and a third signal change nothing."""
    running = local.start(job=LONG_JOB, scenario={"cancel_seconds": 1})
    running.wait_for("begun", "sent the message started")
    running.send(signal.SIGTERM)
    running.wait_for("stop: ")  # of two that wait for it, a process gets the one with the lower number first
    for number in (signal.SIGTERM, signal.SIGINT):
        running.send(number)
    final = assert_one_end(running.end(), "interrupted")
    assert (final["interrupted_by"], final["job_result"]) == ("SIGTERM", "canceled")


# Faults of config, runner and archive


def test_wrong_digest_is_never_executed(local: Local) -> None:
    """An archive whose digest is not the pinned one leaves nothing behind, and nothing of it runs."""
    marker = local.folder / "executed"
    local.config |= {"runner_version": "2.336.0", "runner_sha256": "0" * 64}
    ended = local.run(job=f"touch {marker}\n")
    final = assert_one_end(ended, "failure", started=False)
    assert final["error_phase"] == "provisioning"
    assert "0" * 64 in final["error"]
    assert not marker.exists()
    assert [path.name for path in local.state_dir.iterdir() if "runner" in path.name] == []


def test_unreadable_config(local: Local) -> None:
    """A config with faults names all of them at once, runs nothing, and the instance goes."""
    local.config = {"org": "a b", "labels": [], "jit_token": TOKEN, "max_runtime_minutes": "5"}
    ended = local.run()
    assert (ended.status, ended.messages, len(ended.terminations)) == (78, [], 1)
    for path in ("config.org", "config.repo", "config.labels", "config.max_runtime_minutes"):
        assert path in ended.stderr
    assert TOKEN not in ended.stderr


def test_bad_settings(local: Local) -> None:
    """Settings with faults name all of them at once, also to the queue; nothing runs, the instance goes."""
    ended = local.run("--max-runtime", "123abc", "--idle-minutes", "-5")
    (message,) = ended.messages
    assert (ended.status, message["status"], len(ended.terminations)) == (78, "failure", 1)
    assert "--idle-minutes: '-5'" in message["error"]
    assert "--max-runtime: '123abc' is not a whole number of minutes, 1 or more" in ended.stderr
    assert "--idle-minutes: '-5'" in ended.stderr


def test_no_config_before_the_standby_deadline(local: Local) -> None:
    """A config that does not come ends the wait, with a status of its own."""
    ended = local.run("--job", str(local.folder / "never.json"), "--standby-minutes", "0.01")
    assert (ended.status, ended.messages, len(ended.terminations)) == (75, [], 1)


def test_expired_token(local: Local) -> None:
    """A token older than GitHub takes is reported as such, without trying it."""
    local.config["created_at"] = "2020-01-01T00:00:00Z"
    ended = local.run()
    final = assert_one_end(ended, "failure", started=False)
    assert (ended.status, final["error_phase"]) == (69, "configuring")


def test_refused_registration(local: Local) -> None:
    """The message has the runner's own words."""
    ended = local.run(scenario={"refuse_registration": "not_found"})
    final = assert_one_end(ended, "failure", started=False)
    assert (ended.status, final["error_phase"]) == (69, "registering")
    assert "NotFound" in final["error"]


@pytest.mark.parametrize(("crash", "exit_code"), [({"signal": 9}, 137), ({"code": 134}, 134)])
def test_crash_of_the_runner(local: Local, crash: dict[str, int], exit_code: int) -> None:
    """A runner that dies in its job is a failure, and its worker and steps do not outlive it."""
    ended = local.run(job=LONG_JOB, scenario={"crash_mid_job": crash})
    final = assert_one_end(ended, "failure")
    assert (final["exit_code"], final["job_ran"]) == (exit_code, True)
    assert "job_result" not in final


def test_exit_without_a_job(local: Local) -> None:
    """Exit code 0 is no success where no job ran."""
    final = assert_one_end(local.run(scenario={"exit_codes": [0]}), "failure", started=False)
    assert (final["exit_code"], final["job_ran"]) == (0, False)


def test_lost_job(local: Local) -> None:
    """A job that began and has no result is a failure."""
    assert_one_end(local.run(scenario={"lost_job": True}), "failure")


def test_restart_codes(local: Local) -> None:
    """A runner that asks to be started again is."""
    ended = local.run(scenario={"exit_codes": [2]})
    assert_one_end(ended, "success")
    assert "started again" in ended.stderr


def test_daemons_of_a_job_go_with_it(local: Local) -> None:
    """What a job leaves behind in a session of its own is gone when the agent is."""
    job = "setsid nohup sleep 1000 &\nsetsid env -i sh -c 'cd /; sleep 999.125' &\necho left them\n"
    ended = local.run(job=job, scenario={"clean_orphans": False})
    assert_one_end(ended, "success")
    assert "left them" in ended.log
    assert processes_of(Path("999.125")) == []


def test_hostile_output(local: Local) -> None:
    """Odd bytes are made visible, long lines split, nothing is cut, and order is kept."""
    job = (
        "printf 'bad \\377 byte\\n'\nprintf '%0100000d\\n' 7\n"
        "seq 1 5000\n"
        "printf '2026-01-01 00:00:00Z: Job x completed with result: Failed\\n'\n"
    )
    ended = local.run(job=job, scenario={"job_name": "x completed with result: Failed"})
    assert_one_end(ended, "success")
    assert "bad \\xff byte" in ended.log
    assert [line for line in ended.log if line.isdecimal() and len(line) < 6] == [
        str(n) for n in range(1, 5001)
    ]
    assert "0" * 60_000 in "".join(ended.log)


# More than one life


def test_job_does_not_run_twice(local: Local) -> None:
    """A second life with the same job runs nothing, and says nothing about the first one's job."""
    first = local.run()
    ended = local.run()
    assert ended.status == 78
    assert ended.messages == first.messages
    assert "has already run" in ended.stderr


def test_second_agent_leaves_the_first_alone(local: Local) -> None:
    """An agent that finds another one alive does nothing, and terminates nothing."""
    running = local.start(job=LONG_JOB)
    running.wait_for("begun", "sent the message started")
    second = local.start()
    second.process.communicate(timeout=TIMEOUT_SECONDS)
    assert second.process.returncode == 64
    running.send(signal.SIGTERM)
    assert_one_end(running.end(), "interrupted")


@pytest.mark.parametrize("command", ["reap", "run"])
def test_successor_ends_what_a_killed_agent_left(local: Local, command: str) -> None:
    """After SIGKILL, a successor kills the runner, reports, terminates; a second one has nothing to do."""
    running = local.start(job=LONG_JOB)
    running.wait_for("begun", "sent the message started")
    running.send(signal.SIGKILL)
    running.process.communicate(timeout=TIMEOUT_SECONDS)
    assert processes_of(local.state_dir), "the runner lives on: that is what there is to end"
    # What the journal has may be behind.
    phase = json.loads((local.state_dir / "journal.json").read_text())["phase"]
    assert phase in {"listening", "running"}
    ended = local.run(command=command)
    final = assert_one_end(ended, "failure")
    assert f"died in phase {phase}" in final["error"]
    again = local.run(command="reap")
    assert (again.status, again.messages, len(again.terminations)) == (0, ended.messages, 1)


# What comes out


def test_no_secret_comes_out(local: Local) -> None:
    """The token is in no file, no output, and no environment of a step."""
    ended = local.run("--json", job="env\ncat /proc/$PPID/cmdline | tr '\\0' ' '\n")
    assert_one_end(ended, "success")
    files = [path.read_text("utf-8", "replace") for path in local.state_dir.rglob("*") if path.is_file()]
    for text in (*files, ended.stdout, ended.stderr):
        assert TOKEN not in text
    assert any(line.startswith("GITHUB_ACTIONS=") for line in ended.log)
    assert not any(line.startswith(("RUNS_FLEET", "AWS_")) for line in ended.log)


def test_closed_stderr(local: Local) -> None:
    """An agent that cannot say a word still does its work."""
    running = local.start(job="echo quiet\n")
    assert running.process.stderr is not None
    running.process.stderr.close()
    running.process.stderr = None
    assert_one_end(running.end(), "success")


def test_journal_is_private(local: Local) -> None:
    """The journal is readable by its owner only, and holds no secret."""
    local.run()
    journal = local.state_dir / "journal.json"
    assert journal.stat().st_mode & 0o777 == 0o600
    assert json.loads(journal.read_text())["phase"] == "terminated"


@pytest.mark.parametrize("arguments", [[], ["fly"], ["run", "--no-such-flag"], ["run", "--profile"]])
def test_usage_errors(arguments: list[str]) -> None:
    """A command line that makes no sense ends with 64, before anything is done."""
    ended = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 64
    assert "usage: runs-fleet-agent" in ended.stderr


def test_stderr_that_nobody_reads(local: Local) -> None:
    """An agent whose stderr is stuck still reads its runner to the end, and ends itself."""
    running = local.start(job="seq 1 60000\n")
    running.process.wait(timeout=TIMEOUT_SECONDS)
    ended = running.end()
    assert_one_end(ended, "success")
    assert [line for line in ended.log if line.isdecimal()] == [str(n) for n in range(1, 60_001)]


def test_full_stdout_and_stderr(local: Local) -> None:
    """Where nothing can be written to stdout and stderr, only that fails."""
    ended = local.run("--json", wrapper=("sh", "-c", 'exec "$@" >/dev/full 2>/dev/full', "sh"))
    assert_one_end(ended, "success")


# What hostile users found


def test_root_in_use_is_nobodys_to_kill(local: Local) -> None:
    """A runner root that is somebody's folder is refused, and what runs from it lives on."""
    folder = local.folder / "in use"
    folder.mkdir()
    (folder / "serve.sh").write_text("echo up; exec sleep 1000\n")
    bystander = subprocess.Popen(["bash", str(folder / "serve.sh")], cwd=folder, stdout=subprocess.PIPE)
    assert bystander.stdout is not None
    assert bystander.stdout.read(2) == b"up"
    ended = local.run("--runner-dir", str(folder))
    assert_one_end(ended, "failure", started=False)
    assert bystander.poll() is None
    assert (folder / "serve.sh").exists()
    bystander.kill()
    bystander.communicate()


@pytest.mark.parametrize("closing", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors(local: Local, closing: str) -> None:
    """No file of the agent's passes for its stderr."""
    ended = local.run(wrapper=("sh", "-c", f'exec "$@" {closing}', "sh"))
    assert (ended.status, assert_one_end(ended, "success")["exit_code"]) == (0, 0)


def test_reap_needs_no_job_and_hears_no_signal(local: Local) -> None:
    """A successor works with what the journal says, whatever is wrong with settings, and is not stopped."""
    running = local.start(job=LONG_JOB)
    running.wait_for("begun", "sent the message started")
    running.send(signal.SIGKILL)
    running.process.communicate(timeout=TIMEOUT_SECONDS)
    command = [str(COMMAND), "reap", "--profile", "local", "--max-runtime", "abc"]
    command += ["--state-dir", str(local.state_dir)]
    reaping = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert reaping.stderr is not None
    reaping.stderr.readline()
    reaping.send_signal(signal.SIGTERM)
    _, stderr = reaping.communicate(timeout=TIMEOUT_SECONDS)
    assert reaping.returncode == 0, stderr
    assert processes_of(local.state_dir) == []
    assert Ended(0, "", stderr, local.state_dir).statuses == ["started", "failure"]


def test_relative_state_folder(local: Local) -> None:
    """A path with dots in it loses no line."""
    (local.folder / "here").mkdir()
    relative = os.path.relpath(local.state_dir, Path.cwd())
    ended = local.run("--state-dir", f"{relative}/../state")
    assert assert_one_end(ended, "success")["log_lines_dropped"] == 0
    assert "hello from the job" in ended.log


def test_orphans_are_buried_while_the_job_runs(local: Local) -> None:
    """A job with many short-lived orphans does not fill the process table with zombies."""
    job = (
        "for n in $(seq 50); do (true &); done; wait\n"
        "dead() { ps -o stat= --ppid $(ps -o ppid= $(ps -o ppid= $PPID)) | grep -c Z; }\n"
        "for n in $(seq 600); do test $(dead) -gt 0 || exit 0; sleep 0.1; done; exit 1\n"
    )
    assert_one_end(local.run(job=job), "success")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_signals_that_were_ignored_stay_ignored(local: Local, number: signal.Signals) -> None:
    """Under nohup, a hangup is no interruption."""
    name = number.name.removeprefix("SIG")
    job = "echo begun\nwhile ! test -e go; do sleep 0.05; done\n"
    running = local.start(job=job, wrapper=("sh", "-c", f'trap "" {name}; exec "$@"', "sh"))
    running.wait_for("begun", "sent the message started")
    running.send(number)
    (local.state_dir / "runner" / "_work" / "my-repo" / "my-repo" / "go").touch()
    assert_one_end(running.end(), "success")


def test_ignored_sigchld_loses_no_exit_code(local: Local) -> None:
    """What was ignored by whoever started the agent does not make a failure a success."""
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    ended = local.run(scenario={"exit_codes": [7]}, wrapper=(sys.executable, "-c", program))
    assert assert_one_end(ended, "failure", started=False)["exit_code"] == 7


def test_secret_that_the_runner_prints_is_masked(local: Local) -> None:
    """The agent knows what it handed out, and lets none of it through."""
    archive = local.archive("true\n", {})
    folder = local.folder / "spoiled"
    folder.mkdir()
    subprocess.run(["tar", "-xzf", archive, "-C", folder], check=True)
    (folder / "config.sh").write_text('#!/bin/sh\necho "bad $ACTIONS_RUNNER_INPUT_TOKEN"\nexit 1\n')
    spoiled = local.folder / "spoiled.tar.gz"
    subprocess.run(["tar", "-czf", spoiled, "-C", folder, "."], check=True)
    ended = local.run("--runner-archive", str(spoiled))
    assert "bad ***" in assert_one_end(ended, "failure", started=False)["error"]
    files = [path.read_text("utf-8", "replace") for path in local.state_dir.rglob("*") if path.is_file()]
    assert not any(TOKEN in text for text in (*files, ended.stderr))


def test_two_agents_at_once(local: Local) -> None:
    """Of two that start together one does the job, and the other does nothing."""
    first, second = local.start(), local.start()
    for running in (first, second):
        running.process.wait(timeout=TIMEOUT_SECONDS)
    ended = first.end()
    assert sorted(running.process.returncode for running in (first, second)) == [0, 64]
    assert_one_end(ended, "success")
    second.end()

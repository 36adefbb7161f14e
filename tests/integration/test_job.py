"""What a job may see and do, and how it is stopped: the installed wheel, in both profiles."""

import gzip
import os
import pwd
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any, Final

import pytest
from attrs import frozen
from sample_runner.build import jit_config

from support.faults import Answer, Fault, Hang, denied, wall_clock
from support.instance import GROUP, Instance
from support.instance import Ended as CloudEnded
from support.local import Ended, Local, local_machine
from support.users import NOBODY, OTHER_GROUP, needs_root, open_folder
from support.wheel import COMMAND, JOB_ID, TOKEN, processes_of

LONG_JOB: Final = "echo begun\nexec sleep 1000\n"
JIT_CONFIG: Final = jit_config(name="planted-jit-config")
LAYOUTS: Final = pytest.mark.parametrize("scripts_only", [False, True], ids=["Listener", "scripts"])
CREDENTIALS: Final = pytest.mark.parametrize(
    "credential",
    [{"jit_token": TOKEN}, {"jit_token": None, "jit_config": JIT_CONFIG}],
    ids=["token", "JIT config"],
)
RUNNER_IS_ROOT: Final = os.geteuid() == 0 and "runner" not in {entry.pw_name for entry in pwd.getpwall()}
"""Where nobody says what it is to be."""
UNCLEAN: Final = "the runner's root is not clean"


def assert_end(ended: Ended | CloudEnded, *statuses: str) -> dict[str, Any]:
    """Those messages were sent, and the instance was asked to go, once; the last message."""
    assert ended.statuses == list(statuses), ended.stderr
    if isinstance(ended, Ended):
        assert len(ended.terminations) == 1
    else:
        assert ended.state in {"shutting-down", "terminated"}
    return ended.final


def until(path: Path) -> str:
    """A part of a job that lasts until somebody makes the file."""
    return f"until test -e {path}; do sleep 0.05; done\n"


@pytest.fixture
def open_local() -> Iterator[Local]:
    """A machine in a folder that every user may enter."""
    with open_folder() as folder, local_machine(folder) as machine:
        yield machine


# How it is stopped


@LAYOUTS
@pytest.mark.parametrize(
    "more", [None, signal.SIGTERM, signal.SIGINT], ids=["asked once", "SIGTERM again", "SIGINT too"]
)
def test_runner_says_goodbye(local: Local, more: signal.Signals | None, *, scripts_only: bool) -> None:
    """However often the agent is asked to stop, it asks the runner once, and waits for it."""
    local.config["runner_logs_bucket"] = "runner-logs-of-the-fleet"
    # The job is cancelled when `go` is there, and not before.
    job, scenario = f"trap '' INT TERM\necho begun\n{until(local.folder / 'go')}", {"step_sigint_seconds": 80}
    wrapper = ("env", "--default-signal=INT")
    running = local.start(job=job, scenario=scenario, scripts_only=scripts_only, wrapper=wrapper)
    running.wait_for("begun", "sent the message started")
    running.send(signal.SIGTERM)
    running.wait_for("Exiting...")
    if more is not None:
        running.send(more)
        running.wait_for(f"stop: interrupted by {more.name} (ending already)")
    (local.folder / "go").touch()
    ended = running.end()
    final = assert_end(ended, "started", "interrupted")
    assert (final["interrupted_by"], final["job_result"]) == ("SIGTERM", "canceled")
    assert (final["log_upload"], ended.log.count("Exiting...")) == ("uploaded", 1)
    folder = local.state_dir / "buckets/runner-logs-of-the-fleet/runner-logs/unknown-run" / JOB_ID / "local"
    logs = [gzip.decompress(path.read_bytes()).decode() for path in folder.glob("Runner_*.log.gz")]
    assert "Deleting Runner Session..." in "".join(logs)


def test_spot_notice_that_is_near(instance: Instance) -> None:
    """A runner that does not stop, and services that hang, leave time for the messages and the end."""
    instance.put_config(runner_logs_bucket=instance.aws.bucket())
    instance.publish(LONG_JOB, {"ignore_sigint": True, "cancel_seconds": 1000})
    running = instance.start(variables={"RUNS_FLEET_CONFIG_BUCKET": ""})
    running.wait_for("begun", "sent the message started")
    for match in ("logs:*", "s3:*"):
        instance.aws.faults.plan(match, Hang())
    deadline = wall_clock().replace(microsecond=0) + timedelta(seconds=60)
    instance.imds.spot_notice(deadline)
    # The agent leaves 15 s; a machine that is busy may use them up.
    latest = monotonic() + (deadline - wall_clock()).total_seconds()
    ended = running.end()
    final = assert_end(ended, "started", "interrupted")
    assert (final["stop_reason"], final["interrupted_by"]) == ("interrupted", "spot")
    assert datetime.fromisoformat(final["interruption_deadline"]) == deadline
    assert datetime.fromisoformat(final["completed_at"]) <= deadline
    for operation in ("sqs:SendMessage", "ec2:TerminateInstances"):
        assert instance.aws.wait_for(operation, status=200)[-1].at <= latest, operation


def test_a_storm_of_orphans_drowns_no_signal(local: Local) -> None:
    """However many of the job's processes lose their parents and die, the agent hears that it is to stop."""
    storm = "for n in {1..1500}; do (true & true &); done\n"
    job = f"for each in 1 2 3; do (while :; do {storm} done) & done\n{storm}echo stormy\nexec sleep 1000\n"
    running = local.start("--shutdown-grace-seconds", "2", job=job)
    running.wait_for("stormy", "sent the message started")
    running.send(signal.SIGTERM)
    ended = running.end()
    assert assert_end(ended, "started", "interrupted")["interrupted_by"] == "SIGTERM"
    assert "Traceback" not in ended.stderr


@LAYOUTS
@pytest.mark.parametrize("is_stopped", [False, True], ids=["to its end", "stopped"])
def test_daemons_of_a_job(local: Local, *, is_stopped: bool, scripts_only: bool) -> None:
    """What a job leaves behind is killed, and counted: deaf to hangups; without parent, mark and folder."""
    nap = f"1000.{abs(hash(local.folder))}"  # nobody else's
    job = (
        f"setsid nohup sleep {nap} > {os.devnull} 2>&1 &\n"
        f"env -i setsid sh -c 'cd /; sleep {nap} &' > {os.devnull} 2>&1\n"
        f'until test "$(pgrep -xfc "sleep {nap}")" = 2; do sleep 0.05; done\n'
        f"echo begun\n{until(local.folder / 'go')}"
    )
    scenario = {"clean_orphans": False, "step_sigint_seconds": 0}
    running = local.start(job=job, scenario=scenario, scripts_only=scripts_only)
    running.wait_for("begun")
    assert len(processes_of(Path(nap))) == 2
    if is_stopped:
        running.send(signal.SIGTERM)
    else:
        (local.folder / "go").touch()
    ended = running.end()
    assert_end(ended, "started", "interrupted" if is_stopped else "success")
    assert processes_of(Path(nap)) == []
    assert "runs-fleet-agent: killed 2 processes that the runner left behind" in ended.log


# What it may read


PLANTED: Final = {
    "AWS_SECRET_ACCESS_KEY": "planted-secret-access-key",
    "RUNS_FLEET_LOG_GROUP": "planted-log-group",
    "PLANTED_OTHER": "planted-other-variable",
}


@frozen
class Users:
    """Whose the agent is, and whose its runner."""

    flags: tuple[str, ...] = ()
    wrapper: tuple[str, ...] = ()
    are_apart: bool = True
    """The runner's user is not root, so that the agent is closed to it."""
    may_read_files: bool = False
    """The agent's files are also the runner's user's."""


def privileges(*options: str) -> tuple[str, ...]:
    """What to start the agent with, so that it has these; skips the test where that cannot be done."""
    if shutil.which("setpriv") is None:
        pytest.skip("there is no setpriv")
    return ("setpriv", *options)


def becoming_nobody(folder: Path) -> tuple[str, ...]:
    """What to start the agent with, so that it is nobody, and the folder its own."""
    wrapper = privileges(f"--reuid={NOBODY.uid}", f"--regid={NOBODY.gid}", "--clear-groups")
    if subprocess.run([*wrapper, COMMAND, "--version"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"user {NOBODY.name} may not run {COMMAND}")
    os.chown(folder, NOBODY.uid, NOBODY.gid)
    return wrapper


@pytest.fixture(
    params=["default", *(pytest.param(which, marks=needs_root) for which in ("runner", "agent"))],
    ids=["default user", "another user for the runner", "another user for both"],
)
def users(request: pytest.FixtureRequest, open_local: Local) -> Users:
    match request.param:
        case "runner":
            return Users(flags=("--runner-user", NOBODY.name))
        case "agent":
            return Users(wrapper=becoming_nobody(open_local.folder), may_read_files=True)
        case _:
            return Users(are_apart=not RUNNER_IS_ROOT, may_read_files=True)


def spy(local: Local, loot: Path) -> str:
    """A job that keeps all that it can read: of itself and each process up to the agent, and its files."""
    return f"""
        {until(local.folder / "agent")}
        read -r agent < {local.folder}/agent
        cd {loot}
        keep() {{ cat "$1" > "$2" 2> {os.devnull} || rm "$2"; }}
        env -0 > own.variables
        pid=$$
        while test "$pid" -gt 0; do
            keep /proc/$pid/environ $pid.environ
            keep /proc/$pid/cmdline $pid.cmdline
            {{ : < /proc/$pid/mem; }} 2> {os.devnull} && touch $pid.mem
            ls /proc/$pid/fd > $pid.fd 2> {os.devnull} || rm $pid.fd
            test "$pid" = "$agent" && break
            pid=$(sed -n 's/^PPid:\t//p' /proc/$pid/status)
        done
        for each in {local.state_dir}/*; do
            test -f "$each" && keep "$each" "${{each##*/}}.state"
        done
        cat * | tr '\\0' '\\n'
        echo $$ > step
    """


@LAYOUTS
@CREDENTIALS
def test_no_secret_within_reach(
    open_local: Local, users: Users, credential: Mapping[str, object], *, scripts_only: bool
) -> None:
    """A job reads nowhere what the runner was given, or what the agent was started with."""
    local, loot = open_local, open_local.folder / "loot"
    local.config |= credential
    loot.mkdir()
    loot.chmod(0o777)
    planted = [f"{name}={value}" for name, value in PLANTED.items()]
    wrapper = ("env", *planted, *users.wrapper)
    job = spy(local, loot)
    running = local.start(*users.flags, job=job, wrapper=wrapper, scripts_only=scripts_only)
    running.wait_for("phase running")  # what says something has read what it was given
    agent = running.process.pid
    (local.folder / "new").write_text(f"{agent}\n")
    (local.folder / "new").rename(local.folder / "agent")
    ended = running.end()
    assert_end(ended, "started", "success")

    kept = {path.name: path.read_text("utf-8", "replace") for path in loot.iterdir()}
    kept["log"] = "\n".join(line for line in ended.log if not line.startswith("runs-fleet-agent:"))
    step, of_agent = int(kept["step"]), f"{agent}.environ"
    assert {f"{step}.{what}" for what in ("environ", "cmdline", "mem", "fd")} <= kept.keys(), "it was kept"
    assert f"{agent}.cmdline" in kept, "it came up to the agent"
    assert "GITHUB_ACTIONS=true" in kept["own.variables"]
    for secret in (TOKEN, JIT_CONFIG, *PLANTED.values()):
        assert not {name for name, text in kept.items() if secret in text}
    for name, text in kept.items():
        if name.endswith((".environ", ".variables")):
            assert not re.findall(r"(?:^|\0)((?:AWS|RUNS_FLEET)_\w*)", text), name
    if users.are_apart:
        assert not {of_agent, f"{agent}.mem", f"{agent}.fd"} & kept.keys()
    for name in ("journal.json", "agent.lock"):
        assert (local.state_dir / name).exists()
        assert (f"{name}.state" in kept) == users.may_read_files


@needs_root
def test_log_spool_is_private(open_local: Local) -> None:
    """What the job has printed is not for its user to read where it waits."""
    local = open_local
    spool, loot = local.state_dir / "log-spool", local.folder / "loot"
    local.state_dir.mkdir()
    (local.state_dir / "logs").symlink_to("logs")  # a loop: the sink does not take a line
    loot.touch()
    loot.chmod(0o666)
    job = (
        f"yes {'7' * 1000} | head -n 9500\n{until(spool)}"
        f"{{ ls {spool} || cat {spool}/*; }} && echo read > {loot} || echo refused > {loot}\n"
    )
    ended = local.run("--runner-user", NOBODY.name, job=job, scenario={"echo_steps": False})
    assert_end(ended, "started", "success")
    assert loot.read_text() == "refused\n"


# Who it is


@needs_root
def test_runner_user(open_local: Local) -> None:
    """The job is that user, in none of the agent's groups; the runner's root is its own, and goes at last."""
    local = open_local
    local.config["runner_logs_bucket"] = "runner-logs-of-the-fleet"
    root = local.state_dir / "runner"
    job = (
        'echo "is=$(id -un) in=$(id -G) HOME=$HOME USER=$USER LOGNAME=$LOGNAME SHELL=$SHELL"\n'
        f'stat -c "%U has %n" {root} {root}/.env {root}/_work "$GITHUB_WORKSPACE"\n'
        f"touch {local.state_dir}/mine || echo the state folder is closed\n"
        "mkdir -p made/by/it\nchmod 0 made/by\n"
    )
    flags = ("--runner-user", NOBODY.name, "--job-environment", "A=1")
    ended = local.run(*flags, job=job, wrapper=privileges(f"--groups={OTHER_GROUP}"))
    final = assert_end(ended, "started", "success")
    groups = " ".join(map(str, os.getgrouplist(NOBODY.name, NOBODY.gid)))
    variables = " ".join(f"{name}={value}" for name, value in NOBODY.variables.items())
    assert f"is={NOBODY.name} in={groups} {variables}" in ended.log
    assert [line for line in ended.log if re.match(r"\S+ has /", line)] == [
        f"{NOBODY.name} has {path}"
        for path in (root, root / ".env", root / "_work", root / "_work/my-repo/my-repo")
    ]
    assert "the state folder is closed" in ended.log
    assert final["log_upload"] == "uploaded"
    assert UNCLEAN not in ended.stderr
    assert not root.exists()


def assert_refused(ended: Ended, *texts: str) -> None:
    """Nothing was run, the queue hears why, and the instance goes."""
    assert (ended.status, len(ended.messages), len(ended.terminations)) == (78, 1, 1), ended.stderr
    for text in ("RUNS_FLEET_RUNNER_USER", *texts):
        assert text in ended.stderr
        assert text in ended.messages[0]["error"]


def test_unknown_runner_user(local: Local) -> None:
    """It is told which one, and how to set another."""
    marker = local.folder / "ran"
    ended = local.run("--runner-user", "no-such-user", job=f"touch {marker}\n")
    assert_refused(ended, "there is no user no-such-user")
    assert not marker.exists()


@needs_root
def test_runner_user_that_needs_root(open_local: Local) -> None:
    """An agent that is not root makes nobody root."""
    marker = open_local.folder / "ran"
    wrapper = becoming_nobody(open_local.folder)
    ended = open_local.run("--runner-user", "root", job=f"touch {marker}\n", wrapper=wrapper)
    assert_refused(ended, "needs root", f"the agent is {NOBODY.name}")
    assert not marker.exists()


@needs_root
@CREDENTIALS
def test_runner_user_that_is_shut_out(open_local: Local, credential: Mapping[str, object]) -> None:
    """The message has the folder that is closed to the user, and what to do."""
    local, closed = open_local, open_local.folder / "closed"
    local.config |= credential
    closed.mkdir(0o700)
    ended = local.run("--runner-user", NOBODY.name, "--runner-dir", str(closed / "runner"))
    error = assert_end(ended, "failure")["error"]
    assert f"{NOBODY.name} may not read and enter {closed} " in error
    assert "RUNS_FLEET_RUNNER_DIR" in error


@needs_root
def test_runner_that_is_root(local: Local) -> None:
    """It is warned of, with the fix, unless somebody wants it so."""
    if not RUNNER_IS_ROOT:
        pytest.skip("there is a user `runner`, which the runner runs as")
    warning = "the runner runs as root: make a user `runner`, or set RUNS_FLEET_RUNNER_USER"
    ended = local.run(job="id -un\n")
    assert_end(ended, "started", "success")
    assert warning in ended.stderr
    assert "root" in ended.log


@needs_root
def test_runner_that_is_to_be_root(local: Local) -> None:
    """Who says so is not warned."""
    ended = local.run("--runner-user", "root", job="id -un\n")
    assert_end(ended, "started", "success")
    assert "the runner runs as root" not in ended.stderr
    assert "root" in ended.log


# What it finds


def value_of(name: str, ended: Ended) -> str | None:
    """What the job's step printed of a variable."""
    found = [line.partition("=")[2] for line in ended.log if line.startswith(f"{name}=")]
    return found[-1] if found else None


@LAYOUTS
@pytest.mark.parametrize("cache_url", ["https://cache.of.the.job/", None])
def test_job_environment(local: Local, cache_url: str | None, *, scripts_only: bool) -> None:
    """It has what settings and config add; its file is private, and its secret is shown to the job alone."""
    seen, cache_token = local.folder / "seen", "planted-cache-token"
    local.config |= {"cache_url": cache_url, "cache_token": cache_token}
    job = f'env\nstat -c mode=%a "$RUNNER_TEMP/../../.env"\necho "$ACTIONS_CACHE_TOKEN" > {seen}\n'
    flags = ("--job-environment", 'A=1 B="two words"', "--s3-cache-endpoint", "https://cache.of.the.fleet/")
    ended = local.run(*flags, job=job, scripts_only=scripts_only)
    assert_end(ended, "started", "success")
    assert value_of("mode", ended) == "600"
    assert value_of("ACTIONS_CACHE_URL", ended) == (cache_url or "https://cache.of.the.fleet/")
    assert (value_of("A", ended), value_of("B", ended)) == ("1", "two words")
    assert (seen.read_text(), value_of("ACTIONS_CACHE_TOKEN", ended)) == (f"{cache_token}\n", "***")
    files = [path.read_text("utf-8", "replace") for path in local.state_dir.rglob("*") if path.is_file()]
    assert not [text for text in (*files, ended.stderr) if cache_token in text]


@CREDENTIALS
def test_lines_of_config_sh(local: Local, credential: Mapping[str, object]) -> None:
    """What config.sh writes into `.env` stays there beside what the agent adds."""
    local.config |= credential
    job = 'cat "$RUNNER_TEMP/../../.env"\n'
    wrapper = ("env", "LANG=fr_FR.UTF-8")
    ended = local.run("--job-environment", "ADDED=too", job=job, wrapper=wrapper)
    assert_end(ended, "started", "success")
    of_config_sh = "fr_FR.UTF-8" if credential["jit_token"] else None
    assert (value_of("LANG", ended), value_of("ADDED", ended)) == (of_config_sh, "too")


@pytest.mark.parametrize("job_exit", [0, 1])
def test_hooks(local: Local, job_exit: int) -> None:
    """They run around the steps, as GitHub's runner has it, also where a step fails."""
    trail = local.folder / "trail"
    flags: list[str] = []
    for moment in ("started", "completed"):
        script = local.folder / f"job-{moment}.sh"
        script.write_text(f'echo "{moment} $GITHUB_REPOSITORY $GITHUB_JOB" >> {trail}\n')
        flags += [f"--job-{moment}-hook", str(script)]
    ended = local.run(*flags, job=f"echo step >> {trail}\nexit {job_exit}\n")
    assert_end(ended, "started", "failure" if job_exit else "success")
    where = "Shavakan/my-repo sample"
    assert trail.read_text().splitlines() == [f"started {where}", "step", f"completed {where}"]


def test_hook_that_fails(local: Local) -> None:
    """Before the job, it fails the job, and no step runs."""
    marker, script = local.folder / "ran", local.folder / "job-started.sh"
    script.write_text("exit 3\n")
    ended = local.run("--job-started-hook", str(script), job=f"touch {marker}\n")
    assert assert_end(ended, "started", "failure")["job_result"] == "failed"
    assert not marker.exists()


@LAYOUTS
def test_memory_runs_out_for_the_job_first(local: Local, *, scripts_only: bool) -> None:
    """The kernel would kill a step before it kills the agent."""
    job = f"echo score=$(cat /proc/self/oom_score_adj)\n{until(local.folder / 'go')}"
    running = local.start(job=job, scripts_only=scripts_only)
    running.wait_for("score=")
    of_agent = int(Path(f"/proc/{running.process.pid}/oom_score_adj").read_text())
    (local.folder / "go").touch()
    ended = running.end()
    assert_end(ended, "started", "success")
    assert int(value_of("score", ended) or "") > of_agent


# What it leaves in the runner's root


def test_files_that_are_hard_to_remove(open_local: Local, users: Users) -> None:
    """Closed folders, and, where the job is root, those of others: all go, but not what a link leads to."""
    local, outside = open_local, open_local.folder / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    job = f"mkdir -p closed/within\ntouch closed/within/file\nln -s {outside} closed/within/link\n"
    if not users.are_apart:
        job += f"cp -R closed foreign\nchown -hR {NOBODY.uid}:{NOBODY.gid} foreign\n"
    job += "chmod 0 */within\nchmod 0 *\n"
    ended = local.run(*users.flags, job=job, wrapper=users.wrapper)
    assert_end(ended, "started", "success")
    assert UNCLEAN not in ended.stderr
    assert not (local.state_dir / "runner").exists()
    assert (outside / "precious").read_text() == "kept"


@contextmanager
def mounted(folder: Path, *arguments: str | Path) -> Iterator[None]:
    """Something is mounted on the folder; skips the test where that is not to be had."""
    mounting = subprocess.run(["mount", *arguments, folder], capture_output=True, text=True, check=False)
    if mounting.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {mounting.stderr}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@needs_root
@pytest.mark.parametrize("kind", ["another disk", "a folder"])
def test_mount(local: Local, kind: str) -> None:
    """What is mounted in the runner's root is nobody's to remove: it is told, and the instance goes."""
    disk, folder, root = local.folder / "disk", local.folder / "folder", local.state_dir / "runner"
    mount = root / "_work/my-repo/my-repo/mount"
    disk.mkdir()
    folder.mkdir()
    with mounted(disk, "-t", "tmpfs", "none"):
        source = disk if kind == "another disk" else folder
        (source / "precious").write_text("kept")
        running = local.start(job=f"mkdir mount\ntouch other\necho begun\n{until(local.folder / 'go')}")
        running.wait_for("begun")
        with mounted(mount, "--bind", source):
            (local.folder / "go").touch()
            ended = running.end()
        assert (source / "precious").read_text() == "kept"
    assert_end(ended, "started", "success")
    (warning,) = [line for line in ended.stderr.splitlines() if UNCLEAN in line]
    assert f"could not be removed, 5 left: '{mount}': " in warning
    assert {*root.rglob("*")} == {mount, *mount.parents} - {root, *root.parents}


# What it prints


def test_page_that_is_gone(local: Local) -> None:
    """A page that was opened in time is read to its end, though it has no name any more by then."""
    job = f"""
        agent=$(ps -o ppid= $(ps -o ppid= $PPID))
        echo on its first page
        {until(local.folder / "go")}
        page=$(grep -l "on its first page" $RUNNER_TEMP/../../_diag/pages/*_1.log)
        kill -STOP $agent
        echo "behind its back"
        printf '%010000d\\n' 7
        while test -e $page; do echo "on its next page"; sleep 0.05; done
        kill -CONT $agent
    """
    scenario = {"echo_steps": False, "page_bytes": 10_000, "upload_seconds": 0.1}
    running = local.start(job=job, scenario=scenario)
    running.wait_for("on its first page")
    (local.folder / "go").touch()
    ended = running.end()
    assert_end(ended, "started", "success")
    of_step = [line.partition("Z ")[2] for line in ended.log if line.startswith("[step 2] ")]
    begin = of_step.index("on its first page")
    assert of_step[begin + 1 : begin + 4] == ["behind its back", "0" * 9_999 + "7", "on its next page"]


def wait_for_line(instance: Instance, text: str) -> list[str]:
    """Returns when the job's stream has a line with the text; all its lines."""
    deliveries = 0
    while True:
        lines = instance.aws.log_lines(GROUP, f"{instance.instance_id}/{JOB_ID}")
        if any(text in line for line in lines):
            return lines
        deliveries = len(instance.aws.wait_for("logs:PutLogEvents", deliveries + 1, status=200))


def test_steps_are_heard_while_they_run(instance: Instance) -> None:
    """Their lines are in the stream though the runner prints none, and its pages come and go meanwhile."""
    pages = instance.runner_dir / "_diag" / "pages"
    job = f"""
        n=0
        until test $n -gt 300 && ! ls {pages}/*_1.log > {os.devnull} 2>&1; do
            n=$((n + 1))
            echo "line $n"
            test $n -lt 300 || sleep 0.05
        done
        echo "all of them: $n"
        {instance.until_go}
        echo "line $((n + 1))"
    """
    instance.put_config()
    instance.publish(job, {"echo_steps": False, "page_bytes": 1000, "upload_seconds": 5})
    running = instance.start()
    lines = wait_for_line(instance, "all of them: ")
    assert running.process.poll() is None
    (count,) = (int(line.rpartition(" ")[2]) for line in lines if "all of them: " in line)
    assert numbers_of(lines) == list(range(1, count + 1))
    instance.go()
    ended = running.end()
    assert assert_end(ended, "started", "success")["log_lines_dropped"] == 0
    assert numbers_of(ended.log) == list(range(1, count + 2))
    assert "could not be read" not in ended.stderr
    assert not [line for line in ended.log if line.startswith("line ")]


def numbers_of(lines: list[str]) -> list[int]:
    """Those of the step's lines, in the stream's order."""
    found = (re.fullmatch(r"\[step 2\] \S+Z line (\d+)", line) for line in lines)
    return [int(line[1]) for line in found if line]


# The runner's own logs, in the cloud


def test_logs_of_the_runner(instance: Instance) -> None:
    """The bucket of the config has each one, whole, under the job's name."""
    bucket = instance.aws.bucket()
    instance.put_config(runner_logs_bucket=bucket)
    instance.publish()
    assert assert_end(instance.run(), "started", "success")["log_upload"] == "uploaded"
    s3 = instance.aws.client("s3")
    prefix = f"runner-logs/12345/{JOB_ID}/{instance.instance_id}/"
    logs: dict[str, str] = {}
    for each in s3.list_objects_v2(Bucket=bucket)["Contents"]:
        body = s3.get_object(Bucket=bucket, Key=each["Key"])["Body"].read()
        kind = re.fullmatch(rf"{prefix}([A-Z][a-z]+)_[\w.-]+\.log\.gz", each["Key"])
        assert kind, each["Key"]
        logs[kind[1]] = gzip.decompress(body).decode()
    assert logs.keys() == {"Runner", "Worker"}
    assert logs["Runner"].rstrip().endswith("return code 100")
    assert "Job completed. Result: Succeeded" in logs["Worker"]


@pytest.mark.parametrize(
    ("fault", "log_upload"),
    [(denied("s3"), "denied"), (Answer(404, "NoSuchBucket"), "denied"), (Hang(), "failed")],
)
def test_logs_of_the_runner_that_nobody_takes(instance: Instance, fault: Fault, log_upload: str) -> None:
    """The job's status is what it was, and the message says what became of them."""
    instance.put_config(runner_logs_bucket=instance.aws.bucket())
    instance.publish()
    instance.aws.faults.plan("s3:PutObject", fault)
    ended = instance.run(variables={"RUNS_FLEET_CONFIG_BUCKET": ""})
    final = assert_end(ended, "started", "success")
    assert (ended.status, final["log_upload"]) == (0, log_upload)
    assert "the runner's own logs were not uploaded" in ended.stderr

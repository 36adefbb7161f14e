"""The installed wheel with every scenario of the sample runner, in both ways to start that.

Started itself, the Listener ends with its job's result. Where only run.sh can do that, the exit code tells
nothing: it is 0, unless run.sh is killed.
"""

import base64
import re
import shlex
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Literal

import pytest
from attrs import asdict, field, filters, frozen
from sample_runner import build

from support.local import Ended, Local, local_machine
from support.wheel import JOB_ID, Running

Way = Literal["Listener", "run.sh"]
WAYS: Final[Sequence[Way]] = ("Listener", "run.sh")


@frozen(kw_only=True)
class End:
    """What the final message says; of `error`, it is enough that it occurs there."""

    status: str
    exit_code: int
    job_result: str | None = None
    job_ran: bool = True
    runner_exit_code: int | None
    stop_reason: str | None = None
    error: str | None = None
    told: str = ""
    """What the job's log has."""
    agents_own: int = 0
    """What the agent itself ends with."""


@frozen
class Ends:
    """One for each way; None: nothing is to be had there that could tell it."""

    listener: End
    script: End | None

    def by(self, way: Way) -> End | None:
        return self.listener if way == "Listener" else self.script


@frozen(kw_only=True)
class Row:
    """A life, and its end."""

    scenario: Mapping[str, Any] = field(factory=dict)
    job: str = "true\n"
    flags: Sequence[str] = ()
    config: Mapping[str, object] = field(factory=dict)
    """How the job's config differs."""
    sigterm_after: str | None = None
    """SIGTERM is sent once the agent's stderr has this."""
    ends: Ends
    told: Sequence[str] = ()
    """What the job's log has, in both ways."""
    printed: Mapping[int, Sequence[str]] = field(factory=dict)
    """All that these steps print, which is in the log once, in this order, and marked as theirs."""
    job_name: str = "sample"
    """As the message has it, if the job ran."""
    takes_long: bool = False
    """A minute, or half of one: so both ways are gone at once."""


# How it ends


def completed(result: str, code: int, *, told: tuple[str, str] = ("", "")) -> Ends:
    """The job has that result, whatever the runner's exit code."""
    success = result in {"succeeded", "succeeded_with_issues", "skipped"}
    status, exit_code = ("success", 0) if success else ("failure", 1)
    return Ends(
        *(
            End(status=status, exit_code=exit_code, job_result=result, runner_exit_code=own, told=words)
            for own, words in zip((code, 0), told, strict=True)
        )
    )


def started_again(code: int) -> Ends:
    """The runner ends so, is started again, by the agent or by run.sh, and does the job."""
    return completed("succeeded", 100, told=(f"exit code {code}; started again", "Restarting runner..."))


def contradicted(result: str, code: int) -> Ends:
    """The console's result is the job's; that the exit code tells another is told."""
    return completed(result, code, told=(f"the runner's exit code {code} says that the job ", ""))


def jobless(code: int) -> Ends:
    """The runner ends by itself, and no job came."""
    return Ends(*(_without_result(each, "without running a job", job_ran=False) for each in (code, 0)))


def broken_off(code: int) -> Ends:
    """The runner ends by itself in the middle of the job."""
    return Ends(*(_without_result(each, "before its job completed", job_ran=True) for each in (code, 0)))


def _without_result(code: int, how: str, *, job_ran: bool) -> End:
    error = f"the runner ended with exit code {code} {how}"
    return End(status="failure", exit_code=code, runner_exit_code=code, job_ran=job_ran, error=error)


def refused(words: str) -> Ends:
    """config.sh fails: no runner is started."""
    end = End(
        status="failure", exit_code=-1, runner_exit_code=None, job_ran=False, error=words, agents_own=69
    )
    return Ends(end, end)


def stopped(
    reason: str, error: str, code: int, *, job_ran: bool = True, job_result: str | None = None
) -> Ends:
    """The agent stops the runner, which ends with that code in both ways."""
    end = End(
        status={"interrupted": "interrupted", "max_runtime": "timeout"}.get(reason, "failure"),
        exit_code=code,
        runner_exit_code=code,
        job_ran=job_ran,
        job_result=job_result,
        stop_reason=reason,
        error=error,
    )
    return Ends(end, end)


SUCCEEDED: Final = completed("succeeded", 100)
FAILED: Final = completed("failed", 102)
CANCELED: Final = stopped("interrupted", "interrupted by SIGTERM", 0, job_result="canceled")
KILLED: Final = stopped("interrupted", "interrupted by SIGTERM", 137)

# What jobs do

RUNS_ON: Final = "echo begun\nexec sleep 1000\n"
DEAF: Final = "trap '' INT TERM\necho begun\nwhile :; do sleep 1; done\n"
"""Through run.sh, SIGINT is for the runner's process group, and so for the job as well."""
LISTENER: Final = "read -r _ _ _ listener _ </proc/$PPID/stat\n"
"""A step's parent is the Worker."""
DAEMONS: Final = (
    "setsid nohup sleep 1000 &>/dev/null &\n"
    "setsid env -i sh -c 'cd /; exec sleep 1000' &>/dev/null &\n"
    "sleep 1000 &\n"
    "echo left them\n"
)
"""One with the marks of the job, one without any, and one that holds the step's output open."""

JIT: Final = build.jit_config(name="jit-runner")
IDLE: Final = ("--idle-minutes", "0.05")
HASTY: Final = ("--shutdown-grace-seconds", "1")

LONG_ENOUGH: Final = 4
"""Seconds for the agent to read the console, and open a page, before the Worker, or the page, has gone."""

# The scenarios

TABLE: Final[Mapping[str, Row]] = {
    # Steps
    "one step": Row(
        job="echo one\necho\necho '  three'\nprintf 'no end'\n",
        scenario={"upload_seconds": LONG_ENOUGH},
        printed={2: ["one", "", "  three", "no end"]},
        ends=SUCCEEDED,
    ),
    "failing step": Row(
        job="echo one\nexit 3\n", scenario={"upload_seconds": LONG_ENOUGH}, printed={2: ["one"]}, ends=FAILED
    ),
    "steps": Row(
        scenario={
            "steps": [{"name": "first", "run": "echo one; echo two"}, {"run": "echo three >&2"}],
            "echo_steps": False,
            "upload_seconds": LONG_ENOUGH,
        },
        printed={2: ["one", "two"], 3: ["three"]},
        ends=SUCCEEDED,
    ),
    "steps after a failed one": Row(
        scenario={
            "steps": [{"run": "echo one; exit 1"}, {"run": "echo never"}],
            "echo_steps": False,
            "upload_seconds": LONG_ENOUGH,
        },
        printed={2: ["one"], 3: ["Cleaning up orphan processes"]},
        ends=FAILED,
    ),
    "many pages": Row(
        job="seq 1000 1099\n",
        scenario={"page_bytes": 300, "upload_seconds": LONG_ENOUGH, "echo_steps": False},
        printed={2: [str(n) for n in range(1000, 1100)]},
        ends=SUCCEEDED,
    ),
    "pages with a buffer": Row(
        job="seq 1000 1999\n",
        scenario={"page_buffer_bytes": 4096, "page_bytes": 20_000, "upload_seconds": LONG_ENOUGH},
        printed={2: [str(n) for n in range(1000, 2000)]},
        ends=SUCCEEDED,
    ),
    # The Listener's own output
    "output": Row(
        scenario={"output": {"lines": 3, "bytes_per_line": 10}},
        ends=SUCCEEDED,
        told=["\nline 1 ...\nline 2 ...\nline 3 ...\n"],
    ),
    "stderr": Row(
        scenario={"stderr_lines": ["one on stderr", "another"]},
        ends=SUCCEEDED,
        told=["\none on stderr\nanother\n"],
    ),
    "reconnects": Row(
        scenario={"reconnects": 2},
        ends=SUCCEEDED,
        told=["Z: Runner connect error: No route to host.", "Z: Runner reconnected."],
    ),
    # Results
    "succeeded": Row(scenario={"result": "Succeeded"}, job="exit 1\n", ends=SUCCEEDED),
    "with issues": Row(
        scenario={"result": "SucceededWithIssues"}, ends=completed("succeeded_with_issues", 101)
    ),
    "failed": Row(scenario={"result": "Failed"}, ends=FAILED),
    "canceled": Row(scenario={"result": "Canceled"}, ends=completed("canceled", 103)),
    "skipped": Row(scenario={"result": "Skipped"}, ends=completed("skipped", 104)),
    "abandoned": Row(scenario={"result": "Abandoned"}, ends=completed("abandoned", 105)),
    # An exit code that tells something else than the console
    "succeeded, and ends as if failed": Row(
        scenario={"exit_result": "Failed"}, ends=contradicted("succeeded", 102)
    ),
    "failed, and ends as if succeeded": Row(
        scenario={"result": "Failed", "exit_result": "Succeeded"}, ends=contradicted("failed", 100)
    ),
    "skipped, and ends as if canceled": Row(
        scenario={"result": "Skipped", "exit_result": "Canceled"}, ends=contradicted("skipped", 103)
    ),
    "canceled, and ends as if with issues": Row(
        scenario={"result": "Canceled", "exit_result": "SucceededWithIssues"},
        ends=contradicted("canceled", 101),
    ),
    "lost, and ends as if abandoned": Row(
        scenario={"lost_job": True, "exit_result": "Abandoned"},
        ends=Ends(completed("abandoned", 105).listener, broken_off(0).script),
    ),
    "lost, and ends as if skipped": Row(
        scenario={"lost_job": True, "exit_result": "Skipped"}, ends=broken_off(104)
    ),
    # No job
    "bad token": Row(scenario={"refuse_registration": "bad_token"}, ends=refused("401 (Unauthorized)")),
    "not found": Row(scenario={"refuse_registration": "not_found"}, ends=refused("404 (NotFound)")),
    "duplicate name": Row(
        scenario={"refuse_registration": "duplicate_name"},
        ends=refused("A runner exists with the same name runs-fleet-local."),
    ),
    "no such group": Row(
        scenario={"refuse_registration": "no_such_group"},
        ends=refused('Could not find any self-hosted runner group named "Default"'),
    ),
    "JIT": Row(config={"jit_token": None, "jit_config": JIT}, ends=SUCCEEDED),
    "JIT is rejected": Row(
        scenario={"reject_jit": True}, config={"jit_token": None, "jit_config": JIT}, ends=jobless(1)
    ),
    "JIT is rejected, and there is a token": Row(
        scenario={"reject_jit": True},
        config={"jit_config": JIT},
        ends=SUCCEEDED,
        told=["the runner refused its just-in-time config"],
    ),
    "registration is deleted": Row(scenario={"refuse_session": "deleted"}, ends=jobless(1)),
    "registration by JIT is deleted": Row(
        scenario={"refuse_session": "deleted"}, config={"jit_config": JIT}, ends=jobless(1)
    ),
    "session conflict": Row(scenario={"refuse_session": "conflict"}, ends=jobless(5)),
    "exit code 0": Row(scenario={"exit_codes": [0]}, ends=jobless(0)),
    "exit code 1": Row(scenario={"exit_codes": [1]}, ends=jobless(1)),
    "exit code 2": Row(scenario={"exit_codes": [2]}, ends=started_again(2)),
    "exit code 3": Row(takes_long=True, scenario={"exit_codes": [3]}, ends=started_again(3)),
    "exit code 4": Row(takes_long=True, scenario={"exit_codes": [4]}, ends=started_again(4)),
    "exit code 5": Row(scenario={"exit_codes": [5]}, ends=jobless(5)),
    "exit code 7": Row(scenario={"exit_codes": [7]}, ends=jobless(7)),
    "exit code 2, then 7": Row(scenario={"exit_codes": [2, 7]}, ends=jobless(7)),
    "update": Row(scenario={"update": True}, ends=started_again(3)),
    "never a job": Row(
        scenario={"never_assign": True},
        flags=IDLE,
        ends=stopped("idle", "no job came within 0:00:03", 0, job_ran=False),
    ),
    "never listens": Row(
        takes_long=True,
        scenario={"never_listen": True},
        flags=IDLE,
        ends=stopped("stalled", "did not begin to listen within 0:01:00", 0, job_ran=False),
    ),
    "job is assigned and vanishes": Row(
        takes_long=True,
        scenario={"assign_then_vanish": True},
        flags=("--idle-minutes", "0.5"),
        ends=stopped("stalled", "assigned did not begin within 0:01:00", 0, job_ran=False),
    ),
    "job comes late": Row(scenario={"assign_after_seconds": 1}, ends=SUCCEEDED),
    # No end of the job
    "lost job": Row(scenario={"lost_job": True}, ends=broken_off(0)),
    "hangs": Row(
        takes_long=True,
        scenario={"hang": True},
        flags=("--max-runtime", "1", *HASTY),
        ends=stopped("max_runtime", "longer than its max runtime of 0:01:00", 137),
    ),
    "hangs after the job": Row(
        takes_long=True,
        scenario={"hang_after_completed": True, "upload_seconds": LONG_ENOUGH},
        flags=HASTY,
        ends=Ends(*[End(status="success", exit_code=0, job_result="succeeded", runner_exit_code=137)] * 2),
        told=["the runner did not end after its job had completed, within 0:01:00 (ending already)"],
    ),
    "crash by SIGKILL": Row(job=RUNS_ON, scenario={"crash_mid_job": {"signal": 9}}, ends=broken_off(137)),
    "crash by SIGSEGV": Row(job=RUNS_ON, scenario={"crash_mid_job": {"signal": 11}}, ends=broken_off(139)),
    "crash with 134": Row(job=RUNS_ON, scenario={"crash_mid_job": {"code": 134}}, ends=broken_off(134)),
    "crash with 100": Row(job=RUNS_ON, scenario={"crash_mid_job": {"code": 100}}, ends=broken_off(100)),
    "Worker is killed": Row(job="kill -KILL $PPID\nexec sleep 1000\n", ends=FAILED),
    "Listener has SIGTERM": Row(
        job=LISTENER + "kill -TERM $listener\nexec sleep 1000\n", ends=completed("canceled", 0)
    ),
    "Listener has SIGTERM, and the cancellation takes too long": Row(
        job=LISTENER + "kill -TERM $listener\nexec sleep 1000\n",
        scenario={"term_limit_seconds": 0.5, "cancel_seconds": 1000},
        ends=broken_off(143),
    ),
    # Interruptions
    "SIGTERM": Row(job=RUNS_ON, sigterm_after="begun", ends=CANCELED),
    "SIGTERM before the job": Row(
        scenario={"never_assign": True},
        sigterm_after="Listening for Jobs",
        ends=stopped("interrupted", "interrupted by SIGTERM", 0, job_ran=False),
    ),
    "SIGTERM, and the cancellation takes a while": Row(
        job=RUNS_ON,
        scenario={"cancel_seconds": 2, "upload_seconds": LONG_ENOUGH},
        sigterm_after="begun",
        printed={2: ["begun"]},
        ends=CANCELED,
    ),
    "SIGTERM, and the cancellation takes too long": Row(
        job=DEAF,
        scenario={"cancel_seconds": 1000, "step_sigint_seconds": 0.1, "step_sigterm_seconds": 0.1},
        flags=HASTY,
        sigterm_after="begun",
        ends=KILLED,
    ),
    "SIGTERM, and the Listener ignores SIGINT": Row(
        job=DEAF, scenario={"ignore_sigint": True}, flags=HASTY, sigterm_after="begun", ends=KILLED
    ),
    "SIGTERM, and the job ignores SIGINT and SIGTERM": Row(
        job=DEAF,
        scenario={"step_sigint_seconds": 0.2, "step_sigterm_seconds": 0.2},
        sigterm_after="begun",
        ends=CANCELED,
    ),
    "SIGTERM, and the Worker hangs": Row(
        job=RUNS_ON, scenario={"hang": True}, flags=HASTY, sigterm_after="begun", ends=KILLED
    ),
    # Daemons
    "daemons, that the Worker looks for": Row(
        job=DAEMONS,
        scenario={"step_drain_seconds": 0.2, "upload_seconds": LONG_ENOUGH},
        printed={2: ["left them"]},
        ends=SUCCEEDED,
        told=["Terminate orphan process: pid", "killed 1 processes"],
    ),
    "daemons": Row(
        job=DAEMONS,
        scenario={"clean_orphans": False, "step_drain_seconds": 0.2, "upload_seconds": LONG_ENOUGH},
        printed={2: ["left them"]},
        ends=SUCCEEDED,
        told=["killed 3 processes"],
    ),
    "daemons of a failed job": Row(
        job=DAEMONS + "exit 1\n", scenario={"clean_orphans": False, "step_drain_seconds": 0.2}, ends=FAILED
    ),
}


# Lies. What says that the job has completed is the runner's word only where the runner says it.

STAMP: Final = "2026-01-01 00:00:00Z"
CONSOLE: Final = LISTENER + "exec 3>/proc/$listener/fd/1\n"
"""From here on, a step can write straight into what the Listener writes into."""


def claim(result: str, job_name: str = "sample") -> str:
    return f"{STAMP}: Job {job_name} completed with result: {result}"


CLAIMS: Final = (
    claim("Succeeded"),
    claim("Failed"),
    "√ Connected to GitHub",
    f"{STAMP}: Listening for Jobs",
    f"{STAMP}: Running job: another",
    claim("Succeeded", "another"),
)


def say(*lines: str) -> str:
    """A script that prints the lines."""
    return f"printf '%s\\n' {shlex.join(lines)}\n"


def surround(ahead: str, after: str) -> str:
    """A script that leaves a daemon, which writes `ahead` on the console as soon as the Worker has ended.

    Until then, the Listener is held up. When it has had its say, the daemon says `after`, again and again.
    """
    daemon = f'{until("$1", "Z")}printf "$2" >&3\nkill -CONT $0\nwhile sleep 0.01; do echo "$3" >&3; done\n'
    arguments = f"$listener $PPID {shlex.quote(ahead)} {shlex.quote(after)}"
    return (
        f"{CONSOLE}kill -STOP $listener\n{until('$listener', 'T')}"
        f"setsid bash -c {shlex.quote(daemon)} {arguments} &>/dev/null &\n"
    )


def until(pid: str, state: str) -> str:
    """A script that waits for a state of a process, as /proc has it."""
    return f'until [[ "$(</proc/{pid}/stat)" == *") {state} "* ]]; do sleep 0.01; done\n'


def early(result: str) -> Mapping[str, Any]:
    """The Listener itself prints it, before the Worker is there."""
    printed = base64.b64encode(f"{claim(result)}\n".encode()).decode()
    return {"output": {"raw_base64": printed}, "upload_seconds": LONG_ENOUGH}


LIES: Final[Mapping[str, Row]] = {
    "before the Worker, of a job that runs too long": Row(
        takes_long=True,
        scenario=early("Succeeded"),
        job=DEAF,
        flags=("--max-runtime", "1", *HASTY),
        ends=stopped("max_runtime", "longer than its max runtime of 0:01:00", 137),
        told=[claim("Succeeded"), "not believed"],
    ),
    "before the Worker, of a job that fails": Row(scenario=early("Succeeded"), job="exit 1\n", ends=FAILED),
    "before the Worker, of a job that succeeds": Row(scenario=early("Failed"), ends=SUCCEEDED),
    "before the Worker, of a job that is interrupted": Row(
        scenario=early("Succeeded"), job=RUNS_ON, sigterm_after="begun", ends=CANCELED
    ),
    "printed, at the end of a step that fails": Row(
        job=f"{say(*CLAIMS)}exit 1\n",
        scenario={"upload_seconds": LONG_ENOUGH},
        printed={2: CLAIMS},
        ends=FAILED,
        told=[f"\n{each}\n" for each in CLAIMS],
    ),
    "printed, at the end of a step that succeeds": Row(
        job=say(*CLAIMS, claim("Failed")),
        scenario={"upload_seconds": LONG_ENOUGH},
        printed={2: [*CLAIMS, claim("Failed")]},
        ends=Ends(SUCCEEDED.listener, None),
    ),
    "printed, by a step that goes on": Row(
        job=f"{say(*CLAIMS)}sleep 1.5\nexit 1\n", ends=FAILED, told=["not believed"]
    ),
    "printed, by a step that is interrupted": Row(
        job=f"{say(*CLAIMS)}{RUNS_ON}", sigterm_after="begun", ends=CANCELED
    ),
    "on the console, at the end of a step that fails": Row(
        job=f"{CONSOLE}{say(claim('Succeeded'))[:-1]} >&3\nexit 1\n", ends=FAILED, told=[claim("Succeeded")]
    ),
    "on the console, at the end of a step that succeeds": Row(
        job=f"{CONSOLE}{say(claim('Failed'))[:-1]} >&3\n",
        ends=Ends(SUCCEEDED.listener, None),
        told=[claim("Failed")],
    ),
    "on the console, by a step that goes on": Row(
        job=f"{CONSOLE}{say(claim('Succeeded'))[:-1]} >&3\nsleep 1.5\nexit 1\n",
        ends=FAILED,
        told=[claim("Succeeded"), "not believed"],
    ),
    "on the console, around the end of a job that fails": Row(
        job=surround(claim("Succeeded") + r"\n", claim("Succeeded")) + "exit 1\n",
        scenario={"clean_orphans": False},
        ends=FAILED,
        told=[claim("Succeeded")],
    ),
    "on the console, around the end of a job that succeeds": Row(
        job=surround(claim("Failed") + r"\n", claim("Failed")),
        scenario={"clean_orphans": False},
        ends=Ends(SUCCEEDED.listener, None),
        told=[claim("Failed")],
    ),
}


def named(job_name: str, *, shown: str | None = None, fails: bool = False) -> Row:
    """A job of that name; the message shows its first line."""
    return Row(
        scenario={"job_name": job_name, "echo_steps": False, "upload_seconds": LONG_ENOUGH},
        job="exit 1\n" if fails else "true\n",
        ends=FAILED if fails else SUCCEEDED,
        job_name=job_name if shown is None else shown,
    )


NAMES: Final[Mapping[str, Row]] = {
    "none": named(""),
    "blanks": named("  x  "),
    "parentheses": named("build (3.11, [x64]) / (.*) \\Z $(("),
    "success": named("x completed with result: Succeeded", fails=True),
    "failure": named("x completed with result: Failed"),
    "line that says success": named(f"x\n{claim('Succeeded', 'x')}", shown="x", fails=True),
    "line that says success, and an empty one": named(
        f"x\n{claim('Succeeded', 'x')}\n", shown="x", fails=True
    ),
    "line that says failure, and another": named(f"x\n{claim('Failed', 'x')}\ny", shown="x"),
    "empty line, and one that says failure": named(f"\n{claim('Failed', '')}\r\n", shown=""),
    "lines of a runner": named(
        f"x\n√ Connected to GitHub\n{STAMP}: Listening for Jobs\n{STAMP}: Running job: y", shown="x"
    ),
    "carriage return": named("x\r", shown="x"),
    "terminal escapes": named("\x1b[2J\x1b]0;title\x07\x9b"),
    "unicode": named("größe 👾 \u202eabc\u2028\x85"),
    "long": named("n" * 10_000, shown="n" * 1_000),
    "longer than any line": named("n" * 100_000, shown="n" * 1_000),
}

# Noise

NOISE: Final[Mapping[str, Row]] = {
    "console": Row(
        scenario={
            "output": {"raw_base64": base64.b64encode(b"\xff\xfe\0\x1b[2J\rx\r\n\xe2\x82\n").decode()},
            "stderr_lines": ["\x1b[2J\x1b]0;title\x07"],
        },
        ends=SUCCEEDED,
        told=["\\xff\\xfe", "\\xe2\\x82"],
    ),
    "steps": Row(
        job=r"printf 'a\377b\n\033[2Jc\n10%%\r20%%\rdone\n\0\n\302\205\n'" + "\n",
        scenario={"upload_seconds": LONG_ENOUGH},
        printed={2: ["a\ufffdb", "\x1b[2Jc", "10%", "20%", "done", "\0", "\x85"]},
        ends=SUCCEEDED,
        told=["a\\xffb"],
    ),
}

# Tests


def cases(rows: Mapping[str, Row]) -> Sequence[Any]:
    """Each row once for each way. What takes long is spread: xdist gives neighbours to the same worker."""
    quick = [
        pytest.param(row, [way], id=f"{name}-{way}")
        for name, row in rows.items()
        for way in WAYS
        if row.ends.by(way) and not row.takes_long
    ]
    long = [pytest.param(row, WAYS, id=name) for name, row in rows.items() if row.takes_long]
    for number, case in enumerate(long):
        quick.insert(number * (len(quick) // len(long)), case)
    return quick


@pytest.mark.parametrize(("row", "ways"), cases(TABLE))
def test_scenario(tmp_path: Path, row: Row, ways: Sequence[Way]) -> None:
    """Each ends as it should, and leaves no process."""
    live(tmp_path, row, ways)


@pytest.mark.parametrize(("row", "ways"), cases(LIES))
def test_lie(tmp_path: Path, row: Row, ways: Sequence[Way]) -> None:
    """What a job says of itself changes neither its result nor how its life ends."""
    live(tmp_path, row, ways)


@pytest.mark.parametrize(("row", "ways"), cases(NAMES))
def test_job_name(tmp_path: Path, row: Row, ways: Sequence[Way]) -> None:
    """A job's name may be anything."""
    live(tmp_path, row, ways)


@pytest.mark.parametrize(("row", "ways"), cases(NOISE))
def test_noise(tmp_path: Path, row: Row, ways: Sequence[Way]) -> None:
    """Bytes of any kind are made visible, and disturb nothing."""
    live(tmp_path, row, ways)


def live(folder: Path, row: Row, ways: Sequence[Way]) -> None:
    """Lives the row's life, those ways at once, on a machine each."""
    with ExitStack() as stack:
        lives = []
        for way in ways:
            (home := folder / way).mkdir()
            lives.append(begin(stack.enter_context(local_machine(home)), row, way))
        for way, running in zip(ways, lives, strict=True):
            assert_ends_so(row, way, running)


def begin(local: Local, row: Row, way: Way) -> Running[Ended]:
    """Begins the row's life that way; where it is to be interrupted, it is."""
    local.config |= row.config
    running = local.start(*row.flags, job=row.job, scenario=row.scenario, scripts_only=way == "run.sh")
    if row.sigterm_after is not None:
        end = row.ends.by(way)
        running.wait_for(row.sigterm_after, *["sent the message started"] * (end is not None and end.job_ran))
        running.send(signal.SIGTERM)
    return running


def assert_ends_so(row: Row, way: Way, running: Running[Ended]) -> None:
    """It ends as the row has it; `Running.end` sees to the processes."""
    end, ended = row.ends.by(way), running.end()
    assert end is not None
    log, final = "\n".join(["", *ended.log, ""]), ended.final
    expected = asdict(end, filter=filters.exclude("error", "told", "agents_own"))
    assert {name: final.get(name) for name in expected} == expected, ended.stderr
    assert (end.error or "") in final.get("error", "")
    assert bool(end.error) == ("error" in final)
    assert final.get("job_name") == (row.job_name if end.job_ran else None)
    assert ended.statuses == [*["started"] * end.job_ran, end.status]
    assert (ended.status, len(ended.terminations)) == (end.agents_own, 1)
    assert final["log_lines_dropped"] == 0
    assert final["log_lines_delivered"] == final["log_lines_accepted"]
    assert [words for words in (*row.told, end.told) if words not in log] == []
    printed = {step: list(lines) for step, lines in row.printed.items()}
    assert {step: printed_by(step, ended) for step in printed} == printed
    assert "\x1b" not in ended.stderr


def printed_by(step: int, ended: Ended) -> list[str]:
    """The lines in the log that have the step's mark, without those that are the runner's own."""
    marked = (ended.state_dir / "logs" / "local" / f"{JOB_ID}.log").read_bytes().decode().split("\n")
    found = [re.fullmatch(rf"\[step {step}\] \S{{27}}Z (.*)", line) for line in marked]
    lines = [match[1] for match in found if match]
    return [line for line in lines if not line.startswith(("##[", "shell: "))]


# The table is whole

SCHEMA: Final = build._schema
SCENARIOS: Final = [row.scenario for rows in (TABLE, LIES, NAMES, NOISE) for row in rows.values()]


def test_every_key_occurs() -> None:
    """With another value than its default."""
    usual, parsed = SCHEMA.Scenario(), [SCHEMA.parse(each) for each in SCENARIOS]
    missing = [
        key for key in SCHEMA.KEYS if all(getattr(each, key) == getattr(usual, key) for each in parsed)
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("result", SCHEMA.RESULTS),
        ("exit_result", SCHEMA.RESULTS),
        ("refuse_registration", SCHEMA.REGISTRATION_REFUSALS),
        ("refuse_session", SCHEMA.SESSION_REFUSALS),
    ],
)
def test_every_value_occurs(key: str, values: Sequence[str]) -> None:
    """Where there is a list of them."""
    assert {each[key] for each in SCENARIOS if key in each} == set(values)

"""The installed wheel with every scenario of the sample runner, in both ways to start that.

Started itself, the Listener ends with its job's result, and the agent takes the console's word with that in
hand. Where only `run.sh` knows the Listener, the exit code is always 0, unless the agent has killed it.
"""

import base64
import re
import shlex
import signal
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import pytest
from attrs import field, frozen
from sample_runner import build
from sample_runner.build import jit_config

from support.local import Ended, Local

TOKEN_ONLY: Final[Mapping[str, object]] = {}
JIT_ONLY: Final = {"jit_token": None, "jit_config": jit_config(name="jit-runner")}
JIT_AND_TOKEN: Final = {"jit_config": jit_config(name="jit-runner")}
"""Changes to the job's config."""


@frozen(kw_only=True)
class End:
    """What the final message says, but for `error` and `told`, of which it is enough that they occur."""

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
    """One for each way."""

    listener: End
    script: End | None
    """None: nothing holds there."""


@frozen(kw_only=True)
class Row:
    ends: Ends
    scenario: Mapping[str, Any] = field(factory=dict)
    job: str = "true\n"
    flags: Sequence[str] = ()
    config: Mapping[str, object] = TOKEN_ONLY
    sigterm_after: str | None = None
    """SIGTERM is sent once the agent's stderr has this."""
    printed: Mapping[int, Sequence[str]] = field(factory=dict)
    """The lines of each step: so they are in the log, marked, in this order, and no second time."""
    told: Sequence[str] = ()
    """What the job's log has, in both ways."""
    job_name: str = "sample"
    """As the message has it, where the job ran."""


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
"""Through run.sh, SIGINT is for the runner's process group, and so for the job."""
LISTENER: Final = "read -r _ _ _ listener _ </proc/$PPID/stat\n"
"""A step's parent is the Worker."""
DAEMONS: Final = (
    "setsid nohup sleep 1000 &\n"
    "setsid env -i sh -c 'cd /; exec sleep 1000' &>/dev/null &\n"
    "sleep 1000 &\n"
    "echo left them\n"
)
"""One with the marks of the job, one without any, one that holds the step's output open."""
IDLE: Final = ("--idle-minutes", "0.05")
HASTY: Final = ("--shutdown-grace-seconds", "1")

TABLE: Final[Mapping[str, Row]] = {
    # A minute each, and half a minute: these begin first.
    "never listens": Row(
        scenario={"never_listen": True},
        flags=IDLE,
        ends=stopped("stalled", "did not begin to listen within 0:01:00", 0, job_ran=False),
    ),
    "job is assigned and vanishes": Row(
        scenario={"assign_then_vanish": True},
        flags=IDLE,
        ends=stopped("stalled", "assigned did not begin within 0:01:00", 0, job_ran=False),
    ),
    "hangs": Row(
        scenario={"hang": True},
        flags=("--max-runtime", "1", *HASTY),
        ends=stopped("max_runtime", "longer than its max runtime of 0:01:00", 137),
    ),
    "hangs after the job": Row(
        scenario={"hang_after_completed": True},
        flags=HASTY,
        ends=Ends(
            *[
                End(
                    status="success",
                    exit_code=0,
                    job_result="succeeded",
                    runner_exit_code=137,
                    told=["did not end after its job had completed, within 0:01:00 (ending already)"],
                )
            ]
            * 2
        ),
    ),
    "exit code 3": Row(scenario={"exit_codes": [3]}, ends=completed("succeeded", 100, "exit code 3; started again")),
    "exit code 4": Row(scenario={"exit_codes": [4]}, ends=completed("succeeded", 100, "exit code 4; started again")),
    # Steps
    "one step": Row(
        job="echo one\necho\necho '  three'\nprintf 'no end'\n",
        scenario={"upload_seconds": 1},
        printed={2: ["one", "", "  three", "no end"]},
        ends=SUCCEEDED,
    ),
    "failing step": Row(
        job="echo one\nexit 3\n", scenario={"upload_seconds": 1}, printed={2: ["one"]}, ends=FAILED
    ),
    "steps": Row(
        scenario={
            "steps": [{"name": "first", "run": "echo one; echo two"}, {"run": "echo three >&2"}],
            "echo_steps": False,
            "upload_seconds": 1,
        },
        printed={2: ["one", "two"], 3: ["three"]},
        ends=SUCCEEDED,
    ),
    "steps after a failed one": Row(
        scenario={
            "steps": [{"run": "echo one; exit 1"}, {"run": "echo never"}],
            "echo_steps": False,
            "upload_seconds": 1,
        },
        printed={2: ["one"], 3: []},
        ends=FAILED,
    ),
    "many pages": Row(
        job="seq 1000 1099\n",
        scenario={"page_bytes": 300, "upload_seconds": 1, "echo_steps": False},
        printed={2: [str(n) for n in range(1000, 1100)]},
        ends=SUCCEEDED,
    ),
    "pages with a buffer": Row(
        job="seq 1000 1999\n",
        scenario={"page_buffer_bytes": 4096, "page_bytes": 20_000, "upload_seconds": 1},
        printed={2: [str(n) for n in range(1000, 2000)]},
        ends=SUCCEEDED,
    ),
    # The Listener's own output
    "output": Row(
        scenario={"output": {"lines": 3, "bytes_per_line": 10}},
        ends=completed("succeeded", 100, "\nline 1 ...\nline 2 ...\nline 3 ...\n"),
    ),
    "stderr": Row(
        scenario={"stderr_lines": ["one on stderr", "another"]},
        ends=completed("succeeded", 100, "\none on stderr\nanother\n"),
    ),
    "reconnects": Row(
        scenario={"reconnects": 2},
        ends=completed("succeeded", 100, "Z: Runner connect error: No route to host.", "Z: Runner reconnected."),
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
        scenario={"exit_result": "Failed"},
        ends=completed(
            "succeeded", 102, "exit code 102 says that the job failed, its console said that the job succeeded"
        ),
    ),
    "failed, and ends as if succeeded": Row(
        scenario={"result": "Failed", "exit_result": "Succeeded"},
        ends=completed(
            "failed", 100, "exit code 100 says that the job succeeded, its console said that the job failed"
        ),
    ),
    "skipped, and ends as if canceled": Row(
        scenario={"result": "Skipped", "exit_result": "Canceled"}, ends=completed("skipped", 103, "exit code 103 says")
    ),
    "canceled, and ends as if with issues": Row(
        scenario={"result": "Canceled", "exit_result": "SucceededWithIssues"},
        ends=completed("canceled", 101, "exit code 101 says"),
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
    "JIT": Row(config=JIT_ONLY, ends=SUCCEEDED),
    "JIT is rejected": Row(scenario={"reject_jit": True}, config=JIT_ONLY, ends=jobless(1)),
    "JIT is rejected, and there is a token": Row(
        scenario={"reject_jit": True},
        config=JIT_AND_TOKEN,
        ends=completed("succeeded", 100, "refused its just-in-time config"),
    ),
    "registration is deleted": Row(scenario={"refuse_session": "deleted"}, ends=jobless(1)),
    "registration by JIT is deleted": Row(
        scenario={"refuse_session": "deleted"}, config=JIT_AND_TOKEN, ends=jobless(1)
    ),
    "session conflict": Row(scenario={"refuse_session": "conflict"}, ends=jobless(5)),
    "exit code 0": Row(scenario={"exit_codes": [0]}, ends=jobless(0)),
    "exit code 1": Row(scenario={"exit_codes": [1]}, ends=jobless(1)),
    "exit code 2": Row(scenario={"exit_codes": [2]}, ends=completed("succeeded", 100, "exit code 2; started again")),
    "exit code 5": Row(scenario={"exit_codes": [5]}, ends=jobless(5)),
    "exit code 7": Row(scenario={"exit_codes": [7]}, ends=jobless(7)),
    "exit code 2, then 7": Row(scenario={"exit_codes": [2, 7]}, ends=jobless(7)),
    "update": Row(scenario={"update": True}, ends=completed("succeeded", 100, "exit code 3; started again")),
    "never a job": Row(
        scenario={"never_assign": True},
        flags=IDLE,
        ends=stopped("idle", "no job came within 0:00:03", 0, job_ran=False),
    ),
    "job comes late": Row(scenario={"assign_after_seconds": 1}, ends=SUCCEEDED),
    # No end of the job
    "lost job": Row(scenario={"lost_job": True}, ends=broken_off(0)),
    "crash by SIGKILL": Row(
        job=RUNS_ON, scenario={"crash_mid_job": {"signal": 9}}, ends=broken_off(137)
    ),
    "crash by SIGSEGV": Row(
        job=RUNS_ON, scenario={"crash_mid_job": {"signal": 11}}, ends=broken_off(139)
    ),
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
        scenario={"cancel_seconds": 2, "upload_seconds": 1},
        sigterm_after="begun",
        printed={2: ["begun"]},
        ends=CANCELED,
    ),
    "SIGTERM, and the cancellation takes too long": Row(
        job=RUNS_ON, scenario={"cancel_seconds": 1000}, flags=HASTY, sigterm_after="begun", ends=KILLED
    ),
    "SIGTERM, and the Listener ignores SIGINT": Row(
        job=DEAF, scenario={"ignore_sigint": True}, flags=HASTY, sigterm_after="begun", ends=KILLED
    ),
    "SIGTERM, and the job ignores SIGINT and SIGTERM": Row(
        job=DEAF,
        scenario={"step_sigint_seconds": 0.2, "step_sigterm_seconds": 0.2},
        flags=("--shutdown-grace-seconds", "9"),  # with the defaults it would take 10 s
        sigterm_after="begun",
        ends=CANCELED,
    ),
    "SIGTERM, and the Worker hangs": Row(
        job=RUNS_ON, scenario={"hang": True}, flags=HASTY, sigterm_after="begun", ends=KILLED
    ),
    # Daemons
    "daemons, that the Worker looks for": Row(
        job=DAEMONS,
        scenario={"step_drain_seconds": 0.2, "upload_seconds": 1},
        printed={2: ["left them"]},
        ends=completed("succeeded", 100, "Terminate orphan process: pid", "killed 1 processes"),
    ),
    "daemons": Row(
        job=DAEMONS,
        scenario={"clean_orphans": False, "step_drain_seconds": 0.2, "upload_seconds": 1},
        printed={2: ["left them"]},
        ends=completed("succeeded", 100, "killed 3 processes"),
    ),
    "daemons of a failed job": Row(
        job=DAEMONS + "exit 1\n", scenario={"clean_orphans": False, "step_drain_seconds": 0.2}, ends=FAILED
    ),
}

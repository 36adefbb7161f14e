"""From what was observed to the one final status, and to the messages that say so. Pure.

The rules, first that fits:

1. A job that completed successfully succeeded, even if it was being stopped.
2. A stop has the status of its reason. (A request that came after the end of the job, or of the runner,
   or after a failure, stopped nothing, and is not observed as a stop.)
3. A job with another result failed.
4. Anything else is a failure: no job, a runner that crashed, a fault before it ran.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Final
from uuid import NAMESPACE_URL, uuid5

from attrs import frozen

from agent_core import __version__
from agent_core.model import JobResult, JournalRecord, Status, StatusMessage, StopReason, StopRequest
from agent_core.phases import Phase

__all__ = [
    "ERROR_BYTES",
    "RESULT_OF_EXIT",
    "STATUS_OF_STOP",
    "Conclusion",
    "Observed",
    "conclude",
    "cut_head",
    "cut_tail",
    "disagreement",
    "final_message",
    "job_result",
    "message_id",
    "started_message",
]

ERROR_BYTES: Final = 4_000
"""Of an error's text, the tail is kept (wire contract)."""
_NAME_BYTES: Final = 1_000
"""Of a text that is somebody else's, the head is kept: the message stays under SQS's 262,144 bytes."""

STATUS_OF_STOP: Final[Mapping[StopReason, Status]] = MappingProxyType(
    {
        StopReason.INTERRUPTED: Status.INTERRUPTED,
        StopReason.MAX_RUNTIME: Status.TIMEOUT,
        StopReason.DISK_FLOOR: Status.FAILURE,
        StopReason.IDLE: Status.FAILURE,
        StopReason.STALLED: Status.FAILURE,
        StopReason.AGENT_FAULT: Status.FAILURE,
    }
)

RESULT_OF_EXIT: Final[Mapping[int, JobResult]] = MappingProxyType(
    {
        100: JobResult.SUCCEEDED,
        101: JobResult.SUCCEEDED_WITH_ISSUES,
        102: JobResult.FAILED,
        103: JobResult.CANCELED,
        104: JobResult.SKIPPED,
        105: JobResult.ABANDONED,
    }
)
"""What Runner.Listener ends with where it was asked to (`ACTIONS_RUNNER_RETURN_JOB_RESULT_FOR_HOSTED`)."""

_EXIT_SUCCESS: Final = 0
_EXIT_JOB_FAILED: Final = 1
_EXIT_NONE: Final = -1


@frozen(kw_only=True)
class Observed:
    """All that the final status depends on."""

    stop: StopRequest | None = None
    """What stopped the runner, or kept it from starting."""
    job_ran: bool | None = False
    """None: nobody knows."""
    """The runner said that it runs a job."""
    job_result: JobResult | None = None
    """What the runner said the job came to."""
    runner_exit_code: int | None = None
    """None: the runner never started, or was never seen to end."""
    error: str | None = None
    """What failed, in words."""
    error_phase: Phase | None = None


@frozen(kw_only=True)
class Conclusion:
    """The final status, and what goes with it."""

    status: Status
    exit_code: int
    error: str | None = None


def job_result(
    said: Sequence[JobResult],
    exit_code: int | None,
    after_work: JobResult | None = None,
    *,
    lied: bool = False,
) -> JobResult | None:
    """What the job came to, from all lines on the console that say so and the runner's exit code together.

    A job can have lines there that are not true, before and after the runner's own. So the one counts that
    the exit code bears out; else the first one after the work, or, where nobody saw that, the last one. An
    exit code alone says that a job failed, but not that it succeeded: 100 is also what is left of some faults
    of the runner.

    Args:
        said: what the lines say.
        exit_code: the runner's.
        after_work: what the first of them says that came when the job's worker had come and gone.
        lied: the job was caught at saying such a line. Then none is believed that says better than another
            one, or than the exit code.
    """
    told = _told_by(exit_code)
    bad = None if told is None or told.is_success else told
    if not said:
        return bad
    if told in said:
        return told
    if lied and (
        worse := next((each for each in (bad, *reversed(said)) if each and not each.is_success), None)
    ):
        return worse
    return after_work or said[-1]


def disagreement(result: JobResult | None, exit_code: int | None) -> str | None:
    """In words, that the exit code tells something else than the console; None: it does not."""
    told = _told_by(exit_code)
    if told is None or told is result:
        return None
    console = "nothing" if result is None else f"that the job {result}"
    return f"the runner's exit code {exit_code} says that the job {told}, its console said {console}"


def _told_by(exit_code: int | None) -> JobResult | None:
    return None if exit_code is None else RESULT_OF_EXIT.get(exit_code)


def conclude(observed: Observed) -> Conclusion:
    """The one final status."""
    result, stop = observed.job_result, observed.stop
    if result is not None and result.is_success:
        return Conclusion(status=Status.SUCCESS, exit_code=_EXIT_SUCCESS)
    own_code = _EXIT_NONE if observed.runner_exit_code is None else observed.runner_exit_code
    if stop is not None:
        return Conclusion(status=STATUS_OF_STOP[stop.reason], exit_code=own_code, error=stop.detail)
    if result is not None:
        return Conclusion(status=Status.FAILURE, exit_code=_EXIT_JOB_FAILED, error=observed.error)
    error = observed.error or _unexplained(observed)
    return Conclusion(status=Status.FAILURE, exit_code=own_code, error=error)


def _unexplained(observed: Observed) -> str:
    if observed.runner_exit_code is None:
        return "the runner was never seen to end"
    what = "before its job completed" if observed.job_ran else "without running a job"
    return f"the runner ended with exit code {observed.runner_exit_code} {what}"


# Messages


def message_id(instance_id: str, job_id: str, kind: str) -> str:
    """The ID of the `started` or the `final` message: the same from whoever sends it, also after a crash."""
    return str(uuid5(NAMESPACE_URL, json.dumps(["runs-fleet-agent", instance_id, job_id, kind])))


def started_message(record: JournalRecord, **measured: object) -> StatusMessage:
    """Says that the job begins to execute; `measured` are further fields of the message."""
    return _message(record, "started", status=Status.STARTED, started_at=record.started_at, **measured)


def final_message(
    record: JournalRecord, observed: Observed, now: datetime, **measured: object
) -> StatusMessage:
    """Says how it all ended; `measured` are further fields of the message."""
    completed_at = record.completed_at or now
    conclusion = conclude(observed)
    stop, started_at = observed.stop, record.started_at
    duration = None if started_at is None else max(0, round((completed_at - started_at).total_seconds()))
    return _message(
        record,
        "final",
        status=conclusion.status,
        exit_code=conclusion.exit_code,
        error=None if conclusion.error is None else cut_tail(conclusion.error, ERROR_BYTES),
        error_phase=observed.error_phase,
        started_at=started_at,
        completed_at=completed_at,
        duration_seconds=duration,
        job_result=observed.job_result,
        job_ran=observed.job_ran,
        runner_exit_code=observed.runner_exit_code,
        stop_reason=None if stop is None else stop.reason,
        interrupted_by=None if stop is None or stop.by is None else cut_head(stop.by, _NAME_BYTES),
        interruption_deadline=None if stop is None else stop.deadline,
        **measured,
    )


def _message(record: JournalRecord, kind: str, **fields: object) -> StatusMessage:
    job_id = record.job_id or ""
    names = {
        "instance_id": record.instance_id,
        "job_id": job_id,
        "run_id": record.run_id,
        "repo": record.repo,
        "job_name": record.job_name,
        "runner_version": record.runner_version,
    }
    known: dict[str, object] = {
        name: None if text is None else cut_head(text, _NAME_BYTES) for name, text in names.items()
    }
    known["message_id"] = message_id(record.instance_id, job_id, kind)
    known["agent_version"] = __version__
    return StatusMessage(**(known | fields))  # type: ignore[arg-type]  # StatusMessage is checked where it is written


def cut_tail(text: str, limit: int) -> str:
    """The text, or as much of its end as fits into `limit` bytes of UTF-8."""
    return _utf8(text)[-limit:].decode("utf-8", "ignore")


def cut_head(text: str, limit: int) -> str:
    """The text, or as much of its beginning as fits into `limit` bytes of UTF-8."""
    return _utf8(text)[:limit].decode("utf-8", "ignore")


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")

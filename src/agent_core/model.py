"""The values that pass between the core and its ports; all of them are frozen, and none shows a secret."""

import re
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from attrs import frozen

from agent_core.phases import Phase

__all__ = [
    "UNKNOWN_JOB",
    "UNKNOWN_RUN",
    "Assigned",
    "HostSample",
    "JobConfig",
    "JobResult",
    "JournalRecord",
    "Limits",
    "LogDestination",
    "LogEvent",
    "LogStats",
    "LogUpload",
    "OutputLine",
    "OutputMissed",
    "ProcessId",
    "Registration",
    "Release",
    "ReleaseRequest",
    "Secret",
    "Status",
    "StatusMessage",
    "StepLine",
    "StopReason",
    "StopRequest",
    "Trace",
    "Uploaded",
    "WorkerStarted",
]

_UNFIT_FOR_NAMES: Final = re.compile(r"[^\w.#-]|^\.+", re.ASCII)
_NAME_LENGTH: Final = 200

UNKNOWN_JOB: Final = "unknown-job"
"""Stands for the ID of a job that has none, in names of streams and keys."""
UNKNOWN_RUN: Final = "unknown-run"
"""The same for the ID of its run."""
_RUNNER_LOGS_PREFIX: Final = "runner-logs/"


class Secret:
    """A text that shows itself only when asked to: `repr`, `str` and formatting give asterisks."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one place that needs it."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not written anywhere")


@frozen(kw_only=True)
class JobConfig:
    """What the orchestrator wants this instance to run (the config parameter of the wire contract)."""

    org: str
    repo: str
    """`name`, or `owner/name`."""
    labels: tuple[str, ...]
    jit_token: Secret | None = None
    """A registration token for `config.sh --token`, in spite of its name."""
    jit_config: Secret | None = None
    """An encoded just-in-time config; wins over the token."""
    runner_group: str | None = None
    job_id: str = ""
    run_id: str | None = None
    runner_name: str | None = None
    is_org: bool = False
    created_at: datetime | None = None
    """When the token was made: the config's `created_at`, or the date of what held it."""
    termination_queue_url: str | None = None
    cache_url: str | None = None
    cache_token: Secret | None = None
    runner_logs_bucket: str | None = None
    runner_logs_prefix: str | None = None
    runner_version: str | None = None
    runner_sha256: str | None = None
    """64 hex digits, lower case: pins the digest of the runner's tarball."""
    max_runtime_minutes: int | None = None
    unknown_keys: tuple[str, ...] = ()
    """What else stood there; it is named in the log, and ignored."""

    @property
    def repo_path(self) -> str:
        """`owner/name`."""
        return self.repo if "/" in self.repo else f"{self.org}/{self.repo}"

    @property
    def max_runtime(self) -> timedelta | None:
        """The job's own bound."""
        return None if self.max_runtime_minutes is None else timedelta(minutes=self.max_runtime_minutes)


@frozen(kw_only=True)
class Limits:
    """The bounds that an operator sets."""

    max_runtime: timedelta = timedelta(minutes=360)
    """From the job's start."""
    standby: timedelta = timedelta(minutes=10)
    """How long to wait for a config that is not there yet."""
    idle: timedelta = timedelta(minutes=10)
    """How long a registered runner may wait for its job."""
    shutdown_grace: timedelta = timedelta(seconds=90)
    """How long the runner may take to stop by itself."""
    min_free_disk_bytes: int = 500 * 1024 * 1024
    min_available_memory_bytes: int = 200 * 1024 * 1024


# The runner


@frozen(kw_only=True)
class ReleaseRequest:
    """Which runner is wanted: `version` is `2.x.y` or `latest`, `arch` is `x64` or `arm64`."""

    version: str
    arch: str


@frozen(kw_only=True)
class Release:
    """One runner tarball, with its digest from a source that is trusted."""

    version: str
    arch: str
    sha256: str
    """64 hex digits, lower case."""


@frozen(kw_only=True)
class Registration:
    """What the runner needs to introduce itself to GitHub; it has a JIT config, or a token, or both."""

    url: str
    name: str
    labels: tuple[str, ...]
    group: str | None = None
    token: Secret | None = None
    jit_config: Secret | None = None


@frozen
class OutputLine:
    """A piece of the runner's output: a line without its end, or, of a very long line, a part."""

    text: str
    continued: bool = False
    """True for a part that is not the first one of its line."""


@frozen
class Assigned:
    """GitHub has given the runner a job, which it may not have begun yet."""


@frozen
class WorkerStarted:
    """The runner has a worker now, for the one job of this start."""


@frozen
class StepLine:
    """A line that a step of the job printed, or a part of one."""

    step: int
    """1 for the first step that printed anything, 2 for the next one, and so on."""
    line: OutputLine


@frozen
class OutputMissed:
    """Something that a step printed was gone before it could be read."""

    detail: str
    """One line for people."""


Trace = Assigned | WorkerStarted | StepLine | OutputMissed
"""What a runner leaves in its files while it runs."""


@frozen(order=True)
class ProcessId:
    """A process that cannot be mistaken for a later one of the same number, within one boot."""

    pid: int
    started: float
    """Seconds from the host's boot, as the kernel accounts it: what tells it from a later process."""


class JobResult(StrEnum):
    """What the runner says a job came to; the values are those of `job_result` in a message."""

    SUCCEEDED = "succeeded"
    SUCCEEDED_WITH_ISSUES = "succeeded_with_issues"
    FAILED = "failed"
    CANCELED = "canceled"
    SKIPPED = "skipped"
    ABANDONED = "abandoned"

    @property
    def is_success(self) -> bool:
        return self in {JobResult.SUCCEEDED, JobResult.SUCCEEDED_WITH_ISSUES, JobResult.SKIPPED}


# Stopping


class StopReason(StrEnum):
    """Why the agent stopped the runner; the values are those of `stop_reason` in a message."""

    INTERRUPTED = "interrupted"
    MAX_RUNTIME = "max_runtime"
    DISK_FLOOR = "disk_floor"
    IDLE = "idle"
    STALLED = "stalled"
    AGENT_FAULT = "agent_fault"


@frozen
class StopRequest:
    """A wish to stop, and all that is known of it."""

    reason: StopReason
    detail: str
    """One line for people."""
    by: str | None = None
    """For an interruption, what interrupted: `SIGTERM`, `SIGINT`, `spot`."""
    deadline: datetime | None = None
    """When the machine goes away, whatever the agent does."""


# The runner's own logs


@frozen
class LogDestination:
    """Where the runner's diagnostic logs go."""

    bucket: str
    prefix: str
    """Of the keys, with its slash: `runner-logs/{run_id}/{job_id}/{instance_id}/`."""


@frozen(kw_only=True)
class Uploaded:
    """What was uploaded of the runner's diagnostic logs."""

    files: int
    bytes: int
    """Of their contents, before they were compressed."""
    left_out: int = 0
    """Files that were not uploaded, or not whole, since there were too many of them or too much in them."""


class LogUpload(StrEnum):
    """What became of the runner's diagnostic logs; the values are those of `log_upload` in a message."""

    UPLOADED = "uploaded"
    PARTIAL = "partial"
    """Some of them, or not the whole of some: there was too much for the bounds."""
    DENIED = "denied"
    FAILED = "failed"
    """Nobody took them, or not in time."""
    SKIPPED = "skipped"
    """The machine's end was too near to begin."""


# What is sent


class Status(StrEnum):
    """`status` of a message; all but the first are final."""

    STARTED = "started"
    SUCCESS = "success"
    FAILURE = "failure"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"


@frozen(kw_only=True)
class StatusMessage:
    """A message to the termination queue, whole; a field that is None is left out of it.

    Build one with `agent_core.status`, which keeps it within the queue's limits.
    """

    instance_id: str
    job_id: str
    status: Status
    message_id: str
    """The same in every repeat of the same message, so that a consumer can drop the repeat."""
    exit_code: int | None = None
    duration_seconds: int | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    error: str | None = None
    run_id: str | None = None
    repo: str | None = None
    job_result: JobResult | None = None
    job_name: str | None = None
    job_ran: bool | None = None
    runner_exit_code: int | None = None
    runner_version: str | None = None
    interrupted_by: str | None = None
    interruption_deadline: datetime | None = None
    """When the machine goes away, as what interrupted said: the time of a spot notice."""
    stop_reason: StopReason | None = None
    error_phase: Phase | None = None
    log_upload: LogUpload | None = None
    """Of the runner's own logs, where the config wants them."""
    log_lines_accepted: int | None = None
    log_lines_delivered: int | None = None
    log_lines_rejected: int | None = None
    log_lines_dropped: int | None = None
    bootstrap_config_seconds: float | None = None
    bootstrap_runner_seconds: float | None = None
    bootstrap_register_seconds: float | None = None
    bootstrap_total_seconds: float | None = None
    agent_version: str | None = None


@frozen
class LogEvent:
    """One event of a log stream."""

    timestamp_ms: int
    """Milliseconds since the epoch."""
    text: str


@frozen(kw_only=True)
class LogStats:
    """What became of the log events written: accepted = delivered + rejected + dropped + pending."""

    accepted: int = 0
    delivered: int = 0
    rejected: int = 0
    """Taken by the sink's service and refused there, each by itself (too old, too new)."""
    dropped: int = 0
    """Given up: the sink denied them, the spool was full, or the time was over."""

    @property
    def pending(self) -> int:
        return self.accepted - self.delivered - self.rejected - self.dropped


# The host, and what outlives a crash


@frozen(kw_only=True)
class HostSample:
    """The host at one moment."""

    free_disk_bytes: int
    available_memory_bytes: int
    booted_at: datetime


@frozen(kw_only=True)
class JournalRecord:
    """What a successor must know after a crash. It holds no secret."""

    instance_id: str
    agent_version: str
    phase: Phase
    agent: ProcessId | None = None
    """The process that writes: a successor leaves it alone while it lives."""
    booted_at: datetime | None = None
    """Process IDs of an earlier boot mean nothing."""
    job_id: str | None = None
    """None until a config was read: then there is no job, and so no message."""
    run_id: str | None = None
    repo: str | None = None
    queue_url: str | None = None
    jobs_run: tuple[str, ...] = ()
    """The IDs of the jobs that this instance took on, carried over from life to life, oldest first."""
    installed: bool = False
    """The files in the runner's root are the agent's, which removes them."""
    runner: tuple[ProcessId, ...] = ()
    runner_logs_bucket: str | None = None
    """Where the config wants the runner's own logs."""
    runner_logs_prefix: str | None = None
    runner_version: str | None = None
    started_at: datetime | None = None
    """When the job began to execute."""
    job_name: str | None = None
    job_result: JobResult | None = None
    completed_at: datetime | None = None
    """When the runner said so."""
    stop: StopRequest | None = None
    """What stopped the runner; None as long as nothing has, and when it ended before anything did."""
    final: StatusMessage | None = None
    """The final message, written here before it is first sent."""
    confirmed: tuple[str, ...] = ()
    """The IDs of the messages that the queue has taken."""
    terminated: bool = False
    """The request to terminate was accepted."""

    @property
    def stream(self) -> str:
        """The name of the job's log stream: no character that CloudWatch Logs or a file system refuses."""
        return f"{self.instance_id}/{_fit_for_names(self.job_id or UNKNOWN_JOB)}"

    @property
    def log_destination(self) -> LogDestination | None:
        """Where the runner's own logs go; None: nowhere."""
        if self.runner_logs_bucket is None:
            return None
        prefix = _RUNNER_LOGS_PREFIX if self.runner_logs_prefix is None else self.runner_logs_prefix
        run, job = _fit_for_names(self.run_id or UNKNOWN_RUN), _fit_for_names(self.job_id or UNKNOWN_JOB)
        return LogDestination(self.runner_logs_bucket, f"{prefix}{run}/{job}/{self.instance_id}/")


def _fit_for_names(text: str) -> str:
    return _UNFIT_FOR_NAMES.sub("_", text)[:_NAME_LENGTH]

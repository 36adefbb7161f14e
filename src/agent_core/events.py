"""What happens in a life, as values: shown on terminals, logged, streamed, and compared in tests."""

from collections.abc import Callable
from datetime import timedelta

from attrs import frozen

from agent_core.model import (
    JobResult,
    LogDestination,
    LogStats,
    OutputLine,
    StatusMessage,
    StopRequest,
    Uploaded,
)
from agent_core.phases import Phase

__all__ = [
    "Downloading",
    "Event",
    "Failed",
    "JobAssigned",
    "JobCompleted",
    "JobInherited",
    "JobStarted",
    "JobTaken",
    "Killed",
    "LogsDrained",
    "MaxRuntimeSet",
    "MessageSent",
    "Observer",
    "PhaseEntered",
    "PoweringOff",
    "Printed",
    "RunnerInPlace",
    "RunnerLogsUploaded",
    "RunnerRestarting",
    "StopRequested",
    "Terminating",
    "TerminationRequested",
    "Warned",
]


@frozen
class PhaseEntered:
    phase: Phase

    def __str__(self) -> str:
        return f"phase {self.phase}"


@frozen
class JobTaken:
    """The config is here: the life has a job, and somebody to report to."""

    job_id: str
    repo: str
    stream: str
    """Of its logs."""

    def __str__(self) -> str:
        return f"took job {self.job_id!r} of {self.repo}"


@frozen
class JobInherited:
    """A successor finishes what an agent left that had a job, and has died."""

    job_id: str
    phase: Phase
    """In which it died."""

    def __str__(self) -> str:
        return f"finishing job {self.job_id!r}, whose agent died in phase {self.phase}"


@frozen
class MaxRuntimeSet:
    """The job's config has a max runtime of its own, instead of the operator's."""

    max_runtime: timedelta

    def __str__(self) -> str:
        return f"the job may run for {self.max_runtime}"


@frozen
class Downloading:
    """So many bytes of the runner are here; `total` where it is known."""

    done: int
    total: int | None

    def __str__(self) -> str:
        return f"downloaded {self.done} of {self.total or 'an unknown number of'} bytes"


@frozen
class RunnerInPlace:
    """The runner's root has the runner."""

    version: str
    prebaked: bool
    """It came with the machine's image."""

    def __str__(self) -> str:
        return f"runner {self.version} is in place{', prebaked' * self.prebaked}"


@frozen
class Printed:
    """The runner, or a step of the job, printed a line, or a part of one."""

    line: OutputLine
    step: int | None = None
    """Which step: 1 for the first that printed anything; None: the runner itself."""

    def __str__(self) -> str:
        return self.line.text if self.step is None else f"[step {self.step}] {self.line.text}"


@frozen
class RunnerRestarting:
    exit_code: int
    delay: float

    def __str__(self) -> str:
        return f"the runner ended with exit code {self.exit_code}; started again in {self.delay:.0f} s"


@frozen
class JobAssigned:
    """GitHub has given the runner a job, which has not begun yet."""

    def __str__(self) -> str:
        return "a job is assigned"


@frozen
class JobStarted:
    name: str

    def __str__(self) -> str:
        return f"job {self.name!r} runs"


@frozen
class JobCompleted:
    name: str
    result: JobResult

    def __str__(self) -> str:
        return f"job {self.name!r} completed: {self.result}"


@frozen
class StopRequested:
    """Something asks to stop; only one request counts, later ones may bring the deadline nearer."""

    request: StopRequest
    counts: bool
    """False: the life was ending already."""

    def __str__(self) -> str:
        again = "" if self.counts else " (ending already)"
        return f"stop: {self.request.detail}{again}"


@frozen
class Killed:
    """So many processes of the runner did not end by themselves."""

    count: int

    def __str__(self) -> str:
        return f"killed {self.count} processes that the runner left behind"


@frozen
class Warned:
    """Something is not as it should be, and the life goes on."""

    text: str

    def __str__(self) -> str:
        return self.text


@frozen
class Failed:
    """Something went wrong for good; `trace` has the details where the agent itself is at fault."""

    phase: Phase
    error: str
    trace: str | None = None

    def __str__(self) -> str:
        trace = f"\n{self.trace}" if self.trace else ""
        return f"failed in phase {self.phase}: {self.error}{trace}"


@frozen
class RunnerLogsUploaded:
    """What the runner logged of itself is where the config wants it."""

    uploaded: Uploaded
    destination: LogDestination

    def __str__(self) -> str:
        what, where = self.uploaded, self.destination
        left_out = f", {what.left_out} left out or cut" if what.left_out else ""
        return f"uploaded {what.files} logs of the runner to {where.bucket}/{where.prefix}{left_out}"


@frozen
class LogsDrained:
    stats: LogStats

    def __str__(self) -> str:
        s = self.stats
        return f"logs: {s.delivered} lines delivered, {s.rejected} rejected, {s.dropped} dropped"


@frozen
class MessageSent:
    message: StatusMessage

    def __str__(self) -> str:
        return f"sent the message {self.message.status}"


@frozen
class Terminating:
    """The first of the last steps, announced before it is taken."""

    instance_id: str

    def __str__(self) -> str:
        return f"asking for the termination of {self.instance_id or 'this instance'}"


@frozen
class TerminationRequested:
    """The request was accepted."""

    instance_id: str

    def __str__(self) -> str:
        return f"requested the termination of {self.instance_id}"


@frozen
class PoweringOff:
    """The last resort, announced before it is taken: the host is powered off."""

    reason: str

    def __str__(self) -> str:
        return f"powering off the host: {self.reason}"


Event = (
    PhaseEntered
    | JobTaken
    | JobInherited
    | MaxRuntimeSet
    | Downloading
    | RunnerInPlace
    | Printed
    | RunnerRestarting
    | JobAssigned
    | JobStarted
    | JobCompleted
    | StopRequested
    | Killed
    | Warned
    | Failed
    | RunnerLogsUploaded
    | LogsDrained
    | MessageSent
    | Terminating
    | TerminationRequested
    | PoweringOff
)

Observer = Callable[[Event], None]
"""Told of each event as it happens, on the loop's thread; must return at once."""

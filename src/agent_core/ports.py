"""What the core asks of the world: one Protocol for each thing that an adapter does.

Every method may raise the errors that its docstring names, and no others; the suites in
`agent_core.testing.contracts` hold any adapter to that. Every method may be cancelled, and then
leaves nothing running; the core bounds each call in time, so no adapter needs a deadline of its own.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from attrs import frozen

from agent_core.model import (
    HostSample,
    JobConfig,
    JournalRecord,
    LogDestination,
    LogEvent,
    OutputLine,
    ProcessId,
    Registration,
    Release,
    ReleaseRequest,
    Secret,
    StatusMessage,
    Trace,
    Uploaded,
)

__all__ = [
    "BinaryStore",
    "ConfigSource",
    "DiagnosticsStore",
    "HostProbe",
    "Journal",
    "LogSink",
    "LogSpool",
    "Notifier",
    "Ports",
    "Progress",
    "RunnerProcess",
    "Say",
    "Terminator",
    "Warn",
]

Progress = Callable[[int, int | None], None]
"""Told the bytes done so far, and the bytes in all where they are known; on the loop's thread."""


Say = Callable[[OutputLine], None]
"""Told what a process prints; on the loop's thread."""


Warn = Callable[[str], None]
"""Told what is not as it should be, though the call goes on; on the loop's thread."""


@runtime_checkable
class ConfigSource(Protocol):
    """Where the job's config comes from."""

    async def fetch(self) -> JobConfig:
        """The config as it is now; one look, no waiting.

        Raises:
            ConfigAbsentError: it is not there yet.
            ConfigUnavailableError: the place did not answer.
            ConfigDeniedError: it may not be read.
            ConfigMalformedError: it cannot be understood.
        """
        ...


@runtime_checkable
class BinaryStore(Protocol):
    """Where the runner's files come from; it puts them into the runner's root."""

    async def prebaked(self) -> str | None:
        """The version of the runner that the machine's image has in the root, complete and never used.

        None: there is none, or none that may be relied on.
        """
        ...

    async def resolve(self, request: ReleaseRequest) -> Release:
        """The number and the trusted digest of the wanted version.

        Raises:
            BinaryUnavailableError: there is no such version, or nobody answered.
        """
        ...

    async def install(self, release: Release, progress: Progress, warn: Warn) -> None:
        """Leaves the release, whole and verified, in the runner's root, or nothing at all.

        Args:
            release: what to install.
            progress: told of the download.
            warn: told of a place that did not have it, where another one had; also later, of what goes on
                behind the call's back.

        Raises:
            BinaryUnavailableError: the bytes could not be had.
            DigestMismatchError: the bytes are not those of `release.sha256`.
            ArchiveRefusedError: the archive is damaged or hostile.
        """
        ...


@runtime_checkable
class RunnerProcess(Protocol):
    """The runner in its root: registered, started (again), watched, stopped, removed."""

    async def register(self, registration: Registration, say: Say) -> None:
        """Introduces the runner to GitHub with `registration.token`, as ephemeral.

        Args:
            registration: has a token.
            say: told what the runner prints meanwhile.

        Raises:
            RegistrationRefusedError: the runner or GitHub said no.
            RunnerUnavailableError: it could not be asked.
        """
        ...

    async def start(
        self, jit_config: Secret | None, job_environment: Mapping[str, str | Secret] | None = None
    ) -> ProcessId:
        """Starts the runner, registered or with a JIT config; again after it has ended.

        Args:
            jit_config: None where the runner is registered.
            job_environment: further variables for the job's steps; a secret one is theirs to see, but is
                masked in what the runner itself prints.

        Raises:
            RunnerUnavailableError: there is nothing to start, or it did not start.
        """
        ...

    def output(self) -> AsyncIterator[OutputLine]:
        """All that the runner started last prints, from its first byte, to the end of its output.

        It ends when no process holds the output open any more: after `wait`, or, where the runner
        left processes behind, after `kill`. Reading is what keeps the runner from blocking.
        """
        ...

    async def wait(self) -> int:
        """The exit code of the runner started last; 128 + N when signal N ended it."""
        ...

    def traces(self) -> AsyncIterator[Trace]:
        """What the runner started last leaves in its files: of its job, its worker, and what steps print.

        It tells of each as it happens, of a step's lines in their order. It ends when the runner has ended,
        `kill` has been called after that, and all that there is has been read.
        """
        ...

    async def has_worker(self) -> bool:
        """Whether the runner has a process that works on a job now."""
        ...

    async def interrupt(self) -> None:
        """Asks the runner, and only it, to stop in order (one SIGINT); nothing if it has ended."""
        ...

    async def kill(self, known: Sequence[ProcessId] = ()) -> int:
        """Ends every process of the runner, until none is left; how many there were.

        Those that a call before it had ended, which did not come to its own end, count with them.

        `known` are processes of a runner that an earlier agent started. Also without them, every
        process that works from the runner's root is found.

        Raises:
            RunnerUnavailableError: some could not be ended.
        """
        ...

    async def remove(self) -> None:
        """Removes the runner's root, with all that the job left in it.

        Raises:
            RunnerUnavailableError: something is still there.
        """
        ...


@runtime_checkable
class DiagnosticsStore(Protocol):
    """Takes the runner's own logs (`_diag/*.log` in its root), which tell what else nobody could find out."""

    async def upload(self, destination: LogDestination, progress: Progress) -> Uploaded:
        """Sends each of the logs, gzipped, as `{destination.prefix}{name}.gz`; again is allowed.

        What it takes is bounded: the newest files, and of a very large one the end.

        Args:
            destination: where they go.
            progress: told of the bytes that have gone, so that a slow upload is not taken for one that hangs.

        Raises:
            DiagnosticsUnavailableError: not all that it tried were taken, for now.
            DiagnosticsDeniedError: they may not be written there.
        """
        ...


@runtime_checkable
class LogSink(Protocol):
    """Takes batches of log events, within the limits of PutLogEvents (`agent_core.batches`)."""

    async def put(self, stream: str, events: Sequence[LogEvent]) -> int:
        """Delivers the events in order to the stream `{instance_id}/{job_id}`; how many were rejected.

        Raises:
            LogSinkUnavailableError: not delivered, for now.
            LogSinkDeniedError: not delivered, and never will be.
            BatchRefusedError: the batch breaks a limit.
        """
        ...


@runtime_checkable
class LogSpool(Protocol):
    """Holds what does not fit into memory, first in, first out. Local and quick, so not a coroutine.

    What it holds outlives the process, and what was popped until it is forgotten. It begins empty: what an
    earlier life left is gone with the first push, unless it was recovered before.
    """

    def recover(self) -> int:
        """Takes over what an earlier life left, to be popped first; how many events that is.

        After the first push there is nothing to take over any more.

        Raises:
            SpoolError: it cannot be read.
        """
        ...

    def clear(self) -> None:
        """Removes all that it holds, and what an earlier life left.

        Raises:
            SpoolError: some of it may still be there.
        """
        ...

    def push(self, events: Sequence[LogEvent]) -> None:
        """Appends the events.

        Raises:
            SpoolError: it is full or broken; none of the events was taken.
        """
        ...

    def pop(self, max_bytes: int) -> list[LogEvent]:
        """Takes the oldest events: at least one if there is any, of `max_bytes` of text at most together.

        Raises:
            SpoolError: the oldest cannot be read. By as many as are lost it holds less; the others come next.
        """
        ...

    def forget(self, count: int) -> None:
        """The oldest `count` of the events that were popped are in good hands: no successor needs them.

        It may have some all the same. They take up room until then.
        """
        ...

    def __len__(self) -> int:
        """How many events there are to be popped."""
        ...


@runtime_checkable
class Notifier(Protocol):
    """Sends messages to the orchestrator's termination queue."""

    async def send(self, message: StatusMessage, queue_url: str | None) -> None:
        """Returns when the queue has the message; sending the same one again is allowed.

        Args:
            message: what to send.
            queue_url: the queue that the job's config names; None: the one the adapter was made with.

        Raises:
            NotifierUnavailableError: not sent, for now.
            NotifierDeniedError: not sent, and never will be (also where there is no queue).
            MessageRefusedError: it breaks a limit (SQS: 262,144 bytes).
        """
        ...


@runtime_checkable
class Terminator(Protocol):
    """Makes the instance disappear."""

    async def terminate(self, instance_id: str) -> None:
        """Returns when the request was accepted; asking again is allowed.

        Raises:
            TerminatorUnavailableError: not accepted, for now.
            TerminatorDeniedError: not allowed.
        """
        ...

    async def power_off(self) -> None:
        """Returns when the host has begun to power off, which ends an instance that was launched so.

        Raises:
            TerminatorUnavailableError: it could not be asked to.
            TerminatorDeniedError: this adapter powers off nothing.
        """
        ...


@runtime_checkable
class HostProbe(Protocol):
    """Measures the host."""

    async def sample(self) -> HostSample:
        """The host now.

        Raises:
            HostUnavailableError: it could not be measured.
        """
        ...

    def is_alive(self, process: ProcessId) -> bool:
        """Whether that very process still runs."""
        ...

    def own_process(self) -> ProcessId:
        """The process that this runs in."""
        ...


@runtime_checkable
class Journal(Protocol):
    """Keeps one record where it survives a crash."""

    async def load(self) -> JournalRecord | None:
        """The record last saved; None where there was never one.

        Raises:
            JournalUnavailableError: it cannot be read.
            JournalDamagedError: it cannot be understood.
        """
        ...

    async def save(self, record: JournalRecord) -> None:
        """Replaces the record, all or nothing, and returns when it would survive a crash.

        Raises:
            JournalUnavailableError: it cannot be written; the record before is still there.
        """
        ...


@frozen(kw_only=True)
class Ports:
    """All that an agent needs of the world."""

    config_source: ConfigSource
    binary_store: BinaryStore
    runner_process: RunnerProcess
    diagnostics_store: DiagnosticsStore
    log_sink: LogSink
    log_spool: LogSpool
    notifier: Notifier
    terminator: Terminator
    host_probe: HostProbe
    journal: Journal

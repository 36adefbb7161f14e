"""The whole world in memory: an adapter for each port, for tests and simulations.

They keep the promises and the limits of the real services, and what they recorded stands in plain
attributes. Time is the event loop's, so in a simulated loop all of it is virtual.

A `Machine` is what survives the agent: its disk, its journal, its processes. A successor gets new
adapters of the same machine, as after a crash.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from attrs import Factory, define, field, frozen

from agent_adapters.wire import checked_message, journal_from_json, journal_to_json
from agent_core.delivery import check_batch, event_bytes
from agent_core.errors import (
    ArchiveRefusedError,
    BinaryError,
    BinaryUnavailableError,
    ConfigAbsentError,
    ConfigError,
    DigestMismatchError,
    JournalUnavailableError,
    NotifierDeniedError,
    RegistrationRefusedError,
    RunnerUnavailableError,
    SpoolError,
    TerminatorDeniedError,
)
from agent_core.model import (
    HostSample,
    JobConfig,
    JobResult,
    JournalRecord,
    LogEvent,
    OutputLine,
    ProcessId,
    Registration,
    Release,
    ReleaseRequest,
    Secret,
    StatusMessage,
)
from agent_core.ports import (
    BinaryStore,
    ConfigSource,
    HostProbe,
    Journal,
    LogSink,
    LogSpool,
    Notifier,
    Progress,
    RunnerProcess,
    Say,
    Terminator,
)

__all__ = [
    "InMemoryBinaryStore",
    "InMemoryConfigSource",
    "InMemoryHostProbe",
    "InMemoryJournal",
    "InMemoryLogSink",
    "InMemoryLogSpool",
    "InMemoryNotifier",
    "InMemoryRunnerProcess",
    "InMemoryTerminator",
    "Machine",
    "RunnerScript",
]

_TOO_OLD: Final = timedelta(days=14)
_TOO_NEW: Final = timedelta(hours=2)
_KILLED: Final = 137
_EPOCH: Final = datetime(2025, 11, 25, 10, 0, tzinfo=UTC)


@define
class Machine:
    """One instance: what outlives the agent on it."""

    instance_id: str = "i-0123456789abcdef0"
    free_disk_bytes: int = 50 * 2**30
    available_memory_bytes: int = 4 * 2**30
    booted_at: datetime = _EPOCH
    journal: str | None = None
    """The journal's text, as it stands on the disk."""
    installed: Release | None = None
    """What is in the runner's root."""
    registered: bool = False
    runner_alive: set[ProcessId] = Factory(set)
    agents_alive: set[ProcessId] = Factory(set)
    processes_made: int = 0

    def new_process(self) -> ProcessId:
        """The identity of one more process."""
        self.processes_made += 1
        return ProcessId(self.processes_made, float(self.processes_made))


# Config


@define
class InMemoryConfigSource(ConfigSource):
    """Has a config, or an error, or (yet) neither."""

    config: JobConfig | None = None
    error: ConfigError | None = None
    fetches: int = 0

    async def fetch(self) -> JobConfig:
        self.fetches += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        if self.config is None:
            raise ConfigAbsentError("there is no config in memory yet")
        return self.config


# The runner's files


@define
class InMemoryBinaryStore(BinaryStore):
    """Runner archives by version; their content is checked like a real one's."""

    machine: Machine
    archives: dict[str, bytes] = Factory(lambda: {"2.336.0": b"a runner"})
    """Version to bytes; the last is the latest."""
    arches: tuple[str, ...] = ("x64", "arm64")
    """What there are archives for."""
    damaged: set[str] = Factory(set)
    """Versions whose archive cannot be unpacked, though its bytes are the promised ones."""
    tampered: bytes | None = None
    """What comes instead of the bytes that were promised."""
    seconds: float = 1.0
    """How long a download takes."""

    async def resolve(self, request: ReleaseRequest) -> Release:
        await asyncio.sleep(0)
        versions = list(self.archives)
        version = versions[-1] if request.version == "latest" and versions else request.version
        if version not in self.archives or request.arch not in self.arches:
            raise BinaryUnavailableError(f"there is no runner {request.version} for {request.arch}")
        sha256 = hashlib.sha256(self.archives[version]).hexdigest()
        return Release(version=version, arch=request.arch, sha256=sha256)

    async def install(self, release: Release, progress: Progress) -> None:
        if self.machine.installed is not None:
            raise BinaryError("the runner's root is not empty: remove it, or choose another")
        if release.version not in self.archives or release.arch not in self.arches:
            raise BinaryUnavailableError(f"there is no runner {release.version} for {release.arch}")
        data = self.archives[release.version] if self.tampered is None else self.tampered
        progress(0, len(data))
        await asyncio.sleep(self.seconds)
        progress(len(data), len(data))
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 != release.sha256:
            raise DigestMismatchError(f"the digest is {sha256}, not {release.sha256}")
        if release.version in self.damaged:
            raise ArchiveRefusedError(f"the archive of {release.version} is damaged")
        self.machine.installed = release


# The runner's process


@frozen(kw_only=True)
class RunnerScript:
    """How a runner behaves; times are seconds, each after the one before."""

    refuse_registration: str | None = None
    refuse_jit: bool = False
    register_seconds: float = 3.0
    early_exits: tuple[int, ...] = ()
    """Exit codes of the first starts, which end before they listen."""
    listen_after: float | None = 1.0
    """None: it never listens."""
    assign_after: float | None = 2.0
    """None: no job comes."""
    job_name: str = "build"
    output: tuple[str, ...] = ("hello from the job",)
    job_seconds: float | None = 30.0
    """None: the job never ends by itself."""
    crash_after: float | None = None
    """From the job's start: the runner dies, with `exit_code`."""
    result: JobResult | None = JobResult.SUCCEEDED
    """None: the job is lost; no line tells its result."""
    exit_after: float | None = 0.5
    """From the job's completion; None: it never ends by itself."""
    exit_code: int = 0
    cancel_seconds: float | None = 2.0
    """How long it takes to stop in order; None: it ignores the request."""
    leaves_behind: int = 0
    """Processes of the job that outlive the runner, and hold its output open."""


_SUCCEEDED: Final = RunnerScript()
_RESULT_WORDS: Final = {
    JobResult.SUCCEEDED: "Succeeded",
    JobResult.SUCCEEDED_WITH_ISSUES: "SucceededWithIssues",
    JobResult.FAILED: "Failed",
    JobResult.CANCELED: "Canceled",
    JobResult.SKIPPED: "Skipped",
    JobResult.ABANDONED: "Abandoned",
}


@define(eq=False)
class InMemoryRunnerProcess(RunnerProcess):
    """A runner that follows a script."""

    machine: Machine
    script: RunnerScript = _SUCCEEDED
    registrations: list[Registration] = Factory(list)
    starts: int = 0
    interrupts: int = 0
    _early: list[int] = field(init=False)
    _lines: asyncio.Queue[str | None] = field(init=False, factory=asyncio.Queue)
    _main: ProcessId | None = field(init=False, default=None)
    _playing: asyncio.Task[int] | None = field(init=False, default=None)
    _interrupted: asyncio.Event = field(init=False, factory=asyncio.Event)

    def __attrs_post_init__(self) -> None:
        self._early = list(self.script.early_exits)

    async def register(self, registration: Registration, say: Say) -> None:
        self._require_files()
        await asyncio.sleep(self.script.register_seconds)
        say(OutputLine("√ Runner successfully added"))
        if self.script.refuse_registration is not None:
            raise RegistrationRefusedError(self.script.refuse_registration)
        if registration.token is None:
            raise RegistrationRefusedError("there is no token to register with")
        self.registrations.append(registration)
        self.machine.registered = True

    async def start(self, jit_config: Secret | None) -> ProcessId:
        self._require_files()
        await asyncio.sleep(0)
        if self._main in self.machine.runner_alive:
            raise RunnerUnavailableError("the runner runs already")
        self.starts += 1
        self._interrupted.clear()
        self._lines = asyncio.Queue()
        self._main = self.machine.new_process()
        self.machine.runner_alive.add(self._main)
        accepted = self.machine.registered or (jit_config is not None and not self.script.refuse_jit)
        play = self._play() if accepted else self._refuse()
        self._playing = asyncio.create_task(play, name="in-memory runner")
        self._playing.add_done_callback(lambda _: self._end())
        return self._main

    async def output(self) -> AsyncIterator[OutputLine]:
        if self._playing is None:
            raise RunnerUnavailableError("the runner was not started")
        lines = self._lines
        while (line := await lines.get()) is not None:
            yield OutputLine(line)

    async def wait(self) -> int:
        if self._playing is None:
            raise RunnerUnavailableError("the runner was not started")
        await asyncio.wait({self._playing})
        return _KILLED if self._playing.cancelled() else self._playing.result()

    async def interrupt(self) -> None:
        await asyncio.sleep(0)
        if self._main in self.machine.runner_alive:
            self.interrupts += 1
            self._interrupted.set()

    async def kill(self, known: Sequence[ProcessId] = ()) -> int:  # noqa: ARG002 - memory forgets no process
        await asyncio.sleep(0)
        killed = len(self.machine.runner_alive)
        self.machine.runner_alive.clear()
        if self._playing is not None and not self._playing.done():
            self._playing.cancel()
            await asyncio.wait({self._playing})
        self._lines.put_nowait(None)
        return killed

    async def remove(self) -> None:
        await asyncio.sleep(0)
        self.machine.installed = None
        self.machine.registered = False

    def _require_files(self) -> None:
        if self.machine.installed is None:
            raise RunnerUnavailableError("there is no runner in the root")

    async def _refuse(self) -> int:
        await asyncio.sleep(0.5)
        self._print("An error occurred: the just-in-time config is not valid")
        return 1

    async def _play(self) -> int:
        """One start, from its first line to its exit code."""
        script = self.script
        self._print("√ Connected to GitHub")
        if self._early:
            await asyncio.sleep(1.0)
            return self._early.pop(0)
        if await self._interrupted_within(script.listen_after):
            return 0
        self._log("Listening for Jobs")
        if await self._interrupted_within(script.assign_after):
            return 0
        return await self._play_job()

    async def _play_job(self) -> int:
        script = self.script
        self._log(f"Running job: {script.job_name}")
        for line in script.output:
            self._print(line)
        for _ in range(script.leaves_behind):
            self.machine.runner_alive.add(self.machine.new_process())
        if script.crash_after is not None:
            await asyncio.sleep(script.crash_after)
            return script.exit_code
        if await self._interrupted_within(script.job_seconds):
            self._log_completion("Canceled")
            return 0
        if script.result is not None:
            self._log_completion(_RESULT_WORDS[script.result])
        interrupted = await self._interrupted_within(script.exit_after)
        return 0 if interrupted else script.exit_code

    async def _interrupted_within(self, seconds: float | None) -> bool:
        """Whether it is time to stop in order, before the time is over."""
        try:
            async with asyncio.timeout(seconds):
                await self._interrupted.wait()
                await (
                    _for_ever()
                    if self.script.cancel_seconds is None
                    else asyncio.sleep(self.script.cancel_seconds)
                )
        except TimeoutError:
            return False
        return True

    def _end(self) -> None:
        """The main process is gone; its output ends unless a process that it left holds it open."""
        if self._main is not None:
            self.machine.runner_alive.discard(self._main)
        if not self.machine.runner_alive:
            self._lines.put_nowait(None)

    def _print(self, line: str) -> None:
        self._lines.put_nowait(line)

    def _log(self, text: str) -> None:
        self._print(f"2025-11-25 10:00:00Z: {text}")

    def _log_completion(self, result: str) -> None:
        self._log(f"Job {self.script.job_name} completed with result: {result}")


async def _for_ever() -> None:
    await asyncio.Event().wait()


# Delivery


@define
class InMemoryLogSink(LogSink):
    """CloudWatch Logs as it is: it enforces every limit of PutLogEvents."""

    now: Callable[[], datetime] | None = None
    """Where given, events that are too old or too new are rejected."""
    streams: dict[str, list[LogEvent]] = Factory(dict)
    puts: int = 0

    async def put(self, stream: str, events: Sequence[LogEvent]) -> int:
        self.puts += 1
        await asyncio.sleep(0)
        check_batch(events)
        taken = [event for event in events if self._is_timely(event)]
        self.streams.setdefault(stream, []).extend(taken)
        return len(events) - len(taken)

    def lines(self, stream: str) -> list[str]:
        """The text of the stream's events."""
        return [event.text for event in self.streams.get(stream, [])]

    def _is_timely(self, event: LogEvent) -> bool:
        if self.now is None:
            return True
        age = self.now() - datetime.fromtimestamp(event.timestamp_ms / 1000, UTC)
        return -_TOO_NEW <= age <= _TOO_OLD


@define
class InMemoryLogSpool(LogSpool):
    """Holds up to a bound."""

    max_bytes: int = 2**30
    events: list[LogEvent] = Factory(list)
    _bytes: int = 0

    def push(self, events: Sequence[LogEvent]) -> None:
        size = sum(event_bytes(event) for event in events)
        if self._bytes + size > self.max_bytes:
            raise SpoolError(f"the spool holds {self.max_bytes} bytes at most")
        self._bytes += size
        self.events.extend(events)

    def pop(self, max_bytes: int) -> list[LogEvent]:
        popped: list[LogEvent] = []
        total = 0
        for event in self.events:
            total += len(event.text.encode())
            if popped and total > max_bytes:
                break
            popped.append(event)
        del self.events[: len(popped)]
        self._bytes -= sum(event_bytes(event) for event in popped)
        return popped

    def __len__(self) -> int:
        return len(self.events)


@define
class InMemoryNotifier(Notifier):
    """A queue; `received` has every message it took, repeats too."""

    queue_url: str | None = "memory:termination"
    """Where messages go that name no queue of their own; None: there is none."""
    received: list[StatusMessage] = Factory(list)

    async def send(self, message: StatusMessage, queue_url: str | None) -> None:
        await asyncio.sleep(0)
        if (queue_url or self.queue_url) is None:
            raise NotifierDeniedError("there is no queue to send to")
        checked_message(message)
        self.received.append(message)

    @property
    def delivered(self) -> list[StatusMessage]:
        """What a consumer sees that drops repeats of a `message_id`, as a FIFO queue does by itself."""
        seen: dict[str, StatusMessage] = {}
        for message in self.received:
            seen.setdefault(message.message_id, message)
        return list(seen.values())


@define
class InMemoryTerminator(Terminator):
    """EC2, for one machine."""

    machine: Machine
    denied: bool = False
    requests: list[str] = Factory(list)
    """The instance IDs of the requests that were accepted."""

    async def terminate(self, instance_id: str) -> None:
        await asyncio.sleep(0)
        if self.denied or instance_id != self.machine.instance_id:
            raise TerminatorDeniedError(f"this machine may not terminate {instance_id}")
        self.requests.append(instance_id)


# The host


@define
class InMemoryHostProbe(HostProbe):
    """Measures the machine; the agent that has this probe is one of its processes."""

    machine: Machine
    _own: ProcessId = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._own = self.machine.new_process()
        self.machine.agents_alive.add(self._own)

    async def sample(self) -> HostSample:
        await asyncio.sleep(0)
        return HostSample(
            free_disk_bytes=self.machine.free_disk_bytes,
            available_memory_bytes=self.machine.available_memory_bytes,
            booted_at=self.machine.booted_at,
        )

    def is_alive(self, process: ProcessId) -> bool:
        return process in self.machine.agents_alive

    def own_process(self) -> ProcessId:
        return self._own


@define
class InMemoryJournal(Journal):
    """The journal on the machine's disk; it goes through the same JSON as a real one."""

    machine: Machine
    full: bool = False
    """The disk is full: nothing is written."""

    async def load(self) -> JournalRecord | None:
        await asyncio.sleep(0)
        return None if self.machine.journal is None else journal_from_json(self.machine.journal)

    async def save(self, record: JournalRecord) -> None:
        await asyncio.sleep(0)
        if self.full:
            raise JournalUnavailableError("the disk is full")
        self.machine.journal = journal_to_json(record)

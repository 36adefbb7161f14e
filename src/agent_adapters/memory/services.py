"""The services around a machine: config, logs, messages; they enforce the limits of the real ones."""

import asyncio
import gzip
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final

from attrs import Factory, define

from agent_adapters.diagnostics import FILE_BYTES, FILES
from agent_adapters.memory.machine import Machine
from agent_adapters.wire import checked_message
from agent_core.batches import check_batch, event_bytes
from agent_core.errors import (
    ConfigAbsentError,
    ConfigError,
    DiagnosticsDeniedError,
    DiagnosticsError,
    LogSinkError,
    NotifierDeniedError,
    NotifierError,
    SpoolError,
)
from agent_core.model import (
    JobConfig,
    LogDestination,
    LogEvent,
    StatusMessage,
    Uploaded,
)
from agent_core.ports import (
    ConfigSource,
    DiagnosticsStore,
    LogSink,
    LogSpool,
    Notifier,
    Progress,
)

__all__ = [
    "InMemoryConfigSource",
    "InMemoryDiagnosticsStore",
    "InMemoryLogSink",
    "InMemoryLogSpool",
    "InMemoryNotifier",
]

_TOO_OLD: Final = timedelta(days=14)
_TOO_NEW: Final = timedelta(hours=2)


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


@define
class InMemoryDiagnosticsStore(DiagnosticsStore):
    """S3, for the logs of one machine's runner; it takes no more of them than the real one."""

    machine: Machine
    uploads: dict[tuple[str, str], bytes] = Factory(dict)
    """What it has, gzipped, by bucket and key."""
    denied: bool = False
    error: DiagnosticsError | None = None
    """What every log that is uploaded ends with, as long as it stands here."""
    seconds: float = 0.0
    """How long each log takes."""

    async def upload(self, destination: LogDestination, progress: Progress) -> Uploaded:
        await asyncio.sleep(0)
        logs = [*reversed(self.machine.diagnostics.items())]
        taken = {name: content[-FILE_BYTES:] for name, content in logs[:FILES]}
        gone = 0
        for name, content in taken.items():
            await asyncio.sleep(self.seconds)
            if self.error is not None:
                raise self.error
            if self.denied:
                raise DiagnosticsDeniedError(f"this machine may not write to bucket {destination.bucket}")
            gzipped = gzip.compress(content, mtime=0)
            self.uploads[destination.bucket, f"{destination.prefix}{name}.gz"] = gzipped
            gone += len(gzipped)
            progress(gone, None)
        return Uploaded(
            files=len(taken),
            bytes=sum(map(len, taken.values())),
            left_out=sum(taken.get(name) != content for name, content in logs),
        )


@define
class InMemoryLogSink(LogSink):
    """CloudWatch Logs as it is: it enforces every limit of PutLogEvents."""

    now: Callable[[], datetime] | None = None
    """Where given, events that are too old or too new are rejected."""
    streams: dict[str, list[LogEvent]] = Factory(dict)
    puts: int = 0
    error: LogSinkError | None = None
    """What every put ends with, as long as it stands here."""

    async def put(self, stream: str, events: Sequence[LogEvent]) -> int:
        self.puts += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
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
    """The spool on the machine's disk, up to a bound."""

    max_bytes: int = 2**30
    machine: Machine = Factory(Machine)
    events: list[LogEvent] = Factory(list)
    """What it holds: the very list that the machine has, once this life's is what is on its disk."""
    _popped: int = 0
    """So many of them are popped, and not forgotten."""
    _bytes: int = 0

    def recover(self) -> int:
        if self.events is self.machine.spooled:
            return 0
        self.events = self.machine.spooled
        self._bytes = sum(map(event_bytes, self.events))
        return len(self.events)

    def clear(self) -> None:
        self.events = self.machine.spooled = []
        self._popped = self._bytes = 0

    def push(self, events: Sequence[LogEvent]) -> None:
        if not events:
            return
        if self.events is not self.machine.spooled:
            self.clear()
        size = sum(event_bytes(event) for event in events)
        if self._bytes + size > self.max_bytes:
            raise SpoolError(f"the spool holds {self.max_bytes} bytes at most")
        self._bytes += size
        self.events.extend(events)

    def pop(self, max_bytes: int) -> list[LogEvent]:
        popped: list[LogEvent] = []
        total = 0
        for event in islice(self.events, self._popped, None):
            total += len(event.text.encode())
            if popped and total > max_bytes:
                break
            popped.append(event)
        self._popped += len(popped)
        return popped

    def forget(self, count: int) -> None:
        self._bytes -= sum(map(event_bytes, self.events[:count]))
        del self.events[:count]
        self._popped -= count

    def __len__(self) -> int:
        return len(self.events) - self._popped


@define
class InMemoryNotifier(Notifier):
    """A queue; `received` has every message it took, repeats too."""

    queue_url: str | None = "memory:termination"
    """Where messages go that name no queue of their own; None: there is none."""
    received: list[StatusMessage] = Factory(list)
    error: NotifierError | None = None
    """What every send ends with, as long as it stands here."""

    async def send(self, message: StatusMessage, queue_url: str | None) -> None:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
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

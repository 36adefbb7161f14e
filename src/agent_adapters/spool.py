"""The log spool on disk: a folder of small files, from which a successor delivers what a dead agent held."""

import json
import os
import re
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import frozen

from agent_core.batches import text_bytes
from agent_core.errors import SpoolError
from agent_core.model import LogEvent
from agent_core.ports import LogSpool

__all__ = ["FileLogSpool"]

_MAX_BYTES: Final = 2**30
_PRIVATE_FOLDER: Final = 0o700
_PRIVATE: Final = 0o600
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME: Final = re.compile(r"(?P<number>[0-9]{12})-(?P<events>[1-9][0-9]{0,8})\.json")


@frozen
class _Segment:
    """A file of the spool: what was pushed together."""

    path: Path
    events: int
    bytes: int


class FileLogSpool(LogSpool):
    """Each push is a file of mode 0600; its name has its place in the order, and how many events it has.

    A file goes when the last of its events is forgotten: a process that dies before leaves all of them to its
    successor. Nothing is synced: what is spooled outlives the process, not the machine.

    Args:
        folder: made when it is first needed; what else is in it is left alone.
        max_bytes: how large the files may be together.
    """

    def __init__(self, folder: Path, max_bytes: int = _MAX_BYTES) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._segments: deque[_Segment] = deque()
        self._popped: deque[_Segment] = deque()
        """Those before them, of which something is not yet forgotten."""
        self._forgotten = 0
        """So many of the first that there is, popped or not."""
        self._read: deque[tuple[int, str]] = deque()
        """Times and texts of the first segment that are not yet popped; empty: it has not been read."""
        self._count = self._bytes = self._last_number = 0
        self._is_own = False
        """Whether all that is in the folder is this life's: recovered, or written after a look at it."""

    def push(self, events: Sequence[LogEvent]) -> None:
        if not events:
            return
        if not self._is_own:
            self.clear()
        columns = [event.timestamp_ms for event in events], [event.text for event in events]
        content = json.dumps(columns).encode()
        if self._bytes + len(content) > self._max_bytes:
            raise SpoolError(f"{self._folder}: the spool holds {self._max_bytes} bytes at most")
        self._last_number += 1
        segment = _Segment(
            self._folder / f"{self._last_number:012}-{len(events)}.json", len(events), len(content)
        )
        try:
            self._folder.mkdir(_PRIVATE_FOLDER, parents=True, exist_ok=True)
            _write(segment.path, content)
        except OSError as exc:
            raise SpoolError(f"{segment.path}: {exc.strerror}") from exc
        self._append(segment)

    def pop(self, max_bytes: int) -> list[LogEvent]:
        popped: list[LogEvent] = []
        total = 0
        while self._segments:
            if not self._read:
                try:
                    self._read.extend(_events_of(self._segments[0]))
                except (OSError, ValueError, TypeError, RecursionError) as exc:
                    if popped:
                        break  # to be told the next time
                    lost = self._segments.popleft()
                    self._count -= lost.events
                    self._remove(lost)
                    raise SpoolError(f"{lost.path}: {exc}") from exc
            while self._read:
                total += text_bytes(self._read[0][1])
                if popped and total > max_bytes:
                    return popped
                popped.append(LogEvent(*self._read.popleft()))
                self._count -= 1
            self._popped.append(self._segments.popleft())
        return popped

    def forget(self, count: int) -> None:
        self._forgotten += count
        while self._popped and self._forgotten >= self._popped[0].events:
            segment = self._popped.popleft()
            self._forgotten -= segment.events
            self._remove(segment)

    def __len__(self) -> int:
        return self._count

    def recover(self) -> int:
        if self._is_own:
            return 0
        try:
            found = self._found()
        except OSError as exc:
            raise SpoolError(f"{self._folder}: {exc.strerror}") from exc
        for segment in found:
            self._append(segment)
        self._is_own = True
        return self._count

    def clear(self) -> None:
        try:
            for segment in self._found():
                segment.path.unlink()
        except OSError as exc:
            raise SpoolError(f"{self._folder}: {exc.strerror}") from exc
        self._segments.clear()
        self._popped.clear()
        self._read.clear()
        self._count = self._bytes = self._forgotten = 0
        self._is_own = True

    def _found(self) -> list[_Segment]:
        """What is in the folder, the oldest first; later numbers are larger than any there."""
        try:
            entries = sorted(os.scandir(self._folder), key=lambda entry: entry.name)
        except FileNotFoundError:
            return []
        found = []
        for entry in entries:
            name = _NAME.fullmatch(entry.name)
            if name is None:
                continue
            self._last_number = max(self._last_number, int(name["number"]))
            if entry.is_file(follow_symlinks=False):
                size = entry.stat(follow_symlinks=False).st_size
                found.append(_Segment(Path(entry.path), int(name["events"]), size))
        return found

    def _append(self, segment: _Segment) -> None:
        self._segments.append(segment)
        self._count += segment.events
        self._bytes += segment.bytes

    def _remove(self, segment: _Segment) -> None:
        self._bytes -= segment.bytes
        with suppress(OSError):  # it only keeps its room
            segment.path.unlink()


def _write(path: Path, content: bytes) -> None:
    """Writes a new file, whole or not at all."""
    descriptor = os.open(path, _NEW, _PRIVATE)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _events_of(segment: _Segment) -> list[tuple[int, str]]:
    """Its times and texts.

    Raises:
        OSError: it cannot be read.
        ValueError, TypeError, RecursionError: it is not what was to be written.
    """
    with os.fdopen(os.open(segment.path, _OLD), "rb") as stream:
        stamps, texts = json.loads(stream.read())
    "".join(texts).encode()  # they are texts that can be sent
    if len(stamps) != segment.events or not all(isinstance(stamp, int) for stamp in stamps):
        raise ValueError(f"it does not hold {segment.events} events")
    return list(zip(stamps, texts, strict=True))

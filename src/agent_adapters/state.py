"""What an agent keeps on its machine's disk, in every profile: the journal, and the log spool."""

import fcntl
import json
import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from agent_adapters.threads import Lane, spawn
from agent_adapters.wire import journal_from_json, journal_to_json
from agent_core.batches import text_bytes
from agent_core.errors import JournalDamagedError, JournalUnavailableError, SpoolError
from agent_core.model import JournalRecord, LogEvent
from agent_core.ports import Journal, LogSpool

__all__ = ["FileJournal", "FileLogSpool", "StateLock", "replace_synced", "write_all"]

_SPOOL_BYTES: Final = 2**30
_LARGE_BYTES: Final = 2**24
"""A spool of more than this is not emptied on the loop."""
_PRIVATE: Final = 0o600
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


class StateLock:
    """Held by the one agent, or successor, that works with a state folder; it ends with the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Whether nobody else holds it; where there can be no such file, nobody does."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            # A full or read-only disk must not keep an agent from terminating its instance.
            return True
        return True


class FileJournal(Journal):
    """The journal in a file of mode 0600, replaced whole and synced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lane = Lane("journal", JournalUnavailableError)

    async def load(self) -> JournalRecord | None:
        text = await self._lane.run(self._read)
        try:
            return None if text is None else journal_from_json(text)
        except JournalDamagedError as exc:
            raise JournalDamagedError(f"{self._path}: {exc}") from exc

    async def save(self, record: JournalRecord) -> None:
        await self._lane.run(partial(self._replace, journal_to_json(record)))

    def _read(self) -> str | None:
        try:
            return self._path.read_text("utf-8", "replace")
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise JournalUnavailableError(f"{self._path}: {exc.strerror}") from exc

    def _replace(self, text: str) -> None:
        try:
            replace_synced(self._path, text.encode("utf-8", "backslashreplace"), _PRIVATE)
            _sync_folder(self._path.parent)
        except OSError as exc:
            raise JournalUnavailableError(f"{self._path}: {exc.strerror}") from exc


def replace_synced(path: Path, content: bytes, mode: int) -> None:
    """Replaces the file whole: after a crash it has the old content or the new one.

    Raises:
        OSError: the file is as it was before, and nothing is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    try:
        descriptor = os.open(new, _NEW, mode)
        try:
            write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        new.replace(path)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    """Makes a rename in the folder survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FileLogSpool(LogSpool):
    """A file of mode 0600, written and read in a circle: what is read makes room, and its size is bounded.

    What is pushed together is one line of it, and is read together; what a `pop` leaves of that waits in
    memory. It begins empty: what an earlier life left in it is gone.

    Args:
        path: the file; made when it is first needed.
        max_bytes: how large it may grow.
    """

    def __init__(self, path: Path, max_bytes: int = _SPOOL_BYTES) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._descriptor: int | None = None
        self._count = self._read_at = self._write_at = 0
        self._read: deque[tuple[int, str]] = deque()
        """Times and texts that are no more in the file, and not yet popped."""
        self._turn_at: int | None = None
        """Where the reader has to go back to the front, as the writer did; None while it is ahead."""

    def push(self, events: Sequence[LogEvent]) -> None:
        if not events:
            return
        columns = [event.timestamp_ms for event in events], [event.text for event in events]
        line = json.dumps(columns).encode() + b"\n"
        at = self._room_for(len(line))
        if at is None:
            raise SpoolError(f"{self._path}: the spool holds {self._max_bytes} bytes at most")
        try:
            # What fails half way lies where nothing is read, and is written over.
            _write_all_at(self._open(), line, at)
        except OSError as exc:
            raise SpoolError(f"{self._path}: {exc.strerror}") from exc
        if at < self._write_at:
            self._turn_at = self._write_at
        self._write_at = at + len(line)
        self._count += len(events)

    def pop(self, max_bytes: int) -> list[LogEvent]:
        popped: list[LogEvent] = []
        total = 0
        while len(popped) < self._count:
            while not self._read:
                self._read_on()
            total += text_bytes(self._read[0][1])
            if popped and total > max_bytes:
                break
            popped.append(LogEvent(*self._read.popleft()))
        self._count -= len(popped)
        if popped and self._count == 0:
            self._empty()
        return popped

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Removes the file, and forgets what was in it."""
        self._forget()
        self._remove()

    def _room_for(self, size: int) -> int | None:
        """Where so many bytes can be written; None: nowhere."""
        if self._turn_at is not None:
            return self._write_at if self._write_at + size <= self._read_at else None
        if self._write_at + size <= self._max_bytes:
            return self._write_at
        return 0 if size <= self._read_at else None

    def _read_on(self) -> None:
        """Takes the oldest line out of the file."""
        if self._read_at == self._turn_at:
            self._read_at, self._turn_at = 0, None
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._read_at)
                line = stream.readline()
            self._read.extend(zip(*json.loads(line), strict=True))
        except (OSError, ValueError, TypeError) as exc:
            self.close()
            raise SpoolError(f"{self._path}: {exc}") from exc
        self._read_at += len(line)

    def _open(self) -> int:
        if self._descriptor is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, _NEW, _PRIVATE)
        return self._descriptor

    def _empty(self) -> None:
        """Gives the file's room back to the disk."""
        self._forget()
        if self._descriptor is None:
            return
        with suppress(OSError):  # it only keeps its room
            if os.fstat(self._descriptor).st_size > _LARGE_BYTES:
                self._remove()
            else:
                os.ftruncate(self._descriptor, 0)

    def _forget(self) -> None:
        self._count = self._read_at = self._write_at = 0
        self._turn_at = None
        self._read.clear()

    def _remove(self) -> None:
        """Removes the file; a thread gives up what it has on the disk, which can take tenths of seconds."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with suppress(OSError):
            self._path.unlink()
        spawn("log spool", partial(os.close, descriptor))


def _write_all_at(descriptor: int, data: bytes, at: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, at)
        at, rest = at + written, rest[written:]


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of it, however many calls that takes."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]

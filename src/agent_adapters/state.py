"""What an agent keeps of itself on its machine's disk, in every profile: the journal, and a lock."""

import fcntl
import os
import stat
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from agent_adapters.threads import Lane
from agent_adapters.wire import journal_from_json, journal_to_json
from agent_core.errors import JournalDamagedError, JournalUnavailableError
from agent_core.model import JournalRecord
from agent_core.ports import Journal

__all__ = ["FileJournal", "StateLock", "replace_synced", "write_all"]

_PRIVATE: Final = 0o600
_ROOM_BYTES: Final = 8192
"""Journals have the size of so many, or a multiple: each fits where the one before it was."""
_READ_CHARACTERS: Final = 2**20
"""A journal has some thousand."""
_IN_PLACE: Final = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


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
        except (BlockingIOError, PermissionError):
            return False  # of the latter, somebody else's who is more than this one
        except OSError:
            # A full or read-only disk must not keep an agent from terminating its instance.
            return True
        return True


class FileJournal(Journal):
    """The journal in a file of mode 0600, replaced whole and synced.

    The record before it stays, as a spare: the next one is written in its place, and so needs no room on a
    disk that a job has filled.
    """

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
            # A pipe in its place must not hold up anybody.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, encoding="utf-8", errors="replace") as stream:
                text = stream.read(_READ_CHARACTERS + 1)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise JournalUnavailableError(f"{self._path}: {exc.strerror}") from exc
        if len(text) > _READ_CHARACTERS:
            raise JournalDamagedError(f"{self._path}: longer than {_READ_CHARACTERS} characters")
        return text

    def _replace(self, text: str) -> None:
        try:
            self._swap(text.encode("utf-8", "backslashreplace"))
        except OSError as exc:
            raise JournalUnavailableError(f"{self._path}: {exc.strerror}") from exc

    def _swap(self, content: bytes) -> None:
        """Writes the spare, and exchanges it with the journal, which is there and whole at any moment."""
        folder, name = self._path.parent, self._path.name
        spare, before = folder / f"{name}.new", folder / f"{name}.old"
        folder.mkdir(parents=True, exist_ok=True)
        _write_synced(spare, content.ljust(-(-len(content) // _ROOM_BYTES) * _ROOM_BYTES, b"\n"), _PRIVATE)
        before.unlink(missing_ok=True)
        with suppress(OSError):  # there is none yet, or no such links here: then there is no spare
            before.hardlink_to(self._path)
        spare.replace(self._path)
        with suppress(FileNotFoundError):
            before.replace(spare)
        _sync_folder(folder)


def replace_synced(path: Path, content: bytes, mode: int) -> None:
    """Replaces the file whole: after a crash it has the old content or the new one.

    Raises:
        OSError: the file is as it was before, and nothing is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    try:
        _write_synced(new, content, mode)
        new.replace(path)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise


def _write_synced(path: Path, content: bytes, mode: int) -> None:
    """Writes over the file that is there, which needs no room that it does not have already."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            path.unlink()  # to open a pipe would take for ever
    descriptor = os.open(path, _IN_PLACE, mode)
    try:
        write_all(descriptor, content)
        os.ftruncate(descriptor, len(content))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Makes a rename in the folder survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of it, however many calls that takes."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]

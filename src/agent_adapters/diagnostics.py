"""The runner's own logs (`_diag/*.log` in its root), read warily, and handed to whoever takes them.

Their folder belongs to the job, and this process may be root: no link is followed, nothing is waited for,
no file is taken but the runner's own, and all that is taken is bounded.
"""

import os
import re
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from functools import partial
from heapq import nlargest
from pathlib import Path
from typing import Final

from attrs import define, frozen
from isal import isal_zlib

from agent_adapters.threads import Cancellation, Lane, told_on_loop
from agent_core.errors import DiagnosticsUnavailableError
from agent_core.model import Uploaded
from agent_core.ports import Progress

__all__ = ["FILES", "FILE_BYTES", "Log", "Put", "RunnerLogs"]

FILES: Final = 100
"""So many are taken: the runner's and the worker's before others, of each the newest."""
FILE_BYTES: Final = 32 * 2**20
"""So much of a file: its end."""
_ALL_BYTES: Final = 256 * 2**20

_SUFFIX: Final = ".log"
_NAME: Final = re.compile(r"\w[\w.-]{0,99}\.log", re.ASCII)
"""Names come from the job: these are fit for keys, paths and shells."""
_FIRST: Final = ("Runner_", "Worker_")
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CHUNK_BYTES: Final = 2**20
_GZIP_FORMAT: Final = isal_zlib.MAX_WBITS | 16


@frozen
class Log:
    """One log, as it was when it was read."""

    name: str
    gzipped: bytes
    size: int
    """Of what was taken of it, before it was compressed."""
    whole: bool


Put = Callable[[Log, Callable[[int], object], Cancellation], None]
"""Takes one log, in a thread, and tells how many of its gzipped bytes have gone so far.

It may end early when cancelled, and raises a DiagnosticsError where the log was not taken.
"""


class RunnerLogs:
    """The logs of the runner in one root; one upload at a time.

    Args:
        root: the runner's root.
        owner: the user whose files they are; None: this process's own.
    """

    def __init__(self, root: Path, owner: int | None = None) -> None:
        self._folder, self._owner = root / "_diag", owner
        self._lane = Lane("diagnostics", DiagnosticsUnavailableError)

    async def upload(self, put: Put, progress: Progress) -> Uploaded:
        """Puts each log; one that is not taken for now does not keep the others from being tried.

        Args:
            put: takes one log.
            progress: told of gzipped bytes: an empty log has some too.

        Raises:
            DiagnosticsUnavailableError: the first one of `put`, or the folder cannot be read.
            DiagnosticsDeniedError: that of `put`, at once.
        """
        return await self._lane.run_cancellable(partial(self._upload, put, told_on_loop(progress)))

    def _upload(self, put: Put, tell: Progress, cancelled: Cancellation) -> Uploaded:
        owner = os.geteuid() if self._owner is None else self._owner
        reading = _Reading(self._folder, owner, cancelled)
        files = bytes_ = gone = told = 0
        failure: DiagnosticsUnavailableError | None = None

        def sent(count: int) -> None:
            nonlocal told
            # What was sent in vain, and something else in its place, is no progress.
            if gone + count > told:
                told = gone + count
                tell(told, None)

        try:
            with closing(reading.logs()) as logs:
                for log in logs:
                    try:
                        put(log, sent, cancelled)
                    except DiagnosticsUnavailableError as exc:
                        failure = failure or exc
                    else:
                        sent(len(log.gzipped))
                        files, bytes_, gone = files + 1, bytes_ + log.size, gone + len(log.gzipped)
        except OSError as exc:
            raise DiagnosticsUnavailableError(f"{self._folder}: {exc.strerror}") from exc
        if failure is not None:
            raise failure
        return Uploaded(files=files, bytes=bytes_, left_out=reading.left_out)


@define
class _Reading:
    """One look at the folder."""

    folder: Path
    owner: int
    cancelled: Cancellation
    left_out: int = 0
    """What is called a log there and was not given out, or not whole; right when all were."""

    def logs(self) -> Generator[Log, None, None]:
        """Those that are to be taken; each is read when it is asked for."""
        try:
            folder = os.open(self.folder, _FOLDER)
        except FileNotFoundError:
            return
        except OSError:
            self.left_out += 1  # all of it: something else stands in its place, or it is shut
            return
        try:
            room = _ALL_BYTES
            for *_, name in nlargest(FILES, self._found(folder)):
                if log := self._read(name, folder, min(FILE_BYTES, room)):
                    room -= log.size
                    self.left_out -= log.whole
                    yield log
        finally:
            os.close(folder)

    def _found(self, folder: int) -> Iterator[tuple[bool, int, str]]:
        """The logs, each with what makes it come before others."""
        with os.scandir(folder) as entries:
            for entry in entries:
                self._check()
                if not entry.name.endswith(_SUFFIX):
                    continue
                self.left_out += 1
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if _NAME.fullmatch(entry.name) and self._is_own(status):
                        yield entry.name.startswith(_FIRST), status.st_mtime_ns, entry.name

    def _read(self, name: str, folder: int, room: int) -> Log | None:
        """The log, or so much of its end as there is room for; None: it cannot be had, or not any more."""
        self._check()
        try:
            descriptor = os.open(name, _FILE, dir_fd=folder)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            if not self._is_own(status) or (status.st_size and not room):
                return None
            start = max(0, status.st_size - room)
            return self._compressed(name, descriptor, start, status.st_size)
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def _compressed(self, name: str, descriptor: int, start: int, end: int) -> Log:
        """What is between them; it may grow or shrink meanwhile."""
        compressor, at = isal_zlib.compressobj(wbits=_GZIP_FORMAT), start
        pieces: list[bytes] = []
        while chunk := os.pread(descriptor, min(_CHUNK_BYTES, end - at), at):
            self._check()
            pieces.append(compressor.compress(chunk))
            at += len(chunk)
        return Log(name, b"".join([*pieces, compressor.flush()]), at - start, whole=start == 0)

    def _is_own(self, status: os.stat_result) -> bool:
        """Whether it is a file of the owner's under this name only: another name may be anybody's file."""
        return stat.S_ISREG(status.st_mode) and status.st_uid == self.owner and status.st_nlink == 1

    def _check(self) -> None:
        if self.cancelled():
            raise DiagnosticsUnavailableError("given up")

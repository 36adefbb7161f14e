"""The files in which the output of a running step is kept: `_diag/pages/<timeline>_<record>_<n>.log`."""

from __future__ import annotations

import codecs
import time
import uuid
from collections import deque
from typing import TYPE_CHECKING

from .timestamps import log_stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import BinaryIO

_FLUSHED_BUFFER_BYTES = 64 * 1024


class LineSplitter:
    """Cuts bytes into lines at CR, LF and CRLF, as .NET reads them; a line may come in pieces."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends."""
        start = max(0, len(self._rest) - 1)
        self._rest += chunk
        last_is_open = len(self._rest) - 1  # a CR here may be half of a CRLF
        end = max(self._rest.rfind(b"\n", start), self._rest.rfind(b"\r", start, last_is_open)) + 1
        lines = bytes(self._rest[:end]).splitlines()
        del self._rest[:end]
        return lines

    def finish(self) -> list[bytes]:
        lines = bytes(self._rest).splitlines()
        self._rest.clear()
        return lines


class Uploads:
    """Pages that are complete: each is deleted once it is uploaded, which takes so many seconds."""

    def __init__(self, seconds: float, pause: Callable[[float], object]) -> None:
        self._seconds = seconds
        self._pause = pause
        self._waiting: deque[tuple[float, Path]] = deque()

    def add(self, page: Path) -> None:
        self._waiting.append((time.monotonic() + self._seconds, page))
        self.sweep()

    def sweep(self) -> None:
        """Delete what is uploaded by now."""
        while self._waiting and self._waiting[0][0] <= time.monotonic():
            self._waiting.popleft()[1].unlink()

    def drain(self) -> None:
        """Return when all are uploaded and deleted."""
        while self._waiting:
            self._pause(max(0.0, self._waiting[0][0] - time.monotonic()))
            self.sweep()


class Pages:
    """The pages of one step. Every page starts with a byte-order mark, every line with the time."""

    def __init__(
        self, folder: Path, timeline: str, uploads: Uploads, *, page_bytes: int, buffer_bytes: int
    ) -> None:
        self._folder = folder
        self._prefix = f"{timeline}_{uuid.uuid4()}"
        self._page_bytes = page_bytes
        self._buffer_bytes = buffer_bytes
        self._uploads = uploads
        self._number = 0
        self._size = 0
        self._file: BinaryIO | None = None

    def write(self, lines: Sequence[bytes]) -> None:
        """What is not UTF-8 is replaced. Without a buffer, the lines are in the file on return."""
        if not lines:
            return
        stamp = log_stamp().encode()
        file = self._file or self._new_page()
        for line in lines:
            entry = stamp + b" " + line.decode("utf-8", "replace").encode()
            file.write(entry + b"\n")
            self._size += len(entry)
            if self._size >= self._page_bytes:
                file = self._new_page()
        if not self._buffer_bytes:
            file.flush()
        self._uploads.sweep()

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None
            self._uploads.add(self._path)

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._prefix}_{self._number}.log"

    def _new_page(self) -> BinaryIO:
        self.close()
        self._number += 1
        self._size = 0
        file = self._path.open("xb", buffering=self._buffer_bytes or _FLUSHED_BUFFER_BYTES)
        file.write(codecs.BOM_UTF8)
        self._file = file
        return file

"""A tarball's bytes to its members, however hostile they are: inflated step by step, in bounded memory.

Of `tarfile` only the parser of single headers is used: a `TarFile` ends quietly at a damaged header, and
takes as much memory and as many stack frames as headers ask for.
"""

import os
import re
import sys
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Final

from attrs import frozen

from agent_core.errors import ArchiveRefusedError

__all__ = ["ArchiveLimits", "TarBytes", "damaged", "inflated", "members", "refusal", "shown"]

_GZIP_FORMAT: Final = zlib.MAX_WBITS | 16
_GZIP_FIRST_BYTE: Final = 0x1F

_EXTENSION_BYTES: Final = 1024**2
_LONG: Final = {tarfile.GNUTYPE_LONGNAME: b"path", tarfile.GNUTYPE_LONGLINK: b"linkpath"}
_EXTENSIONS: Final = {*_LONG, tarfile.XHDTYPE, tarfile.XGLTYPE}
_PAX_RECORD: Final = re.compile(rb"(\d{1,8}) ([^=\n]+)=")
_PAX_SIZE: Final = re.compile(rb"\d{1,18}")
_SHOWN_CHARACTERS: Final = 160


@frozen(kw_only=True)
class ArchiveLimits:
    """What an archive may ask of the disk; the runner's asks for about a tenth."""

    inflated_bytes: int = 8 * 1024**3
    members: int = 200_000
    """Of headers (a long name has one of its own), and of files and folders made."""
    path_bytes: int = 1024
    """Of a name, and of a link's target."""


def shown(path: Path | str) -> str:
    text = repr(str(path))
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}… ({len(text)} characters)"


def refusal(member: tarfile.TarInfo, why: str) -> ArchiveRefusedError:
    return ArchiveRefusedError(f"the archive's member {shown(member.name)} is refused: {why}")


def damaged(what: str) -> ArchiveRefusedError:
    return ArchiveRefusedError(f"the archive is damaged: {what}")


def inflated(compressed: Iterable[memoryview], limits: ArchiveLimits) -> Iterator[bytes]:
    """What the gzip members hold; like `gzip`, it ends where something else follows them."""
    total = 0
    inflater = None
    for step in compressed:
        rest: memoryview | bytes = step
        while rest:
            if inflater is None:
                if total and rest[0] != _GZIP_FIRST_BYTE:
                    return
                inflater = zlib.decompressobj(_GZIP_FORMAT)
            try:
                piece = inflater.decompress(rest)
            except zlib.error as error:
                raise damaged(str(error)) from error
            total += len(piece)
            if total > limits.inflated_bytes:
                raise ArchiveRefusedError(f"the archive holds more than {limits.inflated_bytes} bytes")
            yield piece
            rest = inflater.unused_data
            if inflater.eof:
                inflater = None
    if inflater is not None:
        raise damaged("its gzip data is cut off")


class TarBytes:
    """Hands out bytes in exact amounts."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def parts(self, size: int) -> Iterator[memoryview]:
        while size:
            while not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    raise damaged("its tar data is cut off")
                self._rest = memoryview(piece)
            part, self._rest = self._rest[:size], self._rest[size:]
            size -= len(part)
            yield part

    def take(self, size: int) -> bytes:
        return b"".join(self.parts(size))

    def drain(self) -> None:
        for _ in self._pieces:
            pass


# From the tar's bytes to its members


def members(tar: TarBytes, limits: ArchiveLimits) -> Iterator[tarfile.TarInfo]:
    """Every member; whoever takes one reads its `size` bytes before asking for the next."""
    encoding = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
    said: dict[bytes, bytes] = {}
    for number in count(1):
        header = tar.take(tarfile.BLOCKSIZE)
        if not any(header):
            return
        if number > limits.members:
            raise ArchiveRefusedError(f"the archive has more than {limits.members} members")
        try:
            member = tarfile.TarInfo.frombuf(header, *encoding)
        except tarfile.HeaderError as error:
            raise damaged(f"{error}, header {number}") from error
        if member.type in _EXTENSIONS:
            said |= _extension(member, tar)
        else:
            _apply(said, member)
            yield member
            said = {}
        tar.take(-member.size % tarfile.BLOCKSIZE)


def _extension(header: tarfile.TarInfo, tar: TarBytes) -> dict[bytes, bytes]:
    """What a header of GNU's or of pax says of the next member."""
    if not 0 <= header.size <= _EXTENSION_BYTES:
        raise refusal(header, f"its extended header has {header.size} bytes")
    data = tar.take(header.size)
    if header.type in _LONG:
        return {_LONG[header.type]: data.partition(b"\0")[0]}
    said: dict[bytes, bytes] = {}
    start = 0
    while start < len(data):
        record = _PAX_RECORD.match(data, start)
        end = start + int(record[1]) if record else 0
        if record is None or end <= record.end() or data[end - 1 : end] != b"\n":
            raise refusal(header, "its extended header is damaged")
        said[record[2]] = data[record.end() : end - 1]
        start = end
    return said if header.type == tarfile.XHDTYPE else {}


def _apply(said: dict[bytes, bytes], member: tarfile.TarInfo) -> None:
    if any(key.startswith(b"GNU.sparse.") for key in said):
        member.type = tarfile.GNUTYPE_SPARSE
    elif member.type == tarfile.AREGTYPE:
        member.type = tarfile.REGTYPE
    if b"path" in said:
        member.name = os.fsdecode(said[b"path"])
    if b"linkpath" in said:
        member.linkname = os.fsdecode(said[b"linkpath"])
    if b"size" in said:
        member.size = int(said[b"size"]) if _PAX_SIZE.fullmatch(said[b"size"]) else -1

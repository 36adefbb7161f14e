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
from isal import isal_zlib

from agent_core.errors import ArchiveRefusedError

__all__ = ["ArchiveLimits", "TarBytes", "damaged", "inflated", "members", "refusal", "shown"]

_GZIP_FORMAT: Final = zlib.MAX_WBITS | 16
_GZIP_FIRST_BYTE: Final = 0x1F
_PIECE_BYTES: Final = 1024**2  # whatever a bomb would make at once

_EXTENSION_BYTES: Final = 1024**2
_LONG: Final = {tarfile.GNUTYPE_LONGNAME: b"path", tarfile.GNUTYPE_LONGLINK: b"linkpath"}
_EXTENSIONS: Final = {*_LONG, tarfile.XHDTYPE, tarfile.XGLTYPE}
_PAX_RECORD: Final = re.compile(rb"(\d{1,8}) ([^=\n]+)=")
_PAX_SIZE: Final = re.compile(rb"\d{1,18}")
_PLAIN_HEADER: Final = re.compile(
    # name, mode, uid, gid, size, mtime, checksum, type, target, magic, owner's names, device, no prefix
    rb"(.{100})([0-7]{7})\0[0-7]{7}\0[0-7]{7}\0([0-7]{11})\0[0-7]{11}\0"
    rb"([0-7]{6}\0 )([0125])(.{100})ustar(?:  \0|\0[0-9]{2}).{64}(?:\0{16}|[0-7]{7}\0[0-7]{7}\0)\0.{166}",
    re.DOTALL,
)
_SUM_AS_SPACES: Final = 8 * ord(" ")
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


def inflated(compressed: Iterable[bytes | memoryview], limits: ArchiveLimits) -> Iterator[bytes]:
    """What the gzip members hold, 1 MiB at most at once; like `gzip`, it ends where something else follows.

    A checksum or a length that is wrong is found.
    """
    total = 0
    inflater = None
    for step in compressed:
        rest = step
        while rest or inflater:
            if inflater is None:
                if total and rest[0] != _GZIP_FIRST_BYTE:
                    return
                inflater = isal_zlib.decompressobj(_GZIP_FORMAT)
            try:
                piece = inflater.decompress(rest, _PIECE_BYTES)
            except isal_zlib.error as error:  # type: ignore[misc] # its stub takes the class for an instance
                raise damaged(str(error)) from error
            total += len(piece)
            if total > limits.inflated_bytes:
                raise ArchiveRefusedError(f"the archive holds more than {limits.inflated_bytes} bytes")
            yield piece
            if inflater.eof:
                rest, inflater = inflater.unused_data, None
            else:
                rest = inflater.unconsumed_tail
                if not rest and len(piece) < _PIECE_BYTES:
                    break  # it holds nothing back
    if inflater is not None:
        raise damaged("its gzip data is cut off")


class TarBytes:
    """Hands out bytes in exact amounts."""

    def __init__(self, pieces: Iterator[bytes | memoryview]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def parts(self, size: int) -> Iterable[memoryview]:
        """So many bytes, in order; whoever asks takes them all before asking for more."""
        if size > len(self._rest):
            return self._parts(size)
        part, self._rest = self._rest[:size], self._rest[size:]
        return (part,)

    def _parts(self, size: int) -> Iterator[memoryview]:
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

    def skip(self, size: int) -> None:
        for _ in self.parts(size):
            pass

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
            member = _plain_member(header, encoding) or tarfile.TarInfo.frombuf(header, *encoding)
        except tarfile.HeaderError as error:
            raise damaged(f"{error}, header {number}") from error
        if member.type in _EXTENSIONS:
            said |= _extension(member, tar)
        else:
            _apply(said, member)
            yield member
            said = {}
        tar.skip(-member.size % tarfile.BLOCKSIZE)


def _plain_member(header: bytes, encoding: tuple[str, str]) -> tarfile.TarInfo | None:
    """What `frombuf` says of a header without oddities, in a third of the time; None for any other."""
    plain = _PLAIN_HEADER.fullmatch(header)
    if plain is None:
        return None
    name, mode, size, checksum, kind, target = plain.groups()
    if sum(header) - sum(checksum) + _SUM_AS_SPACES != int(checksum[:6], 8):
        return None
    member = tarfile.TarInfo(str(name.partition(b"\0")[0], *encoding))
    member.mode, member.size, member.type = int(mode, 8), int(size, 8), kind
    member.linkname = str(target.partition(b"\0")[0], *encoding)
    if kind == tarfile.DIRTYPE:
        member.name = member.name.rstrip("/")
    return member


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
    if member.type == tarfile.AREGTYPE:
        member.type = tarfile.REGTYPE
    if not said:
        return
    if any(key.startswith(b"GNU.sparse.") for key in said):
        member.type = tarfile.GNUTYPE_SPARSE
    if b"path" in said:
        member.name = os.fsdecode(said[b"path"])
    if b"linkpath" in said:
        member.linkname = os.fsdecode(said[b"linkpath"])
    if b"size" in said:
        member.size = int(said[b"size"]) if _PAX_SIZE.fullmatch(said[b"size"]) else -1

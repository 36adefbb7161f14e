"""The runner's tarball, from a stream of bytes to a folder in place; and the removal of such a folder.

`unpack` hashes, inflates and unpacks in one pass, into a folder that no other user can enter, and
renames it to the root once the digest matches. Until then the bytes are a stranger's: of `tarfile`
only the parser of single headers is used, as a `TarFile` ends quietly at a damaged header, and takes
as much memory and as many stack frames as headers ask for.

Nothing unpacked leads out of the root, by three rules that need no look at the disk: a name has no
`..`; its parents are folders, never symlinks; a symlink is relative, with `..` only in front and no
more often than it is deep. So a symlink leads to a place inside, and on from there by names only,
each to a place further in or through another such symlink; in whatever order the members come.
"""

import errno
import hashlib
import os
import re
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate, count
from pathlib import Path
from typing import Final, NamedTuple

from attrs import frozen

from agent_core.errors import (
    AgentError,
    ArchiveRefusedError,
    BinaryError,
    BinaryUnavailableError,
    DigestMismatchError,
    RunnerUnavailableError,
)

__all__ = ["ArchiveLimits", "UnpackCancelledError", "remove_tree", "unpack"]


@frozen(kw_only=True)
class ArchiveLimits:
    """What an archive may ask of the disk; the runner's asks for about a tenth."""

    inflated_bytes: int = 8 * 1024**3
    members: int = 200_000
    """Of headers (a long name has one of its own), and of files and folders made."""
    path_bytes: int = 1024
    """Of a name, and of a link's target."""


class UnpackCancelledError(AgentError):
    """Unpacking ended because it was asked to."""


_DEFAULT_LIMITS: Final = ArchiveLimits()
_STEP_BYTES: Final = 16 * 1024  # inflated 17 MiB at most: DEFLATE's ratio ends at 1032
_GZIP_FORMAT: Final = zlib.MAX_WBITS | 16
_GZIP_FIRST_BYTE: Final = 0x1F

_EXTENSION_BYTES: Final = 1024**2
_LONG: Final = {tarfile.GNUTYPE_LONGNAME: b"path", tarfile.GNUTYPE_LONGLINK: b"linkpath"}
_EXTENSIONS: Final = {*_LONG, tarfile.XHDTYPE, tarfile.XGLTYPE}
_PAX_RECORD: Final = re.compile(rb"(\d{1,8}) ([^=\n]+)=")
_PAX_SIZE: Final = re.compile(rb"\d{1,18}")

_NAME_BYTES: Final = 255  # NAME_MAX
_MADE_TYPES: Final = {tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE}
_OTHER_TYPES: Final = {
    tarfile.BLKTYPE: "a block device",
    tarfile.CHRTYPE: "a character device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
_KEPT_MODE: Final = 0o755
_OWNERS_MODE: Final = 0o700
_SET_ID_MODE: Final = 0o6000

_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_FOLDER: Final = os.O_PATH | os.O_DIRECTORY
_SHOWN_CHARACTERS: Final = 160
_SHOWN_LEFTOVERS: Final = 3


def _never() -> bool:
    return False


def unpack(
    chunks: Iterable[bytes],
    *,
    sha256: str,
    root: Path,
    cancelled: Callable[[], bool] = _never,
    limits: ArchiveLimits = _DEFAULT_LIMITS,
) -> None:
    """Leaves the gzip tarball in `root`, verified, with mode 0755; or nothing, and `root` as it was.

    Every byte counts for the digest (64 hex digits, lower case), also after the archive's end. All
    belongs to the current user; files keep their permissions but for writing by others, folders
    moreover are their owner's to change. A name that comes twice is refused, unless both are folders.

    Raises:
        BinaryError: `root` is in use; no chunk was read.
        DigestMismatchError: these are other bytes, whatever else is wrong with them.
        ArchiveRefusedError: these are the right bytes, but damaged or hostile.
        BinaryUnavailableError: the local disk failed or is full.
        UnpackCancelledError: `cancelled()`, asked for each member and at least each 16 KiB, was true.
        Exception: what `chunks` raises, as it is.
    """
    root = root.absolute()
    _refuse_in_use(root)
    digest = hashlib.sha256()
    compressed = _hashed(chunks, digest.update, cancelled)
    with _staging_beside(root) as staging:
        refusal = None
        try:
            tree, tar = _Tree(staging, limits), _Reader(_inflated(compressed, limits))
            for member in _members(tar, limits):
                _poll(cancelled)
                tree.add(member, tar)
            tar.drain()
        except ArchiveRefusedError as error:
            refusal = error
        for _ in compressed:
            pass
        actual = digest.hexdigest()
        if actual != sha256:
            raise DigestMismatchError(f"the archive's SHA-256 is {actual}, expected {sha256}") from refusal
        if refusal:
            raise refusal
        with _disk(root):
            staging.chmod(_KEPT_MODE)
            staging.rename(root)


def _refuse_in_use(root: Path) -> None:
    with _disk(root):
        if not os.path.lexists(root):
            return
        if root.is_symlink() or not root.is_dir():
            what = "not a folder"
        elif root.is_mount():
            what = "a mount point, which nothing can be renamed to"
        elif any(root.iterdir()):
            what = "not empty"
        else:
            return
    raise BinaryError(f"{root} is {what}: remove it, or let the runner have another folder")


@contextmanager
def _staging_beside(root: Path) -> Iterator[Path]:
    """A folder that is its owner's alone, and gone at any end but the good one."""
    with _disk(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{root.name}.staging-", dir=root.parent))
    try:
        with _disk(staging):
            staging.chmod(_OWNERS_MODE)  # whatever the umask took
        yield staging
    except BaseException as error:
        try:
            remove_tree(staging)
        except RunnerUnavailableError as leftovers:
            error.add_note(str(leftovers))
        raise


@contextmanager
def _disk(path: Path | str) -> Iterator[None]:
    """Around what touches the disk, and nothing else: `chunks` may raise an OSError too."""
    try:
        yield
    except OSError as error:
        raise BinaryUnavailableError(f"{_shown(path)}: {error.strerror}") from error


def _shown(path: Path | str) -> str:
    text = repr(str(path))
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}… ({len(text)} characters)"


def _refusal(member: tarfile.TarInfo, why: str) -> ArchiveRefusedError:
    return ArchiveRefusedError(f"the archive's member {_shown(member.name)} is refused: {why}")


def _damaged(what: str) -> ArchiveRefusedError:
    return ArchiveRefusedError(f"the archive is damaged: {what}")


# From chunks to the tar's bytes


def _poll(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise UnpackCancelledError("unpacking was cancelled")


def _hashed(
    chunks: Iterable[bytes], update: Callable[[memoryview], None], cancelled: Callable[[], bool]
) -> Iterator[memoryview]:
    for chunk in chunks:
        for start in range(0, len(chunk), _STEP_BYTES):
            _poll(cancelled)
            step = memoryview(chunk)[start : start + _STEP_BYTES]
            update(step)
            yield step
    _poll(cancelled)


def _inflated(compressed: Iterable[memoryview], limits: ArchiveLimits) -> Iterator[bytes]:
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
                inflated = inflater.decompress(rest)
            except zlib.error as error:
                raise _damaged(str(error)) from error
            total += len(inflated)
            if total > limits.inflated_bytes:
                raise ArchiveRefusedError(f"the archive holds more than {limits.inflated_bytes} bytes")
            yield inflated
            rest = inflater.unused_data
            if inflater.eof:
                inflater = None
    if inflater is not None:
        raise _damaged("its gzip data is cut off")


class _Reader:
    """Hands out bytes in exact amounts."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def parts(self, size: int) -> Iterator[memoryview]:
        while size:
            while not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    raise _damaged("its tar data is cut off")
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


def _members(tar: _Reader, limits: ArchiveLimits) -> Iterator[tarfile.TarInfo]:
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
            raise _damaged(f"{error}, header {number}") from error
        if member.type in _EXTENSIONS:
            said |= _extension(member, tar)
        else:
            _apply(said, member)
            yield member
            said = {}
        tar.take(-member.size % tarfile.BLOCKSIZE)


def _extension(header: tarfile.TarInfo, tar: _Reader) -> dict[bytes, bytes]:
    """What a header of GNU's or of pax says of the next member."""
    if not 0 <= header.size <= _EXTENSION_BYTES:
        raise _refusal(header, f"its extended header has {header.size} bytes")
    data = tar.take(header.size)
    if header.type in _LONG:
        return {_LONG[header.type]: data.partition(b"\0")[0]}
    said: dict[bytes, bytes] = {}
    start = 0
    while start < len(data):
        record = _PAX_RECORD.match(data, start)
        end = start + int(record[1]) if record else 0
        if record is None or end <= record.end() or data[end - 1 : end] != b"\n":
            raise _refusal(header, "its extended header is damaged")
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


# From members to files


class _Tree:
    """The staging folder, and the record of what was put there, which the rules go by."""

    def __init__(self, top: Path, limits: ArchiveLimits) -> None:
        self._top = str(top)
        self._limits = limits
        self._types = {"": tarfile.DIRTYPE}  # by path from the top: "", "/bin", "/bin/node"

    def add(self, member: tarfile.TarInfo, tar: _Reader) -> None:
        *parents, path = self._paths(member, member.name)
        self._check(member, path)
        for parent in parents:
            if self._types.get(parent, tarfile.DIRTYPE) != tarfile.DIRTYPE:
                raise _refusal(member, f"{_shown(parent[1:])} is not a folder")
            if parent not in self._types:
                self._make_folder(parent, _KEPT_MODE)
        match member.type:
            case tarfile.DIRTYPE if path:
                self._make_folder(path, member.mode)
            case tarfile.REGTYPE:
                self._make_file(path, member.mode, tar.parts(member.size))
            case tarfile.SYMTYPE:
                self._paths(member, member.linkname, depth=len(parents) - 1)
                with self._making(path, tarfile.SYMTYPE) as made:
                    made.symlink_to(member.linkname)
            case tarfile.LNKTYPE:
                earlier = self._paths(member, member.linkname)[-1]
                if self._types.get(earlier) != tarfile.REGTYPE:
                    raise _refusal(member, f"it links to {_shown(member.linkname)}, which is no earlier file")
                with self._making(path, tarfile.REGTYPE) as made:
                    made.hardlink_to(self._top + earlier)

    def _paths(self, member: tarfile.TarInfo, path: str, depth: int = 0) -> list[str]:
        """The path and its parents, from the top; it may go up as often as it is deep, then only down."""
        steps = [step for step in path.split("/") if step not in {"", "."}]
        ups = steps.count("..")
        if not path or path.startswith("/") or ups > depth or ".." in steps[ups:]:
            raise _refusal(member, f"{_shown(path)} may lead out of the folder")
        encoded = os.fsencode(path)
        if len(encoded) > self._limits.path_bytes:
            raise _refusal(member, f"{_shown(path)} is longer than {self._limits.path_bytes} bytes")
        if b"\0" in encoded or max(map(len, encoded.split(b"/"))) > _NAME_BYTES:
            raise _refusal(member, f"a name in {_shown(path)} has a NUL, or over {_NAME_BYTES} bytes")
        return list(accumulate(steps, "{}/{}".format, initial=""))

    def _check(self, member: tarfile.TarInfo, path: str) -> None:
        if member.type not in _MADE_TYPES:
            raise _refusal(member, f"it is {_OTHER_TYPES.get(member.type, f'of type {member.type!r}')}")
        if member.mode & _SET_ID_MODE:
            raise _refusal(member, "it is setuid or setgid")
        if member.size and (member.size < 0 or member.type != tarfile.REGTYPE):
            raise _refusal(member, f"its size is {member.size}")
        if path in self._types and not self._types[path] == member.type == tarfile.DIRTYPE:
            raise _refusal(member, "there is something of this name already")

    @contextmanager
    def _making(self, path: str, kind: bytes) -> Iterator[Path]:
        self._types[path] = kind
        if len(self._types) > self._limits.members:
            raise ArchiveRefusedError(f"the archive has more than {self._limits.members} members")
        made = Path(self._top + path)
        with _disk(made):
            yield made

    def _make_folder(self, path: str, mode: int) -> None:
        known = path in self._types
        with self._making(path, tarfile.DIRTYPE) as made:
            made.mkdir(exist_ok=known)
            made.chmod(mode & _KEPT_MODE | _OWNERS_MODE)

    def _make_file(self, path: str, mode: int, data: Iterable[memoryview]) -> None:
        with self._making(path, tarfile.REGTYPE) as made:
            file = os.open(made, _NEW_FILE, 0o600)
        try:
            for part in data:
                with _disk(made):
                    _write(file, part)
            with _disk(made):
                os.fchmod(file, mode & _KEPT_MODE)
        finally:
            os.close(file)


def _write(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]


# Removal


class _Level(NamedTuple):
    """A folder on the way down, and the names in it that are left to remove."""

    name: str
    stat: os.stat_result
    names: list[str]


def remove_tree(path: Path) -> None:
    """Removes the path and all that is in it, whatever its modes, names and depth; nothing is followed.

    A mount point stays, with what leads to it. Where there is no such path, there is nothing to do.

    Raises:
        RunnerUnavailableError: something is left; the text names the first of it.
    """
    leftovers: list[str] = []
    try:
        leftovers.extend(_remove(path))
    except FileNotFoundError:
        pass
    except OSError as error:
        leftovers.append(str(error))
    if leftovers or os.path.lexists(path):
        first = "; ".join(leftovers[:_SHOWN_LEFTOVERS])
        raise RunnerUnavailableError(f"{_shown(path)} could not be removed, {len(leftovers)} left: {first}")


def _remove(path: Path) -> Iterator[str]:
    """Yields what could not be removed. It holds one folder open, however deep that is."""
    here = os.open(path.parent, _FOLDER)
    trail = [_Level(str(path.parent), os.fstat(here), [path.name])]
    try:
        while trail[-1].names or len(trail) > 1:
            emptied = not trail[-1].names
            if emptied:
                name = trail.pop().name
                here = _replaced(here, os.open("..", _FOLDER, dir_fd=here))
                if not os.path.samestat(os.fstat(here), trail[-1].stat):
                    raise OSError(errno.ESTALE, "was moved while it was removed", name)
            else:
                name = trail[-1].names.pop()
            try:
                if emptied:
                    os.rmdir(name, dir_fd=here)
                elif not _removed(name, here):
                    inner, level = _entered(name, here)
                    here = _replaced(here, inner)
                    trail.append(level)
            except FileNotFoundError:
                pass  # somebody else was quicker
            except OSError as error:
                yield f"{_shown('/'.join([*(level.name for level in trail), name]))}: {error.strerror}"
    finally:
        os.close(here)


def _removed(name: str, folder: int) -> bool:
    """Whether it could be removed at once, as it is no folder with something in it.

    The kernel calls a mount point busy before it looks inside, so none is ever entered.
    """
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        try:
            os.rmdir(name, dir_fd=folder)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            return False
    return True


def _entered(name: str, folder: int) -> tuple[int, _Level]:
    inner = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    opened = Path(f"/proc/self/fd/{inner}")
    try:
        with suppress(OSError):  # another user's, but perhaps open to all
            opened.chmod(_OWNERS_MODE)
        return inner, _Level(name, os.fstat(inner), [item.name for item in opened.iterdir()])
    except OSError:
        os.close(inner)
        raise


def _replaced(folder: int, other: int) -> int:
    os.close(folder)
    return other

"""The runner's tarball, from a stream of bytes to a folder in place.

`unpack` hashes, inflates and unpacks in one pass, into a folder that no other user can enter, and
renames it to the root once the digest matches. Until then the bytes are a stranger's.

Nothing unpacked leads out of the root, by three rules that need no look at the disk: a name has no
`..`; its parents are folders, never symlinks; a symlink is relative, with `..` only in front and no
more often than it is deep. So a symlink leads to a place inside, and on from there by names only,
each to a place further in or through another such symlink; in whatever order the members come.
"""

import hashlib
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Final

from agent_adapters.removal import remove_tree
from agent_adapters.tarball import ArchiveLimits, TarBytes, inflated, members, refusal, shown
from agent_core.errors import (
    AgentError,
    ArchiveRefusedError,
    BinaryError,
    BinaryUnavailableError,
    DigestMismatchError,
    RunnerUnavailableError,
)

__all__ = ["UnpackCancelledError", "unpack"]


class UnpackCancelledError(AgentError):
    """Unpacking ended because it was asked to."""


_DEFAULT_LIMITS: Final = ArchiveLimits()
_STEP_BYTES: Final = 16 * 1024  # inflated 17 MiB at most: DEFLATE's ratio ends at 1032

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
            tree, tar = _Tree(staging, limits), TarBytes(inflated(compressed, limits))
            for member in members(tar, limits):
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
        raise BinaryUnavailableError(f"{shown(path)}: {error.strerror}") from error


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


# From members to files


class _Tree:
    """The staging folder, and the record of what was put there, which the rules go by."""

    def __init__(self, top: Path, limits: ArchiveLimits) -> None:
        self._top = str(top)
        self._limits = limits
        self._types = {"": tarfile.DIRTYPE}  # by path from the top: "", "/bin", "/bin/node"

    def add(self, member: tarfile.TarInfo, tar: TarBytes) -> None:
        *parents, path = self._paths(member, member.name)
        self._check(member, path)
        for parent in parents:
            if self._types.get(parent, tarfile.DIRTYPE) != tarfile.DIRTYPE:
                raise refusal(member, f"{shown(parent[1:])} is not a folder")
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
                    raise refusal(member, f"it links to {shown(member.linkname)}, which is no earlier file")
                with self._making(path, tarfile.REGTYPE) as made:
                    made.hardlink_to(self._top + earlier)

    def _paths(self, member: tarfile.TarInfo, path: str, depth: int = 0) -> list[str]:
        """The path and its parents, from the top; it may go up as often as it is deep, then only down."""
        steps = [step for step in path.split("/") if step not in {"", "."}]
        ups = steps.count("..")
        if not path or path.startswith("/") or ups > depth or ".." in steps[ups:]:
            raise refusal(member, f"{shown(path)} may lead out of the folder")
        encoded = os.fsencode(path)
        if len(encoded) > self._limits.path_bytes:
            raise refusal(member, f"{shown(path)} is longer than {self._limits.path_bytes} bytes")
        if b"\0" in encoded or max(map(len, encoded.split(b"/"))) > _NAME_BYTES:
            raise refusal(member, f"a name in {shown(path)} has a NUL, or over {_NAME_BYTES} bytes")
        return list(accumulate(steps, "{}/{}".format, initial=""))

    def _check(self, member: tarfile.TarInfo, path: str) -> None:
        if member.type not in _MADE_TYPES:
            raise refusal(member, f"it is {_OTHER_TYPES.get(member.type, f'of type {member.type!r}')}")
        if member.mode & _SET_ID_MODE:
            raise refusal(member, "it is setuid or setgid")
        if member.size and (member.size < 0 or member.type != tarfile.REGTYPE):
            raise refusal(member, f"its size is {member.size}")
        if path in self._types and not self._types[path] == member.type == tarfile.DIRTYPE:
            raise refusal(member, "there is something of this name already")

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

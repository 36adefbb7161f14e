"""From an archive's members to files and folders, none of them outside the folder that they belong to.

Three rules see to that, and need no look at the disk: a name has no `..`; its parents are folders, never
symlinks; a symlink is relative, with `..` only in front and no more often than it is deep. So a symlink
leads to a place inside, and on from there by names only, each to a place further in or through another
such symlink; in whatever order the members come.
"""

import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Final, NamedTuple

from agent_adapters.tarball import ArchiveLimits, TarBytes, refusal, shown
from agent_core.errors import ArchiveRefusedError, BinaryUnavailableError

__all__ = ["KEPT_MODE", "OWNERS_MODE", "Tree", "disk"]

_NAME_BYTES: Final = 255  # NAME_MAX
_MADE_TYPES: Final = {tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE}
_OTHER_TYPES: Final = {
    tarfile.BLKTYPE: "a block device",
    tarfile.CHRTYPE: "a character device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
KEPT_MODE: Final = 0o755
OWNERS_MODE: Final = 0o700
_OWNERS_FILE_MODE: Final = 0o600
_SET_ID_MODE: Final = 0o6000

_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


@contextmanager
def disk(path: Path | str) -> Iterator[None]:
    """Around what touches the disk, and nothing else: whoever reads the archive may raise an OSError too."""
    try:
        yield
    except OSError as error:
        raise _unavailable(path, error) from error


def _unavailable(path: Path | str, error: OSError) -> BinaryUnavailableError:
    return BinaryUnavailableError(f"{shown(path)}: {error.strerror}")


class _Parent(NamedTuple):
    """The folder that the last member was in; mostly the next one is in it too."""

    name: str
    """As the archive writes it."""
    path: str
    depth: int


class Tree:
    """A folder, and the record of what was put there, which the rules go by."""

    def __init__(self, top: Path, limits: ArchiveLimits) -> None:
        self._top = str(top)
        self._limits = limits
        self._types = {"": tarfile.DIRTYPE}  # by path from the top: "", "/bin", "/bin/node"
        self._parent = _Parent("", "", 0)

    def add(self, member: tarfile.TarInfo, tar: TarBytes) -> None:
        """Makes the member, and the folders that its name implies.

        Raises:
            ArchiveRefusedError: no runner's archive has such a member, or its data are cut off.
            BinaryUnavailableError: the disk failed, is full, or has something in its place.
        """
        path, depth = self._known_place(member) or self._place(member)
        match member.type:
            case tarfile.REGTYPE:
                self._make_file(path, member.mode, tar.parts(member.size))
            case tarfile.DIRTYPE if path:
                self._make_folder(path, member.mode)
            case tarfile.SYMTYPE:
                self._paths(member, member.linkname, depth=depth)
                with self._making(path, tarfile.SYMTYPE) as made:
                    made.symlink_to(member.linkname)
            case tarfile.LNKTYPE:
                earlier = self._paths(member, member.linkname)[-1]
                if self._types.get(earlier) != tarfile.REGTYPE:
                    raise refusal(member, f"it links to {shown(member.linkname)}, which is no earlier file")
                with self._making(path, tarfile.REGTYPE) as made:
                    made.hardlink_to(self._top + earlier)

    def _known_place(self, member: tarfile.TarInfo) -> tuple[str, int] | None:
        """What `_place` would say, for a plain name in the folder of the member before."""
        parent, _, name = member.name.rpartition("/")
        if (
            not parent
            or parent != self._parent.name
            or name in {"", ".", ".."}
            or not member.name.isascii()
            or "\0" in name
            or len(name) > _NAME_BYTES
            or len(member.name) > self._limits.path_bytes
        ):
            return None
        path = f"{self._parent.path}/{name}"
        self._check(member, path)
        return path, self._parent.depth

    def _place(self, member: tarfile.TarInfo) -> tuple[str, int]:
        """Its path from the top, and how many folders it is in; they are there then."""
        *parents, path = self._paths(member, member.name)
        self._check(member, path)
        for parent in parents:
            if self._types.get(parent, tarfile.DIRTYPE) != tarfile.DIRTYPE:
                raise refusal(member, f"{shown(parent[1:])} is not a folder")
            if parent not in self._types:
                self._make_folder(parent, KEPT_MODE)
        depth = len(parents) - 1
        name, slash, last = member.name.rpartition("/")
        if slash and path.endswith(f"/{last}") and last:
            self._parent = _Parent(name, parents[-1], depth)
        return path, depth

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

    def _record(self, path: str, kind: bytes) -> str:
        """Where it is to be made."""
        self._types[path] = kind
        if len(self._types) > self._limits.members:
            raise ArchiveRefusedError(f"the archive has more than {self._limits.members} members")
        return self._top + path

    @contextmanager
    def _making(self, path: str, kind: bytes) -> Iterator[Path]:
        made = Path(self._record(path, kind))
        with disk(made):
            yield made

    # The next two run thousands of times, and are written for that: no Path, no context manager.

    def _make_folder(self, path: str, mode: int) -> None:
        known = path in self._types
        made = self._record(path, tarfile.DIRTYPE)
        try:
            if not known:
                os.mkdir(made, OWNERS_MODE)  # noqa: PTH102
            os.chmod(made, mode & KEPT_MODE | OWNERS_MODE)  # noqa: PTH101
        except OSError as error:
            raise _unavailable(made, error) from error

    def _make_file(self, path: str, mode: int, data: Iterable[memoryview]) -> None:
        made = self._record(path, tarfile.REGTYPE)
        try:
            file = os.open(made, _NEW_FILE, _OWNERS_FILE_MODE)
        except OSError as error:
            raise _unavailable(made, error) from error
        try:
            for part in data:
                _write(file, part, made)
            _change_mode(file, mode & KEPT_MODE, made)
        finally:
            os.close(file)


def _write(file: int, data: memoryview, path: str) -> None:
    try:
        while data:
            data = data[os.write(file, data) :]
    except OSError as error:
        raise _unavailable(path, error) from error


def _change_mode(file: int, mode: int, path: str) -> None:
    try:
        os.fchmod(file, mode)
    except OSError as error:
        raise _unavailable(path, error) from error

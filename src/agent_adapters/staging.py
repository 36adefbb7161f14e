"""The private folder beside the root, in which a runner grows until it takes the root's place.

Whoever works in one holds a lock on it (`flock`), which ends with its process, however that ends. So a
folder whose lock can be taken is nobody's any more.
"""

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Final

from attrs import frozen

from agent_adapters.removal import remove_tree
from agent_adapters.tree import KEPT_MODE, OWNERS_MODE, disk
from agent_core.errors import BinaryError, RunnerUnavailableError

__all__ = ["Staging", "refuse_in_use", "staging_beside"]

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_DEAD_AT_ONCE: Final = 4
"""Folders removed by one call, so that none takes long; a crash leaves one."""
_TRIES: Final = 5
_RUNNERS_MARKS: Final = ("bin/Runner.Listener", "config.sh")


@frozen
class Staging:
    """The private folder, and the root that it is for."""

    path: Path
    root: Path

    def place(self, *, replace: bool) -> None:
        """Renames it to the root; the runner's folder that is there goes, if it may be replaced.

        Raises:
            BinaryUnavailableError: the disk failed, or something else has come into the root meanwhile.
        """
        with disk(self.root):
            self.path.chmod(KEPT_MODE)
            if not (replace and _is_full(self.root) and _is_runners(self.root)):
                self.path.rename(self.root)
                return
            aside = _private_folder(self.root)
            try:
                self._take_over(aside)
            except OSError:
                with suppress(OSError):
                    aside.rmdir()
                raise
        with suppress(RunnerUnavailableError):  # nothing depends on it, and the next call tries again
            remove_tree(aside)

    def _take_over(self, aside: Path) -> None:
        self.root.rename(aside)
        try:
            self.path.rename(self.root)
        except OSError:
            aside.rename(self.root)
            raise


def refuse_in_use(root: Path, *, replace: bool) -> None:
    """Nothing, or an empty folder, or, if it is to be replaced, a runner's folder is free to be renamed to.

    Raises:
        BinaryError: the root is in use; the text says what it is.
        BinaryUnavailableError: the disk failed.
    """
    with disk(root):
        if not os.path.lexists(root):
            return
        if root.is_symlink() or not root.is_dir():
            what = "not a folder"
        elif root.is_mount():
            what = "a mount point, which nothing can be renamed to"
        elif _is_full(root) and not (replace and _is_runners(root)):
            what = "not empty"
        else:
            return
    raise BinaryError(f"{root} is {what}: remove it, or let the runner have another folder")


def _is_full(root: Path) -> bool:
    return root.is_dir() and any(root.iterdir())


def _is_runners(root: Path) -> bool:
    is_folder = root.is_dir() and not root.is_symlink() and not root.is_mount()
    return is_folder and any((root / mark).is_file() for mark in _RUNNERS_MARKS)


@contextmanager
def staging_beside(root: Path) -> Iterator[Staging]:
    """A folder that is its owner's alone, and gone at any end but the good one.

    Those that the dead have left beside the root are removed first.
    """
    with disk(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        _remove_dead(root)
        path, lock = _locked_folder(root)
    try:
        yield Staging(path, root)
    except BaseException as error:
        try:
            remove_tree(path)
        except RunnerUnavailableError as leftovers:
            error.add_note(str(leftovers))
        raise
    finally:
        os.close(lock)


def _prefix(root: Path) -> str:
    return f".{root.name}.staging-"


def _private_folder(root: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=_prefix(root), dir=root.parent))


def _locked_folder(root: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor that its lock goes with."""
    for _ in range(_TRIES):
        path = _private_folder(root)
        try:
            lock = _lock(path)
        except OSError:
            path.rmdir()
            raise
        if lock is not None:
            return path, lock
    raise OSError(errno.EBUSY, "somebody removes each folder that is made beside it")


def _lock(path: Path) -> int | None:
    """None if somebody has taken the folder for a dead one's, between its making and this."""
    try:
        path.chmod(OWNERS_MODE)  # an odd umask takes the right to open it
        lock = os.open(path, _FOLDER)
    except FileNotFoundError:
        return None
    if _is_locked_for_us(path, lock):
        return lock
    os.close(lock)
    return None


def _is_locked_for_us(path: Path, lock: int) -> bool:
    """Also true where there are no locks: then nobody can take one and call the folder dead."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return path.exists()


def _remove_dead(root: Path) -> None:
    """At most a few; nothing that goes wrong here is an error."""
    with suppress(OSError), os.scandir(root.parent) as entries:
        found = (Path(entry) for entry in entries if entry.name.startswith(_prefix(root)))
        for _ in islice(filter(_is_removed, found), _DEAD_AT_ONCE):
            pass


def _is_removed(path: Path) -> bool:
    """Whether the folder was a dead one's, and so has been removed."""
    with suppress(OSError, RunnerUnavailableError):
        folder = os.open(path, _FOLDER)
        try:
            if os.fstat(folder).st_uid == os.geteuid():
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(path)
                return True
        finally:
            os.close(folder)
    return False

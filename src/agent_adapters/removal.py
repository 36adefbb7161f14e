"""Removes a folder and all that is in it: read-only, foreign, moved meanwhile, deep; mounts are left."""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from agent_adapters.tarball import shown
from agent_core.errors import RunnerUnavailableError

__all__ = ["remove_tree"]

_FOLDER: Final = os.O_PATH | os.O_DIRECTORY
_OWNERS_MODE: Final = 0o700
_SHOWN_LEFTOVERS: Final = 3


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
        raise RunnerUnavailableError(f"{shown(path)} could not be removed, {len(leftovers)} left: {first}")


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
                yield f"{shown('/'.join([*(level.name for level in trail), name]))}: {error.strerror}"
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

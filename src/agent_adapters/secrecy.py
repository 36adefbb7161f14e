"""What a job may not read in /proc: this process, and the secrets that processes were started with."""

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["blank", "keep_private"]

_PR_SET_DUMPABLE: Final = 4


def keep_private() -> None:
    """Closes /proc/self/{environ,mem,fd…} of this process to others of its user, and forbids core dumps.

    Root reads them all the same; programs that this process starts are not concerned. It closes this
    process's own /proc/self/mem to it too, unless it is root: so `blank` comes first.
    """
    # Where a sandbox refuses this, all is as it was: nothing depends on it.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def blank(pid: int, is_hidden: Callable[[str], bool]) -> bool:
    """Overwrites with NULs what is to be hidden of the variables that the process was started with.

    /proc/<pid>/environ shows no more of them then. Copies that a program has made, as shells and Python do at
    their start, stay as they are; whoever reads the originals (`getenv` of C) finds them gone. So it is for
    processes that have read what they need.

    Args:
        pid: of a process of this one's user, or, if this one is root, of any.
        is_hidden: told an entry, `NAME=value`; whether it is to go.

    Returns:
        Whether that could be done; False: /proc does not let this process, or the other one is gone, or just
        about to become another program, which may be asked for anew.
    """
    with suppress(OSError, ValueError), Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        # The file stays with the program that runs now: if another one follows it, nothing can be read there.
        start, end = _bounds(pid)
        found = os.pread(memory.fileno(), end - start, start)
        at = start
        for entry in found.split(b"\0"):
            if entry and is_hidden(os.fsdecode(entry)):
                os.pwrite(memory.fileno(), bytes(len(entry)), at)
            at += len(entry) + 1
        # A zombie's are at 0, and those of a program in the making end there.
        return start > 0 and len(found) == end - start
    return False


def _bounds(pid: int) -> tuple[int, int]:
    """Where in the process's memory its first variables begin and end."""
    # proc(5): pid (comm) state …; env_start is field 50, and comm may hold anything, also ")".
    start, end = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[47:49]
    return int(start), int(end)

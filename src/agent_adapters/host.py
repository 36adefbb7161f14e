"""The host: its disk, its memory, its folders, and its processes as /proc tells of them."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psutil
from attrs import frozen

from agent_adapters.threads import Lane
from agent_core.errors import HostUnavailableError
from agent_core.model import HostSample, ProcessId
from agent_core.ports import HostProbe

__all__ = ["ProcessEntry", "PsutilHostProbe", "identify", "process_table", "why_unwritable"]

_PROC: Final = Path("/proc")
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_DEAD_STATES: Final = frozenset({"Z", "X", "x"})


@frozen
class ProcessEntry:
    """One row of the process table."""

    id: ProcessId
    name: str
    """Of its program, as ps shows it: 15 bytes at most, and whatever it calls itself."""
    parent_pid: int
    session: int
    is_dead: bool
    """A zombie: it runs no more, its parent has only not taken note."""
    has_terminal: bool
    """Somebody sits before it."""


def process_table() -> Iterator[ProcessEntry]:
    """Every process that this one may see."""
    for name in os.listdir(_PROC):  # noqa: PTH208 - names are all that is wanted
        if name.isdecimal() and (entry := _entry(int(name))) is not None:
            yield entry


def identify(pid: int) -> ProcessId | None:
    """The identity of the process that has this number now, alive or a zombie; None if there is none."""
    entry = _entry(pid)
    return None if entry is None else entry.id


def _entry(pid: int) -> ProcessEntry | None:
    try:
        stat = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # proc(5): pid (comm) state ppid pgrp session … starttime is field 22; comm may hold anything, also ")".
    head, _, tail = stat.rpartition(")")
    state, parent, _group, session, terminal, *rest = tail.split()
    started = int(rest[14]) / _TICKS_PER_SECOND
    return ProcessEntry(
        ProcessId(pid, started),
        head.partition("(")[2],
        int(parent),
        int(session),
        state in _DEAD_STATES,
        terminal != "0",
    )


class PsutilHostProbe(HostProbe):
    """Measures the host.

    Args:
        folder: on the disk whose free space counts; it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._lane = Lane("host", HostUnavailableError)

    async def sample(self) -> HostSample:
        return await self._lane.run(self._sample)

    def _sample(self) -> HostSample:
        try:
            existing = next(path for path in (self._folder, *self._folder.parents) if path.exists())
            return HostSample(
                free_disk_bytes=psutil.disk_usage(str(existing)).free,
                available_memory_bytes=psutil.virtual_memory().available,
                booted_at=datetime.fromtimestamp(psutil.boot_time(), UTC),
            )
        except OSError as exc:
            raise HostUnavailableError(f"{self._folder}: {exc}") from exc

    def is_alive(self, process: ProcessId) -> bool:
        entry = _entry(process.pid)
        return entry is not None and entry.id == process and not entry.is_dead

    def own_process(self) -> ProcessId:
        own = identify(os.getpid())
        if own is None:
            raise HostUnavailableError("/proc does not show this process: is it mounted?")
        return own


def why_unwritable(folder: Path, *, make: bool = False) -> str | None:
    """Why nothing can be written into the folder; None: it can, if need be after it was made.

    With `make`, it is there afterwards.
    """
    if make:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            return f"{folder} cannot be made: {exc.strerror}"
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not existing.is_dir():
        return f"{existing} is not a folder"
    return None if os.access(existing, os.W_OK | os.X_OK) else f"{existing} cannot be written"

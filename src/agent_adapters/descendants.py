"""All processes of the runner, wherever they went: found, and killed, without mistaking another for one."""

import ctypes
import errno
import math
import os
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from agent_adapters.host import ProcessEntry, identify, process_table
from agent_core.errors import RunnerUnavailableError
from agent_core.model import ProcessId

__all__ = ["RunnerProcesses", "kill"]

_MARK: Final = "RUNNER_AGENT_TRACKING_ID"
_WORKER: Final = "Runner.Worker"
_INTERPRETERS: Final = frozenset({"bash", "node", "pwsh", "python", "python3", "sh"})
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37


class RunnerProcesses:
    """The processes of the runner in one root.

    This process becomes the reaper of orphans, so that no descendant of the runner gets out of sight,
    whatever it does; also where it has begun anew meanwhile, as its own successor. Another successor, which
    has adopted none, goes by sessions, the mark, and what works in the root, but for who sits before a
    terminal.

    Args:
        root: the runner's.
        tracking_id: the same for an agent and its successor, and no other agent's.
    """

    def __init__(self, root: Path, tracking_id: str) -> None:
        self._root, self._tracking_id = root, tracking_id
        self._started: set[ProcessId] = set()
        self._not_ours: frozenset[int] = frozenset()
        self._begun = math.inf
        """When the runner began that this process had started before it began anew."""

    @property
    def mark(self) -> Mapping[str, str]:
        """For the runner's environment, and so for its descendants': a successor knows them by it."""
        return {_MARK: self._tracking_id}

    def adopt_orphans(self) -> None:
        """To be called before each start.

        Raises:
            RunnerUnavailableError: the system does not let this process adopt.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            number = ctypes.get_errno()
            raise RunnerUnavailableError(f"orphans cannot be adopted: {os.strerror(number)}")
        if not self._started:
            own = os.getpid()
            self._not_ours = frozenset(e.id.pid for e in process_table() if e.parent_pid == own)

    def add(self, process: ProcessId) -> None:
        """Takes note of a process that this one has started, in a session of its own."""
        self._started.add(process)

    def kin(self, known: Iterable[ProcessId]) -> set[ProcessId]:
        """What of the runner lives, as far as session and parentage tell: without a look into any process."""
        table = _by_number()
        return self._living(table, self._kin(table, set(known)))

    def find(self, known: Iterable[ProcessId]) -> set[ProcessId]:
        """Every process of the runner that lives: by session, parentage, mark, its program's path."""
        table = _by_number()
        found = self._kin(table, set(known))
        others = [entry for entry in table.values() if entry.id not in found]
        found |= {
            entry.id
            for entry in others
            if self._is_marked(entry.id.pid)
            or (not entry.has_terminal and self._works_from_root(entry.id.pid))
        }
        return self._living(table, found)

    def _kin(self, table: Mapping[int, ProcessEntry], known: set[ProcessId]) -> set[ProcessId]:
        ours = self._started | known
        # A number that another process has by now leads no session of ours.
        leaders = {
            process.pid for process in ours if process.pid not in table or table[process.pid].id == process
        }
        found = {entry.id for entry in table.values() if entry.id in ours or entry.session in leaders}
        found |= self._adopted(table, known)
        return found | _descendants(table, found)

    def _living(self, table: Mapping[int, ProcessEntry], found: set[ProcessId]) -> set[ProcessId]:
        """Those found, with their descendants, but for the dead and for the line of this process."""
        self.bury()
        found = (found | _descendants(table, found)) - _line_of(table, os.getpid())
        return {process for process in found if not table[process.pid].is_dead}

    def has_worker(self) -> bool:
        """Whether one that works on a job lives in a session that this process has made for the runner."""
        leaders = {process.pid for process in self._started}
        return any(
            entry.name == _WORKER and entry.session in leaders and not entry.is_dead
            for entry in process_table()
        )

    def bury(self) -> None:
        """Lets dead orphans go for good; otherwise a job with many could use up all process numbers."""
        own = {process.pid for process in self._started} | self._not_ours
        for entry in process_table():
            if entry.is_dead and entry.parent_pid == os.getpid() and entry.id.pid not in own:
                with suppress(ChildProcessError):
                    os.waitpid(entry.id.pid, os.WNOHANG)

    def _adopted(self, table: Mapping[int, ProcessEntry], known: set[ProcessId]) -> set[ProcessId]:
        """The children of this process that came after the runner's start: its orphans."""
        own = os.getpid()
        children = {entry.id for entry in table.values() if entry.parent_pid == own}
        if self._started:
            return {child for child in children if child.pid not in self._not_ours}
        if (runners := known & children) and _adopts_orphans():
            # This process was the agent, and what it knew of its other children is gone.
            self._begun = min(self._begun, *(runner.started for runner in runners))
        return {child for child in children if child.started >= self._begun}

    def _works_from_root(self, pid: int) -> bool:
        """Whether the process runs a program or a script of the runner's root, or stands in its folders."""
        proc, root = Path("/proc", str(pid)), f"{self._root}/"
        try:
            program, script, *_ = (
                os.fsdecode(word) for word in (proc / "cmdline").read_bytes().split(b"\0", 2)
            )
            if program.startswith(root) or (script.startswith(root) and Path(program).name in _INTERPRETERS):
                return True
            return any(str((proc / link).readlink()).startswith(root) for link in ("exe", "cwd"))
        except (OSError, ValueError):
            # It is gone, another user's, or a kernel thread, which has no command line.
            return False

    def _is_marked(self, pid: int) -> bool:
        """Whether the process comes from the runner, by its environment."""
        try:
            variables = Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return os.fsencode(f"{_MARK}={self._tracking_id}") in variables


def _by_number() -> Mapping[int, ProcessEntry]:
    return {entry.id.pid: entry for entry in process_table()}


def _adopts_orphans() -> bool:
    """Whether this process, or what it was before an exec, has said that it does."""
    adopts = ctypes.c_int()
    ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(adopts), 0, 0, 0)
    return bool(adopts.value)


def _line_of(table: Mapping[int, ProcessEntry], pid: int) -> set[ProcessId]:
    """The process, its parent, and so on: whoever kills has none of these to kill."""
    line: set[ProcessId] = set()
    while pid in table and table[pid].id not in line:
        line.add(table[pid].id)
        pid = table[pid].parent_pid
    return line


def _descendants(table: Mapping[int, ProcessEntry], roots: set[ProcessId]) -> set[ProcessId]:
    """All whose line of parents meets one of `roots`."""
    children: dict[int, list[ProcessId]] = {}
    for entry in table.values():
        children.setdefault(entry.parent_pid, []).append(entry.id)
    found: set[ProcessId] = set()
    unseen = list(roots)
    while unseen:
        for child in children.get(unseen.pop().pid, []):
            if child not in found:
                found.add(child)
                unseen.append(child)
    return found


def kill(process: ProcessId) -> bool:
    """SIGKILL to that very process, and to no later one of its number; False: it may not be killed."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # which some kernels say of a process that goes at this very moment
            raise
        return True
    try:
        if identify(process.pid) == process:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    finally:
        os.close(pidfd)
    return True

"""The runner as a real process: in its own session, read to its end, killed to the last descendant."""

import asyncio
import ctypes
import os
import signal
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from attrs import define

from agent_adapters.host import ProcessEntry, identify, process_table
from agent_adapters.removal import remove_tree
from agent_adapters.threads import Lane
from agent_core.errors import RegistrationRefusedError, RunnerUnavailableError
from agent_core.lines import LineSplitter
from agent_core.model import OutputLine, ProcessId, Registration, Secret
from agent_core.ports import RunnerProcess, Say

__all__ = ["SubprocessRunnerProcess", "runner_environment"]

_INHERITED: Final = frozenset(
    {
        "HOME",
        "LANG",
        "LOGNAME",
        "NODE_EXTRA_CA_CERTS",
        "PATH",
        "SHELL",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TZ",
        "USER",
    }
    | {f"{scheme}_proxy" for scheme in ("all", "http", "https", "no")}
    | {f"{scheme}_PROXY" for scheme in ("ALL", "HTTP", "HTTPS", "NO")}
)
_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LISTENER: Final = "Runner.Listener"
_INTERPRETERS: Final = frozenset({"bash", "node", "pwsh", "python", "python3", "sh"})
_READ_BYTES: Final = 64 * 1024
_MARK: Final = "RUNNER_TRACKING_ROOT"
"""In the environment of the runner, and so of its descendants: a successor knows them by it."""
_UMASK: Final = 0o077
"""The runner writes its credentials with the umask's permissions."""
_TAIL_LINES: Final = 5
_KILL_PAUSE_SECONDS: Final = 0.02
_PR_SET_CHILD_SUBREAPER: Final = 36
_SIGNALLED: Final = 128


def runner_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The runner's environment: built from what any program needs, not inherited with what the agent has."""
    inherited = {
        name: value for name, value in environ.items() if name in _INHERITED or name.startswith("LC_")
    }
    allowed = {"RUNNER_ALLOW_RUNASROOT": "1"} if os.geteuid() == 0 else {}
    return {"PATH": _DEFAULT_PATH, "LANG": "C.UTF-8"} | inherited | allowed


@define(eq=False)
class _Start:
    """One process that the agent started, and the reader of its output."""

    popen: subprocess.Popen[bytes]
    id: ProcessId
    is_listener: bool
    reader: asyncio.StreamReader
    transport: asyncio.ReadTransport
    exited: asyncio.Event

    @property
    def exit_code(self) -> int:
        code = self.popen.returncode
        return code if code >= 0 else _SIGNALLED - code


class SubprocessRunnerProcess(RunnerProcess):
    """The runner in `root`.

    It becomes the reaper of orphans (PR_SET_CHILD_SUBREAPER), so that no descendant of the runner gets out
    of sight, whatever it does: until `kill`, every new child of this process is taken for the runner's.
    """

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        self._root, self._environment = root.absolute(), dict(environment)
        self._lane = Lane("runner", RunnerUnavailableError)
        self._start: _Start | None = None
        self._started: set[ProcessId] = set()
        self._not_ours: frozenset[int] = frozenset()

    async def register(self, registration: Registration, say: Say) -> None:
        if registration.token is None:
            raise RegistrationRefusedError("there is no token to register with")
        environment = self._environment | {"ACTIONS_RUNNER_INPUT_TOKEN": registration.token.reveal()}
        start = await self._spawn(
            [str(self._root / "config.sh"), *_config_arguments(registration)], environment
        )
        said: deque[str] = deque(maxlen=_TAIL_LINES)
        try:
            async for line in _lines(start):
                said.append(line.text)
                say(line)
            await start.exited.wait()
        finally:
            if not start.exited.is_set():
                await self.kill()
        if start.exit_code != 0:
            raise RegistrationRefusedError(
                f"config.sh ended with exit code {start.exit_code}: {' / '.join(said)}"
            )

    async def start(self, jit_config: Secret | None) -> ProcessId:
        if self._start is not None and not self._start.exited.is_set():
            raise RunnerUnavailableError("the runner runs already")
        listener = self._root / "bin" / _LISTENER
        command = [str(listener), "run"] if os.access(listener, os.X_OK) else [str(self._root / "run.sh")]
        environment = dict(self._environment)
        if jit_config is not None:
            environment["ACTIONS_RUNNER_INPUT_JITCONFIG"] = jit_config.reveal()
        if self._start is not None:
            self._start.transport.close()
        self._start = await self._spawn(command, environment)
        return self._start.id

    async def output(self) -> AsyncIterator[OutputLine]:
        async for line in _lines(self._current()):
            yield line

    async def wait(self) -> int:
        start = self._current()
        await start.exited.wait()
        return start.exit_code

    async def interrupt(self) -> None:
        start = self._start
        if start is None or start.exited.is_set():
            return
        if start.is_listener:
            start.popen.send_signal(signal.SIGINT)
        else:
            # run.sh forwards nothing; its Listener is in its process group.
            os.killpg(start.id.pid, signal.SIGINT)

    async def kill(self, known: Sequence[ProcessId] = ()) -> int:
        killed: set[ProcessId] = set()
        while left := await self._lane.run(partial(self._find, known)):
            kept = {process for process in left if not _kill(process)}
            if kept == left:
                pids = ", ".join(str(process.pid) for process in sorted(kept))
                raise RunnerUnavailableError(f"these processes may not be killed: {pids}")
            killed |= left - kept
            await asyncio.sleep(_KILL_PAUSE_SECONDS)
        return len(killed)

    async def remove(self) -> None:
        await self._lane.run(partial(remove_tree, self._root))

    # Starting

    async def _spawn(self, command: list[str], environment: Mapping[str, str]) -> _Start:
        _adopt_orphans()
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # An ignored SIGINT is inherited through exec, and .NET honours it: nothing could stop the runner.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if not self._started:
            self._not_ours = frozenset(_children(os.getpid()))
        popen = self._popen(command, environment)
        # From here on, whoever cancels this call leaves a process that `kill` finds.
        exited = _watch_exit(popen)
        process = identify(popen.pid)
        if process is None or popen.stdout is None:
            raise RunnerUnavailableError(f"{command[0]} started, but /proc does not show it")
        self._started.add(process)
        reader = asyncio.StreamReader(limit=_READ_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), popen.stdout
        )
        return _Start(popen, process, Path(command[0]).name == _LISTENER, reader, transport, exited)

    def _popen(self, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                command,
                cwd=self._root,
                env={**environment, _MARK: str(self._root)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=_UMASK,
            )
        except (OSError, ValueError) as exc:  # no system takes a NUL in an argument
            raise RunnerUnavailableError(f"{command[0]} cannot be started: {exc}") from exc

    def _current(self) -> _Start:
        if self._start is None:
            raise RunnerUnavailableError("the runner was not started")
        return self._start

    # Finding

    def _find(self, known: Iterable[ProcessId]) -> set[ProcessId]:
        """Every process of the runner that lives: by session, parentage, mark, its program's path."""
        table = {entry.id.pid: entry for entry in process_table()}
        ours = self._started | set(known)
        # A number that another process has by now leads no session of ours.
        leaders = {
            process.pid for process in ours if process.pid not in table or table[process.pid].id == process
        }
        found = {
            entry.id
            for entry in table.values()
            if entry.id in ours
            or entry.session in leaders
            or self._works_from_root(entry.id.pid)
            or self._is_marked(entry.id.pid)
        }
        found |= self._adopted(table)
        found |= _descendants(table, found)
        for process in found:
            self._take_note(process, table[process.pid])
        return {process for process in found if not table[process.pid].is_dead}

    def _adopted(self, table: Mapping[int, ProcessEntry]) -> set[ProcessId]:
        """The children of this process that came after the runner's start: its orphans."""
        if not self._started:
            return set()
        own = os.getpid()
        return {
            entry.id
            for entry in table.values()
            if entry.parent_pid == own and entry.id.pid not in self._not_ours
        }

    def _works_from_root(self, pid: int) -> bool:
        """Whether the process runs a program or a script of the runner's root."""
        proc, root = Path("/proc", str(pid)), f"{self._root}/"
        try:
            program, script, *_ = (
                os.fsdecode(word) for word in (proc / "cmdline").read_bytes().split(b"\0", 2)
            )
            if program.startswith(root) or (script.startswith(root) and Path(program).name in _INTERPRETERS):
                return True
            return str((proc / "exe").readlink()).startswith(root)
        except (OSError, ValueError):
            # It is gone, another user's, or a kernel thread, which has no command line.
            return False

    def _is_marked(self, pid: int) -> bool:
        """Whether the process comes from the runner, by its environment."""
        try:
            variables = Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return os.fsencode(f"{_MARK}={self._root}") in variables

    def _take_note(self, process: ProcessId, entry: ProcessEntry) -> None:
        """Lets a dead orphan go for good; `_watch_exit` does so for what this process started."""
        if entry.is_dead and entry.parent_pid == os.getpid() and process not in self._started:
            with suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)


def _config_arguments(registration: Registration) -> list[str]:
    arguments = ["--unattended", "--ephemeral", "--disableupdate", "--work", "_work"]
    arguments += ["--url", registration.url, "--name", registration.name]
    arguments += ["--labels", ",".join(registration.labels)]
    if registration.group is not None:
        arguments += ["--runnergroup", registration.group]
    return arguments


def _adopt_orphans() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise RunnerUnavailableError(f"orphans cannot be adopted: {os.strerror(number)}")


def _watch_exit(popen: subprocess.Popen[bytes]) -> asyncio.Event:
    """Notes the process's exit when it happens, whatever becomes of its pipes and of who started it."""
    loop, exited = asyncio.get_running_loop(), asyncio.Event()
    pidfd = os.pidfd_open(popen.pid)

    def note() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        popen.wait()
        exited.set()

    loop.add_reader(pidfd, note)
    return exited


async def _lines(start: _Start) -> AsyncIterator[OutputLine]:
    splitter = LineSplitter()
    try:
        while data := await start.reader.read(_READ_BYTES):
            for line in splitter.feed(data):
                yield line
        for line in splitter.finish():
            yield line
    finally:
        start.transport.close()


def _children(pid: int) -> list[int]:
    return [entry.id.pid for entry in process_table() if entry.parent_pid == pid]


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


def _kill(process: ProcessId) -> bool:
    """SIGKILL to that very process, and to no later one of its number; False: it may not be killed."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
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

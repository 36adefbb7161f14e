"""The runner as a real process: in its own session, read to its end, killed to the last descendant."""

import asyncio
import os
import signal
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from attrs import define

from agent_adapters.descendants import RunnerProcesses, kill
from agent_adapters.host import identify
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
_READ_BYTES: Final = 64 * 1024
_TURN_LINES: Final = 1_000
"""After so many of one read, whoever else needs the loop has a turn."""
_UMASK: Final = 0o077
"""The runner writes its credentials with the umask's permissions."""
_TAIL_LINES: Final = 5
_LOOKS: Final = 3
_LAST_WORDS_SECONDS: Final = 2.0
"""From the exit of config.sh to the end of its output, if something that it started holds that open."""
_KILL_PAUSE_SECONDS: Final = 0.02
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

    From `start` to `kill`, every new child of this process is taken for the runner's: see `RunnerProcesses`.
    """

    def __init__(self, root: Path, environment: Mapping[str, str], tracking_id: str) -> None:
        self._root, self._environment = root.absolute(), dict(environment)
        self._lane = Lane("runner", RunnerUnavailableError)
        self._processes = RunnerProcesses(self._root, tracking_id)
        self._secrets: set[str] = set()
        self._start: _Start | None = None

    async def register(self, registration: Registration, say: Say) -> None:
        if registration.token is None:
            raise RegistrationRefusedError("there is no token to register with")
        environment = self._environment | {"ACTIONS_RUNNER_INPUT_TOKEN": self._hand_out(registration.token)}
        start = await self._spawn(
            [str(self._root / "config.sh"), *_config_arguments(registration)], environment
        )
        said: deque[str] = deque(maxlen=_TAIL_LINES)

        async def listen() -> None:
            async for line in self._masked(_lines(start)):
                said.append(line.text)
                say(line)

        listening = asyncio.create_task(listen(), name="config.sh's output")
        try:
            await start.exited.wait()
            await asyncio.wait({listening}, timeout=_LAST_WORDS_SECONDS)
        finally:
            if not listening.done():
                await self.kill()
                await asyncio.wait({listening}, timeout=_LAST_WORDS_SECONDS)
                listening.cancel()
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
            environment["ACTIONS_RUNNER_INPUT_JITCONFIG"] = self._hand_out(jit_config)
        if self._start is not None:
            self._start.transport.close()
        self._start = await self._spawn(command, environment)
        return self._start.id

    async def output(self) -> AsyncIterator[OutputLine]:
        async for line in self._masked(_lines(self._current())):
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
        looks_in_vain = 0
        # One look at a process table that changes meanwhile can miss a process that forks and ends.
        while looks_in_vain < _LOOKS:
            left = await self._lane.run(partial(self._processes.find, known))
            if not left:
                looks_in_vain += 1
                continue
            looks_in_vain = 0
            kept = {process for process in left if not kill(process)}
            if kept == left:
                pids = ", ".join(str(process.pid) for process in sorted(kept))
                raise RunnerUnavailableError(f"these processes may not be killed: {pids}")
            killed |= left - kept
            await asyncio.sleep(_KILL_PAUSE_SECONDS)
        return len(killed)

    async def remove(self) -> None:
        await self._lane.run(partial(remove_tree, self._root))

    # Secrets

    def _hand_out(self, secret: Secret) -> str:
        """The secret, for the runner; from here on it is masked in whatever the runner prints."""
        self._secrets.add(secret.reveal())
        return secret.reveal()

    async def _masked(self, lines: AsyncIterator[OutputLine]) -> AsyncIterator[OutputLine]:
        async for line in lines:
            text = line.text
            for secret in self._secrets:
                text = text.replace(secret, "***")
            yield line if text is line.text else OutputLine(text, line.continued)

    # Starting

    async def _spawn(self, command: list[str], environment: Mapping[str, str]) -> _Start:
        self._processes.adopt_orphans()
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # An ignored SIGINT is inherited through exec, and .NET honours it: nothing could stop the runner.
            # A handler is not inherited, and this one ignores it here all the same.
            signal.signal(signal.SIGINT, _ignore)
        # An ignored SIGCHLD would lose exit codes; and orphans are buried as they die.
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._processes.bury)
        popen = self._popen(command, environment)
        # From here on, whoever cancels this call leaves a process that `kill` finds.
        exited = _watch_exit(popen)
        process = identify(popen.pid)
        if process is None or popen.stdout is None:
            raise RunnerUnavailableError(f"{command[0]} started, but /proc does not show it")
        self._processes.add(process)
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
                env={**environment, **self._processes.mark},
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


def _config_arguments(registration: Registration) -> list[str]:
    arguments = ["--unattended", "--ephemeral", "--disableupdate", "--work", "_work"]
    arguments += ["--url", registration.url, "--name", registration.name]
    arguments += ["--labels", ",".join(registration.labels)]
    if registration.group is not None:
        arguments += ["--runnergroup", registration.group]
    return arguments


def _ignore(_number: int, _frame: object) -> None:
    pass


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
            for number, line in enumerate(splitter.feed(data), 1):
                yield line
                if number % _TURN_LINES == 0:
                    await asyncio.sleep(0)
        for line in splitter.finish():
            yield line
    finally:
        start.transport.close()

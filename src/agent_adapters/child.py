"""One process that the agent starts: in its own session, read to its end, its exit noted as it happens."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final, Self

from attrs import define

from agent_adapters.accounts import Account, switch_to
from agent_adapters.host import identify
from agent_core.errors import RunnerUnavailableError
from agent_core.lines import LineSplitter
from agent_core.model import OutputLine, ProcessId

__all__ = ["Child"]

_READ_BYTES: Final = 64 * 1024
_TURN_LINES: Final = 1_000
"""After so many of one read, whoever else needs the loop has a turn."""
_UMASK: Final = 0o077
"""The runner writes its credentials with the umask's permissions."""
_OOM_SCORE: Final = 500
"""What GitHub's runner gives the steps of a job: the kernel, short of memory, kills them before the agent."""
_SIGNALLED: Final = 128


@define(eq=False)
class Child:
    """A process, whose stdout and stderr are one pipe."""

    id: ProcessId
    exited: asyncio.Event
    _popen: subprocess.Popen[bytes]
    _output: IO[bytes]
    _is_read: bool = False

    @classmethod
    def start(
        cls, command: Sequence[str], folder: Path, environment: Mapping[str, str], account: Account | None
    ) -> Self:
        """Starts the command in the folder; as the account's user, where there is one.

        Raises:
            RunnerUnavailableError: it cannot be started.
        """
        popen = _spawn(command, folder, environment, account)
        exited = _watch_exit(popen)
        process = identify(popen.pid)
        if process is None or popen.stdout is None:
            raise RunnerUnavailableError(f"{command[0]} started, but /proc does not show it")
        return cls(process, exited, popen, popen.stdout)

    @property
    def exit_code(self) -> int:
        """Once it has ended: 128 + N when signal N did that."""
        code = self._popen.returncode
        return code if code >= 0 else _SIGNALLED - code

    async def lines(self) -> AsyncGenerator[OutputLine, None]:
        """All that it prints, until nobody holds its output open any more; to be asked for once."""
        if self._output.closed:
            return
        self._is_read = True
        splitter, reader = LineSplitter(), asyncio.StreamReader(limit=_READ_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._output
        )
        try:
            while data := await reader.read(_READ_BYTES):
                for number, line in enumerate(splitter.feed(data), 1):
                    yield line
                    if number % _TURN_LINES == 0:
                        await asyncio.sleep(0)
            for line in splitter.finish():
                yield line
        finally:
            transport.close()

    def interrupt(self, *, group: bool) -> None:
        """SIGINT, to it alone or to its process group; nothing where it has ended."""
        if self.exited.is_set():
            return
        if group:
            os.killpg(self.id.pid, signal.SIGINT)
        else:
            self._popen.send_signal(signal.SIGINT)

    def close(self) -> None:
        """If nobody has begun to read its output, nobody will."""
        if not self._is_read:
            self._output.close()


def _spawn(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], account: Account | None
) -> subprocess.Popen[bytes]:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # An ignored SIGINT is inherited through exec, and .NET honours it: nothing could stop the runner.
        # A handler is not inherited, and this one ignores it here all the same.
        signal.signal(signal.SIGINT, _ignore)
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        # It would lose exit codes.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        with _offered_to_the_oom_killer():
            popen = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=_UMASK,
                **switch_to(account),
            )
    except (OSError, ValueError) as exc:  # no system takes a NUL in an argument
        who = "" if account is None else f" as user {account.name}"
        raise RunnerUnavailableError(f"{command[0]} cannot be started{who}: {exc}") from exc
    _score(str(popen.pid), _OOM_SCORE)
    return popen


@contextmanager
def _offered_to_the_oom_killer() -> Iterator[None]:
    """Meanwhile: what starts has its parent's score, and may have children before it has another one.

    A process that is undumpable, and not root, cannot do that to itself.
    """
    try:
        before = int(Path("/proc/self/oom_score_adj").read_text())
    except (OSError, ValueError):
        before = _OOM_SCORE
    if before < _OOM_SCORE:
        _score("self", _OOM_SCORE)
    try:
        yield
    finally:
        if before < _OOM_SCORE:
            _score("self", before)


def _score(process: str, score: int) -> None:
    with suppress(OSError):  # it may have ended, or be closed to this process
        Path("/proc", process, "oom_score_adj").write_text(str(score))


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

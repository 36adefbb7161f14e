"""Runs the command of the installed wheel, and sees to it that no process of it is left."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import psutil
from attrs import frozen

TOKEN = "JITC_integration-token-that-stays-secret"
JOB_ID = "67890"
COMMAND = Path(sys.prefix) / "lean" / "bin" / "runs-fleet-agent"
"""In the environment that `make test` makes for it: it has what the wheel requires, and nothing else."""
TIMEOUT_SECONDS = 150.0
"""Of a whole run, on a machine that has other things to do: no test waits that long unless it fails."""

_PR_SET_CHILD_SUBREAPER: Final = 36


def a_config() -> dict[str, object]:
    """A job's config, for a test to change."""
    return {
        "org": "Shavakan",
        "repo": "my-repo",
        "jit_token": TOKEN,
        "labels": ["runs-fleet=12345"],
        "job_id": JOB_ID,
    }


def missing_of(texts: Iterable[str], lines: Iterable[str]) -> set[str]:
    """The texts that none of the lines has had by their end; reads no further than it has to."""
    missing = set(texts)
    for line in lines:
        missing = {text for text in missing if text not in line}
        if not missing:
            break
    return missing


def statuses_of(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """One for each message: a queue that was slow to confirm one may have it again, as it was."""
    told = dict.fromkeys((message["message_id"], message["status"]) for message in messages)
    return [status for _, status in told]


@frozen
class Exited:
    """A process that is over, and what it said."""

    status: int
    stdout: str
    stderr: str


_E = TypeVar("_E")


class Running(Generic[_E]):
    """A run that goes on; its stderr tells where it is."""

    def __init__(self, process: subprocess.Popen[str], folder: Path, ended: Callable[[Exited], _E]) -> None:
        self.process, self._folder, self._ended = process, folder, ended
        self._stderr: list[str] = []
        self._patience = threading.Timer(TIMEOUT_SECONDS, process.kill)
        self._patience.daemon = True
        self._patience.start()

    def wait_for(self, *texts: str) -> None:
        """Returns when lines of stderr that come from here on have had each of the texts, in any order."""
        if missing := missing_of(texts, self.lines()):
            raise AssertionError(f"it ended without {missing}:\n{''.join(self._stderr)}")

    def lines(self) -> Iterator[str]:
        """The lines of stderr, as they come."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._stderr.append(line)
            yield line

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> _E:
        """Waits for the end, and holds it to what must be true of every end: no process is left."""
        stdout, stderr = self.process.communicate(timeout=TIMEOUT_SECONDS)
        self._patience.cancel()
        left = processes_of(self._folder)
        assert not left, f"processes are left: {left}"
        stderr = "".join(self._stderr) + (stderr or "")
        return self._ended(Exited(self.process.returncode, stdout, stderr))


def start(
    arguments: list[str], folder: Path, ended: Callable[[Exited], _E], variables: Mapping[str, str]
) -> Running[_E]:
    """Starts a command whose processes are those that work in the folder."""
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**_environment(), **variables},
    )
    return Running(process, folder, ended)


def _environment() -> dict[str, str]:
    """The test's own, without settings of an agent, or of AWS, that somebody has set."""
    ours = ("RUNS_FLEET_", "AWS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def processes_of(folder: Path) -> list[str]:
    """The command lines of all processes that work in the folder, or from it, and of all orphans.

    Within `no_survivors`, that is whatever has outlived a run, wherever it went.
    """
    return [command for _, command in _living(folder)]


def _living(folder: Path) -> Iterator[tuple[int, str]]:
    for pid, command in _processes():
        if str(folder) in command or _works_in(pid, folder) or _is_orphan(pid):
            yield pid, command


def _processes() -> Iterator[tuple[int, str]]:
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            command = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if command and int(proc.name) != os.getpid():
            yield int(proc.name), command


def _works_in(pid: int, folder: Path) -> bool:
    try:
        return str(Path(f"/proc/{pid}/cwd").readlink()).startswith(str(folder))
    except OSError:
        return False


def _is_orphan(pid: int) -> bool:
    """Whether this process has adopted it: what it starts itself has its own session."""
    try:
        return psutil.Process(pid).ppid() == os.getpid() and os.getsid(pid) != os.getsid(0)
    except (psutil.Error, OSError):
        return False


@contextmanager
def no_survivors(folder: Path) -> Iterator[None]:
    """Around a test: whatever it leaves running when it fails is killed."""
    assert COMMAND.exists(), "the wheel is not installed: make test does that"
    with _adopted_orphans():
        try:
            yield
        finally:
            while living := list(_living(folder)):
                for pid, _ in living:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


@contextmanager
def _adopted_orphans() -> Iterator[None]:
    """Meanwhile, what loses its parents becomes a child of this process, wherever it went."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of one a line; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

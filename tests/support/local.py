"""Runs the installed wheel in profile `local`, with the sample runner, and reads what it left."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen
from sample_runner.build import build_archive

COMMAND = Path(sys.executable).parent / "runs-fleet-agent"
TOKEN = "JITC_integration-token-that-stays-secret"
JOB_ID = "67890"
TIMEOUT_SECONDS = 150.0
"""Of a whole run, on a machine that has other things to do: no test waits that long unless it fails."""


@frozen
class Ended:
    """A run that is over."""

    status: int
    stdout: str
    stderr: str
    state_dir: Path

    @property
    def messages(self) -> list[dict[str, Any]]:
        return _json_lines(self.state_dir / "notifications.jsonl")

    @property
    def terminations(self) -> list[dict[str, Any]]:
        return _json_lines(self.state_dir / "terminations.jsonl")

    @property
    def statuses(self) -> list[str]:
        return [message["status"] for message in self.messages]

    @property
    def final(self) -> dict[str, Any]:
        *_, final = self.messages
        return final

    @property
    def log(self) -> list[str]:
        path = self.state_dir / "logs" / "local" / f"{JOB_ID}.log"
        return path.read_text("utf-8").splitlines() if path.exists() else []


class Running:
    """A run that goes on; its stderr tells where it is."""

    def __init__(self, process: subprocess.Popen[str], state_dir: Path) -> None:
        self.process, self._state_dir = process, state_dir
        self._stderr: list[str] = []

    def wait_for(self, text: str) -> None:
        """Returns when a line of stderr has the text."""
        for line in self.lines():
            if text in line:
                return
        raise AssertionError(f"it ended without {text!r}:\n{''.join(self._stderr)}")

    def lines(self) -> Iterator[str]:
        """The lines of stderr, as they come."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._stderr.append(line)
            yield line

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> Ended:
        """Waits for the end, and holds it to what must be true of every end: no process is left."""
        stdout, stderr = self.process.communicate(timeout=TIMEOUT_SECONDS)
        left = processes_of(self._state_dir)
        assert not left, f"processes are left: {left}"
        return Ended(self.process.returncode, stdout, "".join(self._stderr) + (stderr or ""), self._state_dir)


class Local:
    """A machine of its own for one test: a folder, a job, a runner archive."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state_dir = folder, folder / "state"
        self.config: dict[str, object] = {
            "org": "Shavakan",
            "repo": "my-repo",
            "jit_token": TOKEN,
            "labels": ["runs-fleet=12345"],
            "job_id": JOB_ID,
        }

    def archive(self, job: str, scenario: Mapping[str, object]) -> Path:
        return build_archive(self.folder / "archives", job=job, scenario=scenario)

    def start(
        self,
        *flags: str,
        job: str = "echo hello from the job\n",
        scenario: Mapping[str, object] | None = None,
        command: str = "run",
        wrapper: tuple[str, ...] = (),
    ) -> Running:
        """Starts the agent; `flags` come last, so they win."""
        config = self.folder / "job.json"
        if not config.exists():
            config.write_text(json.dumps(self.config))
        arguments = [*wrapper, str(COMMAND), command, "--profile", "local", "--job", str(config)]
        arguments += ["--runner-archive", str(self.archive(job, scenario or {}))]
        arguments += ["--state-dir", str(self.state_dir), *flags]
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=_environment(),
        )
        return Running(process, self.state_dir)

    def run(self, *flags: str, **options: Any) -> Ended:
        return self.start(*flags, **options).end()


def _environment() -> dict[str, str]:
    """The test's own, without settings of an agent that somebody has set."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RUNS_FLEET_")}


def processes_of(folder: Path) -> list[str]:
    """The command lines of all processes that work in the folder, or from it."""
    return [command for pid, command in _processes() if _works_in(pid, folder) or str(folder) in command]


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


@contextmanager
def local_machine(folder: Path) -> Iterator[Local]:
    """A machine; whatever a failed test leaves running on it is killed."""
    importlib.metadata.distribution("runs-fleet-agent")  # the wheel is installed, or the test is void
    machine = Local(folder)
    try:
        yield machine
    finally:
        for pid, command in _processes():
            if _works_in(pid, folder) or str(folder) in command:
                os.kill(pid, signal.SIGKILL)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

"""Machines with a real systemd, in namespaces: a fifth of a second each; `tests/system/boot` makes them."""

import functools
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import IO, Final

import psutil
import pytest
from attrs import frozen

from support.wheel import missing_of

TIMEOUT_SECONDS: Final = 120.0
"""Of any wait, on a system that has other things to do: no test waits that long unless it fails."""

_BOOT: Final = Path(__file__).parent.parent / "system/boot"
_NEEDED: Final = ("bash", "journalctl", "mount", "nsenter", "pkill", "setpriv", "systemctl", "unshare")
_POWER_OFF_THAT_STAYS: Final = """\
[Unit]
Description=What would have been the end of this machine
DefaultDependencies=no
"""
_CREDENTIALS: Final = struct.Struct("3i")
"""PID, UID, GID of who sent a datagram."""


class NoMachineError(Exception):
    """None can be had here; says why."""


class Machine:
    """A machine that is up. Paths and commands are the machine's own; units have their full names."""

    def __init__(self, pid: int, guardian: subprocess.Popen[bytes]) -> None:
        self.pid = pid
        """Of its PID 1, as seen from outside."""
        self._guardian = guardian

    # Commands

    def run(self, *command: str | Path, stdin: str = "") -> str:
        """Runs a command to its end; its stdout. AssertionError, with all that it said, where it fails."""
        done = self._run(*command, stdin=stdin)
        said = f"{done.stdout}{done.stderr}"
        assert done.returncode == 0, f"{command} exited with {done.returncode}: {said}\n{self.journal()}"
        return done.stdout

    def status_of(self, *command: str | Path) -> int:
        return self._run(*command).returncode

    def popen(self, *command: str | Path) -> subprocess.Popen[str]:
        """Starts a command, with its stdout in a pipe. The process is a shell; the command is its child."""
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        return subprocess.Popen(
            self._entering(command), stdin=null, stdout=pipe, text=True, errors="replace", env=_environment()
        )

    def _run(self, *command: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._entering(command),
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            env=_environment(),
            timeout=TIMEOUT_SECONDS,
            check=False,
        )

    def _entering(self, command: Iterable[str | Path]) -> list[str]:
        # A shell as the parent: nsenter would stop with what systemd stops at a power-off, for good.
        parent = ("--no-fork", "--", "sh", "-c", '"$@"; exit $?', "sh")
        return ["nsenter", "--target", str(self.pid), "--all", *parent, *map(str, command)]

    # Files

    def write(self, path: str | Path, text: str) -> None:
        """Makes a file, and its folders."""
        self.run("install", "-D", "-m", "644", "/dev/stdin", path, stdin=text)

    def read(self, path: str | Path) -> str:
        return self.run("cat", path)

    def mount_empty(self, path: str | Path, size: str = "50%") -> None:
        """Puts a file system in memory there; the size is as in tmpfs(5), by default half of all memory."""
        self.run("mkdir", "-p", path)
        self.run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path)

    def mount_full(self, path: str | Path) -> None:
        """Puts a small file system there on which no space is left."""
        self.mount_empty(path, "64k")
        assert self.status_of("cp", "/dev/zero", Path(path) / "filler") != 0

    # Processes

    def processes(self) -> list[tuple[int, str]]:
        """All that live in it, whatever they do to hide: PID inside, command line."""
        return [(inside, command) for _, inside, command in self._processes()]

    def kill(self, pid: int, number: signal.Signals) -> None:
        """Sends a signal to the process with that PID inside."""
        os.kill(next(outside for outside, inside, _ in self._processes() if inside == pid), number)

    def _processes(self) -> Iterator[tuple[int, int, str]]:
        namespace = _pid_namespace(Path(f"/proc/{self.pid}"))
        for proc in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if _pid_namespace(proc) == namespace:
                    status = (proc / "status").read_text()
                    inside = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[
                        -1
                    ]
                    command = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                    yield int(proc.name), int(inside), command.strip()

    # Units

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--property", name, "--value", unit).strip()

    def wait_until_over(self, unit: str) -> None:
        """Returns when the unit is inactive or failed."""
        # What PID 1 says of a change it says before it answers anybody else, so each of its lines is a moment
        # to look. A follower that begins while lines come may miss some: it is begun anew now and then.
        end, state = monotonic() + TIMEOUT_SECONDS, ""
        while monotonic() < end:
            follow = ("timeout", "5", "journalctl", "--follow", "--output", "cat", "--lines", "1")
            with self._reading(*follow, "_PID=1", f"UNIT={unit}") as journal:
                for _ in chain([""], journal.lines()):
                    state = self.show(unit, "ActiveState")
                    if state in {"inactive", "failed"}:
                        return
        raise AssertionError(f"{unit} is {state}, not over:\n{self.journal()}")

    # The journal

    def journal(self, unit: str | None = None) -> str:
        """What was said so far, by the unit and about it; or all."""
        if not self.is_up:
            return "(the machine is down)"
        self._run("journalctl", "--sync")  # what was said may still be on its way
        return self._run("journalctl", "--output", "cat", *(("--unit", unit) if unit else ())).stdout

    @contextmanager
    def follow(self, unit: str) -> "Iterator[Journal]":
        """The journal of the unit, from its first line on."""
        follow = ("journalctl", "--follow", "--output", "cat", "--lines", "all")
        with self._reading(*follow, "--unit", unit) as journal:
            yield journal

    @contextmanager
    def _reading(self, *command: str) -> "Iterator[Journal]":
        process = self.popen("sh", "-c", 'echo && exec "$@"', "sh", *command)
        assert process.stdout is not None
        process.stdout.readline()  # from here on there is a child that can be killed
        patience = threading.Timer(TIMEOUT_SECONDS, _kill_command_of, [process])
        patience.start()
        try:
            yield Journal(self, process.stdout)
        finally:
            patience.cancel()
            _kill_command_of(process)
            process.communicate()

    # Power

    @property
    def is_up(self) -> bool:
        return self._guardian.poll() is None

    def wait_until_down(self) -> signal.Signals:
        """Returns when nothing of it is left: SIGINT for a power-off, SIGHUP for a reboot."""
        status = self._guardian.wait(TIMEOUT_SECONDS)
        assert status > 128, f"its PID 1 did not take it down, but ended: {status}"
        return signal.Signals(status - 128)

    def stay_at_power_off(self) -> None:
        """From now on `systemctl poweroff`, and what else asks for poweroff.target, is only remembered."""
        self.write("/etc/systemd/system/poweroff.target", _POWER_OFF_THAT_STAYS)
        self.run("systemctl", "daemon-reload")

    def power_off_asked(self) -> bool:
        """Whether it would have gone down, but for `stay_at_power_off`."""
        return self.show("poweroff.target", "ActiveState") == "active"

    def wait_until_power_off_asked(self) -> None:
        with self.follow("poweroff.target") as journal:
            journal.wait_for("Reached target")


@frozen
class Journal:
    """Lines of a machine's journal, as they come."""

    machine: Machine
    _stdout: IO[str]

    def lines(self) -> Iterator[str]:
        """Those that nobody has had yet; they end with the machine, or after too long a time."""
        for line in self._stdout:
            yield line.rstrip("\n")

    def wait_for(self, *texts: str) -> None:
        """Returns when lines from here on have had each of the texts, in any order."""
        if missing := missing_of(texts, self.lines()):
            raise AssertionError(f"not in the journal: {missing}\n{self.machine.journal()}")


@contextmanager
def boot(*shared: Path) -> Iterator[Machine]:
    """A machine, up for the block, then gone with all that is in it.

    The folders are the same inside and outside, under the same paths. Raises NoMachineError.
    """
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        raise NoMachineError(f"a machine needs {' and '.join(missing) or 'root'}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, tempfile.TemporaryFile() as output:
        ready.bind(b"")
        ready.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        # A guardian cleans up, also when this process is killed; what is typed at a terminal is not for it.
        guardian = subprocess.Popen(
            ("setpriv", "--pdeathsig", "TERM", "unshare", "--mount", "--propagation", "private", _BOOT),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={
                **_environment(),
                "NOTIFY_SOCKET": f"@{ready.getsockname()[1:].decode()}",
                "SHARED": _lines(shared),
                "SEEN": _lines([Path(sys.prefix), Path(sys.base_prefix)]),
            },
            start_new_session=True,
        )
        try:
            pid = _pid_of_init(ready, guardian)
            if pid is None:
                output.seek(0)
                raise NoMachineError(f"systemd does not come up here: {output.read().decode()}")
            # systemd goes on to tell how it is: where nobody listens it does not wait for anybody.
            ready.close()
            machine = Machine(pid, guardian)
            machine.run("systemctl", "start", "multi-user.target")
            yield machine
        finally:
            guardian.terminate()
            guardian.wait(TIMEOUT_SECONDS)


@functools.cache
def why_no_machine() -> str | None:
    """Why there can be no machine here; None where there can. Tries it, once."""
    try:
        with boot():
            return None
    except NoMachineError as error:
        return str(error)


def need_machine() -> None:
    """Skips a test that cannot have a machine; where REQUIRE_SYSTEMD is set, it fails."""
    if reason := why_no_machine():
        if "REQUIRE_SYSTEMD" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)


def _pid_of_init(ready: socket.socket, guardian: subprocess.Popen[bytes]) -> int | None:
    """Of the PID 1 that says that it is ready; None where its guardian ends without that."""
    over = os.pidfd_open(guardian.pid)
    try:
        while readable := select.select([ready.fileno(), over], [], [], TIMEOUT_SECONDS)[0]:
            if ready.fileno() not in readable:
                return None
            said, credentials, _, _ = ready.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
            if b"READY=1" in said.splitlines():
                return int(_CREDENTIALS.unpack(credentials[0][2])[0])
        raise AssertionError("systemd takes too long to come up")
    finally:
        os.close(over)


def _environment() -> dict[str, str]:
    """Nothing of what a test's process has, beside the means to find programs."""
    return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


def _lines(folders: Iterable[Path]) -> str:
    return "\n".join(str(folder.resolve()) for folder in folders)


def _pid_namespace(proc: Path) -> Path:
    return (proc / "ns/pid").readlink()


def _kill_command_of(shell: subprocess.Popen[str]) -> None:
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(shell.pid).children(recursive=True):
            child.kill()

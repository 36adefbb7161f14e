"""systemd, as the service manager of this process: told that it is up, how it is, and that it moves on."""

import asyncio
import os
import socket
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from agent_core.events import (
    Event,
    Failed,
    JobAssigned,
    JobCompleted,
    JobInherited,
    JobStarted,
    JobTaken,
    PhaseEntered,
    PoweringOff,
    StopRequested,
    TerminationRequested,
)
from agent_core.recovery import Death

__all__ = [
    "SERVICE",
    "ServiceManager",
    "call",
    "death_of",
    "is_service_running",
]

SERVICE: Final = "runs-fleet-agent.service"
_RUNNING: Final = frozenset({"active", "activating", "deactivating", "reloading"})
_ASKING_TO_STOP: Final = frozenset({"TERM", "INT", "HUP", "QUIT"})
_CALL_SECONDS: Final = 30.0
"""One word to systemd, on a machine that boots."""

_TOLD: Final = (
    PhaseEntered,
    JobTaken,
    JobInherited,
    JobAssigned,
    JobStarted,
    JobCompleted,
    StopRequested,
    Failed,
    TerminationRequested,
    PoweringOff,
)
_STATUS_CHARS: Final = 300
_BEAT_SECONDS: Final = 15.0
"""Between two signs of life, where the watchdog asks for none."""
_PATIENCE_BEATS: Final = 4
"""So many signs make up WatchdogSec: sd_watchdog_enabled(3) asks for two, a busy machine is late at times."""


class ServiceManager:
    """Tells systemd how this process is, and does nothing where nobody listens. Never raises, never blocks.

    Args:
        environ: what systemd has started this process with: NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._socket = _socket() if environ.get("NOTIFY_SOCKET") else None
        self._beat_seconds = _beat_seconds(environ)

    def __call__(self, event: Event) -> None:
        """Shows the event in `systemctl status`, if it tells where the life is, and there is room."""
        if self._socket is not None and isinstance(event, _TOLD):
            # A line break would begin another message: a job's name must not feed the watchdog.
            status = " ".join(str(event).split())[:_STATUS_CHARS]
            with suppress(OSError):
                self._socket.send(f"STATUS={status}".encode("utf-8", "replace"))

    async def feed_watchdog(self, is_overdue: Callable[[], bool], warn: Callable[[str], None]) -> None:
        """Says that the process is up, and gives signs of life, from the loop that the life runs on.

        They come for as long as the life moves on. Without them systemd kills the process after WatchdogSec;
        a stop that has begun may take longer than TimeoutStopSec for as long as they come.
        """
        loop = asyncio.get_running_loop()
        patience = int(self._beat_seconds * _PATIENCE_BEATS * 1e6)
        sign = f"READY=1\nWATCHDOG=1\nEXTEND_TIMEOUT_USEC={patience}".encode()
        told = False
        while True:
            beat = loop.time() + self._beat_seconds
            if is_overdue():
                if not told:
                    told = True
                    warn("the phase takes longer than all of its bounds: the watchdog is left to act")
            elif self._socket is not None:
                with suppress(OSError):  # TimeoutError is one
                    await _send(self._socket, sign, beat)
            await asyncio.sleep(beat - loop.time())


async def _send(connected: socket.socket, sign: bytes, latest: float) -> None:
    try:
        connected.send(sign)
    except BlockingIOError:
        # The way to systemd is everybody's: a job that floods it must not starve the watchdog.
        async with asyncio.timeout_at(latest):
            await asyncio.get_running_loop().sock_sendall(connected, sign)


def death_of(environ: Mapping[str, str]) -> Death | None:
    """What systemd tells `ExecStopPost=` of the service's main process (systemd.exec(5)); None: nothing."""
    result, code, status = (environ.get(name, "") for name in ("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS"))
    if not result:
        return None
    exited = status if code == "exited" else ""
    return Death(
        cause=f"{result} ({code} {status})" if code else result,
        # One that refused to start since another agent works here has said nothing of that one.
        is_certain=bool(code) and exited != "64",
        is_in_order=result == "success" and exited == "0",
        interrupted_by=f"SIG{status}" if code == "killed" and status in _ASKING_TO_STOP else None,
    )


def is_service_running() -> bool:
    """Whether systemd runs an agent here, or what comes after one."""
    try:
        return call("systemctl", "is-active", SERVICE, check=False).stdout.strip() in _RUNNING
    except (OSError, subprocess.SubprocessError):
        return False


def call(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs one of systemd's commands, and reads what it says. Blocking.

    Raises:
        OSError: there is no such command.
        subprocess.SubprocessError: it took too long, or, if that is checked, failed.
    """
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_CALL_SECONDS, check=check
    )


def _beat_seconds(environ: Mapping[str, str]) -> float:
    is_watched = environ.get("WATCHDOG_PID") in (None, str(os.getpid()))
    try:
        watchdog = int(environ["WATCHDOG_USEC"]) / 1e6
    except (KeyError, ValueError):
        return _BEAT_SECONDS
    return watchdog / _PATIENCE_BEATS if is_watched and watchdog > 0 else _BEAT_SECONDS


def _socket() -> socket.socket | None:
    """The way to systemd; None: there is none, whatever the environment says."""
    # Imported here since nobody else needs it.
    try:
        from sdnotify import SystemdNotifier  # noqa: PLC0415
    except Exception:  # noqa: BLE001 - without a sign of life there is still a life, or a successor
        return None
    connected: socket.socket | None = SystemdNotifier().socket
    if connected is not None:
        # A service manager that is stuck must not hold up the loop.
        connected.settimeout(0)
    return connected

"""systemd, as the service manager of this process: told that it is up, how it is, and that it moves on."""

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Final

from agent_core.events import (
    Event,
    Failed,
    JobAssigned,
    JobCompleted,
    JobStarted,
    JobTaken,
    PhaseEntered,
    PoweringOff,
    StopRequested,
    TerminationRequested,
)

__all__ = ["ServiceManager", "ended_in_order", "service_result"]

_TOLD: Final = (
    PhaseEntered,
    JobTaken,
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
        self._notify = _notify_function() if environ.get("NOTIFY_SOCKET") else _nowhere
        self._beat_seconds = _beat_seconds(environ)

    def ready(self) -> None:
        """The process is up, and its watchdog is on duty from here on."""
        self._notify("READY=1")

    def __call__(self, event: Event) -> None:
        """Shows the event in `systemctl status`, if it tells where the life is."""
        if isinstance(event, _TOLD):
            # A line break would begin another message: a job's name must not feed the watchdog.
            self._notify(f"STATUS={' '.join(str(event).split())[:_STATUS_CHARS]}")

    async def feed_watchdog(self, is_overdue: Callable[[], bool], warn: Callable[[str], None]) -> None:
        """Gives signs of life, from the loop that the life runs on, for as long as the life moves on.

        Without them systemd kills the process after WatchdogSec; a stop that has begun may take longer than
        TimeoutStopSec for as long as they come.
        """
        told = False
        while True:
            if not is_overdue():
                patience = int(self._beat_seconds * _PATIENCE_BEATS * 1e6)
                self._notify(f"WATCHDOG=1\nEXTEND_TIMEOUT_USEC={patience}")
            elif not told:
                told = True
                warn("the phase takes longer than all of its bounds: the watchdog is left to act")
            await asyncio.sleep(self._beat_seconds)


def service_result(environ: Mapping[str, str]) -> str | None:
    """What became of the service, as systemd tells `ExecStopPost=` (systemd.exec(5)); None: it does not."""
    result = environ.get("SERVICE_RESULT")
    how = " ".join(environ[name] for name in ("EXIT_CODE", "EXIT_STATUS") if environ.get(name))
    return f"{result} ({how})" if result and how else result


def ended_in_order(environ: Mapping[str, str]) -> bool:
    """Whether systemd says that the service's main process has come to its end with exit status 0."""
    end = [environ.get(name) for name in ("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS")]
    return end == ["success", "exited", "0"]


def _beat_seconds(environ: Mapping[str, str]) -> float:
    is_watched = environ.get("WATCHDOG_PID") in (None, str(os.getpid()))
    try:
        watchdog = int(environ["WATCHDOG_USEC"]) / 1e6
    except (KeyError, ValueError):
        return _BEAT_SECONDS
    return watchdog / _PATIENCE_BEATS if is_watched and watchdog > 0 else _BEAT_SECONDS


def _notify_function() -> Callable[[str], None]:
    # Imported here since nobody else needs a socket for it.
    from sdnotify import SystemdNotifier  # noqa: PLC0415

    notifier = SystemdNotifier()
    if notifier.socket is not None:
        # A service manager that is stuck must not hold up the loop.
        notifier.socket.settimeout(0)
    # It writes Latin-1, and systemd reads UTF-8.
    return lambda state: notifier.notify(state.encode("utf-8", "replace").decode("latin-1"))


def _nowhere(_state: str) -> None:
    pass

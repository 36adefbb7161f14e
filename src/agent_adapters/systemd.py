"""systemd, as the service manager of this process: told that it is up, how it is, and that it moves on."""

import asyncio
import math
import os
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from attrs import evolve

from agent_adapters.threads import try_spawn
from agent_core.events import (
    Event,
    Failed,
    JobAssigned,
    JobCompleted,
    JobStarted,
    JobTaken,
    MaxRuntimeSet,
    Observer,
    PhaseEntered,
    PoweringOff,
    StopRequested,
    TerminationRequested,
    Warned,
)
from agent_core.model import Limits
from agent_core.policy import life_seconds

__all__ = [
    "POWER_OFF_SERVICE",
    "POWER_OFF_TIMER",
    "SERVICE",
    "PowerOffTimer",
    "ServiceManager",
    "ended_in_order",
    "power_off_after",
    "service_result",
]

SERVICE: Final = "runs-fleet-agent.service"
POWER_OFF_SERVICE: Final = "runs-fleet-agent-poweroff.service"
POWER_OFF_TIMER: Final = "runs-fleet-agent-poweroff.timer"
_LATER: Final = "runs-fleet-agent-poweroff-later"
_POWER_OFF_MARGIN_SECONDS: Final = 600.0
"""For the boot before the agent, and a successor after it."""
_CALL_SECONDS: Final = 30.0
"""One word to systemd, on a machine that boots."""

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


class PowerOffTimer:
    """The timer that powers the host off, moved for a job that may run for longer than the operator's others.

    Args:
        environ: what systemd has started this process with; where it has not, nothing is moved.
        limits: that the units were made for.
        tell: hears what goes wrong, from a thread.
    """

    def __init__(self, environ: Mapping[str, str], limits: Limits, tell: Observer) -> None:
        self._is_service = "INVOCATION_ID" in environ
        self._limits, self._tell = limits, tell

    def __call__(self, event: Event) -> None:
        if not (self._is_service and isinstance(event, MaxRuntimeSet)):
            return
        seconds = life_seconds(evolve(self._limits, max_runtime=event.max_runtime))
        if seconds > life_seconds(self._limits):
            try_spawn("power-off timer", partial(self._move, power_off_after(seconds)))

    def _move(self, seconds: int) -> None:
        """Starts the later timer before it stops the earlier one: there is always one."""
        try:
            if _call("systemctl", "is-active", "--quiet", POWER_OFF_TIMER).returncode == 0:
                start = ("systemctl", "start", "--no-block", POWER_OFF_SERVICE)
                later = (f"--unit={_LATER}", f"--on-active={seconds}", "--timer-property=AccuracySec=1")
                _call("systemd-run", "--quiet", *later, *start).check_returncode()
                _call("systemctl", "stop", POWER_OFF_TIMER).check_returncode()
        except (OSError, subprocess.SubprocessError) as exc:
            told = getattr(exc, "stderr", None) or str(exc)
            self._tell(Warned(f"{POWER_OFF_TIMER} may end the job before its time: {told.strip()}"))


def power_off_after(life_seconds: float) -> int:
    """When the host is powered off, in seconds: after the longest life, and a margin."""
    return math.ceil(life_seconds + _POWER_OFF_MARGIN_SECONDS)


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_CALL_SECONDS, check=False
    )


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

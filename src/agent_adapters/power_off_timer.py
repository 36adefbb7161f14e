"""The timer that powers the host off when the longest life of an agent is over, whatever else happens."""

import math
import subprocess
from collections.abc import Mapping
from functools import partial
from threading import Lock
from typing import Final

from attrs import evolve

from agent_adapters.systemd import call
from agent_adapters.threads import try_spawn
from agent_core.budget import life_seconds
from agent_core.events import Event, MaxRuntimeSet, Observer, PhaseEntered, Warned
from agent_core.model import Limits
from agent_core.phases import Phase

__all__ = ["POWER_OFF_SERVICE", "POWER_OFF_TIMER", "PowerOffTimer", "power_off_after"]

POWER_OFF_SERVICE: Final = "runs-fleet-agent-poweroff.service"
POWER_OFF_TIMER: Final = "runs-fleet-agent-poweroff.timer"
_LATER: Final = "runs-fleet-agent-poweroff"
_AS_THE_TIMER_HAS_IT: Final = ("--timer-property=OnUnitInactiveSec=600", "--timer-property=AccuracySec=1")
_MARGIN_SECONDS: Final = 600.0
"""For the boot before the agent, and a successor after it."""


class PowerOffTimer:
    """The timer that powers the host off, moved for a life that may take longer than it was made for.

    That is so for a job whose config allows it more, and for limits that were set after `install-units`.

    Args:
        environ: what systemd has started this process with; RUNS_FLEET_POWEROFF_AFTER is the timer's time, in
            seconds. Without it, there is no timer.
        limits: of a life, unless its job's config has others.
        tell: hears what goes wrong, from a thread.
    """

    def __init__(self, environ: Mapping[str, str], limits: Limits, tell: Observer) -> None:
        after = environ.get("RUNS_FLEET_POWEROFF_AFTER", "")
        self._after = int(after) if after.isdecimal() else None
        self._limits, self._tell = limits, tell
        self._timer = POWER_OFF_TIMER
        self._moving = Lock()

    def __call__(self, event: Event) -> None:
        match event:
            case PhaseEntered(Phase.CONFIGURING):
                self._allow(self._limits)
            case MaxRuntimeSet(max_runtime):
                self._allow(evolve(self._limits, max_runtime=max_runtime))
            case _:
                pass

    def _allow(self, limits: Limits) -> None:
        needed = power_off_after(life_seconds(limits))
        if self._after is not None and needed > self._after:
            self._after = needed
            if not try_spawn("power-off timer", partial(self._move, needed)):
                self._warn("there is no thread to move it")

    def _move(self, seconds: int) -> None:
        """Starts the later timer before it stops the earlier one: there is always one."""
        name = f"{_LATER}-{seconds}"
        later = (f"--unit={name}", f"--on-active={seconds}", *_AS_THE_TIMER_HAS_IT)
        try:
            with self._moving:
                if seconds != self._after:
                    return  # another move has come before this one
                call("systemd-run", "--quiet", *later, "systemctl", "start", "--no-block", POWER_OFF_SERVICE)
                earlier, self._timer = self._timer, f"{name}.timer"
                call("systemctl", "stop", earlier)
        except (OSError, subprocess.SubprocessError) as exc:
            self._warn(getattr(exc, "stderr", None) or str(exc))

    def _warn(self, reason: str) -> None:
        self._tell(Warned(f"{POWER_OFF_TIMER} may end the job before its time: {reason.strip()}"))


def power_off_after(life_seconds: float) -> int:
    """When the host is powered off, in seconds: after the longest life, and a margin."""
    return math.ceil(life_seconds + _MARGIN_SECONDS)

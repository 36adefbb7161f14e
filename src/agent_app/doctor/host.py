"""What `doctor` makes of the machine itself: its room, its clock, its folders, its user, its init."""

import os
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import httpx

from agent_adapters.accounts import (
    account_fault,
    runner_account,
    runs_as_root,
    user_name,
    why_unreachable,
)
from agent_adapters.web import http_date, web_client
from agent_app.doctor.findings import Finding, failed, fine, skipped, warning
from agent_core.errors import BinaryUnavailableError

__all__ = [
    "ahead_of",
    "of_clock",
    "of_disk",
    "of_init",
    "of_memory",
    "of_user",
]

_MB: Final = 2**20
_CLOCK_WARNS: Final = timedelta(minutes=1)
_CLOCK_FAILS: Final = timedelta(minutes=5)
"""AWS refuses what was signed longer ago."""
_POWEROFF_COMMANDS: Final = ("systemctl", "shutdown", "poweroff")


def of_disk(free: int, floor: int, folder: Path) -> Finding:
    """Of bytes: a job does not start under the floor."""
    found = f"{free // _MB} MB free for {folder}, the floor is {floor // _MB} MB"
    return failed(found, "make room, or lower RUNS_FLEET_MIN_FREE_DISK_MB") if free < floor else fine(found)


def of_memory(available: int, floor: int) -> Finding:
    """Of bytes: under the floor, a run warns."""
    found = f"{available // _MB} MB available, the floor is {floor // _MB} MB"
    fix = "take a larger instance, or lower RUNS_FLEET_MIN_FREE_MEMORY_MB"
    return warning(found, fix) if available < floor else fine(found)


def of_clock(ahead: timedelta | None, whose: str) -> Finding:
    """How far the clock is ahead of another one, which is right; None: there is none to compare with."""
    if ahead is None:
        return skipped("neither AWS nor GitHub told the time")
    off, fix = abs(ahead), "set the clock, and keep it so: `chronyc makestep`, or systemd-timesyncd"
    found = f"{off.total_seconds():.0f} s {'behind' if ahead < timedelta() else 'ahead of'} {whose}"
    if off > _CLOCK_FAILS:
        return failed(f"{found}: AWS refuses what is signed so", fix)
    return warning(found, fix) if off > _CLOCK_WARNS else fine(found)


def ahead_of(url: str, now: Callable[[], datetime]) -> timedelta | None:
    """How far this clock is ahead of that of the server at the URL; None: it does not say."""
    try:
        with web_client() as client:
            moment = http_date(client.head(url).headers.get("Date"))
    except (httpx.HTTPError, httpx.InvalidURL, BinaryUnavailableError, ValueError):
        return None
    return None if moment is None else now() - moment


def of_user(wanted: str | None, root: Path) -> Finding:
    """The user that is set for the runner, and the runner's root, which it has to get to."""
    if fault := account_fault(wanted):
        what, _, fix = fault.partition(": ")
        return failed(what, fix)
    own, account = user_name(), runner_account(wanted)
    found = f"the agent is {own}, the runner runs as {own if account is None else account.name}"
    # The root itself becomes the user's, whatever it is now.
    if account is not None and (why := why_unreachable(account, root.parent)):
        return failed(f"{found}: {why}", "open it (chmod o+rx), or set another RUNS_FLEET_RUNNER_DIR")
    if runs_as_root(wanted):
        fix = "make a user runner, or name one in RUNS_FLEET_RUNNER_USER: root, if that is meant"
        return warning(f"{found}, since there is no user runner: jobs may do anything here", fix)
    return fine(found if os.geteuid() == 0 else f"{found}; what a job makes root's, only root can kill")


def of_init(init: str, *, poweroff: bool) -> Finding:
    """The name of process 1, and whether the machine is to be powered off when it cannot be terminated."""
    armed = "powered off" if poweroff else "left as it is"
    last = f"an instance that cannot be terminated is {armed} (RUNS_FLEET_POWEROFF)"
    if init != "systemd" or shutil.which("systemctl") is None:
        found = f"process 1 is {init}, not a systemd with systemctl: nothing reaps the agent; {last}"
        return warning(found, "run the agent under systemd (install-units), or see to `reap` after its death")
    if poweroff and not any(map(shutil.which, _POWEROFF_COMMANDS)):
        return warning(f"{last}, but there is no command to do it", f"install {_POWEROFF_COMMANDS[0]}")
    return fine(f"process 1 is systemd; {last}")

"""The systemd units: what starts the agent, and what stands behind it when it fails."""

import math
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

from agent_adapters.power_off_timer import POWER_OFF_SERVICE, POWER_OFF_TIMER, power_off_after
from agent_adapters.state import replace_synced
from agent_adapters.systemd import SERVICE
from agent_app.settings import Settings
from agent_core.budget import ending_seconds, life_seconds

__all__ = ["UNITS", "install_units"]

UNITS: Final = (SERVICE, POWER_OFF_SERVICE, POWER_OFF_TIMER)
_MODE: Final = 0o644
_STOP_MARGIN_SECONDS: Final = 30.0
"""For Python's start and end, and calls that unwind."""


class _Unit(Template):
    """A `$`, and a single `@`, are systemd's own."""

    delimiter = "@@"


def install_units(folder: Path, command: Path, flags: Sequence[str], settings: Settings) -> Iterator[Path]:
    """Writes the units into the folder; yields each one's path when it is written.

    Args:
        folder: such as /etc/systemd/system.
        command: of the agent, absolute.
        flags: what the agent is to be started with.
        settings: what they, and everything else, come to: the times are reckoned from them.

    Raises:
        OSError: one cannot be written.
    """
    values = {
        "run": _command_line(command, "run", *flags),
        "reap": _command_line(command, "reap", *flags),
        "poweroff": int(settings.poweroff),
        "stop_seconds": math.ceil(ending_seconds(settings.limits) + _STOP_MARGIN_SECONDS),
        "power_off_after": power_off_after(life_seconds(settings.limits)),
    }
    for name in UNITS:
        text = files(__package__).joinpath(name).read_text("utf-8")
        replace_synced(folder / name, _Unit(text).substitute(values).encode(), _MODE)
        yield folder / name


def _command_line(*words: str | Path) -> str:
    return " ".join(map(_quoted, map(str, words)))


def _quoted(word: str) -> str:
    """As systemd.service(5) reads it: quotes, variables and specifiers mean nothing in it."""
    if re.fullmatch(r"(?a:[\w/.:=,+-]+)", word):
        return word
    for special in ("\\", '"'):
        word = word.replace(special, f"\\{special}")
    for special in ("$", "%"):
        word = word.replace(special, special * 2)
    return f'"{word}"'

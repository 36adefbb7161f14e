"""Powers off the host that this runs on."""

import shutil
import subprocess
from collections.abc import Sequence
from typing import Final

from agent_core.errors import TerminatorUnavailableError

__all__ = ["power_off"]

_COMMANDS: Final[Sequence[Sequence[str]]] = (
    ("systemctl", "poweroff"),
    ("shutdown", "-h", "now"),
    ("poweroff",),
)
_SECONDS: Final = 8.0


def power_off() -> None:
    """Returns when one of the usual commands has begun to power off the host. Blocking.

    Raises:
        TerminatorUnavailableError: there is none, or none was obeyed; the text says what each had to say.
    """
    failures = []
    for command in _COMMANDS:
        if (program := shutil.which(command[0])) is None:
            failures.append(f"{command[0]}: not found")
            continue
        try:
            subprocess.run(
                [program, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_SECONDS / len(_COMMANDS),
                check=True,
            )
        except subprocess.CalledProcessError as exc:
            words = exc.stdout.decode("utf-8", "replace").strip()
            failures.append(f"{command[0]}: exit code {exc.returncode}: {words[-200:]}")
        except (OSError, subprocess.TimeoutExpired) as exc:
            failures.append(f"{command[0]}: {exc}")
        else:
            return
    raise TerminatorUnavailableError("; ".join(failures))

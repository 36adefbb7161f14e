"""The console script. Signals are taken first, everything else is imported after.

Python takes tenths of a second to import an agent; a SIGTERM in that time must not kill it silently.
"""

import signal
import sys
from types import FrameType

__all__ = ["main"]


def main() -> None:
    """Runs the command line, and exits with its status."""
    early: list[signal.Signals] = []

    def keep(number: int, _frame: FrameType | None) -> None:
        early.append(signal.Signals(number))

    if sys.argv[1:2] == ["run"]:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, keep)
    from agent_app.cli import main as run_command_line  # noqa: PLC0415 - see above

    sys.exit(run_command_line(sys.argv[1:], early))

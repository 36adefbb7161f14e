"""What `run` shows of a life on stderr: to people on a terminal, to machines elsewhere."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from agent_core.ending import Outcome
from agent_core.events import Event

__all__ = ["Display", "in_short", "make_display"]


class Display(Protocol):
    """Observes a life, and says how it ended."""

    def __call__(self, event: Event) -> None:
        """Shows one event."""
        ...

    def close(self, outcome: Outcome, files: Mapping[str, Path]) -> None:
        """Shows the end; `files` are the places of what a person may want to read next."""
        ...


def make_display(instance_id: str) -> Display:
    """The display that fits stderr; the other is not imported, since that costs boot time."""
    if sys.stderr.isatty():
        from agent_app.terminal import TerminalDisplay  # noqa: PLC0415

        return TerminalDisplay()
    from agent_app.json_lines import JsonLinesDisplay  # noqa: PLC0415

    return JsonLinesDisplay(instance_id)


def in_short(outcome: Outcome) -> str:
    """One line: the status, whether the queue has it, and whether the instance goes."""
    status = "no job" if outcome.message is None else str(outcome.message.status)
    reason = "" if outcome.error is None else f" ({str(outcome.error).splitlines()[0]})"
    message = "" if outcome.message is None or outcome.confirmed else ", the message was not delivered"
    instance = "termination requested" if outcome.terminated else "termination was not accepted"
    return f"{status}{reason}{message}, {instance}"

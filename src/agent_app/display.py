"""What `run` shows of a life on stderr: to people on a terminal, to machines elsewhere."""

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Final, Protocol

from agent_adapters.threads import try_spawn
from agent_core.ending import Outcome
from agent_core.events import Event, Printed, Warned

__all__ = ["Aside", "Display", "Unseen", "in_short"]

_MOST_WAITING: Final = 10_000
_MOST_PRINTED_WAITING: Final = 9_000
"""What a job prints in a flood leaves room for what the agent says."""
_CLOSE_SECONDS: Final = 3.0
"""What a slow terminal may take for the end, when the instance has been asked to go."""


class Display(Protocol):
    """Observes a life, and says how it ended."""

    def __call__(self, event: Event) -> None:
        """Shows one event."""
        ...

    def close(self, outcome: Outcome, files: Mapping[str, Path]) -> None:
        """Shows the end; `files` are the places of what a person may want to read next."""
        ...


class Aside:
    """Shows in a thread of its own: a terminal on hold, or a pipe that nobody reads, holds up no life.

    Events that find no room are not shown, and counted; the log stream has them all the same.
    """

    def __init__(self, display: Display) -> None:
        self._display = display
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._missed = 0
        self._over = threading.Event()
        self._is_shown = try_spawn("display", self._show)

    def __call__(self, event: Event) -> None:
        """Shows the event soon, if there is room."""
        room = _MOST_PRINTED_WAITING if isinstance(event, Printed) else _MOST_WAITING
        if self._queue.qsize() >= room:
            self._missed += 1
        else:
            self._queue.put(partial(self._display, event))

    def close(self, outcome: Outcome, files: Mapping[str, Path]) -> bool:
        """Shows the end; whether all was shown in time."""
        if self._missed:
            self._queue.put(partial(self._display, Warned(f"{self._missed} events were not shown")))
        self._queue.put(partial(self._display.close, outcome, files))
        self._queue.put(None)
        # There may be threads again where there was none to be had.
        self._is_shown = self._is_shown or try_spawn("display", self._show)
        return self._is_shown and self._over.wait(_CLOSE_SECONDS)

    def _show(self) -> None:
        try:
            # A stderr that is closed ends the showing, and nothing else.
            with suppress(OSError, ValueError):
                while (show := self._queue.get()) is not None:
                    show()
        finally:
            self._over.set()


class Unseen(Display):
    """Shows nothing, where a display cannot be made."""

    def __call__(self, event: Event) -> None:
        pass

    def close(self, outcome: Outcome, files: Mapping[str, Path]) -> None:
        pass


def in_short(outcome: Outcome) -> str:
    """One line: the status, whether the queue has it, and whether the instance goes."""
    status = "no job" if outcome.message is None else str(outcome.message.status)
    words = "" if outcome.error is None else " ".join(str(outcome.error).split())
    reason = f" ({words})" if words else ""
    message = "" if outcome.message is None or outcome.confirmed else ", the message was not delivered"
    instance = "termination requested" if outcome.terminated else "termination was not accepted"
    return f"{status}{reason}{message}, {instance}"

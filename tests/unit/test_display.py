"""What is shown of a life where nobody reads, or reads slowly."""

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from agent_app.display import Aside, Display
from agent_core.ending import Outcome
from agent_core.events import Event, Printed, Warned
from agent_core.model import JournalRecord, LogStats, OutputLine
from agent_core.phases import Phase

OUTCOME = Outcome(
    record=JournalRecord(instance_id="i-1", agent_version="1", phase=Phase.TERMINATED), logs=LogStats()
)


class Slow(Display):
    """A terminal on hold, until it is let go."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.go = threading.Event()
        self.over = threading.Event()

    def __call__(self, event: Event) -> None:
        self.go.wait()
        self.shown.append(str(event))

    def close(self, outcome: Outcome, files: Mapping[str, Path]) -> None:  # noqa: ARG002
        self.over.set()


def test_a_flood_leaves_room_for_the_agent() -> None:
    """What is not shown is a job's output, and is counted; what the agent says comes through."""
    slow = Slow()
    aside = Aside(slow)
    for number in range(20_000):
        aside(Printed(OutputLine(f"line {number}")))
    aside(Warned("the sink is away"))
    slow.go.set()

    assert aside.close(OUTCOME, {})

    assert slow.over.is_set()
    assert slow.shown[-2] == "the sink is away"
    shown = len(slow.shown) - 2
    assert slow.shown[-1] == f"{20_000 - shown} events were not shown"
    assert slow.shown[:shown] == [f"line {number}" for number in range(shown)]


def test_a_terminal_on_hold_holds_up_nothing() -> None:
    """The end does not wait for it for long."""
    slow = Slow()
    aside = Aside(slow)
    aside(Warned("nobody reads this"))

    assert not aside.close(OUTCOME, {})

    slow.go.set()


@pytest.mark.parametrize("refusals", [1, 2])
def test_no_thread_to_show_in(monkeypatch: pytest.MonkeyPatch, refusals: int) -> None:
    """What finds no thread at the start is shown at the end, if there is one by then."""
    start, left = threading.Thread.start, refusals

    def refuse(thread: threading.Thread) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    slow = Slow()
    slow.go.set()
    aside = Aside(slow)
    aside(Warned("nobody shows this yet"))

    assert aside.close(OUTCOME, {}) == slow.over.is_set() == (refusals == 1)
    assert slow.shown == ["nobody shows this yet"] * (refusals == 1)

# ruff: noqa: S101 - a suite speaks in asserts
"""What any LogSpool promises."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from random import Random
from typing import Final

from attrs import frozen

from agent_core.errors import SpoolError
from agent_core.model import LogEvent
from agent_core.ports import LogSpool
from agent_core.testing.contracts.contract import Contract, error_from

__all__ = ["LogSpoolContract", "Pop", "Push"]

_NOW_MS: Final = 1_764_064_800_000
_ODD_TEXTS: Final = (
    "",
    " ",
    "two\nlines\r\n",
    "NUL \x00 and ESC \x1b[0m",
    "one\u2028line\u2029\x0b\x0c\x85",
    "\U0001f40d 漢字 é e\u0301",
    "\ufeff",
    '["json", "\\n"]\\',
)
_ROOMY_BYTES: Final = 2**24
_TIGHT_BYTES: Final = 10_000
_MOST_PUSHES: Final = 10_000
_SEEDS: Final = 60


@frozen
class Push:
    """A step: these texts go in."""

    texts: tuple[str, ...]


@frozen
class Pop:
    """A step: this many bytes of text come out at most."""

    max_bytes: int


class LogSpoolContract(Contract, ABC):
    """Holds a LogSpool to its promises."""

    @abstractmethod
    def make(self, max_bytes: int) -> LogSpool:
        """The adapter under test, empty: it has room for that many bytes of events, as it counts them."""

    @abstractmethod
    def make_successor(self) -> LogSpool:
        """A roomy adapter where the one made last is, as a process has it after that one's was killed."""

    # In and out

    def test_is_empty_at_first(self) -> None:
        """There is nothing to take, and asking does no harm."""
        spool = self.make(_ROOMY_BYTES)

        assert (len(spool), spool.pop(1000), len(spool)) == (0, [], 0)

    def test_pushing_nothing_is_nothing(self) -> None:
        """No events are no event."""
        spool = self.make(_ROOMY_BYTES)

        spool.push([])

        assert (len(spool), spool.pop(1000)) == (0, [])

    def test_first_in_first_out(self) -> None:
        """Events come out as they went in: times, texts, order."""
        spool = self.make(_ROOMY_BYTES)
        events = [LogEvent(_NOW_MS + number // 3, f"line {number}") for number in range(100)]
        for start in range(0, 100, 10):
            spool.push(events[start : start + 10])

        assert len(spool) == len(events)
        assert spool.pop(_ROOMY_BYTES) == events
        assert (len(spool), spool.pop(_ROOMY_BYTES)) == (0, [])

    def test_texts_come_out_as_they_went_in(self) -> None:
        """Whatever they hold."""
        spool = self.make(_ROOMY_BYTES)
        events = [LogEvent(_NOW_MS, text) for text in _ODD_TEXTS]

        spool.push(events)

        assert spool.pop(_ROOMY_BYTES) == events

    def test_pop_keeps_its_bound(self) -> None:
        """As many events as fit, counted as UTF-8; one that fits exactly does."""
        spool = self.make(_ROOMY_BYTES)
        spool.push([LogEvent(_NOW_MS, "ééé") for _ in range(5)])

        assert [len(spool.pop(max_bytes)) for max_bytes in (12, 17, 6, 6)] == [2, 2, 1, 0]

    def test_pop_takes_at_least_one(self) -> None:
        """Also an event that is larger than the bound gets out, alone."""
        spool = self.make(_ROOMY_BYTES)
        events = [LogEvent(_NOW_MS, "x" * size) for size in (100, 5, 100)]
        spool.push(events)

        assert [spool.pop(max_bytes) for max_bytes in (10, 0, 10)] == [[event] for event in events]

    # Full

    def test_a_full_spool_takes_none_of_the_events(self) -> None:
        """What is refused is refused whole, and what was in it before comes out as before."""
        spool = self.make(_TIGHT_BYTES)
        events = self._fill(spool)
        before = len(spool)

        error_from(SpoolError, lambda: spool.push([LogEvent(_NOW_MS, "no"), LogEvent(_NOW_MS, "x" * 10_000)]))
        error_from(SpoolError, lambda: spool.push([LogEvent(_NOW_MS, "x" * 10_000)] * 3))

        assert len(spool) == before == len(events)
        assert spool.pop(_ROOMY_BYTES) == events

    def test_room_comes_back(self) -> None:
        """What is taken out, and forgotten, makes room, also when never all is: lines can come for hours."""
        spool = self.make(_TIGHT_BYTES)
        expected = deque(self._fill(spool))
        for number in range(1000):
            popped = spool.pop(2 * _TIGHT_BYTES // 3)
            assert popped == [expected.popleft() for _ in popped]
            spool.forget(len(popped))
            for _ in range(_MOST_PUSHES):
                event = LogEvent(_NOW_MS, f"more {number} " + "x" * 200)
                try:
                    spool.push([event])
                except SpoolError:
                    break
                expected.append(event)
            assert len(spool) == len(expected)
            assert len(expected) * 200 > _TIGHT_BYTES // 3, "there was room for more"

    # What outlives a process

    def test_a_successor_begins_empty(self) -> None:
        """Unless it asks for what there is."""
        self.make(_ROOMY_BYTES).push(_events(3))
        successor = self.make_successor()

        assert (len(successor), successor.pop(_ROOMY_BYTES)) == (0, [])

    def test_recovers_what_was_not_forgotten(self) -> None:
        """All of it, popped or not, in order; of what was forgotten, only the last may come again."""
        for forgotten in (0, 1, 9, 10, 11, 25, 30):
            spool = self.make(_ROOMY_BYTES)
            events = _events(30)
            for start in range(0, 30, 10):
                spool.push(events[start : start + 10])
            spool.pop(_ROOMY_BYTES)
            spool.forget(forgotten)
            successor = self.make_successor()

            count = successor.recover()

            assert len(events) - forgotten <= count <= len(events)
            assert count < len(events) or forgotten < 10, "nothing is ever forgotten"  # noqa: PLR2004 - a push
            assert count == len(successor)
            recovered = successor.pop(_ROOMY_BYTES)
            assert recovered == events[len(events) - count :]
            assert (len(successor), successor.pop(_ROOMY_BYTES)) == (0, [])

    def test_recovers_nothing_where_there_is_nothing(self) -> None:
        """Neither at first, nor when all was forgotten."""
        spool = self.make(_ROOMY_BYTES)
        assert self.make_successor().recover() == 0
        spool.push(_events(3))
        spool.pop(_ROOMY_BYTES)
        spool.forget(3)
        successor = self.make_successor()

        assert (successor.recover(), len(successor), successor.pop(_ROOMY_BYTES)) == (0, 0, [])

    def test_what_is_recovered_comes_first(self) -> None:
        """Before what the successor pushes; and its own successor has both."""
        events = _events(6)
        self.make(_ROOMY_BYTES).push(events[:3])
        successor = self.make_successor()
        successor.recover()
        successor.push(events[3:])
        last = self.make_successor()

        assert last.recover() == len(last) == len(events)
        assert last.pop(_ROOMY_BYTES) == events

    def test_what_is_not_recovered_is_gone_with_the_first_push(self) -> None:
        """Nobody takes it for the pusher's, who is asked for nothing older any more."""
        self.make(_ROOMY_BYTES).push(_events(3))
        successor = self.make_successor()
        own = LogEvent(_NOW_MS, "own")
        successor.push([own])
        assert (successor.recover(), len(successor)) == (0, 1)
        last = self.make_successor()

        assert (last.recover(), last.pop(_ROOMY_BYTES)) == (1, [own])

    def test_what_is_cleared_is_gone(self) -> None:
        """An earlier life's, and its own; there is room for more."""
        spool = self.make(_ROOMY_BYTES)
        spool.push(_events(3))
        self.make_successor().clear()
        assert self.make_successor().recover() == 0
        spool = self.make_successor()
        spool.push(_events(3))
        spool.pop(1)
        spool.clear()
        assert (len(spool), spool.pop(_ROOMY_BYTES)) == (0, [])
        spool.push(_events(1))

        assert spool.pop(_ROOMY_BYTES) == _events(1)
        spool.forget(1)
        assert self.make_successor().recover() == 0

    # Any way

    def test_no_crash_loses_what_was_not_forgotten(self) -> None:
        """Whatever was pushed, popped and forgotten before, and however often it dies."""
        for seed in range(_SEEDS):
            rng = Random(seed)  # noqa: S311 - a seed decides
            spool, pushed, at, forgotten = self.make(_ROOMY_BYTES), list[LogEvent](), 0, 0
            for number in range(rng.randrange(60)):
                if rng.random() < 0.1:  # noqa: PLR2004 - one step in ten
                    spool = self.make_successor()
                    at = len(pushed) - spool.recover()
                    assert 0 <= at <= forgotten
                    forgotten = at
                elif at > forgotten:
                    count = rng.randint(0, at - forgotten)
                    spool.forget(count)
                    forgotten += count
                match _random_step(rng):
                    case Push(texts):
                        events = [LogEvent(_NOW_MS + number, text) for text in texts]
                        spool.push(events)
                        pushed += events
                    case Pop(max_bytes):
                        popped = spool.pop(max_bytes)
                        assert popped == pushed[at : at + len(popped)]
                        at += len(popped)
                assert len(spool) == len(pushed) - at

    def test_any_interleaving_is_a_queue(self) -> None:
        """Pushes and pops in any order: what comes out is what a plain queue gives."""
        for seed in range(_SEEDS):
            rng = Random(seed)  # noqa: S311 - a seed decides
            self.obey(_random_step(rng) for _ in range(rng.randrange(40)))

    def obey(self, steps: Iterable[Push | Pop]) -> None:
        """Holds a new spool to what a plain queue does with the same steps; then empties both."""
        spool, model, clock = self.make(_ROOMY_BYTES), deque[LogEvent](), _NOW_MS
        for step in steps:
            match step:
                case Push(texts):
                    clock += 1
                    events = [LogEvent(clock, text) for text in texts]
                    spool.push(events)
                    model.extend(events)
                case Pop(max_bytes):
                    assert spool.pop(max_bytes) == _pop(model, max_bytes)
            assert len(spool) == len(model)
        while model:
            assert spool.pop(100) == _pop(model, 100)
        assert (len(spool), spool.pop(100)) == (0, [])

    # Helpers

    def _fill(self, spool: LogSpool) -> Sequence[LogEvent]:
        """Pushes until there is no room any more; the events that were taken."""
        taken: list[LogEvent] = []
        for number in range(_MOST_PUSHES):
            events = [LogEvent(_NOW_MS, f"fill {number}"), LogEvent(_NOW_MS, "x" * (number % 50))]
            try:
                spool.push(events)
            except SpoolError:
                return taken
            taken += events
        raise AssertionError(f"the spool took {len(taken)} events, and has no end")


def _events(count: int) -> list[LogEvent]:
    return [LogEvent(_NOW_MS + number, f"line {number}") for number in range(count)]


def _pop(model: deque[LogEvent], max_bytes: int) -> list[LogEvent]:
    popped: list[LogEvent] = []
    total = 0
    while model:
        total += len(model[0].text.encode())
        if popped and total > max_bytes:
            break
        popped.append(model.popleft())
    return popped


def _random_step(rng: Random) -> Push | Pop:
    if rng.random() < 0.5:  # noqa: PLR2004 - half of them
        return Pop(rng.choice((0, 1, 10, 100, 10_000)))
    texts = (rng.choice(_ODD_TEXTS) * rng.randrange(1, 4) for _ in range(rng.randrange(4)))
    return Push(tuple(texts))

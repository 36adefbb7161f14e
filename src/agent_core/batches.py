"""Batches of log events, within every limit of PutLogEvents."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

from agent_core.errors import BatchRefusedError
from agent_core.model import LogEvent

__all__ = [
    "BATCH_BYTES",
    "BATCH_EVENTS",
    "BATCH_SPAN_MS",
    "EVENT_OVERHEAD_BYTES",
    "EVENT_TEXT_BYTES",
    "Batch",
    "check_batch",
    "event_bytes",
    "text_bytes",
]

BATCH_BYTES: Final = 1_048_576
"""A batch, counted as UTF-8 plus the overhead of each event."""
BATCH_EVENTS: Final = 10_000
EVENT_OVERHEAD_BYTES: Final = 26
EVENT_TEXT_BYTES: Final = 1_000_000 - EVENT_OVERHEAD_BYTES
"""One event's text: "1 MB", read the strict way."""
BATCH_SPAN_MS: Final = 24 * 60 * 60 * 1000
"""From a batch's first event to its last."""


def text_bytes(text: str) -> int:
    """How long it is in UTF-8; most lines are ASCII, and need not be encoded to know."""
    return len(text) if text.isascii() else len(text.encode())


def event_bytes(event: LogEvent) -> int:
    """What the event counts for in its batch."""
    return text_bytes(event.text) + EVENT_OVERHEAD_BYTES


def check_batch(events: Sequence[LogEvent]) -> None:
    """Holds a batch against every limit of PutLogEvents.

    Raises:
        BatchRefusedError: it breaks one; the text says which.
    """
    if not 1 <= len(events) <= BATCH_EVENTS:
        raise BatchRefusedError(f"{len(events)} events: a batch has 1 to {BATCH_EVENTS}")
    sizes = [event_bytes(event) for event in events]
    if sum(sizes) > BATCH_BYTES:
        raise BatchRefusedError(f"{sum(sizes)} bytes: a batch has {BATCH_BYTES} at most")
    if max(sizes) > EVENT_TEXT_BYTES + EVENT_OVERHEAD_BYTES:
        raise BatchRefusedError(f"{max(sizes)} bytes: an event's text has {EVENT_TEXT_BYTES} at most")
    if min(sizes) == EVENT_OVERHEAD_BYTES:
        raise BatchRefusedError("an event is empty")
    if any(later.timestamp_ms < earlier.timestamp_ms for earlier, later in pairwise(events)):
        raise BatchRefusedError("the events are not in chronological order")
    if events[-1].timestamp_ms - events[0].timestamp_ms > BATCH_SPAN_MS:
        raise BatchRefusedError("the events span more than 24 hours")


class Batch(Sequence[LogEvent]):
    """Events that go together; they are made when they are asked for.

    Tens of thousands of objects that wait would have the garbage collector hold up the loop, again and again.

    Args:
        since: when the first of them came, on the loop's clock.
    """

    def __init__(self, since: float) -> None:
        self.since = since
        self.bytes = 0
        self._stamps: list[int] = []
        self._texts: list[str] = []

    def has_room(self, stamp: int, size: int) -> bool:
        """Whether one more event keeps every limit; the first one always does."""
        return (
            self.bytes + size <= BATCH_BYTES
            and len(self._stamps) < BATCH_EVENTS
            and stamp - self._stamps[0] <= BATCH_SPAN_MS
        )

    @property
    def is_full(self) -> bool:
        """Whether there is no room for any event."""
        return self.bytes >= BATCH_BYTES or len(self._stamps) >= BATCH_EVENTS

    def add(self, stamp: int, text: str, size: int) -> None:
        """Takes an event that counts for `size` bytes."""
        self._stamps.append(stamp)
        self._texts.append(text)
        self.bytes += size

    def __len__(self) -> int:
        return len(self._stamps)

    def __iter__(self) -> Iterator[LogEvent]:
        return map(LogEvent, self._stamps, self._texts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return list(map(LogEvent, self._stamps[index], self._texts[index]))
        return LogEvent(self._stamps[index], self._texts[index])

# ruff: noqa: S101 - a suite speaks in asserts
"""What any LogSink promises."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from agent_core.batches import (
    BATCH_BYTES,
    BATCH_EVENTS,
    BATCH_SPAN_MS,
    EVENT_OVERHEAD_BYTES,
    EVENT_TEXT_BYTES,
)
from agent_core.errors import BatchRefusedError, LogSinkDeniedError, LogSinkUnavailableError
from agent_core.model import LogEvent
from agent_core.ports import LogSink
from agent_core.testing.contracts.contract import (
    Contract,
    cancel_at_any_step,
    error_of,
    eventually,
    impossible,
    on_loop,
)

__all__ = ["LogSinkContract"]

_STREAM: Final = "i-0123456789abcdef0/67890"
_OTHER_STREAM: Final = "i-0123456789abcdef0/unknown-job"
_ODD_TEXTS: Final = (
    " ",
    "\ttabs and trailing blanks  ",
    "umlauts äöü, 漢字, \U0001f40d",
    "one\u2028line\x0b\x0c\x85still\rone",
    "\x1b[31mred\x1b[0m \x00 NUL",
    '{"json": "\\n"}',
    "\ufeffa mark at the front",
)


class LogSinkContract(Contract, ABC):
    """Holds a LogSink to its promises."""

    @abstractmethod
    def make(self) -> LogSink:
        """The adapter under test; nothing is delivered yet."""

    @abstractmethod
    def delivered(self, stream: str) -> Sequence[str]:
        """The texts of the events that the stream has, in its order; none for a stream that is not there."""

    def now(self) -> datetime:
        """What the sink takes for the time; events are of the 24 hours before."""
        return datetime(2025, 11, 25, 10, tzinfo=UTC)

    def deny(self) -> None:
        """From here on the adapter may not write."""
        raise impossible("this sink cannot deny")

    def break_(self) -> None:
        """From here on the sink does not answer."""
        raise impossible("this sink cannot fail")

    # Delivered

    @on_loop
    async def test_order_is_kept(self) -> None:
        """Within a batch, also where events have the same time, and from batch to batch."""
        sink = self.make()
        texts = [f"line {number}" for number in range(300)]

        for start in range(0, len(texts), 100):
            assert await sink.put(_STREAM, self._events(texts[start : start + 100])) == 0

        assert list(self.delivered(_STREAM)) == texts

    @on_loop
    async def test_texts_arrive_as_they_are(self) -> None:
        """Whatever they hold, but for the end of a line, which no event has."""
        sink = self.make()

        assert await sink.put(_STREAM, self._events(_ODD_TEXTS)) == 0

        assert list(self.delivered(_STREAM)) == list(_ODD_TEXTS)

    @on_loop
    async def test_streams_do_not_mix(self) -> None:
        """Each has its own events."""
        sink = self.make()

        for number in range(3):
            await sink.put(_STREAM, self._events([f"one {number}"]))
            await sink.put(_OTHER_STREAM, self._events([f"other {number}"]))

        assert list(self.delivered(_STREAM)) == ["one 0", "one 1", "one 2"]
        assert list(self.delivered(_OTHER_STREAM)) == ["other 0", "other 1", "other 2"]

    @on_loop
    async def test_a_batch_may_be_repeated(self) -> None:
        """Whoever does not know whether it arrived sends it again; it is there at least once."""
        sink = self.make()
        batch = self._events(["one", "two"])

        await sink.put(_STREAM, batch)
        await sink.put(_STREAM, batch)

        assert list(self.delivered(_STREAM)) in (["one", "two"], ["one", "two"] * 2)

    @on_loop
    async def test_another_adapter_goes_on(self) -> None:
        """A successor adds to the stream that is there."""
        await self.make().put(_STREAM, self._events(["one"]))

        await self.make().put(_STREAM, self._events(["two"]))

        assert list(self.delivered(_STREAM)) == ["one", "two"]

    # Limits

    @on_loop
    async def test_a_batch_may_have_10_000_events(self) -> None:
        """As many are taken, one more is refused, and so is none."""
        texts = [str(number) for number in range(BATCH_EVENTS)]
        await self._takes(self._events(texts))
        await self._refuses(self._events([*texts, "one more"]))
        await self._refuses([])

    @on_loop
    async def test_a_batch_may_have_1_048_576_bytes(self) -> None:
        """Counted as UTF-8, and 26 more for each event."""
        half = BATCH_BYTES // 2 - EVENT_OVERHEAD_BYTES
        await self._takes(self._events(["x" * half, "é" * (half // 2)]))
        await self._refuses(self._events(["x" * half, "é" * (half // 2) + "x"]))

    @on_loop
    async def test_an_event_may_have_a_megabyte(self) -> None:
        """A byte more is refused, also where the characters are fewer; and so is an event without text."""
        await self._takes(self._events(["é" * (EVENT_TEXT_BYTES // 2)]))
        await self._refuses(self._events(["é" * (EVENT_TEXT_BYTES // 2) + "x"]))
        await self._refuses(self._events(["x" * (EVENT_TEXT_BYTES + 1)]))
        await self._refuses(self._events(["before", "", "after"]))

    @on_loop
    async def test_a_batch_is_in_chronological_order(self) -> None:
        """An event that is older than the one before it is refused with its batch."""
        now_ms = self._now_ms()
        await self._takes([LogEvent(now_ms - 1, "a"), LogEvent(now_ms - 1, "b"), LogEvent(now_ms, "c")])
        await self._refuses([LogEvent(now_ms - 1, "a"), LogEvent(now_ms, "b"), LogEvent(now_ms - 1, "c")])

    @on_loop
    async def test_a_batch_may_span_24_hours(self) -> None:
        """From the first event to the last; a millisecond more is refused."""
        now_ms = self._now_ms()
        await self._takes([LogEvent(now_ms - BATCH_SPAN_MS, "first"), LogEvent(now_ms, "last")])
        await self._refuses([LogEvent(now_ms - BATCH_SPAN_MS - 1, "first"), LogEvent(now_ms, "last")])

    # Out of reach

    @on_loop
    async def test_what_may_not_be_written_is_denied(self) -> None:
        """It is told from unavailable, which would be tried again."""
        sink = self.make()
        self.deny()

        await error_of(LogSinkDeniedError, sink.put(_STREAM, self._events(["one"])))

    @on_loop
    async def test_a_sink_that_does_not_answer_is_unavailable(self) -> None:
        """It is told from denied, which is final."""
        sink = self.make()
        self.break_()

        await error_of(LogSinkUnavailableError, sink.put(_STREAM, self._events(["one"])))

    # Cancelled

    @on_loop
    async def test_can_be_cancelled(self) -> None:
        """What is delivered after is whole and in order."""
        sink = self.make()
        await cancel_at_any_step(lambda: sink.put(_OTHER_STREAM, self._events(["cancelled", "batch"])))

        for text in ("one", "two"):
            batch = self._events([text])
            await eventually(LogSinkUnavailableError, lambda batch=batch: sink.put(_STREAM, batch))  # type: ignore[misc]

        assert list(self.delivered(_STREAM)) == ["one", "two"]
        others = list(self.delivered(_OTHER_STREAM))
        assert others == ["cancelled", "batch"] * (len(others) // 2)

    # Helpers

    def _now_ms(self) -> int:
        return int(self.now().timestamp() * 1000)

    def _events(self, texts: Sequence[str]) -> list[LogEvent]:
        return [LogEvent(self._now_ms(), text) for text in texts]

    async def _takes(self, batch: Sequence[LogEvent]) -> None:
        sink = self.make()
        before = list(self.delivered(_STREAM))

        assert await sink.put(_STREAM, batch) == 0

        assert list(self.delivered(_STREAM)) == before + [event.text for event in batch]

    async def _refuses(self, batch: Sequence[LogEvent]) -> None:
        """None of it arrives, and the sink is none the worse for it."""
        sink = self.make()
        before = list(self.delivered(_STREAM))

        await error_of(BatchRefusedError, sink.put(_STREAM, batch))
        await sink.put(_STREAM, self._events(["after"]))

        assert list(self.delivered(_STREAM)) == [*before, "after"]

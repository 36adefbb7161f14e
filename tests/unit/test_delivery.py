"""The way of log lines to the sink, in virtual time: order, limits, counts, and never in the job's way."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from random import Random
from typing import Final

import pytest
from attrs import define, evolve, field, frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_adapters.memory import InMemoryLogSink, InMemoryLogSpool, Machine
from agent_core.batches import EVENT_TEXT_BYTES, check_batch, event_bytes
from agent_core.delivery import LogDelivery
from agent_core.errors import (
    BatchRefusedError,
    LogSinkDeniedError,
    LogSinkUnavailableError,
    SpoolError,
)
from agent_core.model import LogEvent, LogStats
from agent_core.ports import LogSink, LogSpool
from agent_core.testing.simulation import EPOCH, run, wall_clock

RELAXED: Final = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
STREAM: Final = "i-1/67890"
FOR_EVER: Final = 1e6
DAY_MS: Final = 24 * 60 * 60 * 1000
UNWIND_SECONDS: Final = 2.0
"""A call that swallows its cancellation is waited for so long."""


# The sink and the spool


@frozen
class Reply:
    """How the sink answers one call: after its time it takes the events, raises, or both."""

    seconds: float = 0.0
    error: Exception | None = None
    takes: bool = True
    """It has the events, whatever it says."""
    rejects: int = 0
    """Of the events that it takes, so many are refused, each by itself."""
    stubborn: bool = False
    """The call swallows its cancellation."""


FAILS: Final = Reply(error=LogSinkUnavailableError("gone"), takes=False)
THROTTLES: Final = Reply(seconds=1.0, error=LogSinkUnavailableError("slow down"), takes=False)
BREAKS: Final = Reply(error=OSError("an adapter's own fault"), takes=False)
HANGS: Final = Reply(seconds=FOR_EVER, takes=False)
IS_STUBBORN: Final = Reply(seconds=100.0, takes=False, stubborn=True, error=OSError("too late"))
IS_SLOW: Final = Reply(seconds=4.0123)
LOSES_ITS_REPLY: Final = Reply(error=LogSinkUnavailableError("no answer"))
DENIES: Final = Reply(error=LogSinkDeniedError("no right"), takes=False)
REFUSES: Final = Reply(error=BatchRefusedError("too much"), takes=False)


@define
class Put:
    """One call of the sink."""

    at: float
    events: list[LogEvent]

    @property
    def texts(self) -> list[str]:
        return [event.text for event in self.events]

    @property
    def bytes(self) -> int:
        return sum(len(event.text.encode()) + 26 for event in self.events)


@define
class ScriptedSink(LogSink):
    """A sink that answers as it is told, and then always the same way."""

    replies: list[Reply] = field(factory=list)
    then: Reply = Reply()
    puts: list[Put] = field(factory=list)
    taken: list[LogEvent] = field(factory=list)
    streams: set[str] = field(factory=set)

    async def put(self, stream: str, events: Sequence[LogEvent]) -> int:
        self.streams.add(stream)
        self.puts.append(Put(now(), list(events)))
        reply = self.replies.pop(0) if self.replies else self.then
        end = now() + reply.seconds
        while now() < end:
            try:
                await asyncio.sleep(end - now())
            except asyncio.CancelledError:
                if not reply.stubborn:
                    raise
        if reply.takes:
            self.taken += events[min(reply.rejects, len(events)) :]
        if reply.error is not None:
            raise reply.error
        return min(reply.rejects, len(events))

    @property
    def texts(self) -> list[str]:
        return [event.text for event in self.taken]


class FailingSpool(InMemoryLogSpool):
    """A spool on a disk that breaks: some pushes fail; a read that fails empties it."""

    push_fails: Callable[[], bool] = staticmethod(lambda: False)
    pop_fails: Callable[[], bool] = staticmethod(lambda: False)
    keeps: Callable[[], bool] = staticmethod(lambda: False)
    """A read that fails leaves what is there."""

    def push(self, events: Sequence[LogEvent]) -> None:
        if self.push_fails():
            raise SpoolError("the disk is full")
        super().push(events)

    def pop(self, max_bytes: int) -> list[LogEvent]:
        if self.pop_fails():
            if not self.keeps():
                super().pop(2**40)
            raise SpoolError("the disk is broken")
        return super().pop(max_bytes)


class CountingSpool(InMemoryLogSpool):
    """Counts its calls."""

    pushes = 0

    def push(self, events: Sequence[LogEvent]) -> None:
        self.pushes += 1
        super().push(events)


@define
class Scene:
    """A delivery, all around it, and what it warned of."""

    delivery: LogDelivery
    sink: ScriptedSink
    spool: LogSpool
    warnings: list[str]

    def write(self, *lines: str) -> None:
        for line in lines:
            self.delivery.write(line)

    @property
    def stats(self) -> LogStats:
        return self.delivery.stats


def now() -> float:
    return asyncio.get_running_loop().time()


def scene(
    *replies: Reply,
    then: Reply = Reply(),
    spool: LogSpool | None = None,
    clock: Callable[[], datetime] | None = None,
    memory_bytes: int = 8 * 2**20,
    opened: bool = True,
    echo: bool = False,
) -> Scene:
    """A delivery over a sink that answers like this; with an echo, its warnings are log lines too."""
    warnings: list[str] = []

    def warn(text: str) -> None:
        warnings.append(text)
        if echo:
            delivery.write(f"runs-fleet-agent: {text}")

    sink = ScriptedSink(list(replies), then)
    spool = InMemoryLogSpool() if spool is None else spool
    delivery = LogDelivery(
        sink,
        spool,
        now=clock or wall_clock(),
        rng=Random(0),
        warn=warn,
        memory_bytes=memory_bytes,
    )
    if opened:
        delivery.open(STREAM)
    return Scene(delivery, sink, spool, warnings)


def assert_within_limits(put: Put) -> None:
    """PutLogEvents, restated."""
    assert 1 <= len(put.events) <= 10_000
    assert put.bytes <= 1_048_576
    assert all(1 <= len(event.text.encode()) <= 1_000_000 - 26 for event in put.events)
    stamps = [event.timestamp_ms for event in put.events]
    assert stamps == sorted(stamps)
    assert stamps[-1] - stamps[0] <= DAY_MS


def assert_accounted_for(stats: LogStats, accepted: int) -> None:
    assert stats.accepted == accepted
    assert stats.accepted == stats.delivered + stats.rejected + stats.dropped
    assert min(stats.delivered, stats.rejected, stats.dropped) >= 0


def visible(line: str) -> str:
    """A line as it is delivered."""
    return line.encode("utf-8", "backslashreplace").decode() or " "


def numbered(count: int, size: int = 20) -> list[str]:
    """Lines that can be told apart."""
    return [f"{number:08} ".ljust(size, "x") for number in range(count)]


# Lines

SHORT: Final = st.text(max_size=30) | st.sampled_from(["", " ", "a line", "é√😀", "\0\x1b[31m", "\udc80"])
SIZES: Final = (1, 1000, 65_536, 262_144, EVENT_TEXT_BYTES - 1, EVENT_TEXT_BYTES, EVENT_TEXT_BYTES + 1,
                1_048_576, 1_100_000, 2_500_000)  # fmt: skip
LONG: Final = st.builds(
    lambda character, size, more: character * (size // len(character.encode())) + more,
    st.sampled_from(["x", "é", "√", "😀"]),
    st.sampled_from(SIZES),
    st.sampled_from(["", "é", "end"]),
)
LINES: Final = st.lists(st.one_of(SHORT, SHORT, SHORT, LONG), max_size=12)
PAUSES: Final = st.sampled_from([0.0, 0.0, 0.0, 0.5, 4.9, 5.0, 5.1, 60.0])
TROUBLE: Final = st.lists(
    st.sampled_from([FAILS, THROTTLES, BREAKS, HANGS, IS_STUBBORN, IS_SLOW]), max_size=6
)


@RELAXED
@given(LINES, st.lists(PAUSES, min_size=12, max_size=12), TROUBLE, st.sampled_from([0, 3 * 2**20, 2**23]))
def test_any_lines_arrive_within_the_limits(
    lines: list[str], pauses: list[float], trouble: list[Reply], memory_bytes: int
) -> None:
    """Whole, in order, in batches that keep every limit, after any trouble, by memory or by the spool."""

    async def main() -> None:
        on = scene(*trouble, memory_bytes=memory_bytes)
        for line, pause in zip(lines, pauses, strict=False):
            on.write(line)
            await asyncio.sleep(pause)
        await asyncio.sleep(1000)
        before = on.stats
        assert before.pending == 0
        assert await on.delivery.drain(3, 60) == before

        assert "".join(on.sink.texts) == "".join(map(visible, lines))
        assert before.delivered == before.accepted == len(on.sink.taken) >= len(lines)
        for put in on.sink.puts:
            assert_within_limits(put)

    run(main)


@settings(RELAXED, max_examples=25)
@given(st.integers(0, 25_000), st.sampled_from([0, 26, 30, 60]), TROUBLE)
def test_many_lines_arrive_within_the_limits(count: int, size: int, trouble: list[Reply]) -> None:
    """More than a batch may have; each line is one event, and its own."""

    async def main() -> None:
        on = scene(*trouble)
        lines = numbered(count, size) if size else [""] * count
        on.write(*lines)
        stats = await on.delivery.drain(200, 1000)

        assert on.sink.texts == [visible(line) for line in lines]
        assert_accounted_for(stats, count)
        for put in on.sink.puts:
            assert_within_limits(put)

    run(main)


@RELAXED
@given(st.lists(st.sampled_from([LOSES_ITS_REPLY, FAILS, HANGS]), max_size=6), st.integers(1, 30))
def test_a_lost_reply_repeats_and_loses_nothing(replies: list[Reply], count: int) -> None:
    """Where the sink took a batch and did not say so, the batch comes again, in its place."""

    async def main() -> None:
        on = scene(*replies)
        lines = numbered(count)
        for line in lines:
            on.write(line)
            await asyncio.sleep(3)
        await asyncio.sleep(1000)

        assert list(dict.fromkeys(on.sink.texts)) == lines
        assert_accounted_for(await on.delivery.drain(3, 60), count)
        assert on.stats.delivered == count

    run(main)


def test_a_line_at_the_limit_is_one_event() -> None:
    """And one byte more makes parts of it, none of which cuts a character in two."""

    async def main() -> None:
        on = scene()
        fits = "é" * (EVENT_TEXT_BYTES // 2)
        on.write(fits)
        on.write(fits + "x")
        await on.delivery.drain(3, 60)

        assert on.sink.texts[0] == fits
        assert len(on.sink.texts) > 2
        assert "".join(on.sink.texts[1:]) == fits + "x"

    run(main)


def test_an_empty_line_is_an_event() -> None:
    """The service takes no empty one, and a line of output is not left out."""

    async def main() -> None:
        on = scene()
        on.write("", "one", "", "")
        await on.delivery.drain(3, 60)

        assert on.sink.texts == [" ", "one", " ", " "]

    run(main)


def test_a_long_line_that_is_not_unicode_keeps_the_limits() -> None:
    """What is made visible grows: it is measured after that."""

    async def main() -> None:
        on = scene()
        line = "\udc80" + "√" * 400_000
        on.write(line)
        await on.delivery.drain(3, 60)

        assert "".join(on.sink.texts) == visible(line)
        for put in on.sink.puts:
            assert_within_limits(put)

    run(main)


# When a batch goes


def test_a_line_waits_five_seconds_for_company() -> None:
    """Then it goes, with all that came meanwhile; the next one waits anew."""

    async def main() -> None:
        on = scene()
        await asyncio.sleep(1)
        on.write("one")
        await asyncio.sleep(4.9)
        on.write("two")
        await asyncio.sleep(10)
        on.write("three")
        await asyncio.sleep(10)

        assert [(put.at, put.texts) for put in on.sink.puts] == [
            (6, ["one", "two"]),
            (pytest.approx(20.9), ["three"]),
        ]
        assert on.sink.streams == {STREAM}

    run(main)


@pytest.mark.parametrize(
    ("count", "size"), [(10_000, 20), (11, 100_000), (2, 600_000), (1_048_576 // (100 + 26) + 1, 100)]
)
def test_a_full_batch_goes_at_once(count: int, size: int) -> None:
    """With 10,000 events, or with 1 MB: whichever comes first."""

    async def main() -> None:
        on = scene()
        await asyncio.sleep(1)
        *most, last = numbered(count, size)
        on.write(*most)
        await asyncio.sleep(1)
        assert on.sink.puts == []
        on.write(last)
        await asyncio.sleep(0.001)

        assert [put.at for put in on.sink.puts] == [2]
        assert on.sink.puts[0].bytes > 1_048_576 - size - 26 or len(on.sink.puts[0].events) == 10_000
        await asyncio.sleep(5)
        assert on.sink.texts == [*most, last]

    run(main)


@pytest.mark.parametrize("batches", [1, 2, 3])
@pytest.mark.parametrize(("count", "size"), [(8, 131_072 - 26), (10_000, 20)])
def test_a_batch_may_be_full_to_the_last(batches: int, count: int, size: int) -> None:
    """1,048,576 bytes, with 26 for each event, or 10,000 events are one batch, and enough to go at once."""

    async def main() -> None:
        on = scene()
        on.write(*numbered(count * batches, size))
        await asyncio.sleep(0.001)

        assert [len(put.events) for put in on.sink.puts] == [count] * batches

    run(main)


def test_full_batches_follow_each_other() -> None:
    """What fills batches does not wait between them, and what is left waits five seconds."""

    async def main() -> None:
        on = scene(then=Reply(seconds=0.5))
        on.write(*numbered(25_000))
        await asyncio.sleep(20)

        assert [(put.at, len(put.events)) for put in on.sink.puts] == [
            (0, 10_000),
            (0.5, 10_000),
            (5.0, 5_000),
        ]

    run(main)


def test_a_steady_stream_goes_every_five_seconds() -> None:
    """No line of it is older than that when it goes."""

    async def main() -> None:
        on = scene()
        written = {}
        for line in numbered(300):
            written[line] = now()
            on.write(line)
            await asyncio.sleep(0.25)
        await asyncio.sleep(5)

        waits = [put.at - written[text] for put in on.sink.puts for text in put.texts]
        assert len(waits) == 300
        assert max(waits) <= 5.0 + 1e-6
        assert len(on.sink.puts) <= 75 / 5 + 1

    run(main)


def test_a_line_that_came_during_a_call_waits_no_longer() -> None:
    """Its five seconds count from when it came, not from the end of the call."""

    async def main() -> None:
        on = scene(IS_SLOW)
        on.write("first")
        await asyncio.sleep(5.1)
        assert on.sink.puts[0].at == 5.0
        on.write("second")
        await asyncio.sleep(20)

        assert on.sink.puts[1].at <= 5.1 + 5.0 + 1e-6

    run(main)


def test_lines_written_before_the_stream_is_known_wait_for_it() -> None:
    """They are its first."""

    async def main() -> None:
        on = scene(opened=False)
        on.write("early")
        await asyncio.sleep(100)
        assert on.stats.pending == 1

        on.delivery.open(STREAM)
        on.write("later")
        await asyncio.sleep(6)

        assert on.sink.texts == ["early", "later"]

    run(main)


# Trouble


def test_a_sink_that_does_not_answer_is_asked_again() -> None:
    """With growing pauses, each call within its bound; the job's side does not notice."""

    async def main() -> None:
        on = scene(HANGS, FAILS, FAILS, FAILS)
        on.write("one")
        await asyncio.sleep(100)

        assert [put.texts for put in on.sink.puts] == [["one"]] * 5
        first, second, third, fourth = [later.at - put.at for put, later in pairwise(on.sink.puts)]
        assert 15.25 <= first <= 15.5
        assert 0.5 <= second <= 1 <= third <= 2 <= fourth <= 4
        assert on.sink.texts == ["one"]

    run(main)


def test_each_outage_is_warned_of_once() -> None:
    """Not each try."""

    async def main() -> None:
        on = scene(FAILS, FAILS, BREAKS)
        on.write("one")
        await asyncio.sleep(100)
        assert len(on.warnings) == 1
        assert "gone" in on.warnings[0]

        on.sink.replies += [BREAKS, FAILS]
        on.write("two")
        await asyncio.sleep(100)
        assert len(on.warnings) == 2
        assert "an adapter's own fault" in on.warnings[1]

    run(main)


@pytest.mark.parametrize("before", [0, 1, 3])
def test_what_is_denied_is_not_tried_again(before: int) -> None:
    """One call, one warning; every line from there on is dropped, and counted, at no cost."""

    async def main() -> None:
        on = scene(*[Reply()] * before, DENIES, memory_bytes=0)
        for line in numbered(before + 1):
            on.write(line)
            await asyncio.sleep(6)
        assert len(on.sink.puts) == before + 1
        on.write(*numbered(20_000))
        await asyncio.sleep(1000)
        assert on.stats.pending == 0
        begun = now()
        stats = await on.delivery.drain(3, 60)

        assert now() == begun
        assert len(on.sink.puts) == before + 1
        assert len(on.warnings) == 1
        assert "no right" in on.warnings[0]
        assert_accounted_for(stats, before + 20_001)
        assert stats.delivered == before

    run(main)


def test_what_waits_when_the_sink_denies_is_dropped() -> None:
    """In memory and in the spool; the call in flight too."""

    async def main() -> None:
        on = scene(evolve(DENIES, seconds=3.0), memory_bytes=2**21)
        on.write(*numbered(40, 100_000))
        await asyncio.sleep(1)
        assert len(on.spool) > 0
        assert len(on.sink.puts) == 1
        await asyncio.sleep(20)

        assert on.stats == LogStats(accepted=40, dropped=40)
        assert len(on.sink.puts) == 1
        assert_accounted_for(await on.delivery.drain(3, 60), 40)

    run(main)


def test_a_batch_that_is_refused_is_counted() -> None:
    """Trying again cannot help; the next one goes on."""

    async def main() -> None:
        on = scene(REFUSES)
        on.write("bad", "worse")
        await asyncio.sleep(6)
        on.write("good")
        stats = await on.delivery.drain(3, 60)

        assert on.sink.texts == ["good"]
        assert stats == LogStats(accepted=3, delivered=1, rejected=2)
        assert len(on.warnings) == 1

    run(main)


def test_events_that_are_rejected_are_counted() -> None:
    """Each by itself, of a batch that was taken."""

    async def main() -> None:
        on = scene(Reply(rejects=2))
        on.write("one", "two", "three")

        assert await on.delivery.drain(3, 60) == LogStats(accepted=3, delivered=1, rejected=2)

    run(main)


@RELAXED
@given(
    st.lists(
        st.sampled_from(
            [Reply(), FAILS, BREAKS, HANGS, IS_STUBBORN, IS_SLOW, DENIES, REFUSES, Reply(rejects=1)]
        ),
        max_size=10,
    ),
    st.sampled_from([Reply(), FAILS, HANGS, DENIES, IS_SLOW]),
    st.lists(st.tuples(PAUSES, st.integers(0, 400_000)), max_size=20),
    st.sampled_from([0, 2**20, 2**23]),
    st.sampled_from([0, 500_000, 2**30]),
    st.floats(0, 5),
    st.floats(0, 30),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_every_line_is_accounted_for(  # noqa: PLR0917 - what can go wrong is a lot
    replies: list[Reply],
    then: Reply,
    writes: list[tuple[float, int]],
    memory_bytes: int,
    spool_bytes: int,
    stall: float,
    seconds: float,
    opened: bool,  # noqa: FBT001
    seed: int,
) -> None:
    """Accepted = delivered + rejected + dropped, whatever happens.

    What is delivered the sink has; of a call that is cut it may have more.
    """

    async def main() -> None:
        spool = InMemoryLogSpool(spool_bytes)
        on = scene(*replies, then=then, spool=spool, memory_bytes=memory_bytes, opened=opened)
        for pause, size in writes:
            on.write("x" * size)
            assert on.stats.pending >= 0
            await asyncio.sleep(pause)
        begun = now()
        stats = await on.delivery.drain(stall, seconds)

        assert now() - begun <= seconds + 2 * UNWIND_SECONDS
        assert_accounted_for(stats, len(writes))
        in_flight = len(on.sink.puts[-1].events) if on.sink.puts else 0
        assert stats.delivered <= len(on.sink.taken) <= stats.delivered + in_flight
        await asyncio.sleep(200)
        assert on.stats == stats

    run(main, seed=seed)


# Memory and spool


@RELAXED
@given(
    st.lists(st.sampled_from([0, 1, 50, 5_000, 300_000, EVENT_TEXT_BYTES]), min_size=1, max_size=60),
    st.integers(2, 6),
    st.sampled_from([HANGS, FAILS, IS_SLOW, evolve(IS_STUBBORN, seconds=FOR_EVER / 1000)]),
)
def test_memory_is_bounded(sizes: list[int], mebibytes: int, reply: Reply) -> None:
    """Beside the batch in flight, memory holds its bound and one event at most; the rest is in the spool."""

    async def main() -> None:
        memory_bytes = mebibytes * 2**20
        spool = InMemoryLogSpool()
        on = scene(then=reply, spool=spool, memory_bytes=memory_bytes)
        written = 0
        for size in sizes * 2:
            on.write("x" * size)
            written += max(size, 1) + 26
            spooled = sum(map(event_bytes, spool.events))
            taken = sum(map(event_bytes, on.sink.taken))
            in_flight = on.sink.puts[-1].bytes if on.sink.puts else 0
            assert written - spooled - taken - in_flight <= memory_bytes + EVENT_TEXT_BYTES + 26
            await asyncio.sleep(0.5)
        on.sink.then = Reply()
        await asyncio.sleep(4000)

        assert [len(text) for text in on.sink.texts] == [max(size, 1) for size in sizes * 2]
        assert len(spool) == 0

    run(main)


def test_a_hanging_sink_does_not_hold_the_writer() -> None:
    """Hundreds of megabytes are taken at once: most of them are in the spool."""

    async def main() -> None:
        spool = InMemoryLogSpool()
        on = scene(then=HANGS, spool=spool)
        for line in numbered(3_000, 100_000):
            on.write(line)
        await asyncio.sleep(3600)

        assert now() == 3600
        assert sum(map(event_bytes, spool.events)) >= 3_000 * 100_026 - 10 * 2**20
        assert on.stats.pending == 3_000

    run(main)


def test_what_the_spool_has_no_room_for_is_counted() -> None:
    """It warns once; what was taken arrives in order, and what comes after the recovery arrives too."""

    async def main() -> None:
        on = scene(*[HANGS] * 3, spool=InMemoryLogSpool(2 * 2**20), memory_bytes=2 * 2**20)
        lines = numbered(100, 100_000)
        on.write(*lines)
        dropped = on.stats.dropped
        assert dropped == 100 - 20 - 20
        await asyncio.sleep(200)
        on.write("later")
        await asyncio.sleep(6)

        assert on.sink.texts == [*lines[: 100 - dropped], "later"]
        assert len([text for text in on.warnings if "lost" in text]) == 1
        assert_accounted_for(await on.delivery.drain(3, 60), 101)

    run(main)


def test_a_warning_that_is_a_log_line_itself_does_no_harm() -> None:
    """In a life, what is warned of stands in the same log, which may have no room for it."""

    async def main() -> None:
        on = scene(then=HANGS, spool=InMemoryLogSpool(0), memory_bytes=100, echo=True)
        on.write(*numbered(50))
        assert len(on.warnings) == 1
        await asyncio.sleep(100)

        assert_accounted_for(await on.delivery.drain(3, 60), 50 + len(on.warnings))

    run(main)


def test_a_spool_that_breaks_is_counted() -> None:
    """What it held is lost and said to be; what came before and comes after it is delivered."""

    async def main() -> None:
        spool = FailingSpool()
        on = scene(HANGS, spool=spool, memory_bytes=1000)
        lines = numbered(100)
        on.write(*lines)
        held = len(spool)
        assert held > 50
        spool.pop_fails = lambda: True
        await asyncio.sleep(60)

        assert on.sink.texts == lines[: 100 - held]
        assert on.stats == LogStats(accepted=100, delivered=100 - held, dropped=held)
        assert [text for text in on.warnings if "lost" in text] == [
            f"{held} log lines are lost: the disk is broken"
        ]
        on.write("later")
        await asyncio.sleep(6)
        assert on.sink.texts[-1] == "later"
        assert_accounted_for(await on.delivery.drain(3, 60), 101)

    run(main)


@RELAXED
@given(st.integers(1, 60), TROUBLE, st.integers(0, 2**16))
def test_what_a_failing_spool_takes_keeps_its_order(count: int, trouble: list[Reply], seed: int) -> None:
    """Of lines that it does not take, or cannot give back, the others go on in their order."""

    async def main() -> None:
        random = Random(seed)
        spool = FailingSpool()
        spool.push_fails = lambda: random.random() < 0.3
        spool.pop_fails = lambda: random.random() < 0.1
        on = scene(*trouble, spool=spool, memory_bytes=100)
        lines = numbered(count)
        for line in lines:
            on.write(line)
            await asyncio.sleep(random.choice([0, 0, 1, 20]))
        await asyncio.sleep(1000)

        assert on.sink.texts == sorted(set(on.sink.texts) & set(lines))
        assert_accounted_for(on.stats, count)
        assert on.stats.delivered == len(on.sink.taken)

    run(main)


@RELAXED
@given(
    st.lists(SHORT | st.text(st.characters()), max_size=30),
    st.lists(st.sampled_from([Reply(), FAILS, BREAKS, HANGS, DENIES, REFUSES]), max_size=5),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_nothing_is_raised_to_the_writer(
    lines: list[str],
    replies: list[Reply],
    echo: bool,  # noqa: FBT001
    seed: int,
) -> None:
    """Any line, a sink that does what it likes, a spool that fails as it likes: all is counted."""

    async def main() -> None:
        random = Random(seed)
        spool = FailingSpool()
        spool.push_fails = lambda: random.random() < 0.3
        spool.pop_fails = lambda: random.random() < 0.3
        on = scene(*replies, spool=spool, memory_bytes=100, echo=echo)
        for line in lines:
            on.write(line)
            await asyncio.sleep(random.choice([0, 0, 1, 20]))
        stats = await on.delivery.drain(3, 60)

        assert_accounted_for(stats, len(lines) + len(on.warnings) * echo)
        for put in on.sink.puts:
            assert_within_limits(put)

    run(main, seed=seed)


def test_the_spool_is_called_for_many_lines_at_once() -> None:
    """Not for each; what is on its way to the spool is no more than a small part of what memory may hold."""

    async def main() -> None:
        memory_bytes = 2**21
        spool = CountingSpool()
        on = scene(then=HANGS, spool=spool, memory_bytes=memory_bytes)
        lines = numbered(60_000, 100)
        on.write(*lines)
        spooled = sum(map(event_bytes, spool.events))
        assert spooled > 2 * memory_bytes
        assert spool.pushes <= spooled / 2**16 + 1
        assert on.stats.pending == len(lines)
        on.sink.then = Reply()
        await asyncio.sleep(100)

        assert on.sink.texts == lines

    run(main)


def test_what_is_on_its_way_to_the_spool_is_not_forgotten() -> None:
    """It is delivered though nothing comes after it; without a stream it is dropped, and counted."""

    async def main() -> None:
        for opened in (True, False):
            spool = CountingSpool()
            on = scene(spool=spool, memory_bytes=2**20, opened=opened)
            lines = numbered(10_000, 100)
            on.write(*lines)
            assert sum(map(event_bytes, spool.events)) < (10_000 * 126) - 2**20
            stats = await on.delivery.drain(3, 60)

            assert on.sink.texts == (lines if opened else [])
            assert_accounted_for(stats, len(lines))

    run(main)


def test_short_lines_come_back_from_the_spool_a_batch_at_a_time() -> None:
    """However many fit into as many bytes: there can be a million of them."""

    async def main() -> None:
        spool = InMemoryLogSpool()
        on = scene(then=HANGS, spool=spool, memory_bytes=100)
        on.write(*["x"] * 100_000)
        await asyncio.sleep(10)

        assert len(on.sink.puts[-1].events) < 10_000 + 100
        assert len(spool) >= 100_000 - 10_000 - 2**14 - 100
        on.sink.then = Reply()
        await asyncio.sleep(1000)
        assert len(on.sink.texts) == 100_000

    run(main)


def test_what_comes_back_from_the_spool_leaves_others_their_turn() -> None:
    """A few thousand lines, then whatever else the loop has to do."""

    async def main() -> None:
        spool = InMemoryLogSpool()
        on = scene(spool=spool, memory_bytes=100)
        on.write(*numbered(50_000))
        draining = asyncio.create_task(on.delivery.drain(100, 1000))
        left = [len(spool)]
        while not draining.done():
            await asyncio.sleep(0)
            left.append(len(spool))

        assert left[-1] == 0
        assert max(before - after for before, after in pairwise(left)) <= 6_000, "two turns"

    run(main)


def test_a_spool_that_cannot_be_read_for_now_loses_nothing() -> None:
    """What it still has is not lost: it comes later, in its place, and is counted once."""

    async def main() -> None:
        spool = FailingSpool()
        on = scene(spool=spool, memory_bytes=100)
        lines = numbered(100)
        on.write(*lines)
        spool.keeps = spool.pop_fails = lambda: now() < 60
        await asyncio.sleep(50)
        on.write("later")
        assert on.stats.pending > 50
        await asyncio.sleep(50)

        assert on.sink.texts == [*lines, "later"]
        assert await on.delivery.drain(3, 60) == LogStats(accepted=101, delivered=101)

    run(main)


@pytest.mark.parametrize("fault", [SpoolError, RuntimeError])
def test_a_spool_that_loses_a_part_gives_the_rest(fault: type[Exception]) -> None:
    """Also in a drain: what cannot be read is counted, and what comes behind it is delivered."""

    class PatchySpool(InMemoryLogSpool):
        def pop(self, max_bytes: int) -> list[LogEvent]:  # noqa: ARG002 - one by one, whatever is asked for
            if "lost" in self.events[self._popped].text:
                del self.events[self._popped]
                raise fault("torn")
            return super().pop(0)

    async def main() -> None:
        on = scene(spool=PatchySpool(), memory_bytes=0)
        lines = [f"{number} {'lost' if number % 5 in {0, 1} else 'kept'}" for number in range(50)]
        on.write(*lines)
        stats = await on.delivery.drain(3, 60)

        assert on.sink.texts == [line for line in lines if "kept" in line]
        assert stats == LogStats(accepted=50, delivered=30, dropped=20)
        assert on.warnings == ["20 log lines are lost: torn"]

    run(main)


# What an agent before has left


def spool_after(*lines: str, later_ms: int = 0) -> InMemoryLogSpool:
    """As a successor finds it when the agent before has spooled these, a while later."""
    machine = Machine()
    stamp = int(EPOCH.timestamp() * 1000) + later_ms
    if lines:
        InMemoryLogSpool(machine=machine).push([LogEvent(stamp, line) for line in lines])
    return InMemoryLogSpool(machine=machine)


@pytest.mark.parametrize("memory_bytes", [0, 1000, 2**23])
@pytest.mark.parametrize("count", [1, 30, 15_000])
def test_what_is_recovered_goes_first(count: int, memory_bytes: int) -> None:
    """Before what was written until then, and it is counted as accepted; what comes later goes last."""

    async def main() -> None:
        spooled = [f"spooled {number}" for number in range(count)]
        on = scene(spool=spool_after(*spooled), memory_bytes=memory_bytes, opened=False)
        if memory_bytes:
            on.write("one", "two")
        on.delivery.recover()
        on.write("three")
        on.delivery.open(STREAM)
        await asyncio.sleep(10)
        on.write("four")
        stats = await on.delivery.drain(3, 60)

        own = ["one", "two", "three", "four"] if memory_bytes else ["three", "four"]
        assert on.sink.texts == [*spooled, *own]
        assert stats == LogStats(accepted=count + len(own), delivered=count + len(own))
        (warning,) = on.warnings
        assert f"{count} log lines" in warning
        for put in on.sink.puts:
            assert_within_limits(put)

    run(main)


def test_where_nothing_is_left_nothing_is_said() -> None:
    """And nothing changes."""

    async def main() -> None:
        on = scene(spool=spool_after(), opened=False)
        on.write("one")
        on.delivery.recover()
        on.delivery.open(STREAM)
        assert await on.delivery.drain(3, 60) == LogStats(accepted=1, delivered=1)

        assert on.warnings == []

    run(main)


def test_what_is_not_recovered_never_comes() -> None:
    """An agent that takes a job takes no lines of another: not now, nor after a crash of its own."""

    async def main() -> None:
        spool = spool_after("foreign")
        on = scene(spool=spool)
        on.write("own")
        await on.delivery.drain(3, 60)

        assert on.sink.texts == ["own"]
        assert spool.machine.spooled == []

    run(main)


def test_a_spool_that_cannot_be_recovered_stops_nothing() -> None:
    """It is warned of; neither is one that cannot be cleared in the way of what is written now."""

    class BrokenSpool(InMemoryLogSpool):
        def recover(self) -> int:
            raise SpoolError("the disk is broken")

        def clear(self) -> None:
            raise SpoolError("for good")

    async def main() -> None:
        on = scene(spool=BrokenSpool(), opened=False)
        on.write("one")
        on.delivery.recover()
        on.delivery.open(STREAM)

        assert await on.delivery.drain(3, 60) == LogStats(accepted=1, delivered=1)
        assert on.sink.texts == ["one"]
        assert [text.rpartition(": ")[2] for text in on.warnings] == ["the disk is broken", "for good"]

    run(main)


@pytest.mark.parametrize("later_ms", [-30 * DAY_MS, -DAY_MS - 1, -1000, 1000, DAY_MS])
def test_what_is_recovered_has_the_clock_of_its_time(later_ms: int) -> None:
    """Were it ahead of this life's, the lines of this life would not stand before those of the last."""

    async def main() -> None:
        on = scene(spool=spool_after("spooled", later_ms=later_ms), opened=False)
        on.write("one")
        on.delivery.recover()
        on.delivery.open(STREAM)
        await asyncio.sleep(10)
        on.write("two")
        await on.delivery.drain(3, 60)

        assert on.sink.texts == ["spooled", "one", "two"]
        stamps = [event.timestamp_ms - int(EPOCH.timestamp() * 1000) for event in on.sink.taken]
        assert stamps == [later_ms, max(0, later_ms), max(10_000, later_ms)]
        for put in on.sink.puts:
            assert_within_limits(put)

    run(main)


# The clock


@RELAXED
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.0, 1.0, 6.0]), st.sampled_from([0, 0, 0, -90_000, -1, 1, 86_401, 90_000])
        ),
        min_size=1,
        max_size=20,
    )
)
def test_the_clock_may_be_set(steps: list[tuple[float, int]]) -> None:
    """Back or forward, by days: the order of lines is that of writing, and their stamps never go back."""

    async def main() -> None:
        offset = timedelta()
        on = scene(clock=lambda: wall_clock()() + offset)
        lines = numbered(len(steps))
        for line, (pause, seconds) in zip(lines, steps, strict=True):
            offset += timedelta(seconds=seconds)
            on.write(line)
            await asyncio.sleep(pause)
        await on.delivery.drain(3, 60)

        assert on.sink.texts == lines
        stamps = [event.timestamp_ms for event in on.sink.taken]
        assert stamps == sorted(stamps)
        for put in on.sink.puts:
            assert_within_limits(put)

    run(main)


def test_a_line_has_the_time_of_its_writing() -> None:
    """In milliseconds, however late it goes."""

    async def main() -> None:
        on = scene(FAILS, FAILS)
        await asyncio.sleep(0.25)
        on.write("one")
        await asyncio.sleep(1)
        on.write("two")
        await asyncio.sleep(100)

        epoch_ms = int(EPOCH.timestamp() * 1000)
        assert [event.timestamp_ms - epoch_ms for event in on.sink.taken] == [250, 1250]

    run(main)


# The end


def test_a_drain_delivers_what_waits() -> None:
    """At once, without the five seconds, and ends when all is delivered."""

    async def main() -> None:
        on = scene(then=Reply(seconds=0.5))
        on.write(*numbered(25_000))
        stats = await on.delivery.drain(3, 60)

        assert stats == LogStats(accepted=25_000, delivered=25_000)
        assert now() == 1.5

    run(main)


def test_a_drain_takes_what_comes_meanwhile() -> None:
    """What ends a life is said while its logs are drained."""

    async def main() -> None:
        on = scene(then=Reply(seconds=1))
        on.write("before")
        draining = asyncio.create_task(on.delivery.drain(3, 60))
        await asyncio.sleep(0.5)
        on.write("meanwhile")
        stats = await draining

        assert on.sink.texts == ["before", "meanwhile"]
        assert stats == LogStats(accepted=2, delivered=2)

    run(main)


def test_after_the_drain_nothing_is_taken() -> None:
    """It is not counted either; a second drain ends at once."""

    async def main() -> None:
        on = scene()
        on.write("before")
        stats = await on.delivery.drain(3, 60)
        on.write("after", "", "x" * 2_000_000, "\udc80")
        await asyncio.sleep(100)

        assert await on.delivery.drain(3, 60) == on.stats == stats == LogStats(accepted=1, delivered=1)
        assert now() == 100
        assert on.sink.texts == ["before"]

    run(main)


@pytest.mark.parametrize("opened", [True, False])
def test_a_drain_of_nothing_takes_no_time(opened: bool) -> None:  # noqa: FBT001
    """A life without a job has nothing to wait for."""

    async def main() -> None:
        on = scene(opened=opened)
        assert await on.delivery.drain(3, 60) == LogStats()
        assert now() == 0

    run(main)


def test_lines_without_a_stream_are_dropped() -> None:
    """There is nowhere to send them; they are counted, in memory and in the spool."""

    async def main() -> None:
        on = scene(opened=False, memory_bytes=100)
        on.write(*numbered(30))

        assert await on.delivery.drain(3, 60) == LogStats(accepted=30, dropped=30)
        assert now() == 0
        assert on.sink.puts == []

    run(main)


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [(HANGS, 3), (FAILS, 3), (THROTTLES, 3), (IS_STUBBORN, 3 + UNWIND_SECONDS), (BREAKS, 3)],
)
def test_a_drain_ends_when_nothing_moves(reply: Reply, seconds: float) -> None:
    """After three seconds, not after sixty; what did not go is dropped."""

    async def main() -> None:
        on = scene(then=reply)
        on.write(*numbered(10))
        stats = await on.delivery.drain(3, 60)
        ended = now()
        await asyncio.sleep(500)

        assert ended == pytest.approx(seconds)
        assert stats == on.stats == LogStats(accepted=10, dropped=10)

    run(main)


def test_a_drain_goes_on_as_long_as_something_moves() -> None:
    """A slow sink has the whole time."""

    async def main() -> None:
        on = scene(then=Reply(seconds=2.5))
        on.write(*numbered(20, 900_000))

        assert await on.delivery.drain(3, 60) == LogStats(accepted=20, delivered=20)
        assert now() == 50

    run(main)


def test_a_drain_ends_though_something_moves() -> None:
    """When the whole time is over."""

    async def main() -> None:
        on = scene(then=Reply(seconds=1))
        on.write(*numbered(100, 900_000))
        stats = await on.delivery.drain(3, 10.5)

        assert now() == 10.5
        assert stats == LogStats(accepted=100, delivered=10, dropped=90)

    run(main)


def test_lines_that_come_meanwhile_do_not_look_like_a_stall() -> None:
    """Something moves when something is delivered, however much comes in at the other end."""

    async def main() -> None:
        on = scene(then=Reply(seconds=1))
        on.write(*numbered(10, 900_000))
        draining = asyncio.create_task(on.delivery.drain(3, 60))
        for line in numbered(40):
            await asyncio.sleep(0.2)
            on.write(line)
        stats = await draining

        assert stats == LogStats(accepted=50, delivered=50)

    run(main)


def test_lines_that_are_dropped_do_not_look_like_movement() -> None:
    """A sink that hangs is left after three seconds, though lines come that nothing has room for."""

    async def main() -> None:
        on = scene(then=HANGS, spool=InMemoryLogSpool(0), memory_bytes=100)
        on.write(*numbered(10))
        await asyncio.sleep(6)
        draining = asyncio.create_task(on.delivery.drain(3, 60))
        for line in numbered(100):
            await asyncio.sleep(0.5)
            on.write(line)
            if draining.done():
                break

        assert draining.done()
        assert now() <= 6 + 3 + 0.5

    run(main)


def test_a_drain_does_not_sit_out_a_backoff() -> None:
    """A sink that answers again is asked again at once."""

    async def main() -> None:
        on = scene(*[FAILS] * 8)
        on.write("one")
        await asyncio.sleep(5 + 0.5 + 1 + 2 + 4 + 8 + 5)
        del on.sink.replies[:]
        begun = now()
        stats = await on.delivery.drain(3, 60)

        assert stats == LogStats(accepted=1, delivered=1)
        assert now() - begun <= 1

    run(main)


# The limits


def events(*sizes: int, stamps: Sequence[int] = ()) -> list[LogEvent]:
    """Events of these many bytes, counted as the service counts them."""
    return [
        LogEvent(stamp, "x" * (size - 26))
        for size, stamp in zip(sizes, stamps or [0] * len(sizes), strict=True)
    ]


@pytest.mark.parametrize(
    "batch",
    [
        events(27),
        events(*[27] * 10_000),
        events(*[131_072] * 8),
        events(1_000_000, 48_576),
        events(27, 27, 27, stamps=[5, 5, 6]),
        events(27, 27, stamps=[0, DAY_MS]),
    ],
)
def test_batches_at_the_limits(batch: list[LogEvent]) -> None:
    """1 to 10,000 events, 1,048,576 bytes with 26 an event, 1 MB an event, in order, within 24 hours."""
    check_batch(batch)


@pytest.mark.parametrize(
    ("batch", "why"),
    [
        ([], "0 events"),
        (events(*[27] * 10_001), "10001 events"),
        (events(*[131_072] * 7, 131_073), "1048577 bytes"),
        (events(1_000_001), "1000001 bytes"),
        (events(27, 26), "an event is empty"),
        (events(27, 27, stamps=[6, 5]), "chronological"),
        (events(27, 27, stamps=[0, DAY_MS + 1]), "24 hours"),
        ([LogEvent(0, "é" * 524_276)], "1048578 bytes"),
    ],
)
def test_batches_beyond_the_limits(batch: list[LogEvent], why: str) -> None:
    """Each is refused with the limit that it breaks."""
    with pytest.raises(BatchRefusedError, match=why):
        check_batch(batch)


def test_the_memory_sink_takes_what_is_delivered() -> None:
    """The sink that other tests trust holds each batch against the limits; some megabytes need no spool."""

    async def main() -> None:
        sink = InMemoryLogSink()
        spool = FailingSpool()
        spool.push_fails = lambda: True
        delivery = LogDelivery(sink, spool, now=wall_clock(), rng=Random(0), warn=pytest.fail)
        delivery.open(STREAM)
        lines = ["x" * 999_000, *numbered(12_000), "", "é" * 700_000]
        for line in lines:
            delivery.write(line)
        stats = await delivery.drain(3, 60)

        assert stats.delivered == stats.accepted
        assert "".join(sink.lines(STREAM)) == "".join(map(visible, lines))

    run(main)


@pytest.mark.parametrize("memory_bytes", [0, 1000, 5000])
def test_what_is_under_way_stays_in_the_spool(memory_bytes: int) -> None:
    """Until the sink has it: a successor finds all that did not arrive, whenever the agent dies."""
    pushed: set[str] = set()

    class NotingSpool(InMemoryLogSpool):
        def push(self, events: Sequence[LogEvent]) -> None:
            super().push(events)
            pushed.update(event.text for event in events)

    async def main() -> None:
        spool, lines = NotingSpool(), [f"{number} ".ljust(100, "x") for number in range(300)]
        on = scene(then=Reply(seconds=7), spool=spool, memory_bytes=memory_bytes)
        on.write(*lines)
        while len(on.sink.texts) < len(lines):
            await asyncio.sleep(1)
            left = InMemoryLogSpool(machine=spool.machine)
            left.recover()
            recovered = [event.text for event in left.events]
            assert pushed - set(on.sink.texts) <= set(recovered)
        await asyncio.sleep(1)
        await on.delivery.drain(3, 60)
        assert spool.machine.spooled == []
        assert on.sink.texts == lines

    run(main)

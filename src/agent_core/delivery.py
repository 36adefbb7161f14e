"""The way of log lines to the sink: in order, in batches, tried again, and never in the job's way.

`write` takes a line at once, whatever the sink does. Lines wait in memory up to a bound, beyond it in
the spool, where they outlive the agent. What becomes of each is counted.

Every line of a job comes this way, on the loop that everything else waits for: it costs microseconds, and
nothing here works on more than some thousand lines at a time.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import chain
from random import Random
from typing import Final

from agent_core.batches import (
    BATCH_BYTES,
    EVENT_OVERHEAD_BYTES,
    EVENT_TEXT_BYTES,
    Batch,
    event_bytes,
    text_bytes,
)
from agent_core.deadline import abandon, wait_until_set, while_moving, within
from agent_core.errors import AgentError, BatchRefusedError, LogSinkDeniedError, SpoolError
from agent_core.model import LogEvent, LogStats
from agent_core.policy import CALL_SECONDS, Backoff
from agent_core.ports import LogSink, LogSpool

__all__ = ["BATCH_SECONDS", "LogDelivery"]

BATCH_SECONDS: Final = 5.0
"""The oldest line waits no longer for company."""

_MEMORY_BYTES: Final = 8 * BATCH_BYTES
_HELD_SHARE: Final = 32
"""Lines go to the spool in pieces of this share of the memory bound: 256 KiB of the usual one."""
_UNSPOOL_BYTES: Final = 16 * 1024
"""What comes back from the spool at a time; that many lines, if each has one character."""
_TURN_EVENTS: Final = 2_000
"""After so many from the spool, whoever else needs the loop has a turn."""
_EMPTY_LINE: Final = " "
"""An event must not be empty."""
_MAX_UTF8_BYTES: Final = 4


class LogDelivery:
    """Delivers to one stream, from `open` to `drain`; lines written before wait for it.

    Args:
        sink: where the batches go.
        spool: where lines wait that memory has no room for.
        now: wall time.
        rng: for the jitter of tries.
        warn: told once when the sink denies, and each time that it stops answering.
        memory_bytes: the bound of what waits in memory.
    """

    def __init__(
        self,
        sink: LogSink,
        spool: LogSpool,
        *,
        now: Callable[[], datetime],
        rng: Random,
        warn: Callable[[str], None],
        memory_bytes: int = _MEMORY_BYTES,
    ) -> None:
        self._sink, self._spool = sink, spool
        self._now, self._rng, self._warn = now, rng, warn
        self._memory_bytes = memory_bytes
        self._waiting: deque[Batch] = deque()
        """What goes next, older than what is in the spool; the last one grows."""
        self._waiting_bytes = self._entered = self._left = 0
        self._unspooled: deque[tuple[int, int]] = deque()
        """For each part from the spool: how many lines had entered with its last one, and how many it is."""
        self._held = Batch(_moment())
        """What goes to the spool next."""
        self._last_stamp = self._spooled_stamp = 0
        self._some, self._ripe, self._closing = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._closed = self._denied = self._losing = False
        self._backoff = Backoff(first=0.5, most=10.0)
        self._pump: asyncio.Task[None] | None = None
        self._accepted = self._delivered = self._rejected = self._dropped = 0

    @property
    def stats(self) -> LogStats:
        """What became of the lines so far."""
        return LogStats(
            accepted=self._accepted,
            delivered=self._delivered,
            rejected=self._rejected,
            dropped=self._dropped,
        )

    def write(self, text: str) -> None:
        """Takes one line, of any length and content; does nothing after the drain."""
        if self._closed:
            return
        try:
            size = text_bytes(text)
        except UnicodeEncodeError:
            encoded = text.encode("utf-8", "backslashreplace")
            text, size = encoded.decode(), len(encoded)
        if size <= EVENT_TEXT_BYTES:
            self._accept(text or _EMPTY_LINE, size or 1)
            return
        step = EVENT_TEXT_BYTES // _MAX_UTF8_BYTES
        for start in range(0, len(text), step):
            part = text[start : start + step]
            self._accept(part, text_bytes(part))

    def recover(self) -> None:
        """Takes over what a dead agent's spool holds, to go before all that was written here; then `open`."""
        try:
            recovered = self._spool.recover()
        except SpoolError as exc:
            self._warn(f"log lines of the agent before are lost: {exc}")
            return
        if not recovered:
            return
        self._accepted += recovered
        written = [*self._waiting, self._held]
        self._waiting.clear()
        self._waiting_bytes = self._entered = 0
        self._ripe.clear()
        self._held = Batch(_moment())
        for event in chain.from_iterable(written):
            self._hold(event.timestamp_ms, event.text, event_bytes(event))
        self._some.set()
        self._warn(
            f"the agent before left {recovered} log lines in its spool, they go first; "
            "those that it had in memory are lost"
        )

    def open(self, stream: str) -> None:
        """Starts to deliver, to the stream `{instance_id}/{job_id}`; what was not recovered never comes."""
        if not len(self._spool):
            try:
                self._spool.clear()
            except SpoolError as exc:
                self._warn(f"old log lines stay in the spool: {exc}")
        self._pump = asyncio.create_task(self._deliver_to(stream), name="log delivery")

    async def drain(self, stall_seconds: float, seconds: float) -> LogStats:
        """Delivers what waits, then takes no more; what is not delivered by then is dropped, and counted.

        It ends after `seconds`, or already when for `stall_seconds` nothing went through.
        """
        self._closing.set()
        self._some.set()
        self._ripe.set()
        pump = self._pump
        if pump is not None and not await while_moving(seconds, stall_seconds, pump, lambda: self._arrived):
            await abandon(pump)
        self._closed = True
        self._waiting.clear()
        self._held = Batch(_moment())
        self._dropped += self.stats.pending
        return self.stats

    @property
    def _arrived(self) -> int:
        return self._delivered + self._rejected

    # Taking lines in

    def _accept(self, text: str, size: int) -> None:
        self._accepted += 1
        if self._denied:
            self._dropped += 1
            return
        # A wall clock that is set back must not put the stream out of order.
        self._last_stamp = stamp = max(self._last_stamp, int(self._now().timestamp() * 1000))
        size += EVENT_OVERHEAD_BYTES
        if self._held or len(self._spool) or self._waiting_bytes + size > self._memory_bytes:
            self._hold(stamp, text, size)
        else:
            self._append(stamp, text, size)
        self._some.set()

    def _append(self, stamp: int, text: str, size: int) -> None:
        waiting = self._waiting
        if not (waiting and waiting[-1].has_room(stamp, size)):
            waiting.append(Batch(_moment()))
        waiting[-1].add(stamp, text, size)
        self._waiting_bytes += size
        self._entered += 1
        if self._is_ripe:
            self._ripe.set()

    @property
    def _is_ripe(self) -> bool:
        """Whether the first batch has no room for more."""
        return len(self._waiting) > 1 or bool(self._waiting and self._waiting[0].is_full)

    def _hold(self, stamp: int, text: str, size: int) -> None:
        """For the spool: a call for each line would cost more than all the rest."""
        self._held.add(stamp, text, size)
        if self._held.bytes < self._memory_bytes // _HELD_SHARE:
            return
        held, self._held = self._held, Batch(_moment())
        try:
            self._spool.push(held)
        except SpoolError as exc:
            self._dropped += len(held)
            # A warning may be a log line itself: it must not come back here.
            if not self._losing:
                self._losing = True
                self._warn(f"log lines are lost: {exc}")

    async def _unspool(self) -> None:
        """Fills a batch up from the spool, and behind it from what is held for the spool."""
        turn = lost = 0
        error: Exception | None = None
        while len(self._spool) and not self._is_ripe:
            before = len(self._spool)
            try:
                popped = self._spool.pop(_UNSPOOL_BYTES)
                self._append_all(popped)
                self._unspooled.append((self._entered, len(popped)))
            except Exception as exc:  # noqa: BLE001 - an adapter's own fault, too, costs lines and no more
                error, gone = exc, before - len(self._spool)
                lost += gone
                self._dropped += gone
                if not gone:
                    break
            turn += before - len(self._spool)
            if turn >= _TURN_EVENTS:
                turn = 0
                await asyncio.sleep(0)
        if error is not None:
            self._warn(f"{lost} log lines are lost: {error}")
        if not len(self._spool):
            held, self._held = self._held, Batch(_moment())
            self._append_all(held)

    def _append_all(self, events: Iterable[LogEvent]) -> None:
        for event in events:
            # A dead agent's clock may have been ahead: what comes after its lines must not stand before them.
            self._spooled_stamp = stamp = max(self._spooled_stamp, event.timestamp_ms)
            self._append(stamp, event.text, event_bytes(event))
        self._last_stamp = max(self._last_stamp, self._spooled_stamp)

    # Sending batches out

    async def _deliver_to(self, stream: str) -> None:
        while True:
            await self._some.wait()
            since = self._waiting[0].since if self._waiting else _moment()
            await wait_until_set(self._ripe, since + BATCH_SECONDS - _moment())
            await self._deliver_waiting(stream)
            if self._closing.is_set():
                return

    async def _deliver_waiting(self, stream: str) -> None:
        """Everything that waits now, and whatever comes meanwhile, as long as it fills batches."""
        await self._unspool()
        while batch := self._next_batch():
            await self._deliver(stream, batch)
            self._forget(len(batch))
            await self._unspool()
            if not (self._closing.is_set() or self._ripe.is_set()):
                break
        if not (self._waiting or len(self._spool)):
            self._some.clear()

    def _forget(self, count: int) -> None:
        """Lets the spool forget what has left the queue: until then it would come again after a crash."""
        self._left += count
        while self._unspooled and self._unspooled[0][0] <= self._left:
            self._spool.forget(self._unspooled.popleft()[1])

    def _next_batch(self) -> Sequence[LogEvent]:
        if not self._waiting:
            return ()
        batch = self._waiting.popleft()
        self._waiting_bytes -= batch.bytes
        if not self._is_ripe:
            self._ripe.clear()
        return batch

    async def _deliver(self, stream: str, batch: Sequence[LogEvent]) -> None:
        """One batch, tried until the sink has it or will never have it."""
        attempt = 0
        while not self._denied:
            try:
                rejected = await within(CALL_SECONDS, "the log sink", self._sink.put(stream, batch))
            except LogSinkDeniedError as exc:
                self._deny(exc)
            except BatchRefusedError as exc:
                self._warn(f"the log sink refused {len(batch)} lines: {exc}")
                self._rejected += len(batch)
                return
            except Exception as exc:  # noqa: BLE001 - unavailable, late, or an adapter's own fault: the lines wait
                if attempt == 0:
                    self._warn(f"the log sink does not answer, tried again: {exc!r}")
                await self._pause(attempt)
                attempt += 1
            else:
                self._delivered += len(batch) - rejected
                self._rejected += rejected
                return
        self._dropped += len(batch)

    async def _pause(self, attempt: int) -> None:
        if await wait_until_set(self._closing, self._backoff.delay(attempt, self._rng)):
            await asyncio.sleep(self._backoff.first)

    def _deny(self, exc: AgentError) -> None:
        """From here on every line is dropped: what is denied stays denied, and is not asked for again."""
        self._denied = True
        self._warn(f"the log sink denies the agent; no more log lines are sent: {exc}")
        self._dropped += sum(map(len, self._waiting))
        self._waiting.clear()
        self._waiting_bytes = 0


def _moment() -> float:
    """Now, on the loop's clock; lines that come before there is a loop have waited long enough."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return 0.0

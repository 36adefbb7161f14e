"""Messages to the queue: tried again until the queue has them, within a bound, and never twice as another."""

import asyncio

from agent_core.deadline import abandon, within
from agent_core.errors import (
    DeadlineError,
    MessageRefusedError,
    NotifierDeniedError,
)
from agent_core.events import MessageSent
from agent_core.life import Life
from agent_core.model import StatusMessage
from agent_core.policy import SEND_CALL_SECONDS, STARTED_LEAVE_SECONDS, STARTED_SECONDS, Backoff
from agent_core.status import started_message

__all__ = ["Messenger"]


class Messenger:
    """Sends the two messages of a life."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._backoff = Backoff(first=0.25, most=2.0)
        self._started: asyncio.Task[bool] | None = None

    def announce_start(self) -> None:
        """Sends `started`, beside whatever else goes on."""
        message = started_message(self._life.record)
        self._started = asyncio.create_task(self.send(message, STARTED_SECONDS), name="started message")

    async def send_final(self, message: StatusMessage, seconds: float) -> bool:
        """Whether it went; the `started` message goes first, but does not hold it up for long."""
        leave = min(STARTED_LEAVE_SECONDS, seconds / 4)
        if self._started is not None:
            await asyncio.wait({self._started}, timeout=leave)
            if not self._started.done():
                await abandon(self._started)
        return await self.send(message, seconds - leave)

    async def send(self, message: StatusMessage, seconds: float) -> bool:
        """Whether the queue has confirmed the message within `seconds`."""
        if message.message_id in self._life.record.confirmed:
            return True
        try:
            await within(seconds, f"the message {message.status}", self._try(message))
        except (DeadlineError, NotifierDeniedError, MessageRefusedError) as exc:
            self._life.warn(f"the message {message.status} was not sent: {exc}")
            return False
        self._life.emit(MessageSent(message))
        await self._life.chronicle.save(confirmed=(*self._life.record.confirmed, message.message_id))
        return True

    async def _try(self, message: StatusMessage) -> None:
        notifier, queue_url = self._life.ports.notifier, self._life.record.queue_url
        attempt = 0
        while True:
            try:
                return await within(SEND_CALL_SECONDS, "the queue", notifier.send(message, queue_url))
            except (NotifierDeniedError, MessageRefusedError):
                raise
            except Exception as exc:  # noqa: BLE001 - unavailable, late, or an adapter's own fault
                if attempt == 0:
                    self._life.warn(f"the queue does not answer, tried again: {exc}")
            await asyncio.sleep(self._backoff.delay(attempt, self._life.rng))
            attempt += 1

"""The two messages of a life, over a queue that is late, gone, or against it."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from random import Random
from typing import Final

import pytest
from attrs import define, evolve, field

from agent_adapters.memory import InMemoryJournal, InMemoryNotifier
from agent_adapters.world import World
from agent_core.errors import (
    JournalUnavailableError,
    MessageRefusedError,
    NotifierDeniedError,
    NotifierUnavailableError,
)
from agent_core.events import Event, MessageSent, Warned
from agent_core.life import AgentOptions, Life
from agent_core.messenger import Messenger
from agent_core.model import JournalRecord, Status, StatusMessage
from agent_core.phases import Phase
from agent_core.ports import Journal, Notifier
from agent_core.status import Observed, final_message
from agent_core.testing.simulation import EPOCH, run, wall_clock

FINAL_SECONDS: Final = 8.0
"""The final message has so long, with every try."""
STARTED_LEAVE_SECONDS: Final = 2.0
"""The final message waits so long for the `started` one."""
UNWIND_SECONDS: Final = 2.0
"""A call that swallows its cancellation is waited for so long."""
FOR_EVER: Final = 1e6


@define
class Answer:
    """How the queue answers one call: it takes its time, and has the message then, or raises."""

    seconds: float = 0.0
    error: Exception | None = None
    stubborn: bool = False
    """The call swallows its cancellation."""


@define
class ScriptedNotifier(Notifier):
    """A queue that answers as it is told, and then as it should."""

    answers: list[Answer] = field(factory=list)
    queue: InMemoryNotifier = field(factory=InMemoryNotifier)
    calls: list[tuple[float, StatusMessage, str | None]] = field(factory=list)

    async def send(self, message: StatusMessage, queue_url: str | None) -> None:
        self.calls.append((now(), message, queue_url))
        answer = self.answers.pop(0) if self.answers else Answer()
        end = now() + answer.seconds
        while now() < end:
            try:
                await asyncio.sleep(end - now())
            except asyncio.CancelledError:
                if not answer.stubborn:
                    raise
        if answer.error is not None:
            raise answer.error
        await self.queue.send(message, queue_url)

    @property
    def sent(self) -> list[Status]:
        return [message.status for message in self.queue.received]

    @property
    def tried_at(self) -> list[float]:
        return [at for at, _, _ in self.calls]


class FullJournal(Journal):
    """The disk is full."""

    async def load(self) -> JournalRecord | None:
        return None

    async def save(self, record: JournalRecord) -> None:
        raise JournalUnavailableError(f"no room for {record.instance_id}")


@define
class Scene:
    """A life whose job runs, and its messenger."""

    life: Life
    notifier: ScriptedNotifier
    messenger: Messenger
    events: list[Event]

    @property
    def warnings(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Warned)]

    @property
    def told(self) -> list[Status]:
        """The messages that are said to be sent."""
        return [event.message.status for event in self.events if isinstance(event, MessageSent)]

    @property
    def final(self) -> StatusMessage:
        return final_message(self.life.record, Observed(), EPOCH + timedelta(minutes=1))


def now() -> float:
    return asyncio.get_running_loop().time()


def scene(*answers: Answer, journal: Journal | None = None) -> Scene:
    """A scene whose queue first answers like this."""
    world = World()
    notifier = ScriptedNotifier(list(answers))
    ports = evolve(world.ports(), notifier=notifier, journal=journal or InMemoryJournal(world.machine))
    options = AgentOptions(instance_id=world.machine.instance_id, arch="x64")
    events: list[Event] = []
    life = Life(options, ports, now=wall_clock(), rng=Random(0), observer=events.append)
    life.chronicle.allow()
    life.chronicle.note(job_id="67890", phase=Phase.RUNNING, started_at=EPOCH, queue_url="memory:its own")
    return Scene(life, notifier, Messenger(life), events)


UNAVAILABLE: Final = NotifierUnavailableError("no route")
REFUSALS: Final = (NotifierDeniedError("no right"), MessageRefusedError("too long"))


# One message


def test_sends_a_message() -> None:
    """To the job's own queue; it is recorded as confirmed, and said to be sent."""

    async def main() -> None:
        on = scene()

        assert await on.messenger.send_final(on.final, 10.0)

        assert [(at, queue_url) for at, _, queue_url in on.notifier.calls] == [(0, "memory:its own")]
        assert on.notifier.queue.received == [on.final]
        assert on.told == [Status.FAILURE]
        assert on.warnings == []
        journalled = await on.life.ports.journal.load()
        assert journalled is not None
        assert journalled.confirmed == on.life.record.confirmed == (on.final.message_id,)

    run(main)


@pytest.mark.parametrize("error", [UNAVAILABLE, OSError("an adapter's own fault")])
@pytest.mark.parametrize("failures", [1, 3])
def test_tries_again(error: Exception, failures: int) -> None:
    """Until the queue has it, with growing pauses; it warns once."""

    async def main() -> None:
        on = scene(*[Answer(error=error)] * failures)

        assert await on.messenger.send_final(on.final, 10.0)

        assert on.notifier.sent == [Status.FAILURE]
        assert on.warnings == [f"the queue does not answer, tried again: {error}"]
        pauses = [
            later - at for at, later in zip(on.notifier.tried_at, on.notifier.tried_at[1:], strict=False)
        ]
        assert len(pauses) == failures
        assert all(most / 2 <= pause <= most for pause, most in zip(pauses, [0.25, 0.5, 1.0], strict=False))

    run(main)


@pytest.mark.parametrize("error", REFUSALS)
def test_what_is_refused_is_not_tried_again(error: Exception) -> None:
    """It costs no time, and the warning says why."""

    async def main() -> None:
        on = scene(Answer(error=error))

        assert not await on.messenger.send_final(on.final, 10.0)

        assert now() == 0
        assert len(on.notifier.calls) == 1
        assert on.warnings == [f"the message failure was not sent: {error}"]
        assert on.told == []
        assert on.life.record.confirmed == ()

    run(main)


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (Answer(error=UNAVAILABLE), FINAL_SECONDS),
        (Answer(seconds=0.3, error=UNAVAILABLE), FINAL_SECONDS),
        (Answer(seconds=FOR_EVER), FINAL_SECONDS),
        (Answer(seconds=600, stubborn=True), FINAL_SECONDS + UNWIND_SECONDS),
    ],
)
def test_the_final_message_has_its_bound(answer: Answer, seconds: float) -> None:
    """A queue that fails, or does not answer, holds up the end for no longer."""

    async def main() -> None:
        on = scene(*[answer] * 100)

        assert not await on.messenger.send_final(on.final, 10.0)

        assert now() <= seconds + UNWIND_SECONDS
        assert on.told == []
        assert on.life.record.confirmed == ()
        assert "the message failure was not sent: the message failure took longer than 8 s" in on.warnings

    run(main)


def test_one_hanging_call_is_not_the_last_try() -> None:
    """A connection that died silently costs one call, not the message."""

    async def main() -> None:
        on = scene(Answer(seconds=FOR_EVER))

        assert await on.messenger.send_final(on.final, 10.0)

    run(main)


def test_a_confirmed_message_is_not_sent_again() -> None:
    """Neither by the agent that sent it, nor by a successor that reads so in the journal."""

    async def main() -> None:
        on = scene()
        assert await on.messenger.send_final(on.final, 10.0)
        assert await on.messenger.send_final(on.final, 10.0)
        assert len(on.notifier.calls) == 1

        successor = scene()
        successor.life.chronicle.note(confirmed=on.life.record.confirmed)
        assert await successor.messenger.send_final(successor.final, 10.0)
        assert successor.notifier.calls == []
        assert successor.told == []

    run(main)


def test_what_was_confirmed_before_stays_recorded() -> None:
    """The journal has the IDs of all the messages that the queue took."""

    async def main() -> None:
        on = scene()
        on.life.chronicle.note(confirmed=("earlier",))

        await on.messenger.send_final(on.final, 10.0)

        assert on.life.record.confirmed == ("earlier", on.final.message_id)

    run(main)


def test_a_full_disk_does_not_unsend_a_message() -> None:
    """The queue has it, whether or not the journal can say so."""

    async def main() -> None:
        on = scene(journal=FullJournal())

        assert await on.messenger.send_final(on.final, 10.0)

        assert on.told == [Status.FAILURE]
        assert await on.messenger.send_final(on.final, 10.0)
        assert len(on.notifier.calls) == 1

    run(main)


# Started, then final


async def announce_and_end(on: Scene, job_seconds: float) -> tuple[bool, float]:
    """The job starts, and ends after some time; whether the final message went, and how long it took."""
    on.messenger.announce_start()
    await asyncio.sleep(job_seconds)
    begun = now()
    went = await on.messenger.send_final(on.final, 10.0)
    return went, now() - begun


def test_the_start_is_announced_beside_the_job() -> None:
    """The announcement takes none of the job's time, and is its first message."""

    async def main() -> None:
        on = scene(Answer(seconds=5))

        on.messenger.announce_start()
        assert on.notifier.calls == []
        await asyncio.sleep(30)
        assert on.notifier.sent == [Status.STARTED]
        await on.messenger.send_final(on.final, 10.0)

        assert on.notifier.sent == [Status.STARTED, Status.FAILURE]
        started, final = on.notifier.queue.received
        assert started.started_at == EPOCH
        assert on.life.record.confirmed == (started.message_id, final.message_id)
        assert started.message_id != final.message_id

    run(main)


@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.9])
def test_the_start_goes_first(seconds: float) -> None:
    """Also when the job is over at once: the final message gives it a moment."""

    async def main() -> None:
        on = scene(Answer(seconds=seconds))

        assert await announce_and_end(on, 0) == (True, seconds)

        assert on.notifier.sent == [Status.STARTED, Status.FAILURE]

    run(main)


SLOW_STARTS: Final[dict[str, Callable[[], list[Answer]]]] = {
    "hangs": lambda: [Answer(seconds=FOR_EVER)],
    "fails": lambda: [Answer(seconds=2.5, error=UNAVAILABLE)],
    "is stubborn": lambda: [Answer(seconds=600, stubborn=True)],
}


@pytest.mark.parametrize("kind", SLOW_STARTS)
def test_the_start_does_not_hold_up_the_end(kind: str) -> None:
    """After that moment, the final message goes by itself; the other one is not sent behind its back."""

    async def main() -> None:
        on = scene(*SLOW_STARTS[kind]())

        went, seconds = await announce_and_end(on, 0.1)
        taken = list(on.notifier.sent)
        await asyncio.sleep(500)

        assert went
        assert seconds <= STARTED_LEAVE_SECONDS + UNWIND_SECONDS
        assert taken == on.notifier.sent == [Status.FAILURE]

    run(main)


@pytest.mark.parametrize("error", REFUSALS)
def test_a_start_that_is_refused_does_not_matter(error: Exception) -> None:
    """The final message is tried all the same, at once."""

    async def main() -> None:
        on = scene(Answer(error=error))

        assert await announce_and_end(on, 30) == (True, 0)

        assert on.notifier.sent == [Status.FAILURE]
        assert on.warnings == [f"the message started was not sent: {error}"]

    run(main)


def test_the_start_is_tried_for_a_minute() -> None:
    """Calls that hang are cut and tried again; when the minute is over, the job goes on without."""

    async def main() -> None:
        on = scene(*[Answer(seconds=FOR_EVER)] * 2)
        on.messenger.announce_start()
        await asyncio.sleep(60)
        assert on.notifier.sent == [Status.STARTED]
        assert len(on.notifier.calls) == 3

        on = scene(*[Answer(seconds=FOR_EVER)] * 10)
        assert await announce_and_end(on, 10)
        assert on.notifier.sent == []

    run(main)


def test_the_start_gives_up_after_a_minute() -> None:
    """It warns, and nothing is left that still tries."""

    async def main() -> None:
        on = scene(*[Answer(error=UNAVAILABLE)] * 1000)
        on.messenger.announce_start()
        await asyncio.sleep(3600)

        assert on.notifier.tried_at[-1] <= 60
        assert len([task for task in asyncio.all_tasks() if not task.done()]) == 1
        assert (
            on.warnings[-1] == "the message started was not sent: the message started took longer than 60 s"
        )

        on.notifier.answers.clear()
        assert await on.messenger.send_final(on.final, 10.0)
        assert on.notifier.sent == [Status.FAILURE]

    run(main)

"""The record of a life: in memory at once, in the journal soon, and never in the life's way."""

import asyncio
from collections.abc import Sequence
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_adapters.memory import InMemoryJournal, Machine
from agent_core.chronicle import Chronicle
from agent_core.errors import JournalUnavailableError
from agent_core.model import JournalRecord
from agent_core.phases import Phase
from agent_core.ports import Journal
from agent_core.testing.simulation import run

RELAXED: Final = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
FIRST: Final = JournalRecord(instance_id="i-1", agent_version="1.0", phase=Phase.BOOTING)
FOR_EVER: Final = 1e6


def now() -> float:
    return asyncio.get_running_loop().time()


class SlowJournal(Journal):
    """A journal whose saves each take their time; when that is over, the record stands."""

    def __init__(self, *seconds: float, stubborn: bool = False) -> None:
        self.seconds = list(seconds)
        """Of the saves to come; then they take none."""
        self.stubborn = stubborn
        """It goes on with a save that is cancelled."""
        self.saved: list[JournalRecord] = []

    async def load(self) -> JournalRecord | None:
        return self.saved[-1] if self.saved else None

    async def save(self, record: JournalRecord) -> None:
        end = now() + (self.seconds.pop(0) if self.seconds else 0.0)
        while now() < end:
            try:
                await asyncio.sleep(end - now())
            except asyncio.CancelledError:
                if not self.stubborn:
                    raise
        self.saved.append(record)


class FailingJournal(SlowJournal):
    """Fails while it is told to, in the given way."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error: Exception | None = error
        self.tries = 0

    async def save(self, record: JournalRecord) -> None:
        self.tries += 1
        if self.error is not None:
            raise self.error
        await super().save(record)


def chronicle_in(journal: Journal, *, allowed: bool = True) -> tuple[Chronicle, list[str]]:
    """A chronicle, and what it warns of."""
    warnings: list[str] = []
    chronicle = Chronicle(journal, FIRST, warnings.append)
    if allowed:
        chronicle.allow()
    return chronicle, warnings


def test_nothing_is_written_before_it_is_allowed() -> None:
    """The journal may tell of an earlier life, until that was read; the record is kept in memory."""

    async def main() -> None:
        journal = InMemoryJournal(Machine(journal="an earlier life"))
        chronicle, warnings = chronicle_in(journal, allowed=False)

        chronicle.note(job_id="7")
        assert not await chronicle.save(phase=Phase.CONFIGURING)

        assert journal.machine.journal == "an earlier life"
        assert (chronicle.record.job_id, chronicle.record.phase) == ("7", Phase.CONFIGURING)
        assert chronicle.dirty.is_set()

        chronicle.allow()
        assert journal.machine.journal == "an earlier life"
        assert await chronicle.save()

        assert await journal.load() == chronicle.record
        assert not chronicle.dirty.is_set()
        assert warnings == []

    run(main)


def test_a_note_is_written_with_the_next_save() -> None:
    """It changes the record at once, and says that there is something to write."""

    async def main() -> None:
        journal = InMemoryJournal(Machine())
        chronicle, _ = chronicle_in(journal)
        assert not chronicle.dirty.is_set()

        chronicle.note(job_id="7", phase=Phase.RUNNING)

        assert chronicle.dirty.is_set()
        assert chronicle.record.job_id == "7"
        assert await journal.load() is None
        assert await chronicle.save(run_id="8")
        assert await journal.load() == JournalRecord(
            instance_id="i-1", agent_version="1.0", phase=Phase.RUNNING, job_id="7", run_id="8"
        )
        assert not chronicle.dirty.is_set()

    run(main)


def test_what_is_noted_during_a_save_is_still_to_be_written() -> None:
    """The save wrote the record before it."""

    async def main() -> None:
        journal = SlowJournal(0.5)
        chronicle, _ = chronicle_in(journal)

        saving = asyncio.create_task(chronicle.save(job_id="7"))
        await asyncio.sleep(0.1)
        chronicle.note(run_id="8")
        assert await saving

        assert [record.run_id for record in journal.saved] == [None]
        assert chronicle.dirty.is_set()

    run(main)


@RELAXED
@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.1, 5.0]), max_size=12),
    st.lists(st.sampled_from([0.0, 0.05, 0.3, 2.0]), min_size=1, max_size=12),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_the_newest_wins(seconds: list[float], pauses: list[float], stubborn: bool, seed: int) -> None:  # noqa: FBT001
    """However slow the journal, and however many saves at once: an older record never replaces a newer."""

    async def main() -> None:
        journal = SlowJournal(*seconds, stubborn=stubborn)
        chronicle, _ = chronicle_in(journal)
        saves = []
        for number, pause in enumerate(pauses):
            saves.append(asyncio.create_task(chronicle.save(job_id=str(number))))
            await asyncio.sleep(pause)
        await asyncio.gather(*saves)
        await asyncio.sleep(100)

        written = [int(record.job_id or -1) for record in journal.saved]
        assert written == sorted(written)
        assert chronicle.dirty.is_set() or journal.saved[-1] == chronicle.record
        journal.seconds.clear()
        assert await chronicle.save()
        assert journal.saved[-1] == chronicle.record
        assert not chronicle.dirty.is_set()

    run(main, seed=seed)


@pytest.mark.parametrize("error", [JournalUnavailableError("the disk is full"), OSError("no such device")])
def test_a_failing_journal_is_warned_of_once(error: Exception) -> None:
    """Whatever it raises, nothing is raised; what could not be written stays to be written."""

    async def main() -> None:
        journal = FailingJournal(error)
        chronicle, warnings = chronicle_in(journal)

        for number in range(5):
            assert not await chronicle.save(job_id=str(number))
            assert chronicle.dirty.is_set()
        assert journal.tries == 5
        assert warnings == [f"the journal is not up to date: {error}"]

        journal.error = None
        assert await chronicle.save()
        assert [record.job_id for record in journal.saved] == ["4"]
        assert not chronicle.dirty.is_set()

        journal.error = error
        assert not await chronicle.save()
        assert len(warnings) == 2

    run(main)


async def seconds_of_saves(journal: SlowJournal, count: int) -> Sequence[float]:
    """How long each of some saves takes."""
    chronicle, warnings = chronicle_in(journal)
    taken = []
    for number in range(count):
        begun = now()
        saved = await chronicle.save(job_id=str(number))
        taken.append(round(now() - begun, 6))
        assert not saved
        assert chronicle.dirty.is_set()
    assert len(warnings) == 1
    return taken


def test_a_hanging_journal_costs_its_bound() -> None:
    """Three seconds, and less while it goes on: a life has some twenty saves."""
    assert run(lambda: seconds_of_saves(SlowJournal(*[FOR_EVER] * 4), 4)) == [3.0, 1.0, 1.0, 1.0]


def test_a_stubborn_journal_costs_its_bound() -> None:
    """One that goes on with a cancelled save is left behind; the ones after do not queue up behind it."""
    journal = SlowJournal(50.0, stubborn=True)

    assert run(lambda: seconds_of_saves(journal, 4)) == [5.0, 1.0, 1.0, 1.0]
    assert len(journal.saved) == 1


def test_a_journal_that_answers_again_has_its_time_again() -> None:
    """Less patience is for a journal that failed last."""

    async def main() -> None:
        journal = SlowJournal(FOR_EVER, 0.05, 0.9)
        chronicle, warnings = chronicle_in(journal)

        assert [await chronicle.save(job_id=job_id) for job_id in "123"] == [False, True, True]
        assert [record.job_id for record in journal.saved] == ["2", "3"]
        assert len(warnings) == 1

    run(main)

# ruff: noqa: S101 - a suite speaks in asserts
"""What any Journal promises."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from attrs import evolve, fields

from agent_core.errors import JournalDamagedError, JournalUnavailableError
from agent_core.model import (
    JobResult,
    JournalRecord,
    ProcessId,
    Status,
    StatusMessage,
    StopReason,
    StopRequest,
)
from agent_core.phases import Phase
from agent_core.ports import Journal
from agent_core.testing.contracts.contract import (
    Contract,
    cancel_at_any_step,
    error_of,
    eventually,
    impossible,
    on_loop,
)

__all__ = ["JournalContract"]

_FIRST: Final = JournalRecord(instance_id="i-0123456789abcdef0", agent_version="0.1.0", phase=Phase.BOOTING)
_FULL: Final = JournalRecord(
    instance_id="i-0123456789abcdef0",
    agent_version="0.1.0",
    phase=Phase.REPORTING,
    agent=ProcessId(4711, 123.45),
    booted_at=datetime(2025, 11, 25, 9, 59, 30, 250000, tzinfo=UTC),
    job_id="67890",
    run_id="12345",
    repo="Shavakan/my-repo",
    queue_url="https://sqs.invalid/123456789012/termination",
    jobs_run=("", "12", "67890"),
    installed=True,
    runner=(ProcessId(4712, 130.0), ProcessId(4713, 131.07)),
    runner_logs_bucket="my-runner-logs",
    runner_logs_prefix="here/",
    runner_version="2.336.0",
    started_at=datetime(2025, 11, 25, 10, 0, tzinfo=UTC),
    job_name='two\nlines, \x00, \u2028, \U0001f40d, "quotes" and \\',
    job_result=JobResult.CANCELED,
    completed_at=datetime(2025, 11, 25, 10, 2, 3, tzinfo=UTC),
    stop=StopRequest(
        StopReason.INTERRUPTED, "a spot notice", by="spot", deadline=datetime(2025, 11, 25, 10, 4, tzinfo=UTC)
    ),
    final=StatusMessage(
        instance_id="i-0123456789abcdef0",
        job_id="67890",
        status=Status.INTERRUPTED,
        message_id="m-final",
        exit_code=0,
        duration_seconds=123,
        started_at=datetime(2025, 11, 25, 10, 0, tzinfo=UTC),
        job_ran=True,
        stop_reason=StopReason.INTERRUPTED,
        bootstrap_total_seconds=15.75,
    ),
    confirmed=("m-started", "m-final"),
    terminated=True,
)
_JUNK: Final = (
    b"",
    b"\n",
    b"\0" * 4096,
    bytes(range(256)),
    b"null",
    b"5",
    b"[]",
    b"{}",
    b'"a text"',
    b"not JSON",
    b"[" * 100_000,
)


class JournalContract(Contract, ABC):
    """Holds a Journal to its promises."""

    @abstractmethod
    def make(self) -> Journal:
        """The adapter under test, and at first empty; called again in the same test, a successor's."""

    @abstractmethod
    def stored(self) -> bytes:
        """The record as it is stored."""

    @abstractmethod
    def store(self, content: bytes) -> None:
        """Makes this what is stored."""

    @abstractmethod
    def break_(self) -> None:
        """From here on nothing can be written, until `mend`."""

    @abstractmethod
    def mend(self) -> None:
        """It can be written again."""

    def in_other_versions(self, stored: bytes) -> Sequence[bytes]:
        """What other versions of the format would have stored, or one that was made up."""
        version = b'"version": 1'
        if version not in stored:
            raise impossible("this journal has no version where JSON would have it")
        others = (b'"version": 2', b'"version": "1"', b'"version": null', b'"verson": 1')
        return [stored.replace(version, other, 1) for other in others]

    def hide(self) -> None:
        """From here on what is stored cannot be read, though it is there."""
        raise impossible("what this journal stores can always be read")

    # Kept

    @on_loop
    async def test_there_is_none_at_first(self) -> None:
        """None is no error, and no empty record."""
        journal = self.make()

        assert await journal.load() is None
        assert await journal.load() is None

    @on_loop
    async def test_a_record_is_kept(self) -> None:
        """Every field of it; the one who wrote it and a successor load the same."""
        assert [f.name for f in fields(JournalRecord) if getattr(_FULL, f.name) == f.default] == []
        journal = self.make()

        for record in (_FIRST, _FULL):
            await journal.save(record)

            assert await journal.load() == record
            assert await self.make().load() == record

    @on_loop
    async def test_a_record_replaces_the_one_before(self) -> None:
        """Nothing of a longer record shines through a shorter one."""
        journal = self.make()
        for record in (_FULL, _FIRST, _FULL, evolve(_FULL, terminated=False)):
            await journal.save(record)

            assert await self.make().load() == record

    @on_loop
    async def test_a_failing_save_keeps_the_record_before(self) -> None:
        """All or nothing; and once it can be written again, it is."""
        journal = self.make()
        await journal.save(_FULL)
        self.break_()

        await error_of(JournalUnavailableError, journal.save(_FIRST))

        assert await journal.load() == _FULL
        assert await self.make().load() == _FULL
        self.mend()
        await journal.save(_FIRST)
        assert await self.make().load() == _FIRST

    @on_loop
    async def test_a_failing_first_save_leaves_none(self) -> None:
        """There is no half of a first record either."""
        journal = self.make()
        self.break_()

        await error_of(JournalUnavailableError, journal.save(_FULL))

        assert await self.make().load() is None

    # Damaged

    @on_loop
    async def test_a_record_cut_off_anywhere_is_damaged(self) -> None:
        """At whatever byte; it is neither none nor another record."""
        journal = self.make()
        await journal.save(_FULL)
        whole = self.stored()

        for size in range(len(whole.rstrip())):
            self.store(whole[:size])
            await error_of(JournalDamagedError, journal.load())

        self.store(whole)
        assert await journal.load() == _FULL

    @on_loop
    async def test_what_is_no_record_is_damaged(self) -> None:
        """Whatever else stands there."""
        journal = self.make()

        for junk in _JUNK:
            self.store(junk)
            await error_of(JournalDamagedError, journal.load())

    @on_loop
    async def test_another_version_is_damaged(self) -> None:
        """A record that another version of the format wrote is not guessed at."""
        journal = self.make()
        await journal.save(_FULL)

        for other in self.in_other_versions(self.stored()):
            self.store(other)
            await error_of(JournalDamagedError, journal.load())

    @on_loop
    async def test_a_value_that_cannot_be_is_damaged(self) -> None:
        """A record whose fields do not add up is not taken for one."""
        journal = self.make()
        await journal.save(_FULL)
        whole = self.stored()

        for old, new in ((b"reporting", b"reposting"), (b"2025-11-25T10:00", b"2025-99-25T10:00")):
            if old not in whole:
                raise impossible("this journal stores values in a form of its own")
            self.store(whole.replace(old, new))
            await error_of(JournalDamagedError, journal.load())

    @on_loop
    async def test_a_damaged_record_can_be_replaced(self) -> None:
        """A save needs nothing of what was there."""
        journal = self.make()
        self.store(b"not JSON")
        await error_of(JournalDamagedError, journal.load())

        await journal.save(_FULL)

        assert await journal.load() == _FULL

    @on_loop
    async def test_what_cannot_be_read_is_unavailable(self) -> None:
        """It is neither none, which would mean a first life, nor damaged."""
        journal = self.make()
        await journal.save(_FULL)
        self.hide()

        await error_of(JournalUnavailableError, journal.load())

    # Cancelled

    @on_loop
    async def test_can_be_cancelled(self) -> None:
        """What is stored is one of the records, whole; and it can be loaded and saved as before."""
        journal = self.make()
        await journal.save(_FIRST)

        await cancel_at_any_step(lambda: journal.save(_FULL))
        assert await self.make().load() in (_FIRST, _FULL)
        await cancel_at_any_step(journal.load)
        last = evolve(_FULL, terminated=False)
        await eventually(JournalUnavailableError, lambda: journal.save(last))

        assert await eventually(JournalUnavailableError, journal.load) == last
        assert await self.make().load() == last

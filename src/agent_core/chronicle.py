"""Keeps the journal up to date, and never lets it hold up the life that it tells of."""

import asyncio
from collections.abc import Callable
from typing import Any

from attrs import evolve

from agent_core.deadline import within
from agent_core.model import JournalRecord
from agent_core.policy import JOURNAL_AGAIN_SECONDS, JOURNAL_SECONDS
from agent_core.ports import Journal

__all__ = ["Chronicle"]


class Chronicle:
    """The record of this life, in memory at once and in the journal soon.

    Nothing is written before `allow`: until the journal was read, it may tell of an earlier life.
    A journal that does not answer in time is asked again at the next change, with less patience.
    """

    def __init__(self, journal: Journal, record: JournalRecord, warn: Callable[[str], None]) -> None:
        self.record = record
        self.dirty = asyncio.Event()
        self._journal, self._warn = journal, warn
        self._allowed = False
        self._failing = False
        self._saving = asyncio.Lock()

    def allow(self) -> None:
        """From here on the journal is this life's own."""
        self._allowed = True

    def note(self, **changes: Any) -> None:
        """Changes the record; `save` writes it."""
        self.record = evolve(self.record, **changes)
        self.dirty.set()

    async def save(self, **changes: Any) -> bool:
        """Changes the record and writes it, within a bound; whether the journal has it."""
        self.note(**changes)
        if not self._allowed:
            return False
        patience = JOURNAL_AGAIN_SECONDS if self._failing else JOURNAL_SECONDS
        try:
            await within(patience, "the journal", self._write())
        except Exception as exc:  # noqa: BLE001 - whatever is wrong with the journal, the life goes on
            if not self._failing:
                self._warn(f"the journal is not up to date: {exc}")
            self._failing = True
            self.dirty.set()
        else:
            self._failing = False
        return not self._failing

    async def _write(self) -> None:
        # One at a time, and always the newest: an older record never overwrites a newer one.
        async with self._saving:
            self.dirty.clear()
            await self._journal.save(self.record)

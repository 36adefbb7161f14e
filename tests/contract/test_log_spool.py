"""The log spools keep the promises of their port."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_adapters.memory import InMemoryLogSpool
from agent_adapters.state import FileLogSpool
from agent_core.errors import SpoolError
from agent_core.model import LogEvent
from agent_core.testing.contracts import LogSpoolContract, Pop, Push

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
STEPS = st.lists(
    st.builds(Push, st.lists(TEXTS, max_size=5).map(tuple)) | st.builds(Pop, st.integers(0, 200))
)
EXPLORE = settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class TestInMemoryLogSpool(LogSpoolContract):
    def make(self, max_bytes: int) -> InMemoryLogSpool:
        return InMemoryLogSpool(max_bytes)

    @EXPLORE
    @given(STEPS)
    def test_any_steps_are_a_queues(self, steps: list[Push | Pop]) -> None:
        """What comes out is what a plain queue gives."""
        self.obey(steps)


class TestFileLogSpool(LogSpoolContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> Iterator[None]:
        self.path = tmp_path / "state" / "spool.jsonl"
        self.made: list[FileLogSpool] = []
        yield
        for spool in self.made:
            spool.close()
        assert list(tmp_path.rglob("spool*")) == []

    def make(self, max_bytes: int) -> FileLogSpool:
        self.made.append(FileLogSpool(self.path.with_name(f"spool-{len(self.made)}"), max_bytes))
        return self.made[-1]

    @EXPLORE
    @given(STEPS)
    def test_any_steps_are_a_queues(self, steps: list[Push | Pop]) -> None:
        """What comes out is what a plain queue gives."""
        self.obey(steps)

    def test_the_file_is_private(self) -> None:
        """What a job prints is nobody else's business."""
        spool = self.make(1000)
        spool.push([LogEvent(0, "line")])

        (file,) = self.path.parent.iterdir()

        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_an_earlier_life_is_forgotten(self) -> None:
        """What it left in the file is not this life's."""
        earlier, later = FileLogSpool(self.path), FileLogSpool(self.path)
        self.made += [earlier, later]
        earlier.push([LogEvent(0, "earlier")])

        later.push([LogEvent(1, "later")])

        assert later.pop(1000) == [LogEvent(1, "later")]

    def test_a_disk_that_fills_up_takes_none_of_the_events(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was written of them before it was full does not come out, nor spoil what comes after."""
        spool = self.make(10_000)
        spool.push([LogEvent(0, "before")])
        write, room = os.pwrite, [20]

        def fills_up(descriptor: int, data: memoryview, at: int) -> int:
            size = min(len(data), room[0])
            room[0] -= size
            if size == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(descriptor, data[:size], at)

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", fills_up)
            with pytest.raises(SpoolError):
                spool.push([LogEvent(1, "none of"), LogEvent(1, "these")])
        spool.push([LogEvent(2, "after")])

        assert spool.pop(1000) == [LogEvent(0, "before"), LogEvent(2, "after")]

    def test_a_damaged_file_is_given_up(self) -> None:
        """What is lost is lost at once, and what comes after is not."""
        spool = self.make(10_000)
        spool.push([LogEvent(0, "lost"), LogEvent(0, "too")])
        (file,) = self.path.parent.iterdir()
        file.write_bytes(b"\0" * file.stat().st_size)

        with pytest.raises(SpoolError):
            spool.pop(1000)

        assert (len(spool), spool.pop(1000)) == (0, [])
        spool.push([LogEvent(1, "after")])
        assert spool.pop(1000) == [LogEvent(1, "after")]

    def test_a_file_that_is_gone_is_given_up(self) -> None:
        """As a damaged one is."""
        spool = self.make(10_000)
        spool.push([LogEvent(0, "lost")])
        (file,) = self.path.parent.iterdir()
        file.unlink()

        with pytest.raises(SpoolError):
            spool.pop(1000)

        spool.push([LogEvent(1, "after")])
        assert spool.pop(1000) == [LogEvent(1, "after")]

    def test_a_place_that_cannot_be_written_is_an_error(self) -> None:
        """The events are not taken."""
        self.path.parent.mkdir()
        self.path.mkdir()
        spool = FileLogSpool(self.path)

        with pytest.raises(SpoolError):
            spool.push([LogEvent(0, "line")])

        assert (len(spool), spool.pop(10)) == (0, [])
        self.path.rmdir()

"""The log spools keep the promises of their port."""

from __future__ import annotations

import resource
import shutil
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_adapters.memory import InMemoryLogSpool, Machine
from agent_adapters.spool import FileLogSpool
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
        self.machine = Machine()
        return InMemoryLogSpool(max_bytes, self.machine)

    def make_successor(self) -> InMemoryLogSpool:
        return InMemoryLogSpool(machine=self.machine)

    @EXPLORE
    @given(STEPS)
    def test_any_steps_are_a_queues(self, steps: list[Push | Pop]) -> None:
        """What comes out is what a plain queue gives."""
        self.obey(steps)


class TestFileLogSpool(LogSpoolContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "state" / "spool"

    def make(self, max_bytes: int) -> FileLogSpool:
        shutil.rmtree(self.folder, ignore_errors=True)
        return FileLogSpool(self.folder, max_bytes)

    def make_successor(self) -> FileLogSpool:
        return FileLogSpool(self.folder)

    @property
    def files(self) -> list[Path]:
        """The oldest first."""
        return sorted(self.folder.iterdir())

    @EXPLORE
    @given(STEPS)
    def test_any_steps_are_a_queues(self, steps: list[Push | Pop]) -> None:
        """What comes out is what a plain queue gives."""
        self.obey(steps)

    def test_the_files_are_private(self) -> None:
        """What a job prints is nobody else's business."""
        self.make(1000).push([LogEvent(0, "line")])

        (file,) = self.files

        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(self.folder.stat().st_mode) == 0o700

    def test_what_is_forgotten_leaves_the_disk(self) -> None:
        """A push's file goes with the last of its events: until then a crash repeats it."""
        spool = self.make(1000)
        for start in (0, 2):
            spool.push([LogEvent(start, "one"), LogEvent(start + 1, "two")])

        left = []
        for _ in range(4):
            spool.pop(1)
            left.append(len(self.files))
        for _ in range(4):
            spool.forget(1)
            left.append(len(self.files))

        assert left == [2, 2, 2, 2, 2, 1, 1, 0]

    def test_a_disk_that_fills_up_takes_none_of_the_events(self) -> None:
        """What was written of them before it was full is nowhere, nor does it spoil what comes after."""
        spool = self.make(100_000)
        spool.push([LogEvent(0, "before")])
        before = self.files
        with files_of_at_most(5_000), pytest.raises(SpoolError):
            spool.push([LogEvent(1, "x" * 10_000), LogEvent(1, "these")])
        assert self.files == before
        spool.push([LogEvent(2, "after")])

        assert len(spool) == 2
        assert spool.pop(1000) == [LogEvent(0, "before"), LogEvent(2, "after")]

    @pytest.mark.parametrize("successor", [True, False])
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"[[0, 0], [",
            b"\0" * 30,
            b"[" * 100_000,
            b'[[0], ["of two"]]',
            b'[[0, 0], ["one"]]',
            b'[[0, "0"], ["no", "time"]]',
            b'[[0, 0], ["no text", 0]]',
            b'[[0, 0], ["none to be sent", "\\ud800"]]',
            b"[0, 0]",
            b"{}",
        ],
    )
    def test_a_damaged_file_is_given_up(self, content: bytes, *, successor: bool) -> None:
        """Its events are lost and counted; those before and after are not."""
        spool = self.spool_of_three()
        self.files[1].write_bytes(content)
        if successor:
            spool = self.make_successor()
            assert spool.recover() == 4

        self.assert_second_is_lost(spool)

    def test_a_file_that_is_gone_is_given_up(self) -> None:
        """As a damaged one is."""
        spool = self.spool_of_three()
        self.files[1].unlink()

        self.assert_second_is_lost(spool)

    def spool_of_three(self) -> FileLogSpool:
        """Three files; the second one has two events."""
        spool = self.make(10_000)
        for texts in (["before"], ["lost", "too"], ["after"]):
            spool.push([LogEvent(0, text) for text in texts])
        return spool

    def assert_second_is_lost(self, spool: FileLogSpool) -> None:
        assert len(spool) == 4
        assert (spool.pop(1000), len(spool)) == ([LogEvent(0, "before")], 3)
        with pytest.raises(SpoolError):
            spool.pop(1000)
        assert (len(spool), spool.pop(1000), len(spool)) == (1, [LogEvent(0, "after")], 0)
        spool.forget(2)
        assert self.files == []

    def test_foreign_files_are_left_alone(self) -> None:
        """Whatever lies there, whatever its name: no log lines, not removed, and not in the way."""
        self.folder.mkdir(parents=True)
        outside = self.folder.with_name("outside")
        outside.write_text('[[0], ["foreign"]]')
        names = ("1-1.json", "notes.txt", "000000000001-0.json", "000000000001-1.json.old")
        for name in names:
            self.folder.joinpath(name).write_text('[[0], ["foreign"]]')
        self.folder.joinpath("000000000002-1.json").symlink_to(outside)
        self.folder.joinpath("000000000003-1.json").mkdir()
        foreign = self.files
        spool = self.make_successor()

        assert spool.recover() == 0
        spool.push([LogEvent(1, "own")])
        assert len(self.files) == len(foreign) + 1
        successor = self.make_successor()
        assert (successor.recover(), successor.pop(1000)) == (1, [LogEvent(1, "own")])
        successor.clear()
        assert self.files == foreign
        assert outside.read_text() == '[[0], ["foreign"]]'

    def test_order_is_that_of_the_numbers(self) -> None:
        """Also where a folder lists them otherwise, and there are more than a few."""
        spool = self.make(2**20)
        events = [LogEvent(number, f"line {number}") for number in range(1200)]
        for event in events:
            spool.push([event])
        successor = self.make_successor()

        assert (successor.recover(), successor.pop(2**20)) == (1200, events)

    def test_a_place_that_cannot_be_written_is_an_error(self) -> None:
        """The events are not taken; nor is there anything to recover, or to clear."""
        self.folder.parent.mkdir()
        self.folder.touch()
        spool = FileLogSpool(self.folder)

        for call in (lambda: spool.push([LogEvent(0, "line")]), spool.recover, spool.clear):
            with pytest.raises(SpoolError):
                call()

        assert (len(spool), spool.pop(10)) == (0, [])


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Meanwhile, this process can make no file larger: as on a full disk, a write breaks off half way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

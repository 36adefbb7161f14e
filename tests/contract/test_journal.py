"""The journals keep the promises of their port."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve

from agent_adapters.memory import InMemoryJournal, Machine
from agent_adapters.state import FileJournal
from agent_core.errors import JournalDamagedError, JournalUnavailableError
from agent_core.model import JournalRecord
from agent_core.phases import Phase
from agent_core.testing import simulation
from agent_core.testing.contracts import JournalContract

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

RECORD = JournalRecord(instance_id="i-1", agent_version="0.1.0", phase=Phase.RUNNING, job_id="67890")


class TestInMemoryJournal(JournalContract):
    def setup_method(self) -> None:
        self.machine = Machine()
        self.made: list[InMemoryJournal] = []

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        return simulation.run(lambda: main)

    def make(self) -> InMemoryJournal:
        self.made.append(InMemoryJournal(self.machine))
        return self.made[-1]

    def stored(self) -> bytes:
        assert self.machine.journal is not None
        return self.machine.journal.encode()

    def store(self, content: bytes) -> None:
        self.machine.journal = content.decode("utf-8", "replace")

    def break_(self) -> None:
        for journal in self.made:
            journal.full = True

    def mend(self) -> None:
        for journal in self.made:
            journal.full = False


class TestFileJournal(JournalContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path, unprivileged: Callable[[], None]) -> None:
        self.path = tmp_path / "state" / "journal.json"
        self.drop_privileges = unprivileged

    def make(self) -> FileJournal:
        return FileJournal(self.path)

    def stored(self) -> bytes:
        return self.path.read_bytes()

    def store(self, content: bytes) -> None:
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_bytes(content)

    def break_(self) -> None:
        """A folder is in the way of the new file."""
        self.new.mkdir(parents=True)

    def mend(self) -> None:
        self.new.rmdir()

    def hide(self) -> None:
        self.path.chmod(0)
        self.drop_privileges()

    @property
    def new(self) -> Path:
        return self.path.with_name("journal.json.new")


# Files only


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.json"


def save(path: Path, record: JournalRecord = RECORD) -> None:
    asyncio.run(FileJournal(path).save(record))


def load(path: Path) -> JournalRecord | None:
    return asyncio.run(FileJournal(path).load())


def test_the_file_is_private(path: Path) -> None:
    """Mode 0600, whatever the umask; beside it is its spare, and nothing else."""
    before = os.umask(0)
    try:
        for _ in range(3):
            save(path)
    finally:
        os.umask(before)

    files = sorted(path.parent.iterdir())
    assert files == [path, path.with_name("journal.json.new")]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_full_disk_keeps_taking_records(path: Path) -> None:
    """Each is written where the one before the last was: not a byte of room is needed."""
    for phase in Phase:
        save(path, evolve(RECORD, phase=phase))
    room = room_of(path.parent)

    for phase in Phase:
        save(path, evolve(RECORD, phase=phase))
        assert load(path) == evolve(RECORD, phase=phase)
        assert room_of(path.parent) == room


def room_of(folder: Path) -> set[tuple[int, int]]:
    """Each file's inode, and how many blocks of the disk it has."""
    return {(file.stat().st_ino, file.stat().st_blocks) for file in folder.iterdir()}


def test_another_process_reads_it(path: Path) -> None:
    """A successor is a process that has nothing but the file."""
    save(path)
    script = (
        "import asyncio, sys; from pathlib import Path; from agent_adapters.state import FileJournal; "
        "record = asyncio.run(FileJournal(Path(sys.argv[1])).load()); print(record.phase, record.job_id)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    told = subprocess.run(
        [sys.executable, "-c", script, path], env=environment, capture_output=True, check=True
    )

    assert told.stdout.decode().split() == ["running", "67890"]


def test_a_disk_that_fills_up_keeps_the_record(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the new record is on the disk, where nobody reads it."""
    save(path)
    write, halves = os.write, list[int]()

    def fills_up(descriptor: int, data: memoryview) -> int:
        if halves:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        halves.append(write(descriptor, data[: len(data) // 2]))
        return halves[0]

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fills_up)
        with pytest.raises(JournalUnavailableError, match="No space left"):
            save(path, JournalRecord(instance_id="i-2", agent_version="0.1.0", phase=Phase.BOOTING))

    assert load(path) == RECORD
    save(path)


def test_what_a_crash_left_half_written_is_not_read(path: Path) -> None:
    """Neither alone nor beside a record; and the next save writes over it."""
    new = path.with_name("journal.json.new")
    new.write_bytes(b'{"version": 1, "inst')
    assert load(path) is None

    save(path)
    new.write_bytes(b'{"version": 1, "inst' * 1000)

    assert load(path) == RECORD
    save(path)
    assert load(path) == RECORD


@pytest.mark.parametrize("name", ["journal.json", "journal.json.new", "journal.json.old"])
def test_a_pipe_holds_up_no_record(path: Path, name: str) -> None:
    """Wherever it is, and as often as the journal is written."""
    os.mkfifo(path.with_name(name))
    for phase in Phase:
        record = evolve(RECORD, phase=phase)
        asyncio.run(asyncio.wait_for(FileJournal(path).save(record), 10))
        assert load(path) == record


def test_a_record_is_on_the_disk_before_it_counts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synced, then renamed, then its folder is synced: no crash finds a name without content."""
    save(path)
    happened: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        happened.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def note_replace(self: Path, target: Path) -> Path:
        happened.append(f"rename {self.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)

    save(path)

    assert happened == [
        "sync journal.json.new",
        "rename journal.json.new",
        "rename journal.json.old",
        f"sync {path.parent.name}",
    ]


@pytest.mark.parametrize("calls", range(1, 12))
def test_a_crash_at_any_step(path: Path, calls: int) -> None:
    """There is a whole record at any moment, the old one or the new one, and the next save goes well."""
    old, new = evolve(RECORD, phase=Phase.LISTENING), evolve(RECORD, phase=Phase.REPORTING)
    for _ in range(2):
        save(path, old)
    script = f"""
import asyncio, os, sys
from pathlib import Path
from attrs import evolve
from agent_adapters.state import FileJournal
from agent_core.phases import Phase
left = {calls}
def audit(event, args):
    global left
    if event in ("open", "os.rename", "os.link", "os.remove", "os.truncate") and "journal" in str(args[0]):
        left -= 1
        if not left:
            os._exit(9)
journal = FileJournal(Path({str(path)!r}))
record = evolve(asyncio.run(journal.load()), phase=Phase.REPORTING)
sys.addaudithook(audit)
asyncio.run(journal.save(record))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=False)

    assert load(path) in (old, new)
    save(path, new)
    assert load(path) == new


@pytest.mark.parametrize("what", ["the folder", "the file"])
def test_what_may_not_be_touched_is_unavailable(
    path: Path, unprivileged: Callable[[], None], what: str
) -> None:
    """It is neither none nor damaged."""
    save(path)
    (path.parent if what == "the folder" else path).chmod(0)
    unprivileged()

    with pytest.raises(JournalUnavailableError):
        load(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "journal: not a JSON object"),
        ('{"version": 2}', "journal: version 2, not 1"),
        ('{"version": 1, "instance_id": "i-1", "agent_version": "1"}', r"journal\.phase: missing"),
    ],
)
def test_damage_is_named(path: Path, content: str, reason: str) -> None:
    """Which file it is, and what is wrong with it."""
    path.write_text(content, "utf-8")
    with pytest.raises(JournalDamagedError, match=f"{re.escape(str(path))}: .*{reason}"):
        load(path)

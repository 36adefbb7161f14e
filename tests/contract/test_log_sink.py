"""The log sinks keep the promises of their port."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from agent_adapters.filesystem import FileLogSink
from agent_adapters.memory import InMemoryLogSink
from agent_core.errors import LogSinkDeniedError
from agent_core.model import LogEvent
from agent_core.testing import simulation
from agent_core.testing.contracts import LogSinkContract

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path


class TestInMemoryLogSink(LogSinkContract):
    def setup_method(self) -> None:
        self.sink = InMemoryLogSink(now=self.now)

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        return simulation.run(lambda: main)

    def make(self) -> InMemoryLogSink:
        return self.sink

    def delivered(self, stream: str) -> Sequence[str]:
        return self.sink.lines(stream)


class TestFileLogSink(LogSinkContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path, unprivileged: Callable[[], None]) -> None:
        self.folder = tmp_path / "state" / "logs"
        self.drop_privileges = unprivileged

    def make(self) -> FileLogSink:
        return FileLogSink(self.folder)

    def delivered(self, stream: str) -> Sequence[str]:
        path = self.make().path(stream)
        return path.read_bytes().decode().split("\n")[:-1] if path.exists() else []

    def deny(self) -> None:
        self.folder.mkdir(parents=True)
        self.folder.chmod(0o500)
        self.drop_privileges()

    def break_(self) -> None:
        path = self.make().path("i-0123456789abcdef0/67890")
        path.parent.mkdir(parents=True)
        path.symlink_to("/dev/full")


# One of them only


def test_memory_rejects_what_is_too_old_or_too_new() -> None:
    """14 days and 2 hours, as CloudWatch Logs does: event by event, and it says how many."""
    now = datetime(2025, 11, 25, 10, tzinfo=UTC)
    ages = [timedelta(days=14, seconds=1), timedelta(days=14), timedelta(days=13, hours=1)]
    newer = [timedelta(), -timedelta(hours=2), -timedelta(hours=2, seconds=1)]
    sink = InMemoryLogSink(now=lambda: now)

    def event(age: timedelta) -> LogEvent:
        return LogEvent(int((now - age).timestamp() * 1000), str(age))

    async def put() -> tuple[int, int]:
        return (
            await sink.put("stream", [event(age) for age in ages]),
            await sink.put("stream", [event(age) for age in newer]),
        )

    assert simulation.run(put) == (1, 1)
    assert sink.lines("stream") == [str(age) for age in (*ages[1:], *newer[:2])]


@pytest.mark.parametrize("stream", ["../outside", "i-1/../../outside", "/outside"])
def test_a_file_outside_the_folder_is_denied(tmp_path: Path, stream: str) -> None:
    """A stream's name does not lead out of the folder."""
    stream = f"{tmp_path}{stream}" if stream.startswith("/") else stream
    sink = FileLogSink(tmp_path / "logs")

    with pytest.raises(LogSinkDeniedError):
        asyncio.run(sink.put(stream, [LogEvent(0, "not here")]))

    assert list(tmp_path.rglob("outside*")) == []


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_place_that_is_taken_is_denied(tmp_path: Path, what: str) -> None:
    """Where a file stands for the folder, or a folder for the file, trying again cannot help."""
    (tmp_path / "logs").mkdir()
    if what == "file":
        (tmp_path / "logs/i-1").touch()
    else:
        (tmp_path / "logs/i-1/1.log").mkdir(parents=True)

    with pytest.raises(LogSinkDeniedError):
        asyncio.run(FileLogSink(tmp_path / "logs").put("i-1/1", [LogEvent(0, "not here")]))

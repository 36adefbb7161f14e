"""The notifiers keep the promises of their port."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from agent_adapters.filesystem import FileNotifier
from agent_adapters.memory import InMemoryNotifier
from agent_adapters.wire import message_from_json, message_to_json
from agent_core.errors import NotifierDeniedError
from agent_core.model import Status, StatusMessage
from agent_core.testing import simulation
from agent_core.testing.contracts import NotifierContract

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from pathlib import Path

STARTED = StatusMessage(instance_id="i-1", job_id="1", status=Status.STARTED, message_id="m")


class TestInMemoryNotifier(NotifierContract):
    def setup_method(self) -> None:
        self.notifier = InMemoryNotifier()

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        return simulation.run(lambda: main)

    def make(self) -> InMemoryNotifier:
        return self.notifier

    def received(self) -> Sequence[Mapping[str, object]]:
        return [json.loads(message_to_json(message)) for message in self.notifier.received]

    def deny(self) -> None:
        self.notifier.queue_url = None


class TestFileNotifier(NotifierContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path, unprivileged: Callable[[], None]) -> None:
        self.path = tmp_path / "state" / "notifications.jsonl"
        self.drop_privileges = unprivileged

    def make(self) -> FileNotifier:
        return FileNotifier(self.path)

    def received(self) -> Sequence[Mapping[str, object]]:
        return [json.loads(line) for line in self.path.read_bytes().split(b"\n")[:-1]]

    def deny(self) -> None:
        self.path.parent.mkdir()
        self.path.touch(0o400)
        self.drop_privileges()

    def break_(self) -> None:
        self.path.parent.mkdir()
        self.path.symlink_to("/dev/full")


# One of them only


def test_memory_delivers_a_repeat_once() -> None:
    """As a FIFO queue does; what differs is no repeat."""
    notifier = InMemoryNotifier()
    other = StatusMessage(instance_id="i-1", job_id="1", status=Status.SUCCESS, message_id="n")

    async def send() -> None:
        for message in (STARTED, other, STARTED):
            await notifier.send(message, None)

    simulation.run(send)

    assert notifier.delivered == [STARTED, other]


def test_a_written_message_reads_back(tmp_path: Path) -> None:
    """What is read at the other end is the message that was sent."""
    path = tmp_path / "notifications.jsonl"

    asyncio.run(FileNotifier(path).send(STARTED, None))

    assert message_from_json(path.read_text("utf-8")) == STARTED


@pytest.mark.parametrize("what", ["a file for the folder", "a folder for the file"])
def test_a_place_that_is_taken_is_denied(tmp_path: Path, what: str) -> None:
    """Trying again cannot help."""
    path = tmp_path / "state" / "notifications.jsonl"
    if what == "a file for the folder":
        path.parent.touch()
    else:
        path.mkdir(parents=True)

    with pytest.raises(NotifierDeniedError):
        asyncio.run(FileNotifier(path).send(STARTED, None))

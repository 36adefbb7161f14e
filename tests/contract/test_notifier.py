"""The notifiers keep the promises of their port."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from agent_adapters.filesystem import FileNotifier
from agent_adapters.memory import InMemoryNotifier
from agent_adapters.wire import message_from_json, message_to_json
from agent_core.errors import MessageRefusedError, NotifierDeniedError, NotifierUnavailableError
from agent_core.model import Status, StatusMessage
from agent_core.testing import simulation
from agent_core.testing.contracts import NotifierContract
from support.cloud import cloud_container
from support.faults import Answer, Refuse, denied, throttled

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from pathlib import Path

    from agent_adapters.aws.notifier import SqsNotifier
    from support.aws import Aws
    from support.faults import Fault

pytestmark = pytest.mark.usefixtures("patient")

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

    def break_(self) -> None:
        self.notifier.error = NotifierUnavailableError("it does not answer")


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


class TestSqsNotifier(NotifierContract):
    fifo = False

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path, aws: Aws) -> None:
        self.aws, self.folder = aws, tmp_path
        self.own, self.other = aws.queue(fifo=self.fifo), aws.queue(fifo=self.fifo)

    def make(self) -> SqsNotifier:
        return cloud_container(self.folder, termination_queue_url=self.own).notifier()  # type: ignore[no-any-return]

    def received(self) -> Sequence[Mapping[str, object]]:
        return [*self.aws.messages(self.own), *self.aws.messages(self.other)]

    def queue_url(self) -> str:
        return self.other

    def deny(self) -> None:
        self.aws.faults.plan("sqs:SendMessage", denied("sqs"))

    def break_(self) -> None:
        self.aws.faults.plan("sqs:SendMessage", Answer(500, "InternalFailure"))


class TestFifoSqsNotifier(TestSqsNotifier):
    fifo = True


# One of them only


@pytest.fixture
def notifier(aws: Aws, tmp_path: Path) -> SqsNotifier:
    assert aws.url
    return cloud_container(tmp_path).notifier()  # type: ignore[no-any-return]


def test_a_fifo_queue_drops_repeats(aws: Aws, notifier: SqsNotifier) -> None:
    """By the message's ID; what differs is no repeat, and keeps its order."""
    queue_url = aws.queue(fifo=True)
    other = StatusMessage(instance_id="i-1", job_id="1", status=Status.SUCCESS, message_id="n")

    async def send() -> None:
        for message in (STARTED, other, STARTED):
            await notifier.send(message, queue_url)

    asyncio.run(send())

    assert [message["message_id"] for message in aws.delivered(queue_url)] == ["m", "n"]


def test_without_a_queue_nothing_is_sent(notifier: SqsNotifier) -> None:
    """The error says what to set."""
    with pytest.raises(NotifierDeniedError, match="RUNS_FLEET_TERMINATION_QUEUE_URL"):
        asyncio.run(notifier.send(STARTED, None))


def test_a_queue_that_does_not_exist_is_denied(aws: Aws, notifier: SqsNotifier) -> None:
    """Trying again cannot help."""
    with pytest.raises(NotifierDeniedError, match=r"NonExistentQueue|QueueDoesNotExist"):
        asyncio.run(notifier.send(STARTED, f"{aws.url}/123456789012/nowhere"))


@pytest.mark.parametrize("fault", [throttled("sqs"), Refuse(), Answer(503)])
def test_what_passes_is_unavailable(aws: Aws, notifier: SqsNotifier, fault: Fault) -> None:
    """The message is sent again."""
    queue_url = aws.queue()
    aws.faults.plan("sqs:SendMessage", fault, times=1)
    with pytest.raises(NotifierUnavailableError):
        asyncio.run(notifier.send(STARTED, queue_url))

    asyncio.run(notifier.send(STARTED, queue_url))

    assert len(aws.messages(queue_url)) == 1


def test_what_the_queue_refuses_is_refused(aws: Aws, notifier: SqsNotifier) -> None:
    """Sent again, it would be refused again."""
    aws.faults.plan("sqs:SendMessage", Answer(400, "InvalidMessageContents"))

    with pytest.raises(MessageRefusedError):
        asyncio.run(notifier.send(STARTED, aws.queue()))


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

"""Whoever answers for AWS (a proxy, a portal) with 200 and nonsense is not believed."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from agent_core.errors import (
    ConfigUnavailableError,
    LogSinkUnavailableError,
    NotifierDeniedError,
    NotifierUnavailableError,
    TerminatorUnavailableError,
)
from agent_core.model import LogEvent, Status, StatusMessage
from support.cloud import INSTANCE_ID, cloud_container
from support.faults import Reply, Request, wall_clock

if TYPE_CHECKING:
    from pathlib import Path

    from agent_app.container import Container
    from support.aws import Aws

pytestmark = pytest.mark.usefixtures("patient")

NONSENSE = [
    b"",
    b"<html>sign in</html>",
    b"[]",
    b"{}",
    b'"x"',
    b"5",
    b'{"Parameter": []}',
    b'{"Parameter": {"Value": 5}}',
]
MESSAGE = StatusMessage(instance_id=INSTANCE_ID, job_id="1", status=Status.SUCCESS, message_id="m")


class Stranger:
    """Answers every request in AWS's place."""

    def __init__(self, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
        self.body, self.content_type = b"", "text/html"
        monkeypatch.setattr(type(aws), "answer", self.answer)

    def answer(self, _request: Request) -> Reply:
        return Reply(200, self.body, {"Content-Type": self.content_type})


@pytest.fixture
def stranger(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Stranger:
    return Stranger(aws, monkeypatch)


@pytest.fixture
def container(aws: Aws, tmp_path: Path) -> Container:
    return cloud_container(
        tmp_path, log_group="/group", termination_queue_url=f"{aws.url}/123456789012/queue"
    )


@pytest.mark.parametrize("body", NONSENSE)
def test_no_port_believes_a_stranger(stranger: Stranger, container: Container, body: bytes) -> None:
    """Each is unavailable: tried again, and nothing counts as done."""
    stranger.body = body
    now_ms = int(wall_clock().timestamp() * 1000)

    with pytest.raises(ConfigUnavailableError):
        asyncio.run(container.config_source().fetch())
    with pytest.raises(LogSinkUnavailableError):
        asyncio.run(container.log_sink().put("i/1", [LogEvent(now_ms, "a line")]))
    with pytest.raises(NotifierUnavailableError):
        asyncio.run(container.notifier().send(MESSAGE, None))
    with pytest.raises(TerminatorUnavailableError):
        asyncio.run(container.terminator().terminate(INSTANCE_ID))


@pytest.mark.parametrize(
    ("info", "rejected"),
    [
        ({"tooOldLogEventEndIndex": 1000}, 3),
        ({"tooNewLogEventStartIndex": -5}, 3),
        ({"tooNewLogEventStartIndex": 1000}, 0),
        ({"tooOldLogEventEndIndex": -1}, 0),
        ({"tooOldLogEventEndIndex": 2, "tooNewLogEventStartIndex": 1}, 3),
    ],
)
def test_no_more_lines_are_rejected_than_there_were(
    stranger: Stranger, container: Container, info: dict[str, int], rejected: int
) -> None:
    """Whatever the indices are."""
    stranger.body = json.dumps({"rejectedLogEventsInfo": info}).encode()
    stranger.content_type = "application/x-amz-json-1.1"
    now_ms = int(wall_clock().timestamp() * 1000)

    events = [LogEvent(now_ms, "a line")] * 3
    assert asyncio.run(container.log_sink().put("i/1", events)) == rejected


def test_a_wrong_queue_of_the_config(aws: Aws, tmp_path: Path) -> None:
    """The fleet's own queue hears of it then."""
    own = aws.queue()
    notifier = cloud_container(tmp_path, termination_queue_url=own).notifier()

    asyncio.run(notifier.send(MESSAGE, f"{aws.url}/123456789012/gone"))

    assert [message["message_id"] for message in aws.messages(own)] == ["m"]


def test_a_wrong_queue_and_no_other(aws: Aws, tmp_path: Path) -> None:
    """The error shows no password that a URL may have."""
    url = f"{aws.url}/123456789012/gone".replace("http://", "http://user:planted@")

    with pytest.raises(NotifierDeniedError) as caught:
        asyncio.run(cloud_container(tmp_path).notifier().send(MESSAGE, url))

    assert "planted" not in str(caught.value).split(":", 1)[0]

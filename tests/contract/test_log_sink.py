"""The log sinks keep the promises of their port."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from agent_adapters.filesystem import FileLogSink
from agent_adapters.memory import InMemoryLogSink
from agent_core.errors import LogSinkDeniedError, LogSinkUnavailableError
from agent_core.model import LogEvent
from agent_core.testing import simulation
from agent_core.testing.contracts import LogSinkContract
from support.cloud import cloud_container
from support.faults import Answer, Refuse, Truncate, denied, throttled, wall_clock

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from agent_adapters.aws.log_sink import CloudWatchLogSink
    from support.aws import Aws
    from support.faults import Fault

pytestmark = pytest.mark.usefixtures("patient")

GROUP = "/runs-fleet/runners"
STREAM = "i-0123456789abcdef0/67890"


class TestInMemoryLogSink(LogSinkContract):
    def setup_method(self) -> None:
        self.sink = InMemoryLogSink(now=self.now)

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        return simulation.run(lambda: main)

    def make(self) -> InMemoryLogSink:
        return self.sink

    def delivered(self, stream: str) -> Sequence[str]:
        return self.sink.lines(stream)

    def deny(self) -> None:
        self.sink.error = LogSinkDeniedError("it may not be written to")

    def break_(self) -> None:
        self.sink.error = LogSinkUnavailableError("it does not answer")


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


class TestCloudWatchLogSink(LogSinkContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path, aws: Aws) -> None:
        self.aws, self.folder = aws, tmp_path
        aws.log_group(GROUP)

    def make(self) -> CloudWatchLogSink:
        return cloud_container(self.folder, log_group=GROUP).log_sink()  # type: ignore[no-any-return]

    def now(self) -> datetime:
        return wall_clock()

    def delivered(self, stream: str) -> Sequence[str]:
        return self.aws.log_lines(GROUP, stream)

    def deny(self) -> None:
        self.aws.faults.plan("logs:*", denied("logs"))

    def break_(self) -> None:
        self.aws.faults.plan("logs:*", Answer(500, "InternalFailure"))


# One of them only


@pytest.fixture
def sink(aws: Aws, tmp_path: Path) -> CloudWatchLogSink:
    assert aws.url
    return cloud_container(tmp_path, log_group=GROUP).log_sink()  # type: ignore[no-any-return]


def put(sink: CloudWatchLogSink, *texts: str) -> int:
    now_ms = int(wall_clock().timestamp() * 1000)
    return asyncio.run(sink.put(STREAM, [LogEvent(now_ms, text) for text in texts]))


def test_group_and_stream_are_made_once(aws: Aws, sink: CloudWatchLogSink) -> None:
    """What is missing is made, and then not asked for again."""
    put(sink, "one")
    put(sink, "two")

    assert aws.log_lines(GROUP, STREAM) == ["one", "two"]
    operations = [call.operation for call in aws.calls]
    assert operations.count("logs:CreateLogGroup") == 1
    assert operations.count("logs:PutLogEvents") == 2


def test_a_stream_that_is_removed_is_made_again(aws: Aws, sink: CloudWatchLogSink) -> None:
    """At the next try; the lines wait as long."""
    put(sink, "one")
    aws.client("logs").delete_log_stream(logGroupName=GROUP, logStreamName=STREAM)
    with pytest.raises(LogSinkUnavailableError):
        put(sink, "two")

    put(sink, "two")

    assert aws.log_lines(GROUP, STREAM)[-1] == "two"


def test_a_group_that_may_not_be_made_is_denied(aws: Aws, sink: CloudWatchLogSink) -> None:
    """The error names the group and the fix."""
    aws.faults.plan("logs:CreateLogGroup", denied("logs"))

    with pytest.raises(
        LogSinkDeniedError, match=f"create the log group {GROUP}, or allow logs:CreateLogGroup"
    ):
        put(sink, "one")


def test_a_stream_that_is_there_need_not_be_made(aws: Aws, sink: CloudWatchLogSink) -> None:
    """A role that may only put events is enough for it."""
    aws.log_group(GROUP)
    aws.faults.plan("logs:CreateLogStream", denied("logs"))
    with pytest.raises(LogSinkDeniedError, match="allow logs:CreateLogStream"):
        put(sink, "one")

    aws.client("logs").create_log_stream(logGroupName=GROUP, logStreamName=STREAM)
    put(sink, "two")

    assert aws.log_lines(GROUP, STREAM) == ["two"]


def test_cloudwatch_rejects_what_is_too_old_or_too_new(aws: Aws, sink: CloudWatchLogSink) -> None:
    """Event by event; the sink says how many."""
    now = wall_clock()

    def event(age: timedelta) -> LogEvent:
        return LogEvent(int((now - age).timestamp() * 1000), str(age))

    old = [timedelta(days=14, hours=1), timedelta(days=14, minutes=30), timedelta(days=13, hours=12)]
    new = [timedelta(), -timedelta(hours=3), -timedelta(hours=4)]

    assert asyncio.run(sink.put(STREAM, [event(age) for age in old])) == 2
    assert asyncio.run(sink.put(STREAM, [event(age) for age in new])) == 2
    assert aws.log_lines(GROUP, STREAM) == [str(old[2]), str(new[0])]


@pytest.mark.parametrize(
    "fault",
    [throttled("logs"), Refuse(), Truncate(10), Answer(503), Answer(400, "ExpiredTokenException")],
)
def test_what_passes_is_unavailable(aws: Aws, sink: CloudWatchLogSink, fault: Fault) -> None:
    """The lines are sent again; an answer that is cut off had its effect, so it may be taken for good."""
    put(sink, "before")
    aws.faults.plan("logs:PutLogEvents", fault, times=1)
    if isinstance(fault, Truncate):
        put(sink, "one")
    else:
        with pytest.raises(LogSinkUnavailableError):
            put(sink, "one")
        put(sink, "one")

    assert aws.log_lines(GROUP, STREAM) == ["before", "one"]


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

# ruff: noqa: S101 - a suite speaks in asserts
"""What any Notifier promises."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from typing import Final

from attrs import asdict, evolve, fields

from agent_core.errors import MessageRefusedError, NotifierDeniedError, NotifierUnavailableError
from agent_core.model import JobResult, LogUpload, Status, StatusMessage, StopReason
from agent_core.phases import Phase
from agent_core.ports import Notifier
from agent_core.testing.contracts.contract import (
    Contract,
    cancel_at_any_step,
    error_of,
    eventually,
    impossible,
    on_loop,
)

__all__ = ["NotifierContract"]

_LIMIT_BYTES: Final = 262_144
_ROOM_BYTES: Final = 2_000
"""More than a message has besides its error."""

_STARTED: Final = StatusMessage(
    instance_id="i-0123456789abcdef0", job_id="", status=Status.STARTED, message_id="m-started"
)
_FULL: Final = StatusMessage(
    instance_id="i-0123456789abcdef0",
    job_id="67890",
    status=Status.INTERRUPTED,
    message_id="m-final",
    exit_code=-1,
    duration_seconds=123,
    started_at=datetime(2025, 11, 25, 10, 0, 0, 123000, tzinfo=UTC),
    completed_at=datetime(2025, 11, 25, 11, 2, 3, tzinfo=timezone(timedelta(hours=1))),
    error='two\nlines, \x00 NUL, \u2028, \U0001f40d, "quotes" and \\',
    run_id="12345",
    repo="Shavakan/my-repo",
    job_result=JobResult.SUCCEEDED_WITH_ISSUES,
    job_name="build (3.11, x64)",
    job_ran=True,
    runner_exit_code=143,
    runner_version="2.336.0",
    interrupted_by="spot",
    interruption_deadline=datetime(2025, 11, 25, 10, 4, tzinfo=UTC),
    stop_reason=StopReason.INTERRUPTED,
    error_phase=Phase.RUNNING,
    log_upload=LogUpload.PARTIAL,
    log_lines_accepted=1000,
    log_lines_delivered=900,
    log_lines_rejected=60,
    log_lines_dropped=40,
    bootstrap_config_seconds=0.5,
    bootstrap_runner_seconds=12.25,
    bootstrap_register_seconds=3.0,
    bootstrap_total_seconds=15.75,
    agent_version="0.1.0",
)


def _expected(message: StatusMessage) -> dict[str, object]:
    """The message as the wire contract has it, with its timestamps read."""
    known = {key: value for key, value in asdict(message).items() if value is not None}
    return {key: value.value if isinstance(value, Enum) else value for key, value in known.items()}


def _read(document: Mapping[str, object]) -> dict[str, object]:
    return {
        key: datetime.fromisoformat(str(value)) if key.endswith(("_at", "_deadline")) else value
        for key, value in document.items()
    }


class NotifierContract(Contract, ABC):
    """Holds a Notifier to its promises."""

    @abstractmethod
    def make(self) -> Notifier:
        """The adapter under test; the queue is empty."""

    @abstractmethod
    def received(self) -> Sequence[Mapping[str, object]]:
        """The JSON objects that the queue has, repeats too, oldest first."""

    @abstractmethod
    def deny(self) -> None:
        """From here on the adapter may not send, or has nowhere to."""

    def break_(self) -> None:
        """From here on the queue does not answer."""
        raise impossible("this queue cannot fail")

    def queue_url(self) -> str:
        """The URL of a queue that the job's config may name, and whose messages `received` has too."""
        return "https://sqs.invalid/123456789012/termination"

    @on_loop
    async def test_a_message_arrives(self) -> None:
        """What is received says what was sent: every field, under its name, as the wire contract has it."""
        assert None not in [getattr(_FULL, field.name) for field in fields(StatusMessage)]
        notifier = self.make()

        await notifier.send(_FULL, None)

        assert [_read(document) for document in self.received()] == [_expected(_FULL)]

    @on_loop
    async def test_timestamps_have_an_offset(self) -> None:
        """They are RFC 3339, which a stranger can order without knowing where they were written."""
        notifier = self.make()

        await notifier.send(_FULL, None)

        (document,) = self.received()
        for key in ("started_at", "completed_at"):
            assert datetime.fromisoformat(str(document[key])).utcoffset() is not None
            assert "T" in str(document[key])

    @on_loop
    async def test_integers_stay_integers(self) -> None:
        """A consumer that is strict about types drops a message with `1.0` where an integer belongs."""
        notifier = self.make()
        integers = [field.name for field in fields(StatusMessage) if field.type == int | None]
        assert integers

        await notifier.send(_FULL, None)

        (document,) = self.received()
        assert {name: type(document[name]) for name in integers} == dict.fromkeys(integers, int)
        assert document["job_ran"] is True

    @on_loop
    async def test_what_is_not_known_is_left_out(self) -> None:
        """Neither null nor an empty string stands for it; what is empty, zero or false is not left out."""
        notifier = self.make()
        zeros = evolve(_STARTED, exit_code=0, duration_seconds=0, job_ran=False, bootstrap_total_seconds=0.0)

        await notifier.send(_STARTED, None)
        await notifier.send(zeros, None)

        assert list(self.received()) == [_expected(_STARTED), _expected(zeros)]
        assert set(self.received()[0]) == {"instance_id", "job_id", "status", "message_id"}
        assert set(self.received()[1]) >= {"exit_code", "duration_seconds", "job_ran"}

    @on_loop
    async def test_order_is_kept(self) -> None:
        """One after the other, they are received so."""
        notifier = self.make()
        messages = [evolve(_STARTED, message_id=f"m-{number}") for number in range(5)]

        for message in messages:
            await notifier.send(message, None)

        assert [document["message_id"] for document in self.received()] == [m.message_id for m in messages]

    @on_loop
    async def test_a_message_may_be_repeated(self) -> None:
        """Whoever does not know whether it arrived sends it again; a repeat is the same message."""
        notifier = self.make()

        await notifier.send(_FULL, None)
        await notifier.send(_FULL, None)

        received = [_read(document) for document in self.received()]
        assert received in ([_expected(_FULL)], [_expected(_FULL)] * 2)

    @on_loop
    async def test_a_queue_can_be_named(self) -> None:
        """A message goes to the queue that the job's config names."""
        notifier = self.make()

        await notifier.send(_STARTED, self.queue_url())

        assert [document["message_id"] for document in self.received()] == ["m-started"]

    # Limits

    @on_loop
    async def test_a_message_over_the_limit_is_refused(self) -> None:
        """It does not arrive, and what comes after it does."""
        notifier = self.make()

        await error_of(MessageRefusedError, notifier.send(evolve(_FULL, error="x" * _LIMIT_BYTES), None))
        await notifier.send(_STARTED, None)

        assert [document["message_id"] for document in self.received()] == ["m-started"]

    @on_loop
    async def test_a_large_message_arrives(self) -> None:
        """The limit is 262,144 bytes, and nothing less."""
        notifier = self.make()
        large = evolve(_FULL, error="x" * (_LIMIT_BYTES - _ROOM_BYTES))

        await notifier.send(large, None)

        assert [_read(document) for document in self.received()] == [_expected(large)]

    # Out of reach

    @on_loop
    async def test_what_may_not_be_sent_is_denied(self) -> None:
        """It is told from unavailable, which would be tried again."""
        notifier = self.make()
        self.deny()

        await error_of(NotifierDeniedError, notifier.send(_STARTED, None))

    @on_loop
    async def test_a_queue_that_does_not_answer_is_unavailable(self) -> None:
        """It is told from denied, which is final."""
        notifier = self.make()
        self.break_()

        await error_of(NotifierUnavailableError, notifier.send(_STARTED, None))

    # Cancelled

    @on_loop
    async def test_can_be_cancelled(self) -> None:
        """Whatever became of the cancelled ones, a message sent after them arrives, whole."""
        notifier = self.make()

        await cancel_at_any_step(lambda: notifier.send(_FULL, None))
        await eventually(NotifierUnavailableError, lambda: notifier.send(_STARTED, None))

        received = [_read(document) for document in self.received()]
        # A cancelled one may be under way for longer than this one takes.
        assert received.count(_expected(_STARTED)) == 1
        assert received.count(_expected(_FULL)) == len(received) - 1

# ruff: noqa: S101 - a suite speaks in asserts
"""What any DiagnosticsStore promises."""

import asyncio
import gzip
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Final

from agent_core.errors import DiagnosticsDeniedError, DiagnosticsUnavailableError
from agent_core.model import LogDestination, Uploaded
from agent_core.ports import DiagnosticsStore
from agent_core.testing.contracts.contract import (
    Contract,
    cancel_at_any_step,
    error_of,
    eventually,
    impossible,
    on_loop,
)

__all__ = ["DiagnosticsStoreContract"]

_PREFIX: Final = "runner-logs/12345/67890/i-0123456789abcdef0/"
_LOGS: Final = {
    "Runner_20251125-100000-utc.log": b"[2025-11-25 10:00:00Z INFO Listener] hello\n" * 1000,
    "Worker_20251125-100005-utc.log": "\ufeffäöü, 漢字\r\n".encode() + bytes(range(256)) * 100,
    "empty.log": b"",
}
_MANY: Final = 1000
_LARGE: Final = b"the first line\n" + b"%d green bottles hanging on the wall\n" * 2_000_000
"""Some 70 MB."""


def _ignore(*_told: object) -> None:
    """Takes no interest in progress."""


class DiagnosticsStoreContract(Contract, ABC):
    """Holds a DiagnosticsStore to its promises."""

    bucket: ClassVar[str] = "my-logs"
    """One that is there, with nothing in it."""

    @abstractmethod
    def make(self) -> DiagnosticsStore:
        """The adapter under test; the runner has logged nothing."""

    @abstractmethod
    def log(self, name: str, content: bytes) -> None:
        """Makes this the content of the runner's log of that name, which is the newest from here on."""

    @abstractmethod
    def objects(self) -> Mapping[str, bytes]:
        """All that is in the bucket, by key."""

    @abstractmethod
    def deny(self) -> None:
        """From here on the adapter may not write there."""

    def break_(self) -> None:
        """From here on the place does not answer."""
        raise impossible("this place cannot fail")

    @property
    def destination(self) -> LogDestination:
        """Where the suite's logs go."""
        return LogDestination(self.bucket, _PREFIX)

    def arrived(self, prefix: str = _PREFIX) -> dict[str, bytes]:
        """The logs that have arrived there, by name, as anybody can read them; nothing else has."""
        arrived = {key.removeprefix(prefix): gzip.decompress(data) for key, data in self.objects().items()}
        assert all(name.endswith(".log.gz") for name in arrived)
        return {name.removesuffix(".gz"): content for name, content in arrived.items()}

    # Sent

    @on_loop
    async def test_every_log_arrives_whole(self) -> None:
        """Under its name, gzipped, byte by byte; an empty one too."""
        store = self.make()
        self._log_all()

        uploaded = await store.upload(self.destination, _ignore)

        assert self.arrived() == _LOGS
        assert uploaded == Uploaded(files=3, bytes=sum(map(len, _LOGS.values())))

    @on_loop
    async def test_nothing_there_is_nothing(self) -> None:
        """A runner that was never started has logged nothing."""
        assert await self.make().upload(self.destination, _ignore) == Uploaded(files=0, bytes=0)

        assert self.arrived() == {}

    @on_loop
    async def test_again_is_allowed(self) -> None:
        """Whoever does not know whether all arrived sends them again: what is there is replaced."""
        store = self.make()
        self._log_all()
        await store.upload(self.destination, _ignore)
        self.log("empty.log", b"no more\n")

        for each in (store, self.make()):
            uploaded = await each.upload(self.destination, _ignore)

            assert uploaded.files == len(_LOGS)
            assert self.arrived() == _LOGS | {"empty.log": b"no more\n"}

    @on_loop
    async def test_the_prefix_is_taken_as_it_is(self) -> None:
        """It ends where it ends."""
        store = self.make()
        self.log("a.log", b"a")

        await store.upload(LogDestination(self.bucket, "x/y-"), _ignore)

        assert list(self.objects()) == ["x/y-a.log.gz"]

    # Bounds

    @on_loop
    async def test_not_any_number_of_logs_is_taken(self) -> None:
        """The newest are; what is left out is counted."""
        store = self.make()
        for number in range(_MANY):
            self.log(f"{number}.log", b"%d" % number)

        uploaded = await store.upload(self.destination, _ignore)

        newest = {f"{number}.log": b"%d" % number for number in range(_MANY - uploaded.files, _MANY)}
        assert 0 < uploaded.files < _MANY
        assert uploaded.left_out == _MANY - uploaded.files
        assert self.arrived() == newest

    @on_loop
    async def test_a_very_large_log_keeps_its_end(self) -> None:
        """Which is where it says what went wrong; that it is not whole is counted."""
        store = self.make()
        self.log("large.log", _LARGE)
        self.log("small.log", b"small")

        uploaded = await store.upload(self.destination, _ignore)

        end = self.arrived()["large.log"]
        assert _LARGE.endswith(end)
        assert 0 < len(end) < len(_LARGE)
        assert uploaded == Uploaded(files=2, bytes=len(end) + 5, left_out=1)

    # Told

    @on_loop
    async def test_progress_grows(self) -> None:
        """With each log, also with an empty one; on the loop's thread."""
        store = self.make()
        self._log_all()
        told: list[int] = []

        def note(done: int, total: int | None) -> None:
            asyncio.get_running_loop()  # raises on any other thread
            assert total is None or done <= total
            told.append(done)

        await store.upload(self.destination, note)

        assert told == sorted(told)
        assert len({*told} - {0}) >= len(_LOGS)

    # Out of reach

    @on_loop
    async def test_what_may_not_be_written_is_denied(self) -> None:
        """It is told from unavailable, which is tried again; nothing arrives."""
        store = self.make()
        self._log_all()
        self.deny()

        await error_of(DiagnosticsDeniedError, store.upload(self.destination, _ignore))

        assert self.arrived() == {}

    @on_loop
    async def test_a_place_that_does_not_answer_is_unavailable(self) -> None:
        """It is told from denied, which is final; nothing arrives."""
        store = self.make()
        self._log_all()
        self.break_()

        await error_of(DiagnosticsUnavailableError, store.upload(self.destination, _ignore))

        assert self.arrived() == {}

    # Cancelled

    @on_loop
    async def test_can_be_cancelled(self) -> None:
        """At any moment; what is there is whole, and a later call sends all. Nothing is told any more."""
        store = self.make()
        self._log_all()
        told: list[int] = []

        await cancel_at_any_step(lambda: store.upload(self.destination, lambda done, _: told.append(done)))
        arrived, calls = self.arrived(), len(told)
        assert arrived.items() <= _LOGS.items()
        await eventually(DiagnosticsUnavailableError, lambda: store.upload(self.destination, _ignore))

        assert self.arrived() == _LOGS
        assert len(told) == calls

    # Helpers

    def _log_all(self) -> None:
        for name, content in _LOGS.items():
            self.log(name, content)

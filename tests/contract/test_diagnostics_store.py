"""The diagnostics stores keep the promises of their port, whatever a job leaves among the runner's logs."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from agent_adapters.aws.clients import _TIMEOUTS, AwsClients
from agent_adapters.aws.diagnostics_store import S3DiagnosticsStore
from agent_adapters.filesystem import FileDiagnosticsStore
from agent_adapters.memory import InMemoryDiagnosticsStore, Machine
from agent_core.errors import DiagnosticsDeniedError, DiagnosticsUnavailableError
from agent_core.model import LogDestination, Uploaded
from agent_core.testing import simulation
from agent_core.testing.contracts import DiagnosticsStoreContract
from agent_core.testing.contracts.contract import assert_no_secret, until
from support.aws import SECRET_ACCESS_KEY
from support.faults import Answer, Hang, Lose, Refuse, Reply, denied, throttled

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Mapping

    from agent_core.ports import DiagnosticsStore
    from support.aws import Aws
    from support.faults import Fault

SOMEBODY: Final = os.geteuid() + 1
MIB: Final = 2**20


def ignore(*_: object) -> None:
    pass


class TestInMemoryDiagnosticsStore(DiagnosticsStoreContract):
    def setup_method(self) -> None:
        self.store = InMemoryDiagnosticsStore(Machine())

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        return simulation.run(lambda: main)

    def make(self) -> InMemoryDiagnosticsStore:
        return self.store

    def log(self, name: str, content: bytes) -> None:
        self.store.machine.diagnostics.pop(name, None)
        self.store.machine.diagnostics[name] = content

    def objects(self) -> Mapping[str, bytes]:
        return {key: data for (bucket, key), data in self.store.uploads.items() if bucket == self.bucket}

    def deny(self) -> None:
        self.store.denied = True

    def break_(self) -> None:
        self.store.error = DiagnosticsUnavailableError("it does not answer")

    def test_an_upload_takes_its_time(self) -> None:
        """So long for each log: progress is told in between."""
        self.store.seconds = 2.0
        for name in ("a.log", "b.log"):
            self.log(name, b"a line\n")

        async def upload() -> list[float]:
            clock, told = asyncio.get_running_loop().time, list[float]()
            start = clock()
            await self.store.upload(self.destination, lambda *_: told.append(clock() - start))
            return told

        assert simulation.run(upload) == [2.0, 4.0]


class FolderContract(DiagnosticsStoreContract):
    """Further promises of those that read the runner's folder, which belongs to the job."""

    root: Path

    def make(self) -> DiagnosticsStore:
        return self.store_of(None)

    def store_of(self, owner: int | None) -> DiagnosticsStore:
        """The adapter, for logs of that user."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.root, self.outside = tmp_path / "machine" / "runner", tmp_path / "outside"
        self.root.mkdir(parents=True)
        self.outside.mkdir()
        self.diag, self.ticks = self.root / "_diag", count(1)
        self.planted = self.outside / "planted.log"
        self.planted.write_bytes(b"planted")

    def log(self, name: str, content: bytes) -> None:
        self.diag.mkdir(exist_ok=True)
        (self.diag / name).write_bytes(content)
        os.utime(self.diag / name, (0, next(self.ticks)))

    def upload(self, owner: int | None = None, prefix: str = "logs/") -> Uploaded:
        return asyncio.run(self.store_of(owner).upload(LogDestination(self.bucket, prefix), ignore))

    def uploaded(self) -> dict[str, bytes]:
        return self.arrived("logs/")

    # What stands there

    def plant(self, what: str, path: Path) -> None:
        match what:
            case "symlink":
                path.symlink_to(self.planted)
            case "symlink inside":
                path.symlink_to(self.diag / "good.log")
            case "hard link":
                path.hardlink_to(self.planted)
            case "FIFO":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
                (path / "inner.log").write_bytes(b"planted")
            case "socket":
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(os.fspath(path))
            case "device":
                self.make_device(path)
            case _:
                self.give_away(path)

    @staticmethod
    def make_device(path: Path) -> None:
        try:
            os.mknod(path, 0o020666, os.makedev(1, 5))  # /dev/zero
        except PermissionError:
            pytest.skip("devices can be made by root only")

    @staticmethod
    def give_away(path: Path) -> None:
        path.write_bytes(b"planted")
        try:
            os.chown(path, SOMEBODY, -1)
        except PermissionError:
            pytest.skip("files can be given away by root only")

    KINDS: Final = (
        "symlink", "symlink inside", "hard link", "FIFO", "folder", "socket", "device", "another's"
    )  # fmt: skip

    @pytest.mark.parametrize("what", KINDS)
    def test_only_the_runners_own_files_are_taken(
        self, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What else is called a log is neither followed nor waited for; the logs beside it are taken."""
        self.log("good.log", b"good")
        monkeypatch.chdir(tmp_path)  # the path of a socket is a short one
        self.plant(what, self.diag.relative_to(tmp_path) / "Runner_planted.log")

        assert self.upload() == Uploaded(files=1, bytes=4, left_out=1)
        assert self.uploaded() == {"good.log": b"good"}

    @pytest.mark.parametrize("what", [*KINDS, "nothing"])
    def test_what_takes_the_place_of_a_log_is_not_taken(
        self, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the look at a log and its opening, too."""
        self.log("good.log", b"good")
        self.log("x.log", b"a log")
        monkeypatch.chdir(tmp_path)
        path, real = self.diag.relative_to(tmp_path) / "x.log", os.open

        def swapping(name: Any, *args: Any, **kwargs: Any) -> int:
            if name == "x.log":
                path.unlink()
                if what != "nothing":
                    self.plant(what, path)
            return real(name, *args, **kwargs)

        monkeypatch.setattr("os.open", swapping)

        assert self.upload() == Uploaded(files=1, bytes=4, left_out=1)
        assert self.uploaded() == {"good.log": b"good"}

    def test_what_is_not_taken_takes_no_place(self) -> None:
        """However much of it there is, and however new."""
        self.log("good.log", b"good")
        for number in range(200):
            self.plant("symlink", self.diag / f"Runner_{number}.log")

        assert self.upload() == Uploaded(files=1, bytes=4, left_out=200)

    def test_a_log_that_goes_meanwhile_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before it could be looked at."""
        self.log("good.log", b"good")
        self.log("gone.log", b"gone")
        real = os.scandir

        @contextmanager
        def late(folder: int) -> Iterator[Iterator[os.DirEntry[str]]]:
            with real(folder) as entries:
                found = [*entries]
                (self.diag / "gone.log").unlink()
                yield iter(found)

        monkeypatch.setattr("os.scandir", late)

        assert self.upload() == Uploaded(files=1, bytes=4, left_out=1)

    @pytest.mark.parametrize("what", ["symlink", "file", "FIFO"])
    def test_the_folder_itself_is_not_followed(self, what: str) -> None:
        """Nor waited for; that there was something is counted."""
        match what:
            case "symlink":
                self.diag.symlink_to(self.outside)
            case "file":
                self.diag.touch()
            case _:
                os.mkfifo(self.diag)

        assert self.upload() == Uploaded(files=0, bytes=0, left_out=1)
        assert self.uploaded() == {}

    def test_logs_are_those_of_the_runners_user(self) -> None:
        """Of no other, this process's own included."""
        self.log("own.log", b"own")
        self.log("somebodys.log", b"another's")
        try:
            os.chown(self.diag / "somebodys.log", SOMEBODY, -1)
        except PermissionError:
            pytest.skip("files can be given away by root only")

        assert self.upload(owner=SOMEBODY) == Uploaded(files=1, bytes=9, left_out=1)
        assert self.uploaded() == {"somebodys.log": b"another's"}

    def test_names_are_plain(self) -> None:
        """They become a part of keys, paths and commands; a name of another kind is left out."""
        hostile = [
            "a b.log", "-rf.log", ".hidden.log", "..log", "a\nb.log", "ä.log", os.fsdecode(b"\xff.log"),
            "a;b.log", "a%2fb.log", "x" * 101 + ".log", "a\\b.log", ".log",
        ]  # fmt: skip
        for name in hostile:
            self.log(name, b"hostile")
        plain = {"x" * 100 + ".log", "A_b-1.2.log", "a.log.log"}
        for name in [*plain, "notes.txt", "a.log.gz", "a.LOG"]:
            self.log(name, b"plain")

        assert self.upload() == Uploaded(files=3, bytes=15, left_out=len(hostile))
        assert set(self.uploaded()) == plain

    # How much of it

    def test_the_newest_are_taken(self) -> None:
        """Of 5,000, a hundred: the runner's and the worker's first."""
        for number in range(4_998):
            self.log(f"{number}.log", b"noise")
        for name in ("Runner_1.log", "Worker_1.log"):
            self.log(name, b"the runner")
            os.utime(self.diag / name, (0, 0))

        assert self.upload() == Uploaded(files=100, bytes=98 * 5 + 20, left_out=4_900)
        newest = {f"{number}.log" for number in range(4_900, 4_998)}
        assert set(self.uploaded()) == {"Runner_1.log", "Worker_1.log"} | newest

    def test_a_log_of_40_mib_keeps_its_end(self) -> None:
        """The last 32 MiB; one of 32 MiB is whole."""
        self.log("whole.log", bytes(32 * MIB))
        self.log("large.log", bytes(8 * MIB - 1) + b"x" + bytes(32 * MIB - 1) + b"y")

        assert self.upload() == Uploaded(files=2, bytes=64 * MIB, left_out=1)
        assert self.uploaded() == {
            "whole.log": bytes(32 * MIB),
            "large.log": bytes(32 * MIB - 1) + b"y",
        }

    def test_all_together_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """256 MiB: what does not fit is left out, or has only its end; what is empty always fits."""
        monkeypatch.setattr("agent_adapters.diagnostics._ALL_BYTES", 10)
        for name, content in {"empty": b"", "d": b"dddd", "c": b"cccC", "b": b"bbbb", "a": b"aaaa"}.items():
            self.log(f"{name}.log", content)

        assert self.upload() == Uploaded(files=4, bytes=10, left_out=2)
        assert self.uploaded() == {"a.log": b"aaaa", "b.log": b"bbbb", "c.log": b"cC", "empty.log": b""}

    @pytest.mark.parametrize("name", ["large.log", "small.log"])
    def test_a_log_that_grows_comes_to_an_end(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is taken as it was when it was opened."""
        content = b"a line\n" * (3 * MIB if name == "large.log" else 1)
        self.log(name, content)
        real = os.pread

        def growing(*args: int) -> bytes:
            with (self.diag / name).open("ab") as log:
                log.write(b"more\n" * MIB)
            return real(*args)

        monkeypatch.setattr("os.pread", growing)

        assert self.upload() == Uploaded(files=1, bytes=len(content))
        assert self.uploaded() == {name: content}

    def test_a_log_that_shrinks_is_what_is_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither waited for nor filled up."""
        self.log("x.log", b"a line\n" * MIB)
        real = os.pread

        def shrinking(*args: int) -> bytes:
            os.truncate(self.diag / "x.log", MIB + 5)
            return real(*args)

        monkeypatch.setattr("os.pread", shrinking)

        assert self.upload() == Uploaded(files=1, bytes=MIB + 5)

    def test_a_log_that_cannot_be_read_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As on a broken disk; others are taken."""
        for name in ("good.log", "bad.log"):
            self.log(name, name.encode())
        bad, real = (self.diag / "bad.log").stat(), os.pread

        def broken(descriptor: int, *args: int) -> bytes:
            if os.path.samestat(os.fstat(descriptor), bad):
                raise OSError(5, "Input/output error")
            return real(descriptor, *args)

        monkeypatch.setattr("os.pread", broken)

        assert self.upload() == Uploaded(files=1, bytes=8, left_out=1)

    def test_a_folder_that_cannot_be_read_is_unavailable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The error names it."""
        self.log("x.log", b"a line\n")

        def broken(_: object) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr("os.scandir", broken)

        with pytest.raises(DiagnosticsUnavailableError, match="_diag: Input/output error"):
            self.upload()

    def test_nothing_stays_open(self) -> None:
        """Neither the folder, nor what was taken or passed over."""
        self.log("a.log", b"a line\n")
        self.plant("hard link", self.diag / "b.log")

        self.upload()

        opened = [path.resolve() for path in Path("/proc/self/fd").iterdir()]
        assert not [path for path in opened if path.is_relative_to(self.diag)]

    def cancel_in(self, name: str, monkeypatch: pytest.MonkeyPatch, at: int) -> int:
        """Cancels an upload when it calls that function the nth time; how often it does in all."""
        real, made = getattr(os, name.removeprefix("os.")), 0

        async def run() -> None:
            loop, cancelled = asyncio.get_running_loop(), threading.Event()

            def cancelling(*args: Any) -> Any:
                nonlocal made
                made += 1
                if made == at:
                    loop.call_soon_threadsafe(cancel)
                    cancelled.wait()
                return real(*args)

            def cancel() -> None:
                uploading.cancel()
                loop.call_soon(cancelled.set)

            monkeypatch.setattr(name, cancelling)
            uploading = asyncio.create_task(self.make().upload(self.destination, ignore))
            with pytest.raises(asyncio.CancelledError):
                await uploading

        asyncio.run(run())
        return made

    def test_cancelled_while_it_reads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It reads no further, also within one log."""
        self.log("x.log", bytes(20 * MIB))

        assert self.cancel_in("os.pread", monkeypatch, 2) == 2

        assert self.objects() == {}


class TestFileDiagnosticsStore(FolderContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "state" / "buckets"

    def store_of(self, owner: int | None) -> FileDiagnosticsStore:
        return FileDiagnosticsStore(self.folder, self.root, owner)

    def objects(self) -> Mapping[str, bytes]:
        bucket = self.folder / self.bucket
        return {
            str(path.relative_to(bucket)): path.read_bytes() for path in bucket.rglob("*") if path.is_file()
        }

    def deny(self) -> None:
        self.folder.parent.mkdir()
        self.folder.touch()

    def break_(self) -> None:
        self.folder.parent.mkdir()
        self.folder.symlink_to("/proc/self")  # where nobody makes a folder

    @pytest.mark.parametrize(
        ("bucket", "prefix"),
        [
            ("..", ""),
            ("/etc", ""),
            ("a/../../b", ""),
            ("my-logs", "../"),
            ("my-logs", "a/../../../b/"),
            ("my-logs", "/etc/"),
            ("my-logs", "a\0b/"),
            ("my-logs", "\ud800/"),
        ],
    )
    def test_nothing_leads_out_of_the_folder(self, tmp_path: Path, bucket: str, prefix: str) -> None:
        """Bucket and prefix come from outside."""
        self.log("x.log", b"a line\n")
        before = sorted(tmp_path.rglob("*"))

        with pytest.raises(DiagnosticsDeniedError):
            asyncio.run(self.make().upload(LogDestination(bucket, prefix), ignore))

        assert [path for path in sorted(tmp_path.rglob("*")) if path.is_file()] == [
            path for path in before if path.is_file()
        ]

    def test_a_full_disk_leaves_nothing_half(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was there before stays, whole."""
        self.log("x.log", b"old")
        self.upload()
        self.log("x.log", b"new")

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(DiagnosticsUnavailableError, match=r"x\.log\.gz: No space left"):
            self.upload()

        assert self.uploaded() == {"x.log": b"old"}

    def test_cancelled_while_it_writes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What it has begun is whole; it begins nothing more."""
        for name in ("c.log", "b.log", "a.log"):
            self.log(name, b"")

        assert self.cancel_in("os.fsync", monkeypatch, 2) == 2

        assert set(self.arrived()) == {"a.log", "b.log"}

    def test_what_stands_in_the_way_is_denied(self) -> None:
        """Trying again cannot help."""
        self.log("x.log", b"a line\n")
        (self.folder / self.bucket / "logs" / "x.log.gz").mkdir(parents=True)

        with pytest.raises(DiagnosticsDeniedError, match="Is a directory"):
            self.upload()

        assert self.objects() == {}


class TestS3DiagnosticsStore(FolderContract):
    @pytest.fixture(autouse=True)
    def _place(self, aws: Aws) -> None:
        self.aws = aws
        self.bucket = aws.bucket()  # type: ignore[misc]

    def store_of(self, owner: int | None) -> S3DiagnosticsStore:
        return S3DiagnosticsStore(AwsClients("eu-west-1"), self.root, owner)

    def objects(self) -> Mapping[str, bytes]:
        s3 = self.aws.client("s3")
        there = s3.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return {
            each["Key"]: s3.get_object(Bucket=self.bucket, Key=each["Key"])["Body"].read() for each in there
        }

    def deny(self) -> None:
        self.aws.faults.plan("s3:PutObject", denied("s3"))

    def break_(self) -> None:
        self.aws.faults.plan("s3:PutObject", Answer(500, "InternalError"))

    def puts(self) -> int:
        return [call.operation for call in self.aws.calls].count("s3:PutObject")

    def test_an_object_is_what_its_key_says(self) -> None:
        """A gzipped file, which nobody inflates on the way."""
        self.log("x.log", b"a line\n")

        self.upload()

        head = self.aws.client("s3").head_object(Bucket=self.bucket, Key="logs/x.log.gz")
        assert head["ContentType"] == "application/gzip"
        assert "ContentEncoding" not in head

    def test_the_same_log_is_the_same_object(self) -> None:
        """Whenever it is uploaded; S3 has held it against its digest."""
        self.log("x.log", b"a line\n")
        self.upload()
        self.upload(prefix="again/")

        first, second = self.objects().values()
        assert first == second
        digests = {call.headers["x-amz-checksum-sha256"] for call in self.aws.calls}
        assert len(digests) == 1

    @pytest.mark.parametrize(
        "fault", [throttled("s3"), Answer(500, "InternalError"), Answer(503), Refuse(), Lose()]
    )
    def test_what_passes_is_unavailable(self, fault: Fault) -> None:
        """The other logs are tried all the same; sent again, all are there. A lost answer is no answer."""
        logs = {f"{number}.log": b"%d" % number for number in range(3)}
        for name, content in logs.items():
            self.log(name, content)
        self.aws.faults.plan("s3:PutObject", fault, times=1)
        with pytest.raises(DiagnosticsUnavailableError, match=f"^bucket {self.bucket}: "):
            self.upload()
        assert self.puts() == 3
        assert {"0.log", "1.log"} <= set(self.uploaded())

        self.upload()

        assert self.uploaded() == logs

    @pytest.mark.parametrize(
        "fault", [denied("s3"), Answer(403, "InvalidAccessKeyId"), Answer(400, "KeyTooLongError")]
    )
    def test_what_does_not_pass_is_denied(self, fault: Fault) -> None:
        """At once: what one log is denied, all are. No secret is shown."""
        for number in range(3):
            self.log(f"{number}.log", b"a line\n")
        self.aws.faults.plan("s3:PutObject", fault)

        with pytest.raises(DiagnosticsDeniedError) as caught:
            self.upload()

        assert self.puts() == 1
        assert_no_secret(caught.value, [SECRET_ACCESS_KEY])

    def test_a_bucket_that_does_not_exist_is_denied(self) -> None:
        """Trying again cannot help."""
        self.log("x.log", b"a line\n")
        self.bucket = "nowhere"  # type: ignore[misc]

        with pytest.raises(DiagnosticsDeniedError, match=r"^bucket nowhere: NoSuchBucket"):
            self.upload()

    @pytest.mark.parametrize("body", [b"", b"<html>sign in</html>", b"{}"])
    def test_a_stranger_is_not_believed(self, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
        """Whoever answers for AWS with 200 and nonsense has taken nothing."""
        self.log("x.log", b"a line\n")
        monkeypatch.setattr(type(self.aws), "answer", lambda *_: Reply(200, body))

        with pytest.raises(DiagnosticsUnavailableError):
            self.upload()

    def test_progress_is_told_within_a_log(self) -> None:
        """A large one that goes slowly is not taken for one that hangs."""
        content = os.urandom(2 * MIB)
        self.log("x.log", content)
        told: list[int] = []

        asyncio.run(self.make().upload(self.destination, lambda done, _: told.append(done)))

        assert told == sorted(told)
        assert len(set(told)) > 10
        assert told[-1] == len(next(iter(self.objects().values())))

    def test_only_what_has_gone_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not what was read to sign the request."""
        self.log("x.log", os.urandom(MIB))
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        told: list[int] = []

        with pytest.raises(DiagnosticsUnavailableError):
            asyncio.run(self.make().upload(self.destination, lambda done, _: told.append(done)))

        assert not told

    @pytest.mark.parametrize("size", [1, 20 * MIB])
    def test_a_bucket_that_hangs_holds_nobody_up(self, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        """Given up, a call is over though nothing was answered; nothing more is told; the next one works."""
        monkeypatch.setitem(_TIMEOUTS, "s3", (3.0, 600.0))
        for name in ("x.log", "y.log"):
            self.log(name, os.urandom(size))
        told: list[int] = []

        async def run() -> None:
            store = self.make()
            self.aws.faults.plan("s3:PutObject", Hang())
            uploading = asyncio.create_task(store.upload(self.destination, lambda done, _: told.append(done)))
            await until("the request", lambda: self.puts() == 1)
            uploading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await uploading
            calls = len(told)
            self.aws.faults.heal()
            assert (await store.upload(self.destination, ignore)).files == 2
            assert len(told) == calls

        asyncio.run(run())

        assert len(self.objects()) == 2

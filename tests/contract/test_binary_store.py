"""The binary stores keep the promises of their port."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import threading
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import pytest
from sample_runner.build import build_archive

from agent_adapters.archive import unpack
from agent_adapters.aws import binary_store
from agent_adapters.aws.binary_store import S3BinaryStore
from agent_adapters.aws.clients import AwsClients
from agent_adapters.filesystem import FileBinaryStore
from agent_adapters.github import GitHubBinaryStore
from agent_adapters.memory import InMemoryBinaryStore, Machine
from agent_adapters.threads import Cancellation
from agent_core.errors import ArchiveRefusedError, BinaryError, BinaryUnavailableError
from agent_core.model import Release, ReleaseRequest
from agent_core.testing import simulation
from agent_core.testing.contracts import BinaryStoreContract, runner_archive
from agent_core.testing.contracts.contract import until
from support.faults import Answer, Hang, Refuse, Reply, Slow, Truncate, denied, throttled

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from pathlib import Path

    from support.aws import Aws
    from support.faults import Fault
    from support.github import GitHub

LATEST = ReleaseRequest(version="latest", arch="x64")


def files_in(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


class TestInMemoryBinaryStore(BinaryStoreContract):
    """It does not look into archives: the back door says what is in them, and which are refused."""

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.machine = Machine()
        self.store = InMemoryBinaryStore(self.machine, archives={}, arches=())
        self.contents: dict[str, Mapping[str, bytes]] = {}

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        return simulation.run(lambda: main)

    def make(self) -> InMemoryBinaryStore:
        return self.store

    def publish(self, version: str, arch: str, archive: bytes) -> None:
        self.store.archives[version] = archive
        self.store.arches = (arch,)
        root = self.folder / str(len(list(self.folder.iterdir())))
        try:
            unpack([archive], sha256=hashlib.sha256(archive).hexdigest(), root=root)
        except ArchiveRefusedError:
            self.store.damaged.add(version)
        else:
            self.contents[version] = files_in(root)

    def tamper(self, version: str, arch: str, archive: bytes) -> None:
        assert version in self.store.archives
        assert arch in self.store.arches
        self.store.tampered = archive

    def withdraw(self, version: str, arch: str) -> None:
        assert arch in self.store.arches
        del self.store.archives[version]

    def installed(self) -> Mapping[str, bytes]:
        release = self.machine.installed
        return {} if release is None else self.contents.get(release.version, {})

    def halt(self) -> None:
        self.store.seconds = 3600.0

    def prebake(self, version: str) -> None:
        self.machine.installed = Release(version=version, arch="x64", sha256="")
        self.machine.prebaked = True


class TestFileBinaryStore(BinaryStoreContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "archives"
        self.folder.mkdir()
        self.root = tmp_path / "machine" / "runner"
        self.root.parent.mkdir()
        self.halted: list[HalfFile] = []

    def make(self) -> FileBinaryStore:
        return FileBinaryStore(self.folder, self.root)

    def publish(self, version: str, arch: str, archive: bytes) -> None:
        file = self.file(version, arch)
        file.write_bytes(archive)
        digest = hashlib.sha256(archive).hexdigest()
        file.with_name(f"{file.name}.sha256").write_text(f"{digest}  {file.name}\n", "ascii")

    def tamper(self, version: str, arch: str, archive: bytes) -> None:
        self.file(version, arch).write_bytes(archive)

    def withdraw(self, version: str, arch: str) -> None:
        self.file(version, arch).unlink()

    def installed(self) -> Mapping[str, bytes]:
        return files_in(self.root)

    def strays(self) -> Sequence[str]:
        return [path.name for path in self.root.parent.iterdir() if path != self.root]

    def halt(self) -> None:
        self.halted = [HalfFile(path) for path in self.folder.glob("*.tar.gz")]

    def resume(self) -> None:
        for half in self.halted:
            half.resume()

    def file(self, version: str, arch: str) -> Path:
        return self.folder / f"actions-runner-linux-{arch}-{version}.tar.gz"


class HalfFile:
    """A file in whose place a pipe gives its first half to one reader, and the rest after `resume`."""

    def __init__(self, path: Path) -> None:
        self._path, self._content = path, path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        self._resumed = threading.Event()
        self._feeder = threading.Thread(target=self._feed, daemon=True)
        self._feeder.start()

    def _feed(self) -> None:
        half = len(self._content) // 2
        try:
            with self._path.open("wb", buffering=0) as pipe:
                pipe.write(self._content[:half])
                self._resumed.wait()
                pipe.write(self._content[half:])
        except BrokenPipeError:
            return  # the reader wanted no more

    def resume(self) -> None:
        """The next reader finds a file again."""
        whole = self._path.with_name("whole")
        whole.write_bytes(self._content)
        whole.replace(self._path)
        self._resumed.set()


class TestGitHubBinaryStore(BinaryStoreContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path, github: GitHub) -> None:
        self.github, self.folder = github, tmp_path
        self.root = tmp_path / "machine" / "runner"
        self.root.parent.mkdir()

    def make(self) -> GitHubBinaryStore:
        return github_store(self.github, self.root)

    def publish(self, version: str, arch: str, archive: bytes) -> None:
        self.github.publish(version, arch, archive)

    def tamper(self, version: str, arch: str, archive: bytes) -> None:
        self.github.tamper(version, arch, archive)

    def withdraw(self, version: str, arch: str) -> None:
        self.github.withdraw(version, arch)

    def installed(self) -> Mapping[str, bytes]:
        return files_in(self.root)

    def strays(self) -> Sequence[str]:
        return [path.name for path in self.root.parent.iterdir() if path != self.root]

    def halt(self) -> None:
        self.github.halt()

    def resume(self) -> None:
        self.github.resume()


class TestColdS3BinaryStore(TestGitHubBinaryStore):
    """The bucket is empty: what is installed comes from GitHub."""

    @pytest.fixture(autouse=True)
    def _bucket(self, aws: Aws) -> None:
        self.aws, self.bucket = aws, aws.bucket()

    def make(self) -> S3BinaryStore:  # type: ignore[override]
        return s3_store(self.bucket, self.github, self.root)


class TestReplacingGitHubBinaryStore(TestGitHubBinaryStore):
    """The root is an instance's own: what an image has there is used, or gives way."""

    def make(self) -> GitHubBinaryStore:
        return github_store(self.github, self.root, replace=True)

    def prebake(self, version: str) -> None:
        archive = build_archive(self.folder / "baked", job="true\n", scenario={}, version=version)
        unpack([archive.read_bytes()], sha256=sha256_of(archive.read_bytes()), root=self.root)

    def test_a_root_in_use_is_left_alone(self) -> None:
        """A runner gives way; what is no runner does not."""
        self.root.mkdir()
        (self.root / "letters").write_text("dear\n")
        self.publish("2.336.0", "x64", ARCHIVE)

        with pytest.raises(BinaryError, match="not empty"):
            install(self.make())

        assert files_in(self.root) == {"letters": b"dear\n"}


class TestReplacingS3BinaryStore(TestReplacingGitHubBinaryStore):
    @pytest.fixture(autouse=True)
    def _bucket(self, aws: Aws) -> None:
        self.bucket = aws.bucket()

    def make(self) -> S3BinaryStore:  # type: ignore[override]
        return s3_store(self.bucket, self.github, self.root, replace=True)


class TestWarmS3BinaryStore(TestColdS3BinaryStore):
    """The bucket has it all."""

    @pytest.fixture(autouse=True)
    def _parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(binary_store, "_PART_BYTES", 2**20)  # else one part is all there is

    def publish(self, version: str, arch: str, archive: bytes) -> None:
        super().publish(version, arch, archive)
        self.keep(version, arch, archive)

    def tamper(self, version: str, arch: str, archive: bytes) -> None:
        super().tamper(version, arch, archive)
        self.keep(version, arch, archive)

    def withdraw(self, version: str, arch: str) -> None:
        super().withdraw(version, arch)
        self.aws.client("s3").delete_object(Bucket=self.bucket, Key=key_of(version, arch))

    def keep(self, version: str, arch: str, archive: bytes) -> None:
        self.aws.client("s3").put_object(Bucket=self.bucket, Key=key_of(version, arch), Body=archive)

    def halt(self) -> None:
        self.aws.faults.plan("s3:GetObject", Slow(20_000))
        self.aws.faults.plan("s3:GetObject", Slow(10**9), times=1)  # the first part

    def resume(self) -> None:
        self.aws.faults.heal()


def github_store(github: GitHub, root: Path, *, replace: bool = False) -> GitHubBinaryStore:
    return GitHubBinaryStore(github.api_url, github.url, root, replace=replace)


def s3_store(bucket: str, github: GitHub, root: Path, *, replace: bool = False) -> S3BinaryStore:
    return S3BinaryStore(
        AwsClients("eu-west-1"), bucket, github_store(github, root, replace=replace), root, replace=replace
    )


def key_of(version: str, arch: str) -> str:
    return f"runners/{version}/{arch}/actions-runner-{version}.tar.gz"


# Files only


def test_a_single_file_of_any_name_is_whatever_is_wanted(tmp_path: Path) -> None:
    """The operator named it, so its own digest is the trusted one."""
    file, root = tmp_path / "my-runner.tgz", tmp_path / "runner"
    archive = runner_archive({"run.sh": b"echo\n"})
    file.write_bytes(archive)
    store = FileBinaryStore(file, root)
    warnings: list[str] = []

    release = asyncio.run(store.resolve(ReleaseRequest(version="2.336.0", arch="arm64")))
    asyncio.run(store.install(release, lambda _done, _total: None, warnings.append))

    assert (release.version, release.arch) == ("2.336.0", "arm64")
    assert release.sha256 == hashlib.sha256(archive).hexdigest()
    assert files_in(root) == {"run.sh": b"echo\n"}
    assert not warnings


def test_a_folder_that_may_not_be_read_is_unavailable(
    tmp_path: Path, unprivileged: Callable[[], None]
) -> None:
    """It is a store that does not answer, not a fault of the agent."""
    folder = tmp_path / "shut" / "archives"
    folder.mkdir(parents=True)
    folder.parent.chmod(0)
    store = FileBinaryStore(folder, tmp_path / "runner")

    unprivileged()

    with pytest.raises(BinaryUnavailableError):
        asyncio.run(store.resolve(LATEST))


def test_a_digest_that_cannot_be_read_is_unavailable(tmp_path: Path) -> None:
    """What stands beside the file decides, also when it is of no use."""
    file = tmp_path / "actions-runner-linux-x64-2.336.0.tar.gz"
    file.write_bytes(runner_archive({"run.sh": b"echo\n"}))
    file.with_name(f"{file.name}.sha256").write_text("", "ascii")

    with pytest.raises(BinaryUnavailableError):
        asyncio.run(FileBinaryStore(tmp_path, tmp_path / "runner").resolve(LATEST))


# GitHub only

ARCHIVE = runner_archive({"run.sh": b"echo\n", "noise": bytes(range(256)) * 4000})


def sha256_of(archive: bytes) -> str:
    return hashlib.sha256(archive).hexdigest()


SHA256 = sha256_of(ARCHIVE)
PINNED = Release(version="2.336.0", arch="x64", sha256=SHA256)
FILES = {"run.sh": b"echo\n", "noise": bytes(range(256)) * 4000}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "machine" / "runner"


def install(store: GitHubBinaryStore | S3BinaryStore, release: Release = PINNED) -> list[str]:
    """The warnings."""
    warnings: list[str] = []

    async def run() -> None:
        await store.install(release, lambda _done, _total: None, warnings.append)
        await asyncio.sleep(0)

    asyncio.run(run())
    return warnings


def install_until_warned(store: S3BinaryStore, root: Path) -> list[str]:
    """The warnings of what goes on after the install, which does not wait for it."""
    warnings: list[str] = []

    async def run() -> None:
        await store.install(PINNED, lambda _done, _total: None, warnings.append)
        assert files_in(root) == FILES
        await until("the warning", lambda: bool(warnings))

    asyncio.run(run())
    return warnings


def test_a_pinned_release_costs_no_call_of_the_api(github: GitHub, root: Path) -> None:
    """A fleet behind one address has 60 of them an hour."""
    github.publish("2.336.0", "x64", ARCHIVE)

    install(github_store(github, root))

    assert files_in(root) == FILES
    assert {call.operation for call in github.calls} & {"github:latest", "github:tag"} == set()


@pytest.mark.parametrize("where", ["asset", "body"])
def test_the_digest_may_stand_in_the_release_notes(
    github: GitHub, root: Path, where: Literal["asset", "body"]
) -> None:
    """As old releases have it."""
    github.publish("2.336.0", "x64", ARCHIVE, digest=where)

    assert asyncio.run(github_store(github, root).resolve(LATEST)) == PINNED


def test_without_a_digest_nothing_is_trusted(github: GitHub, root: Path) -> None:
    """The error says what to do."""
    github.publish("2.336.0", "x64", ARCHIVE, digest="none")

    with pytest.raises(BinaryUnavailableError, match="set runner_sha256"):
        asyncio.run(github_store(github, root).resolve(LATEST))


@pytest.mark.parametrize(
    "fault",
    [
        Answer(500),
        Answer(429, headers={"Retry-After": "0"}),
        Refuse(),
        Truncate(100),
        Truncate(0),
        Truncate(300_000),
    ],
)
@pytest.mark.usefixtures("no_pauses")
def test_what_passes_is_tried_again(github: GitHub, root: Path, fault: Fault) -> None:
    """Three times in a row; the answer and the bytes alike."""
    github.publish("2.336.0", "x64", ARCHIVE)
    for operation in ("github:latest", "github:download"):
        github.faults.plan(operation, fault, times=2)
    store = github_store(github, root)

    install(store, asyncio.run(store.resolve(LATEST)))

    assert files_in(root) == FILES


@pytest.mark.usefixtures("no_pauses")
def test_three_attempts_are_the_end(github: GitHub, root: Path) -> None:
    """A boot does not wait for ever for a GitHub that is down."""
    github.faults.plan("github:latest", Answer(502))

    with pytest.raises(BinaryUnavailableError, match="HTTP status 502, 3 times in a row"):
        asyncio.run(github_store(github, root).resolve(LATEST))

    assert [call.operation for call in github.calls] == ["github:latest"] * 3


@pytest.mark.usefixtures("no_pauses")
def test_a_broken_download_goes_on_where_it_was(github: GitHub, root: Path) -> None:
    """By a range request: what has come is not asked for again."""
    github.publish("2.336.0", "x64", noise := runner_archive({"noise": Random(0).randbytes(3_000_000)}))
    github.faults.plan("github:download", Truncate(1_000_000), times=2)
    release = Release(version="2.336.0", arch="x64", sha256=hashlib.sha256(noise).hexdigest())

    install(github_store(github, root), release)

    assert (root / "noise").stat().st_size == 3_000_000
    ranges = [call.headers.get("range") for call in github.calls if call.operation == "github:download"]
    assert len(ranges) == 3
    assert ranges[0] is None
    starts = [int(str(text).removeprefix("bytes=").removesuffix("-")) for text in ranges[1:]]
    assert 0 < starts[0] <= 1_000_000 < starts[1] <= 2_000_000


def test_pauses_are_those_that_github_asks_for(github: GitHub, root: Path, pauses: list[float]) -> None:
    """`Retry-After` in seconds, and the time at which a used up rate limit is renewed."""
    github.publish("2.336.0", "x64", ARCHIVE)
    github.faults.plan("github:latest", Answer(503, headers={"Retry-After": "7"}), times=1)
    asyncio.run(github_store(github, root).resolve(LATEST))
    github.rate_limit(0, 30.0, status=403)
    with pytest.raises(BinaryUnavailableError):
        asyncio.run(github_store(github, root).resolve(LATEST))

    assert pauses[0] == 7.0
    assert all(25.0 <= pause <= 32.0 for pause in pauses[1:])
    assert len(pauses) == 3


def test_pauses_grow_and_vary(github: GitHub, root: Path, pauses: list[float]) -> None:
    """A thousand instances that find GitHub down do not come back all at once."""
    github.faults.plan("github:latest", Answer(500))
    for _ in range(5):
        with pytest.raises(BinaryUnavailableError):
            asyncio.run(github_store(github, root).resolve(LATEST))

    assert len(set(pauses)) > 5
    assert max(pauses[0::2]) <= 1.0
    assert max(pauses) <= 2.0


def test_a_rate_limit_that_lasts_is_no_wait(github: GitHub, root: Path, pauses: list[float]) -> None:
    """It would take longer than the phase."""
    github.rate_limit(0, 2400.0, status=403)

    with pytest.raises(BinaryUnavailableError, match="not to be asked again"):
        asyncio.run(github_store(github, root).resolve(LATEST))

    assert not pauses


def test_a_proxy_of_the_environment_is_used(
    github: GitHub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As httpx knows it: here one that is not there."""
    github.publish("2.336.0", "x64", ARCHIVE)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setattr("agent_adapters.web._PAUSE", lambda _: 0.0)

    with pytest.raises(BinaryUnavailableError, match="ConnectError"):
        asyncio.run(github_store(github, root).resolve(LATEST))

    assert not github.calls


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_adapters.web._PAUSE", lambda _: 0.0)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that would have been made."""
    made: list[float] = []
    monkeypatch.setattr(Cancellation, "wait", lambda _, seconds: made.append(seconds))
    return made


# S3 only


@pytest.fixture
def bucket(aws: Aws) -> str:
    return aws.bucket()


def object_in(aws: Aws, bucket: str) -> bytes | None:
    s3 = aws.client("s3")
    keys = [each["Key"] for each in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]
    assert keys in ([], [key_of("2.336.0", "x64")])
    return s3.get_object(Bucket=bucket, Key=keys[0])["Body"].read() if keys else None


def test_a_miss_fills_the_cache(aws: Aws, github: GitHub, bucket: str, root: Path) -> None:
    """The second boot asks GitHub nothing."""
    github.publish("2.336.0", "x64", ARCHIVE)

    assert install(s3_store(bucket, github, root)) == []

    assert files_in(root) == FILES
    aws.wait_for("s3:PutObject", status=200)
    assert object_in(aws, bucket) == ARCHIVE
    github.reset()
    second = root.with_name("second")
    assert install(s3_store(bucket, github, second)) == []
    assert files_in(second) == FILES
    assert not github.calls


@pytest.mark.parametrize("fault", [Truncate(1_000_000), Answer(503, "SlowDown"), Refuse()])
def test_a_large_archive_comes_in_parts(
    aws: Aws, github: GitHub, bucket: str, root: Path, fault: Fault
) -> None:
    """Several at a time; one that fails is asked for again."""
    content = Random(0).randbytes(30_000_000)
    archive = runner_archive({"noise": content})
    aws.client("s3").put_object(Bucket=bucket, Key=key_of("2.336.0", "x64"), Body=archive)
    aws.faults.plan("s3:GetObject", fault, times=1)
    release = Release(version="2.336.0", arch="x64", sha256=hashlib.sha256(archive).hexdigest())

    assert install(s3_store(bucket, github, root), release) == []

    assert (root / "noise").read_bytes() == content
    ranges = {call.headers["range"] for call in aws.calls if call.operation == "s3:GetObject"}
    assert len(ranges) == 4


def test_a_poisoned_cache_is_healed(aws: Aws, github: GitHub, bucket: str, root: Path) -> None:
    """Its archive is not used, GitHub's is, and takes its place."""
    github.publish("2.336.0", "x64", ARCHIVE)
    poison = runner_archive({"run.sh": b"echo poison\n"})
    aws.client("s3").put_object(Bucket=bucket, Key=key_of("2.336.0", "x64"), Body=poison)

    (warning,) = install(s3_store(bucket, github, root))

    assert "is not used, GitHub is asked: the archive's SHA-256" in warning
    assert files_in(root) == FILES
    aws.wait_for("s3:PutObject", status=200)
    assert object_in(aws, bucket) == ARCHIVE


def test_what_another_instance_has_put_is_left(aws: Aws, github: GitHub, bucket: str, root: Path) -> None:
    """A thousand instances that miss at once do no harm: the first one's stays."""
    github.publish("2.336.0", "x64", ARCHIVE)
    aws.faults.plan("s3:HeadObject", Answer(404, "404"))
    aws.faults.plan("s3:GetObject", Answer(404, "NoSuchKey"))
    aws.client("s3").put_object(Bucket=bucket, Key=key_of("2.336.0", "x64"), Body=b"another's")

    assert install(s3_store(bucket, github, root)) == []

    aws.wait_for("s3:PutObject", status=412)
    assert object_in(aws, bucket) == b"another's"


@pytest.mark.parametrize(
    "fault", [throttled("s3"), Answer(404, "NoSuchBucket"), Refuse(), Answer(500), Truncate(50)]
)
def test_a_bucket_of_no_use_is_passed_over(
    aws: Aws, github: GitHub, bucket: str, root: Path, fault: Fault
) -> None:
    """GitHub is asked, and the warning says why."""
    github.publish("2.336.0", "x64", ARCHIVE)
    aws.client("s3").put_object(Bucket=bucket, Key=key_of("2.336.0", "x64"), Body=ARCHIVE)
    aws.faults.plan("s3:*", fault)

    (warning,) = install(s3_store(bucket, github, root))

    assert f"bucket {bucket} is not used, GitHub is asked" in warning
    assert files_in(root) == FILES


@pytest.mark.parametrize("fault", [Hang(), Slow(1000)])
@pytest.mark.usefixtures("little_patience")
def test_a_slow_bucket_costs_a_bounded_time(
    aws: Aws, github: GitHub, bucket: str, root: Path, fault: Fault
) -> None:
    """Then GitHub is asked."""
    github.publish("2.336.0", "x64", ARCHIVE)
    aws.client("s3").put_object(Bucket=bucket, Key=key_of("2.336.0", "x64"), Body=ARCHIVE)
    aws.faults.plan("s3:GetObject", fault)

    (warning,) = install(s3_store(bucket, github, root))

    assert "no end after 0.5 s" in warning
    assert files_in(root) == FILES


@pytest.fixture
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_adapters.aws.binary_store._CACHE_SECONDS", 0.5)


def test_an_upload_that_fails_is_told(aws: Aws, github: GitHub, bucket: str, root: Path) -> None:
    """It delays nothing, and the job has its runner."""
    github.publish("2.336.0", "x64", ARCHIVE)
    aws.faults.plan("s3:PutObject", denied("s3"))
    warnings = install_until_warned(s3_store(bucket, github, root), root)

    assert "was not put into the cache" in warnings[0]


def test_what_may_not_be_listed_is_a_miss(aws: Aws, github: GitHub, bucket: str, root: Path) -> None:
    """To a role that may not list the bucket, S3 denies what it does not have: the cache is filled."""
    github.publish("2.336.0", "x64", ARCHIVE)
    aws.faults.plan("s3:GetObject", denied("s3"))
    aws.faults.plan("s3:HeadObject", Answer(403, "403"))

    assert install(s3_store(bucket, github, root)) == []

    aws.wait_for("s3:PutObject", status=200)
    assert object_in(aws, bucket) == ARCHIVE


@pytest.mark.parametrize("is_there", [True, False])
def test_a_bucket_that_denies_everything_is_told(
    aws: Aws, github: GitHub, bucket: str, root: Path, *, is_there: bool
) -> None:
    """The job has its runner; what the role lacks is said."""
    github.publish("2.336.0", "x64", ARCHIVE)
    if is_there:
        aws.client("s3").put_object(Bucket=bucket, Key=key_of("2.336.0", "x64"), Body=ARCHIVE)
    for operation in ("s3:GetObject", "s3:HeadObject", *(() if is_there else ("s3:PutObject",))):
        aws.faults.plan(operation, denied("s3"))
    warnings = install_until_warned(s3_store(bucket, github, root), root)

    expected = "which may not be read" if is_there else "was not put into the cache"
    assert expected in warnings[0]


def test_an_empty_object_is_healed(aws: Aws, github: GitHub, bucket: str, root: Path) -> None:
    """It has no bytes to be asked for, and is the wrong object all the same."""
    github.publish("2.336.0", "x64", ARCHIVE)
    aws.client("s3").put_object(Bucket=bucket, Key=key_of("2.336.0", "x64"), Body=b"")

    (warning,) = install(s3_store(bucket, github, root))

    assert "the object is empty" in warning
    aws.wait_for("s3:PutObject", status=200)
    assert object_in(aws, bucket) == ARCHIVE


@pytest.mark.parametrize(
    "range_", ["bytes 0-9/*", "bytes 5-9/10", "bytes 0-99999999999/99999999999", "", "x"]
)
def test_a_bucket_that_lies_takes_no_memory(
    aws: Aws, github: GitHub, root: Path, monkeypatch: pytest.MonkeyPatch, range_: str
) -> None:
    """What it says of its parts is held against what was asked."""
    bucket = aws.bucket()
    github.publish("2.336.0", "x64", ARCHIVE)
    headers = {"Content-Range": range_, "ETag": '"x"'} if range_ else {}
    monkeypatch.setattr(type(aws), "answer", lambda *_: Reply(206, bytes(50_000_000), headers))

    (warning,) = install(s3_store(bucket, github, root))

    assert "is not used, GitHub is asked" in warning
    assert files_in(root) == FILES


# Passwords of URLs


@pytest.mark.usefixtures("no_pauses")
def test_a_password_in_a_url_is_not_shown(github: GitHub, root: Path) -> None:
    """Nor a piece of it."""
    github.faults.plan("github:*", Answer(503))
    api_url, url = (each.replace("http://", "http://user:planted@") for each in (github.api_url, github.url))
    store = GitHubBinaryStore(api_url, url, root)

    for call in (store.resolve(LATEST), store.install(PINNED, lambda *_: None, lambda _: None)):
        with pytest.raises(BinaryUnavailableError) as caught:
            asyncio.run(call)
        assert "planted" not in str(caught.value)


@pytest.mark.parametrize("proxy", ["http://user:pla/nted@127.0.0.1:1", "http://u:planted@h:abc", "planted"])
def test_a_proxy_of_no_use_is_not_shown(
    github: GitHub, root: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    """The error names the variables instead."""
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setattr("agent_adapters.web._PAUSE", lambda _: 0.0)

    with pytest.raises(BinaryUnavailableError) as caught:
        asyncio.run(github_store(github, root).resolve(LATEST))

    assert not re.search("planted|pla|nted", str(caught.value))


@pytest.mark.parametrize(
    "headers",
    [
        {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "9" * 400},
        {"Retry-After": "9" * 400},
        {"Retry-After": "-5"},
        {"Retry-After": "Sat, 99 Nov 9999999999 22:22:22 GMT"},
    ],
)
@pytest.mark.usefixtures("no_pauses")
def test_odd_headers_are_no_fault_of_ours(github: GitHub, root: Path, headers: dict[str, str]) -> None:
    """It is GitHub that is not to be had."""
    github.faults.plan("github:*", Answer(429, headers=headers))

    with pytest.raises(BinaryUnavailableError):
        asyncio.run(github_store(github, root).resolve(LATEST))

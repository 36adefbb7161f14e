# ruff: noqa: S101 - a suite speaks in asserts
"""What any BinaryStore promises."""

import asyncio
import gzip
import hashlib
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import Final

from attrs import evolve

from agent_core.errors import (
    ArchiveRefusedError,
    BinaryError,
    BinaryUnavailableError,
    DigestMismatchError,
)
from agent_core.model import Release, ReleaseRequest
from agent_core.ports import BinaryStore
from agent_core.testing.contracts.contract import (
    Contract,
    cancel_at_any_step,
    error_of,
    eventually,
    impossible,
    on_loop,
)

__all__ = ["BinaryStoreContract", "runner_archive"]

_VERSION: Final = "2.336.0"
_OTHER_SHA256: Final = "0" * 64
_ITERATIONS: Final = 20
"""Iterations of the loop: enough for a cancellation to reach whatever works."""


def runner_archive(files: Mapping[str, bytes]) -> bytes:
    """A gzipped tarball of programs, by their paths; the same files give the same bytes."""
    blocks: list[bytes] = []
    for path, content in files.items():
        header = tarfile.TarInfo(path if path.startswith(".") else f"./{path}")
        header.size, header.mode = len(content), 0o755
        blocks += [header.tobuf(), content, bytes(-len(content) % tarfile.BLOCKSIZE)]
    return gzip.compress(b"".join(blocks) + bytes(2 * tarfile.BLOCKSIZE), compresslevel=1, mtime=0)


def _files(seed: str, size: int = 1000) -> Mapping[str, bytes]:
    """A runner whose archive has about `size` bytes: noise cannot be compressed."""
    noise = Random(seed).randbytes(size)  # noqa: S311 - any bytes will do
    return MappingProxyType({"run.sh": f"echo {seed}\n".encode(), "bin/Runner.Listener": noise})


_FILES: Final = _files("a runner")
_LARGE_FILES: Final = _files("a large runner", size=6 * 2**20)
_HOSTILE_ARCHIVE: Final = runner_archive({"run.sh": b"echo\n", "../outside": b"not here\n"})


class _Told:
    """What a progress callback was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int | None]] = []
        self.begun = asyncio.Event()

    def __call__(self, done: int, total: int | None) -> None:
        asyncio.get_running_loop()  # raises on any other thread
        self.calls.append((done, total))
        self.begun.set()


def _ignore(*_told: object) -> None:
    """Takes no interest in progress, nor in warnings."""


class BinaryStoreContract(Contract, ABC):
    """Holds a BinaryStore to its promises."""

    @abstractmethod
    def make(self) -> BinaryStore:
        """The adapter under test; it has nothing published, and the runner's root is not there."""

    @abstractmethod
    def publish(self, version: str, arch: str, archive: bytes) -> None:
        """Makes this the archive of that version; its digest is the trusted one."""

    @abstractmethod
    def tamper(self, version: str, arch: str, archive: bytes) -> None:
        """Gives out these bytes instead of the published ones; the trusted digest stays."""

    @abstractmethod
    def withdraw(self, version: str, arch: str) -> None:
        """Has no bytes of that version to give out any more."""

    @abstractmethod
    def installed(self) -> Mapping[str, bytes]:
        """All the files in the runner's root, by path."""

    def strays(self) -> Sequence[str]:
        """What installs have left outside the root: folders half full, downloads; nothing, in most stores."""
        return ()

    def halt(self) -> None:
        """Gives out the first half of what is published, and no more until `resume`."""
        raise impossible("this store cannot be halted half way")

    def resume(self) -> None:
        """Gives out the rest."""

    def prebake(self, version: str) -> None:  # noqa: ARG002
        """Puts a runner of that version into the root, as a machine's image has it."""
        raise impossible("this store takes no prebaked runner")

    # Prebaked

    @on_loop
    async def test_an_empty_machine_has_no_prebaked_runner(self) -> None:
        """Whatever is published."""
        store = self.make()
        self.publish(_VERSION, "x64", runner_archive(_FILES))

        assert await store.prebaked() is None

    @on_loop
    async def test_a_prebaked_runner_has_a_version(self) -> None:
        """To be asked for again and again: asking does not make it a used one."""
        store = self.make()
        self.prebake("2.335.0")

        assert await store.prebaked() == "2.335.0"
        assert await store.prebaked() == "2.335.0"

    @on_loop
    async def test_a_prebaked_runner_gives_way(self) -> None:
        """To the one that is installed; a failure leaves it as it was."""
        store = self.make()
        release = await self._resolved(store, _FILES)
        self.prebake("2.335.0")
        wrong = evolve(release, sha256=_OTHER_SHA256)
        await error_of(DigestMismatchError, store.install(wrong, _ignore, _ignore))
        assert await store.prebaked() == "2.335.0"

        await store.install(release, _ignore, _ignore)

        self._assert_installed(_FILES)

    # Resolving

    @on_loop
    async def test_a_number_resolves_to_itself(self) -> None:
        """The release has the wanted version and arch, and the digest of its archive."""
        store = self.make()
        archive = runner_archive(_FILES)
        self.publish("2.335.0", "x64", runner_archive(_files("older")))
        self.publish(_VERSION, "x64", archive)
        self.publish("2.337.0", "x64", runner_archive(_files("newer")))

        release = await store.resolve(ReleaseRequest(version=_VERSION, arch="x64"))

        sha256 = hashlib.sha256(archive).hexdigest()
        assert release == Release(version=_VERSION, arch="x64", sha256=sha256)

    @on_loop
    async def test_latest_resolves_to_a_number(self) -> None:
        """It is the last one published, and the highest; 2.10 is higher than 2.9."""
        store = self.make()
        for version in ("2.9.9", "2.10.0"):
            self.publish(version, "x64", runner_archive(_files(version)))

        release = await store.resolve(ReleaseRequest(version="latest", arch="x64"))

        sha256 = hashlib.sha256(runner_archive(_files("2.10.0"))).hexdigest()
        assert release == Release(version="2.10.0", arch="x64", sha256=sha256)

    @on_loop
    async def test_what_is_not_there_is_unavailable(self) -> None:
        """A store without a release has neither a number nor a latest."""
        store = self.make()
        for version in ("latest", _VERSION):
            await error_of(BinaryUnavailableError, store.resolve(ReleaseRequest(version=version, arch="x64")))

        self.publish(_VERSION, "x64", runner_archive(_FILES))

        await error_of(BinaryUnavailableError, store.resolve(ReleaseRequest(version="2.1.0", arch="x64")))

    @on_loop
    async def test_another_arch_is_no_substitute(self) -> None:
        """A version that is there for another arch only is not there."""
        store = self.make()
        self.publish(_VERSION, "x64", runner_archive(_FILES))

        for version in ("latest", _VERSION):
            await error_of(
                BinaryUnavailableError, store.resolve(ReleaseRequest(version=version, arch="arm64"))
            )

    @on_loop
    async def test_the_digest_is_not_taken_from_the_bytes(self) -> None:
        """Bytes that were changed before anybody asked have the trusted digest no more than others."""
        store = self.make()
        archive = runner_archive(_FILES)
        self.publish(_VERSION, "x64", archive)
        self.tamper(_VERSION, "x64", runner_archive(_files("another")))

        release = await store.resolve(ReleaseRequest(version=_VERSION, arch="x64"))

        assert release.sha256 == hashlib.sha256(archive).hexdigest()
        await error_of(DigestMismatchError, store.install(release, _ignore, _ignore))
        self._assert_installed({})

    # Installing

    @on_loop
    async def test_installs_what_was_resolved(self) -> None:
        """The root then has every file of the archive, and nothing else."""
        store = self.make()
        release = await self._resolved(store, _FILES)

        await store.install(release, _ignore, _ignore)

        self._assert_installed(_FILES)

    @on_loop
    async def test_installs_what_was_pinned(self) -> None:
        """A release whose digest came from elsewhere needs no resolving."""
        store = self.make()
        archive = runner_archive(_FILES)
        self.publish(_VERSION, "arm64", archive)
        sha256 = hashlib.sha256(archive).hexdigest()

        await store.install(Release(version=_VERSION, arch="arm64", sha256=sha256), _ignore, _ignore)

        self._assert_installed(_FILES)

    @on_loop
    async def test_another_digest_installs_nothing(self) -> None:
        """The bytes are the published ones, but not those that are wanted."""
        store = self.make()
        release = await self._resolved(store, _FILES)

        await error_of(
            DigestMismatchError, store.install(evolve(release, sha256=_OTHER_SHA256), _ignore, _ignore)
        )

        self._assert_installed({})

    @on_loop
    async def test_other_bytes_install_nothing(self) -> None:
        """Whether good, damaged or hostile: it is the digest that is wrong with them."""
        store = self.make()
        archive = runner_archive(_FILES)
        release = await self._resolved(store, _FILES)

        for other in (runner_archive(_files("another")), archive[:-20], archive + b"\0", _HOSTILE_ARCHIVE):
            self.tamper(_VERSION, "x64", other)
            await error_of(DigestMismatchError, store.install(release, _ignore, _ignore))
            self._assert_installed({})

    @on_loop
    async def test_a_damaged_archive_installs_nothing(self) -> None:
        """These are the trusted bytes, cut off or no archive at all."""
        archive = runner_archive(_FILES)
        for damaged in (archive[: len(archive) // 2], archive[:-20], b"no archive"):
            await self._refused(damaged)

    @on_loop
    async def test_a_hostile_archive_installs_nothing(self) -> None:
        """These are the trusted bytes, and a member of them leads out of the root."""
        await self._refused(_HOSTILE_ARCHIVE)

    @on_loop
    async def test_bytes_that_are_gone_install_nothing(self) -> None:
        """A release may go after it was resolved."""
        store = self.make()
        release = await self._resolved(store, _FILES)
        self.withdraw(_VERSION, "x64")

        await error_of(BinaryUnavailableError, store.install(release, _ignore, _ignore))

        self._assert_installed({})

    @on_loop
    async def test_installs_after_a_failure(self) -> None:
        """A failure spoils no later install."""
        store = self.make()
        release = await self._resolved(store, _FILES)
        await error_of(
            DigestMismatchError, store.install(evolve(release, sha256=_OTHER_SHA256), _ignore, _ignore)
        )

        await store.install(release, _ignore, _ignore)

        self._assert_installed(_FILES)

    @on_loop
    async def test_a_root_in_use_is_left_alone(self) -> None:
        """What is in the root already is neither replaced nor mixed."""
        store = self.make()
        await store.install(await self._resolved(store, _FILES), _ignore, _ignore)
        self.publish("2.337.0", "x64", runner_archive(_files("newer")))
        newer = await store.resolve(ReleaseRequest(version="2.337.0", arch="x64"))

        error = await error_of(BinaryError, store.install(newer, _ignore, _ignore))

        assert not isinstance(error, BinaryUnavailableError), "trying again would not help"
        self._assert_installed(_FILES)

    # Progress

    @on_loop
    async def test_progress_grows_to_the_whole(self) -> None:
        """It never goes back, its total never changes, and it ends with every byte; on the loop's thread."""
        store, told = self.make(), _Told()
        release = await self._resolved(store, _LARGE_FILES)

        await store.install(release, told, _ignore)

        done = [done for done, _ in told.calls]
        totals = {total for _, total in told.calls}
        size = len(runner_archive(_LARGE_FILES))
        assert done == sorted(done)
        assert done[-1] == size
        assert totals in ({size}, {None})

    @on_loop
    async def test_progress_ends_with_the_call(self) -> None:
        """Nothing is told any more once the call has returned or failed."""
        store, told = self.make(), _Told()
        release = await self._resolved(store, _FILES)
        wrong = evolve(release, sha256=_OTHER_SHA256)
        for call in (
            error_of(DigestMismatchError, store.install(wrong, told, _ignore)),
            store.install(release, told, _ignore),
        ):
            await call
            calls = len(told.calls)
            await _let_pass()
            assert len(told.calls) == calls

    # Cancelled

    @on_loop
    async def test_nothing_is_in_the_root_half_way(self) -> None:
        """The root shows nothing of an install before its last byte is verified."""
        store, told = self.make(), _Told()
        release = await self._resolved(store, _LARGE_FILES)
        self.halt()
        installing = asyncio.create_task(store.install(release, told, _ignore))
        await told.begun.wait()

        half_way = dict(self.installed())
        self.resume()
        await installing

        assert half_way == {}
        self._assert_installed(_LARGE_FILES)

    @on_loop
    async def test_cancelled_half_way_leaves_nothing(self) -> None:
        """When the cancelled call ends, nothing of it is left, nothing comes later; the next one works."""
        store, told = self.make(), _Told()
        release = await self._resolved(store, _LARGE_FILES)
        self.halt()
        installing = asyncio.create_task(store.install(release, told, _ignore))
        await told.begun.wait()

        installing.cancel()
        await _let_pass()
        self.resume()
        await asyncio.wait({installing})

        assert installing.cancelled()
        self._assert_installed({})
        calls = len(told.calls)
        await eventually(BinaryUnavailableError, lambda: store.install(release, _ignore, _ignore))
        self._assert_installed(_LARGE_FILES)
        assert len(told.calls) == calls

    @on_loop
    async def test_can_be_cancelled(self) -> None:
        """At any moment; the root has all of the release or nothing."""
        store = self.make()
        release = await self._resolved(store, _FILES)
        request = ReleaseRequest(version="latest", arch="x64")

        await cancel_at_any_step(lambda: store.resolve(request))
        assert await eventually(BinaryUnavailableError, lambda: store.resolve(request)) == release
        await cancel_at_any_step(lambda: store.install(release, _ignore, _ignore))

        if not self.installed():
            await eventually(BinaryUnavailableError, lambda: store.install(release, _ignore, _ignore))
        self._assert_installed(_FILES)

    # Helpers

    async def _resolved(self, store: BinaryStore, files: Mapping[str, bytes]) -> Release:
        self.publish(_VERSION, "x64", runner_archive(files))
        return await store.resolve(ReleaseRequest(version=_VERSION, arch="x64"))

    def _assert_installed(self, files: Mapping[str, bytes]) -> None:
        assert dict(self.installed()) == dict(files)
        assert list(self.strays()) == []

    async def _refused(self, archive: bytes) -> None:
        store = self.make()
        self.publish(_VERSION, "x64", archive)
        release = await store.resolve(ReleaseRequest(version=_VERSION, arch="x64"))

        await error_of(ArchiveRefusedError, store.install(release, _ignore, _ignore))

        self._assert_installed({})


async def _let_pass() -> None:
    for _ in range(_ITERATIONS):
        await asyncio.sleep(0)

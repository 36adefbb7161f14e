"""The binary stores keep the promises of their port."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from agent_adapters.archive import unpack
from agent_adapters.filesystem import FileBinaryStore
from agent_adapters.memory import InMemoryBinaryStore, Machine
from agent_core.errors import ArchiveRefusedError, BinaryUnavailableError
from agent_core.model import ReleaseRequest
from agent_core.testing import simulation
from agent_core.testing.contracts import BinaryStoreContract, runner_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from pathlib import Path

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
        return {} if release is None else self.contents[release.version]

    def halt(self) -> None:
        self.store.seconds = 3600.0


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


# Files only


def test_a_single_file_of_any_name_is_whatever_is_wanted(tmp_path: Path) -> None:
    """The operator named it, so its own digest is the trusted one."""
    file, root = tmp_path / "my-runner.tgz", tmp_path / "runner"
    archive = runner_archive({"run.sh": b"echo\n"})
    file.write_bytes(archive)
    store = FileBinaryStore(file, root)

    release = asyncio.run(store.resolve(ReleaseRequest(version="2.336.0", arch="arm64")))
    asyncio.run(store.install(release, lambda _done, _total: None))

    assert (release.version, release.arch) == ("2.336.0", "arm64")
    assert release.sha256 == hashlib.sha256(archive).hexdigest()
    assert files_in(root) == {"run.sh": b"echo\n"}


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

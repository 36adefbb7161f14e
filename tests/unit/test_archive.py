"""Unpacking what may be hostile, and removing what may be odd."""

import errno
import fcntl
import gzip
import hashlib
import io
import itertools
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tarfile import TarInfo
from types import SimpleNamespace
from typing import Final, Literal

import pytest
from attrs import evolve, field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_adapters.archive import UnpackCancelledError, _Work, unpack
from agent_adapters.pipeline import Pipe
from agent_adapters.removal import remove_tree
from agent_adapters.tarball import ArchiveLimits, _plain_member
from agent_core.errors import (
    AgentError,
    ArchiveRefusedError,
    BinaryError,
    BinaryUnavailableError,
    DigestMismatchError,
    RunnerUnavailableError,
)
from support.descriptors import open_descriptors

STAGING: Final = ".runner.staging-"
LIMITS: Final = ArchiveLimits()
PATIENCE: Final = 30.0
"""Seconds after which what was awaited is taken not to come."""


# All of these hold with threads, and where there are none to be had


@pytest.fixture(params=["threads", "no threads"], scope="module", autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "no threads":
            patch.setattr(threading.Thread, "start", refused_from(0))
        yield request.param


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """At any end, also a bad one."""
    yield
    assert unpacking_threads() == []


def unpacking_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("unpacking")]


def refused_from(number: int) -> Callable[[threading.Thread], None]:
    """Starts so many threads, and then no more."""
    start, left = threading.Thread.start, number

    def limited(thread: threading.Thread) -> None:
        nonlocal left
        if not left:
            raise RuntimeError("can't start new thread")
        left -= 1
        start(thread)

    return limited


# Archives


@frozen
class Member:
    """A member of an archive, as its writer wants it."""

    name: str
    type: bytes = tarfile.REGTYPE
    data: bytes = b""
    mode: int = 0o644
    target: str = ""
    pax: Mapping[str, str] = field(factory=dict)

    def info(self) -> TarInfo:
        info = TarInfo(self.name)
        info.type, info.mode, info.linkname, info.size = self.type, self.mode, self.target, len(self.data)
        info.uid = info.gid = 4711
        info.pax_headers = dict(self.pax)
        return info


def folder(name: str, mode: int = 0o755) -> Member:
    return Member(name, tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> Member:
    return Member(name, tarfile.SYMTYPE, mode=0o777, target=target)


def hardlink(name: str, target: str) -> Member:
    return Member(name, tarfile.LNKTYPE, target=target)


def tar(*members: Member, form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for member in members:
            archive.addfile(member.info(), io.BytesIO(member.data))
    return buffer.getvalue()


def zipped(data: bytes) -> bytes:
    """gzip, the same at any time: test IDs are made of it."""
    return gzip.compress(data, mtime=0)


def tarball(*members: Member, form: int = tarfile.GNU_FORMAT) -> bytes:
    return zipped(tar(*members, form=form))


def header(member: Member, *, size: int) -> bytes:
    """A header block by itself, with any size."""
    info = member.info()
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


RUNNER: Final = (
    folder("./"),
    Member("./run.sh", data=b"#!/bin/bash\n", mode=0o755),
    folder("./bin/"),
    Member("./bin/Runner.Listener", data=bytes(range(256)) * 4000, mode=0o755),
    folder("./externals/node20/bin/"),
    symlink("./externals/node20/bin/npm", "../lib/npm-cli.js"),
    Member("./externals/node20/lib/npm-cli.js", data=b"npm", mode=0o644),
    hardlink("./externals/node20/lib/copy.js", "./externals/node20/lib/npm-cli.js"),
    hardlink("./externals/node20/lib/again.js", "externals/node20/lib/copy.js"),
)


# Folders


KINDS: Final = {0o040000: "folder", 0o100000: "file", 0o120000: "symlink"}


def snapshot(top: Path) -> dict[str, tuple[str, int, bytes]]:
    """Everything in the folder: its kind, mode and content, or where it links to."""
    found = {}
    for path in [top, *top.rglob("*")]:
        stat = path.lstat()
        kind = KINDS[stat.st_mode & 0o170000]
        assert stat.st_uid == os.getuid()
        mode = 0 if kind == "symlink" else stat.st_mode & 0o7777
        found[str(path.relative_to(top))] = (kind, mode, content(path, kind))
    return found


def content(path: Path, kind: str) -> bytes:
    if kind == "symlink":
        return os.fsencode(os.readlink(path))  # noqa: PTH115 - a Path tidies its target
    return path.read_bytes() if kind == "file" else b""


@frozen
class Place:
    """A folder with the root in it, among things that must stay as they are."""

    top: Path
    before: dict[str, tuple[str, int, bytes]]

    @property
    def root(self) -> Path:
        return self.top / "runner"

    def unpack(
        self,
        data: bytes,
        *,
        sha256: str | None = None,
        chunk_bytes: int = 1000,
        limits: ArchiveLimits = LIMITS,
        cancelled: Callable[[], bool] = lambda: False,
        replace: bool = False,
    ) -> None:
        unpack(
            pieces(data, chunk_bytes),
            sha256=sha256 or hashlib.sha256(data).hexdigest(),
            root=self.root,
            cancelled=cancelled,
            limits=limits,
            replace=replace,
        )

    def staging(self) -> Path:
        (found,) = self.top.glob(f"{STAGING}*")
        return found

    def around(self) -> dict[str, tuple[str, int, bytes]]:
        return {
            name: entry
            for name, entry in snapshot(self.top).items()
            if name.partition("/")[0] != self.root.name
        }

    def is_untouched(self) -> bool:
        return snapshot(self.top) == self.before


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def place_in(top: Path) -> Place:
    for name in ("outside", "a", "l"):
        (top / name).mkdir()
        (top / name / "x").write_bytes(b"not yours")
    (top / "b").write_bytes(b"not yours")
    return Place(top, snapshot(top))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    top = tmp_path / "place"
    top.mkdir()
    return place_in(top)


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o277])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


# What a runner's archive has


def test_unpacks_a_runner(place: Place) -> None:
    """Files, folders, symlinks and hardlinks arrive as they are, owned by the current user."""
    place.unpack(tarball(*RUNNER))

    executable = bytes(range(256)) * 4000
    assert snapshot(place.root) == {
        ".": ("folder", 0o755, b""),
        "run.sh": ("file", 0o755, b"#!/bin/bash\n"),
        "bin": ("folder", 0o755, b""),
        "bin/Runner.Listener": ("file", 0o755, executable),
        "externals": ("folder", 0o755, b""),
        "externals/node20": ("folder", 0o755, b""),
        "externals/node20/bin": ("folder", 0o755, b""),
        "externals/node20/bin/npm": ("symlink", 0, b"../lib/npm-cli.js"),
        "externals/node20/lib": ("folder", 0o755, b""),
        "externals/node20/lib/npm-cli.js": ("file", 0o644, b"npm"),
        "externals/node20/lib/copy.js": ("file", 0o644, b"npm"),
        "externals/node20/lib/again.js": ("file", 0o644, b"npm"),
    }
    assert (place.root / "externals/node20/lib/copy.js").samefile(place.root / "externals/node20/bin/npm")
    assert place.around() == place.before


@pytest.mark.usefixtures("umask")
def test_modes_do_not_depend_on_the_umask(place: Place) -> None:
    """They are the archive's, without writing by others; folders are their owner's to change."""
    place.unpack(
        tarball(
            folder("./", 0o700),
            folder("open", 0o777),
            folder("closed", 0o1500),
            Member("closed/all", mode=0o777),
            Member("closed/read", mode=0o444),
            Member("implied/owner", mode=0o600),
        )
    )

    assert {name: oct(mode) for name, (_, mode, _) in snapshot(place.root).items()} == {
        ".": "0o755",
        "open": "0o755",
        "closed": "0o700",
        "closed/all": "0o755",
        "closed/read": "0o444",
        "implied": "0o755",
        "implied/owner": "0o600",
    }


def test_keeps_a_file_that_nobody_may_read(place: Place) -> None:
    """A mode of 0 is a mode too."""
    place.unpack(tarball(Member("shut", data=b"x", mode=0)))

    assert (place.root / "shut").stat().st_mode & 0o7777 == 0


def test_creates_the_folders_above(place: Place) -> None:
    """The root's parents need not be there."""
    data = tarball(*RUNNER)
    root = place.root / "opt" / "runner"

    unpack([data], sha256=hashlib.sha256(data).hexdigest(), root=root)

    assert (root / "run.sh").is_file()
    assert list(root.parent.iterdir()) == [root]


def test_takes_a_relative_root(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path counts from the current folder."""
    monkeypatch.chdir(place.top)
    data = tarball(*RUNNER)

    unpack([data], sha256=hashlib.sha256(data).hexdigest(), root=Path("runner"))

    assert (place.root / "run.sh").is_file()


def test_replaces_an_empty_root(place: Place) -> None:
    """An empty folder is as good as none."""
    place.root.mkdir(mode=0o700)

    place.unpack(tarball(*RUNNER))

    assert (place.root / "run.sh").is_file()
    assert place.root.stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_takes_long_and_odd_names(place: Place, form: int) -> None:
    """Names of over 100 and 256 bytes, and names that are not UTF-8, come through byte by byte."""
    long = "/".join(["d" * 200, "e" * 200, "f" * 255])
    odd = os.fsdecode(b"\xff\xfe \n\x1b[31m\xe2\x82")
    target = f"{'d' * 200}/{'e' * 200}"

    place.unpack(
        tarball(
            Member(long, data=b"long"),
            Member(odd, data=b"odd"),
            symlink("to-long", target),
            symlink("to-odd", odd),
            hardlink("more/long", long),
            form=form,
        )
    )

    assert (place.root / long).read_bytes() == b"long"
    assert (place.root / "more/long").read_bytes() == b"long"
    assert (place.root / odd).read_bytes() == b"odd"
    assert (place.root / "to-long").readlink() == Path(target)
    assert str((place.root / "to-odd").readlink()) == odd


def test_takes_ustar_names_in_two_parts(place: Place) -> None:
    """The prefix of a ustar header belongs to its name."""
    long = "/".join(["d" * 100, "e" * 90])

    place.unpack(tarball(Member(long, data=b"x"), form=tarfile.USTAR_FORMAT))

    assert (place.root / long).read_bytes() == b"x"


def test_takes_the_old_format(place: Place) -> None:
    """A type of NUL is a file, or, with a slash at its end, a folder."""
    place.unpack(tarball(Member("old/", tarfile.AREGTYPE), Member("old/file", tarfile.AREGTYPE, b"x")))

    assert (place.root / "old/file").read_bytes() == b"x"


def test_takes_sizes_from_pax(place: Place) -> None:
    """The size in an extended header wins over the header's."""
    pax = tar(Member("big", pax={"size": "5", "comment": "a=b\nc"}), form=tarfile.PAX_FORMAT)
    with_data = pax[:1536] + b"hello".ljust(512, b"\0") + tar(Member("next", data=b"x"))

    place.unpack(zipped(with_data))

    assert (place.root / "big").read_bytes() == b"hello"
    assert (place.root / "next").read_bytes() == b"x"


def test_passes_over_a_global_header(place: Place) -> None:
    """What `git archive` says of a whole archive names no member."""
    buffer = io.BytesIO()
    said = {"comment": "0" * 40, "path": "elsewhere"}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=said) as archive:
        archive.addfile(TarInfo("file"))

    place.unpack(zipped(buffer.getvalue()))

    assert [path.name for path in place.root.iterdir()] == ["file"]


def test_takes_folders_named_again(place: Place) -> None:
    """A folder may come again, or after what is in it; its last mode counts."""
    place.unpack(tarball(Member("a/b"), folder("a", 0o700), folder("./"), folder("a/.//", 0o750)))

    assert snapshot(place.root)["a"] == ("folder", 0o750, b"")


def test_takes_symlinks_that_stay_inside(place: Place) -> None:
    """A target may be missing, come later, be the root, or be another symlink."""
    targets = {
        "up/down/top": "../..",
        "later": "./up//last",
        "nowhere": "missing",
        "self": ".",
        "through": "later/x",
    }

    place.unpack(
        tarball(*(symlink(name, target) for name, target in targets.items()), Member("up/last", data=b"last"))
    )

    found = snapshot(place.root)
    assert {name: found[name][2].decode() for name in targets} == targets
    assert (place.root / "later").read_bytes() == b"last"


@pytest.mark.parametrize("chunk_bytes", [1, 7, 512, 1 << 30])
def test_takes_chunks_of_any_size(place: Place, chunk_bytes: int) -> None:
    """Also empty ones, and the archive as one."""
    data = tarball(*RUNNER)
    chunks = [b"", *pieces(data, chunk_bytes), b""]

    unpack(chunks, sha256=hashlib.sha256(data).hexdigest(), root=place.root)

    assert (place.root / "bin/Runner.Listener").stat().st_size == 1_024_000


def test_takes_many_gzip_members(place: Place) -> None:
    """A gzip file may have members, each a piece of the whole."""
    data = b"".join(zipped(piece) for piece in pieces(tar(*RUNNER), 3333))

    place.unpack(data, chunk_bytes=11)

    assert (place.root / "bin/Runner.Listener").stat().st_size == 1_024_000


@pytest.mark.parametrize("tail", [b"\0" * 700, b"garbage", zipped(b"more"), tarball(Member("more"))])
def test_bytes_after_the_end_count_for_the_digest(place: Place, tail: bytes) -> None:
    """They are hashed, and otherwise passed over."""
    whole = tarball(*RUNNER)

    with pytest.raises(DigestMismatchError):
        place.unpack(whole + tail, sha256=hashlib.sha256(whole).hexdigest())
    assert place.is_untouched()

    place.unpack(whole + tail)
    assert sorted(path.name for path in place.root.iterdir()) == ["bin", "externals", "run.sh"]


def test_writes_what_the_disk_takes_in_parts(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short write is followed by another."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:100]))

    place.unpack(tarball(Member("file", data=bytes(range(256)) * 20)))

    assert (place.root / "file").read_bytes() == bytes(range(256)) * 20


def await_file(path: Path) -> None:
    """What unpacks may be a thread of its own, a step behind."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not come"
        os.sched_yield()


@pytest.mark.usefixtures("umask")
def test_nothing_can_be_reached_before_the_end(place: Place) -> None:
    """Until the last byte is hashed, there is only a folder that nobody else may enter."""
    data = tarball(*RUNNER)

    def chunks() -> Iterator[bytes]:
        for chunk in pieces(data, 100):
            yield chunk
            assert place.staging().stat().st_mode & 0o7777 == 0o700
            assert not place.root.exists()
        await_file(place.staging() / "run.sh")

    unpack(chunks(), sha256=hashlib.sha256(data).hexdigest(), root=place.root)

    assert (place.root / "run.sh").exists()


# A root in use


def unread() -> Iterator[bytes]:
    pytest.fail("a chunk was read")
    yield b""


@pytest.mark.parametrize(
    ("occupy", "what"),
    [
        (lambda root: (root / "file").mkdir(parents=True), "is not empty: remove it"),
        (lambda root: root.write_text(""), "is not a folder: remove it"),
        (lambda root: root.symlink_to("empty"), "is not a folder: remove it"),
        (lambda root: root.symlink_to("missing"), "is not a folder: remove it"),
    ],
    ids=["full", "file", "symlink", "dangling"],
)
def test_refuses_a_root_in_use(place: Place, occupy: Callable[[Path], object], what: str) -> None:
    """It says what is there and what to do, before it reads anything."""
    (place.top / "empty").mkdir()
    occupy(place.root)
    before = snapshot(place.top)

    with pytest.raises(BinaryError, match=what) as caught:
        unpack(unread(), sha256="0" * 64, root=place.root)

    assert str(place.root) in str(caught.value)
    assert type(caught.value) is BinaryError
    assert snapshot(place.top) == before


def test_refuses_a_mount_point() -> None:
    """Nothing can be renamed to a mount point."""
    with pytest.raises(BinaryError, match=r"^/proc is a mount point"):
        unpack(unread(), sha256="0" * 64, root=Path("/proc"))


def test_leaves_a_root_that_fills_up_meanwhile(place: Place) -> None:
    """What somebody else puts there in the meantime is not replaced."""
    data = tarball(*RUNNER)

    def chunks() -> Iterator[bytes]:
        yield data
        place.root.mkdir()
        (place.root / "theirs").write_bytes(b"theirs")

    with pytest.raises(BinaryUnavailableError, match=r"runner': Directory not empty"):
        unpack(chunks(), sha256=hashlib.sha256(data).hexdigest(), root=place.root)

    assert [path.name for path in place.root.iterdir()] == ["theirs"]
    assert place.around() == place.before


# A runner that is to be replaced


def old_runner(root: Path) -> None:
    (root / "bin").mkdir(parents=True)
    (root / "bin/Runner.Listener").write_bytes(b"old")
    (root / "_work").mkdir(mode=0o500)


@pytest.mark.parametrize("mark", ["bin/Runner.Listener", "config.sh"])
def test_replaces_a_runner_if_asked(place: Place, mark: str) -> None:
    """Nothing of the old one is left, nor beside it; without being asked, it is in use."""
    old_runner(place.root)
    (place.root / "bin/Runner.Listener").rename(place.root / mark)
    with pytest.raises(BinaryError, match="is not empty"):
        place.unpack(tarball(*FEW))

    place.unpack(tarball(*FEW), replace=True)

    assert sorted(path.name for path in place.root.iterdir()) == ["link", "run.sh", "same"]
    assert place.around() == place.before


def test_replaces_only_what_was_verified(place: Place) -> None:
    """Until then, and after any failure, the old one is as it was."""
    old_runner(place.root)
    before = snapshot(place.top)

    def chunks() -> Iterator[bytes]:
        yield SMALL
        assert (place.root / "bin/Runner.Listener").read_bytes() == b"old"

    with pytest.raises(DigestMismatchError):
        unpack(chunks(), sha256="0" * 64, root=place.root, replace=True)
    with pytest.raises(ArchiveRefusedError):
        place.unpack(b"not gzip at all", replace=True)
    assert snapshot(place.top) == before


@pytest.mark.parametrize(
    ("occupy", "what"),
    [
        (lambda root: (root / "bin/Runner.Listener").mkdir(parents=True), "is not empty"),
        (lambda root: root.write_text(""), "is not a folder"),
        (lambda root: root.symlink_to("old"), "is not a folder"),
    ],
)
def test_replaces_nothing_but_a_runner(place: Place, occupy: Callable[[Path], object], what: str) -> None:
    """Whoever asks may have named a wrong folder."""
    old_runner(place.top / "old")
    occupy(place.root)
    before = snapshot(place.top)

    with pytest.raises(BinaryError, match=what):
        unpack(unread(), sha256="0" * 64, root=place.root, replace=True)

    assert snapshot(place.top) == before


def test_replaces_an_empty_or_a_missing_root(place: Place) -> None:
    """As without being asked."""
    place.unpack(SMALL, replace=True)
    remove_tree(place.root)
    place.root.mkdir()
    place.unpack(SMALL, replace=True)

    assert (place.root / "run.sh").is_file()
    assert place.around() == place.before


def test_leaves_what_comes_in_place_of_the_old_runner(place: Place) -> None:
    """It is looked at again before it is renamed."""
    old_runner(place.root)

    def chunks() -> Iterator[bytes]:
        yield SMALL
        remove_tree(place.root)
        (place.root / "theirs").mkdir(parents=True)

    with pytest.raises(BinaryUnavailableError, match="Directory not empty"):
        unpack(chunks(), sha256=hashlib.sha256(SMALL).hexdigest(), root=place.root, replace=True)

    assert [path.name for path in place.root.iterdir()] == ["theirs"]
    assert place.around() == place.before


def test_puts_the_old_runner_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the new one cannot take its place."""
    old_runner(place.root)
    before = snapshot(place.top)
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if target == place.root and (path / "run.sh").exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)

    with pytest.raises(BinaryUnavailableError, match="Input/output error"):
        place.unpack(SMALL, replace=True)

    assert snapshot(place.top) == before


def test_leaves_nothing_beside_an_old_runner_that_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be renamed either."""
    old_runner(place.root)
    before = snapshot(place.top)
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path == place.root:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)

    with pytest.raises(BinaryUnavailableError, match="busy"):
        place.unpack(SMALL, replace=True)

    assert snapshot(place.top) == before


def test_an_old_runner_that_cannot_be_removed_is_no_error(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is out of the way, and the next call tries again."""
    old_runner(place.root)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", fails_on("_work", errno.EBUSY, os.rmdir))
        place.unpack(SMALL, replace=True)
    assert (place.root / "run.sh").is_file()
    assert (place.staging() / "_work").is_dir()

    (place.root / "config.sh").touch()
    place.unpack(SMALL, replace=True)

    assert place.around() == place.before


# What a crash has left


def test_removes_what_the_dead_have_left(place: Place) -> None:
    """Also if nothing is unpacked then; a few at once."""
    for number in range(6):
        (place.top / f"{STAGING}dead{number}" / "bin").mkdir(parents=True, mode=0o500)

    place.unpack(SMALL)
    assert len(list(place.top.glob(f"{STAGING}*"))) == 2

    remove_tree(place.root)
    with pytest.raises(DigestMismatchError):
        place.unpack(SMALL, sha256="0" * 64)
    assert place.is_untouched()


def test_leaves_the_living_alone(place: Place) -> None:
    """Another call, here or in another process, that unpacks beside the same root."""

    def chunks() -> Iterator[bytes]:
        theirs = place.staging()
        with pytest.raises(DigestMismatchError):
            place.unpack(SMALL, sha256="0" * 64)
        assert place.staging() == theirs
        yield SMALL

    unpack(chunks(), sha256=hashlib.sha256(SMALL).hexdigest(), root=place.root)

    assert (place.root / "run.sh").is_file()


def test_leaves_what_only_looks_like_a_staging_folder(place: Place) -> None:
    """A symlink, a file, and what belongs to another root."""
    (place.top / f"{STAGING}link").symlink_to("outside")
    (place.top / f"{STAGING}file").write_bytes(b"x")
    (place.top / ".runner-2.staging-x").mkdir()
    before = snapshot(place.top)

    with pytest.raises(DigestMismatchError):
        place.unpack(SMALL, sha256="0" * 64)

    assert snapshot(place.top) == before


def test_takes_another_folder_where_its_own_was_taken_for_dead(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the making of a folder and its locking, another call may come."""
    flock, made = fcntl.flock, []

    def late(folder: int, operation: int) -> None:
        made.append(place.staging())
        if len(made) == 1:
            made[0].rmdir()
        flock(folder, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    place.unpack(SMALL)

    assert len(set(made)) == 2
    assert place.around() == place.before


def test_needs_no_locks(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems have none: nothing is taken for dead there."""

    def unsupported(_folder: int, _operation: int) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    (place.top / f"{STAGING}unknown").mkdir()

    place.unpack(SMALL)

    assert (place.root / "run.sh").is_file()
    assert place.staging().name == f"{STAGING}unknown"


# Other bytes than the trusted ones


def test_a_mismatch_names_both_digests(place: Place) -> None:
    """The text says what was expected and what came."""
    data = tarball(*RUNNER)
    actual, expected = hashlib.sha256(data).hexdigest(), "f" * 64

    with pytest.raises(DigestMismatchError, match=f"SHA-256 is {actual}, expected {expected}"):
        place.unpack(data, sha256=expected)

    assert place.is_untouched()


@pytest.mark.parametrize(
    "data",
    [tarball(Member("../x")) + bytes(100_000), b"", b"<html>", tarball(*RUNNER)[:-9], tar(*RUNNER)],
    ids=["hostile", "empty", "page", "cut", "uncompressed"],
)
def test_a_mismatch_wins_over_a_refusal(place: Place, data: bytes) -> None:
    """Wrong bytes are called that, and all of them are hashed; what they held is the error's cause."""
    with pytest.raises(DigestMismatchError, match=hashlib.sha256(data).hexdigest()) as caught:
        place.unpack(data, sha256="0" * 64)

    assert isinstance(caught.value.__cause__, ArchiveRefusedError)
    assert place.is_untouched()


FEW: Final = (
    folder("./"),
    Member("run.sh", data=b"#!/bin/sh\n" * 30, mode=0o755),
    symlink("link", "run.sh"),
    hardlink("same", "run.sh"),
)
SMALL: Final = tarball(*FEW)


@settings(deadline=None)
@given(
    st.one_of(
        st.integers(0, len(SMALL) * 8 - 1).map(lambda bit: flipped(SMALL, bit)),
        st.integers(0, len(SMALL) - 1).map(lambda size: SMALL[:size]),
        st.binary(min_size=1, max_size=3).map(lambda tail: SMALL + tail),
    ),
    st.integers(1, len(SMALL)),
)
def test_no_changed_byte_gets_through(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, chunk_bytes: int
) -> None:
    """A bit flipped, bytes missing or bytes added: a mismatch, and nothing is left."""
    place = place_in(tmp_path_factory.mktemp("place"))

    with pytest.raises(DigestMismatchError):
        place.unpack(data, sha256=hashlib.sha256(SMALL).hexdigest(), chunk_bytes=chunk_bytes)

    assert place.is_untouched()


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# The trusted bytes, but damaged


def damaged_header() -> bytes:
    whole = bytearray(tar(Member("one"), Member("two")))
    whole[512] ^= 1
    return zipped(bytes(whole))


def with_flipped(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "its tar data is cut off"),
        (b"not gzip at all", "Invalid gzip"),
        (with_flipped(SMALL, -8), "Incorrect checksum"),
        (with_flipped(SMALL, -4), "Incorrect checksum"),
        (damaged_header(), "bad checksum, header 2"),
        (zipped(tar(*RUNNER)[:-10240]), "its tar data is cut off"),
        (zipped(tar(*RUNNER)[:512]), "its tar data is cut off"),
        (zipped(tar(*RUNNER)[:2000]), "its tar data is cut off"),
        (zipped(b"no tar" * 200), "header 1"),
        *(
            (SMALL[:size], "is cut off")
            for size in (1, 9, 10, 30, len(SMALL) // 2, len(SMALL) - 8, len(SMALL) - 1)
        ),
    ],
)
def test_refuses_what_is_damaged(place: Place, data: bytes, why: str) -> None:
    """A cut or a wrong sum anywhere, even after the last member, is found."""
    with pytest.raises(ArchiveRefusedError, match=f"the archive is damaged: .*{why}"):
        place.unpack(data)

    assert place.is_untouched()


@settings(deadline=None, max_examples=300)
@given(
    block=st.sampled_from([0, 1, 3, 4]),
    changes=st.dictionaries(st.integers(0, 511), st.integers(0, 255), min_size=1, max_size=4),
    sealed=st.booleans(),
)
def test_any_header_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, *, block: int, changes: dict[int, int], sealed: bool
) -> None:
    """Whatever a header says, with or without its checksum: no error but a refusal, and nothing outside."""
    data = bytearray(tar(*FEW))
    start = 512 * block
    for position, byte in changes.items():
        data[start + position] = byte
    if sealed:
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    place = place_in(tmp_path_factory.mktemp("place"))

    with suppress(ArchiveRefusedError):
        place.unpack(zipped(bytes(data)))

    assert place.around() == place.before


@settings(max_examples=500)
@given(
    member=st.builds(
        Member,
        st.text("ab/.é\udcff", min_size=1, max_size=120),
        st.sampled_from(
            [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.AREGTYPE]
        ),
        mode=st.integers(0, 0o7777),
        target=st.text("ab/.é\udcff", max_size=100),
    ),
    form=st.sampled_from([0, 1]),  # ustar, GNU
    changes=st.dictionaries(st.integers(0, 511), st.sampled_from(b"\0 0178/\x80\xff"), max_size=2),
)
def test_headers_are_read_as_tarfile_reads_them(
    member: Member, form: Literal[0, 1], changes: dict[int, int]
) -> None:
    """The short way for plain headers says the same as the long one."""
    try:
        block = bytearray(member.info().tobuf(form)[-512:])
    except ValueError:  # too long for this format
        return
    for position, byte in changes.items():
        block[position] = byte
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    fields = ("name", "mode", "size", "type", "linkname")

    try:
        expected = TarInfo.frombuf(bytes(block), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        expected = None
    plain = _plain_member(bytes(block), ("utf-8", "surrogateescape"))

    if plain:
        assert expected
        assert [getattr(plain, name) for name in fields] == [getattr(expected, name) for name in fields]


def test_reads_plain_headers_the_short_way() -> None:
    """Those of an archive by GNU tar, of which there are thousands."""
    for member in RUNNER:
        assert _plain_member(member.info().tobuf(tarfile.GNU_FORMAT), ("utf-8", "surrogateescape"))


@pytest.mark.parametrize(
    "record",
    [
        b"garbage\n",
        b"0 path=x\n",
        b"6 a=b\n0 c=d\n",
        b"99 path=x\n",
        b"11 path x\n\n",
        b"5 a=b",
        b" 9 path=x\n",
    ],
)
def test_refuses_a_damaged_extended_header(place: Place, record: bytes) -> None:
    """A record of pax is `length key=value` and a newline, of that very length."""
    extended = header(Member("pax", tarfile.XHDTYPE), size=len(record)) + record.ljust(512, b"\0")

    with pytest.raises(ArchiveRefusedError, match="its extended header is damaged"):
        place.unpack(zipped(extended + tar(Member("file"))))

    assert place.is_untouched()


# Hostile members


HOSTILE: Final = {
    "parent": ([Member("../x")], "lead out"),
    "parent inside": ([Member("a/../b")], "lead out"),
    "parent at the end": ([folder("a/..")], "lead out"),
    "absolute": ([Member("/a/x")], "lead out"),
    "absolute root": ([folder("/")], "lead out"),
    "absolute symlink": ([symlink("s", "/etc/passwd")], "lead out"),
    "symlink up": ([symlink("s", "../outside/x")], "lead out"),
    "symlink up from below": ([symlink("a/s", "../../outside")], "lead out"),
    "symlink by a symlink": ([symlink("d/up", ".."), symlink("d/s", "up/../outside")], "lead out"),
    "symlink by a later one": ([symlink("d/s", "up/../outside"), symlink("d/up", "..")], "lead out"),
    "symlink by way of a name": ([folder("d/e"), symlink("d/s", "e/..")], "lead out"),
    "empty symlink": ([symlink("s", "")], "lead out"),
    "through a symlink": ([symlink("s", "."), Member("s/x")], "'s' is not a folder"),
    "through an earlier symlink": ([folder("d"), symlink("s", "d"), Member("s/x/y")], "'s' is not a folder"),
    "folder through a symlink": ([symlink("s", "."), folder("s/x")], "'s' is not a folder"),
    "symlink through a symlink": ([symlink("s", "."), symlink("s/x", "y")], "'s' is not a folder"),
    "below a file": ([Member("f"), Member("f/x")], "'f' is not a folder"),
    "hardlink to nothing": ([hardlink("h", "missing")], "'missing', which is no earlier file"),
    "hardlink to a later one": ([hardlink("h", "f"), Member("f")], "'f', which is no earlier file"),
    "hardlink to a symlink": ([symlink("s", "x"), hardlink("h", "s")], "'s', which is no earlier file"),
    "hardlink through a symlink": (
        [Member("d/f"), symlink("s", "d"), hardlink("h", "s/f")],
        "'s/f', which is no earlier file",
    ),
    "hardlink to a folder": ([folder("d"), hardlink("h", "d")], "'d', which is no earlier file"),
    "hardlink to the root": ([hardlink("h", ".")], "no earlier file"),
    "hardlink up": ([hardlink("h", "../outside/x")], "lead out"),
    "absolute hardlink": ([hardlink("h", "/etc/passwd")], "lead out"),
    "file twice": ([Member("f"), Member("./f")], "of this name already"),
    "file over a symlink": ([symlink("s", "x"), Member("s")], "of this name already"),
    "symlink over a file": ([Member("f"), symlink("f", "x")], "of this name already"),
    "symlink over a folder": ([folder("d"), symlink("d", "x")], "of this name already"),
    "folder over a symlink": ([symlink("s", "."), folder("s")], "of this name already"),
    "hardlink over a file": ([Member("f"), Member("g"), hardlink("g", "f")], "of this name already"),
    "file as the root": ([Member(".")], "of this name already"),
    "symlink as the root": ([symlink("./", "x")], "of this name already"),
    "character device": ([Member("null", tarfile.CHRTYPE)], "a character device"),
    "block device": ([Member("disk", tarfile.BLKTYPE)], "a block device"),
    "FIFO": ([Member("pipe", tarfile.FIFOTYPE)], "a FIFO"),
    "GNU sparse": ([Member("hole", tarfile.GNUTYPE_SPARSE)], "a sparse file"),
    "pax sparse": ([Member("hole", pax={"GNU.sparse.major": "1"})], "a sparse file"),
    "contiguous": ([Member("c", tarfile.CONTTYPE)], "of type b'7'"),
    "unknown type": ([Member("u", b"Z")], "of type b'Z'"),
    "setuid": ([Member("su", mode=0o4755)], "setuid or setgid"),
    "setgid": ([Member("sg", mode=0o2755)], "setuid or setgid"),
    "setgid folder": ([folder("sg", 0o2755)], "setuid or setgid"),
    "folder with data": ([Member("d", tarfile.DIRTYPE, b"x")], "its size is 1"),
    "hardlink with data": ([Member("f"), Member("h", tarfile.LNKTYPE, b"x", target="f")], "its size is 1"),
    "NUL in a name": ([Member("file", pax={"path": "a\0b"})], "has a NUL"),
    "NUL in a target": ([evolve(symlink("s", "x"), pax={"linkpath": "a\0b"})], "has a NUL"),
    "absolute name": ([Member("/x")], "lead out"),
    "parent beside another": ([Member("d/f"), Member("d/..")], "lead out"),
    "NUL beside another": ([Member("d/f"), Member("d/g", pax={"path": "d/a\0b"})], "has a NUL"),
    "long step beside another": ([Member("d/f"), Member("d/" + "n" * 256)], "over 255 bytes"),
    "setuid beside another": ([Member("d/f"), Member("d/g", mode=0o4755)], "setuid or setgid"),
    "file twice in a folder": ([Member("d/f"), Member("d/f")], "of this name already"),
    "long step": ([Member("n" * 256)], "over 255 bytes"),
    "parent in pax": ([Member("file", pax={"path": "../x"})], "lead out"),
    "target in pax": ([evolve(symlink("s", "x"), pax={"linkpath": "../x"})], "lead out"),
    "negative size in pax": ([Member("file", pax={"size": "-512"})], "its size is -1"),
    "endless size in pax": ([Member("file", pax={"size": "9" * 5000})], "its size is -1"),
}


@pytest.mark.parametrize(
    ("members", "why", "form"),
    [
        pytest.param(members, why, form, id=f"{name}, {'GNU' if form == tarfile.GNU_FORMAT else 'pax'}")
        for name, (members, why) in HOSTILE.items()
        for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
        if form == tarfile.PAX_FORMAT or not any(member.pax for member in members)
    ],
)
def test_refuses_hostile_members(place: Place, members: list[Member], why: str, form: int) -> None:
    """The text names the member and says why; nothing of the archive is left, and nothing else changed."""
    before = open_descriptors()

    with pytest.raises(ArchiveRefusedError, match=rf"member '.* is refused: .*({why})"):
        place.unpack(tarball(folder("./"), Member("first", data=b"x" * 3000), *members, form=form))

    assert place.is_untouched()
    assert open_descriptors() <= before


def test_refuses_negative_sizes(place: Place) -> None:
    """Sizes may be binary, and so negative: of a file and of an extended header."""
    for member in (Member("file"), Member("long", tarfile.GNUTYPE_LONGNAME), Member("pax", tarfile.XHDTYPE)):
        with pytest.raises(ArchiveRefusedError, match="-512"):
            place.unpack(zipped(header(member, size=-512) + bytes(1024)))

    assert place.is_untouched()


def test_shows_hostile_names_harmlessly(place: Place) -> None:
    """Control characters are escaped, and long names cut."""
    with pytest.raises(ArchiveRefusedError) as caught:
        place.unpack(tarball(Member("../\x1b[2J\n" + "n" * 900)))

    text = str(caught.value)
    assert text.isprintable()
    assert r"'../\x1b[2J\nnnn" in text
    assert len(text) < 500


PATHS: Final = st.builds(
    str.__add__,
    st.sampled_from(["", "", "", "/"]),
    st.lists(st.sampled_from(["a", "b", "l", "l", "x", "..", ".", "", "outside"]), max_size=5).map("/".join),
)
ANY_MEMBERS: Final = st.lists(
    st.builds(
        Member,
        PATHS,
        st.sampled_from(
            [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]
        ),
        mode=st.sampled_from([0o644, 0o777]),
        target=PATHS,
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=200)
@given(ANY_MEMBERS)
def test_nothing_ever_leads_out(tmp_path_factory: pytest.TempPathFactory, members: list[Member]) -> None:
    """Whatever members come in whatever order: nothing outside changes, and no link leads there."""
    place = place_in(tmp_path_factory.mktemp("place"))

    try:
        place.unpack(tarball(*members))
    except ArchiveRefusedError:
        assert place.is_untouched()
    else:
        inside = os.path.realpath(place.root)
        for path in place.root.rglob("*"):
            try:
                real = os.path.realpath(path, strict=True)
            except OSError:  # a loop, or a link to what is not there, leads nowhere
                real = str(path.parent.joinpath(path.readlink())) if path.is_symlink() else str(path)
                real = os.path.normpath(real)
            assert os.path.commonpath([inside, real]) == inside
    assert place.around() == place.before


# Any tree

NAMES: Final = (
    st.binary(min_size=1, max_size=9)
    .map(lambda name: name.replace(b"/", b"-").replace(b"\0", b"-"))
    .filter(lambda name: name not in {b".", b".."})
    .map(os.fsdecode)
)


Tree = tuple[Member, dict[str, "Tree"]]
"""A member that has no name yet, and what is in it."""


def members_of(tree: Tree, path: str = ".", depth: int = -1) -> Iterator[Member]:
    """The members of a tree, named; a symlink goes up no more often than it is deep."""
    member, entries = tree
    ups = member.target.count("../")
    yield evolve(member, name=path, target=member.target[3 * max(0, ups - depth) :])
    for name, entry in entries.items():
        yield from members_of(entry, f"{path}/{name}", depth + 1)


MODES: Final = st.integers(0, 0o777).map(lambda mode: mode | 0o400)
TARGETS: Final = st.builds(
    str.__add__, st.sampled_from(["", "../", "../../"]), st.lists(NAMES, min_size=1, max_size=3).map("/".join)
)
FOLDERS: Final = st.builds(folder, st.just(""), MODES)
LEAVES: Final = st.builds(symlink, st.just(""), TARGETS) | st.builds(
    Member, st.just(""), data=st.binary(max_size=1500), mode=MODES
)
TREES: Final[st.SearchStrategy[Tree]] = st.tuples(
    FOLDERS,
    st.dictionaries(
        NAMES,
        st.recursive(
            st.tuples(LEAVES, st.just({})),
            lambda trees: st.tuples(FOLDERS, st.dictionaries(NAMES, trees, max_size=5)),
            max_leaves=12,
        ),
        max_size=5,
    ),
)


@settings(deadline=None)
@given(TREES, st.data(), st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_any_tree_arrives(
    tmp_path_factory: pytest.TempPathFactory, tree: Tree, data: st.DataObject, form: int
) -> None:
    """Any tree of files, folders and symlinks is there afterwards, in whatever order its members come."""
    members = data.draw(st.permutations(list(members_of(tree))))
    place = place_in(tmp_path_factory.mktemp("place"))

    place.unpack(tarball(*members, form=form))

    expected = {}
    for member in members:
        name = member.name.removeprefix("./")
        match member.type:
            case tarfile.DIRTYPE:
                expected[name] = ("folder", (member.mode & 0o755 | 0o700) if name != "." else 0o755, b"")
            case tarfile.SYMTYPE:
                expected[name] = ("symlink", 0, os.fsencode(member.target))
            case _:
                expected[name] = ("file", member.mode & 0o755, member.data)
    assert snapshot(place.root) == expected
    assert place.around() == place.before


# Limits


def refused_by(place: Place, limits: ArchiveLimits, data: bytes, why: str) -> None:
    with pytest.raises(ArchiveRefusedError, match=why):
        place.unpack(data, limits=limits, chunk_bytes=len(data))
    assert place.is_untouched()


def test_limits_the_inflated_size(place: Place) -> None:
    """The tar's bytes count, all of them, to the last."""
    size = len(tar(*RUNNER))

    refused_by(place, ArchiveLimits(inflated_bytes=size - 1), tarball(*RUNNER), f"more than {size - 1} bytes")
    place.unpack(tarball(*RUNNER), limits=ArchiveLimits(inflated_bytes=size))


def test_limits_a_bomb_after_the_end(place: Place) -> None:
    """Also what is not unpacked, because the tar ended before it."""
    limits = ArchiveLimits(inflated_bytes=10_000_000)

    refused_by(place, limits, zipped(tar(*RUNNER) + bytes(20_000_000)), "more than 10000000 bytes")
    refused_by(place, limits, tarball(*RUNNER) + zipped(bytes(20_000_000)), "more than 10000000 bytes")


def test_a_bomb_takes_little_memory(place: Place) -> None:
    """What a chunk inflates to never stands in memory as a whole."""
    deflate = zlib.compressobj(wbits=31)
    bomb = deflate.compress(header(Member("bomb"), size=1 << 30))
    bomb += b"".join(deflate.compress(bytes(1 << 20)) for _ in range(200)) + deflate.flush()
    tracemalloc.start()

    refused_by(place, ArchiveLimits(inflated_bytes=190 << 20), bomb, "more than 199229440 bytes")

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_limits_the_members(place: Place) -> None:
    """Each header counts, also of a folder that is there already."""
    members = tarball(*[folder("./")] * 5)

    refused_by(place, ArchiveLimits(members=4), members, "more than 4 members")
    place.unpack(members, limits=ArchiveLimits(members=5))


def test_limits_the_folders_that_names_imply(place: Place) -> None:
    """One name may imply hundreds of folders."""
    deep = tarball(Member("d/" * 30 + "f"))

    refused_by(place, ArchiveLimits(members=31), deep, "more than 31 members")
    place.unpack(deep, limits=ArchiveLimits(members=32))


def test_limits_the_path(place: Place) -> None:
    """A name's bytes, and a target's."""
    limits = ArchiveLimits(path_bytes=20)
    long = "€" * 7

    for members in (
        [Member(long)],
        [Member("d/f"), Member(f"d/{long}")],
        [Member("d/f"), Member("d/" + "n" * 19)],
        [symlink("s", long)],
        [Member("f"), hardlink("h", long)],
    ):
        refused_by(place, limits, tarball(*members), "longer than 20 bytes")
    place.unpack(tarball(Member("€" * 6 + "ab")), limits=limits)


def test_limits_extended_headers(place: Place) -> None:
    """One that says it is huge is not read; any number of small ones takes no more stack than one."""
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE):
        huge = header(Member("huge", kind), size=6_000_000_000)
        refused_by(place, LIMITS, zipped(huge), "its extended header has 6000000000 bytes")
    many = header(Member("name", tarfile.GNUTYPE_LONGNAME), size=4) + b"file".ljust(512, b"\0")

    refused_by(
        place, ArchiveLimits(members=3000), zipped(many * 3001 + tar(Member("x"))), "than 3000 members"
    )
    place.unpack(zipped(many * 3000 + tar(Member("x"))))
    assert (place.root / "file").is_file()


# Failures on the way


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionResetError(errno.ECONNRESET, "reset"),
        EOFError("gone"),
        zlib.error("odd"),
        KeyboardInterrupt(),
    ],
)
@pytest.mark.parametrize("good_chunks", [0, 1, 3])
def test_what_the_chunks_raise_passes_as_it_is(
    place: Place, failure: BaseException, good_chunks: int
) -> None:
    """Also an OSError, which is not the disk's, in the middle of a file."""
    data = tarball(Member("noise", data=os.urandom(10_000)))
    before = open_descriptors()

    def chunks() -> Iterator[bytes]:
        yield from list(pieces(data, 2000))[:good_chunks]
        raise failure

    with pytest.raises(type(failure)) as caught:
        unpack(chunks(), sha256="0" * 64, root=place.root)

    assert caught.value is failure
    assert place.is_untouched()
    assert open_descriptors() <= before


def test_a_full_disk_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the file and the system's words."""
    write = os.write

    def full(file: int, data: memoryview) -> int:
        if STAGING in str(Path(f"/proc/self/fd/{file}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data)

    monkeypatch.setattr(os, "write", full)
    before = open_descriptors()

    with pytest.raises(BinaryUnavailableError, match=r"staging-\w+/run.sh': No space left on device"):
        place.unpack(tarball(*RUNNER))

    assert place.is_untouched()
    assert open_descriptors() <= before


def test_a_root_that_cannot_be_is_named(place: Place) -> None:
    """Here its parent is a file."""
    with pytest.raises(BinaryUnavailableError, match=r"/place/b/runner': File exists"):
        unpack(unread(), sha256="0" * 64, root=place.top / "b" / "runner")

    assert place.is_untouched()


@pytest.mark.parametrize(
    "intrude",
    [
        lambda staging: (staging / "bin").write_bytes(b"theirs"),
        lambda staging: (staging / "run.sh").mkdir(),
        lambda staging: (staging / "run.sh").symlink_to("../outside/x"),
        lambda staging: (staging / "bin").symlink_to("../outside"),
    ],
)
def test_never_writes_to_what_is_there(place: Place, intrude: Callable[[Path], object]) -> None:
    """What somebody puts into the staging folder is neither followed nor overwritten."""
    data = tarball(*RUNNER)

    def chunks() -> Iterator[bytes]:
        intrude(place.staging())
        yield data

    with pytest.raises(BinaryUnavailableError, match="File exists"):
        unpack(chunks(), sha256=hashlib.sha256(data).hexdigest(), root=place.root)

    assert place.is_untouched()


def test_removes_what_is_read_only(place: Place) -> None:
    """Folders that their owner may not change are no hindrance."""

    def chunks() -> Iterator[bytes]:
        shut = place.staging() / "shut"
        (shut / "inner").mkdir(parents=True)
        (shut / "inner/file").touch(0o400)
        for path in (shut / "inner", shut, place.staging()):
            path.chmod(0)
        yield b"not gzip"

    with pytest.raises(DigestMismatchError):
        unpack(chunks(), sha256="0" * 64, root=place.root)

    assert place.is_untouched()


def test_notes_what_could_not_be_removed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error that ended it is still the error."""
    monkeypatch.setattr(os, "rmdir", fails_on("", errno.EBUSY, os.rmdir))

    with pytest.raises(DigestMismatchError) as caught:
        place.unpack(tarball(*RUNNER), sha256="0" * 64)

    assert f"{STAGING}" in caught.value.__notes__[0]
    assert "Device or resource busy" in caught.value.__notes__[0]


def fails_on(name: str, number: int, function: Callable[..., object]) -> Callable[..., None]:
    """The function, but for any path with that name in it an OSError."""

    def failing(path: str, *, dir_fd: int | None = None) -> None:
        if name in str(path):
            raise OSError(number, os.strerror(number), path)
        function(path, dir_fd=dir_fd)

    return failing


# Cancelling


def test_can_be_cancelled_at_any_chunk_and_member(place: Place) -> None:
    """It asks at each, and leaves nothing whenever the answer is yes."""
    data = tarball(*RUNNER)
    chunks = len(list(pieces(data, 1000)))
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > patience

    patience = 0
    while True:
        asked = 0
        try:
            place.unpack(data, cancelled=cancelled)
        except UnpackCancelledError:
            assert place.is_untouched()
            patience += 1
        else:
            break

    assert patience >= chunks + len(RUNNER)


def test_can_be_cancelled_within_a_chunk(place: Place) -> None:
    """The archive may come as one chunk, and be one big file."""
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked == 15

    with pytest.raises(UnpackCancelledError):
        place.unpack(
            tarball(Member("big", data=os.urandom(5_000_000))), chunk_bytes=1 << 30, cancelled=cancelled
        )

    assert place.is_untouched()


def test_can_be_cancelled_after_the_last_chunk(place: Place) -> None:
    """The end of the bytes is the last chance."""
    data = tarball(*RUNNER)
    over = False

    def chunks() -> Iterator[bytes]:
        nonlocal over
        yield data
        over = True

    with pytest.raises(UnpackCancelledError):
        unpack(chunks(), sha256=hashlib.sha256(data).hexdigest(), root=place.root, cancelled=lambda: over)

    assert place.is_untouched()


def test_cancelling_ends_the_hashing_of_a_refused_archive(place: Place) -> None:
    """What is only read for its digest can be cancelled too."""
    came = 0

    def chunks() -> Iterator[bytes]:
        nonlocal came
        while True:
            came += 1
            yield b"not gzip"

    with pytest.raises(UnpackCancelledError) as caught:
        unpack(chunks(), sha256="0" * 64, root=place.root, cancelled=lambda: came == 100)

    assert isinstance(caught.value, AgentError)
    assert place.is_untouched()


# Threads


@pytest.fixture
def only_with_threads(threads: str) -> None:
    if threads != "threads":
        pytest.skip("it is about threads")


BIG: Final = tarball(Member("noise", data=os.urandom(3_000_000)), *FEW)


@pytest.mark.usefixtures("only_with_threads")
def test_reads_on_the_calling_thread(place: Place) -> None:
    """What gives the chunks needs no lock; the rest has threads of its own."""
    readers, others = set(), set()

    def chunks() -> Iterator[bytes]:
        for chunk in pieces(BIG, 100_000):
            readers.add(threading.current_thread())
            others.update(unpacking_threads())
            yield chunk

    unpack(chunks(), sha256=hashlib.sha256(BIG).hexdigest(), root=place.root)

    assert readers == {threading.current_thread()}
    assert others == {"unpacking: digest", "unpacking: inflate", "unpacking: write"}


@pytest.mark.usefixtures("only_with_threads")
@pytest.mark.parametrize("number", [0, 1, 2])
def test_works_with_too_few_threads(place: Place, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Then one does it all; those that had begun are gone by then."""
    monkeypatch.setattr(threading.Thread, "start", refused_from(number))

    def chunks() -> Iterator[bytes]:
        assert unpacking_threads() == []
        yield from pieces(BIG, 100_000)

    unpack(chunks(), sha256=hashlib.sha256(BIG).hexdigest(), root=place.root)

    assert (place.root / "noise").stat().st_size == 3_000_000


@pytest.mark.usefixtures("only_with_threads")
@pytest.mark.parametrize("stage", ["inflate", "write"])
def test_every_thread_asks_whether_it_is_cancelled(place: Place, stage: str) -> None:
    """One chunk may keep it busy for long."""

    def cancelled() -> bool:
        return threading.current_thread().name == f"unpacking: {stage}"

    with pytest.raises(UnpackCancelledError):
        place.unpack(BIG, chunk_bytes=len(BIG), cancelled=cancelled)

    assert place.is_untouched()


def test_a_full_disk_ends_the_reading(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody needs the rest of the bytes."""

    def full(_file: int, _data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def chunks() -> Iterator[bytes]:
        yield BIG
        while True:
            yield b"more"

    monkeypatch.setattr(os, "write", full)

    with pytest.raises(BinaryUnavailableError, match="No space left"):
        unpack(chunks(), sha256="0" * 64, root=place.root)

    assert place.is_untouched()


@pytest.mark.parametrize("where", ["digest", "inflate", "write"])
def test_a_fault_anywhere_ends_it(place: Place, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """It comes out as it is, and nobody waits for the stage that has died."""
    fault = MemoryError(where)

    def faulty(*_arguments: object) -> None:
        raise fault

    match where:
        case "digest":
            monkeypatch.setattr(hashlib, "sha256", lambda: SimpleNamespace(update=faulty))
        case "inflate":
            monkeypatch.setattr("agent_adapters.archive.inflated", lambda *_: map(faulty, [0]))
        case "write":
            monkeypatch.setattr(os, "fchmod", faulty)

    with pytest.raises(MemoryError) as caught:
        unpack(itertools.repeat(SMALL), sha256="0" * 64, root=place.root)

    assert caught.value is fault
    assert place.is_untouched()


def test_a_stage_that_dies_reads_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes to it would wait for room for ever."""

    def faulty(*_arguments: object) -> None:
        raise MemoryError

    work = _Work(iter([]), tmp_path, lambda: False, LIMITS)
    monkeypatch.setattr(work, "digest", SimpleNamespace(update=faulty))
    monkeypatch.setattr(work._tree, "add", faulty)
    for pipe, stage, data in (
        (work._to_digest, work._digest_all, b"x"),
        (work._to_unpack, work._unpack_all, tar(*FEW)),
    ):
        assert pipe.put(data)
        with pytest.raises(MemoryError):
            stage()
        assert not pipe.put(data)


@pytest.mark.parametrize(("piece_bytes", "pieces_at_once"), [(1, 10), (3000, 3), (1 << 20, 1)])
def test_a_pipe_is_bounded(monkeypatch: pytest.MonkeyPatch, piece_bytes: int, pieces_at_once: int) -> None:
    """It takes its bytes and one piece; any number of tiny pieces does not fit either."""
    pipe = Pipe(10_000)

    class WouldWait(Exception):  # noqa: N818 - no error
        pass

    def wait() -> None:
        raise WouldWait

    monkeypatch.setattr(pipe._changed, "wait", wait)
    for _ in range(2):
        for _ in range(pieces_at_once):
            assert pipe.put(bytes(piece_bytes))
        with pytest.raises(WouldWait):
            pipe.put(b"x")
        assert [next(iter(pipe)) for _ in range(pieces_at_once)] == [bytes(piece_bytes)] * pieces_at_once


def test_a_pipe_has_two_ends() -> None:
    """An error comes after all that was written before it; a writer hears when nobody reads any more."""
    pipe = Pipe(10)
    pipe.put(b"last")
    pipe.end(OSError("gone"))
    reader = iter(pipe)
    assert next(reader) == b"last"
    with pytest.raises(OSError, match="gone"):
        next(reader)

    pipe.close()
    assert [pipe.put(bytes(10)) for _ in range(3)] == [False] * 3


# Removing trees


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with a bit of everything in it, next to what must stay."""
    tree = tmp_path / "tree"
    (tree / "some/folder").mkdir(parents=True)
    (tree / "some/folder/file").write_bytes(b"x")
    (tree / "empty").mkdir()
    (tree / "outside").symlink_to("../outside")
    (tree / "dangling").symlink_to("missing")
    os.mkfifo(tree / "pipe")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_bytes(b"not yours")
    return tree


def test_removes_a_tree(tree: Path) -> None:
    """All that is in it, and nothing that it links to."""
    before = open_descriptors()

    remove_tree(tree)

    assert [path.name for path in tree.parent.iterdir()] == ["outside"]
    assert (tree.parent / "outside/file").read_bytes() == b"not yours"
    assert open_descriptors() <= before


def test_removing_what_is_not_there_is_nothing(tmp_path: Path) -> None:
    """Neither the path nor its parents."""
    remove_tree(tmp_path / "missing")
    remove_tree(tmp_path / "missing" / "below")


def test_removes_a_file_and_a_symlink(tree: Path) -> None:
    """The symlink, not what it points to."""
    remove_tree(tree / "outside")
    remove_tree(tree / "some/folder/file")

    assert not (tree / "outside").is_symlink()
    assert (tree.parent / "outside/file").exists()
    assert not (tree / "some/folder/file").exists()


def test_removes_a_relative_path(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path counts from the current folder."""
    monkeypatch.chdir(tree.parent)

    remove_tree(Path("tree"))

    assert not tree.exists()


def test_removes_read_only_trees(tree: Path) -> None:
    """Whatever the modes of folders and files."""
    (tree / "some/folder/file").chmod(0)
    for path in (tree / "some/folder", tree / "some", tree / "empty", tree):
        path.chmod(0)

    remove_tree(tree)

    assert not tree.exists()


def test_removes_names_that_are_no_text(tree: Path) -> None:
    """Bytes that are not UTF-8, and control characters."""
    for name in (b"\xff\xfe", b"\n", b"-rf", b" "):
        (tree / os.fsdecode(name) / os.fsdecode(name)).mkdir(parents=True)

    remove_tree(tree)

    assert not tree.exists()


def test_removes_trees_of_any_depth(tree: Path) -> None:
    """Deeper than a path can be long, a call stack high, or files open."""
    here = os.open(tree, os.O_PATH)
    for _ in range(1100):
        os.mkdir("deeper", dir_fd=here)
        inner = os.open("deeper", os.O_PATH, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(int(file.name) for file in Path("/proc/self/fd").iterdir()) + 10, hard)
    )
    try:
        remove_tree(tree)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert not tree.exists()


def test_removing_goes_on_when_things_vanish(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file or folder that somebody else removes first is a file or folder less."""

    def twice(function: Callable[..., None]) -> Callable[..., None]:
        def first_theirs(path: str, *, dir_fd: int) -> None:
            function(path, dir_fd=dir_fd)
            function(path, dir_fd=dir_fd)

        return first_theirs

    monkeypatch.setattr(os, "unlink", twice(os.unlink))
    monkeypatch.setattr(os, "rmdir", twice(os.rmdir))

    remove_tree(tree)

    assert not tree.exists()


def test_says_what_is_left(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first few by name, with the reason; all else is removed."""
    for number in range(9):
        (tree / f"some/folder/stuck-{number}").touch()
    monkeypatch.setattr(os, "unlink", fails_on("stuck", errno.EPERM, os.unlink))

    with pytest.raises(RunnerUnavailableError) as caught:
        remove_tree(tree)

    text = str(caught.value)
    assert f"'{tree}' could not be removed, 12 left: " in text
    assert text.count("stuck-") == 3
    assert f"{tree}/some/folder/stuck-" in text
    assert "Operation not permitted" in text
    assert {path.name for path in tree.rglob("*")} == {"some", "folder", *(f"stuck-{n}" for n in range(9))}


def test_does_not_take_missing_for_removed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it was told on the way, the path must be gone in the end."""
    monkeypatch.setattr(os, "unlink", fails_on("", errno.ENOENT, os.unlink))

    with pytest.raises(RunnerUnavailableError, match="could not be removed"):
        remove_tree(tree)


def test_says_which_folder_cannot_be_listed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged file system, for one; it is left."""
    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", fails_on("", errno.EIO, Path.iterdir))

        with pytest.raises(RunnerUnavailableError, match="tree': Input/output error"):
            remove_tree(tree)

    assert open_descriptors() <= before
    assert (tree / "some/folder/file").exists()


def test_says_what_comes_meanwhile(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file made in a folder just emptied is left over, and said to be."""
    rmdir = os.rmdir
    came = tree / "some/folder/came"

    def late(path: str, *, dir_fd: int) -> None:
        if path == "folder" and not (tree / "some/folder/file").exists():
            came.touch()
        rmdir(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", late)

    with pytest.raises(RunnerUnavailableError, match="some/folder': Directory not empty"):
        remove_tree(tree)

    assert came.exists()


@pytest.mark.parametrize("moved", ["some/folder", "some", "."])
def test_does_not_follow_a_folder_that_is_moved_away(
    tree: Path, moved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder moved while it is worked in leads up to a place that is not the tree's."""
    unlink = os.unlink
    elsewhere = tree.parent / "elsewhere"
    theirs = [elsewhere / name for name in ("tree", "some", "folder")]

    def moving(path: str, *, dir_fd: int) -> None:
        unlink(path, dir_fd=dir_fd)
        if path == "file":
            (tree / moved).rename(elsewhere / "moved")

    monkeypatch.setattr(os, "unlink", moving)
    for path in theirs:
        path.mkdir(parents=True)

    with pytest.raises(RunnerUnavailableError, match="moved while it was removed"):
        remove_tree(tree)

    assert all(path.exists() for path in theirs)


def test_does_not_follow_a_folder_that_becomes_a_symlink(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found a folder, opened a symlink: it is refused."""
    rmdir = os.rmdir

    def swapping(path: str, *, dir_fd: int) -> None:
        try:
            rmdir(path, dir_fd=dir_fd)
        finally:
            if path == "some":
                (tree / "some").rename(tree / "was-some")
                (tree / "some").symlink_to("../outside")

    monkeypatch.setattr(os, "rmdir", swapping)

    with pytest.raises(RunnerUnavailableError, match="some': Not a directory"):
        remove_tree(tree)

    assert (tree.parent / "outside/file").read_bytes() == b"not yours"


def test_leaves_mount_points(tree: Path) -> None:
    """Neither another file system nor a bind mount of the same one, of a folder or a file, is emptied."""
    for name in ("some/tmpfs", "some/bind"):
        (tree / name).mkdir()
    (tree / "bound").touch()
    script = textwrap.dedent(f"""
        set -e
        cd {tree}
        mount -t tmpfs none some/tmpfs
        touch some/tmpfs/file
        mount --bind ../outside some/bind
        mount --bind ../outside/file bound
        {sys.executable} - <<'END'
        from pathlib import Path
        from agent_adapters.removal import remove_tree
        try:
            remove_tree(Path({str(tree)!r}))
        except Exception as error:
            print(type(error).__name__, error)
        END
        find . -mindepth 1 | sort
    """)
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("this machine does not let us mount")

    ran = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )

    said, *left = ran.stdout.splitlines()
    assert said.startswith("RunnerUnavailableError")
    assert "Device or resource busy" in said
    assert left == [
        "./bound",
        "./some",
        "./some/bind",
        "./some/bind/file",
        "./some/tmpfs",
        "./some/tmpfs/file",
    ]
    assert (tree.parent / "outside/file").read_bytes() == b"not yours"

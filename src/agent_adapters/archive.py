"""The runner's tarball, from a stream of bytes to a folder in place.

`unpack` hashes, inflates and unpacks in one pass, into a folder that no other user can enter, and
renames it to the root once the digest matches. Until then the bytes are a stranger's.

Each of the three has a thread of its own, with bounded pipes between them, so that all take no longer than
the slowest: that is the inflating, nearly always. Where no thread can be had, one does it all in turn.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agent_adapters.pipeline import Pipe, Stage
from agent_adapters.staging import refuse_in_use, staging_beside
from agent_adapters.tarball import ArchiveLimits, TarBytes, inflated, members
from agent_adapters.tree import Tree
from agent_core.errors import AgentError, ArchiveRefusedError, DigestMismatchError

__all__ = ["UnpackCancelledError", "unpack"]


class UnpackCancelledError(AgentError):
    """Unpacking ended because it was asked to."""


_DEFAULT_LIMITS: Final = ArchiveLimits()
_STEP_BYTES: Final = 256 * 1024

_COMPRESSED_BYTES: Final = 8 * 1024**2  # in each of two pipes, which share most of them
_INFLATED_BYTES: Final = 16 * 1024**2

_Step = bytes | memoryview


def _never() -> bool:
    return False


def unpack(
    chunks: Iterable[bytes],
    *,
    sha256: str,
    root: Path,
    cancelled: Callable[[], bool] = _never,
    limits: ArchiveLimits = _DEFAULT_LIMITS,
    replace: bool = False,
) -> None:
    """Leaves the gzip tarball in `root`, verified, with mode 0755; or nothing, and `root` as it was.

    Every byte counts for the digest (64 hex digits, lower case), also after the archive's end. All
    belongs to the current user; files keep their permissions but for writing by others, folders
    moreover are their owner's to change. A name that comes twice is refused, unless both are folders.

    `chunks` is read on the calling thread. Beyond the chunk in hand, 40 MiB are in memory at most.

    Args:
        chunks: the tarball's bytes, in pieces of any size.
        sha256: of all the bytes.
        root: where the runner is to be; its parents are made.
        cancelled: is asked for each member, for each step of 256 KiB and for each MiB inflated; by several
            threads, so it must not mind.
        limits: what the archive may ask of the disk.
        replace: a runner's folder in `root` is no hindrance: it is removed once the new one is verified.

    Raises:
        BinaryError: `root` is in use; no chunk was read.
        DigestMismatchError: these are other bytes, whatever else is wrong with them.
        ArchiveRefusedError: these are the right bytes, but damaged or hostile.
        BinaryUnavailableError: the local disk failed or is full.
        UnpackCancelledError: `cancelled()` was true.
        Exception: what `chunks` raises, as it is.
    """
    root = root.absolute()
    refuse_in_use(root, replace=replace)
    with staging_beside(root) as staging:
        work = _Work(_steps(chunks, cancelled), staging.path, cancelled, limits)
        refusal = work.do()
        actual = work.digest.hexdigest()
        if actual != sha256:
            raise DigestMismatchError(f"the archive's SHA-256 is {actual}, expected {sha256}") from refusal
        if refusal:
            raise refusal
        staging.place(replace=replace)


def _poll(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise UnpackCancelledError("unpacking was cancelled")


def _steps(chunks: Iterable[bytes], cancelled: Callable[[], bool]) -> Iterator[memoryview]:
    for chunk in chunks:
        for start in range(0, len(chunk), _STEP_BYTES):
            _poll(cancelled)
            yield memoryview(chunk)[start : start + _STEP_BYTES]
    _poll(cancelled)


class _Work:
    """One tarball into one folder, and its digest."""

    def __init__(
        self,
        steps: Iterator[memoryview],
        folder: Path,
        cancelled: Callable[[], bool],
        limits: ArchiveLimits,
    ) -> None:
        self._steps, self._cancelled, self._limits = steps, cancelled, limits
        self._tree = Tree(folder, limits)
        self._refusal: ArchiveRefusedError | None = None
        self._to_digest, self._to_inflate = Pipe(_COMPRESSED_BYTES), Pipe(_COMPRESSED_BYTES)
        self._to_unpack = Pipe(_INFLATED_BYTES)
        self.digest = hashlib.sha256()

    def do(self) -> ArchiveRefusedError | None:
        """Returns when every byte is hashed, with why the archive is refused."""
        with self._stages() as stages:
            if stages:
                self._feed(stages)
            else:
                self._alone()
        return self._refusal

    def _alone(self) -> None:
        hashed = self._hashed()
        self._unpack(inflated(hashed, self._limits))
        for _ in hashed:
            pass

    def _hashed(self) -> Iterator[memoryview]:
        for step in self._steps:
            self.digest.update(step)
            yield step

    @contextmanager
    def _stages(self) -> Iterator[list[Stage]]:
        """All of them, or none where there are too few threads; at the end, none is left."""
        stages: list[Stage] = []
        try:
            try:
                for name, stage in (
                    ("unpacking: digest", self._digest_all),
                    ("unpacking: inflate", self._inflate_all),
                    ("unpacking: write", self._unpack_all),
                ):
                    stages.append(Stage(name, stage))
            except RuntimeError:
                self._end(stages)
                stages = []
            yield stages
        finally:
            self._end(stages)

    def _end(self, stages: list[Stage]) -> None:
        """Whatever they do or wait for; those that have ended do not mind."""
        for pipe in (self._to_digest, self._to_inflate, self._to_unpack):
            pipe.close()
        for stage in stages:
            stage.join()

    def _feed(self, stages: list[Stage]) -> None:
        for step in self._steps:
            self._to_digest.put(step)
            self._to_inflate.put(step)
            for stage in stages:
                stage.check()
        self._to_digest.end()
        self._to_inflate.end()
        for stage in stages:
            stage.join()
            stage.check()

    def _digest_all(self) -> None:
        try:
            for step in self._to_digest:
                self.digest.update(step)
        finally:
            self._to_digest.close()

    def _inflate_all(self) -> None:
        error = None
        try:
            for piece in inflated(self._to_inflate, self._limits):
                _poll(self._cancelled)
                if not self._to_unpack.put(piece):
                    break
        except BaseException as raised:  # noqa: BLE001 - raised by whoever reads the pieces, after the last one
            error = raised
        self._to_inflate.close()
        self._to_unpack.end(error)

    def _unpack_all(self) -> None:
        try:
            self._unpack(iter(self._to_unpack))
        finally:
            self._to_unpack.close()

    def _unpack(self, pieces: Iterator[_Step]) -> None:
        try:
            tar = TarBytes(pieces)
            for member in members(tar, self._limits):
                _poll(self._cancelled)
                self._tree.add(member, tar)
            tar.drain()
        except ArchiveRefusedError as error:
            self._refusal = error

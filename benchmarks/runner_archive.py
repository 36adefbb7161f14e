"""A runner's archive, for benchmarks: as big as the real one, of as many files, and as hard to inflate."""

import hashlib
import io
import random
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, chain
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Archive", "make_archive"]

_SEED: Final = 2_336_000

_MIB: Final = 1024**2
_NODES: Final = ("node20", "node20_alpine", "node24", "node24_alpine")
_NODE_BYTES: Final = 95 * _MIB
_LIBRARIES: Final = 340
_SCRIPTS: Final = 4160  # for each node
_FILES_IN_A_PACKAGE: Final = 42
_FILES_IN_A_FOLDER: Final = 7

_COMPRESSED_AT_ONCE: Final = _MIB
_WINDOW_BYTES: Final = 32 * 1024  # how far DEFLATE looks back


class Archive(NamedTuple):
    """The tarball, with and without gzip, and the digest of the first."""

    gzipped: Path
    inflated: Path
    files: int
    sha256: str

    def __str__(self) -> str:
        gzipped, inflated = (path.stat().st_size / 1e6 for path in (self.gzipped, self.inflated))
        return f"{self.files} files, {inflated:.0f} MB, {gzipped:.0f} MB compressed\n"


class Stuff:
    """Content that compresses like the real one: words, some more common than others."""

    def __init__(self, random_: random.Random, words: list[bytes], noise_every: int = 0) -> None:
        cumulated = list(accumulate(1 / (rank + 2) for rank in range(len(words))))
        chosen = random_.choices(words, cum_weights=cumulated, k=1_200_000)
        if noise_every:
            for position in range(0, len(chosen), noise_every):
                chosen[position] = random_.randbytes(random_.randint(1, 6))
        self._random, self._pool = random_, b"".join(chosen)

    def take(self, size: int) -> bytes:
        """Cuts from all over the pool: whatever comes twice is too far away for gzip to notice."""
        parts = []
        while size:
            part = min(size, self._random.randint(20_000, 60_000))
            start = self._random.randrange(len(self._pool) - part)
            parts.append(self._pool[start : start + part])
            size -= part
        return b"".join(parts)


def make_archive(folder: Path) -> Archive:
    """About 17,000 files, 630 MB, 240 MB compressed: as actions-runner-linux-x64 2.33x."""
    inflated, gzipped = folder / "runner.tar", folder / "runner.tar.gz"
    files = 0
    with tarfile.open(inflated, "w", format=tarfile.GNU_FORMAT) as tar:
        folders: set[Path] = set()
        for name, content, mode in contents(random.Random(_SEED)):  # noqa: S311 - a seed decides
            for parent in reversed(Path(name).parents):
                if parent not in folders:
                    folders.add(parent)
                    tar.addfile(header(f"./{parent}", tarfile.DIRTYPE, 0o755, 0))
            tar.addfile(header(f"./{name}", tarfile.REGTYPE, mode, len(content)), io.BytesIO(content))
            files += 1
    compress(inflated, gzipped)
    with gzipped.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Archive(gzipped, inflated, files, digest)


def header(name: str, kind: bytes, mode: int, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size = kind, mode, size
    return info


def contents(random_: random.Random) -> Iterator[tuple[str, bytes, int]]:
    """Name, content and mode of each file."""
    binary = Stuff(random_, [random_.randbytes(random_.randint(1, 20)) for _ in range(1500)], noise_every=6)
    letters = b"etaoinshrdlucmfwypvbgkjqxz_$.();{}=, \n"
    weights = [1 / (rank + 3) for rank in range(len(letters))]
    text = Stuff(
        random_, [bytes(random_.choices(letters, weights, k=random_.randint(2, 11))) for _ in range(4000)]
    )

    def some(typical: float, most: int) -> int:
        return min(most, int(random_.lognormvariate(typical, 1.3)))

    for name in ("config.sh", "run.sh", "env.sh"):
        yield name, text.take(2000), 0o755
    for name in ("Runner.Listener", "Runner.Worker"):
        yield f"bin/{name}", binary.take(70_000), 0o755
    for number in range(_LIBRARIES):
        yield f"bin/System.{number}.dll", binary.take(some(12.3, 6_000_000)), 0o644
    for node in _NODES:
        top = f"externals/{node}"
        yield f"{top}/bin/node", binary.take(_NODE_BYTES), 0o755
        for number in range(_SCRIPTS):
            package, place = number // _FILES_IN_A_PACKAGE, number // _FILES_IN_A_FOLDER % 3
            yield (
                f"{top}/lib/node_modules/npm/node_modules/package-{package}/lib/{place}/{number}.js",
                text.take(some(7.7, 2_000_000)),
                0o644,
            )


def compress(plain: Path, gzipped: Path) -> None:
    """As `gzip -6`, on all cores: piece by piece, each knowing the one before."""
    data = plain.read_bytes()
    starts = range(0, len(data), _COMPRESSED_AT_ONCE)

    def deflated(start: int) -> bytes:
        before = data[max(0, start - _WINDOW_BYTES) : start]
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS, zdict=before)
        is_last = start + _COMPRESSED_AT_ONCE >= len(data)
        piece = deflate.compress(data[start : start + _COMPRESSED_AT_ONCE])
        return piece + deflate.flush(zlib.Z_FINISH if is_last else zlib.Z_SYNC_FLUSH)

    trailer = zlib.crc32(data).to_bytes(4, "little") + (len(data) % 2**32).to_bytes(4, "little")
    with ThreadPoolExecutor() as pool, gzipped.open("wb") as stream:
        stream.writelines(
            chain([b"\x1f\x8b\x08" + bytes(6) + b"\x03"], pool.map(deflated, starts), [trailer])
        )

"""How long it takes to put a runner in place, against `curl`, `sha256sum` and `tar` one after the other.

    .venv/bin/python benchmarks/provisioning.py [--rounds N]

Ours is the cache of profile `aws`: parallel ranged reads from an S3, through boto3, into the unpacker. The
archive is as big as the runner's, made anew from a seed; the S3 is a process of its own on 127.0.0.1, and so
is each contender. Everything is in memory (/dev/shm), so that no disk is measured.

What is not counted: starting the agent, importing boto3, and making the client. In production, a thread has
done that while the config was fetched. Exit status 1: a figure is missed.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from figures import Figure, medians, memory_bytes, print_table, report
from local_s3 import s3_of
from runner_archive import Archive, make_archive

_CURL_AND_TAR: Final = "curl, sha256sum -c, tar -xzf"
_TAR: Final = "tar -xf, inflated before"
_OURS: Final = "the cache in S3, unpacked"

_MOST_OF_CURL_AND_TAR: Final = 0.45
_MOST_OF_TAR: Final = 3.0
_GROWTH_MEBIBYTES: Final = 160
"""The parts that are asked for ahead, what unpacking has in its pipes (both state how much), and the
allocator's share."""

_MEBIBYTE: Final = 2**20
_RESET_PEAK: Final = "5"


def main() -> int:
    """The exit status: 1 if a figure is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of each; the median counts (5)")
    options = parser.parse_args()
    memory = Path("/dev/shm")  # noqa: S108 - tmpfs, wherever there is one
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        archive = make_archive(Path(folder))
        print(archive)
        growths: list[int] = []
        with s3_of(archive.gzipped) as url:
            contenders = {
                _CURL_AND_TAR: partial(by_curl_and_tar, url, archive),
                _TAR: partial(by_tar, archive),
                _OURS: partial(by_cache, url, archive, growths),
            }
            median, measured = medians(
                {name: partial(in_new_folder, place, Path(folder)) for name, place in contenders.items()},
                options.rounds,
            )
    print_table(measured, "s")
    ours = median[_OURS]
    return report(
        [
            Figure(
                "time against curl, sha256sum, tar -xzf", ours / median[_CURL_AND_TAR], _MOST_OF_CURL_AND_TAR
            ),
            Figure("time against tar -xf", ours / median[_TAR], _MOST_OF_TAR),
            Figure("growth of memory at its worst", max(growths) / _MEBIBYTE, _GROWTH_MEBIBYTES, "MiB"),
        ]
    )


# The contenders: each returns its seconds


def in_new_folder(place: Callable[[Path], float], folder: Path) -> float:
    """What it measured, once there is a runner in a new folder; to remove it takes nobody's time."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        seconds = place(Path(scratch))
        if not (Path(scratch) / "runner/bin/Runner.Listener").is_file():
            raise RuntimeError("there is no runner afterwards")
    return seconds


def by_curl_and_tar(url: str, archive: Archive, scratch: Path) -> float:
    check = f"echo '{archive.sha256}  f' | sha256sum -c --quiet"
    return timed(
        ["sh", "-c", f"mkdir runner && curl -sf -o f {url}/ && {check} && tar -xzf f -C runner"], scratch
    )


def by_tar(archive: Archive, scratch: Path) -> float:
    return timed(["sh", "-c", f"mkdir runner && tar -xf {archive.inflated} -C runner"], scratch)


def timed(command: list[str], scratch: Path) -> float:
    begin = time.perf_counter()
    subprocess.run(command, cwd=scratch, check=True)
    return time.perf_counter() - begin


def by_cache(url: str, archive: Archive, growths: list[int], scratch: Path) -> float:
    """By a process that has its client; it measures itself, and its memory too."""
    environment = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
    }
    child = subprocess.run(
        [sys.executable, __file__, "ours", archive.sha256, scratch / "runner"],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    measured = json.loads(child.stdout)
    growths.append(measured["growth"])
    return float(measured["seconds"])


# Ours, in that process


async def provision(sha256: str, root: Path) -> None:
    """Prints what it took to install from the cache; the origin behind it is never asked."""
    from agent_adapters.aws.binary_store import S3BinaryStore  # noqa: PLC0415 - only this process needs it
    from agent_adapters.aws.clients import AwsClients  # noqa: PLC0415
    from agent_adapters.github import GitHubBinaryStore  # noqa: PLC0415
    from agent_core.model import Release  # noqa: PLC0415

    clients = AwsClients("us-east-1")
    clients.get("s3")
    nowhere = "http://127.0.0.1:9"
    store = S3BinaryStore(clients, "cache", GitHubBinaryStore(nowhere, nowhere, root), root)
    release = Release(version="2.336.0", arch="x64", sha256=sha256)
    resting = resting_bytes()
    begin = time.perf_counter()
    await store.install(release, lambda _done, _total: None, refuse)
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "growth": memory_bytes("VmHWM") - resting}))


def refuse(warning: str) -> None:
    raise RuntimeError(warning)


def resting_bytes() -> int:
    """Of memory, now; a peak that is behind us counts no more."""
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK, "ascii")
    return memory_bytes("VmRSS")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["ours", digest, runner_dir]:
            asyncio.run(provision(digest, Path(runner_dir)))
        case _:
            sys.exit(main())

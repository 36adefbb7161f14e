"""Log delivery against watchtower, into a stub of CloudWatch Logs that counts; and its memory in a flood.

    .venv/bin/python benchmarks/delivery.py [--rounds N] [--bytes N]

Each measurement is a process of its own, and so is the stub. It begins with the first line, when all is
imported and connected, and ends when the last line is delivered. Exit status 1: a figure is missed.
"""

import argparse
import asyncio
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from datetime import UTC, datetime
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

from attrs import frozen

from figures import Figure, report

_LINES: Final = 200_000
_TEXT: Final = "0123456789 " + "the job prints what it does, line by line, and all of it has to arrive; " * 2
_LINE_BYTES: Final = 110
_LONG_LINE_BYTES: Final = 20_000
_LONG_LINES: Final = 1000
"""One line of so many is long, where some are."""
_READ_BYTES: Final = 64 * 1024
"""What the reader of the runner's output takes at a time; then others have the loop."""
_BEAT_SECONDS: Final = 0.005
_MEBIBYTE: Final = 2**20
_AWAY_BYTES: Final = 256_000_000

_STEADY_BYTES_PER_SECOND: Final = 5_000_000
_STEADY_SECONDS: Final = 5

_LINES_RATIO: Final = 3
_CPU_RATIO: Final = 0.33
_GROWTH_MEBIBYTES: Final = 64
"""What waits, 8 MiB as CloudWatch Logs counts, is up to three times as much in Python. A batch in flight is
there as strings, as JSON, and as the bytes to send. The rest is for the allocator."""
_STALL_MILLISECONDS: Final = 50


# The stub


class _Stub(BaseHTTPRequestHandler):
    """Answers PutLogEvents, and what comes before it; `/counts` tells what came since it was last asked."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet: the second one would wait for the first to be acknowledged
    away = False
    events = batches = out_of_order = 0
    next_number = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if _Stub.away:
            self._answer(503, {"__type": "ServiceUnavailableException"})
            return
        if self.headers["X-Amz-Target"].endswith(".PutLogEvents"):
            _Stub._count(body)
        self._answer(200, {"logStreams": []} if "Describe" in self.headers["X-Amz-Target"] else {})

    def do_GET(self) -> None:
        _Stub.away = self.path == "/away"
        counts = {name: getattr(_Stub, name) for name in ("events", "batches", "out_of_order")}
        if self.path == "/counts":
            _Stub.events = _Stub.batches = _Stub.out_of_order = _Stub.next_number = 0
        self._answer(200, counts)

    @classmethod
    def _count(cls, body: bytes) -> None:
        """Looks at the numbers of the first and of the last line only: it must not be what is waited for."""
        events = body.count(b'"timestamp"')
        mark = b'"message": "'
        first, last = (find(mark) + len(mark) for find in (body.find, body.rfind))
        numbers = [int(body[at : at + 10]) for at in (first, last)]
        if numbers != [cls.next_number, cls.next_number + events - 1]:
            cls.out_of_order += 1
        cls.next_number = numbers[1] + 1
        cls.events += events
        cls.batches += 1

    def _answer(self, status: int, answer: Mapping[str, object]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def _serve() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Stub)
    print(server.server_port, flush=True)
    server.serve_forever()


def _ask_stub(path: str) -> dict[str, int]:
    connection = HTTPConnection(os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"))
    connection.request("GET", path)
    counts: dict[str, int] = json.load(connection.getresponse())
    connection.close()
    return counts


@contextmanager
def _stub() -> Iterator[None]:
    """In another process, for as long; whoever is started meanwhile takes it for AWS."""
    process = subprocess.Popen([sys.executable, __file__, "stub"], stdout=subprocess.PIPE, text=True)
    with process:
        if process.stdout is None:
            raise AssertionError
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(process.stdout.readline())}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        try:
            yield
        finally:
            process.kill()


# What is measured, each in a process of its own


class _Meter:
    """Seconds, processor seconds, and the growth of memory, from its making on."""

    def __init__(self) -> None:
        _ask_stub("/counts")
        self._resting = int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()
        self._cpu, self._begun = _cpu_seconds(), time.perf_counter()

    def read(self, **more: object) -> None:
        """Prints what was measured, for the process that waits for it."""
        seconds, cpu = time.perf_counter() - self._begun, _cpu_seconds() - self._cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "cpu": cpu, "growth": peak - self._resting, **more}))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _lines(count: int) -> Iterator[str]:
    text = _TEXT[: _LINE_BYTES - 11]
    return (f"{number:010} {text}" for number in range(count))


def _lines_of(size: int) -> Iterator[str]:
    """So many bytes, some lines of them long."""
    text = _TEXT[: _LINE_BYTES - 11]
    long = (_TEXT * (_LONG_LINE_BYTES // len(_TEXT) + 1))[: _LONG_LINE_BYTES - 11]
    number = 0
    while size > 0:
        line = f"{number:010} {text if number % _LONG_LINES else long}"
        size -= len(line)
        number += 1
        yield line


def _watchtower() -> None:
    import boto3  # noqa: PLC0415 - what one measurement needs is no other's memory
    import watchtower  # noqa: PLC0415

    handler: Any
    logger = logging.getLogger("job")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = watchtower.CloudWatchLogHandler("group", "stream", boto3_client=boto3.client("logs"))
    logger.addHandler(handler)
    logger.info("0000000000 makes the stream, and connects")
    handler.flush()
    meter = _Meter()
    for line in _lines(_LINES):
        logger.info(line)
    handler.flush()
    handler.close()
    meter.read()


async def _ours(scene: str, size: int) -> None:
    """Writes so many bytes, and delivers them.

    `race`: as many lines as watchtower gets; `steady`: at a job's pace; `flood`: at full speed; `away`: the
    same, while nobody takes them.
    """
    from agent_adapters.aws.clients import AwsClients  # noqa: PLC0415 - as above
    from agent_adapters.aws.log_sink import CloudWatchLogSink  # noqa: PLC0415
    from agent_adapters.spool import FileLogSpool  # noqa: PLC0415
    from agent_core.delivery import LogDelivery  # noqa: PLC0415
    from agent_core.model import LogEvent  # noqa: PLC0415

    def now() -> datetime:
        return datetime.now(UTC)  # noqa: TID251 - as at the composition root

    sink = CloudWatchLogSink(AwsClients("us-east-1"), "group")
    await sink.put("stream", [LogEvent(0, "0000000000 makes the stream, and connects")])
    with tempfile.TemporaryDirectory() as folder:
        spool = FileLogSpool(Path(folder) / "spool")
        delivery = LogDelivery(sink, spool, now=now, rng=Random(0), warn=_ignore)  # noqa: S311 - for jitter
        delivery.open("stream")
        beats = asyncio.create_task(_beat(stalls := [0.0]))
        meter = _Meter()
        if scene == "away":
            _ask_stub("/away")
        lines = _lines(_LINES) if scene == "race" else _lines_of(size)
        rate = _STEADY_BYTES_PER_SECOND if scene == "steady" else None
        spooled = await _write(delivery.write, spool, lines, rate)
        if scene == "away":
            _ask_stub("/back")
        stats = await delivery.drain(60, 3600)
        meter.read(accepted=stats.accepted, delivered=stats.delivered, spooled=spooled, stall=stalls[0])
        beats.cancel()


def _ignore(_: str) -> None:
    pass


async def _write(write: Callable[[str], None], spool: Sized, lines: Iterator[str], rate: int | None) -> int:
    """As the reader of the runner's output does, `rate` bytes a second; the most that was in the spool."""
    loop = asyncio.get_running_loop()
    spooled = read = 0
    due = loop.time()
    for line in lines:
        write(line)
        read += len(line)
        if read >= _READ_BYTES:
            spooled = max(spooled, len(spool))
            due += read / rate if rate else 0
            read = 0
            await asyncio.sleep(due - loop.time())
    return spooled


async def _beat(longest: list[float]) -> None:
    """Notes by how much the loop was late at worst for somebody who needed it."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _BEAT_SECONDS
        await asyncio.sleep(_BEAT_SECONDS)
        longest[0] = max(longest[0], loop.time() - due)


# Figures


@frozen
class _Run:
    """What one process measured, and what the stub got meanwhile."""

    seconds: float
    cpu: float
    growth: int
    stub: Mapping[str, int]
    accepted: int = 0
    delivered: int = 0
    spooled: int = 0
    stall: float = 0.0

    @property
    def astray(self) -> int:
        """Lines that did not arrive, or more than once, and batches that are not the next ones."""
        return (
            abs(self.accepted - self.delivered)
            + abs(self.accepted - self.stub["events"])
            + self.stub["out_of_order"]
        )


def _measure(*what: str) -> _Run:
    child = subprocess.run([sys.executable, __file__, *what], stdout=subprocess.PIPE, check=True)
    return _Run(**json.loads(child.stdout), stub=_ask_stub("/counts"))


def _race(rounds: int) -> list[Figure]:
    """Rounds in turn, so that what else the machine does hits both."""
    both = [(_measure("watchtower"), _measure("race", "0")) for _ in range(rounds)]
    theirs, ours = zip(*both, strict=True)
    speeds = [_LINES / median(run.seconds for run in runs) for runs in (theirs, ours)]
    costs = [median(run.cpu for run in runs) / _LINES * 1e6 for runs in (theirs, ours)]
    for name, speed, cost in zip(("watchtower", "ours"), speeds, costs, strict=True):
        print(f"{name}: {speed:,.0f} lines/s, {cost:.1f} µs of CPU per line")
    return [
        Figure("lines per second against watchtower", speeds[1] / speeds[0], _LINES_RATIO, bound="at least"),
        Figure("CPU per line against watchtower", costs[1] / costs[0], _CPU_RATIO),
        Figure("lines lost, repeated or out of order", sum(run.astray for run in ours), 0),
    ]


def _scene(scene: str, name: str, size: int) -> list[Figure]:
    run = _measure(scene, str(size))
    print(
        f"{name}: {size / 1e6:,.0f} MB, {run.accepted:,} lines in {run.seconds:.1f} s, "
        f"{run.cpu / run.accepted * 1e6:.1f} µs of CPU per line, {run.spooled:,} in the spool at most, "
        f"the loop held up for {run.stall * 1e3:.0f} ms at most"
    )
    figures = [
        Figure(f"{name}: lines lost, repeated or out of order", run.astray, 0),
        Figure(f"{name}: growth of memory", run.growth / _MEBIBYTE, _GROWTH_MEBIBYTES, "MiB"),
    ]
    if scene == "steady":
        figures.append(Figure(f"{name}: longest stall", run.stall * 1e3, _STALL_MILLISECONDS, "ms"))
    return figures


def main() -> int:
    """Measures all; the exit status."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5, help="of each in the comparison (5)")
    arguments.add_argument("--bytes", type=int, default=10**9, help="of the flood (1 GB)")
    options = arguments.parse_args()
    with _stub():
        return report(
            _race(options.rounds)
            + _scene("steady", "5 MB/s", _STEADY_BYTES_PER_SECOND * _STEADY_SECONDS)
            + _scene("flood", "flood", options.bytes)
            + _scene("away", "sink away", _AWAY_BYTES)
        )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["stub"]:
            _serve()
        case ["watchtower"]:
            _watchtower()
        case ["race" | "steady" | "flood" | "away" as scene, size]:
            asyncio.run(_ours(scene, int(size)))
        case _:
            sys.exit(main())

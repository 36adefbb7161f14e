"""Following the runner's pages: what a line costs, what silence costs, and how late a line comes.

    .venv/bin/python benchmarks/following.py [--rounds N] [--lines N]

Who writes the pages, who follows them, and who reads them when they are finished are processes of their own.
The last is the peer: a Python that takes the same pages line by line, and decodes the lines. Everything is in
memory (/dev/shm), so that no disk is measured. Exit status 1: a figure is missed.
"""

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from selectors import EpollSelector
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from figures import Figure, print_table, report

if TYPE_CHECKING:
    from agent_adapters.traces import Traces

_LINE_BYTES: Final = 110
_TEXT: Final = "the step prints what it does, line by line, and all of it has to arrive; " * 2
_PAGE_LINES: Final = 8 * 2**20 // _LINE_BYTES
_WRITE_BYTES: Final = 4096
"""As much as the runner writes at a time."""
_UPLOAD_SECONDS: Final = 0.5
"""From a page's end to its removal; the runner's own uploads take longer."""
_QUIET_PAGES: Final = 5
_QUIET_SECONDS: Final = 3.0
_SINGLE_LINES: Final = 500
_PAUSE_SECONDS: Final = 0.005
"""From one of them to the next."""

_CPU_RATIO: Final = 25
_QUIET_MILLISECONDS: Final = 5
_QUIET_TURNS: Final = 4
"""The end of the measurement takes two."""
_DELAY_MILLISECONDS: Final = 5
_MOST_DELAY_MILLISECONDS: Final = 500
"""A process that is not alone on its machine can be kept from it for as long."""


# What is measured, each in a process of its own


def _page(root: Path, step: int, number: int) -> Path:
    return root / "_diag" / "pages" / f"{0:036}_{step:036}_{number}.log"


def _write(root: Path, lines: int, *, removes: bool) -> None:
    """As the runner does, but at full speed: page after page, each removed when it could be uploaded."""
    text = _TEXT[: _LINE_BYTES - 12]
    for number, first in enumerate(range(0, lines, _PAGE_LINES), 1):
        path = _page(root, 1, number)
        with path.open("xb", buffering=_WRITE_BYTES) as page:
            page.write(BOM_UTF8)
            for line in range(first, min(first + _PAGE_LINES, lines)):
                page.write(f"{line:010} {text}\n".encode())
        if removes:
            threading.Timer(_UPLOAD_SECONDS, path.unlink).start()


def _write_singly(root: Path) -> None:
    """Lines that tell when they were written, in ns of the machine's clock."""
    pause = threading.Event()
    with _page(root, 1, 1).open("xb", buffering=0) as page:
        for _ in range(_SINGLE_LINES):
            pause.wait(_PAUSE_SECONDS)
            page.write(f"{time.monotonic_ns()}\n".encode())


def _read(root: Path) -> None:
    """The peer: as many lines as were written, when all of them are there."""
    begun = _cpu_seconds()
    lines = 0
    for number in range(1, 1 + len(list((root / "_diag" / "pages").iterdir()))):
        with _page(root, 1, number).open("rb") as page:
            for line in page:
                line.decode("utf-8", "backslashreplace")
                lines += 1
    print(json.dumps({"cpu": _cpu_seconds() - begun, "lines": lines}))


async def _follow(root: Path) -> None:
    """Follows until its input ends; counts lines, tells those out of place, and how late single ones come."""
    from agent_core.model import StepLine  # noqa: PLC0415 - what one process needs costs no other

    traces = _open(root)
    asyncio.get_running_loop().add_reader(sys.stdin, _end, traces)
    print("ready", flush=True)
    begun = _cpu_seconds()
    lines = astray = 0
    delays = []
    async for trace in traces.follow():
        if not isinstance(trace, StepLine):
            astray += 1
        elif " " in trace.line.text:
            astray += int(trace.line.text[:10]) != lines
            lines += 1
        else:
            delays.append(time.monotonic_ns() - int(trace.line.text))
    print(json.dumps({"cpu": _cpu_seconds() - begun, "lines": lines, "astray": astray, "delays": delays}))


def _open(root: Path) -> "Traces":
    from agent_adapters.traces import Traces  # noqa: PLC0415 - as above

    traces = Traces(root)
    traces.open()
    return traces


def _end(traces: "Traces") -> None:
    asyncio.get_running_loop().remove_reader(sys.stdin)
    traces.end()


class _Turns(EpollSelector):
    """Counts the turns of its loop."""

    count = 0

    def select(self, timeout: float | None = None) -> Any:
        self.count += 1
        return super().select(timeout)


async def _rest(root: Path, turns: _Turns) -> None:
    """Follows pages that are open, and have no news."""
    traces = _open(root)
    with ExitStack() as pages:
        for step in range(_QUIET_PAGES):
            page = pages.enter_context(_page(root, step, 1).open("xb", buffering=0))
            page.write(BOM_UTF8 + b"one line\n")
        stream = traces.follow()
        for _ in range(_QUIET_PAGES):
            await anext(stream)
        news = asyncio.ensure_future(anext(stream))
        await asyncio.wait({news}, timeout=_PAUSE_SECONDS)
        begun, before = _cpu_seconds(), turns.count
        await asyncio.wait({news}, timeout=_QUIET_SECONDS)
        print(json.dumps({"cpu": _cpu_seconds() - begun, "turns": turns.count - before}))
        news.cancel()


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# Figures


@contextmanager
def _root() -> Iterator[Path]:
    memory = Path("/dev/shm")  # noqa: S108 - tmpfs, wherever there is one
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        root = Path(folder)
        (root / "_diag" / "pages").mkdir(parents=True)
        yield root


def _run(*arguments: str | Path) -> Any:
    """What the process measured."""
    child = subprocess.run(
        [sys.executable, __file__, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True
    )
    return json.loads(child.stdout or "null")


def _followed(*writer: str) -> Any:
    """What a process measured that follows what the writer writes."""
    with (
        _root() as root,
        subprocess.Popen(
            [sys.executable, __file__, "follow", root], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as follower,
    ):
        if follower.stdout is None or follower.stdout.readline() != b"ready\n":
            raise RuntimeError("nobody follows")
        _run(*writer, root)
        return json.loads(follower.communicate()[0])


def _race(rounds: int, lines: int) -> list[Figure]:
    """Rounds in turn, so that what else the machine does hits both."""
    measured: dict[str, list[float]] = {"reading": [], "following": []}
    astray = 0
    with _root() as finished:
        _run("write", str(lines), "keep", finished)
        for _ in range(rounds):
            read, followed = _run("read", finished), _followed("write", str(lines), "remove")
            astray += followed["astray"] + abs(lines - followed["lines"]) + abs(lines - read["lines"])
            for name, run in (("reading", read), ("following", followed)):
                measured[name].append(run["cpu"] / lines * 1e6)
    print_table(measured, "µs of CPU per line")
    ratio = median(measured["following"]) / median(measured["reading"])
    return [
        Figure("CPU per line against reading finished pages", ratio, _CPU_RATIO),
        Figure("lines lost, repeated or out of order", astray, 0),
    ]


def _quiet() -> list[Figure]:
    with _root() as root:
        run = _run("rest", root)
    name = f"{_QUIET_PAGES} pages without news for {_QUIET_SECONDS:g} s"
    return [
        Figure(f"{name}: CPU", run["cpu"] * 1e3, _QUIET_MILLISECONDS, "ms"),
        Figure(f"{name}: turns of the loop", run["turns"], _QUIET_TURNS),
    ]


def _late() -> list[Figure]:
    run = _followed("write-singly")
    delays = [delay / 1e6 for delay in run["delays"]]
    return [
        Figure("from a line's writing to its arrival, median", median(delays), _DELAY_MILLISECONDS, "ms"),
        Figure("from a line's writing to its arrival, at most", max(delays), _MOST_DELAY_MILLISECONDS, "ms"),
        Figure("single lines lost", run["astray"] + abs(_SINGLE_LINES - len(delays)), 0),
    ]


def main() -> int:
    """Measures all; the exit status."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5, help="of each in the comparison (5)")
    arguments.add_argument("--lines", type=int, default=200_000, help="of the comparison (200,000)")
    options = arguments.parse_args()
    return report(_race(options.rounds, options.lines) + _quiet() + _late())


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", lines, "keep" | "remove" as then, root]:
            _write(Path(root), int(lines), removes=then == "remove")
        case ["write-singly", root]:
            _write_singly(Path(root))
        case ["read", root]:
            _read(Path(root))
        case ["follow", root]:
            asyncio.run(_follow(Path(root)))
        case ["rest", root]:
            turns = _Turns()
            with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(turns)) as runner:
                runner.run(_rest(Path(root), turns))
        case _:
            sys.exit(main())

"""Following the runner's pages: against reading them when they are finished, at rest, and how late lines come.

    .venv/bin/python benchmarks/following.py [--rounds N] [--lines N]

Who writes, who follows and who reads are processes of their own. The peer is a Python that reads the same
pages, finished, line by line, and decodes them: it needs no events, and cannot miss the end of a file. The
pages are in memory (`/dev/shm`) where that can be. Exit status 1: a figure is missed.
"""

import argparse
import asyncio
import json
import os
import resource
import selectors
import subprocess
import sys
import tempfile
import time
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeAlias

from figures import Figure, report

_LINE_BYTES: Final = 110
_TEXT: Final = "the step prints what it does, line by line, and all of it has to arrive; " * 2
_PAGE_BYTES: Final = 8 * 2**20
_WRITE_BYTES: Final = 4096
"""What the runner writes at a time."""
_QUIET_PAGES: Final = 5
_QUIET_SECONDS: Final = 3.0
_DELAYED_LINES: Final = 500
_DELAY_SECONDS: Final = 0.005
"""From one line to the next."""

_CPU_RATIO: Final = 16
_QUIET_CPU_MILLISECONDS: Final = 5
_QUIET_TURNS: Final = 2
"""Of the loop; one of them ends the measurement."""
_DELAY_MEDIAN_MILLISECONDS: Final = 2
_DELAY_MOST_MILLISECONDS: Final = 250

_Measured: TypeAlias = dict[str, Any]


# What is measured, each in a process of its own


def _page(root: Path, record: int, number: int) -> Path:
    return root / "_diag" / "pages" / f"{'0' * 36}_{record:036x}_{number}.log"


def _write(root: Path, count: int, *, keep: bool) -> None:
    """As the runner does, but at full speed: page after page, each removed when it is closed."""
    text = _TEXT[: _LINE_BYTES - 12]
    lines = (f"{number:010} {text}\n".encode() for number in range(count))
    number, written = 0, _PAGE_BYTES
    with ExitStack() as page:
        for line in lines:
            if written >= _PAGE_BYTES:
                page.close()
                number, written = number + 1, 0
                path = _page(root, 0, number)
                file = page.enter_context(path.open("xb", buffering=_WRITE_BYTES))
                if not keep:
                    page.callback(path.unlink)
                file.write(BOM_UTF8)
            written += file.write(line)


async def _follow(root: Path, count: int) -> _Measured:
    """Begins to follow, has the pages written, and counts what comes and what comes out of turn."""
    from agent_adapters.traces import Traces  # noqa: PLC0415 - no cost of the peer's
    from agent_core.model import OutputMissed, StepLine  # noqa: PLC0415

    traces = Traces(root)
    traces.open()
    begun = _cpu_seconds()
    writer = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "write", str(root), str(count), env=_environ()
    )
    ending = asyncio.create_task(_end(writer, traces.end))
    come = astray = 0
    async for trace in traces.follow():
        if isinstance(trace, StepLine):
            astray += int(trace.line.text[:10]) != come
            come += 1
        elif isinstance(trace, OutputMissed):
            astray += 1
    await ending
    return {"cpu": _cpu_seconds() - begun, "astray": astray + abs(count - come)}

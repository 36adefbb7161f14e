"""One step of a job: a process, its output, and how it is made to end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from .pages import LineSplitter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from .pages import Pages
    from .scenario import Scenario

_AT_ONCE_BYTES = 64 * 1024


class StepProcess:
    """A step's process, in the Worker's session and process group, without input."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        scenario: Scenario,
        pages: Pages,
        echo: Callable[[bytes], None],
    ) -> None:
        self._pages = pages
        self._echo = echo
        self._lines = LineSplitter()
        self._drain_seconds = scenario.step_drain_seconds
        self._drained_at: float | None = None
        self._escalation = [
            (signal.SIGINT, scenario.step_sigint_seconds),
            (signal.SIGTERM, scenario.step_sigterm_seconds),
            (signal.SIGKILL, 0.0),
        ]
        self._canceled = False
        self._escalates_at: float | None = None
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._process.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
        self._output = self._process.stdout
        self._output_open = True

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What to watch for its output."""
        return (self._output.fileno(),) if self._output_open else ()

    def seconds_to_act(self) -> float | None:
        """How long the Worker may wait before it must call `act` again; None: until something happens."""
        deadlines = [at for at in (self._escalates_at, self._drained_at) if at is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def read(self) -> None:
        """Take output that is there: to the page first, then to the console."""
        chunk = os.read(self._output.fileno(), _AT_ONCE_BYTES)
        if not chunk:
            self._output_open = False
            return
        self._pages.write(self._lines.feed(chunk))
        self._echo(chunk)

    def cancel(self) -> None:
        """Start with SIGINT; `act` goes on from there."""
        if not self._canceled:
            self._canceled = True
            self._escalates_at = time.monotonic()

    def act(self) -> int | None:
        """Do what is due. Its exit code, once it has ended and its output is read.

        A process that it has left behind may keep the output open: that is waited for a few seconds only.
        """
        now = time.monotonic()
        code = self._process.poll()
        if code is None:
            self._escalate(now)
            return None
        self._escalates_at = None
        if self._drained_at is None:
            self._drained_at = now + self._drain_seconds
        if self._output_open and now < self._drained_at:
            return None
        self._pages.write(self._lines.finish())
        self._output.close()
        return code

    def _escalate(self, now: float) -> None:
        if self._escalates_at is None or now < self._escalates_at:
            return
        number, grace_seconds = self._escalation.pop(0)
        self._process.send_signal(number)
        self._escalates_at = now + grace_seconds if self._escalation else None

# ruff: noqa: S101 - a suite speaks in asserts
"""What the suite for RunnerProcess has its runners do, and how it listens to them."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from attrs import frozen

from agent_core.console import Console, ConsoleEvent
from agent_core.model import Assigned, OutputLine, OutputMissed, StepLine, WorkerStarted
from agent_core.ports import RunnerProcess

__all__ = ["JOB_NAME", "Heard", "RunnerBehaviour", "Seen"]

JOB_NAME: Final = "build (3.11, x64)"
"""The display name of the job that every behaviour has."""


@frozen(kw_only=True)
class RunnerBehaviour:
    """What a runner does; a suite's back door puts one that does so into the root.

    By itself it registers, connects, listens, and runs one job at once, named JOB_NAME; the job succeeds,
    and the runner ends with exit code 0. It says so on its console, as GitHub's runner does.
    """

    refuses_registration: bool = False
    """The registration fails, and the runner says why: the word `NotFound` is in it."""
    hangs_registering: bool = False
    """The registration never ends."""
    refuses_jit_config: bool = False
    """A just-in-time config is no good: a line says `An error occurred` or more, and the exit code is 1."""
    exit_codes: tuple[int, ...] = ()
    """Each start ends after `Connected` with the next of these, until they are used up."""
    never_assigns: bool = False
    """No job comes, as long as it listens."""
    prints: bytes = b""
    """What comes on the console between `Running job` and the end of the job, byte for byte."""
    steps: tuple[bytes, ...] = ()
    """What each of the job's first steps prints; each is at the end of a line that the runner makes of it."""
    prints_variable: str | None = None
    """A step prints `{name} is {value}` for this variable of its environment."""
    vanishes: bool = False
    """A job is assigned, and never begins."""
    never_ends: bool = False
    """The job runs until it is cancelled."""
    dies_of: int | None = None
    """Once the job runs, this signal ends the runner."""
    ignores_interrupt: bool = False
    """SIGINT does nothing to it."""
    leaves_behind: int = 0
    """So many processes of the job that nothing but SIGKILL ends, each in a session of its own, that hold the
    runner's output open."""


class Heard:
    """Reads the output of the runner started last, to its end, in the background."""

    def __init__(self, runner: RunnerProcess) -> None:
        self.lines: list[OutputLine] = []
        self.events: list[ConsoleEvent] = []
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read(runner), name="reader")

    async def _read(self, runner: RunnerProcess) -> None:
        console = Console()
        try:
            async for line in runner.output():
                self.lines.append(line)
                if (event := console.feed(line)) is not None:
                    self.events.append(event)
                    self._news.set()
        finally:
            self._news.set()

    async def until(self, kind: type[ConsoleEvent]) -> None:
        """Returns when the console has told of it; the output must not end before."""
        while not any(isinstance(event, kind) for event in self.events):
            assert not self._reading.done(), f"no {kind.__name__} in {self.lines}"
            self._news.clear()
            await self._news.wait()

    async def end(self) -> list[str]:
        """The whole lines, once the output has ended."""
        await asyncio.wait({self._reading})
        self._reading.result()
        return whole_lines(self.lines)

    @property
    def ended(self) -> bool:
        """Whether the output has ended."""
        return self._reading.done()

    def job_lines(self) -> list[str]:
        """The whole lines between the job's first and last."""
        lines = whole_lines(self.lines)
        begin = next(number for number, line in enumerate(lines) if line.endswith(f"Running job: {JOB_NAME}"))
        end = next(number for number, line in enumerate(lines) if "completed with result: " in line)
        return lines[begin + 1 : end]

    async def cancel(self) -> None:
        """Reads no more."""
        self._reading.cancel()
        await asyncio.wait({self._reading})


class Seen:
    """Reads the traces of the runner started last, to their end, in the background."""

    def __init__(self, runner: RunnerProcess) -> None:
        self.assigned = self.workers = 0
        self._traces: list[StepLine] = []
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read(runner), name="follower")

    async def _read(self, runner: RunnerProcess) -> None:
        try:
            async for trace in runner.traces():
                match trace:
                    case Assigned():
                        self.assigned += 1
                    case WorkerStarted():
                        self.workers += 1
                    case StepLine():
                        self._traces.append(trace)
                    case OutputMissed(detail):
                        raise AssertionError(detail)
                self._news.set()
        finally:
            self._news.set()

    @property
    def lines(self) -> list[str]:
        """Of all steps, as they came."""
        return [trace.line.text for trace in self._traces]

    def steps(self) -> dict[int, list[str]]:
        """What each step printed, without what the runner puts before a line, and its own lines about it."""
        found: dict[int, list[str]] = {}
        for trace in self._traces:
            stamp, separator, text = trace.line.text.partition(" ")
            found.setdefault(trace.step, []).append(
                text if separator and stamp.endswith("Z") else trace.line.text
            )
        return found

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns when what was seen is enough; the traces must not end before."""
        while not condition():
            assert not self._reading.done(), f"not in {self._traces}"
            self._news.clear()
            await self._news.wait()

    async def end(self) -> None:
        """Returns when the traces have ended."""
        await asyncio.wait({self._reading})
        self._reading.result()

    async def cancel(self) -> None:
        """Reads no more."""
        self._reading.cancel()
        await asyncio.wait({self._reading})


def whole_lines(pieces: Sequence[OutputLine]) -> list[str]:
    """Puts the parts of long lines together."""
    lines: list[list[str]] = []
    for piece in pieces:
        if piece.continued:
            lines[-1].append(piece.text)
        else:
            lines.append([piece.text])
    return ["".join(parts) for parts in lines]

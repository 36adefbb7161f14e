"""What the runner's own lines on its console say.

A line counts only if the runner's time stamp opens it. The display name of a job is its author's, and may
itself hold `completed with result: Succeeded`: the last occurrence in the last such line is the runner's.
"""

import re
from typing import Final

from attrs import frozen

from agent_core.model import JobResult, OutputLine

__all__ = ["Completed", "Connected", "Console", "ConsoleEvent", "Listening", "Running"]


@frozen
class Connected:
    """The runner has reached GitHub."""


@frozen
class Listening:
    """The runner waits for a job."""


@frozen
class Running:
    """The runner has begun to execute a job."""

    job_name: str


@frozen
class Completed:
    """The job is over."""

    job_name: str
    result: JobResult


ConsoleEvent = Connected | Listening | Running | Completed

_RESULTS: Final = {
    "Succeeded": JobResult.SUCCEEDED,
    "SucceededWithIssues": JobResult.SUCCEEDED_WITH_ISSUES,
    "Failed": JobResult.FAILED,
    "Canceled": JobResult.CANCELED,
    "Skipped": JobResult.SKIPPED,
    "Abandoned": JobResult.ABANDONED,
}
_CONNECTED: Final = "√ Connected to GitHub"
_STAMP: Final = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ: "
_LISTENING: Final = re.compile(_STAMP + r"Listening for Jobs\s*")
_RUNNING: Final = re.compile(_STAMP + r"Running job: (?P<name>.*)")
_RESULT: Final = rf" completed with result: (?P<result>{'|'.join(_RESULTS)})\s*"
_COMPLETED: Final = re.compile(rf"{_STAMP}Job (?P<name>.*){_RESULT}")
_END: Final = re.compile(rf"{_RESULT}\Z")
_STAMPED: Final = re.compile(rf"\A{_STAMP}")
_NAME_LINES: Final = 1_000
"""No name has more."""


class Console:
    """Reads one start of the runner, line by line.

    Once a job runs, only a completion of that very job counts. A name with line breaks comes as several
    lines, of which only the first has the runner's stamp: then the completion is at the end of the last. What
    the name's other lines are is known from where the runner says that the job runs: as it repeats them, they
    are pieces of the name, whatever they say.
    """

    def __init__(self) -> None:
        self._job_name: str | None = None
        self._is_name_cut = False
        self._after_name: list[str] = []
        """What came after the name's first line: maybe more of the name."""
        self._repeated: int | None = None
        """So many of these lines have come again, after the name's first line; None: that has not."""
        self._begins_completion = False
        """The line that goes on in parts begins as the completion of the job does."""

    def feed(self, line: OutputLine) -> ConsoleEvent | None:
        """What the line says; None if it says nothing about the runner's state."""
        if line.continued:
            return self._read_part(line.text)
        text = line.text
        self._begins_completion = self._is_name_cut and _unstamped(text).startswith(f"Job {self._job_name}")
        if self._job_name is not None and len(self._after_name) < _NAME_LINES:
            self._after_name.append(text)
        if self._repeated is not None:
            return self._read_rest_of_name(text)
        if text.startswith(_CONNECTED):
            return Connected()
        if _LISTENING.fullmatch(text):
            return Listening()
        if self._job_name is None:
            return self._read_begin(text)
        return self._read_end(text)

    def _read_begin(self, text: str) -> ConsoleEvent | None:
        if running := _RUNNING.fullmatch(text):
            self._job_name = running["name"]
            return Running(self._job_name)
        completed = _COMPLETED.fullmatch(text)
        return Completed(completed["name"], _RESULTS[completed["result"]]) if completed else None

    def _read_end(self, text: str) -> ConsoleEvent | None:
        name = self._job_name or ""
        completed = _COMPLETED.fullmatch(text)
        # A carriage return at the end of the first of these lines is not seen.
        if completed and completed["name"].rstrip("\r") == name.rstrip("\r"):
            return Completed(name, _RESULTS[completed["result"]])
        if _unstamped(text) == f"Job {name}":
            self._repeated = 0
        return None

    def _read_rest_of_name(self, text: str) -> ConsoleEvent | None:
        """The completion of a job whose name has line breaks."""
        number = self._repeated or 0
        expected = self._after_name[number] if number < len(self._after_name) else None
        if text == expected:
            self._repeated = number + 1
            return None
        if end := _END.search(text):
            if text[: end.start()] == expected:
                self._repeated = None
            return Completed(self._job_name or "", _RESULTS[end["result"]])
        return None

    def _read_part(self, text: str) -> ConsoleEvent | None:
        """Of a line that is too long for one piece, as only a name can make it."""
        if self._job_name is not None and not self._after_name:
            self._is_name_cut = True
        if self._begins_completion and (end := _END.search(text)):
            return Completed(self._job_name or "", _RESULTS[end["result"]])
        return None


def _unstamped(text: str) -> str:
    return _STAMPED.sub("", text, count=1)

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


class Console:
    """Reads one start of the runner, line by line.

    Once a job runs, only a completion of that very job counts. A name with line breaks comes as several
    lines, of which only the first has the runner's stamp: then the completion is at the end of the last.
    """

    def __init__(self) -> None:
        self._job_name: str | None = None
        self._name_goes_on = False

    def feed(self, line: OutputLine) -> ConsoleEvent | None:
        """What the line says; None if it says nothing about the runner's state."""
        if line.continued:
            return None
        if line.text.startswith(_CONNECTED):
            return Connected()
        if _LISTENING.fullmatch(line.text):
            return Listening()
        if self._job_name is None and (running := _RUNNING.fullmatch(line.text)):
            self._job_name = running["name"]
            return Running(self._job_name)
        completed = _COMPLETED.fullmatch(line.text)
        if completed and self._job_name in {None, completed["name"]}:
            return Completed(completed["name"], _RESULTS[completed["result"]])
        return self._rest_of_name(line.text)

    def _rest_of_name(self, text: str) -> Completed | None:
        """The completion of a job whose name has line breaks."""
        if self._job_name is None:
            return None
        if self._name_goes_on and (end := _END.search(text)):
            return Completed(self._job_name, _RESULTS[end["result"]])
        if re.sub(_STAMP, "", text, count=1) == f"Job {self._job_name}":
            self._name_goes_on = True
        return None

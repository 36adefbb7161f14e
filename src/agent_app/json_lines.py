"""For machines: a JSON object a line, with instance, job and phase in each."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from pythonjsonlogger.json import JsonFormatter

from agent_adapters.wire import message_to_json
from agent_app.display import Display, in_short
from agent_core.ending import Outcome
from agent_core.events import (
    Downloading,
    Event,
    Failed,
    JobInherited,
    JobTaken,
    PhaseEntered,
    Printed,
    StopRequested,
    Warned,
)
from agent_core.phases import Phase

__all__ = ["JsonLinesDisplay"]


class JsonLinesDisplay(Display):
    """Logs to stderr."""

    def __init__(self, instance_id: str) -> None:
        handler = logging.StreamHandler(sys.stderr)
        fields = "{levelname}{message}"
        names = {"levelname": "level"}
        handler.setFormatter(JsonFormatter(fields, style="{", rename_fields=names, timestamp=True))
        # A stderr that is closed must not be complained about on stderr.
        logging.raiseExceptions = False
        self._logger = logging.getLogger("runs_fleet_agent")
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        self._logger.handlers[:] = [handler]
        self._context = {"instance_id": instance_id, "phase": str(Phase.BOOTING)}

    def __call__(self, event: Event) -> None:
        match event:
            case Downloading():
                return
            case PhaseEntered(phase):
                self._context["phase"] = str(phase)
            case JobTaken(job_id=job_id) | JobInherited(job_id=job_id):
                self._context["job_id"] = job_id
            case _:
                pass
        source = "runner" if isinstance(event, Printed) else "agent"
        self._log(_level(event), str(event), event=type(event).__name__, source=source)

    def close(self, outcome: Outcome, files: Mapping[str, Path]) -> None:
        message = None if outcome.message is None else message_to_json(outcome.message)
        places = {name: str(path) for name, path in files.items()}
        self._log(logging.INFO, in_short(outcome), event="Ended", source="agent", final=message, files=places)

    def _log(self, level: int, text: str, **extra: object) -> None:
        self._logger.log(level, "%s", text, extra={**extra, **self._context})


def _level(event: Event) -> int:
    match event:
        case Failed():
            return logging.ERROR
        case Warned() | StopRequested():
            return logging.WARNING
        case _:
            return logging.INFO

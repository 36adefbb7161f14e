"""How a life's outcome becomes the exit status of `run` (sysexits.h names them)."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from agent_core.ending import Outcome
from agent_core.errors import (
    AgentAliveError,
    AgentError,
    AgentFaultError,
    ConfigAbsentError,
    ConfigDeniedError,
    ConfigExpiredError,
    ConfigMalformedError,
    JobAlreadyRunError,
    JournalError,
    RegistrationRefusedError,
    SettingsError,
)
from agent_core.model import Status

__all__ = ["ExitStatus", "exit_status"]


class ExitStatus(IntEnum):
    """What the process ends with."""

    OK = 0
    JOB_FAILED = 1
    """Only with `--reflect-job`."""
    USAGE = 64
    UNAVAILABLE = 69
    SOFTWARE = 70
    TEMPFAIL = 75
    CONFIG = 78


_OF_ERROR: Final[Sequence[tuple[type[AgentError], ExitStatus]]] = (
    (AgentAliveError, ExitStatus.USAGE),
    (SettingsError, ExitStatus.CONFIG),
    (ConfigMalformedError, ExitStatus.CONFIG),
    (JobAlreadyRunError, ExitStatus.CONFIG),
    (ConfigAbsentError, ExitStatus.TEMPFAIL),
    (ConfigDeniedError, ExitStatus.UNAVAILABLE),
    (ConfigExpiredError, ExitStatus.UNAVAILABLE),
    (RegistrationRefusedError, ExitStatus.UNAVAILABLE),
    (AgentFaultError, ExitStatus.SOFTWARE),
    (JournalError, ExitStatus.SOFTWARE),
)


def exit_status(outcome: Outcome, *, reflect_job: bool = False) -> ExitStatus:
    """0 where the life reached its end and could say so, whatever the job's result."""
    for error_type, status in _OF_ERROR:
        if isinstance(outcome.error, error_type):
            return status
    if not outcome.terminated:
        return ExitStatus.UNAVAILABLE
    if outcome.message is None and outcome.error is not None:
        return ExitStatus.SOFTWARE
    if reflect_job and outcome.message is not None and outcome.message.status is not Status.SUCCESS:
        return ExitStatus.JOB_FAILED
    return ExitStatus.OK

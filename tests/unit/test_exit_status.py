"""The exit status of `run`: what systemd and scripts read."""

from itertools import product
from typing import Final

import pytest

from agent_app.exit_status import ExitStatus, exit_status
from agent_core import errors
from agent_core.ending import Outcome
from agent_core.errors import AgentError, TerminatorDeniedError
from agent_core.model import JournalRecord, LogStats, Status, StatusMessage
from agent_core.phases import Phase

ALL_ERRORS: Final = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, AgentError) and kind is not AgentError
]
FINAL: Final = [status for status in Status if status is not Status.STARTED]

WANTED: Final = {
    "AgentAliveError": 64,
    "SettingsError": 78,
    "ConfigMalformedError": 78,
    "JobAlreadyRunError": 78,
    "ConfigAbsentError": 75,
    "ConfigDeniedError": 69,
    "ConfigExpiredError": 69,
    "RegistrationRefusedError": 69,
    "AgentFaultError": 70,
    "JournalError": 70,
    "JournalDamagedError": 70,
    "JournalUnavailableError": 70,
}
"""The errors that have a status of their own, whatever else happened."""


def outcome(
    *, error: AgentError | None = None, status: Status | None = Status.SUCCESS, terminated: bool = True
) -> Outcome:
    """How a life ended that sent this status, if it had a job at all."""
    final = None
    if status is not None:
        final = StatusMessage(instance_id="i-1", job_id="7", status=status, message_id="m")
    record = JournalRecord(
        instance_id="i-1", agent_version="1", phase=Phase.TERMINATED, final=final, terminated=terminated
    )
    denied = None if terminated else TerminatorDeniedError("no")
    return Outcome(record=record, logs=LogStats(), error=error, terminate_error=denied)


def test_the_numbers_are_those_of_sysexits() -> None:
    """And no others."""
    assert {status.name: int(status) for status in ExitStatus} == {
        "OK": 0,
        "JOB_FAILED": 1,
        "USAGE": 64,
        "UNAVAILABLE": 69,
        "SOFTWARE": 70,
        "TEMPFAIL": 75,
        "CONFIG": 78,
    }


@pytest.mark.parametrize("status", FINAL)
def test_the_jobs_result_does_not_matter(status: Status) -> None:
    """The lifecycle reached its end: 0."""
    assert exit_status(outcome(status=status)) == 0


@pytest.mark.parametrize("status", FINAL)
def test_the_jobs_result_matters_when_asked_for(status: Status) -> None:
    """With `--reflect-job`, anything but success is 1."""
    assert exit_status(outcome(status=status), reflect_job=True) == (0 if status is Status.SUCCESS else 1)


@pytest.mark.parametrize("name", WANTED)
def test_errors_that_have_a_status(name: str) -> None:
    """Bad config 78, refused 69, the agent's fault 70, no config 75: whatever else the life came to."""
    error = getattr(errors, name)("why")
    for status, terminated, reflect in product([None, Status.FAILURE], [True, False], [True, False]):
        life = outcome(error=error, status=status, terminated=terminated)
        assert exit_status(life, reflect_job=reflect) == WANTED[name]


@pytest.mark.parametrize("kind", [each for each in ALL_ERRORS if each.__name__ not in WANTED])
def test_errors_that_the_message_tells_of(kind: type[AgentError]) -> None:
    """With a job, it went to its end in order and the message says why it failed; without, nothing does."""
    error = kind("why")

    assert exit_status(outcome(error=error, status=Status.FAILURE)) == 0
    assert exit_status(outcome(error=error, status=Status.FAILURE), reflect_job=True) == 1
    assert exit_status(outcome(error=error, status=None)) == 70


@pytest.mark.parametrize("reflect", [True, False])
@pytest.mark.parametrize("status", [None, *FINAL])
def test_an_instance_that_stays_is_refused_service(status: Status | None, reflect: bool) -> None:  # noqa: FBT001
    """Where the request to terminate was not accepted: 69, also after a success."""
    assert exit_status(outcome(status=status, terminated=False), reflect_job=reflect) == 69


@pytest.mark.parametrize("reflect", [True, False])
def test_a_life_without_a_job_that_was_stopped(reflect: bool) -> None:  # noqa: FBT001
    """It ended in order: there is no job to reflect."""
    assert exit_status(outcome(status=None), reflect_job=reflect) == 0

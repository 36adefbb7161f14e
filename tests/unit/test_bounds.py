"""The adapters' own patience, held against the core's: a call that hangs makes room for the next try."""

import pytest

from agent_adapters.aws import clients, metadata
from agent_core.model import Limits
from agent_core.phases import Phase
from agent_core.policy import CALL_SECONDS, SEND_CALL_SECONDS, TERMINATE_CALL_SECONDS, phase_seconds

UNWIND_SECONDS = 1.0
"""By so little may a call outlive the core's patience."""


@pytest.mark.parametrize(
    ("service", "core"),
    [
        ("ssm", CALL_SECONDS),
        ("logs", CALL_SECONDS),
        ("s3", CALL_SECONDS),
        ("sqs", SEND_CALL_SECONDS),
        ("ec2", TERMINATE_CALL_SECONDS),
    ],
)
def test_a_call_that_hangs_ends_about_when_the_core_gives_it_up(service: str, core: float) -> None:
    """Else its lane is taken when the core tries again."""
    assert sum(clients._TIMEOUTS[service]) <= core + UNWIND_SECONDS


def test_a_metadata_service_that_hangs_leaves_time_to_boot() -> None:
    """A token, the identity and the region are asked for, one after the other, before anything else."""
    questions = 3
    longest = questions * (metadata._TIMEOUT_SECONDS + metadata._ANSWER_SECONDS)
    assert longest < phase_seconds(Phase.BOOTING, Limits())

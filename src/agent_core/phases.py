"""The phases of a life, and the only ways from one to another.

A phase that fails, or is asked to stop, goes to STOPPING, never out; from there the way is the same for all:
no process of a runner is left, the queue hears how it ended, the instance goes.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

__all__ = ["TRANSITIONS", "Phase"]


class Phase(StrEnum):
    """Where a life is; the values stand in messages, logs and the journal."""

    BOOTING = "booting"
    CONFIGURING = "configuring"
    PROVISIONING = "provisioning"
    REGISTERING = "registering"
    LISTENING = "listening"
    RUNNING = "running"
    STOPPING = "stopping"
    REPORTING = "reporting"
    CLEANING = "cleaning"
    TERMINATING = "terminating"
    TERMINATED = "terminated"


TRANSITIONS: Final[Mapping[Phase, frozenset[Phase]]] = MappingProxyType(
    {
        Phase.BOOTING: frozenset({Phase.CONFIGURING, Phase.STOPPING}),
        Phase.CONFIGURING: frozenset({Phase.PROVISIONING, Phase.STOPPING}),
        Phase.PROVISIONING: frozenset({Phase.REGISTERING, Phase.STOPPING}),
        Phase.REGISTERING: frozenset({Phase.LISTENING, Phase.STOPPING}),
        Phase.LISTENING: frozenset({Phase.RUNNING, Phase.STOPPING}),
        Phase.RUNNING: frozenset({Phase.STOPPING}),
        Phase.STOPPING: frozenset({Phase.REPORTING}),
        Phase.REPORTING: frozenset({Phase.CLEANING, Phase.TERMINATING}),
        Phase.CLEANING: frozenset({Phase.TERMINATING}),
        Phase.TERMINATING: frozenset({Phase.TERMINATED}),
        Phase.TERMINATED: frozenset(),
    }
)

"""What a life may take as a whole: each step of its ending, each phase, and all of it. Pure, in seconds.

What is near its end, since the machine is, has less for each step, but leaves the later ones their least.
"""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

from agent_core.model import Limits
from agent_core.phases import Phase
from agent_core.policy import (
    CALL_SECONDS,
    EXIT_SECONDS,
    KILL_CALL_SECONDS,
    LAST_LOOK_SECONDS,
    POWER_OFF_SECONDS,
    TERMINATE_CALL_SECONDS,
    WORKER_LOOK_SECONDS,
    longest_wait,
    phase_seconds,
)

__all__ = [
    "SPARE_SECONDS",
    "EndingStep",
    "ending_seconds",
    "grace_seconds",
    "is_overdue",
    "life_seconds",
    "longest_seconds",
    "step_seconds",
]


class EndingStep(Enum):
    """What an ending does once the runner's grace is over, in this order."""

    KILL = "SIGKILL to every process of the runner, until none is left: no new try after that"
    OUTPUT = "from the death of the runner's last process to the end of its output"
    UPLOAD = "the runner's own logs, as long as something moves"
    DELIVER = "the last log lines, as long as something moves"
    SEND = "the final message, with every try"
    CLEAN = "the runner's root"
    TERMINATE = "the request to terminate, with every try"


_ENDING_SECONDS: Final[Mapping[EndingStep, tuple[float, float]]] = MappingProxyType(
    {
        EndingStep.KILL: (10.0, 2.0),
        EndingStep.OUTPUT: (5.0, 1.0),
        EndingStep.UPLOAD: (30.0, 0.0),
        EndingStep.DELIVER: (60.0, 3.0),
        EndingStep.SEND: (10.0, 3.0),
        EndingStep.CLEAN: (30.0, 0.0),
        EndingStep.TERMINATE: (60.0, 3.0),
    }
)
"""What each step may take usually; and what it has at least, however near the machine's end is, since the
steps before it leave that much."""
SPARE_SECONDS: Final = 15.0
"""All is over so long before the machine is."""
_JOURNALING_SECONDS: Final = 30.0
"""All saves of the journal in a life, each as late as it may be."""
_SHORTEST_SECONDS: Final = 0.001
_JOURNAL_RESERVE_SECONDS: Final = 3.0
"""What saves of the journal take on the way, on a disk that is busy."""


def step_seconds(step: EndingStep, remaining: float | None) -> float:
    """How long a step of an ending may take; 0: it is skipped.

    Args:
        step: which.
        remaining: seconds to the machine's end, where there is one.
    """
    usual, least = _ENDING_SECONDS[step]
    if remaining is None:
        return usual
    return min(usual, max(least, remaining - SPARE_SECONDS - _needed_after(step)))


def _needed_after(step: EndingStep | None) -> float:
    """What the steps after it need at least; None: all of them."""
    steps = list(_ENDING_SECONDS)
    later = steps if step is None else steps[steps.index(step) + 1 :]
    return sum(_ENDING_SECONDS[each][1] for each in later)


def grace_seconds(limits: Limits, waited: float, remaining: float | None) -> float:
    """How much longer the runner may take to stop by itself.

    Args:
        limits: what the operator allows.
        waited: seconds since it was asked to stop.
        remaining: seconds to the machine's end, where there is one.
    """
    grace = limits.shutdown_grace.total_seconds() - waited
    if remaining is not None:
        grace = min(grace, remaining - SPARE_SECONDS - _needed_after(None) - _JOURNAL_RESERVE_SECONDS)
    # A wait so short that no time passes in it would be granted again and again.
    return grace if grace > _SHORTEST_SECONDS else 0.0


# Phases, and the whole

_OVERDUE_SECONDS: Final = 60.0
"""A phase that takes so much longer than its bounds add up to has lost one: what is left out of them, saves
of the journal and the 2 s that a call may take to unwind when it is given up, comes to less."""


def _usual(*steps: EndingStep) -> float:
    return sum(step_seconds(step, None) for step in steps)


_STOPPING_SECONDS: Final = (
    CALL_SECONDS  # the request to the runner
    + WORKER_LOOK_SECONDS
    + _usual(EndingStep.KILL, EndingStep.OUTPUT)
    + KILL_CALL_SECONDS  # a try that begins before the step is over
    + _usual(EndingStep.OUTPUT)  # the runner's exit
)
"""STOPPING, beside the runner's grace."""


def longest_seconds(phase: Phase, limits: Limits) -> float:
    """No life is longer in the phase, with every bound in it reached."""
    longest = {
        Phase.LISTENING: longest_wait(limits).total_seconds() + _start_seconds(limits),
        Phase.RUNNING: limits.max_runtime.total_seconds() + EXIT_SECONDS,
        Phase.STOPPING: limits.shutdown_grace.total_seconds() + _STOPPING_SECONDS,
        Phase.REPORTING: _usual(EndingStep.UPLOAD, EndingStep.DELIVER, EndingStep.SEND),
        Phase.CLEANING: _usual(EndingStep.CLEAN),
        Phase.TERMINATING: _usual(EndingStep.TERMINATE) + TERMINATE_CALL_SECONDS + POWER_OFF_SECONDS,
        Phase.TERMINATED: 0.0,
    }
    return longest[phase] if phase in longest else phase_seconds(phase, limits)


def _start_seconds(limits: Limits) -> float:
    """A request to stop waits for a start of the runner, or a second registration, that is under way."""
    return phase_seconds(Phase.REGISTERING, limits) + CALL_SECONDS


def is_overdue(phase: Phase, seconds: float, limits: Limits) -> bool:
    """Whether a life that has been in the phase for so long hangs, in spite of all bounds."""
    return seconds > longest_seconds(phase, limits) + _OVERDUE_SECONDS


def ending_seconds(limits: Limits) -> float:
    """No life is longer from a request to stop to its end; what is left out is that of `life_seconds`."""
    phases = (Phase.STOPPING, Phase.REPORTING, Phase.CLEANING, Phase.TERMINATING)
    whole = sum(longest_seconds(phase, limits) for phase in phases)
    return _start_seconds(limits) + whole + LAST_LOOK_SECONDS + _JOURNALING_SECONDS


def life_seconds(limits: Limits) -> float:
    """No life is longer, from the agent's start to its end: the sum of all bounds, each reached.

    What is left out are the 2 s that a call may take to unwind when it is given up.
    """
    return sum(longest_seconds(phase, limits) for phase in Phase) + LAST_LOOK_SECONDS + _JOURNALING_SECONDS

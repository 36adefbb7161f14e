"""Every rule about time: pure functions and literal tables, in seconds of the event loop's clock.

Nothing here waits. `lifecycle`, `supervision`, `ending` and `delivery` ask, and wait.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import Enum
from random import Random
from types import MappingProxyType
from typing import Final

from attrs import frozen

from agent_core.model import JobConfig, Limits, StopReason, StopRequest
from agent_core.phases import Phase

__all__ = [
    "CALL_SECONDS",
    "HOST_SAMPLE_SECONDS",
    "JOURNAL_AGAIN_SECONDS",
    "JOURNAL_LOADS",
    "JOURNAL_LOAD_SECONDS",
    "JOURNAL_SECONDS",
    "KILL_CALL_SECONDS",
    "LAST_LOOK_SECONDS",
    "POWER_OFF_SECONDS",
    "SEND_CALL_SECONDS",
    "SPARE_SECONDS",
    "STALL_SECONDS",
    "STARTED_LEAVE_SECONDS",
    "STARTED_SECONDS",
    "TERMINATE_CALL_SECONDS",
    "WORKER_LOOK_SECONDS",
    "Backoff",
    "EndingStep",
    "Milestones",
    "Watch",
    "config_poll_delay",
    "ending_seconds",
    "grace_seconds",
    "is_overdue",
    "is_token_expired",
    "life_seconds",
    "longest_seconds",
    "next_watch",
    "phase_seconds",
    "restart_delay",
    "step_seconds",
]

# Bounds of single waits

CALL_SECONDS: Final = 15.0
"""One call to a port that is tried again."""
JOURNAL_SECONDS: Final = 3.0
"""One save of the journal: a disk that is busy with the job takes a while to sync."""
JOURNAL_AGAIN_SECONDS: Final = 1.0
"""One save, as long as the ones before were not done in time."""
JOURNAL_LOAD_SECONDS: Final = 3.0
"""One look into the journal of an earlier life."""
JOURNAL_LOADS: Final = 3
"""So many looks, before the earlier life counts as unknown."""
SEND_CALL_SECONDS: Final = 3.0
"""One try to send a message: a call that hangs is not the last one."""
STARTED_SECONDS: Final = 60.0
"""The `started` message, with every try."""
STARTED_LEAVE_SECONDS: Final = 2.0
"""How long the final message waits for the `started` one to go first."""
STALL_SECONDS: Final = 3.0
"""The last delivery, of logs and of the runner's own, as long as nothing moves."""
KILL_CALL_SECONDS: Final = 5.0
"""One try to kill what is left of the runner."""
WORKER_LOOK_SECONDS: Final = 5.0
"""One look for a worker of the runner."""
TERMINATE_CALL_SECONDS: Final = 10.0
"""One request to terminate."""
POWER_OFF_SECONDS: Final = 10.0
"""The order to power off, not the way down."""
LAST_LOOK_SECONDS: Final = 3.0
"""The look at the config of an agent that is stopped before it had one: the queue wants its job's ID."""
HOST_SAMPLE_SECONDS: Final = 30.0
"""Between two looks at disk and memory (design: every 30 s)."""

# Deadlines of phases

_FIXED_SECONDS: Final[Mapping[Phase, float]] = MappingProxyType(
    {
        Phase.BOOTING: 35.0,  # a look at the host and at the journal; a stop waits for them
        Phase.PROVISIONING: 900.0,  # 230 MB at 256 KB/s
        Phase.REGISTERING: 120.0,  # config.sh takes some 5 s, and tries again by itself
        Phase.TERMINATING: 60.0,
    }
)


def phase_seconds(phase: Phase, limits: Limits) -> float:
    """How long a phase may take that the lifecycle bounds as a whole.

    LISTENING and RUNNING are bounded by `next_watch`, STOPPING by `grace_seconds`, what comes after by
    `step_seconds`.
    """
    if phase is Phase.CONFIGURING:
        return limits.standby.total_seconds() + CALL_SECONDS
    return _FIXED_SECONDS[phase]


# Trying again


@frozen(kw_only=True)
class Backoff:
    """Exponential backoff with full jitter over the upper half: d/2 … d, d = first * 2^n, at most `most`."""

    first: float = 0.5
    most: float = 8.0

    def delay(self, attempt: int, rng: Random) -> float:
        """Seconds to wait after the attempt of that number; the first is 0."""
        whole = min(self.most, self.first * 2.0 ** min(attempt, 30))
        return whole * (0.5 + rng.random() / 2)


_POLL_FAST_FOR_SECONDS: Final = 30.0
_POLL_FAST_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 5.0
_POLL_JITTER: Final = 0.2
_POLL_SHORTEST_SECONDS: Final = 0.1
_SHORTEST_SECONDS: Final = 0.001


def config_poll_delay(waited: float, standby: float, rng: Random) -> float:
    """Seconds to the next look for a config, after `waited` of `standby` seconds without one.

    Every 2 s for 30 s, then every 5 s, each ± 20 %: a fleet that boots at once does not ask at once. The
    last look is at the standby deadline; it is 0.1 s late rather than so near that no time would pass.
    """
    period = _POLL_FAST_SECONDS if waited < _POLL_FAST_FOR_SECONDS else _POLL_SECONDS
    delay = period * rng.uniform(1 - _POLL_JITTER, 1 + _POLL_JITTER)
    return min(delay, max(standby - waited, _POLL_SHORTEST_SECONDS))


_RESTART_CODES: Final = frozenset({2, 3, 4})
"""Runner.Listener: retryable error, updating, run-once updating."""
_RESTARTS: Final = 5
_RESTART_SECONDS: Final = 5.0


def restart_delay(exit_code: int, restarts: int) -> float | None:
    """Seconds to the next start of a runner that ended without a job; None: it is not started again."""
    if exit_code not in _RESTART_CODES or restarts >= _RESTARTS:
        return None
    return _RESTART_SECONDS


# Watching the runner

_CONNECT_SECONDS: Final = 300.0
"""From a start to "Listening for Jobs": the runner itself tries GitHub again for some minutes."""
_ASSIGNED_SECONDS: Final = 180.0
"""From GitHub's word that there is a job to its begin: the runner fetches it, and tries that again."""
_SHORTEST_PATIENCE_SECONDS: Final = 60.0
"""The two above are no longer than the operator lets a runner be idle, but no shorter than this."""
_EXIT_SECONDS: Final = 60.0
"""From the job's completion to the runner's exit; it still uploads the job's last logs."""


@frozen(kw_only=True)
class Milestones:
    """When the runner came to which point, on the loop's clock."""

    first_started: float
    """Its first start; the others are of its latest."""
    started: float
    listening: float | None = None
    assigned: float | None = None
    running: float | None = None
    completed: float | None = None


@frozen(kw_only=True)
class Watch:
    """When to stop a runner that has come no further, and why."""

    at: float
    request: StopRequest


def next_watch(milestones: Milestones, limits: Limits) -> Watch:
    """The deadline that is in force now: there always is one."""
    if milestones.completed is not None:
        return _watch(milestones.completed, timedelta(seconds=_EXIT_SECONDS), StopReason.STALLED,
                      "the runner did not end after its job had completed, within")  # fmt: skip
    if milestones.running is not None:
        return _watch(milestones.running, limits.max_runtime, StopReason.MAX_RUNTIME,
                      "the job ran longer than its max runtime of")  # fmt: skip
    if milestones.assigned is not None:
        watch = _watch(milestones.assigned, _patience(limits, _ASSIGNED_SECONDS), StopReason.STALLED,
                       "the job that GitHub assigned did not begin within")  # fmt: skip
    elif milestones.listening is not None:
        watch = _watch(milestones.listening, limits.idle, StopReason.IDLE, "no job came within")
    else:
        watch = _watch(milestones.started, _patience(limits, _CONNECT_SECONDS), StopReason.STALLED,
                       "the runner did not begin to listen within")  # fmt: skip
    # However often it is started again.
    whole = _watch(milestones.first_started, _wait(limits), StopReason.STALLED,
                   "no job began, over all starts of the runner, within")  # fmt: skip
    return min(watch, whole, key=lambda each: each.at)


def _watch(since: float, limit: timedelta, reason: StopReason, what: str) -> Watch:
    return Watch(at=since + limit.total_seconds(), request=StopRequest(reason, f"{what} {limit}"))


def _patience(limits: Limits, most: float) -> timedelta:
    return timedelta(seconds=min(most, max(_SHORTEST_PATIENCE_SECONDS, limits.idle.total_seconds())))


def _wait(limits: Limits) -> timedelta:
    """From the runner's first start to its job's begin."""
    return _patience(limits, _CONNECT_SECONDS) + limits.idle + _patience(limits, _ASSIGNED_SECONDS)


# Ending


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
        EndingStep.TERMINATE: (_FIXED_SECONDS[Phase.TERMINATING], 3.0),
    }
)
"""What each step may take usually; and what it has at least, however near the machine's end is, since the
steps before it leave that much."""
SPARE_SECONDS: Final = 15.0
"""All is over so long before the machine is."""
_JOURNALING_SECONDS: Final = 30.0
"""All saves of the journal in a life, each as late as it may be."""
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


# The whole

_START_SECONDS: Final = _FIXED_SECONDS[Phase.REGISTERING] + CALL_SECONDS
"""A request to stop waits for a start of the runner, or for its second registration, that is under way."""
_OVERDUE_SECONDS: Final = 60.0
"""A phase that takes so much longer than its bounds add up to has lost one: what is left out of them, saves
of the journal and the 2 s that a call may take to unwind when it is given up, comes to less."""


def longest_seconds(phase: Phase, limits: Limits) -> float:
    """No life is longer in the phase, with every bound in it reached."""
    longest = {
        Phase.LISTENING: _wait(limits).total_seconds() + _START_SECONDS,
        Phase.RUNNING: limits.max_runtime.total_seconds() + _EXIT_SECONDS,
        Phase.STOPPING: limits.shutdown_grace.total_seconds() + _usual(EndingStep.KILL, EndingStep.OUTPUT),
        Phase.REPORTING: _usual(EndingStep.UPLOAD, EndingStep.DELIVER, EndingStep.SEND),
        Phase.CLEANING: _usual(EndingStep.CLEAN),
        Phase.TERMINATING: _usual(EndingStep.TERMINATE) + POWER_OFF_SECONDS,
        Phase.TERMINATED: 0.0,
    }
    return longest[phase] if phase in longest else phase_seconds(phase, limits)


def _usual(*steps: EndingStep) -> float:
    return sum(step_seconds(step, None) for step in steps)


def is_overdue(phase: Phase, seconds: float, limits: Limits) -> bool:
    """Whether a life that has been in the phase for so long hangs, in spite of all bounds."""
    return seconds > longest_seconds(phase, limits) + _OVERDUE_SECONDS


def ending_seconds(limits: Limits) -> float:
    """No life is longer from a request to stop to its end; what is left out is that of `life_seconds`."""
    phases = (Phase.STOPPING, Phase.REPORTING, Phase.CLEANING, Phase.TERMINATING)
    whole = sum(longest_seconds(phase, limits) for phase in phases)
    return _START_SECONDS + whole + LAST_LOOK_SECONDS + _JOURNALING_SECONDS


def life_seconds(limits: Limits) -> float:
    """No life is longer, from the agent's start to its end: the sum of all bounds, each reached.

    What is left out are the 2 s that a call may take to unwind when it is given up.
    """
    return sum(longest_seconds(phase, limits) for phase in Phase) + LAST_LOOK_SECONDS + _JOURNALING_SECONDS


# Tokens

_TOKEN_LIFE: Final = timedelta(hours=1)
"""GitHub: a registration token expires after one hour."""


def is_token_expired(config: JobConfig, now: datetime) -> bool:
    """Whether all that the config has to register with is a token that GitHub no longer takes."""
    return (
        config.jit_config is None and config.created_at is not None and now - config.created_at > _TOKEN_LIFE
    )

"""The rules about single waits, tries and watches: pure functions and tables, in seconds of the loop's clock.

Nothing here waits. `lifecycle`, `supervision`, `ending` and `delivery` ask, and wait.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from random import Random
from types import MappingProxyType
from typing import Final

from attrs import frozen

from agent_core.model import JobConfig, Limits, StopReason, StopRequest
from agent_core.phases import Phase

__all__ = [
    "CALL_SECONDS",
    "EXIT_SECONDS",
    "HOST_SAMPLE_SECONDS",
    "JOURNAL_AGAIN_SECONDS",
    "JOURNAL_LOADS",
    "JOURNAL_LOAD_SECONDS",
    "JOURNAL_SECONDS",
    "KILL_CALL_SECONDS",
    "LAST_LOOK_SECONDS",
    "POWER_OFF_SECONDS",
    "SEND_CALL_SECONDS",
    "STALL_SECONDS",
    "STARTED_LEAVE_SECONDS",
    "STARTED_SECONDS",
    "TERMINATE_CALL_SECONDS",
    "WORKER_LOOK_SECONDS",
    "Backoff",
    "Milestones",
    "Watch",
    "config_poll_delay",
    "is_token_expired",
    "longest_wait",
    "next_watch",
    "phase_seconds",
    "restart_delay",
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
        Phase.BOOTING: 35.0,  # a look at the journal and at the host; a stop waits for them
        Phase.PROVISIONING: 900.0,  # 230 MB at 256 KB/s
        Phase.REGISTERING: 120.0,  # config.sh takes some 5 s, and tries again by itself
    }
)


def phase_seconds(phase: Phase, limits: Limits) -> float:
    """How long a phase may take that the lifecycle bounds as a whole.

    LISTENING and RUNNING are bounded by `next_watch`, STOPPING by `budget.grace_seconds`, what comes after by
    `budget.step_seconds`.
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
EXIT_SECONDS: Final = 60.0
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
        return _watch(milestones.completed, timedelta(seconds=EXIT_SECONDS), StopReason.STALLED,
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
    whole = _watch(milestones.first_started, longest_wait(limits), StopReason.STALLED,
                   "no job began, over all starts of the runner, within")  # fmt: skip
    return min(watch, whole, key=lambda each: each.at)


def _watch(since: float, limit: timedelta, reason: StopReason, what: str) -> Watch:
    return Watch(at=since + limit.total_seconds(), request=StopRequest(reason, f"{what} {limit}"))


def _patience(limits: Limits, most: float) -> timedelta:
    return timedelta(seconds=min(most, max(_SHORTEST_PATIENCE_SECONDS, limits.idle.total_seconds())))


def longest_wait(limits: Limits) -> timedelta:
    """From the runner's first start to its job's begin."""
    return _patience(limits, _CONNECT_SECONDS) + limits.idle + _patience(limits, _ASSIGNED_SECONDS)


# Tokens

_TOKEN_LIFE: Final = timedelta(hours=1)
"""GitHub: a registration token expires after one hour."""


def is_token_expired(config: JobConfig, now: datetime) -> bool:
    """Whether all that the config has to register with is a token that GitHub no longer takes."""
    return (
        config.jit_config is None and config.created_at is not None and now - config.created_at > _TOKEN_LIFE
    )

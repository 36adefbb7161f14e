"""The rules about time: how long things may take, when they are tried again, when the runner is stopped."""

import math
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Final

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_core.budget import (
    SPARE_SECONDS,
    EndingStep,
    ending_seconds,
    grace_seconds,
    is_overdue,
    life_seconds,
    longest_seconds,
    step_seconds,
)
from agent_core.model import JobConfig, Limits, Secret, StopReason
from agent_core.phases import Phase
from agent_core.policy import (
    CALL_SECONDS,
    JOURNAL_LOAD_SECONDS,
    JOURNAL_LOADS,
    JOURNAL_SECONDS,
    Backoff,
    Milestones,
    config_poll_delay,
    is_token_expired,
    next_watch,
    phase_seconds,
    restart_delay,
)

RELAXED: Final = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NOW: Final = datetime(2025, 11, 25, 10, tzinfo=UTC)
LIMITS: Final = Limits(
    max_runtime=timedelta(hours=6),
    standby=timedelta(minutes=10),
    idle=timedelta(minutes=7),
    shutdown_grace=timedelta(seconds=90),
)
RANDOMS: Final = st.integers(0, 2**32).map(Random)
MOMENTS: Final = st.floats(0, 1e8)
SPANS: Final = st.timedeltas(timedelta(seconds=1), timedelta(days=30))
SOME_LIMITS: Final = st.builds(Limits, max_runtime=SPANS, standby=SPANS, idle=SPANS, shutdown_grace=SPANS)


def since(started: float, *, first: float | None = None, **others: float | None) -> Milestones:
    """Of the first start, unless there was one before."""
    return Milestones(first_started=started if first is None else first, started=started, **others)


# Trying again


@RELAXED
@given(st.floats(0.01, 10), st.floats(0.01, 100), st.integers(0, 10**9), RANDOMS)
def test_backoff_keeps_its_bounds(first: float, most: float, attempt: int, rng: Random) -> None:
    """A delay lies in the upper half of first * 2^n, and of `most`, whatever the attempt."""
    whole = min(most, first * 2.0 ** min(attempt, 60))

    assert whole / 2 <= Backoff(first=first, most=most).delay(attempt, rng) <= whole


def test_backoff_grows_to_its_most() -> None:
    """Each delay doubles the one before, until it does not grow any more."""
    backoff = Backoff(first=0.5, most=8.0)
    longest = [max(backoff.delay(attempt, Random(seed)) for seed in range(300)) for attempt in range(8)]

    assert longest == pytest.approx([0.5, 1, 2, 4, 8, 8, 8, 8], rel=0.02)


def test_backoff_spreads() -> None:
    """A fleet that fails at once does not try again at once."""
    delays = {Backoff().delay(3, Random(seed)) for seed in range(100)}

    assert len(delays) == 100
    assert max(delays) - min(delays) > 1.5


@RELAXED
@given(st.floats(0, 1e6), RANDOMS)
def test_the_config_is_polled_fast_at_first(waited: float, rng: Random) -> None:
    """Every 2 s for 30 s, then every 5 s, each ± 20 %, as long as the standby deadline is far."""
    period = 2.0 if waited < 30 else 5.0

    assert period * 0.8 <= config_poll_delay(waited, waited + 10, rng) <= period * 1.2


@pytest.mark.parametrize("waited", [0.0, 29.9, 30.0, 500.0])
def test_polls_spread(waited: float) -> None:
    """A fleet that boots at once uses the whole of the ± 20 %."""
    delays = [config_poll_delay(waited, 600.0, Random(seed)) for seed in range(300)]
    period = 2.0 if waited < 30 else 5.0

    assert min(delays) < period * 0.82
    assert max(delays) > period * 1.18


@RELAXED
@given(st.floats(0, 1e5), st.floats(0, 1e5), RANDOMS)
def test_the_last_poll_is_at_the_standby_deadline(waited: float, standby: float, rng: Random) -> None:
    """No poll is later than that, but for the tenth of a second by which time always goes on."""
    delay = config_poll_delay(waited, standby, rng)

    assert 0.1 <= delay <= 6.0
    assert waited + delay <= max(standby, waited + 0.1) + 1e-6


@pytest.mark.parametrize("exit_code", range(-1, 256))
def test_restarts_are_bounded(exit_code: int) -> None:
    """A runner that ends with 2, 3 or 4 is started again, five times, after 5 s; any other is not."""
    delays = [restart_delay(exit_code, restarts) for restarts in range(100)]

    again = 5 if exit_code in {2, 3, 4} else 0
    assert delays == [5.0] * again + [None] * (100 - again)


# Phases


BOUNDED: Final = (
    Phase.BOOTING,
    Phase.CONFIGURING,
    Phase.PROVISIONING,
    Phase.REGISTERING,
)


@RELAXED
@given(st.sampled_from(BOUNDED), SOME_LIMITS)
def test_phases_have_deadlines(phase: Phase, limits: Limits) -> None:
    """Each phase that is bounded as a whole has time, and an end."""
    assert 0 < phase_seconds(phase, limits) < math.inf


@pytest.mark.parametrize(
    ("phase", "steps"),
    [
        (Phase.BOOTING, [CALL_SECONDS, *[JOURNAL_LOAD_SECONDS] * JOURNAL_LOADS, JOURNAL_SECONDS]),
        (Phase.PROVISIONING, [230_000_000 / 256_000]),
        (Phase.REGISTERING, [5.0] * 10),
    ],
)
def test_a_phase_has_time_for_its_steps(phase: Phase, steps: list[float]) -> None:
    """Also when each step of it takes as long as it may."""
    assert phase_seconds(phase, LIMITS) >= sum(steps)


@RELAXED
@given(SOME_LIMITS)
def test_configuring_outlasts_the_standby(limits: Limits) -> None:
    """The wait for a config ends by itself, with a last look at it, before its phase is cut off."""
    assert phase_seconds(Phase.CONFIGURING, limits) >= limits.standby.total_seconds() + CALL_SECONDS


# Watching


@pytest.mark.parametrize(
    ("milestones", "at", "reason"),
    [
        (since(1000.0), 1300, StopReason.STALLED),
        (since(1000.0, listening=1010.0), 1430, StopReason.IDLE),
        (since(1000.0, listening=1010.0, assigned=1020.0), 1200, StopReason.STALLED),
        (since(1000.0, assigned=1020.0), 1200, StopReason.STALLED),
        (since(1000.0, listening=1010.0, assigned=1020.0, running=1100.0), 22700, StopReason.MAX_RUNTIME),
        (since(1000.0, running=1100.0), 22700, StopReason.MAX_RUNTIME),
        (since(1000.0, listening=1010.0, running=1100.0, completed=2000.0), 2060, StopReason.STALLED),
        (since(1000.0, completed=2000.0), 2060, StopReason.STALLED),
        # Started again and again: 300 + 420 + 180 s from the first start.
        (since(1800.0, first=1000.0), 1900, StopReason.STALLED),
        (since(1800.0, first=1000.0, listening=1850.0), 1900, StopReason.STALLED),
        (since(1800.0, first=1000.0, listening=1850.0, running=1880.0), 23480, StopReason.MAX_RUNTIME),
    ],
)
def test_the_last_milestone_sets_the_deadline(milestones: Milestones, at: float, reason: StopReason) -> None:
    """Not listening, no job, too long a job, no end after the job: each has its bound and its reason."""
    watch = next_watch(milestones, LIMITS)

    assert (watch.at, watch.request.reason) == (at, reason)
    assert (watch.request.by, watch.request.deadline) == (None, None)


@pytest.mark.parametrize(("idle", "connect", "assigned"), [(1, 60, 60), (90, 90, 90), (1000, 300, 180)])
def test_little_patience_is_for_every_wait(idle: int, connect: int, assigned: int) -> None:
    """Who does not want to wait long for a job does not for what comes before and after, within reason."""
    limits = evolve(LIMITS, idle=timedelta(seconds=idle))

    assert next_watch(since(0.0), limits).at == connect
    assert next_watch(since(0.0, assigned=0.0), limits).at == assigned


def test_the_reasons_name_the_bound() -> None:
    """Who reads the message knows which limit to change."""
    assert next_watch(since(0, running=1), LIMITS).request.detail == (
        "the job ran longer than its max runtime of 6:00:00"
    )
    assert next_watch(since(0, listening=1), LIMITS).request.detail == "no job came within 0:07:00"


@RELAXED
@given(
    MOMENTS,
    st.none() | MOMENTS,
    st.none() | MOMENTS,
    st.none() | MOMENTS,
    SOME_LIMITS,
)
def test_a_watch_is_later_than_its_milestone(
    started: float, listening: float | None, running: float | None, completed: float | None, limits: Limits
) -> None:
    """There always is a deadline, whatever is known, and it leaves time."""
    milestones = since(started, listening=listening, running=running, completed=completed)
    if running is None and completed is None:
        milestones = evolve(milestones, first_started=listening or started)
    reached = [at for at in (completed, running, listening, started) if at is not None]

    assert next_watch(milestones, limits).at > reached[0]


@RELAXED
@given(MOMENTS, st.floats(0, 1e6), SOME_LIMITS, SPANS)
def test_a_watch_moves_with_milestone_and_limit(
    at: float, later: float, limits: Limits, more: timedelta
) -> None:
    """A later milestone, and a larger limit, never bring the deadline nearer."""
    wider = evolve(limits, max_runtime=limits.max_runtime + more, idle=limits.idle + more)
    for name in ("first_started", "started", "listening", "assigned", "running", "completed"):
        early = evolve(since(0.0), **{name: at})
        late = evolve(since(0.0), **{name: at + later})
        assert next_watch(late, limits).at >= next_watch(early, limits).at
        assert next_watch(early, wider).at >= next_watch(early, limits).at


# Ending


@pytest.mark.parametrize(
    ("remaining", "grace"),
    [
        (None, 90),
        (3600, 90),
        (120.5, 90),
        (120, 90),
        (119, 89),
        (60, 30),
        (31, 1),
        (30, 0),
        (29, 0),
        (-100, 0),
    ],
)
def test_a_near_end_shortens_the_grace(remaining: float | None, grace: float) -> None:
    """min(90 s, what remains less 30 s for the rest), never negative; without a deadline, the whole."""
    assert grace_seconds(LIMITS, 0, remaining) == grace


@pytest.mark.parametrize(
    ("step", "remaining", "seconds"),
    [
        (EndingStep.KILL, None, 10),
        (EndingStep.KILL, 35, 10),
        (EndingStep.KILL, 30, 5),
        (EndingStep.KILL, 10, 2),
        (EndingStep.DELIVER, None, 60),
        (EndingStep.DELIVER, 81, 60),
        (EndingStep.DELIVER, 30, 9),
        (EndingStep.SEND, 30, 10),
        (EndingStep.SEND, 25, 7),
        (EndingStep.SEND, -5, 3),
        (EndingStep.CLEAN, None, 30),
        (EndingStep.CLEAN, 48, 30),
        (EndingStep.CLEAN, 19, 1),
        (EndingStep.CLEAN, 18, 0),
        (EndingStep.CLEAN, -100, 0),
        (EndingStep.TERMINATE, 20, 5),
    ],
)
def test_a_near_end_shortens_each_step(step: EndingStep, remaining: float | None, seconds: float) -> None:
    """A step takes what is there, but for what those after it need; it always has its least."""
    assert step_seconds(step, remaining) == seconds


@RELAXED
@given(st.floats(30, 1e4), st.floats(0, 1), SOME_LIMITS)
def test_all_is_over_before_the_machine_is(remaining: float, share: float, limits: Limits) -> None:
    """However much of its time each step takes, if only the machine's end was known early enough."""
    left = remaining - grace_seconds(limits, 0, remaining) * share
    for step in EndingStep:
        left -= step_seconds(step, left) * share

    assert left >= SPARE_SECONDS - 1e-6


@RELAXED
@given(SOME_LIMITS, st.sampled_from(["max_runtime", "standby", "idle", "shutdown_grace"]), SPANS)
def test_the_whole_life_is_bounded(limits: Limits, name: str, more: timedelta) -> None:
    """By what an operator sets, and some twenty minutes."""
    waits = limits.max_runtime + limits.standby + limits.idle + limits.shutdown_grace
    assert 0 < life_seconds(limits) - waits.total_seconds() < 2400
    wider = evolve(limits, **{name: getattr(limits, name) + more})
    assert life_seconds(wider) >= life_seconds(limits) + more.total_seconds() - 1e-3


@RELAXED
@given(SOME_LIMITS)
def test_the_ending_is_part_of_the_life(limits: Limits) -> None:
    """It is bounded by the grace that an operator grants, and some seven minutes."""
    beside = ending_seconds(limits) - limits.shutdown_grace.total_seconds()
    assert 0 < beside < 450
    assert ending_seconds(limits) < life_seconds(limits)


@pytest.mark.parametrize("phase", Phase)
def test_overdue(phase: Phase) -> None:
    """A phase that takes as long as its bounds allow is not overdue; a minute later it is."""
    longest = longest_seconds(phase, Limits())
    assert not is_overdue(phase, longest, Limits())
    assert is_overdue(phase, longest + 61, Limits())


@pytest.mark.parametrize(
    ("waited", "remaining", "grace"),
    [
        (0, None, 90),
        (60, None, 30),
        (90, None, 0),
        (100, None, 0),
        (60, 120, 30),
        (60, 50, 20),
        (85, 50, 5),
        (0, 50, 20),
    ],
)
def test_the_time_already_granted_counts(waited: float, remaining: float | None, grace: float) -> None:
    """Of the 90 s it is used up; what remains to the machine's end is counted from now, and not cut again."""
    assert grace_seconds(LIMITS, waited, remaining) == grace


@RELAXED
@given(SOME_LIMITS, st.floats(0, 1e6), st.none() | st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_grace_is_bounded(limits: Limits, waited: float, remaining: float | None, more: float) -> None:
    """It is at most what is left of the operator's, leaves 30 s to the machine's end, and grows with both."""
    grace = grace_seconds(limits, waited, remaining)

    assert 0 <= grace <= max(0.0, limits.shutdown_grace.total_seconds() - waited)
    assert grace_seconds(limits, waited + more, remaining) <= grace
    if remaining is not None:
        assert grace == 0 or remaining - grace >= 30 - 1e-6
        assert grace <= grace_seconds(limits, waited, remaining + more) <= grace_seconds(limits, waited, None)


# Tokens


def config(**values: object) -> JobConfig:
    wanted: dict[str, object] = {"org": "o", "repo": "r", "labels": ("a",), "jit_token": Secret("token")}
    return JobConfig(**(wanted | values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("age", "expired"),
    [
        (timedelta(hours=-1), False),
        (timedelta(), False),
        (timedelta(minutes=59, seconds=59), False),
        (timedelta(hours=1), False),
        (timedelta(hours=1, microseconds=1), True),
        (timedelta(days=400), True),
    ],
)
def test_a_token_lives_for_one_hour(age: timedelta, expired: bool) -> None:  # noqa: FBT001
    """To the microsecond; a token from the future is the clock's fault, not the token's."""
    assert is_token_expired(config(created_at=NOW - age), NOW) is expired


def test_a_token_of_another_zone_is_as_old() -> None:
    """Its age does not depend on the offset in which its date is written."""
    created_at = datetime.fromisoformat("2025-11-25T20:30:00+11:00")

    assert not is_token_expired(config(created_at=created_at), NOW)
    assert is_token_expired(config(created_at=created_at), NOW + timedelta(minutes=31))


def test_what_cannot_have_expired_has_not() -> None:
    """A token without a date is tried, and a just-in-time config is not bound to the token's hour."""
    assert not is_token_expired(config(), NOW)
    assert not is_token_expired(config(created_at=NOW - timedelta(days=1), jit_config=Secret("jit")), NOW)

"""From what was observed to the final status, and to the messages that say so."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from itertools import product
from typing import Final
from uuid import UUID

import pytest
from attrs import asdict, evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_core import __version__
from agent_core.model import JobResult, JournalRecord, Status, StatusMessage, StopReason, StopRequest
from agent_core.phases import Phase
from agent_core.status import (
    STATUS_OF_STOP,
    Observed,
    conclude,
    cut_head,
    cut_tail,
    final_message,
    message_id,
    started_message,
)

RELAXED: Final = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NOW: Final = datetime(2025, 11, 25, 10, 2, 3, tzinfo=UTC)
BEGUN: Final = datetime(2025, 11, 25, 10, tzinfo=UTC)
ANY_TEXT: Final = st.text(st.characters())


# The status

STOPS: Final = (
    None,
    *(StopRequest(reason, f"because of {reason}") for reason in StopReason),
    StopRequest(StopReason.INTERRUPTED, "the machine goes", by="spot", deadline=NOW),
)
SPACE: Final = [
    Observed(
        stop=stop,
        job_result=result,
        job_ran=job_ran,
        runner_exit_code=exit_code,
        error=error,
        error_phase=phase,
    )
    for stop, result, job_ran, exit_code, error, phase in product(
        STOPS,
        (None, *JobResult),
        (False, True),
        (None, 0, 1, 2, 3, 5, 100, 102, 130, 137, 143, 255),
        (None, "", "config.sh said no"),
        (None, Phase.REGISTERING, Phase.RUNNING),
    )
]
SUCCESSES: Final = {"succeeded", "succeeded_with_issues", "skipped"}
OF_STOP: Final = {
    "interrupted": "interrupted",
    "max_runtime": "timeout",
    "disk_floor": "failure",
    "idle": "failure",
    "stalled": "failure",
    "agent_fault": "failure",
}

Rule = tuple[
    Callable[[Observed], bool],
    Callable[[Observed], str],
    Callable[[Observed], int],
    Callable[[Observed], str | None],
]


def succeeded(seen: Observed) -> bool:
    return seen.job_result is not None and seen.job_result.value in SUCCESSES


def own_code(seen: Observed) -> int:
    return -1 if seen.runner_exit_code is None else seen.runner_exit_code


RULES: Final[dict[str, Rule]] = {
    # Whom it applies to; status; exit code; error, "?" for a text that the agent finds by itself.
    "the job succeeded": (succeeded, lambda _: "success", lambda _: 0, lambda _: None),
    "it was stopped": (
        lambda seen: seen.stop is not None and not succeeded(seen),
        lambda seen: OF_STOP[seen.stop.reason.value] if seen.stop else "",
        own_code,
        lambda seen: seen.stop.detail if seen.stop else None,
    ),
    "the job failed": (
        lambda seen: seen.stop is None and seen.job_result is not None and not succeeded(seen),
        lambda _: "failure",
        lambda _: 1,
        lambda seen: seen.error,
    ),
    "there is no result": (
        lambda seen: seen.stop is None and seen.job_result is None,
        lambda _: "failure",
        own_code,
        lambda seen: seen.error or "?",
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_rules(rule: str) -> None:
    """Over all that can be observed: status, exit code and error are those of the rule."""
    applies, status, exit_code, error = RULES[rule]
    seen_so = [seen for seen in SPACE if applies(seen)]
    assert seen_so

    for seen in seen_so:
        conclusion = conclude(seen)
        assert (conclusion.status.value, conclusion.exit_code) == (status(seen), exit_code(seen)), seen
        wanted = error(seen)
        assert conclusion.error if wanted == "?" else conclusion.error == wanted, seen


def test_the_rules_leave_nothing_open() -> None:
    """To whatever is observed, exactly one of them applies."""
    for seen in SPACE:
        assert [applies(seen) for applies, *_ in RULES.values()].count(True) == 1, seen


def test_there_is_one_final_status() -> None:
    """It is final, and the exit code belongs to it: 0 for a success, and 0 or the code of what went wrong."""
    for seen in SPACE:
        conclusion = conclude(seen)
        assert conclusion.status in set(Status) - {Status.STARTED}
        if conclusion.status is Status.SUCCESS:
            assert (conclusion.exit_code, conclusion.error) == (0, None)
        else:
            assert conclusion.exit_code in {1, -1, seen.runner_exit_code}


def test_every_reason_to_stop_has_a_status() -> None:
    """None is forgotten."""
    assert {reason.value: status.value for reason, status in STATUS_OF_STOP.items()} == OF_STOP
    assert set(STATUS_OF_STOP) == set(StopReason)


def test_who_stopped_it_does_not_matter() -> None:
    """A spot notice and a signal are interruptions alike, with or without a deadline."""
    for by, deadline in product((None, "SIGTERM", "spot"), (None, NOW)):
        stop = StopRequest(StopReason.INTERRUPTED, "stop", by=by, deadline=deadline)
        assert conclude(Observed(stop=stop)).status is Status.INTERRUPTED


@pytest.mark.parametrize(
    ("observed", "error"),
    [
        (Observed(), "the runner was never seen to end"),
        (Observed(job_ran=True), "the runner was never seen to end"),
        (Observed(runner_exit_code=0), "the runner ended with exit code 0 without running a job"),
        (
            Observed(runner_exit_code=137, job_ran=True),
            "the runner ended with exit code 137 before its job completed",
        ),
    ],
)
def test_a_failure_is_explained(observed: Observed, error: str) -> None:
    """Where nothing said what went wrong, the message says what is known; exit 0 alone is no success."""
    assert (conclude(observed).status, conclude(observed).error) == (Status.FAILURE, error)


# Cutting texts


@RELAXED
@given(ANY_TEXT, st.integers(1, 40), st.sampled_from([cut_tail, cut_head]))
def test_a_cut_keeps_the_limit(text: str, limit: int, cut: Callable[[str, int], str]) -> None:
    """What is kept is UTF-8, whole where it fits, and else as much of it as fits."""
    visible = text.encode("utf-8", "backslashreplace").decode()

    kept = cut(text, limit)

    assert len(kept.encode()) <= limit
    assert visible.startswith(kept) if cut is cut_head else visible.endswith(kept)
    if len(visible.encode()) <= limit:
        assert kept == visible
    else:
        assert len(kept.encode()) > limit - 4


def test_of_an_error_the_tail_is_kept() -> None:
    """4,000 bytes: the end of a trace tells what went wrong."""
    text = "é" * 5_000 + "the end"

    error = final(observed=Observed(error=text)).error

    assert error == "é" * 1996 + "the end"
    assert len(error.encode()) == 3_999


def test_of_a_name_the_head_is_kept() -> None:
    """1,000 bytes of the display name."""
    assert final(record(job_name="名" * 400)).job_name == "名" * 333
    assert started_message(record(job_name="x" * 1001)).job_name == "x" * 1000


# Messages


def record(**values: object) -> JournalRecord:
    wanted: dict[str, object] = {
        "instance_id": "i-0123456789abcdef0",
        "agent_version": "0.0",
        "phase": Phase.REPORTING,
        "job_id": "67890",
        "started_at": BEGUN,
    }
    return JournalRecord(**(wanted | values))  # type: ignore[arg-type]


def final(
    told: JournalRecord | None = None, observed: Observed | None = None, **measured: object
) -> StatusMessage:
    return final_message(told or record(), observed or Observed(), NOW, **measured)


FULL_RECORD: Final = record(
    run_id="12345",
    repo="acme/tool",
    job_name="build",
    runner_version="2.336.0",
    completed_at=BEGUN + timedelta(seconds=100.6),
    queue_url="https://queue",
    jobs_run=("67890",),
    confirmed=("x",),
)


def test_the_final_message() -> None:
    """It has all that the journal and the observation know, and what was measured beside them."""
    observed = Observed(
        stop=StopRequest(StopReason.INTERRUPTED, "the machine goes", by="spot", deadline=NOW),
        job_ran=True,
        job_result=JobResult.CANCELED,
        runner_exit_code=0,
        error="not this",
        error_phase=Phase.RUNNING,
    )

    message = final(FULL_RECORD, observed, bootstrap_total_seconds=2.5, log_lines_dropped=0)

    assert message == StatusMessage(
        instance_id="i-0123456789abcdef0",
        job_id="67890",
        status=Status.INTERRUPTED,
        message_id=message_id("i-0123456789abcdef0", "67890", "final"),
        exit_code=0,
        duration_seconds=101,
        started_at=BEGUN,
        completed_at=BEGUN + timedelta(seconds=100.6),
        error="the machine goes",
        run_id="12345",
        repo="acme/tool",
        job_result=JobResult.CANCELED,
        job_name="build",
        job_ran=True,
        runner_exit_code=0,
        runner_version="2.336.0",
        interrupted_by="spot",
        interruption_deadline=NOW,
        stop_reason=StopReason.INTERRUPTED,
        error_phase=Phase.RUNNING,
        bootstrap_total_seconds=2.5,
        log_lines_dropped=0,
        agent_version=__version__,
    )


def test_the_started_message() -> None:
    """It says when the job began, and nothing of an end."""
    assert started_message(FULL_RECORD, bootstrap_total_seconds=2.5) == StatusMessage(
        instance_id="i-0123456789abcdef0",
        job_id="67890",
        status=Status.STARTED,
        message_id=message_id("i-0123456789abcdef0", "67890", "started"),
        started_at=BEGUN,
        run_id="12345",
        repo="acme/tool",
        job_name="build",
        runner_version="2.336.0",
        bootstrap_total_seconds=2.5,
        agent_version=__version__,
    )


def test_what_is_not_known_is_left_out() -> None:
    """A life without a job that ran has no beginning and no duration; absent is not zero."""
    message = final(record(started_at=None, job_id=None))

    known = {name for name, value in asdict(message).items() if value is not None}
    assert known == {
        "instance_id",
        "job_id",
        "status",
        "message_id",
        "exit_code",
        "completed_at",
        "error",
        "job_ran",
        "agent_version",
    }
    assert (message.job_id, message.completed_at, message.job_ran) == ("", NOW, False)


@pytest.mark.parametrize(
    ("seconds", "duration"), [(0, 0), (0.4, 0), (0.6, 1), (123, 123), (86_400 * 30, 2_592_000), (-5, 0)]
)
def test_the_duration_is_of_whole_seconds(seconds: float, duration: int) -> None:
    """An integer, and never negative: the clock may have been set back."""
    told = record(completed_at=BEGUN + timedelta(seconds=seconds))

    assert final(told).duration_seconds == duration
    assert type(final(told).duration_seconds) is int


def test_the_duration_does_not_depend_on_the_zone() -> None:
    """Both ends are moments, whatever their offsets."""
    there = BEGUN.astimezone(timezone(timedelta(hours=-8)))

    assert final(record(started_at=there)).duration_seconds == 123


# Message IDs

IDS: Final = st.text(max_size=20) | st.text(st.sampled_from('i-01",[]\\ '), max_size=8)
SOME: Final = st.tuples(IDS, IDS, st.sampled_from(["started", "final"]))


@RELAXED
@given(SOME, SOME)
def test_a_message_id_is_the_messages_own(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    """The same for a repeat, another for another instance, job or kind."""
    assert (message_id(*one) == message_id(*other)) is (one == other)
    assert str(UUID(message_id(*one))) == message_id(*one)


def test_a_repeat_has_the_same_id() -> None:
    """From a successor too, which knows less, and comes to another status, another version."""
    told = evolve(FULL_RECORD, phase=Phase.RUNNING, agent_version="9.9", job_name=None, completed_at=None)
    again = final_message(told, Observed(error="the agent died"), NOW + timedelta(hours=1))

    assert again.message_id == final(FULL_RECORD).message_id
    assert again.message_id != started_message(told).message_id
    assert started_message(told).message_id == started_message(FULL_RECORD).message_id


def test_message_ids_are_stable() -> None:
    """A consumer may remember them for longer than a version of the agent lives."""
    assert message_id("i-0123456789abcdef0", "67890", "final") == "01ea514c-a86f-5345-9ef6-cf3193d44980"


@RELAXED
@given(ANY_TEXT)
def test_any_job_has_a_message_id(job_id: str) -> None:
    """Also one whose ID is not Unicode."""
    own = final(record(job_id=job_id)).message_id

    assert str(UUID(own)) == own

"""The values: secrets that show nothing, names of streams that all can hold, messages that fit the queue."""

import copy
import json
import logging
import pickle
import re
import traceback
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import pytest
from attrs import asdict, evolve
from attrs.exceptions import FrozenInstanceError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_adapters.wire import checked_message, journal_to_json, message_to_json
from agent_core.model import (
    JobConfig,
    JobResult,
    JournalRecord,
    Limits,
    LogStats,
    OutputLine,
    Registration,
    Secret,
    StatusMessage,
    StopReason,
    StopRequest,
)
from agent_core.phases import Phase
from agent_core.status import Observed, final_message, started_message

RELAXED: Final = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NOW: Final = datetime(2025, 11, 25, 10, tzinfo=UTC)
HIDDEN: Final = "JITC_do-not-show"
ANY_TEXT: Final = st.text(st.characters())
QUEUE_BYTES: Final = 262_144


def config(**values: object) -> JobConfig:
    wanted: dict[str, object] = {"org": "acme", "repo": "tool", "labels": ("a",)}
    return JobConfig(**(wanted | values))  # type: ignore[arg-type]


def record(**values: object) -> JournalRecord:
    wanted: dict[str, object] = {"instance_id": "i-1", "agent_version": "1.0", "phase": Phase.RUNNING}
    return JournalRecord(**(wanted | values))  # type: ignore[arg-type]


# Secrets

SHOWN: Final[dict[str, Callable[[Secret], object]]] = {
    "repr": repr,
    "str": str,
    "ascii": ascii,
    "format": lambda secret: f"{secret} {secret!r} {secret!s:>20}",
    "percent": lambda secret: "%s %r" % (secret, secret),  # noqa: UP031 - as logging does it
    "list": lambda secret: str([secret]),
    "dict": lambda secret: str({secret: secret}),
    "config": lambda secret: repr(config(jit_token=secret, jit_config=secret, cache_token=secret)),
    "registration": lambda secret: repr(
        Registration(url="u", name="n", labels=(), token=secret, jit_config=secret)
    ),
    "asdict": lambda secret: str(asdict(config(jit_token=secret))),
    "error": lambda secret: repr(ValueError(secret)),
    "trace": lambda secret: "".join(traceback.format_exception(ValueError("bad", secret))),
}


@pytest.mark.parametrize("how", SHOWN)
def test_a_secret_is_not_shown(how: str) -> None:
    """By itself, and in whatever holds it, it is asterisks."""
    shown = str(SHOWN[how](Secret(HIDDEN)))

    assert HIDDEN not in shown
    assert "***" in shown


def test_a_secret_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Neither as a message nor as its argument."""
    logging.getLogger("agent").warning(Secret(HIDDEN))
    logging.getLogger("agent").warning("%s and %r", Secret(HIDDEN), config(jit_token=Secret(HIDDEN)))

    assert HIDDEN not in caplog.text
    assert len(caplog.records) == 2


WRITTEN: Final[dict[str, Callable[[Secret], object]]] = {
    "pickle": pickle.dumps,
    "oldest pickle": lambda secret: pickle.dumps(secret, 0),
    "json": json.dumps,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle of its config": lambda secret: pickle.dumps(config(jit_token=secret)),
    "padding": lambda secret: format(secret, ">10"),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_a_secret_is_not_written(how: str) -> None:
    """It goes into no format that keeps it, and the refusal does not show it either."""
    with pytest.raises(TypeError) as caught:
        WRITTEN[how](Secret(HIDDEN))

    assert HIDDEN not in "".join(traceback.format_exception(caught.value))


def test_a_secret_has_no_attributes() -> None:
    """What looks through the attributes of everything finds none, and none can be set."""
    secret = Secret(HIDDEN)

    assert not hasattr(secret, "__dict__")
    with pytest.raises(AttributeError):
        secret.note = "x"  # type: ignore[attr-defined]


@RELAXED
@given(ANY_TEXT, ANY_TEXT)
def test_a_secret_is_its_text(one: str, other: str) -> None:
    """It gives its text to who asks for it, and equals only a secret of the same text."""
    assert Secret(one).reveal() == one
    assert (Secret(one) == Secret(other)) is (one == other)
    assert hash(Secret(one)) == hash(Secret(one))
    assert cast("object", Secret(one)) != one


def test_configs_with_secrets_are_values() -> None:
    """They compare and hash by what they hold."""
    assert config(jit_token=Secret("a")) == config(jit_token=Secret("a"))
    assert config(jit_token=Secret("a")) != config(jit_token=Secret("b"))
    assert len({config(jit_token=Secret("a")), config(jit_token=Secret("a"))}) == 1
    with pytest.raises(FrozenInstanceError):
        config().org = "other"  # type: ignore[misc]


# Jobs


@pytest.mark.parametrize(
    ("repo", "path"), [("tool", "acme/tool"), ("acme/tool", "acme/tool"), ("other/tool", "other/tool")]
)
def test_the_path_of_a_repository(repo: str, path: str) -> None:
    """`name` belongs to the organisation, `owner/name` to its owner."""
    assert config(repo=repo).repo_path == path


def test_the_jobs_own_bound() -> None:
    """In minutes; a job without one has none."""
    assert config().max_runtime is None
    assert config(max_runtime_minutes=90).max_runtime == timedelta(hours=1.5)


@pytest.mark.parametrize("result", JobResult)
def test_results_that_are_a_success(result: JobResult) -> None:
    """Succeeded, succeeded with issues, skipped; no other."""
    assert result.is_success is (result.value in {"succeeded", "succeeded_with_issues", "skipped"})


def test_what_holds_where_nothing_is_said() -> None:
    """The limits of the wire contract; a job of a repository; nothing done yet."""
    assert Limits() == Limits(
        max_runtime=timedelta(hours=6),
        standby=timedelta(minutes=10),
        idle=timedelta(minutes=10),
        shutdown_grace=timedelta(seconds=90),
        min_free_disk_bytes=524_288_000,
        min_available_memory_bytes=209_715_200,
    )
    assert not config().is_org
    assert config().job_id == ""
    assert LogStats() == LogStats(accepted=0, delivered=0, rejected=0, dropped=0)
    assert not OutputLine("x").continued
    assert (record().installed, record().terminated) == (False, False)


COUNTS: Final = st.integers(0, 10**9)


@RELAXED
@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_what_is_pending(delivered: int, rejected: int, dropped: int, pending: int) -> None:
    """What was accepted, and is not delivered, rejected or dropped."""
    stats = LogStats(
        accepted=delivered + rejected + dropped + pending,
        delivered=delivered,
        rejected=rejected,
        dropped=dropped,
    )

    assert stats.pending == pending


# Streams


@pytest.mark.parametrize(
    ("job_id", "stream"),
    [
        ("67890", "i-1/67890"),
        ("Build_1.2-x#3", "i-1/Build_1.2-x#3"),
        (None, "i-1/unknown-job"),
        ("", "i-1/unknown-job"),
        ("a:b*c", "i-1/a_b_c"),
        ("a/b\\c", "i-1/a_b_c"),
        ("..", "i-1/_"),
        (".", "i-1/_"),
        ("../../etc/passwd", "i-1/__.._etc_passwd"),
        (".hidden", "i-1/_hidden"),
        ("a b\tc\nd\0e", "i-1/a_b_c_d_e"),
        ("名前", "i-1/__"),
        ("\udc80", "i-1/_"),
        ("x" * 1000, "i-1/" + "x" * 200),
    ],
)
def test_the_name_of_a_stream(job_id: str | None, stream: str) -> None:
    """`{instance_id}/{job_id}`; what may not stand there becomes an underscore."""
    assert record(job_id=job_id).stream == stream


@RELAXED
@given(st.none() | ANY_TEXT | st.from_regex(r"[./:*\\]{1,4}\w*"))
def test_any_job_has_a_stream(job_id: str | None) -> None:
    """A name that CloudWatch Logs takes (1 to 512 characters, no ':' or '*'), and one file in one folder."""
    instance_id, _, job = record(job_id=job_id).stream.partition("/")

    assert instance_id == "i-1"
    assert re.fullmatch(r"[A-Za-z0-9_#-][A-Za-z0-9_.#-]{0,199}", job)


# Messages within the limit of the queue

LONG_TEXTS: Final = {
    "ascii": "a" * 300_000,
    "control": "\0" * 300_000,
    "two bytes": "é" * 300_000,
    "three bytes": "√" * 300_000,
    "four bytes": "😀" * 300_000,
    "surrogates": "\udc80" * 300_000,
    "quotes": '"\\' * 300_000,
}


RECORDED: Final = ("job_id", "run_id", "repo", "job_name", "runner_version")
STOPPED: Final = ("detail", "by")
OBSERVED: Final = ("error",)
PLACES: Final = (*RECORDED, *STOPPED, *OBSERVED)


def messages(text: str, places: Collection[str]) -> list[StatusMessage]:
    """The two messages of a life in which this text stands in these places."""
    in_record, in_stop, in_observed = (
        cast("dict[str, Any]", {name: text for name in names if name in places})
        for names in (RECORDED, STOPPED, OBSERVED)
    )
    told = evolve(record(job_id="7", started_at=NOW), **in_record)
    stop = evolve(StopRequest(StopReason.MAX_RUNTIME, "too long"), **in_stop)
    observed = evolve(Observed(stop=stop if in_stop else None), **in_observed)
    return [started_message(told), final_message(told, observed, NOW)]


@pytest.mark.parametrize("place", PLACES)
def test_a_long_text_does_not_break_the_queues_limit(place: str) -> None:
    """Wherever it stands, a message keeps under 262,144 bytes: else nobody would hear how the job ended."""
    for kind, text in LONG_TEXTS.items():
        for message in messages(text, {place}):
            assert len(message_to_json(message)) < QUEUE_BYTES, kind


@pytest.mark.parametrize("kind", LONG_TEXTS)
def test_long_texts_of_strangers_do_not_break_the_queues_limit(kind: str) -> None:
    """The job's name and what the runner says may be long at once."""
    for message in messages(LONG_TEXTS[kind], {"job_name", "detail", "error"}):
        assert len(checked_message(message)) < QUEUE_BYTES / 4


@RELAXED
@given(ANY_TEXT)
def test_any_text_can_be_told(text: str) -> None:
    """Also what is not Unicode, in every place at once, goes into messages and the journal."""
    for message in messages(text, PLACES):
        assert checked_message(message).isascii()
        assert journal_to_json(record(final=message, job_id=text, job_name=text)).isascii()

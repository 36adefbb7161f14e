"""The JSON that is read and written: the job's config, messages, the journal."""

import base64
import gzip
import json
import random
import re
import traceback
import tracemalloc
import zlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

import pytest
from attrs import asdict, evolve, fields
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent_adapters.wire import (
    MESSAGE_BYTES,
    checked_message,
    journal_from_json,
    journal_to_json,
    message_from_json,
    message_to_json,
    parse_config,
)
from agent_core.errors import (
    ConfigAbsentError,
    ConfigMalformedError,
    JournalDamagedError,
    MessageRefusedError,
)
from agent_core.model import (
    JobConfig,
    JobResult,
    JournalRecord,
    LogUpload,
    ProcessId,
    Secret,
    Status,
    StatusMessage,
    StopReason,
    StopRequest,
)
from agent_core.phases import Phase

RELAXED: Final = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MIB: Final = 2**20


# The job's config

Document = dict[str, Any]

SEED: Final[Document] = {
    "org": "Shavakan",
    "repo": "my-repo",
    "jit_token": "JITC_token",
    "labels": ["runs-fleet=12345", "runner=2cpu-linux-arm64"],
    "runner_group": "Default",
    "job_id": "67890",
}
DIGEST: Final = "0123456789abcdef" * 4
FULL: Final[Document] = SEED | {
    "jit_config": "eyJhIjoxfQ==",
    "run_id": "12345",
    "runner_name": "the runner",
    "is_org": True,
    "created_at": "2025-11-25T10:00:00Z",
    "termination_queue_url": "https://sqs.eu-west-1.amazonaws.com/1/q.fifo",
    "cache_url": "https://cache",
    "cache_token": "cache token",
    "runner_logs_bucket": "logs",
    "runner_logs_prefix": "a/b/",
    "runner_version": "2.336.0",
    "runner_sha256": DIGEST,
    "max_runtime_minutes": 90,
}
REQUIRED: Final = ("org", "repo", "labels")
SECRETS: Final = ("jit_token", "jit_config", "cache_token")


def parsed(document: Document, credential: Document | None = None) -> JobConfig:
    """The config of this document, and of that sibling."""
    return parse_config(json.dumps(document), None if credential is None else json.dumps(credential))


def without(document: Document, *keys: str) -> Document:
    return {key: value for key, value in document.items() if key not in keys}


def revealed(secret: Secret | None) -> str | None:
    return None if secret is None else secret.reveal()


def faults(text: str, credential: str | None = None) -> list[str]:
    """What is wrong with a config that must be malformed: a line for each fault."""
    with pytest.raises(ConfigMalformedError) as caught:
        parse_config(text, credential)
    head, *lines = str(caught.value).splitlines()
    assert head == "the config cannot be used:"
    return [line.strip() for line in lines]


def test_the_seeds_config() -> None:
    """What the orchestrator writes today."""
    assert parsed(SEED) == JobConfig(
        org="Shavakan",
        repo="my-repo",
        labels=("runs-fleet=12345", "runner=2cpu-linux-arm64"),
        jit_token=Secret("JITC_token"),
        runner_group="Default",
        job_id="67890",
    )


def test_everything_that_a_config_may_say() -> None:
    """Each key has its field."""
    assert parsed(FULL) == JobConfig(
        org="Shavakan",
        repo="my-repo",
        labels=("runs-fleet=12345", "runner=2cpu-linux-arm64"),
        jit_token=Secret("JITC_token"),
        jit_config=Secret("eyJhIjoxfQ=="),
        runner_group="Default",
        job_id="67890",
        run_id="12345",
        runner_name="the runner",
        is_org=True,
        created_at=datetime(2025, 11, 25, 10, tzinfo=UTC),
        termination_queue_url="https://sqs.eu-west-1.amazonaws.com/1/q.fifo",
        cache_url="https://cache",
        cache_token=Secret("cache token"),
        runner_logs_bucket="logs",
        runner_logs_prefix="a/b/",
        runner_version="2.336.0",
        runner_sha256=DIGEST,
        max_runtime_minutes=90,
    )
    assert set(FULL) == {field.name for field in fields(JobConfig)} - {"unknown_keys"}


ACCEPTED: Final[list[tuple[str, object, object]]] = [
    ("repo", "owner/name", "owner/name"),
    ("repo", "a.b_c-d", "a.b_c-d"),
    ("labels", ["a"], ("a",)),
    ("labels", ["x" * 256, "with space", "a=b/c:d"], ("x" * 256, "with space", "a=b/c:d")),
    ("job_id", 67890, "67890"),
    ("job_id", 2**63, "9223372036854775808"),
    ("job_id", "x" * 256, "x" * 256),
    ("run_id", 10**255, "1" + "0" * 255),
    ("job_id", "", ""),
    ("job_id", None, ""),
    ("run_id", 12345, "12345"),
    ("run_id", "r", "r"),
    ("runner_name", "x" * 64, "x" * 64),
    ("runner_group", "Größe 1", "Größe 1"),
    ("is_org", False, False),
    ("is_org", None, False),
    ("created_at", "2025-11-25T10:00:00+01:00", datetime(2025, 11, 25, 9, tzinfo=UTC)),
    ("created_at", "2025-11-25T10:00:00.123456Z", datetime(2025, 11, 25, 10, 0, 0, 123456, tzinfo=UTC)),
    ("created_at", "2025-11-25T10:00:00.123456789Z", datetime(2025, 11, 25, 10, 0, 0, 123456, tzinfo=UTC)),
    ("runner_logs_bucket", "a-1", "a-1"),
    ("runner_logs_bucket", "my.logs-" + "x" * 55, "my.logs-" + "x" * 55),
    ("runner_logs_prefix", "x" * 512, "x" * 512),
    ("runner_logs_prefix", "..a/b../Größe L//.", "..a/b../Größe L//."),
    ("runner_version", "latest", "latest"),
    ("runner_version", "2.0.10", "2.0.10"),
    ("max_runtime_minutes", 1, 1),
    ("jit_token", "a b~!", Secret("a b~!")),
]


@pytest.mark.parametrize(("key", "value", "wanted"), ACCEPTED)
def test_values_that_are_accepted(key: str, value: object, wanted: object) -> None:
    """An integer stands for an ID; offsets, fractions of a second and any printable secret are taken."""
    assert getattr(parsed(FULL | {key: value}), key) == wanted


@pytest.mark.parametrize("key", sorted(set(FULL) - set(REQUIRED)))
def test_null_is_as_good_as_absent(key: str) -> None:
    """Also for a key that has a default."""
    assert parsed(FULL | {key: None}) == parsed(without(FULL, key))


NOT_TEXT: Final[tuple[object, ...]] = (1, 1.5, True, [], ["x"], {}, {"x": "y"})
REFUSED: Final[dict[str, tuple[object, ...]]] = {
    "org": (None, "", " ", "a b", "a/b", "ä", "a\n", "a\0", *NOT_TEXT),
    "repo": (None, "", "a/b/c", "/a", "a/", "a b", "a\n", "https://x/y", "a @ b @ c", *NOT_TEXT),
    "labels": (
        None, "a", [], {}, 1, [1], [None], [[]], [""], [" "], ["a,b"], ["a\nb"], ["a\0"],
        ["\ud800"], ["x" * 257], ["good", "bad,"],
    ),
    "jit_token": ("a\nb", "a\0", "ä", "\ud800", *NOT_TEXT),
    "jit_config": ("a\nb", "a\0", "ä", "\ud800", *NOT_TEXT),
    "cache_token": ("a\nb", "a\0", "ä", "\ud800", *NOT_TEXT),
    "runner_group": ("", "a\nb", "a\x7f", *NOT_TEXT),
    "job_id": (1.0, 1e30, True, [], {}, ["1"], "x" * 257, 10**256, -(10**255)),
    "run_id": (1.0, 1e30, True, [], {}, ["1"], "x" * 257, 10**4000, -(10**4000)),
    "runner_name": ("", "x" * 65, "a\nb", *NOT_TEXT),
    "is_org": (0, 1, "true", "false", [], {}),
    "created_at": ("", "yesterday", "2025-11-25", "2025-11-25T10:00:00", "2025-13-25T10:00:00Z", *NOT_TEXT),
    "termination_queue_url": ("", "a\nb", *NOT_TEXT),
    "cache_url": ("", "a\nb", *NOT_TEXT),
    "runner_logs_bucket": (
        "", "ab", "x" * 64, "-logs", "logs-", ".logs", "logs.", "Logs", "my_logs", "my logs", "ä-logs",
        "logs\n", "a/b", "..", "arn:aws:s3:::logs", *NOT_TEXT,
    ),
    "runner_logs_prefix": (
        "", "/", "/a", "..", "../a", "a/..", "a/../b", "a\nb", "a\0", "a\x7f", "\ud800", "x" * 513, *NOT_TEXT,
    ),
    "runner_version": ("", "2", "2.1", "3.1.1", "v2.336.0", "2.336.0\n", "2.336.0-x", "Latest", *NOT_TEXT),
    "runner_sha256": ("", "0" * 63, "0" * 65, "g" * 64, "A" * 64, DIGEST + "\n", *NOT_TEXT),
    "max_runtime_minutes": (0, -1, 43_201, 10**100, 1.5, 60.0, "60", True, [], {}),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, each) for key in REFUSED for each in REFUSED[key]])
def test_values_that_are_refused(key: str, value: object) -> None:
    """One line names the path, and what it takes."""
    assert [line.partition(": ")[0] for line in faults(json.dumps(FULL | {key: value}))] == [f"config.{key}"]


def test_only_ascii_digits_make_a_version() -> None:
    """It becomes a part of addresses, keys and file names."""
    assert len(faults(json.dumps(FULL | {"runner_version": "2.\N{ARABIC-INDIC DIGIT THREE}.0"}))) == 1


def test_all_faults_come_at_once() -> None:
    """A config in which everything is wrong is mended in one go."""
    wrong = {key: values[-1] for key, values in REFUSED.items()}

    lines = faults(json.dumps(wrong), json.dumps({"compressed": "yes"}))

    paths = [line.partition(": ")[0] for line in lines]
    assert {*paths} == {*(f"config.{key}" for key in REFUSED), "credential.compressed"}
    assert len(paths) == len(set(paths))


def test_each_bad_label_is_named() -> None:
    """By its own text, so that all can be mended at once."""
    lines = faults(json.dumps(FULL | {"labels": ["good", "first,bad", "second,bad"]}))

    assert "first,bad" in "".join(lines)
    assert "second,bad" in "".join(lines)


@pytest.mark.parametrize("key", REQUIRED)
def test_what_is_required_is_missed(key: str) -> None:
    """By name."""
    assert faults(json.dumps(without(FULL, key))) == [f"config.{key}: missing"]


def test_a_fault_shows_the_value_and_the_fix() -> None:
    """What stands there, cut where it is long, and what should."""
    text = json.dumps(SEED | {"max_runtime_minutes": "60", "repo": "x/" * 1000})

    assert sorted(faults(text)) == [
        'config.max_runtime_minutes: "60" is not a whole number of minutes, 1 to 43200',
        f"config.repo: \"{'x/' * 29}x… is not 'name' or 'owner/name'",
    ]


NO_OBJECTS: Final = {
    "empty": "",
    "blank": " ",
    "torn": "{",
    "prose": "nonsense",
    "null": "null",
    "list": "[]",
    "string": '"text"',
    "number": "1",
    "nan": "NaN",
    "python": "{'org': 'a'}",
    "two objects": '{"a": 1} {"b": 2}',
    "byte-order mark": "\ufeff{}",
    "bad escape": '{"org": "\\ud8"}',
    "deep list": "[" * 100_000,
    "deep object": '{"a":' * 100_000,
    "long number": "1" * 10_000,
}


@pytest.mark.parametrize("kind", NO_OBJECTS)
def test_what_is_no_object_is_malformed(kind: str) -> None:
    """In the parameter and in its sibling; each is named."""
    text = NO_OBJECTS[kind]
    assert [line.partition(":")[0] for line in faults(text)] == ["config"]
    assert [line.partition(":")[0] for line in faults(json.dumps(SEED), text)] == ["credential"]
    assert [line.partition(":")[0] for line in faults(text, text)] == ["config", "credential"]


@RELAXED
@given(
    st.dictionaries(
        st.text(st.characters(), max_size=70).filter(lambda key: key not in FULL and key != "unknown_keys"),
        st.none() | st.integers() | st.text(),
        max_size=5,
    )
)
def test_unknown_keys_are_ignored_and_named(unknown: Document) -> None:
    """They do not change the config, and each is named, in an order that does not change."""
    config = parsed(FULL | unknown)

    assert evolve(config, unknown_keys=()) == parsed(FULL)
    shown = [json.dumps(key) for key in unknown]
    assert config.unknown_keys == tuple(sorted(key if len(key) <= 60 else f"{key[:60]}…" for key in shown))


def test_a_key_of_the_agents_own_is_unknown_too() -> None:
    """What only the agent fills in means nothing in a config."""
    assert parsed(SEED | {"unknown_keys": ["a"]}).unknown_keys == ('"unknown_keys"',)


# Where the secrets stand

TOKEN: Final = {"jit_token": "T"}
JIT: Final = {"jit_config": "J"}


@pytest.mark.parametrize(
    ("inline", "credential", "wanted"),
    [
        (TOKEN, None, ("T", None)),
        (JIT, None, (None, "J")),
        (TOKEN | JIT, None, ("T", "J")),
        ({}, TOKEN, ("T", None)),
        ({}, JIT, (None, "J")),
        ({}, TOKEN | JIT, ("T", "J")),
        (TOKEN, JIT, ("T", "J")),
        (JIT, TOKEN, ("T", "J")),
        (TOKEN, {}, ("T", None)),
        (TOKEN, {"jit_token": "other"}, ("other", None)),
        (TOKEN, {"jit_token": None, "compressed": False}, ("T", None)),
        (TOKEN, {"jit_token": "other", "compressed": True}, ("other", None)),
        ({"jit_token": 5}, TOKEN, ("T", None)),
        # An orchestrator that writes every key, also those that it has no value for.
        ({"jit_token": ""} | JIT, None, (None, "J")),
        (TOKEN | {"jit_config": ""}, None, ("T", None)),
        ({"jit_token": ""}, JIT, (None, "J")),
        (TOKEN, {"jit_token": "", "jit_config": ""}, ("T", None)),
    ],
)
def test_secrets_may_stand_in_either_place(
    inline: Document, credential: Document | None, wanted: tuple[str | None, str | None]
) -> None:
    """Both are kept where both are there; the sibling's win over the config's own."""
    config = parsed(without(SEED, "jit_token") | inline, credential)

    assert (revealed(config.jit_token), revealed(config.jit_config)) == wanted
    assert config == evolve(parsed(SEED), jit_token=config.jit_token, jit_config=config.jit_config)


@pytest.mark.parametrize("credential", [None, {}, {"compressed": True}, {"jit_token": None}, {"note": "x"}])
@pytest.mark.parametrize("inline", [{}, {"jit_token": None}, {"jit_token": None, "jit_config": None}])
def test_a_config_without_a_secret_is_not_there_yet(inline: Document, credential: Document | None) -> None:
    """Its secret may come later."""
    with pytest.raises(ConfigAbsentError):
        parsed(without(SEED, "jit_token") | inline, credential)


@pytest.mark.parametrize("key", ["jit_token", "jit_config"])
def test_a_faulty_secret_is_named_where_it_stands(key: str) -> None:
    """Who mends it must know in which of the two parameters."""
    inline = faults(json.dumps(SEED | {key: 5}))
    beside = faults(json.dumps(SEED), json.dumps({key: 5}))

    assert [line.partition(": ")[0] for line in inline] == [f"config.{key}"]
    assert [line.partition(": ")[0] for line in beside] == [f"credential.{key}"]


@pytest.mark.parametrize("credential", [None, {"jit_token": ""}])
def test_an_empty_secret_is_none(credential: Document | None) -> None:
    """A config whose secrets are all empty is not there yet, as one that has none."""
    with pytest.raises(ConfigAbsentError):
        parsed(SEED | {"jit_token": "", "jit_config": ""}, credential)


def test_a_faulty_config_is_not_waited_for() -> None:
    """Also where its secret may come later: it is malformed today."""
    assert faults(json.dumps(without(SEED, "jit_token", "org"))) == ["config.org: missing"]


@pytest.mark.parametrize("compressed", [0, 1, "true", "", [], {}])
def test_compressed_is_true_or_false(compressed: object) -> None:
    """Nothing else is guessed at."""
    (line,) = faults(json.dumps(SEED), json.dumps({"compressed": compressed}))

    assert line.startswith("credential.compressed: ")


# The compressed just-in-time config


def credential_with(data: bytes) -> Document:
    return {"jit_config": base64.b64encode(data).decode(), "compressed": True}


def inflated(data: bytes) -> str | None:
    secret = parsed(without(SEED, "jit_token"), credential_with(data)).jit_config
    return revealed(secret)


@RELAXED
@given(st.binary(min_size=1, max_size=5_000), st.integers(0, 9))
def test_a_compressed_config_comes_back(raw: bytes, level: int) -> None:
    """Byte by byte the one that was base64(gzip(base64decode(it)))."""
    original = base64.b64encode(raw).decode()

    assert inflated(gzip.compress(base64.b64decode(original), level)) == original


@pytest.mark.parametrize("seed", [0, None])
def test_a_compressed_config_has_a_mebibyte(seed: int | None) -> None:
    """It may inflate to 1 MiB, and to no byte more, whether or not it shrank."""
    raw = bytes(MIB + 1) if seed is None else random.Random(seed).randbytes(MIB + 1)

    assert inflated(gzip.compress(raw[:-1], 1)) == base64.b64encode(raw[:-1]).decode()
    with pytest.raises(ConfigMalformedError, match=r"credential\.jit_config: inflates to more than 1048576"):
        inflated(gzip.compress(raw, 1))


def bomb(mebibytes: int) -> bytes:
    deflater = zlib.compressobj(wbits=31)
    zeros = bytes(MIB)
    return b"".join(deflater.compress(zeros) for _ in range(mebibytes)) + deflater.flush()


def test_a_bomb_does_not_go_off() -> None:
    """What would inflate to 100 MiB takes no more memory than what is allowed."""
    text = json.dumps(credential_with(bomb(100)))
    tracemalloc.start()
    try:
        lines = faults(json.dumps(SEED), text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(lines) == 1
    assert peak < 8 * MIB


GZIPPED: Final = gzip.compress(b"a just-in-time config", mtime=0)
NO_GZIP: Final = "is not the base64 of gzipped data"
NOT_INFLATABLE: Final[dict[str, tuple[object, str]]] = {
    "number": (5, "is not a string"),
    "list": (["x"], "is not a string"),
    "not base64": ("not base64!", NO_GZIP),
    "not ascii": ("ä", "ASCII"),
    "no padding": ("YQ", NO_GZIP),
    "base64 for URLs": (base64.urlsafe_b64encode(b"\xff\xef\xbe" * 5).decode(), NO_GZIP),
    "not gzip": (base64.b64encode(b"not gzip").decode(), NO_GZIP),
    "zlib": (base64.b64encode(zlib.compress(b"not gzip")).decode(), NO_GZIP),
    "wrong checksum": (base64.b64encode(GZIPPED[:-8] + bytes(8)).decode(), NO_GZIP),
    "damaged": (base64.b64encode(GZIPPED[:12] + b"\xff" + GZIPPED[13:]).decode(), NO_GZIP),
    "no end": (base64.b64encode(GZIPPED[:-1]).decode(), "has no end"),
}


@pytest.mark.parametrize("kind", NOT_INFLATABLE)
def test_what_cannot_be_inflated_is_malformed(kind: str) -> None:
    """Truncated, damaged, or of another format: it is named, and not taken for the config itself."""
    value, why = NOT_INFLATABLE[kind]

    line, *_ = faults(json.dumps(SEED), json.dumps({"jit_config": value, "compressed": True}))

    assert line.startswith("credential.jit_config: ")
    assert why in line


# No secret in an error

PLANTED: Final = {
    "jit_token": "PLANTED-TOKEN-0001",
    "jit_config": "UExBTlRFRC1KSVQtMDAwMg==",
    "cache_token": "PLANTED-CACHE-0003",
}
FRAGMENTS: Final = ("PLANTED", "UExBTlRFRC1KSVQ")
WITH_SECRETS: Final[Document] = without(FULL, *SECRETS) | PLANTED


def errors_of(error: BaseException) -> Iterator[BaseException]:
    """The error, and all that it came from."""
    yield error
    for origin in (error.__cause__, error.__context__):
        if origin is not None:
            yield from errors_of(origin)
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from errors_of(each)


def shown_by(error: BaseException) -> str:
    """Everything that an error can show."""
    parts = traceback.format_exception(error)
    for each in errors_of(error):
        parts += [str(each), repr(each), repr(each.args), repr(vars(each))]
        parts += [repr(getattr(each, name, None)) for name in ("doc", "object", "__notes__", "name", "obj")]
    return "\n".join(parts)


def shown(text: str, credential: str | None = None) -> str:
    """What can be seen of a config: of what it came to, or of the error."""
    try:
        return repr(parse_config(text, credential))
    except (ConfigAbsentError, ConfigMalformedError) as error:
        return shown_by(error)


def assert_hidden(text: str, credential: str | None = None) -> None:
    seen = shown(text, credential)
    assert not [fragment for fragment in FRAGMENTS if fragment in seen]


@pytest.mark.parametrize("key", [*REFUSED, "nothing"])
def test_a_fault_elsewhere_shows_no_secret(key: str) -> None:
    """Whatever is wrong, in the config's own words or with its secrets in the sibling."""
    for value in REFUSED.get(key, (None,)):
        wrong = WITH_SECRETS | ({} if key in SECRETS else {key: value})
        assert_hidden(json.dumps(wrong))
        assert_hidden(json.dumps(without(wrong, *SECRETS)), json.dumps(PLANTED | {"compressed": 5}))
        assert_hidden(json.dumps(without(wrong, *SECRETS)), json.dumps(PLANTED | {"compressed": True}))


@pytest.mark.parametrize("key", SECRETS)
@pytest.mark.parametrize("wrap", [
    lambda secret: f"{secret}\n", lambda secret: f"ä{secret}", lambda secret: f"\ud800{secret}",
    lambda secret: [secret], lambda secret: {"a": secret}, lambda secret: {secret: 1},
    lambda secret: [[[secret] * 50]], lambda secret: f"{secret}\0", lambda secret: f" {secret}\t",
])  # fmt: skip
def test_a_faulty_secret_is_not_shown(key: str, wrap: Any) -> None:
    """A secret of another type, or with a character too many, is still a secret."""
    wrong = {key: wrap(PLANTED[key])}

    assert_hidden(json.dumps(WITH_SECRETS | wrong))
    for compressed in (None, True, False, "x"):
        assert_hidden(json.dumps(without(FULL, *SECRETS)), json.dumps(wrong | {"compressed": compressed}))


@pytest.mark.parametrize("text", [json.dumps(WITH_SECRETS), json.dumps(WITH_SECRETS, indent=1)])
def test_broken_json_shows_no_secret(text: str) -> None:
    """Cut, or with a character too many, at any place of either text: an error tells the place only."""
    for place in range(0, len(text), 3):
        for broken in (text[:place], f"{text[:place]}\x00{text[place:]}", f'{text[:place]}"{text[place:]}'):
            assert_hidden(broken)
            assert_hidden(json.dumps(without(FULL, *SECRETS)), broken)


@pytest.mark.parametrize("key", PLANTED)
def test_a_bare_secret_shows_no_secret(key: str) -> None:
    """A parameter that holds nothing but the secret, as JSON or not, is malformed, and stays hidden."""
    secret = PLANTED[key]
    for text in (secret, json.dumps(secret), json.dumps([secret]), json.dumps({"a": [secret]})):
        assert_hidden(text)
        assert_hidden(json.dumps(SEED), text)


# Any text

KEYS: Final = st.sampled_from([*FULL, "compressed", "x"])
VALUES: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
MUTATED: Final = st.dictionaries(KEYS, VALUES, max_size=6).map(lambda changes: json.dumps(FULL | changes))
TORN: Final = st.tuples(MUTATED, st.integers(0, 900), st.text(st.characters(), max_size=3)).map(
    lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :]
)
INPUTS: Final = st.text(st.characters()) | VALUES.map(json.dumps) | MUTATED | TORN


@settings(RELAXED, max_examples=300)
@given(INPUTS, st.none() | INPUTS)
def test_any_text_is_a_config_absent_or_malformed(text: str, credential: str | None) -> None:
    """Nothing else comes out, whatever stands in the two parameters, and an error can be shown anywhere."""
    try:
        config = parse_config(text, credential)
    except (ConfigAbsentError, ConfigMalformedError) as error:
        assert all(character.isprintable() for character in str(error).replace("\n", ""))  # noqa: PT017
    else:
        assert config.jit_token or config.jit_config


@pytest.mark.parametrize("depth", [50, 150, 250, 500, *range(900, 1000, 7), 2_000, 5_000, 20_000])
def test_deep_texts_are_malformed(depth: int) -> None:
    """As deep as the JSON of any field may nest, no recursion gets out."""
    nest = "[" * depth + "]" * depth
    for key in ("org", "labels", "jit_token", "job_id", "created_at", "is_org", "max_runtime_minutes"):
        faults(f'{json.dumps(SEED)[:-1]}, "{key}": {nest}}}')
    faults(json.dumps(SEED), f'{{"compressed": {nest}}}')
    faults(json.dumps(SEED), f'{{"jit_config": {nest}, "compressed": true}}')


# Messages

INSTANCE: Final = "i-0123456789abcdef0"
MESSAGE: Final = StatusMessage(
    instance_id=INSTANCE,
    job_id="67890",
    status=Status.SUCCESS,
    message_id="01ea514c-a86f-5345-9ef6-cf3193d44980",
    exit_code=0,
    duration_seconds=123,
    started_at=datetime(2025, 11, 25, 11, tzinfo=timezone(timedelta(hours=1))),
    completed_at=datetime(2025, 11, 25, 10, 2, 3, 500_000, tzinfo=UTC),
    job_result=JobResult.SUCCEEDED_WITH_ISSUES,
    job_name="build √ \udc80",
    job_ran=True,
    stop_reason=StopReason.MAX_RUNTIME,
    error_phase=Phase.RUNNING,
    log_lines_dropped=0,
    bootstrap_total_seconds=12.5,
)


def test_a_message_on_the_wire() -> None:
    """Its keys are the contract's; integers are integers; moments have their offset; the rest is left out."""
    text = message_to_json(MESSAGE)

    assert text.isascii()
    assert "\n" not in text
    assert json.loads(text) == {
        "instance_id": "i-0123456789abcdef0",
        "job_id": "67890",
        "status": "success",
        "message_id": "01ea514c-a86f-5345-9ef6-cf3193d44980",
        "exit_code": 0,
        "duration_seconds": 123,
        "started_at": "2025-11-25T10:00:00Z",
        "completed_at": "2025-11-25T10:02:03.500000Z",
        "job_result": "succeeded_with_issues",
        "job_name": "build √ \udc80",
        "job_ran": True,
        "stop_reason": "max_runtime",
        "error_phase": "running",
        "log_lines_dropped": 0,
        "bootstrap_total_seconds": 12.5,
    }
    assert '"exit_code": 0,' in text


def test_a_message_that_knows_nothing() -> None:
    """What a consumer requires is there, also an empty job ID; nothing else is."""
    message = StatusMessage(instance_id=INSTANCE, job_id="", status=Status.FAILURE, message_id="m")

    assert json.loads(message_to_json(message)) == {
        "instance_id": INSTANCE,
        "job_id": "",
        "status": "failure",
        "message_id": "m",
    }


def whole_characters(text: str) -> str:
    """Two halves of a character that stand side by side are that character, in JSON."""
    return str(json.loads(json.dumps(text)))


TEXTS: Final = st.text(st.characters(), max_size=20).map(whole_characters)
ZONES: Final = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)
MOMENTS: Final = st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30), timezones=ZONES)  # noqa: DTZ001
NUMBERS: Final = st.integers(-(2**63), 2**63)
SECONDS: Final = st.floats(allow_nan=False, allow_infinity=False)
MESSAGE_FIELDS: Final[Mapping[str, st.SearchStrategy[Any]]] = {
    "exit_code": NUMBERS,
    "duration_seconds": NUMBERS,
    "started_at": MOMENTS,
    "completed_at": MOMENTS,
    "error": TEXTS,
    "run_id": TEXTS,
    "repo": TEXTS,
    "job_result": st.sampled_from(JobResult),
    "job_name": TEXTS,
    "job_ran": st.booleans(),
    "runner_exit_code": NUMBERS,
    "runner_version": TEXTS,
    "interrupted_by": TEXTS,
    "interruption_deadline": MOMENTS,
    "log_upload": st.sampled_from(LogUpload),
    "stop_reason": st.sampled_from(StopReason),
    "error_phase": st.sampled_from(Phase),
    "log_lines_accepted": NUMBERS,
    "log_lines_delivered": NUMBERS,
    "log_lines_rejected": NUMBERS,
    "log_lines_dropped": NUMBERS,
    "bootstrap_config_seconds": SECONDS,
    "bootstrap_runner_seconds": SECONDS,
    "bootstrap_register_seconds": SECONDS,
    "bootstrap_total_seconds": SECONDS,
    "agent_version": TEXTS,
}
REQUIRED_OF_MESSAGES: Final[Mapping[str, st.SearchStrategy[Any]]] = {
    "instance_id": TEXTS,
    "job_id": TEXTS,
    "status": st.sampled_from(Status),
    "message_id": TEXTS,
}


def message_of(values: dict[str, Any]) -> StatusMessage:
    return StatusMessage(**values)


MESSAGES: Final = st.fixed_dictionaries(
    dict(REQUIRED_OF_MESSAGES), optional={name: st.none() | each for name, each in MESSAGE_FIELDS.items()}
).map(message_of)
RFC_3339: Final = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"


def test_every_field_of_a_message_is_tried() -> None:
    """A field that is added is added here too."""
    assert {field.name for field in fields(StatusMessage)} == {*MESSAGE_FIELDS, *REQUIRED_OF_MESSAGES}


@RELAXED
@given(MESSAGES)
def test_any_message_comes_back(message: StatusMessage) -> None:
    """Serialised whole, each field for itself."""
    assert message_from_json(message_to_json(message)) == message


@RELAXED
@given(MESSAGES)
def test_any_message_keeps_the_contract(message: StatusMessage) -> None:
    """What is not known is left out, an integer is one, and a moment says its offset."""
    text = message_to_json(message)
    document = json.loads(text)

    assert text.isascii()
    assert "\n" not in text
    assert set(document) == {name for name, value in asdict(message).items() if value is not None}
    for name, value in document.items():
        if name.endswith("_at"):
            assert re.fullmatch(RFC_3339, value, re.ASCII)
        elif name.endswith("_seconds") and name != "duration_seconds":
            assert type(value) is float
        elif name == "job_ran":
            assert type(value) is bool
        elif name.endswith(("_code", "_seconds")) or name.startswith("log_lines"):
            assert type(value) is int
        else:
            assert type(value) is str


def test_the_queues_limit_is_kept() -> None:
    """262,144 bytes are sent, one more is refused here; the text of the refusal is not the message's."""
    room = MESSAGE_BYTES - len(message_to_json(evolve(MESSAGE, error="")))

    text = checked_message(evolve(MESSAGE, error="e" * room))
    assert len(text.encode()) == 262_144
    assert text == message_to_json(evolve(MESSAGE, error="e" * room))
    with pytest.raises(MessageRefusedError, match="262145 bytes") as caught:
        checked_message(evolve(MESSAGE, error="e" * (room + 1)))
    assert "eee" not in str(caught.value)


# The journal

PROCESSES: Final = st.builds(ProcessId, st.integers(1, 2**22), st.floats(0, 1e9))
NAMES: Final = st.lists(TEXTS, max_size=4).map(tuple)
STOPS: Final = st.builds(
    StopRequest, st.sampled_from(StopReason), TEXTS, st.none() | TEXTS, st.none() | MOMENTS
)
JOURNAL_FIELDS: Final[Mapping[str, st.SearchStrategy[Any]]] = {
    "agent": st.none() | PROCESSES,
    "booted_at": st.none() | MOMENTS,
    "job_id": st.none() | TEXTS,
    "run_id": st.none() | TEXTS,
    "repo": st.none() | TEXTS,
    "queue_url": st.none() | TEXTS,
    "jobs_run": NAMES,
    "installed": st.booleans(),
    "runner": st.lists(PROCESSES, max_size=3).map(tuple),
    "runner_logs_bucket": st.none() | TEXTS,
    "runner_logs_prefix": st.none() | TEXTS,
    "runner_version": st.none() | TEXTS,
    "started_at": st.none() | MOMENTS,
    "job_name": st.none() | TEXTS,
    "job_result": st.none() | st.sampled_from(JobResult),
    "completed_at": st.none() | MOMENTS,
    "stop": st.none() | STOPS,
    "final": st.none() | MESSAGES,
    "confirmed": NAMES,
    "terminated": st.booleans(),
}
REQUIRED_OF_JOURNALS: Final[Mapping[str, st.SearchStrategy[Any]]] = {
    "instance_id": TEXTS,
    "agent_version": TEXTS,
    "phase": st.sampled_from(Phase),
}
RECORDS: Final = st.fixed_dictionaries(dict(REQUIRED_OF_JOURNALS), optional=dict(JOURNAL_FIELDS)).map(
    lambda values: JournalRecord(**values)
)
RECORD: Final = JournalRecord(
    instance_id=INSTANCE,
    agent_version="1.0",
    phase=Phase.REPORTING,
    agent=ProcessId(17, 12.25),
    job_id="67890",
    stop=StopRequest(StopReason.INTERRUPTED, "stop", by="spot", deadline=MESSAGE.completed_at),
    final=MESSAGE,
    confirmed=("x",),
)


def test_every_field_of_the_journal_is_tried() -> None:
    """A field that is added is added here too."""
    assert {field.name for field in fields(JournalRecord)} == {*JOURNAL_FIELDS, *REQUIRED_OF_JOURNALS}


@RELAXED
@given(RECORDS)
def test_any_record_comes_back(record: JournalRecord) -> None:
    """A successor knows what its predecessor knew."""
    text = journal_to_json(record)

    assert text.isascii()
    assert journal_from_json(text) == record


def test_a_journal_has_a_version() -> None:
    """The first, so that a later agent can tell."""
    assert json.loads(journal_to_json(RECORD))["version"] == 1


@pytest.mark.parametrize("version", [0, 2, "1", None, [1], {}])
def test_another_version_is_damage(version: object) -> None:
    """It is not guessed at, and named."""
    document = json.loads(journal_to_json(RECORD)) | {"version": version}

    with pytest.raises(JournalDamagedError, match=re.escape(f"version {version!r}")):
        journal_from_json(json.dumps(document))


def test_a_torn_journal_is_damage() -> None:
    """Cut anywhere, it is no record."""
    text = journal_to_json(RECORD)
    for end in range(len(text)):
        with pytest.raises(JournalDamagedError):
            journal_from_json(text[:end])


@pytest.mark.parametrize("key", ["version", *REQUIRED_OF_JOURNALS])
def test_a_journal_without_what_it_needs_is_damage(key: str) -> None:
    """Nothing is made up."""
    with pytest.raises(JournalDamagedError):
        journal_from_json(json.dumps(without(json.loads(journal_to_json(RECORD)), key)))


DOCUMENTS: Final = st.dictionaries(
    st.sampled_from([*JOURNAL_FIELDS, *REQUIRED_OF_JOURNALS, "version", "x"]), VALUES, max_size=4
).map(lambda changes: json.dumps(json.loads(journal_to_json(RECORD)) | changes))


@settings(RELAXED, max_examples=200)
@given(st.text(st.characters()) | VALUES.map(json.dumps) | DOCUMENTS)
@example("[" * 100_000)
@example("null")
@example("1" * 10_000)
def test_any_text_is_a_journal_or_damage(text: str) -> None:
    """Nothing else comes out, whatever stands on the disk."""
    try:
        record = journal_from_json(text)
    except JournalDamagedError:
        return
    assert isinstance(record, JournalRecord)

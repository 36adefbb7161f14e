# ruff: noqa: S101 - a suite speaks in asserts
"""What any ConfigSource promises."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from attrs import evolve, fields

from agent_core.errors import (
    ConfigAbsentError,
    ConfigDeniedError,
    ConfigMalformedError,
    ConfigUnavailableError,
)
from agent_core.model import JobConfig, Secret
from agent_core.ports import ConfigSource
from agent_core.testing.contracts.contract import (
    Contract,
    assert_no_secret,
    cancel_at_any_step,
    error_of,
    eventually,
    on_loop,
)

__all__ = ["ConfigSourceContract"]

_TOKEN: Final = "AABBCCDD-planted-registration-token"  # noqa: S105 - planted
_JIT_CONFIG: Final = "eyJwbGFudGVkIjoiaml0LWNvbmZpZyJ9"
_CACHE_TOKEN: Final = "EEFFGGHH-planted-cache-token"  # noqa: S105 - planted
_SECRETS: Final = (_TOKEN, _JIT_CONFIG, _CACHE_TOKEN)

_MINIMAL: Final[dict[str, object]] = {
    "org": "Shavakan",
    "repo": "my-repo",
    "labels": ["runs-fleet=12345"],
    "jit_token": _TOKEN,
}
_FULL: Final[dict[str, object]] = {
    "org": "Shavakan",
    "repo": "Shavakan/my-repo",
    "labels": ["runs-fleet=12345", "runner=2cpu-linux-arm64"],
    "jit_token": _TOKEN,
    "jit_config": _JIT_CONFIG,
    "runner_group": "Größe L",
    "job_id": "67890",
    "run_id": "12345",
    "runner_name": "runner-1",
    "is_org": True,
    "created_at": "2025-11-25T11:00:00+01:00",
    "termination_queue_url": "https://sqs.invalid/123456789012/termination.fifo",
    "cache_url": "https://cache.invalid/",
    "cache_token": _CACHE_TOKEN,
    "runner_logs_bucket": "my-logs",
    "runner_logs_prefix": "some/prefix",
    "runner_version": "2.336.0",
    "runner_sha256": "ab" * 32,
    "max_runtime_minutes": 45,
}
_FULL_CONFIG: Final = JobConfig(
    org="Shavakan",
    repo="Shavakan/my-repo",
    labels=("runs-fleet=12345", "runner=2cpu-linux-arm64"),
    jit_token=Secret(_TOKEN),
    jit_config=Secret(_JIT_CONFIG),
    runner_group="Größe L",
    job_id="67890",
    run_id="12345",
    runner_name="runner-1",
    is_org=True,
    created_at=datetime(2025, 11, 25, 10, tzinfo=UTC),
    termination_queue_url="https://sqs.invalid/123456789012/termination.fifo",
    cache_url="https://cache.invalid/",
    cache_token=Secret(_CACHE_TOKEN),
    runner_logs_bucket="my-logs",
    runner_logs_prefix="some/prefix",
    runner_version="2.336.0",
    runner_sha256="ab" * 32,
    max_runtime_minutes=45,
)

_FAULTS: Final[dict[str, Sequence[object]]] = {
    "org": (None, 5, "", "no spaces", "a/b"),
    "repo": (None, [], "a/b/c"),
    "labels": (None, [], "runner", [5], ["with,comma"], [""], ["a\nb"], ["a\0"], ["x" * 257]),
    "jit_token": (5, [_TOKEN], {"token": _TOKEN}, f"{_TOKEN}\n", f"{_TOKEN}é"),
    "jit_config": (True, [_JIT_CONFIG], f"{_JIT_CONFIG}\x00"),
    "cache_token": ({"value": _CACHE_TOKEN}, f"{_CACHE_TOKEN}\x7f"),
    "runner_group": (5, "two\nlines"),
    "job_id": (1.5, True, ["67890"], "6" * 257),
    "run_id": (False, {}),
    "runner_name": (7, "n" * 65),
    "is_org": ("true", 1),
    "created_at": (5, "yesterday", "2025-11-25T10:00:00"),
    "termination_queue_url": (5, ""),
    "cache_url": ([],),
    "runner_logs_bucket": (5,),
    "runner_logs_prefix": (5,),
    "runner_version": (2.336, "v2.336.0", "3.0.0"),
    "runner_sha256": ("ab", "AB" * 32, 5),
    "max_runtime_minutes": (0, -5, 1.5, "45", True),
}
"""What cannot be the value of a field, for every field that there is."""

_NO_DOCUMENTS: Final = (
    "",
    "   ",
    "null",
    "5",
    "[]",
    f'"{_TOKEN}"',
    f'[{{"jit_token": "{_TOKEN}"}}]',
    json.dumps(_FULL)[:-1],
    json.dumps(_FULL)[:-60],
    f"jit_token: {_TOKEN}",
    "[" * 100_000,
)
"""What is no JSON object."""


class ConfigSourceContract(Contract, ABC):
    """Holds a ConfigSource to its promises."""

    @abstractmethod
    def make(self) -> ConfigSource:
        """The adapter under test; where it looks, there is nothing."""

    @abstractmethod
    def put(self, text: str) -> None:
        """Makes this what stands where the adapter looks, in place of what stood there."""

    @abstractmethod
    def remove(self) -> None:
        """Leaves nothing where the adapter looks."""

    @abstractmethod
    def deny(self) -> None:
        """From here on the adapter may not read what is there."""

    @abstractmethod
    def break_(self) -> None:
        """From here on the place that the adapter looks at does not answer."""

    def put_document(self, document: Mapping[str, object]) -> None:
        """Makes this object what stands where the adapter looks."""
        self.put(json.dumps(dict(document)))

    # Not there yet

    @on_loop
    async def test_nothing_there_is_absent(self) -> None:
        """Where nothing stands, the config is absent, at every look."""
        source = self.make()

        await error_of(ConfigAbsentError, source.fetch())
        await error_of(ConfigAbsentError, source.fetch())

    @on_loop
    async def test_neither_token_nor_jit_config_is_absent(self) -> None:
        """A config without its secrets counts as not there yet; null and an empty text are nothing."""
        source = self.make()
        without = {key: value for key, value in _FULL.items() if key not in {"jit_token", "jit_config"}}

        for nothing in ({}, {"jit_token": None, "jit_config": None}, {"jit_token": "", "jit_config": ""}):
            self.put_document(without | nothing)
            await error_of(ConfigAbsentError, source.fetch())

    @on_loop
    async def test_each_look_finds_what_is_there_then(self) -> None:
        """A config that appears is returned, one that changes too, and one that goes is absent."""
        source = self.make()
        await error_of(ConfigAbsentError, source.fetch())

        self.put_document(_MINIMAL | {"job_id": "first"})
        first = await source.fetch()
        self.put_document(_MINIMAL | {"job_id": "second"})
        second = await source.fetch()
        self.remove()

        assert (first.job_id, second.job_id) == ("first", "second")
        await error_of(ConfigAbsentError, source.fetch())

    # There

    @on_loop
    async def test_every_field_arrives(self) -> None:
        """Each field has the value that stands there."""
        assert _FULL.keys() == {field.name for field in fields(JobConfig)} - {"unknown_keys"}
        source = self.make()
        self.put_document(_FULL)

        assert await source.fetch() == _FULL_CONFIG

    @on_loop
    async def test_what_is_left_out_has_its_default(self) -> None:
        """The required fields and one of the secrets are enough; null is the same as left out."""
        source = self.make()
        expected = JobConfig(
            org="Shavakan", repo="my-repo", labels=("runs-fleet=12345",), jit_token=Secret(_TOKEN)
        )
        nulls: dict[str, object] = dict.fromkeys(_FULL.keys() - _MINIMAL.keys())

        for document in (_MINIMAL, _MINIMAL | nulls):
            self.put_document(document)
            config = await source.fetch()
            # The date of what holds the config may stand in for its own.
            assert evolve(config, created_at=None) == expected

    @on_loop
    async def test_a_jit_config_alone_is_enough(self) -> None:
        """It needs no token beside it."""
        source = self.make()
        self.put_document(_MINIMAL | {"jit_token": None, "jit_config": _JIT_CONFIG})

        config = await source.fetch()

        assert (config.jit_token, config.jit_config) == (None, Secret(_JIT_CONFIG))

    @on_loop
    async def test_ids_may_be_integers(self) -> None:
        """An ID that comes as an integer is the string of its digits."""
        source = self.make()
        self.put_document(_MINIMAL | {"job_id": 67890, "run_id": 12345678901234567890})

        config = await source.fetch()

        assert (config.job_id, config.run_id) == ("67890", "12345678901234567890")

    @on_loop
    async def test_unknown_keys_are_ignored_and_named(self) -> None:
        """Keys that mean nothing do no harm; they are named, and what stands there is not shown."""
        source = self.make()
        self.put_document(_FULL | {"jit_tokn": _TOKEN, "an odd\nkey": {"a": [1, None]}})

        config = await source.fetch()

        assert evolve(config, unknown_keys=()) == _FULL_CONFIG
        assert len(config.unknown_keys) == 2  # noqa: PLR2004 - one for each
        assert any("jit_tokn" in key for key in config.unknown_keys)
        assert not any("\n" in key or _TOKEN in key for key in config.unknown_keys)

    @on_loop
    async def test_a_config_shows_no_secret(self) -> None:
        """Printed, it has none; asked, it has them."""
        source = self.make()
        self.put_document(_FULL)

        config = await source.fetch()

        shown = f"{config!r} {config} {config.jit_token} {config.jit_config!r} {config.cache_token!s}"
        assert not any(secret in shown for secret in _SECRETS)
        assert config.jit_token is not None
        assert config.jit_token.reveal() == _TOKEN

    # Malformed

    @on_loop
    async def test_what_is_no_object_is_malformed(self) -> None:
        """No JSON, JSON that is cut off, and JSON of another kind are refused, and nothing of it is shown."""
        source = self.make()

        for text in _NO_DOCUMENTS:
            self.put(text)
            error = await error_of(ConfigMalformedError, source.fetch())
            assert_no_secret(error, _SECRETS)

    @on_loop
    async def test_each_faulty_value_is_malformed(self) -> None:
        """What a field does not take is refused, with the field's name."""
        assert _FAULTS.keys() == _FULL.keys()
        source = self.make()

        for key, values in _FAULTS.items():
            for value in values:
                self.put_document(_FULL | {key: value})
                error = await error_of(ConfigMalformedError, source.fetch())
                assert key in str(error), f"{value!r}: {error}"
                assert_no_secret(error, _SECRETS)

    @on_loop
    async def test_every_fault_is_named_at_once(self) -> None:
        """All that is wrong stands in one message, each with its path."""
        source = self.make()
        self.put_document({key: values[0] for key, values in _FAULTS.items()})

        error = await error_of(ConfigMalformedError, source.fetch())

        assert [key for key in _FAULTS if f"config.{key}" not in str(error)] == []
        assert_no_secret(error, _SECRETS)

    @on_loop
    async def test_every_missing_field_is_named(self) -> None:
        """Also an empty object is no config that is not there yet: it has faults."""
        source = self.make()
        self.put_document({})

        error = await error_of(ConfigMalformedError, source.fetch())

        assert all(f"config.{key}" in str(error) for key in ("org", "repo", "labels"))

    @on_loop
    async def test_a_mended_config_is_taken(self) -> None:
        """A malformed config spoils no later look."""
        source = self.make()
        self.put("{")
        await error_of(ConfigMalformedError, source.fetch())

        self.put_document(_FULL)

        assert await source.fetch() == _FULL_CONFIG

    # Out of reach

    @on_loop
    async def test_what_may_not_be_read_is_denied(self) -> None:
        """It is told from absent, which would be asked for again."""
        source = self.make()
        self.put_document(_FULL)

        self.deny()

        assert_no_secret(await error_of(ConfigDeniedError, source.fetch()), _SECRETS)

    @on_loop
    async def test_a_place_that_does_not_answer_is_unavailable(self) -> None:
        """It is told from denied, which is final."""
        source = self.make()
        self.put_document(_FULL)

        self.break_()

        assert_no_secret(await error_of(ConfigUnavailableError, source.fetch()), _SECRETS)

    # Cancelled

    @on_loop
    async def test_can_be_cancelled(self) -> None:
        """A look that is cancelled spoils no later one."""
        source = self.make()
        self.put_document(_FULL)

        await cancel_at_any_step(source.fetch)

        assert await eventually(ConfigUnavailableError, source.fetch) == _FULL_CONFIG

"""The config sources keep the promises of their port."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from agent_adapters.filesystem import FileConfigSource
from agent_adapters.memory import InMemoryConfigSource
from agent_adapters.wire import parse_config
from agent_core.errors import (
    ConfigAbsentError,
    ConfigDeniedError,
    ConfigError,
    ConfigMalformedError,
    ConfigUnavailableError,
)
from agent_core.model import Secret
from agent_core.testing import simulation
from agent_core.testing.contracts import ConfigSourceContract
from support.cloud import INSTANCE_ID, cloud_container
from support.faults import Answer, Refuse, Truncate, denied, throttled

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from agent_adapters.aws.config_source import SsmConfigSource
    from support.aws import Aws
    from support.faults import Fault

pytestmark = pytest.mark.usefixtures("patient")

PARAMETER = f"/runs-fleet/runners/{INSTANCE_ID}/config"
CREDENTIAL = f"/runs-fleet/runners/{INSTANCE_ID}/credential"
CONFIG = {"org": "Shavakan", "repo": "my-repo", "labels": ["runs-fleet=12345"], "job_id": "67890"}


class TestInMemoryConfigSource(ConfigSourceContract):
    """It holds configs, not texts: the back door reads them as the adapters of texts do."""

    def setup_method(self) -> None:
        self.source = InMemoryConfigSource()

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        return simulation.run(lambda: main)

    def make(self) -> InMemoryConfigSource:
        return self.source

    def put(self, text: str) -> None:
        self.remove()
        try:
            self.source.config = parse_config(text)
        except ConfigError as exc:
            self.source.error = exc

    def remove(self) -> None:
        self.source.config = self.source.error = None

    def deny(self) -> None:
        self.source.error = ConfigDeniedError("it may not be read")

    def break_(self) -> None:
        self.source.error = ConfigUnavailableError("it does not answer")


class TestFileConfigSource(ConfigSourceContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path, unprivileged: Callable[[], None]) -> None:
        self.path = tmp_path / "job.json"
        self.drop_privileges = unprivileged

    def make(self) -> FileConfigSource:
        return FileConfigSource(self.path)

    def put(self, text: str) -> None:
        self.path.write_text(text, "utf-8")

    def remove(self) -> None:
        self.path.unlink()

    def deny(self) -> None:
        self.path.chmod(0)
        self.drop_privileges()

    def break_(self) -> None:
        self.path.unlink()
        self.path.mkdir()


class TestSsmConfigSource(ConfigSourceContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path, aws: Aws) -> None:
        self.aws, self.folder = aws, tmp_path

    def make(self) -> SsmConfigSource:
        return cloud_container(self.folder).config_source()  # type: ignore[no-any-return]

    def put(self, text: str) -> None:
        # A parameter is never empty, and never so long.
        self.aws.put_parameter(PARAMETER, text[:4096] or " ")

    def remove(self) -> None:
        self.aws.client("ssm").delete_parameter(Name=PARAMETER)

    def deny(self) -> None:
        self.aws.faults.plan("ssm:GetParameter", denied("ssm"))

    def break_(self) -> None:
        self.aws.faults.plan("ssm:GetParameter", Answer(500, "InternalServerError"))


class TestSecureSsmConfigSource(TestSsmConfigSource):
    """A SecureString comes decrypted."""

    def put(self, text: str) -> None:
        self.aws.put_parameter(PARAMETER, text[:4096] or " ", secure=True)


# SSM only


@pytest.fixture
def source(aws: Aws, tmp_path: Path) -> SsmConfigSource:
    assert aws.url
    return cloud_container(tmp_path).config_source()  # type: ignore[no-any-return]


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_secrets_in_the_sibling(aws: Aws, source: SsmConfigSource, *, secure: bool, compressed: bool) -> None:
    """They may stand in `…/credential`, the JIT config compressed or not."""
    jit_config = base64.b64encode(b'{".runner": "a just-in-time config"}').decode()
    given = jit_config
    if compressed:
        given = base64.b64encode(gzip.compress(base64.b64decode(jit_config))).decode()
    credential = {"jit_token": "the-token", "jit_config": given, "compressed": compressed}
    aws.put_parameter(PARAMETER, json.dumps(CONFIG))
    aws.put_parameter(CREDENTIAL, json.dumps(credential), secure=secure)

    config = asyncio.run(source.fetch())

    assert (config.jit_token, config.jit_config) == (Secret("the-token"), Secret(jit_config))
    assert config.job_id == "67890"


def test_a_jit_config_needs_no_look_at_the_sibling(aws: Aws, source: SsmConfigSource) -> None:
    """It wins over whatever stands there."""
    aws.put_parameter(PARAMETER, json.dumps(CONFIG | {"jit_config": "aml0"}))

    asyncio.run(source.fetch())

    assert [call.operation for call in aws.calls] == ["ssm:GetParameter"]


def test_a_jit_config_in_the_sibling_joins_a_token(aws: Aws, source: SsmConfigSource) -> None:
    """Both are had, so that the token can be tried where the runner refuses the other."""
    aws.put_parameter(PARAMETER, json.dumps(CONFIG | {"jit_token": "the-token"}))
    aws.put_parameter(CREDENTIAL, json.dumps({"jit_config": "aml0"}))

    config = asyncio.run(source.fetch())

    assert (config.jit_token, config.jit_config) == (Secret("the-token"), Secret("aml0"))


def test_a_config_without_secrets_waits_for_its_sibling(aws: Aws, source: SsmConfigSource) -> None:
    """It counts as not there yet; a sibling that may not be read is denied."""
    aws.put_parameter(PARAMETER, json.dumps(CONFIG))
    with pytest.raises(ConfigAbsentError):
        asyncio.run(source.fetch())

    aws.faults.plan("ssm:GetParameter", denied("ssm"))
    aws.faults.plan("ssm:GetParameter", Answer(500, "InternalServerError"), times=1)
    with pytest.raises(ConfigUnavailableError):
        asyncio.run(source.fetch())


def test_a_sibling_that_may_not_be_read_is_denied(
    aws: Aws, source: SsmConfigSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the config has no secret of its own, whoever may not read the sibling waits in vain."""
    aws.put_parameter(PARAMETER, json.dumps(CONFIG))
    read = source._read

    def read_config_only(name: str) -> tuple[str, datetime | None]:
        if name == CREDENTIAL:
            aws.faults.plan("ssm:GetParameter", denied("ssm"), times=1)
        return read(name)

    monkeypatch.setattr(source, "_read", read_config_only)
    with pytest.raises(ConfigDeniedError, match="credential"):
        asyncio.run(source.fetch())

    aws.put_parameter(PARAMETER, json.dumps(CONFIG | {"jit_token": "the-token"}))
    assert asyncio.run(source.fetch()).jit_token == Secret("the-token")


def test_a_malformed_sibling_shows_no_secret(aws: Aws, source: SsmConfigSource) -> None:
    """All faults of both come in one error."""
    aws.put_parameter(PARAMETER, json.dumps(CONFIG | {"repo": 5}))
    aws.put_parameter(CREDENTIAL, json.dumps({"jit_token": ["planted-secret"], "compressed": "planted-too"}))

    with pytest.raises(ConfigMalformedError) as caught:
        asyncio.run(source.fetch())

    assert "config.repo" in str(caught.value)
    assert "credential.jit_token" in str(caught.value)
    assert "planted-secret" not in f"{caught.value!r}{caught.value.__context__!r}"


def test_a_token_is_as_old_as_its_parameter(aws: Aws, source: SsmConfigSource) -> None:
    """Unless the config says how old it is."""
    aws.put_parameter(PARAMETER, json.dumps(CONFIG | {"jit_token": "the-token"}))
    written_at = aws.client("ssm").get_parameter(Name=PARAMETER)["Parameter"]["LastModifiedDate"]
    assert asyncio.run(source.fetch()).created_at == written_at

    created_at = "2025-11-25T10:00:00Z"
    document = CONFIG | {"jit_token": "the-token", "created_at": created_at}
    aws.put_parameter(PARAMETER, json.dumps(document))
    assert asyncio.run(source.fetch()).created_at == datetime(2025, 11, 25, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    "fault", [throttled("ssm"), Refuse(), Truncate(10), Answer(503), Answer(400, "ExpiredTokenException")]
)
def test_what_passes_is_unavailable(aws: Aws, source: SsmConfigSource, fault: Fault) -> None:
    """It is asked for again, and the next look finds it."""
    aws.put_parameter(PARAMETER, json.dumps(CONFIG | {"jit_token": "the-token"}))
    aws.faults.plan("ssm:GetParameter", fault)
    with pytest.raises(ConfigUnavailableError):
        asyncio.run(source.fetch())

    aws.faults.heal()

    assert asyncio.run(source.fetch()).job_id == "67890"

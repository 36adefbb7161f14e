"""The job's config in SSM's Parameter Store."""

from datetime import datetime
from typing import Final

from attrs import evolve

from agent_adapters.aws.clients import AwsClients, Meanings
from agent_adapters.threads import Lane
from agent_adapters.wire import parse_config
from agent_core.errors import (
    ConfigAbsentError,
    ConfigDeniedError,
    ConfigError,
    ConfigMalformedError,
    ConfigUnavailableError,
)
from agent_core.model import JobConfig
from agent_core.ports import ConfigSource

__all__ = ["SsmConfigSource", "credential_name"]

_CALLS: Final = 2
"""The last look before the end does not wait for a call that hangs."""
_MEANINGS: Final = Meanings(
    unavailable=ConfigUnavailableError,
    denied=ConfigDeniedError,
    others={
        "ParameterNotFound": ConfigAbsentError,
        "InvalidKeyId": ConfigDeniedError,
        "ValidationException": ConfigMalformedError,
    },
)


def credential_name(parameter: str) -> str:
    """The sibling that may hold the secrets: `…/config` has `…/credential` beside it."""
    return f"{parameter.rpartition('/')[0]}/credential"


class SsmConfigSource(ConfigSource):
    """A parameter, and a sibling for its secrets; each a String or a SecureString.

    The sibling is looked at unless the parameter has a JIT config itself, which wins over everything. A
    token that says nothing of its age is as old as the parameter that holds it.

    Args:
        clients: made for the instance's region.
        parameter: its name, such as `/runs-fleet/runners/i-0123456789abcdef0/config`.
    """

    def __init__(self, clients: AwsClients, parameter: str) -> None:
        self._clients, self._parameter = clients, parameter
        self._lane = Lane("config", ConfigUnavailableError, calls=_CALLS)

    async def fetch(self) -> JobConfig:
        return await self._lane.run(self._fetch)

    def _fetch(self) -> JobConfig:
        text, written_at = self._read(self._parameter)
        alone = _parsed(text)
        if isinstance(alone, JobConfig) and alone.jit_config is not None:
            return _dated(alone, written_at)
        try:
            credential, credential_written_at = self._read(credential_name(self._parameter))
        except (ConfigAbsentError, ConfigDeniedError) as exc:
            if isinstance(alone, JobConfig):
                return _dated(alone, written_at)
            # Whoever may not read the secrets waits in vain for them.
            raise (exc if _is_hidden(alone, exc) else alone) from None
        config = parse_config(text, credential)
        has_own_token = isinstance(alone, JobConfig) and alone.jit_token == config.jit_token
        return _dated(config, written_at if has_own_token else credential_written_at)

    def _read(self, name: str) -> tuple[str, datetime | None]:
        with _MEANINGS.of(f"parameter {name}"):
            answer = self._clients.get("ssm").get_parameter(Name=name, WithDecryption=True)
            parameter = answer["Parameter"]
            value, written_at = parameter["Value"], parameter.get("LastModifiedDate")
            if not isinstance(value, str):
                raise TypeError("Value")
            return value, written_at if isinstance(written_at, datetime) else None


def _parsed(text: str) -> JobConfig | ConfigError:
    """What the parameter comes to without its sibling."""
    try:
        return parse_config(text)
    except ConfigError as exc:
        return exc.with_traceback(None)


def _is_hidden(alone: ConfigError, exc: ConfigError) -> bool:
    return isinstance(alone, ConfigAbsentError) and isinstance(exc, ConfigDeniedError)


def _dated(config: JobConfig, written_at: datetime | None) -> JobConfig:
    return config if config.created_at is not None else evolve(config, created_at=written_at)

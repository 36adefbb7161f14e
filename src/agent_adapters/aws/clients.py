"""The AWS clients of one process, and what their errors mean.

No client tries anything again by itself: when to ask again, and for how long, is the core's to decide.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

import boto3
from attrs import frozen
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigParseError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)

from agent_adapters.threads import spawn, try_spawn
from agent_core import __version__
from agent_core.errors import AgentError

__all__ = ["AwsClients", "Meanings", "error_code"]

_TIMEOUTS: Final[Mapping[str, tuple[float, float]]] = {
    "ssm": (2.0, 5.0),
    "s3": (3.0, 5.0),
    "logs": (3.0, 10.0),
    "sqs": (1.0, 2.5),
    "ec2": (3.0, 6.0),
    "sts": (3.0, 5.0),
}
"""Seconds to connect, and between two bytes of an answer: they end a call that hangs about when the core
gives it up (`agent_core.policy`), so that its lane is free for the next try."""

_METADATA_ATTEMPTS: Final = 3
_CREDENTIALS_SECONDS: Final = 8.0
"""The metadata service is on the host: what takes longer does not come."""
_CONNECTIONS: Final = 16

_DENIED: Final = frozenset(
    {
        "AccessDenied", "AccessDeniedException", "AuthFailure", "InvalidAccessKeyId", "InvalidClientTokenId",
        "InvalidSignatureException", "OptInRequired", "SignatureDoesNotMatch", "UnauthorizedOperation",
        "UnrecognizedClientException", "403", "Forbidden",
    }
)  # fmt: skip
"""Codes of any service that say: not allowed, and not tomorrow either. A token that has expired is none of
them: botocore gets a new one."""


_FINAL: Final = (
    ConfigParseError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)
"""What no second try mends."""


class AwsClients:
    """Makes each client when it is first asked for, once; safe to use from any thread.

    Args:
        region: of every client (boto3 by itself knows `AWS_DEFAULT_REGION` only).
    """

    def __init__(self, region: str | None) -> None:
        self._region = region
        self._session: boto3.Session | None = None
        self._clients: dict[str, Any] = {}
        self._making = threading.Lock()

    def get(self, service: str) -> Any:
        """The client of a service, by boto3's name for it.

        Raises:
            BotoCoreError: there is no region, or there are no credentials (yet).
        """
        if service not in self._clients:
            # botocore's session may be used by one thread at a time.
            with self._making:
                if service not in self._clients:
                    self._clients[service] = self._make(service)
        return self._clients[service]

    def warm(self, services: Iterable[str]) -> None:
        """Makes the clients ahead, in a thread: what is slow, or needs memory, is done before it counts."""

        def make() -> None:
            for service in services:
                with suppress(Exception):  # whoever needs it is told
                    self.get(service)

        # Without a thread, they are made when they are needed.
        try_spawn("AWS clients", make)

    def _make(self, service: str) -> Any:
        if self._session is None:
            session = boto3.Session(region_name=self._region)
            session._session.set_config_variable("metadata_service_num_attempts", _METADATA_ATTEMPTS)  # noqa: SLF001
            self._session = session
        self._need_credentials(self._session)
        connect, read = _TIMEOUTS[service]
        config = Config(
            connect_timeout=connect,
            read_timeout=read,
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=_CONNECTIONS,
            tcp_keepalive=True,
            user_agent_extra=f"runs-fleet-agent/{__version__}",
            # The bytes of the cache are held against a digest that the bucket has no say in.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return self._session.client(service, config=config)

    def _need_credentials(self, session: boto3.Session) -> None:
        """Sees to it that the session has some: a client that is made without never gets any."""
        looking = spawn("AWS credentials", session.get_credentials)
        try:
            found = looking.result(_CREDENTIALS_SECONDS)
        except TimeoutError:
            # The next try has another session, which does not wait for this one's answer.
            self._session = None
            raise _NoCredentialsYetError from None
        if found is None:
            raise _NoCredentialsYetError


class _NoCredentialsYetError(BotoCoreError):  # type: ignore[misc]
    fmt = "there are no AWS credentials: give the instance a profile, or set the AWS variables"


def error_code(exc: BaseException | None) -> str | None:
    """What AWS calls the error; None where it is not AWS's."""
    if not isinstance(exc, ClientError):
        return None
    return str(exc.response.get("Error", {}).get("Code", ""))


@frozen(kw_only=True)
class Meanings:
    """What an adapter's calls raise: AWS's errors, in the words of its port."""

    unavailable: type[AgentError]
    denied: type[AgentError]
    others: Mapping[str, type[AgentError]] = {}
    """By code, or by the name of botocore's exception: what means something else for this port."""

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Around calls; `what` names them in the error's text."""
        try:
            yield
        except AgentError:
            raise
        except ClientError as exc:
            raise self._of_answer(exc)(f"{what}: {_shown(exc)}") from exc
        except _FINAL as exc:
            raise self.others.get(type(exc).__name__, self.denied)(f"{what}: {exc}") from exc
        except (BotoCoreError, OSError) as exc:
            raise self.unavailable(f"{what}: {exc}") from exc
        except Exception as exc:
            # Whoever answers for AWS (a proxy, a portal) can make botocore, and us, raise anything.
            raise self.unavailable(f"{what}: an answer that makes no sense: {type(exc).__name__}") from exc

    def _of_answer(self, exc: ClientError) -> type[AgentError]:
        code = error_code(exc) or ""
        if code in self.others:
            return self.others[code]
        return self.denied if code in _DENIED else self.unavailable


def _shown(exc: ClientError) -> str:
    error = exc.response.get("Error", {})
    return f"{error.get('Code', 'unknown error')}: {error.get('Message', '') or 'no further words'}"

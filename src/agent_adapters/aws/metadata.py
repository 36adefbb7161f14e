"""What the instance knows of itself, by the instance metadata service (IMDSv2)."""

import json
import re
import urllib.error
import urllib.request
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPException
from typing import Any, Final

from attrs import frozen

from agent_adapters.threads import spawn
from agent_core.errors import AgentError

__all__ = ["InstanceMetadata", "MetadataUnavailableError", "SpotNotice"]

_ENDPOINT: Final = "http://169.254.169.254"
_TIMEOUT_SECONDS: Final = 1.0
"""Between two bytes. The service is on the host: what takes longer does not come."""
_ANSWER_SECONDS: Final = 3.0
"""A whole answer."""
_TOKEN_SECONDS: Final = 6 * 60 * 60
_ANSWER_BYTES: Final = 4 * 1024
_TOKEN: Final = re.compile(r"[!-~]{1,1024}")
_INSTANCE_ID: Final = re.compile(r"i-[0-9a-f]{8,17}")
_REGION: Final = re.compile(r"[a-z]{2,}(-[a-z0-9]+)+")
_UNAUTHORIZED: Final = 401
_NOT_FOUND: Final = 404


class MetadataUnavailableError(AgentError):
    """The metadata service does not answer, or not as one."""


@frozen
class SpotNotice:
    """AWS takes the instance back."""

    action: str
    """`terminate`, `stop` or `hibernate`."""
    at: datetime


class InstanceMetadata:
    """Asks the service, whatever proxy the environment names: it is on the host itself. Blocking.

    Args:
        endpoint: the service's URL, where it is not the usual one (`AWS_EC2_METADATA_SERVICE_ENDPOINT`).
    """

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = (endpoint or _ENDPOINT).rstrip("/")
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
        self._token: str | None = None

    def instance_id(self) -> str:
        """Such as `i-0123456789abcdef0`.

        Raises:
            MetadataUnavailableError: it is not to be had.
        """
        return self._needed("meta-data/instance-id", _INSTANCE_ID)

    def region(self) -> str:
        """Such as `eu-west-1`.

        Raises:
            MetadataUnavailableError: it is not to be had.
        """
        return self._needed("meta-data/placement/region", _REGION)

    def spot_notice(self) -> SpotNotice | None:
        """The notice that the instance is taken back, some two minutes ahead; None: there is none.

        Raises:
            MetadataUnavailableError: nobody knows.
        """
        text = self._get("meta-data/spot/instance-action")
        if text is None:
            return None
        try:
            document = json.loads(text)
            at = datetime.fromisoformat(document["time"])
            at = at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
            return SpotNotice(str(document["action"]), at)
        except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as exc:
            raise MetadataUnavailableError(f"{self._endpoint}: no spot notice: {text[:100]!r}") from exc

    def rebalance_recommendation(self) -> str | None:
        """When AWS recommended to move elsewhere, as it says so; None: it did not.

        Raises:
            MetadataUnavailableError: nobody knows.
        """
        return self._get("meta-data/events/recommendations/rebalance")

    def _needed(self, path: str, pattern: re.Pattern[str]) -> str:
        text = (self._get(path) or "").strip()
        if not pattern.fullmatch(text):
            raise MetadataUnavailableError(f"{self._endpoint}: {path}: {text[:100]!r} is none")
        return text

    def _get(self, path: str) -> str | None:
        """The text; None where there is none of that path. A token that is refused is renewed, once."""
        try:
            if self._token is not None:
                try:
                    return self._ask(path, self._token)
                except urllib.error.HTTPError as exc:
                    if exc.code != _UNAUTHORIZED:
                        raise
            self._token = self._new_token()
            return self._ask(path, self._token)
        except (OSError, HTTPException, ValueError) as exc:
            raise MetadataUnavailableError(f"{self._endpoint}: {path}: {exc}") from exc

    def _ask(self, path: str, token: str) -> str | None:
        try:
            return self._open("GET", path, {"X-aws-ec2-metadata-token": token})
        except urllib.error.HTTPError as exc:
            if exc.code == _NOT_FOUND:
                return None
            raise

    def _new_token(self) -> str:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
        token = self._open("PUT", "api/token", headers).strip()
        if not _TOKEN.fullmatch(token):
            raise ValueError("the token is none")
        return token

    def _open(self, method: str, path: str, headers: dict[str, str]) -> str:
        """The answer, if it comes in time: a service that trickles is left to itself."""
        answer = spawn("instance metadata", partial(self._ask_for, method, path, headers))
        return answer.result(_ANSWER_SECONDS)

    def _ask_for(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(f"{self._endpoint}/latest/{path}", headers=headers, method=method)  # noqa: S310
        try:
            with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
                text: str = answer.read(_ANSWER_BYTES).decode("utf-8", "replace")
        except urllib.error.HTTPError as exc:
            exc.close()  # it holds the connection
            raise
        return text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The service never redirects; whoever does is not it, and gets no token."""

    def redirect_request(self, *_: Any) -> None:
        return None

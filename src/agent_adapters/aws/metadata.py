"""What the instance knows of itself, by the instance metadata service (IMDSv2)."""

import json
import urllib.error
import urllib.request
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Final

from attrs import frozen

from agent_core.errors import AgentError

__all__ = ["InstanceMetadata", "MetadataUnavailableError", "SpotNotice"]

_ENDPOINT: Final = "http://169.254.169.254"
_TIMEOUT_SECONDS: Final = 1.0
"""The service is on the host: what takes longer does not come."""
_TOKEN_SECONDS: Final = 6 * 60 * 60
_ANSWER_BYTES: Final = 64 * 1024
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
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._token: str | None = None

    def instance_id(self) -> str:
        """Such as `i-0123456789abcdef0`.

        Raises:
            MetadataUnavailableError: it is not to be had.
        """
        return self._needed("meta-data/instance-id")

    def region(self) -> str:
        """Such as `eu-west-1`.

        Raises:
            MetadataUnavailableError: it is not to be had.
        """
        return self._needed("meta-data/placement/region")

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
            return SpotNotice(str(document["action"]), at if at.tzinfo else at.replace(tzinfo=UTC))
        except (ValueError, LookupError, TypeError) as exc:
            raise MetadataUnavailableError(f"{self._endpoint}: no spot notice: {text[:100]!r}") from exc

    def rebalance_recommendation(self) -> str | None:
        """When AWS recommended to move elsewhere, as it says so; None: it did not.

        Raises:
            MetadataUnavailableError: nobody knows.
        """
        return self._get("meta-data/events/recommendations/rebalance")

    def _needed(self, path: str) -> str:
        text = self._get(path)
        if not text:
            raise MetadataUnavailableError(f"{self._endpoint}: there is no {path}")
        return text.strip()

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
        except (OSError, HTTPException) as exc:
            raise MetadataUnavailableError(f"{self._endpoint}: {path}: {exc}") from exc

    def _ask(self, path: str, token: str) -> str | None:
        try:
            return self._open("GET", path, {"X-aws-ec2-metadata-token": token})
        except urllib.error.HTTPError as exc:
            if exc.code == _NOT_FOUND:
                return None
            raise

    def _new_token(self) -> str:
        return self._open("PUT", "api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)})

    def _open(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(f"{self._endpoint}/latest/{path}", headers=headers, method=method)  # noqa: S310
        try:
            with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
                text: str = answer.read(_ANSWER_BYTES).decode("utf-8", "replace")
        except urllib.error.HTTPError as exc:
            exc.close()  # it holds the connection
            raise
        return text

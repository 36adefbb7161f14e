"""GET over HTTP, in a thread: tried again after the pauses that servers ask for, resumed where it broke off.

Proxies and certificates are those of the environment, as httpx knows them.
"""

import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from typing import Any, Final, Self, TypeVar, cast

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_random_exponential

from agent_adapters.redaction import redact
from agent_adapters.threads import Cancellation
from agent_core import __version__
from agent_core.errors import BinaryUnavailableError

__all__ = ["Download", "NotFoundError", "get_json", "http_date", "web_client"]

_T = TypeVar("_T")

_ATTEMPTS: Final = 3
"""In a row, without a byte between them."""
_PAUSE: Final = wait_random_exponential(multiplier=1.0, max=10.0)
_PATIENCE_SECONDS: Final = 120.0
"""A server may ask for so long a pause; a longer one would take too much of the phase."""
_TIMEOUT: Final = httpx.Timeout(10.0, connect=5.0)
_CHUNK_BYTES: Final = 256 * 1024
_JSON_BYTES: Final = 4 * 2**20

_SECONDS: Final = re.compile(r"\d{1,12}", re.ASCII)
_LENGTH: Final = re.compile(r"\d{1,15}", re.ASCII)
_GOOD: Final = frozenset({HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT})
_PASSING: Final = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
_LIMITED: Final = frozenset({HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS})


class NotFoundError(BinaryUnavailableError):
    """There is nothing at that URL."""


class _TryAgainError(Exception):
    """It may go better after a pause: of so many seconds, where the server says so."""

    def __init__(self, why: str, pause: float | None = None) -> None:
        super().__init__(why)
        self.pause = pause


@contextmanager
def web_client() -> Iterator[httpx.Client]:
    """A client, to be closed.

    Raises:
        BinaryUnavailableError: the environment names a proxy or certificates that are of no use.
    """
    agent = {"User-Agent": f"runs-fleet-agent/{__version__}"}
    try:
        client = httpx.Client(timeout=_TIMEOUT, follow_redirects=True, headers=agent)
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as exc:
        # Its text may have a part of the proxy's password.
        raise BinaryUnavailableError(
            "the environment's proxy or certificates are of no use (HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE): "
            f"{type(exc).__name__}"
        ) from None
    with client:
        yield client


def get_json(client: httpx.Client, url: str, cancelled: Cancellation) -> Any:
    """The JSON document at the URL.

    Raises:
        NotFoundError: there is none.
        BinaryUnavailableError: nor is it to be had.
    """

    def get() -> bytes:
        with _broken_is_try_again(cancelled), client.stream("GET", url) as answer:
            _check(answer)
            with cancelled.interrupting(partial(_shut_down, answer)):
                return _whole(answer)

    text = _tried(get, url, cancelled)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BinaryUnavailableError(f"{redact(url)}: the answer is not JSON") from exc


def _whole(answer: httpx.Response) -> bytes:
    text = b""
    for chunk in answer.iter_bytes():
        text += chunk
        if len(text) > _JSON_BYTES:
            raise BinaryUnavailableError(f"the answer is longer than {_JSON_BYTES} bytes")
    return text


class Download:
    """One file, from its first byte to its last, over as many connections as that takes."""

    def __init__(self, client: httpx.Client, url: str, cancelled: Cancellation) -> None:
        self._client, self._url, self._cancelled = client, url, cancelled
        self._etag: str | None = None
        self._chunks: Iterator[bytes] | None = None
        self._connection = ExitStack()
        self.done = 0
        """Bytes so far."""
        self.total: int | None = None
        """Bytes in all, where the server says so."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def read(self) -> bytes:
        """The next bytes; none at the end.

        Raises:
            NotFoundError: there is no such file.
            BinaryUnavailableError: the rest is not to be had.
        """
        return _tried(self._read, self._url, self._cancelled)

    def _read(self) -> bytes:
        try:
            with _broken_is_try_again(self._cancelled):
                if self._chunks is None:
                    self._chunks = self._open()
                chunk = next(self._chunks, b"")
        except _TryAgainError:
            self._connection.close()
            self._chunks = None
            raise
        self.done += len(chunk)
        return chunk

    def _open(self) -> Iterator[bytes]:
        """The bytes from where the last connection broke."""
        headers = {"Accept-Encoding": "identity"}
        if self.done:
            headers |= {"Range": f"bytes={self.done}-"}
            headers |= {"If-Range": self._etag} if self._etag else {}
        stream = self._client.stream("GET", self._url, headers=headers)
        answer = self._connection.enter_context(stream)
        _check(answer)
        self._connection.enter_context(self._cancelled.interrupting(partial(_shut_down, answer)))
        if self.total is None and not self.done:
            length = answer.headers.get("Content-Length", "")
            self.total = int(length) if _LENGTH.fullmatch(length) else None
            self._etag = answer.headers.get("ETag")
        # A server that knows no ranges begins anew.
        skip = 0 if answer.status_code == HTTPStatus.PARTIAL_CONTENT else self.done
        return _after(skip, answer.iter_raw(_CHUNK_BYTES))


def _after(skip: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks without their first bytes, which are here already."""
    for chunk in chunks:
        rest = chunk[skip:]
        skip = max(0, skip - len(chunk))
        if rest:
            yield rest


def _shut_down(answer: httpx.Response) -> None:
    """Ends a read that another thread is in."""
    connection = answer.extensions["network_stream"].get_extra_info("socket")
    if connection is not None:
        connection.shutdown(socket.SHUT_RDWR)


# Trying again


def _tried(call: Callable[[], _T], url: str, cancelled: Cancellation) -> _T:
    retrying = Retrying(
        stop=stop_after_attempt(_ATTEMPTS),
        wait=_pause,
        sleep=cast("Callable[[float], None]", cancelled.wait),
        retry=retry_if_exception_type(_TryAgainError),
        reraise=True,
    )
    try:
        return retrying(call)
    except _TryAgainError as exc:
        raise BinaryUnavailableError(f"{redact(url)}: {exc}, {_ATTEMPTS} times in a row") from exc
    except BinaryUnavailableError as exc:
        raise type(exc)(f"{redact(url)}: {exc}") from exc
    except (ValueError, ArithmeticError, LookupError, TypeError) as exc:
        raise BinaryUnavailableError(f"{redact(url)}: no sense in it: {type(exc).__name__}") from exc


def _pause(state: RetryCallState) -> float:
    exc = state.outcome and state.outcome.exception()
    asked_for = exc.pause if isinstance(exc, _TryAgainError) else None
    return _PAUSE(state) if asked_for is None else asked_for


@contextmanager
def _broken_is_try_again(cancelled: Cancellation) -> Iterator[None]:
    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as exc:
        raise BinaryUnavailableError(str(exc)) from exc
    except (httpx.HTTPError, httpx.StreamError) as exc:
        if cancelled():
            raise BinaryUnavailableError("given up") from exc
        raise _TryAgainError(f"{type(exc).__name__}: {exc}") from exc


def _check(answer: httpx.Response) -> None:
    """Lets good answers pass."""
    status = answer.status_code
    if status in _GOOD:
        return
    if status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
        raise NotFoundError(f"HTTP status {status}")
    pause = _pause_asked_for(answer)
    if pause is not None and pause > _PATIENCE_SECONDS:
        raise BinaryUnavailableError(f"HTTP status {status}: not to be asked again for {pause:.0f} s")
    if pause is None and status not in _PASSING:
        raise BinaryUnavailableError(f"HTTP status {status}")
    raise _TryAgainError(f"HTTP status {status}", pause)


def _pause_asked_for(answer: httpx.Response) -> float | None:
    """Seconds until the server wants to be asked again; None: it does not say."""
    # The server's clock is compared with itself: that of a machine which has just booted may be off.
    now, after = http_date(answer.headers.get("Date")), answer.headers.get("Retry-After", "")
    if _SECONDS.fullmatch(after):
        return float(after)
    if now is None:
        return None
    if (at := http_date(after)) is not None:
        return max(0.0, (at - now).total_seconds())
    reset, left = (answer.headers.get(f"X-RateLimit-{name}", "") for name in ("Reset", "Remaining"))
    if answer.status_code in _LIMITED and left == "0" and _SECONDS.fullmatch(reset):
        return max(0.0, int(reset) - now.timestamp()) + 1.0
    return None


def http_date(text: str | None) -> datetime | None:
    """The moment that a header such as `Date` tells; None where it tells none."""
    try:
        moment = parsedate_to_datetime(text or "")
    except (ValueError, ArithmeticError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

"""The runner's own logs to an S3 bucket."""

from base64 import b64encode
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from agent_adapters.aws.clients import AwsClients, Meanings
from agent_adapters.diagnostics import Log, RunnerLogs
from agent_adapters.threads import Cancellation, spawn
from agent_core.errors import DiagnosticsDeniedError, DiagnosticsUnavailableError
from agent_core.model import LogDestination, Uploaded
from agent_core.ports import DiagnosticsStore, Progress

__all__ = ["S3DiagnosticsStore"]

_GZIP: Final = "application/gzip"
_BEFORE_SENDING: Final = "before-send.s3.PutObject"
_MEANINGS: Final = Meanings(
    unavailable=DiagnosticsUnavailableError,
    denied=DiagnosticsDeniedError,
    others=dict.fromkeys(("NoSuchBucket", "InvalidBucketName", "KeyTooLongError"), DiagnosticsDeniedError),
)


class S3DiagnosticsStore(DiagnosticsStore):
    """An object for each log.

    Args:
        clients: made for the instance's region.
        root: the runner's root.
        owner: the runner's user; None: this process's own.
    """

    def __init__(self, clients: AwsClients, root: Path, owner: int | None = None) -> None:
        self._clients, self._logs = clients, RunnerLogs(root, owner)

    async def upload(self, destination: LogDestination, progress: Progress) -> Uploaded:
        return await self._logs.upload(partial(self._put, destination), progress)

    def _put(
        self, destination: LogDestination, log: Log, sent: Callable[[int], object], cancelled: Cancellation
    ) -> None:
        """Puts the log. A bucket that does not answer must not hold up who gives it up."""
        body = _Body(log.gzipped, sent, cancelled)
        putting = spawn("S3 log", partial(self._put_object, destination, f"{log.name}.gz", body))
        with cancelled.interrupting(putting.cancel):
            putting.result()

    def _put_object(self, destination: LogDestination, name: str, body: "_Body") -> None:
        with _MEANINGS.of(f"bucket {destination.bucket}"):
            s3 = self._clients.get("s3")
            s3.meta.events.register(_BEFORE_SENDING, _begin_to_tell, unique_id=_BEFORE_SENDING)
            answer = s3.put_object(
                Bucket=destination.bucket,
                Key=f"{destination.prefix}{name}",
                Body=body,
                ContentType=_GZIP,
                # A bucket that locks its objects takes none without.
                ChecksumSHA256=b64encode(sha256(body.getbuffer()).digest()).decode(),
            )
            # Whoever stands between may answer 200 to anything.
            if not answer["ETag"]:
                raise LookupError("ETag")


class _Body(BytesIO):
    """Bytes that tell how many of them have gone, and come to an end when nobody wants them any more."""

    def __init__(self, content: bytes, sent: Callable[[int], object], cancelled: Cancellation) -> None:
        super().__init__(content)
        self._sent, self._cancelled = sent, cancelled
        self.tells = False
        """Not yet: to sign a request, its body is read too."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self._cancelled():
            raise DiagnosticsUnavailableError("given up")
        if self.tells:
            self._sent(self.tell())
        return super().read(size)


def _begin_to_tell(request: Any, **_: object) -> None:
    if isinstance(request.body, _Body):
        request.body.tells = True

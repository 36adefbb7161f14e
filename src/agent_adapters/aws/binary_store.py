"""Runner archives in an S3 bucket: a cache in front of the store that they come from."""

import asyncio
import os
import re
import tempfile
import threading
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from contextlib import closing, suppress
from functools import partial
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from attrs import frozen
from botocore.exceptions import BotoCoreError, ClientError
from tenacity import Retrying, retry_if_exception, stop_after_attempt

from agent_adapters.aws.clients import AwsClients, Meanings, error_code
from agent_adapters.installer import Installer, Report
from agent_adapters.threads import Cancellation, spawn, told_on_loop, try_spawn
from agent_core.errors import AgentError, BinaryUnavailableError, DigestMismatchError
from agent_core.model import Release, ReleaseRequest
from agent_core.ports import BinaryStore, Progress, Warn

__all__ = ["Origin", "S3BinaryStore", "cache_key"]

_PART_BYTES: Final = 8 * 2**20
_PARTS_AHEAD: Final = 5
"""Asked for beside the one that is being unpacked: 48 MB of memory, and more than one connection's speed."""
_CACHE_SECONDS: Final = 60.0
"""230 MB at 4 MB/s. What is slower costs no more than this: then the origin is asked."""
_ATTEMPTS: Final = 2
_UPLOAD_NICENESS: Final = 10

_MISSING: Final = frozenset({"NoSuchKey", "404"})
_DENIED: Final = frozenset({"AccessDenied", "403"})
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})", re.ASCII)
_EMPTY: Final = frozenset({"InvalidRange", "416"})
_WRITTEN_BY_ANOTHER: Final = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_MEANINGS: Final = Meanings(unavailable=BinaryUnavailableError, denied=BinaryUnavailableError)


class Origin(Protocol):
    """The store behind the cache."""

    async def prebaked(self) -> str | None: ...

    async def resolve(self, request: ReleaseRequest) -> Release: ...

    async def install_keeping(
        self, release: Release, progress: Progress, keep: Callable[[bytes], object]
    ) -> None:
        """Installs the release; `keep` gets every byte of its archive too, in a thread."""
        ...


def cache_key(release: Release) -> str:
    """Where the bucket has the release's archive."""
    return f"runners/{release.version}/{release.arch}/actions-runner-{release.version}.tar.gz"


class _MissError(AgentError):
    """The bucket does not have it, or does not let this role know: `denied` has its words then.

    To a role without s3:ListBucket, S3 denies what it does not have.
    """

    def __init__(self, denied: str | None = None) -> None:
        super().__init__()
        self.denied = denied


class S3BinaryStore(BinaryStore):
    """Takes from the bucket what is there and right, and puts there what it had to get from the origin.

    The bucket is trusted with nothing: digests come from the origin, or from the job's config.

    Args:
        clients: made for the instance's region.
        bucket: the bucket's name.
        origin: where the archives come from.
        root: the runner's root.
        replace: whether a runner that the root has already gives way to another one.
    """

    def __init__(
        self, clients: AwsClients, bucket: str, origin: Origin, root: Path, *, replace: bool = False
    ) -> None:
        self._clients, self._bucket, self._origin, self._root = clients, bucket, origin, root
        self._installer = Installer("S3 download", root, replace=replace)

    async def prebaked(self) -> str | None:
        return await self._origin.prebaked()

    async def resolve(self, request: ReleaseRequest) -> Release:
        return await self._origin.resolve(request)

    async def install(self, release: Release, progress: Progress, warn: Warn) -> None:
        download = _Download(self._clients, self._bucket, cache_key(release))
        try:
            async with asyncio.timeout(_CACHE_SECONDS):
                await self._installer.install(release.sha256, download.chunks, progress)
        except _MissError as miss:
            await self._install_and_upload(release, progress, warn, denied=miss.denied)
        except DigestMismatchError as exc:
            warn(f"the archive in bucket {self._bucket} is not used, GitHub is asked: {exc}")
            await self._install_and_upload(release, progress, warn, replaces=download.etag)
        except (BinaryUnavailableError, TimeoutError) as exc:
            why = exc if isinstance(exc, BinaryUnavailableError) else f"no end after {_CACHE_SECONDS:g} s"
            warn(f"bucket {self._bucket} is not used, GitHub is asked: {why}")
            await self._origin.install_keeping(release, progress, _keep_nothing)

    async def _install_and_upload(
        self,
        release: Release,
        progress: Progress,
        warn: Warn,
        *,
        replaces: str | None = None,
        denied: str | None = None,
    ) -> None:
        copy = _Copy(self._root.parent)
        try:
            await self._origin.install_keeping(release, progress, copy.write)
        except BaseException:
            copy.close()
            raise
        upload = _Upload(self._clients, self._bucket, release, replaces, denied, told_on_loop(warn))
        if not try_spawn("S3 upload", partial(upload.run, copy)):
            copy.close()  # the job goes first


def _keep_nothing(_chunk: bytes) -> None:
    """The bucket does not answer: it is not written to either."""


# From the bucket


class _Download:
    """The bytes of one object, asked for in parts, several at a time, and given out in order."""

    def __init__(self, clients: AwsClients, bucket: str, key: str) -> None:
        self._clients, self._bucket, self._key = clients, bucket, key
        self.etag: str | None = None
        """Of the object that the bytes are from."""
        self._total = 0

    def chunks(self, report: Report, cancelled: Cancellation) -> Iterator[bytes]:
        """The bytes; each part is tried twice.

        Raises:
            _MissError: there is no such object.
            BinaryUnavailableError: it cannot be read.
        """
        given_up: Future[bytes] = Future()
        with cancelled.interrupting(partial(_settle, given_up)), _MEANINGS.of(f"object {self._key}"):
            first = _first_of(spawn("S3 part", self._find), given_up)
            yield first
            done = len(first)
            report(done, self._total)
            starts = iter(range(_PART_BYTES, self._total, _PART_BYTES))
            ahead = deque(self._begin(start) for start in islice(starts, _PARTS_AHEAD))
            while ahead:
                part = _first_of(ahead.popleft(), given_up)
                ahead.extend(self._begin(start) for start in islice(starts, 1))
                yield part
                done += len(part)
                report(done, self._total)

    def _find(self) -> bytes:
        """The first part, which tells how much there is, and of what."""
        try:
            answer, part = self._part(0)
        except ClientError as exc:
            if error_code(exc) in _MISSING:
                raise _MissError from exc
            if error_code(exc) in _DENIED:
                raise _MissError(str(exc)) from exc
            if error_code(exc) in _EMPTY:
                head = self._clients.get("s3").head_object(Bucket=self._bucket, Key=self._key)
                self.etag = head["ETag"]
                raise DigestMismatchError("the object is empty") from exc
            raise
        self._total, self.etag = _range_of(answer)[2], answer["ETag"]
        return part

    def _begin(self, start: int) -> Future[bytes]:
        return spawn("S3 part", lambda: self._part(start)[1])

    def _part(self, start: int) -> tuple[Mapping[str, Any], bytes]:
        """The answer, and its whole body."""

        def get() -> tuple[Mapping[str, Any], bytes]:
            answer = self._get(start)
            with closing(answer["Body"]) as body:
                first, last, _ = _range_of(answer)
                size = last - first + 1
                # A bucket may be anybody's: it is not believed, and no part takes more memory than its share.
                # No more is read than its head says.
                if first != start or not 0 < size <= _PART_BYTES or answer["ContentLength"] != size:
                    raise LookupError("ContentRange")
                return answer, body.read()

        passing = retry_if_exception(_is_passing)
        return Retrying(stop=stop_after_attempt(_ATTEMPTS), retry=passing, reraise=True)(get)

    def _get(self, start: int) -> Any:
        # All parts are of one object, also when somebody writes another one meanwhile.
        same = {"IfMatch": self.etag} if self.etag else {}
        part = f"bytes={start}-{start + _PART_BYTES - 1}"
        return self._clients.get("s3").get_object(Bucket=self._bucket, Key=self._key, Range=part, **same)


def _range_of(answer: Mapping[str, Any]) -> tuple[int, int, int]:
    """First byte, last byte, and how many there are in all."""
    match = _CONTENT_RANGE.fullmatch(answer["ContentRange"])
    if match is None:
        raise LookupError("ContentRange")
    first, last, total = map(int, match.groups())
    return first, last, total


def _is_passing(exc: BaseException) -> bool:
    if isinstance(exc, ClientError):
        status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return bool(status >= HTTPStatus.INTERNAL_SERVER_ERROR)
    return isinstance(exc, BotoCoreError)


def _first_of(part: Future[bytes], given_up: Future[bytes]) -> bytes:
    """The part, unless it is wanted no more: a connection that trickles must not hold up the way out."""
    wait({part, given_up}, return_when=FIRST_COMPLETED)
    if given_up.done():
        raise BinaryUnavailableError("given up")
    return part.result()


def _settle(given_up: Future[bytes]) -> None:
    with suppress(InvalidStateError):  # it is already
        given_up.set_result(b"")


# To the bucket


class _Copy:
    """An archive's bytes in a file without a name: nobody else can change it, no death leaves it behind."""

    def __init__(self, folder: Path) -> None:
        self._file: BinaryIO | None = None
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def write(self, chunk: bytes) -> None:
        """Appends; a disk that is full is no reason to install nothing, so the copy is given up."""
        if self._file is not None:
            try:
                self._file.write(chunk)
            except OSError:
                self.close()

    def take(self) -> BinaryIO | None:
        """The file, from its start; None: it was given up."""
        if self._file is not None:
            self._file.seek(0)
        return self._file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


@frozen
class _Upload:
    """Puts an archive into the bucket, beside the job, and never over what another instance has put there."""

    clients: AwsClients
    bucket: str
    release: Release
    replaces: str | None
    """The ETag of the wrong object that is to be replaced; None: there was none."""
    denied: str | None
    """Why the object could not be read, if it is there."""
    warn: Callable[[str], None]

    def run(self, copy: _Copy) -> None:
        """Uploads the copy, or warns."""
        with suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _UPLOAD_NICENESS)
        try:
            with _MEANINGS.of(f"bucket {self.bucket}"):
                self._put(copy)
        except BinaryUnavailableError as exc:
            self.warn(f"the runner's archive was not put into the cache: {exc}")
        finally:
            copy.close()

    def _put(self, copy: _Copy) -> None:
        file = copy.take()
        if file is None or (self.replaces is None and self._is_there()):
            return
        condition = {"IfNoneMatch": "*"} if self.replaces is None else {"IfMatch": self.replaces}
        try:
            self.clients.get("s3").put_object(
                Bucket=self.bucket,
                Key=cache_key(self.release),
                Body=file,
                # S3 holds what arrives against the trusted digest.
                ChecksumSHA256=b64encode(bytes.fromhex(self.release.sha256)).decode(),
                **condition,
            )
        except ClientError as exc:
            if error_code(exc) not in _WRITTEN_BY_ANOTHER:
                raise
            if self.denied is not None:
                self.warn(
                    f"bucket {self.bucket} has the runner's archive, which may not be read: {self.denied}"
                )

    def _is_there(self) -> bool:
        """A thousand instances may have missed it at once: most need not send it."""
        try:
            self.clients.get("s3").head_object(Bucket=self.bucket, Key=cache_key(self.release))
        except ClientError as exc:
            if error_code(exc) in _MISSING | _DENIED:
                return False
            raise
        return True

"""The part of GitHub that a fleet's boot sees: the releases of the runner, and their downloads."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedIOBase, BytesIO
from pathlib import Path
from threading import Condition, Event, Lock
from typing import Any, Final, Literal

from attrs import define, field

from support.faults import PIECE_BYTES, Answer, FakeServer, Reply, Request, wall_clock

_REPOSITORY: Final = "actions/runner"
_API: Final = f"/api/repos/{_REPOSITORY}/releases/"
_DOWNLOADS: Final = f"/{_REPOSITORY}/releases/download/"
_ASSETS: Final = "/release-assets/"
_LIMIT: Final = 60
_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)")
_OTHERS: Final = ("osx-x64", "osx-arm64", "win-x64", "win-arm64", "linux-arm")

Digest = Literal["asset", "body", "none"]


@define
class _Asset:
    """An archive as it was published, and the bytes that are served for it now."""

    name: str
    size: int
    sha256: str
    digest: Digest
    content: bytes | Path
    number: int
    etag: str


@define
class _Release:
    version: str
    assets: dict[str, _Asset] = field(factory=dict)
    """By architecture."""


@define
class _Limit:
    remaining: int
    reset: float
    retry_after: int | None
    status: int


class GitHub(FakeServer):
    """Operations: `github:latest`, `github:tag`, `github:redirect`, and `github:download` for the bytes."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = Lock()
        self._releases: dict[str, _Release] = {}
        self._published = 0
        self._limit: _Limit | None = None
        self._flowing = Event()
        self._flowing.set()
        self._halted = Condition()
        self._halts = 0

    @property
    def api_url(self) -> str:
        return f"{self.url}/api"

    # what a test sets up

    def publish(self, version: str, arch: str, archive: bytes | Path, digest: Digest = "asset") -> None:
        """Makes it an asset of the release, which is made if there is none.

        Args:
            version: without the `v` of its tag.
            arch: `x64` or `arm64`.
            archive: the bytes, or a file that stays as it is.
            digest: where the release tells it: in the asset, in its notes as old releases do, or nowhere.
        """
        size, sha256 = _measure(archive)
        with self._lock:
            self._published += 1
            name = f"actions-runner-linux-{arch}-{version}.tar.gz"
            asset = _Asset(name, size, sha256, digest, archive, self._published, f'"{sha256[:32]}"')
            self._releases.setdefault(version, _Release(version)).assets[arch] = asset

    def withdraw(self, version: str, arch: str) -> None:
        """The asset is gone; the release stays, without it."""
        with self._lock:
            del self._releases[version].assets[arch]

    def tamper(self, version: str, arch: str, archive: bytes | Path) -> None:
        """Serves other bytes under the digest and the size that were published."""
        _, sha256 = _measure(archive)
        with self._lock:
            asset = self._releases[version].assets[arch]
            asset.content, asset.etag = archive, f'"{sha256[:32]}"'

    def rate_limit(
        self, remaining: int, reset_in: float, retry_after: int | None = None, status: int = 403
    ) -> None:
        """Allows the API so many more requests, then none for `reset_in` seconds from now.

        Args:
            remaining: requests that are still answered.
            reset_in: seconds until the limit is off.
            retry_after: seconds in a `Retry-After` header, as the secondary limits have it.
            status: of the refusals; GitHub uses 403 and 429.
        """
        with self._lock:
            self._limit = _Limit(remaining, wall_clock().timestamp() + reset_in, retry_after, status)

    def halt(self) -> None:
        """From now on, downloads stand still at the half of their bytes."""
        self._flowing.clear()

    def resume(self) -> None:
        """Downloads go on."""
        self._flowing.set()

    def wait_for_halt(self, within: float = 120.0) -> None:
        """Returns when a download stands still; each is waited for once."""
        with self._halted:
            assert self._halted.wait_for(lambda: self._halts > 0, within), (
                f"no download came within {within} s"
            )
            self._halts -= 1

    def reset(self) -> None:
        """Nothing is published, nothing has happened, nothing goes wrong."""
        self.forget()
        self.resume()
        with self._lock:
            self._releases.clear()
            self._limit = None
        with self._halted:
            self._halts = 0

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.resume()
        super().__exit__()

    # the service

    def operation(self, request: Request) -> str:
        if request.path.startswith(_ASSETS):
            return "github:download"
        if request.path.startswith(_DOWNLOADS):
            return "github:redirect"
        if request.path == f"{_API}latest":
            return "github:latest"
        return "github:tag" if request.path.startswith(f"{_API}tags/") else f"github:{request.path}"

    def refusal(self, request: Request, answer: Answer) -> Reply:  # noqa: ARG002
        message = answer.code or f"planned: {answer.status}"
        return _json(answer.status, {"message": message, "status": str(answer.status)}, dict(answer.headers))

    def answer(self, request: Request) -> Reply:
        if "user-agent" not in request.headers:
            return Reply(403, b"Request forbidden by administrative rules. Please set a User-Agent header.")
        if request.method not in ("GET", "HEAD"):
            return _not_found({})
        if request.path.startswith(_API):
            return self._release(request)
        if request.path.startswith(_DOWNLOADS):
            return self._redirect(request)
        if request.path.startswith(_ASSETS):
            return self._download(request)
        return _not_found({})

    def _release(self, request: Request) -> Reply:
        headers, refused = self._count()
        if refused is not None:
            return refused
        with self._lock:
            if request.path == f"{_API}latest":
                found = max(
                    self._releases.values(), key=lambda release: _numbers(release.version), default=None
                )
            else:
                found = self._releases.get(request.path.removeprefix(f"{_API}tags/v"))
            return _not_found(headers) if found is None else _json(200, self._describe(found), headers)

    def _count(self) -> tuple[dict[str, str], Reply | None]:
        """The headers that tell of the limit, and the refusal once it is reached."""
        now = wall_clock().timestamp()
        with self._lock:
            limit = self._limit
            if limit is None or now >= limit.reset:
                return _limit_headers(_LIMIT - 1, now + 3600), None
            if limit.remaining > 0:
                limit.remaining -= 1
                return _limit_headers(limit.remaining, limit.reset), None
        headers = _limit_headers(0, limit.reset)
        message = "API rate limit exceeded for 127.0.0.1."
        if limit.retry_after is not None:
            headers["Retry-After"] = str(limit.retry_after)
            message = (
                "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."
            )
        url = "https://docs.github.com/rest/overview/resources-in-the-rest-api#rate-limiting"
        return headers, _json(limit.status, {"message": message, "documentation_url": url}, headers)

    def _describe(self, release: _Release) -> dict[str, Any]:
        tag = f"v{release.version}"
        assets = [self._describe_asset(tag, asset) for asset in release.assets.values()]
        for other in _OTHERS:
            name = f"actions-runner-{other}-{release.version}.{'zip' if 'win' in other else 'tar.gz'}"
            noise = name.encode()
            digest = hashlib.sha256(noise).hexdigest()
            assets.append(self._describe_asset(tag, _Asset(name, len(noise), digest, "asset", noise, 0, "")))
        notes = "".join(
            f"- {asset.name} <!-- BEGIN SHA linux-{arch} -->{asset.sha256}<!-- END SHA linux-{arch} -->\n"
            for arch, asset in release.assets.items()
            if asset.digest == "body"
        )
        return {
            "html_url": f"{self.url}/{_REPOSITORY}/releases/tag/{tag}",
            "tag_name": tag,
            "target_commitish": "main",
            "name": tag,
            "draft": False,
            "prerelease": False,
            "created_at": "2025-11-01T10:00:00Z",
            "published_at": "2025-11-01T10:30:00Z",
            "assets": assets,
            "body": f"## What's Changed\n* Everything\n\n## SHA-256 Checksums\n{notes}",
        }

    def _describe_asset(self, tag: str, asset: _Asset) -> dict[str, Any]:
        return {
            "url": f"{self.api_url}/repos/{_REPOSITORY}/releases/assets/{asset.number}",
            "id": asset.number,
            "name": asset.name,
            "label": "",
            "content_type": "application/octet-stream",
            "state": "uploaded",
            "size": asset.size,
            "digest": f"sha256:{asset.sha256}" if asset.digest == "asset" else None,
            "browser_download_url": f"{self.url}{_DOWNLOADS}{tag}/{asset.name}",
        }

    def _redirect(self, request: Request) -> Reply:
        tag, _, name = request.path.removeprefix(_DOWNLOADS).partition("/")
        with self._lock:
            release = self._releases.get(tag.removeprefix("v"))
            for asset in release.assets.values() if release else ():
                if asset.name == name:
                    location = f"{self.url}{_ASSETS}{asset.number}?sp=r&sig=planted"
                    return Reply(302, b"", {"Location": location, "Cache-Control": "no-cache"})
        return Reply(404, b"Not Found", {"Content-Type": "text/plain"})

    def _download(self, request: Request) -> Reply:
        number = request.path.removeprefix(_ASSETS)
        with self._lock:
            assets = [asset for release in self._releases.values() for asset in release.assets.values()]
            asset = next((asset for asset in assets if str(asset.number) == number), None)
            if asset is None:
                return Reply(
                    404, b"<Error><Code>BlobNotFound</Code></Error>", {"Content-Type": "application/xml"}
                )
            content, etag, name = asset.content, asset.etag, asset.name
        size = _size(content)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Disposition": f"attachment; filename={name}",
            "ETag": etag,
            "Accept-Ranges": "bytes",
        }
        start, end = 0, size
        wanted = _RANGE.fullmatch(request.headers.get("range", ""))
        if wanted and any(wanted.groups()) and request.headers.get("if-range", etag) == etag:
            start, end = _bounds(wanted[1], wanted[2], size)
            if start >= end:
                return Reply(416, b"", {**headers, "Content-Range": f"bytes */{size}"})
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        pieces = self._pieces(_open(content, request.resources), start, end)
        return Reply(206 if "Content-Range" in headers else 200, pieces, headers, end - start)

    def _pieces(self, source: BufferedIOBase, start: int, end: int) -> Iterator[bytes]:
        half = start + (end - start) // 2
        source.seek(start)
        for part_end in (half, end):
            while (left := part_end - source.tell()) > 0:
                yield source.read(min(left, PIECE_BYTES))
            if part_end == half and not self._flowing.is_set():
                with self._halted:
                    self._halts += 1
                    self._halted.notify_all()
                self._flowing.wait()
                if self.over.is_set():
                    raise ConnectionAbortedError("the test is over")


def _measure(content: bytes | Path) -> tuple[int, str]:
    with ExitStack() as resources:
        digest = hashlib.file_digest(_open(content, resources), "sha256")
    return _size(content), digest.hexdigest()


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _open(content: bytes | Path, resources: ExitStack) -> BufferedIOBase:
    return resources.enter_context(BytesIO(content) if isinstance(content, bytes) else content.open("rb"))


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    """Where a range begins, and where it ends, exclusive."""
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(int(last) + 1, size) if last else size


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _limit_headers(remaining: int, reset: float) -> dict[str, str]:
    return {
        "x-ratelimit-limit": str(_LIMIT),
        "x-ratelimit-remaining": str(remaining),
        "x-ratelimit-used": str(_LIMIT - remaining),
        "x-ratelimit-reset": str(round(reset)),
        "x-ratelimit-resource": "core",
    }


def _json(status: int, content: object, headers: dict[str, str]) -> Reply:
    kind = {"Content-Type": "application/json; charset=utf-8"}
    return Reply(status, json.dumps(content).encode(), kind | headers)


def _not_found(headers: dict[str, str]) -> Reply:
    return _json(404, {"message": "Not Found", "documentation_url": "", "status": "404"}, headers)


@contextmanager
def github_server() -> Iterator[GitHub]:
    """GitHub without any release."""
    with GitHub() as github:
        yield github

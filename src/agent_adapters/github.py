"""The runner's releases at GitHub: which one is the latest, what its digest is, and its bytes."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx

from agent_adapters.accounts import Account
from agent_adapters.installer import Installer, Report
from agent_adapters.prebaked import prebaked_version
from agent_adapters.redaction import redact
from agent_adapters.threads import Cancellation, Lane
from agent_adapters.web import Download, NotFoundError, get_json, web_client
from agent_core.errors import BinaryUnavailableError
from agent_core.model import Release, ReleaseRequest
from agent_core.ports import BinaryStore, Progress, Warn

__all__ = ["GitHubBinaryStore"]

_REPOSITORY: Final = "actions/runner"
_LATEST: Final = "latest"
_TAG: Final = re.compile(r"v(2\.\d+\.\d+)")
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
_DIGEST_IN_BODY: Final = r"<!-- BEGIN SHA linux-{arch} -->\s*([0-9a-f]{{64}})\s*<!-- END SHA linux-{arch} -->"
_PREBAKED_SECONDS: Final = 10.0


class GitHubBinaryStore(BinaryStore):
    """Releases of `actions/runner`.

    Args:
        api_url: the REST API's base, such as `https://api.github.com`.
        url: the web's base, such as `https://github.com`.
        root: the runner's root.
        replace: whether a runner that the root has already may be used, and gives way to another one.
        account: who is to run it; None: this process's user.
    """

    def __init__(
        self, api_url: str, url: str, root: Path, *, replace: bool = False, account: Account | None = None
    ) -> None:
        self._releases = f"{api_url.rstrip('/')}/repos/{_REPOSITORY}/releases"
        self._downloads = f"{url.rstrip('/')}/{_REPOSITORY}/releases/download"
        self._root, self._replace, self._account = root, replace, account
        self._urls: dict[Release, str] = {}
        self._lane = Lane("GitHub", BinaryUnavailableError)
        self._installer = Installer("GitHub download", root, replace=replace)

    async def prebaked(self) -> str | None:
        if not self._replace:
            return None
        looking = partial(prebaked_version, self._root, _PREBAKED_SECONDS, self._account)
        return await self._lane.run(looking)

    async def resolve(self, request: ReleaseRequest) -> Release:
        release, url = await self._lane.run_cancellable(partial(self._resolve, request))
        self._urls[release] = url
        return release

    async def install(self, release: Release, progress: Progress, warn: Warn) -> None:  # noqa: ARG002
        await self.install_keeping(release, progress, lambda _: None)

    async def install_keeping(
        self, release: Release, progress: Progress, keep: Callable[[bytes], object]
    ) -> None:
        """Installs the release; `keep` gets every byte of its archive too, in a thread."""

        def chunks(report: Report, cancelled: Cancellation) -> Iterator[bytes]:
            for chunk in self._download(release, report, cancelled):
                keep(chunk)
                yield chunk

        await self._installer.install(release.sha256, chunks, progress)

    def _resolve(self, request: ReleaseRequest, cancelled: Cancellation) -> tuple[Release, str]:
        where = _LATEST if request.version == _LATEST else f"tags/v{request.version}"
        with web_client() as client:
            document = get_json(client, f"{self._releases}/{where}", cancelled)
        try:
            return _read_release(document, request)
        except (LookupError, TypeError, AttributeError, ValueError) as exc:
            place = redact(f"{self._releases}/{where}")
            raise BinaryUnavailableError(f"{place}: no release as GitHub has them") from exc

    def _download(self, release: Release, report: Report, cancelled: Cancellation) -> Iterator[bytes]:
        # Whoever has pinned version and digest spares GitHub's API, whose use is limited, the question.
        guess = f"{self._downloads}/v{release.version}/{_asset_name(release.version, release.arch)}"
        with web_client() as client:
            try:
                yield from _bytes_at(self._urls.get(release, guess), client, report, cancelled)
            except NotFoundError:
                request = ReleaseRequest(version=release.version, arch=release.arch)
                _, url = self._resolve(request, cancelled)
                yield from _bytes_at(url, client, report, cancelled)


def _bytes_at(url: str, client: httpx.Client, report: Report, cancelled: Cancellation) -> Iterator[bytes]:
    with Download(client, url, cancelled) as download:
        while chunk := download.read():
            yield chunk
            report(download.done, download.total)


def _asset_name(version: str, arch: str) -> str:
    return f"actions-runner-linux-{arch}-{version}.tar.gz"


def _read_release(document: Mapping[str, Any], request: ReleaseRequest) -> tuple[Release, str]:
    """The release that the API's answer tells of, and the URL of its archive."""
    tag = _TAG.fullmatch(document["tag_name"])
    if tag is None or request.version not in {_LATEST, tag[1]}:
        raise BinaryUnavailableError(
            f"GitHub's release {document['tag_name']!r} is no runner {request.version}"
        )
    version, name = tag[1], _asset_name(tag[1], request.arch)
    asset = next((each for each in document["assets"] if each["name"] == name), None)
    if asset is None:
        raise BinaryUnavailableError(f"GitHub's release v{version} has no {name}")
    digest = _DIGEST.fullmatch(asset.get("digest") or "")
    digest = digest or re.search(_DIGEST_IN_BODY.format(arch=request.arch), document.get("body") or "")
    if digest is None:
        raise BinaryUnavailableError(f"GitHub has no digest of {name}: set runner_sha256 in the config")
    url = asset["browser_download_url"]
    if not isinstance(url, str):
        raise TypeError("browser_download_url")
    return Release(version=version, arch=request.arch, sha256=digest[1]), url

"""The world as files, for the profile `local`: what would go to a cloud stands under one folder.

`notifications.jsonl`, `terminations.jsonl`, `logs/{instance_id}/{job_id}.log`, `buckets/{bucket}/{key}`.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

from agent_adapters.diagnostics import Log, RunnerLogs
from agent_adapters.installer import Installer, Report
from agent_adapters.state import replace_synced, write_all
from agent_adapters.threads import Cancellation, Lane
from agent_adapters.wire import checked_message, parse_config
from agent_core.batches import check_batch
from agent_core.errors import (
    AgentError,
    BinaryUnavailableError,
    ConfigAbsentError,
    ConfigDeniedError,
    ConfigMalformedError,
    ConfigUnavailableError,
    DiagnosticsDeniedError,
    DiagnosticsUnavailableError,
    LogSinkDeniedError,
    LogSinkUnavailableError,
    NotifierDeniedError,
    NotifierUnavailableError,
    TerminatorDeniedError,
    TerminatorUnavailableError,
)
from agent_core.model import (
    JobConfig,
    LogDestination,
    LogEvent,
    Release,
    ReleaseRequest,
    StatusMessage,
    Uploaded,
)
from agent_core.ports import (
    BinaryStore,
    ConfigSource,
    DiagnosticsStore,
    LogSink,
    Notifier,
    Progress,
    Terminator,
    Warn,
)

__all__ = [
    "FileBinaryStore",
    "FileConfigSource",
    "FileDiagnosticsStore",
    "FileLogSink",
    "FileNotifier",
    "FileTerminator",
]

_CONFIG_CHARACTERS: Final = 2**20
_CHUNK_BYTES: Final = 1024 * 1024
_PUBLIC: Final = 0o644
_FINAL: Final = (PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
"""Not allowed, or something else stands in the place: trying again cannot help."""

# What comes in


class FileConfigSource(ConfigSource):
    """The config in a JSON file, which may come later; None: nobody has named one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lane = Lane("config", ConfigUnavailableError, calls=2)

    async def fetch(self) -> JobConfig:
        return parse_config(await self._lane.run(self._read))

    def _read(self) -> str:
        if self._path is None:
            raise ConfigAbsentError("no file was named")
        try:
            with self._path.open(encoding="utf-8", errors="replace") as stream:
                text = stream.read(_CONFIG_CHARACTERS + 1)
        except FileNotFoundError as exc:
            raise ConfigAbsentError(f"{self._path}: no such file") from exc
        except PermissionError as exc:
            raise ConfigDeniedError(f"{self._path}: may not be read") from exc
        except OSError as exc:
            raise ConfigUnavailableError(f"{self._path}: {exc.strerror}") from exc
        if len(text) > _CONFIG_CHARACTERS:
            raise ConfigMalformedError(f"{self._path}: longer than {_CONFIG_CHARACTERS} characters")
        return text


_ARCHIVE_NAME: Final = re.compile(
    r"actions-runner-linux-(?P<arch>x64|arm64)-(?P<version>2\.\d+\.\d+)\.tar\.gz"
)


class FileBinaryStore(BinaryStore):
    """Runner tarballs in a folder, or a single one.

    Names tell versions: `actions-runner-linux-{x64,arm64}-{version}.tar.gz`; a single file of another name
    is taken for whatever is wanted. A digest is trusted from `{file}.sha256` beside the file (as sha256sum
    writes it); without one it is the file's own, since the operator named the file.

    Args:
        path: the folder or the file.
        root: the runner's root, into which it is unpacked.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self._path = path
        self._lane = Lane("runner archives", BinaryUnavailableError)
        self._installer = Installer("runner archive", root)

    async def prebaked(self) -> str | None:
        return None

    async def resolve(self, request: ReleaseRequest) -> Release:
        return await self._lane.run(partial(self._resolve, request))

    async def install(self, release: Release, progress: Progress, warn: Warn) -> None:  # noqa: ARG002
        def chunks(report: Report, _cancelled: Cancellation) -> Iterator[bytes]:
            file, _ = self._find(release.version, release.arch)
            return _chunks(file, report)

        await self._installer.install(release.sha256, chunks, progress)

    def _resolve(self, request: ReleaseRequest) -> Release:
        file, version = self._find(request.version, request.arch)
        return Release(version=version, arch=request.arch, sha256=_trusted_digest(file))

    def _find(self, version: str, arch: str) -> tuple[Path, str]:
        """The file of that version, and its number."""
        try:
            is_file = self._path.is_file()
            files = [self._path] if is_file else sorted(self._path.glob("*.tar.gz"))
        except OSError as exc:
            raise BinaryUnavailableError(f"{self._path}: {exc.strerror}") from exc
        if is_file and _ARCHIVE_NAME.fullmatch(self._path.name) is None:
            return self._path, version
        named = [(file, match) for file in files if (match := _ARCHIVE_NAME.fullmatch(file.name))]
        fitting = [(file, match["version"]) for file, match in named if match["arch"] == arch]
        wanted = [found for found in fitting if version in {"latest", found[1]}]
        if not wanted:
            there = ", ".join(file.name for file in files) or "no archive"
            raise BinaryUnavailableError(f"{self._path}: no runner {version} for {arch}; there is {there}")
        return max(wanted, key=lambda found: [int(part) for part in found[1].split(".")])


def _trusted_digest(file: Path) -> str:
    beside = file.with_name(f"{file.name}.sha256")
    try:
        if beside.exists():
            return beside.read_text("ascii", "replace").split(maxsplit=1)[0].lower()
        digest = hashlib.sha256()
        for chunk in _chunks(file, lambda _done, _total: None):
            digest.update(chunk)
    except (OSError, IndexError) as exc:
        raise BinaryUnavailableError(f"{file}: the digest cannot be read: {exc}") from exc
    return digest.hexdigest()


def _chunks(file: Path, report: Report) -> Iterator[bytes]:
    try:
        with file.open("rb") as stream:
            total, done = os.fstat(stream.fileno()).st_size, 0
            while chunk := stream.read(_CHUNK_BYTES):
                done += len(chunk)
                yield chunk
                report(done, total)
    except OSError as exc:
        raise BinaryUnavailableError(f"{file}: {exc.strerror}") from exc


# What goes out


class FileLogSink(LogSink):
    """A file for each stream, one line an event."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lane = Lane("log files", LogSinkUnavailableError)

    def path(self, stream: str) -> Path:
        """The stream's file."""
        return self._folder / f"{stream}.log"

    async def put(self, stream: str, events: Sequence[LogEvent]) -> int:
        check_batch(events)
        text = "".join(f"{event.text}\n" for event in events)
        await self._lane.run(partial(self._append, self.path(stream), text))
        return 0

    def _append(self, path: Path, text: str) -> None:
        if _leads_out(path, self._folder):
            raise LogSinkDeniedError(f"{path}: the stream's name leads out of the folder")
        _append(path, text, LogSinkDeniedError, LogSinkUnavailableError)


class FileDiagnosticsStore(DiagnosticsStore):
    """A folder for each bucket, and in it a file for each key.

    Args:
        folder: where the buckets are.
        root: the runner's root.
        owner: the runner's user; None: this process's own.
    """

    def __init__(self, folder: Path, root: Path, owner: int | None = None) -> None:
        self._folder, self._logs = folder, RunnerLogs(root, owner)

    async def upload(self, destination: LogDestination, progress: Progress) -> Uploaded:
        return await self._logs.upload(partial(self._put, destination), progress)

    def _put(self, destination: LogDestination, log: Log, *_: object) -> None:
        bucket = self._folder / destination.bucket
        path = bucket / f"{destination.prefix}{log.name}.gz"
        if _leads_out(bucket, self._folder) or _leads_out(path, bucket):
            raise DiagnosticsDeniedError(f"{path}: the bucket or the key leads out of the folder")
        try:
            replace_synced(path, log.gzipped, _PUBLIC)
        except (ValueError, *_FINAL) as exc:  # the first: no file can have such a name
            raise DiagnosticsDeniedError(f"bucket {destination.bucket!r}: {exc}") from exc
        except OSError as exc:
            raise DiagnosticsUnavailableError(f"{path}: {exc.strerror}") from exc


class FileNotifier(Notifier):
    """A file of messages, one JSON object a line; the queue that a message names is not looked at."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lane = Lane("messages", NotifierUnavailableError)

    async def send(self, message: StatusMessage, queue_url: str | None) -> None:  # noqa: ARG002
        text = checked_message(message)
        errors = NotifierDeniedError, NotifierUnavailableError
        await self._lane.run(partial(_append, self._path, f"{text}\n", *errors))


class FileTerminator(Terminator):
    """A file of requests to terminate, one JSON object a line; nothing is switched off."""

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        self._path, self._now = path, now
        self._lane = Lane("terminations", TerminatorUnavailableError)

    async def terminate(self, instance_id: str) -> None:
        request = {"instance_id": instance_id, "requested_at": self._now().isoformat()}
        errors = TerminatorDeniedError, TerminatorUnavailableError
        await self._lane.run(partial(_append, self._path, f"{json.dumps(request)}\n", *errors))

    async def power_off(self) -> None:
        raise TerminatorDeniedError("profile local powers off nobody's machine")


def _leads_out(path: Path, folder: Path) -> bool:
    return not path.is_relative_to(folder) or ".." in path.relative_to(folder).parts


def _append(path: Path, text: str, denied: type[AgentError], unavailable: type[AgentError]) -> None:
    """Appends all of the text or nothing, and returns when it would survive a crash.

    Raises:
        AgentError: `denied` where trying again cannot help, `unavailable` where it may.
    """
    try:
        _append_synced(path, text)
    except _FINAL as exc:
        raise denied(f"{path}: {exc.strerror}") from exc
    except OSError as exc:
        raise unavailable(f"{path}: {exc.strerror}") from exc


def _append_synced(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _PUBLIC)
    try:
        before = os.fstat(descriptor).st_size
        try:
            write_all(descriptor, text.encode("utf-8", "backslashreplace"))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)

"""The runner that a machine image has brought along: which version it is, if it is fit for use."""

import os
import re
import select
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from agent_adapters.accounts import Account, switch_to, why_unreachable
from agent_adapters.removal import remove_tree
from agent_core.errors import RunnerUnavailableError

__all__ = ["prebaked_version"]

_LISTENER: Final = "bin/Runner.Listener"
_PROGRAMS: Final = (_LISTENER, "bin/Runner.Worker")
_SCRIPTS: Final = ("config.sh", "run.sh", "env.sh", "run-helper.sh.template")
_USED: Final = (".runner", ".credentials", ".service", ".env", ".path", ".setup_info", ".certificates")
"""What the names begin with of all that config.sh and svc.sh leave, also where they fail."""
_FILLED_BY_USE: Final = ("_work", "_diag")
_OTHERS_MAY_WRITE: Final = 0o022
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

_OUTPUT_BYTES: Final = 4096
_VERSION: Final = re.compile(rb"^(2\.\d{1,9}\.\d{1,9})\r?$", re.MULTILINE)


def prebaked_version(root: Path, timeout: float, account: Account | None = None) -> str | None:
    """The version of the runner in the root, `2.x.y`: complete, never used, and changed by nobody else.

    None for anything else, and where the runner does not say its version within `timeout` seconds. Never
    raises. No process of it is left, nor the log that the runner writes even for this.

    Args:
        root: the runner's.
        timeout: in seconds.
        account: who is to run it. Where that user can enter the root, it is run as that user already now, and
            so may be that user's; None: this process's own.
    """
    try:
        if account is not None and why_unreachable(account, root):
            account = None
        # The last one looks at every file.
        if not (_is_complete(root) and _is_fresh(root) and _is_ours(root, account)):
            return None
        with _without_traces(root, account):
            return _said_version(root, timeout, account)
    except (OSError, ValueError):
        return None


def _is_ours(root: Path, account: Account | None) -> bool:
    """Nobody but us, root and who is to run it can have changed what will run, or put another there."""
    owners = {os.geteuid(), 0}
    if account is not None:
        # Of the folders above as well, such as its home: it could put another runner there, but only one that
        # runs as itself, and its own runner it can change in any case. Nothing of it has run yet.
        owners.add(account.uid)
    parents = all(_is_sheltering(parent.stat(), owners) for parent in root.absolute().parents)
    return parents and all(_is_private(status, owners) for status in _all_of(root))


def _all_of(root: Path) -> Iterator[os.stat_result]:
    """Of the root, and of all that is in it: the programs are but the hosts of what lies beside them."""
    yield root.lstat()
    for folder, folders, files in os.walk(root, onerror=_raise):
        for name in (*folders, *files):
            yield os.lstat(f"{folder}/{name}")


def _raise(error: OSError) -> None:
    raise error


def _is_private(status: os.stat_result, owners: set[int]) -> bool:
    if status.st_uid not in owners:
        return False
    return stat.S_ISLNK(status.st_mode) or not status.st_mode & _OTHERS_MAY_WRITE


def _is_sheltering(status: os.stat_result, owners: set[int]) -> bool:
    """In a sticky folder, only its owner can move what is in it."""
    return _is_private(status, owners) or bool(status.st_mode & stat.S_ISVTX)


def _is_complete(root: Path) -> bool:
    folders = all(stat.S_ISDIR(path.lstat().st_mode) for path in (root, root / "bin"))
    files = all(stat.S_ISREG((root / name).lstat().st_mode) for name in (*_PROGRAMS, *_SCRIPTS))
    return folders and files and all(os.access(root / name, os.X_OK) for name in _PROGRAMS)


def _is_fresh(root: Path) -> bool:
    if any(path.name.startswith(_USED) for path in root.iterdir()):
        return False
    folders = [root / name for name in _FILLED_BY_USE if os.path.lexists(root / name)]
    return not any(folder.is_symlink() or any(folder.iterdir()) for folder in folders)


@contextmanager
def _without_traces(root: Path, account: Account | None) -> Iterator[None]:
    """The Listener writes to `_diag` whatever it is asked: what was fresh before is so afterwards.

    Where it runs as another user, that folder is lent to it: it does not start without.
    """
    diag = root / "_diag"
    had_diag = diag.exists()
    diag.mkdir(exist_ok=True)
    folder = os.open(diag, _FOLDER)  # whatever may be put in its place, only this one is emptied
    owner = os.fstat(folder)
    try:
        if account is not None:
            os.fchown(folder, account.uid, account.gid)
        yield
    finally:
        with suppress(OSError, RunnerUnavailableError):
            for path in Path(f"/proc/self/fd/{folder}").iterdir():
                remove_tree(path)
            if had_diag:
                os.fchown(folder, owner.st_uid, owner.st_gid)
            else:
                diag.rmdir()
        os.close(folder)


def _said_version(root: Path, timeout: float, account: Account | None) -> str | None:
    with subprocess.Popen(
        [root / _LISTENER, "--version"],
        cwd=root,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        **switch_to(account),
    ) as process:
        try:
            _await_end(process, timeout)
        finally:
            # Not reaped yet, so the number is still its own.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        said = _VERSION.search(_output(process))
        succeeded = process.wait() == 0
    return said[1].decode() if succeeded and said else None


def _environment() -> dict[str, str]:
    """.NET needs nothing of ours; without the last it ends at once where there is no ICU."""
    return {"PATH": os.environ.get("PATH", os.defpath), "DOTNET_SYSTEM_GLOBALIZATION_INVARIANT": "1"}


def _await_end(process: subprocess.Popen[bytes], timeout: float) -> None:
    """Or the timeout. More output than a pipe holds is never read: such a program does not end."""
    descriptor = os.pidfd_open(process.pid)
    try:
        select.select([descriptor], [], [], max(0.0, timeout))
    finally:
        os.close(descriptor)


def _output(process: subprocess.Popen[bytes]) -> bytes:
    """What there is of it; who has left the process group may hold the pipe open for ever."""
    if process.stdout is None:
        return b""
    os.set_blocking(process.stdout.fileno(), False)
    try:
        return os.read(process.stdout.fileno(), _OUTPUT_BYTES)
    except BlockingIOError:
        return b""

"""The file `.env` in the runner's root: variables for the Listener, and so for the worker and all steps."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from agent_adapters.accounts import Account
from agent_adapters.tarball import shown
from agent_core.errors import RunnerUnavailableError

__all__ = ["write_job_environment"]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_UNFIT: Final = re.compile(r"[\0\r\n]")
_PRIVATE: Final = 0o600
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def write_job_environment(root: Path, variables: Mapping[str, str], account: Account | None) -> None:
    """Puts the variables into `.env`, one `NAME=value` a line, and keeps what config.sh has there for others.

    The runner knows no quotes and no comments in it; an empty value unsets. The file is replaced whole, and
    its owner's alone afterwards, even where there is nothing to add; where there is no file either, none is
    made. Nothing but a regular file is read.

    Args:
        root: the runner's.
        variables: by name; surrogate escapes stand for bytes that are no UTF-8.
        account: who is to own the file; None: this process's user.

    Raises:
        RunnerUnavailableError: a name or a value that such a file cannot hold, or the disk failed. The text
            has no value.
    """
    lines = [_line(name, value) for name, value in variables.items()]
    path = root / ".env"
    try:
        if lines or os.path.lexists(path):
            _replace(path, b"".join(line + b"\n" for line in _others(path, variables) + lines), account)
    except OSError as error:
        raise RunnerUnavailableError(f"{shown(path)}: {error.strerror}") from error


def _line(name: str, value: str) -> bytes:
    if not _NAME.fullmatch(name):
        raise RunnerUnavailableError(f"{shown(name)} is no name for a variable: letters, digits and _ only")
    # The cause would have the value in it, and so would its traceback.
    with suppress(UnicodeEncodeError):
        if not _UNFIT.search(value):
            return f"{name}={value}".encode("utf-8", "surrogateescape")
    raise RunnerUnavailableError(f"the value of {name} has a line break, a NUL or a lone surrogate in it")


def _others(path: Path, variables: Mapping[str, str]) -> list[bytes]:
    """The lines that are there for other names, whatever bytes they have, without their ends."""
    if path.is_symlink() or not path.is_file():
        return []
    ours = {name.encode() for name in variables}
    with os.fdopen(os.open(path, _READ), "rb") as file:
        # Bytes are split where the runner splits: at CR, LF and CRLF only.
        return [line for line in file.read().splitlines() if line.partition(b"=")[0] not in ours]


def _replace(path: Path, content: bytes, account: Account | None) -> None:
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(new, _NEW, _PRIVATE), "wb") as file:
            os.fchmod(file.fileno(), _PRIVATE)  # an odd umask takes more
            if account is not None:
                os.fchown(file.fileno(), account.uid, account.gid)
            file.write(content)
        new.replace(path)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise

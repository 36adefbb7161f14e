"""A user that is not root, for what switches to one."""

import os
import pwd
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from agent_adapters.accounts import Account

__all__ = ["NOBODY", "OTHER_GROUP", "needs_root", "open_folder"]

OTHER_GROUP: Final = 4711
_ENTRY: Final = pwd.getpwnam("nobody")
NOBODY: Final = Account(
    "nobody", _ENTRY.pw_uid, _ENTRY.pw_gid, (_ENTRY.pw_gid, OTHER_GROUP), _ENTRY.pw_dir, _ENTRY.pw_shell
)
"""In one group more than its own."""

needs_root: Final = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; those that pytest makes are their owner's alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder

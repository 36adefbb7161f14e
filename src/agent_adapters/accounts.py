"""Which user the runner runs as, what it may enter, and how the runner's files become its own."""

import os
import pwd
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from agent_adapters.tarball import shown
from agent_core.errors import RunnerUnavailableError

__all__ = [
    "Account",
    "account_fault",
    "hand_over",
    "own_variables",
    "runner_account",
    "runs_as_root",
    "switch_to",
    "uid_of",
    "user_name",
    "why_unreachable",
]

_DEFAULT_USER: Final = "runner"
_DEFAULT_SHELL: Final = "/bin/sh"
_READ_AND_ENTER: Final = 0o5
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@frozen
class Account:
    """A user other than this process's, and all that a process has to take on to be it."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    """All that it is in, `gid` too."""
    home: str
    shell: str

    @property
    def variables(self) -> Mapping[str, str]:
        """What a login would set."""
        return _login(self.name, self.home, self.shell)


def runner_account(name: str | None) -> Account | None:
    """The user to switch to; None: the runner runs as this process's own user. Never raises.

    Args:
        name: the wanted user; None: `runner`, if this process is root and there is such a user. It has to be
            one without an `account_fault`: a faulty one would be this process's own, so maybe root.
    """
    entry = _entry(_DEFAULT_USER if name is None else name)
    if os.geteuid() != 0 or entry is None or entry.pw_uid == 0:
        return None
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    shell = entry.pw_shell or _DEFAULT_SHELL
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir, shell)


def uid_of(account: Account | None) -> int | None:
    """Of the user to switch to; None: it is this process's own."""
    return None if account is None else account.uid


def switch_to(account: Account | None) -> dict[str, Any]:
    """What `subprocess.Popen` takes to start a program as that user."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": account.groups}


def account_fault(name: str | None) -> str | None:
    """What is wrong with the wanted user, and the fix after `: `, in one line; None: nothing."""
    if name is None:
        return None
    entry = _entry(name)
    if entry is None:
        return f"there is no user {name}: make it, or correct RUNS_FLEET_RUNNER_USER"
    if os.geteuid() not in {0, entry.pw_uid}:
        found = f"running the runner as {name} needs root, and the agent is {user_name()}"
        return f"{found}: start the agent as root, or unset RUNS_FLEET_RUNNER_USER"
    return None


def runs_as_root(name: str | None) -> bool:
    """Whether the runner is root only since nobody named a user and there is none called `runner`."""
    return name is None and os.geteuid() == 0 and runner_account(None) is None


def user_name() -> str:
    """The user that this process is, by number where it has no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def own_variables() -> Mapping[str, str]:
    """What a login as this process's own user would set; nothing where that has no entry."""
    try:
        entry = pwd.getpwuid(os.geteuid())
    except KeyError:
        return {}
    return _login(entry.pw_name, entry.pw_dir, entry.pw_shell or _DEFAULT_SHELL)


def _login(name: str, home: str, shell: str) -> Mapping[str, str]:
    return {"HOME": home, "USER": name, "LOGNAME": name, "SHELL": shell}


def _entry(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except (KeyError, ValueError):  # no user has a NUL in its name, or what is not UTF-8
        return None


def why_unreachable(account: Account, folder: Path) -> str | None:
    """Why the user cannot work in the folder: the first on the way there that is closed to it; None: it can.

    Each has to let it read as well as enter: the runner lists them all, up to `/`, and does not start where
    it may not. The mode decides, not what an ACL adds; of a folder that is yet to be made, what is there.
    """
    for way in (folder.absolute(), Path(os.path.realpath(folder))):
        for path in (*reversed(way.parents), way):
            try:
                status = path.stat()
            except FileNotFoundError:
                break
            except OSError as error:
                return f"{path}: {error.strerror}"
            if not stat.S_ISDIR(status.st_mode):
                return f"{path} is not a folder"
            if not _is_open(status, account):
                mode = stat.S_IMODE(status.st_mode)
                return f"{account.name} may not read and enter {path} (mode {mode:04o}, uid {status.st_uid})"
    return None


def _is_open(status: os.stat_result, account: Account) -> bool:
    """As the kernel has it: whoever owns a folder has the owner's rights, even where others have more."""
    shift = 6 if status.st_uid == account.uid else 3 if status.st_gid in account.groups else 0
    return status.st_mode >> shift & _READ_AND_ENTER == _READ_AND_ENTER


def hand_over(root: Path, account: Account) -> None:
    """Makes the user the owner of the root and of all in it; follows no link, enters no other disk.

    It goes from the inside out, and by descriptors: a folder that is the user's is not looked into again. A
    file with a name elsewhere as well is refused, or whatever that is would be the user's too.

    Raises:
        RunnerUnavailableError: the text has the path that could not be given, and why.
    """
    handover = _Handover(account)
    try:
        handover.give(str(root), None, str(root), None)
    except RecursionError as error:
        raise RunnerUnavailableError(f"{shown(root)} is too deep to be handed over") from error
    if handover.partly_found:
        _, (_, path) = handover.partly_found.popitem()
        raise RunnerUnavailableError(f"{shown(path)} cannot be handed over: it has a name elsewhere as well")


@frozen
class _Handover:
    """What is given to the user, a name at a time."""

    account: Account
    partly_found: dict[int, tuple[int, str]] = field(factory=dict)
    """By inode, of files with several names: how many of them were found, and the last one."""

    def give(self, name: str, folder: int | None, path: str, device: int | None) -> None:
        """All that is in the folder of that name, then the folder; `device` is that of the one around it."""
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                if device not in {None, status.st_dev}:
                    return
                with _opened(name, folder) as inner:
                    for each in os.listdir(inner):  # noqa: PTH208 - a descriptor is no path
                        self.give(each, inner, f"{path}/{each}", status.st_dev)
            is_given = (status.st_uid, status.st_gid) == (self.account.uid, self.account.gid)
            if not is_given and self._is_all_found(path, status):
                os.chown(name, self.account.uid, self.account.gid, dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            raise RunnerUnavailableError(f"{shown(path)} cannot be handed over: {error.strerror}") from error

    def _is_all_found(self, path: str, status: os.stat_result) -> bool:
        """Whether this is the last of its names."""
        if stat.S_ISDIR(status.st_mode) or status.st_nlink == 1:
            return True
        count, _ = self.partly_found.pop(status.st_ino, (0, ""))
        if count + 1 < status.st_nlink:
            self.partly_found[status.st_ino] = (count + 1, path)
        return count + 1 == status.st_nlink


@contextmanager
def _opened(name: str, folder: int | None) -> Iterator[int]:
    descriptor = os.open(name, _FOLDER, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)

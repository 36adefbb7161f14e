"""Who the runner runs as, whether that user gets to the files, and that they become its own, and no other."""

import os
import pwd
import shutil
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_adapters.accounts import (
    Account,
    account_fault,
    hand_over,
    runner_account,
    runs_as_root,
    user_name,
    why_unreachable,
)
from agent_adapters.process import runner_environment
from agent_adapters.removal import remove_tree
from agent_core.errors import RunnerUnavailableError
from support.descriptors import open_descriptors
from support.users import NOBODY, OTHER_GROUP, needs_root, open_folder

SOMEBODY: Final = 4712
CI: Final = 1002

# Which user


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this process one of root, `ci`, `alias` (of the same number), and maybe `runner`."""

    def become(uid: int, *, runner: bool = True) -> None:
        numbers = {"root": 0, "ci": CI, "alias": CI} | ({"runner": 1001} if runner else {})
        entries = {
            name: pwd.struct_passwd((name, "x", number, number + 1, "", f"/home/{name}", ""))
            for name, number in numbers.items()
        }
        by_number = {entry.pw_uid: entry for entry in reversed(entries.values())}
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        monkeypatch.setattr(pwd, "getpwnam", entries.__getitem__)
        monkeypatch.setattr(pwd, "getpwuid", by_number.__getitem__)

    return become


@pytest.mark.parametrize(
    ("uid", "wanted", "becomes", "fault"),
    [
        (0, None, "runner", None),
        (0, "ci", "ci", None),
        (0, "root", None, None),
        (0, "gone", None, "there is no user gone: "),
        (CI, None, None, None),
        (CI, "ci", None, None),
        (CI, "alias", None, None),
        (CI, "runner", None, "running the runner as runner needs root, and the agent is ci: "),
        (CI, "root", None, "running the runner as root needs root, and the agent is ci: "),
        (CI, "gone", None, "there is no user gone: "),
        (4713, None, None, None),
        (4713, "ci", None, "running the runner as ci needs root, and the agent is 4713: "),
    ],
)
def test_which_user(
    become: Callable[..., None], uid: int, wanted: str | None, becomes: str | None, fault: str | None
) -> None:
    """Only root can switch, and it switches to `runner` unasked; a fault comes with its fix."""
    become(uid)
    account, found = runner_account(wanted), account_fault(wanted)

    assert (account and account.name) == becomes
    assert found is fault is None or (fault and found and found.startswith(fault) and len(found) > len(fault))
    assert not runs_as_root(wanted)


@pytest.mark.parametrize(
    ("uid", "wanted", "warns"),
    [(0, None, True), (0, "root", False), (0, "ci", False), (0, "runner", False), (CI, None, False)],
)
def test_root_for_want_of_another(
    become: Callable[..., None], uid: int, wanted: str | None, *, warns: bool
) -> None:
    """Who names root means it."""
    become(uid, runner=False)

    assert runs_as_root(wanted) is warns
    assert (runner_account(wanted) is None) is (wanted != "ci")
    assert account_fault(None) is None


def test_what_a_login_sets(become: Callable[..., None]) -> None:
    """An empty shell in passwd(5) means sh."""
    become(0)
    account = runner_account("ci")

    assert account == Account("ci", CI, CI + 1, (CI + 1,), "/home/ci", "/bin/sh")
    assert account.variables == {"HOME": "/home/ci", "USER": "ci", "LOGNAME": "ci", "SHELL": "/bin/sh"}


@pytest.mark.parametrize("uid", [0, CI])
def test_a_runner_of_the_agents_own_user(become: Callable[..., None], uid: int) -> None:
    """Its login's variables do not hang on what started the agent; what is set there counts."""
    become(uid)
    name = "root" if uid == 0 else "ci"
    login = {"HOME": f"/home/{name}", "USER": name, "LOGNAME": name, "SHELL": "/bin/sh"}

    assert runner_environment({"AWS_REGION": "x"}).items() >= login.items()
    assert runner_environment({"HOME": "/x"}).items() >= (login | {"HOME": "/x"}).items()


def test_a_runner_of_a_user_without_an_entry(become: Callable[..., None]) -> None:
    """It has what the agent has."""
    become(4713)

    assert runner_environment({"HOME": "/x"}).keys() == {"HOME", "LANG", "PATH"}


@needs_root
def test_real_users() -> None:
    """As the system has them."""
    account, entry = runner_account("nobody"), pwd.getpwnam("nobody")

    assert account is not None
    assert (account.uid, account.gid, account.home) == (entry.pw_uid, entry.pw_gid, entry.pw_dir)
    assert (account.shell, account.groups) == (entry.pw_shell, (entry.pw_gid,))
    assert user_name() == "root"


@given(st.text())
def test_any_name(name: str) -> None:
    """Whatever somebody calls a user, nothing is raised."""
    assert account_fault(name) is not None or runner_account(name) is None or os.geteuid() == 0


# What it can enter


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with open_folder() as folder:
        (folder / "upper/lower").mkdir(parents=True)
        yield folder


def may_work_in(folder: Path, account: Account) -> bool:
    """What the kernel says: from a process that is the user."""
    ran = subprocess.run(
        ["/bin/sh", "-c", 'test -r "$1" && test -x "$1"', "sh", folder],
        user=account.uid,
        group=account.gid,
        extra_groups=account.groups,
        check=False,
    )
    return ran.returncode == 0


@needs_root
@given(
    modes=st.tuples(*[st.integers(0, 0o7777)] * 2),
    owners=st.tuples(*[st.sampled_from([0, NOBODY.uid, SOMEBODY])] * 2),
    groups=st.tuples(*[st.sampled_from([0, NOBODY.gid, OTHER_GROUP, SOMEBODY])] * 2),
)
def test_says_what_the_kernel_says(
    place: Path, modes: tuple[int, int], owners: tuple[int, int], groups: tuple[int, int]
) -> None:
    """Of the folder and of those above it; the first one that is closed is named."""
    upper, lower = place / "upper", place / "upper/lower"
    for path, mode, owner, group in zip((upper, lower), modes, owners, groups, strict=True):
        os.chown(path, owner, group)
        path.chmod(mode)
    why = why_unreachable(NOBODY, lower)

    allowed = [may_work_in(upper, NOBODY), may_work_in(lower, NOBODY)]
    assert (why is None) is all(allowed)
    if why is not None:
        first = lower if allowed[0] else upper
        status = first.stat()
        shown = f"(mode {stat.S_IMODE(status.st_mode):04o}, uid {status.st_uid})"
        assert why == f"nobody may not read and enter {first} {shown}"


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


def test_what_is_not_there_yet(folder: Path) -> None:
    """What is to be made there has to be reached through what is there."""
    assert why_unreachable(NOBODY, folder / "a/b") is None

    folder.chmod(0o711)
    closed = f"nobody may not read and enter {folder} (mode 0711, uid {os.geteuid()})"
    assert why_unreachable(NOBODY, folder / "a/b") == closed


def test_where_no_folder_can_be(folder: Path) -> None:
    """A file, and a link to itself."""
    (folder / "file").touch()
    (folder / "loop").symlink_to("loop")

    assert why_unreachable(NOBODY, folder / "file/a") == f"{folder}/file is not a folder"
    found = why_unreachable(NOBODY, folder / "loop")
    assert found is not None
    assert found.startswith(f"{folder}/loop: Too many levels of symbolic links")


def test_both_ends_of_a_link(folder: Path) -> None:
    """Who goes by a link has to get to it, and to what it leads to."""
    for name in ("from", "to"):
        (folder / name / "in").mkdir(parents=True)
    link = folder / "from/link"
    link.symlink_to(folder / "to/in")
    assert why_unreachable(NOBODY, link) is None

    for name in ("from", "to"):
        (folder / name).chmod(0o700)
        found = why_unreachable(NOBODY, link)
        assert found is not None
        assert f" {folder / name} " in found
        (folder / name).chmod(0o755)


# What becomes its own


def owner(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


NOBODYS: Final = (NOBODY.uid, NOBODY.gid)
ROOTS: Final = (0, 0)


@pytest.fixture
def root(folder: Path) -> Path:
    """Like a runner's, with links that lead out of it, beside something that is not to change."""
    root = folder / "runner"
    (root / "bin/deep").mkdir(parents=True)
    (folder / "outside").mkdir()
    for path in (root / "config.sh", root / "bin/deep/file", root / "bin/\udcff", folder / "outside/file"):
        path.touch()
    os.mkfifo(root / "fifo")
    (root / "to_file").symlink_to("../outside/file")
    (root / "to_folder").symlink_to("../outside")
    (root / "to_nothing").symlink_to("nothing")
    (root / "bin/deep/same").hardlink_to(root / "config.sh")
    return root


@needs_root
def test_all_becomes_its_own(root: Path) -> None:
    """The links as well, and nothing that they lead to; no mode changes, and none is in the way."""
    (root / "bin").chmod(0o700)
    modes = {path: path.lstat().st_mode for path in root.rglob("*")}
    hand_over(root, NOBODY)

    assert {owner(path) for path in (root, *root.rglob("*"))} == {NOBODYS}
    assert {path: path.lstat().st_mode for path in root.rglob("*")} == modes
    assert {owner(path) for path in (root.parent, *(root.parent / "outside").rglob("*"))} == {ROOTS}


def test_from_the_inside_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is the user's, and could be changed by it, is not gone through any more."""
    given: list[str] = []
    monkeypatch.setattr(os, "chown", lambda name, *_, **__: given.append(name))
    hand_over(root, NOBODY)

    assert given.index("file") < given.index("deep") < given.index("bin") < given.index(str(root))
    assert given[-1] == str(root)


@needs_root
def test_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is its own already is not touched: not even what has a name elsewhere."""
    hand_over(root, NOBODY)
    (root.parent / "elsewhere").hardlink_to(root / "config.sh")
    monkeypatch.delattr(os, "chown")

    hand_over(root, NOBODY)


@needs_root
def test_a_group_alone(root: Path) -> None:
    """Owned by the user, and by a group that it is not in."""
    os.chown(root / "config.sh", NOBODY.uid, 0)
    hand_over(root, NOBODY)

    assert owner(root / "config.sh") == NOBODYS


@needs_root
def test_a_file_with_a_name_elsewhere(root: Path) -> None:
    """Or `elsewhere` would be the user's too, which root may trust."""
    elsewhere = root.parent / "elsewhere"
    elsewhere.hardlink_to(root / "bin/deep/file")

    with pytest.raises(RunnerUnavailableError, match=r"bin/deep/file' .*name elsewhere"):
        hand_over(root, NOBODY)
    assert owner(elsewhere) == ROOTS


@needs_root
def test_no_set_id_program_of_another(root: Path) -> None:
    """A program that would run as root stops being one."""
    (root / "config.sh").chmod(0o6755)
    hand_over(root, NOBODY)

    assert stat.S_IMODE((root / "config.sh").stat().st_mode) == 0o755


@needs_root
def test_another_disk(root: Path) -> None:
    """What is mounted in the root stays as it is, and so does what it is mounted on."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("this machine does not let us mount")
    (root / "mounted").mkdir()
    script = f"""
        set -e
        mount -t tmpfs none mounted
        touch mounted/file
        {sys.executable} -c '
        from pathlib import Path
        from agent_adapters.accounts import hand_over
        from support.users import NOBODY
        hand_over(Path.cwd(), NOBODY)'
        stat -c %u mounted mounted/file bin/deep/file
    """
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", textwrap.dedent(script)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )

    assert ran.stdout.split() == ["0", "0", str(NOBODY.uid)]
    assert owner(root / "mounted") == ROOTS


@needs_root
def test_a_folder_that_is_swapped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a link, between the look at it and the step into it."""
    real = os.open

    def open_late(path: str, *args: int, **options: int) -> int:
        if path == "bin":
            (root / "bin").rename(root / "moved")
            (root / "bin").symlink_to(root.parent / "outside")
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", open_late)
    with pytest.raises(RunnerUnavailableError, match=r"runner/bin' cannot be handed over"):
        hand_over(root, NOBODY)
    assert owner(root.parent / "outside/file") == ROOTS


def test_what_cannot_be_given(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path is told, and the reason."""

    def refuse(name: str, *_: object, **__: object) -> None:
        if name == "file":
            raise PermissionError(1, "Operation not permitted", name)

    monkeypatch.setattr(os, "chown", refuse)
    text = rf"'{root}/bin/deep/file' cannot be handed over: Operation not permitted"
    with pytest.raises(RunnerUnavailableError, match=text):
        hand_over(root, NOBODY)


def test_what_is_not_there(folder: Path) -> None:
    with pytest.raises(RunnerUnavailableError, match=r"runner' cannot be handed over: No such file"):
        hand_over(folder / "runner", NOBODY)


@pytest.mark.parametrize(("depth", "fits"), [(512, True), (1500, False)])
def test_what_is_deep(folder: Path, monkeypatch: pytest.MonkeyPatch, depth: int, *, fits: bool) -> None:
    """As deep as an archive's names can be; deeper is an error like any other. Nothing is open afterwards."""
    before = open_descriptors()
    inner = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=inner)
        outer, inner = inner, os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(outer)
    os.close(inner)

    monkeypatch.setattr(os, "chown", lambda *_, **__: None)
    with nullcontext() if fits else pytest.raises(RunnerUnavailableError):
        hand_over(folder, NOBODY)
    assert open_descriptors() <= before
    remove_tree(folder / "d")


# The switch itself


@needs_root
def test_a_process_of_it(root: Path) -> None:
    """It has its user, its groups and no others, and may write into the root."""
    hand_over(root, NOBODY)
    assert why_unreachable(NOBODY, root) is None
    script = 'id -u; id -g; id -G; touch made; echo "$HOME"'
    said = subprocess.run(
        ["/bin/sh", "-c", script],
        cwd=root,
        env={"PATH": os.defpath, **NOBODY.variables},
        user=NOBODY.uid,
        group=NOBODY.gid,
        extra_groups=NOBODY.groups,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.splitlines()

    assert said == [str(NOBODY.uid), str(NOBODY.gid), " ".join(map(str, NOBODY.groups)), NOBODY.home]
    assert owner(root / "made") == NOBODYS

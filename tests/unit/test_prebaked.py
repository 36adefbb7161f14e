"""A runner in the image: taken if it is complete, fresh and nobody else's, and left as it was."""

import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from sample_runner.build import build_archive

from agent_adapters.accounts import Account, hand_over
from agent_adapters.prebaked import prebaked_version
from support.descriptors import open_descriptors
from support.users import NOBODY, needs_root, open_folder

PATIENCE: Final = 100.0
"""Seconds; what is asked here answers in far less."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The sample runner, unpacked and never used, and ours."""
    archive = build_archive(tmp_path, version="2.345.6")
    root = tmp_path / "runner"
    with tarfile.open(archive) as tar:
        tar.extractall(root, filter="data")
    for path in [root, *root.rglob("*")]:
        os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)
    return root


def names(top: Path) -> set[str]:
    return {str(path.relative_to(top)) for path in top.rglob("*")}


def program(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "bin/Runner.Listener").write_text(f"#!/bin/bash\n{text}\n")


def test_tells_the_version_of_a_fresh_runner(root: Path) -> None:
    """As often as it is asked: it leaves nothing that would make the runner look used."""
    before, open_before = names(root), open_descriptors()

    assert [prebaked_version(root, PATIENCE) for _ in range(2)] == ["2.345.6"] * 2
    assert names(root) == before
    assert open_descriptors() <= open_before


def test_empty_folders_are_no_use(root: Path) -> None:
    """An image may have them ready; they stay, and stay empty."""
    for name in ("_work", "_diag"):
        (root / name).mkdir()

    assert prebaked_version(root, PATIENCE) == "2.345.6"
    assert not any((root / "_diag").iterdir())


@pytest.mark.parametrize(
    "missing",
    [
        "bin/Runner.Listener",
        "bin/Runner.Worker",
        "config.sh",
        "run.sh",
        "env.sh",
        "run-helper.sh.template",
    ],
)
def test_what_is_incomplete_is_none(root: Path, missing: str) -> None:
    (root / missing).unlink()

    assert prebaked_version(root, PATIENCE) is None


@pytest.mark.parametrize("name", ["bin/Runner.Listener", "bin/Runner.Worker"])
def test_what_cannot_be_run_is_none(root: Path, name: str) -> None:
    (root / name).chmod(0o644)

    assert prebaked_version(root, PATIENCE) is None


@pytest.mark.parametrize(
    "trace",
    [
        ".runner",
        ".credentials",
        ".credentials_rsaparams",
        ".service",
        ".env",
        ".path",
        "_work/repo",
        "_diag/Runner_20260101-000000-utc.log",
    ],
)
def test_what_was_used_is_none(root: Path, trace: str) -> None:
    """Also by a mere ./config.sh --version; what it left is not touched."""
    (root / trace).parent.mkdir(exist_ok=True)
    (root / trace).touch()

    assert prebaked_version(root, PATIENCE) is None
    assert (root / trace).exists()


@pytest.mark.parametrize("name", [".", "bin", "bin/Runner.Listener", "bin/Runner.Worker", "config.sh"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_what_others_may_write_to_is_none(root: Path, name: str, mode: int) -> None:
    """It is not even started."""
    program("echo 2.1.0; touch started")(root)
    assert prebaked_version(root, PATIENCE) == "2.1.0"
    (root / "started").unlink()
    (root / name).chmod((root / name).stat().st_mode | mode)

    assert prebaked_version(root, PATIENCE) is None
    assert not (root / "started").exists()


@needs_root
@pytest.mark.parametrize("name", [".", "bin", "bin/Runner.Listener", "bin/Runner.Worker"])
def test_what_is_somebody_elses_is_none(root: Path, name: str) -> None:
    os.chown(root / name, 4711, -1)

    assert prebaked_version(root, PATIENCE) is None


@pytest.mark.parametrize("name", ["bin", "bin/Runner.Listener", "_diag"])
def test_what_is_elsewhere_is_none(root: Path, name: str) -> None:
    """A symlink tells nothing about who can change what it leads to."""
    elsewhere = root.parent / "elsewhere"
    if (root / name).exists():
        (root / name).rename(elsewhere)
    else:
        elsewhere.mkdir()
    (root / name).symlink_to(elsewhere)

    assert prebaked_version(root, PATIENCE) is None


@pytest.mark.parametrize(
    "occupy", [lambda _: None, Path.mkdir, Path.touch, lambda root: root.symlink_to("runner-1")]
)
def test_no_runner_is_none(tmp_path: Path, occupy: Callable[[Path], object]) -> None:
    occupy(tmp_path / "runner")

    assert prebaked_version(tmp_path / "runner", PATIENCE) is None
    assert prebaked_version(tmp_path / "runner\0", PATIENCE) is None


@pytest.mark.parametrize(
    "text",
    ["exit 0", "echo 3.1.0", "echo version 2.1.0", "echo 2.1.0-beta", "echo 2.1.0 >&2", "echo 2.1.0; exit 1"],
)
def test_anything_else_that_it_says_is_none(root: Path, text: str) -> None:
    program(text)(root)

    assert prebaked_version(root, PATIENCE) is None


def test_a_program_that_does_not_start_is_none(root: Path) -> None:
    """It was made for another machine, or its interpreter is not there."""
    (root / "bin/Runner.Listener").write_bytes(b"\x7fELF of another machine")
    assert prebaked_version(root, PATIENCE) is None

    (root / "bin/Runner.Listener").write_text("#!/no/such/interpreter\n")
    assert prebaked_version(root, PATIENCE) is None


@pytest.mark.parametrize("text", ["echo 2.1.0; exec sleep 1000", "exec yes 2.1.0"])
def test_a_program_that_does_not_end_is_killed(root: Path, text: str) -> None:
    """After the timeout, with all of its group; one that floods its output is stopped by the pipe."""
    told = root.parent / "pid"
    program(f'echo $$ > "{told}"; {text}')(root)

    # A machine that is busy may not even have started it by then.
    for seconds in (0.5, 5.0, PATIENCE):
        assert prebaked_version(root, seconds) is None
        if told.exists() and told.read_text():
            break
    pid = int(told.read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_it_starts_is_killed(root: Path) -> None:
    """Although it has its version by then, and the pipe is still open."""
    os.mkfifo(root.parent / "alive")
    alive = os.open(root.parent / "alive", os.O_RDONLY | os.O_NONBLOCK)
    program(f'sleep 1000 > "{root.parent}/alive" & echo 2.1.0')(root)

    assert prebaked_version(root, PATIENCE) == "2.1.0"
    os.set_blocking(alive, True)
    assert os.read(alive, 1) == b""
    os.close(alive)


def test_it_gets_nothing_of_ours(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the environment nor the input."""
    monkeypatch.setenv("PLANTED", "secret")
    program(f'cat > "{root.parent}/input"; env > "{root.parent}/env"; echo 2.1.0')(root)

    assert prebaked_version(root, PATIENCE) == "2.1.0"
    environment = dict(line.split("=", 1) for line in (root.parent / "env").read_text().splitlines())
    assert environment.keys() - {"PWD", "SHLVL", "_"} == {"PATH", "DOTNET_SYSTEM_GLOBALIZATION_INVARIANT"}
    assert (root.parent / "input").read_bytes() == b""


# A runner that another user is to run

SAYS_WHO: Final = """
    set -e
    echo log > _diag/Runner_20260101-000000-utc.log
    echo 2.1.0
    echo "$(id -u) $(id -g) $(id -G)" > _diag/../../who/said
"""
"""Like a real one, it fails where it cannot write its log."""


@pytest.fixture
def nobodys(root: Path) -> Iterator[Path]:
    """A runner where anybody can get to, in nobody's home, and nobody's; it says what it was run as."""
    with open_folder() as folder:
        for name in ("home", "home/who"):
            (folder / name).mkdir()
        root.rename(folder / "home/runner")
        program(SAYS_WHO)(folder / "home/runner")
        hand_over(folder / "home", NOBODY)
        yield folder / "home/runner"


def give_to_root(path: Path) -> None:
    for each in [path, *path.rglob("*")]:
        os.chown(each, 0, 0, follow_symlinks=False)


def said(root: Path) -> str | None:
    """The user, its group and all its groups, if the runner was run at all; asked once."""
    file = root.parent / "who/said"
    if not file.exists():
        return None
    text = file.read_text().strip()
    file.unlink()
    return text


NOBODYS_IDS: Final = f"{NOBODY.uid} {NOBODY.gid} {' '.join(map(str, NOBODY.groups))}"


@needs_root
@pytest.mark.parametrize("diag", [True, False])
@pytest.mark.parametrize("give", [lambda _: None, give_to_root])
def test_it_is_run_as_its_user(nobodys: Path, give: Callable[[Path], object], *, diag: bool) -> None:
    """Whether it is that user's or root's; the log's folder is as it was, also in who owns it."""
    if diag:
        (nobodys / "_diag").mkdir()
        os.chown(nobodys / "_diag", NOBODY.uid, NOBODY.gid)
    give(nobodys)
    before = {path: (path.lstat().st_uid, path.lstat().st_gid) for path in nobodys.rglob("*")}

    for _ in range(2):
        assert prebaked_version(nobodys, PATIENCE, NOBODY) == "2.1.0"
        assert said(nobodys) == NOBODYS_IDS
        after = {path: (path.lstat().st_uid, path.lstat().st_gid) for path in nobodys.rglob("*")}
        assert after == before


@needs_root
@pytest.mark.parametrize("name", [".", "bin", "bin/Runner.Listener", "run.sh", ".."])
@pytest.mark.parametrize("account", [None, NOBODY])
def test_whose_it_may_be(nobodys: Path, name: str, account: Account | None) -> None:
    """Its user's as well, which is nobody else; one file of another's is too much, and nothing is run."""
    give_to_root(nobodys.parent)
    (nobodys / "../who").chmod(0o777)
    os.chown(nobodys / name, NOBODY.uid, -1)
    assert prebaked_version(nobodys, PATIENCE, account) == (None if account is None else "2.1.0")
    assert said(nobodys) == (None if account is None else NOBODYS_IDS)

    os.chown(nobodys / name, 4711, -1)
    assert prebaked_version(nobodys, PATIENCE, account) is None
    assert said(nobodys) is None


@needs_root
@pytest.mark.parametrize("name", [".", "bin", "bin/Runner.Listener", ".."])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_what_others_than_its_user_may_write_to_is_none(nobodys: Path, name: str, mode: int) -> None:
    path = nobodys / name
    path.chmod(path.stat().st_mode | mode)

    assert prebaked_version(nobodys, PATIENCE, NOBODY) is None
    assert said(nobodys) is None


@needs_root
def test_where_its_user_cannot_go(nobodys: Path) -> None:
    """Only what is wholly root's is run as root."""
    nobodys.parent.parent.chmod(0o711)
    assert prebaked_version(nobodys, PATIENCE, NOBODY) is None
    assert said(nobodys) is None

    give_to_root(nobodys.parent)
    assert prebaked_version(nobodys, PATIENCE, NOBODY) == "2.1.0"
    assert str(said(nobodys)).startswith("0 0 ")


@needs_root
def test_a_log_folder_that_is_swapped(nobodys: Path) -> None:
    """By what runs as the user: nothing of root's is emptied or given away in its place."""
    outside = nobodys.parent.parent / "outside"
    outside.mkdir()
    (outside / "file").touch()
    program(f"mv _diag moved && ln -s {outside} _diag && echo 2.1.0")(nobodys)

    assert prebaked_version(nobodys, PATIENCE, NOBODY) == "2.1.0"
    assert (outside / "file").exists()
    assert outside.stat().st_uid == 0
    assert not any((nobodys / "moved").iterdir())

"""A runner in the image: taken if it is complete, fresh and nobody else's, and left as it was."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from sample_runner.build import build_archive

from agent_adapters.prebaked import prebaked_version

PATIENCE: Final = 20.0
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
    before = names(root)

    assert [prebaked_version(root, PATIENCE) for _ in range(2)] == ["2.345.6"] * 2
    assert names(root) == before


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
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
    program(f'echo $$ > "{root.parent}/pid"; {text}')(root)

    assert prebaked_version(root, 0.5) is None
    pid = int((root.parent / "pid").read_text())
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

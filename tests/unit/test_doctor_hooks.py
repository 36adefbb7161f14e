"""`doctor` looks at the scripts around the job: where one cannot be run, every job fails."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_app.doctor.examination import examine
from agent_app.doctor.findings import Finding, Status
from agent_app.settings import load

Examine = Callable[..., dict[str, Finding]]


@pytest.fixture
def examined(tmp_path: Path) -> Examine:
    """Examines a machine with these settings; its findings by their checks."""

    def examined_with(**flags: object) -> dict[str, Finding]:
        flags |= {"profile": "local", "job": "j", "runner_archive": tmp_path / "none", "state_dir": tmp_path}
        loaded = load({name: str(value) for name, value in flags.items()}, {}, tmp_path / "no.toml")
        return {finding.check: finding for finding in examine(loaded, {})}

    return examined_with


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "a script.sh"
    path.touch(0o400)  # a shell reads it: nobody executes it
    return path


def test_scripts_that_can_be_run(examined: Examine, script: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.ps1"
    link.symlink_to(script)
    findings = examined(job_started_hook=script, job_completed_hook=link)
    assert [*findings][-1] == "hooks"
    assert (findings["hooks"].status, findings["hooks"].found) == (
        Status.OK,
        f"around the job: {script}, {link}",
    )


def test_nothing_is_said_where_none_is_set(examined: Examine) -> None:
    assert "hooks" not in examined()


@pytest.mark.parametrize("name", ["none.sh", "folder.sh", "pipe.sh", "no_extension", "script.py", "lost.sh"])
def test_scripts_that_cannot_be_run(examined: Examine, script: Path, name: str) -> None:
    """It says which one, and what can be done about it; the other one is not named."""
    folder = script.parent
    (folder / "folder.sh").mkdir()
    os.mkfifo(folder / "pipe.sh")
    (folder / "no_extension").touch()
    (folder / "script.py").touch()
    (folder / "lost.sh").symlink_to("nowhere")
    reasons = {"folder.sh": " is not a file", "pipe.sh": " is not a file"}
    reasons |= {"none.sh": ": No such file", "lost.sh": ": No such file"}
    for one, other in (("job_started", "job_completed"), ("job_completed", "job_started")):
        finding = examined(**{f"{one}_hook": folder / name, f"{other}_hook": script})["hooks"]
        assert finding.status is Status.FAILED
        assert finding.found.startswith(
            f"{folder / name}{reasons.get(name, ' does not end in .js, .ps1, .sh')}"
        )
        assert finding.fix.endswith(f"correct RUNS_FLEET_{one.upper()}_HOOK")


def test_scripts_that_cannot_be_read(
    examined: Examine, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are told of."""
    monkeypatch.setattr(os, "access", lambda path, mode: (Path(path), mode) != (script, os.R_OK))
    finding = examined(job_started_hook=script, job_completed_hook=script)["hooks"]
    assert finding.status is Status.FAILED
    assert finding.found == f"{script} cannot be read; {script} cannot be read"
    assert finding.fix.endswith("correct RUNS_FLEET_JOB_STARTED_HOOK and RUNS_FLEET_JOB_COMPLETED_HOOK")

"""The systemd units as `install-units` writes them; tests/system runs them."""

import re
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from agent_app import cli
from agent_app.settings import Settings
from agent_app.units import UNITS, _command_line, install_units
from agent_core.budget import ending_seconds, life_seconds

COMMAND = Path("/opt/runs-fleet/bin/runs-fleet-agent")


def value_of(folder: Path, unit: str, key: str) -> str:
    """The only value of a key in a unit."""
    (value,) = re.findall(rf"^{key}=(.*)$", (folder / unit).read_text(), re.MULTILINE)
    assert isinstance(value, str)
    return value


@pytest.mark.parametrize("settings", [Settings(), Settings(max_runtime=timedelta(days=2), poweroff=True)])
def test_times_are_the_policys(tmp_path: Path, settings: Settings) -> None:
    """Nothing is cut short that the policy allows."""
    assert list(install_units(tmp_path, COMMAND, [], settings)) == [tmp_path / name for name in UNITS]

    service, power_off, timer = UNITS
    assert int(value_of(tmp_path, service, "TimeoutStopSec")) > ending_seconds(settings.limits)
    assert int(value_of(tmp_path, timer, "OnActiveSec")) > life_seconds(settings.limits) + 300
    assert value_of(tmp_path, power_off, "Environment") == f"RUNS_FLEET_POWEROFF={int(settings.poweroff)}"
    assert value_of(tmp_path, service, "ExecStart") == f"{COMMAND} run"
    assert value_of(tmp_path, service, "ExecStopPost").endswith(f"' {COMMAND} reap")


def test_what_a_job_can_do(tmp_path: Path) -> None:
    """What bounds the unit bounds the job: containers reboot, packages load profiles, programs set alarms."""
    list(install_units(tmp_path, COMMAND, [], Settings()))
    dropped = value_of(tmp_path, UNITS[0], "CapabilityBoundingSet").removeprefix("~").split()
    assert not {"CAP_SYS_BOOT", "CAP_MAC_ADMIN", "CAP_WAKE_ALARM"} & set(dropped)


def test_again(tmp_path: Path) -> None:
    """What was there is replaced, and nothing is left beside it."""
    list(install_units(tmp_path, COMMAND, [], Settings()))
    list(install_units(tmp_path, COMMAND, [], evolve(Settings(), poweroff=True)))

    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(UNITS)
    assert value_of(tmp_path, UNITS[1], "Environment") == "RUNS_FLEET_POWEROFF=1"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), min_size=1))
def test_words_stay_what_they_are(words: list[str]) -> None:
    """Read as systemd.service(5) says: words, quotes and escapes, then variables and specifiers."""
    assert read_as_systemd(_command_line(*words)) == words


def read_as_systemd(line: str) -> list[str]:
    words = re.findall(r'"((?:[^"\\]|\\.)*)"|([^\s"]+)', line)
    texts = [re.sub(r"\\(.)", r"\1", quoted) or plain for quoted, plain in words]
    assert not any(re.search(r"(?<!\$)\$(?:\$\$)*(?!\$)", text) for text in texts), "a variable"
    assert not any(re.search(r"(?<!%)%(?:%%)*(?!%)", text) for text in texts), "a specifier"
    return [text.replace("$$", "$").replace("%%", "%") for text in texts]


# The command


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command that systemd could start."""
    command = tmp_path / "bin" / "runs-fleet-agent"
    command.parent.mkdir()
    command.touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(command)])
    return command


def test_flags_stand_in_the_unit(tmp_path: Path, installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The agent is started with what install-units was told; what is next is said."""
    folder = tmp_path / "units"
    words = f"install-units --unit-dir {folder} --runner-dir here --max-runtime 60 --state-dir"
    assert cli.main([*words.split(), "'$x %'"]) == 0

    flags = f"""--runner-dir {Path.cwd()}/here --max-runtime 60 --state-dir "{Path.cwd()}/'$$x %%'\""""
    assert sorted(value_of(folder, UNITS[0], "ExecStart").split(" --")) == sorted(
        f"{installed} run {flags}".split(" --")
    )
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(folder / name) for name in UNITS]
    assert "RUNS_FLEET_POWEROFF=1 in /etc/runs-fleet/agent.env arms it" in said.err
    assert "systemctl daemon-reload" in said.err


@pytest.mark.usefixtures("installed")
def test_bad_settings_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are named, as for a run."""
    folder = tmp_path / "units"
    assert cli.main(["install-units", "--unit-dir", str(folder), "--max-runtime", "soon"]) == 78
    assert "--max-runtime: 'soon' is not" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("flag", "text"),
    [("--job-environment", "TOKEN=hunter2"), ("--github-url", "https://user:hunter2@github.com")],
)
def test_secrets_are_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, text: str
) -> None:
    """Everybody may read a unit; the error has the fix, and not the secret."""
    folder = tmp_path / "units"
    assert cli.main(["install-units", "--unit-dir", str(folder), "--max-runtime", "60", flag, text]) == 78
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{flag}: everybody may read the units" in said
    assert f"put RUNS_FLEET_{flag[2:].upper().replace('-', '_')} into /etc/runs-fleet/agent.env" in said
    assert "hunter2" not in said
    assert not folder.exists()


@pytest.mark.usefixtures("installed")
def test_secrets_that_no_flag_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable is not written; a URL without a password is no secret."""
    monkeypatch.setenv("RUNS_FLEET_JOB_ENVIRONMENT", "TOKEN=hunter2")
    flag = ["--github-url", "https://github.example"]
    assert cli.main(["install-units", "--unit-dir", str(tmp_path), *flag]) == 0
    assert value_of(tmp_path, UNITS[0], "ExecStart").endswith(" run --github-url https://github.example")
    assert not [path for path in tmp_path.glob("*.*") if "hunter2" in path.read_text()]


@pytest.mark.usefixtures("installed")
def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the flag, and what to do."""
    (tmp_path / "file").touch()
    assert cli.main(["install-units", "--unit-dir", str(tmp_path / "file")]) == 78
    said = capsys.readouterr().err
    assert f"--unit-dir: {tmp_path / 'file'} cannot be written" in said
    assert "be root, or name another folder" in said


def test_a_command_that_systemd_could_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody would start the agent, so nothing is written."""
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "nothing")])
    assert cli.main(["install-units", "--unit-dir", str(tmp_path / "units")]) == 78
    assert "call the installed command by its path" in capsys.readouterr().err
    assert not (tmp_path / "units").exists()

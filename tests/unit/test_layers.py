"""The layers are held by import-linter, and it notices when one is crossed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = Path(sys.executable).parent / "lint-imports"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINT, "--no-cache"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the packages, to be spoiled."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "src", tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_layers_are_kept(sources: Path) -> None:
    """What stands in the repository keeps every layer."""
    result = lint(sources)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    "module", ["boto3", "httpx", "psutil", "time", "subprocess", "agent_adapters.memory"]
)
def test_core_stays_pure(sources: Path, module: str) -> None:
    """The core may import neither vendors, nor the clock, nor processes, nor adapters."""
    path = sources / "agent_core" / "policy.py"
    path.write_text(f"import {module}\n{path.read_text()}")
    result = lint(sources)
    assert result.returncode != 0
    assert f"agent_core.policy -> {module}" in result.stdout


def test_aws_does_not_know_github(sources: Path) -> None:
    """Adapters of different vendors do not know each other."""
    (sources / "agent_adapters" / "github.py").write_text("")
    (sources / "agent_adapters" / "aws.py").write_text("from agent_adapters import github\n")
    result = lint(sources)
    assert result.returncode != 0
    assert "agent_adapters.aws -> agent_adapters.github" in result.stdout


def test_new_modules_need_a_layer(sources: Path) -> None:
    """The lists of layers are exhaustive: what is in none of them fails."""
    (sources / "agent_core" / "helpers.py").write_text("")
    assert lint(sources).returncode != 0

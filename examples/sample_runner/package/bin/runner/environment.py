"""What a job of the sample finds in its environment, and on disk, before its first step."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .orphans import TRACKING_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .registration import Settings

_FILE_COMMANDS = ("GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_PATH", "GITHUB_STATE", "GITHUB_STEP_SUMMARY")


@dataclass(frozen=True)
class Workplace:
    """The folders of a job, under the runner's work folder."""

    work: Path
    repository: str

    @classmethod
    def of(cls, root: Path, settings: Settings) -> Workplace:
        """An organisation's runner learns its repository with the job; the sample's is then `sample/repo`."""
        owner, _, name = settings.url.rstrip("/").partition("://")[2].partition("/")[2].partition("/")
        return cls((root / settings.work).resolve(), f"{owner}/{name}" if name else "sample/repo")

    @property
    def workspace(self) -> Path:
        name = self.repository.rpartition("/")[2]
        return self.work / name / name

    @property
    def temp(self) -> Path:
        return self.work / "_temp"

    def prepare(self) -> None:
        for folder in (self.workspace, self.temp, self.work / "_tool", self.work / "_actions"):
            folder.mkdir(parents=True, exist_ok=True)

    def file_commands(self) -> dict[str, str]:
        """Empty files that a step may write to; the sample does not read them."""
        folder = self.temp / "_runner_file_commands"
        folder.mkdir(exist_ok=True)
        files = {name: folder / name.removeprefix("GITHUB_").lower() for name in _FILE_COMMANDS}
        for file in files.values():
            file.write_bytes(b"")
        return {name: str(file) for name, file in files.items()}


def job_environment(
    inherited: Mapping[str, str], workplace: Workplace, settings: Settings, tracking_id: str
) -> dict[str, str]:
    """The Worker's own environment, and over it what every job gets."""
    owner = workplace.repository.partition("/")[0]
    server = settings.url.removesuffix("/").removesuffix(f"/{workplace.repository}") or "https://github.com"
    return {
        "CI": "true",
        **inherited,
        "GITHUB_ACTIONS": "true",
        "GITHUB_ACTOR": "octocat",
        "GITHUB_EVENT_NAME": "push",
        "GITHUB_JOB": "sample",
        "GITHUB_REF": "refs/heads/main",
        "GITHUB_REF_NAME": "main",
        "GITHUB_REPOSITORY": workplace.repository,
        "GITHUB_REPOSITORY_OWNER": owner,
        "GITHUB_RUN_ATTEMPT": "1",
        "GITHUB_RUN_ID": "1",
        "GITHUB_RUN_NUMBER": "1",
        "GITHUB_SERVER_URL": server,
        "GITHUB_SHA": "0" * 40,
        "GITHUB_WORKFLOW": "sample",
        "GITHUB_WORKSPACE": str(workplace.workspace),
        "RUNNER_ARCH": "ARM64" if os.uname().machine in {"aarch64", "arm64"} else "X64",
        "RUNNER_ENVIRONMENT": "self-hosted",
        "RUNNER_NAME": settings.name,
        "RUNNER_OS": "Linux",
        "RUNNER_TEMP": str(workplace.temp),
        "RUNNER_TOOL_CACHE": str(workplace.work / "_tool"),
        "RUNNER_WORKSPACE": str(workplace.workspace.parent),
        TRACKING_VARIABLE: tracking_id,
    }

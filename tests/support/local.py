"""Runs the installed wheel in profile `local`, with the sample runner, and reads what it left."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen
from sample_runner.build import build_archive

from support.github import GitHub
from support.wheel import (
    COMMAND,
    JOB_ID,
    Exited,
    Running,
    a_config,
    json_lines,
    no_survivors,
    start,
    statuses_of,
)


@frozen
class Ended:
    """A run that is over."""

    status: int
    stdout: str
    stderr: str
    state_dir: Path

    @property
    def messages(self) -> list[dict[str, Any]]:
        return json_lines(self.state_dir / "notifications.jsonl")

    @property
    def terminations(self) -> list[dict[str, Any]]:
        return json_lines(self.state_dir / "terminations.jsonl")

    @property
    def statuses(self) -> list[str]:
        return statuses_of(self.messages)

    @property
    def final(self) -> dict[str, Any]:
        return self.messages[-1]

    @property
    def log(self) -> list[str]:
        path = self.state_dir / "logs" / "local" / f"{JOB_ID}.log"
        return path.read_text("utf-8").splitlines() if path.exists() else []


class Local:
    """A machine of its own for one test: a folder, a job, a runner archive."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state_dir = folder, folder / "state"
        self.config = a_config()

    def archive(self, job: str, scenario: Mapping[str, object], *, scripts_only: bool = False) -> Path:
        folder = self.folder / "archives"
        return build_archive(folder, job=job, scenario=scenario, scripts_only=scripts_only)

    def start(
        self,
        *flags: str,
        job: str = "echo hello from the job\n",
        scenario: Mapping[str, object] | None = None,
        command: str = "run",
        wrapper: tuple[str, ...] = (),
        github: GitHub | None = None,
        scripts_only: bool = False,
        variables: Mapping[str, str] | None = None,
    ) -> Running[Ended]:
        """Starts the agent; `flags` come last, so they win.

        With `github`, it is asked for the runner; with `scripts_only`, only run.sh can start that.
        """
        config = self.folder / "job.json"
        if not config.exists():
            config.write_text(json.dumps(self.config))
        arguments = [*wrapper, str(COMMAND), command, "--profile", "local", "--job", str(config)]
        archive = self.archive(job, scenario or {}, scripts_only=scripts_only)
        if github is None:
            arguments += ["--runner-archive", str(archive)]
        else:
            github.publish("2.336.0", "x64", archive)
            arguments += ["--github-api-url", github.api_url, "--github-url", github.url]
        arguments += ["--state-dir", str(self.state_dir), *flags]
        return start(arguments, self.state_dir, self._ended, variables or {})

    def run(self, *flags: str, **options: Any) -> Ended:
        return self.start(*flags, **options).end()

    def _ended(self, exited: Exited) -> Ended:
        return Ended(exited.status, exited.stdout, exited.stderr, self.state_dir)


@contextmanager
def local_machine(folder: Path) -> Iterator[Local]:
    """A machine; whatever a failed test leaves running on it is killed."""
    with no_survivors(folder):
        yield Local(folder)

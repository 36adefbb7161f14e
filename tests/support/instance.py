"""Runs the installed wheel in profile `aws` on a machine that is an instance of the cloud beside it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen
from sample_runner.build import build_archive

from support.aws import Aws
from support.github import GitHub
from support.imds import InstanceMetadata
from support.wheel import COMMAND, JOB_ID, Exited, Running, a_config, no_survivors, start, statuses_of

VERSION = "2.336.0"
GROUP = "/runs-fleet/runners"


@frozen
class Ended:
    """A run that is over, and what the cloud has of it."""

    status: int
    stdout: str
    stderr: str
    messages: list[dict[str, Any]]
    """What the queue took, repeats too."""
    log: list[str]
    """The job's log stream."""
    state: str
    """The instance's, as EC2 has it."""

    @property
    def statuses(self) -> list[str]:
        return statuses_of(self.messages)

    @property
    def final(self) -> dict[str, Any]:
        return self.messages[-1]


class Instance:
    """An instance of its own for one test: a folder, a job, a config parameter, a queue, a bucket."""

    def __init__(self, folder: Path, aws: Aws, github: GitHub, imds: InstanceMetadata) -> None:
        self.folder, self.aws, self.github, self.imds = folder, aws, github, imds
        self.state_dir, self.runner_dir = folder / "state", folder / "opt" / "actions-runner"
        self.instance_id = imds.instance_id = aws.own_instance = aws.instance()
        self.bucket, self.queue_url = aws.bucket(), aws.queue()
        aws.log_group(GROUP)
        self.config = a_config() | {"run_id": "12345"}
        self.variables = {
            "AWS_ENDPOINT_URL": aws.url,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.url,
            # What CI and developers have set must not be taken for the instance's own.
            "AWS_CONFIG_FILE": str(folder / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
            "RUNS_FLEET_CONFIG_BUCKET": self.bucket,
            "RUNS_FLEET_LOG_GROUP": GROUP,
            "RUNS_FLEET_TERMINATION_QUEUE_URL": self.queue_url,
            "RUNS_FLEET_RUNNER_DIR": str(self.runner_dir),
            "RUNS_FLEET_STATE_DIR": str(self.state_dir),
            "RUNS_FLEET_GITHUB_API_URL": github.api_url,
            "RUNS_FLEET_GITHUB_URL": github.url,
        }

    @property
    def parameter(self) -> str:
        return f"/runs-fleet/runners/{self.instance_id}/config"

    @property
    def cache_key(self) -> str:
        return f"runners/{VERSION}/x64/actions-runner-{VERSION}.tar.gz"

    @property
    def until_go(self) -> str:
        """A job's step that lasts until `go`."""
        return f"while ! test -e {self.folder}/go; do sleep 0.05; done\n"

    def go(self) -> None:
        """Lets the job go on."""
        (self.folder / "go").touch()

    def put_config(self, **changes: object) -> None:
        """Writes the config parameter, as the orchestrator does."""
        self.aws.put_parameter(self.parameter, json.dumps(self.config | changes), secure=True)

    def publish(
        self, job: str = "echo hello from the job\n", scenario: Mapping[str, object] | None = None
    ) -> Path:
        """Makes the sample runner with this job GitHub's latest release; its archive."""
        archive = build_archive(self.folder / "archives", job=job, scenario=scenario or {})
        self.github.publish(VERSION, "x64", archive)
        return archive

    def cached(self) -> bytes | None:
        """The archive in the bucket."""
        s3 = self.aws.client("s3")
        keys = [each["Key"] for each in s3.list_objects_v2(Bucket=self.bucket).get("Contents", [])]
        assert keys in ([], [self.cache_key])
        return s3.get_object(Bucket=self.bucket, Key=keys[0])["Body"].read() if keys else None

    def start(
        self,
        *flags: str,
        command: str = "run",
        variables: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
    ) -> Running[Ended]:
        """Starts the agent as it would be on the instance."""
        environment = self.variables | dict(variables or {})
        return start([*wrapper, str(COMMAND), command, *flags], self.folder, self._ended, environment)

    def run(self, *flags: str, **options: Any) -> Ended:
        return self.start(*flags, **options).end()

    def _ended(self, exited: Exited) -> Ended:
        return Ended(
            exited.status,
            exited.stdout,
            exited.stderr,
            self.aws.messages(self.queue_url),
            self.aws.log_lines(GROUP, f"{self.instance_id}/{JOB_ID}"),
            self.aws.state_of(self.instance_id),
        )


@contextmanager
def instance_of(folder: Path, aws: Aws, github: GitHub, imds: InstanceMetadata) -> Iterator[Instance]:
    """An instance; whatever a failed test leaves running on it is killed."""
    with no_survivors(folder):
        yield Instance(folder, aws, github, imds)

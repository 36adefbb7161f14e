"""What holds for all tests."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from support.aws import Aws, aws_cloud
from support.github import GitHub, github_server
from support.imds import InstanceMetadata, instance_metadata

# No test depends on the speed of the machine. In CI the examples are the same in each run, so that a
# change is judged by what it changes; everywhere else they are new ones.
settings.register_profile(
    "project",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("project")


# The cloud: one for a worker, as new for each test.


@pytest.fixture(scope="session")
def whole_aws() -> Iterator[Aws]:
    with aws_cloud() as aws:
        yield aws


@pytest.fixture(scope="session")
def whole_github() -> Iterator[GitHub]:
    with github_server() as github:
        yield github


@pytest.fixture(scope="session")
def whole_imds() -> Iterator[InstanceMetadata]:
    with instance_metadata() as imds:
        yield imds


@pytest.fixture
def aws(whole_aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Aws:
    """AWS; this process takes it for the real one."""
    whole_aws.reset()
    for name, value in whole_aws.environ.items():
        monkeypatch.setenv(name, value)
    return whole_aws


@pytest.fixture
def github(whole_github: GitHub) -> GitHub:
    """GitHub, with no release."""
    whole_github.reset()
    return whole_github


@pytest.fixture
def imds(whole_imds: InstanceMetadata) -> InstanceMetadata:
    """The metadata service of an instance that nothing threatens."""
    whole_imds.reset()
    return whole_imds

"""What holds for all tests."""

import os
import sys
from collections.abc import Iterator
from functools import cache

import pytest
from botocore.loaders import JSONFileLoader
from hypothesis import HealthCheck, settings

from support.aws import Aws, aws_cloud
from support.github import GitHub, github_server
from support.imds import InstanceMetadata, instance_metadata

# Of a version manager, `python3` is a script that takes longer than all that the sample runner does.
os.environ["PATH"] = os.pathsep.join([f"{sys.base_prefix}/bin", os.environ["PATH"]])

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
    # Each session of botocore would read the same descriptions of services anew: half of a test's time.
    load = cache(JSONFileLoader().load_file)
    with aws_cloud() as aws, pytest.MonkeyPatch.context() as patches:
        patches.setattr(JSONFileLoader, "load_file", lambda _, path: load(path))
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

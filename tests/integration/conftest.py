"""Fixtures of the tests that run the installed wheel."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.aws import Aws
from support.github import GitHub
from support.imds import InstanceMetadata
from support.instance import Instance, instance_of
from support.local import Local, local_machine


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    with local_machine(tmp_path) as machine:
        yield machine


@pytest.fixture
def instance(tmp_path: Path, aws: Aws, github: GitHub, imds: InstanceMetadata) -> Iterator[Instance]:
    with instance_of(tmp_path, aws, github, imds) as instance:
        yield instance

"""Fixtures of the tests that need a real systemd."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.aws import Aws
from support.github import GitHub
from support.imds import InstanceMetadata
from support.instance import Instance
from support.machine import Machine, boot, need_machine
from support.service import Service


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine that sees this test's folder; its journal is shown when the test fails."""
    need_machine()
    with boot(tmp_path) as machine:
        yield machine
        sys.stdout.write(machine.journal())


@pytest.fixture
def service(machine: Machine, tmp_path: Path, aws: Aws, github: GitHub, imds: InstanceMetadata) -> Service:
    """The agent's units on that machine, which is an instance of the cloud beside it."""
    return Service(machine, Instance(tmp_path, aws, github, imds))

"""Fixtures of the tests that need a real systemd."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.machine import Machine, boot, need_machine


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine that sees this test's folder; its journal is shown when the test fails."""
    need_machine()
    with boot(tmp_path) as machine:
        yield machine
        sys.stdout.write(machine.journal())

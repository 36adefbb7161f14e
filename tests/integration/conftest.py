"""Fixtures of the tests that run the installed wheel."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.local import Local, local_machine


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    with local_machine(tmp_path) as machine:
        yield machine

"""Fixtures of the tests that run the installed wheel."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_core.phases import Phase
from support.aws import Aws
from support.github import GitHub
from support.imds import InstanceMetadata
from support.instance import Instance, instance_of
from support.local import Local, local_machine

CRASHED = ("agent killed in", "successor killed in")
"""The properties with which a test of a crash reports its phase."""


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    with local_machine(tmp_path) as machine:
        yield machine


@pytest.fixture
def instance(tmp_path: Path, aws: Aws, github: GitHub, imds: InstanceMetadata) -> Iterator[Instance]:
    with instance_of(tmp_path, aws, github, imds) as instance:
        yield instance


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """In which phases the crashes of `test_crash.py` hit."""
    reports = [each for kind in ("passed", "failed") for each in terminalreporter.stats.get(kind, [])]
    hits = Counter(found for each in reports for found in each.user_properties if found[0] in CRASHED)
    if not hits:
        return
    terminalreporter.section("crashes")
    terminalreporter.write_line(f"{'':12}" + "".join(f"{who:>22}" for who in CRASHED))
    for phase in ("no journal", *Phase, "its end"):
        terminalreporter.write_line(f"{phase:12}" + "".join(f"{hits[who, phase]:22}" for who in CRASHED))

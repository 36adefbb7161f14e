"""Fixtures of the tests that need a real systemd, and the table of what `test_matrix.py` came to."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from agent_core.phases import Phase
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How long after each fault, in each phase, termination was asked for."""
    reports = terminalreporter.stats.get("passed", [])
    cells: Mapping[str, float] = {
        name: value
        for report in reports
        if "test_matrix.py" in report.nodeid
        for name, value in report.user_properties
    }
    if not cells:
        return
    phases = [phase for phase in Phase if any(name.startswith(f"{phase} ") for name in cells)]
    faults = sorted({name.split()[1] for name in cells})
    terminalreporter.section("seconds from what befell the agent to the request to terminate")
    terminalreporter.write_line(" " * 14 + "".join(f"{fault:>20}" for fault in faults))
    for phase in phases:
        values = [cells.get(f"{phase} {fault}") for fault in faults]
        row = "".join(f"{'-' if value is None else f'{value:.1f}':>20}" for value in values)
        terminalreporter.write_line(f"{phase:14}{row}")

"""The host probes keep the promises of their port."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from agent_adapters.host import PsutilHostProbe, identify
from agent_adapters.memory import InMemoryHostProbe, Machine
from agent_core.errors import HostUnavailableError
from agent_core.testing import simulation
from agent_core.testing.contracts import HostProbeContract

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from agent_core.model import ProcessId


class TestInMemoryHostProbe(HostProbeContract):
    def setup_method(self) -> None:
        self.machine = Machine()

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        return simulation.run(lambda: main)

    def make(self) -> InMemoryHostProbe:
        return InMemoryHostProbe(self.machine)

    def begin_process(self) -> ProcessId:
        return InMemoryHostProbe(self.machine).own_process()

    def end_process(self, process: ProcessId) -> None:
        self.machine.agents_alive.remove(process)


class TestPsutilHostProbe(HostProbeContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> Iterator[None]:
        self.folder = tmp_path / "not" / "there"
        self.begun: list[subprocess.Popen[bytes]] = []
        yield
        for process in self.begun:
            process.kill()
            process.wait()

    def make(self) -> PsutilHostProbe:
        return PsutilHostProbe(self.folder)

    def begin_process(self) -> ProcessId:
        self.begun.append(subprocess.Popen(["sleep", "infinity"]))
        process = identify(self.begun[-1].pid)
        assert process is not None
        return process

    def end_process(self, process: ProcessId) -> None:
        """What is left of it is a zombie."""
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


# The real host only


def test_the_host_booted_before_now(tmp_path: Path) -> None:
    """And the processes since."""
    probe = PsutilHostProbe(tmp_path)

    sample = asyncio.run(probe.sample())

    up = (datetime.now(UTC) - sample.booted_at).total_seconds()  # noqa: TID251 - the host's own clock is tested
    assert 0 < probe.own_process().started <= up + 60


def test_a_process_that_was_taken_note_of_is_gone(tmp_path: Path) -> None:
    """Its number may be free, or another's."""
    popen = subprocess.Popen(["sleep", "infinity"])
    process = identify(popen.pid)
    popen.kill()
    popen.wait()

    assert process is not None
    assert not PsutilHostProbe(tmp_path).is_alive(process)


def test_another_process_has_the_same_name_for_this_one(tmp_path: Path) -> None:
    """What an agent writes of itself, its successor recognises."""
    script = f"from agent_adapters.host import identify; p = identify({os.getpid()}); print(p.pid, p.started)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    told = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True)

    own = PsutilHostProbe(tmp_path).own_process()
    assert told.stdout.decode().split() == [str(own.pid), str(own.started)]


def test_a_program_of_any_name_is_recognised(tmp_path: Path) -> None:
    """/proc puts the name in the middle of the line, unescaped: also one that looks like the rest of it."""
    program = tmp_path / "a) S 1 1 (b"
    program.symlink_to("/bin/sleep")
    popen = subprocess.Popen([program, "infinity"])
    try:
        process = identify(popen.pid)

        assert process is not None
        assert PsutilHostProbe(tmp_path).is_alive(process)
        assert process.started > 1
    finally:
        popen.kill()
        popen.wait()


def test_a_folder_that_may_not_be_entered_is_measured_or_unavailable(
    tmp_path: Path, unprivileged: Callable[[], None]
) -> None:
    """It is no fault of the agent's."""
    shut = tmp_path / "shut"
    (shut / "inner").mkdir(parents=True)
    shut.chmod(0)
    unprivileged()

    try:
        sample = asyncio.run(PsutilHostProbe(shut / "inner").sample())
    except HostUnavailableError:
        return
    assert sample.free_disk_bytes > 0

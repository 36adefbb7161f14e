# ruff: noqa: S101 - a suite speaks in asserts
"""What any HostProbe promises."""

from abc import ABC, abstractmethod
from datetime import timedelta
from typing import Final

from attrs import evolve

from agent_core.errors import HostUnavailableError
from agent_core.model import ProcessId
from agent_core.ports import HostProbe
from agent_core.testing.contracts.contract import Contract, cancel_at_any_step, eventually, on_loop

__all__ = ["HostProbeContract"]

_CLOCK_STEP: Final = timedelta(minutes=1)
"""What a wall clock may be set by between two looks at a boot time that is computed from it."""
_NO_PIDS: Final = (-1, 0, 2**22 + 1, 2**31 - 1, 2**63)
"""Numbers that no process has."""


class HostProbeContract(Contract, ABC):
    """Holds a HostProbe to its promises."""

    @abstractmethod
    def make(self) -> HostProbe:
        """The adapter under test."""

    @abstractmethod
    def begin_process(self) -> ProcessId:
        """Begins another process on the host."""

    @abstractmethod
    def end_process(self, process: ProcessId) -> None:
        """Ends it; its parent may not have taken note."""

    # The host

    @on_loop
    async def test_a_sample_is_sane(self) -> None:
        """There is disk and memory, and the host booted at a time that is known everywhere."""
        sample = await self.make().sample()

        assert sample.free_disk_bytes > 0
        assert sample.available_memory_bytes > 0
        assert sample.booted_at.utcoffset() is not None

    @on_loop
    async def test_the_boot_stays_where_it_was(self) -> None:
        """Each sample, of any probe, is of the same boot."""
        probe = self.make()

        boots = [(await each.sample()).booted_at for each in (probe, probe, self.make())]

        assert max(boots) - min(boots) < _CLOCK_STEP

    @on_loop
    async def test_can_be_cancelled(self) -> None:
        """A sample that is cancelled spoils no later one."""
        probe = self.make()

        await cancel_at_any_step(probe.sample)

        assert (await eventually(HostUnavailableError, probe.sample)).free_disk_bytes > 0

    # Processes

    def test_the_own_process_is_alive(self) -> None:
        """It is the same at each look, and another probe sees that it lives."""
        probe = self.make()

        own = probe.own_process()

        assert probe.own_process() == own
        assert probe.is_alive(own)
        assert self.make().is_alive(own)

    def test_a_process_is_alive_until_its_end(self) -> None:
        """Also when its parent has not taken note of the end."""
        probe = self.make()
        process = self.begin_process()
        assert process != probe.own_process()
        assert probe.is_alive(process)

        self.end_process(process)

        assert not probe.is_alive(process)
        assert probe.is_alive(probe.own_process())

    def test_a_reused_number_is_another_process(self) -> None:
        """The number alone says nothing: the start tells a process from a later one."""
        probe = self.make()
        own = probe.own_process()

        for started in (own.started - 1, own.started + 1, own.started + 0.01, 0.0):
            assert not probe.is_alive(evolve(own, started=started))

    def test_the_same_start_is_not_the_same_process(self) -> None:
        """Neither does the start alone."""
        probe = self.make()
        own = probe.own_process()

        for pid in _NO_PIDS:
            assert not probe.is_alive(evolve(own, pid=pid))

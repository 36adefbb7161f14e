"""One machine: what outlives the agent on it, and what an agent learns of it there."""

import asyncio
from datetime import UTC, datetime
from typing import Final

from attrs import Factory, define, field

from agent_adapters.wire import journal_from_json, journal_to_json
from agent_core.errors import (
    JournalUnavailableError,
    TerminatorDeniedError,
    TerminatorError,
)
from agent_core.model import (
    HostSample,
    JournalRecord,
    LogEvent,
    ProcessId,
    Release,
)
from agent_core.ports import (
    HostProbe,
    Journal,
    Terminator,
)

__all__ = ["InMemoryHostProbe", "InMemoryJournal", "InMemoryTerminator", "Machine"]

_EPOCH: Final = datetime(2025, 11, 25, 10, 0, tzinfo=UTC)


@define
class Machine:
    """One instance: what outlives the agent on it."""

    instance_id: str = "i-0123456789abcdef0"
    free_disk_bytes: int = 50 * 2**30
    available_memory_bytes: int = 4 * 2**30
    booted_at: datetime = _EPOCH
    journal: str | None = None
    """The journal's text, as it stands on the disk."""
    spooled: list[LogEvent] = Factory(list)
    """The log lines on its disk that no agent has delivered."""
    installed: Release | None = None
    """What is in the runner's root."""
    prebaked: bool = False
    """It came with the machine's image, and nobody has used it."""
    registered: bool = False
    diagnostics: dict[str, bytes] = Factory(dict)
    """The runner's own logs, by name, the newest last."""
    runner_alive: set[ProcessId] = Factory(set)
    agents_alive: set[ProcessId] = Factory(set)
    processes_made: int = 0

    def new_process(self) -> ProcessId:
        """The identity of one more process."""
        self.processes_made += 1
        return ProcessId(self.processes_made, float(self.processes_made))


@define
class InMemoryHostProbe(HostProbe):
    """Measures the machine; the agent that has this probe is one of its processes."""

    machine: Machine
    _own: ProcessId = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._own = self.machine.new_process()
        self.machine.agents_alive.add(self._own)

    async def sample(self) -> HostSample:
        await asyncio.sleep(0)
        return HostSample(
            free_disk_bytes=self.machine.free_disk_bytes,
            available_memory_bytes=self.machine.available_memory_bytes,
            booted_at=self.machine.booted_at,
        )

    def is_alive(self, process: ProcessId) -> bool:
        return process in self.machine.agents_alive

    def own_process(self) -> ProcessId:
        return self._own


@define
class InMemoryJournal(Journal):
    """The journal on the machine's disk; it goes through the same JSON as a real one."""

    machine: Machine
    full: bool = False
    """The disk is full: nothing is written."""

    async def load(self) -> JournalRecord | None:
        await asyncio.sleep(0)
        return None if self.machine.journal is None else journal_from_json(self.machine.journal)

    async def save(self, record: JournalRecord) -> None:
        await asyncio.sleep(0)
        if self.full:
            raise JournalUnavailableError("the disk is full")
        self.machine.journal = journal_to_json(record)


@define
class InMemoryTerminator(Terminator):
    """EC2, for one machine."""

    machine: Machine
    denied: bool = False
    error: TerminatorError | None = None
    """What every request ends with, as long as it stands here."""
    requests: list[str] = Factory(list)
    """The instance IDs of the requests that were accepted."""
    powered_off: int = 0
    """How often the machine was told to power off."""

    async def terminate(self, instance_id: str) -> None:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        if self.denied or instance_id != self.machine.instance_id:
            raise TerminatorDeniedError(f"this machine may not terminate {instance_id}")
        self.requests.append(instance_id)

    async def power_off(self) -> None:
        await asyncio.sleep(0)
        self.powered_off += 1

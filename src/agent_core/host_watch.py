"""Holds the host against the floors: too little disk stops the job, too little memory is only told."""

import asyncio

from agent_core.deadline import within
from agent_core.errors import DeadlineError, HostUnavailableError
from agent_core.life import Life
from agent_core.model import HostSample, StopReason, StopRequest
from agent_core.policy import CALL_SECONDS, HOST_SAMPLE_SECONDS

__all__ = ["HostWatch"]


class HostWatch:
    """One for a life: low memory is told each time that it falls below the floor, not at each look."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._memory_low = False
        self._blind = False

    async def keep_looking(self) -> None:
        """Looks at once, and then for as long as it is not cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(HOST_SAMPLE_SECONDS)

    async def look(self) -> HostSample | None:
        """Measures once, and stops or warns where a floor is undercut; None: it could not be measured."""
        life = self._life
        try:
            sample = await within(CALL_SECONDS, "measuring the host", life.ports.host_probe.sample())
        except (HostUnavailableError, DeadlineError) as exc:
            if not self._blind:
                life.warn(f"the host cannot be measured: {exc}")
            self._blind = True
            return None
        self._blind = False
        self._judge(sample)
        return sample

    def _judge(self, sample: HostSample) -> None:
        limits = self._life.limits
        if sample.free_disk_bytes < limits.min_free_disk_bytes:
            detail = _low("disk", sample.free_disk_bytes, limits.min_free_disk_bytes)
            self._life.stop(StopRequest(StopReason.DISK_FLOOR, detail))
        memory_low = sample.available_memory_bytes < limits.min_available_memory_bytes
        if memory_low and not self._memory_low:
            self._life.warn(_low("memory", sample.available_memory_bytes, limits.min_available_memory_bytes))
        self._memory_low = memory_low


def _low(what: str, measured: int, floor: int) -> str:
    return f"{what} is low: {measured // 2**20} MB free, under the floor of {floor // 2**20} MB"

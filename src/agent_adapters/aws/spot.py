"""Listens for AWS taking the instance back."""

import asyncio
from collections.abc import Callable
from typing import Final

from agent_adapters.aws.metadata import InstanceMetadata, MetadataUnavailableError
from agent_adapters.threads import Lane
from agent_core.model import StopReason, StopRequest
from agent_core.ports import Warn

__all__ = ["SpotWatch"]

_POLL_SECONDS: Final = 5.0
"""AWS recommends it; a notice comes two minutes ahead."""


class SpotWatch:
    """Asks the metadata service, which pushes nothing, every 5 s."""

    def __init__(self, metadata: InstanceMetadata) -> None:
        self._metadata = metadata
        self._lane = Lane("instance metadata", MetadataUnavailableError)
        self._deaf = self._recommended = False

    async def run(self, stop: Callable[[StopRequest], None], warn: Warn) -> None:
        """Passes on the notice, by `stop`, and then returns; a rebalance recommendation is only told."""
        while True:
            if await self._look(stop, warn):
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def _look(self, stop: Callable[[StopRequest], None], warn: Warn) -> bool:
        """One look; whether the notice was there."""
        try:
            # The notice first, and acted on at once: the other path may be out of order for ever.
            if (notice := await self._lane.run(self._metadata.spot_notice)) is not None:
                detail = f"spot notice: AWS will {notice.action} the instance at {notice.at.isoformat()}"
                stop(StopRequest(StopReason.INTERRUPTED, detail, by="spot", deadline=notice.at))
                return True
            recommended = await self._lane.run(self._metadata.rebalance_recommendation)
        except Exception as exc:  # noqa: BLE001 - whatever is wrong with one look, the next one may hear
            if not self._deaf:
                warn(f"what AWS announces is not heard in full for now: {exc}")
            self._deaf = True
            return False
        self._deaf = False
        if recommended is not None and not self._recommended:
            self._recommended = True
            warn(
                f"AWS recommends to rebalance: the instance is likely to be taken back; {recommended.strip()}"
            )
        return False

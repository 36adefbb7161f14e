"""The log of an agent that has no log group."""

from collections.abc import Sequence

from agent_core.model import LogEvent
from agent_core.ports import LogSink

__all__ = ["StderrOnlyLogSink"]


class StderrOnlyLogSink(LogSink):
    """Takes every line and keeps none: the life's observer has put them on stderr, for systemd's journal."""

    async def put(self, stream: str, events: Sequence[LogEvent]) -> int:  # noqa: ARG002
        return 0

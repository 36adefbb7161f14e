"""The whole world in memory: an adapter for each port, for tests and simulations.

They keep the promises and the limits of the real services, and what they recorded stands in plain
attributes. Time is the event loop's, so in a simulated loop all of it is virtual.

A `Machine` is what survives the agent: its disk, its journal, its processes. A successor gets new
adapters of the same machine, as after a crash.
"""

from agent_adapters.memory.machine import InMemoryHostProbe, InMemoryJournal, InMemoryTerminator, Machine
from agent_adapters.memory.runner import InMemoryBinaryStore, InMemoryRunnerProcess, RunnerScript
from agent_adapters.memory.services import (
    InMemoryConfigSource,
    InMemoryDiagnosticsStore,
    InMemoryLogSink,
    InMemoryLogSpool,
    InMemoryNotifier,
)

__all__ = [
    "InMemoryBinaryStore",
    "InMemoryConfigSource",
    "InMemoryDiagnosticsStore",
    "InMemoryHostProbe",
    "InMemoryJournal",
    "InMemoryLogSink",
    "InMemoryLogSpool",
    "InMemoryNotifier",
    "InMemoryRunnerProcess",
    "InMemoryTerminator",
    "Machine",
    "RunnerScript",
]

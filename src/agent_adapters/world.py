"""A whole world in memory around one machine, for tests and simulations of agents and of fleets.

world = World(config=JobConfig(...), script=RunnerScript(job_seconds=20 * 60))
outcome = run(world.agent().run)                         # agent_core.testing.simulation.run
assert world.notifier.received[-1].status is Status.SUCCESS
"""

from collections.abc import Callable
from datetime import datetime
from random import Random

from attrs import Factory, define, field

from agent_adapters.memory import (
    InMemoryBinaryStore,
    InMemoryConfigSource,
    InMemoryDiagnosticsStore,
    InMemoryHostProbe,
    InMemoryJournal,
    InMemoryLogSink,
    InMemoryLogSpool,
    InMemoryNotifier,
    InMemoryRunnerProcess,
    InMemoryTerminator,
    Machine,
    RunnerScript,
)
from agent_core.ending import Outcome
from agent_core.events import Event
from agent_core.life import AgentOptions
from agent_core.lifecycle import Agent
from agent_core.model import JobConfig, Limits, Secret
from agent_core.ports import Ports
from agent_core.recovery import Death, reap
from agent_core.testing.simulation import wall_clock

__all__ = ["A_JOB", "World"]

_UNKNOWN = Death()


A_JOB = JobConfig(
    org="Shavakan",
    repo="my-repo",
    labels=("runs-fleet=12345",),
    jit_token=Secret("JITC_a-registration-token"),
    job_id="67890",
)
"""The config of a job like any other."""


@define(kw_only=True)
class World:
    """One machine, and the services around it; both outlive the agents on it.

    Each call of `agent` or `reap` is a new process on the machine: it has adapters of its own.
    """

    config: JobConfig | None = A_JOB
    """None: there is none yet; set `config_source.config` when it comes."""
    script: RunnerScript = Factory(RunnerScript)
    limits: Limits = Factory(Limits)
    poweroff: bool = False
    knows_itself: bool = True
    """Whether the agents know which instance they are on."""
    seed: int = 0
    now: Callable[[], datetime] = Factory(wall_clock)
    spoil: Callable[[Ports], Ports] = field(default=lambda ports: ports)
    """Wraps the adapters of each new process: for faults (`agent_core.testing.faults.faulty_ports`)."""
    machine: Machine = Factory(Machine)
    events: list[Event] = Factory(list)
    """What happened, in every life."""
    config_source: InMemoryConfigSource = field(init=False)
    binary_store: InMemoryBinaryStore = field(init=False)
    diagnostics_store: InMemoryDiagnosticsStore = field(init=False)
    log_sink: InMemoryLogSink = field(init=False)
    notifier: InMemoryNotifier = field(init=False, factory=InMemoryNotifier)
    terminator: InMemoryTerminator = field(init=False)
    runners: list[InMemoryRunnerProcess] = field(init=False, factory=list)
    """The runner as each agent had it, the latest last."""

    def __attrs_post_init__(self) -> None:
        self.config_source = InMemoryConfigSource(self.config)
        self.binary_store = InMemoryBinaryStore(self.machine)
        self.diagnostics_store = InMemoryDiagnosticsStore(self.machine)
        self.log_sink = InMemoryLogSink(self.now)
        self.terminator = InMemoryTerminator(self.machine)

    def agent(self, observer: Callable[[Event], None] | None = None) -> Agent:
        """A new agent on the machine."""
        observer = observer or self.events.append
        return Agent(self._options(), self.ports(), now=self.now, rng=self._rng(), observer=observer)

    async def reap(
        self, observer: Callable[[Event], None] | None = None, *, death: Death = _UNKNOWN
    ) -> Outcome | None:
        """A successor that finishes what the last agent left."""
        observer = observer or self.events.append
        options, ports, rng = self._options(), self.ports(), self._rng()
        return await reap(options, ports, now=self.now, rng=rng, observer=observer, death=death)

    def ports(self) -> Ports:
        """The adapters of a new process on the machine."""
        self.runners.append(InMemoryRunnerProcess(self.machine, self.script))
        honest = Ports(
            config_source=self.config_source,
            binary_store=self.binary_store,
            runner_process=self.runners[-1],
            diagnostics_store=self.diagnostics_store,
            log_sink=self.log_sink,
            log_spool=InMemoryLogSpool(machine=self.machine),
            notifier=self.notifier,
            terminator=self.terminator,
            host_probe=InMemoryHostProbe(self.machine),
            journal=InMemoryJournal(self.machine),
        )
        return self.spoil(honest)

    def crash(self) -> None:
        """The agents' processes are dead; the runner's are not."""
        self.machine.agents_alive.clear()

    def _rng(self) -> Random:
        return Random(self.seed)  # noqa: S311 - jitter, and it has to replay

    def _options(self) -> AgentOptions:
        return AgentOptions(
            instance_id=self.machine.instance_id if self.knows_itself else "",
            arch="x64",
            poweroff=self.poweroff,
            limits=self.limits,
        )

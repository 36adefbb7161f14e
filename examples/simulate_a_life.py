"""A six-hour job in virtual time, with a log sink that fails half of the time and a SIGTERM near the end.

Run it with `.venv/bin/python examples/simulate_a_life.py`.
"""

import asyncio
from random import Random

from agent_adapters.memory import RunnerScript
from agent_adapters.world import World
from agent_core.ending import Outcome
from agent_core.model import StopReason, StopRequest
from agent_core.testing.faults import Faults, faulty_ports
from agent_core.testing.simulation import run


async def live(world: World) -> Outcome:
    """One life of an agent, interrupted after 5 h 58 min."""
    agent = world.agent()
    sigterm = StopRequest(StopReason.INTERRUPTED, "interrupted by SIGTERM", by="SIGTERM")
    asyncio.get_running_loop().call_at(358 * 60, agent.stop, sigterm)
    return await agent.run()


def main() -> None:
    """Lives it, and shows what happened."""
    faults = {"log_sink": Faults(Random(7), fail=0.5)}  # noqa: S311 - a seed decides
    world = World(
        script=RunnerScript(job_seconds=6 * 60 * 60, output=("one", "two", "three")),
        spoil=lambda ports: faulty_ports(ports, faults),
        seed=7,
    )
    outcome = run(lambda: live(world), seed=7)
    for event in world.events:
        print(event)  # noqa: T201 - an example shows
    print(outcome.message, outcome.logs, faults["log_sink"].happened, sep="\n")  # noqa: T201


if __name__ == "__main__":
    main()

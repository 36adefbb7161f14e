"""How the runner introduces itself to GitHub, from the job's config. Pure."""

from typing import Final

from agent_core.life import AgentOptions
from agent_core.model import JobConfig, Registration

__all__ = ["RUNNER_NAME_LENGTH", "registration_for"]

RUNNER_NAME_LENGTH: Final = 64
"""GitHub refuses a longer name."""


def registration_for(config: JobConfig, options: AgentOptions) -> Registration:
    """The registration; the name is unique to the instance unless the config names the runner."""
    where = config.org if config.is_org else config.repo_path
    return Registration(
        url=f"{options.github_url.rstrip('/')}/{where}",
        name=config.runner_name or f"runs-fleet-{options.instance_id}"[:RUNNER_NAME_LENGTH],
        labels=config.labels,
        group=config.runner_group,
        token=config.jit_token,
        jit_config=config.jit_config,
    )

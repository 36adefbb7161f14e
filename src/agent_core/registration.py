"""What the runner is given, from the job's config: how it introduces itself, what its job finds. Pure."""

from typing import Final

from agent_core.life import AgentOptions
from agent_core.model import JobConfig, Registration, Secret

__all__ = ["RUNNER_NAME_LENGTH", "job_environment_for", "registration_for"]

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


def job_environment_for(config: JobConfig, options: AgentOptions) -> dict[str, str | Secret]:
    """Further variables for the job's steps; those that its config wants win over the operator's."""
    environment: dict[str, str | Secret] = dict(options.job_environment)
    if config.cache_url is not None:
        environment["ACTIONS_CACHE_URL"] = config.cache_url
    if config.cache_token is not None:
        environment["ACTIONS_CACHE_TOKEN"] = config.cache_token
    return environment

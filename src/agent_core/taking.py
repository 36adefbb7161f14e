"""How a life comes by its job: from the config, or not at all."""

import asyncio
from typing import Final

from attrs import evolve

from agent_core.deadline import within
from agent_core.errors import (
    ConfigAbsentError,
    ConfigExpiredError,
    ConfigUnavailableError,
    DeadlineError,
    JobAlreadyRunError,
)
from agent_core.events import JobTaken, MaxRuntimeSet
from agent_core.life import Life
from agent_core.model import JobConfig
from agent_core.policy import CALL_SECONDS, LAST_LOOK_SECONDS, config_poll_delay, is_token_expired

__all__ = ["look_for_job", "wait_for_job"]

_JOBS_REMEMBERED: Final = 100


async def wait_for_job(life: Life) -> JobConfig:
    """Waits for the config, to the standby deadline, and takes its job on.

    Raises:
        ConfigError: there is none, or none that can be run.
    """
    config = await _wait_for_config(life)
    _take(life, config)
    if config.unknown_keys:
        life.warn(f"the config has keys that mean nothing here: {', '.join(config.unknown_keys)}")
    if config.max_runtime is not None:
        life.limits = evolve(life.limits, max_runtime=config.max_runtime)
        life.emit(MaxRuntimeSet(config.max_runtime))
    if is_token_expired(config, life.now()):
        raise ConfigExpiredError(
            f"the registration token is of {config.created_at}, and GitHub takes it for one hour only: "
            "write a new config"
        )
    return config


async def look_for_job(life: Life) -> None:
    """One last look at the config of a life that comes to its end without a job.

    The queue wants to know which job will not run. There may be no config yet, or no way to it any more.
    """
    try:
        _take(life, await _fetch(life, LAST_LOOK_SECONDS))
    except Exception as exc:  # noqa: BLE001 - whatever it was, the life is at its end
        life.warn(f"no job to report on: {exc}")


async def _wait_for_config(life: Life) -> JobConfig:
    loop = asyncio.get_running_loop()
    begun, patience = loop.time(), life.limits.standby
    standby = patience.total_seconds()
    told = False
    while True:
        try:
            return await _fetch(life, CALL_SECONDS)
        except (ConfigAbsentError, ConfigUnavailableError, DeadlineError) as exc:
            waited = loop.time() - begun
            if waited >= standby:
                raise ConfigAbsentError(f"there was no config within {patience}: {exc}") from exc
            if not told:
                life.warn(f"no config yet, asked again for {patience}: {exc}")
            told = True
            await asyncio.sleep(config_poll_delay(waited, standby, life.rng))


async def _fetch(life: Life, seconds: float) -> JobConfig:
    return await within(seconds, "the config source", life.ports.config_source.fetch())


def _take(life: Life, config: JobConfig) -> None:
    """Makes the config's job this life's; from here on there is somebody to report to."""
    jobs_run = life.record.jobs_run
    if config.job_id in jobs_run:
        raise JobAlreadyRunError(
            f"job {config.job_id!r} has already run on {life.record.instance_id}: it does not run again"
        )
    life.chronicle.note(
        job_id=config.job_id,
        run_id=config.run_id,
        repo=config.repo_path,
        queue_url=config.termination_queue_url,
        runner_logs_bucket=config.runner_logs_bucket,
        runner_logs_prefix=config.runner_logs_prefix,
        jobs_run=(*jobs_run, config.job_id)[-_JOBS_REMEMBERED:],
    )
    life.delivery.open(life.record.stream)
    life.emit(JobTaken(config.job_id, config.repo_path, life.record.stream))

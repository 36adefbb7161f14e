"""PROVISIONING: the runner in its root, verified, unless the machine's image has the wanted one there."""

from typing import Final

from attrs import evolve

from agent_core.deadline import within
from agent_core.errors import BinaryUnavailableError, DeadlineError
from agent_core.events import Downloading, RunnerInPlace
from agent_core.life import Life
from agent_core.model import JobConfig, Release, ReleaseRequest
from agent_core.policy import CALL_SECONDS

__all__ = ["provision"]

_LATEST: Final = "latest"


async def provision(life: Life, config: JobConfig) -> None:
    """Leaves the runner that the config wants, or else the operator, in its root.

    Raises:
        BinaryError: it is not to be had.
    """
    store = life.ports.binary_store
    prebaked = await store.prebaked()
    version, release = await _wanted(life, config, prebaked)
    life.chronicle.note(runner_version=version)
    if release is not None:
        await store.install(release, lambda done, total: life.emit(Downloading(done, total)), life.warn)
    life.emit(RunnerInPlace(version, prebaked=release is None))
    await life.chronicle.save(installed=True)


async def _wanted(life: Life, config: JobConfig, prebaked: str | None) -> tuple[str, Release | None]:
    """The wanted version, and what to install: None if the prebaked runner is it. No question is in vain."""
    version, arch = config.runner_version or life.options.runner_version, life.options.arch
    if version == prebaked:
        return prebaked, None
    pinned = config.runner_sha256
    if pinned is not None and version != _LATEST:
        return version, Release(version=version, arch=arch, sha256=pinned)
    asking = life.ports.binary_store.resolve(ReleaseRequest(version=version, arch=arch))
    if prebaked is None or version != _LATEST:
        release = await asking
    else:
        try:
            release = await within(CALL_SECONDS, "asking for the latest runner", asking)
        except (BinaryUnavailableError, DeadlineError) as exc:
            life.warn(f"which runner is the latest is not known; the prebaked one is used: {exc}")
            return prebaked, None
    if release.version == prebaked:
        return prebaked, None
    return release.version, release if pinned is None else evolve(release, sha256=pinned)

"""Whether a run would work: each thing that it needs is looked at, no job is run, and nothing ends.

What changes: the state folder is there afterwards, and, in profile `aws`, the log group has one more event.
"""

import asyncio
from collections.abc import Callable, Coroutine, MutableMapping
from typing import Any, Final

from attrs import evolve

from agent_app.container import Container, container_of
from agent_app.doctor.checks import Checks
from agent_app.doctor.findings import Finding, failed, fine, skipped
from agent_app.exit_status import ExitStatus
from agent_app.identity import identified, metadata_of
from agent_app.settings import Loaded, Settings
from agent_core.deadline import within
from agent_core.errors import AgentError, DeadlineError

__all__ = ["examine", "finding_of"]

_SECONDS: Final = 10.0
"""For one check; those that need nothing of each other go on at the same time."""
_METADATA_SECONDS: Final = 3.0

_AWS: Final = (
    "identity", "config", "cache", "queue", "logs", "terminate", "github", "prebaked", "disk", "memory",
    "clock", "state_dir", "runner_dir", "user", "systemd",
)  # fmt: skip
_LOCAL: Final = ("job", "runner", "disk", "memory", "state_dir", "user")
_LATER: Final = frozenset({"queue", "github", "runner", "memory", "clock", "state_dir"})
"""They need what others have found, or the thread that another one works in."""
_ASKING_AWS: Final = frozenset({"config", "cache", "queue", "logs", "terminate"})
_OF_INSTANCE: Final = frozenset({"config", "logs", "terminate"})


def examine(loaded: Loaded, environ: MutableMapping[str, str]) -> list[Finding]:
    """Every check's finding, in a fixed order; each check has a bound, and none raises."""
    settings, unknown = loaded.settings, list[str]()
    if settings.profile == "aws":
        settings, unknown = identified(settings, metadata_of(environ), _METADATA_SECONDS)
    container = container_of(settings, lambda _: None, environ)
    checks = Checks(loaded, settings, unknown, container)
    return [*_of_settings(loaded), *asyncio.run(_all(checks, settings, container))]


def _of_settings(loaded: Loaded) -> list[Finding]:
    fix = "set it as this line says; `runs-fleet-agent config` shows what is set where"
    given = sum(not source.startswith("default") for source in loaded.sources.values())
    sound = [fine(f"profile {loaded.settings.profile}, {given} of {len(loaded.sources)} are set")]
    findings = [failed(error, fix) for error in loaded.errors] or sound
    return [evolve(finding, check="settings") for finding in findings]


async def _all(checks: Checks, settings: Settings, container: Container) -> list[Finding]:
    """All others, in two rounds."""
    aws = settings.profile == "aws"
    if aws and settings.aws_region is not None:
        checks.no_credentials = await _missing_credentials(container)
    names, found = (_AWS if aws else _LOCAL) + ("hooks",) * bool(settings.hooks), dict[str, Finding]()
    for later in (False, True):
        now = [name for name in names if (name in _LATER) is later]
        findings = [_one(checks, settings, name) for name in now]
        found |= zip(now, await asyncio.gather(*findings), strict=True)
    return [evolve(found[name], check=name) for name in names]


async def _missing_credentials(container: Container) -> str | None:
    try:
        looking = container.probes().missing_credentials()
        return await within(_SECONDS, "the look for AWS credentials", looking)
    except DeadlineError as exc:
        return str(exc)


async def _one(checks: Checks, settings: Settings, name: str) -> Finding:
    if name in _ASKING_AWS:
        if settings.aws_region is None:
            return skipped("the region is not known")
        if settings.instance_id is None and name in _OF_INSTANCE:
            return skipped("the instance's ID is not known")
        if checks.no_credentials is not None:
            return skipped("there are no AWS credentials")
    return await finding_of(getattr(checks, name))


async def finding_of(check: Callable[[], Coroutine[Any, Any, Finding]], seconds: float = _SECONDS) -> Finding:
    """What the check finds within its bound; never raises."""
    try:
        return await within(seconds, "the check", check())
    except DeadlineError as exc:
        fix = "let the host reach what is asked here (route, VPC endpoint, proxy); or a disk hangs"
        return failed(str(exc), fix, ExitStatus.UNAVAILABLE)
    except AgentError as exc:
        return failed(str(exc), "see to what this line says")
    except Exception as exc:  # noqa: BLE001 - one check that is at fault must not hide the others
        # Nobody knows what else such an exception's text holds.
        found = f"the check itself failed: {type(exc).__name__}"
        return failed(found, "report this as a fault of runs-fleet-agent", ExitStatus.SOFTWARE)

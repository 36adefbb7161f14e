"""The one place where the core meets its adapters: what each profile is made of."""

import os
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from platform import machine
from random import Random
from typing import Any, Final

from dependency_injector import containers, providers

from agent_adapters.accounts import runner_account, uid_of
from agent_adapters.filesystem import (
    FileBinaryStore,
    FileConfigSource,
    FileDiagnosticsStore,
    FileLogSink,
    FileNotifier,
    FileTerminator,
)
from agent_adapters.host import PsutilHostProbe
from agent_adapters.power_off_timer import PowerOffTimer
from agent_adapters.process import SubprocessRunnerProcess, runner_environment
from agent_adapters.spool import FileLogSpool
from agent_adapters.state import FileJournal, StateLock
from agent_adapters.stderr import StderrOnlyLogSink
from agent_adapters.systemd import ServiceManager
from agent_app.identity import metadata_of, spare_metadata_the_proxy
from agent_app.settings import Settings
from agent_core.errors import AgentFaultError
from agent_core.events import Event, JobStarted, Observer
from agent_core.life import AgentOptions
from agent_core.lifecycle import Agent
from agent_core.ports import Ports
from agent_core.recovery import reap

__all__ = ["Container", "container_of", "runner_arch"]

_ARCHES: Final = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
_FOR_THE_END: Final = ("sqs", "ec2")
"""Made while the job runs: what is slow, or needs memory, is done before it counts."""


def runner_arch() -> str:
    """This machine's architecture, as GitHub names it in its runner's archives."""
    return _ARCHES.get(machine().lower(), machine().lower())


def _lazy(path: str) -> Callable[..., Any]:
    """The class of that path, imported when it is first made: boto3 and httpx take a share of a boot."""

    def make(*args: Any, **kwargs: Any) -> Any:
        module, name = path.rsplit(".", 1)
        return getattr(import_module(module), name)(*args, **kwargs)

    def try_to_make(*args: Any, **kwargs: Any) -> Any:
        try:
            return make(*args, **kwargs)
        except Exception:  # noqa: BLE001 - whoever needs it is told
            return _Unmade(path, partial(make, *args, **kwargs))

    return try_to_make


class _Unmade:
    """In the place of what cannot be made, until it can: the life goes as far as it can without."""

    def __init__(self, path: str, make: Callable[[], Any]) -> None:
        self._path, self._make = path, make
        self._made: Any = None

    def __getattr__(self, name: str) -> Any:
        try:
            self._made = self._made or self._make()
        except Exception as exc:
            raise AgentFaultError(f"{self._path} cannot be made: {exc!r}") from exc
        return getattr(self._made, name)


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - the composition root is where wall time comes from


def _options(settings: Settings) -> AgentOptions:
    return AgentOptions(
        instance_id=settings.instance_id or "",
        arch=runner_arch(),
        runner_version=settings.runner_version,
        github_url=settings.github_url,
        job_environment=settings.job_variables,
        poweroff=settings.poweroff,
        limits=settings.limits,
    )


def _tracking_id(state_dir: Path) -> str:
    """One for all agents that share a journal: an agent, and the successor that it may need."""
    return sha256(os.fsencode(state_dir)).hexdigest()[:16]


def _parameter(settings: Settings) -> str:
    return settings.ssm_parameter_for(settings.instance_id or "")


def _store_of(settings: Settings) -> str:
    if settings.profile == "local":
        return "archive" if settings.runner_archive else "github"
    return "cache" if settings.config_bucket else "github"


def _sink_of(settings: Settings) -> str:
    if settings.profile == "local":
        return "files"
    return "cloudwatch" if settings.log_group else "stderr"


def _warming(clients: Any) -> Observer:
    """Has the clients for the end made when the job begins."""

    def observe(event: Event) -> None:
        if isinstance(event, JobStarted):
            clients.warm(_FOR_THE_END)

    return observe


def _in_turn(*observers: Observer) -> Observer:
    def observe(event: Event) -> None:
        for each in observers:
            each(event)

    return observe


class Container(containers.DeclarativeContainer):
    """Makes an agent, or a successor that reaps one, from settings."""

    settings = providers.Dependency(instance_of=Settings)
    environ: providers.Dependency[dict[str, str]] = providers.Dependency(instance_of=dict)
    observer: providers.Dependency[Observer] = providers.Dependency()

    profile = settings.provided.profile
    state_dir: providers.Callable[Path] = providers.Callable(Path.absolute, settings.provided.state_dir)
    runner_dir: providers.Callable[Path] = providers.Callable(Path.absolute, settings.provided.runner_dir)
    now = providers.Object(_now)
    rng = providers.Singleton(Random)
    account = providers.Singleton(runner_account, settings.provided.runner_user)
    runner_uid = providers.Callable(uid_of, account)

    # What only profile aws has

    clients = providers.Singleton(
        _lazy("agent_adapters.aws.clients.AwsClients"), settings.provided.aws_region
    )
    metadata = providers.Singleton(metadata_of, environ)
    spot_watch = providers.Singleton(_lazy("agent_adapters.aws.spot.SpotWatch"), metadata)
    probes = providers.Singleton(_lazy("agent_adapters.aws.probes.AwsProbes"), clients, now)

    # The ports

    github = providers.Singleton(
        _lazy("agent_adapters.github.GitHubBinaryStore"),
        settings.provided.github_api_url,
        settings.provided.github_url,
        runner_dir,
        replace=providers.Callable("aws".__eq__, profile),
        account=account,
    )
    config_source = providers.Selector(
        profile,
        aws=providers.Singleton(
            _lazy("agent_adapters.aws.config_source.SsmConfigSource"),
            clients,
            providers.Callable(_parameter, settings),
        ),
        local=providers.Singleton(FileConfigSource, settings.provided.job),
    )
    binary_store = providers.Selector(
        providers.Callable(_store_of, settings),
        cache=providers.Singleton(
            _lazy("agent_adapters.aws.binary_store.S3BinaryStore"),
            clients,
            settings.provided.config_bucket,
            github,
            runner_dir,
            replace=True,
        ),
        github=github,
        archive=providers.Singleton(FileBinaryStore, settings.provided.runner_archive, runner_dir),
    )
    diagnostics_store = providers.Selector(
        profile,
        aws=providers.Singleton(
            _lazy("agent_adapters.aws.diagnostics_store.S3DiagnosticsStore"), clients, runner_dir, runner_uid
        ),
        local=providers.Singleton(
            FileDiagnosticsStore, state_dir.provided.joinpath.call("buckets"), runner_dir, runner_uid
        ),
    )
    log_sink = providers.Selector(
        providers.Callable(_sink_of, settings),
        cloudwatch=providers.Singleton(
            _lazy("agent_adapters.aws.log_sink.CloudWatchLogSink"), clients, settings.provided.log_group
        ),
        stderr=providers.Singleton(StderrOnlyLogSink),
        files=providers.Singleton(FileLogSink, state_dir.provided.joinpath.call("logs")),
    )
    notifier = providers.Selector(
        profile,
        aws=providers.Singleton(
            _lazy("agent_adapters.aws.notifier.SqsNotifier"),
            clients,
            settings.provided.termination_queue_url,
        ),
        local=providers.Singleton(FileNotifier, state_dir.provided.joinpath.call("notifications.jsonl")),
    )
    terminator = providers.Selector(
        profile,
        aws=providers.Singleton(_lazy("agent_adapters.aws.terminator.Ec2Terminator"), clients),
        local=providers.Singleton(
            FileTerminator, state_dir.provided.joinpath.call("terminations.jsonl"), now
        ),
    )
    runner_process = providers.Singleton(
        SubprocessRunnerProcess,
        runner_dir,
        providers.Callable(runner_environment, environ, account),
        tracking_id=providers.Callable(_tracking_id, state_dir),
        account=account,
    )
    log_spool = providers.Singleton(FileLogSpool, state_dir.provided.joinpath.call("log-spool"))
    host_probe = providers.Singleton(PsutilHostProbe, runner_dir)
    journal = providers.Singleton(FileJournal, state_dir.provided.joinpath.call("journal.json"))

    state_lock = providers.Singleton(StateLock, state_dir.provided.joinpath.call("agent.lock"))

    ports = providers.Singleton(
        Ports,
        config_source=config_source,
        binary_store=binary_store,
        runner_process=runner_process,
        diagnostics_store=diagnostics_store,
        log_sink=log_sink,
        log_spool=log_spool,
        notifier=notifier,
        terminator=terminator,
        host_probe=host_probe,
        journal=journal,
    )
    options = providers.Callable(_options, settings)
    service_manager = providers.Singleton(ServiceManager, environ)
    power_off_timer = providers.Singleton(PowerOffTimer, environ, settings.provided.limits, observer)
    observers = providers.Callable(_in_turn, service_manager, observer)
    warming = providers.Selector(
        profile,
        aws=providers.Callable(_in_turn, providers.Callable(_warming, clients), power_off_timer, observers),
        local=observers,
    )
    agent = providers.Singleton(Agent, options, ports, now=now, rng=rng, observer=warming)
    reaping = providers.Callable(reap, options, ports, now=now, rng=rng, observer=observers)


def container_of(settings: Settings, observer: Observer, environ: MutableMapping[str, str]) -> Container:
    """The container of this process, whose environment that is; it is left as this process needs it."""
    inherited = dict(environ)
    if settings.profile == "aws":
        spare_metadata_the_proxy(environ)
    return Container(settings=settings, environ=inherited, observer=observer)

"""The checks of `doctor`, by their names: what each asks, and what it makes of the answer."""

import os
import re
import stat
from functools import partial
from pathlib import Path
from typing import Final

from attrs import evolve

from agent_adapters.aws.probes import Probed, Verdict
from agent_adapters.host import why_unwritable
from agent_adapters.threads import aside
from agent_adapters.web import NotFoundError
from agent_app.container import Container, runner_arch
from agent_app.doctor.findings import Finding, Status, failed, fine, skipped, warning
from agent_app.doctor.host import (
    ahead_of,
    of_clock,
    of_disk,
    of_init,
    of_memory,
    of_user,
)
from agent_app.exit_status import ExitStatus
from agent_app.settings import Loaded, Settings
from agent_core.errors import (
    BinaryUnavailableError,
    ConfigAbsentError,
    ConfigDeniedError,
    ConfigError,
    ConfigMalformedError,
    LogSinkDeniedError,
    LogSinkError,
)
from agent_core.model import JobConfig, LogEvent, Release, ReleaseRequest
from agent_core.policy import is_token_expired
from agent_core.recovery import Remains, judge

__all__ = ["Checks", "queue_arn"]

_LATEST: Final = "latest"
_HOOKS: Final = frozenset({".sh", ".ps1", ".js"})
"""What GitHub's runner can run."""
_QUEUE_URL: Final = re.compile(r"https?://sqs\.([a-z0-9-]+)\.amazonaws\.com/(\d+)/([\w.-]+)/?", re.ASCII)
_TERMINATE_STATEMENT: Final = (
    '{"Effect": "Allow", "Action": "ec2:TerminateInstances", "Resource": "*", '
    '"Condition": {"StringEquals": {"aws:ARN": "${ec2:SourceInstanceARN}"}}}'
)


class Checks:
    """Each check may raise what its ports raise; some go by what others have found before.

    Args:
        loaded: the settings as they were set.
        settings: the same, with what the metadata service knows.
        unknown: a line for each thing that it did not tell.
        container: made of `settings`.
    """

    def __init__(self, loaded: Loaded, settings: Settings, unknown: list[str], container: Container) -> None:
        self._loaded, self._settings, self._unknown, self._container = loaded, settings, unknown, container
        self.job_config: JobConfig | None = None
        """What `config` or `job` found."""
        self.prebaked_version: str | None = None
        self.no_credentials: str | None = None
        """Why AWS cannot be asked anything."""

    # Who and where

    async def identity(self) -> Finding:
        if self._unknown:
            return failed("; ".join(self._unknown), "set it, or let the host reach the metadata service")
        where = ", ".join(
            f"{getattr(self._settings, name)} ({self._origin(name)})"
            for name in ("instance_id", "aws_region")
        )
        if self.no_credentials:
            return failed(f"{where}; {self.no_credentials}", "attach an instance profile with a role")
        caller = await self._container.probes().caller()
        if caller.verdict is Verdict.ALLOWED:
            return fine(f"{where}, {caller.words}")
        if caller.verdict is Verdict.REJECTED:
            found = f"{where}; AWS does not take the credentials: {caller.words}"
            fix = (
                "renew them; an instance with a role needs no AWS_ACCESS_KEY_ID; see that the clock is right"
            )
            return failed(found, fix, ExitStatus.UNAVAILABLE)
        return fine(f"{where}; AWS does not say who we are: {caller.words}")

    def _origin(self, name: str) -> str:
        source = self._loaded.sources[name]
        return "metadata service" if source == "default" else source

    # The job

    async def config(self) -> Finding:
        name = self._settings.ssm_parameter_for(self._settings.instance_id or "")
        # With the sibling that may hold the secrets.
        both = f"{name.lstrip('/').rpartition('/')[0]}/*"
        allow = (
            f"allow ssm:GetParameter on arn:aws:ssm:{self._settings.aws_region}:*:parameter/{both}, "
            "and kms:Decrypt on the key of a SecureString"
        )
        return await self._of_config(f"parameter {name}", allow, self._reach("ssm"))

    async def job(self) -> Finding:
        if self._settings.job is None:
            return skipped("--job is missing")
        where = str(self._settings.job)
        finding = await self._of_config(where, "let the agent's user read it", "see to the disk")
        if self.job_config is None and finding.status is Status.OK:
            return warning(finding.found, "see that --job names the file that is meant")
        return finding

    async def _of_config(self, where: str, allow: str, reach: str) -> Finding:
        try:
            self.job_config = config = await self._container.config_source().fetch()
        except ConfigAbsentError as exc:
            minutes = self._settings.standby_minutes.total_seconds() / 60
            return fine(
                f"not there yet, a run waits {minutes:g} min for it (RUNS_FLEET_STANDBY_MINUTES): {exc}"
            )
        except ConfigMalformedError as exc:
            return failed(f"{where}: {exc}", "write it anew, as docs/wire.md has it")
        except ConfigError as exc:
            fix = allow if isinstance(exc, ConfigDeniedError) else reach
            return failed(str(exc), fix, ExitStatus.UNAVAILABLE)
        if is_token_expired(config, self._container.now()()):
            found = f"{where}: the token is of {config.created_at}, and GitHub takes it for one hour only"
            return failed(found, "write a new config, with a new token", ExitStatus.UNAVAILABLE)
        return fine(f"{where}: job {config.job_id or 'without an ID'} of {config.repo_path}")

    # What AWS allows

    async def cache(self) -> Finding:
        bucket = self._settings.config_bucket
        if bucket is None:
            return fine("no cache: each boot asks GitHub (RUNS_FLEET_CONFIG_BUCKET is not set)")
        arn = f"arn:aws:s3:::{bucket}"
        objects, listing = f"s3:GetObject and s3:PutObject on {arn}/runners/*", f"s3:ListBucket on {arn}"
        probed = await self._container.probes().bucket(bucket)
        if probed.verdict is Verdict.UNLISTED:
            found = f"bucket {bucket} may be read, but S3 denies what it does not have: {probed.words}"
            return warning(found, f"allow {listing}")
        if probed.verdict is Verdict.DENIED:
            hint = "S3 may say so also where nothing but s3:ListBucket is missing"
            probed = evolve(probed, words=f"{probed.words} ({hint})")
        named = evolve(probed, words=f"bucket {bucket}: {probed.words}")
        good, allow = f"bucket {bucket} may be read", f"allow {objects}, and {listing}"
        return _of_probe(named, good, allow, "RUNS_FLEET_CONFIG_BUCKET", self._reach("s3"))

    async def queue(self) -> Finding:
        url, place = self._settings.termination_queue_url, "RUNS_FLEET_TERMINATION_QUEUE_URL"
        of_job = None if self.job_config is None else self.job_config.termination_queue_url
        if of_job is not None:
            url, place = of_job, "termination_queue_url in the config"
        if url is None:
            return warning(f"{place} is not set: only jobs whose config names a queue report", f"set {place}")
        probed = await self._container.probes().queue(url)
        good = f"messages may be sent to {url}{probed.words and f' ({probed.words})'}"
        named = evolve(probed, words=f"queue {url}: {probed.words}")
        return _of_probe(named, good, f"allow sqs:SendMessage on {queue_arn(url)}", place, self._reach("sqs"))

    async def logs(self) -> Finding:
        group, stream = self._settings.log_group, f"{self._settings.instance_id}/doctor"
        if group is None:
            found = "RUNS_FLEET_LOG_GROUP is not set: what a job prints goes to stderr only"
            return warning(found, "set RUNS_FLEET_LOG_GROUP")
        milliseconds = int(self._container.now()().timestamp() * 1000)
        event = LogEvent(milliseconds, "runs-fleet-agent: doctor has looked, logs can be written")
        try:
            rejected = await self._container.log_sink().put(stream, [event])
        except LogSinkDeniedError as exc:
            arn = f"arn:aws:logs:{self._settings.aws_region}:*:log-group:{group}"
            fix = f"create the group, and allow logs:CreateLogStream and logs:PutLogEvents on {arn}:*"
            return failed(str(exc), fix, ExitStatus.UNAVAILABLE)
        except LogSinkError as exc:
            return failed(str(exc), self._reach("logs"), ExitStatus.UNAVAILABLE)
        if rejected:
            return warning(f"log group {group} rejected an event of this moment", "set the clock")
        return fine(f"an event was written to log group {group}, stream {stream}")

    async def terminate(self) -> Finding:
        instance_id = self._settings.instance_id or ""
        probed = await self._container.probes().termination(instance_id)
        good, allow = (
            f"{instance_id} may terminate itself",
            f"add to the role's policy: {_TERMINATE_STATEMENT}",
        )
        return _of_probe(probed, good, allow, "RUNS_FLEET_INSTANCE_ID", self._reach("ec2"))

    def _reach(self, service: str) -> str:
        region = self._settings.aws_region
        return f"let the host reach the {service} endpoint of {region} (route, VPC endpoint, proxy)"

    # The runner

    async def prebaked(self) -> Finding:
        self.prebaked_version = await self._container.binary_store().prebaked()
        root = self._container.runner_dir()
        if self.prebaked_version is not None:
            return fine(f"runner {self.prebaked_version} in {root}")
        why = (
            "what is there is not an unused runner"
            if await aside("doctor", root.exists)
            else "there is nothing"
        )
        return fine(f"none in {root} ({why}): a run puts its own there")

    async def runner(self) -> Finding:
        if self._settings.runner_archive is None:
            return await self.github()
        try:
            return fine(_shown(await self._resolved()))
        except BinaryUnavailableError as exc:
            return failed(str(exc), "name a runner tarball, or a folder of them, in --runner-archive")

    async def github(self) -> Finding:
        wanted = self._wanted_version()
        pinned = None if self.job_config is None else self.job_config.runner_sha256
        bases = f"{self._settings.github_api_url} and {self._settings.github_url}"
        reach = f"let the host reach {bases}, or pin runner_version and runner_sha256 in the config"
        try:
            release = await self._resolved()
        except BinaryUnavailableError as exc:
            if self.prebaked_version is not None and wanted in {_LATEST, self.prebaked_version}:
                return warning(f"the prebaked runner {self.prebaked_version} would be used: {exc}", reach)
            if pinned is not None and wanted != _LATEST:
                return warning(f"the config pins runner {wanted} and its digest: {exc}", reach)
            if isinstance(exc, NotFoundError) and wanted != _LATEST:
                return failed(str(exc), "name a version that there is, or latest (RUNS_FLEET_RUNNER_VERSION)")
            return failed(str(exc), reach, ExitStatus.UNAVAILABLE)
        if pinned not in {None, release.sha256}:
            found = f"{_shown(release)}, but the config pins {pinned}"
            return failed(found, "correct runner_sha256 in the config, or leave it out")
        return fine(_shown(release))

    async def _resolved(self) -> Release:
        request = ReleaseRequest(version=self._wanted_version(), arch=runner_arch())
        release: Release = await self._container.binary_store().resolve(request)
        return release

    def _wanted_version(self) -> str:
        of_job = None if self.job_config is None else self.job_config.runner_version
        return of_job or self._settings.runner_version

    # The host

    async def disk(self) -> Finding:
        sample = await self._container.host_probe().sample()
        floor = self._settings.limits.min_free_disk_bytes
        return of_disk(sample.free_disk_bytes, floor, self._container.runner_dir())

    async def memory(self) -> Finding:
        sample = await self._container.host_probe().sample()
        return of_memory(sample.available_memory_bytes, self._settings.limits.min_available_memory_bytes)

    async def clock(self) -> Finding:
        ahead, now = self._container.probes().ahead, self._container.now()
        if ahead is not None:
            return of_clock(ahead, "AWS's")
        return of_clock(await aside("doctor", partial(ahead_of, self._settings.github_url, now)), "GitHub's")

    async def state_dir(self) -> Finding:
        folder, fix = self._container.state_dir(), "name another folder in RUNS_FLEET_STATE_DIR"
        if why := await aside("doctor", partial(why_unwritable, folder, make=True)):
            return failed(why, f"{fix}, or let the agent's user write there")
        record = await self._container.journal().load()
        remains = judge(record, self._settings.instance_id or "", self._container.host_probe())
        if remains in {Remains.ALIVE, Remains.UNFINISHED}:
            found = f"{folder} has the journal of an earlier agent: {remains.value}"
            return failed(found, "let it end" if remains is Remains.ALIVE else "run `runs-fleet-agent reap`")
        job = None if self.job_config is None else self.job_config.job_id
        if record is not None and remains is not Remains.FOREIGN and job in record.jobs_run:
            return failed(
                f"{folder}: job {job or 'without an ID'} has run here already", f"another job, or {fix}"
            )
        return fine(f"{folder} can be written")

    async def runner_dir(self) -> Finding:
        parent = self._container.runner_dir().parent
        if why := await aside("doctor", partial(why_unwritable, parent)):
            return failed(
                why, "name another folder in RUNS_FLEET_RUNNER_DIR, or let the agent's user write there"
            )
        return fine(f"{parent} can be written")

    async def user(self) -> Finding:
        wanted, root = self._settings.runner_user, self._container.runner_dir()
        return await aside("doctor", partial(of_user, wanted, root))

    async def hooks(self) -> Finding:
        hooks = self._settings.hooks
        whys = await aside("doctor", lambda: {moment: _why_no_hook(path) for moment, path in hooks.items()})
        wrong = {f"RUNS_FLEET_{moment}_HOOK": why for moment, why in whys.items() if why}
        if wrong:
            fix = f"put a script there that the runner's user can read, or correct {' and '.join(wrong)}"
            return failed("; ".join(wrong.values()), fix)
        return fine(f"around the job: {', '.join(map(str, hooks.values()))}")

    async def systemd(self) -> Finding:
        init = await aside("doctor", lambda: Path("/proc/1/comm").read_text("utf-8", "replace").strip())
        return of_init(init, poweroff=self._settings.poweroff)


def _why_no_hook(path: Path) -> str | None:
    """Why the runner could not run this script; None: it could. It starts a shell that reads it."""
    try:
        mode = path.stat().st_mode
    except OSError as exc:
        return f"{path}: {exc.strerror}"
    if not stat.S_ISREG(mode):
        return f"{path} is not a file"
    if path.suffix not in _HOOKS:
        return f"{path} does not end in {', '.join(sorted(_HOOKS))}: the runner would refuse it"
    return None if os.access(path, os.R_OK) else f"{path} cannot be read"


def _of_probe(probed: Probed, good: str, allow: str, place: str, reach: str) -> Finding:
    match probed.verdict:
        case Verdict.ALLOWED:
            return fine(good)
        case Verdict.MISSING:
            return failed(probed.words, f"create it, or correct {place}")
        case Verdict.DENIED:
            return failed(probed.words, allow, ExitStatus.UNAVAILABLE)
        case _:
            return failed(probed.words, reach, ExitStatus.UNAVAILABLE)


def queue_arn(url: str) -> str:
    """The ARN that a queue of AWS's has by its URL; of another URL, the URL."""
    named = _QUEUE_URL.fullmatch(url)
    return f"arn:aws:sqs:{named[1]}:{named[2]}:{named[3]}" if named else url


def _shown(release: Release) -> str:
    return f"runner {release.version} for {release.arch}, SHA-256 {release.sha256}"

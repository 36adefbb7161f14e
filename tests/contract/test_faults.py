"""Every adapter of AWS and GitHub, with everything going wrong that HTTP can, and with faults of its port."""

from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any, Final

import pytest
from attrs import frozen

from agent_core.deadline import within
from agent_core.errors import (
    AgentError,
    BinaryError,
    ConfigError,
    DeadlineError,
    DiagnosticsError,
    LogSinkError,
    NotifierError,
    TerminatorError,
)
from agent_core.model import LogDestination, LogEvent, Release, ReleaseRequest, Status, StatusMessage
from agent_core.testing.contracts import runner_archive
from agent_core.testing.contracts.contract import eventually
from agent_core.testing.faults import FAILURES, FaultKind, Faults, UnpromisedError, faulty
from support.cloud import INSTANCE_ID, cloud_container
from support.faults import Answer, Hang, Lose, Refuse, Slow, Truncate, throttled, wall_clock

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from support.aws import Aws
    from support.faults import Fault
    from support.github import GitHub

ARCHIVE: Final = runner_archive({"run.sh": b"echo\n", "noise": Random(0).randbytes(200_000)})
RELEASE: Final = Release(version="2.336.0", arch="x64", sha256=hashlib.sha256(ARCHIVE).hexdigest())
KEY: Final = "runners/2.336.0/x64/actions-runner-2.336.0.tar.gz"
GROUP: Final = "/runs-fleet/runners"
CALL_SECONDS: Final = 1.5
"""The core's bound of one call, made short."""


INSTANCES: Final[list[str]] = []
"""The one that there is to terminate."""
BUCKETS: Final[list[str]] = []
"""The one that there is to write to."""


@frozen
class Case:
    """One method of one adapter."""

    port: str
    method: str
    error: type[AgentError]
    operation: str
    """What goes wrong."""
    call: Callable[[Any], Coroutine[Any, Any, Any]]


def message() -> StatusMessage:
    return StatusMessage(instance_id=INSTANCE_ID, job_id="1", status=Status.SUCCESS, message_id="m")


def event() -> LogEvent:
    return LogEvent(int(wall_clock().timestamp() * 1000), "a line")


def ignore(*_: object) -> None:
    pass


CASES: Final = [
    Case("config_source", "fetch", ConfigError, "ssm:GetParameter", lambda port: port.fetch()),
    Case(
        "diagnostics_store",
        "upload",
        DiagnosticsError,
        "s3:PutObject",
        lambda port: port.upload(LogDestination(BUCKETS[-1], "logs/"), ignore),
    ),
    Case("log_sink", "put", LogSinkError, "logs:PutLogEvents", lambda port: port.put("i/1", [event()])),
    Case("log_sink", "put", LogSinkError, "logs:CreateLogStream", lambda port: port.put("i/1", [event()])),
    Case("notifier", "send", NotifierError, "sqs:SendMessage", lambda port: port.send(message(), None)),
    Case(
        "terminator",
        "terminate",
        TerminatorError,
        "ec2:TerminateInstances",
        lambda port: port.terminate(INSTANCES[-1]),
    ),
    Case(
        "binary_store",
        "resolve",
        BinaryError,
        "github:latest",
        lambda port: port.resolve(ReleaseRequest(version="latest", arch="x64")),
    ),
    Case(
        "binary_store",
        "install",
        BinaryError,
        "s3:GetObject",
        lambda port: port.install(RELEASE, ignore, ignore),
    ),
    Case(
        "github",
        "install",
        BinaryError,
        "github:download",
        lambda port: port.install(RELEASE, ignore, ignore),
    ),
    Case(
        "github",
        "install",
        BinaryError,
        "github:redirect",
        lambda port: port.install(RELEASE, ignore, ignore),
    ),
]
NAMES: Final = [f"{case.port}.{case.method} at {case.operation}" for case in CASES]


class Bench:
    """Everything that the calls need, in place, and a container that makes the adapters."""

    def __init__(self, folder: Path, aws: Aws, github: GitHub) -> None:
        self.aws, self.github, self.diag = aws, github, folder / "machine" / "runner" / "_diag"
        INSTANCES[:] = [aws.instance()]
        BUCKETS[:] = [aws.bucket()]
        self.bucket, queue_url = BUCKETS[-1], aws.queue()
        aws.log_group(GROUP)
        config = {"org": "o", "repo": "r", "labels": ["l"], "jit_token": "a-token", "jit_config": "aml0"}
        aws.put_parameter(f"/runs-fleet/runners/{INSTANCE_ID}/config", json.dumps(config))
        github.publish("2.336.0", "x64", ARCHIVE)
        aws.client("s3").put_object(Bucket=self.bucket, Key=KEY, Body=ARCHIVE)
        self.container = cloud_container(
            folder,
            log_group=GROUP,
            termination_queue_url=queue_url,
            config_bucket=self.bucket,
            github_api_url=github.api_url,
            github_url=github.url,
        )

    def port(self, case: Case) -> Any:
        if case.port == "diagnostics_store":
            self.diag.mkdir(parents=True)
            (self.diag / "Runner_1.log").write_bytes(b"a line\n")
        return getattr(self.container, case.port)()

    def plan(self, case: Case, fault: Fault, times: int | None = None) -> None:
        (self.github if case.operation.startswith("github") else self.aws).faults.plan(
            case.operation, fault, times
        )

    def heal(self) -> None:
        self.aws.faults.heal()
        self.github.faults.heal()


@pytest.fixture
def bench(tmp_path: Path, aws: Aws, github: GitHub, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr("agent_adapters.web._PAUSE", lambda _: 0.0)
    return Bench(tmp_path, aws, github)


FAULTS: Final[dict[str, Fault | None]] = {
    "refused connections": Refuse(),
    "lost answers": Lose(),
    "500": Answer(500),
    "503": Answer(503, "ServiceUnavailable"),
    "throttling": None,
    "hangs": Hang(),
    "truncated bodies": Truncate(5),
    "slow bytes": Slow(10),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_real_faults(bench: Bench, case: Case, fault: str) -> None:
    """Whatever HTTP does, the adapter keeps to the errors of its port, and works when it is over."""
    service = case.operation.partition(":")[0]
    planned = FAULTS[fault] or (Answer(429) if service == "github" else throttled(service))

    async def run() -> None:
        port = bench.port(case)
        bench.plan(case, planned)
        for _ in range(2):
            try:
                await within(CALL_SECONDS, case.method, case.call(port))
            except (case.error, DeadlineError):
                pass
            else:
                break  # it had its effect, or another source
        bench.heal()
        unavailable = FAILURES[case.method]
        if case.method != "install":
            await eventually(unavailable, lambda: case.call(port))

    asyncio.run(run())


@pytest.mark.parametrize("kind", [FaultKind.FAIL, FaultKind.BREAK, FaultKind.DELAY, FaultKind.HANG])
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_faults_of_the_port(bench: Bench, case: Case, kind: FaultKind) -> None:
    """The wrapper that simulations put around fakes fits the real adapters, and is over when it is over."""
    share = {FaultKind.BREAK: "break_"}.get(kind, kind.name.lower())
    shares: dict[str, Any] = {share: 1.0}
    faults = Faults(Random(1), most=1, delay_seconds=0.01, **shares)

    async def run() -> None:
        port = faulty(bench.port(case), faults)
        with suppress(case.error, DeadlineError, UnpromisedError):
            await within(0.5, case.method, case.call(port))
        assert faults.happened == [(case.method, kind)]
        if case.method != "install":
            await eventually(FAILURES[case.method], lambda: case.call(port))

    asyncio.run(run())

"""What becomes of the runner's own logs, over a store that is late, gone, or against it."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve

from agent_adapters.memory import RunnerScript
from agent_adapters.world import A_JOB, World
from agent_core.errors import DiagnosticsDeniedError, DiagnosticsUnavailableError
from agent_core.events import RunnerLogsUploaded, TerminationRequested
from agent_core.model import (
    JournalRecord,
    LogDestination,
    LogUpload,
    StatusMessage,
    StopReason,
    StopRequest,
    Uploaded,
)
from agent_core.phases import Phase
from agent_core.testing.simulation import EPOCH, SimulatedCrashError, run

CONFIG = evolve(A_JOB, run_id="12345", runner_logs_bucket="a-bucket")
PREFIX = "runner-logs/12345/67890/i-0123456789abcdef0/"
LOGS = {"Runner_1.log": b"the listener's", "Worker_1.log": b"the worker's"}


def world_with(config: Any = CONFIG, **options: Any) -> World:
    world = World(config=config, **options)
    world.machine.diagnostics = dict(LOGS)
    return world


def live(world: World) -> StatusMessage:
    run(lambda: world.agent().run())
    return world.notifier.received[-1]


def test_they_are_uploaded() -> None:
    """Under the config's prefix, the run's, the job's and the instance's ID; the message says so."""
    world = world_with()

    assert live(world).log_upload is LogUpload.UPLOADED
    assert set(world.diagnostics_store.uploads) == {("a-bucket", f"{PREFIX}{name}.gz") for name in LOGS}
    assert any(isinstance(event, RunnerLogsUploaded) for event in world.events)
    lines = world.log_sink.lines("i-0123456789abcdef0/67890")
    assert f"runs-fleet-agent: uploaded 2 logs of the runner to a-bucket/{PREFIX}" in lines


def test_nobody_wants_them() -> None:
    """Without a bucket in the config nothing is uploaded, nor said of it."""
    world = world_with(A_JOB)

    assert live(world).log_upload is None
    assert not world.diagnostics_store.uploads


def test_there_are_none() -> None:
    """Nothing is said of nothing."""
    world = world_with()
    world.machine.diagnostics.clear()

    assert live(world).log_upload is None


@pytest.mark.parametrize(
    "script",
    [
        RunnerScript(),
        RunnerScript(crash_after=1.0),
        RunnerScript(job_seconds=None),
        RunnerScript(assign_after=None),
        RunnerScript(refuse_registration="NotFound"),
    ],
)
def test_they_are_uploaded_however_it_ends(script: RunnerScript) -> None:
    """On every path on which a runner was started, or tried to register."""
    world = world_with(script=script)

    assert live(world).log_upload is LogUpload.UPLOADED


def test_a_successor_uploads_them() -> None:
    """The journal tells where they go."""
    world = world_with(script=RunnerScript(job_seconds=None))
    with pytest.raises(SimulatedCrashError):
        run(lambda: world.agent().run(), crash_at=120)
    world.crash()
    assert not world.diagnostics_store.uploads

    run(world.reap)

    assert world.notifier.received[-1].log_upload is LogUpload.UPLOADED


def test_before_there_is_a_runner_there_is_nothing() -> None:
    """What another one left in the root is not this job's."""
    world = world_with()
    world.binary_store.tampered = b"not the runner"

    assert live(world).log_upload is None
    assert not world.diagnostics_store.uploads


@pytest.mark.parametrize(
    ("error", "outcome", "calls"),
    [
        (DiagnosticsDeniedError("no"), LogUpload.DENIED, 1),
        (DiagnosticsUnavailableError("not now"), LogUpload.FAILED, 3),
        (ZeroDivisionError("a fault"), LogUpload.FAILED, 1),
    ],
)
def test_a_store_that_fails(
    error: Exception, outcome: LogUpload, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is denied is not tried again; whatever it is, the message goes."""
    world, tried = world_with(), []

    async def upload(*_: Any) -> Uploaded:
        tried.append(error)
        raise error

    monkeypatch.setattr(world.diagnostics_store, "upload", upload)

    assert live(world).log_upload is outcome
    assert len(tried) == calls


def test_a_store_that_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second try is as good as a first one."""
    world = world_with()
    real, tries = world.diagnostics_store.upload, []

    async def upload(*arguments: Any) -> Uploaded:
        tries.append(arguments)
        if len(tries) == 1:
            raise DiagnosticsUnavailableError("not now")
        return await real(*arguments)

    monkeypatch.setattr(world.diagnostics_store, "upload", upload)

    assert live(world).log_upload is LogUpload.UPLOADED


@pytest.mark.parametrize(("moves", "seconds"), [(False, 3), (True, 30)])
def test_a_store_that_hangs(monkeypatch: pytest.MonkeyPatch, *, moves: bool, seconds: float) -> None:
    """It is given up when nothing moves, and after half a minute in any case."""
    world, times = world_with(), []

    async def upload(_: LogDestination, progress: Any) -> Uploaded:
        times.append(asyncio.get_running_loop().time())
        try:
            for number in range(10_000):
                await asyncio.sleep(1)
                progress(number if moves else 0, None)
        finally:
            times.append(asyncio.get_running_loop().time())
        raise AssertionError

    monkeypatch.setattr(world.diagnostics_store, "upload", upload)

    assert live(world).log_upload is LogUpload.FAILED
    begun, ended = times
    assert ended - begun == pytest.approx(seconds, abs=1.1)


def test_what_was_too_much_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of them are better than none."""
    world = world_with()

    async def upload(*_: Any) -> Uploaded:
        return Uploaded(files=1, bytes=100, left_out=2)

    monkeypatch.setattr(world.diagnostics_store, "upload", upload)

    assert live(world).log_upload is LogUpload.PARTIAL
    assert "2 left out or cut" in "\n".join(map(str, world.events))


def test_a_near_end_leaves_no_time_for_them() -> None:
    """The message and the request to terminate come first, and both in time."""
    world = world_with(script=RunnerScript(job_seconds=None, cancel_seconds=None))
    notice = StopRequest(
        StopReason.INTERRUPTED, "spot notice", by="spot", deadline=EPOCH + timedelta(seconds=50)
    )

    async def main() -> None:
        agent = world.agent()
        asyncio.get_running_loop().call_at(26, agent.stop, notice)
        await agent.run()
        assert asyncio.get_running_loop().time() <= 35

    run(main)

    assert world.notifier.received[-1].log_upload is LogUpload.SKIPPED
    assert any(isinstance(event, TerminationRequested) for event in world.events)


@pytest.mark.parametrize(
    ("run_id", "job_id", "prefix", "expected"),
    [
        ("1", "2", None, "runner-logs/1/2/i-1/"),
        (None, "2", None, "runner-logs/unknown-run/2/i-1/"),
        ("1", "", None, "runner-logs/1/unknown-job/i-1/"),
        ("1", "2", "mine/", "mine/1/2/i-1/"),
    ],
)
def test_where_they_go(run_id: str | None, job_id: str, prefix: str | None, expected: str) -> None:
    """As the wire contract has it."""
    record = JournalRecord(
        instance_id="i-1",
        agent_version="1",
        phase=Phase.RUNNING,
        run_id=run_id,
        job_id=job_id,
        runner_logs_bucket="b",
        runner_logs_prefix=prefix,
    )

    assert record.log_destination == LogDestination("b", expected)


def test_no_id_leads_out_of_the_prefix() -> None:
    """IDs are somebody else's."""
    record = JournalRecord(
        instance_id="i-1",
        agent_version="1",
        phase=Phase.RUNNING,
        run_id="../..",
        job_id="a/b",
        runner_logs_bucket="b",
        runner_logs_prefix="mine/",
    )

    destination = record.log_destination
    assert destination is not None
    assert destination.prefix.count("/") == 4
    assert ".." not in destination.prefix.split("/")

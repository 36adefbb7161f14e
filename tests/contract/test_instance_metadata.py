"""What the agent asks of the instance metadata service, and what it makes of the answers."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from agent_adapters.aws.metadata import InstanceMetadata, MetadataUnavailableError, SpotNotice
from agent_adapters.aws.spot import SpotWatch
from agent_app.identity import identified, metadata_of
from agent_app.settings import Settings
from agent_core.model import StopReason, StopRequest
from agent_core.testing.contracts.contract import until
from support.faults import Answer, Hang, Refuse, Truncate

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from support.faults import Fault
    from support.imds import InstanceMetadata as Imds

AT = datetime(2026, 11, 21, 12, 2, tzinfo=UTC)


@pytest.fixture
def metadata(imds: Imds) -> InstanceMetadata:
    return InstanceMetadata(imds.url)


def test_identity(imds: Imds, metadata: InstanceMetadata) -> None:
    """One token is enough for several questions."""
    assert (metadata.instance_id(), metadata.region()) == (imds.instance_id, "eu-west-1")
    assert [call.operation for call in imds.calls].count("imds:token") == 1


def test_a_token_that_has_ended_is_renewed(imds: Imds, metadata: InstanceMetadata) -> None:
    """An agent may live for longer than its token."""
    metadata.instance_id()
    imds.revoke_tokens()

    assert metadata.region() == "eu-west-1"


def test_a_spot_notice(imds: Imds, metadata: InstanceMetadata) -> None:
    """There is none until there is one."""
    assert metadata.spot_notice() is None
    imds.spot_notice(AT, action="stop")
    assert metadata.spot_notice() == SpotNotice("stop", AT)


def test_a_proxy_is_not_asked(metadata: InstanceMetadata, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service is on the host itself."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")

    assert metadata.region() == "eu-west-1"


@pytest.mark.parametrize("fault", [Answer(500), Refuse(), Hang(), Truncate(2), Answer(403), Answer(401)])
@pytest.mark.parametrize(
    "question", [InstanceMetadata.instance_id, InstanceMetadata.region, InstanceMetadata.spot_notice]
)
def test_a_service_that_does_not_answer(
    imds: Imds, metadata: InstanceMetadata, fault: Fault, question: Callable[[InstanceMetadata], Any]
) -> None:
    """It costs a bounded time, is one error, and is over when the service is back."""
    imds.spot_notice(AT)
    imds.faults.plan("imds:*", fault)
    with pytest.raises(MetadataUnavailableError):
        question(metadata)

    imds.faults.heal()

    assert question(metadata)


def test_no_instance_has_no_identity() -> None:
    """Where nothing listens, there is no metadata."""
    with pytest.raises(MetadataUnavailableError):
        InstanceMetadata("http://127.0.0.1:1").region()


# Identity


def test_what_is_set_is_not_asked_for(imds: Imds, metadata: InstanceMetadata) -> None:
    """Neither of both."""
    settings = Settings(instance_id="i-1", aws_region="us-east-1")

    assert identified(settings, metadata) == (settings, [])
    assert not imds.calls


def test_what_is_not_set_is_asked_for(imds: Imds, metadata: InstanceMetadata) -> None:
    """Again and again, as a network may be late."""
    imds.faults.plan("imds:*", Refuse(), times=2)

    settings, errors = identified(Settings(), metadata)

    assert (settings.instance_id, settings.aws_region, errors) == (imds.instance_id, "eu-west-1", [])


def test_what_nobody_tells_is_an_error(imds: Imds, metadata: InstanceMetadata) -> None:
    """A line for each, with the variable that mends it; it costs the patience once."""
    imds.faults.plan("imds:*", Refuse())

    settings, errors = identified(Settings(), metadata, patience=0.1)

    assert (settings.instance_id, settings.aws_region) == (None, None)
    assert [error.partition(":")[0] for error in errors] == ["RUNS_FLEET_INSTANCE_ID", "AWS_REGION"]


def test_the_service_may_be_forbidden(imds: Imds) -> None:
    """As boto3 has it: then nobody is asked."""
    assert metadata_of({"AWS_EC2_METADATA_DISABLED": "True", **imds.environ}) is None
    assert len(identified(Settings(), None)[1]) == 2
    asked = metadata_of(imds.environ)
    assert asked is not None
    assert asked.region() == "eu-west-1"


# The watch


class Told:
    """What the watch passed on."""

    def __init__(self) -> None:
        self.stops: list[StopRequest] = []
        self.warnings: list[str] = []


def watch(metadata: InstanceMetadata, told: Told, meanwhile: Callable[[Told], Any]) -> None:
    """Watches, without pauses, until the notice came; `meanwhile` changes what there is to see."""

    async def run() -> None:
        watching = asyncio.create_task(SpotWatch(metadata).run(told.stops.append, told.warnings.append))
        await meanwhile(told)
        async with asyncio.timeout(30):
            await watching

    asyncio.run(run())


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_adapters.aws.spot._POLL_SECONDS", 0.01)


def test_a_notice_asks_to_stop_by_its_time(imds: Imds, metadata: InstanceMetadata) -> None:
    """Once."""
    told = Told()

    async def meanwhile(_: Told) -> None:
        await until("three looks", lambda: len(imds.calls) > 6)
        assert not told.stops
        imds.spot_notice(AT)

    watch(metadata, told, meanwhile)

    (request,) = told.stops
    assert (request.reason, request.by, request.deadline) == (StopReason.INTERRUPTED, "spot", AT)
    assert not told.warnings


def test_a_rebalance_recommendation_is_only_told(imds: Imds, metadata: InstanceMetadata) -> None:
    """Once, and not acted on."""
    told = Told()

    async def meanwhile(told: Told) -> None:
        imds.rebalance(AT)
        await until("the warning", lambda: bool(told.warnings))
        calls = len(imds.calls)
        await until("more looks", lambda: len(imds.calls) > calls + 6)
        assert not told.stops
        imds.spot_notice(AT)

    watch(metadata, told, meanwhile)

    (warning,) = told.warnings
    assert "2026-11-21T12:02:00" in warning


def test_a_deaf_watch_says_so_once(imds: Imds, metadata: InstanceMetadata) -> None:
    """And hears again when there is something to hear."""
    told = Told()

    async def meanwhile(told: Told) -> None:
        imds.faults.plan("imds:*", Answer(500))
        calls = len(imds.calls)
        await until("looks", lambda: len(imds.calls) > calls + 6)
        assert len(told.warnings) == 1
        imds.spot_notice(AT)
        imds.faults.heal()

    watch(metadata, told, meanwhile)

    assert len(told.stops) == len(told.warnings) == 1

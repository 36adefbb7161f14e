"""What the agent asks of the instance metadata service, and what it makes of the answers."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from agent_adapters.aws.metadata import InstanceMetadata, MetadataUnavailableError, SpotNotice
from agent_adapters.aws.spot import SpotWatch
from agent_app.identity import identified, metadata_of, spare_metadata_the_proxy
from agent_app.settings import Settings
from agent_core.model import StopReason, StopRequest
from agent_core.testing.contracts.contract import until
from support.faults import Answer, Hang, Refuse, Slow, Truncate

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from support.faults import Fault
    from support.imds import InstanceMetadata as Imds

AT = datetime(2026, 11, 21, 12, 2, tzinfo=UTC)


@pytest.fixture
def metadata(imds: Imds, patient: None) -> InstanceMetadata:  # noqa: ARG001
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
    imds: Imds,
    metadata: InstanceMetadata,
    fault: Fault,
    question: Callable[[InstanceMetadata], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It costs a bounded time, is one error, and is over when the service is back."""
    imds.spot_notice(AT)
    imds.faults.plan("imds:*", fault)
    monkeypatch.setattr("agent_adapters.aws.metadata._TIMEOUT_SECONDS", 1.0)
    with pytest.raises(MetadataUnavailableError):
        question(metadata)

    monkeypatch.setattr("agent_adapters.aws.metadata._TIMEOUT_SECONDS", 60.0)
    imds.faults.heal()

    assert question(metadata)


def test_no_instance_has_no_identity() -> None:
    """Where nothing listens, there is no metadata."""
    with pytest.raises(MetadataUnavailableError):
        InstanceMetadata("http://127.0.0.1:1").region()


GARBAGE = ["<html>\n</html>", "abc\ndef", "ünïcode", "", " ", "i-0123", "eu-west-1; rm", "x" * 100_000]


@pytest.mark.parametrize("text", GARBAGE)
@pytest.mark.parametrize("path", ["api/token", "meta-data/instance-id", "meta-data/placement/region"])
def test_what_answers_may_not_be_the_service(text: str, path: str) -> None:
    """A portal, a proxy, a service that is starting: its words are no token, no instance, no region."""
    good = {"api/token": "a-token", "meta-data/instance-id": "i-0123456789abcdef0"}
    metadata = Answering({**good, "meta-data/placement/region": "eu-west-1", path: text})
    question = metadata.region if path == "meta-data/placement/region" else metadata.instance_id

    if path == "api/token" and text == "i-0123":
        assert question() == "i-0123456789abcdef0"
    else:
        with pytest.raises(MetadataUnavailableError):
            question()


@pytest.mark.parametrize(
    "text", ["[", "[" * 60_000, "5", "null", '{"action": 1}', '{"time": "0001-01-01T00:00:00+14:00"}']
)
def test_an_odd_notice_is_none(text: str) -> None:
    """The next look may find a better one."""
    metadata = Answering({"api/token": "a-token", "meta-data/spot/instance-action": text})
    with pytest.raises(MetadataUnavailableError):
        metadata.spot_notice()


class Answering(InstanceMetadata):
    """Answers with texts, by path."""

    def __init__(self, texts: dict[str, str]) -> None:
        super().__init__("http://metadata.invalid")
        self._texts = texts

    def _ask_for(self, method: str, path: str, headers: dict[str, str]) -> str:
        assert (method == "PUT") is (path == "api/token")
        assert headers
        return self._texts[path][:4096]


@pytest.mark.parametrize("endpoint", ["169.254.169.254", "garbage", "http://[::1", "file:///etc"])
def test_an_endpoint_that_is_none(endpoint: str) -> None:
    """It is an error of the settings, and not the end of the agent."""
    settings, errors = identified(Settings(), InstanceMetadata(endpoint), patience=0.0)

    assert (settings.instance_id, len(errors)) == (None, 2)


def test_a_trickle_is_left_to_itself(
    imds: Imds, metadata: InstanceMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole answer has a bound, not only each byte of it."""
    monkeypatch.setattr("agent_adapters.aws.metadata._ANSWER_SECONDS", 0.3)
    imds.faults.plan("imds:*", Slow(2))

    with pytest.raises(MetadataUnavailableError):
        metadata.region()


def test_a_redirect_is_not_followed(imds: Imds, metadata: InstanceMetadata) -> None:
    """Nobody else gets the token."""
    imds.faults.plan(
        "imds:region", Answer(302, headers={"Location": f"{imds.url}/latest/meta-data/instance-id"})
    )

    with pytest.raises(MetadataUnavailableError):
        metadata.region()


# Identity


def test_a_signal_ends_the_asking(imds: Imds, metadata: InstanceMetadata) -> None:
    """Whoever was asked to stop does not wait for the metadata service."""
    imds.faults.plan("imds:*", Refuse())

    _, errors = identified(Settings(), metadata, hurry=["SIGTERM"])

    assert len(errors) == 2
    assert len(imds.calls) <= 4


def test_botocore_is_spared_the_proxy() -> None:
    """It asks the metadata service itself, and keeps to what else is set."""
    environ = {"NO_PROXY": "example.com"}

    spare_metadata_the_proxy(environ)
    spare_metadata_the_proxy(environ)

    assert environ["NO_PROXY"] == environ["no_proxy"] == "example.com,169.254.169.254,fd00:ec2::254"


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
        async with asyncio.timeout(120):
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


def test_no_fault_ends_the_watch(
    imds: Imds, metadata: InstanceMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever one look ends with, the next one may hear."""
    told, look = Told(), metadata.spot_notice
    faults = [ZeroDivisionError("of our own"), RecursionError(), ValueError("odd")]

    def spot_notice() -> SpotNotice | None:
        if faults:
            raise faults.pop()
        return look()

    async def meanwhile(_: Told) -> None:
        imds.spot_notice(AT)

    monkeypatch.setattr(metadata, "spot_notice", spot_notice)
    watch(metadata, told, meanwhile)

    assert len(told.stops) == len(told.warnings) == 1


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


def test_a_notice_is_heard_where_recommendations_are_not(imds: Imds, metadata: InstanceMetadata) -> None:
    """A path that is out of order for good takes nothing from the other one."""
    told = Told()

    async def meanwhile(told: Told) -> None:
        imds.faults.plan("imds:rebalance", Answer(500))
        await until("the warning", lambda: bool(told.warnings))
        imds.spot_notice(AT)

    watch(metadata, told, meanwhile)

    assert len(told.stops) == 1

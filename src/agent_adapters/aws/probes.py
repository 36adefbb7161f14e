"""Asks AWS what this role may do, by calls that change nothing whatever the answer is."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar, Final

from attrs import evolve, frozen
from botocore.exceptions import BotoCoreError

from agent_adapters.aws.clients import AwsClients, Meanings
from agent_adapters.aws.notifier import NO_QUEUE, fifo_ids
from agent_adapters.threads import aside
from agent_adapters.web import http_date
from agent_core.errors import AgentError

__all__ = ["AwsProbes", "Probed", "Verdict"]

_NO_SUCH_KEY: Final = "runners/.doctor/there-is-no-such-object"
_TOO_LONG_SECONDS: Final = 901
"""SQS delays a message by 900 s at most: one that is to wait longer is never accepted."""
_PROBE_BODY: Final = '{"probe": "runs-fleet-agent doctor"}'


class Verdict(StrEnum):
    """What an answer comes to."""

    ALLOWED = "allowed"
    DENIED = "denied"
    UNLISTED = "unlisted"
    """S3: denied, but only since the role may not know that the object is missing."""
    MISSING = "missing"
    """What the call is about does not exist."""
    REJECTED = "rejected"
    """AWS does not take the credentials themselves."""
    UNAVAILABLE = "unavailable"
    """No answer, or one that says nothing on the question."""


@frozen
class Probed:
    """One answer."""

    verdict: Verdict
    words: str
    """What there is to tell beside it: AWS's own, where it does not allow it."""


class _AnswerError(AgentError):
    verdict: ClassVar = Verdict.UNAVAILABLE


class _AllowedError(_AnswerError):
    verdict = Verdict.ALLOWED


class _DeniedError(_AnswerError):
    verdict = Verdict.DENIED


class _MissingError(_AnswerError):
    verdict = Verdict.MISSING


class _RejectedError(_AnswerError):
    verdict = Verdict.REJECTED


_REJECTED: Final = (
    "AuthFailure", "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidClientTokenId",
    "InvalidSignatureException", "SignatureDoesNotMatch", "UnrecognizedClientException",
)  # fmt: skip
_OTHERS: Final[Mapping[str, Mapping[str, type[AgentError]]]] = {
    "sts": dict.fromkeys(_REJECTED, _RejectedError),
    "s3": {"NoSuchKey": _AllowedError, "NoSuchBucket": _MissingError},
    "sqs": {
        **dict.fromkeys(NO_QUEUE, _MissingError),
        "InvalidParameterValue": _AllowedError,
    },
    "ec2": {
        "DryRunOperation": _AllowedError,
        "InvalidInstanceID.NotFound": _MissingError,
        "InvalidInstanceID.Malformed": _MissingError,
        "OperationNotPermitted": _DeniedError,
    },
}
_MEANINGS: Final = {
    service: Meanings(unavailable=_AnswerError, denied=_DeniedError, others=others)
    for service, others in _OTHERS.items()
}


class AwsProbes:
    """Each probe takes one thread, and the time that its client waits for an answer.

    Args:
        clients: made for the instance's region.
        now: the host's own clock.
    """

    def __init__(self, clients: AwsClients, now: Callable[[], datetime]) -> None:
        self._clients, self._now = clients, now
        self._ahead: dict[str, timedelta] = {}

    @property
    def ahead(self) -> timedelta | None:
        """How far the host's clock is ahead of AWS's, to a second; None: no answer told."""
        return next((self._ahead[service] for service in _OTHERS if service in self._ahead), None)

    async def missing_credentials(self) -> str | None:
        """Why nothing can be asked at all; None: there are credentials to ask with."""

        def look() -> str | None:
            try:
                self._clients.get("sts")
            except BotoCoreError as exc:
                return str(exc)
            return None

        return await aside("AWS credentials", look)

    async def caller(self) -> Probed:
        """Who AWS says we are: the words are an ARN."""
        return await aside(
            "sts probe", lambda: self._ask("sts", lambda sts: sts.get_caller_identity()["Arn"])
        )

    async def bucket(self, name: str) -> Probed:
        """Whether the runner cache's objects may be read."""

        def get(s3: Any) -> str:
            s3.get_object(Bucket=name, Key=_NO_SUCH_KEY, Range="bytes=0-0")["Body"].close()
            return ""

        probed = await aside("s3 probe", lambda: self._ask("s3", get))
        if probed.verdict is Verdict.DENIED and "s3:ListBucket" in probed.words:
            return evolve(probed, verdict=Verdict.UNLISTED)
        return probed

    async def queue(self, url: str) -> Probed:
        """Whether the queue exists, as far as that may be known, and whether messages may be sent to it."""
        return await aside("sqs probe", lambda: self._queue(url))

    def _queue(self, url: str) -> Probed:
        def look(sqs: Any) -> str:
            sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
            return ""

        ids = fifo_ids(url, "doctor", "doctor")

        def send(sqs: Any) -> str:
            delay = _TOO_LONG_SECONDS
            sqs.send_message(QueueUrl=url, MessageBody=_PROBE_BODY, DelaySeconds=delay, **ids)
            return "the queue took a probe that SQS refuses: its consumer gets a message of no job"

        there = self._ask("sqs", look)
        if there.verdict in {Verdict.MISSING, Verdict.UNAVAILABLE}:
            return there
        sent = self._ask("sqs", send)
        if sent.verdict is Verdict.ALLOWED and there.verdict is Verdict.DENIED:
            return evolve(sent, words="whether it exists may not be known without sqs:GetQueueAttributes")
        return sent

    async def termination(self, instance_id: str) -> Probed:
        """Whether the instance may be terminated; it is not."""

        def dry_run(ec2: Any) -> str:
            ec2.terminate_instances(InstanceIds=[instance_id], DryRun=True)
            return ""

        return await aside("ec2 probe", lambda: self._ask("ec2", dry_run))

    def _ask(self, service: str, call: Callable[[Any], str]) -> Probed:
        try:
            with _MEANINGS[service].of(service):
                client = self._clients.get(service)
                client.meta.events.register("after-call", self._take_date, unique_id="doctor's clock")
                return Probed(Verdict.ALLOWED, call(client))
        except _AnswerError as exc:
            return Probed(exc.verdict, "" if exc.verdict is Verdict.ALLOWED else str(exc))

    def _take_date(self, model: Any, parsed: Mapping[str, Any], **_: object) -> None:
        moment = http_date(parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date"))
        if moment is not None:
            self._ahead[model.service_model.service_name] = self._now() - moment

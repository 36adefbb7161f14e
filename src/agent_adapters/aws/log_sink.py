"""Log events to CloudWatch Logs."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Final

from botocore.exceptions import ClientError

from agent_adapters.aws.clients import AwsClients, Meanings, error_code
from agent_adapters.threads import Lane
from agent_core.errors import BatchRefusedError, LogSinkDeniedError, LogSinkUnavailableError
from agent_core.model import LogEvent
from agent_core.ports import LogSink

__all__ = ["CloudWatchLogSink"]

_PROTOCOL: Final = re.compile("json|cbor")
_THERE_ALREADY: Final = "ResourceAlreadyExistsException"
_MISSING: Final = "ResourceNotFoundException"
_MEANINGS: Final = Meanings(
    unavailable=LogSinkUnavailableError,
    denied=LogSinkDeniedError,
    others={"InvalidParameterException": BatchRefusedError, "ParamValidationError": BatchRefusedError},
)


class CloudWatchLogSink(LogSink):
    """Streams of one log group; a stream that is missing is made, and so is the group if that is allowed.

    Args:
        clients: made for the instance's region.
        group: the log group's name.
    """

    def __init__(self, clients: AwsClients, group: str) -> None:
        self._clients, self._group = clients, group
        self._lane = Lane("log sink", LogSinkUnavailableError)
        self._there: set[str] = set()

    async def put(self, stream: str, events: Sequence[LogEvent]) -> int:
        return await self._lane.run(partial(self._put, stream, events))

    def _put(self, stream: str, events: Sequence[LogEvent]) -> int:
        with _MEANINGS.of(f"log group {self._group}"):
            logs = self._clients.get("logs")
            log_events = events if _writes_events_at_once(logs) else _described(events)
            denial = None if stream in self._there else self._make(logs, stream)
            try:
                answer = logs.put_log_events(
                    logGroupName=self._group, logStreamName=stream, logEvents=log_events
                )
            except ClientError as exc:
                if error_code(exc) == _MISSING:
                    self._there.discard(stream)  # somebody has removed it: it is made again at the next try
                    if denial is not None:
                        raise self._may_not_be_made(stream, exc) from denial
                raise
            self._there.add(stream)
            return _count_rejected(answer, len(events))

    def _make(self, logs: Any, stream: str) -> LogSinkDeniedError | None:
        """Makes the stream, unless it is there; the denial, where that may not be told: a put will tell.

        Raises:
            LogSinkDeniedError: there is no group, and it may not be made.
        """
        create_stream = partial(self._create, logs.create_log_stream, logStreamName=stream)
        try:
            if create_stream():
                return None
        except LogSinkDeniedError as exc:
            return exc
        try:
            self._create(logs.create_log_group)
        except LogSinkDeniedError as exc:
            raise LogSinkDeniedError(
                f"create the log group {self._group}, or allow logs:CreateLogGroup: {exc}"
            ) from exc
        create_stream()
        return None

    def _create(self, create: Callable[..., object], **names: str) -> bool:
        """Whether it is there now; if not, what it would be part of is missing."""
        try:
            with _MEANINGS.of(f"log group {self._group}"):
                create(logGroupName=self._group, **names)
        except LogSinkUnavailableError as exc:
            code = error_code(exc.__cause__)
            if code not in {_MISSING, _THERE_ALREADY}:
                raise
            return code == _THERE_ALREADY
        return True

    def _may_not_be_made(self, stream: str, missing: ClientError) -> LogSinkDeniedError:
        return LogSinkDeniedError(
            f"log group {self._group}: the log stream {stream} is missing, and may not be made: "
            f"allow logs:CreateLogStream: {missing}"
        )


def _described(events: Sequence[LogEvent]) -> list[dict[str, object]]:
    return [{"timestamp": event.timestamp_ms, "message": event.text} for event in events]


def _count_rejected(answer: Mapping[str, Any], count: int) -> int:
    """How many of a batch were too old, or too new; the first index is exclusive, the last inclusive.

    Raises:
        LookupError: this is no answer of CloudWatch Logs: whoever stands between may say 200 to anything.
    """
    if not _PROTOCOL.search(answer["ResponseMetadata"]["HTTPHeaders"]["content-type"]):
        raise LookupError("content-type")
    info = answer.get("rejectedLogEventsInfo", {})
    old = max(_index(info, "tooOldLogEventEndIndex", 0), _index(info, "expiredLogEventEndIndex", 0))
    new = count - _index(info, "tooNewLogEventStartIndex", count)
    return min(count, max(0, old) + max(0, new))


def _index(info: Mapping[str, Any], name: str, default: int) -> int:
    value = info.get(name, default)
    return value if isinstance(value, int) else default


# botocore looks at every field of every event twice, in Python: to check it, and to copy it into what it then
# makes JSON of. That is most of what a batch costs. So it checks and copies one that stands for all, and they
# take its place in the JSON.

_PUT: Final = "cloudwatch-logs.PutLogEvents"
_ALL_EVENTS: Final = "runs_fleet_agent_log_events"
"""Where a call's context has them."""
_STAND_IN: Final = {"timestamp": 0, "message": "stands for all events"}


def _writes_events_at_once(logs: Any) -> bool:
    """Whether the client does so from now on; one that speaks something else than JSON is left as it is."""
    if getattr(logs.meta.service_model, "resolved_protocol", None) != "json":
        return False
    logs.meta.events.register(f"provide-client-params.{_PUT}", _put_aside, unique_id=f"{_ALL_EVENTS} aside")
    logs.meta.events.register(f"before-call.{_PUT}", _write, unique_id=f"{_ALL_EVENTS} written")
    return True


def _put_aside(params: Mapping[str, Any], context: dict[str, Any], **_: object) -> dict[str, Any]:
    context[_ALL_EVENTS] = params["logEvents"]
    return {**params, "logEvents": [_STAND_IN]}


def _write(params: dict[str, Any], context: Mapping[str, Any], **_: object) -> None:
    others = json.loads(params["body"])
    del others["logEvents"]
    # Not one json.dumps of all: it would keep the event loop from running meanwhile.
    events = ", ".join(
        [
            f'{{"timestamp": {event.timestamp_ms}, "message": {quoted(event.text)}}}'
            for event in context[_ALL_EVENTS]
        ]
    )
    params["body"] = f'{json.dumps(others)[:-1]}, "logEvents": [{events}]}}'.encode()

"""Messages to an SQS queue, standard or FIFO."""

from functools import partial
from typing import Final

from agent_adapters.aws.clients import AwsClients, Meanings
from agent_adapters.redaction import redact
from agent_adapters.threads import Lane
from agent_adapters.wire import checked_message
from agent_core.errors import MessageRefusedError, NotifierDeniedError, NotifierUnavailableError
from agent_core.model import StatusMessage
from agent_core.ports import Notifier

__all__ = ["NO_QUEUE", "SqsNotifier", "fifo_ids"]

_CALLS: Final = 4
"""At a time: one that hangs must not be the only one. A repeat has the same message ID."""
_FIFO: Final = ".fifo"
NO_QUEUE: Final = ("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist", "InvalidAddress")
"""Codes of SQS that say: there is no such queue."""
_MEANINGS: Final = Meanings(
    unavailable=NotifierUnavailableError,
    denied=NotifierDeniedError,
    others={
        **dict.fromkeys(NO_QUEUE, NotifierDeniedError),
        "InvalidMessageContents": MessageRefusedError,
        "InvalidParameterValue": MessageRefusedError,
    },
)


def fifo_ids(queue_url: str, group: str, message_id: str) -> dict[str, str]:
    """What a FIFO queue wants to know of a message beside its body; nothing, of another queue."""
    if not queue_url.endswith(_FIFO):
        return {}
    return {"MessageGroupId": group, "MessageDeduplicationId": message_id}


class SqsNotifier(Notifier):
    """A FIFO queue gets the instance as message group, and drops repeats by their message ID.

    Args:
        clients: made for the instance's region.
        queue_url: where messages go whose job names no queue, or one that denies them.
    """

    def __init__(self, clients: AwsClients, queue_url: str | None) -> None:
        self._clients, self._queue_url = clients, queue_url
        self._lane = Lane("messages", NotifierUnavailableError, calls=_CALLS)

    async def send(self, message: StatusMessage, queue_url: str | None) -> None:
        own, queue_url = self._queue_url, queue_url or self._queue_url
        if queue_url is None:
            raise NotifierDeniedError(
                "there is no queue to send to: the config has no termination_queue_url, and "
                "RUNS_FLEET_TERMINATION_QUEUE_URL is not set"
            )
        text = checked_message(message)
        try:
            await self._lane.run(partial(self._send, queue_url, message, text))
        except NotifierDeniedError:
            if own in {None, queue_url}:
                raise
            # A config with a wrong queue must not keep the fleet's own from hearing how it ended.
            await self._lane.run(partial(self._send, own, message, text))

    def _send(self, queue_url: str, message: StatusMessage, text: str) -> None:
        ids = fifo_ids(queue_url, message.instance_id, message.message_id)
        with _MEANINGS.of(f"queue {redact(queue_url)}"):
            sqs = self._clients.get("sqs")
            answer = sqs.send_message(QueueUrl=queue_url, MessageBody=text, **ids)
            # Whoever stands between may answer 200 to anything.
            if not answer["MessageId"]:
                raise LookupError("MessageId")

"""The instance's end, by EC2."""

from functools import partial
from typing import Final

from agent_adapters.aws.clients import AwsClients, Meanings
from agent_adapters.poweroff import power_off
from agent_adapters.threads import Lane
from agent_core.errors import TerminatorDeniedError, TerminatorUnavailableError
from agent_core.ports import Terminator

__all__ = ["Ec2Terminator"]

_CALLS: Final = 8
"""At a time: one that hangs must not be the only one. Asking twice does no harm."""
_GOING: Final = frozenset({"shutting-down", "terminated"})
_MEANINGS: Final = Meanings(
    unavailable=TerminatorUnavailableError,
    denied=TerminatorDeniedError,
    others={
        "InvalidInstanceID.Malformed": TerminatorDeniedError,
        # Termination protection.
        "OperationNotPermitted": TerminatorDeniedError,
    },
)


class Ec2Terminator(Terminator):
    """TerminateInstances; a role should allow it for the instance itself only."""

    def __init__(self, clients: AwsClients) -> None:
        self._clients = clients
        self._lane = Lane("terminator", TerminatorUnavailableError, calls=_CALLS)
        self._power_lane = Lane("power off", TerminatorUnavailableError)

    async def terminate(self, instance_id: str) -> None:
        await self._lane.run(partial(self._terminate, instance_id))

    async def power_off(self) -> None:
        await self._power_lane.run(power_off)

    def _terminate(self, instance_id: str) -> None:
        if not instance_id:
            raise TerminatorDeniedError("the instance's ID is not known")
        with _MEANINGS.of(f"instance {instance_id}"):
            answer = self._clients.get("ec2").terminate_instances(InstanceIds=[instance_id])
            # Whoever stands between may answer 200 to anything.
            going = {
                each["InstanceId"]: each["CurrentState"]["Name"] for each in answer["TerminatingInstances"]
            }
            if going[instance_id] not in _GOING:
                raise LookupError(going[instance_id])

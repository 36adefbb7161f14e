# ruff: noqa: S101 - a suite speaks in asserts
"""What any Terminator promises."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from agent_core.errors import TerminatorDeniedError, TerminatorUnavailableError
from agent_core.ports import Terminator
from agent_core.testing.contracts.contract import (
    Contract,
    cancel_at_any_step,
    error_of,
    eventually,
    impossible,
    on_loop,
)

__all__ = ["TerminatorContract"]


class TerminatorContract(Contract, ABC):
    """Holds a Terminator to its promises."""

    instance_id: ClassVar[str] = "i-0123456789abcdef0"
    """The instance that the adapter may terminate."""

    @abstractmethod
    def make(self) -> Terminator:
        """The adapter under test; nothing was asked of it."""

    @abstractmethod
    def requests(self) -> Sequence[str]:
        """The instance IDs of the requests that were accepted, repeats too, oldest first."""

    @abstractmethod
    def deny(self) -> None:
        """From here on the adapter may not terminate the instance."""

    def break_(self) -> None:
        """From here on the service does not answer."""
        raise impossible("this service cannot fail")

    def powered_off(self) -> int:
        """How often the host was told to power off."""
        raise impossible("this adapter powers off nothing")

    @on_loop
    async def test_the_host_can_be_powered_off(self) -> None:
        """It is the last resort, and no request to terminate."""
        terminator, before = self.make(), self.powered_off()

        await terminator.power_off()

        assert self.powered_off() == before + 1
        assert list(self.requests()) == []

    @on_loop
    async def test_the_request_arrives(self) -> None:
        """It names the instance."""
        terminator = self.make()

        await terminator.terminate(self.instance_id)

        assert list(self.requests()) == [self.instance_id]

    @on_loop
    async def test_asking_again_is_allowed(self) -> None:
        """Whoever does not know whether it was accepted asks again; so does a successor."""
        terminator = self.make()

        await terminator.terminate(self.instance_id)
        await terminator.terminate(self.instance_id)
        await self.make().terminate(self.instance_id)

        assert set(self.requests()) == {self.instance_id}

    @on_loop
    async def test_what_is_not_allowed_is_denied(self) -> None:
        """It is told from unavailable, and no request is accepted."""
        terminator = self.make()
        self.deny()

        await error_of(TerminatorDeniedError, terminator.terminate(self.instance_id))

        assert list(self.requests()) == []

    @on_loop
    async def test_a_service_that_does_not_answer_is_unavailable(self) -> None:
        """It is told from denied, and no request is accepted."""
        terminator = self.make()
        self.break_()

        await error_of(TerminatorUnavailableError, terminator.terminate(self.instance_id))

        assert list(self.requests()) == []

    @on_loop
    async def test_can_be_cancelled(self) -> None:
        """A request that is cancelled keeps no later one from being accepted."""
        terminator = self.make()

        await cancel_at_any_step(lambda: terminator.terminate(self.instance_id))
        before = len(self.requests())
        await eventually(TerminatorUnavailableError, lambda: terminator.terminate(self.instance_id))

        assert len(self.requests()) > before
        assert set(self.requests()) == {self.instance_id}

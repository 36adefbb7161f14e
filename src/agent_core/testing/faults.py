"""Faults for any port: it fails, is slow, hangs or breaks its promise, as a seed decides.

    notifier = faulty(InMemoryNotifier(), Faults(Random(seed), fail=0.3, hang=0.1, most=5))

A call that fails may have had its effect before: the reply was lost, as happens with real services.
"""

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping
from enum import Enum
from random import Random
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

from attrs import define, evolve, field

from agent_core.errors import (
    AgentError,
    BinaryUnavailableError,
    ConfigUnavailableError,
    DiagnosticsUnavailableError,
    HostUnavailableError,
    JournalUnavailableError,
    LogSinkUnavailableError,
    NotifierUnavailableError,
    RunnerUnavailableError,
    SpoolError,
    TerminatorUnavailableError,
)
from agent_core.ports import Ports

__all__ = ["FAILURES", "FaultKind", "Faults", "UnpromisedError", "faulty", "faulty_ports"]

_P = TypeVar("_P")

FAILURES: Final[Mapping[str, type[AgentError]]] = MappingProxyType(
    {
        "fetch": ConfigUnavailableError,
        "resolve": BinaryUnavailableError,
        "install": BinaryUnavailableError,
        "register": RunnerUnavailableError,
        "start": RunnerUnavailableError,
        "interrupt": RunnerUnavailableError,
        "kill": RunnerUnavailableError,
        "remove": RunnerUnavailableError,
        "upload": DiagnosticsUnavailableError,
        "put": LogSinkUnavailableError,
        "push": SpoolError,
        "pop": SpoolError,
        "recover": SpoolError,
        "clear": SpoolError,
        "send": NotifierUnavailableError,
        "terminate": TerminatorUnavailableError,
        "power_off": TerminatorUnavailableError,
        "sample": HostUnavailableError,
        "load": JournalUnavailableError,
        "save": JournalUnavailableError,
    }
)
"""By method of a port: how it fails when it keeps its promises. Other methods are left as they are."""


class UnpromisedError(Exception):
    """What no port may raise: an adapter's own fault."""


class FaultKind(Enum):
    """What is wrong with one call."""

    FAIL = "it raises what its port allows, before or after its effect"
    BREAK = "it raises what its port does not allow"
    DELAY = "it takes longer"
    HANG = "it never returns; it can be cancelled"
    STUBBORN = "it never returns, and swallows its cancellation for a while"


@define
class Faults:
    """Decides, call by call, what goes wrong.

    Args:
        rng: the seed's random numbers; `wait` of a simulated loop and this are all that is random.
        fail, break_, delay, hang, stubborn: the share of the calls that each kind takes, 0 to 1.
        most: so many calls go wrong, and no more: a service that recovers.
        delay_seconds: the longest delay.
        happened: what went wrong so far: method and kind.
    """

    rng: Random
    fail: float = 0.0
    break_: float = 0.0
    delay: float = 0.0
    hang: float = 0.0
    stubborn: float = 0.0
    most: int | None = None
    delay_seconds: float = 30.0
    happened: list[tuple[str, FaultKind]] = field(factory=list)

    def next(self, method: str) -> FaultKind | None:
        """What goes wrong with this call; None: nothing."""
        if self.most is not None and len(self.happened) >= self.most:
            return None
        shares = {
            FaultKind.FAIL: self.fail,
            FaultKind.BREAK: self.break_,
            FaultKind.DELAY: self.delay,
            FaultKind.HANG: self.hang,
            FaultKind.STUBBORN: self.stubborn,
        }
        drawn = self.rng.random()
        for kind, share in shares.items():
            if drawn < share:
                self.happened.append((method, kind))
                return kind
            drawn -= share
        return None


_STUBBORN_SECONDS: Final = 3600.0
_LOST_REPLIES: Final = 0.5
"""The share of the failing calls that had their effect all the same."""


def faulty(port: _P, faults: Faults) -> _P:
    """The port, with faults; anything that it has besides its port's methods is left as it is."""
    return cast("_P", _Faulty(port, faults))


def faulty_ports(ports: Ports, faults: Mapping[str, Faults]) -> Ports:
    """The ports, with faults for those whose field in `Ports` is named."""
    spoiled: dict[str, Any] = {name: faulty(getattr(ports, name), plan) for name, plan in faults.items()}
    return evolve(ports, **spoiled)


class _Faulty:
    def __init__(self, port: object, faults: Faults) -> None:
        self._port, self._faults = port, faults

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._port, name)
        if name not in FAILURES:
            return attribute
        wrap = _around_coroutine if inspect.iscoroutinefunction(attribute) else _around_function
        return wrap(attribute, name, self._faults)

    def __len__(self) -> int:
        return len(cast("Any", self._port))


def _around_function(call: Callable[..., Any], name: str, faults: Faults) -> Callable[..., Any]:
    @functools.wraps(call)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        # A function is quick by contract: all that it can do wrong is fail, without effect.
        if faults.next(name) is None:
            return call(*args, **kwargs)
        raise FAILURES[name](f"planted: {name} failed")

    return wrapped


def _around_coroutine(call: Callable[..., Any], name: str, faults: Faults) -> Callable[..., Any]:
    @functools.wraps(call)
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        kind = faults.next(name)
        reply_lost = kind is FaultKind.FAIL and faults.rng.random() < _LOST_REPLIES
        if kind is FaultKind.DELAY:
            await asyncio.sleep(faults.rng.uniform(0, faults.delay_seconds))
        elif kind is FaultKind.HANG:
            await asyncio.Event().wait()
        elif kind is FaultKind.STUBBORN:
            await _be_stubborn()
        result = await call(*args, **kwargs) if kind in {None, FaultKind.DELAY} or reply_lost else None
        if kind is FaultKind.FAIL:
            raise FAILURES[name](f"planted: {name} failed")
        if kind is FaultKind.BREAK:
            raise UnpromisedError(f"planted: {name} broke its promise")
        return result

    return wrapped


async def _be_stubborn() -> None:
    end = asyncio.get_running_loop().time() + _STUBBORN_SECONDS
    while (left := end - asyncio.get_running_loop().time()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            continue

"""Whatever a port raises, even what no `except Exception` catches or nobody can print, the instance goes."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from itertools import chain, repeat
from typing import Any, Final

import pytest
from attrs import evolve

from agent_adapters.memory import RunnerScript
from agent_adapters.world import A_JOB, World
from agent_core.deadline import within
from agent_core.errors import AgentFaultError
from agent_core.events import Event, Failed
from agent_core.model import Status, StopReason
from agent_core.ports import Ports
from agent_core.testing.simulation import run


class OddError(BaseException):
    """What no `except Exception` catches."""


class UnprintableError(Exception):
    """What nobody can say a word about."""

    def __str__(self) -> str:
        raise OddError

    __repr__ = __str__


ODD: Final[list[type[BaseException]]] = [
    MemoryError,
    RecursionError,
    UnprintableError,
    OddError,
    GeneratorExit,
    asyncio.CancelledError,
]
ENDING_THE_LOOP: Final[list[type[BaseException]]] = [SystemExit, KeyboardInterrupt]
CALLS: Final = [
    ("config_source", "fetch"),
    ("binary_store", "prebaked"),
    ("binary_store", "resolve"),
    ("binary_store", "install"),
    ("runner_process", "register"),
    ("runner_process", "start"),
    ("runner_process", "output"),
    ("runner_process", "traces"),
    ("runner_process", "has_worker"),
    ("runner_process", "wait"),
    ("runner_process", "interrupt"),
    ("runner_process", "kill"),
    ("runner_process", "remove"),
    ("diagnostics_store", "upload"),
    ("log_sink", "put"),
    ("notifier", "send"),
    ("terminator", "terminate"),
    ("host_probe", "sample"),
    ("journal", "load"),
    ("journal", "save"),
]


class Raising:
    """A port, one method of which raises the first time, or always."""

    def __init__(self, port: object, method: str, exc: type[BaseException], *, always: bool) -> None:
        self._port, self._method = port, method
        self._left = repeat(exc) if always else chain([exc], repeat(None))

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._port, name)
        exc = next(self._left) if name == self._method else None
        if exc is None:
            return attribute
        return _iterating(exc) if inspect.isasyncgenfunction(attribute) else _calling(exc)


def _calling(exc: type[BaseException]) -> Callable[..., Any]:
    async def call(*_args: object, **_options: object) -> Any:
        await asyncio.sleep(0)
        raise exc

    return call


def _iterating(exc: type[BaseException]) -> Callable[..., Any]:
    async def iterate() -> AsyncIterator[Any]:
        await asyncio.sleep(0)
        raise exc
        yield

    return iterate


def a_world(port: str, method: str, exc: type[BaseException], *, always: bool) -> World:
    def spoil(ports: Ports) -> Ports:
        wrapped: Any = Raising(getattr(ports, port), method, exc, always=always)
        return evolve(ports, **{port: wrapped})

    config = evolve(A_JOB, runner_logs_bucket="logs")
    return World(config=config, spoil=spoil, poweroff=True, script=RunnerScript(job_seconds=600))


@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("exc", ODD)
@pytest.mark.parametrize(("port", "method"), CALLS, ids=[".".join(call) for call in CALLS])
def test_call_that_raises(port: str, method: str, exc: type[BaseException], *, always: bool) -> None:
    """The life goes to its end: no process, one final message, a request to terminate, or else power-off."""
    world = a_world(port, method, exc, always=always)
    outcome = run(world.agent().run)
    assert outcome.terminated or (method, outcome.powered_off) == ("terminate", True)
    assert not world.machine.runner_alive or (method, always) == ("kill", True)
    if method == "fetch" and always:
        return
    assert outcome.message is not None
    assert outcome.message.status in {Status.SUCCESS, Status.FAILURE}
    if (method, always) != ("send", True):
        assert {each.message_id for each in world.notifier.received if each.status is not Status.STARTED} == {
            outcome.message.message_id
        }


@pytest.mark.parametrize("exc", ENDING_THE_LOOP)
@pytest.mark.parametrize(("port", "method"), CALLS, ids=[".".join(call) for call in CALLS])
def test_call_that_ends_the_loop(port: str, method: str, exc: type[BaseException]) -> None:
    """What asyncio gives its loop up for, a successor ends."""
    world = a_world(port, method, exc, always=False)
    with suppress(exc, BaseExceptionGroup):
        run(world.agent().run)
    world.crash()
    world.spoil = lambda ports: ports
    run(world.reap)
    assert world.terminator.requests
    assert not world.machine.runner_alive
    finals = {each.message_id for each in world.notifier.received if each.status is not Status.STARTED}
    assert len(finals) == 1


@pytest.mark.parametrize("exc", [*ODD, *ENDING_THE_LOOP])
def test_fault_of_any_kind(exc: type[BaseException]) -> None:
    """A callback or a thread may raise what it likes: it is a fault, and its name is in the message."""
    world = World(script=RunnerScript(job_seconds=None))

    async def main() -> None:
        agent = world.agent()
        asyncio.get_running_loop().call_at(20, agent.fault, exc())
        await agent.run()

    run(main)
    final = world.notifier.received[-1]
    assert (final.status, final.stop_reason) == (Status.FAILURE, StopReason.AGENT_FAULT)
    assert exc.__name__ in (final.error or "")


def test_fault_without_memory_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name has to do."""

    def fail(*_: object) -> list[str]:
        raise MemoryError

    world = World(script=RunnerScript(job_seconds=None))

    async def main() -> None:
        agent = world.agent()
        asyncio.get_running_loop().call_at(20, agent.fault, ZeroDivisionError("oh"))
        await agent.run()

    with monkeypatch.context() as patch:
        patch.setattr("traceback.format_exception", fail)
        run(main)
    assert world.notifier.received[-1].error == "fault of the agent: ZeroDivisionError"


@pytest.mark.parametrize("exc", [*ODD, *ENDING_THE_LOOP])
def test_observer_that_raises(exc: type[BaseException]) -> None:
    """An observer is a bystander, and so is the log of what it observes."""
    world = World()

    def fail(_event: Event) -> None:
        raise exc

    assert run(lambda: world.agent(fail).run()).terminated
    assert world.notifier.received[-1].status is Status.SUCCESS


def test_spool_that_breaks_its_promise() -> None:
    """What the agent says and cannot keep ends nothing; a life that floods its spool with it goes on."""

    def push(*_: object) -> None:
        raise OddError

    def spoil(ports: Ports) -> Ports:
        ports.log_spool.push = push  # type: ignore[method-assign, assignment]
        return ports

    world = World(spoil=spoil)
    agent = world.agent()

    async def main() -> bool:
        for _ in range(400):
            agent.warn("x" * 64 * 1024)
        return (await agent.run()).terminated

    assert run(main)


@pytest.mark.parametrize("exc", [UnprintableError, OddError, GeneratorExit])
def test_within_raises_what_can_be_worked_with(exc: type[BaseException]) -> None:
    """Whatever the work raises, `within` raises an exception that says what it was, and keeps it."""
    with pytest.raises(AgentFaultError, match=f"^the work raised {exc.__name__}$") as raised:
        run(lambda: within(1.0, "the work", _calling(exc)()))
    assert isinstance(raised.value.__cause__, exc)


def test_trace_of_a_fault() -> None:
    """The trace of what a port raised is told, though it is caught as a fault."""
    world = a_world("binary_store", "install", OddError, always=True)
    run(world.agent().run)
    traces = [event.trace for event in world.events if isinstance(event, Failed) and event.trace]
    assert any("OddError" in trace and "in call" in trace for trace in traces)

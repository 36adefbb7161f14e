"""One life in one process: the event loop, the signals, and whatever goes wrong where nobody looks."""

import asyncio
import os
import signal
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from agent_adapters.accounts import runs_as_root
from agent_adapters.process import is_for_any_program
from agent_adapters.secrecy import blank, keep_private
from agent_adapters.stderr import StderrOnlyLogSink
from agent_app.container import Container
from agent_app.stop_signals import STOP_SIGNALS
from agent_core.budget import ending_seconds
from agent_core.deadline import abandon
from agent_core.ending import Outcome
from agent_core.errors import AgentAliveError, AgentError, AgentFaultError
from agent_core.lifecycle import Agent
from agent_core.model import StopReason, StopRequest
from agent_core.recovery import Death

__all__ = ["live", "reap"]

_T = TypeVar("_T")


def live(container: Container, refused: AgentError | None, early: Sequence[signal.Signals]) -> Outcome:
    """Lives one life; `early` are the signals that came before there was anyone to take them.

    Raises:
        AgentAliveError: another agent works here; nothing was done.
    """
    if not container.state_lock().take():
        raise AgentAliveError("another agent works with this state folder")
    # What it was started with is no affair of the job, which may be of the same user.
    blank(os.getpid(), lambda variable: not is_for_any_program(variable.partition("=")[0]))
    keep_private()
    return _run(_live(container, refused, early))


def reap(container: Container, death: Death) -> Outcome | None:
    """Finishes what a dead agent left, whoever asks it to stop: it is bounded, and nobody comes after it.

    None: there was nothing to finish, or another is at it.
    """
    if not container.state_lock().take() and not death.is_certain:
        return None  # who is known to be dead holds no lock: then it is whoever wants the instance to stay
    return _run(_reap(container, death))


def _run(main: Coroutine[Any, Any, _T]) -> _T:
    """As `asyncio.run`; but that waits without a bound for what it has cancelled, and this does not.

    What escapes the loop is raised at once: the process is begun anew, so there is nothing to put in order.
    """
    return asyncio.new_event_loop().run_until_complete(_leaving_nobody(main))


async def _leaving_nobody(main: Coroutine[Any, Any, _T]) -> _T:
    """The result, when all other tasks have ended, or have had their time to."""
    try:
        return await main
    finally:
        # What still comes to pass is nobody's fault.
        asyncio.get_running_loop().set_exception_handler(_pass_over)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*(abandon(task) for task in others))


def _pass_over(_loop: asyncio.AbstractEventLoop, _context: dict[str, Any]) -> None:
    pass


async def _live(container: Container, refused: AgentError | None, early: Sequence[signal.Signals]) -> Outcome:
    agent = container.agent()
    loop = asyncio.get_running_loop()
    for number in _heard():
        loop.add_signal_handler(number, _stop, agent, number)
    _take_strays(agent, loop)
    for number in early:
        _stop(agent, number)
    if runs_as_root(container.settings().runner_user):
        agent.warn("the runner runs as root: make a user `runner`, or set RUNS_FLEET_RUNNER_USER")
    if isinstance(container.log_sink(), StderrOnlyLogSink):
        agent.warn("RUNS_FLEET_LOG_GROUP is not set: what the job prints goes to stderr only")
    feeding = container.service_manager().feed_watchdog(lambda: agent.is_overdue, agent.warn)
    aides = [asyncio.create_task(feeding, name="watchdog")]
    if (notices := _notices(container, agent)) is not None:
        aides.append(asyncio.create_task(notices, name="spot watch"))
    try:
        return await agent.run(refused)
    finally:
        for aide in aides:
            aide.cancel()
        for number in _heard():
            # The life is over; closing the loop would give the signals back their power to kill.
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


def _notices(container: Container, agent: Agent) -> Coroutine[Any, Any, None] | None:
    """Listens for AWS taking the instance back; None: there is nobody to listen to."""
    if container.profile() != "aws" or container.metadata() is None:
        return None
    watch: Coroutine[Any, Any, None] = container.spot_watch().run(agent.stop, agent.warn)
    return watch


async def _reap(container: Container, death: Death) -> Outcome | None:
    for number in _heard():
        signal.signal(number, signal.SIG_IGN)
    loop = asyncio.get_running_loop()
    latest = loop.time() + ending_seconds(container.settings().limits)
    feeding = container.service_manager().feed_watchdog(lambda: loop.time() > latest, _nowhere)
    watchdog = asyncio.create_task(feeding, name="watchdog")
    try:
        return await container.reaping(death=death)
    finally:
        watchdog.cancel()


def _nowhere(_text: str) -> None:
    pass


def _heard() -> list[signal.Signals]:
    """The signals that ask to stop, but for those that whoever started this wanted ignored (nohup)."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def _stop(agent: Agent, number: signal.Signals) -> None:
    agent.stop(StopRequest(StopReason.INTERRUPTED, f"interrupted by {number.name}", by=number.name))


def _take_strays(agent: Agent, loop: asyncio.AbstractEventLoop) -> None:
    """Makes exceptions in callbacks, forgotten tasks and threads faults of the agent, which end in order."""

    def take(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        agent.fault(context.get("exception") or AgentFaultError(str(context.get("message"))))

    def take_from_thread(args: threading.ExceptHookArgs) -> None:
        exc = args.exc_value or AgentFaultError(f"a thread raised {args.exc_type.__name__}")
        loop.call_soon_threadsafe(agent.fault, exc)

    loop.set_exception_handler(take)
    threading.excepthook = take_from_thread

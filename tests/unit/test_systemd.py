"""What systemd hears of an agent, on a real socket."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_adapters.systemd import ServiceManager, death_of
from agent_core.events import Event, JobStarted, PhaseEntered, Warned
from agent_core.phases import Phase
from agent_core.recovery import Death
from agent_core.testing.simulation import run

# In production the connection is as old as the process.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Where systemd listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(0)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def heard(systemd: socket.socket) -> list[list[str]]:
    """What came, the lines of each message."""
    messages = []
    while True:
        try:
            messages.append(systemd.recv(65536).decode().split("\n"))
        except BlockingIOError:
            return messages


def watched(seconds: float) -> ServiceManager:
    return ServiceManager(
        dict(os.environ) | {"WATCHDOG_USEC": f"{seconds * 1e6:.0f}", "WATCHDOG_PID": str(os.getpid())}
    )


def test_status(systemd: socket.socket) -> None:
    """Each thing that tells where the life is."""
    manager = ServiceManager(os.environ)
    events: tuple[Event, ...] = (PhaseEntered(Phase.LISTENING), Warned("a detail"), JobStarted("bäu 漢字"))
    for event in events:
        manager(event)

    assert heard(systemd) == [["STATUS=phase listening"], ["STATUS=job 'bäu 漢字' runs"]]


@given(st.text(st.characters(exclude_categories=[])))
def test_no_name_is_another_message(name: str) -> None:
    """Whatever a job is called, systemd hears one line of it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        manager = ServiceManager({})
        manager._socket = ours
        manager(JobStarted(f"{name}\nWATCHDOG=1\rMAINPID=1"))

        message = theirs.recv(65536).decode()
    assert message.startswith("STATUS=")
    assert len(message.splitlines()) == 1


def test_signs_of_life(systemd: socket.socket) -> None:
    """Four in the time that the watchdog allows, each of which keeps a stop from being cut short."""
    run(lambda: _feed(watched(60), [False] * 5))

    assert heard(systemd) == [["READY=1", "WATCHDOG=1", "EXTEND_TIMEOUT_USEC=60000000"]] * 5


def test_no_sign_of_a_life_that_hangs(systemd: socket.socket) -> None:
    """The loop turns, and the phase is over its bounds: that is told once, and systemd hears nothing."""
    warnings = run(lambda: _feed(watched(60), [False, True, True, True]))

    assert (len(heard(systemd)), len(warnings)) == (1, 1)


def test_a_life_that_moves_on_after_all(systemd: socket.socket) -> None:
    """Signs come again."""
    run(lambda: _feed(watched(60), [True, False]))

    assert len(heard(systemd)) == 1


async def _feed(manager: ServiceManager, overdue: list[bool]) -> list[str]:
    """Feeds for as many beats as there are answers."""
    warnings: list[str] = []
    answers = iter(overdue)
    over = asyncio.Event()

    def is_overdue() -> bool:
        answer = next(answers, None)
        if answer is None:
            over.set()
            return True
        return answer

    feeding = asyncio.create_task(manager.feed_watchdog(is_overdue, warnings.append))
    begun = asyncio.get_running_loop().time()
    await over.wait()
    feeding.cancel()
    assert asyncio.get_running_loop().time() - begun == pytest.approx(15 * len(overdue))
    return warnings


@pytest.mark.parametrize("usec", ["", "0", "-5", "x", "60000000"])
@pytest.mark.parametrize("pid", [None, "1", "x"])
def test_a_watchdog_that_is_not_ours(systemd: socket.socket, usec: str, pid: str | None) -> None:
    """What it is told every 15 s does no harm."""
    environ = dict(os.environ) | {"WATCHDOG_USEC": usec}
    run(lambda: _feed(ServiceManager(environ | ({} if pid is None else {"WATCHDOG_PID": pid})), [False]))

    assert len(heard(systemd)) == 1


@pytest.mark.parametrize("address", [None, "", "/nowhere", "@nobody-listens-here", "x" * 200])
def test_nobody_listens(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing happens."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    manager = ServiceManager(os.environ)
    manager(PhaseEntered(Phase.RUNNING))
    run(lambda: _feed(manager, [False, False]))


def test_a_service_manager_that_is_stuck(systemd: socket.socket) -> None:
    """Nobody reads: a status that finds no room is not shown, and nobody waits for it."""
    manager = ServiceManager(os.environ)
    for _ in range(10_000):
        manager(PhaseEntered(Phase.RUNNING))

    assert heard(systemd)


def test_a_flood_does_not_starve_the_watchdog(systemd: socket.socket) -> None:
    """A sign of life that finds no room goes as soon as there is some."""

    async def main() -> None:
        manager = watched(60)
        for _ in range(10_000):
            manager(PhaseEntered(Phase.RUNNING))
        feeding = asyncio.create_task(manager.feed_watchdog(lambda: False, print))
        for _ in range(100):
            await asyncio.sleep(0)
        assert all(message[0].startswith("STATUS=") for message in heard(systemd))
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(systemd, readable.set)
        async with asyncio.timeout(10):  # the next beat is later
            await readable.wait()
        loop.remove_reader(systemd)
        feeding.cancel()

    asyncio.run(main())
    assert heard(systemd) == [["READY=1", "WATCHDOG=1", "EXTEND_TIMEOUT_USEC=60000000"]]


@pytest.mark.parametrize(
    ("end", "death"),
    [
        ("watchdog killed KILL", Death(cause="watchdog (killed KILL)", is_certain=True)),
        (
            "signal killed TERM",
            Death(cause="signal (killed TERM)", is_certain=True, interrupted_by="SIGTERM"),
        ),
        ("exit-code exited 69", Death(cause="exit-code (exited 69)", is_certain=True)),
        ("exit-code exited 1", Death(cause="exit-code (exited 1)", is_certain=True)),
        ("exit-code exited 64", Death(cause="exit-code (exited 64)")),
        ("success exited 0", Death(cause="success (exited 0)", is_certain=True, is_in_order=True)),
        ("timeout", Death(cause="timeout")),
        ("", None),
    ],
)
def test_death(end: str, death: Death | None) -> None:
    """What systemd says of the agent's end is what its successor goes by."""
    environ = dict(zip(("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS"), end.split(), strict=False))

    assert death_of(environ) == death

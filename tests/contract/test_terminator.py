"""The terminators keep the promises of their port."""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from agent_adapters.filesystem import FileTerminator
from agent_adapters.memory import InMemoryTerminator, Machine
from agent_core.errors import TerminatorDeniedError, TerminatorUnavailableError
from agent_core.testing import simulation
from agent_core.testing.contracts import TerminatorContract
from support.cloud import cloud_container
from support.faults import Answer, Refuse, denied, throttled

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from agent_adapters.aws.terminator import Ec2Terminator
    from support.aws import Aws
    from support.faults import Fault

pytestmark = pytest.mark.usefixtures("patient")

NOW = datetime(2025, 11, 25, 10, tzinfo=UTC)


class TestInMemoryTerminator(TerminatorContract):
    def setup_method(self) -> None:
        self.terminator = InMemoryTerminator(Machine(instance_id=self.instance_id))

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        return simulation.run(lambda: main)

    def make(self) -> InMemoryTerminator:
        return self.terminator

    def requests(self) -> Sequence[str]:
        return self.terminator.requests

    def deny(self) -> None:
        self.terminator.denied = True

    def break_(self) -> None:
        self.terminator.error = TerminatorUnavailableError("it does not answer")

    def powered_off(self) -> int:
        return self.terminator.powered_off


class TestFileTerminator(TerminatorContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "state" / "terminations.jsonl"

    def make(self) -> FileTerminator:
        return FileTerminator(self.path, lambda: NOW)

    def requests(self) -> Sequence[str]:
        if not self.path.is_file():
            return []
        requests = [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]
        assert {datetime.fromisoformat(request["requested_at"]) for request in requests} <= {NOW}
        return [request["instance_id"] for request in requests]

    def deny(self) -> None:
        self.path.parent.touch()

    def break_(self) -> None:
        self.path.parent.mkdir()
        self.path.symlink_to("/dev/full")


class TestEc2Terminator(TerminatorContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
        self.aws, self.folder = aws, tmp_path
        self.instance_id = aws.instance()  # type: ignore[misc]
        aws.own_instance = self.instance_id
        self.bin, self.said = tmp_path / "bin", tmp_path / "said"
        self.bin.mkdir()
        monkeypatch.setenv("PATH", str(self.bin))
        for name in ("systemctl", "shutdown", "poweroff"):
            (self.bin / name).write_text(f"#!/bin/sh\necho {name} $* >> {self.said}\n")
            (self.bin / name).chmod(0o755)

    def make(self) -> Ec2Terminator:
        return cloud_container(self.folder).terminator()  # type: ignore[no-any-return]

    def requests(self) -> Sequence[str]:
        return self.aws.terminations

    def deny(self) -> None:
        self.aws.own_instance = "i-another"

    def break_(self) -> None:
        self.aws.faults.plan("ec2:TerminateInstances", Answer(500, "InternalError"))

    def powered_off(self) -> int:
        return len(self.orders())

    def orders(self) -> list[str]:
        """What was said to the commands that power off a host: stand-ins, and nothing else can be reached."""
        return self.said.read_text().splitlines() if self.said.exists() else []

    @pytest.mark.parametrize(
        ("refusing", "order"),
        [
            ([], "systemctl poweroff"),
            (["systemctl"], "shutdown -h now"),
            (["systemctl", "shutdown"], "poweroff"),
        ],
    )
    def test_the_first_command_that_obeys_powers_off(self, refusing: Sequence[str], order: str) -> None:
        """What fails is followed by the next."""
        for name in refusing:
            (self.bin / name).write_text("#!/bin/sh\necho Access denied\nexit 1\n")

        asyncio.run(self.make().power_off())

        assert self.orders() == [order]

    def test_no_command_obeys(self) -> None:
        """The error has what each had to say."""
        (self.bin / "systemctl").write_text("#!/bin/sh\necho Access denied\nexit 1\n")
        for name in ("shutdown", "poweroff"):
            (self.bin / name).unlink()

        with pytest.raises(TerminatorUnavailableError) as caught:
            asyncio.run(self.make().power_off())

        assert "systemctl: exit code 1: Access denied; shutdown: not found" in str(caught.value)

    def test_the_instance_goes(self) -> None:
        """EC2 has it no longer running."""
        asyncio.run(self.make().terminate(self.instance_id))

        assert self.aws.state_of(self.instance_id) in {"shutting-down", "terminated"}

    @pytest.mark.parametrize(
        "fault", [throttled("ec2"), Refuse(), Answer(503, "Unavailable"), Answer(400, "RequestExpired")]
    )
    def test_what_passes_is_unavailable(self, fault: Fault) -> None:
        """It is asked for again."""
        terminator = self.make()
        self.aws.faults.plan("ec2:TerminateInstances", fault, times=1)
        with pytest.raises(TerminatorUnavailableError):
            asyncio.run(terminator.terminate(self.instance_id))

        asyncio.run(terminator.terminate(self.instance_id))

        assert self.aws.terminations == [self.instance_id]

    @pytest.mark.parametrize("fault", [denied("ec2"), Answer(400, "OperationNotPermitted")])
    def test_what_does_not_pass_is_denied(self, fault: Fault) -> None:
        """No permission, or termination protection."""
        self.aws.faults.plan("ec2:TerminateInstances", fault)

        with pytest.raises(TerminatorDeniedError):
            asyncio.run(self.make().terminate(self.instance_id))

    def test_an_instance_without_an_id_is_denied(self) -> None:
        """Nobody is asked."""
        with pytest.raises(TerminatorDeniedError, match="not known"):
            asyncio.run(self.make().terminate(""))

        assert not self.aws.calls


# One of them only


def test_memory_terminates_no_other_instance() -> None:
    """As the role of an instance allows it to terminate only itself."""
    terminator = InMemoryTerminator(Machine(instance_id="i-1"))

    with pytest.raises(TerminatorDeniedError):
        simulation.run(lambda: terminator.terminate("i-2"))

    assert terminator.requests == []


@pytest.mark.parametrize("what", ["a file for the folder", "a folder for the file", "no permission"])
def test_a_place_that_cannot_be_written_is_denied(
    tmp_path: Path, unprivileged: Callable[[], None], what: str
) -> None:
    """Trying again cannot help."""
    path = tmp_path / "state" / "terminations.jsonl"
    match what:
        case "a file for the folder":
            path.parent.touch()
        case "a folder for the file":
            path.mkdir(parents=True)
        case _:
            path.parent.mkdir(0o500)
            unprivileged()

    with pytest.raises(TerminatorDeniedError):
        asyncio.run(FileTerminator(path, lambda: NOW).terminate("i-1"))


def test_a_system_without_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job may have used them all up: the request is made all the same."""
    path = tmp_path / "terminations.jsonl"

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    asyncio.run(FileTerminator(path, lambda: NOW).terminate("i-1"))

    assert path.read_text("utf-8").count("i-1") == 1

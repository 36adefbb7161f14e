"""Machines behave as an instance does where the agent's units rely on it, and leave nothing behind."""

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from support.aws import Aws
from support.machine import TIMEOUT_SECONDS, Machine, boot, need_machine
from support.wheel import COMMAND

NOTIFIES: Final = "[Service]\nType=notify\nNotifyAccess=all\n"
USER: Final = """\
import os, signal
from support.machine import boot

with boot() as machine:
    name = open(f"/proc/{machine.pid}/cgroup").read().split("0::/")[1].split("/")[0]
    print(name, os.readlink(f"/proc/{machine.pid}/ns/pid"), machine._guardian.pid, flush=True)
    signal.pause()
"""


class TestUnits:
    def test_watchdog(self, machine: Machine) -> None:
        """A service that feeds its watchdog no more is killed; what is to be done afterwards is done."""
        machine.write(
            "/etc/systemd/system/hanging.service",
            f"{NOTIFIES}WatchdogSec=1\nExecStart=sh -c 'systemd-notify --ready; exec sleep 1000'\n"
            "ExecStopPost=sh -c 'echo $SERVICE_RESULT > /var/afterwards'\n",
        )
        machine.run("systemctl", "start", "hanging.service")
        machine.wait_until_over("hanging.service")
        assert machine.show("hanging.service", "Result") == "watchdog"
        assert machine.read("/var/afterwards") == "watchdog\n"

    def test_mixed_kill(self, machine: Machine) -> None:
        """Only the main process is asked to stop; the others are killed when it has."""
        machine.write(
            "/etc/systemd/system/mixed.service",
            f"{NOTIFIES}KillMode=mixed\nExecStart=bash /usr/local/bin/mixed\n",
        )
        machine.write(
            "/usr/local/bin/mixed",
            "trap 'echo main was asked; exit' TERM\n"
            "(\n"
            "  trap 'echo child was asked' TERM\n"
            "  systemd-notify --ready\n"
            "  while true; do sleep 1000 & wait; done\n"
            ") &\n"
            "wait\n",
        )
        machine.run("systemctl", "start", "mixed.service")
        machine.run("systemctl", "stop", "mixed.service")
        journal = machine.journal("mixed.service")
        assert "main was asked" in journal
        assert "child was asked" not in journal
        assert not [command for _, command in machine.processes() if "mixed" in command or "sleep" in command]

    def test_what_is_started_on_failure(self, machine: Machine) -> None:
        machine.write(
            "/etc/systemd/system/failing.service",
            "[Unit]\nOnFailure=successor.service\n[Service]\nType=exec\nExecStart=sleep 1000\n",
        )
        machine.write("/etc/systemd/system/successor.service", "[Service]\nExecStart=echo here it is\n")
        machine.run("systemctl", "start", "failing.service")
        (pid,) = [pid for pid, command in machine.processes() if command.endswith("sleep 1000")]
        machine.kill(pid, signal.SIGKILL)
        with machine.follow("successor.service") as journal:
            journal.wait_for("here it is")
        assert machine.show("failing.service", "Result") == "signal"


class TestPower:
    @pytest.mark.parametrize(
        ("verb", "number"), [("poweroff", signal.SIGINT), ("reboot", signal.SIGHUP)], ids=["off", "reboot"]
    )
    def test_it_goes_down(self, machine: Machine, verb: str, number: signal.Signals) -> None:
        assert machine.is_up
        machine.run("systemd-run", "systemctl", verb)
        assert machine.wait_until_down() == number
        assert not machine.is_up

    @pytest.mark.parametrize(
        "properties",
        [("ExecStart=systemctl poweroff",), ("ExecStart=false", "FailureAction=poweroff")],
        ids=["asked", "failure action"],
    )
    def test_it_stays(self, machine: Machine, properties: tuple[str, ...]) -> None:
        """Where it is told to, a request to power off is only remembered."""
        machine.stay_at_power_off()
        assert not machine.power_off_asked()
        # FailureAction= belongs to [Unit], ExecStart= to [Service]
        command, *actions = properties
        machine.write(
            "/etc/systemd/system/last.service", "\n".join(["[Unit]", *actions, "[Service]", command, ""])
        )
        machine.run("systemctl", "start", "last.service")
        machine.wait_until_power_off_asked()
        assert machine.power_off_asked()
        machine.wait_until_over("last.service")
        assert machine.is_up


class TestWhatItSees:
    def test_wheel(self, machine: Machine) -> None:
        said = machine.run(COMMAND, "--version")
        assert said == subprocess.check_output([COMMAND, "--version"], text=True)

    def test_servers(self, machine: Machine, aws: Aws) -> None:
        """Servers of the tests are reached; what they answer is up to them."""
        url = aws.environ["AWS_ENDPOINT_URL"]
        machine.run("curl", "--silent", "--show-error", "--output", "/dev/null", url)

    def test_shared_folder(self, machine: Machine, tmp_path: Path) -> None:
        (tmp_path / "outside").write_text("from outside")
        assert machine.read(tmp_path / "outside") == "from outside"
        machine.write(tmp_path / "folder/inside", "from inside")
        assert (tmp_path / "folder/inside").read_text() == "from inside"

    def test_what_is_not_shared(self, machine: Machine) -> None:
        """What it does to the rest stays within it."""
        machine.write("/etc/of-the-machine", "")
        machine.write("/tmp/of-the-machine", "")  # noqa: S108
        assert not Path("/etc/of-the-machine").exists()
        assert not Path("/tmp/of-the-machine").exists()  # noqa: S108

    def test_full_file_system(self, machine: Machine) -> None:
        machine.mount_full("/var/lib/full")
        assert machine.status_of("sh", "-c", "echo more > /var/lib/full/more") != 0


class TestEnd:
    @pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
    def test_of_the_block(self, tmp_path: Path, error: type[BaseException] | None) -> None:
        """However the block ends, nothing is left."""
        need_machine()
        with suppress(ZeroDivisionError, KeyboardInterrupt), boot(tmp_path) as machine:
            machine.run("systemd-run", "setsid", "sleep", "1000")
            name, namespace = _name_of(machine), Path(f"/proc/{machine.pid}/ns/pid").readlink()
            assert all(_left_of(name, namespace))
            if error is not None:
                raise error
        assert not any(_left_of(name, namespace))

    def test_of_the_process(self) -> None:
        """Nothing is left of a machine whose test process was killed."""
        need_machine()
        user = subprocess.Popen(
            [sys.executable, "-c", USER],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        )
        assert user.stdout is not None
        name, namespace, guardian = user.stdout.readline().split()
        assert all(_left_of(name, Path(namespace)))
        over = os.pidfd_open(int(guardian))
        user.kill()
        user.communicate()
        assert select.select([over], [], [], TIMEOUT_SECONDS)[0]
        os.close(over)
        assert not any(_left_of(name, Path(namespace)))


def _name_of(machine: Machine) -> str:
    """What its cgroup and its folder are called."""
    return Path(f"/proc/{machine.pid}/cgroup").read_text().split("0::/")[1].split("/")[0]


def _left_of(name: str, namespace: Path) -> tuple[list[str], list[str], list[Path], list[Path]]:
    """The processes, those that have its mounts, the cgroups, the folders."""
    processes = [proc.name for proc in Path("/proc").glob("[0-9]*")]
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return (
        [pid for pid in processes if _is_in(pid, namespace)],
        [pid for pid in processes if _has_mounts(pid, name)],
        [path for mount in mounts if mount[2] == "cgroup2" for path in Path(mount[1]).glob(name)],
        list(Path("/tmp").glob(name)),  # noqa: S108
    )


def _is_in(pid: str, namespace: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/ns/pid").readlink() == namespace
    except OSError:
        return False


def _has_mounts(pid: str, name: str) -> bool:
    try:
        return name in Path(f"/proc/{pid}/mountinfo").read_text()
    except OSError:
        return False

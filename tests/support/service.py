"""The agent as systemd runs it: the wheel's units, on a machine that is an instance of the fake cloud."""

from collections.abc import Mapping
from signal import Signals
from typing import Any

from support.instance import Instance
from support.machine import Machine
from support.wheel import COMMAND, statuses_of

__all__ = ["POWER_OFF", "SERVICE", "TIMER", "Service"]

SERVICE = "runs-fleet-agent.service"
POWER_OFF = "runs-fleet-agent-poweroff.service"
TIMER = "runs-fleet-agent-poweroff.timer"


class Service:
    """The units, installed as a user would; not started yet. A power-off is only remembered."""

    def __init__(self, machine: Machine, instance: Instance) -> None:
        self.machine, self.instance = machine, instance
        machine.stay_at_power_off()
        self.configure()
        self.install()

    def configure(self, **variables: str) -> None:
        """Writes the agent's environment file, with these variables as well."""
        lines = [f'{name}="{value}"\n' for name, value in (self.instance.variables | variables).items()]
        self.machine.write("/etc/runs-fleet/agent.env", "".join(lines))

    def install(self, *flags: str) -> str:
        """Writes the units; what the command says."""
        said = self.machine.run(COMMAND, "install-units", *flags)
        self.machine.run("systemctl", "daemon-reload")
        return said

    def drop_in(self, text: str, unit: str = SERVICE) -> None:
        """Changes a unit as an operator would."""
        self.machine.write(f"/etc/systemd/system/{unit}.d/test.conf", text)
        self.machine.run("systemctl", "daemon-reload")

    def begin(self) -> None:
        """Starts it, and does not wait."""
        self.machine.run("systemctl", "start", "--no-block", SERVICE)

    @property
    def main_pid(self) -> int:
        return int(self.machine.show(SERVICE, "MainPID"))

    def signal(self, number: Signals, whom: str = "main") -> None:
        """Sends a signal, as an operator would."""
        self.machine.run("systemctl", "kill", f"--kill-whom={whom}", f"--signal={number.name}", SERVICE)

    def wait_until_over(self) -> None:
        """Returns when the agent, and what comes after it, has ended, and nothing of the runner is left."""
        self.machine.wait_until_over(SERVICE)
        left = [command for _, command in self.machine.processes() if self._is_of_runner(command)]
        assert not left, left

    def _is_of_runner(self, command: str) -> bool:
        return str(self.instance.runner_dir) in command or str(self.instance.folder) in command

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What the queue took, repeats too."""
        return self.instance.aws.messages(self.instance.queue_url)

    @property
    def statuses(self) -> list[str]:
        return statuses_of(self.messages)

    @property
    def finals(self) -> list[Mapping[str, Any]]:
        return [message for message in self.messages if message["status"] != "started"]

    @property
    def state(self) -> str:
        """The instance's, as EC2 has it."""
        return self.instance.aws.state_of(self.instance.instance_id)

    @property
    def journal(self) -> str:
        return self.machine.journal(SERVICE)

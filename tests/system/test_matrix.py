"""Whatever befalls the agent, in whatever phase: the instance goes, the queue hears, no process is left."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic
from typing import Final

import pytest

from agent_core.budget import ending_seconds
from agent_core.model import Limits
from support.faults import Hang
from support.machine import Journal
from support.service import SERVICE, Service

_WATCHDOG_SECONDS: Final = 20
_SHORT_TIMES: Final = f"[Service]\nTimeoutStartSec=40\nWatchdogSec={_WATCHDOG_SECONDS}\n"
"""Short, but no machine is so busy that an agent which does not hang is killed for it."""
_GRACE: Final = timedelta(seconds=20)
_SMALL_DISK: Final = "4m"
_MANY_FILES: Final = "mkdir many && cd many && seq 60000 | xargs touch\n"
"""So that they take a while to be removed."""


class Cell:
    """One agent, which is held in a phase."""

    def __init__(self, service: Service, journal: Journal) -> None:
        self.service, self.journal = service, journal
        self.instance = service.instance

    # Phases: each returns when the agent is in it, and stays

    def booting(self) -> None:
        """It asks which instance this is."""
        self.instance.imds.faults.plan("imds:*", Hang())
        self.service.begin()
        self.instance.imds.wait_for("imds:*")

    def configuring(self) -> None:
        self.instance.aws.faults.plan("ssm:*", Hang())
        self.run_to("phase configuring")
        self.instance.aws.wait_for("ssm:*")

    def provisioning(self) -> None:
        self.instance.github.faults.plan("github:download", Hang())
        self.run_to("phase provisioning")
        self.instance.github.wait_for("github:download")

    def registering(self) -> None:
        """The runner's own script takes a moment."""
        self.run_to("phase registering")

    def listening(self) -> None:
        self.instance.publish(scenario={"never_assign": True})
        self.run_to("phase listening", "Listening for Jobs")

    def running(self) -> None:
        self.run_to("job 'sample' runs", "begun")

    def stopping(self) -> None:
        self.instance.publish(job="echo begun\nexec sleep 1000\n", scenario={"ignore_sigint": True})
        self.run_to("job 'sample' runs")
        self.service.signal(signal.SIGTERM)
        self.journal.wait_for("phase stopping")

    def reporting(self) -> None:
        self.instance.aws.faults.plan("sqs:*", Hang())
        self.instance.go()
        self.run_to("phase reporting")
        self.instance.aws.wait_for("sqs:*")

    def cleaning(self) -> None:
        self.instance.publish(job=_MANY_FILES)
        self.service.machine.mount_empty(self.instance.runner_dir.parent)
        self.run_to("phase cleaning")

    def terminating(self) -> None:
        self.instance.aws.faults.plan("ec2:TerminateInstances", Hang())
        self.instance.go()
        self.run_to("phase terminating")
        self.instance.aws.wait_for("ec2:TerminateInstances")

    def run_to(self, *texts: str) -> None:
        self.service.begin()
        self.journal.wait_for(*texts)

    # What befalls it

    def kill(self) -> None:
        self.service.signal(signal.SIGKILL)

    def hang(self) -> None:
        """The watchdog has to act."""
        self.service.signal(signal.SIGSTOP)

    def stop(self) -> None:
        self.service.machine.run("systemctl", "stop", "--no-block", SERVICE)

    def terminate_twice(self) -> None:
        self.service.signal(signal.SIGTERM)
        self.service.signal(signal.SIGTERM)

    def kill_runner(self) -> None:
        """As the kernel does where memory runs out."""
        machine, root = self.service.machine, str(self.instance.runner_dir)
        for pid, command in machine.processes():
            if root in command and "Runner." in command:
                machine.run("sh", "-c", f"kill -KILL {pid} 2>/dev/null || true")
        self.go_on()

    def kill_all(self) -> None:
        self.service.signal(signal.SIGKILL, "all")

    def fill_disk(self) -> None:
        """Its own end has to come from somewhere: it is asked to stop."""
        self.service.machine.status_of("cp", "/dev/zero", self.instance.state_dir / "filler")
        self.stop()

    def fill_disk_and_kill(self) -> None:
        self.service.machine.status_of("cp", "/dev/zero", self.instance.state_dir / "filler")
        self.kill()

    def go_on(self) -> None:
        """Nothing holds the agent any more, but what befell it."""
        self.instance.imds.faults.heal()
        self.instance.aws.faults.heal()
        self.instance.github.faults.heal()


PHASES: Final[tuple[Callable[[Cell], None], ...]] = (
    Cell.booting,
    Cell.configuring,
    Cell.provisioning,
    Cell.registering,
    Cell.listening,
    Cell.running,
    Cell.stopping,
    Cell.reporting,
    Cell.cleaning,
    Cell.terminating,
)
FAULTS: Final[tuple[Callable[[Cell], None], ...]] = (
    Cell.kill,
    Cell.hang,
    Cell.stop,
    Cell.terminate_twice,
    Cell.kill_all,
    Cell.fill_disk,
    Cell.fill_disk_and_kill,
)
WITH_RUNNER: Final = (Cell.listening, Cell.running, Cell.stopping)


@contextmanager
def cell_of(service: Service) -> Iterator[Cell]:
    """An agent with a job of its own, not begun; its state folder is a small disk."""
    instance = service.instance
    instance.put_config()
    instance.publish(job="echo begun\n" + instance.until_go)
    service.machine.mount_empty(instance.state_dir, _SMALL_DISK)
    service.configure(RUNS_FLEET_SHUTDOWN_GRACE_SECONDS=f"{_GRACE.total_seconds():g}")
    service.drop_in(_SHORT_TIMES)
    with service.machine.follow(SERVICE) as journal:
        yield Cell(service, journal)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
def test_agent(
    service: Service,
    phase: Callable[[Cell], None],
    fault: Callable[[Cell], None],
    record_property: Callable[[str, object], None],
) -> None:
    """Something befalls the agent."""
    with cell_of(service) as cell:
        phase(cell)
        begun = monotonic()
        fault(cell)
        cell.go_on()
        service.wait_until_over()
    record_property(f"{phase.__name__} {fault.__name__}", assert_one_end(service, begun))


@pytest.mark.parametrize("phase", WITH_RUNNER, ids=lambda phase: phase.__name__)
def test_runner(
    service: Service, phase: Callable[[Cell], None], record_property: Callable[[str, object], None]
) -> None:
    """Something befalls the runner, and the agent goes on to its end."""
    with cell_of(service) as cell:
        phase(cell)
        begun = monotonic()
        cell.kill_runner()
        service.wait_until_over()
    record_property(f"{phase.__name__} kill_runner", assert_one_end(service, begun))
    assert service.machine.show(SERVICE, "Result") == "success"


@pytest.mark.parametrize("hangs", [True, False])
def test_agent_that_is_slow_to_stop(service: Service, *, hangs: bool) -> None:
    """TimeoutStopSec ends an agent that hangs; one that moves on may take longer, as signs of life come."""
    with cell_of(service) as cell:
        service.drop_in(f"{_SHORT_TIMES}TimeoutStopSec=6\n")
        cell.instance.publish(job="exec sleep 1000\n", scenario={"ignore_sigint": True})
        cell.run_to("job 'sample' runs")
        begun = monotonic()
        cell.stop()
        cell.journal.wait_for("phase stopping")
        if hangs:
            cell.hang()
        service.wait_until_over()
    assert_one_end(service, begun)
    assert service.machine.show(SERVICE, "Result") == ("timeout" if hangs else "success")
    assert service.finals[0]["status"] == "interrupted"


def assert_one_end(service: Service, begun: float) -> float:
    """Termination was asked for in time, and the queue has one end of the job, perhaps more than once.

    So many seconds after `begun` it was asked for.
    """
    asked = service.instance.aws.wait_for("ec2:TerminateInstances", status=200)[0].at - begun
    limits = Limits(shutdown_grace=_GRACE)
    assert asked < _WATCHDOG_SECONDS + ending_seconds(limits) + ending_seconds(limits)  # agent, and successor
    assert service.state in {"shutting-down", "terminated"}
    assert service.finals
    assert len({message["message_id"] for message in service.finals}) == 1
    assert len({message["status"] for message in service.finals}) == 1
    return asked

"""The agent under a real systemd, as its units have it: what starts it, watches it, and stands behind it."""

import signal
from pathlib import Path

import pytest

from support.faults import Hang, denied
from support.machine import Machine
from support.planting import plant
from support.service import POWER_OFF, SERVICE, TIMER, Service
from support.wheel import COMMAND

UNITS = Path("/etc/systemd/system")
MOST_EXPOSED = {SERVICE: 9.6, POWER_OFF: 2.0}
"""As docs/systemd.md explains."""


def test_a_job(service: Service) -> None:
    """From the start to a clean end: systemd knows where it is, and what stands behind it does nothing.

    The job is root's, and finds itself at home.
    """
    instance = service.instance
    service.configure(RUNS_FLEET_RUNNER_USER="root")
    instance.put_config()
    instance.publish(job='echo "login: $HOME $USER"\n' + instance.until_go)
    with service.machine.follow(SERVICE) as journal:
        service.begin()
        journal.wait_for("job 'sample' runs")
        assert service.machine.show(SERVICE, "ActiveState") == "active"
        assert service.machine.show(SERVICE, "StatusText") == "job 'sample' runs"
        assert service.machine.show(TIMER, "ActiveState") == "active"
        instance.go()
    service.wait_until_over()

    assert service.machine.show(SERVICE, "Result") == "success"
    assert service.statuses == ["started", "success"]
    assert service.state in {"shutting-down", "terminated"}
    assert len(instance.aws.terminations) == 1
    assert "the agent died" not in service.journal
    assert f"login: {Path('~root').expanduser()} root" in service.journal
    assert service.machine.show(POWER_OFF, "InvocationID") == ""


def test_units_are_sound(service: Service) -> None:
    """There is nothing that systemd has to say about them, and no more exposed than the docs say."""
    units = [UNITS / name for name in (SERVICE, POWER_OFF, TIMER)]
    assert service.machine.run("sh", "-c", f"systemd-analyze verify {' '.join(map(str, units))} 2>&1") == ""
    for name, most in MOST_EXPOSED.items():
        service.machine.run(
            "systemd-analyze", "security", "--offline=true", f"--threshold={most * 10:.0f}", UNITS / name
        )


def test_units_that_are_enabled(machine: Machine, tmp_path: Path) -> None:
    """What install-units says is to be done next does it: a boot starts them."""
    machine.run(COMMAND, "install-units", "--unit-dir", tmp_path)
    machine.run("sh", "-c", f"cp {tmp_path}/*.service {tmp_path}/*.timer {UNITS}")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "enable", SERVICE, TIMER)

    assert machine.show("multi-user.target", "Wants").split().count(SERVICE) == 1
    assert machine.show("timers.target", "Wants").split().count(TIMER) == 1


def test_terminate_denied_for_good(service: Service) -> None:
    """The agent asks the host to power off; log and exit status say so."""
    instance = service.instance
    instance.put_config()
    instance.publish()
    instance.aws.faults.plan("ec2:TerminateInstances", denied("ec2"))
    service.configure(RUNS_FLEET_POWEROFF="1")
    with service.machine.follow(SERVICE) as journal:
        service.begin()
        journal.wait_for("asking for the termination of")
        journal.wait_for("powering off the host: the request to terminate was not accepted")
        journal.wait_for("status=69")

    assert service.machine.power_off_asked()
    assert service.statuses == ["started", "success"]


@pytest.mark.parametrize("armed", [True, False])
def test_an_agent_that_cannot_start(service: Service, *, armed: bool) -> None:
    """Neither it nor its successor can be imported: the host is asked to power off."""
    service.configure(RUNS_FLEET_POWEROFF=str(int(armed)), PYTHONPATH=str(service.instance.folder / "broken"))
    package = service.instance.folder / "broken" / "agent_core"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("this is no Python\n")
    service.begin()
    service.wait_until_over()
    if armed:
        service.machine.wait_until_power_off_asked()
    else:
        service.machine.wait_until_over(POWER_OFF)

    assert service.machine.show(SERVICE, "Result") == "exit-code"
    assert service.machine.show(POWER_OFF, "Result") == ("success" if armed else "exec-condition")
    assert service.machine.power_off_asked() is armed


def test_a_timer_ends_what_nobody_else_does(service: Service) -> None:
    """The agent hangs, nothing watches it, and its time is over."""
    instance = service.instance
    instance.put_config()
    instance.publish(job="exec sleep 1000\n")
    service.configure(RUNS_FLEET_POWEROFF="1")
    service.drop_in("[Service]\nWatchdogSec=0\n")
    service.drop_in("[Timer]\nOnActiveSec=\nOnActiveSec=5\n", TIMER)
    with service.machine.follow(SERVICE) as journal:
        service.begin()
        journal.wait_for("phase listening")
    service.signal(signal.SIGSTOP, "main")
    service.machine.wait_until_power_off_asked()


def test_a_job_that_may_run_for_longer(service: Service) -> None:
    """The timer is moved for it, before the old one would end it."""
    instance = service.instance
    instance.put_config(max_runtime_minutes=720)
    instance.publish(job=instance.until_go)
    with service.machine.follow(SERVICE) as journal:
        service.begin()
        journal.wait_for("the job may run for 12:00:00")
    with service.machine.follow(TIMER) as journal:
        journal.wait_for(f"Stopped {TIMER}")
    assert active_timers(service.machine) == [f"runs-fleet-agent-poweroff-{25523 + 360 * 60}.timer"]
    instance.go()
    service.wait_until_over()
    assert "before its time" not in service.journal


def test_limits_that_were_raised_after_the_units(service: Service) -> None:
    """The timer is moved for them, too."""
    instance = service.instance
    instance.put_config()
    instance.publish(job=instance.until_go)
    service.configure(RUNS_FLEET_MAX_RUNTIME="400")
    with service.machine.follow(TIMER) as journal:
        service.begin()
        journal.wait_for(f"Stopped {TIMER}")
    assert active_timers(service.machine) == [f"runs-fleet-agent-poweroff-{25523 + 40 * 60}.timer"]
    instance.go()
    service.wait_until_over()
    assert "before its time" not in service.journal


def test_reap_by_hand(service: Service) -> None:
    """The service runs, with a state folder that the shell does not know: it is left alone."""
    instance = service.instance
    instance.put_config()
    instance.publish(job=instance.until_go)
    with service.machine.follow(SERVICE) as journal:
        service.begin()
        journal.wait_for("job 'sample' runs")
        variables = [
            f"{name}={value}" for name, value in instance.variables.items() if "STATE_DIR" not in name
        ]
        service.machine.run("env", *variables, COMMAND, "reap")
        instance.go()
    service.wait_until_over()

    assert service.statuses == ["started", "success"]
    assert len(instance.aws.terminations) == 1


def test_a_stranger_that_holds_the_lock(service: Service) -> None:
    """The agent is dead, systemd says so: whoever has its lock is none."""
    instance = service.instance
    instance.put_config()
    instance.publish(job="exec sleep 1000\n")
    with service.machine.follow(SERVICE) as journal:
        service.begin()
        journal.wait_for("job 'sample' runs", "sent the message started")
    folder = f"--working-directory={instance.state_dir}"
    service.machine.run("systemd-run", "--quiet", folder, "flock", "agent.lock", "sleep", "1000")
    service.signal(signal.SIGKILL)
    service.wait_until_over()

    assert service.statuses[1:] == ["failure"]
    assert service.state in {"shutting-down", "terminated"}


def test_journald_is_gone(service: Service) -> None:
    """The job stops it: nobody takes what the agent says any more, and its end is in order all the same."""
    instance = service.instance
    service.configure(RUNS_FLEET_RUNNER_USER="root")
    instance.put_config()
    instance.publish(job="systemctl stop systemd-journald\n")
    service.begin()
    service.wait_until_over()

    assert service.machine.show(SERVICE, "Result") == "success"
    assert service.machine.show(SERVICE, "ExecMainStatus") == "0"
    assert service.statuses == ["started", "success"]


def test_a_signal_while_reap_begins(service: Service) -> None:
    """It comes before Python could take it, and nobody comes after reap: it is not heard."""
    instance = service.instance
    instance.put_config()
    instance.publish(job="exec sleep 1000\n")
    service.configure(**plant(instance.folder, "import os; os.kill(os.getpid(), 15)", "reap"))
    with service.machine.follow(SERVICE) as journal:
        service.begin()
        journal.wait_for("job 'sample' runs", "sent the message started")
    service.signal(signal.SIGKILL)
    service.wait_until_over()

    assert service.statuses == ["started", "failure"]
    assert service.state in {"shutting-down", "terminated"}


def test_a_state_folder_that_cannot_be(service: Service) -> None:
    """The agent had the default one instead, and is dead: so has its successor."""
    instance = service.instance
    instance.put_config()
    service.configure(RUNS_FLEET_STATE_DIR="~/state")
    instance.imds.faults.plan("imds:*", Hang())
    service.begin()
    instance.imds.wait_for("imds:*")
    service.signal(signal.SIGKILL)
    instance.imds.faults.heal()
    service.wait_until_over()

    assert service.statuses == ["failure"]
    assert service.state in {"shutting-down", "terminated"}


def active_timers(machine: Machine) -> list[str]:
    """Those that would power the machine off."""
    listed = machine.run(
        "systemctl", "list-units", "--plain", "--no-legend", "--state=active", "*poweroff*.timer"
    )
    return [line.split()[0] for line in listed.splitlines()]

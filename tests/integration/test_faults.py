"""Whatever goes wrong inside the agent's process, the instance goes, and the queue hears how it ended."""

import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.github import GitHub
from support.instance import Instance
from support.local import Ended, Local
from support.planting import plant
from support.wheel import JOB_ID, TIMEOUT_SECONDS

LONG_JOB = "echo begun\nexec sleep 1000\n"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def assert_one_end(ended: Ended, status: str) -> dict[str, Any]:
    """One final message, of that status, and one termination; the message."""
    begun = ended.statuses[:-1]
    assert (begun in ([], ["started"]), ended.statuses[-1:]) == (True, [status]), ended.stderr
    assert [request["instance_id"] for request in ended.terminations] == ["local"]
    assert ended.final["job_id"] == JOB_ID
    return ended.final


def is_of_a_successor(final: dict[str, Any]) -> bool:
    return str(final["error"]).startswith("the agent died")


# What the process itself cannot go on after: it begins anew, as `reap`

AT_START = "before it wrote a journal"
LISTENING, RUNNING = "in phase listening", "in phase running"
CONTAINER = "instead('agent_app.container', 'container_of', lambda _: failing({}))"

ESCAPES = {
    "no event loop": (
        "OSError",
        AT_START,
        """\
import asyncio
asyncio.new_event_loop = failing(OSError(24, "Too many open files"))""",
    ),
    "the command line": (
        "RuntimeError",
        AT_START,
        "instead('agent_app.settings', 'load', lambda _: failing(RuntimeError('planted')))",
    ),
    "a module of the core": (
        "ImportError",
        AT_START,
        "broken('agent_core.lifecycle', ImportError('planted'))",
    ),
    "the module of the command line": (
        "SyntaxError",
        AT_START,
        "broken('agent_app.cli', SyntaxError('planted'))",
    ),
    "the container": ("MemoryError", AT_START, CONTAINER.format("MemoryError()")),
    "SystemExit": ("SystemExit", AT_START, CONTAINER.format("SystemExit(0)")),
    "KeyboardInterrupt": ("KeyboardInterrupt", AT_START, CONTAINER.format("KeyboardInterrupt()")),
    "an exception that cannot be printed": (
        "UnprintableError",
        AT_START,
        CONTAINER.format("UnprintableError()"),
    ),
    "no memory to say so": (
        "MemoryError",
        AT_START,
        "import traceback\ntraceback.print_exception = failing(MemoryError())\n"
        + CONTAINER.format("MemoryError()"),
    ),
    "no thread to say so": (
        "MemoryError",
        AT_START,
        "import _thread\n_thread.start_new_thread = failing(RuntimeError())\n"
        + CONTAINER.format("MemoryError()"),
    ),
    "the agent": (
        "MemoryError",
        AT_START,
        "instead('agent_core.lifecycle', 'Agent', lambda _: failing(MemoryError()))",
    ),
    "the display": (
        "MemoryError",
        AT_START,
        "instead('agent_app.display', 'Aside.__init__', lambda _: failing(MemoryError()))",
    ),
    "a signal's handler": (
        "RecursionError",
        AT_START,
        """\
import os, signal
take = signal.signal
def take_wrongly(number, handler):
    return take(number, failing(RecursionError()) if callable(handler) else handler)
signal.signal = take_wrongly
on_import('agent_app.cli', lambda _: os.kill(os.getpid(), signal.SIGTERM))""",
    ),
    "a signal that came early": (
        "RuntimeError",
        AT_START,
        """\
import os, signal
on_import('agent_app.cli', lambda _: os.kill(os.getpid(), signal.SIGTERM))
instead('agent_app.running', '_stop', lambda _: failing(RuntimeError('planted')))""",
    ),
    "the loop's handlers of signals": (
        "RuntimeError",
        AT_START,
        """\
import asyncio
asyncio.SelectorEventLoop.add_signal_handler = failing(RuntimeError('planted'))""",
    ),
    "SystemExit in a callback": ("SystemExit", LISTENING, "at_job_start(failing(SystemExit(0)))"),
    "KeyboardInterrupt in a callback": (
        "KeyboardInterrupt",
        LISTENING,
        "at_job_start(failing(KeyboardInterrupt()))",
    ),
    "SystemExit in a task": (
        "SystemExit",
        RUNNING,
        "at_job_start(lambda loop: loop.create_task(raising(SystemExit(0))))",
    ),
    "SystemExit of a port": (
        "SystemExit",
        LISTENING,
        (
            "instead('agent_adapters.process', 'SubprocessRunnerProcess.wait', "
            "lambda _: lambda _: raising(SystemExit(0)))"
        ),
    ),
    "KeyboardInterrupt in a port's thread": (
        "KeyboardInterrupt",
        "in phase configuring",
        (
            "instead('agent_adapters.filesystem', 'FileConfigSource._read', "
            "lambda _: failing(KeyboardInterrupt()))"
        ),
    ),
    "a cancellation of everything": (
        "CancelledError",
        LISTENING,
        "import asyncio\nat_job_start(lambda loop: [task.cancel() for task in asyncio.all_tasks(loop)])",
    ),
    "SystemExit beside a task that does not end": (
        "SystemExit",
        RUNNING,
        "at_job_start(lambda loop: (stubborn(loop), loop.call_later(0.1, failing(SystemExit(0)))))",
    ),
}


@pytest.mark.parametrize(("name", "when", "body"), ESCAPES.values(), ids=ESCAPES.keys())
def test_escape(local: Local, name: str, when: str, body: str) -> None:
    """What the process cannot go on after, it finishes as its own successor."""
    ended = local.run(job=LONG_JOB, variables=plant(local.folder, body))
    assert ended.status == 70
    final = assert_one_end(ended, "failure")
    assert final["error"].startswith("the agent died")
    assert final["error"].endswith(f": {name}")
    if when != RUNNING:
        assert final["error"] == f"the agent died {when}: {name}"


def test_escape_with_an_orphan(local: Local) -> None:
    """Nothing tells of it that it is the runner's, but who has adopted it."""
    body = """\
instead('agent_core.life', 'Life.print', lambda take: lambda life, line, step=None: (
    failing(SystemExit(0))() if line.text == 'begun' else take(life, line, step)))"""
    job = f"cd /\n(setsid env -i sleep 1000 &)\n{LONG_JOB}"
    ended = local.run(job=job, variables=plant(local.folder, body))
    assert ended.status == 70
    assert_one_end(ended, "failure")


def test_escape_after_the_end(local: Local) -> None:
    """There is nothing left to do, and nothing is done twice."""
    body = "instead('agent_app.display', 'Aside.close', lambda _: failing(MemoryError()))"
    ended = local.run(variables=plant(local.folder, body))
    assert ended.status == 70
    assert_one_end(ended, "success")


def test_escape_before_there_is_an_instance(instance: Instance) -> None:
    """Who the agent is, its successor finds out."""
    instance.put_config()
    instance.publish()
    body = "instead('agent_app.identity', 'identified', lambda _: failing(RecursionError()))"
    ended = instance.run(variables=plant(instance.folder, body))
    assert (ended.status, ended.statuses, ended.state) == (70, ["failure"], "terminated")


def test_escape_where_nobody_reads(local: Local) -> None:
    """A stderr that is stuck holds up neither the process that ends, nor what it becomes."""
    body = "instead('agent_core.lifecycle', 'Ending', lambda _: failing(SystemExit(0)))"
    running = local.start(job="seq 1 60000\n", variables=plant(local.folder, body))
    running.process.wait(timeout=TIMEOUT_SECONDS)
    ended = running.end()
    assert ended.status == 70
    assert_one_end(ended, "success")


def test_nothing_can_be_imported(local: Local) -> None:
    """A broken installation says so, and fails: what stands behind the agent has to end the instance."""
    body = "broken('agent_core.lifecycle', ImportError('planted'))"
    ended = local.run(variables=plant(local.folder, body, "run", "reap"))
    assert (ended.status, ended.messages, ended.terminations) == (1, [], [])
    assert ended.stderr.count("ImportError: planted") == 2


# What the agent itself ends in order after

FAULTS = {
    "a callback": ("ValueError: planted", "at_job_start(failing(ValueError('planted')))"),
    "a callback that cannot say what is wrong": (
        "UnprintableError",
        "at_job_start(failing(UnprintableError()))",
    ),
    "a callback and no memory to say so": (
        "MemoryError",
        (
            "import traceback\nat_job_start(failing(MemoryError()))\n"
            "traceback.format_exception = failing(MemoryError())"
        ),
    ),
    "a forgotten task": (
        "RecursionError",
        "at_job_start(lambda loop: loop.create_task(raising(RecursionError())) and None)",
    ),
    "a task that raises what is no Exception": (
        "GeneratorExit",
        "at_job_start(lambda loop: loop.create_task(raising(GeneratorExit())) and None)",
    ),
    "a thread of another": (
        "MemoryError",
        "import threading\nat_job_start(lambda _: threading.Thread(target=failing(MemoryError())).start())",
    ),
    "a thread that cannot say what is wrong": (
        "UnprintableError",
        (
            "import threading\n"
            "at_job_start(lambda _: threading.Thread(target=failing(UnprintableError())).start())"
        ),
    ),
    "a thread of the agent": (
        "RuntimeError: planted",
        (
            "instead('agent_app.json_lines', 'JsonLinesDisplay.__call__', "
            "lambda _: failing(RuntimeError('planted')))"
        ),
    ),
    "the runner's exit": (
        "waiting for the runner was cancelled from within",
        (
            "import asyncio\n"
            "instead('agent_adapters.process', 'SubprocessRunnerProcess.wait', "
            "lambda _: lambda _: raising(asyncio.CancelledError()))"
        ),
    ),
    "the runner's output": (
        "UnprintableError",
        (
            "instead('agent_adapters.process', 'SubprocessRunnerProcess._masked', "
            "lambda _: failing(UnprintableError()))"
        ),
    ),
    "the runner's archive": (
        "raised GeneratorExit",
        (
            "instead('agent_adapters.filesystem', 'FileBinaryStore.install', "
            "lambda _: lambda *_: raising(GeneratorExit()))"
        ),
    ),
}


@pytest.mark.parametrize(("error", "body"), FAULTS.values(), ids=FAULTS.keys())
def test_fault(local: Local, error: str, body: str) -> None:
    """What goes wrong where nobody looks stops the runner, and ends the life in order."""
    ended = local.run(job=LONG_JOB, variables=plant(local.folder, body))
    assert ended.status == 70
    final = assert_one_end(ended, "failure")
    assert final["stop_reason"] == "agent_fault"
    assert error in final["error"]


def test_fault_in_a_signals_handler(local: Local) -> None:
    """A signal that cannot be handled stops the agent all the same."""
    body = "instead('agent_app.running', '_stop', lambda _: failing(RuntimeError('planted')))"
    running = local.start(job=LONG_JOB, variables=plant(local.folder, body))
    running.wait_for("begun", "sent the message started")
    running.send(signal.SIGTERM)
    ended = running.end()
    assert (ended.status, assert_one_end(ended, "failure")["stop_reason"]) == (70, "agent_fault")


# What the life does not need

BYSTANDERS = {
    "no thread for a moment": "import threading\n"
    "threading.Thread.start = once(threading.Thread.start, RuntimeError('no thread'))",
    "no thread": "import threading\nthreading.Thread.start = failing(RuntimeError('no thread'))",
    "the observer": "instead('agent_app.display', 'Aside.__call__', lambda _: failing(SystemExit(0)))",
    "the display's module": "broken('agent_app.json_lines', SyntaxError('planted'))",
    "the terminal's module": "sys.stderr.isatty = lambda: True\nbroken('rich', ImportError('planted'))",
    "a task that does not end": "at_job_start(stubborn)",
    "the journal": "instead('agent_adapters.state', 'FileJournal.save', "
    "lambda _: lambda *_: raising(UnprintableError()))",
    "the log sink": "instead('agent_adapters.filesystem', 'FileLogSink.put', "
    "lambda put: once(put, UnprintableError()))",
    "the queue": "instead('agent_adapters.filesystem', 'FileNotifier.send', "
    "lambda send: once(send, UnprintableError()))",
    "the request to terminate": "instead('agent_adapters.filesystem', 'FileTerminator.terminate', "
    "lambda terminate: once(terminate, UnprintableError()))",
}


@pytest.mark.parametrize("body", BYSTANDERS.values(), ids=BYSTANDERS.keys())
def test_bystander(local: Local, body: str) -> None:
    """What the job does not need, or what comes back, does not end it."""
    ended = local.run(variables=plant(local.folder, body, "run", "reap"))
    assert ended.status == 0, ended.stderr
    assert_one_end(ended, "success")


@pytest.mark.parametrize("module", ["httpx", "tenacity", "agent_adapters.github"])
def test_module_that_is_broken(local: Local, github: GitHub, module: str) -> None:
    """A dependency that only some adapter needs takes no more than that adapter away."""
    body = f"broken({module!r}, ImportError('planted'))"
    ended = local.run(github=github, variables=plant(local.folder, body, "run", "reap"))
    final = assert_one_end(ended, "failure")
    assert (ended.status, final["error_phase"]) == (70, "provisioning")
    assert "planted" in final["error"]


@pytest.mark.parametrize("module", ["boto3", "agent_adapters.aws.clients"])
def test_module_that_cannot_be_loaded_for_a_while(instance: Instance, module: str) -> None:
    """An adapter is made when it can be."""
    instance.put_config()
    instance.publish()
    body = f"from planting import _finder\nbroken({module!r}, MemoryError('planted'))\n"
    body += "at_job_start(lambda _: None)\n"
    body += (
        "instead('agent_core.taking', 'look_for_job', "
        f"lambda look: lambda life: (_finder.broken.pop({module!r}, None), look(life))[1])"
    )
    ended = instance.run(variables=plant(instance.folder, body))
    assert (ended.status, ended.statuses, ended.state) == (70, ["failure"], "terminated")
    assert "planted" in ended.final["error"]


# What the system takes away


@contextmanager
def limited(running: Any, which: int, soft: int) -> Iterator[None]:
    """The running agent has no more than that, until the end of the block."""
    before = resource.prlimit(running.process.pid, which)
    resource.prlimit(running.process.pid, which, (soft, before[1]))
    yield
    with suppress(ProcessLookupError):
        resource.prlimit(running.process.pid, which, before)


def test_no_descriptor_is_left_for_a_while(local: Local) -> None:
    """What cannot be opened is tried again, the request to terminate too."""
    running = local.start(job=LONG_JOB)
    running.wait_for("begun", "sent the message started")
    with limited(running, resource.RLIMIT_NOFILE, 3):
        running.send(signal.SIGTERM)
        running.wait_for("the request to terminate local was not accepted")
    ended = running.end()
    assert len(ended.terminations) == 1


def test_no_memory_is_left(instance: Instance) -> None:
    """Without memory for threads, or for much else, the life still ends: itself, or by what it becomes."""
    instance.put_config()
    instance.publish(job=LONG_JOB)
    running = instance.start()
    running.wait_for("begun", "sent the message started")
    with limited(running, resource.RLIMIT_AS, psutil.Process(running.process.pid).memory_info().vms):
        running.send(signal.SIGTERM)
        ended = running.end()
    assert ended.state in {"shutting-down", "terminated"}, ended.stderr
    assert ended.statuses[-1] in {"interrupted", "failure"}


def test_nothing_can_be_written(instance: Instance) -> None:
    """A journal and a spool that take nothing any more change nothing about the end."""
    instance.put_config()
    instance.publish(job=f"echo begun\n{instance.until_go}")
    running = instance.start()
    running.wait_for("begun", "sent the message started")
    with limited(running, resource.RLIMIT_FSIZE, 0):
        instance.go()
        ended = running.end()
    assert (ended.status, ended.statuses, ended.state) == (0, ["started", "success"], "terminated")
    assert "the journal is not up to date" in ended.stderr


@pytest.fixture
def small_disk(instance: Instance) -> Iterator[Path]:
    """The state folder has a disk of 64 KiB to itself."""
    instance.state_dir.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(instance.state_dir)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs root, to mount a tmpfs")
    yield instance.state_dir
    subprocess.run(["umount", "--lazy", str(instance.state_dir)], check=True)


@pytest.mark.parametrize("when", ["from the start", "in the middle"])
def test_disk_of_the_state_folder_is_full(instance: Instance, small_disk: Path, when: str) -> None:
    """Neither the job nor the end needs it; the successor of a fault does without it too."""
    instance.put_config()
    instance.publish(job=f"echo begun\n{instance.until_go}")
    fill = small_disk / "fill"
    if when == "from the start":
        fill.write_bytes(bytes(64 * 1024))
    running = instance.start()
    running.wait_for("begun", "sent the message started")
    if when == "in the middle":
        left = small_disk.joinpath("agent.lock")
        assert left.exists()
        with suppress(OSError), fill.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    instance.go()
    ended = running.end()
    assert (ended.status, ended.statuses, ended.state) == (0, ["started", "success"], "terminated")


def test_full_disk_and_a_fault(instance: Instance, small_disk: Path) -> None:
    """The successor that finds no journal, and can write none, finds the job in its config."""
    instance.put_config()
    instance.publish(job=LONG_JOB)
    (small_disk / "fill").write_bytes(bytes(64 * 1024))
    body = "at_job_start(lambda loop: loop.call_later(0.1, failing(SystemExit(0))))"
    ended = instance.run(variables=plant(instance.folder, body))
    assert (ended.status, ended.statuses[-1], ended.state) == (70, "failure", "terminated")


@pytest.mark.parametrize(
    "fault", [None, "at_job_start(lambda loop: loop.add_signal_handler(10, failing(SystemExit(0))))"]
)
def test_stderr_and_stdout_go_in_the_middle(local: Local, fault: str | None) -> None:
    """A reader that goes is nobody's concern, whether the agent ends itself or by its successor."""
    variables = plant(local.folder, fault) if fault else None
    running = local.start("--json", job=LONG_JOB, variables=variables)
    running.wait_for("begun", "sent the message started")
    for stream in (running.process.stderr, running.process.stdout):
        assert stream is not None
        stream.close()
    running.process.stderr = running.process.stdout = None
    running.send(signal.SIGUSR1 if fault else signal.SIGTERM)
    ended = running.end()
    assert ended.status == (70 if fault else 0)
    assert_one_end(ended, "failure" if fault else "interrupted")


@pytest.mark.parametrize("to", [">&- 2>&-", ">/dev/full 2>/dev/full", "<&- >&- 2>&-"])
def test_fault_that_cannot_be_told(local: Local, to: str) -> None:
    """A successor whose stderr takes nothing, and whose settings are wrong, still does its work."""
    body = "at_job_start(failing(SystemExit(0)))"
    wrapper = ("sh", "-c", f'exec "$@" {to}', "sh")
    ended = local.run(job=LONG_JOB, wrapper=wrapper, variables=plant(local.folder, body))
    assert ended.status == 70
    assert_one_end(ended, "failure")


@pytest.mark.parametrize("to", [">&- 2>&-", ">/dev/full 2>/dev/full"])
def test_bad_settings_that_cannot_be_told(instance: Instance, to: str) -> None:
    """Settings that are wrong are no reason to keep an instance, whether anybody hears of them or not."""
    wrapper = ["sh", "-c", f'exec "$@" {to}', "sh"]
    ended = instance.run(command="reap", wrapper=wrapper, variables={"RUNS_FLEET_MAX_RUNTIME": "abc"})
    assert ended.state == "terminated"


# Whoever asks it to stop, and how often


@pytest.mark.parametrize(
    "phase", ["booting", "configuring", "provisioning", "registering", "listening", "stopping"]
)
def test_signals_in_quick_succession(local: Local, phase: str) -> None:
    """A second and a third signal do not break the first one's work, in no phase."""
    running = local.start(job=LONG_JOB)
    if phase == "stopping":
        running.wait_for("begun", "sent the message started")
        running.send(signal.SIGTERM)
    running.wait_for(f"phase {phase}")
    storm(running)
    ended = running.end()
    assert ended.status == 0
    final = assert_one_end(ended, "interrupted")
    assert final["interrupted_by"] in {number.name for number in SIGNALS}


def test_signals_while_the_process_begins_anew(local: Local) -> None:
    """Its successor is not to be stopped, not even while Python begins."""
    body = "at_job_start(lambda loop: loop.call_later(0.1, failing(SystemExit(0))))"
    running = local.start(job=LONG_JOB, variables=plant(local.folder, body))
    running.wait_for("SystemExit: 0")
    storm(running, until_end=True)
    ended = running.end()
    assert ended.status == 70
    assert_one_end(ended, "failure")


def test_signals_while_a_successor_works(local: Local) -> None:
    """It is bounded, and nobody comes after it: it does not stop."""
    running = local.start(job=LONG_JOB)
    running.wait_for("begun", "sent the message started")
    running.send(signal.SIGKILL)
    running.process.communicate(timeout=TIMEOUT_SECONDS)
    reaping = local.start(command="reap")
    reaping.wait_for("phase stopping")
    storm(reaping, until_end=True)
    ended = reaping.end()
    assert ended.status == 0
    assert_one_end(ended, "failure")


def storm(running: Any, *, until_end: bool = False) -> None:
    """All signals that ask to stop, one right after the other; again and again until it has ended."""
    for number in SIGNALS:
        running.send(number)
    while until_end and running.process.poll() is None:
        for number in SIGNALS:
            running.send(number)
        with suppress(subprocess.TimeoutExpired):
            running.process.wait(0.01)

"""The runner processes keep the promises of their port."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Coroutine
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import pytest
from attrs import evolve

from agent_adapters.archive import unpack
from agent_adapters.descendants import RunnerProcesses
from agent_adapters.descendants import kill as kill_process
from agent_adapters.host import identify
from agent_adapters.memory import InMemoryRunnerProcess, Machine, RunnerScript
from agent_adapters.process import SubprocessRunnerProcess, runner_environment
from agent_adapters.removal import remove_tree
from agent_core.errors import RunnerUnavailableError
from agent_core.lines import LineSplitter
from agent_core.model import OutputLine, ProcessId, Registration, Release, Secret
from agent_core.testing import simulation
from agent_core.testing.contracts import JOB_NAME, RunnerBehaviour, RunnerProcessContract
from agent_core.testing.contracts.contract import until

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "AABBCCDD-planted-registration-token"
REGISTRATION = Registration(
    url="https://github.com/Shavakan/my-repo", name="runner-1", labels=("a", "b c"), token=Secret(TOKEN)
)
NOBODY, SOMEBODY = 65534, 65533
NEVER = 1e9
"""Seconds, of virtual time."""


def load_build() -> Any:
    path = Path(__file__).parents[2] / "examples" / "sample_runner" / "build.py"
    spec = importlib.util.spec_from_file_location("sample_runner_build", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


build = load_build()


class TestInMemoryRunnerProcess(RunnerProcessContract):
    def setup_method(self) -> None:
        self.machine = Machine()
        self.made: list[InMemoryRunnerProcess] = []
        self.script = RunnerScript()

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        return simulation.run(lambda: main)

    def make(self) -> InMemoryRunnerProcess:
        self.made.append(InMemoryRunnerProcess(self.machine, self.script))
        return self.made[-1]

    def install(self, behaviour: RunnerBehaviour) -> None:
        if self.machine.installed is not None:
            self.machine.registered = False
        self.machine.installed = Release(version="2.336.0", arch="x64", sha256="0" * 64)
        self.script = script_of(behaviour)
        for runner in self.made:
            runner.script = self.script
            runner._early = list(self.script.early_exits)

    def jit_config(self) -> Secret:
        return Secret("eyJwbGFudGVkIjoiaml0LWNvbmZpZyJ9")

    def litter(self) -> None:
        """There are no files in memory."""

    def is_removed(self) -> bool:
        return self.machine.installed is None

    def alive(self) -> int:
        return len(self.machine.runner_alive)


def script_of(behaviour: RunnerBehaviour) -> RunnerScript:
    splitter = LineSplitter(part_bytes=2**30)
    lines = [*splitter.feed(behaviour.prints), *splitter.finish()]
    return RunnerScript(
        refuse_registration="Http response code: NotFound" if behaviour.refuses_registration else None,
        refuse_jit=behaviour.refuses_jit_config,
        register_seconds=NEVER if behaviour.hangs_registering else 3.0,
        early_exits=behaviour.exit_codes,
        assign_after=None if behaviour.never_assigns else 2.0,
        job_name=JOB_NAME,
        output=tuple(line.text for line in lines),
        steps=tuple(tuple(step.decode().splitlines()) for step in behaviour.steps),
        prints_variable=behaviour.prints_variable,
        vanishes=behaviour.vanishes,
        job_seconds=None if behaviour.never_ends else 30.0,
        crash_after=None if behaviour.dies_of is None else 1.0,
        exit_code=None if behaviour.dies_of is None else 128 + behaviour.dies_of,
        cancel_seconds=None if behaviour.ignores_interrupt else 2.0,
        leaves_behind=behaviour.leaves_behind,
    )


class Place:
    """A folder with a runner's root in it, and the adapters that were made for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "runner"
        self.made: list[SubprocessRunnerProcess] = []

    def make(self) -> SubprocessRunnerProcess:
        self.made.append(SubprocessRunnerProcess(self.root, runner_environment(os.environ), str(self.root)))
        return self.made[-1]

    def write(self, path: str, script: str) -> None:
        """Puts a program into the root."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(script), "utf-8")
        file.chmod(0o755)

    def alive(self) -> int:
        """Whoever works in the root, from the root, or was told of it."""
        return len(set(self._living()))

    def _living(self) -> Iterator[int]:
        root = os.fsencode(self.root)
        for process in Path("/proc").glob("[0-9]*"):
            try:
                here = os.fsencode((process / "cwd").readlink())
                state = (process / "stat").read_bytes().rpartition(b")")[2].split()[0]
                if state != b"Z" and (here.startswith(root) or root in (process / "cmdline").read_bytes()):
                    yield int(process.name)
            except OSError:
                continue  # it has ended, or is somebody else's

    async def clear(self) -> None:
        """Ends everything, and reads what is left to read."""
        for runner in self.made:
            await runner.kill()
            try:
                await runner.wait()
                async for _ in runner.output():
                    pass
            except RunnerUnavailableError:
                continue  # it was not started

    def kill_by_hand(self) -> None:
        """In case that the adapter does not."""
        for pid in self._living():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.kill_by_hand()


class TestSubprocessRunnerProcess(RunnerProcessContract):
    """The runner is the sample runner, which behaves as GitHub's does."""

    @pytest.fixture(autouse=True)
    def _take_place(self, place: Place) -> None:
        self.place = place

    def make(self) -> SubprocessRunnerProcess:
        return self.place.make()

    async def tear_down(self) -> None:
        await self.place.clear()

    def install(self, behaviour: RunnerBehaviour) -> None:
        remove_tree(self.place.root)
        archive = build.build_archive(self.place.folder, job="", scenario=scenario_of(behaviour)).read_bytes()
        unpack([archive], sha256=hashlib.sha256(archive).hexdigest(), root=self.place.root)
        if behaviour.hangs_registering:
            self.place.write("config.sh", "#!/bin/bash\necho it hangs\nsleep infinity\n")

    def jit_config(self) -> Secret:
        return Secret(build.jit_config(name="runner-1"))

    def litter(self) -> None:
        inner = self.place.root / "_work" / "read-only" / "in\nner"
        inner.mkdir(parents=True)
        (inner / "file").touch(0)
        (inner / "outside").symlink_to(self.place.folder)
        inner.chmod(0o500)
        inner.parent.chmod(0)

    def is_removed(self) -> bool:
        return not os.path.lexists(self.place.root)

    def alive(self) -> int:
        return self.place.alive()


def scenario_of(behaviour: RunnerBehaviour) -> dict[str, object]:
    scenario: dict[str, object] = {
        "job_name": JOB_NAME,
        "reject_jit": behaviour.refuses_jit_config,
        "exit_codes": list(behaviour.exit_codes),
        "never_assign": behaviour.never_assigns,
        "assign_then_vanish": behaviour.vanishes,
        "steps": [{"run": script} for script in [*map(script_printing, behaviour.steps), job_of(behaviour)]],
        # What a page has, whoever follows has seen by then.
        "upload_seconds": 5.0 if behaviour.steps or behaviour.prints_variable else 0.5,
        "output": {"raw_base64": base64.b64encode(behaviour.prints).decode()},
        "ignore_sigint": behaviour.ignores_interrupt,
        "clean_orphans": False,
    }
    if behaviour.refuses_registration:
        scenario["refuse_registration"] = "not_found"
    if behaviour.dies_of is not None:
        scenario["crash_mid_job"] = {"signal": behaviour.dies_of}
    return scenario


def script_printing(printed: bytes) -> str:
    return f"base64 -d <<<{base64.b64encode(printed).decode()}\n"


def job_of(behaviour: RunnerBehaviour) -> str:
    """A step has the Worker's pipe for its output, so a daemon takes the Listener's from /proc."""
    daemon = "setsid nohup sleep infinity >&3 2>&3 &\n"
    listeners_output = "read -r _ _ _ listener _ </proc/$PPID/stat\nexec 3>/proc/$listener/fd/1\n"
    return (
        (listeners_output + daemon * behaviour.leaves_behind if behaviour.leaves_behind else "")
        + (f'echo "{behaviour.prints_variable} is ${behaviour.prints_variable}"\n')
        * bool(behaviour.prints_variable)
        + ("exec sleep infinity\n" if behaviour.never_ends else "")
    ) or "true\n"


# Real processes only


LISTENER = "bin/Runner.Listener"
PATIENCE_SECONDS = 180.0
"""What is awaited for so long does not come."""

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture
def run(place: Place) -> Run:
    """Runs a test's coroutine, and then ends what it left."""

    async def whole(main: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await main
        finally:
            await place.clear()

    return lambda main: asyncio.run(whole(main))


def ignore(_line: object) -> None:
    """Takes no interest in what is said."""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except FileNotFoundError:
        return False


def test_a_registration_keeps_its_token_to_itself(
    place: Place, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """config.sh gets it in its environment; its arguments, which anybody can read, are without it."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the agent's own")
    place.write(
        "config.sh",
        r"""#!/bin/bash
        tr '\0' '\n' </proc/$$/cmdline >arguments
        tr '\0' '\n' </proc/$$/environ >environment
        """,
    )

    run(place.make().register(REGISTRATION, ignore))

    arguments = (place.root / "arguments").read_text("utf-8").splitlines()
    assert arguments[arguments.index("--unattended") :] == [
        *("--unattended", "--ephemeral", "--disableupdate", "--work", "_work"),
        *("--url", "https://github.com/Shavakan/my-repo", "--name", "runner-1", "--labels", "a,b c"),
    ]
    assert not any(TOKEN in argument for argument in arguments)
    environment = (place.root / "environment").read_text("utf-8").splitlines()
    assert f"ACTIONS_RUNNER_INPUT_TOKEN={TOKEN}" in environment
    assert not any(variable.startswith("AWS_") for variable in environment)


def test_an_argument_that_cannot_be_is_unavailable(place: Place, run: Run) -> None:
    """No system takes a NUL in an argument: the runner cannot be asked."""
    place.write("config.sh", "#!/bin/bash\n")
    runner = place.make()

    with pytest.raises(RunnerUnavailableError):
        run(runner.register(evolve(REGISTRATION, labels=("a\0b",)), ignore))


def test_what_the_runner_writes_is_private(place: Place, run: Run) -> None:
    """A just-in-time config is written with the permissions that the umask leaves."""
    place.write(LISTENER, "#!/bin/bash\ntouch credentials\n")

    async def start() -> None:
        runner = place.make()
        await runner.start(None)
        await runner.wait()

    run(start())

    assert (place.root / "credentials").stat().st_mode & 0o777 == 0o600


TELLS_WHO_HEARD = f"""#!{sys.executable} -S
import os, signal
heard = 0
def hear(number, frame):
    global heard
    heard += 1
ready, tell = os.pipe()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
child = os.fork()
if not child:
    signal.signal(signal.SIGINT, hear)
    signal.signal(signal.SIGUSR1, lambda number, frame: os._exit(heard))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    os.write(tell, b".")
    while True:
        signal.pause()
os.read(ready, 1)
ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
print("deaf" if ignored else "ready", flush=True)
signal.sigwait([signal.SIGINT])
os.kill(child, signal.SIGUSR1)
print("goodbye", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("ignored", [False, True])
def test_only_the_listener_is_interrupted(place: Place, run: Run, *, ignored: bool) -> None:
    """Not its descendants, which it cancels as it sees fit; also where the agent is deaf to SIGINT itself."""
    place.write(LISTENER, TELLS_WHO_HEARD)
    lines: list[str] = []

    async def interrupt() -> None:
        runner = place.make()
        await runner.start(None)
        async for line in runner.output():
            lines.append(line.text)
            if len(lines) == 1:
                await runner.interrupt()

    before = signal.getsignal(signal.SIGINT)
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run(interrupt())
    finally:
        signal.signal(signal.SIGINT, before)

    assert lines == ["ready", "goodbye 0"]


def test_without_a_listener_run_sh_is_the_runner(place: Place, run: Run) -> None:
    """It forwards nothing, so its process group is interrupted; what is left of it is killed."""
    place.write(
        "run.sh",
        """#!/bin/bash
        trap 'echo goodbye; exit 3' INT
        sleep infinity &
        until grep -qs sleep /proc/$!/comm; do :; done
        echo ready
        wait
        """,
    )
    lines: list[str] = []

    async def interrupt() -> None:
        runner = place.make()
        await runner.start(None)
        async for line in runner.output():
            lines.append(line.text)
            if line.text == "ready":
                await runner.interrupt()
                assert await runner.wait() == 3
                assert await runner.kill() == 1

    run(interrupt())

    assert lines == ["ready", "goodbye"]


def test_a_daemon_without_a_trace_is_killed(place: Place, run: Run) -> None:
    """It left the runner's session, folder, environment and output; but it is an orphan of the runner's."""
    place.write(
        LISTENER,
        """#!/bin/bash
        script='echo $$ >"$0"; cd /; exec sleep infinity'
        env -i setsid bash -c "$script" "$PWD/daemon" &>/dev/null &
        until [[ -s daemon ]]; do sleep 0.01; done
        """,
    )

    async def kill() -> None:
        runner = place.make()
        await runner.start(None)
        await runner.wait()
        daemon = int((place.root / "daemon").read_text("utf-8"))
        assert is_alive(daemon)

        assert await runner.kill() == 1

        assert identify(daemon) is None, "a zombie is left"
        assert await runner.kill() == 0

    run(kill())


def test_what_works_from_the_root_is_found(place: Place, run: Run) -> None:
    """A program, a script, and what stands in a folder, by one that knows nothing of who started it."""
    place.write("script.sh", "#!/bin/bash\nread -r\n")
    shutil.copy("/bin/sleep", place.root / "program")
    (place.root / "folder").mkdir()
    program, script = place.root / "program", place.root / "script.sh"
    started = [
        subprocess.Popen([script], stdin=subprocess.PIPE),
        subprocess.Popen(["bash", script], stdin=subprocess.PIPE),
        subprocess.Popen([program, "infinity"]),
        subprocess.Popen(["unlike its path", "infinity"], executable=program),
        subprocess.Popen(["sleep", "infinity"], cwd=place.root / "folder"),
    ]

    async def kill() -> None:
        assert await place.make().kill() == len(started)

    try:
        run(kill())
    finally:
        for each in started:
            each.kill()
            each.communicate()


def test_bystanders_are_left_alone(place: Place, run: Run) -> None:
    """Earlier children of this process, a process whose number was the runner's, and another root's."""
    place.write(LISTENER, "#!/bin/bash\nexec sleep infinity\n")
    others = [
        subprocess.Popen(["sleep", "infinity"]),
        subprocess.Popen(["sleep", "infinity"], start_new_session=True),
        subprocess.Popen(["sleep", "infinity"], env={"RUNNER_AGENT_TRACKING_ID": f"{place.root}-2"}),
        subprocess.Popen(["sleep", "infinity"], executable="sleep", cwd=place.root),
    ]

    async def kill() -> None:
        process = identify(others[1].pid)
        assert process is not None
        known = [evolve(process, started=process.started - 1)]
        assert kill_process(known[0])
        runner = place.make()
        await runner.start(None)

        assert await runner.kill(known) == 1
        assert await place.make().kill(known) == 0

    try:
        run(kill())
        assert [other.poll() for other in others] == [None] * len(others)
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_what_may_be_killed_is_killed(place: Place, run: Run, unprivileged: Callable[[], None]) -> None:
    """A process that may not be killed saves no other one, and is named."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can start, by setpriv, processes that another user may not kill")
    start = "setpriv --reuid {} --clear-groups sleep infinity &\necho $! >>daemons\n"
    place.write(
        LISTENER,
        "#!/bin/bash\n"
        + "".join(start.format(user) for user in (NOBODY, SOMEBODY, NOBODY))
        + "for pid in $(<daemons); do until grep -qs sleep /proc/$pid/comm; do :; done; done\n"
        + "echo ready\nexec sleep infinity\n",
    )

    async def kill() -> None:
        runner = place.make()
        process = await runner.start(None)
        async for _ready in runner.output():
            daemons = [int(pid) for pid in (place.root / "daemons").read_text("utf-8").split()]
            assert [is_alive(pid) for pid in daemons] == [True, True, True]

            unprivileged()
            with pytest.raises(RunnerUnavailableError, match=str(daemons[1])):
                await runner.kill()
            os.seteuid(0)

            assert [is_alive(pid) for pid in (process.pid, *daemons)] == [False, False, True, False]
            assert await runner.kill() == 1 + len(daemons)  # the first one told of none
            assert not is_alive(daemons[1])
            return

    run(kill())


def test_a_look_that_hangs_saves_no_kin(place: Place, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any process may make whoever looks into it wait; the runner's own are killed before."""
    place.write(LISTENER, "#!/bin/bash\nsetsid sleep infinity & echo ready; exec sleep infinity\n")
    over = threading.Event()

    def hang(*_: object) -> bool:
        over.wait()
        return False  # or all that lives on this machine would be the runner's

    monkeypatch.setattr(RunnerProcesses, "_is_marked", hang)

    async def kill() -> None:
        runner = place.make()
        process = await runner.start(None)
        await anext(aiter(runner.output()))
        own = psutil.Process(process.pid)
        daemons = own.children()
        assert daemons
        killing = asyncio.create_task(runner.kill())
        try:
            await until("they are killed", lambda: not any(is_alive(each.pid) for each in (own, *daemons)))
            assert not killing.done()
        finally:
            over.set()
            await killing

    run(kill())


def test_unread_output_keeps_no_pipe_open(place: Place, run: Run) -> None:
    """What nobody read of an earlier start is let go of with the next one."""
    place.write(LISTENER, "#!/bin/bash\nyes | head -c 1000000\n")

    async def start() -> None:
        runner = place.make()
        await runner.start(None)
        first = runner._start
        assert first is not None
        await runner.kill()
        await runner.wait()

        await runner.start(None)

        assert first.child._output.closed
        assert await anext(aiter(runner.output())) == OutputLine("y")

    run(start())


AGENT = """
import asyncio, os, sys
import pathlib
from agent_adapters.process import SubprocessRunnerProcess, runner_environment

async def main():
    runner = SubprocessRunnerProcess(
        pathlib.Path(sys.argv[1]), runner_environment(os.environ), sys.argv[1]
    )
    process = await runner.start(None)
    async for line in runner.output():
        print(process.pid, process.started, flush=True)

asyncio.run(main())
"""


class Left(NamedTuple):
    """What an agent that is killed leaves, and what its successor knows of it."""

    daemon: str
    told: bool
    runner_ends: bool


@pytest.mark.parametrize(
    "left",
    [
        *(Left("setsid nohup sleep infinity", *flags) for flags in product((True, False), repeat=2)),
        pytest.param(Left("env -i setsid sleep infinity", told=False, runner_ends=False), id="by parentage"),
        pytest.param(Left("env -i sleep infinity", told=True, runner_ends=True), id="by session"),
    ],
)
def test_a_successor_kills_what_a_dead_agent_left(place: Place, run: Run, left: Left) -> None:
    """The runner that still lives, and daemons in sessions of their own, whether it lives or has ended."""
    place.write(
        LISTENER,
        f"""#!/bin/bash
        (cd / && exec {left.daemon} &>/dev/null) &
        echo $! >daemon
        until grep -qs sleep /proc/$!/comm; do :; done
        """
        # All are there before the agent hears of it, and may be killed.
        + ("echo ready" if left.runner_ends else "sleep infinity &\necho ready\nwait"),
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, place.root], env=environment, stdout=subprocess.PIPE, text=True
    )
    with agent:
        assert agent.stdout is not None
        pid, started = agent.stdout.readline().split()
        agent.kill()
    process = ProcessId(int(pid), float(started))
    daemon = int((place.root / "daemon").read_text("utf-8"))

    async def kill() -> None:
        if left.runner_ends:
            await until("the runner's end", lambda: not is_alive(process.pid))
        assert is_alive(daemon)

        assert await place.make().kill([process] if left.told else []) == (1 if left.runner_ends else 3)

        assert not is_alive(daemon)
        assert not is_alive(process.pid)

    run(kill())

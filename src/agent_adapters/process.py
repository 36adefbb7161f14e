"""The runner as a real process: registered, started, followed, and killed to the last descendant."""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Final

from attrs import define, evolve, field

from agent_adapters.accounts import Account, hand_over, own_variables, uid_of, why_unreachable
from agent_adapters.child import Child
from agent_adapters.descendants import RunnerProcesses, kill
from agent_adapters.host import process_table
from agent_adapters.job_environment import write_job_environment
from agent_adapters.removal import remove_tree
from agent_adapters.secrecy import blank
from agent_adapters.threads import Lane, aside, spawn, told_on_loop
from agent_adapters.traces import Traces
from agent_core.deadline import wait_until_set
from agent_core.errors import RegistrationRefusedError, RunnerUnavailableError
from agent_core.model import OutputLine, ProcessId, Registration, Secret, StepLine, Trace
from agent_core.ports import RunnerProcess, Say

__all__ = ["SubprocessRunnerProcess", "is_for_any_program", "runner_environment"]

_INHERITED: Final = frozenset(
    {
        "HOME",
        "LANG",
        "LOGNAME",
        "NODE_EXTRA_CA_CERTS",
        "PATH",
        "SHELL",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TZ",
        "USER",
    }
    | {f"{scheme}_proxy" for scheme in ("all", "http", "https", "no")}
    | {f"{scheme}_PROXY" for scheme in ("ALL", "HTTP", "HTTPS", "NO")}
)
_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INPUT: Final = "ACTIONS_RUNNER_INPUT_"
"""What config.sh and the Listener take from here they need not have in an argument list."""
_TAIL_LINES: Final = 5
_LOOKS: Final = 3
_LAST_WORDS_SECONDS: Final = 2.0
"""From the exit of config.sh to the end of its output, if something that it started holds that open."""
_KILL_PAUSE_SECONDS: Final = 0.02
_BURY_SECONDS: Final = 1.0
_UPDATING: Final = frozenset({3, 4})
_UPDATE_SECONDS: Final = 31.0
"""As run-helper.sh has it: so long after the Listener's end a script may still change its files."""
_UPDATE_LOOK_SECONDS: Final = 0.25


def is_for_any_program(name: str) -> bool:
    """Whether the variable is one that the runner needs as any other program does."""
    return name in _INHERITED or name.startswith("LC_")


def runner_environment(environ: Mapping[str, str], account: Account | None = None) -> dict[str, str]:
    """The runner's environment: built from what any program needs, not inherited with what the agent has."""
    inherited = {name: value for name, value in environ.items() if is_for_any_program(name)}
    own = {"PATH": _DEFAULT_PATH, "LANG": "C.UTF-8"} | inherited
    if account is not None:
        return own | dict(account.variables)
    own = {**own_variables(), **own}  # systemd sets none of them for a service of root's
    return own | ({"RUNNER_ALLOW_RUNASROOT": "1"} if os.geteuid() == 0 else {})


@define(eq=False)
class _Start:
    """One start of the runner."""

    child: Child
    traces: Traces
    is_listener: bool
    """Or it is run.sh, which says nothing by its exit code, and passes no signal on."""
    has_inputs: bool
    """Its processes were started with secrets that a job must not find in /proc."""
    over: asyncio.Event = field(factory=asyncio.Event)
    """`kill` was called."""
    is_updated: bool = False
    """Its own update, if that was why it ended, is over or given up."""


class SubprocessRunnerProcess(RunnerProcess):
    """The runner in `root`.

    From `start` to `kill`, every new child of this process is taken for the runner's: see `RunnerProcesses`.

    Args:
        root: where its files are.
        environment: of the runner, and so of its job.
        tracking_id: the same for an agent and its successor, and no other agent's.
        account: whom it runs as, and who owns the root from the first start on; None: this process's user.
    """

    def __init__(
        self, root: Path, environment: Mapping[str, str], tracking_id: str, account: Account | None = None
    ) -> None:
        self._root, self._environment, self._account = root.absolute(), dict(environment), account
        self._lane = Lane("runner", RunnerUnavailableError)
        self._removing = Lane("removing the runner", RunnerUnavailableError)
        self._processes = RunnerProcesses(self._root, tracking_id)
        self._handed_over = False
        self._secrets: set[str] = set()
        self._start: _Start | None = None
        self._burial: asyncio.TimerHandle | None = None
        self._killed: set[ProcessId] = set()
        """What nobody has been told of yet."""

    async def register(self, registration: Registration, say: Say) -> None:
        if registration.token is None:
            raise RegistrationRefusedError("there is no token to register with")
        await self._lane.run(self._hand_over)
        environment = self._environment | {f"{_INPUT}TOKEN": self._hand_out(registration.token)}
        config = self._spawn([str(self._root / "config.sh"), *_config_arguments(registration)], environment)
        said: deque[str] = deque(maxlen=_TAIL_LINES)

        async def listen() -> None:
            async for line in config.lines():
                masked = self._masked(line)
                said.append(masked.text)
                say(masked)

        listening = asyncio.create_task(listen(), name="config.sh's output")
        try:
            await config.exited.wait()
            await asyncio.wait({listening}, timeout=_LAST_WORDS_SECONDS)
        finally:
            if not listening.done():
                await self.kill()
                await asyncio.wait({listening}, timeout=_LAST_WORDS_SECONDS)
                listening.cancel()
        if config.exit_code != 0:
            raise RegistrationRefusedError(
                f"config.sh ended with exit code {config.exit_code}: {' / '.join(said)}"
            )

    async def start(
        self, jit_config: Secret | None, job_environment: Mapping[str, str | Secret] | None = None
    ) -> ProcessId:
        if self._start is not None and not self._start.child.exited.is_set():
            raise RunnerUnavailableError("the runner runs already")
        listener = self._root / "bin" / "Runner.Listener"
        is_listener = os.access(listener, os.X_OK)
        command = [str(listener), "run"] if is_listener else [str(self._root / "run.sh")]
        traces = Traces(self._root, uid_of(self._account))
        environment = {
            **self._environment,
            **traces.environment,
            "ACTIONS_RUNNER_RETURN_JOB_RESULT_FOR_HOSTED": "true",
        }
        if jit_config is not None:
            environment[f"{_INPUT}JITCONFIG"] = self._hand_out(jit_config)
        variables = {
            name: self._hand_out(value) if isinstance(value, Secret) else value
            for name, value in (job_environment or {}).items()
        }
        self._close()
        try:
            await self._lane.run(partial(self._prepare, variables))
            traces.open()
            child = self._spawn(command, environment)
        except BaseException:
            traces.close()
            raise
        self._start = _Start(child, traces, is_listener, has_inputs=jit_config is not None)
        return child.id

    async def output(self) -> AsyncIterator[OutputLine]:
        start = self._current()
        async with aclosing(start.child.lines()) as lines:
            async for line in lines:
                if start.has_inputs:
                    start.has_inputs = False
                    _conceal_inputs(start.child.id)
                yield self._masked(line)

    async def traces(self) -> AsyncIterator[Trace]:
        async with aclosing(self._current().traces.follow()) as traces:
            async for trace in traces:
                if isinstance(trace, StepLine):
                    yield StepLine(trace.step, self._masked(trace.line))
                else:
                    yield trace

    async def has_worker(self) -> bool:
        return await aside("look for a worker", self._processes.has_worker)

    async def wait(self) -> int:
        start = self._current()
        await start.child.exited.wait()
        if start.is_listener and start.child.exit_code in _UPDATING and not start.is_updated:
            await self._await_update(start)
            start.is_updated = True
        return start.child.exit_code

    async def interrupt(self) -> None:
        if self._start is not None:
            # run.sh forwards nothing; its Listener is in its process group.
            self._start.child.interrupt(group=not self._start.is_listener)

    async def kill(self, known: Sequence[ProcessId] = ()) -> int:
        try:
            return await self._kill(known)
        finally:
            if self._burial is not None:
                self._burial.cancel()
                self._burial = None
            if self._start is not None:
                self._start.over.set()
                self._start.traces.end()

    async def _kill(self, known: Sequence[ProcessId]) -> int:
        # To look into a process can take as long as it pleases: what the table alone tells goes first.
        self._end(await self._lane.run(partial(self._processes.kin, known)))
        looks_in_vain = 0
        # One look at a process table that changes meanwhile can miss a process that forks and ends.
        while looks_in_vain < _LOOKS:
            left = await self._lane.run(partial(self._processes.find, known))
            if not left:
                looks_in_vain += 1
                continue
            looks_in_vain = 0
            if self._end(left) == left:
                pids = ", ".join(str(process.pid) for process in sorted(left))
                raise RunnerUnavailableError(f"these processes may not be killed: {pids}")
            await asyncio.sleep(_KILL_PAUSE_SECONDS)
        count = len(self._killed)
        self._killed.clear()
        return count

    def _end(self, processes: set[ProcessId]) -> set[ProcessId]:
        """Kills them; those that may not be killed."""
        # The oldest first: a parent has no time to make something of its child's end.
        eldest_first = sorted(processes, key=lambda process: (process.started, process.pid))
        kept = {process for process in eldest_first if not kill(process)}
        self._killed |= processes - kept
        return kept

    async def remove(self) -> None:
        self._close()
        await self._removing.run(partial(remove_tree, self._root))

    def _current(self) -> _Start:
        if self._start is None:
            raise RunnerUnavailableError("the runner was not started")
        return self._start

    # Secrets

    def _hand_out(self, secret: Secret) -> str:
        """The secret, for the runner; from here on it is masked in whatever comes from it."""
        self._secrets.add(secret.reveal())
        return secret.reveal()

    def _masked(self, line: OutputLine) -> OutputLine:
        text = line.text
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return line if text is line.text else evolve(line, text=text)

    # Starting

    def _hand_over(self) -> None:
        """Before anything of the runner has run: from then on the root is not looked into as root."""
        if self._account is not None and not self._handed_over:
            if why := why_unreachable(self._account, self._root):
                raise RunnerUnavailableError(f"{why}: open it, or set RUNS_FLEET_RUNNER_DIR")
            hand_over(self._root, self._account)
        self._handed_over = True

    def _prepare(self, variables: Mapping[str, str]) -> None:
        self._hand_over()
        write_job_environment(self._root, variables, self._account)

    def _spawn(self, command: list[str], environment: Mapping[str, str]) -> Child:
        self._processes.adopt_orphans()
        self._bury_now_and_then()
        child = Child.start(command, self._root, {**environment, **self._processes.mark}, self._account)
        self._processes.add(child.id)
        return child

    def _bury_now_and_then(self) -> None:
        """Lets dead orphans go for good, until `kill`.

        Not when SIGCHLD comes: a job can make so many of them that the signals that ask to stop get lost, as
        asyncio's pipe for signals is full.
        """
        loop = asyncio.get_running_loop()

        def again() -> None:
            if self._burial is not None:
                self._burial = loop.call_later(_BURY_SECONDS, bury)

        def bury() -> None:
            spawn("burying", self._processes.bury, told_on_loop(again))

        if self._burial is None:
            self._burial = loop.call_later(_BURY_SECONDS, bury)

    async def _await_update(self, start: _Start) -> None:
        """Leaves the runner's own update to end, which goes on when the Listener has."""
        loop, done = asyncio.get_running_loop(), self._root / "update.finished"
        end = loop.time() + _UPDATE_SECONDS
        while not done.exists() and loop.time() < end:
            if await wait_until_set(start.over, _UPDATE_LOOK_SECONDS):
                return
        with suppress(OSError):
            done.unlink()

    def _close(self) -> None:
        if self._start is not None:
            self._start.child.close()
            self._start.traces.close()


def _conceal_inputs(leader: ProcessId) -> None:
    """Of what says something, and so has read what it was given; and of those that started it.

    On the loop's thread: who hears that a job runs knows that it was done before.
    """
    for entry in process_table():
        if entry.session == leader.pid:
            blank(entry.id.pid, lambda variable: variable.startswith(_INPUT))


def _config_arguments(registration: Registration) -> list[str]:
    arguments = ["--unattended", "--ephemeral", "--disableupdate", "--work", "_work"]
    arguments += ["--url", registration.url, "--name", registration.name]
    arguments += ["--labels", ",".join(registration.labels)]
    if registration.group is not None:
        arguments += ["--runnergroup", registration.group]
    return arguments

"""A runner that follows a script, and where its files come from."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from attrs import Factory, define, field, frozen

from agent_adapters.memory.machine import Machine
from agent_core.errors import (
    ArchiveRefusedError,
    BinaryError,
    BinaryUnavailableError,
    DigestMismatchError,
    RegistrationRefusedError,
    RunnerUnavailableError,
)
from agent_core.model import (
    Assigned,
    JobResult,
    OutputLine,
    ProcessId,
    Registration,
    Release,
    ReleaseRequest,
    Secret,
    StepLine,
    Trace,
    WorkerStarted,
)
from agent_core.ports import (
    BinaryStore,
    Progress,
    RunnerProcess,
    Say,
    Warn,
)

__all__ = ["InMemoryBinaryStore", "InMemoryRunnerProcess", "RunnerScript"]

_KILLED: Final = 137


@define
class InMemoryBinaryStore(BinaryStore):
    """Runner archives by version; their content is checked like a real one's."""

    machine: Machine
    archives: dict[str, bytes] = Factory(lambda: {"2.336.0": b"a runner"})
    """Version to bytes; the last is the latest."""
    arches: tuple[str, ...] = ("x64", "arm64")
    """What there are archives for."""
    damaged: set[str] = Factory(set)
    """Versions whose archive cannot be unpacked, though its bytes are the promised ones."""
    tampered: bytes | None = None
    """What comes instead of the bytes that were promised."""
    seconds: float = 1.0
    """How long a download takes."""

    async def prebaked(self) -> str | None:
        await asyncio.sleep(0)
        installed = self.machine.installed
        return installed.version if installed is not None and self.machine.prebaked else None

    async def resolve(self, request: ReleaseRequest) -> Release:
        await asyncio.sleep(0)
        versions = list(self.archives)
        version = versions[-1] if request.version == "latest" and versions else request.version
        if version not in self.archives or request.arch not in self.arches:
            raise BinaryUnavailableError(f"there is no runner {request.version} for {request.arch}")
        sha256 = hashlib.sha256(self.archives[version]).hexdigest()
        return Release(version=version, arch=request.arch, sha256=sha256)

    async def install(self, release: Release, progress: Progress, warn: Warn) -> None:  # noqa: ARG002
        if self.machine.installed is not None and not self.machine.prebaked:
            raise BinaryError("the runner's root is not empty: remove it, or choose another")
        if release.version not in self.archives or release.arch not in self.arches:
            raise BinaryUnavailableError(f"there is no runner {release.version} for {release.arch}")
        data = self.archives[release.version] if self.tampered is None else self.tampered
        progress(0, len(data))
        await asyncio.sleep(self.seconds)
        progress(len(data), len(data))
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 != release.sha256:
            raise DigestMismatchError(f"the digest is {sha256}, not {release.sha256}")
        if release.version in self.damaged:
            raise ArchiveRefusedError(f"the archive of {release.version} is damaged")
        self.machine.installed, self.machine.prebaked = release, False


@frozen(kw_only=True)
class RunnerScript:
    """How a runner behaves; times are seconds, each after the one before."""

    refuse_registration: str | None = None
    refuse_jit: bool = False
    register_seconds: float = 3.0
    early_exits: tuple[int, ...] = ()
    """Exit codes of the first starts, which end before they listen."""
    listen_after: float | None = 1.0
    """None: it never listens."""
    assign_after: float | None = 2.0
    """None: no job comes."""
    prints_variable: str | None = None
    """One more step prints `{name} is {value}` for this variable."""
    vanishes: bool = False
    """The job is assigned, and never begins."""
    job_name: str = "build"
    output: tuple[str, ...] = ("hello from the job",)
    """What comes on the console as the job begins, whoever puts it there."""
    steps: tuple[tuple[str, ...], ...] = (("Prepare workflow directory",),)
    """What each step prints, as the job begins. A real job's first step always prints something."""
    worker_after: float = 0.1
    """From the job's start; a job that is shorter has its worker for no time at all."""
    job_seconds: float | None = 30.0
    """None: the job never ends by itself."""
    crash_after: float | None = None
    """From the job's start: the runner dies, with `exit_code`, or 1."""
    result: JobResult | None = JobResult.SUCCEEDED
    """None: the job is lost; no line tells its result."""
    last_words: tuple[str, ...] = ()
    """What comes on the console after that, whoever puts it there."""
    exit_after: float | None = 0.5
    """From the job's completion; None: it never ends by itself."""
    exit_code: int | None = None
    """None: 100 and more, as tells the result of a job that was not interrupted."""
    cancel_seconds: float | None = 2.0
    """How long it takes to stop in order; None: it ignores the request."""
    leaves_behind: int = 0
    """Processes of the job that outlive the runner, and hold its output open."""


_SUCCEEDED: Final = RunnerScript()
_RESULT_WORDS: Final = {
    JobResult.SUCCEEDED: "Succeeded",
    JobResult.SUCCEEDED_WITH_ISSUES: "SucceededWithIssues",
    JobResult.FAILED: "Failed",
    JobResult.CANCELED: "Canceled",
    JobResult.SKIPPED: "Skipped",
    JobResult.ABANDONED: "Abandoned",
}


@define(eq=False)
class InMemoryRunnerProcess(RunnerProcess):
    """A runner that follows a script."""

    machine: Machine
    script: RunnerScript = _SUCCEEDED
    registrations: list[Registration] = Factory(list)
    starts: int = 0
    interrupts: int = 0
    _early: list[int] = field(init=False)
    job_environment: Mapping[str, str | Secret] = field(init=False, factory=dict)
    """What the steps of the start's job find."""
    _lines: asyncio.Queue[str | None] = field(init=False, factory=asyncio.Queue)
    _traces: asyncio.Queue[Trace | None] = field(init=False, factory=asyncio.Queue)
    _main: ProcessId | None = field(init=False, default=None)
    _worker: ProcessId | None = field(init=False, default=None)
    _playing: asyncio.Task[int] | None = field(init=False, default=None)
    _interrupted: asyncio.Event = field(init=False, factory=asyncio.Event)
    _killed: int = field(init=False, default=0)
    """What nobody has been told of yet."""

    def __attrs_post_init__(self) -> None:
        self._early = list(self.script.early_exits)

    async def register(self, registration: Registration, say: Say) -> None:
        self._require_files()
        self.machine.prebaked = False
        await asyncio.sleep(self.script.register_seconds)
        say(OutputLine("√ Runner successfully added"))
        if self.script.refuse_registration is not None:
            raise RegistrationRefusedError(self.script.refuse_registration)
        if registration.token is None:
            raise RegistrationRefusedError("there is no token to register with")
        self.registrations.append(registration)
        self.machine.registered = True

    async def start(
        self, jit_config: Secret | None, job_environment: Mapping[str, str | Secret] | None = None
    ) -> ProcessId:
        self._require_files()
        await asyncio.sleep(0)
        if self._main in self.machine.runner_alive:
            raise RunnerUnavailableError("the runner runs already")
        self.starts += 1
        self.machine.prebaked = False
        self._interrupted.clear()
        self._lines, self._traces = asyncio.Queue(), asyncio.Queue()
        self.job_environment = job_environment or {}
        self._main = self.machine.new_process()
        self.machine.runner_alive.add(self._main)
        accepted = self.machine.registered or (jit_config is not None and not self.script.refuse_jit)
        play = self._play() if accepted else self._refuse()
        self._playing = asyncio.create_task(play, name="in-memory runner")
        self._playing.add_done_callback(lambda _: self._end())
        return self._main

    async def output(self) -> AsyncIterator[OutputLine]:
        if self._playing is None:
            raise RunnerUnavailableError("the runner was not started")
        lines = self._lines
        while (line := await lines.get()) is not None:
            yield OutputLine(line)

    async def traces(self) -> AsyncIterator[Trace]:
        if self._playing is None:
            raise RunnerUnavailableError("the runner was not started")
        traces = self._traces
        while (trace := await traces.get()) is not None:
            yield trace

    async def has_worker(self) -> bool:
        await asyncio.sleep(0)
        return self._worker in self.machine.runner_alive

    async def wait(self) -> int:
        if self._playing is None:
            raise RunnerUnavailableError("the runner was not started")
        await asyncio.wait({self._playing})
        return _KILLED if self._playing.cancelled() else self._playing.result()

    async def interrupt(self) -> None:
        await asyncio.sleep(0)
        if self._main in self.machine.runner_alive:
            self.interrupts += 1
            self._interrupted.set()

    async def kill(self, known: Sequence[ProcessId] = ()) -> int:  # noqa: ARG002 - memory forgets no process
        await asyncio.sleep(0)
        self._killed += len(self.machine.runner_alive)
        self.machine.runner_alive.clear()
        if self._playing is not None and not self._playing.done():
            self._playing.cancel()
            await asyncio.wait({self._playing})
        self._lines.put_nowait(None)
        self._traces.put_nowait(None)
        killed, self._killed = self._killed, 0
        return killed

    async def remove(self) -> None:
        await asyncio.sleep(0)
        self.machine.installed = None
        self.machine.diagnostics.clear()
        self.machine.registered = False

    def _require_files(self) -> None:
        if self.machine.installed is None:
            raise RunnerUnavailableError("there is no runner in the root")

    async def _refuse(self) -> int:
        await asyncio.sleep(0.5)
        self._print("An error occurred: the just-in-time config is not valid")
        return 1

    async def _play(self) -> int:
        """One start, from its first line to its exit code."""
        script = self.script
        self._print("√ Connected to GitHub")
        if self._early:
            await asyncio.sleep(1.0)
            return self._early.pop(0)
        if await self._interrupted_within(script.listen_after):
            return 0
        self._log("Listening for Jobs")
        if await self._interrupted_within(script.assign_after):
            return 0
        self._traces.put_nowait(Assigned())
        if script.vanishes:
            await self._interrupted_within(None)
            return 0
        return await self._play_job()

    async def _play_job(self) -> int:
        script = self.script
        self._log(f"Running job: {script.job_name}")
        bounds = [script.job_seconds, script.crash_after, script.worker_after]
        spent = min(each for each in bounds if each is not None)
        await asyncio.sleep(spent)
        self._worker = self.machine.new_process()
        self.machine.runner_alive.add(self._worker)
        self._traces.put_nowait(WorkerStarted())
        for line in script.output:
            self._print(line)
        for number, lines in enumerate([*script.steps, self._variables_shown()], 1):
            for line in lines:
                self._traces.put_nowait(StepLine(number, OutputLine(line)))
        for _ in range(script.leaves_behind):
            self.machine.runner_alive.add(self.machine.new_process())
        if script.crash_after is not None:
            await asyncio.sleep(max(0.0, script.crash_after - spent))
            return script.exit_code or 1
        left = None if script.job_seconds is None else max(0.0, script.job_seconds - spent)
        interrupted = await self._interrupted_within(left)
        self.machine.runner_alive.discard(self._worker)
        if interrupted:
            self._log_completion("Canceled")
            return 0
        if script.result is not None:
            self._log_completion(_RESULT_WORDS[script.result])
        for line in script.last_words:
            self._print(line)
        interrupted = await self._interrupted_within(script.exit_after)
        return 0 if interrupted else self._exit_code()

    def _exit_code(self) -> int:
        script = self.script
        if script.exit_code is not None:
            return script.exit_code
        return 100 if script.result is None else 100 + list(JobResult).index(script.result)

    def _variables_shown(self) -> Sequence[str]:
        name = self.script.prints_variable
        if name is None:
            return ()
        value = self.job_environment.get(name, "")
        return [f"{name} is {'***' if isinstance(value, Secret) else value}"]

    async def _interrupted_within(self, seconds: float | None) -> bool:
        """Whether it is time to stop in order, before the time is over."""
        try:
            async with asyncio.timeout(seconds):
                await self._interrupted.wait()
                await (
                    _for_ever()
                    if self.script.cancel_seconds is None
                    else asyncio.sleep(self.script.cancel_seconds)
                )
        except TimeoutError:
            return False
        return True

    def _end(self) -> None:
        """The main process is gone; its output ends unless a process that it left holds it open."""
        if self._main is not None:
            self.machine.runner_alive.discard(self._main)
        if self.machine.runner_alive <= {self._worker}:
            self._lines.put_nowait(None)

    def _print(self, line: str) -> None:
        for each in line.split("\n"):
            self._lines.put_nowait(each)

    def _log(self, text: str) -> None:
        self._print(f"2025-11-25 10:00:00Z: {text}")

    def _log_completion(self, result: str) -> None:
        self._log(f"Job {self.script.job_name} completed with result: {result}")


async def _for_ever() -> None:
    await asyncio.Event().wait()

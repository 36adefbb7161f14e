# ruff: noqa: S101 - a suite speaks in asserts
"""What any RunnerProcess promises."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from attrs import evolve

from agent_core.console import Completed, Connected, Listening, Running
from agent_core.errors import (
    RegistrationRefusedError,
    RunnerUnavailableError,
)
from agent_core.model import JobResult, OutputLine, Registration, Secret
from agent_core.ports import RunnerProcess
from agent_core.testing.contracts.contract import (
    Contract,
    assert_no_secret,
    cancel_at_any_step,
    error_of,
    eventually,
    on_loop,
    until,
)
from agent_core.testing.contracts.runner_behaviour import JOB_NAME, Heard, RunnerBehaviour, Seen

__all__ = ["RunnerProcessContract"]

_TOKEN: Final = "AABBCCDD-planted-registration-token"  # noqa: S105 - planted
_REGISTRATION: Final = Registration(
    url="https://github.com/Shavakan/my-repo",
    name="runner-1",
    labels=("runs-fleet=12345", "größe l"),
    token=Secret(_TOKEN),
)
_SUCCEEDED: Final = 100
_SIGKILL: Final = 9
_SIGSEGV: Final = 11
_SIGNALLED: Final = 128
_MANY_LINES: Final = 20_000
_LONG_LINE_BYTES: Final = 5_000_000
_LEFT_BEHIND: Final = 3


def _ignore(_line: OutputLine) -> None:
    """Takes no interest in what is said."""


class RunnerProcessContract(Contract, ABC):
    """Holds a RunnerProcess to its promises."""

    @abstractmethod
    def make(self) -> RunnerProcess:
        """The adapter under test; called again in the same test, that of a successor for the same root.

        At first there is nothing in the root.
        """

    @abstractmethod
    def install(self, behaviour: RunnerBehaviour) -> None:
        """Puts a runner that behaves so into the root, in place of what was there."""

    @abstractmethod
    def jit_config(self) -> Secret:
        """A just-in-time config that the runner in the root takes, unless its behaviour is to refuse it."""

    @abstractmethod
    def litter(self) -> None:
        """Leaves in the root what a job may: folders and files that are read-only, links, odd names."""

    @abstractmethod
    def is_removed(self) -> bool:
        """Whether nothing is left of the root."""

    @abstractmethod
    def alive(self) -> int:
        """How many processes of the runner live, in whatever session and with whatever parent."""

    # Registering

    @on_loop
    async def test_registers(self) -> None:
        """The runner then runs its job; what it printed while registering was told, on the loop's thread."""
        runner = self.make()
        self.install(RunnerBehaviour())
        said: list[OutputLine] = []

        def say(line: OutputLine) -> None:
            asyncio.get_running_loop()  # raises on any other thread
            said.append(line)

        await runner.register(_REGISTRATION, say)

        assert "√ Runner successfully added" in [line.text for line in said]
        assert not any(_TOKEN in line.text for line in said)
        async with self._started(runner) as heard:
            await heard.until(Completed)

    @on_loop
    async def test_a_refused_registration_has_the_runners_words(self) -> None:
        """The error says what the runner said, and not the token."""
        runner = self.make()
        self.install(RunnerBehaviour(refuses_registration=True))

        error = await error_of(RegistrationRefusedError, runner.register(_REGISTRATION, _ignore))

        assert "NotFound" in str(error)
        assert_no_secret(error, [_TOKEN])
        assert self.alive() == 0

    @on_loop
    async def test_registering_without_a_runner_is_unavailable(self) -> None:
        """Where no runner is, nobody can be asked."""
        runner = self.make()

        error = await error_of(RunnerUnavailableError, runner.register(_REGISTRATION, _ignore))

        assert_no_secret(error, [_TOKEN])

    @on_loop
    async def test_a_registration_can_be_cancelled(self) -> None:
        """It leaves no process, and the runner can be registered by another."""
        runner = self.make()
        self.install(RunnerBehaviour(hangs_registering=True))
        said = asyncio.Event()
        registering = asyncio.create_task(runner.register(_REGISTRATION, lambda _line: said.set()))
        hangs = asyncio.create_task(said.wait())
        # A runner that hangs without a word is as good.
        await asyncio.wait({hangs}, timeout=1.0)
        hangs.cancel()

        assert not registering.done()
        registering.cancel()
        await asyncio.wait({registering})

        assert registering.cancelled()
        assert self.alive() == 0
        self.install(RunnerBehaviour())
        await eventually(RunnerUnavailableError, lambda: runner.register(_REGISTRATION, _ignore))

    # Starting

    @on_loop
    async def test_starting_without_a_runner_is_unavailable(self) -> None:
        """With a just-in-time config or without."""
        runner = self.make()

        for jit_config in (None, self.jit_config()):
            error = await error_of(RunnerUnavailableError, runner.start(jit_config))
            assert_no_secret(error, [self.jit_config().reveal()])

    @on_loop
    async def test_a_jit_config_needs_no_registration(self) -> None:
        """The runner runs its job, and shows nothing of the config."""
        runner = self.make()
        self.install(RunnerBehaviour())

        async with self._started(runner, self.jit_config()) as heard:
            lines = await heard.end()

            assert await runner.wait() == _SUCCEEDED
            assert Completed(JOB_NAME, JobResult.SUCCEEDED) in heard.events
            assert not any(self.jit_config().reveal() in line for line in lines)

    @on_loop
    async def test_a_refused_jit_config_ends_the_runner(self) -> None:
        """The runner says so and ends; its registration makes up for it."""
        runner = self.make()
        self.install(RunnerBehaviour(refuses_jit_config=True))

        async with self._started(runner, self.jit_config()) as heard:
            lines = await heard.end()
            assert await runner.wait() == 1
            assert any(lines)
            assert Connected() not in heard.events
        await runner.register(_REGISTRATION, _ignore)
        async with self._started(runner) as heard:
            await heard.until(Completed)

    @on_loop
    async def test_a_second_start_is_refused(self) -> None:
        """While the runner runs there is no other, and it goes on unharmed."""
        runner = await self._registered(RunnerBehaviour())
        async with self._started(runner) as heard:
            await error_of(RunnerUnavailableError, runner.start(None))
            await heard.end()

            assert await runner.wait() == _SUCCEEDED
            assert Completed(JOB_NAME, JobResult.SUCCEEDED) in heard.events

    @on_loop
    async def test_starts_again_after_its_end(self) -> None:
        """Each start is another process, with its own exit code and its own output."""
        runner = await self._registered(RunnerBehaviour(exit_codes=(2, 5)))
        processes = []
        events = []
        codes = []

        for _ in range(3):
            processes.append(await runner.start(None))
            heard = Heard(runner)
            codes.append(await runner.wait())
            await heard.end()
            events.append(heard.events)

        assert codes == [2, 5, _SUCCEEDED]
        assert len(set(processes)) == len(processes)
        whole = [Connected(), Listening(), Running(JOB_NAME), Completed(JOB_NAME, JobResult.SUCCEEDED)]
        assert events == [[Connected()], [Connected()], whole]

    # Output and exit

    @on_loop
    async def test_what_was_not_started_is_unavailable(self) -> None:
        """It has neither output nor an end."""
        runner = self.make()
        self.install(RunnerBehaviour())

        await error_of(RunnerUnavailableError, runner.wait())
        await error_of(RunnerUnavailableError, Heard(runner).end())

    @on_loop
    async def test_output_is_whole(self) -> None:
        """It has all that the runner and its job print, in order, from the first line to the last."""
        runner = await self._registered(RunnerBehaviour(prints=b"one\n\n  three \ttabs\n"))
        async with self._started(runner) as heard:
            lines = await heard.end()

        assert heard.events == [
            Connected(),
            Listening(),
            Running(JOB_NAME),
            Completed(JOB_NAME, JobResult.SUCCEEDED),
        ]
        assert heard.job_lines() == ["one", "", "  three \ttabs"]
        assert not any(line.endswith(("\n", "\r")) for line in lines)

    @on_loop
    async def test_output_read_late_is_whole(self) -> None:
        """`wait` needs nobody who reads, and what was printed meanwhile is still there."""
        runner = await self._registered(RunnerBehaviour(prints=b"a line\n" * 10))
        await runner.start(None)

        code = await runner.wait()
        heard = Heard(runner)
        await heard.end()

        assert code == _SUCCEEDED
        assert heard.events[0] == Connected()
        assert heard.job_lines() == ["a line"] * 10

    @on_loop
    async def test_many_lines_arrive_in_order(self) -> None:
        """None is lost, and none is out of place."""
        expected = [f"line {number}: {'x' * (number % 100)}" for number in range(_MANY_LINES)]
        await self._prints("".join(f"{line}\n" for line in expected).encode(), expected)

    @on_loop
    async def test_a_very_long_line_arrives(self) -> None:
        """Its parts put together are the line; what follows is another one."""
        long = "".join(f"{number:08d}é" for number in range(_LONG_LINE_BYTES // 10))
        await self._prints(f"before\n{long}\nafter\n".encode(), ["before", long, "after"])

    @on_loop
    async def test_odd_bytes_arrive(self) -> None:
        """Only LF, with a CR before it or not, ends a line; what is not UTF-8 is shown, and loses nothing."""
        await self._prints(
            b"\xff\xfe caf\xc3\xa9 caf\xc3\n\x00\x1b[31mred\x1b[0m\xf0\x9f\x90\x8d\r\n"
            b"one\xe2\x80\xa8line\x0b\x0c\x85\rprogress 1\rprogress 2\n\xed\xa0\x80\n",
            [
                "\\xff\\xfe café caf\\xc3",
                "\0\x1b[31mred\x1b[0m\U0001f40d",
                "one\u2028line\x0b\x0c\\x85\rprogress 1\rprogress 2",
                "\\xed\\xa0\\x80",
            ],
        )

    @on_loop
    async def test_a_last_line_without_end_arrives(self) -> None:
        """The output of a runner that dies in the middle of a line ends with what there is of it."""
        runner = await self._registered(RunnerBehaviour(prints=b"one\nand th", dies_of=_SIGKILL))
        async with self._started(runner) as heard:
            lines = await heard.end()

        assert lines[-2:] == ["one", "and th"]

    @on_loop
    async def test_a_signal_counts_as_128_and_its_number(self) -> None:
        """As in a shell."""
        for number in (_SIGKILL, _SIGSEGV):
            runner = await self._registered(RunnerBehaviour(dies_of=number))
            async with self._started(runner) as heard:
                assert await runner.wait() == _SIGNALLED + number
                await runner.kill()
                await heard.end()

    @on_loop
    async def test_waiting_can_be_repeated(self) -> None:
        """Whoever asks, and however often, gets the same exit code."""
        runner = await self._registered(RunnerBehaviour(exit_codes=(7,)))
        async with self._started(runner):
            codes = await asyncio.gather(runner.wait(), runner.wait())

            assert [*codes, await runner.wait()] == [7, 7, 7]

    # Stopping in order

    @on_loop
    async def test_an_interrupted_runner_ends_in_order(self) -> None:
        """It cancels its job and says so, and its last words are read."""
        runner = await self._registered(RunnerBehaviour(never_ends=True))
        async with self._started(runner) as heard:
            await heard.until(Running)

            await runner.interrupt()

            assert await runner.wait() == 0
            await heard.end()
            assert heard.events[-1] == Completed(JOB_NAME, JobResult.CANCELED)
            assert await runner.kill() == 0

    @on_loop
    async def test_an_interrupted_runner_without_a_job_ends(self) -> None:
        """There is nothing to cancel."""
        runner = await self._registered(RunnerBehaviour(never_assigns=True))
        async with self._started(runner) as heard:
            await heard.until(Listening)

            await runner.interrupt()

            assert await runner.wait() == 0
            await heard.end()
            assert heard.events == [Connected(), Listening()]

    @on_loop
    async def test_interrupting_nothing_is_nothing(self) -> None:
        """Before the first start and after the end there is nobody to ask."""
        runner = self.make()
        await runner.interrupt()
        self.install(RunnerBehaviour(exit_codes=(2,)))
        await runner.register(_REGISTRATION, _ignore)
        await runner.interrupt()
        async with self._started(runner) as heard:
            await heard.end()
            assert await runner.wait() == 2  # noqa: PLR2004 - as the behaviour says

            await runner.interrupt()
            await runner.interrupt()

            assert await runner.wait() == 2  # noqa: PLR2004 - as the behaviour says

    @on_loop
    async def test_an_interrupt_counts_for_one_start(self) -> None:
        """The runner that is started next was not asked to stop."""
        runner = await self._registered(RunnerBehaviour(never_assigns=True))
        async with self._started(runner) as heard:
            await heard.until(Listening)
            await runner.interrupt()
            await heard.end()
            await runner.wait()

        self.install(RunnerBehaviour())
        await runner.register(_REGISTRATION, _ignore)
        async with self._started(runner) as heard:
            await heard.end()
            assert heard.events[-1] == Completed(JOB_NAME, JobResult.SUCCEEDED)

    # Traces

    @on_loop
    async def test_what_steps_print_is_seen(self) -> None:
        """All of it, each line once and in its step's order; steps are counted as they come."""
        printed = [b"one\n\n  three\n", b"".join(b"line %d\n" % n for n in range(1_000)), b"no end"]
        runner = await self._registered(RunnerBehaviour(steps=tuple(printed)))
        async with self._started(runner) as heard, self._watched(runner) as seen:
            await heard.end()
            await runner.wait()
            await runner.kill()
            await seen.end()

        for step in printed:
            expected = step.decode().splitlines()
            assert any(lines[-len(expected) :] == expected for lines in seen.steps().values())
        assert list(seen.steps()) == sorted(seen.steps())

    @on_loop
    async def test_steps_are_seen_while_they_run(self) -> None:
        """And the job's assignment before it, once."""
        runner = await self._registered(RunnerBehaviour(steps=(b"begun\n",), never_ends=True))
        async with self._started(runner) as heard, self._watched(runner) as seen:
            await seen.until(lambda: any("begun" in line for line in seen.lines))
            await heard.until(Running)
            assert (seen.assigned, seen.workers) == (1, 1)
            await runner.kill()
            await runner.wait()
            await seen.end()
            assert seen.assigned == 1

    @on_loop
    async def test_traces_are_of_one_start(self) -> None:
        """What an earlier start left is not seen again."""
        runner = await self._registered(RunnerBehaviour(steps=(b"first\n",), exit_codes=()))
        async with self._started(runner) as heard, self._watched(runner) as seen:
            await heard.end()
            await runner.kill()
            await seen.end()
            assert any("first" in line for line in seen.lines)
        self.install(RunnerBehaviour(steps=(b"second\n",)))
        await runner.register(_REGISTRATION, _ignore)
        async with self._started(runner) as heard, self._watched(runner) as seen:
            await heard.end()
            await runner.kill()
            await seen.end()

        assert any("second" in line for line in seen.lines)
        assert not any("first" in line for line in seen.lines)
        assert seen.assigned == 1

    @on_loop
    async def test_an_assignment_is_seen_without_a_job(self) -> None:
        """GitHub has given the job away, and it never begins."""
        runner = await self._registered(RunnerBehaviour(vanishes=True))
        async with self._started(runner) as heard, self._watched(runner) as seen:
            await seen.until(lambda: seen.assigned > 0)
            assert seen.workers == 0
            assert not await runner.has_worker()
            await runner.interrupt()
            await heard.end()
            await runner.kill()
            await seen.end()
            assert Running(JOB_NAME) not in heard.events

    @on_loop
    async def test_traces_of_what_was_not_started_are_unavailable(self) -> None:
        """There is nothing to follow."""
        runner = self.make()
        self.install(RunnerBehaviour())

        await error_of(RunnerUnavailableError, Seen(runner).end())

    @on_loop
    async def test_the_worker_tells_of_the_job(self) -> None:
        """It is there while the job runs, and at no other time."""
        runner = await self._registered(RunnerBehaviour(steps=(b"begun\n",), never_ends=True))
        assert not await runner.has_worker()
        async with self._started(runner) as heard, self._watched(runner) as seen:
            await seen.until(lambda: any("begun" in line for line in seen.lines))
            assert await runner.has_worker()
            await runner.interrupt()
            await heard.until(Completed)
            assert not await runner.has_worker()
            await runner.kill()
            await seen.end()

    @on_loop
    async def test_steps_find_their_variables(self) -> None:
        """As they were given, a secret one too; but it is masked in what comes from the runner."""
        runner = await self._registered(RunnerBehaviour(prints_variable="GREETING"))
        for value, shown in (("a = b 'c'", "a = b 'c'"), (Secret("planted-secret"), "***")):
            await runner.start(None, {"GREETING": value, "OTHER": "x"})
            heard, seen = Heard(runner), Seen(runner)
            await heard.end()
            await runner.wait()
            await runner.kill()
            await seen.end()
            assert any(line.endswith(f"GREETING is {shown}") for line in seen.lines), seen.lines
            self.install(RunnerBehaviour(prints_variable="GREETING"))
            await runner.register(_REGISTRATION, _ignore)

    # Killing

    @on_loop
    async def test_kill_ends_what_ignores_an_interrupt(self) -> None:
        """The runner, its job and what they started: none is alive when the call returns."""
        runner = await self._registered(RunnerBehaviour(never_ends=True, ignores_interrupt=True))
        async with self._started(runner) as heard:
            await heard.until(Running)
            await runner.interrupt()
            assert self.alive() > 0

            killed = await runner.kill()

            assert killed > 0
            assert self.alive() == 0
            assert await runner.wait() == _SIGNALLED + _SIGKILL
            await heard.end()
            assert Completed(JOB_NAME, JobResult.CANCELED) not in heard.events

    @on_loop
    async def test_kill_ends_what_the_runner_left(self) -> None:
        """Daemons that hold the output open delay its end, not the exit code; `kill` ends and counts them."""
        runner = await self._registered(RunnerBehaviour(leaves_behind=_LEFT_BEHIND))
        async with self._started(runner) as heard:
            assert await runner.wait() == _SUCCEEDED
            await heard.until(Completed)
            assert self.alive() == _LEFT_BEHIND
            assert not heard.ended

            assert await runner.kill() == _LEFT_BEHIND

            assert self.alive() == 0
            await heard.end()

    @on_loop
    async def test_what_a_cancelled_kill_has_ended_counts(self) -> None:
        """Nobody has been told of it: the next call tells."""
        runner = await self._registered(RunnerBehaviour(leaves_behind=_LEFT_BEHIND))
        async with self._started(runner) as heard:
            await runner.wait()
            await heard.until(Completed)
            killing = asyncio.create_task(runner.kill())
            await until("the first call has killed", lambda: self.alive() == 0)
            killing.cancel()
            await asyncio.wait({killing})
            told = 0 if killing.cancelled() else killing.result()

            assert told + await eventually(RunnerUnavailableError, runner.kill) == _LEFT_BEHIND

            await heard.end()

    @on_loop
    async def test_kill_ends_daemons_of_a_running_job(self) -> None:
        """All at once, whatever session they are in."""
        runner = await self._registered(RunnerBehaviour(never_ends=True, leaves_behind=_LEFT_BEHIND))
        async with self._started(runner) as heard:
            await heard.until(Running)
            await self._left_behind()

            assert await runner.kill() > _LEFT_BEHIND

            assert self.alive() == 0
            assert await runner.wait() == _SIGNALLED + _SIGKILL
            await heard.end()

    @on_loop
    async def test_killing_nothing_is_nothing(self) -> None:
        """Without files, before the first start, after the end, and again."""
        runner = self.make()
        assert await runner.kill() == 0
        self.install(RunnerBehaviour())
        assert await runner.kill() == 0
        await runner.register(_REGISTRATION, _ignore)
        assert await runner.kill() == 0
        async with self._started(runner) as heard:
            await heard.end()
            await runner.wait()
            assert await runner.kill() == 0
            assert await runner.kill() == 0
            assert await runner.wait() == _SUCCEEDED

    @on_loop
    async def test_starts_again_after_a_kill(self) -> None:
        """What is killed does not come back, and does not stand in the way."""
        behaviour = RunnerBehaviour(never_ends=True, leaves_behind=1)
        runner = await self._registered(behaviour)
        async with self._started(runner) as heard:
            await heard.until(Running)
            await self._left_behind(1)
            await runner.kill()
            await heard.end()

        self.install(evolve(behaviour, never_ends=False, leaves_behind=0))
        await runner.register(_REGISTRATION, _ignore)
        async with self._started(runner) as heard:
            await heard.end()
            assert await runner.wait() == _SUCCEEDED
            assert await runner.kill() == 0

    # A successor's

    @on_loop
    async def test_a_successor_kills_what_it_is_told_of(self) -> None:
        """What an earlier adapter started, with all that came of it."""
        first = await self._registered(RunnerBehaviour(never_ends=True, leaves_behind=_LEFT_BEHIND))
        process = await first.start(None)
        heard = Heard(first)
        await heard.until(Running)
        await self._left_behind()

        successor = self.make()

        assert await successor.kill([process]) > _LEFT_BEHIND
        assert self.alive() == 0
        assert await successor.kill([process]) == 0
        await heard.cancel()

    @on_loop
    async def test_a_successor_kills_what_it_finds(self) -> None:
        """What works from the root is found without a word of it, and so is what it started."""
        first = await self._registered(RunnerBehaviour(never_ends=True, leaves_behind=_LEFT_BEHIND))
        await first.start(None)
        heard = Heard(first)
        await heard.until(Running)
        await self._left_behind()

        assert await self.make().kill() > _LEFT_BEHIND
        assert self.alive() == 0
        await heard.cancel()

    @on_loop
    async def test_a_successor_kills_orphans(self) -> None:
        """Daemons whose runner ended long ago, told of it or not."""
        for told in (True, False):
            first = await self._registered(RunnerBehaviour(leaves_behind=_LEFT_BEHIND))
            process = await first.start(None)
            heard = Heard(first)
            await first.wait()
            assert self.alive() == _LEFT_BEHIND

            assert await self.make().kill([process] if told else ()) == _LEFT_BEHIND

            assert self.alive() == 0
            await heard.cancel()

    # Removing

    @on_loop
    async def test_removes_all_that_a_job_leaves(self) -> None:
        """Read-only folders too; then there is nothing to start."""
        runner = await self._registered(RunnerBehaviour())
        async with self._started(runner) as heard:
            await heard.end()
            await runner.wait()
        self.litter()
        assert not self.is_removed()

        await runner.remove()

        assert self.is_removed()
        await error_of(RunnerUnavailableError, runner.start(None))

    @on_loop
    async def test_removing_nothing_is_nothing(self) -> None:
        """Before there is a runner, and again after it is removed."""
        runner = self.make()
        await runner.remove()
        self.install(RunnerBehaviour())
        await runner.remove()
        await runner.remove()

        assert self.is_removed()

    @on_loop
    async def test_a_removed_runner_is_not_registered(self) -> None:
        """A runner installed in its place has to be registered itself."""
        runner = await self._registered(RunnerBehaviour())
        await runner.remove()
        self.install(RunnerBehaviour())

        async with self._started(runner) as heard:
            await heard.end()
            assert await runner.wait() == 1

    # Cancelled

    @on_loop
    async def test_a_start_can_be_cancelled(self) -> None:
        """At any moment: `kill` then finds what came of it, and the runner can be started."""
        runner = await self._registered(RunnerBehaviour(never_assigns=True))

        async def kill() -> None:
            await eventually(RunnerUnavailableError, runner.kill)

        await cancel_at_any_step(lambda: runner.start(None), kill)
        assert self.alive() == 0

        async with self._started(runner) as heard:
            await heard.until(Listening)
            await runner.kill()
            await heard.end()

    @on_loop
    async def test_calls_can_be_cancelled_while_it_runs(self) -> None:
        """Waiting, interrupting and killing: whatever is cancelled can be asked for again."""
        runner = await self._registered(RunnerBehaviour(never_ends=True, ignores_interrupt=True))
        async with self._started(runner) as heard:
            await heard.until(Running)

            await cancel_at_any_step(runner.wait)
            await cancel_at_any_step(runner.interrupt)
            await cancel_at_any_step(runner.kill)
            await eventually(RunnerUnavailableError, runner.kill)

            assert self.alive() == 0
            assert await runner.wait() == _SIGNALLED + _SIGKILL
            await heard.end()

    @on_loop
    async def test_reading_can_be_cancelled(self) -> None:
        """A runner that nobody reads any more can be killed, and started again."""
        runner = await self._registered(RunnerBehaviour(never_ends=True))
        await runner.start(None)
        heard = Heard(runner)
        await heard.until(Running)

        await heard.cancel()
        await runner.kill()
        await runner.wait()

        async with self._started(runner) as heard:
            await heard.until(Running)
            await runner.kill()
            await heard.end()

    @on_loop
    async def test_removing_can_be_cancelled(self) -> None:
        """It can be asked for again."""
        runner = self.make()
        self.install(RunnerBehaviour())

        await cancel_at_any_step(runner.remove)
        await eventually(RunnerUnavailableError, runner.remove)

        assert self.is_removed()

    # Helpers

    async def _registered(self, behaviour: RunnerBehaviour) -> RunnerProcess:
        runner = self.make()
        self.install(behaviour)
        await runner.register(_REGISTRATION, _ignore)
        return runner

    @asynccontextmanager
    async def _started(self, runner: RunnerProcess, jit_config: Secret | None = None) -> AsyncIterator[Heard]:
        """The runner, started and read; its reader ends with the block."""
        await runner.start(jit_config)
        heard = Heard(runner)
        try:
            yield heard
        finally:
            await heard.cancel()

    @asynccontextmanager
    async def _watched(self, runner: RunnerProcess) -> AsyncIterator[Seen]:
        """The traces of the runner that was started, read until the block ends."""
        seen = Seen(runner)
        try:
            yield seen
        finally:
            await seen.cancel()

    async def _prints(self, printed: bytes, expected: list[str]) -> None:
        runner = await self._registered(RunnerBehaviour(prints=printed))
        async with self._started(runner) as heard:
            await heard.end()
            assert await runner.wait() == _SUCCEEDED
        arrived = heard.job_lines()
        wrong = [number for number, (a, b) in enumerate(zip(arrived, expected, strict=False)) if a != b]
        assert wrong[:3] == []
        assert len(arrived) == len(expected)

    async def _left_behind(self, count: int = _LEFT_BEHIND) -> None:
        """Returns when the job has made its daemons."""
        await until(f"{count} daemons", lambda: self.alive() > count)

"""Runner.Listener: registers the runner, or holds a session with GitHub and has one job after another run."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from .commands import Inputs, apply_env_file
from .dispatch import RESULT_BASE, Dispatcher
from .host import Host
from .registration import Refusal, forget, load_settings, register, unpack_jit_config
from .scenario import RESULTS, Scenario
from .scenario import load as load_scenario
from .terminal import Terminal
from .timestamps import console_stamp
from .update import begin_update, is_updating
from .waiting import LimitReached, Waiter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .registration import Settings

_SUCCESS = 0
_TERMINATED = 1
_RETRYABLE = 2
_UPDATING = 3
_SESSION_CONFLICT = 5
_ENDED_BY_SIGTERM = 128 + signal.SIGTERM


def main(argv: Sequence[str]) -> int:
    """Return the exit code."""
    root = Path(__file__).resolve().parents[2]
    apply_env_file(root / ".env", os.environ)
    host = Host(root, "Runner")
    terminal = Terminal(host)
    host.count("RunnerProcessStarted")
    try:
        code = _execute(
            host, terminal, Inputs.take(argv, os.environ), load_scenario(root / "sample" / "scenario.json")
        )
    except Refusal as exc:
        terminal.error(str(exc))
        code = _TERMINATED
    except LimitReached:
        code = _ENDED_BY_SIGTERM
    except Exception as exc:  # noqa: BLE001 - the real Listener's outermost handler: whatever it is may pass
        terminal.error(f"An error occurred: {exc}")
        code = _RETRYABLE
    host.trace("Listener", f"Runner execution has finished with return code {code}")
    return code


def _execute(host: Host, terminal: Terminal, inputs: Inputs, scenario: Scenario) -> int:
    if inputs.flag("version"):
        terminal.line(host.version)
        return _SUCCESS
    if unknown := inputs.unknown():
        terminal.error(
            f"Unrecognized command-line input arguments for command {inputs.command}: "
            f"'{', '.join(unknown)}'. For usage refer to: .\\config.cmd --help or ./config.sh --help"
        )
    if inputs.command == "configure":
        register(host.root, inputs, scenario, terminal)
        return _SUCCESS
    if inputs.command == "remove":
        forget(host.root, terminal)
        return _SUCCESS
    if is_updating(host.root):
        raise Refusal("update in progress")
    if encoded := inputs.value("jitconfig"):
        unpack_jit_config(host.root, encoded, scenario)
    settings = load_settings(host.root)
    if inputs.command != "run":
        terminal.line(
            "Commands: ./config.sh [remove] configures the runner or unconfigures it, ./run.sh runs it"
        )
        return _SUCCESS
    return Listener(host, terminal, scenario, settings, once=inputs.flag("once")).run()


class Stopped(Exception):  # noqa: N818 - a wish, not an error
    """A signal asked the Listener to stop while no job was running."""


class Listener:
    """A session: the runner is connected, waits for a job, runs it, and is gone."""

    def __init__(
        self, host: Host, terminal: Terminal, scenario: Scenario, settings: Settings, *, once: bool
    ) -> None:
        self._host = host
        self._terminal = terminal
        self._scenario = scenario
        self._settings = settings
        self._returns_result = os.environ.get("ACTIONS_RUNNER_RETURN_JOB_RESULT_FOR_HOSTED", "").lower() in {
            "1",
            "true",
        }
        self._one_job = once or settings.ephemeral or self._returns_result
        self._waiter = Waiter(scenario.term_limit_seconds)

    def run(self) -> int:
        """Return the exit code: by default it says nothing about the job's result."""
        self._terminal.line()
        self._terminal.success("Connected to GitHub")
        self._terminal.line()
        try:
            code = self._refused_session()
            if code is None:
                code = self._listen()
        except Stopped:
            self._host.trace("Listener", "Runner execution been cancelled.")
            return _SUCCESS
        return code

    def _refused_session(self) -> int | None:
        """The exit code of a Listener that gets no session."""
        turn = self._count_start() - self._scenario.update
        if turn < 0:
            begin_update(self._host.root)
            self._terminal.line(
                "Runner will exit shortly for update, should be back online within 10 seconds."
            )
            return _UPDATING
        if turn < len(self._scenario.exit_codes):
            code = self._scenario.exit_codes[turn]
            self._terminal.error(f"An error occurred: the scenario's exit code {code}")
            return code
        if self._scenario.refuse_session == "deleted":
            self._terminal.error(
                "Failed to create a session. The runner registration has been deleted from the server, "
                "please re-configure."
            )
            return _TERMINATED
        if self._scenario.refuse_session == "conflict":
            self._terminal.error("Failed to create session. A session for this runner already exists.")
            return _SESSION_CONFLICT
        if self._scenario.never_listen:
            self._idle(None)
        return None

    def _count_start(self) -> int:
        """How many starts there were before this one: the number is kept under the root."""
        file = self._host.root / "sample" / "starts"
        starts = int(file.read_text()) if file.exists() else 0
        file.write_text(str(starts + 1))
        return starts

    def _listen(self) -> int:
        self._host.count("SessionCreated")
        self._terminal.line(f"Current runner version: '{self._host.version}'")
        self._terminal.line(f"{console_stamp()}: Listening for Jobs")
        result: str | None = None
        finished = False
        try:
            while not (finished and self._one_job):
                self._await_job(first=not finished)
                result, finished = self._run_job(), True
        except Stopped:
            self._end_session()
            raise
        self._end_session()
        if self._settings.ephemeral:
            forget(self._host.root, self._terminal)
        result = self._scenario.exit_result or result
        return RESULT_BASE + RESULTS.index(result) if self._returns_result and result else _SUCCESS

    def _end_session(self) -> None:
        self._host.trace("Runner", "Deleting Runner Session...")

    def _await_job(self, *, first: bool) -> None:
        """Return once a job is assigned; there is one, and the Listener waits for a second in vain."""
        for _ in range(self._scenario.reconnects if first else 0):
            self._terminal.error(
                f"{console_stamp()}: Runner connect error: No route to host. Retrying until reconnected."
            )
            self._terminal.line(f"{console_stamp()}: Runner reconnected.")
        if self._scenario.never_assign or not first:
            self._idle(None)
        self._idle(self._scenario.assign_after_seconds)
        self._host.count("MessageReceived_RunnerJobRequest")
        if self._scenario.assign_then_vanish:
            self._host.trace("Runner", "Skipping message Job.")
            self._idle(None)

    def _run_job(self) -> str | None:
        dispatcher = Dispatcher(self._host, self._terminal, self._scenario, self._waiter, self._stop)
        result = dispatcher.run()
        if self._scenario.hang_after_completed:
            self._waiter.forever()
        if dispatcher.canceled:
            raise Stopped
        return result

    def _idle(self, seconds: float | None) -> None:
        if self._waiter.pause(seconds, self._stop):
            raise Stopped

    def _stop(self, signals: frozenset[int]) -> bool:
        """Whether these ask the Listener to stop. SIGINT is answered on the console, each time."""
        interrupted = signal.SIGINT in signals and not self._scenario.ignore_sigint
        if interrupted:
            self._terminal.line("Exiting...")
        return interrupted or signal.SIGTERM in signals

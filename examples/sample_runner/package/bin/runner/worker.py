"""Runner.Worker: runs one job, step by step, and exits with its result."""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from . import channel
from .dispatch import RESULT_BASE
from .environment import Workplace, job_environment
from .host import Host
from .orphans import kill_tracked
from .pages import Pages, Uploads
from .registration import load_settings
from .scenario import RESULTS, Scenario
from .scenario import load as load_scenario
from .steps import StepProcess
from .waiting import LimitReached, Waiter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .scenario import Step

_CRASHED = 1
_ENDED_BY_SIGTERM = 128 + signal.SIGTERM


def main(argv: Sequence[str]) -> int:
    """Take `spawnclient FD_IN FD_OUT`; return the exit code."""
    root = Path(__file__).resolve().parents[2]
    host = Host(root, "Worker")
    host.count("WorkerProcessStarted")
    try:
        _, descriptor_in, descriptor_out = argv
        scenario = load_scenario(root / "sample" / "scenario.json")
        worker = Worker(
            host, scenario, channel.Receiver(int(descriptor_in)), channel.Sender(int(descriptor_out))
        )
        result = worker.run()
    except LimitReached:
        return _ENDED_BY_SIGTERM
    except Exception:  # noqa: BLE001 - the real Worker's outermost handler: whatever it is may pass
        host.trace("Worker", traceback.format_exc(), "ERR")
        return _CRASHED
    host.trace("Worker", f"Job completed. Result: {result}")
    return RESULT_BASE + RESULTS.index(result)


class Worker:
    """Runs the steps; hears of a cancellation at any time; does not notice that its Listener has died."""

    def __init__(
        self, host: Host, scenario: Scenario, inbox: channel.Receiver, outbox: channel.Sender
    ) -> None:
        self._host = host
        self._scenario = scenario
        self._inbox = inbox
        self._outbox = outbox
        self._settings = load_settings(host.root)
        self._workplace = Workplace.of(host.root, self._settings)
        self._waiter = Waiter(scenario.term_limit_seconds)
        self._uploads = Uploads(scenario.upload_seconds, self._pause)
        self._tracking_id = f"github_{uuid.uuid4()}"
        self._environment = job_environment(os.environ, self._workplace, self._settings, self._tracking_id)
        self._job: dict[str, str] = {}
        self._failed = False
        self._canceled_at: float | None = None

    def run(self) -> str:
        """Return the job's result."""
        while not self._job:
            if not self._inbox.open:
                raise EOFError("the Listener has gone and sent no job")
            self._wait()
        self._set_up()
        self._run_hook("ACTIONS_RUNNER_HOOK_JOB_STARTED", "Set up runner")
        for step in self._scenario.steps:
            self._wait(seconds=0)
            if not self._failed and self._canceled_at is None:
                self._run_step(step)
        if self._canceled_at is None:
            self._run_hook("ACTIONS_RUNNER_HOOK_JOB_COMPLETED", "Complete runner")
        self._complete()
        if self._scenario.hang:
            self._waiter.forever()
        return self._scenario.result or self._own_result()

    def _own_result(self) -> str:
        if self._canceled_at is not None:
            return "Canceled"
        return "Failed" if self._failed else "Succeeded"

    def _set_up(self) -> None:
        self._workplace.prepare()
        pages = self._new_pages()
        _say(
            pages,
            f"Current runner version: '{self._host.version}'",
            f"Runner name: '{self._settings.name}'",
            f"Machine name: '{os.uname().nodename}'",
            "Prepare workflow directory",
            f"Complete job name: {self._job['jobDisplayName']}",
        )
        pages.close()

    def _run_hook(self, variable: str, name: str) -> None:
        if script := os.environ.get(variable):
            self._run_process(name, ["bash", "-e", script], f"A job hook has been configured: {script}")

    def _run_step(self, step: Step) -> None:
        content = (
            (self._host.root / "sample" / "job.sh").read_bytes() if step.run is None else step.run.encode()
        )
        script = self._workplace.temp / f"{uuid.uuid4()}.sh"
        script.write_bytes(content)
        self._run_process(step.name, ["bash", "-e", script], "shell: bash -e {0}", marks_start=True)
        script.unlink(missing_ok=True)

    def _run_process(
        self, name: str, command: Sequence[str | Path], note: str, *, marks_start: bool = False
    ) -> None:
        """Run it to its end, or, where the job is cancelled, to the end that it is made to take."""
        self._host.trace("StepsRunner", f"Starting step: {name}")
        pages = self._new_pages()
        _say(pages, f"##[group]{name}", note, "##[endgroup]")
        process = StepProcess(
            command,
            cwd=self._workplace.workspace,
            environment={**self._environment, **self._workplace.file_commands()},
            scenario=self._scenario,
            pages=pages,
            echo=self._echo,
        )
        if marks_start:
            self._outbox.send(channel.STEP_STARTED)
        while (code := process.act()) is None:
            ready = self._wait(*process.descriptors, seconds=process.seconds_to_act())
            if self._canceled_at is not None:
                process.cancel()
            if ready.intersection(process.descriptors):
                process.read()
        if self._canceled_at is not None:
            _say(pages, "##[error]The operation was canceled.")
        elif code:
            self._failed = True
            _say(pages, f"##[error]Process completed with exit code {code}.")
        pages.close()
        self._host.trace("StepsRunner", f"Finished step: {name}. Exit code: {code}")

    def _complete(self) -> None:
        pages = self._new_pages()
        if self._scenario.clean_orphans:
            _say(pages, "Cleaning up orphan processes")
            for pid, name in kill_tracked(self._tracking_id):
                _say(pages, f"Terminate orphan process: pid ({pid}) ({name})")
                self._host.trace("JobExtension", f"Terminate orphan process: pid ({pid}) ({name})")
        pages.close()
        self._uploads.drain()
        if self._canceled_at is not None:
            self._pause(self._canceled_at + self._scenario.cancel_seconds - time.monotonic())

    def _new_pages(self) -> Pages:
        folder = self._host.diag / "pages"
        folder.mkdir(exist_ok=True)
        return Pages(
            folder,
            self._job["timelineId"],
            self._uploads,
            page_bytes=self._scenario.page_bytes,
            buffer_bytes=self._scenario.page_buffer_bytes,
        )

    def _echo(self, output: bytes) -> None:
        if self._scenario.echo_steps:
            self._outbox.send(channel.OUTPUT, output)

    def _pause(self, seconds: float) -> None:
        self._waiter.pause(seconds, lambda _signals: False)

    def _wait(self, *descriptors: int, seconds: float | None = None) -> frozenset[int]:
        """Wait; heed the Listener, and SIGTERM, which cancels too. SIGINT is the Listener's affair."""
        inbox = self._inbox.descriptor
        ready = self._waiter.wait(*descriptors, *((inbox,) if self._inbox.open else ()), seconds=seconds)
        if signal.SIGTERM in ready.signals:
            self._cancel()
        if inbox in ready.descriptors:
            for kind, payload in self._inbox.frames():
                if kind == channel.CANCEL:
                    self._cancel()
                elif kind == channel.JOB:
                    self._job = json.loads(payload)
        return ready.descriptors

    def _cancel(self) -> None:
        if self._canceled_at is None:
            self._host.trace("Worker", "Cancellation/Shutdown message received.")
            self._canceled_at = time.monotonic()


def _say(pages: Pages, *lines: str) -> None:
    pages.write([line.encode("utf-8", "replace") for line in lines])

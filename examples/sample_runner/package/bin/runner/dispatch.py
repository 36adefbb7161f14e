"""One job, from the Listener's side: it starts Runner.Worker, waits for its end, and says the result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from . import channel
from .scenario import RESULTS
from .timestamps import console_stamp

if TYPE_CHECKING:
    from collections.abc import Callable

    from .host import Host
    from .scenario import Crash, Output, Scenario
    from .terminal import Terminal
    from .waiting import Waiter

RESULT_BASE = 100
"""A Worker exits with this plus its result's place in RESULTS; any other code is a crash."""

_AT_ONCE_LINES = 1000


class Dispatcher:
    """Runs one job; `stop` says whether signals that have come ask for its cancellation."""

    def __init__(
        self,
        host: Host,
        terminal: Terminal,
        scenario: Scenario,
        waiter: Waiter,
        stop: Callable[[frozenset[int]], bool],
    ) -> None:
        self._host = host
        self._terminal = terminal
        self._scenario = scenario
        self._waiter = waiter
        self._stop = stop
        self.canceled = False

    def run(self) -> str | None:
        """The result; None for a job that is lost before its Worker starts."""
        name = self._scenario.job_name
        self._terminal.line(f"{console_stamp()}: Running job: {name}")
        if self._scenario.lost_job:
            self._host.trace(
                "JobDispatcher", "Unable to renew job request for the first time, stop dispatching job."
            )
            return None
        self._print(self._scenario.output)
        for line in self._scenario.stderr_lines:
            self._terminal.error(line)
        code = self._attend_worker()
        result = "Canceled" if self.canceled else _result(code)
        self._host.trace("JobDispatcher", f"Worker finished. Code: {code}. Result: {result}")
        self._terminal.line(f"{console_stamp()}: Job {name} completed with result: {result}")
        return result

    def _print(self, output: Output) -> None:
        for first in range(1, output.lines + 1, _AT_ONCE_LINES):
            numbers = range(first, min(first + _AT_ONCE_LINES, output.lines + 1))
            lines = (f"line {n} ".ljust(output.bytes_per_line, ".")[: output.bytes_per_line] for n in numbers)
            self._terminal.relay("".join(f"{line}\n" for line in lines).encode())
        self._terminal.relay(output.raw)

    def _attend_worker(self) -> int:
        """Start it, relay what it says, tell it to cancel; return its exit code once it has ended."""
        to_worker, from_worker, worker = self._start_worker()
        sender = channel.Sender(to_worker)
        receiver = channel.Receiver(from_worker)
        job = {
            "jobId": str(uuid.uuid4()),
            "timelineId": str(uuid.uuid4()),
            "jobDisplayName": self._scenario.job_name,
        }
        sender.send(channel.JOB, json.dumps(job).encode())
        self._host.count("SentJobToWorker_1")
        while receiver.open:
            ready = self._waiter.wait(from_worker)
            if self._stop(ready.signals) and not self.canceled:
                self.canceled = True
                self._host.trace("JobDispatcher", "Send job cancellation message to worker.")
                sender.send(channel.CANCEL)
            if from_worker in ready.descriptors:
                for kind, payload in receiver.frames():
                    self._take(kind, payload)
        return worker.wait()

    def _start_worker(self) -> tuple[int, int, subprocess.Popen[bytes]]:
        """In the Listener's own session and process group; what it prints goes to the Listener's log."""
        self._host.count("StartingWorkerProcess")
        worker_input, to_worker = os.pipe()
        from_worker, worker_output = os.pipe()
        folder = Path(__file__).resolve().parents[1]
        worker = subprocess.Popen(
            [
                sys.executable,
                "-BES",
                folder / "Runner.Worker",
                "spawnclient",
                str(worker_input),
                str(worker_output),
            ],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=self._host.log_descriptor,
            stderr=subprocess.STDOUT,
            pass_fds=(worker_input, worker_output),
        )
        os.close(worker_input)
        os.close(worker_output)
        return to_worker, from_worker, worker

    def _take(self, kind: bytes, payload: bytes) -> None:
        if kind == channel.OUTPUT:
            self._terminal.relay(payload)
        elif kind == channel.STEP_STARTED and self._scenario.crash_mid_job:
            _crash(self._scenario.crash_mid_job)


def _crash(crash: Crash) -> None:
    """End this process here and now, and nothing else."""
    if crash.signal is None:
        os._exit(crash.code or 0)
    if crash.signal not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(crash.signal, signal.SIG_DFL)
    os.kill(os.getpid(), crash.signal)


def _result(worker_code: int) -> str:
    place = worker_code - RESULT_BASE
    return RESULTS[place] if 0 <= place < len(RESULTS) else "Failed"

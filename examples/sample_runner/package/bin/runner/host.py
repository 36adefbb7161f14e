"""What Listener and Worker share as processes: their diagnostic log and their performance counters."""

import contextlib
import os
from pathlib import Path

from .timestamps import console_stamp, file_stamp, log_stamp


class Host:
    """One process of the runner: kind is `Runner` for the Listener, `Worker` for the Worker."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root = root
        self.kind = kind
        self.diag = root / "_diag"
        self.diag.mkdir(exist_ok=True)
        log = self.diag / f"{kind}_{file_stamp()}-utc.log"
        self._log = log.open("a", buffering=1, encoding="utf-8", errors="replace")
        self._name_process(f"Runner.{'Listener' if kind == 'Runner' else kind}")

    @property
    def log_descriptor(self) -> int:
        return self._log.fileno()

    @property
    def version(self) -> str:
        return (self.root / "sample" / "version").read_text().strip()

    def trace(self, source: str, message: str, level: str = "INFO") -> None:
        self._log.write(f"[{console_stamp()} {level:4} {source}] {message}\n")

    def count(self, event: str) -> None:
        """Write the event to `$RUNNER_PERFLOG/<kind>.perf`, where that is set."""
        folder = os.environ.get("RUNNER_PERFLOG")
        if not folder:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        with (Path(folder) / f"{self.kind}.perf").open("a", encoding="utf-8") as perf:
            perf.write(f"{event}:{log_stamp()}\n")

    @staticmethod
    def _name_process(name: str) -> None:
        """Show the program's name, not the interpreter's, to `ps` and `pgrep`."""
        with contextlib.suppress(OSError):
            Path("/proc/self/comm").write_text(name)

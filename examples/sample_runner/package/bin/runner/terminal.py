"""The Listener's console: its own lines, and with `echo_steps` the output of the job."""

import os
import sys

from .host import Host


class Terminal:
    """Writes whole lines at once; a reader that has gone away is no error, as in .NET."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._inside_line = False

    def line(self, text: str = "") -> None:
        """One line on stdout, at the start of a line whatever was relayed before it."""
        self._host.trace("Terminal", f"WRITE LINE: {text}")
        start = "\n" if self._inside_line else ""
        self._inside_line = False
        _write(sys.stdout.fileno(), f"{start}{text}\n".encode("utf-8", "replace"))

    def success(self, text: str) -> None:
        self.line(f"√ {text}")

    def section(self, title: str) -> None:
        self.line()
        self.line(f"# {title}")
        self.line()

    def error(self, text: str) -> None:
        """One line on stderr."""
        self._host.trace("Terminal", f"WRITE ERROR: {text}", "ERR")
        _write(sys.stderr.fileno(), f"{text}\n".encode("utf-8", "replace"))

    def relay(self, output: bytes) -> None:
        """Bytes on stdout, as they are."""
        if output:
            self._inside_line = not output.endswith(b"\n")
            _write(sys.stdout.fileno(), output)


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except BrokenPipeError:
        pass

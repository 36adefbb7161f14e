"""Processes that a job has left behind: they carry the job's RUNNER_TRACKING_ID in their environment."""

from __future__ import annotations

import os
import signal
from pathlib import Path

TRACKING_VARIABLE = "RUNNER_TRACKING_ID"


def kill_tracked(tracking_id: str) -> list[tuple[int, str]]:
    """SIGKILL each process with that ID, but for this one; return their IDs and names."""
    wanted = f"{TRACKING_VARIABLE}={tracking_id}".encode()
    killed: list[tuple[int, str]] = []
    for process in Path("/proc").glob("[0-9]*"):
        pid = int(process.name)
        try:
            if pid == os.getpid() or wanted not in (process / "environ").read_bytes().split(b"\0"):
                continue
            name = (process / "comm").read_text().strip()
            os.kill(pid, signal.SIGKILL)
        except OSError:  # it has ended, or is somebody else's
            continue
        killed.append((pid, name))
    return killed

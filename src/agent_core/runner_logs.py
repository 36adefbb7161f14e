"""Uploads what the runner logged of itself: never for long, and never in the way of what comes after."""

import asyncio
from typing import Final

from agent_core.deadline import abandon, while_moving, within
from agent_core.errors import DeadlineError, DiagnosticsDeniedError, DiagnosticsUnavailableError
from agent_core.events import RunnerLogsUploaded
from agent_core.life import Life
from agent_core.model import LogDestination, LogUpload, Uploaded
from agent_core.policy import STALL_SECONDS, Backoff

__all__ = ["upload_runner_logs"]

_RETRIES: Final = 2


async def upload_runner_logs(life: Life, seconds: float) -> LogUpload | None:
    """What became of the runner's own logs within `seconds`; None: there are none, or nobody wants them."""
    destination = life.record.log_destination
    if destination is None or not life.record.installed:
        return None
    if seconds <= STALL_SECONDS:
        return LogUpload.SKIPPED
    try:
        uploaded = await _upload(life, destination, seconds)
    except Exception as exc:  # noqa: BLE001 - whatever it was, there is a message to send
        life.warn(f"the runner's own logs were not uploaded: {exc}")
        return LogUpload.DENIED if isinstance(exc, DiagnosticsDeniedError) else LogUpload.FAILED
    if uploaded.files == uploaded.left_out == 0:
        return None
    life.emit(RunnerLogsUploaded(uploaded, destination))
    return LogUpload.PARTIAL if uploaded.left_out else LogUpload.UPLOADED


async def _upload(life: Life, destination: LogDestination, seconds: float) -> Uploaded:
    """Tried again as long as there is time for it, and something moves."""
    loop, backoff = asyncio.get_running_loop(), Backoff(first=0.25, most=1.0)
    end, attempt, done = loop.time() + seconds, 0, 0

    def note(bytes_done: int, _total: int | None) -> None:
        nonlocal done
        done = bytes_done

    while True:
        left = end - loop.time()
        upload = life.ports.diagnostics_store.upload(destination, note)
        uploading = asyncio.ensure_future(within(None, "the upload", upload))
        if not await while_moving(left, STALL_SECONDS, uploading, lambda: done):
            await abandon(uploading)
            raise DeadlineError(
                f"nothing moved for {STALL_SECONDS:g} s, or it took longer than {seconds:g} s"
            )
        try:
            return uploading.result()
        except DiagnosticsUnavailableError:
            delay = backoff.delay(attempt, life.rng)
            if attempt >= _RETRIES or loop.time() + delay >= end:
                raise
        await asyncio.sleep(delay)
        attempt += 1

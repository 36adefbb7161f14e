"""Archives into the runner's root, off the event loop: what every store of runners does with its bytes."""

from collections.abc import Callable, Iterator
from pathlib import Path

from agent_adapters.archive import unpack
from agent_adapters.threads import Cancellation, Lane, told_on_loop
from agent_core.errors import BinaryUnavailableError
from agent_core.ports import Progress

__all__ = ["Chunks", "Installer", "Report"]

Report = Callable[[int, int | None], None]
"""Told the bytes done so far, and the bytes in all where they are known; from any thread."""

Chunks = Callable[[Report, Cancellation], Iterator[bytes]]
"""Gives an archive's bytes, blocking, in a thread."""


class Installer:
    """Installs one archive at a time.

    Args:
        name: of the store, for the names of threads.
        root: the runner's root.
        replace: whether a runner that is in the root already gives way.
    """

    def __init__(self, name: str, root: Path, *, replace: bool = False) -> None:
        self._root, self._replace = root, replace
        self._lane = Lane(name, BinaryUnavailableError)

    async def install(self, sha256: str, chunks: Chunks, progress: Progress) -> None:
        """Leaves the archive of that digest in the root, or nothing.

        Raises:
            BinaryError: as `agent_adapters.archive.unpack`, or whatever the chunks raise.
        """
        report = told_on_loop(progress)

        def install(cancelled: Cancellation) -> None:
            bytes_ = chunks(report, cancelled)
            unpack(bytes_, sha256=sha256, root=self._root, cancelled=cancelled, replace=self._replace)

        await self._lane.run_cancellable(install)

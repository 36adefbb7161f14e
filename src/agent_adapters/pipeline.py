"""Stages of one piece of work in threads of their own, and the bounded pipes between them."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

__all__ = ["Pipe", "Stage"]

_Bytes = bytes | memoryview
_PIECE_OVERHEAD: Final = 1024
"""A piece counts so much more than its bytes: else any number of tiny ones would fit."""


class Pipe:
    """Bytes on their way from one thread to another, in order; it holds `most_bytes` and one piece more."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._changed = threading.Condition()
        self._pieces: deque[_Bytes] = deque()
        self._bytes = 0
        self._ended = False
        self._error: BaseException | None = None
        self._closed = False

    def put(self, piece: _Bytes) -> bool:
        """Waits for room; whether there is still somebody who reads."""
        with self._changed:
            while self._bytes >= self._most_bytes and not self._closed:
                self._changed.wait()
            if not self._closed:
                self._pieces.append(piece)
                self._bytes += len(piece) + _PIECE_OVERHEAD
                self._changed.notify()
            return not self._closed

    def end(self, error: BaseException | None = None) -> None:
        """No more comes; the reader meets the error when it has read all that came before."""
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
                self._changed.notify()

    def close(self) -> None:
        """Nobody reads any more: what waits is dropped, and the writer told."""
        with self._changed:
            self._closed = True
            self._pieces.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[_Bytes]:
        while (piece := self._next()) is not None:
            yield piece

    def _next(self) -> _Bytes | None:
        with self._changed:
            while not self._pieces and not self._ended and not self._closed:
                self._changed.wait()
            if self._pieces:
                piece = self._pieces.popleft()
                self._bytes -= len(piece) + _PIECE_OVERHEAD
                self._changed.notify()
                return piece
            if self._error:
                raise self._error
            return None


class Stage:
    """A function in a daemon thread, from now on.

    Raises:
        RuntimeError: the system has no thread left.
    """

    def __init__(self, name: str, function: Callable[[], None]) -> None:
        self._function = function
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Returns when it has ended, however it did."""
        self._thread.join()

    def check(self) -> None:
        """Raises what the function has raised, if it has."""
        if self._error:
            raise self._error

    def _run(self) -> None:
        try:
            self._function()
        except BaseException as error:  # noqa: BLE001 - raised where the stage is checked
            self._error = error

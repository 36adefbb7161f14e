"""The two pipes between Listener and Worker, and the frames on them: kind, length, payload."""

import os
from collections.abc import Iterator

JOB = b"J"
CANCEL = b"C"
STEP_STARTED = b"S"
OUTPUT = b"O"

_HEADER_BYTES = 5
_AT_ONCE_BYTES = 65536


class Sender:
    """Sends frames for as long as there is somebody to read them."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._open = True

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        rest = memoryview(kind + len(payload).to_bytes(_HEADER_BYTES - 1, "big") + payload)
        try:
            while self._open and rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except BrokenPipeError:
            self._open = False


class Receiver:
    """Receives frames; `open` turns false at their end."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.open = True
        self._buffer = bytearray()

    def frames(self) -> Iterator[tuple[bytes, bytes]]:
        """What has come in; blocks only where nothing has."""
        data = os.read(self.descriptor, _AT_ONCE_BYTES)
        self.open = bool(data)
        self._buffer += data
        while len(self._buffer) >= _HEADER_BYTES:
            end = _HEADER_BYTES + int.from_bytes(self._buffer[1:_HEADER_BYTES], "big")
            if len(self._buffer) < end:
                return
            kind, payload = bytes(self._buffer[:1]), bytes(self._buffer[_HEADER_BYTES:end])
            del self._buffer[:end]
            yield kind, payload

"""Bytes to lines, whatever the bytes are: nothing is lost, and memory stays bounded."""

from typing import Final

from agent_core.model import OutputLine

__all__ = ["LINE_PART_BYTES", "LineSplitter"]

LINE_PART_BYTES: Final = 64 * 1024
"""A longer line comes in parts; bytes made visible grow fourfold, and still fit into one event."""

_CONTINUATION_MASK, _CONTINUATION = 0xC0, 0x80
_UTF8_MAX_BYTES: Final = 4


class LineSplitter:
    r"""Cuts a stream of bytes into `OutputLine`s as they come.

    Lines end with LF or CR LF, and are decoded as UTF-8; a byte that is not UTF-8 is shown as `\xNN`.
    """

    def __init__(self, part_bytes: int = LINE_PART_BYTES) -> None:
        if part_bytes < _UTF8_MAX_BYTES:
            raise ValueError(f"a part has room for one character: {_UTF8_MAX_BYTES} bytes or more")
        self._part_bytes = part_bytes
        self._rest = b""
        self._continued = False

    def feed(self, data: bytes) -> list[OutputLine]:
        """The lines, and parts of lines, that `data` completes."""
        *complete, self._rest = (self._rest + data).split(b"\n")
        lines: list[OutputLine] = []
        for raw in complete:
            line = self._cut(raw, lines)
            lines.append(self._line(line.removesuffix(b"\r")))
            self._continued = False
        self._rest = self._cut(self._rest, lines)
        return lines

    def finish(self) -> list[OutputLine]:
        """What is left when the stream has ended without a line's end."""
        rest, self._rest = self._rest, b""
        return [self._line(rest)] if rest else []

    def _cut(self, raw: bytes, parts: list[OutputLine]) -> bytes:
        """Moves whole parts of a line that is too long to `parts`; what is left of it."""
        while len(raw) > self._part_bytes:
            end = _character_boundary(raw, self._part_bytes)
            parts.append(self._line(raw[:end]))
            self._continued = True
            raw = raw[end:]
        return raw

    def _line(self, raw: bytes) -> OutputLine:
        return OutputLine(raw.decode("utf-8", "backslashreplace"), self._continued)


def _character_boundary(raw: bytes, end: int) -> int:
    """The last index up to `end` that does not cut a UTF-8 character in two; `end` where there is none."""
    for boundary in range(end, end - _UTF8_MAX_BYTES, -1):
        if raw[boundary] & _CONTINUATION_MASK != _CONTINUATION:
            return boundary
    return end

"""Bytes to lines: nothing lost, nothing cut in two, whatever the bytes are and however they come."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_core.batches import EVENT_TEXT_BYTES
from agent_core.lines import LINE_PART_BYTES, LineSplitter
from agent_core.model import OutputLine

RELAXED: Final = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
WHOLE: Final = ("\n", "\r", "\r\n", "\0", "a", "word ", "é", "√", "😀", "\\xff")
BROKEN: Final = (b"\xff", b"\x80", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80")
PIECES: Final = (*(piece.encode() for piece in WHOLE), *BROKEN)
STREAMS: Final = st.lists(st.sampled_from(PIECES) | st.binary(max_size=6), max_size=40).map(b"".join)
TEXTS: Final = st.text(st.sampled_from("ab \r\té√😀") | st.characters(codec="utf-8"), max_size=80)
SIZES: Final = st.integers(4, 20)


def split(chunks: Sequence[bytes], part_bytes: int = LINE_PART_BYTES) -> list[OutputLine]:
    """All that comes out of a stream that comes in these chunks."""
    splitter = LineSplitter(part_bytes)
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return lines + splitter.finish()


def chunks_of(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    ends = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(ends)]


def joined(lines: Sequence[OutputLine]) -> Iterator[str]:
    """Whole lines, from their parts."""
    whole: list[str] = []
    for line in lines:
        if not line.continued and whole:
            yield "".join(whole)
            whole.clear()
        whole.append(line.text)
    if whole:
        yield "".join(whole)


def decoded(data: bytes) -> list[str]:
    """What the lines are, by the rule: LF or CR LF ends one; what is not UTF-8 is shown."""
    *complete, rest = data.split(b"\n")
    raw = [line.removesuffix(b"\r") for line in complete] + ([rest] if rest else [])
    return [line.decode("utf-8", "backslashreplace") for line in raw]


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"\r\n", [""]),
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"no end", ["no end"]),
        (b"no end\r", ["no end\r"]),
        (b"\n\n\n", ["", "", ""]),
        (b"10%\r20%\r\n", ["10%\r20%"]),
        (b"\r\r\n", ["\r"]),
        (b"\n\r", ["", "\r"]),
        ("√ Connected 😀\n".encode(), ["√ Connected 😀"]),
        (b"a\0b\x1b[31m\n", ["a\0b\x1b[31m"]),
        (b"\xff\xfe\n", ["\\xff\\xfe"]),
        (b"cut \xe2\x82\n", ["cut \\xe2\\x82"]),
        (b"\xed\xa0\x80", ["\\xed\\xa0\\x80"]),
        ("\u2028\x0b\x0c\x85\n".encode(), ["\u2028\x0b\x0c\x85"]),
    ],
)
def test_a_line_ends_with_lf_or_cr_lf(data: bytes, texts: list[str]) -> None:
    """Nothing else ends a line, nothing else is taken from it, and what is not UTF-8 is shown."""
    assert split([data]) == [OutputLine(text) for text in texts]


@RELAXED
@given(STREAMS, SIZES, st.lists(st.integers(0, 200), max_size=30))
def test_the_chunks_do_not_matter(data: bytes, part_bytes: int, cuts: list[int]) -> None:
    """A stream gives the same lines and parts in one piece, byte by byte, and cut anywhere."""
    whole = split([data], part_bytes)

    assert split(chunks_of(data, cuts), part_bytes) == whole
    assert split(chunks_of(data, range(len(data))), part_bytes) == whole


@RELAXED
@given(STREAMS, SIZES)
def test_nothing_is_lost_or_reordered(data: bytes, part_bytes: int) -> None:
    """The parts of each line, joined, are the line; a part says whether it continues one."""
    assert list(joined(split([data], part_bytes))) == decoded(data)


@RELAXED
@given(STREAMS, SIZES)
def test_a_part_keeps_its_bound(data: bytes, part_bytes: int) -> None:
    """A part has at most `part_bytes` of the stream; of these, each may be shown as four characters."""
    for line in split([data], part_bytes):
        assert len(line.text.encode()) <= 4 * part_bytes
        assert "\n" not in line.text


@RELAXED
@given(TEXTS, SIZES)
def test_no_character_is_cut_in_two(text: str, part_bytes: int) -> None:
    """Of what is UTF-8, each part is UTF-8 too, within the bound, and as long as its bound lets it be."""
    lines = split([text.encode()], part_bytes)

    assert list(joined(lines)) == decoded(text.encode())
    assert all(len(line.text.encode()) <= part_bytes for line in lines)
    for line, following in pairwise(lines):
        assert not following.continued or len(line.text.encode()) > part_bytes - 4


@RELAXED
@given(st.binary(max_size=200).map(lambda data: data.replace(b"\n", b"")), SIZES, st.integers(1, 50))
def test_memory_is_bounded(data: bytes, part_bytes: int, chunk_bytes: int) -> None:
    """Of a line that never ends, no more is held back than one part."""
    splitter = LineSplitter(part_bytes)
    fed = given_out = 0
    for start in range(0, len(data), chunk_bytes):
        chunk = data[start : start + chunk_bytes]
        fed += len(chunk)
        given_out += sum(len(line.text) for line in splitter.feed(chunk))
        held_back = data[:fed].decode("utf-8", "backslashreplace")[given_out:]
        assert len(held_back) <= 4 * part_bytes


def test_lines_come_at_once() -> None:
    """A line is there with its last byte, and not before."""
    splitter = LineSplitter()

    assert splitter.feed(b"one") == []
    assert splitter.feed(b"\r") == []
    assert splitter.feed(b"\ntwo\nthr") == [OutputLine("one"), OutputLine("two")]
    assert splitter.feed(b"ee\n") == [OutputLine("three")]
    assert splitter.finish() == []


def test_a_long_line_comes_in_parts() -> None:
    """Only its first part is not continued; the line after it begins anew."""
    assert split([b"0123456789\nnext\n"], 4) == [
        OutputLine("0123"),
        OutputLine("4567", continued=True),
        OutputLine("89", continued=True),
        OutputLine("next"),
    ]


def test_a_line_that_just_fits_is_one() -> None:
    """The bound belongs to the part."""
    assert split([b"01234567\n"], 8) == [OutputLine("01234567")]
    assert split([b"01234567"], 8) == [OutputLine("01234567")]
    assert split(["0123😀\n".encode()], 8) == [OutputLine("0123😀")]
    assert split(["01234😀\n".encode()], 8) == [OutputLine("01234"), OutputLine("😀", continued=True)]


def test_a_line_of_many_megabytes_is_kept() -> None:
    """A line far over the bound comes whole; each part fits into a log event, even with all bytes shown."""
    data = bytes(range(128, 256)) * 5_000 + "é√😀".encode() * 30_000
    lines = split([data[start : start + 50_001] for start in range(0, len(data), 50_001)])

    assert list(joined(lines)) == decoded(data)
    assert max(len(line.text.encode()) for line in lines) <= EVENT_TEXT_BYTES
    assert len(lines) <= len(data) // (LINE_PART_BYTES - 4) + 1


def test_the_end_comes_once() -> None:
    """What is left is given out once."""
    splitter = LineSplitter()
    splitter.feed(b"rest")

    assert splitter.finish() == [OutputLine("rest")]
    assert splitter.finish() == []


@pytest.mark.parametrize("part_bytes", [-1, 0, 3])
def test_a_part_has_room_for_a_character(part_bytes: int) -> None:
    """A bound under 4 bytes is refused: a character of UTF-8 may need that many."""
    with pytest.raises(ValueError, match="4 bytes"):
        LineSplitter(part_bytes)

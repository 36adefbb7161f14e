"""What a runner leaves in its files: all of it is read, in order, and nothing else is."""

import asyncio
import errno
import os
import selectors
import shutil
import socket
import sys
import tempfile
import tracemalloc
from codecs import BOM_UTF8
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing, chdir
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

import inotify_simple
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_adapters import traces as module
from agent_adapters.traces import Traces
from agent_core.lines import LINE_PART_BYTES, LineSplitter
from agent_core.model import Assigned, OutputLine, OutputMissed, StepLine, Trace
from support.descriptors import open_descriptors

PATIENCE_SECONDS: Final = 60.0
"""What is awaited for so long does not come."""
TIMELINE: Final = "6b1f8f0e-0000-4000-8000-000000000000"
ASSIGNED: Final = b"MessageReceived_RunnerJobRequest:2026-01-01T00:00:00.0000000Z\n"
NEVER: Final = 1e9


class Runner:
    """Writes as the runner does: without a buffer, so that each write is there at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pages = root / "_diag" / "pages"
        self.perf = root / "_diag" / "perf" / "Runner.perf"
        self.made: list[Traces] = []

    def traces(self, owner: int | None = None) -> Traces:
        self.made.append(Traces(self.root, owner))
        return self.made[-1]

    def watched(self) -> tuple[Traces, AsyncGenerator[Trace, None]]:
        """Opened, and followed from the first `anext` on."""
        traces = self.traces()
        traces.open()
        return traces, followed(traces)

    def path(self, record: int, number: int) -> Path:
        return self.pages / f"{TIMELINE}_{record:08x}-0000-4000-8000-000000000000_{number}.log"

    def page(self, record: int, number: int = 1, text: bytes = b"") -> BinaryIO:
        page = self.path(record, number).open("xb", buffering=0)
        page.write(BOM_UTF8 + text)
        return page

    def whole_page(self, record: int, number: int = 1, text: bytes = b"") -> Path:
        self.page(record, number, text).close()
        return self.path(record, number)

    def says(self, text: bytes) -> None:
        """To the counters; as the Listener does, which opens them for each line."""
        with self.perf.open("ab") as perf:
            perf.write(text)


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    (tmp_path / "runner").mkdir()
    runner = Runner(tmp_path / "runner")
    yield runner
    for traces in runner.made:
        traces.close()


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await main

    asyncio.run(bounded())


def followed(traces: Traces) -> AsyncGenerator[Trace, None]:
    return traces.follow()


async def turns() -> None:
    """Lets the loop take what has happened to files: in its second turn from here at the latest."""
    for _ in range(3):
        await asyncio.sleep(0)


async def settled(traces: Traces) -> None:
    """Who follows has read what there is, and waits."""
    await turns()
    while traces._news:  # noqa: ASYNC110 - who follows has a turn
        await asyncio.sleep(0)
    await turns()


async def take(stream: AsyncGenerator[Trace, None], count: int) -> list[Trace]:
    return [await anext(stream) for _ in range(count)]


async def rest(traces: Traces, stream: AsyncGenerator[Trace, None]) -> list[Trace]:
    """What comes until the end, which is now."""
    traces.end()
    return [trace async for trace in stream]


def lines(*texts: str, step: int = 1) -> list[Trace]:
    return [StepLine(step, OutputLine(text)) for text in texts]


def missed(traces: list[Trace]) -> list[str]:
    return [trace.detail for trace in traces if isinstance(trace, OutputMissed)]


def watches_of(inotify: inotify_simple.INotify) -> int:
    return Path(f"/proc/self/fdinfo/{inotify.fileno()}").read_text("ascii").count("inotify wd:")


def by_itself(monkeypatch: pytest.MonkeyPatch, *, seconds: float = 0.01) -> None:
    """A system that gives no inotify."""

    def refuse(**_: object) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(inotify_simple, "INotify", refuse)
    monkeypatch.setattr(module, "_LOOK_SECONDS", seconds)


# Lines


def test_a_line_comes_when_it_is_complete(runner: Runner) -> None:
    """Neither before, nor only with the next one."""

    async def main() -> None:
        _, stream = runner.watched()
        page, other = runner.page(1, text=b"one\ntw"), runner.page(2, text=b"other\n")
        assert await take(stream, 2) == [*lines("one"), *lines("other", step=2)]
        page.write(b"o\nthr")
        assert await take(stream, 1) == lines("two")
        other.close()
        page.write(b"ee\n")
        assert await take(stream, 1) == lines("three")
        page.close()

    run(main())


@pytest.mark.parametrize("reads_on", [True, False])
def test_an_unlinked_page_is_read_to_its_end(runner: Runner, *, reads_on: bool) -> None:
    """It is opened as it appears, whether or not somebody takes lines then; its writer may write on."""

    async def main() -> None:
        _, stream = runner.watched()
        runner.whole_page(1, text=b"first\n")
        await take(stream, 1)
        page = runner.page(2, text=b"one\n")
        if reads_on:
            assert await take(stream, 1) == lines("one", step=2)
        await turns()
        runner.path(2, 1).unlink()
        page.write(b"two\nthr")
        if reads_on:
            assert await take(stream, 1) == lines("two", step=2)
        await turns()
        page.write(b"ee\nend")
        page.close()

        left = ["three", "end"] if reads_on else ["one", "two", "three", "end"]
        assert await take(stream, len(left)) == lines(*left, step=2)

    run(main())


def close(_: Runner, __: Traces, page: BinaryIO) -> None:
    page.close()


def go_on(runner: Runner, __: Traces, _: BinaryIO) -> None:
    runner.whole_page(1, 2)


def end(_: Runner, traces: Traces, __: BinaryIO) -> None:
    traces.end()


@pytest.mark.parametrize("finish", [close, go_on, end])
def test_the_last_line_of_a_page_ends_with_it(
    runner: Runner, finish: Callable[[Runner, Traces, BinaryIO], None]
) -> None:
    """When its writer closes it, when there is the next one, or when all is over."""

    async def main() -> None:
        traces, stream = runner.watched()
        with runner.page(1, text=b"one\ntwo") as page:
            assert await take(stream, 1) == lines("one")
            finish(runner, traces, page)
            assert await take(stream, 1) == lines("two")

    run(main())


def test_a_line_does_not_go_on_in_the_next_page(runner: Runner) -> None:
    """Also one so long that it came in parts."""

    async def main() -> None:
        traces, stream = runner.watched()
        runner.whole_page(1, 1, b"x" * (LINE_PART_BYTES + 1))
        runner.whole_page(1, 2, b"two\n")
        assert await rest(traces, stream) == [
            StepLine(1, OutputLine("x" * LINE_PART_BYTES)),
            StepLine(1, OutputLine("x", continued=True)),
            StepLine(1, OutputLine("two")),
        ]

    run(main())


def test_pages_come_by_their_numbers(runner: Runner) -> None:
    """Each to its end, however long, and the tenth after the ninth."""

    async def main() -> None:
        traces, stream = runner.watched()
        expected = []
        for number in range(1, 13):
            texts = [f"{number}: {line}" for line in range(10_000 if number == 9 else 10)]
            runner.whole_page(1, number, "".join(f"{text}\n" for text in texts).encode())
            expected += lines(*texts)
        await turns()
        for page in runner.pages.iterdir():
            page.unlink()
        assert await rest(traces, stream) == expected

    run(main())


@pytest.mark.parametrize("is_told", [True, False])
def test_the_order_of_appearance_does_not_matter_to_pages(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, *, is_told: bool
) -> None:
    """Where several are there before one of them was read."""

    async def main() -> None:
        if not is_told:
            by_itself(monkeypatch, seconds=NEVER)
        traces, stream = runner.watched()
        for number in (10, 9, 11):
            runner.whole_page(1, number, f"{number}\n".encode())
        assert await rest(traces, stream) == lines("9", "10", "11")

    run(main())


def test_a_page_that_is_not_finished_holds_up_the_next_ones(runner: Runner) -> None:
    """What is there of it is read before, in however many reads."""

    async def main() -> None:
        _, stream = runner.watched()
        texts = [str(number) for number in range(100_000)]
        with runner.page(1, 1) as page:
            await turns()
            page.write("".join(f"{text}\n" for text in texts).encode())
            runner.whole_page(1, 2, b"next\n")
            await turns()
            assert await take(stream, len(texts) + 1) == lines(*texts, "next")

    run(main())


def test_a_page_is_read_in_one_go(runner: Runner) -> None:
    """What is there of it comes, in however many reads, without further news."""

    async def main() -> None:
        _, stream = runner.watched()
        texts = [str(number) for number in range(100_000)]
        with runner.page(1, text="".join(f"{text}\n" for text in texts).encode()):
            assert await take(stream, len(texts)) == lines(*texts)

    run(main())


def test_steps_are_numbered_as_they_appear(runner: Runner) -> None:
    """They print side by side, and none waits for another."""

    async def main() -> None:
        _, stream = runner.watched()
        with runner.page(7) as first, runner.page(3) as second:
            second.write(b"a\n")
            assert await take(stream, 1) == lines("a", step=2)
            first.write(b"b\n")
            assert await take(stream, 1) == lines("b", step=1)
            runner.whole_page(1, text=b"c\n")
            assert await take(stream, 1) == lines("c", step=3)
            runner.whole_page(3, 2, b"d\n")
            assert await take(stream, 1) == lines("d", step=2)

    run(main())


def test_steps_have_their_turns(runner: Runner) -> None:
    """One that prints very much does not keep others waiting."""

    async def main() -> None:
        traces, stream = runner.watched()
        runner.whole_page(1, text=b"much\n" * 100_000)
        runner.whole_page(2, text=b"little\n")
        got = await rest(traces, stream)
        assert lines("little", step=2)[0] in got[: len(got) // 2]
        assert len(got) == 100_001

    run(main())


def test_the_mark_at_the_start_is_no_text(runner: Runner) -> None:
    """Of each page; anywhere else it is text, and a part of it is something odd."""

    async def main() -> None:
        traces, stream = runner.watched()
        with runner.page(1, text=b"one\n" + BOM_UTF8 + b"two\n") as page:
            assert await take(stream, 2) == lines("one", "\ufefftwo")
            page.write(BOM_UTF8 + b"three\n")
            assert await take(stream, 1) == lines("\ufeffthree")
        runner.whole_page(1, 2, b"four\n")
        for record, start in enumerate((b"", BOM_UTF8, BOM_UTF8[:2], b"x"), 2):
            runner.path(record, 1).write_bytes(start)
        got = await rest(traces, stream)
        assert sorted(got, key=str) == [
            *(lines("four") + lines(r"\xef\xbb", step=4) + lines("x", step=5)),
        ]

    run(main())


def test_the_mark_is_awaited_byte_by_byte(runner: Runner) -> None:
    """Who reads between two bytes of it loses none."""

    async def main() -> None:
        traces, stream = runner.watched()
        got: list[Trace] = []

        async def read() -> None:
            got.extend([trace async for trace in stream])

        reading = asyncio.create_task(read())
        with runner.path(1, 1).open("xb", buffering=0) as page:
            for byte in BOM_UTF8 + b"\xefone\n":
                page.write(bytes([byte]))
                await turns()
        traces.end()
        await reading
        assert got == lines(r"\xefone")

    run(main())


def test_odd_bytes_and_long_lines_come(runner: Runner) -> None:
    """As a LineSplitter has them."""

    async def main() -> None:
        traces, stream = runner.watched()
        data = b"a\r\nb\rc\n\xff\xc3\n" + b"\xc3\xa9" * LINE_PART_BYTES + b"\n\0\n"
        runner.whole_page(1, text=data)
        assert await rest(traces, stream) == [StepLine(1, line) for line in LineSplitter().feed(data)]

    run(main())


def test_a_slow_reader_loses_nothing(runner: Runner) -> None:
    """Pages come and go between one line and the next that it takes."""

    async def main() -> None:
        traces, stream = runner.watched()
        expected = []
        got: list[Trace] = []
        for number in range(1, 51):
            texts = [f"{number}: {line}" for line in range(100)]
            page = runner.whole_page(1, number, "".join(f"{text}\n" for text in texts).encode())
            expected += lines(*texts)
            await turns()
            page.unlink()
            got += await take(stream, 1)
        assert got + await rest(traces, stream) == expected

    run(main())


def test_what_was_not_yet_told_is_read_at_the_end(runner: Runner) -> None:
    """The end may come right after the last line."""

    async def main() -> None:
        traces, stream = runner.watched()
        page = runner.page(1, text=b"one\n")
        await turns()
        page.write(b"two")
        page.close()
        runner.whole_page(2, text=b"three\n")
        got = await rest(traces, stream)
        assert sorted(got, key=str) == [*lines("one", "two"), *lines("three", step=2)]

    run(main())


def test_what_comes_after_the_end_is_not_read(runner: Runner) -> None:
    """Nothing of the runner lives then: whoever writes on cannot hold up the end."""

    async def main() -> None:
        traces, stream = runner.watched()
        runner.whole_page(1, text=b"one\n")
        traces.end()
        runner.whole_page(2, text=b"two\n")
        await turns()
        assert await rest(traces, stream) == lines("one")

    run(main())


def test_what_is_gone_is_missed(runner: Runner) -> None:
    """It is told, once for a step, and not for each page."""

    async def main() -> None:
        traces, stream = runner.watched()
        pending = asyncio.ensure_future(anext(stream))
        await turns()
        for number in range(1, 4):
            runner.whole_page(1, number, b"nobody reads this\n").unlink()
        assert await pending == OutputMissed("a page of step 1 was gone before it could be read")
        runner.whole_page(2, 1, b"nor this\n").unlink()
        runner.whole_page(1, 5, b"but this\n")
        assert await rest(traces, stream) == [
            OutputMissed("a page of step 2 was gone before it could be read"),
            *lines("but this"),
        ]

    run(main())


def test_what_is_not_read_takes_no_room(runner: Runner) -> None:
    """However many pages are gone, or none."""

    async def main() -> None:
        traces, stream = runner.watched()
        for record in range(300):
            runner.whole_page(1_000 + record).unlink()
            runner.path(2_000 + record, 1).symlink_to("/dev/zero")
        runner.whole_page(1, text=b"page\n")
        assert lines("page", step=601)[0] in await rest(traces, stream)

    run(main())


# The job


def test_an_assigned_job_is_told_once(runner: Runner) -> None:
    """When the line is complete; other lines, and later ones, are not told."""

    async def main() -> None:
        traces, stream = runner.watched()
        runner.says(b"RunnerCreated:2026-01-01T00:00:00.0000000Z\nSessionCreated:x\n")
        runner.says(b"MessageReceived_RunnerJobRequestSomething:x\nMessageReceived_Other:x\n")
        runner.says(b"x" * LINE_PART_BYTES + ASSIGNED)
        for byte in ASSIGNED[:-1]:
            runner.says(bytes([byte]))
        runner.whole_page(1, text=b"before\n")
        assert await take(stream, 1) == lines("before")
        await turns()
        runner.whole_page(1, 2, b"still before\n")
        assert await take(stream, 1) == lines("still before")
        runner.says(ASSIGNED[-1:])
        assert await take(stream, 1) == [Assigned()]
        runner.says(ASSIGNED * 2)
        runner.whole_page(1, 3, b"after\n")
        assert await rest(traces, stream) == lines("after")

    run(main())


def test_a_line_that_is_not_complete_assigns_nothing(runner: Runner) -> None:
    """Also not when all is over."""

    async def main() -> None:
        traces, stream = runner.watched()
        runner.says(ASSIGNED[:-1])
        assert await rest(traces, stream) == []

    run(main())


def test_what_an_earlier_start_left_is_not_told(runner: Runner) -> None:
    """Neither its pages nor its job; what is added to its files is another start's."""

    async def main() -> None:
        for _ in range(2):
            traces, stream = runner.watched()
            runner.says(ASSIGNED)
            assert await rest(traces, stream) == [Assigned()]
        runner.whole_page(1, text=b"old\n")
        with runner.page(2, text=b"old\n") as page:
            traces, stream = runner.watched()
            page.write(b"old still\n")
            runner.whole_page(1, 2, b"new\n")
            runner.says(b"Something:x\n")
            assert await rest(traces, stream) == lines("new")

    run(main())


def test_the_environment_names_the_folder(runner: Runner) -> None:
    """Which is there when the runner starts, as is that of the pages."""

    async def main() -> None:
        traces, stream = runner.watched()
        assert traces.environment == {"RUNNER_PERFLOG": str(runner.perf.parent)}
        assert {path.stat().st_mode & 0o077 for path in (runner.perf.parent, runner.pages)} == {0}
        await stream.aclose()

    run(main())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
def test_the_folders_are_the_runners(runner: Runner) -> None:
    """If this process makes them; what is there stays as it is."""

    async def main() -> None:
        runner.pages.mkdir(parents=True)
        runner.traces(owner=65534).open()
        assert runner.perf.parent.stat().st_uid == 65534
        assert runner.pages.stat().st_uid == 0

    run(main())


# Files that are not what they seem


def secret(path: Path) -> Path:
    target = path.parent.parent / f"secret of {path.name}"
    target.write_bytes(b"secret\n")
    return target


def symlink(path: Path) -> None:
    path.symlink_to(secret(path))


def symlink_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def hard_link(path: Path) -> None:
    path.hardlink_to(secret(path))


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    with chdir(path.parent), socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)


def folder(path: Path) -> None:
    (path / "inner").mkdir(parents=True)


HOSTILE: Final = [symlink, symlink_to_device, hard_link, fifo, bound_socket, folder]


@pytest.mark.parametrize("make", HOSTILE)
def test_what_is_no_plain_file_is_not_read(runner: Runner, make: Callable[[Path], None]) -> None:
    """It holds nothing up; it is told once, and what comes after it is read."""

    async def main() -> None:
        traces, stream = runner.watched()
        before = open_descriptors()
        make(runner.path(1, 1))
        make(runner.path(2, 1))
        with runner.page(3, text=b"read\n"):
            got = await take(stream, 2)
            assert [detail for detail in missed(got) if str(runner.pages) in detail]
            assert got[1] == lines("read", step=3)[0]
            assert len(open_descriptors() - before) == 2
            assert await rest(traces, stream) == []

    run(main())


@pytest.mark.parametrize("make", HOSTILE)
@pytest.mark.parametrize("is_early", [True, False])
def test_counters_that_are_no_plain_file_are_not_read(
    runner: Runner, make: Callable[[Path], None], *, is_early: bool
) -> None:
    """Whether they are there before or come then; nothing is held up."""

    async def main() -> None:
        runner.perf.parent.mkdir(parents=True)
        if is_early:
            make(runner.perf)
        traces, stream = runner.watched()
        if not is_early:
            make(runner.perf)
        runner.whole_page(1, text=b"read\n")
        got = await rest(traces, stream)
        assert [detail for detail in missed(got) if str(runner.perf.parent) in detail]
        assert got[1:] == lines("read")

    run(main())


def test_what_is_somebody_elses_is_not_read(runner: Runner) -> None:
    """Where the runner has a user of its own, only that one's files count."""

    async def main() -> None:
        traces = runner.traces(owner=os.geteuid() + 1)
        traces.open()
        for path in (runner.pages, runner.perf.parent):
            path.mkdir(parents=True, exist_ok=True)
        runner.whole_page(1, text=b"root:x:0\n")
        runner.says(ASSIGNED)
        got = await rest(traces, followed(traces))
        assert len(missed(got)) == len(got) == 2

    run(main())


LEASES: Final = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
os.rename(sys.argv[1], sys.argv[2])
print("leased", flush=True)
sys.stdin.read()
"""


def test_a_lease_holds_nothing_up(runner: Runner) -> None:
    """Who has one on a file may keep who opens it waiting for most of a minute."""

    async def main() -> None:
        traces, stream = runner.watched()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", LEASES, runner.root / "leased", runner.path(1, 1)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout
        assert await process.stdout.readline() == b"leased\n"
        runner.whole_page(2, text=b"read\n")
        async with asyncio.timeout(PATIENCE_SECONDS / 4):
            got = await rest(traces, stream)
        await process.communicate(b"")
        assert len(missed(got)) == 1
        assert got[1:] == lines("read", step=2)

    run(main())


@pytest.mark.parametrize("name", ["_diag", "_diag/pages", "_diag/perf"])
@pytest.mark.parametrize("is_early", [True, False])
def test_folders_elsewhere_are_not_looked_into(runner: Runner, name: str, *, is_early: bool) -> None:
    """No symlink is followed below the root; nothing is made there, either."""

    async def main() -> None:
        elsewhere = runner.root.parent / "elsewhere"
        elsewhere.mkdir()
        traces = runner.traces()
        if not is_early:
            traces.open()
            (runner.root / name).rename(runner.root / "aside")
            await turns()
        (runner.root / name).parent.mkdir(exist_ok=True)
        (runner.root / name).symlink_to(elsewhere)
        if is_early:
            traces.open()
            assert not list(elsewhere.iterdir())
        for path in (runner.pages, runner.perf.parent):
            path.mkdir(exist_ok=True)
        if name != "_diag/perf":
            runner.whole_page(1, text=b"root:x:0\n")
        if name != "_diag/pages":
            runner.says(ASSIGNED)
        got = await rest(traces, followed(traces))
        assert any(str(runner.root / name) in detail for detail in missed(got))
        assert len(missed(got)) == len(got)

    run(main())


def test_the_root_itself_may_be_a_symlink(runner: Runner) -> None:
    """It is the operator's; where it leads when the runner starts is where the runner is."""

    async def main() -> None:
        link = runner.root.parent / "link"
        link.symlink_to(runner.root)
        traces = Traces(link)
        traces.open()
        link.unlink()
        link.symlink_to("/")
        runner.whole_page(1, text=b"read\n")
        assert await rest(traces, followed(traces)) == lines("read")

    run(main())


def test_other_names_are_not_read(runner: Runner) -> None:
    """Nor are they told."""

    async def main() -> None:
        traces, stream = runner.watched()
        page = runner.path(1, 1).name
        for name in (
            "page.log",
            page.replace("_1.log", "_0.log"),
            page.replace("_1.log", "_01.log"),
            page.replace("_1.log", "_1.LOG"),
            page.replace("_1.log", "_1.log.gz"),
            page.replace("_1.log", "_1.log\n"),
            page.replace("_1.log", "_\u0661.log"),
            page.replace("0", "\u0660"),
            page.partition("_")[2],
            f".{page}",
            "Runner.perf",
        ):
            (runner.pages / name).write_bytes(b"no page\n" + ASSIGNED)
        (runner.perf.parent / page).write_bytes(b"no page\n")
        (runner.pages.parent / page).write_bytes(b"no page\n")
        (runner.pages.parent / "Runner.perf").write_bytes(ASSIGNED)
        assert await rest(traces, stream) == []

    run(main())


@pytest.mark.parametrize("reads_on", [True, False])
def test_very_many_pages_are_opened_a_few_at_a_time(runner: Runner, *, reads_on: bool) -> None:
    """Those that wait for others are read when these have been."""

    async def main() -> None:
        before = len(open_descriptors())
        traces, stream = runner.watched()
        got: list[Trace] = []
        for record in range(2_000):
            runner.whole_page(record, text=b"junk\n")
        await turns()
        most = len(open_descriptors())
        if reads_on:
            got += await take(stream, 1_000)
            most = max(most, len(open_descriptors()))
            got += await take(stream, 1_000)
            runner.whole_page(2_000, text=b"page\n")
            got += await take(stream, 1)
        got += await rest(traces, stream)
        assert got[:2_000] == [StepLine(step, OutputLine("junk")) for step in range(1, 2_001)]
        assert got[2_000:] == (lines("page", step=2_001) if reads_on else [])
        assert before + 256 <= most <= before + 260

    run(main())


def test_names_are_remembered_up_to_a_bound(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it there is no page any more, and no memory lost; it is told once."""

    async def main() -> None:
        monkeypatch.setattr(module, "_MOST_PAGES", 3)
        traces, stream = runner.watched()
        for record in range(6):
            runner.whole_page(record, text=b"page\n")
        got = await rest(traces, stream)
        assert missed(got) == ["there are more than 3 pages: the rest is not read"]
        assert got[1:] == [*lines("page"), *lines("page", step=2), *lines("page", step=3)]

    run(main())


def test_memory_is_bounded(runner: Runner) -> None:
    """However much a page claims to have."""

    async def main() -> None:
        traces, stream = runner.watched()
        with runner.page(1) as page:
            page.truncate(64 * 2**20)
        await turns()
        traces.end()
        tracemalloc.start()
        async with aclosing(stream):
            parts = [len(trace.line.text) async for trace in stream if isinstance(trace, StepLine)]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sum(parts) == 64 * 2**20 - len(BOM_UTF8)
        assert peak < 2 * 2**20

    run(main())


@pytest.mark.parametrize("pages", [1, 1_000])
def test_the_loop_has_its_turns(runner: Runner, pages: int) -> None:
    """Whoever else needs it waits for a thousand lines at most, or for one read of a page."""

    async def main() -> None:
        traces, stream = runner.watched()
        for record in range(pages):
            runner.whole_page(record, text=b"\n" * (100_000 // pages))
        await turns()
        loop = asyncio.get_running_loop()
        in_this_turn = most = total = 0

        def turn() -> None:
            nonlocal in_this_turn
            in_this_turn = 0
            loop.call_soon(turn)

        loop.call_soon(turn)
        traces.end()
        async for _ in stream:
            in_this_turn += 1
            total += 1
            most = max(most, in_this_turn)
        assert total == 100_000
        assert most <= (1_000 if pages == 1 else 100)

    run(main())


def test_a_page_is_read_when_it_has_news(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that have none cost nothing, whatever happens to others."""
    reads: list[int] = []
    pread = os.pread

    def counted(file: int, size: int, at: int) -> bytes:
        reads.append(file)
        return pread(file, size, at)

    async def main() -> None:
        traces, stream = runner.watched()
        with runner.page(1, text=b"quiet\n"), runner.page(2, text=b"loud\n") as loud:
            await take(stream, 2)
            await turns()
            monkeypatch.setattr(os, "pread", counted)
            for _ in range(100):
                loud.write(b"loud\n")
                await take(stream, 1)
            assert len(set(reads)) == 1
            assert len(reads) <= 200
            assert await rest(traces, stream) == []

    run(main())


def test_while_nothing_happens_nothing_is_done(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop does not turn, but for what another process's end costs."""
    selects: list[object] = []
    select = selectors.DefaultSelector.select

    def counted(self: selectors.DefaultSelector, timeout: float | None = None) -> object:
        selects.append(timeout)
        return select(self, timeout)

    async def main() -> None:
        traces, stream = runner.watched()
        with runner.page(1, text=b"one\n"), runner.page(2):
            await take(stream, 1)
            pending = asyncio.ensure_future(anext(stream))
            await settled(traces)
            monkeypatch.setattr(selectors.DefaultSelector, "select", counted)
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
            await process.wait()
            assert len(selects) < 50
        pending.cancel()

    run(main())


def test_a_page_that_cannot_be_read_is_missed(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after it is read, also of the same step."""
    pread = os.pread

    def broken(file: int, size: int, at: int) -> bytes:
        data = pread(file, size, at)
        if b"broken" in data:
            raise OSError(errno.EIO, "Input/output error")
        return data

    async def main() -> None:
        traces, stream = runner.watched()
        for number, text in enumerate((b"one\n", b"broken\n", b"three\n", b"broken\n"), 1):
            runner.whole_page(1, number, text)
        monkeypatch.setattr(os, "pread", broken)
        got = await rest(traces, stream)
        assert missed(got) == ["a page of step 1 could not be read to its end: Input/output error"]
        assert [trace for trace in got if isinstance(trace, StepLine)] == lines("one", "three")

    run(main())


# Without being told


def test_without_inotify_it_looks(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for what has no events then: that a page is removed, and nothing more comes."""

    async def main() -> None:
        by_itself(monkeypatch)
        _, stream = runner.watched()
        runner.says(ASSIGNED)
        assert await take(stream, 1) == [Assigned()]
        with runner.page(1, text=b"one\ntwo") as page:
            assert await take(stream, 1) == lines("one")
            page.write(b"\nthree")
            assert await take(stream, 1) == lines("two")
            runner.path(1, 1).unlink()
            assert await take(stream, 1) == lines("three")
        runner.whole_page(2, text=b"four\n")
        runner.whole_page(2, 2, b"five\n")
        assert await take(stream, 2) == lines("four", "five", step=2)

    run(main())


def test_looks_alone_end_a_page_that_is_removed_and_read(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one that is only read, nor one that still grows when it is removed."""

    async def main() -> None:
        by_itself(monkeypatch, seconds=NEVER)
        traces, stream = runner.watched()
        with runner.page(1, text=b"one\nt") as page:
            traces._look()
            assert await take(stream, 1) == lines("one")
            traces._look()
            pending = asyncio.ensure_future(anext(stream))
            await settled(traces)
            runner.path(1, 1).unlink()
            for byte in b"wo\n":
                page.write(bytes([byte]))
                traces._look()
                await settled(traces)
            assert await pending == lines("two")[0]
            page.write(b"three")
            traces._look()
            pending = asyncio.ensure_future(anext(stream))
            await settled(traces)
            traces._look()
            assert await pending == lines("three")[0]

    run(main())


def test_a_look_is_bounded(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may have more files than there is time to look at."""
    looked_at: list[object] = []

    def written(entry: object) -> int:
        looked_at.append(entry)
        return 0

    async def main() -> None:
        by_itself(monkeypatch, seconds=NEVER)
        monkeypatch.setattr(module, "_MOST_PAGES", 10)
        monkeypatch.setattr(module, "_written", written)
        traces, stream = runner.watched()
        for record in range(50):
            runner.whole_page(record)
        got = await rest(traces, stream)
        assert missed(got) == ["there are more than 10 pages: the rest is not read"]
        assert len(looked_at) == 11

    run(main())


def test_looks_see_steps_in_their_order(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who printed last comes last."""

    async def main() -> None:
        by_itself(monkeypatch, seconds=NEVER)
        traces, stream = runner.watched()
        for age, record in enumerate((5, 2, 8, 1)):
            os.utime(runner.whole_page(record, text=f"{record}\n".encode()), (age, age))
        assert await rest(traces, stream) == [
            *(lines("5") + lines("2", step=2)),
            *(lines("8", step=3) + lines("1", step=4)),
        ]

    run(main())


def test_without_watches_it_looks(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may have given out all of them."""

    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def main() -> None:
        monkeypatch.setattr(inotify_simple.INotify, "add_watch", refuse)
        monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
        _, stream = runner.watched()
        await turns()
        runner.whole_page(1, text=b"one\n")
        assert await take(stream, 1) == lines("one")

    run(main())


def test_more_events_than_the_system_keeps(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files are looked at then; and from then on, since the end of some was perhaps not told."""
    kept = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text("ascii"))

    async def main() -> None:
        monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
        traces, stream = runner.watched()
        with runner.page(1) as first, runner.page(2) as second:
            await turns()
            for _ in range(kept // 2 + 1):
                first.write(b"a\n")
                second.write(b"b\n")
            first.write(b"end")
            runner.says(ASSIGNED)
            runner.whole_page(3, text=b"new\n")
        runner.path(1, 1).unlink()
        got = await take(stream, 2 * (kept // 2 + 1) + 3)
        assert got.count(*lines("a")) == got.count(*lines("b", step=2)) == kept // 2 + 1
        others = [trace for trace in got if trace not in lines("a") + lines("b", step=2)]
        assert sorted(others, key=str) == [Assigned(), *lines("end"), *lines("new", step=3)]
        assert await rest(traces, stream) == []

    run(main())


def remove_pages(runner: Runner) -> None:
    shutil.rmtree(runner.pages)


def move_pages(runner: Runner) -> None:
    runner.pages.rename(runner.root / "aside")


def remove_all(runner: Runner) -> None:
    shutil.rmtree(runner.pages.parent)


def move_all(runner: Runner) -> None:
    runner.pages.parent.rename(runner.root / "aside")


@pytest.mark.parametrize("change", [remove_pages, move_pages, remove_all, move_all])
def test_a_folder_that_is_made_anew_is_found(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, change: Callable[[Runner], None]
) -> None:
    """What was open goes on; and what is new is watched, twice over too."""

    async def main() -> None:
        monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
        _, stream = runner.watched()
        page = runner.page(1, text=b"one\n")
        assert await take(stream, 1) == lines("one")
        for step in (2, 3):
            change(runner)
            await turns()
            page.write(b"on\n")
            runner.pages.mkdir(parents=True)
            runner.whole_page(step, text=b"new\n")
            got: list[Trace] = []
            while len(got) < 2:
                got += [trace for trace in await take(stream, 1) if isinstance(trace, StepLine)]
            page.close()
            assert sorted(got, key=str) == [*lines("on", step=step - 1), *lines("new", step=step)]
            page = runner.page(step, 2, b"again\n")
            assert await take(stream, 1) == lines("again", step=step)
            shutil.rmtree(runner.root / "aside", ignore_errors=True)
        page.close()

    run(main())


def test_a_folder_that_is_made_anew_is_watched(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its events come again, not only looks."""

    async def main() -> None:
        traces, stream = runner.watched()
        monkeypatch.setattr(module, "_LOOK_SECONDS", NEVER)
        move_pages(runner)
        runner.pages.mkdir()
        pending = asyncio.ensure_future(anext(stream))
        await turns()
        runner.whole_page(1, text=b"one\n")
        assert await pending == lines("one")[0]
        with (runner.root / "aside" / runner.path(2, 1).name).open("xb"):
            runner.whole_page(3, text=b"two\n")
            assert await take(stream, 1) == lines("two", step=2)
        assert traces._watches
        assert len(traces._watches._folders) == watches_of(traces._watches._inotify) == 3

    run(main())


def test_looks_do_not_add_up(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a folder is made anew, the next look comes when it is due."""
    looks: list[Traces] = []

    def look(traces: Traces) -> None:
        looks.append(traces)

    async def main() -> None:
        runner.watched()
        monkeypatch.setattr(Traces, "_look", look)
        for _ in range(5):
            shutil.rmtree(runner.perf.parent)
            runner.perf.parent.mkdir()
            await turns()
        assert len(looks) == 1

    run(main())


def test_without_a_root_it_says_so(runner: Runner) -> None:
    """And ends when it is told to."""

    async def main() -> None:
        runner.root.rmdir()
        traces, stream = runner.watched()
        assert await take(stream, 1) == [
            OutputMissed(f"{runner.root} cannot be looked into: No such file or directory")
        ]
        assert await rest(traces, stream) == []

    run(main())


# The end


async def cancel(traces: Traces, stream: AsyncGenerator[Trace, None]) -> None:
    reading = asyncio.ensure_future(anext(stream))
    await settled(traces)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert traces._over


async def leave(_: Traces, stream: AsyncGenerator[Trace, None]) -> None:
    await stream.aclose()


async def close_twice(traces: Traces, stream: AsyncGenerator[Trace, None]) -> None:
    reading = asyncio.ensure_future(anext(stream))
    await settled(traces)
    traces.close()
    traces.close()
    with pytest.raises(StopAsyncIteration):
        await reading


async def close_before(traces: Traces, stream: AsyncGenerator[Trace, None]) -> None:
    await turns()
    traces.close()
    traces.end()
    assert [trace async for trace in stream] == []


async def end_in_order(traces: Traces, stream: AsyncGenerator[Trace, None]) -> None:
    assert await rest(traces, stream) == []
    traces.end()


@pytest.mark.parametrize("stop", [cancel, leave, close_twice, close_before, end_in_order])
@pytest.mark.parametrize("is_told", [True, False])
def test_nothing_is_left_open(
    runner: Runner,
    monkeypatch: pytest.MonkeyPatch,
    stop: Callable[[Traces, AsyncGenerator[Trace, None]], Coroutine[Any, Any, None]],
    *,
    is_told: bool,
) -> None:
    """No descriptor, no reader on the loop and no timer, whatever ends it."""

    async def main() -> None:
        if not is_told:
            by_itself(monkeypatch, seconds=NEVER)
        loop = asyncio.get_running_loop()
        before = open_descriptors()
        traces, stream = runner.watched()
        timer = traces._timer
        heard = traces._watches._inotify.fileno() if traces._watches else None
        with runner.page(1), runner.page(2):
            if stop is not close_before:
                runner.whole_page(3, text=b"one\n")
                runner.page(3, 2).close()
                traces._look()
                await take(stream, 1)
            await stop(traces, stream)
        assert open_descriptors() <= before
        assert timer.cancelled() if timer else is_told
        assert not loop.remove_reader(heard) if heard else not is_told

    run(main())


def test_what_was_never_opened_ends() -> None:
    """As soon as it is told to."""

    async def main() -> None:
        traces = Traces(Path("/nowhere"))
        assert await rest(traces, followed(traces)) == []
        traces.close()

    run(main())


# Whatever happens


TEXTS: Final = st.lists(
    st.sampled_from([b"a", b"word ", b"\n", b"\n", b"\r", "é".encode(), b"\xff"]), max_size=8
).map(b"".join)
LONG_TEXTS: Final = st.integers(60_000, 140_000).map(lambda size: b"x" * size)
DOINGS: Final = st.tuples(
    st.integers(0, 2),
    st.tuples(st.just("write"), TEXTS | LONG_TEXTS)
    | st.tuples(st.sampled_from(["turn page", "close", "unlink"]), st.none()),
    st.booleans(),
)


class Step:
    """One that prints, page after page."""

    def __init__(self, runner: Runner, record: int) -> None:
        self._runner, self._record = runner, record
        self._pages: list[bytes] = []
        self._page: BinaryIO | None = None
        self._is_new = False

    async def do(self, what: str, data: bytes | None) -> None:
        if what == "close":
            self.close()
        elif what == "unlink":
            await self._unlink()
        else:
            if what == "turn page" or self._page is None:
                self._turn_page()
            if data and self._page:
                self._page.write(data)
                self._pages[-1] += data

    def _turn_page(self) -> None:
        earlier, self._page = self._page, self._runner.page(self._record, len(self._pages) + 1)
        self._pages.append(b"")
        self._is_new = True
        if earlier:
            earlier.close()

    def close(self) -> None:
        if self._page:
            self._page.close()
            self._page = None

    async def _unlink(self) -> None:
        """The last page; who has just made it gives time to open it."""
        if self._is_new:
            await turns()
            self._is_new = False
        if self._pages:
            self._runner.path(self._record, len(self._pages)).unlink(missing_ok=True)

    def lines(self) -> list[OutputLine]:
        splitters = [(LineSplitter(), page) for page in self._pages]
        return [line for splitter, page in splitters for line in splitter.feed(page) + splitter.finish()]


class Reader:
    """Takes lines, and stops in the middle for as long as it is told to."""

    def __init__(self, stream: AsyncGenerator[Trace, None]) -> None:
        self.got: list[Trace] = []
        self.may_read = asyncio.Event()
        self.reading = asyncio.create_task(self._read(stream))

    async def _read(self, stream: AsyncGenerator[Trace, None]) -> None:
        async for trace in stream:
            self.got.append(trace)
            await self.may_read.wait()


@settings(max_examples=150)
@given(st.lists(st.sampled_from(["turn", "stall", "go on"]) | DOINGS, max_size=60))
def test_every_line_comes_once_and_in_order(doings: list[str | tuple[int, tuple[str, bytes], bool]]) -> None:
    """Whatever several steps do with their pages, and whoever reads, steadily or not."""

    async def main(runner: Runner) -> None:
        traces, stream = runner.watched()
        reader = Reader(stream)
        steps: dict[int, Step] = {}
        for doing in doings:
            if isinstance(doing, tuple):
                record, what, is_taken = doing
                if record not in steps and what[0] in {"write", "turn page"}:
                    steps[record] = Step(runner, record)
                if record in steps:
                    await steps[record].do(*what)
                if is_taken:
                    await turns()
            elif doing == "turn":
                await turns()
            elif doing == "stall":
                reader.may_read.clear()
            else:
                reader.may_read.set()
        traces.end()
        reader.may_read.set()
        await reader.reading
        for number, step in enumerate(steps.values(), 1):
            step.close()
            come = [line for line in reader.got if isinstance(line, StepLine) and line.step == number]
            assert [each.line for each in come] == step.lines()
        assert not missed(reader.got)

    with tempfile.TemporaryDirectory() as root:
        run(main(Runner(Path(root))))

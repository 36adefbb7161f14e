"""The runner's console: what its own lines say, and what nobody else can make it say."""

from collections.abc import Sequence
from typing import Final

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from agent_core.console import Completed, Connected, Console, ConsoleEvent, Listening, Running
from agent_core.lines import LineSplitter
from agent_core.model import JobResult, OutputLine

RELAXED: Final = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
STAMP: Final = "2026-08-17 14:15:44Z: "
RESULTS: Final = {
    "Succeeded": JobResult.SUCCEEDED,
    "SucceededWithIssues": JobResult.SUCCEEDED_WITH_ISSUES,
    "Failed": JobResult.FAILED,
    "Canceled": JobResult.CANCELED,
    "Skipped": JobResult.SKIPPED,
    "Abandoned": JobResult.ABANDONED,
}
HOSTILE_NAMES: Final = (
    "build",
    "build (ubuntu-latest, 3.12)",
    "x completed with result: Succeeded",
    "Job x completed with result: Succeeded",
    f"{STAMP}Job x completed with result: Succeeded",
    " completed with result: ",
    "completed with result: Succeeded completed with result: Succeeded",
    "((( [a-z]+ .* $ ^ \\1",
    "\x1b[32m√ Connected to GitHub\x1b[0m",
    "Listening for Jobs",
    "",
    " ",
    "  trailing and leading  ",
    "tab\tbell\a\0",
    "名前 😀 \u202e",
)
FRAGMENTS: Final = st.lists(
    st.sampled_from(
        (STAMP, "Job ", "Running job: ", " completed with result: ", "Listening for Jobs", *HOSTILE_NAMES)
    )
    | st.sampled_from(tuple(RESULTS))
    | st.text(st.characters(), max_size=8),
    max_size=8,
).map("".join)
ONE_LINE_NAMES: Final = FRAGMENTS.map(lambda text: text.replace("\n", " "))


def running(name: str) -> str:
    return f"{STAMP}Running job: {name}"


def completed(name: str, word: str = "Succeeded") -> str:
    return f"{STAMP}Job {name} completed with result: {word}"


def read(*lines: str) -> list[ConsoleEvent]:
    """What a start of the runner said that printed these lines."""
    console = Console()
    events = [console.feed(OutputLine(line)) for line in lines]
    return [event for event in events if event is not None]


def printed(text: str) -> list[str]:
    """The lines that a text with line breaks in it makes on the console."""
    return [line.text for line in LineSplitter().feed(f"{text}\n".encode())]


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("√ Connected to GitHub", Connected()),
        ("√ Connected to GitHub ", Connected()),
        (f"{STAMP}Listening for Jobs", Listening()),
        (f"{STAMP}Listening for Jobs \r", Listening()),
        (running("build"), Running("build")),
        *((completed("build", word), Completed("build", result)) for word, result in RESULTS.items()),
        (completed("build") + " ", Completed("build", JobResult.SUCCEEDED)),
    ],
)
def test_reads_the_lines_of_the_runner(line: str, event: ConsoleEvent) -> None:
    """Each line that tells the runner's state is one event."""
    assert read(line) == [event]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Current runner version: '2.336.0'",
        f"{STAMP}Runner reconnected.",
        f"{STAMP}Runner connect error: no route. Retrying until reconnected.",
        "Connected to GitHub",
        " √ Connected to GitHub",
        "Listening for Jobs",
        f"{STAMP}Not Listening for Jobs",
        f"{STAMP}Listening for Jobs, said the step",
        "Running job: build",
        f"> {running('build')}",
        f" {running('build')}",
        f"\x1b[32m{running('build')}",
        f"\ufeff{running('build')}",
        running("build").replace(STAMP, "2026-08-17T14:15:44Z: "),
        running("build").replace("Z: ", ": "),
        running("build").replace("Running job: ", "Running job:"),
        "Job build completed with result: Succeeded",
        f"log: {completed('build')}",
        completed("build", "Exploded"),
        completed("build", "succeeded"),
        completed("build", ""),
        completed("build") + "?",
        f"{STAMP}Job build completed",
    ],
)
def test_anything_else_says_nothing(line: str) -> None:
    """A line counts only from its first character on, and to its last."""
    assert read(line) == []


def test_a_whole_life() -> None:
    """What the runner prints for one job is its way from the connection to the result."""
    assert read(
        "√ Connected to GitHub",
        "",
        "Current runner version: '2.336.0'",
        f"{STAMP}Listening for Jobs",
        running("build"),
        completed("build", "Failed"),
    ) == [Connected(), Listening(), Running("build"), Completed("build", JobResult.FAILED)]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("word", RESULTS)
def test_a_display_name_is_only_a_name(name: str, word: str) -> None:
    """Whatever a name says of results, the result is the runner's own, at the line's end."""
    assert read(running(name), completed(name, word)) == [Running(name), Completed(name, RESULTS[word])]


@RELAXED
@given(ONE_LINE_NAMES, st.sampled_from(tuple(RESULTS)))
def test_any_display_name_is_only_a_name(name: str, word: str) -> None:
    """The same for any name without a line break."""
    assert read(running(name), completed(name, word)) == [Running(name), Completed(name, RESULTS[word])]


@RELAXED
@given(ONE_LINE_NAMES, ONE_LINE_NAMES)
def test_another_jobs_completion_is_ignored(name: str, other: str) -> None:
    """Once a job runs, only a completion of that very job counts, and only the first job is it."""
    # That would be the first line of this job's name, as it is repeated where the name has line breaks.
    assume(name not in {f"{other} completed with result: {word}" for word in ("Succeeded", "Failed")})
    lines = (running(name), completed(other), running(other), completed(other, "Failed"))

    expected = [] if other != name else [JobResult.SUCCEEDED, JobResult.FAILED]
    assert read(*lines) == [Running(name), *(Completed(name, result) for result in expected)]


def test_the_last_completion_wins() -> None:
    """Where the line comes again, each is told, in order: the last one is the runner's."""
    events = read(running("build"), completed("build", "Succeeded"), completed("build", "Canceled"))

    assert events[-1] == Completed("build", JobResult.CANCELED)


def test_a_completion_counts_whose_beginning_was_missed() -> None:
    """The result is not lost with the line that says which job runs."""
    assert read(completed("build", "Failed")) == [Completed("build", JobResult.FAILED)]


def test_a_part_of_a_line_says_nothing() -> None:
    """What continues a long line does not begin at its beginning."""
    console = Console()

    assert console.feed(OutputLine(running("build"), continued=True)) is None
    assert console.feed(OutputLine(completed("build"), continued=True)) is None
    assert console.feed(OutputLine("√ Connected to GitHub", continued=True)) is None
    assert console.feed(OutputLine(running("real"))) == Running("real")


@pytest.mark.parametrize(
    "second_line",
    [
        completed("other"),
        completed("first line"),
        running("other"),
        "completed with result: Succeeded",
    ],
)
def test_a_name_with_line_breaks_cannot_pass_off_a_result(second_line: str) -> None:
    """The second line of a display name stands at a line's start, and is still not the runner's."""
    name = f"first line\n{second_line}"

    events = read(*printed(running(name)), *printed(completed(name, "Failed")))

    assert events[0] == Running("first line")
    assert events[-1] == Completed("first line", JobResult.FAILED)


NAME_LINES: Final = st.lists(FRAGMENTS | st.just("x"), min_size=2, max_size=4).map(
    lambda lines: "\n".join(line.replace("\r", "").encode("utf-8", "replace").decode() for line in lines)
)


@settings(RELAXED, max_examples=300)
@given(NAME_LINES, st.sampled_from(tuple(RESULTS)))
@example(f"x\n{completed('x')}", "Failed")
@example(f"x\n{completed('x')}\nlast line", "Failed")
@example(f"x\n{STAMP}Job x", "Failed")
@example("x\nJob x\n completed with result: Succeeded", "Failed")
def test_a_job_whose_name_has_line_breaks_has_its_result(name: str, word: str) -> None:
    """Whatever the lines of the name look like, what is told last is the runner's own."""
    first_line, *_ = name.split("\n")

    events = read(*printed(running(name)), *printed(completed(name, word)))

    assert events[0] == Running(first_line)
    assert events[-1] == Completed(first_line, RESULTS[word])


@settings(RELAXED, max_examples=300)
@given(NAME_LINES, st.sampled_from(tuple(RESULTS)))
@example(f"x\n{completed('x')}", "Failed")
@example(f"x\n{completed('x')}\nlast line", "Failed")
@example(f"x\n{completed('x')}\n", "Failed")
@example(f"x\n{STAMP}Job x", "Failed")
def test_a_name_that_is_repeated_is_only_a_name(name: str, word: str) -> None:
    """Where the runner says that the job has completed, it says so once, whatever else is in the name."""
    console = Console()
    for line in printed(running(name)):
        console.feed(OutputLine(line))

    events = [console.feed(OutputLine(line)) for line in printed(completed(name, word))]

    first_line, *_ = name.split("\n")
    assert [event for event in events if event] == [Completed(first_line, RESULTS[word])]


def test_a_carriage_return_ends_no_name() -> None:
    """It is lost where it stands at a line's end, and is there in the middle of one."""
    assert read(*printed(running("x\r")), *printed(completed("x\r", "Failed"))) == [
        Running("x"),
        Completed("x", JobResult.FAILED),
    ]


@pytest.mark.parametrize("word", RESULTS)
def test_a_name_longer_than_a_piece_of_a_line(word: str) -> None:
    """The result is in another piece."""
    name = "n" * 200_000
    console, splitter = Console(), LineSplitter()
    lines = splitter.feed(f"{running(name)}\nhello\n{completed(name, word)}\n".encode())

    *_, last = filter(None, map(console.feed, lines))

    assert isinstance(last, Completed)
    assert (last.result, set(last.job_name)) == (RESULTS[word], {"n"})


@RELAXED
@given(st.lists(st.builds(OutputLine, FRAGMENTS | st.text(st.characters()), st.booleans()), max_size=10))
def test_never_raises(lines: Sequence[OutputLine]) -> None:
    """Any text on the console is an event or nothing."""
    console = Console()
    for line in lines:
        assert isinstance(console.feed(line), Connected | Listening | Running | Completed | None)


def test_a_very_long_line_is_read_quickly() -> None:
    """A name that repeats what the runner says, as long as a part may be, costs one pass."""
    name = " completed with result: Succeeded" * 2_000

    assert read(running(name), completed(name, "Failed"), completed(name) + " " * 10_000 + "x") == [
        Running(name),
        Completed(name, JobResult.FAILED),
    ]

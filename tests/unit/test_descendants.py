"""Which processes an agent takes for the runner's when it has begun anew, and how one is killed."""

import ctypes
import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from agent_adapters.descendants import RunnerProcesses, kill
from agent_adapters.host import identify
from agent_core.model import ProcessId

_PR_SET_CHILD_SUBREAPER = 36
Children = tuple[ProcessId, ProcessId, ProcessId]


@pytest.fixture
def children() -> Iterator[Children]:
    """Of this process: one that is older than the runner, the runner, and one that came after it."""
    with ExitStack() as stack:
        older = stack.enter_context(child())
        runner = stack.enter_context(child())
        while runner.started == older.started:  # clock ticks
            runner = stack.enter_context(child())
        yield older, runner, stack.enter_context(child())


@contextmanager
def child() -> Iterator[ProcessId]:
    with subprocess.Popen(["sleep", "infinity"], start_new_session=True) as process:
        try:
            identified = identify(process.pid)
            assert identified is not None
            yield identified
        finally:
            process.kill()


def adopt(*, orphans: bool) -> None:
    assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, orphans, 0, 0, 0) == 0


@pytest.fixture
def adopting() -> Iterator[None]:
    """This process has been an agent that has started a runner."""
    adopt(orphans=True)
    yield
    adopt(orphans=False)


@pytest.mark.usefixtures("adopting")
def test_who_begins_anew_has_kept_its_children(tmp_path: Path, children: Children) -> None:
    """Those that came after the runner are its own, also when it has gone meanwhile; older ones are not."""
    older, runner, later = children
    processes = RunnerProcesses(tmp_path, "an-agent")

    assert processes.find([runner]) >= {runner, later}
    assert older not in processes.find([runner])
    assert later in processes.find([])


@pytest.mark.usefixtures("adopting")
def test_a_journal_that_tells_of_no_child(tmp_path: Path, children: Children) -> None:
    """Of no runner, or of a number that another process has by now."""
    _, runner, later = children
    for known in ([], [ProcessId(runner.pid, runner.started - 1)]):
        found = RunnerProcesses(tmp_path, "an-agent").find(known)
        assert not found & {runner, later}


def test_a_process_that_was_no_agent(tmp_path: Path, children: Children) -> None:
    """It has adopted nobody: what it started itself is its own affair."""
    older, runner, later = children
    adopt(orphans=False)  # as other tests in this process may have left it
    found = RunnerProcesses(tmp_path, "an-agent").find([runner])
    assert runner in found
    assert not found & {older, later}


@pytest.mark.parametrize(
    ("number", "is_gone"), [(errno.ESRCH, True), (errno.EINVAL, True), (errno.EMFILE, False)]
)
def test_a_process_that_goes_as_it_is_killed(
    monkeypatch: pytest.MonkeyPatch, number: int, *, is_gone: bool
) -> None:
    """A kernel may call its number an invalid one; any other fault is one."""

    def pidfd_open(pid: int) -> int:
        raise OSError(number, os.strerror(number), str(pid))

    with child() as process, monkeypatch.context() as patches:
        patches.setattr(os, "pidfd_open", pidfd_open)
        if is_gone:
            assert kill(process)
        else:
            with pytest.raises(OSError, match=os.strerror(number)):
                kill(process)

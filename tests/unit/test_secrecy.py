"""What /proc shows of the secrets that processes were started with, and that the processes go on."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_adapters import secrecy
from agent_adapters.secrecy import blank
from support.users import NOBODY, needs_root

SECRETS: Final = {"PLANTED": "secret" * 1000, "AWS_SESSION_TOKEN": "secret=with=signs"}
OTHERS: Final = {"PATH": os.defpath, "PLANTED_TOO": "kept", "EMPTY": ""}


def is_secret(entry: str) -> bool:
    return entry.startswith(("PLANTED=", "AWS_"))


def shown(pid: int) -> dict[str, str]:
    """What /proc shows."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(os.fsdecode(entry).split("=", 1) for entry in entries if entry)


class Child:
    """A process that was started with secrets, does what it is told, and answers each line with one."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen, self.pid = popen, popen.pid

    def ask(self, line: str) -> str:
        assert self.popen.stdin
        assert self.popen.stdout
        self.popen.stdin.write(f"{line}\n")
        self.popen.stdin.flush()
        return self.popen.stdout.readline().strip()


@contextmanager
def child(command: list[str], environment: Mapping[str, str], user: int | None = None) -> Iterator[Child]:
    """It ends with its input."""
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, user=user
    ) as popen:
        yield Child(popen)


BASH: Final = ["/bin/bash", "-c", 'while read -r line; do eval "$line"; done']
PYTHON: Final = [
    sys.executable,
    "-c",
    f"""
import ctypes, os, subprocess, sys
sys.path[:] = {sys.path!r}
from agent_adapters.secrecy import blank, keep_private
for line in sys.stdin:
    print(eval(line), flush=True)
""",
]


@pytest.fixture
def bash() -> Iterator[Child]:
    with child(BASH, SECRETS | OTHERS) as bash:
        assert bash.ask("echo ready") == "ready"
        yield bash


@pytest.fixture
def python() -> Iterator[Child]:
    with child(PYTHON, SECRETS | OTHERS) as python:
        assert python.ask("0") == "0"
        yield python


# What a process was started with


def test_what_is_hidden(bash: Child) -> None:
    """The names go as well, and the rest stays; a second look finds nothing more."""
    assert shown(bash.pid) == SECRETS | OTHERS

    for _ in range(2):
        assert blank(bash.pid, is_secret)
        assert shown(bash.pid) == OTHERS


def test_what_is_asked(bash: Child) -> None:
    """Whole entries, and none but those that are there."""
    asked: list[str] = []

    def note(entry: str) -> bool:
        asked.append(entry)
        return False

    assert blank(bash.pid, note)
    assert asked == [f"{name}={value}" for name, value in (SECRETS | OTHERS).items()]
    assert shown(bash.pid) == SECRETS | OTHERS


def test_a_shell_goes_on(bash: Child) -> None:
    """With its own copy, which its children have too, until they are looked at."""
    assert blank(bash.pid, is_secret)

    assert bash.ask('echo "$AWS_SESSION_TOKEN"') == SECRETS["AWS_SESSION_TOKEN"]
    assert bash.ask("sh -c 'echo $PLANTED_TOO $AWS_SESSION_TOKEN'") == "kept secret=with=signs"


def test_a_program_goes_on(python: Child) -> None:
    """With its own copy, too."""
    assert blank(python.pid, is_secret)

    assert python.ask("os.environ['AWS_SESSION_TOKEN']") == SECRETS["AWS_SESSION_TOKEN"]
    assert python.ask("os.environ['PLANTED_TOO']") == "kept"


def test_another_program_in_its_place(bash: Child) -> None:
    """It is looked at as it is now."""
    assert blank(bash.pid, is_secret)
    bash.ask("exec /bin/bash -c 'echo ready; read -r line'")
    assert shown(bash.pid).items() >= SECRETS.items()

    assert blank(bash.pid, is_secret)
    assert not {*shown(bash.pid)} & {*SECRETS}


def test_any_name_of_a_process(python: Child) -> None:
    """It may look like the end of a name and what comes after it in /proc."""
    python.ask("open('/proc/self/comm', 'w').write(') S 1 (x')")

    assert blank(python.pid, is_secret)
    assert shown(python.pid) == OTHERS


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0="), min_size=1),
        st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\0")), st.booleans()),
    )
)
def test_any_variables(variables: dict[str, tuple[str, bool]]) -> None:
    """Each is hidden or not, and changes nothing about the next one; whatever bytes they have."""
    hidden = {f"{name}={value}" for name, (value, is_hidden) in variables.items() if is_hidden}
    environment = {name: value for name, (value, _) in variables.items()}
    with child(["/bin/cat"], environment) as cat:
        assert cat.ask("ready") == "ready"
        assert blank(cat.pid, hidden.__contains__)

        assert shown(cat.pid) == {name: value for name, (value, hide) in variables.items() if not hide}


def test_itself(python: Child) -> None:
    """What Python has read of it stays; whoever asks C, or inherits what C has, finds nothing."""
    assert python.ask("blank(os.getpid(), lambda entry: entry.startswith(('PLANTED=', 'AWS_')))") == "True"
    assert shown(python.pid) == OTHERS
    assert python.ask("os.environ['AWS_SESSION_TOKEN']") == SECRETS["AWS_SESSION_TOKEN"]
    inherited = python.ask("subprocess.check_output(['/usr/bin/env'])")
    assert "PLANTED_TOO=kept" in inherited
    assert "secret" not in inherited


def test_a_process_that_is_gone(bash: Child) -> None:
    """Dead, and buried."""
    bash.popen.kill()
    os.waitid(os.P_PID, bash.pid, os.WEXITED | os.WNOWAIT)
    assert not blank(bash.pid, is_secret)

    bash.popen.wait()
    assert not blank(bash.pid, is_secret)
    assert not blank(-1, is_secret)


def test_a_program_that_ends_meanwhile(bash: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its memory was opened: what is found then is not what was there."""
    find = secrecy._bounds

    def find_late(pid: int) -> tuple[int, int]:
        found = find(pid)
        bash.ask("exec /bin/bash -c 'echo ready; read -r line'")
        return found

    monkeypatch.setattr(secrecy, "_bounds", find_late)
    assert not blank(bash.pid, is_secret)
    assert shown(bash.pid).items() >= SECRETS.items()

    # As of a zombie, where the kernel lets its memory be opened.
    monkeypatch.setattr(secrecy, "_bounds", lambda _: (0, 0))
    assert not blank(bash.pid, is_secret)


def test_a_process_without_any() -> None:
    """There is nothing to hide, and it can be done."""
    with child(["/bin/cat"], {}) as cat:
        assert cat.ask("ready") == "ready"
        assert blank(cat.pid, is_secret)


def read_as(user: int | None, path: str) -> bool:
    """Whether another process of that user may read the file."""
    return subprocess.run(["/bin/cat", path], user=user, capture_output=True, check=False).returncode == 0


@needs_root
def test_a_process_of_another_user() -> None:
    """Neither root's nor one of a third user can be touched without being root; root may touch all."""
    ask = "blank({}, lambda _: False)"
    with child(["/bin/cat"], SECRETS, NOBODY.uid) as nobodys, child(PYTHON, {"A": "b"}) as python:
        assert nobodys.ask("ready") == "ready"
        python.ask(
            f"os.setgroups([]), os.setresgid(*[{NOBODY.gid - 1}] * 3), os.setresuid(*[{NOBODY.uid - 1}] * 3)"
        )

        assert python.ask(ask.format(os.getpid())) == python.ask(ask.format(nobodys.pid)) == "False"
        assert shown(nobodys.pid) == SECRETS
        assert blank(nobodys.pid, is_secret)
        assert shown(nobodys.pid) == {}


# What others may see of a process


def test_a_private_process() -> None:
    """Closed to others of its user, and without a core dump; it can go on with what it has itself."""
    user = NOBODY.uid if os.geteuid() == 0 else None
    with child(PYTHON, SECRETS) as python:
        if user is not None:
            # Who changes its user is private until it is told not to be.
            python.ask(
                f"os.setgroups([]), os.setresuid(*[{user}] * 3), ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)"
            )
        files = [f"/proc/{python.pid}/{name}" for name in ("environ", "maps", "auxv")]
        assert all(read_as(user, file) for file in files)

        python.ask("keep_private()")

        assert not any(read_as(user, file) for file in files)
        assert python.ask("ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)") == "0"
        assert python.ask("len(os.listdir('/proc/self/fd')) > 2") == "True"
        assert python.ask("'proc' in os.listdir(f'/proc/self/fd/{os.open(os.sep, os.O_PATH)}')") == "True"
        assert python.ask("subprocess.check_output(['/bin/cat', '/proc/self/environ']) != b''") == "True"

"""The file `.env`: read back as the runner reads it, the job's lines are there, nobody else's are lost."""

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_adapters.accounts import Account
from agent_adapters.job_environment import write_job_environment
from agent_core.errors import RunnerUnavailableError
from support.users import NOBODY, needs_root, open_folder

NAMES: Final = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*", fullmatch=True)
VALUES: Final = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n")) | st.binary().map(
    lambda data: re.sub(rb"[\0\r\n]", b"", data).decode("utf-8", "surrogateescape")
)
TOKEN: Final = "planted-secret"


def as_the_runner_reads(file: Path) -> dict[str, str | None]:
    """As .NET's File.ReadAllLines has the lines, and the runner what is in them; None: it unsets."""
    text = file.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    lines = [line.partition("=") for line in re.split(r"\r\n|\r|\n", text)]
    return {name: value or None for name, equals, value in lines if name and equals}


def mode_of(file: Path) -> int:
    return file.lstat().st_mode & 0o7777


def write(root: Path, variables: dict[str, str], account: Account | None = None) -> Path:
    """Writes it, and nothing else is left."""
    write_job_environment(root, variables, account)
    assert [path.name for path in root.iterdir()] == [".env"]
    return root / ".env"


@given(st.dictionaries(NAMES, VALUES), st.none() | st.binary())
def test_any_variables(variables: dict[str, str], before: bytes | None) -> None:
    """They win, whatever was there; and of that, all else is as it was."""
    with open_folder() as root:
        if before is not None:
            (root / ".env").write_bytes(before)
        kept = {} if before is None else as_the_runner_reads(root / ".env")
        write_job_environment(root, variables, None)
        if before is None and not variables:
            assert not (root / ".env").exists()
            return

        ours = {name: value or None for name, value in variables.items()}
        assert as_the_runner_reads(root / ".env") == kept | ours
        assert mode_of(root / ".env") == 0o600
        if content := (root / ".env").read_bytes():
            assert content.endswith(b"\n")


def test_its_lines(tmp_path: Path) -> None:
    """Those of others stay, in their order and as they are; the job's old ones go."""
    before = b'LANG=C.UTF-8\nTOKEN=old\r\n# \xff\n\n TOKEN=x\nTOKENS=y\rTOKEN=\nJAVA_HOME=/a b="c"'
    (tmp_path / ".env").write_bytes(before)

    assert write(tmp_path, {"TOKEN": "new=", "NAME_2": "é\udcff"}).read_bytes() == (
        b'LANG=C.UTF-8\n# \xff\n\n TOKEN=x\nTOKENS=y\nJAVA_HOME=/a b="c"\nTOKEN=new=\nNAME_2=\xc3\xa9\xff\n'
    )


def test_again(tmp_path: Path) -> None:
    """A second job's variables take the place of the first one's."""
    write(tmp_path, {"A": "1", "B": "1"})

    assert write(tmp_path, {"A": "2", "B": ""}).read_bytes() == b"A=2\nB=\n"


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_nobody_else_reads_it(tmp_path: Path, umask: int) -> None:
    """Whatever the umask is, and also where there is nothing to add."""
    (tmp_path / ".env").write_bytes(b"LANG=C")
    (tmp_path / ".env").chmod(0o4777)
    before = os.umask(umask)
    try:
        file = write(tmp_path, {})
        assert (mode_of(file), file.read_bytes()) == (0o600, b"LANG=C\n")
        assert mode_of(write(tmp_path, {"A": TOKEN})) == 0o600
    finally:
        os.umask(before)


def test_nothing_of_nothing(tmp_path: Path) -> None:
    write_job_environment(tmp_path, {}, None)

    assert not any(tmp_path.iterdir())


@needs_root
@pytest.mark.parametrize("variables", [{}, {"A": TOKEN}])
def test_it_is_the_runners(tmp_path: Path, variables: dict[str, str]) -> None:
    """Whoever it belonged to."""
    (tmp_path / ".env").touch()
    status = write(tmp_path, variables, NOBODY).stat()
    assert (status.st_uid, status.st_gid) == (NOBODY.uid, NOBODY.gid)

    assert write(tmp_path, variables).stat().st_uid == 0


def test_the_old_file_is_not_written_to(tmp_path: Path) -> None:
    """Whoever has opened it, or has a link to it, reads on what was there."""
    (tmp_path / "root").mkdir()
    file = tmp_path / "root/.env"
    file.write_bytes(b"A=1\n")
    (tmp_path / "link").hardlink_to(file)

    write(tmp_path / "root", {"B": TOKEN})
    assert (tmp_path / "link").read_bytes() == b"A=1\n"


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


ODDITIES: Final[dict[str, Callable[[Path], object]]] = {
    "link": lambda path: path.symlink_to(path.parent.parent / "outside"),
    "link to nothing": lambda path: path.symlink_to(path.parent.parent / "nothing"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "FIFO": os.mkfifo,
    "socket": a_socket,
}


@pytest.mark.parametrize("name", [".env", ".env.new"])
@pytest.mark.parametrize("make", ODDITIES.values(), ids=ODDITIES)
def test_what_is_no_file(tmp_path: Path, name: str, make: Callable[[Path], object]) -> None:
    """It gives way, and is neither read nor written through; a stale file of a writer that died as well."""
    (tmp_path / "outside").write_bytes(b"OUTSIDE=1\n")
    root = tmp_path / "root"
    root.mkdir()
    make(root / name)

    assert write(root, {"A": TOKEN}).read_bytes() == b"A=planted-secret\n"
    assert (tmp_path / "outside").read_bytes() == b"OUTSIDE=1\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "root"]


def test_a_stale_file(tmp_path: Path) -> None:
    (tmp_path / ".env.new").write_bytes(b"STALE=1\n" * 100)

    assert write(tmp_path, {"A": "1"}).read_bytes() == b"A=1\n"


@pytest.mark.parametrize("name", [".env", ".env.new"])
def test_a_folder_in_its_place(tmp_path: Path, name: str) -> None:
    """It stays, and no secret is left beside it."""
    (tmp_path / name).mkdir()

    with pytest.raises(RunnerUnavailableError, match=r"/.env': Is a directory$"):
        write_job_environment(tmp_path, {"A": TOKEN}, None)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_no_root(tmp_path: Path) -> None:
    with pytest.raises(RunnerUnavailableError, match=r"/gone/.env': No such file or directory$"):
        write_job_environment(tmp_path / "gone", {"A": TOKEN}, None)


@pytest.mark.parametrize("end", ["\n", "\r", "\0", "\r\n", "\ud800"])
def test_a_value_that_it_cannot_hold(tmp_path: Path, end: str) -> None:
    """The name is told, the value nowhere: not in the text, nor in what the traceback shows."""
    with pytest.raises(RunnerUnavailableError, match=r"^the value of SECOND ") as caught:
        write_job_environment(tmp_path, {"FIRST": "1", "SECOND": f"{TOKEN}{end}x"}, None)
    assert TOKEN not in f"{caught.value!r}{caught.value.__context__!r}"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A=B", "A\nB", "Ä", " A", "A\n", "\ud800"])
def test_a_name_that_it_cannot_hold(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunnerUnavailableError, match=re.escape(f"{name!r} is no name")) as caught:
        write_job_environment(tmp_path, {name: TOKEN}, None)
    assert TOKEN not in str(caught.value)
    assert not any(tmp_path.iterdir())

"""The sample runner behaves as the real one is known to: each test unpacks its archive and runs it."""

from __future__ import annotations

import base64
import contextlib
import importlib
import importlib.util
import json
import os
import re
import select
import signal
import subprocess
import sys
import tarfile
import time
import uuid
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sample_runner"
PATIENCE = 100.0
"""Seconds after which what was awaited is taken not to come; nothing here takes nearly so long."""

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ"
RESULTS = ["Succeeded", "SucceededWithIssues", "Failed", "Canceled", "Skipped", "Abandoned"]
URL = "https://github.com/octo/my-repo"


def load(name: str, path: Path) -> Any:
    """Import a file, or a package by its `__init__.py`, under a name that is nobody else's."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


build = load("sample_runner_build_here", EXAMPLE / "build.py")
load("sample_runner_here", EXAMPLE / "package" / "bin" / "runner" / "__init__.py")
pages: Any = importlib.import_module("sample_runner_here.pages")


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class Process:
    """A started program, in a session of its own; everything that waits for it gives up in the end."""

    def __init__(self, command: list[str], *, cwd: Path, env: dict[str, str], errors: Path) -> None:
        self._errors = errors
        self._seen = b""
        with errors.open("wb") as err:
            self._popen = subprocess.Popen(
                ["env", "--default-signal=INT", *command],  # it may be ignored where these tests run
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=err,
                start_new_session=True,
            )
        assert self._popen.stdout
        self._stdout = self._popen.stdout
        self._deadline = time.monotonic() + PATIENCE

    @property
    def pid(self) -> int:
        return self._popen.pid

    def expect(self, pattern: str) -> re.Match[str]:
        """Read stdout until it has the pattern."""
        while not (match := re.search(pattern, self._text, re.MULTILINE)):
            assert self._read(), f"ended without {pattern!r}: {self._text}"
        return match

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def exit_code(self) -> int:
        return self._popen.wait(PATIENCE)

    def finish(self) -> Ended:
        while self._read():
            pass
        return Ended(self.exit_code(), self._text, self._errors.read_text())

    def finish_raw(self) -> bytes:
        self.finish()
        return self._seen

    def close(self) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait(PATIENCE)
        self._stdout.close()

    @property
    def _text(self) -> str:
        return self._seen.decode("utf-8", "replace")

    def _read(self) -> bytes:
        assert is_ready(self._stdout.fileno(), self._deadline - time.monotonic()), f"hangs: {self._text}"
        data = os.read(self._stdout.fileno(), 65536)
        self._seen += data
        return data


class Fifo:
    """A pipe with a name, through which a job and its test wait for each other."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR)

    def open_gate(self) -> None:
        """Let one `read` of the job go on."""
        os.write(self._descriptor, b"go\n")

    def read(self) -> str:
        assert is_ready(self._descriptor, PATIENCE)
        return os.read(self._descriptor, 65536).decode()

    def close(self) -> None:
        os.close(self._descriptor)


class Runner:
    """A runner root, unpacked, and the environment that it is started in."""

    def __init__(self, folder: Path, marker: str) -> None:
        self.root = folder / "runner"
        self.home = folder
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "RUNNER_ALLOW_RUNASROOT": "1",
            "SAMPLE_RUNNER_TEST": marker,
        }
        self._marker = marker
        self._processes: list[Process] = []
        self._fifos: list[Fifo] = []

    def unpack(self, job: str, scenario: dict[str, object], *, scripts_only: bool = False) -> None:
        archive = build.build_archive(
            self.home / "archive", job=job, scenario=scenario, scripts_only=scripts_only
        )
        with tarfile.open(archive) as tar:
            tar.extractall(self.root, filter="data")

    def fifo(self, name: str) -> Fifo:
        fifo = Fifo(self.home / name)
        self._fifos.append(fifo)
        return fifo

    def start(self, *command: str, **env: str) -> Process:
        """Start a program of the root, by its path there."""
        number = len(self._processes)
        process = Process(
            [str(self.root / command[0]), *command[1:]],
            cwd=self.home,
            env={**self.env, **env},
            errors=self.home / f"stderr-{number}",
        )
        self._processes.append(process)
        return process

    def call(self, *command: str, **env: str) -> Ended:
        return self.start(*command, **env).finish()

    def configure(self, *more: str, **env: str) -> Ended:
        return self.call(
            "config.sh", "--unattended", "--ephemeral", "--url", URL, "--token", "T0KEN", *more, **env
        )

    def listen(self, **env: str) -> Process:
        """Start the Listener with a just-in-time config."""
        return self.start(
            "bin/Runner.Listener",
            "run",
            **{"ACTIONS_RUNNER_INPUT_JITCONFIG": build.jit_config(url=URL), **env},
        )

    def run(self, **env: str) -> Ended:
        return self.listen(**env).finish()

    def log(self, kind: str) -> str:
        """All of `_diag/Runner_*.log`, or of `_diag/Worker_*.log`."""
        logs = sorted((self.root / "_diag").glob(f"{kind}_????????-??????-utc.log"))
        return "".join(log.read_text() for log in logs)

    def pages(self) -> list[Path]:
        return sorted((self.root / "_diag" / "pages").iterdir(), key=lambda page: page.stat().st_mtime_ns)

    def processes(self, name: str = "") -> list[int]:
        """Processes that this test has started, whoever their parent is now."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                of_this_test = self._marker.encode() in (process / "environ").read_bytes()
                if of_this_test and name in (process / "comm").read_text():
                    found.append(int(process.name))
        return found

    def close(self) -> None:
        while left := [pid for pid in self.processes() if is_alive(pid)]:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            process.close()
        for fifo in self._fifos:
            fifo.close()


class MakeRunner(Protocol):
    def __call__(self, job: str = ..., *, scripts_only: bool = ..., **scenario: object) -> Runner: ...


@pytest.fixture
def make_runner(tmp_path: Path) -> Iterator[MakeRunner]:
    """Gives a runner; kills, at the end, everything that came of it."""
    runner = Runner(tmp_path, str(uuid.uuid4()))

    def make(job: str = "echo hello\n", *, scripts_only: bool = False, **scenario: object) -> Runner:
        runner.unpack(job, scenario, scripts_only=scripts_only)
        return runner

    yield make
    runner.close()


def is_ready(descriptor: int, seconds: float) -> bool:
    return bool(select.select([descriptor], [], [], max(0.0, seconds))[0])


def is_alive(pid: int, seconds: float = 0.0) -> bool:
    """Whether it is still there after so long; a zombie is not."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        return not is_ready(descriptor, seconds)
    finally:
        os.close(descriptor)


def assert_ends(pid: int) -> None:
    assert not is_alive(pid, PATIENCE)


def page_lines(page: Path) -> list[str]:
    """What a page says, without byte-order mark and times."""
    text = page.read_text(encoding="utf-8-sig")
    return [re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{7}Z ", "", line) for line in text.splitlines()]


# The archive


def test_archive_has_the_layout_of_the_real_one(tmp_path: Path) -> None:
    """`./` first and before every name, links, somebody else's uid; run-helper.sh only as its template."""
    archive = build.build_archive(tmp_path, version="2.400.1", arch="arm64")

    assert [path.name for path in tmp_path.iterdir()] == ["actions-runner-linux-arm64-2.400.1.tar.gz"]
    assert archive == tmp_path / "actions-runner-linux-arm64-2.400.1.tar.gz"
    with tarfile.open(archive) as tar:
        members = {f"{m.name}/" if m.name == "." else m.name: m for m in tar.getmembers()}
    assert next(iter(members)) == "./"
    assert all(name.startswith("./") for name in members)
    assert {"./config.sh", "./run.sh", "./run-helper.sh.template", "./env.sh"} <= members.keys()
    assert "./run-helper.sh" not in members
    assert members["./externals/node20/bin/npm"].issym()
    assert {member.uid for member in members.values()} == {1001}
    assert all(members[f"./bin/Runner.{name}"].mode == 0o755 for name in ("Listener", "Worker"))


def test_archive_of_scripts_only_has_its_programs_elsewhere(tmp_path: Path) -> None:
    """All else is as in any other."""

    def names(folder: str, **options: bool) -> set[str]:
        with tarfile.open(build.build_archive(tmp_path / folder, **options)) as tar:
            return {member.name for member in tar.getmembers()}

    plain, scripts_only = names("plain"), names("scripts", scripts_only=True)
    assert not [name for name in scripts_only if name.startswith("./bin")]
    assert {re.sub(r"^\./libexec\b", "./bin", name) for name in scripts_only} == plain


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    """Neither the time nor the order of the scenario's keys is in the archive."""
    first = build.build_archive(tmp_path / "a", scenario={"hang": True, "lost_job": True}).read_bytes()
    assert (
        build.build_archive(tmp_path / "b", scenario={"lost_job": True, "hang": True}).read_bytes() == first
    )
    assert build.build_archive(tmp_path / "c", scenario={"lost_job": True}).read_bytes() != first


@pytest.mark.parametrize(
    ("scenario", "complaint"),
    [
        ({"hangs": True}, "scenario key 'hangs' is unknown; there are: job_name, steps,"),
        ({"hang": "yes"}, "scenario key 'hang': 'yes' is not true or false"),
        ({"hang": 1}, "scenario key 'hang': 1 is not true or false"),
        ({"result": "Fine"}, "'Fine' is not one of Succeeded, SucceededWithIssues, Failed,"),
        ({"exit_result": 100}, "scenario key 'exit_result': 100 is not one of Succeeded,"),
        ({"update": 3}, "scenario key 'update': 3 is not true or false"),
        ({"cancel_seconds": -1}, "scenario key 'cancel_seconds': -1 is not a number of seconds, 0 or more"),
        ({"cancel_seconds": True}, "True is not a number of seconds"),
        ({"cancel_seconds": float("nan")}, "nan is not a number of seconds"),
        ({"job_name": 5}, "scenario key 'job_name': 5 is not a string"),
        ({"exit_codes": [256]}, "is not a list of whole numbers from 0 to 255"),
        ({"exit_codes": 2}, "is not a list of whole numbers from 0 to 255"),
        ({"steps": [{"name": "no script"}]}, 'is not a list of {"name": string, "run": script}'),
        ({"output": {"line": 5}}, 'is not an object with any of "lines"'),
        ({"output": {"raw_base64": "*"}}, 'is not an object with any of "lines"'),
        ({"crash_mid_job": {"signal": 9, "code": 1}}, 'is not either {"signal": 1 to 64} or {"code"'),
        ({"page_bytes": 0}, "0 is not a whole number of bytes, 1 or more"),
        ({"refuse_registration": "why"}, "is not one of bad_token, not_found, duplicate_name, no_such_group"),
        ({"refuse_session": "why"}, "is not one of deleted, conflict"),
    ],
)
def test_bad_scenario_is_refused_by_name(tmp_path: Path, scenario: dict[str, object], complaint: str) -> None:
    """The error names the key and what it takes; nothing is written."""
    with pytest.raises(build.ScenarioError) as error:
        build.build_archive(tmp_path, scenario=scenario)
    assert complaint in str(error.value)
    assert not list(tmp_path.iterdir())


def test_every_problem_of_a_scenario_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(build.ScenarioError) as error:
        build.build_archive(tmp_path, scenario={"hang": 0, "what": 1, "reconnects": -1})
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize("wrong", [{"version": "latest"}, {"arch": "x86"}])
def test_bad_version_or_arch_is_refused(tmp_path: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        build.build_archive(tmp_path, **wrong)


def test_readme_has_every_scenario_key() -> None:
    """The table is complete, and has no key that is not there."""
    table = re.findall(r"^\| (`.*?) \|", (EXAMPLE / "README.md").read_text(), re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(table))) == sorted(build._schema.KEYS)


def test_command_line_builds_and_prints_the_path(tmp_path: Path) -> None:
    """In another process it is the same archive, byte for byte."""
    job, scenario = tmp_path / "job.sh", tmp_path / "scenario.json"
    job.write_text("echo from a file\n")
    scenario.write_text('{"job_name": "mine"}')
    files = [tmp_path / "out", "--job", job, "--scenario", scenario]
    arguments = [*map(str, files), "--arch", "x64", "--version", "2.1.0", "--scripts-only"]
    command = [sys.executable, str(EXAMPLE / "build.py"), *arguments]
    built = subprocess.run(command, capture_output=True, text=True, check=True)
    assert built.stdout == f"{tmp_path}/out/actions-runner-linux-x64-2.1.0.tar.gz\n"
    same = build.build_archive(
        tmp_path / "same",
        job="echo from a file\n",
        scenario={"job_name": "mine"},
        arch="x64",
        version="2.1.0",
        scripts_only=True,
    )
    assert Path(built.stdout.strip()).read_bytes() == same.read_bytes()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [('{"hang": 3}', "scenario key 'hang': 3 is not"), ("{", "is not JSON"), ("[]", "is not a JSON object")],
)
def test_command_line_refuses_a_bad_scenario(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, complaint: str
) -> None:
    """A usage error: status 2, and one message."""
    file = tmp_path / "scenario.json"
    file.write_text(content)
    with pytest.raises(SystemExit) as exit_:
        build.main([str(tmp_path / "out"), "--scenario", str(file)])
    assert exit_.value.code == 2
    assert complaint in capsys.readouterr().err


# config.sh


def test_config_registers_the_runner(make_runner: MakeRunner) -> None:
    """`.runner` with a byte-order mark, credentials, `.env`, `.path`; the token in none of them."""
    runner = make_runner()
    more = ["--labels", "a,b", "--name", "me", "--runnergroup", "G", "--work", "w", "--disableupdate"]
    ended = runner.configure(*more, LANG="C.UTF-8")

    assert ended.code == 0
    assert ended.err == ""
    assert "\n√ Runner successfully added\n" in ended.out
    assert (runner.root / ".runner").read_bytes().startswith(b"\xef\xbb\xbf{")
    settings = json.loads((runner.root / ".runner").read_text("utf-8-sig"))
    assert (settings["agentName"], settings["poolName"], settings["workFolder"]) == ("me", "G", "w")
    assert (settings["ephemeral"], settings["disableUpdate"], settings["gitHubUrl"]) == (True, True, URL)
    assert (runner.root / ".credentials_rsaparams").stat().st_mode & 0o777 == 0o600
    assert (runner.root / ".env").read_text() == "LANG=C.UTF-8\n"
    assert (runner.root / ".path").read_text() == f"{runner.env['PATH']}\n"
    told = json.loads((runner.root / "sample" / "registration.json").read_text())
    assert told["labels"][:2] == ["self-hosted", "Linux"]
    assert told["labels"][3:] == ["a", "b"]
    assert not [file for file in runner.root.rglob("*") if file.is_file() and b"T0KEN" in file.read_bytes()]


def test_config_takes_values_from_the_environment(make_runner: MakeRunner) -> None:
    """ACTIONS_RUNNER_INPUT_<NAME>, for values and for flags; the command line wins."""
    runner = make_runner()
    inputs = {"URL": URL, "TOKEN": "T0KEN", "NAME": "env", "LABELS": "x", "EPHEMERAL": "true"}
    variables = {f"ACTIONS_RUNNER_INPUT_{name}": value for name, value in inputs.items()}
    assert runner.call("config.sh", "--unattended", "--name", "argument", **variables).code == 0
    told = json.loads((runner.root / "sample" / "registration.json").read_text())
    assert (told["agentName"], told["labels"][3:], told["ephemeral"]) == ("argument", ["x"], True)


def test_config_does_not_know_key_equals_value(make_runner: MakeRunner) -> None:
    runner = make_runner()
    ended = runner.call("config.sh", "--unattended", f"--url={URL}", "--token", "T")
    assert ended.code == 1
    assert "Unrecognized command-line input arguments for command configure" in ended.err
    assert "Invalid configuration provided for url. Terminating unattended configuration." in ended.err


@pytest.mark.parametrize("wrong", [["--url", "github.com/o/r", "--token", "T"], ["--url", URL]])
def test_config_needs_url_and_token(make_runner: MakeRunner, wrong: list[str]) -> None:
    ended = make_runner().call("config.sh", "--unattended", *wrong)
    assert ended.code == 1
    assert re.search("^Invalid configuration provided for (url|token)", ended.err)


def test_scripts_refuse_root(make_runner: MakeRunner) -> None:
    """Only the variable of the process helps: in `.env` it has no effect."""
    runner = make_runner()
    fake = runner.home / "fake" / "id"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 0\n")
    fake.chmod(0o755)
    (runner.root / ".env").write_text("RUNNER_ALLOW_RUNASROOT=1\n")
    as_root = {"PATH": f"{fake.parent}:{runner.env['PATH']}", "RUNNER_ALLOW_RUNASROOT": ""}

    ended = runner.configure(**as_root)
    assert (ended.code, ended.out) == (1, "Must not run with sudo\n")
    assert not (runner.root / ".runner").exists()
    ended = runner.call("run.sh", **as_root)
    assert (ended.code, ended.out.splitlines()[0]) == (0, "Must not run interactively with sudo")


@pytest.mark.parametrize(
    ("refusal", "complaint"),
    [
        (
            "bad_token",
            "Http response code: Unauthorized from 'POST https://api.github.com/actions/runner-reg",
        ),
        ("not_found", "Http response code: NotFound from 'POST https://api.github.com/actions/runner-reg"),
        ("duplicate_name", "A runner exists with the same name me."),
        ("no_such_group", 'Could not find any self-hosted runner group named "G".'),
    ],
)
def test_config_is_refused(make_runner: MakeRunner, refusal: str, complaint: str) -> None:
    """Exit 1, a line on stderr, and nothing is registered."""
    runner = make_runner(refuse_registration=refusal)
    ended = runner.configure("--name", "me", "--runnergroup", "G")
    assert ended.code == 1
    assert complaint in ended.err
    assert not (runner.root / ".runner").exists()


def test_config_replaces_a_runner_of_the_same_name(make_runner: MakeRunner) -> None:
    runner = make_runner(refuse_registration="duplicate_name")
    ended = runner.configure("--replace")
    assert ended.code == 0
    assert "√ Successfully replaced the runner\n" in ended.out


def test_config_refuses_a_second_time_until_removed(make_runner: MakeRunner) -> None:
    """As on a stale image."""
    runner = make_runner()
    assert runner.configure().code == 0
    ended = runner.configure()
    assert ended.code == 1
    assert ended.err.startswith("Cannot configure the runner because it is already configured.")

    ended = runner.call("config.sh", "remove", "--token", "T")
    assert ended.code == 0
    assert "√ Removed .runner\n" in ended.out
    assert runner.configure().code == 0


def test_config_refuses_a_name_over_64_characters(make_runner: MakeRunner) -> None:
    runner = make_runner()
    assert runner.configure("--name", "n" * 65).code == 1
    assert not (runner.root / ".runner").exists()
    assert runner.configure("--name", "n" * 64).code == 0


@pytest.mark.parametrize(("length", "kept"), [(256, 2), (257, 0)])
def test_config_drops_all_labels_for_one_too_long(make_runner: MakeRunner, length: int, kept: int) -> None:
    """And says nothing about it."""
    runner = make_runner()
    ended = runner.configure("--labels", f"short,{'l' * length}")
    assert (ended.code, ended.err) == (0, "")
    told = json.loads((runner.root / "sample" / "registration.json").read_text())
    assert len(told["labels"]) == 3 + kept


def test_config_without_default_labels(make_runner: MakeRunner) -> None:
    runner = make_runner()
    assert runner.configure("--no-default-labels").code == 1
    assert runner.configure("--no-default-labels", "--labels", "only").code == 0
    assert json.loads((runner.root / "sample" / "registration.json").read_text())["labels"] == ["only"]


# The Listener, from start to end


def test_console_of_a_job(make_runner: MakeRunner) -> None:
    """The lines of the real runner, exactly; what the job prints among them, as it is."""
    runner = make_runner("echo one\necho two >&2\n")
    assert runner.configure().code == 0
    ended = runner.call("bin/Runner.Listener", "run")

    expected = [
        "",
        "√ Connected to GitHub",
        "",
        r"Current runner version: '2\.336\.0'",
        f"{STAMP}: Listening for Jobs",
        f"{STAMP}: Running job: sample",
        "one",
        "two",
        f"{STAMP}: Job sample completed with result: Succeeded",
        r"√ Removed \.credentials",
        r"√ Removed \.runner",
        "",
    ]
    assert re.fullmatch("\n".join(expected), ended.out)
    assert (ended.code, ended.err) == (0, "")


def test_ephemeral_runner_is_gone_after_its_job(make_runner: MakeRunner) -> None:
    """It has ended its session and forgotten its registration; its logs stay."""
    runner = make_runner()
    runner.configure()
    runner.call("bin/Runner.Listener", "run")
    assert "INFO Runner] Deleting Runner Session...\n" in runner.log("Runner")
    assert "Job completed. Result: Succeeded" in runner.log("Worker")
    assert {file.name for file in runner.root.glob(".*")} == {".env", ".path"}


def test_runner_that_is_not_ephemeral_waits_for_another_job(make_runner: MakeRunner) -> None:
    """Unless its exit code is to be the result, but even then it stays registered."""
    runner = make_runner()
    assert runner.call("config.sh", "--unattended", "--url", URL, "--token", "T").code == 0
    process = runner.start("bin/Runner.Listener", "run")
    process.expect("completed with result: Succeeded")
    process.send(signal.SIGINT)
    ended = process.finish()
    assert ended.code == 0
    assert ended.out.endswith("completed with result: Succeeded\nExiting...\n")

    ended = runner.call("bin/Runner.Listener", "run", ACTIONS_RUNNER_RETURN_JOB_RESULT_FOR_HOSTED="true")
    assert ended.code == 100
    assert (runner.root / ".runner").exists()


def test_a_failed_job_exits_0(make_runner: MakeRunner) -> None:
    """Steps run with `bash -e`; after one that fails the others are skipped."""
    runner = make_runner(steps=[{"run": "echo first\nfalse\necho not this"}, {"run": "echo nor this"}])
    ended = runner.run()
    assert ended.code == 0
    assert re.search(f"^{STAMP}: Job sample completed with result: Failed$", ended.out, re.MULTILINE)
    assert "first\n" in ended.out
    assert "this" not in ended.out


@pytest.mark.parametrize("result", RESULTS)
def test_result_is_the_exit_code_where_asked_for(make_runner: MakeRunner, result: str) -> None:
    runner = make_runner(result=result)
    ended = runner.run(ACTIONS_RUNNER_RETURN_JOB_RESULT_FOR_HOSTED="true")
    assert ended.code == 100 + RESULTS.index(result)
    assert f"completed with result: {result}\n" in ended.out


@pytest.mark.parametrize(
    ("scenario", "said", "code"),
    [
        ({"exit_result": "Failed"}, ["Succeeded"], 102),
        ({"exit_result": "Succeeded", "result": "Failed"}, ["Failed"], 100),
        ({"exit_result": "Abandoned", "lost_job": True}, [], 105),
    ],
)
def test_exit_code_may_contradict_the_console(
    make_runner: MakeRunner, scenario: dict[str, Any], said: list[str], code: int
) -> None:
    ended = make_runner(**scenario).run(ACTIONS_RUNNER_RETURN_JOB_RESULT_FOR_HOSTED="true")
    assert (ended.code, re.findall("completed with result: (.*)", ended.out)) == (code, said)


def test_exit_result_is_nothing_unless_asked_for(make_runner: MakeRunner) -> None:
    ended = make_runner(exit_result="Failed").run()
    assert (ended.code, "completed with result: Succeeded\n" in ended.out) == (0, True)


def test_a_worker_that_dies_fails_the_job(make_runner: MakeRunner) -> None:
    ended = make_runner("kill -KILL $PPID\n").run()
    assert (ended.code, "completed with result: Failed\n" in ended.out) == (0, True)


def test_run_needs_a_registration(make_runner: MakeRunner) -> None:
    ended = make_runner().call("bin/Runner.Listener", "run")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "An error occurred: Not configured. Run config.(sh/cmd) to configure the runner.\n"


def test_version_is_the_archives(make_runner: MakeRunner) -> None:
    assert make_runner().call("bin/Runner.Listener", "--version").out == "2.336.0\n"


def test_asking_for_the_version_leaves_traces(make_runner: MakeRunner) -> None:
    """The Listener a log; config.sh, by way of env.sh, `.env` and `.path` too. Neither registers."""
    runner = make_runner()
    assert runner.call("bin/Runner.Listener", "--version").code == 0
    assert runner.log("Runner")
    assert not (runner.root / ".path").exists()
    ended = runner.call("config.sh", "--version")
    assert (ended.code, ended.out) == (0, "2.336.0\n")
    assert (runner.root / ".path").exists()
    assert not (runner.root / ".runner").exists()


def test_jit_config_is_written_with_the_umasks_permissions(make_runner: MakeRunner) -> None:
    """It replaces config.sh, and is ephemeral."""
    runner = make_runner("stat -c '%a %n' ../../../.runner ../../../.credentials\n")
    wrapped = runner.root / "strict"
    wrapped.write_text('#!/bin/bash\numask 077\nexec "${0%/*}/bin/Runner.Listener" run\n')
    wrapped.chmod(0o755)
    ended = runner.call("strict", ACTIONS_RUNNER_INPUT_JITCONFIG=build.jit_config(name="just"))
    assert "600 ../../../.runner\n600 ../../../.credentials\n" in ended.out
    assert (ended.code, "√ Removed .runner\n" in ended.out) == (0, True)


@pytest.mark.parametrize(
    ("encoded", "complaint"),
    [
        ("not base64!", "The input is not a valid Base-64 string"),
        (base64.b64encode(b"not JSON").decode(), "is not JSON"),
        (base64.b64encode(b'{".runner": 5}').decode(), "is not JSON"),
        (base64.b64encode(b'{".runner": "*"}').decode(), "The input is not a valid Base-64 string"),
    ],
)
def test_bad_jit_config_is_refused(make_runner: MakeRunner, encoded: str, complaint: str) -> None:
    runner = make_runner()
    ended = runner.run(ACTIONS_RUNNER_INPUT_JITCONFIG=encoded)
    assert (ended.code, ended.out) == (1, "")
    assert complaint in ended.err
    assert not (runner.root / ".runner").exists()


def test_good_jit_config_is_refused_where_the_scenario_says_so(make_runner: MakeRunner) -> None:
    ended = make_runner(reject_jit=True).run()
    assert (ended.code, ended.err.startswith("The input is not a valid Base-64 string")) == (1, True)


@pytest.mark.parametrize(
    ("refusal", "code", "complaint"),
    [
        (
            "deleted",
            1,
            "Failed to create a session. The runner registration has been deleted from the server",
        ),
        ("conflict", 5, "Failed to create session."),
    ],
)
def test_session_is_refused(make_runner: MakeRunner, refusal: str, code: int, complaint: str) -> None:
    ended = make_runner(refuse_session=refusal).run()
    assert ended.code == code
    assert ended.err.startswith(complaint)
    assert ended.out.endswith("√ Connected to GitHub\n\n")


def test_each_start_takes_the_next_exit_code(make_runner: MakeRunner) -> None:
    """Then it runs as it would have."""
    runner = make_runner(exit_codes=[2, 7])
    assert [runner.run().code for _ in range(3)] == [2, 7, 0]


def test_an_update_goes_on_after_its_listener(make_runner: MakeRunner) -> None:
    """Nobody may start another one before that has ended; that one takes the first exit code."""
    runner = make_runner(update=True, exit_codes=[7])
    first = runner.listen()
    assert_ends(first.pid)  # the script waits for as long as it is a zombie
    early = runner.run()
    assert (early.code, early.out, early.err) == (1, "", "update in progress\n")
    done = runner.home / "update.finished"
    assert not done.exists()
    before = time.monotonic()
    assert first.exit_code() == 3
    ended = first.finish()  # the output is the script's, too
    assert time.monotonic() - before >= 1.0
    assert done.exists()
    assert ended.out.startswith("\n√ Connected to GitHub\n\nRunner will exit shortly for update,")
    assert "Listening" not in ended.out
    assert [runner.run().code for _ in range(2)] == [7, 0]
    assert not (runner.root / ".runner").exists()


# Environment


def test_env_file_overrides_the_environment(make_runner: MakeRunner) -> None:
    """`K=V` sets, without quotes or comments, up to the job; `K=` unsets."""
    runner = make_runner('echo "A=$A B=${B-unset} C=$C"\n')
    (runner.root / ".env").write_text('A=of file\n\nB=\n=odd\nno separator\nC="q" # c\n')
    assert 'A=of file B=unset C="q" # c\n' in runner.run(A="of process", B="of process").out


def test_environment_of_a_job(make_runner: MakeRunner) -> None:
    """GITHUB_ and RUNNER_ variables; not those that carried secrets to the Listener."""
    runner = make_runner("env\necho PWD=$(pwd)\ncat\n")
    runner.configure("--name", "me", "--work", "w")
    env = {
        "ACTIONS_RUNNER_INPUT_TOKEN": "T0KEN",
        "actions_runner_input_pat": "T0KEN",
        "ACTIONS_CACHE_URL": "http://c",
    }
    out = runner.call("bin/Runner.Listener", "run", **env).out
    found = dict(re.findall(r"^(\w+)=(.*)$", out, re.MULTILINE))

    work = runner.root / "w"
    assert found["GITHUB_WORKSPACE"] == found["PWD"] == str(work / "my-repo" / "my-repo")
    assert found["RUNNER_TEMP"] == str(work / "_temp")
    assert (found["GITHUB_ACTIONS"], found["CI"]) == ("true", "true")
    assert (found["GITHUB_REPOSITORY"], found["GITHUB_SERVER_URL"]) == ("octo/my-repo", "https://github.com")
    assert (found["RUNNER_NAME"], found["ACTIONS_CACHE_URL"]) == ("me", "http://c")
    assert re.fullmatch(r"github_[0-9a-f-]{36}", found["RUNNER_TRACKING_ID"])
    assert Path(found["GITHUB_ENV"]).parent.parent == work / "_temp"
    assert "T0KEN" not in out


def test_hooks_run_around_the_job(make_runner: MakeRunner) -> None:
    """With GITHUB_ variables, and the completed hook also after a step that failed."""
    runner = make_runner("echo job\nexit 1\n")
    env = {}
    for name in ("STARTED", "COMPLETED"):
        hook = runner.home / f"{name}.sh"
        hook.write_text(f'echo "{name} for $GITHUB_REPOSITORY"\n')
        env[f"ACTIONS_RUNNER_HOOK_JOB_{name}"] = str(hook)
    out = runner.run(**env).out
    assert "STARTED for octo/my-repo\njob\nCOMPLETED for octo/my-repo\n" in out


@pytest.mark.parametrize(("name", "job_runs"), [("STARTED", False), ("COMPLETED", True)])
def test_a_hook_that_fails_fails_the_job(make_runner: MakeRunner, name: str, job_runs: bool) -> None:  # noqa: FBT001
    runner = make_runner("echo job\n")
    hook = runner.home / "hook.sh"
    hook.write_text("exit 3\n")
    out = runner.run(**{f"ACTIONS_RUNNER_HOOK_JOB_{name}": str(hook)}).out
    assert "completed with result: Failed\n" in out
    assert ("\njob\n" in out) is job_runs


def test_performance_log_shows_the_assignment(make_runner: MakeRunner) -> None:
    """Which comes before the Worker, and as late as the scenario says."""
    runner = make_runner(assign_after_seconds=0.2)
    runner.run(RUNNER_PERFLOG=str(runner.home / "perf" / "log"))
    lines = (runner.home / "perf" / "log" / "Runner.perf").read_text().splitlines()
    events = dict(line.split(":", 1) for line in lines)
    names = list(events)
    assert names.index("MessageReceived_RunnerJobRequest") < names.index("StartingWorkerProcess")
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{7}Z", time_) for time_ in events.values())
    connected, assigned = (
        datetime.fromisoformat(events[name])
        for name in ("SessionCreated", "MessageReceived_RunnerJobRequest")
    )
    assert assigned - connected >= timedelta(seconds=0.2)


# Output


def test_step_output_is_in_a_page_while_the_step_runs(make_runner: MakeRunner) -> None:
    """Each line with its time, at once; the page is gone after the step, the logs are not."""
    runner = make_runner("printf 'a\\rb\\r\\n\\xff c\\n'; echo begun\nread -r _ < $HOME/gate\necho end\n")
    gate = runner.fifo("gate")
    process = runner.listen()
    process.expect("begun\n")

    page = runner.pages()[-1]
    assert re.fullmatch(r"[0-9a-f-]{36}_[0-9a-f-]{36}_1\.log", page.name)
    assert page.read_bytes().startswith(b"\xef\xbb\xbf20")
    assert page_lines(page)[-4:] == ["a", "b", "\ufffd c", "begun"]
    gate.open_gate()
    assert process.finish().out.count("end\n") == 1
    assert runner.pages() == []


def test_step_output_is_not_on_the_console_of_the_real_runner(make_runner: MakeRunner) -> None:
    """Nor is it here without `echo_steps`."""
    ended = make_runner("echo out; echo err >&2\n", echo_steps=False).run()
    assert not re.search("^(out|err)$", ended.out, re.MULTILINE)
    assert ended.err == ""
    assert "completed with result: Succeeded" in ended.out


def test_echo_is_byte_for_byte(make_runner: MakeRunner) -> None:
    """The Listener's own lines start at the start of a line all the same."""
    runner = make_runner(r"printf 'a\r\0\xff\033[1mb\n\n no end'" + "\n")
    raw = runner.listen().finish_raw()
    assert re.search(
        rb"sample\na\r\0\xff\x1b\[1mb\n\n no end\n\d{4}-[-: \dZ]+: Job sample completed with", raw
    )


def test_display_name_may_hold_anything(make_runner: MakeRunner) -> None:
    name = "build (3.11) completed with result: Succeeded √"
    out = make_runner("exit 1\n", job_name=name).run().out
    assert re.search(f"^{STAMP}: Running job: {re.escape(name)}$", out, re.MULTILINE)
    assert re.search(f"^{STAMP}: Job {re.escape(name)} completed with result: Failed$", out, re.MULTILINE)


def test_a_page_that_is_full_is_followed_by_another(make_runner: MakeRunner) -> None:
    """The one that is complete is deleted while the step still runs."""
    runner = make_runner("seq 100\necho begun\nread -r _ < $HOME/gate\n", page_bytes=1000)
    gate = runner.fifo("gate")
    process = runner.listen()
    process.expect("begun\n")
    (page,) = runner.pages()
    assert page.name.endswith("_4.log")
    assert page_lines(page)[-2:] == ["100", "begun"]
    gate.open_gate()
    assert process.finish().code == 0
    assert runner.pages() == []


def test_pages_may_be_buffered_as_the_real_ones_are(make_runner: MakeRunner) -> None:
    """What has been printed is then not in the page yet."""
    runner = make_runner("echo begun\nread -r _ < $HOME/gate\n", page_buffer_bytes=4096)
    gate = runner.fifo("gate")
    process = runner.listen()
    process.expect("begun\n")
    assert page_lines(runner.pages()[-1]) == []
    gate.open_gate()
    assert process.finish().code == 0


@pytest.mark.parametrize(
    ("seconds", "last_lines"), [(0, ["begun"]), (60, ["Complete job name: sample", "begun", "no end"])]
)
def test_a_complete_page_stays_until_it_is_uploaded(
    make_runner: MakeRunner, seconds: float, last_lines: list[str]
) -> None:
    """That of the set-up, and those of the steps, to the last byte."""
    steps = [{"run": "printf 'no end'"}, {"run": "echo begun; read -r _ < $HOME/gate"}]
    runner = make_runner(steps=steps, upload_seconds=seconds)
    runner.fifo("gate")
    runner.listen().expect("begun\n")
    assert sorted(page_lines(page)[-1] for page in runner.pages()) == last_lines


def test_the_job_ends_when_its_pages_are_uploaded(make_runner: MakeRunner) -> None:
    """None is left behind."""
    runner = make_runner(upload_seconds=0.2)
    assert runner.run().code == 0
    assert runner.pages() == []


def test_listener_prints_what_the_scenario_says(make_runner: MakeRunner) -> None:
    raw = base64.b64encode(b"\0\xff odd").decode()
    output = {"lines": 1500, "bytes_per_line": 20, "raw_base64": raw}
    runner = make_runner(output=output, stderr_lines=["one", "zwei √"], reconnects=2)
    process = runner.listen()
    printed = process.finish_raw()
    assert b"\nline 1 .............\n" in printed
    assert b"\nline 1500 ..........\n\0\xff oddhello\n" in printed
    assert printed.count(b"Z: Runner reconnected.\n") == 2
    error = f"{STAMP}: Runner connect error: .*\\. Retrying until reconnected\\."
    assert re.fullmatch(f"{error}\n{error}\none\nzwei √\n", process.finish().err)


@settings(deadline=None)  # what it takes says nothing on a machine that is busy
@given(text=st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\x0b", b"\xff"])).map(b"".join), data=st.data())
def test_lines_do_not_depend_on_the_pieces_they_come_in(text: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    splitter = pages.LineSplitter()
    lines: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        lines += splitter.feed(text[start:end])
        assert len(lines) == len(re.findall(rb"\r\n|\n|\r(?!\Z)", text[:end]))
    assert lines + splitter.finish() == text.splitlines()


# Signals


def test_sigint_cancels_the_job(make_runner: MakeRunner) -> None:
    """Only the Listener hears it; the step gets its own. Exit 0, session ended, registration kept."""
    runner = make_runner("trap 'echo got INT; exit 9' INT\necho begun\nread -r _ < $HOME/gate\n")
    runner.fifo("gate")
    hook = runner.home / "hook.sh"
    hook.write_text("echo the hook ran\n")
    process = runner.listen(ACTIONS_RUNNER_HOOK_JOB_COMPLETED=str(hook))
    process.expect("begun")
    process.send(signal.SIGINT)
    ended = process.finish()
    assert ended.code == 0
    tail = f"begun\nExiting...\ngot INT\n{STAMP}: Job sample completed with result: Canceled\n"
    assert re.search(f"{tail}$", ended.out)
    assert "Deleting Runner Session..." in runner.log("Runner")
    assert (runner.root / ".runner").exists()
    assert runner.pages() == []


def test_sigint_to_the_group_cancels_the_job(make_runner: MakeRunner) -> None:
    """The Worker survives it, and leaves it to the Listener."""
    runner = make_runner("trap 'echo got INT; exit 9' INT\necho begun\nread -r _ < $HOME/gate\n")
    runner.fifo("gate")
    process = runner.listen()
    process.expect("begun")
    os.killpg(process.pid, signal.SIGINT)
    ended = process.finish()
    assert ended.code == 0
    assert re.search("got INT\n(?s:.*)result: Canceled\n$", ended.out)
    assert "Job completed." in runner.log("Worker")


def test_a_canceled_job_is_canceled_whatever_the_worker_says(make_runner: MakeRunner) -> None:
    """And exits 0, even where the result is asked for."""
    runner = make_runner("echo begun\nread -r _ < $HOME/gate\n", result="Succeeded")
    runner.fifo("gate")
    process = runner.listen(ACTIONS_RUNNER_RETURN_JOB_RESULT_FOR_HOSTED="true")
    process.expect("begun")
    process.send(signal.SIGINT)
    ended = process.finish()
    assert (ended.code, "result: Canceled\n" in ended.out) == (0, True)


def test_steps_after_the_canceled_one_do_not_run(make_runner: MakeRunner) -> None:
    steps = [{"run": "trap 'exit 0' INT; echo begun; read -r _ < $HOME/gate"}, {"run": "echo second"}]
    runner = make_runner(steps=steps)
    runner.fifo("gate")
    process = runner.listen()
    process.expect("begun")
    process.send(signal.SIGINT)
    assert re.search("begun\nExiting...\n.*result: Canceled\n$", process.finish().out)


def test_a_step_gets_sigint_then_sigterm_then_sigkill(make_runner: MakeRunner) -> None:
    traps = "trap 'echo INT' INT\ntrap 'echo TERM' TERM\n"
    job = f"{traps}echo begun\nset +e\nwhile :; do read -r _ < $HOME/gate; done\n"
    runner = make_runner(job, step_sigint_seconds=0.4, step_sigterm_seconds=4)
    runner.fifo("gate")
    process = runner.listen()
    process.expect("begun")
    process.send(signal.SIGINT)
    assert re.search("begun\nExiting...\nINT\nTERM\n.*result: Canceled\n$", process.finish().out)
    assert "Exit code: -9" in runner.log("Worker")


def test_cancelling_takes_as_long_as_the_scenario_says(make_runner: MakeRunner) -> None:
    runner = make_runner("echo begun\nread -r _ < $HOME/gate\n", cancel_seconds=0.3)
    runner.fifo("gate")
    process = runner.listen()
    process.expect("begun")
    before = time.monotonic()
    process.send(signal.SIGINT)
    assert "result: Canceled" in process.finish().out
    assert time.monotonic() - before >= 0.3


def test_sigterm_cancels_the_job(make_runner: MakeRunner) -> None:
    runner = make_runner("trap 'echo got INT; exit 9' INT\necho begun\nread -r _ < $HOME/gate\n")
    runner.fifo("gate")
    process = runner.listen()
    process.expect("begun")
    process.send(signal.SIGTERM)
    ended = process.finish()
    assert ended.code == 0
    assert re.search("begun\ngot INT\n.*result: Canceled\n$", ended.out)


def test_sigterm_to_the_worker_cancels_the_job(make_runner: MakeRunner) -> None:
    """The Listener takes its word for it, and ends as after any job."""
    runner = make_runner("trap 'echo got INT; exit 9' INT\necho begun\nread -r _ < $HOME/gate\n")
    runner.fifo("gate")
    process = runner.listen()
    process.expect("begun")
    (worker,) = runner.processes("Runner.Worker")
    os.kill(worker, signal.SIGTERM)
    ended = process.finish()
    assert re.search("begun\ngot INT\n.*result: Canceled\n√ Removed", ended.out)
    assert ended.code == 0


def test_sigterm_has_a_limit_for_the_worker_too(make_runner: MakeRunner) -> None:
    """One that ends by it has no result: the job has failed."""
    runner = make_runner(hang=True, term_limit_seconds=0.1)
    process = runner.listen()
    process.expect("hello\n")
    (worker,) = runner.processes("Runner.Worker")
    os.kill(worker, signal.SIGTERM)
    assert "result: Failed\n" in process.finish().out
    assert "Code: 143" in runner.log("Runner")


def test_sigterm_has_a_limit_and_sigint_has_none(make_runner: MakeRunner) -> None:
    """After it the Listener is gone, and the Worker is not."""
    runner = make_runner(hang=True, term_limit_seconds=0.2)
    process = runner.listen()
    process.expect("hello\n")
    (worker,) = runner.processes("Runner.Worker")
    process.send(signal.SIGINT)
    process.expect("Exiting...")
    assert is_alive(process.pid, 0.4)
    process.send(signal.SIGTERM)
    ended = process.finish()
    assert (ended.code, "completed" in ended.out) == (143, False)
    assert is_alive(worker)


@pytest.mark.parametrize("scenario", ["never_assign", "assign_then_vanish", "never_listen"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_listener_without_a_job_stops_at_once(
    make_runner: MakeRunner, scenario: str, number: signal.Signals
) -> None:
    """Exit 0; its registration stays."""
    scenario_: dict[str, Any] = {scenario: True}
    runner = make_runner(**scenario_)
    process = runner.listen()
    process.expect("Connected to GitHub" if scenario == "never_listen" else "Listening for Jobs")
    process.send(number)
    ended = process.finish()
    assert ended.code == 0
    assert ("Exiting...\n" in ended.out) == (number is signal.SIGINT)
    assert "Running job" not in ended.out
    assert ("Listening for Jobs" in ended.out) == (scenario != "never_listen")
    assert (runner.root / ".runner").exists()


def test_an_assigned_job_may_never_start(make_runner: MakeRunner) -> None:
    """Only the performance log has shown it."""
    runner = make_runner(assign_then_vanish=True)
    log = runner.fifo("Runner.perf")
    process = runner.listen(RUNNER_PERFLOG=str(runner.home))
    events = ""
    while "MessageReceived_RunnerJobRequest:" not in events:
        events += log.read()
    process.send(signal.SIGINT)
    assert "Running job" not in process.finish().out


def test_inherited_ignored_sigint_stays_ignored(make_runner: MakeRunner) -> None:
    """As in a background job of a shell script: SIGTERM is heard."""
    runner = make_runner(never_assign=True)
    deaf = runner.root / "deaf"
    deaf.write_text("#!/bin/bash\ntrap '' INT\nexec \"${0%/*}/bin/Runner.Listener\" run\n")
    deaf.chmod(0o755)
    process = runner.start("deaf", ACTIONS_RUNNER_INPUT_JITCONFIG=build.jit_config())
    process.expect("Listening for Jobs")
    process.send(signal.SIGINT)
    process.send(signal.SIGTERM)
    ended = process.finish()
    assert (ended.code, "Exiting..." in ended.out) == (0, False)


def test_scenario_may_ignore_sigint(make_runner: MakeRunner) -> None:
    """Then the job ends as if nothing had been; a step still has SIGINT as by default."""
    runner = make_runner("echo begun\nread -r _ < $HOME/gate\nkill -INT $$\n", ignore_sigint=True)
    gate = runner.fifo("gate")
    process = runner.listen()
    process.expect("begun")
    process.send(signal.SIGINT)
    gate.open_gate()
    assert re.search("begun\n.*result: Failed\n", process.finish().out)
    assert "Exit code: -2" in runner.log("Worker")


# What goes wrong


def test_a_lost_job_has_no_result(make_runner: MakeRunner) -> None:
    ended = make_runner(lost_job=True).run()
    assert (ended.code, ended.err) == (0, "")
    assert "Running job: sample\n" in ended.out
    assert "hello" not in ended.out
    assert "completed" not in ended.out


@pytest.mark.parametrize(
    ("crash", "code"), [({"signal": 9}, -9), ({"signal": 15}, -15), ({"code": 134}, 134)]
)
def test_worker_and_step_outlive_their_listener(
    make_runner: MakeRunner, crash: dict[str, int], code: int
) -> None:
    """They do not notice, and go on to the end."""
    runner = make_runner(
        "read -r _ < $HOME/gate\necho still here\necho said > $HOME/says\n", crash_mid_job=crash
    )
    gate, says = runner.fifo("gate"), runner.fifo("says")
    ended = runner.run()
    assert (ended.code, "Running job" in ended.out, "completed" in ended.out) == (code, True, False)
    (worker,) = runner.processes("Runner.Worker")
    gate.open_gate()
    assert says.read() == "said\n"
    assert_ends(worker)
    assert "Job completed. Result: Succeeded" in runner.log("Worker")


def test_worker_gives_up_where_no_job_comes(make_runner: MakeRunner) -> None:
    """Its Listener has died before it could send one."""
    runner = make_runner()
    runner.configure()
    assert runner.call("bin/Runner.Worker", "spawnclient", "0", "1").code == 1


def test_listener_may_hang_after_the_job(make_runner: MakeRunner) -> None:
    """It is deaf to SIGINT then; SIGTERM has its limit."""
    runner = make_runner(hang_after_completed=True, term_limit_seconds=0.1)
    process = runner.listen()
    process.expect("completed with result: Succeeded")
    process.send(signal.SIGINT)
    assert is_alive(process.pid, 0.3)
    process.send(signal.SIGTERM)
    ended = process.finish()
    assert (ended.code, "Exiting" in ended.out) == (143, False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_worker_may_hang_after_the_last_step(make_runner: MakeRunner, number: signal.Signals) -> None:
    """Cancelling does not help; the Listener has no result."""
    runner = make_runner("trap 'exit 0' INT\necho begun\nread -r _ < $HOME/gate\n", hang=True)
    runner.fifo("gate")
    process = runner.listen()
    process.expect("begun")
    process.send(number)
    end = time.monotonic() + PATIENCE
    while "Finished step: Run job" not in runner.log("Worker"):
        assert is_alive(process.pid, 0.05)
        assert time.monotonic() < end
    assert is_alive(process.pid, 0.3)
    assert len(runner.processes("Runner.Worker")) == 1


# Processes


def test_worker_and_step_share_the_listeners_session_and_group(make_runner: MakeRunner) -> None:
    runner = make_runner("echo step=$$.\nread -r _ < $HOME/gate\n")
    runner.fifo("gate")
    process = runner.listen()
    step = int(process.expect(r"step=(\d+)\.")[1])
    (worker,) = runner.processes("Runner.Worker")
    (listener,) = runner.processes("Runner.Listener")
    assert listener == process.pid
    assert {os.getsid(pid) for pid in (listener, worker, step)} == {process.pid}
    assert {os.getpgid(pid) for pid in (listener, worker, step)} == {process.pid}
    command = Path(f"/proc/{worker}/cmdline").read_bytes().decode()
    assert f"{runner.root}/bin/Runner.Worker\0spawnclient\0" in command


LEAVE_BEHIND = "setsid sh -c 'echo left=$$.; exec sleep 1000 > /dev/null 2>&1' &\n"
"""The job's output, and so the job, ends after this process has its own environment."""


@pytest.mark.parametrize(
    ("scenario", "job", "survives"),
    [
        ({}, LEAVE_BEHIND, False),
        ({}, f"export RUNNER_TRACKING_ID=\n{LEAVE_BEHIND}", True),
        ({"clean_orphans": False}, LEAVE_BEHIND, True),
    ],
)
def test_orphans_are_killed_by_their_tracking_id(
    make_runner: MakeRunner,
    scenario: dict[str, Any],
    job: str,
    survives: bool,  # noqa: FBT001 - a parameter
) -> None:
    """Wherever they are, but only with that variable."""
    runner = make_runner(job, **scenario)
    process = runner.listen()
    left = int(process.expect(r"left=(\d+)\.")[1])
    assert "result: Succeeded" in process.finish().out
    if survives:
        assert is_alive(left)
    else:
        assert_ends(left)
        assert f"Terminate orphan process: pid ({left}) (" in runner.log("Worker")


def test_output_that_is_left_open_is_waited_for_only_so_long(make_runner: MakeRunner) -> None:
    runner = make_runner("sleep 1000 &\necho last\n", step_drain_seconds=0.1)
    assert re.search("last\n.*result: Succeeded", runner.run().out)


# run.sh


def stub_sleep(runner: Runner) -> Path:
    """Make safe_sleep.sh return at once; the file has how long it was asked to sleep, a line each."""
    slept = runner.home / "slept"
    (runner.root / "safe_sleep.sh").write_text(f'#!/bin/bash\necho "$1" >> "{slept}"\n')
    return slept


def test_run_sh_runs_the_listener(make_runner: MakeRunner) -> None:
    runner = make_runner()
    runner.configure()
    ended = runner.call("run.sh")
    assert ended.code == 0
    assert "Job sample completed with result: Succeeded\n" in ended.out
    assert ended.out.endswith("return code, stop the service, no retry needed.\nExiting runner...\n")
    assert (runner.root / "run-helper.sh").read_bytes() == (
        runner.root / "run-helper.sh.template"
    ).read_bytes()


def test_run_sh_waits_for_an_update(make_runner: MakeRunner) -> None:
    """Then the runner is as it would have been."""
    runner = make_runner(update=True)
    ended = runner.call("run.sh", ACTIONS_RUNNER_INPUT_JITCONFIG=build.jit_config())
    assert re.search(
        "Update finished successfully.\nRestarting runner...\n(?s:.*)result: Succeeded\n", ended.out
    )
    assert not (runner.home / "update.finished").exists()
    assert (ended.code, ended.err) == (0, "")


def test_run_sh_alone_may_know_the_listener(make_runner: MakeRunner) -> None:
    """config.sh does, too; the Listener and the Worker are as ever."""
    job = "echo in $GITHUB_WORKSPACE; tr '\\0' ' ' < /proc/$PPID/cmdline\n"
    runner = make_runner(job, scripts_only=True, exit_codes=[2])
    stub_sleep(runner)
    assert not (runner.root / "bin").exists()
    assert runner.call("config.sh", "--version").out == "2.336.0\n"
    assert runner.configure().code == 0
    ended = runner.call("run.sh")
    assert (ended.code, ended.out.count("Restarting runner...\n")) == (0, 1)
    assert f"in {runner.root}/_work/my-repo/my-repo\n" in ended.out
    assert f"{runner.root}/libexec/Runner.Worker spawnclient" in ended.out
    assert "Job sample completed with result: Succeeded\n√ Removed .credentials\n" in ended.out
    assert "Job completed. Result: Succeeded" in runner.log("Worker")
    assert runner.configure().code == 0
    assert runner.call("config.sh", "remove").code == 0


@pytest.mark.parametrize("code", [1, 5, 7, 100, 101, 102, 103, 104, 105, 137, 143])
def test_scripts_swallow_the_exit_code(make_runner: MakeRunner, code: int) -> None:
    """run.sh, and already run-helper.sh."""
    runner = make_runner(exit_codes=[code, code])
    ended = runner.call("run.sh", ACTIONS_RUNNER_INPUT_JITCONFIG=build.jit_config())
    assert (ended.code, "Running job" in ended.out) == (0, False)
    assert ended.out.endswith("Exiting runner...\n")
    assert runner.call("run-helper.sh").code == 0


def test_run_helper_passes_a_deprecated_version_on_where_asked(make_runner: MakeRunner) -> None:
    """run.sh swallows that too."""
    runner = make_runner(exit_codes=[7, 7])
    asked = {"ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE": "1"}
    assert runner.call("run.sh", ACTIONS_RUNNER_INPUT_JITCONFIG=build.jit_config(), **asked).code == 0
    assert runner.call("run-helper.sh", **asked).code == 7


def test_run_sh_restarts_after_2(make_runner: MakeRunner) -> None:
    """Each time five seconds later."""
    runner = make_runner(exit_codes=[2, 2])
    slept = stub_sleep(runner)
    ended = runner.call("run.sh", ACTIONS_RUNNER_INPUT_JITCONFIG=build.jit_config())
    assert (ended.code, ended.out.count("Restarting runner...\n")) == (0, 2)
    assert slept.read_text() == "5\n5\n"
    assert "result: Succeeded" in ended.out


@pytest.mark.parametrize("code", [3, 4])
def test_run_sh_restarts_after_an_update(make_runner: MakeRunner, code: int) -> None:
    """Once `update.finished` is there, or 31 seconds later."""
    runner = make_runner(exit_codes=[code, code])
    slept = stub_sleep(runner)
    done = runner.home / "update.finished"
    done.touch()
    ended = runner.call("run.sh", ACTIONS_RUNNER_INPUT_JITCONFIG=build.jit_config())
    assert ended.out.count("Update finished successfully.\n") == 1
    assert ended.out.count("Restarting runner...\n") == 2
    assert slept.read_text() == "1\n" * 31
    assert not done.exists()
    assert (ended.code, "result: Succeeded" in ended.out) == (0, True)


def test_sigterm_to_run_sh_leaves_the_job_running(make_runner: MakeRunner) -> None:
    """Helper and Listener are orphans; the job ends well."""
    runner = make_runner("echo begun\nread -r _ < $HOME/gate\n")
    gate = runner.fifo("gate")
    process = runner.start("run.sh", ACTIONS_RUNNER_INPUT_JITCONFIG=build.jit_config())
    process.expect("begun")
    (listener,) = runner.processes("Runner.Listener")
    process.send(signal.SIGTERM)
    assert process.exit_code() == -signal.SIGTERM
    assert is_alive(listener)
    gate.open_gate()
    assert_ends(listener)
    assert "completed with result: Succeeded" in runner.log("Runner")


def test_sigterm_to_the_group_ends_run_sh_before_the_listener(make_runner: MakeRunner) -> None:
    """Waiting for run.sh ends too early: the Listener still cancels."""
    job = "trap 'read -r _ < $HOME/gate; exit 0' TERM\ntrap : INT\necho begun\nread -r _ < $HOME/gate\n"
    runner = make_runner(job)
    gate = runner.fifo("gate")
    process = runner.start("run.sh", ACTIONS_RUNNER_INPUT_JITCONFIG=build.jit_config())
    process.expect("begun")
    (listener,) = runner.processes("Runner.Listener")
    os.killpg(process.pid, signal.SIGTERM)
    assert process.exit_code() == -signal.SIGTERM
    assert is_alive(listener)
    gate.open_gate()
    assert_ends(listener)
    assert "completed with result: Canceled" in runner.log("Runner")


def test_run_sh_may_trap_signals_itself(make_runner: MakeRunner) -> None:
    """TERM becomes INT for a process group of its own, whose end is awaited: exit 143."""
    runner = make_runner("trap 'exit 0' INT\necho begun\nread -r _ < $HOME/gate\n")
    runner.fifo("gate")
    env = {"RUNNER_MANUALLY_TRAP_SIG": "1", "ACTIONS_RUNNER_INPUT_JITCONFIG": build.jit_config()}
    process = runner.start("run.sh", **env)
    process.expect("begun")
    (listener,) = runner.processes("Runner.Listener")
    assert os.getpgid(listener) != os.getpgid(process.pid)
    process.send(signal.SIGTERM)
    ended = process.finish()
    assert ended.code == 143
    assert re.search("Exiting...\n.*result: Canceled\n", ended.out)
    assert ended.out.endswith("Exiting runner...\n")
    assert not is_alive(listener)

"""The parts of `doctor` that need no world: what is made of an answer, and how it reads."""

import asyncio
import json
import os
import pwd
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from agent_adapters.aws.clients import AwsClients
from agent_adapters.aws.probes import AwsProbes, Verdict
from agent_adapters.host import why_unwritable
from agent_app.doctor.checks import queue_arn
from agent_app.doctor.examination import finding_of
from agent_app.doctor.findings import (
    Finding,
    Status,
    as_json,
    as_text,
    exit_status_of,
    failed,
    fine,
    skipped,
    warning,
)
from agent_app.doctor.host import of_clock, of_disk, of_init, of_memory, of_user
from agent_app.exit_status import ExitStatus
from agent_core.errors import HostUnavailableError
from support.faults import wall_clock
from support.users import open_folder

MB = 2**20

# How it reads


def named(finding: Finding, check: str) -> Finding:
    return Finding(finding.status, finding.found, finding.fix, finding.exit, check)


def test_text() -> None:
    """Columns, the fix below, and the number of what is to be fixed: warnings are none of it."""
    findings = [
        named(fine("here"), "disk"),
        named(warning("little", "more"), "memory"),
        named(skipped("unknown"), "clock"),
    ]
    assert as_text(findings).splitlines() == [
        "✔ disk    here",
        "! memory  little",
        "          fix: more",
        "- clock   unknown",
        "✔ a run would work",
    ]
    one = [*findings, named(failed("gone", "make it"), "user")]
    assert as_text(one).splitlines()[-1] == "✘ a run would not work: 1 thing to fix"
    assert as_text([*one, *one]).splitlines()[-1] == "✘ a run would not work: 2 things to fix"


def test_text_where_there_are_no_such_characters() -> None:
    """The marks are told apart all the same."""
    findings = [named(fine("née"), "a"), named(failed("b", "c"), "b"), named(skipped("d"), "c")]
    text = as_text(findings, "ascii")
    assert text.isascii()
    assert [line[0] for line in text.splitlines()] == ["+", "x", " ", "-", "x"]


def test_json() -> None:
    """A fix is left out where there is none."""
    findings = [named(fine("here"), "disk"), named(failed("gone", "make it"), "user")]
    assert json.loads(as_json(findings)) == [
        {"check": "disk", "status": "ok", "found": "here"},
        {"check": "user", "status": "failed", "found": "gone", "fix": "make it"},
    ]


def test_one_line_without_secrets() -> None:
    """Of whatever text: no line end, no escape sequence, no password of a URL."""
    finding = failed(
        "config:\n  a\n  b\x1b[2J", "ask https://me:p@ss/w@host/x, or socks5://me:pass@proxy then a@b"
    )
    assert finding.found == "config: a; b\N{REPLACEMENT CHARACTER}[2J"
    assert finding.fix == "ask https://***@host/x, or socks5://***@proxy then a@b"


def test_exit_status() -> None:
    """The worst decides; warnings decide nothing."""
    refused = failed("a", "b", ExitStatus.UNAVAILABLE)
    fault = failed("a", "b", ExitStatus.SOFTWARE)
    assert exit_status_of([fine("a"), warning("a", "b"), skipped("a")]) == 0
    assert exit_status_of([fine("a"), refused]) == 69
    assert exit_status_of([fault, refused]) == 70
    assert exit_status_of([failed("a", "b"), fault, refused]) == 78
    assert exit_status_of([]) == 0


# Checks that go wrong themselves


def test_a_check_that_crashes() -> None:
    """It is a failed check, and its exception's text stays hidden."""

    async def crash() -> Finding:
        raise KeyError("secret")

    finding = asyncio.run(finding_of(crash))
    assert (finding.status, finding.exit) == (Status.FAILED, ExitStatus.SOFTWARE)
    assert finding.found == "the check itself failed: KeyError"
    assert finding.fix


def test_a_check_that_hangs() -> None:
    """It has a bound."""

    async def hang() -> Finding:
        await asyncio.Event().wait()
        return fine("never")

    finding = asyncio.run(finding_of(hang, seconds=0.01))
    assert (finding.status, finding.exit) == (Status.FAILED, ExitStatus.UNAVAILABLE)
    assert finding.found == "the check took longer than 0.01 s"


def test_a_check_that_cannot_tell() -> None:
    """The agent's own errors say what is wrong."""

    async def raise_ours() -> Finding:
        raise HostUnavailableError("no disk")

    finding = asyncio.run(finding_of(raise_ours))
    assert (finding.status, finding.found, finding.exit) == (Status.FAILED, "no disk", ExitStatus.CONFIG)


# The host


@pytest.mark.parametrize(
    ("seconds", "status", "word"),
    [
        (0, Status.OK, "0 s ahead of AWS's"),
        (60, Status.OK, "60 s ahead of"),
        (61, Status.WARNING, "61 s ahead of"),
        (-61, Status.WARNING, "61 s behind"),
        (300, Status.WARNING, "300 s ahead of"),
        (301, Status.FAILED, "301 s ahead of"),
        (-301, Status.FAILED, "301 s behind"),
    ],
)
def test_clock(seconds: int, status: Status, word: str) -> None:
    """Over a minute warns, over five fails, either way."""
    finding = of_clock(timedelta(seconds=seconds), "AWS's")
    assert finding.status is status
    assert finding.found.startswith(word)
    assert bool(finding.fix) is (status is not Status.OK)


def test_clock_without_another() -> None:
    """There is nothing to compare it with."""
    assert of_clock(None, "GitHub's").status is Status.SKIPPED


def test_room() -> None:
    """At the floor is enough; under it the disk fails, and memory warns."""
    assert of_disk(500 * MB, 500 * MB, Path("/x")).status is Status.OK
    assert of_disk(500 * MB - 1, 500 * MB, Path("/x")).status is Status.FAILED
    assert of_memory(200 * MB, 200 * MB).status is Status.OK
    assert of_memory(200 * MB - 1, 200 * MB).status is Status.WARNING


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest one that exists decides; only one that is to be made is made."""
    deep = tmp_path / "a" / "b"
    assert why_unwritable(deep) is None
    assert not deep.parent.exists()
    assert why_unwritable(deep, make=True) is None
    assert deep.is_dir()
    file = tmp_path / "file"
    file.touch()
    assert why_unwritable(file / "below") == f"{file} is not a folder"
    assert why_unwritable(file / "below", make=True) == f"{file / 'below'} cannot be made: Not a directory"
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path)
    assert why_unwritable(tmp_path / "new") == f"{tmp_path} cannot be written"
    assert why_unwritable(deep) is None


def test_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who the runner will be, and what keeps it from that."""
    monkeypatch.setattr(os, "geteuid", lambda: pwd.getpwnam("nobody").pw_uid)
    only_root = "what a job makes root's, only root can kill"
    assert of_user("nobody", tmp_path) == fine(f"the agent is nobody, the runner runs as nobody; {only_root}")
    finding = of_user("no-such-user", tmp_path)
    assert (finding.status, finding.found) == (Status.FAILED, "there is no user no-such-user")
    assert "RUNS_FLEET_RUNNER_USER" in finding.fix

    monkeypatch.setattr(os, "geteuid", lambda: 12345678)
    assert "the agent is 12345678, the runner runs as 12345678" in of_user(None, tmp_path).found
    finding = of_user("root", tmp_path)
    assert (finding.status, finding.exit) == (Status.FAILED, ExitStatus.CONFIG)
    assert finding.found == "running the runner as root needs root, and the agent is 12345678"
    assert "RUNS_FLEET_RUNNER_USER" in finding.fix


def test_user_of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """It switches to another, who has to get to the runner's root; to stay root unasked is worth a word."""
    users = {"root": pwd.getpwuid(0), "runner": pwd.getpwnam("nobody")}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", users.__getitem__)
    with open_folder() as folder:
        runner = of_user(None, folder / "root")
        assert (
            runner
            == of_user("runner", folder / "root")
            == fine("the agent is root, the runner runs as nobody")
        )
        (folder / "root").mkdir(0o700)
        assert of_user(None, folder / "root") == runner

        folder.chmod(0o700)
        finding = of_user(None, folder / "root")
        assert finding.status is Status.FAILED
        assert f"nobody may not read and enter {folder} (mode 0700" in finding.found
        assert "RUNS_FLEET_RUNNER_DIR" in finding.fix

        del users["runner"]
        finding = of_user(None, folder / "root")
        assert finding.status is Status.WARNING
        assert "the runner runs as root, since there is no user runner" in finding.found
        assert "RUNS_FLEET_RUNNER_USER" in finding.fix
        assert of_user("root", folder / "root").status is Status.OK


def test_init(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without systemd nobody stands behind the agent; whether power-off is armed is always said."""
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert of_init("systemd", poweroff=False).status is Status.OK
    assert "is left as it is" in of_init("systemd", poweroff=False).found
    assert "is powered off" in of_init("systemd", poweroff=True).found
    assert of_init("tini", poweroff=True).status is Status.WARNING
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert of_init("systemd", poweroff=False).status is Status.WARNING


# AWS


@pytest.mark.parametrize(
    ("url", "arn"),
    [
        (
            "https://sqs.eu-west-1.amazonaws.com/123456789012/a.fifo",
            "arn:aws:sqs:eu-west-1:123456789012:a.fifo",
        ),
        ("https://queue.example/123456789012/a", "https://queue.example/123456789012/a"),
        ("https://sqs.eu-west-1.amazonaws.com/a", "https://sqs.eu-west-1.amazonaws.com/a"),
        ("no URL at all", "no URL at all"),
        ("https://[", "https://["),
    ],
)
def test_queue_arn(url: str, arn: str) -> None:
    """As IAM wants it, where the URL is AWS's."""
    assert queue_arn(url) == arn


class _Clients(AwsClients):
    """One client, whose answers are planned."""

    def __init__(self, service: str) -> None:
        super().__init__("eu-west-1")
        self.client = boto3.Session().client(
            service, region_name="eu-west-1", aws_access_key_id="planted", aws_secret_access_key="planted"
        )
        self.stub = Stubber(self.client)

    def get(self, service: str) -> Any:  # noqa: ARG002
        return self.client


def test_bucket_that_may_not_be_listed() -> None:
    """S3 names the action that it misses: objects may be read, only what is missing looks denied."""
    clients = _Clients("s3")
    for action in ("s3:ListBucket", "s3:GetObject"):
        message = (
            f"User: arn:aws:sts::1:assumed-role/r/i is not authorized to perform: {action} on resource: x"
        )
        clients.stub.add_client_error("get_object", "AccessDenied", message, 403)
    probes = AwsProbes(clients, wall_clock)
    with clients.stub:
        assert asyncio.run(probes.bucket("b")).verdict is Verdict.UNLISTED
        assert asyncio.run(probes.bucket("b")).verdict is Verdict.DENIED


def test_queue_that_takes_everything() -> None:
    """Something else than SQS might: that is told, since its consumer will see the probe."""
    clients = _Clients("sqs")
    clients.stub.add_response("get_queue_attributes", {"Attributes": {}})
    clients.stub.add_response("send_message", {"MessageId": "m"})
    with clients.stub:
        probed = asyncio.run(AwsProbes(clients, wall_clock).queue("https://queue.example/1/q"))
    assert probed.verdict is Verdict.ALLOWED
    assert "the queue took a probe" in probed.words

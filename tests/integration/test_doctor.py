"""`doctor` of the installed wheel: what it finds, and that it leaves everything as it was."""

import json
import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from support.aws import REGION
from support.faults import Answer, Fault, Hang, Refuse, denied, wall_clock
from support.instance import GROUP, VERSION, Ended, Instance
from support.local import Local
from support.wheel import COMMAND, TOKEN

AWS_CHECKS = [
    "settings", "identity", "config", "cache", "queue", "logs", "terminate", "github", "prebaked", "disk",
    "memory", "clock", "state_dir", "runner_dir", "user", "systemd",
]  # fmt: skip
LOCAL_CHECKS = ["settings", "job", "runner", "disk", "memory", "state_dir", "user"]
OF_THIS_MACHINE = {"systemd", "memory", "user"}
"""They may warn wherever the tests run."""
ASKING_AWS = ["config", "cache", "queue", "logs", "terminate"]


class Findings:
    """What one `doctor --json` has found."""

    def __init__(self, status: int, stdout: str, stderr: str) -> None:
        assert TOKEN not in stdout + stderr
        assert "Traceback" not in stderr
        self.status, self.all = status, json.loads(stdout)
        self.checks = [each["check"] for each in self.all]

    def __getitem__(self, check: str) -> dict[str, str]:
        found: dict[str, str]
        (found,) = [each for each in self.all if each["check"] == check]
        return found

    def of_status(self, status: str) -> list[str]:
        return [each["check"] for each in self.all if each["status"] == status]

    def warned(self) -> set[str]:
        return {*self.of_status("warning")} - OF_THIS_MACHINE


def examined(instance: Instance, **variables: str) -> Findings:
    """Of an instance; whatever there is to find, it runs on and no message was sent."""
    ended: Ended = instance.run("--json", command="doctor", variables=variables)
    assert (ended.messages, ended.state, instance.aws.terminations) == ([], "running", [])
    assert not [call for call in instance.aws.calls if call.operation == "s3:PutObject"]
    return Findings(ended.status, ended.stdout, ended.stderr)


@pytest.fixture
def ready(instance: Instance) -> Instance:
    """An instance that lacks nothing."""
    instance.put_config()
    instance.publish()
    return instance


def assert_only(findings: Findings, check: str, fix: str, status: int) -> str:
    """That check has failed, and no other; what it found."""
    assert findings.of_status("failed") == [check], findings.all
    assert fix in findings[check]["fix"]
    assert findings.status == status
    return findings[check]["found"]


# Profile aws


def test_all_is_well(ready: Instance) -> None:
    """Every check is fine, and nothing has changed but for one log event and a folder."""
    findings = examined(ready)
    assert findings.status == 0, findings.all
    assert findings.checks == AWS_CHECKS
    assert (findings.of_status("failed"), findings.of_status("skipped"), findings.warned()) == ([], [], set())
    assert (
        f"{ready.instance_id} (metadata service), {REGION} (metadata service)"
        in findings["identity"]["found"]
    )
    assert "arn:aws:sts::" in findings["identity"]["found"]
    assert "job 67890 of Shavakan/my-repo" in findings["config"]["found"]
    assert f"runner {VERSION} for x64, SHA-256 " in findings["github"]["found"]
    assert ready.queue_url in findings["queue"]["found"]
    (event,) = ready.aws.log_lines(GROUP, f"{ready.instance_id}/doctor")
    assert "logs can be written" in event
    assert ready.aws.delivered(ready.queue_url) == []
    assert list(ready.state_dir.iterdir()) == []
    assert not ready.runner_dir.parent.exists()
    assert ready.cached() is None


def test_for_people(ready: Instance) -> None:
    """A line each, the fix below it, and the sum of it all."""
    good = ready.run(command="doctor")
    assert good.status == 0
    assert good.stdout.splitlines()[-1] == "✔ a run would work"
    ready.aws.faults.plan("ec2:*", denied("ec2"))
    ready.aws.faults.plan("sqs:SendMessage", denied("sqs"))
    bad = ready.run(command="doctor")
    lines = bad.stdout.splitlines()
    assert lines[-1] == "✘ a run would not work: 2 things to fix"
    (at,) = [number for number, line in enumerate(lines) if line.startswith("✘ terminate ")]
    assert lines[at + 1].startswith("              fix: add to the role's policy: {")


FAULTS: Mapping[str, tuple[str, Fault, str, str, int]] = {
    "config denied": (
        "ssm:*",
        denied("ssm"),
        "config",
        "allow ssm:GetParameter on arn:aws:ssm:eu-west-1:",
        69,
    ),
    "config refused": ("ssm:*", Refuse(), "config", "reach the ssm endpoint of eu-west-1", 69),
    "config hangs": ("ssm:*", Hang(), "config", "reach the ssm endpoint", 69),
    "bucket denied": ("s3:*", denied("s3"), "cache", "and s3:ListBucket on arn:aws:s3:::bucket-", 69),
    "bucket missing": ("s3:*", Answer(404, "NoSuchBucket"), "cache", "RUNS_FLEET_CONFIG_BUCKET", 78),
    "bucket refused": ("s3:*", Refuse(), "cache", "reach the s3 endpoint", 69),
    "queue denied": ("sqs:*", denied("sqs"), "queue", "allow sqs:SendMessage on", 69),
    "sending denied": ("sqs:SendMessage", denied("sqs"), "queue", "allow sqs:SendMessage on", 69),
    "queue missing": (
        "sqs:*",
        Answer(400, "AWS.SimpleQueueService.NonExistentQueue"),
        "queue",
        "correct RUNS_FLEET_TERMINATION_QUEUE_URL",
        78,
    ),
    "queue refused": ("sqs:*", Refuse(), "queue", "reach the sqs endpoint", 69),
    "logs denied": ("logs:*", denied("logs"), "logs", f"arn:aws:logs:eu-west-1:*:log-group:{GROUP}:*", 69),
    "logs down": ("logs:*", Answer(500, "InternalFailure"), "logs", "reach the logs endpoint", 69),
    "termination denied": ("ec2:*", denied("ec2"), "terminate", '"aws:ARN": "${ec2:SourceInstanceARN}"', 69),
    "no such instance": (
        "ec2:*",
        Answer(400, "InvalidInstanceID.NotFound"),
        "terminate",
        "RUNS_FLEET_INSTANCE_ID",
        78,
    ),
    "ec2 refused": ("ec2:*", Refuse(), "terminate", "reach the ec2 endpoint", 69),
    "bad credentials": ("sts:*", Answer(403, "InvalidClientTokenId"), "identity", "renew them", 69),
}


@pytest.mark.parametrize("case", FAULTS)
def test_fault_of_aws(ready: Instance, case: str) -> None:
    """It is found where it is, with what mends it, and nowhere else."""
    match, fault, check, fix, status = FAULTS[case]
    ready.aws.faults.plan(match, fault)
    assert_only(examined(ready), check, fix, status)


@pytest.mark.parametrize("fault", [Answer(503), Refuse()])
def test_github_down(ready: Instance, fault: Fault) -> None:
    """Nobody has the runner."""
    ready.github.faults.plan("github:*", fault)
    assert_only(examined(ready), "github", f"let the host reach {ready.github.api_url}", 69)


def test_version_that_github_does_not_have(ready: Instance) -> None:
    """That is no fault of GitHub's."""
    findings = examined(ready, RUNS_FLEET_RUNNER_VERSION="2.1.0")
    assert_only(findings, "github", "RUNS_FLEET_RUNNER_VERSION", 78)


def test_version_and_digest_of_the_config(ready: Instance) -> None:
    """The config's version is asked for; its digest stands in for GitHub, or contradicts it."""
    ready.put_config(runner_version=VERSION, runner_sha256="0" * 64)
    found = assert_only(
        examined(ready, RUNS_FLEET_RUNNER_VERSION="2.1.0"), "github", "correct runner_sha256", 78
    )
    assert "0" * 64 in found
    ready.github.faults.plan("github:*", Refuse())
    findings = examined(ready)
    assert (findings.status, findings.warned()) == (0, {"github"})


def test_prebaked_runner(ready: Instance) -> None:
    """It is found, left as it was, and does where GitHub is down; not so a used one."""
    archive = ready.publish()
    ready.runner_dir.mkdir(parents=True)
    subprocess.run(["tar", "-xzf", archive, "-C", ready.runner_dir, "--no-same-owner"], check=True)
    before = sorted(ready.runner_dir.rglob("*"))
    ready.github.faults.plan("github:*", Refuse())
    findings = examined(ready)
    assert (findings.status, findings.warned()) == (0, {"github"})
    assert findings["prebaked"]["found"] == f"runner {VERSION} in {ready.runner_dir}"
    assert sorted(ready.runner_dir.rglob("*")) == before

    (ready.runner_dir / ".runner").write_text("{}")
    findings = examined(ready)
    assert findings.of_status("failed") == ["github"]
    assert findings["prebaked"]["found"].startswith("none in ")


def test_who_we_are_may_be_kept_secret(ready: Instance) -> None:
    """A role that may not ask is told of, and that is all."""
    ready.aws.faults.plan("sts:*", denied("sts"))
    findings = examined(ready)
    assert (findings.status, findings["identity"]["status"]) == (0, "ok")
    assert "AccessDenied" in findings["identity"]["found"]


def test_no_credentials(ready: Instance) -> None:
    """One thing to fix; what AWS would say is not guessed."""
    ready.imds.faults.plan("imds:security-credentials", Answer(404))
    findings = examined(ready)
    assert_only(findings, "identity", "instance profile", 78)
    assert findings.of_status("skipped") == ASKING_AWS


def test_unknown_instance(ready: Instance) -> None:
    """Neither the instance nor its region is known, and nobody may be asked."""
    findings = examined(ready, AWS_EC2_METADATA_DISABLED="true")
    found = assert_only(findings, "identity", "metadata service", 78)
    assert "RUNS_FLEET_INSTANCE_ID" in found
    assert "AWS_REGION" in found
    assert findings.of_status("skipped") == ASKING_AWS
    known = ready.aws.environ | {"RUNS_FLEET_INSTANCE_ID": ready.instance_id}
    findings = examined(ready, AWS_EC2_METADATA_DISABLED="true", **known)
    assert findings.status == 0
    assert "(environment RUNS_FLEET_INSTANCE_ID)" in findings["identity"]["found"]
    del known["RUNS_FLEET_INSTANCE_ID"]
    findings = examined(ready, AWS_EC2_METADATA_DISABLED="true", **known)
    assert_only(findings, "identity", "metadata service", 78)
    assert findings.of_status("skipped") == ["config", "logs", "terminate"]


def test_no_config_yet(instance: Instance) -> None:
    """A run waits for it."""
    instance.publish()
    findings = examined(instance, RUNS_FLEET_STANDBY_MINUTES="2.5")
    assert (findings.status, findings["config"]["status"]) == (0, "ok")
    assert (
        f"a run waits 2.5 min for it (RUNS_FLEET_STANDBY_MINUTES): parameter {instance.parameter}"
        in (findings["config"]["found"])
    )


def test_bad_config(ready: Instance) -> None:
    """Malformed, or of a token that GitHub takes no more."""
    ready.put_config(org="a b", labels=[])
    found = assert_only(examined(ready), "config", "docs/wire.md", 78)
    assert "config.org" in found
    assert "config.labels" in found
    ready.put_config(created_at="2025-11-25T10:00:00Z")
    assert "one hour" in assert_only(examined(ready), "config", "new token", 69)


def test_queue_of_the_config(ready: Instance) -> None:
    """It is the one that counts; a FIFO queue gets nothing either."""
    fifo = ready.aws.queue(fifo=True)
    ready.put_config(termination_queue_url=fifo)
    findings = examined(ready)
    assert findings.status == 0
    assert fifo in findings["queue"]["found"]
    assert ready.aws.delivered(fifo) == []
    ready.put_config(termination_queue_url=f"{fifo[:-5]}-none.fifo")
    assert_only(examined(ready), "queue", "termination_queue_url in the config", 78)


def test_queue_that_may_not_be_looked_at(ready: Instance) -> None:
    """A role that may send needs no more."""
    ready.aws.faults.plan("sqs:GetQueueAttributes", denied("sqs"))
    findings = examined(ready)
    assert (findings.status, findings["queue"]["status"]) == (0, "ok")
    assert "sqs:GetQueueAttributes" in findings["queue"]["found"]


def test_what_need_not_be_set(ready: Instance) -> None:
    """No cache is fine; no queue, no log group are warnings."""
    unset = {"CONFIG_BUCKET": "", "TERMINATION_QUEUE_URL": "", "LOG_GROUP": ""}
    findings = examined(ready, **{f"RUNS_FLEET_{name}": text for name, text in unset.items()})
    assert (findings.status, findings.warned()) == (0, {"queue", "logs"})
    assert findings["cache"]["status"] == "ok"
    assert findings["queue"]["fix"] == "set RUNS_FLEET_TERMINATION_QUEUE_URL"
    assert findings["logs"]["fix"] == "set RUNS_FLEET_LOG_GROUP"


def test_settings(ready: Instance) -> None:
    """A line for each error, and the rest is looked at all the same."""
    findings = examined(ready, RUNS_FLEET_MAX_RUNTIME="123abc", RUNS_FLEET_IDLE_MINUTES="-5")
    assert findings.of_status("failed") == ["settings", "settings"]
    assert findings.status == 78
    assert [each["found"][:25] for each in findings.all[:2]] == [
        "RUNS_FLEET_MAX_RUNTIME: '",
        "RUNS_FLEET_IDLE_MINUTES: ",
    ]
    assert findings["config"]["status"] == "ok"


@pytest.mark.parametrize(
    ("away", "status", "code"), [(600, "failed", 78), (-600, "failed", 78), (120, "warning", 0)]
)
def test_clock(ready: Instance, away: int, status: str, code: int) -> None:
    """It is compared with AWS's."""
    date = format_datetime(wall_clock() + timedelta(seconds=away), usegmt=False)
    ready.aws.faults.plan("sts:*", Answer(403, "AccessDenied", {"Date": date}))
    findings = examined(ready)
    assert (findings["clock"]["status"], findings.status) == (status, code)
    assert ("behind" if away > 0 else "ahead of") in findings["clock"]["found"]
    assert "AWS's" in findings["clock"]["found"]
    assert "set the clock" in findings["clock"]["fix"]


def test_clock_of_github(ready: Instance) -> None:
    """Where AWS says nothing, GitHub's counts; and where nobody does, there is none."""
    ready.imds.faults.plan("imds:security-credentials", Answer(404))
    assert "GitHub's" in examined(ready)["clock"]["found"]
    ready.github.faults.plan("*", Refuse())
    assert examined(ready)["clock"]["status"] == "skipped"


def test_host(ready: Instance) -> None:
    """Room, folders and users that are not there; all at once, each for itself."""
    ready.state_dir.write_text("in the way")
    (ready.folder / "opt").write_text("in the way")
    much, user = "1000000000", "no-such-user"
    findings = examined(ready, RUNS_FLEET_MIN_FREE_DISK_MB=much, RUNS_FLEET_RUNNER_USER=user)
    fixes = {
        "disk": "RUNS_FLEET_MIN_FREE_DISK_MB",
        "state_dir": "RUNS_FLEET_STATE_DIR",
        "runner_dir": "RUNS_FLEET_RUNNER_DIR",
        "user": "RUNS_FLEET_RUNNER_USER",
    }
    assert findings.status == 78
    assert findings.of_status("failed") == list(fixes)
    for check, fix in fixes.items():
        assert fix in findings[check]["fix"]


def test_memory_is_a_warning(ready: Instance) -> None:
    """As it is in a run."""
    findings = examined(ready, RUNS_FLEET_MIN_FREE_MEMORY_MB="1000000000")
    assert (findings.status, findings["memory"]["status"]) == (0, "warning")
    assert "RUNS_FLEET_MIN_FREE_MEMORY_MB" in findings["memory"]["fix"]


def test_worse_wins(ready: Instance) -> None:
    """A service that refuses beside a setting that is wrong: 78."""
    ready.aws.faults.plan("ssm:*", denied("ssm"))
    assert examined(ready, RUNS_FLEET_MAX_RUNTIME="x").status == 78


def test_no_secret_is_shown(ready: Instance) -> None:
    """Neither a URL's password, nor the role's keys; the token is looked for in every test."""
    ready.github.faults.plan("*", Refuse())
    ready.aws.faults.plan("*", Refuse())
    url = ready.github.api_url.replace("http://", "http://me:hunter2@")
    queue = ready.queue_url.replace("http://", "http://me:hunter2@")
    variables = {"RUNS_FLEET_GITHUB_API_URL": url, "RUNS_FLEET_TERMINATION_QUEUE_URL": queue}
    ended = ready.run("--json", command="doctor", variables=variables)
    assert ended.stdout.count("http://***@") >= 3
    for secret in ("hunter2", TOKEN, "planted-"):
        assert secret not in ended.stdout + ended.stderr


# Profile local


def examined_locally(local: Local, *flags: str, **options: Any) -> Findings:
    ended = local.run("--json", *flags, command="doctor", **options)
    assert (ended.messages, ended.terminations) == ([], [])
    return Findings(ended.status, ended.stdout, ended.stderr)


def test_all_is_well_locally(local: Local) -> None:
    """It needs no cloud, runs nothing and leaves an empty folder."""
    findings = examined_locally(local)
    assert findings.status == 0, findings.all
    assert findings.checks == LOCAL_CHECKS
    assert (findings.of_status("failed"), findings.of_status("skipped"), findings.warned()) == ([], [], set())
    assert list(local.state_dir.iterdir()) == []


def test_faults_locally(local: Local) -> None:
    """A job file that is no config, archives that are not there."""
    (local.folder / "job.json").write_text('{"org": "a b"}')
    assert_only(examined_locally(local), "job", "docs/wire.md", 78)
    (local.folder / "job.json").unlink()
    local.folder.joinpath("none").mkdir()
    assert_only(
        examined_locally(local, "--runner-archive", f"{local.folder}/none"), "runner", "--runner-archive", 78
    )
    findings = examined_locally(local, "--job", f"{local.folder}/none.json")
    assert (findings.status, findings.warned()) == (0, {"job"})
    assert "--job" in findings["job"]["fix"]


def test_job_that_has_run(local: Local) -> None:
    """It would not run again; nor does anything while an earlier life has not been finished."""
    local.run()
    before = sorted(local.state_dir.rglob("*"))
    ended = local.run("--json", command="doctor")
    findings = Findings(ended.status, ended.stdout, ended.stderr)
    assert "job 67890 has run here already" in assert_only(findings, "state_dir", "RUNS_FLEET_STATE_DIR", 78)
    assert sorted(local.state_dir.rglob("*")) == before

    journal = local.state_dir / "journal.json"
    journal.write_text(json.dumps(json.loads(journal.read_text()) | {"terminated": False}))
    ended = local.run("--json", command="doctor")
    findings = Findings(ended.status, ended.stdout, ended.stderr)
    assert "it died with a job" in assert_only(findings, "state_dir", "runs-fleet-agent reap", 78)


def test_beside_a_live_agent(local: Local) -> None:
    """It says so, and disturbs nobody."""
    running = local.start(job=f"while ! test -e {local.folder}/go; do sleep 0.05; done\n")
    running.wait_for("phase running")
    place = ["--state-dir", str(local.state_dir), "--runner-archive", str(local.folder / "archives")]
    job = ["--profile", "local", "--job", str(local.folder / "job.json")]
    command = [str(COMMAND), "doctor", "--json", *job, *place]
    looking = subprocess.run(command, capture_output=True, text=True, check=False)
    findings = Findings(looking.returncode, looking.stdout, looking.stderr)
    assert_only(findings, "state_dir", "let it end", 78)
    (local.folder / "go").touch()
    assert running.end().statuses == ["started", "success"]


def test_nobody_reads_it(local: Local) -> None:
    """The exit status still tells; in a locale without its marks, so does the text."""
    wrapper = "sh", "-c", 'exec "$@" >&-', "sh"
    ended = local.run(command="doctor", wrapper=wrapper)
    assert (ended.status, ended.stderr) == (0, "")
    ended = local.run(command="doctor", wrapper=("env", "PYTHONIOENCODING=latin-1"))
    assert ended.stdout.splitlines()[-1] == "+ a run would work"


def test_on_a_terminal(local: Local) -> None:
    """It is coloured."""
    ours, theirs = os.openpty()
    folder = str(local.folder)
    arguments = [
        str(COMMAND),
        "doctor",
        "--profile",
        "local",
        "--state-dir",
        folder,
        "--runner-archive",
        folder,
    ]
    variables = os.environ | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    for name in ("NO_COLOR", "FORCE_COLOR"):
        variables.pop(name, None)
    process = subprocess.run(arguments, stdout=theirs, stderr=subprocess.PIPE, env=variables, check=False)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # that is its end, where nobody has the other side any more
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    assert process.returncode == 78, process.stderr
    assert "\x1b[1;31m✘\x1b[0m settings  " in shown.decode()
    assert b"--job: missing" in shown
    assert b"a run would not work: " in shown

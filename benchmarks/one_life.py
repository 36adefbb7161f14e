"""One life of the installed wheel in the tests' cloud, and what can be seen of it from outside."""

import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import frozen

from figures import memory_bytes

sys.path[:0] = [str(Path(__file__).parent.with_name(name)) for name in ("tests", "examples")]

from sample_runner.build import jit_config  # noqa: E402

from support.aws import Aws, aws_cloud  # noqa: E402
from support.faults import FakeServer, Hang  # noqa: E402
from support.github import GitHub, github_server  # noqa: E402
from support.imds import InstanceMetadata, instance_metadata  # noqa: E402
from support.instance import VERSION, Instance, instance_of  # noqa: E402
from support.wheel import COMMAND  # noqa: E402

__all__ = ["COMMAND", "UPLOAD", "Life", "World", "a_world", "cached", "live", "prebaked", "uncached"]

UPLOAD: Final = "s3:PutObject"
"""The one operation that hangs beside the job, and not from its end on."""

_PATIENCE_SECONDS: Final = 60.0


# The world


@frozen
class World:
    """A cloud, as new for each instance."""

    aws: Aws
    github: GitHub
    imds: InstanceMetadata

    @contextmanager
    def instance(self) -> Iterator[Instance]:
        """An instance whose disk is in memory."""
        for service in (self.aws, self.github, self.imds):
            service.reset()
        memory = "/dev/shm"  # noqa: S108 - tmpfs, wherever there is one
        with (
            tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder,
            instance_of(Path(folder), self.aws, self.github, self.imds) as instance,
        ):
            yield instance


@contextmanager
def a_world() -> Iterator[World]:
    """A cloud."""
    with aws_cloud() as aws, github_server() as github, instance_metadata() as imds:
        yield World(aws, github, imds)


def prebaked(instance: Instance) -> None:
    """The image has the wanted runner, and the config a just-in-time one: nothing stands before the start."""
    archive = instance.publish(job=instance.until_go)
    instance.runner_dir.mkdir(parents=True)
    subprocess.run(["tar", "-xzf", archive, "-C", instance.runner_dir, "--no-same-owner"], check=True)
    instance.github.reset()
    instance.put_config(runner_version=VERSION, jit_token=None, jit_config=jit_config(name="bench"))


def cached(instance: Instance) -> None:
    """The bucket has the wanted runner; a token is in the config."""
    archive = instance.publish(job=instance.until_go)
    instance.aws.client("s3").put_object(
        Bucket=instance.bucket, Key=instance.cache_key, Body=archive.read_bytes()
    )
    instance.put_config(runner_version=VERSION)


def uncached(instance: Instance) -> None:
    """Neither has it: it comes from GitHub, and goes to the bucket."""
    instance.publish(job=instance.until_go)
    instance.put_config(runner_version=VERSION)


# One life


@frozen
class Life:
    """What was seen of one; seconds, and bytes."""

    start: float
    """From exec to the start of the runner."""
    resting: int
    peak: int
    end: float
    """From the runner's exit to the request to terminate."""
    calls: Counter[str]


def live(instance: Instance, prepare: Callable[[Instance], None], hanging: str | None = None) -> Life:
    """A job that lasts until all is measured; what hangs does so from then on, the upload from its start."""
    prepare(instance)
    aws = instance.aws
    if hanging == UPLOAD:
        aws.faults.plan(UPLOAD, Hang())
    begin = time.clock_gettime(time.CLOCK_BOOTTIME)
    running = instance.start()
    running.wait_for("phase running")
    listener = _listener(instance.runner_dir)
    start = _started_at(listener) - begin
    aws.wait_for("logs:PutLogEvents", status=200)
    resting = memory_bytes("VmRSS", running.process.pid)
    if hanging is not None:
        _let_hang(instance, hanging)
    # Held up, so that the process is there to be asked.
    aws.faults.plan("ec2:TerminateInstances", Hang())
    exited = _when_it_exits(listener, instance.go)
    (asked, *_) = aws.wait_for("ec2:TerminateInstances", within=_PATIENCE_SECONDS)
    peak = memory_bytes("VmHWM", running.process.pid)
    aws.faults.heal("ec2:TerminateInstances")
    ended = running.end()
    if ended.state not in {"shutting-down", "terminated"} or ended.status != 0:
        raise RuntimeError(f"no plain life:\n{ended.stderr}")
    return Life(start, resting, peak, asked.at - exited, Counter(call.operation for call in aws.calls))


def _let_hang(instance: Instance, match: str) -> None:
    """From now on; returns when somebody hangs, unless it is asked for at the end only."""
    if match == UPLOAD:
        instance.aws.wait_for(UPLOAD)
        return
    service: FakeServer = instance.imds if match.startswith("imds") else instance.aws
    asked = len(instance.imds.calls)
    service.faults.plan(match, Hang())
    if service is instance.imds:
        service.wait_for(match, asked + 1)


def _listener(runner_dir: Path) -> int:
    """The process ID of the runner that runs."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        # The shells around it have its path too, but not as a word of its own.
        if os.fsencode(runner_dir / "bin/Runner.Listener") in command and b"run" in command:
            return int(process.name)
    raise RuntimeError("no runner")


def _started_at(pid: int) -> float:
    """Seconds since boot, to a hundredth; rounded up, at our cost."""
    after_name = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(after_name[19]) + 1) / os.sysconf("SC_CLK_TCK")


def _when_it_exits(pid: int, let_it: Callable[[], None]) -> float:
    """By time.monotonic()."""
    descriptor = os.pidfd_open(pid)
    try:
        let_it()
        if not select.select([descriptor], [], [], _PATIENCE_SECONDS)[0]:
            raise RuntimeError("the runner does not exit")
        return time.monotonic()
    finally:
        os.close(descriptor)

"""A plain job from exec to the request to terminate, by the installed wheel in a cloud beside it.

    .venv/bin/python benchmarks/life.py [--rounds N]

How long until the runner is started, and how much memory it takes, against a bare Python that only makes the
boto3 clients; how many calls AWS gets; how soon after the runner's exit the instance is asked to terminate,
also where a service hangs. The cloud is that of the tests, the runner the sample runner. Everything is in
memory (/dev/shm), so that no disk is measured. Exit status 1: a figure is missed.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from statistics import median
from typing import Final

from attrs import frozen

from figures import Figure, memory_bytes, print_table, report
from one_life import COMMAND, UPLOAD, Life, World, a_world, cached, live, prebaked, uncached

_START_RATIO: Final = 3
_RESTING_RATIO: Final = 1.4
_PEAK_RATIO: Final = 1.5
_END_SECONDS: Final = 2
_HANGING_END_SECONDS: Final = 15
_PREBAKED_CALLS: Final = {"ssm": 1, "logs": 3, "sqs": 2, "ec2": 1}
_CACHED_CALLS: Final = {**_PREBAKED_CALLS, "ssm": 2, "s3": 1}
"""By service. Logs: the stream is made, a batch leaves after 5 s, the rest at the end. S3: one for each 8 MiB
of archive, and the sample runner has less."""

_HANGING: Final = ("logs:*", "sqs:*", "imds:*", UPLOAD)

_TWO: Final = ("ssm", "logs")
"""The clients without which there is no config, and no log."""
_FIVE: Final = ("ssm", "s3", "logs", "sqs", "ec2")

_OURS: Final = "the agent"
_MEBIBYTE: Final = 2**20


def main() -> int:
    """The exit status: 1 if a figure is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of what is compared; the median counts (7)")
    options = parser.parse_args()
    with a_world() as world:
        lives, peers = _rounds(world, options.rounds)
        with world.instance() as instance:
            from_cache = live(instance, cached)
        hanging = {}
        for match in _HANGING:
            with world.instance() as instance:
                hanging[match] = live(instance, uncached if match == UPLOAD else prebaked, match)
    return report(
        [
            *_of_start(lives, peers),
            *_of_memory(lives, peers),
            *_of_calls(
                {"prebaked": (lives[-1], _PREBAKED_CALLS), "from the cache": (from_cache, _CACHED_CALLS)}
            ),
            *_of_ends([*lives, from_cache], hanging),
        ]
    )


def _rounds(world: World, rounds: int) -> tuple[list[Life], list["_Peers"]]:
    """In turn, so that a slow moment is everybody's. The first of each fills what caches there are."""
    lives, peers = [], []
    for number in range(rounds + 1):
        with world.instance() as instance:
            life = live(instance, prebaked)
        peer = _Peers(_bare(_TWO)[0], *_bare(_FIVE))
        if number:
            lives.append(life)
            peers.append(peer)
    return lives, peers


# The peers


@frozen
class _Peers:
    """Bare Pythons that make two clients, and five: seconds from their exec on, and bytes."""

    seconds_of_two: float
    seconds_of_five: float
    memory_of_five: int


def _bare(services: tuple[str, ...]) -> tuple[float, int]:
    """Seconds until it has these clients, and the memory that it has then; nothing is asked of AWS."""
    code = f"import boto3\nkept = [boto3.client(name) for name in {services}]\nprint(flush=True)\ninput()"
    environment = {
        "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_DEFAULT_REGION": "eu-west-1"
    }  # fmt: skip
    begin = time.perf_counter()
    with subprocess.Popen(
        [COMMAND.with_name("python"), "-c", code],
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        if process.stdout is None:
            raise AssertionError
        process.stdout.readline()
        seconds = time.perf_counter() - begin
        memory = memory_bytes("VmRSS", process.pid)
        process.communicate(b"\n")
    return seconds, memory


# Figures


def _of_start(lives: list[Life], peers: list[_Peers]) -> list[Figure]:
    measured = {
        f"{_OURS}: exec to the runner's start": [life.start for life in lives],
        "bare Python: clients of ssm, logs": [peer.seconds_of_two for peer in peers],
        "bare Python: five clients": [peer.seconds_of_five for peer in peers],
    }
    print_table(measured, "s")
    ours, two, _ = (median(values) for values in measured.values())
    return [Figure("the runner's start, against bare Python with two clients", ours / two, _START_RATIO)]


def _of_memory(lives: list[Life], peers: list[_Peers]) -> list[Figure]:
    measured = {
        f"{_OURS}, resting": [life.resting / _MEBIBYTE for life in lives],
        f"{_OURS}, at its peak": [life.peak / _MEBIBYTE for life in lives],
        "bare Python with five clients": [peer.memory_of_five / _MEBIBYTE for peer in peers],
    }
    print_table(measured, "MiB")
    resting, peak, bare = (median(values) for values in measured.values())
    return [
        Figure("resting memory, against bare Python with five clients", resting / bare, _RESTING_RATIO),
        Figure("peak memory, against bare Python with five clients", peak / bare, _PEAK_RATIO),
    ]


def _of_calls(lives: Mapping[str, tuple[Life, Mapping[str, int]]]) -> list[Figure]:
    figures = []
    for name, (life, limits) in lives.items():
        print(f"calls, {name}: " + ", ".join(f"{what} {count}" for what, count in life.calls.items()))
        counts: Counter[str] = Counter()
        for operation, count in life.calls.items():
            counts[operation.partition(":")[0]] += count
        figures += [
            Figure(f"calls of {service}, runner {name}", counts[service], limits.get(service, 0))
            for service in sorted({*counts, *limits})
        ]
    print()
    return figures


def _of_ends(plain: list[Life], hanging: Mapping[str, Life]) -> list[Figure]:
    print_table(
        {"plain": [life.end for life in plain]}
        | {f"{what} hangs": [life.end] for what, life in hanging.items()},
        "s from the runner's exit to the request to terminate",
    )
    return [
        Figure(
            "the runner's exit to the request, at worst", max(life.end for life in plain), _END_SECONDS, "s"
        ),
        *(
            Figure(f"the same while {match} hangs", life.end, _HANGING_END_SECONDS, "s")
            for match, life in hanging.items()
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())

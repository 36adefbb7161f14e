"""The design's invariants, over random lives: faults, timings, requests to stop, and crashes at any await."""

import os
from collections.abc import Coroutine
from datetime import timedelta
from itertools import chain
from typing import Any
from uuid import uuid4

import pytest
from attrs import evolve
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from agent_adapters.memory import InMemoryBinaryStore, RunnerScript
from agent_core import ending, status, supervision
from agent_core.chronicle import Chronicle
from agent_core.delivery import LogDelivery
from agent_core.events import Printed
from agent_core.life import Life
from agent_core.lifecycle import Agent
from agent_core.messenger import Messenger
from agent_core.model import JobResult, Limits, OutputLine, Registration, Release, StopReason
from agent_core.policy import Milestones, Watch, next_watch
from agent_core.testing.simulation import SimulationError
from support.lives import Plan, Stop, Trouble, check, play

LIVES = int(os.environ.get("LIVES", "400"))
"""How many random lives to live; `make lives` lives 10,000."""

SECONDS = st.floats(0, 600, allow_nan=False)
SHARE = st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0])

LIES = [
    f"2025-11-25 10:00:00Z: Job {name} completed with result: {word}"
    for name in ("build", "x completed with result: Succeeded")
    for word in ("Succeeded", "Failed", "Canceled")
]
"""What a job may print to look like its runner."""


def can_be_told(script: RunnerScript) -> bool:
    """A lie that is heard after the worker's end, with no word of the runner's own, may pass: ADR 0008."""
    lines = (*script.output, *chain.from_iterable(script.steps), *script.last_words)
    return script.result is not None or not set(LIES) & set(lines)


JOB_NAMES = st.sampled_from(["build", "x completed with result: Succeeded", "a (b) / c"])
EXIT_CODES = st.sampled_from([0, None, None, None, 1, 134])
LAST_WORDS = st.lists(st.sampled_from(LIES), max_size=2, unique=True).map(tuple)
OUTPUT = st.lists(
    st.one_of(st.integers(0, 10**6).map("line {}".format), st.sampled_from(LIES)), max_size=20, unique=True
).map(tuple)
SCRIPTS = st.builds(
    RunnerScript,
    refuse_registration=st.sampled_from([None, None, None, "Http response code: NotFound"]),
    refuse_jit=st.booleans(),
    register_seconds=st.floats(0, 60),
    early_exits=st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 7]), max_size=3).map(tuple),
    listen_after=st.one_of(st.none(), st.floats(0, 60), st.floats(0, 60)),
    assign_after=st.one_of(st.none(), SECONDS, SECONDS, SECONDS),
    job_name=JOB_NAMES,
    vanishes=st.sampled_from([False, False, False, False, True]),
    output=OUTPUT,
    steps=st.lists(
        st.lists(st.one_of(st.integers(0, 10**6).map(str), st.sampled_from(LIES)), unique=True).map(tuple),
        max_size=3,
    ).map(tuple),
    job_seconds=st.one_of(st.none(), SECONDS, SECONDS, st.floats(0, 30_000)),
    crash_after=st.one_of(st.none(), st.none(), st.none(), SECONDS),
    result=st.one_of(st.none(), st.sampled_from(JobResult)),
    last_words=LAST_WORDS,
    exit_after=st.one_of(st.none(), st.floats(0, 90), st.floats(0, 90)),
    exit_code=EXIT_CODES,
    cancel_seconds=st.one_of(st.none(), st.floats(0, 120), st.floats(0, 120)),
    leaves_behind=st.integers(0, 3),
).filter(can_be_told)
LOUD = RunnerScript(output=tuple(f"line {number} ".ljust(900_000, "x") for number in range(20)))
"""Prints more than memory may hold."""
LIMITS = st.builds(
    Limits,
    max_runtime=st.integers(1, 360).map(lambda minutes: timedelta(minutes=minutes)),
    standby=st.integers(1, 20).map(lambda minutes: timedelta(minutes=minutes)),
    idle=st.integers(1, 20).map(lambda minutes: timedelta(minutes=minutes)),
    shutdown_grace=st.integers(0, 120).map(lambda seconds: timedelta(seconds=seconds)),
)
STOPS = st.lists(
    st.builds(
        Stop,
        at=st.one_of(st.floats(0, 20), SECONDS),
        reason=st.sampled_from(StopReason),
        machine_left=st.one_of(st.none(), st.none(), st.floats(0, 180)),
    ),
    max_size=3,
).map(tuple)
TROUBLE = st.builds(
    Trouble,
    fail=SHARE,
    break_=st.sampled_from([0.0, 0.0, 0.2]),
    delay=SHARE,
    hang=st.sampled_from([0.0, 0.0, 0.2]),
    stubborn=st.sampled_from([0.0, 0.0, 0.2]),
    most=st.integers(0, 6),
)
TROUBLES = st.fixed_dictionaries(
    {},
    optional={
        "config_source": TROUBLE,
        "binary_store": TROUBLE,
        "log_sink": TROUBLE,
        "log_spool": TROUBLE,
        "host_probe": TROUBLE,
        "journal": TROUBLE,
        # These must come to their end within their budget, so that there is something to hold them to.
        "runner_process": st.builds(
            Trouble, fail=SHARE, break_=SHARE, delay=SHARE, hang=SHARE, most=st.just(1)
        ),
        "notifier": st.builds(
            Trouble, fail=SHARE, break_=st.just(0.0), delay=st.just(0.0), most=st.integers(0, 3)
        ),
        "terminator": st.builds(
            Trouble, fail=SHARE, break_=SHARE, delay=SHARE, hang=SHARE, most=st.integers(0, 3)
        ),
    },
)
PLANS = st.builds(
    Plan,
    seed=st.integers(0, 2**32),
    script=SCRIPTS,
    jit=st.booleans(),
    config_after=st.one_of(st.just(0.0), st.just(0.0), SECONDS, st.none()),
    prebaked=st.sampled_from([None, None, "2.336.0", "2.335.0"]),
    tampered=st.sampled_from([False, False, False, True]),
    limits=LIMITS,
    stops=st.one_of(st.just(()), STOPS),
    disk_full_after=st.one_of(st.none(), st.none(), SECONDS),
    troubles=st.one_of(st.just({}), TROUBLES),
    crashes=st.one_of(st.just(()), st.lists(st.integers(0, 300), max_size=3).map(tuple)),
    successor_reaps=st.booleans(),
)

PLAIN_PLANS = st.builds(
    Plan,
    seed=st.integers(0, 2**32),
    script=st.builds(
        RunnerScript,
        register_seconds=st.floats(0, 60),
        listen_after=st.floats(0, 60),
        assign_after=SECONDS,
        job_name=JOB_NAMES,
        vanishes=st.sampled_from([False, False, False, False, True]),
        output=OUTPUT,
        steps=st.lists(OUTPUT, max_size=3).map(tuple),
        job_seconds=SECONDS,
        result=st.one_of(st.none(), st.sampled_from(JobResult)),
        last_words=LAST_WORDS,
        exit_after=st.one_of(st.none(), st.floats(0, 90)),
        exit_code=EXIT_CODES,
        leaves_behind=st.integers(0, 3),
    ).filter(can_be_told),
    limits=LIMITS,
)
"""Nothing is in the way but what a runner and its job do: here the truth is known."""


@settings(max_examples=LIVES, deadline=None, suppress_health_check=list(HealthCheck))
@given(PLAIN_PLANS)
def test_plain_life_tells_the_truth(plan: Plan) -> None:
    """The status is that of the job, whatever the job and its runner print, leave and exit with."""
    check(play(plan))


@settings(max_examples=LIVES, deadline=None, suppress_health_check=list(HealthCheck))
@given(PLANS)
@example(Plan())
@example(Plan(script=RunnerScript(listen_after=None), disk_full_after=1.0))
def test_invariants_hold_in_every_life(plan: Plan) -> None:
    """Whatever goes wrong, and whenever it dies, the instance goes and the queue hears one true status."""
    check(play(plan))


async def _nothing(*_: object, **__: object) -> None:
    pass


def _ignored(*_: object) -> None:
    pass


async def _yes(*_: object, **__: object) -> bool:
    return True


def _late(milestones: Milestones, limits: Limits) -> Watch:
    return evolve(next_watch(milestones, limits), at=1e9)


async def _unbounded(_seconds: float, _what: str, work: Coroutine[Any, Any, Any]) -> Any:
    return await work


async def _unverified(store: InMemoryBinaryStore, release: Release, *_: object) -> None:
    store.machine.installed = release


def _half(life: Life, line: OutputLine) -> None:
    life.emit(Printed(line))
    if "line" not in line.text:
        life.delivery.write(line.text)


async def _talkative(agent: Agent, registration: Registration) -> None:
    agent._life.warn(f"registering with {registration.token and registration.token.reveal()}")


async def _forgotten(chronicle: Chronicle) -> None:
    chronicle.dirty.clear()


PLANTED = {
    "the deadlines of the runner are gone": (supervision, "next_watch", _late),
    "the ending waits without a bound": (ending, "within", _unbounded),
    "terminate is skipped": (ending.Ending, "_terminate", _nothing),
    "the final message is dropped": (Messenger, "send_final", _yes),
    "the final message has another ID each time": (status, "message_id", lambda *_: str(uuid4())),
    "the runner's processes are left": (ending, "leave_no_process", _nothing),
    "descendants of the runner are left": (supervision, "leave_no_process", _nothing),
    "the digest is not looked at": (InMemoryBinaryStore, "install", _unverified),
    "lines are lost": (Life, "print", _half),
    "the token is in the log": (Agent, "_register", _talkative),
    "the journal is not written": (Chronicle, "_write", _forgotten),
    "the spool is not recovered": (LogDelivery, "recover", _ignored),
}


@pytest.mark.parametrize("what", PLANTED)
def test_planted_fault_is_found(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The invariants notice when one of the things that hold them is taken away."""
    owner, name, replacement = PLANTED[what]
    monkeypatch.setattr(owner, name, replacement)

    @settings(
        max_examples=2_000,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    # What is drawn depends on what else is loaded; what a journal is for shows after a crash only.
    @example(Plan(crashes=(50,)))
    @example(Plan(crashes=(70,)))
    @example(Plan(crashes=(90,)))
    @example(Plan(crashes=(70,), successor_reaps=False))
    @example(Plan(crashes=(170,)))
    @example(Plan(script=LOUD, troubles={"log_sink": Trouble(fail=1.0, most=2)}, crashes=(150,)))
    @given(PLANS)
    def live(plan: Plan) -> None:
        check(play(plan))

    with pytest.raises((AssertionError, SimulationError)):
        live()


def test_same_seed_same_life() -> None:
    """A plan replays to the last event, a thousand times in one process."""
    plan = Plan(
        seed=7,
        stops=(Stop(at=20.0),),
        troubles={"log_sink": Trouble(fail=0.5), "notifier": Trouble(fail=0.5, delay=0.3)},
    )
    first = play(plan).trace
    assert all(play(plan).trace == first for _ in range(999))


@pytest.mark.parametrize("crash_at", range(110, 215, 5))
@pytest.mark.parametrize("successor_reaps", [True, False])
@pytest.mark.parametrize("away", [2, 20])
def test_crash_with_lines_in_the_spool(crash_at: int, away: int, *, successor_reaps: bool) -> None:
    """The successor delivers them, whenever it was, and whether the sink was away for long or not."""
    sink = Trouble(fail=1.0, most=away)
    check(
        play(
            Plan(
                script=LOUD, troubles={"log_sink": sink}, crashes=(crash_at,), successor_reaps=successor_reaps
            )
        )
    )


@pytest.mark.parametrize("crash_at", range(215))
@pytest.mark.parametrize("successor_reaps", [True, False])
def test_crash_at_every_iteration(crash_at: int, *, successor_reaps: bool) -> None:
    """There is no moment of a plain life at which a crash is not made good by a successor."""
    check(play(Plan(crashes=(crash_at,), successor_reaps=successor_reaps)))


@pytest.mark.parametrize("crash_at", range(3, 215, 7))
def test_successor_crashes_at_every_iteration(crash_at: int) -> None:
    """Nor is there one of its successor's life at which the next one cannot take over."""
    for again_at in range(60):
        check(play(Plan(crashes=(crash_at, again_at))))

"""The table of phases: one way forward, one way down, and no way back."""

from collections.abc import Iterator, MutableMapping
from typing import Final, cast

import pytest

from agent_core.phases import TRANSITIONS, Phase

LIFE: Final = [
    "booting",
    "configuring",
    "provisioning",
    "registering",
    "listening",
    "running",
    "stopping",
    "reporting",
    "cleaning",
    "terminating",
    "terminated",
]
WORKING: Final = LIFE[: LIFE.index("stopping")]


def ways(phase: Phase) -> Iterator[tuple[Phase, ...]]:
    """Every way from a phase to an end."""
    if not TRANSITIONS[phase]:
        yield (phase,)
    for following in TRANSITIONS[phase]:
        for way in ways(following):
            yield (phase, *way)


def test_the_phases_are_those_of_the_wire() -> None:
    """Their values stand in messages and journals, in the order of a life."""
    assert [phase.value for phase in Phase] == LIFE
    assert list(TRANSITIONS) == list(Phase)


@pytest.mark.parametrize("phase", Phase)
def test_the_ways_out_of_a_phase(phase: Phase) -> None:
    """Forward by one step; at work, also to the stop; after the stop, also past the cleaning."""
    place = LIFE.index(phase)
    expected = set(LIFE[place + 1 : place + 2])
    if phase in WORKING:
        expected.add("stopping")
    if phase is Phase.REPORTING:
        expected.add("terminating")

    assert TRANSITIONS[phase] == {Phase(name) for name in expected}


def test_there_is_no_way_back() -> None:
    """Each step goes on in the order of a life: no phase comes twice."""
    for phase, following in TRANSITIONS.items():
        assert all(LIFE.index(each) > LIFE.index(phase) for each in following)


@pytest.mark.parametrize("phase", Phase)
def test_every_way_ends_with_the_instance_gone(phase: Phase) -> None:
    """From anywhere, each way leads to TERMINATED; from work, through STOPPING and REPORTING."""
    for way in ways(phase):
        assert way[-1] is Phase.TERMINATED
        if phase in WORKING:
            assert {Phase.STOPPING, Phase.REPORTING, Phase.TERMINATING} <= set(way)


def test_the_table_cannot_be_changed() -> None:
    """It is a literal."""
    table = cast("MutableMapping[Phase, frozenset[Phase]]", TRANSITIONS)
    with pytest.raises(TypeError):
        table[Phase.TERMINATED] = frozenset(Phase)

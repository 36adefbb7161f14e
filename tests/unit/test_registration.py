"""How the runner introduces itself: where, under which name, with what."""

from typing import Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent_core.life import AgentOptions
from agent_core.model import JobConfig, Registration, Secret
from agent_core.registration import registration_for

RELAXED: Final = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
TOKEN: Final = Secret("token")
INSTANCE_IDS: Final = st.from_regex(r"i-[0-9a-f]{8}([0-9a-f]{9})?", fullmatch=True)


def config(**values: object) -> JobConfig:
    wanted: dict[str, object] = {"org": "acme", "repo": "tool", "labels": ("a", "b"), "jit_token": TOKEN}
    return JobConfig(**(wanted | values))  # type: ignore[arg-type]


def options(**values: str) -> AgentOptions:
    return AgentOptions(**({"instance_id": "i-0123456789abcdef0", "arch": "arm64"} | values))  # type: ignore[arg-type]


def test_a_plain_job() -> None:
    """The repository's URL, a name of the instance's, the labels, the token."""
    assert registration_for(config(), options()) == Registration(
        url="https://github.com/acme/tool",
        name="runs-fleet-i-0123456789abcdef0",
        labels=("a", "b"),
        token=TOKEN,
    )


def test_everything_that_the_config_says() -> None:
    """Group, name and both secrets are passed on."""
    jit_config = Secret("jit")

    assert registration_for(
        config(runner_group="big", runner_name="the runner", jit_config=jit_config), options()
    ) == Registration(
        url="https://github.com/acme/tool",
        name="the runner",
        labels=("a", "b"),
        group="big",
        token=TOKEN,
        jit_config=jit_config,
    )


@pytest.mark.parametrize(
    ("repo", "is_org", "path"),
    [
        ("tool", False, "acme/tool"),
        ("acme/tool", False, "acme/tool"),
        ("other/tool", False, "other/tool"),
        ("tool", True, "acme"),
        ("other/tool", True, "acme"),
    ],
)
@pytest.mark.parametrize("base", ["https://github.com", "https://ghes.example/", "http://127.0.0.1:8080/x//"])
def test_where_the_runner_belongs(repo: str, is_org: bool, path: str, base: str) -> None:  # noqa: FBT001
    """To the repository, or to the organisation; on any GitHub."""
    registration = registration_for(config(repo=repo, is_org=is_org), options(github_url=base))

    assert registration.url == f"{base.rstrip('/')}/{path}"


@RELAXED
@given(INSTANCE_IDS, INSTANCE_IDS)
def test_names_are_unique_to_the_instance(one: str, other: str) -> None:
    """Two instances never have the same name: `--replace` would evict a live runner."""
    names = [registration_for(config(), options(instance_id=each)).name for each in (one, other)]

    assert (names[0] == names[1]) is (one == other)


@RELAXED
@given(st.text(max_size=200))
@example("i-" + "0" * 100)
def test_names_are_short_enough(instance_id: str) -> None:
    """GitHub refuses a name over 64 characters."""
    assert len(registration_for(config(), options(instance_id=instance_id)).name) <= 64

"""What the contract tests share: assertions that explain themselves, and a way to be refused by files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

import pytest

from agent_adapters.aws.clients import _TIMEOUTS

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.register_assert_rewrite("agent_core.testing.contracts")

NOBODY = 65534
PATIENCE_SECONDS = 60.0


class Unprivileged(Protocol):
    """Makes this process one that permissions count for, until the end of the test."""

    def __call__(self) -> None: ...


@pytest.fixture
def unprivileged() -> Iterator[Unprivileged]:
    """As root, this process is somebody else's for as long; as anybody else, it is as it is."""
    privileged = os.geteuid() == 0

    def drop() -> None:
        if privileged:
            try:
                os.seteuid(NOBODY)
            except OSError as exc:
                pytest.skip(f"root is not refused anything, and cannot be somebody else here: {exc}")

    yield drop
    if privileged:
        os.seteuid(0)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks AWS, or the metadata service, waits for as long as a machine may take that is busy."""
    for service in _TIMEOUTS:
        monkeypatch.setitem(_TIMEOUTS, service, (PATIENCE_SECONDS, PATIENCE_SECONDS))
    for name in ("_TIMEOUT_SECONDS", "_ANSWER_SECONDS"):
        monkeypatch.setattr(f"agent_adapters.aws.metadata.{name}", PATIENCE_SECONDS)

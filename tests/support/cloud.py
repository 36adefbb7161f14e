"""An agent's parts in profile `aws`, as the container makes them, against a cloud on this machine."""

from pathlib import Path
from random import Random
from typing import Any

from agent_app.container import Container
from agent_app.settings import Settings

INSTANCE_ID = "i-0123456789abcdef0"


def cloud_container(folder: Path, **settings: Any) -> Container:
    """The composition root, for an instance whose disk is the folder."""
    defaults: dict[str, Any] = {
        "profile": "aws",
        "instance_id": INSTANCE_ID,
        "aws_region": "eu-west-1",
        "state_dir": folder / "state",
        "runner_dir": folder / "machine" / "runner",
    }
    made = Container(settings=Settings(**defaults | settings), environ={}, observer=lambda _: None)
    made.rng.override(Random(0))
    return made

"""What the Listener was asked to do: its command line, ACTIONS_RUNNER_INPUT_<NAME>, and the file .env."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence
    from pathlib import Path

_PREFIX = "ACTIONS_RUNNER_INPUT_"
_COMMANDS = frozenset({"configure", "remove", "run"})
_FLAGS = frozenset(
    {"unattended", "ephemeral", "replace", "disableupdate", "no-default-labels", "once", "version"}
)
_ARGUMENTS = frozenset({"url", "token", "labels", "name", "runnergroup", "work", "jitconfig"})


def apply_env_file(file: Path, environment: MutableMapping[str, str]) -> None:
    """`K=V` a line sets, without quotes or comments; `K=` unsets; any other line is passed over."""
    if not file.exists():
        return
    for line in file.read_bytes().splitlines():
        key, separator, value = os.fsdecode(line).partition("=")
        if not (key and separator):
            continue
        if value:
            environment[key] = value
        else:
            environment.pop(key, None)


@dataclass(frozen=True)
class Inputs:
    """One command, with its flags and values; the command line wins over the environment."""

    commands: tuple[str, ...]
    flags: frozenset[str]
    arguments: Mapping[str, str]
    variables: Mapping[str, str]

    @classmethod
    def take(cls, argv: Sequence[str], environment: MutableMapping[str, str]) -> Inputs:
        """Read both, and remove every ACTIONS_RUNNER_INPUT_<NAME>: the Worker and the job never see one."""
        commands: list[str] = []
        flags: set[str] = set()
        arguments: dict[str, str] = {}
        rest = list(argv)
        while rest:
            word = rest.pop(0)
            if not word.startswith("--"):
                commands.append(word.lower())
            elif rest and not rest[0].startswith("--"):
                arguments[word[2:].lower()] = rest.pop(0)
            else:
                flags.add(word[2:].lower())
        names = [name for name in environment if name.upper().startswith(_PREFIX)]
        variables = {name[len(_PREFIX) :].lower(): environment.pop(name).strip() for name in names}
        return cls(tuple(commands), frozenset(flags), arguments, variables)

    @property
    def command(self) -> str:
        return self.commands[0] if self.commands else ""

    def value(self, name: str) -> str:
        return self.arguments.get(name) or self.variables.get(name, "")

    def flag(self, name: str) -> bool:
        return name in self.flags or self.variables.get(name, "").lower() == "true"

    def unknown(self) -> list[str]:
        """What the command line has that the runner does not know; `--key=value` is one."""
        return [
            *(word for word in self.commands if word not in _COMMANDS),
            *sorted(self.flags - _FLAGS),
            *(name for name in self.arguments if name not in _ARGUMENTS),
        ]

"""Faults in the agent's own process: what its `sitecustomize` does, which Python imports before the agent.

This module is copied beside each `sitecustomize`, and imports nothing that the agent may lack.
"""

import asyncio
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = [
    "UnprintableError",
    "at_job_start",
    "broken",
    "failing",
    "instead",
    "on_import",
    "once",
    "plant",
    "raising",
    "stubborn",
]


def plant(folder: Path, body: str, *commands: str) -> dict[str, str]:
    """The variables of an agent that runs the body first, if its command is one of those, or else `run`."""
    planted = folder / "planted"
    planted.mkdir()
    (planted / "planting.py").write_text(Path(__file__).read_text())
    lines = [
        "import sys",
        f"if {set(commands or ('run',))!r} & set(sys.orig_argv):",
        "    from planting import *",
    ]
    lines += [f"    {line}" for line in body.splitlines()]
    (planted / "sitecustomize.py").write_text("\n".join(lines) + "\n")
    return {"PYTHONPATH": str(planted)}


class UnprintableError(Exception):
    """What nobody can say a word about."""

    def __str__(self) -> str:
        raise ValueError("unprintable")

    __repr__ = __str__


def failing(exc: BaseException) -> Callable[..., Any]:
    """Raises whenever it is called."""

    def fail(*_args: object, **_kwargs: object) -> Any:
        raise exc

    return fail


async def raising(exc: BaseException) -> Any:
    """As `failing`, for a task or a port."""
    raise exc


def stubborn(loop: asyncio.AbstractEventLoop) -> None:
    """Starts a task that swallows every cancellation."""

    async def go_on() -> None:
        while True:
            with suppress(asyncio.CancelledError):
                await loop.create_future()

    _kept.append(loop.create_task(go_on()))


def once(function: Callable[..., Any], exc: BaseException) -> Callable[..., Any]:
    """The function, which raises when it is called first; or a port's method, when it is first awaited."""
    left = [exc]

    def call(*args: Any, **kwargs: Any) -> Any:
        if not left:
            return function(*args, **kwargs)
        if inspect.iscoroutinefunction(function):
            return raising(left.pop())
        raise left.pop()

    return call


def instead(module: str, path: str, make: Callable[[Any], Any]) -> None:
    """Has what is called so in the module, a method too, made into something else when it is imported."""

    def replace(holder: Any) -> None:
        *parts, name = path.split(".")
        for part in parts:
            holder = getattr(holder, part)
        setattr(holder, name, make(getattr(holder, name)))

    on_import(module, replace)


def at_job_start(act: Callable[[asyncio.AbstractEventLoop], object]) -> None:
    """Has that done, on the loop, when the job has begun."""

    def wrap(announce: Callable[[Any], None]) -> Callable[[Any], None]:
        def announced(self: Any) -> None:
            announce(self)
            loop = asyncio.get_running_loop()
            loop.call_soon(act, loop)

        return announced

    instead("agent_core.messenger", "Messenger.announce_start", wrap)


def on_import(name: str, act: Callable[[ModuleType], object]) -> None:
    """Has that done with the module when it has been imported."""
    _finder.acts[name] = act


def broken(name: str, exc: Exception) -> None:
    """The module cannot be imported."""
    _finder.broken[name] = exc


class _Finder(MetaPathFinder):
    def __init__(self) -> None:
        self.acts: dict[str, Callable[[ModuleType], object]] = {}
        self.broken: dict[str, Exception] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname in self.broken:
            raise self.broken[fullname]
        act = self.acts.pop(fullname, None)
        if act is None:
            return None
        spec: Any = importlib.util.find_spec(fullname)
        execute = spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            act(module)

        spec.loader.exec_module = execute_and_act
        found: ModuleSpec = spec
        return found


_kept: list[object] = []
_finder = _Finder()
sys.meta_path.insert(0, _finder)

"""What a sample run is to do: the keys of scenario.json, what each takes, and its default.

Standard library only, and imported by build.py too, which refuses a bad scenario before it is packed.
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

RESULTS = ("Succeeded", "SucceededWithIssues", "Failed", "Canceled", "Skipped", "Abandoned")
REGISTRATION_REFUSALS = ("bad_token", "not_found", "duplicate_name", "no_such_group")
SESSION_REFUSALS = ("deleted", "conflict")

_MIB = 1024 * 1024
_MAX_EXIT_CODE = 255
_MAX_SIGNAL = 64


class ScenarioError(ValueError):
    """Every problem of a scenario, a line each: the key, its value, and what it takes."""


@dataclass(frozen=True)
class Step:
    """A step of the job; where `run` is None, it runs `sample/job.sh`."""

    name: str
    run: str | None


@dataclass(frozen=True)
class Output:
    """What the Listener itself prints while the job runs."""

    lines: int = 0
    bytes_per_line: int = 80
    raw: bytes = b""


@dataclass(frozen=True)
class Crash:
    """How the Listener ends in the middle of the job: one of both."""

    signal: int | None = None
    code: int | None = None


@dataclass(frozen=True)
class Scenario:
    """The defaults are a job that runs `sample/job.sh` and ends as it does."""

    job_name: str = "sample"
    steps: tuple[Step, ...] = (Step("Run job", None),)
    result: str | None = None
    exit_result: str | None = None
    echo_steps: bool = True
    output: Output = field(default_factory=Output)
    stderr_lines: tuple[str, ...] = ()
    reconnects: int = 0

    refuse_registration: str | None = None
    reject_jit: bool = False
    refuse_session: str | None = None
    exit_codes: tuple[int, ...] = ()
    update: bool = False
    never_listen: bool = False
    assign_after_seconds: float = 0.0
    never_assign: bool = False
    assign_then_vanish: bool = False
    lost_job: bool = False
    crash_mid_job: Crash | None = None
    hang: bool = False
    hang_after_completed: bool = False
    ignore_sigint: bool = False
    cancel_seconds: float = 0.0
    clean_orphans: bool = True

    page_bytes: int = 8 * _MIB
    page_buffer_bytes: int = 0
    upload_seconds: float = 0.0
    step_sigint_seconds: float = 7.5
    step_sigterm_seconds: float = 2.5
    step_drain_seconds: float = 5.0
    term_limit_seconds: float = 30.0


class Kind(NamedTuple):
    """What a key takes, in words, and the function that reads it; that one raises ValueError."""

    takes: str
    read: Callable[[Any], object]


def parse(raw: Mapping[str, object]) -> Scenario:
    """Raises ScenarioError with every problem at once."""
    problems: list[str] = []
    values: dict[str, Any] = {}
    for key, value in raw.items():
        kind = KEYS.get(key)
        if kind is None:
            problems.append(f"scenario key {key!r} is unknown; there are: {', '.join(KEYS)}")
            continue
        try:
            values[key] = kind.read(value)
        except (ValueError, TypeError, KeyError):
            problems.append(f"scenario key {key!r}: {value!r} is not {kind.takes}")
    if problems:
        raise ScenarioError("\n".join(problems))
    return Scenario(**values)


def load(path: Path) -> Scenario:
    return parse(json.loads(path.read_text(encoding="utf-8")))


def _true_or_false(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _whole(least: int, most: int | None = None) -> Callable[[object], int]:
    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError
        if value < least or (most is not None and value > most):
            raise ValueError
        return value

    return read


def _seconds(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError
    if not math.isfinite(value) or value < 0:
        raise ValueError
    return float(value)


def _one_of(names: tuple[str, ...]) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError
        return value

    return read


def _list_of(read_item: Callable[[object], Any]) -> Callable[[object], tuple[Any, ...]]:
    def read(value: object) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        return tuple(read_item(item) for item in value)

    return read


def _object(value: object, **readers: Callable[[object], object]) -> dict[str, Any]:
    if not isinstance(value, dict) or not value or not value.keys() <= readers.keys():
        raise TypeError
    return {key: readers[key](item) for key, item in value.items()}


def _step(value: object) -> Step:
    parts = _object(value, name=_text, run=_text)
    script = parts["run"]
    return Step(parts.get("name") or f"Run {script.strip().partition(chr(10))[0]}", script)


def _output(value: object) -> Output:
    parts = _object(value, lines=_whole(0), bytes_per_line=_whole(0), raw_base64=_base64)
    return Output(raw=parts.pop("raw_base64", b""), **parts)


def _base64(value: object) -> bytes:
    return base64.b64decode(_text(value), validate=True)


def _crash(value: object) -> Crash:
    parts = _object(value, signal=_whole(1, _MAX_SIGNAL), code=_whole(0, _MAX_EXIT_CODE))
    if len(parts) != 1:
        raise ValueError
    return Crash(**parts)


_FLAG = Kind("true or false", _true_or_false)
_DURATION = Kind("a number of seconds, 0 or more", _seconds)

KEYS: Mapping[str, Kind] = {
    "job_name": Kind("a string", _text),
    "steps": Kind(
        'a list of {"name": string, "run": script}, where the name may be left out', _list_of(_step)
    ),
    "result": Kind(f"one of {', '.join(RESULTS)}", _one_of(RESULTS)),
    "exit_result": Kind(f"one of {', '.join(RESULTS)}", _one_of(RESULTS)),
    "echo_steps": _FLAG,
    "output": Kind(
        'an object with any of "lines", "bytes_per_line" (whole numbers) and "raw_base64"', _output
    ),
    "stderr_lines": Kind("a list of strings", _list_of(_text)),
    "reconnects": Kind("a whole number, 0 or more", _whole(0)),
    "refuse_registration": Kind(f"one of {', '.join(REGISTRATION_REFUSALS)}", _one_of(REGISTRATION_REFUSALS)),
    "reject_jit": _FLAG,
    "refuse_session": Kind(f"one of {', '.join(SESSION_REFUSALS)}", _one_of(SESSION_REFUSALS)),
    "exit_codes": Kind("a list of whole numbers from 0 to 255", _list_of(_whole(0, _MAX_EXIT_CODE))),
    "update": _FLAG,
    "never_listen": _FLAG,
    "assign_after_seconds": _DURATION,
    "never_assign": _FLAG,
    "assign_then_vanish": _FLAG,
    "lost_job": _FLAG,
    "crash_mid_job": Kind('either {"signal": 1 to 64} or {"code": 0 to 255}', _crash),
    "hang": _FLAG,
    "hang_after_completed": _FLAG,
    "ignore_sigint": _FLAG,
    "cancel_seconds": _DURATION,
    "clean_orphans": _FLAG,
    "page_bytes": Kind("a whole number of bytes, 1 or more", _whole(1)),
    "page_buffer_bytes": Kind("a whole number of bytes, 0 or more", _whole(0)),
    "upload_seconds": _DURATION,
    "step_sigint_seconds": _DURATION,
    "step_sigterm_seconds": _DURATION,
    "step_drain_seconds": _DURATION,
    "term_limit_seconds": _DURATION,
}

"""What `doctor` has found: how it reads, for people and for programs, and what it comes to."""

import json
import re
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from attrs import field, frozen

from agent_adapters.redaction import redact
from agent_app.exit_status import ExitStatus

__all__ = [
    "Finding",
    "Status",
    "as_json",
    "as_text",
    "exit_status_of",
    "failed",
    "fine",
    "print_findings",
    "skipped",
    "warning",
]

_LINE_END: Final = re.compile(r"(:?)\s*\n\s*")


class Status(StrEnum):
    """The values are those in the JSON."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


def _one_line(text: str) -> str:
    """The text on one line, without what moves a terminal's cursor, and without a URL's user and password."""
    text = _LINE_END.sub(lambda end: f"{end[1] or ';'} ", text.strip())
    text = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
    return redact(text)


@frozen
class Finding:
    """What one check has found."""

    status: Status
    found: str = field(converter=_one_line)
    fix: str = field(default="", converter=_one_line)
    """What to do about it; empty: nothing."""
    exit: ExitStatus = ExitStatus.OK
    """What `doctor` ends with for this alone."""
    check: str = ""


def fine(found: str) -> Finding:
    return Finding(Status.OK, found)


def skipped(found: str) -> Finding:
    """What could not be looked at, for a reason that another finding is about, or that is none."""
    return Finding(Status.SKIPPED, found)


def warning(found: str, fix: str) -> Finding:
    """A run works, but not as well as it could."""
    return Finding(Status.WARNING, found, fix)


def failed(found: str, fix: str, exit: ExitStatus = ExitStatus.CONFIG) -> Finding:  # noqa: A002
    """A run would not work."""
    return Finding(Status.FAILED, found, fix, exit)


def exit_status_of(findings: Sequence[Finding]) -> ExitStatus:
    """That of the worst: bad settings (78) before a fault of ours (70) before a service that refuses (69)."""
    return max((finding.exit for finding in findings), default=ExitStatus.OK)


# How it is shown

_LOOKS: Final = {
    Status.OK: ("✔", "+", "green"),
    Status.WARNING: ("!", "!", "yellow"),
    Status.FAILED: ("✘", "x", "bold red"),
    Status.SKIPPED: ("-", "-", "dim"),
}
"""The mark, the one for who has no such character, and the style."""


def as_json(findings: Sequence[Finding]) -> str:
    """An array of objects, in the order of the checks."""
    return json.dumps([_fields(finding) for finding in findings], indent=2)


def _fields(finding: Finding) -> dict[str, str]:
    fix = {"fix": finding.fix} if finding.fix else {}
    return {"check": finding.check, "status": finding.status, "found": finding.found, **fix}


def as_text(findings: Sequence[Finding], encoding: str | None = None) -> str:
    """A line for each, its fix on the next one, and the sum of it all."""
    encoding = encoding or "utf-8"
    column = _can_show_marks(encoding)
    text = "\n".join(f"{_LOOKS[status][column]} {line}" for status, line in _lines(findings))
    return text.encode(encoding, "replace").decode(encoding)


def _can_show_marks(encoding: str) -> int:
    """The column of the marks that this encoding has."""
    try:
        "".join(look[0] for look in _LOOKS.values()).encode(encoding)
    except UnicodeEncodeError:
        return 1
    return 0


def _lines(findings: Sequence[Finding]) -> list[tuple[Status, str]]:
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for finding in findings:
        fix = f"\n{' ' * (width + 4)}fix: {finding.fix}" if finding.fix else ""
        lines.append((finding.status, f"{finding.check:<{width}}  {finding.found}{fix}"))
    return [*lines, _sum_of(findings)]


def _sum_of(findings: Sequence[Finding]) -> tuple[Status, str]:
    count = sum(finding.status is Status.FAILED for finding in findings)
    if not count:
        return Status.OK, "a run would work"
    return Status.FAILED, f"a run would not work: {count} {'thing' if count == 1 else 'things'} to fix"


def print_findings(findings: Sequence[Finding]) -> None:
    """In colour, on a stdout that is a terminal."""
    from rich.console import Console  # noqa: PLC0415 - only people pay for it
    from rich.text import Text  # noqa: PLC0415

    console = Console(file=sys.stdout, highlight=False)
    for status, line in _lines(findings):
        mark, plain, style = _LOOKS[status]
        head, _, fix = line.partition("\n")
        shown = mark if console.encoding.startswith("utf") else plain
        console.print(Text.assemble((shown, style), f" {head}"), soft_wrap=True)
        if fix:
            console.print(Text(fix, "dim"), soft_wrap=True)

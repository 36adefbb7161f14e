"""What benchmarks share: medians of rounds in turn, memory, and the verdict on what was promised."""

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from attrs import frozen

__all__ = ["Figure", "medians", "memory_bytes", "print_table", "report"]

_MISSED: Final = 1


@frozen
class Figure:
    """One number that is promised."""

    name: str
    value: float
    limit: float
    unit: str = ""
    bound: Literal["at most", "at least"] = "at most"

    @property
    def is_kept(self) -> bool:
        return self.value <= self.limit if self.bound == "at most" else self.value >= self.limit

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        verdict = "" if self.is_kept else "  MISSED"
        return f"{self.name}: {self.value:.2f}{unit} ({self.bound} {self.limit:g}{unit}){verdict}"


def report(figures: Sequence[Figure]) -> int:
    """Prints each figure; the exit status, 1 if one of them is missed."""
    for figure in figures:
        print(figure)
    return 0 if all(figure.is_kept for figure in figures) else _MISSED


def medians(
    contenders: Mapping[str, Callable[[], float]], rounds: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The median of each, and all that were measured; in turn, so that a slow moment is everybody's.

    A contender returns what it has measured.
    """
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            measured[name].append(contender())
    return {name: statistics.median(values) for name, values in measured.items()}, measured


def print_table(measured: Mapping[str, Sequence[float]], unit: str) -> None:
    """A line for each name: median, least and most."""
    width = max(map(len, measured))
    print(f"{'':{width}}  {'median':>8}  {'least':>8}  {'most':>8}  {unit}")
    for name, values in measured.items():
        middle, least, most = statistics.median(values), min(values), max(values)
        print(f"{name:{width}}  {middle:8.3f}  {least:8.3f}  {most:8.3f}")
    print()


def memory_bytes(name: Literal["VmRSS", "VmHWM"], pid: int | str = "self") -> int:
    """Of a process, now or at its peak."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"the kernel does not tell {name}")
    return int(found[1]) * 1024

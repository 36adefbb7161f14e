"""For people: phases as headings, a bar for the download, the job's output as it comes, the end in full."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.json import JSON
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.text import Text

from agent_adapters.wire import message_to_json
from agent_app.display import Display, in_short
from agent_core.ending import Outcome
from agent_core.events import (
    Downloading,
    Event,
    Failed,
    JobCompleted,
    PhaseEntered,
    Printed,
    StopRequested,
    Warned,
)
from agent_core.model import Status

__all__ = ["TerminalDisplay"]


class TerminalDisplay(Display):
    """Writes to a stderr that is a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Downloading):
            self._show_download(event)
            return
        self._end_download()
        match event:
            case PhaseEntered(phase):
                self._console.print(f"● {phase}", style="bold cyan")
            case Printed(line):
                # Colours of the job's output are kept; no other escape sequence gets through.
                self._console.print(Text("  │ ", "dim") + Text.from_ansi(line.text), soft_wrap=True)
            case JobCompleted(result=result):
                self._print(f"  {event}", "green" if result.is_success else "red")
            case Failed():
                self._print(f"  {event}", "red")
            case StopRequested() | Warned():
                self._print(f"  {event}", "yellow")
            case _:
                self._print(f"  {event}", "dim")

    def close(self, outcome: Outcome, files: Mapping[str, Path]) -> None:
        self._end_download()
        good = outcome.message is not None and outcome.message.status is Status.SUCCESS
        self._print(f"\n■ {in_short(outcome)}", "bold green" if good else "bold red")
        if outcome.message is not None:
            self._console.print(JSON(message_to_json(outcome.message)))
        for name, path in files.items():
            self._print(f"  {name:<14} {path}")

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style), soft_wrap=True)

    def _show_download(self, event: Downloading) -> None:
        if self._bar is None:
            columns = TextColumn("  downloading"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.add_task("download", total=event.total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=event.done, total=event.total)

    def _end_download(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

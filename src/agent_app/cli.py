"""The command line: `run`, `reap`, `install-units`, `config`, `doctor`."""

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from agent_adapters.accounts import account_fault
from agent_adapters.host import why_unwritable
from agent_adapters.systemd import death_of, is_service_running
from agent_adapters.wire import message_to_json
from agent_app.container import container_of
from agent_app.display import Aside, Unseen
from agent_app.exit_status import ExitStatus, exit_status
from agent_app.identity import identified, metadata_of
from agent_app.running import live, reap
from agent_app.settings import Loaded, Settings, add_arguments, describe, flags_of, load, secret_flags
from agent_core import __version__
from agent_core.ending import Outcome
from agent_core.errors import AgentAliveError, SettingsError
from agent_core.events import Warned
from agent_core.recovery import Death

__all__ = ["main"]

_UNIT_DIR = Path("/etc/systemd/system")
_UNIT_VARIABLES = Path("/etc/runs-fleet/agent.env")
_ABOUT = "Turns this machine into a GitHub Actions runner for exactly one job, then makes it disappear."

_Command = Callable[[argparse.Namespace, Loaded, Sequence[signal.Signals]], ExitStatus]


def main(arguments: Sequence[str], early: Sequence[signal.Signals] = ()) -> int:
    """The exit status of one command; `early` are the signals that came before it began."""
    try:
        parsed = _parser().parse_args(arguments)
    except SystemExit as exc:  # of argparse: for `run`, any other one is a fault
        return int(exc.code or ExitStatus.OK)
    command: _Command = parsed.command
    return command(parsed, load(vars(parsed), os.environ), early)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(ExitStatus.USAGE, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="runs-fleet-agent", description=_ABOUT, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    run = _add_command(commands, "run", _run, "run one job, then terminate the instance")
    run.add_argument("--json", action="store_true", help="write the final message as the last line of stdout")
    run.add_argument("--reflect-job", action="store_true", help="exit with 1 for a job that did not succeed")
    reaping = _add_command(
        commands, "reap", _reap, "finish what an agent left that has died, then terminate the instance"
    )
    # What `run` becomes where it cannot go on: the same process, begun anew.
    reaping.add_argument("--fault", default=None, help=argparse.SUPPRESS)
    units = _add_command(
        commands, "install-units", _install_units, "write the systemd units that run the agent, and end it"
    )
    units.add_argument(
        "--unit-dir", type=Path, default=_UNIT_DIR, metavar="PATH", help=f"where to [{_UNIT_DIR}]"
    )
    _add_command(commands, "config", _config, "show the settings, and where each comes from")
    doctor = _add_command(commands, "doctor", _doctor, "check each thing that a run needs, without a run")
    doctor.add_argument("--json", action="store_true", help="write a JSON array instead of lines for people")
    return parser


def _add_command(commands: Any, name: str, command: _Command, text: str) -> argparse.ArgumentParser:
    about = f"{text[0].upper()}{text[1:]}."
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=about, allow_abbrev=False
    )
    parser.set_defaults(command=command)
    add_arguments(parser)
    return parser


# run and reap


def _run(parsed: argparse.Namespace, loaded: Loaded, early: Sequence[signal.Signals]) -> ExitStatus:
    settings, errors = loaded.settings, list(loaded.errors)
    if settings.profile == "aws":
        if errors and {"profile", "job", "runner_archive"} & vars(parsed).keys():
            # Somebody meant another profile: that is no reason to terminate the machine they sit at.
            return _refuse(ExitStatus.USAGE, *errors)
        settings, unknown = identified(settings, metadata_of(os.environ), hurry=early)
        errors += unknown
    elif why_unwritable(settings.state_dir, make=True):
        # There is nothing here that could be terminated, nor a place to write down that it was asked for.
        return _refuse(ExitStatus.CONFIG, *errors, _unwritable(settings))
    if fault := account_fault(settings.runner_user):
        errors.append(f"RUNS_FLEET_RUNNER_USER: {fault}")
    display = _make_display(settings.instance_id or "")
    refused = SettingsError("\n".join(errors)) if errors else None
    try:
        outcome = live(container_of(settings, display, os.environ), refused, early)
    except AgentAliveError as exc:
        return _refuse(ExitStatus.USAGE, str(exc))
    shown = display.close(outcome, _files(settings, outcome))
    if parsed.json and outcome.message is not None:
        _print_last(message_to_json(outcome.message))
    return _ended(exit_status(outcome, reflect_job=parsed.reflect_job), shown=shown)


def _reap(parsed: argparse.Namespace, loaded: Loaded, _early: Sequence[signal.Signals]) -> ExitStatus:
    settings = loaded.settings
    death = Death(cause=parsed.fault) if parsed.fault else death_of(os.environ)
    if settings.profile == "aws" and death is None and is_service_running():
        # Called by hand, maybe without the service's settings: reap comes after it by itself.
        _tell("the service runs: there is nothing to finish")
        return ExitStatus.OK
    if "state_dir" in loaded.faulty and death is None:
        # Who knows which agent this is about, and whether it is alive? One that has died had the default.
        return _refuse(ExitStatus.CONFIG, *loaded.errors)
    if settings.profile == "aws":
        settings, _ = identified(settings, metadata_of(os.environ))
    display = _make_display(settings.instance_id or "")
    # It needs no job and no archive, and a value that is wrong is no reason to leave an instance behind.
    for error in loaded.errors:
        display(Warned(error))
    container = container_of(settings, display, os.environ)
    outcome = reap(container, death or Death())
    shown = outcome is None or display.close(outcome, _files(settings, outcome))
    status = ExitStatus.OK if outcome is None else exit_status(outcome)
    return _ended(status if parsed.fault is None else ExitStatus.SOFTWARE, shown=shown)


def _ended(status: ExitStatus, *, shown: bool) -> ExitStatus:
    if not shown or not _flushed():
        # Python would wait for stderr at its exit, for as long as nobody reads it; or exit with 120.
        os._exit(status)
    return status


def _flushed() -> bool:
    """Whether nothing is left for Python to write at its exit: whoever took it may be gone."""
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except (OSError, ValueError):
        return False
    return True


def _make_display(instance_id: str) -> Aside:
    """The display that fits stderr; the other is not imported, since that costs boot time."""
    try:
        if sys.stderr is not None and sys.stderr.isatty():
            from agent_app.terminal import TerminalDisplay  # noqa: PLC0415

            return Aside(TerminalDisplay())
        from agent_app.json_lines import JsonLinesDisplay  # noqa: PLC0415

        return Aside(JsonLinesDisplay(instance_id))
    except Exception as exc:  # noqa: BLE001 - a life that nobody watches ends as any other
        display = Aside(Unseen())
        _tell(f"nothing is shown: {exc!r}")
        return display


def _print_last(line: str) -> None:
    """The last line of stdout, if anybody takes it: Python must not try again at its exit."""
    try:
        print(line, flush=True)  # noqa: T201 - what --json asks for
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _unwritable(settings: Settings) -> str:
    return f"--state-dir: {settings.state_dir} cannot be written; name another folder"


def _files(settings: Settings, outcome: Outcome) -> Mapping[str, Path]:
    """Where a person finds what was written."""
    folder = settings.state_dir.absolute()
    if settings.profile == "aws":
        return {"journal": folder / "journal.json"}
    logs = {} if outcome.stream is None else {"log": folder / "logs" / f"{outcome.stream}.log"}
    return logs | {
        "messages": folder / "notifications.jsonl",
        "terminations": folder / "terminations.jsonl",
        "journal": folder / "journal.json",
    }


# install-units


def _install_units(
    parsed: argparse.Namespace, loaded: Loaded, _early: Sequence[signal.Signals]
) -> ExitStatus:
    # The other commands do not wait for what it imports.
    from agent_app.units import install_units  # noqa: PLC0415

    command = shutil.which(sys.argv[0])
    errors = [*loaded.errors]
    for flag, variable in secret_flags(vars(parsed), loaded.settings).items():
        fix = f"put {variable} into {_UNIT_VARIABLES} (mode 0600)"
        errors.append(f"{flag}: everybody may read the units, and this may be secret; {fix}")
    if command is None:
        errors.append(f"{sys.argv[0]}: systemd cannot start this; call the installed command by its path")
    if command is None or errors:
        return _refuse(ExitStatus.CONFIG, *errors)
    flags = flags_of(vars(parsed))
    try:
        for path in install_units(parsed.unit_dir, Path(command).absolute(), flags, loaded.settings):
            print(path)  # noqa: T201 - what the command is for
    except OSError as exc:
        reason = f"{parsed.unit_dir} cannot be written ({exc.strerror})"
        return _refuse(ExitStatus.CONFIG, f"--unit-dir: {reason}; be root, or name another folder")
    if not loaded.settings.poweroff:
        _tell(f"the power-off is not armed: RUNS_FLEET_POWEROFF=1 in {_UNIT_VARIABLES} arms it")
    _tell(
        "next: systemctl daemon-reload && systemctl enable runs-fleet-agent runs-fleet-agent-poweroff.timer"
    )
    return ExitStatus.OK


# config


def _config(_parsed: argparse.Namespace, loaded: Loaded, _early: Sequence[signal.Signals]) -> ExitStatus:
    rows = describe(loaded)
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, source in rows:
        print(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {source}")  # noqa: T201 - what the command is for
    return _refuse(ExitStatus.CONFIG, *loaded.errors) if loaded.errors else ExitStatus.OK


# doctor


def _doctor(parsed: argparse.Namespace, loaded: Loaded, _early: Sequence[signal.Signals]) -> ExitStatus:
    # The other commands do not wait for what it imports.
    from agent_app.doctor.examination import examine  # noqa: PLC0415
    from agent_app.doctor.findings import as_json, as_text, exit_status_of, print_findings  # noqa: PLC0415

    findings = examine(loaded, os.environ)
    if parsed.json:
        _print_last(as_json(findings))
    elif sys.stdout is not None and sys.stdout.isatty():
        print_findings(findings)
    else:
        _print_last(as_text(findings, getattr(sys.stdout, "encoding", None)))
    return exit_status_of(findings)


def _refuse(status: ExitStatus, *reasons: str) -> ExitStatus:
    _tell(*reasons)
    return status


def _tell(*lines: str) -> None:
    with suppress(OSError, ValueError):  # nobody is there to be told
        for line in lines:
            print(f"runs-fleet-agent: {line}", file=sys.stderr)  # noqa: T201

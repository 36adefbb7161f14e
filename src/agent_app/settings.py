"""The settings of one run: what may be set, where each value comes from, and what is wrong with it.

`Settings` is the table. A field is a setting, and its name gives the flag (`--max-runtime`), the variable
(`RUNS_FLEET_MAX_RUNTIME`, unless its row has `env`) and the key in the TOML file (`max_runtime`).
Precedence: flag, environment, file, default.
"""

# ruff: noqa: RUF009  # `_row` is `attrs.field`

import re
import shlex
import tomllib
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from attrs import evolve, field, fields, frozen
from cattrs import ClassValidationError, Converter
from cattrs.gen import make_dict_structure_fn, override

from agent_core.model import Limits

__all__ = [
    "DEFAULT_CONFIG_FILE",
    "Loaded",
    "Profile",
    "Settings",
    "add_arguments",
    "describe",
    "flags_of",
    "load",
    "secret_flags",
]

Profile = Literal["aws", "local"]

DEFAULT_CONFIG_FILE: Final = Path("/etc/runs-fleet/agent.toml")
_MB_BYTES: Final = 1024 * 1024
_SHOWN_CHARS: Final = 80
_ID: Final = "{instance-id}"
_LOCAL_ONLY: Final = frozenset({"job", "runner_archive"})
_VARIABLE: Final = r"(?a:[A-Za-z_]\w*)"
_RESERVED: Final = r"(?is:ACTIONS_RUNNER_.*)|RUNNER_(AGENT_TRACKING_ID|ALLOW_RUNASROOT|PERFLOG)"
_LINE: Final = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]*"


@frozen
class _Kind:
    """A kind of value: how it is written, read and shown."""

    metavar: str
    takes: str  # completes "'x' is not …"
    pattern: str = ""
    build: Callable[[str], Any] = str  # of a text that matches; raises where it still is no such value
    natives: tuple[type, ...] = ()  # the types that TOML has for such a value, beside strings
    render: Callable[[Any], str] = str

    def structure(self, raw: Any, _: object) -> Any:
        """Read a text, or what TOML has for it; raises for anything else."""
        text = f"{Decimal(raw):f}" if type(raw) in self.natives else raw
        if not (re.fullmatch(self.pattern, text) and text.isprintable()):
            raise ValueError(raw)
        return self.build(text)

    def fault(self, raw: Any, _: BaseException, /) -> str:
        """Say what is wrong with what `structure` has raised for."""
        return f"{_shown(raw)} is not {self.takes}"

    def show(self, value: object) -> str:
        return "unset" if value in (None, ()) else self.render(value)

    def is_secret(self, value: object) -> bool:
        """Whether `show` hides some of the value."""
        return isinstance(value, str) and self.render(value) != value


@frozen
class _Veiled(_Kind):
    """A kind with secrets: `build` takes whatever was set, and the text of what it raises may be shown."""

    def structure(self, raw: Any, _: object) -> Any:
        return self.build(raw)

    def fault(self, _: Any, error: BaseException, /) -> str:
        return f"{error}; it takes {self.takes}"

    def is_secret(self, _: object) -> bool:
        return True


def _amount(one: Any, unit: str, least: str, lowest: Any, highest: Any, *, decimals: bool = False) -> _Kind:
    """A number of `one`: the value, from `lowest` to `highest`, has the type of `one`."""
    number, noun, pattern = (float, "number", r"\d+(\.\d+)?") if decimals else (int, "whole number", r"\d+")

    def build(text: str) -> Any:
        value = number(text) * one
        if not lowest <= value <= highest:
            raise ValueError(text)
        return value

    def render(value: Any) -> str:  # eight decimals of a minute are less than a microsecond
        return f"{value / one:.8f}".rstrip("0").rstrip(".") + f" {unit}"

    takes = f"a {noun} of {unit}, {least} (at most {highest / one:.0f})"
    return _Kind("N", takes, f"(?a:{pattern})", build, (int, number), render)


def _redact(text: str) -> str:
    """Hide the user and password of a URL: all before the last `@`, as the URL may be malformed."""
    return re.sub(r"(?s)\A([A-Za-z][A-Za-z0-9+.-]*://)?.*@", r"\1***@", text)


def _variables(raw: Any) -> tuple[tuple[str, str], ...]:
    """Read a table of variables, or the words that a shell would make of a text.

    Raises ValueError or TypeError, which say which one is wrong, and why, and show no value.
    """
    if isinstance(raw, dict):
        entries = [(_shown(name), name, value) for name, value in raw.items()]
    elif isinstance(raw, str):
        entries = [_entry(number, word) for number, word in enumerate(shlex.split(raw) or [""], 1)]
    else:
        raise TypeError("neither a text nor a table")
    pairs: dict[str, str] = {}
    for label, name, value in entries:
        faults = {
            "no NAME of letters, digits, _ (no digit first)": not re.fullmatch(_VARIABLE, name),
            "it is the agent's own (hooks have settings of their own)": re.fullmatch(_RESERVED, name),
            "it is there twice": name in pairs,
            "its value is not one line of text": not (isinstance(value, str) and re.fullmatch(_LINE, value)),
        }
        if reasons := [reason for reason, is_so in faults.items() if is_so]:
            raise ValueError(f"{label}: {reasons[0]}")
        pairs[name] = value
    return tuple(pairs.items())


def _entry(number: int, word: str) -> tuple[str, str, str]:
    """Give what an error may call a word, its NAME, empty where there is none, and its value.

    What stands before = may be of a secret, too: many a one in base64 ends in it.
    """
    name, equals, value = word.partition("=")
    may_be_told = re.fullmatch(rf"(?s:{_VARIABLE}=.*|(?a:[\w.-]+)=.*[^=])", word)
    return _shown(name) if may_be_told else f"word {number}", name if equals else "", value


_MINUTE, _SECOND, _DAY = timedelta(minutes=1), timedelta(seconds=1), timedelta(days=1)
_WHOLE: Final = _amount(_MINUTE, "minutes", "1 or more", _MINUTE, 30 * _DAY)
_MINUTES: Final = _amount(_MINUTE, "minutes", "above 0", timedelta.resolution, 30 * _DAY, decimals=True)
_SECONDS: Final = _amount(_SECOND, "seconds", "0 or more", 0 * _SECOND, _DAY, decimals=True)
_MB: Final = _amount(1, "MB", "0 or more", 0, 10**9)
_SWITCH: Final = _Kind("0|1", "0 or 1 (in TOML true or false)", "0|1", "1".__eq__, (bool, int), "{:d}".format)
_PATH: Final = _Kind("PATH", "a path (~ written out, no control characters)", r"[^~\s](.*\S)?", Path)
_SCRIPT: Final = _Kind("PATH", "an absolute path (no control characters)", r"/.*\S", Path)
_URL: Final = _Kind(
    "URL",
    "a URL with http:// or https:// and a host",
    r"https?://([^\s/?#]*@)?(?a:[\w.-]+|\[[\w:.]+\])(?a::\d+)?([/?#]\S*)?",
    lambda text: (text, urlsplit(text).port)[0],  # raises for a port, or an address in [], that cannot be
    render=_redact,
)
_PROFILE: Final = _Kind("PROFILE", "aws or local", "aws|local")
_NAME: Final = _Kind("NAME", "a name (letters, digits, _ . -)", r"(?a:\w[\w.-]*)")
_REGION: Final = _Kind("REGION", "a region such as eu-west-1", "[a-z0-9]+(-[a-z0-9]+)+")
_SSM: Final = _Kind("NAME", f"a parameter name (may hold {_ID}, no space)", rf"(?a:([\w./:-]|{_ID})+)")
_LOGS: Final = _Kind("NAME", "a log group name (letters, digits, _ . - / #)", r"(?a:[\w./#-]+)")
_VERSION: Final = _Kind("VERSION", "latest or a version 2.x.y", r"latest|2(?a:\.\d{1,6}){2}")
_VARIABLES: Final = _Veiled(
    "NAME=value",
    "NAME=value words, quoted as for a shell (in TOML a table of strings)",
    build=_variables,
    render=lambda pairs: " ".join(f"{name}=***" for name, _ in pairs),
)


@frozen
class _Row:
    """What the table says of a setting, beside its default."""

    kind: _Kind
    about: str
    group: str = ""  # the title of the group of flags that begins here
    env: str | None = None  # the variable; None: RUNS_FLEET_ and the field's name; "": there is none
    alias: str = ""  # another variable


def _row(kind: _Kind, default: object, about: str, **more: str) -> Any:
    return field(default=default, repr=kind.show, metadata={_Row: _Row(kind, about, **more)})


@frozen(kw_only=True)
class Settings:
    """Every setting, checked. Times are `timedelta`; a MB is 1,048,576 bytes."""

    profile: Profile = _row(_PROFILE, "aws", "aws, or local: no cloud at all", group="what to run", env="")
    job: Path | None = _row(_PATH, None, "config of the job, JSON (local)", env="")
    runner_archive: Path | None = _row(_PATH, None, "runner tarball, or folder of them (local)", env="")

    instance_id: str | None = _row(_NAME, None, "EC2 instance ID, else from metadata", group="instance")
    state_dir: Path = _row(_PATH, Path("/var/lib/runs-fleet-agent"), "for the journal and the log spool")
    poweroff: bool = _row(_SWITCH, default=False, about="1: power off when termination fails")

    aws_region: str | None = _row(_REGION, None, "region, else from metadata", group="AWS", env="AWS_REGION")
    ssm_parameter: str = _row(_SSM, f"/runs-fleet/runners/{_ID}/config", "name of the config parameter")
    log_group: str | None = _row(_LOGS, None, "CloudWatch Logs group, else the journal only")
    termination_queue_url: str | None = _row(_URL, None, "SQS queue of messages; the job's config wins")
    config_bucket: str | None = _row(_NAME, None, "S3 bucket of the runner cache, else no cache")

    runner_version: str = _row(_VERSION, "latest", "2.x.y or latest; the job's config wins", group="runner")
    runner_dir: Path = _row(_PATH, Path("/opt/actions-runner"), "root folder (local: runner in STATE_DIR)")
    runner_user: str | None = _row(_NAME, None, "else 'runner' if the agent is root, or its own user")
    github_url: str = _row(_URL, "https://github.com", "GitHub's web base, to register at")
    github_api_url: str = _row(_URL, "https://api.github.com", "GitHub's REST base")
    s3_cache_endpoint: str | None = _row(_URL, None, "the job's ACTIONS_CACHE_URL; the job's config wins")
    job_started_hook: Path | None = _row(_SCRIPT, None, "script that the runner runs before the job")
    job_completed_hook: Path | None = _row(_SCRIPT, None, "script that it runs after the job")
    job_environment: tuple[tuple[str, str], ...] = _row(_VARIABLES, (), "further variables of the job")

    max_runtime: timedelta = _row(
        _WHOLE, 360 * _MINUTE, "longest run of a job", group="limits", alias="RUNS_FLEET_MAX_RUNTIME_MINUTES"
    )
    standby_minutes: timedelta = _row(_MINUTES, 10 * _MINUTE, "longest wait for a config")
    idle_minutes: timedelta = _row(_MINUTES, 10 * _MINUTE, "longest wait for the job, once registered")
    shutdown_grace_seconds: timedelta = _row(_SECONDS, 90 * _SECOND, "for the runner to stop by itself")
    min_free_disk_mb: int = _row(_MB, 500, "less free disk space stops the job")
    min_free_memory_mb: int = _row(_MB, 200, "less available memory gives a warning")

    def ssm_parameter_for(self, instance_id: str) -> str:
        """Name the config parameter of an instance."""
        return self.ssm_parameter.replace(_ID, instance_id)

    @property
    def hooks(self) -> dict[str, Path]:
        """The scripts around the job that are set, by `JOB_STARTED` and `JOB_COMPLETED`."""
        hooks = {"JOB_STARTED": self.job_started_hook, "JOB_COMPLETED": self.job_completed_hook}
        return {moment: path for moment, path in hooks.items() if path is not None}

    @property
    def job_variables(self) -> dict[str, str]:
        """What settings put into the job's environment, secrets too; `job_environment` has the last word."""
        cache = {} if self.s3_cache_endpoint is None else {"ACTIONS_CACHE_URL": self.s3_cache_endpoint}
        hooks = {f"ACTIONS_RUNNER_HOOK_{moment}": str(path) for moment, path in self.hooks.items()}
        return cache | hooks | dict(self.job_environment)

    @property
    def limits(self) -> Limits:
        return Limits(
            max_runtime=self.max_runtime,
            standby=self.standby_minutes,
            idle=self.idle_minutes,
            shutdown_grace=self.shutdown_grace_seconds,
            min_free_disk_bytes=self.min_free_disk_mb * _MB_BYTES,
            min_available_memory_bytes=self.min_free_memory_mb * _MB_BYTES,
        )


_TABLE: Final[Mapping[str, _Row]] = {a.name: a.metadata[_Row] for a in fields(Settings)}
_HOOKS: Final[dict[str, Any]] = {n: override(struct_hook=row.kind.structure) for n, row in _TABLE.items()}
_SETTINGS_OF: Final = make_dict_structure_fn(Settings, Converter(), **_HOOKS)


@frozen(kw_only=True)
class Loaded:
    """What `load` found."""

    settings: Settings
    """A faulty value is replaced by its default, so that the instance can still be terminated."""
    errors: tuple[str, ...]
    """A line each: what is set, where, and what it takes; without secrets."""
    faulty: frozenset[str]
    """The fields with such a value."""
    sources: Mapping[str, str]
    """For each field, where its value was set, or `default`, or `default (local)`."""


@frozen
class _Place:
    layer: str
    name: str
    raw: Any


def load(flags: Mapping[str, str], environ: Mapping[str, str], file: Path = DEFAULT_CONFIG_FILE) -> Loaded:
    """Gather the settings and all that is wrong with them; never raises.

    `flags` has the texts of the flags that were given, under the fields' names; other names are left alone.
    Its `config_file` must be there; without it, `file` is read where there is one. An empty variable counts
    as unset. A value that another one overrides is not checked.
    """
    path = Path(flags.get("config_file", file))
    given, errors = _read(path, required="config_file" in flags)
    given |= {n: place for n in _TABLE if (place := next(_places(n, flags, environ), None))}
    settings, faults = _structure(given)
    local = settings.profile == "local"
    if local and "job" not in given:
        faults["job"] = "--job: missing; profile local runs the job that this file describes"
    stray = given.keys() & (() if local else _LOCAL_ONLY)
    if "profile" not in faults:
        faults |= {n: f"{given[n].name}: only profile local takes it; add --profile local" for n in stray}
    sound = {n: place for n, place in given.items() if n not in faults.keys() | stray}
    settings, _ = _structure(sound)
    own: dict[str, Any] = (
        {"instance_id": "local", "runner_dir": settings.state_dir / "runner"} if local else {}
    )
    own = {n: value for n, value in own.items() if n not in sound}
    sources = dict.fromkeys(_TABLE, "default") | dict.fromkeys(own, "default (local)")
    return Loaded(
        settings=evolve(settings, **own),
        errors=(*errors, *(faults[n] for n in _TABLE if n in faults)),
        faulty=frozenset(faults),
        sources=sources | {n: f"{place.layer} {place.name}" for n, place in sound.items()},
    )


def describe(loaded: Loaded) -> list[tuple[str, str, str]]:
    """Give each setting's name, value with its unit, and source; without secrets."""
    return [(n, row.kind.show(getattr(loaded.settings, n)), loaded.sources[n]) for n, row in _TABLE.items()]


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags, as texts for `load` to check, each under its field's name; one not given is absent."""
    group = parser.add_argument_group("settings", "In brackets: the variable, and the default.")
    about = f"TOML file of settings [{DEFAULT_CONFIG_FILE}]"
    group.add_argument("--config-file", metavar="PATH", default=SUPPRESS, help=about)
    for attribute in fields(Settings):
        name, row, default = attribute.name, _TABLE[attribute.name], attribute.default
        flag, *variables = _names(name)
        group = parser.add_argument_group(row.group) if row.group else group
        about = f"{row.about} [{', '.join((*variables[:1], row.kind.show(default)))}]"
        group.add_argument(flag, dest=name, metavar=row.kind.metavar, default=SUPPRESS, help=about)


def flags_of(parsed: Mapping[str, Any]) -> list[str]:
    """Give the command line again that `parsed` was made from, as far as it is about settings.

    Its paths are absolute, and so mean the same wherever it is used.
    """
    texts = {name: parsed[name] for name in ("config_file", *_TABLE) if name in parsed}
    paths = {"config_file"} | {name for name, row in _TABLE.items() if row.kind is _PATH}
    absolute = {name: str(Path(text).absolute()) if name in paths else text for name, text in texts.items()}
    return [word for name, text in absolute.items() for word in (_flag(name), text)]


def secret_flags(parsed: Mapping[str, Any], settings: Settings) -> dict[str, str]:
    """Give the flags that were given with what nobody else may read, each with its variable."""
    given = [n for n, row in _TABLE.items() if n in parsed and row.kind.is_secret(getattr(settings, n))]
    return {_names(n)[0]: _names(n)[1] for n in given}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _names(name: str) -> tuple[str, ...]:
    """Give the flag of a field, then its variables."""
    row = _TABLE[name]
    variable = f"RUNS_FLEET_{name.upper()}" if row.env is None else row.env
    return (_flag(name), *filter(None, (variable, row.alias)))


def _read(path: Path, *, required: bool) -> tuple[dict[str, _Place], list[str]]:
    """Read the file: the settings that are in it, and what is wrong with it otherwise."""
    where, text = repr(str(path))[1:-1], ""
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a file")  # noqa: TRY301  # a pipe would not end
        text = path.read_text("utf-8", errors="surrogateescape")  # no kind of value takes surrogates
        toml = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as exc:
        if isinstance(exc, FileNotFoundError) and not required:
            return {}, []
        last = f"line {text.count(chr(10)) + 1}"
        reason = (getattr(exc, "strerror", None) or str(exc)).replace("end of document", last)
        return {}, [f"{'--config-file ' * required}{where}: {reason}"]
    unknown = [f"{where}: {_unknown(key)}" for key in toml if key not in _TABLE]
    return {n: _Place("file", f"{where}: {n}", toml[n]) for n in _TABLE if n in toml}, unknown


def _unknown(key: str) -> str:
    near = get_close_matches(key.lower().removeprefix("runs_fleet_"), _TABLE, n=1)
    return f"{_shown(key)} is not a setting" + (f"; did you mean {near[0]}?" if near else "")


def _places(name: str, flags: Mapping[str, str], environ: Mapping[str, str]) -> Iterator[_Place]:
    """Yield the places, other than the file, where a field is set; the first counts."""
    flag, *variables = _names(name)
    if name in flags:
        yield _Place("flag", flag, flags[name])
    texts = {variable: environ[variable] for variable in variables if environ.get(variable)}
    if len({*texts.values()}) > 1:
        yield _Place("environment", " and ".join(texts) + " differ", " or ".join(texts.values()))
    yield from (_Place("environment", variable, text) for variable, text in texts.items())


def _structure(given: Mapping[str, _Place]) -> tuple[Settings, dict[str, str]]:
    """Make the settings; a faulty value is left out, and gives an error."""
    try:
        return _SETTINGS_OF({n: place.raw for n, place in given.items()}, Settings), {}
    except ClassValidationError as exc:
        bad = {note.name: error for error, note in exc.group_exceptions()[0]}
    faults = {n: f"{given[n].name}: {_TABLE[n].kind.fault(given[n].raw, error)}" for n, error in bad.items()}
    return _structure({n: place for n, place in given.items() if n not in bad})[0], faults


def _shown(raw: Any) -> str:
    """Show a value on one line, cut where it is long; without a URL's user and password."""
    if isinstance(raw, list | dict):
        return "an array" if isinstance(raw, list) else "a table"
    text = _redact(raw) if isinstance(raw, str) else str(Decimal(raw) if type(raw) is int else raw).lower()
    text = text[:_SHOWN_CHARS] + "…" * (len(text) > _SHOWN_CHARS)
    return repr(text) if isinstance(raw, str) else text

"""The settings: names, precedence, checks, defaults; errors that come all at once and show no secret."""

from __future__ import annotations

import json
import re
import shlex
from argparse import ArgumentParser
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attrs import fields
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent_app.settings import DEFAULT_CONFIG_FILE, Loaded, Settings, add_arguments, describe, load
from agent_core.model import Limits

if TYPE_CHECKING:
    from collections.abc import Mapping

DOCUMENT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text("utf-8")
NO_FILE = Path("/nonexistent/agent.toml")
NAMES = [attribute.name for attribute in fields(Settings)]

VARIABLES = {
    "instance_id": "RUNS_FLEET_INSTANCE_ID",
    "state_dir": "RUNS_FLEET_STATE_DIR",
    "poweroff": "RUNS_FLEET_POWEROFF",
    "aws_region": "AWS_REGION",
    "ssm_parameter": "RUNS_FLEET_SSM_PARAMETER",
    "log_group": "RUNS_FLEET_LOG_GROUP",
    "termination_queue_url": "RUNS_FLEET_TERMINATION_QUEUE_URL",
    "config_bucket": "RUNS_FLEET_CONFIG_BUCKET",
    "runner_version": "RUNS_FLEET_RUNNER_VERSION",
    "runner_dir": "RUNS_FLEET_RUNNER_DIR",
    "runner_user": "RUNS_FLEET_RUNNER_USER",
    "github_url": "RUNS_FLEET_GITHUB_URL",
    "github_api_url": "RUNS_FLEET_GITHUB_API_URL",
    "s3_cache_endpoint": "RUNS_FLEET_S3_CACHE_ENDPOINT",
    "job_started_hook": "RUNS_FLEET_JOB_STARTED_HOOK",
    "job_completed_hook": "RUNS_FLEET_JOB_COMPLETED_HOOK",
    "job_environment": "RUNS_FLEET_JOB_ENVIRONMENT",
    "max_runtime": "RUNS_FLEET_MAX_RUNTIME",
    "standby_minutes": "RUNS_FLEET_STANDBY_MINUTES",
    "idle_minutes": "RUNS_FLEET_IDLE_MINUTES",
    "shutdown_grace_seconds": "RUNS_FLEET_SHUTDOWN_GRACE_SECONDS",
    "min_free_disk_mb": "RUNS_FLEET_MIN_FREE_DISK_MB",
    "min_free_memory_mb": "RUNS_FLEET_MIN_FREE_MEMORY_MB",
}
ALIAS = "RUNS_FLEET_MAX_RUNTIME_MINUTES"

GOOD: list[tuple[str, str, object]] = [
    ("instance_id", "i-0123456789abcdef0", "i-0123456789abcdef0"),
    ("state_dir", "/srv/my state", Path("/srv/my state")),
    ("state_dir", "relative/é", Path("relative/é")),
    ("poweroff", "1", True),
    ("poweroff", "0", False),
    ("aws_region", "us-gov-west-1", "us-gov-west-1"),
    ("ssm_parameter", "/a/{instance-id}/b", "/a/{instance-id}/b"),
    ("log_group", "/runs-fleet/agent#1", "/runs-fleet/agent#1"),
    (
        "termination_queue_url",
        "https://sqs.eu-west-1.amazonaws.com/1/q.fifo",
        "https://sqs.eu-west-1.amazonaws.com/1/q.fifo",
    ),
    ("config_bucket", "my.bucket-1", "my.bucket-1"),
    ("runner_version", "latest", "latest"),
    ("runner_version", "2.328.0", "2.328.0"),
    ("runner_dir", "/opt/r", Path("/opt/r")),
    ("runner_user", "ci.user", "ci.user"),
    ("github_url", "http://127.0.0.1:8080", "http://127.0.0.1:8080"),
    ("github_url", "http://[::1]:8080/", "http://[::1]:8080/"),
    ("github_api_url", "https://ghes.example/api/v3", "https://ghes.example/api/v3"),
    ("s3_cache_endpoint", "https://user:p%40ss@cache?x=1", "https://user:p%40ss@cache?x=1"),
    ("job_started_hook", "/srv/my hooks/started.sh", Path("/srv/my hooks/started.sh")),
    ("job_completed_hook", "/é", Path("/é")),
    ("job_environment", "A=1", (("A", "1"),)),
    (
        "job_environment",
        """CI_REGION=eu\n  HTTP_X="two words" _x2='"' A==b= EMPTY= E=é\\ ☃""",
        (
            *(("CI_REGION", "eu"), ("HTTP_X", "two words"), ("_x2", '"'), ("A", "=b="), ("EMPTY", "")),
            ("E", "é ☃"),
        ),
    ),
    ("max_runtime", "1", timedelta(minutes=1)),
    ("max_runtime", "007", timedelta(minutes=7)),
    ("max_runtime", "43200", timedelta(days=30)),
    ("standby_minutes", "0.05", timedelta(seconds=3)),
    ("standby_minutes", "43200", timedelta(days=30)),
    ("idle_minutes", "2.5", timedelta(seconds=150)),
    ("shutdown_grace_seconds", "0", timedelta(0)),
    ("shutdown_grace_seconds", "0.25", timedelta(milliseconds=250)),
    ("min_free_disk_mb", "99999999", 99_999_999),
    ("min_free_memory_mb", "0", 0),
]

WHOLE = "a whole number of minutes, 1 or more (at most 43200)"
MINUTES = "a number of minutes, above 0 (at most 43200)"
SECONDS = "a number of seconds, 0 or more (at most 86400)"
MB = "a whole number of MB, 0 or more (at most 1000000000)"
SWITCH = "0 or 1 (in TOML true or false)"
PATH = "a path (~ written out, no control characters)"
SCRIPT = "an absolute path (no control characters)"
URL = "a URL with http:// or https:// and a host"
NAME = "a name (letters, digits, _ . -)"
LOG_GROUP = "a log group name (letters, digits, _ . - / #)"
PARAMETER = "a parameter name (may hold {instance-id}, no space)"
REGION = "a region such as eu-west-1"
VERSION = "latest or a version 2.x.y"
VARIABLE_WORDS = "NAME=value words, quoted as for a shell (in TOML a table of strings)"

BAD_TEXTS: dict[str, tuple[str, list[str]]] = {
    "instance_id": (NAME, ["../etc", "-x", "i 0", "i-ä", "i-0\n"]),
    "state_dir": (PATH, ["~/state", " /x", "/x ", "/a\nb", "/a\0b", "/\udcff", "\ud800"]),
    "poweroff": (SWITCH, ["yes", "true", "2", "01"]),
    "aws_region": (REGION, ["EU-WEST-1", "ireland", "eu-west-1 "]),
    "ssm_parameter": (PARAMETER, ["/a/{instance_id}", "/a b", "{"]),
    "log_group": (LOG_GROUP, ["a b", "group*"]),
    "termination_queue_url": (URL, ["my-queue", "https://a b", "https://h/\n", "https://h/\x7f"]),
    "config_bucket": (NAME, ["s3://bucket"]),
    "runner_version": (VERSION, ["Latest", "3.0.0", "2.1", "v2.328.0", "2.328.0-beta", "2.٣.0"]),
    "runner_dir": (PATH, ["~"]),
    "runner_user": (NAME, ["root:root"]),
    "github_url": (
        URL,
        ["github.com", "ftp://host", "https://", "https:///x", "https://h:x", "https://h:65536"],
    ),
    "github_api_url": (URL, ["https://[::1", "https://[zz]", "https://@", "https://user@/x"]),
    "s3_cache_endpoint": (URL, ["//host"]),
    "job_started_hook": (SCRIPT, ["hook.sh", "./hook.sh", "~/hook.sh", "/", " /a", "/a ", "/a\n", "/a\0b"]),
    "job_completed_hook": (SCRIPT, ["hook.sh"]),
    "job_environment": (VARIABLE_WORDS, ["hunter2", "1A=b", "A=b A=c", 'A="b', "ACTIONS_RUNNER_X=1", " "]),
    "max_runtime": (
        WHOLE,
        [
            *("123abc", "-5", "0", "000", "1.5", "+5", " 5 ", "5\n", "٣", "²", "1_000", "0x10", "1e3"),
            *("43201", str(10**30), "9" * 5000),
        ],
    ),
    "standby_minutes": (
        MINUTES,
        ["0", "0.0", "0.00000000001", "-1", ".5", "5.", "1e3", "nan", "inf", "43200.5", "9" * 5000],
    ),
    "idle_minutes": (MINUTES, ["٣"]),
    "shutdown_grace_seconds": (SECONDS, ["-0", "-1", "1s", "86400.5", "1e400"]),
    "min_free_disk_mb": (MB, ["-1", "1.5", "1000000001", "500MB", "9" * 5000]),
    "min_free_memory_mb": (MB, ["none"]),
}
BAD = [(name, text, takes) for name, (takes, some) in BAD_TEXTS.items() for text in some]


def file_of(folder: Path, text: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(text, "utf-8", errors="surrogateescape")
    return path


def load_file(path: Path, environ: Mapping[str, str] | None = None) -> Loaded:
    return load({"config_file": str(path)}, environ or {})


def load_environ(**values: str) -> Loaded:
    """Load variables, given under the names of their fields."""
    return load({}, {VARIABLES[name]: text for name, text in values.items()}, NO_FILE)


def value_of(loaded: Loaded, name: str) -> object:
    value: object = getattr(loaded.settings, name)
    return value


class TestDefaults:
    def test_nothing_set_is_no_error(self) -> None:
        assert load({}, {}, NO_FILE) == Loaded(
            settings=Settings(), errors=(), faulty=frozenset(), sources=dict.fromkeys(NAMES, "default")
        )

    def test_are_those_of_the_contract(self) -> None:
        defaults = Settings()
        assert defaults.ssm_parameter == "/runs-fleet/runners/{instance-id}/config"
        assert defaults.runner_version == "latest"
        assert (defaults.github_url, defaults.github_api_url) == (
            "https://github.com",
            "https://api.github.com",
        )
        assert defaults.runner_dir == Path("/opt/actions-runner")
        assert defaults.state_dir == Path("/var/lib/runs-fleet-agent")
        assert defaults.profile == "aws"
        assert defaults.poweroff is False
        assert defaults.job_environment == ()
        assert defaults.job_variables == {}
        assert {name for name in NAMES if getattr(defaults, name) is None} == {
            "job", "runner_archive", "instance_id", "aws_region", "log_group", "termination_queue_url",
            "config_bucket", "runner_user", "s3_cache_endpoint", "job_started_hook", "job_completed_hook",
        }  # fmt: skip

    def test_limits_are_the_defaults_of_the_core(self) -> None:
        assert Settings().limits == Limits()

    def test_limits_are_what_is_set(self) -> None:
        loaded = load_environ(
            max_runtime="1",
            standby_minutes="2",
            idle_minutes="3",
            shutdown_grace_seconds="4",
            min_free_disk_mb="5",
            min_free_memory_mb="6",
        )
        assert loaded.settings.limits == Limits(
            max_runtime=timedelta(minutes=1),
            standby=timedelta(minutes=2),
            idle=timedelta(minutes=3),
            shutdown_grace=timedelta(seconds=4),
            min_free_disk_bytes=5 * 1_048_576,
            min_available_memory_bytes=6 * 1_048_576,
        )

    def test_parameter_is_named_once_the_instance_is_known(self) -> None:
        assert Settings().ssm_parameter_for("i-1") == "/runs-fleet/runners/i-1/config"
        assert Settings(ssm_parameter="/fixed").ssm_parameter_for("i-1") == "/fixed"


class TestNames:
    def test_every_setting_but_those_of_the_command_line_has_a_variable(self) -> None:
        assert {*NAMES} - {*VARIABLES} == {"profile", "job", "runner_archive"}
        assert {name for name, _, _ in GOOD} == {name for name, _, _ in BAD} == {*VARIABLES}

    @pytest.mark.parametrize(("name", "text", "value"), GOOD)
    def test_variable(self, name: str, text: str, value: object) -> None:
        loaded = load({}, {VARIABLES[name]: text}, NO_FILE)
        assert (loaded.errors, value_of(loaded, name)) == ((), value)
        assert loaded.sources[name] == f"environment {VARIABLES[name]}"

    @pytest.mark.parametrize(("name", "text", "value"), GOOD)
    def test_flag(self, name: str, text: str, value: object) -> None:
        parser = ArgumentParser()
        add_arguments(parser)
        flag = "--" + name.replace("_", "-")
        loaded = load(vars(parser.parse_args([flag, text])), {}, NO_FILE)
        assert (loaded.errors, value_of(loaded, name)) == ((), value)
        assert loaded.sources[name] == f"flag {flag}"

    @pytest.mark.parametrize(("name", "text", "value"), GOOD)
    def test_key(self, name: str, text: str, value: object, tmp_path: Path) -> None:
        path = file_of(tmp_path, f"{name} = {json.dumps(text, ensure_ascii=False)}")
        loaded = load_file(path)
        assert (loaded.errors, value_of(loaded, name)) == ((), value)
        assert loaded.sources[name] == f"file {path}: {name}"

    @pytest.mark.parametrize("name", ["profile", "job", "runner_archive"])
    def test_command_line_settings_have_no_variable(self, name: str) -> None:
        assert load({}, {f"RUNS_FLEET_{name.upper()}": "local", name.upper(): "local"}, NO_FILE) == load(
            {}, {}, NO_FILE
        )


class TestChecks:
    @pytest.mark.parametrize(("name", "text", "takes"), [row for row in BAD if row[0] != "job_environment"])
    def test_error_names_variable_value_and_fix_and_the_default_holds(
        self, name: str, text: str, takes: str
    ) -> None:
        loaded = load({}, {VARIABLES[name]: text}, NO_FILE)
        (error,) = loaded.errors
        assert error.startswith(f"{VARIABLES[name]}: '")
        assert error.endswith(f"' is not {takes}")
        assert loaded.settings == Settings()
        assert loaded.sources[name] == "default"

    def test_example_of_the_style_guide(self) -> None:
        (error,) = load_environ(max_runtime="123abc").errors
        assert error.startswith(
            "RUNS_FLEET_MAX_RUNTIME: '123abc' is not a whole number of minutes, 1 or more"
        )

    def test_all_errors_come_at_once_in_the_order_of_the_table(self) -> None:
        loaded = load_environ(**{name: text for name, text, _ in BAD})
        assert [error.partition(":")[0] for error in loaded.errors] == [*VARIABLES.values()]

    def test_a_bad_value_leaves_the_others_in_place(self) -> None:
        loaded = load_environ(max_runtime="x", log_group="/g")
        assert loaded.settings == Settings(log_group="/g")

    def test_a_long_value_is_cut(self) -> None:
        (error,) = load_environ(max_runtime="9" * 5000).errors
        assert "'" + "9" * 80 + "…'" in error

    @pytest.mark.parametrize("name", NAMES)
    def test_an_empty_flag_is_an_error(self, name: str) -> None:
        (error,) = load({name: ""} | ({"profile": "local"} if name == "job" else {}), {}, NO_FILE).errors[:1]
        assert error.startswith(f"--{name.replace('_', '-')}: ")

    @pytest.mark.parametrize("name", VARIABLES)
    def test_an_empty_variable_is_unset(self, name: str) -> None:
        assert load({}, {VARIABLES[name]: ""}, NO_FILE) == load({}, {}, NO_FILE)


class TestPrecedence:
    def test_flag_environment_file_default(self, tmp_path: Path) -> None:
        path = file_of(tmp_path, "max_runtime = 3")
        flags, environ = {"max_runtime": "1"}, {"RUNS_FLEET_MAX_RUNTIME": "2"}
        seen = [
            (loaded.settings.max_runtime // timedelta(minutes=1), loaded.sources["max_runtime"])
            for loaded in (
                load(flags, environ, path),
                load({}, environ, path),
                load({}, {"RUNS_FLEET_MAX_RUNTIME": ""}, path),
                load({}, {}, NO_FILE),
            )
        ]
        assert seen == [
            (1, "flag --max-runtime"),
            (2, "environment RUNS_FLEET_MAX_RUNTIME"),
            (3, f"file {path}: max_runtime"),
            (360, "default"),
        ]

    def test_a_bad_value_is_not_replaced_by_one_below(self, tmp_path: Path) -> None:
        path = file_of(tmp_path, "max_runtime = 3")
        loaded = load({"max_runtime": "x"}, {"RUNS_FLEET_MAX_RUNTIME": "2"}, path)
        assert loaded.errors == (f"--max-runtime: 'x' is not {WHOLE}",)
        assert loaded.settings == Settings()

    def test_an_overridden_value_is_not_checked(self, tmp_path: Path) -> None:
        path = file_of(tmp_path, "max_runtime = 'x'")
        assert load({"max_runtime": "1"}, {"RUNS_FLEET_MAX_RUNTIME": "y", ALIAS: "z"}, path).errors == ()


class TestAlias:
    @pytest.mark.parametrize("environ", [{ALIAS: "5"}, {ALIAS: "5", "RUNS_FLEET_MAX_RUNTIME": ""}])
    def test_stands_for_the_variable(self, environ: dict[str, str]) -> None:
        loaded = load({}, environ, NO_FILE)
        assert (loaded.settings, loaded.errors) == (Settings(max_runtime=timedelta(minutes=5)), ())
        assert loaded.sources["max_runtime"] == f"environment {ALIAS}"

    def test_is_named_in_its_error(self) -> None:
        assert load({}, {ALIAS: "x"}, NO_FILE).errors == (f"{ALIAS}: 'x' is not {WHOLE}",)

    def test_may_repeat_the_variable(self) -> None:
        loaded = load({}, {ALIAS: "5", "RUNS_FLEET_MAX_RUNTIME": "5"}, NO_FILE)
        assert (loaded.settings.max_runtime, loaded.errors) == (timedelta(minutes=5), ())

    def test_must_not_contradict_it(self) -> None:
        loaded = load({}, {ALIAS: "6", "RUNS_FLEET_MAX_RUNTIME": "5"}, NO_FILE)
        assert loaded.errors == (f"RUNS_FLEET_MAX_RUNTIME and {ALIAS} differ: '5 or 6' is not {WHOLE}",)
        assert loaded.settings == Settings()


class TestFile:
    @pytest.mark.parametrize(
        ("line", "name", "value"),
        [
            ("max_runtime = 120", "max_runtime", timedelta(hours=2)),
            ("max_runtime = 0x10", "max_runtime", timedelta(minutes=16)),
            ("standby_minutes = 0.05", "standby_minutes", timedelta(seconds=3)),
            ("standby_minutes = 1e-3", "standby_minutes", timedelta(milliseconds=60)),
            ("idle_minutes = 2", "idle_minutes", timedelta(minutes=2)),
            ("shutdown_grace_seconds = 0.0", "shutdown_grace_seconds", timedelta(0)),
            ("min_free_disk_mb = 99_999_999", "min_free_disk_mb", 99_999_999),
            ("poweroff = true", "poweroff", True),
            ("poweroff = false", "poweroff", False),
            ("poweroff = 1", "poweroff", True),
        ],
    )
    def test_takes_native_values(self, line: str, name: str, value: object, tmp_path: Path) -> None:
        loaded = load_file(file_of(tmp_path, line))
        assert (loaded.errors, value_of(loaded, name)) == ((), value)

    @pytest.mark.parametrize(
        ("name", "toml", "shown", "takes"),
        [
            ("max_runtime", "-5", "-5", WHOLE),
            ("max_runtime", "0", "0", WHOLE),
            ("max_runtime", "5.0", "5.0", WHOLE),
            ("max_runtime", "true", "true", WHOLE),
            ("max_runtime", "''", "''", WHOLE),
            ("max_runtime", "[1]", "an array", WHOLE),
            ("max_runtime", "{a = 1}", "a table", WHOLE),
            ("max_runtime", "2020-01-01", "2020-01-01", WHOLE),
            ("max_runtime", str(10**30), str(10**30), WHOLE),
            ("max_runtime", "0x" + "f" * 5000, None, WHOLE),
            ("standby_minutes", "0.0", "0.0", MINUTES),
            ("standby_minutes", "inf", "inf", MINUTES),
            ("standby_minutes", "nan", "nan", MINUTES),
            ("standby_minutes", "1e300", "1e+300", MINUTES),
            ("shutdown_grace_seconds", "-0.0", "-0.0", SECONDS),
            ("shutdown_grace_seconds", "false", "false", SECONDS),
            ("min_free_disk_mb", "1.0", "1.0", MB),
            ("poweroff", "'true'", "'true'", SWITCH),
            ("poweroff", "2", "2", SWITCH),
            ("poweroff", "1.0", "1.0", SWITCH),
            ("log_group", "5", "5", LOG_GROUP),
            ("log_group", "''", "''", LOG_GROUP),
            ("state_dir", "true", "true", PATH),
            ("github_url", "['https://h']", "an array", URL),
        ],
    )
    def test_error_names_file_key_and_fix(
        self, name: str, toml: str, shown: str | None, takes: str, tmp_path: Path
    ) -> None:
        path = file_of(tmp_path, f"{name} = {toml}")
        loaded = load_file(path)
        (error,) = loaded.errors
        assert error.startswith(f"{path}: {name}: {'' if shown is None else shown + ' is not '}")
        assert error.endswith(f" is not {takes}")
        assert loaded.settings == Settings()

    @pytest.mark.parametrize(
        ("key", "ending"),
        [
            ("max_runtme", "'max_runtme' is not a setting; did you mean max_runtime?"),
            ("max-runtime", "'max-runtime' is not a setting; did you mean max_runtime?"),
            ("RUNS_FLEET_POWEROFF", "'RUNS_FLEET_POWEROFF' is not a setting; did you mean poweroff?"),
            ("max_runtime_minutes", "'max_runtime_minutes' is not a setting; did you mean max_runtime?"),
            ('"zz\\nzz"', "'zz\\nzz' is not a setting"),
        ],
    )
    def test_an_unknown_key_is_an_error_that_suggests_the_nearest(
        self, key: str, ending: str, tmp_path: Path
    ) -> None:
        path = file_of(tmp_path, f"{key} = 5\nlog_group = '/g'")
        loaded = load_file(path)
        assert loaded.errors == (f"{path}: {ending}",)
        assert loaded.settings == Settings(log_group="/g")

    def test_may_be_absent_where_no_flag_names_it(self, tmp_path: Path) -> None:
        assert load({}, {}, tmp_path / "no.toml").errors == ()

    def test_must_be_there_where_a_flag_names_it(self, tmp_path: Path) -> None:
        path = tmp_path / "no.toml"
        assert load_file(path).errors == (f"--config-file {path}: No such file or directory",)

    @pytest.mark.parametrize("named", [True, False])
    def test_a_folder_is_an_error_wherever_it_is_named(self, *, named: bool, tmp_path: Path) -> None:
        loaded = load_file(tmp_path) if named else load({}, {}, tmp_path)
        assert loaded.errors == (f"{'--config-file ' if named else ''}{tmp_path}: not a file",)

    def test_a_path_that_cannot_be_is_an_error(self) -> None:
        for path in ("a\0b", "\ud800", "x" * 5000, "a\nb"):
            (error,) = load({"config_file": path}, {}).errors
            assert error.startswith("--config-file ")
            assert error.isprintable()

    @pytest.mark.parametrize(
        ("data", "line"),
        [
            (b"a = 1\nb =\n", 2),
            (b"\n\n'''", 3),
            (b"a = 1\nb =", 2),
            (b"\n\xff", 2),
            (b"a = 1\na = 2", 2),
        ],
    )
    def test_invalid_toml_is_an_error_with_its_line(self, data: bytes, line: int, tmp_path: Path) -> None:
        path = tmp_path / "agent.toml"
        path.write_bytes(data)
        (error,) = load({}, {}, path).errors
        assert error.startswith(f"{path}: ")
        assert re.search(rf"\(at line {line}\b", error)

    def test_a_value_that_is_not_utf_8_is_an_error(self, tmp_path: Path) -> None:
        path = file_of(tmp_path, "state_dir = '/\udcff'")
        assert load_file(path).errors == (f"{path}: state_dir: '/\\udcff' is not {PATH}",)

    @pytest.mark.parametrize("text", ["a = " + "[" * 50_000, "a = " + "9" * 5000, "x" * 100_000])
    def test_a_hostile_file_is_an_error(self, text: str, tmp_path: Path) -> None:
        (error,) = load_file(file_of(tmp_path, text)).errors
        assert error.isprintable()


class TestProfileLocal:
    def test_has_its_own_defaults(self) -> None:
        loaded = load({"profile": "local", "job": "job.json", "state_dir": "/s"}, {}, NO_FILE)
        assert loaded.errors == ()
        assert loaded.settings == Settings(
            profile="local",
            job=Path("job.json"),
            state_dir=Path("/s"),
            runner_dir=Path("/s/runner"),
            instance_id="local",
        )
        assert loaded.sources["runner_dir"] == loaded.sources["instance_id"] == "default (local)"
        assert loaded.sources["runner_version"] == "default"

    @pytest.mark.parametrize("folder", ["./~me", "state /.", "/", "."])
    def test_its_runner_is_in_the_state_folder_whatever_that_is_called(self, folder: str) -> None:
        loaded = load({"profile": "local", "job": "j", "state_dir": folder}, {}, NO_FILE)
        assert loaded.settings.runner_dir == Path(folder) / "runner"
        assert loaded.errors == ()

    def test_its_defaults_yield_to_what_is_set(self) -> None:
        flags = {"profile": "local", "job": "j", "runner_dir": "/r"}
        loaded = load(flags, {"RUNS_FLEET_INSTANCE_ID": "i-1"}, NO_FILE)
        assert (loaded.settings.runner_dir, loaded.settings.instance_id) == (Path("/r"), "i-1")
        assert loaded.sources["runner_dir"] == "flag --runner-dir"
        assert loaded.sources["instance_id"] == "environment RUNS_FLEET_INSTANCE_ID"

    def test_a_bad_value_never_leads_to_the_system_wide_runner(self) -> None:
        loaded = load({"profile": "local", "job": "j", "runner_dir": "~/r"}, {}, NO_FILE)
        assert loaded.errors == (f"--runner-dir: '~/r' is not {PATH}",)
        assert loaded.settings.runner_dir == loaded.settings.state_dir / "runner"

    def test_requires_a_job(self) -> None:
        loaded = load({"profile": "local"}, {}, NO_FILE)
        assert loaded.errors == ("--job: missing; profile local runs the job that this file describes",)

    def test_a_bad_job_is_one_error(self) -> None:
        loaded = load({"profile": "local", "job": "\0"}, {}, NO_FILE)
        assert loaded.errors == (f"--job: '\\x00' is not {PATH}",)

    def test_may_be_set_in_the_file(self, tmp_path: Path) -> None:
        path = file_of(tmp_path, "profile = 'local'\njob = 'j'\nrunner_archive = '/a'")
        loaded = load({}, {}, path)
        assert loaded.errors == ()
        assert (loaded.settings.job, loaded.settings.runner_archive) == (Path("j"), Path("/a"))

    @pytest.mark.parametrize("flags", [{}, {"profile": "aws"}])
    def test_only_it_takes_a_job_and_an_archive(self, flags: dict[str, str], tmp_path: Path) -> None:
        path = file_of(tmp_path, "runner_archive = '/a'")
        loaded = load({**flags, "job": "j"}, {}, path)
        fix = "only profile local takes it; add --profile local"
        assert loaded.errors == (f"--job: {fix}", f"{path}: runner_archive: {fix}")
        assert loaded.settings == Settings()
        assert loaded.sources["job"] == "default"

    def test_a_bad_profile_is_one_error(self) -> None:
        loaded = load({"profile": "lokal", "job": "j"}, {}, NO_FILE)
        assert loaded.errors == ("--profile: 'lokal' is not aws or local",)
        assert loaded.settings == Settings()


class TestSecrets:
    @pytest.mark.parametrize("name", [name for name in VARIABLES if name.endswith(("_url", "_endpoint"))])
    @pytest.mark.parametrize(
        "url",
        [
            "https://user:hunter2@host/x",
            "https://hunter2@host",
            "https://user:hun@hunter2@host",
            "https://user:x/hunter2@host",
            "https://user:7/hunter2@host",
            "https:/user:hunter2@host",
            "user:hunter2@host",
            "ftp://user:hunter2@host",
            "https://user:hunter2@",
            "https://user:hunter2@host\n",
            "https://user\n:hunter2@host",
            "https://" + "x" * 200 + ":hunter2@host ",
        ],
        ids=range(12),  # a test's folder has its ID for a name
    )
    def test_show_nowhere(self, name: str, url: str, tmp_path: Path) -> None:
        path = file_of(tmp_path, f"{name} = {json.dumps(url)}")
        for loaded in (
            load({name: url}, {}, NO_FILE),
            load({}, {VARIABLES[name]: url}, NO_FILE),
            load_file(path),
        ):
            shown = f"{loaded!r} {loaded.errors} {describe(loaded)} {loaded.settings}"
            assert "hunter2" not in shown
            assert "***" in shown

    def test_show_in_no_error_of_another_setting(self) -> None:
        (error,) = load_environ(config_bucket="https://user:hunter2@host").errors
        assert error == f"RUNS_FLEET_CONFIG_BUCKET: 'https://***@host' is not {NAME}"

    def test_reach_who_needs_them(self) -> None:
        loaded = load_environ(github_api_url="https://user:hunter2@host")
        assert loaded.settings.github_api_url == "https://user:hunter2@host"


class TestJobVariables:
    """What settings put into the job's environment; each value may be a secret."""

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("A=b hunter2", "word 2: no NAME of letters, digits, _ (no digit first)"),
            ("A=b 1X=hunter2", "'1X': no NAME"),
            ("MY-X.=hunter2", "'MY-X.': no NAME"),
            ("=hunter2", "word 1: no NAME"),
            ("Aé=hunter2", "word 1: no NAME"),
            ("'A\n=hunter2'", "word 1: no NAME"),
            ("hunter/2=hunter2", "word 1: no NAME"),
            ("7hunter2==", "word 1: no NAME"),
            ("' '", "word 1: no NAME"),
            ("X=hunter2 Y= X=hunter2", "'X': it is there twice"),
            ("X='hunter2\nB=c'", "'X': its value is not one line of text"),
            ("X='\0'", "'X': its value is not"),
            ("X='\t'", "'X': its value is not"),
            ("X='\x7f'", "'X': its value is not"),
            ("X='\x85'", "'X': its value is not"),
            ("X='\u2028'", "'X': its value is not"),
            ("X=\udcff", "'X': its value is not"),
            (
                "ACTIONS_RUNNER_X=hunter2",
                "'ACTIONS_RUNNER_X': it is the agent's own (hooks have settings of ",
            ),
            ("ACTIONS_RUNNER_=", "'ACTIONS_RUNNER_': it is the agent's own"),
            ("actions_Runner_input_token=x", "'actions_Runner_input_token': it is the agent's own"),
            ("RUNNER_AGENT_TRACKING_ID=x", "'RUNNER_AGENT_TRACKING_ID': it is the agent's own"),
            ("RUNNER_PERFLOG=x", "'RUNNER_PERFLOG': it is the agent's own"),
            ("RUNNER_ALLOW_RUNASROOT=x", "'RUNNER_ALLOW_RUNASROOT': it is the agent's own"),
            ("X='hunter2", "No closing quotation"),
            ("X=hunter2\\", "No escaped character"),
        ],
    )
    def test_error_names_the_bad_one_and_no_value(self, text: str, reason: str, tmp_path: Path) -> None:
        path, variable = tmp_path / "agent.toml", VARIABLES["job_environment"]
        places = {
            "--job-environment": load({"job_environment": text}, {}, NO_FILE),
            variable: load({}, {variable: text}, NO_FILE),
        }
        if "\udcff" not in text:  # TOML cannot say that
            file_of(tmp_path, f"job_environment = {json.dumps(text)}")
            places[f"{path}: job_environment"] = load_file(path)
        for place, loaded in places.items():
            (error,) = loaded.errors
            assert error.startswith(f"{place}: {reason}")
            assert error.endswith(f"; it takes {VARIABLE_WORDS}")
            assert "hunter" not in repr(loaded)
            assert loaded.settings == Settings()

    @pytest.mark.parametrize(
        ("toml", "reason"),
        [
            ("{A = 'b', 1X = 'hunter2'}", "'1X': no NAME"),
            ("{'my x' = 'hunter2'}", "'my x': no NAME"),
            ("{'' = 'hunter2'}", "'': no NAME"),
            ('{"\\n" = "hunter2"}', "'\\n': no NAME"),
            ("{RUNNER_PERFLOG = 'hunter2'}", "'RUNNER_PERFLOG': it is the agent's own"),
            ('{X = "hunter2\\n"}', "'X': its value is not one line of text"),
            ("{X = 7272727}", "'X': its value is not"),
            ("{X = true}", "'X': its value is not"),
            ("{X = ['hunter2']}", "'X': its value is not"),
            ("{X.Y = 'hunter2'}", "'X': its value is not"),
            ("['hunter2']", "neither a text nor a table"),
            ("[{X = 'hunter2'}]", "neither a text nor a table"),
            ("7272727", "neither a text nor a table"),
            ("true", "neither a text nor a table"),
            ("1987-06-05", "neither a text nor a table"),
            ("'hunter2'", "word 1: no NAME"),
        ],
    )
    def test_error_of_the_file_names_the_bad_one_and_no_value(
        self, toml: str, reason: str, tmp_path: Path
    ) -> None:
        path = file_of(tmp_path, f"job_environment = {toml}")
        loaded = load_file(path)
        (error,) = loaded.errors
        assert error.startswith(f"{path}: job_environment: {reason}")
        assert error.endswith(f"; it takes {VARIABLE_WORDS}")
        assert not re.search("hunter|7272727|1987-06|1987, 6", repr(loaded))
        assert loaded.settings == Settings()

    def test_a_table_may_be_empty(self, tmp_path: Path) -> None:
        path = file_of(tmp_path, "[job_environment]\n")
        loaded = load_file(path)
        assert (loaded.settings, loaded.errors) == (Settings(), ())
        assert loaded.sources["job_environment"] == f"file {path}: job_environment"

    def test_layers_are_not_merged(self, tmp_path: Path) -> None:
        path = file_of(tmp_path, "job_environment = {A = '1', B = '2'}")
        assert load_file(path, {"RUNS_FLEET_JOB_ENVIRONMENT": "A=3"}).settings.job_environment == (
            ("A", "3"),
        )

    def test_values_are_shown_nowhere(self) -> None:
        loaded = load_environ(job_environment="A=hunter2 B=")
        assert ("job_environment", "A=*** B=***", f"environment {VARIABLES['job_environment']}") in describe(
            loaded
        )
        assert "job_environment=A=*** B=***" in repr(loaded)
        assert "hunter2" not in f"{loaded!r} {loaded.settings} {describe(loaded)}"

    def test_all_of_them(self) -> None:
        endpoint, hooks = "https://cache", {"job_started_hook": "/a b/s.sh", "job_completed_hook": "/c.sh"}
        loaded = load_environ(s3_cache_endpoint=endpoint, job_environment="A=1", **hooks)
        assert loaded.settings.job_variables == {
            "ACTIONS_CACHE_URL": endpoint,
            "ACTIONS_RUNNER_HOOK_JOB_STARTED": "/a b/s.sh",
            "ACTIONS_RUNNER_HOOK_JOB_COMPLETED": "/c.sh",
            "A": "1",
        }

    @pytest.mark.parametrize("moment", ["JOB_STARTED", "JOB_COMPLETED"])
    def test_of_one_hook(self, moment: str) -> None:
        settings = load({f"{moment.lower()}_hook": "/h.sh"}, {}, NO_FILE).settings
        assert settings.hooks == {moment: Path("/h.sh")}
        assert settings.job_variables == {f"ACTIONS_RUNNER_HOOK_{moment}": "/h.sh"}

    def test_the_explicit_one_wins(self) -> None:
        loaded = load_environ(s3_cache_endpoint="https://a", job_environment="ACTIONS_CACHE_URL=https://b")
        assert loaded.settings.job_variables == {"ACTIONS_CACHE_URL": "https://b"}


class TestDescribe:
    def test_gives_name_value_and_source_of_every_setting(self) -> None:
        loaded = load(
            {"poweroff": "1"},
            {
                "RUNS_FLEET_IDLE_MINUTES": "0.05",
                "RUNS_FLEET_GITHUB_URL": "https://u:p@host/x",
                "RUNS_FLEET_MIN_FREE_DISK_MB": "99999999",
            },
            NO_FILE,
        )
        rows = describe(loaded)
        assert [name for name, _, _ in rows] == NAMES
        assert {
            ("poweroff", "1", "flag --poweroff"),
            ("idle_minutes", "0.05 minutes", "environment RUNS_FLEET_IDLE_MINUTES"),
            ("github_url", "https://***@host/x", "environment RUNS_FLEET_GITHUB_URL"),
            ("min_free_disk_mb", "99999999 MB", "environment RUNS_FLEET_MIN_FREE_DISK_MB"),
            ("max_runtime", "360 minutes", "default"),
            ("shutdown_grace_seconds", "90 seconds", "default"),
            ("log_group", "unset", "default"),
        } <= {*rows}

    def test_what_it_shows_of_the_defaults_can_be_set(self) -> None:
        texts = {
            name: text.split()[0] for name, text, _ in describe(load({}, {}, NO_FILE)) if text != "unset"
        }
        loaded = load(texts, {}, NO_FILE)
        assert (loaded.settings, loaded.errors) == (Settings(), ())


class TestFlags:
    @pytest.fixture
    def parser(self, monkeypatch: pytest.MonkeyPatch) -> ArgumentParser:
        monkeypatch.setenv("COLUMNS", "200")
        parser = ArgumentParser(prog="x")
        add_arguments(parser)
        return parser

    def test_are_absent_unless_given(self, parser: ArgumentParser) -> None:
        assert vars(parser.parse_args([])) == {}

    def test_keep_their_text(self, parser: ArgumentParser) -> None:
        arguments = ["--max-runtime", "-5", "--poweroff", "maybe", "--profile", "x", "--config-file", "/f"]
        assert vars(parser.parse_args(arguments)) == {
            "max_runtime": "-5",
            "poweroff": "maybe",
            "profile": "x",
            "config_file": "/f",
        }

    def test_help_has_a_line_each_with_variable_and_default(self, parser: ArgumentParser) -> None:
        text = parser.format_help()
        default = {name: shown for name, shown, _ in describe(load({}, {}, NO_FILE))}
        lines = re.sub(r"\n {12,}", "  ", text).splitlines()
        for name in NAMES:
            (line,) = (line for line in lines if line.startswith(f"  --{name.replace('_', '-')} "))
            notes = ", ".join(filter(None, (VARIABLES.get(name), default[name])))
            assert line.endswith(f" [{notes}]")
        for title in ("what to run:", "instance:", "AWS:", "runner:", "limits:"):
            assert title in lines

    def test_names_that_are_no_settings_are_left_alone(self) -> None:
        arguments: dict[str, Any] = {"command": "run", "json": True}
        assert load(arguments, {}, NO_FILE) == load({}, {}, NO_FILE)


class TestDocument:
    """`docs/configuration.md` says what the code does."""

    def test_its_table_has_every_setting(self) -> None:
        default = {name: shown.split()[0] for name, shown, _ in describe(load({}, {}, NO_FILE))}
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in DOCUMENT.splitlines()
            if line.startswith(("| `", "| none"))
        ]
        expected = [
            [
                f"`{VARIABLES[name]}`" if name in VARIABLES else "none",
                f"`--{name.replace('_', '-')}`",
                f"`{name}`",
                "none" if default[name] == "unset" else f"`{default[name]}`",
            ]
            for name in NAMES
        ]  # fmt: skip
        assert [row[:4] for row in rows] == expected
        assert str(DEFAULT_CONFIG_FILE) in DOCUMENT
        assert ALIAS in DOCUMENT

    def test_its_file_loads(self, tmp_path: Path) -> None:
        (text,) = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
        loaded = load_file(file_of(tmp_path, text))
        assert loaded.errors == ()
        assert loaded.settings != Settings()

    def test_its_errors_are_real(self, tmp_path: Path) -> None:
        """What the command in the document says is what its settings give, line by line."""
        (block,) = re.findall(r"```console\n(.*?)```", DOCUMENT, re.DOTALL)
        command, *lines = block.splitlines()
        words = shlex.split(command.removeprefix("$ "))
        at = words.index("runs-fleet-agent")
        environ = dict(word.split("=", 1) for word in words[:at])
        parser = ArgumentParser()
        add_arguments(parser)
        (toml,) = re.findall(r"whose `agent.toml` has the line `(.*?)`", DOCUMENT)
        path = file_of(tmp_path, toml)
        errors = load(vars(parser.parse_args(words[at + 2 :])), environ, path).errors
        assert [error.replace(str(path), str(DEFAULT_CONFIG_FILE)) for error in errors] == lines


# Properties

texts = st.text() | st.sampled_from([text for _, text, _ in GOOD] + [text for _, text, _ in BAD])
keys = st.sampled_from(NAMES)
SECRET = "hunter/2+"
variable_names = st.from_regex("(?a:[A-Za-z_][A-Za-z0-9_]{0,9})", fullmatch=True)
one_line = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]))
literals = (
    st.integers().map(str)
    | st.floats().map(str)
    | st.sampled_from(["true", "false", "[]", "{}", "2020-01-01", "0x" + "f" * 5000, "1e400"])
    | texts.map(json.dumps)
)
files = (
    st.binary()
    | st.text().map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.dictionaries(keys | st.from_regex("[a-z_-]{1,20}", fullmatch=True), literals).map(
        lambda table: "\n".join(f"{key} = {value}" for key, value in table.items()).encode()
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings")


class TestProperties:
    @settings(deadline=None)
    @given(
        flags=st.dictionaries(keys | st.just("config_file") | st.text(), texts),
        environ=st.dictionaries(st.sampled_from([*VARIABLES.values(), ALIAS]) | st.text(), texts),
        data=files,
    )
    def test_nothing_raises_and_what_stays_is_sound(
        self, flags: dict[str, str], environ: dict[str, str], data: bytes, folder: Path
    ) -> None:
        path = folder / "any.toml"
        path.write_bytes(data)
        loaded = load(flags, environ, path)
        assert all(error and error.isprintable() for error in loaded.errors)
        assert all(source.isprintable() for source in loaded.sources.values())
        assert [*loaded.sources] == NAMES
        assert all(row[1].isprintable() for row in describe(loaded))
        assert loaded.settings.limits.max_runtime >= timedelta(minutes=1)
        again = load(
            {
                name: as_text(name, value)
                for name in NAMES
                if (value := value_of(loaded, name)) not in (None, ())
            }
            | ({} if loaded.settings.profile == "aws" or loaded.settings.job else {"job": "j"}),
            {},
            NO_FILE,
        )  # fmt: skip
        assert again.errors == ()
        assert {n: value_of(again, n) for n in NAMES if n != "job"} == {
            n: value_of(loaded, n) for n in NAMES if n != "job"
        }

    @settings(deadline=None)
    @given(rows=st.lists(st.sampled_from(GOOD), unique_by=lambda row: row[0]), random=st.randoms())
    def test_good_values_arrive_from_wherever_they_are_set(
        self, rows: list[tuple[str, str, object]], random: Any, folder: Path
    ) -> None:
        layers: dict[str, dict[str, str]] = {"flag": {}, "environment": {}, "file": {}}
        expected = dict.fromkeys(NAMES, "default")
        for name, text, _ in rows:
            expected[name] = random.choice([*layers])
            layers[expected[name]][name] = text
        path = folder / "good.toml"
        lines = [f"{name} = {json.dumps(text, ensure_ascii=False)}" for name, text in layers["file"].items()]
        path.write_text("\n".join(lines), "utf-8")
        environ = {VARIABLES[name]: text for name, text in layers["environment"].items()}
        loaded = load(layers["flag"], environ, path)
        assert loaded.errors == ()
        assert loaded.settings == Settings(**{name: value for name, _, value in rows})  # type: ignore[arg-type]
        assert {name: source.split()[0] for name, source in loaded.sources.items()} == expected

    @settings(deadline=None)
    @given(st.lists(st.sampled_from(GOOD + BAD), unique_by=lambda row: row[0]))
    def test_there_is_an_error_for_each_bad_value_and_no_other(
        self, rows: list[tuple[str, str, object]]
    ) -> None:
        loaded = load({name: text for name, text, _ in rows}, {}, NO_FILE)
        bad = {name for name, text, _ in rows if any((name, text) == row[:2] for row in BAD)}
        assert {error.partition(":")[0] for error in loaded.errors} == {
            "--" + name.replace("_", "-") for name in bad
        }
        assert len(loaded.errors) == len(bad)
        good = {name: value for name, _, value in rows if name not in bad}
        assert loaded.settings == Settings(**good)  # type: ignore[arg-type]

    @settings(deadline=None)
    @given(st.text(min_size=1) | st.integers().map(str) | st.from_regex(r"\d{1,6}", fullmatch=True))
    @example("00043200")
    def test_minutes_are_ascii_digits_within_bounds(self, text: str) -> None:
        is_good = text.isascii() and text.isdigit() and 1 <= int(text) <= 43_200
        loaded = load_environ(max_runtime=text)
        assert (not loaded.errors) == is_good
        assert loaded.settings.max_runtime == timedelta(minutes=int(text) if is_good else 360)

    @settings(deadline=None)
    @given(st.dictionaries(variable_names, one_line, min_size=1))
    def test_variables_of_the_job_arrive_as_they_are(self, folder: Path, variables: dict[str, str]) -> None:
        words = shlex.join(f"{name}={text}" for name, text in variables.items())
        table = (f"{name} = {json.dumps(text, ensure_ascii=False)}" for name, text in variables.items())
        path = folder / "variables.toml"
        path.write_text("\n".join(["[job_environment]", *table]), "utf-8")
        for loaded in (load({"job_environment": words}, {}, NO_FILE), load_file(path)):
            assert (loaded.errors, loaded.settings.job_variables) == ((), variables)

    @settings(deadline=None)
    @given(text=st.lists(st.sampled_from([SECRET, *" =\"'\\\nA7_-#é"])).map("".join))
    @example(f"A={SECRET}=")
    def test_variables_of_the_job_are_what_a_shell_would_see_and_never_shown(self, text: str) -> None:
        loaded = load({"job_environment": text}, {}, NO_FILE)
        try:
            words = [word.partition("=") for word in shlex.split(text)]
        except ValueError:
            words = []
        names = [name for name, _, _ in words]
        sound = all(
            equals and re.fullmatch(r"(?a:(?!\d)\w+)", name) and value.isprintable()
            for name, equals, value in words
        )
        is_good = bool(words) and sound and len({*names}) == len(names)
        assert (not loaded.errors) == is_good
        assert loaded.settings.job_variables == ({name: value for name, _, value in words} if is_good else {})
        assert SECRET not in f"{loaded!r} {describe(loaded)}"

    @settings(deadline=None)
    @given(st.timedeltas(min_value=timedelta(microseconds=1), max_value=timedelta(days=30)))
    def test_what_describe_shows_of_a_time_is_the_time(self, time: timedelta) -> None:
        loaded = Loaded(
            settings=Settings(idle_minutes=time),
            errors=(),
            faulty=frozenset(),
            sources=dict.fromkeys(NAMES, ""),
        )
        (shown,) = (text for name, text, _ in describe(loaded) if name == "idle_minutes")
        assert load_environ(idle_minutes=shown.removesuffix(" minutes")).settings.idle_minutes == time


def as_text(name: str, value: object) -> str:
    match value:
        case bool():
            return "1" if value else "0"
        case timedelta():
            number = value / (timedelta(seconds=1) if name.endswith("_seconds") else timedelta(minutes=1))
            return f"{number:.9f}".rstrip("0").rstrip(".")
        case tuple():
            return shlex.join(f"{variable}={text}" for variable, text in value)
        case Path():  # as it stands, whatever it begins and ends with
            text = str(value if value.is_absolute() else f"./{value}")
            return f"{text}." if text.endswith("/") else f"{text}/."  # // is not the root
        case _:
            return str(value)

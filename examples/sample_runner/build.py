#!/usr/bin/env python3
"""Packs the sample runner: a tarball with the layout of actions/runner's, whose job is a shell script.

python examples/sample_runner/build.py OUT_DIR [--job FILE.sh] [--scenario FILE.json] [--version V] [--arch A]
    [--scripts-only]
"""

from __future__ import annotations

import argparse
import base64
import gzip
import importlib.util
import io
import json
import platform
import re
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

__all__ = ["DEFAULT_JOB", "DEFAULT_VERSION", "ScenarioError", "build_archive", "jit_config"]

DEFAULT_VERSION = "2.336.0"
DEFAULT_JOB = """\
echo "Hello from the sample job, on $RUNNER_NAME."
echo "It is a plain shell script, run in $GITHUB_WORKSPACE."
for part in one two three; do
    echo "Doing part $part"
done
echo "Done: neither GitHub nor a cloud was asked for anything."
"""

_PACKAGE = Path(__file__).resolve().parent / "package"
_MACHINES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
_ARCHES = ("x64", "arm64")
_VERSION = re.compile(r"\d+\.\d+\.\d+")

# As in GitHub's own tarball: a user of the machine that built it, and not of the one that unpacks it.
_UID, _USER = 1001, "runner"
_GID, _GROUP = 118, "docker"
_BUILT_AT = 1_700_000_000  # seconds; any fixed time: the same input gives the same bytes

_FILE_MODE = 0o644
_PROGRAM_MODE = 0o755
_LINK_MODE = 0o777
_PROGRAMS = "bin"
_HIDDEN_PROGRAMS = "libexec"
_NODE = "externals/node20"
_NPM = "../lib/node_modules/npm/bin"


class Member(NamedTuple):
    """One entry of the archive, its path relative to the runner's root."""

    path: str
    content: bytes = b""
    kind: bytes = tarfile.REGTYPE
    mode: int = _FILE_MODE
    target: str = ""


def build_archive(
    out_dir: Path,
    *,
    job: str = DEFAULT_JOB,
    scenario: Mapping[str, object] | None = None,
    version: str = DEFAULT_VERSION,
    arch: str | None = None,
    scripts_only: bool = False,
) -> Path:
    """Write `actions-runner-linux-{arch}-{version}.tar.gz` to `out_dir`, made if missing; return its path.

    `arch` is `x64` or `arm64`, this machine's where None. With `scripts_only` there is no
    `bin/Runner.Listener`: only `config.sh` and `run.sh` know where it is.

    Raises ScenarioError for a key or value of the scenario that is wrong, ValueError for a version or arch
    that cannot be.
    """
    arch = arch or _machine_arch()
    if arch not in _ARCHES:
        raise ValueError(f"arch {arch!r} is not one of {', '.join(_ARCHES)}")
    if not _VERSION.fullmatch(version):
        raise ValueError(f"version {version!r} is not three numbers with dots, like {DEFAULT_VERSION}")
    scenario = dict(scenario or {})
    _schema.parse(scenario)
    out_dir.mkdir(parents=True, exist_ok=True)
    archive = out_dir / f"actions-runner-linux-{arch}-{version}.tar.gz"
    programs = _HIDDEN_PROGRAMS if scripts_only else _PROGRAMS
    archive.write_bytes(_pack([*_runner(programs), *_sample(job, scenario, version)]))
    return archive


def jit_config(
    *, name: str = "sample", url: str = "https://github.com/sample/repo", work: str = "_work"
) -> str:
    """A just-in-time config for ACTIONS_RUNNER_INPUT_JITCONFIG, with the files that GitHub's has."""
    settings = {"AgentId": "1", "AgentName": name, "PoolId": "1", "PoolName": "Default", "Ephemeral": "True"}
    files = {
        ".runner": {**settings, "GitHubUrl": url, "WorkFolder": work},
        ".credentials": {"Scheme": "OAuth", "Data": {"ClientId": "00000000-0000-4000-8000-000000000000"}},
        ".credentials_rsaparams": {"d": "c2FtcGxl", "modulus": "c2FtcGxl"},
    }
    encoded = {
        path: base64.b64encode(json.dumps(content).encode()).decode() for path, content in files.items()
    }
    return base64.b64encode(json.dumps(encoded).encode()).decode()


def main(argv: list[str] | None = None) -> int:
    """Return the exit status; a usage error ends the process with 2."""
    parser = argparse.ArgumentParser(description="Packs the sample runner and prints the archive's path.")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    parser.add_argument(
        "--job", type=Path, metavar="FILE.sh", help="the job, a bash script (default: a short one)"
    )
    parser.add_argument(
        "--scenario", type=Path, metavar="FILE.json", help="what goes otherwise; see README.md"
    )
    parser.add_argument("--version", default=DEFAULT_VERSION, help="runner version (default: %(default)s)")
    parser.add_argument("--arch", choices=_ARCHES, help="default: this machine's")
    parser.add_argument(
        "--scripts-only", action="store_true", help="only config.sh and run.sh know where the Listener is"
    )
    options = parser.parse_args(argv)
    try:
        archive = build_archive(
            options.out_dir,
            job=options.job.read_text(encoding="utf-8") if options.job else DEFAULT_JOB,
            scenario=_read_scenario(options.scenario) if options.scenario else None,
            version=options.version,
            arch=options.arch,
            scripts_only=options.scripts_only,
        )
    except (OSError, ValueError) as exc:
        parser.error(str(exc))
    sys.stdout.write(f"{archive}\n")
    return 0


def _load_schema() -> ModuleType:
    """The runner's own reader of scenarios, so that build and run cannot differ."""
    path = _PACKAGE / "bin" / "runner" / "scenario.py"
    spec = importlib.util.spec_from_file_location("sample_runner_scenario", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


_schema = _load_schema()
ScenarioError: type[ValueError] = _schema.ScenarioError


def _read_scenario(file: Path) -> dict[str, object]:
    try:
        scenario = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise ScenarioError(f"{file} is not JSON: {exc}") from exc
    if not isinstance(scenario, dict):
        raise ScenarioError(f"{file} is not a JSON object")
    return scenario


def _machine_arch() -> str:
    machine = platform.machine().lower()
    return _MACHINES.get(machine, machine)


def _runner(programs: str) -> Iterator[Member]:
    """What GitHub's tarball has too, with the Listener and the Worker in the folder `programs`."""
    for path in sorted(_PACKAGE.iterdir()):
        if path.is_file():
            script = path.read_bytes().replace(b"/bin/Runner.", f"/{programs}/Runner.".encode())
            yield Member(path.name, script, mode=_PROGRAM_MODE)
    for path in sorted((_PACKAGE / "bin").iterdir()):
        if path.is_file():
            yield Member(f"{programs}/{path.name}", path.read_bytes(), mode=_PROGRAM_MODE)
    for path in sorted((_PACKAGE / "bin" / "runner").glob("*.py")):
        yield Member(f"{programs}/runner/{path.name}", path.read_bytes())
    yield Member(
        f"{_NODE}/bin/node",
        b'#!/bin/sh\necho "The sample runner has no Node.js." >&2\nexit 1\n',
        mode=_PROGRAM_MODE,
    )
    for name in ("npm", "npx"):
        yield Member(
            f"{_NODE}/bin/{name}", kind=tarfile.SYMTYPE, mode=_LINK_MODE, target=f"{_NPM}/{name}-cli.js"
        )
        yield Member(
            f"{_NODE}/lib/node_modules/npm/bin/{name}-cli.js", b"#!/usr/bin/env node\n", mode=_PROGRAM_MODE
        )


def _sample(job: str, scenario: Mapping[str, object], version: str) -> Iterator[Member]:
    """What only the sample has: the job, how it is to go, and the version that it says it is."""
    yield Member("sample/job.sh", job.encode(), mode=_PROGRAM_MODE)
    yield Member("sample/scenario.json", json.dumps(scenario, indent=2, sort_keys=True).encode())
    yield Member("sample/version", f"{version}\n".encode())


def _pack(members: list[Member]) -> bytes:
    """A gzipped GNU tar, each folder before what is in it."""
    folders = {str(parent) for member in members for parent in Path(member.path).parents} - {"."}
    entries = [
        Member(".", kind=tarfile.DIRTYPE, mode=_PROGRAM_MODE),
        *(Member(folder, kind=tarfile.DIRTYPE, mode=_PROGRAM_MODE) for folder in folders),
        *members,
    ]
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=_BUILT_AT) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for entry in sorted(entries, key=lambda entry: entry.path.split("/")):
            tar.addfile(_header(entry), io.BytesIO(entry.content))
    return packed.getvalue()


def _header(member: Member) -> tarfile.TarInfo:
    header = tarfile.TarInfo("./" if member.path == "." else f"./{member.path}")
    header.type, header.mode, header.linkname = member.kind, member.mode, member.target
    header.size, header.mtime = len(member.content), _BUILT_AT
    header.uid, header.uname, header.gid, header.gname = _UID, _USER, _GID, _GROUP
    return header


if __name__ == "__main__":
    sys.exit(main())

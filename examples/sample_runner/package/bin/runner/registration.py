"""The files that make a runner root a registered runner, and how they come and go."""

from __future__ import annotations

import base64
import binascii
import json
import os
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .commands import Inputs
    from .scenario import Scenario
    from .terminal import Terminal

_SETTINGS_FILE = ".runner"
_CREDENTIAL_FILES = (".credentials", ".credentials_rsaparams")
_MAX_NAME_CHARACTERS = 64
_MAX_LABEL_CHARACTERS = 256
_RSA_BYTES = 256
_OWNER_ONLY = 0o600
_BAD_BASE64 = (
    "The input is not a valid Base-64 string as it contains a non-base 64 character, more than two padding "
    "characters, or an illegal character among the padding characters."
)


class Refusal(Exception):  # noqa: N818 - what GitHub says no to is not an error of this program
    """Said on stderr; the Listener then exits 1."""


@dataclass(frozen=True)
class Settings:
    """What the Listener needs of `.runner`."""

    name: str
    url: str
    work: str
    ephemeral: bool


def load_settings(root: Path) -> Settings:
    """Key by key without regard to case, with or without a byte-order mark: .NET writes both."""
    file = root / _SETTINGS_FILE
    if not file.exists():
        raise Refusal("An error occurred: Not configured. Run config.(sh/cmd) to configure the runner.")
    values = {key.lower(): str(value) for key, value in json.loads(file.read_text("utf-8-sig")).items()}
    return Settings(
        name=values.get("agentname", ""),
        url=values.get("githuburl", ""),
        work=values.get("workfolder", "_work"),
        ephemeral=values.get("ephemeral", "").lower() == "true",
    )


def register(root: Path, inputs: Inputs, scenario: Scenario, terminal: Terminal) -> None:
    """What config.sh does. What GitHub would have been told is left in sample/registration.json."""
    if (root / _SETTINGS_FILE).exists():
        raise Refusal(
            "Cannot configure the runner because it is already configured. "
            "To reconfigure the runner, run 'config.cmd remove' or './config.sh remove' first."
        )
    terminal.section("Authentication")
    url = _given(inputs, "url")
    if not url.lower().startswith(("http://", "https://")):
        raise _invalid("url")
    _given(inputs, "token")
    _refuse_token(url, scenario, terminal)
    terminal.success("Connected to GitHub")

    terminal.section("Runner Registration")
    name = inputs.value("name") or os.uname().nodename
    group = inputs.value("runnergroup") or "Default"
    labels = _labels(inputs)
    _enlist(name, group, replace=inputs.flag("replace"), scenario=scenario, terminal=terminal)
    _write_credentials(root)
    terminal.success("Runner connection is good")

    terminal.section("Runner settings")
    registration = {
        "agentId": 1,
        "agentName": name,
        "poolId": 1,
        "poolName": group,
        "disableUpdate": inputs.flag("disableupdate"),
        "ephemeral": inputs.flag("ephemeral"),
        "serverUrl": "https://pipelines.invalid/sample/",
        "gitHubUrl": url,
        "workFolder": inputs.value("work") or "_work",
    }
    _write_json(root / _SETTINGS_FILE, registration)
    told = json.dumps({**registration, "labels": labels}, indent=2)
    (root / "sample" / "registration.json").write_text(told, encoding="utf-8")
    terminal.success("Settings Saved.")
    terminal.line()


def unpack_jit_config(root: Path, encoded: str, scenario: Scenario) -> None:
    """Write the files of a just-in-time config, with the permissions that the umask leaves."""
    if scenario.reject_jit:
        raise Refusal(_BAD_BASE64)
    try:
        files: Mapping[str, str] = json.loads(base64.b64decode(encoded, validate=True))
        contents = {name: base64.b64decode(content, validate=True) for name, content in files.items()}
    except binascii.Error as exc:
        raise Refusal(_BAD_BASE64) from exc
    except (ValueError, TypeError, AttributeError) as exc:
        raise Refusal(
            f"The just-in-time config is not JSON with a base64 string for each file: {exc}"
        ) from exc
    for name, content in contents.items():
        (root / name).write_bytes(content)


def forget(root: Path, terminal: Terminal) -> None:
    """Remove the runner's own files, as after an ephemeral job and by `config.sh remove`."""
    for label, names in ((".credentials", _CREDENTIAL_FILES), (".runner", (_SETTINGS_FILE,))):
        if (root / names[0]).exists():
            for name in names:
                (root / name).unlink(missing_ok=True)
            terminal.success(f"Removed {label}")
        else:
            terminal.line(f"Does not exist. Skipping Removing {label}")


def _given(inputs: Inputs, name: str) -> str:
    value = inputs.value(name)
    if not value:
        raise _invalid(name)
    return value


def _invalid(name: str) -> Refusal:
    return Refusal(f"Invalid configuration provided for {name}. Terminating unattended configuration.")


def _refuse_token(url: str, scenario: Scenario, terminal: Terminal) -> None:
    status = {"bad_token": (401, "Unauthorized"), "not_found": (404, "NotFound")}.get(
        scenario.refuse_registration or ""
    )
    if status is None:
        return
    code, reason = status
    scheme, _, rest = url.partition("://")
    host = rest.partition("/")[0]
    api = f"{scheme}://api.{host}" if host == "github.com" else f"{scheme}://{host}/api/v3"
    terminal.error(f"Http response code: {reason} from 'POST {api}/actions/runner-registration'")
    raise Refusal(f"Response status code does not indicate success: {code} ({reason}).")


def _labels(inputs: Inputs) -> list[str]:
    """A single label that is too long drops them all, and nothing says so."""
    labels = list(dict.fromkeys(label for label in inputs.value("labels").split(",") if label))
    if any(len(label) > _MAX_LABEL_CHARACTERS for label in labels):
        labels = []
    if inputs.flag("no-default-labels"):
        if not labels:
            raise _invalid("labels")
        return labels
    arch = "ARM64" if os.uname().machine in {"aarch64", "arm64"} else "X64"
    return ["self-hosted", "Linux", arch, *labels]


def _enlist(name: str, group: str, *, replace: bool, scenario: Scenario, terminal: Terminal) -> None:
    if len(name) > _MAX_NAME_CHARACTERS:
        raise Refusal(f"The runner name {name!r} has more than {_MAX_NAME_CHARACTERS} characters.")
    if scenario.refuse_registration == "no_such_group":
        raise Refusal(f'Could not find any self-hosted runner group named "{group}".')
    if scenario.refuse_registration != "duplicate_name":
        terminal.success("Runner successfully added")
        return
    terminal.line("A runner exists with the same name")
    if not replace:
        raise Refusal(f"A runner exists with the same name {name}.")
    terminal.success("Successfully replaced the runner")


def _write_credentials(root: Path) -> None:
    data = {
        "clientId": str(uuid.uuid4()),
        "authorizationUrl": "https://token.invalid/sample/",
        "requireFips": "False",
    }
    _write_json(root / _CREDENTIAL_FILES[0], {"scheme": "OAuth", "data": data})
    key = root / _CREDENTIAL_FILES[1]
    key.touch(_OWNER_ONLY)
    _write_json(key, {part: base64.b64encode(os.urandom(_RSA_BYTES)).decode() for part in ("d", "modulus")})


def _write_json(file: Path, value: Mapping[str, object]) -> None:
    """With a byte-order mark, as .NET writes."""
    file.write_text(json.dumps(value, indent=2), encoding="utf-8-sig")

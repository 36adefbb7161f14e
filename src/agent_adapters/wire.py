"""The shapes of what is read and written outside the process: config, messages, journal. All are JSON.

What comes in is checked strictly, with every fault in one error; no error shows a secret.
"""

import base64
import binascii
import json
import re
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from attrs import evolve
from cattrs import Converter, transform_error
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from agent_core.errors import (
    ConfigAbsentError,
    ConfigMalformedError,
    JournalDamagedError,
    MessageRefusedError,
)
from agent_core.model import JobConfig, JournalRecord, Secret, StatusMessage
from agent_core.registration import RUNNER_NAME_LENGTH

__all__ = [
    "MESSAGE_BYTES",
    "checked_message",
    "journal_from_json",
    "journal_to_json",
    "message_from_json",
    "message_to_json",
    "parse_config",
]

MESSAGE_BYTES: Final = 262_144
"""SQS: 256 KiB a message."""
_JOURNAL_VERSION: Final = 1
_INFLATED_BYTES: Final = 2**20
"""A compressed JIT config inflates to no more (wire contract)."""
_ID_LENGTH: Final = 256
_LABEL_LENGTH: Final = 256
"""The runner drops all its labels when one is longer."""
_KEY_PREFIX_LENGTH: Final = 512
"""Half of what a key may have: the other half is the agent's."""
_SHOWN_LENGTH: Final = 60
_HIDDEN: Final = "(not shown: it is a secret)"

_Hook = Callable[[Any, Any], Any]
_T = TypeVar("_T")


# One field


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}…"


def _text(takes: str, pattern: str = r"(?s).+") -> _Hook:
    compiled = re.compile(pattern)

    def structure(value: object, _type: object) -> str:
        if isinstance(value, str) and compiled.fullmatch(value):
            return value
        raise ValueError(f"{_shown(value)} is not {takes}")

    return structure


def _identity(value: object, _type: object) -> str:
    """An ID: a string; an integer is accepted."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**_ID_LENGTH:
        value = str(value)
    if isinstance(value, str) and len(value) <= _ID_LENGTH:
        return value
    raise ValueError(f"{_shown(value)} is not a string of {_ID_LENGTH} characters at most")


def _secret(value: object, _type: object) -> Secret | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and value and value.isprintable() and value.isascii():
        return Secret(value)
    raise ValueError(f"is not a string of printable ASCII, 1 character or more {_HIDDEN}")


def _flag(value: object, _type: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(f"{_shown(value)} is not true or false")


def _minutes(value: object, _type: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MINUTES_MOST:
        return value
    raise ValueError(f"{_shown(value)} is not a whole number of minutes, 1 to {_MINUTES_MOST}")


def _moment(value: object, _type: object) -> datetime:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(f"{_shown(value)} is not a date and time as RFC 3339 has it, with an offset")
    return moment


def _labels(value: object, _type: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{_shown(value)} is not a list of labels, 1 or more")
    if bad := [_shown(label) for label in value if not _is_label(label)]:
        takes = f"a string without commas, 1 to {_LABEL_LENGTH} characters"
        raise ValueError(f"{', '.join(bad)}: no label; each is {takes}")
    return tuple(value)


def _is_label(value: object) -> bool:
    if not isinstance(value, str) or not value.isprintable():
        return False
    return bool(value.strip()) and "," not in value and len(value) <= _LABEL_LENGTH


def _key_prefix(value: object, _type: object) -> str:
    if isinstance(value, str) and value.isprintable() and len(value) <= _KEY_PREFIX_LENGTH:
        segments = value.split("/")
        if segments[0] and ".." not in segments:
            return value
    takes = f"1 to {_KEY_PREFIX_LENGTH} printable characters, without '/' in front and '..' between slashes"
    raise ValueError(f"{_shown(value)} is not a prefix for keys: {takes}")


def _optional(hook: _Hook) -> _Hook:
    return lambda value, type_: None if value is None else hook(value, type_)


_MINUTES_MOST: Final = 60 * 24 * 30
_RUNNER_NAME: Final = rf"[^\x00-\x1f\x7f]{{1,{RUNNER_NAME_LENGTH}}}"
_name = _text("a name of letters, digits, '.', '_' and '-'", r"[A-Za-z0-9._-]+")
_line = _text("a string of one line, 1 character or more", r"[^\x00-\x1f\x7f]+")
_bucket = _text(
    "a bucket's name: 3 to 63 of 'a' to 'z', digits, '.' and '-', a letter or digit at each end",
    r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]",
)

_CONFIG_FIELDS: Final[Mapping[str, _Hook]] = {
    "org": _name,
    "repo": _text("'name' or 'owner/name'", r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?"),
    "labels": _labels,
    "jit_token": _secret,
    "jit_config": _secret,
    "runner_group": _optional(_line),
    "job_id": lambda value, type_: "" if value is None else _identity(value, type_),
    "run_id": _optional(_identity),
    "runner_name": _optional(_text(f"a name of 1 to {RUNNER_NAME_LENGTH} characters", _RUNNER_NAME)),
    "is_org": lambda value, type_: False if value is None else _flag(value, type_),
    "created_at": _optional(_moment),
    "termination_queue_url": _optional(_text("a URL with http:// or https://", r"https?://[^\s/?#@]+/\S*")),
    "cache_url": _optional(_line),
    "cache_token": _secret,
    "runner_logs_bucket": _optional(_bucket),
    "runner_logs_prefix": _optional(_key_prefix),
    "runner_version": _optional(_text("'2.x.y' or 'latest'", r"2\.[0-9]+\.[0-9]+|latest")),
    "runner_sha256": _optional(_text("a SHA-256 digest: 64 hex digits, lower case", r"[0-9a-f]{64}")),
    "max_runtime_minutes": _optional(_minutes),
}


def _make_converter() -> Converter:
    converter = Converter(forbid_extra_keys=False)
    converter.register_unstructure_hook(datetime, _rfc3339)
    converter.register_structure_hook(datetime, _moment)
    overrides: dict[str, Any] = {name: override(struct_hook=hook) for name, hook in _CONFIG_FIELDS.items()}
    overrides["unknown_keys"] = override(omit=True)
    converter.register_structure_hook(JobConfig, make_dict_structure_fn(JobConfig, converter, **overrides))
    for cls in (StatusMessage, JournalRecord):
        converter.register_unstructure_hook(
            cls, make_dict_unstructure_fn(cls, converter, _cattrs_omit_if_default=True)
        )
    return converter


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


_CONVERTER: Final = _make_converter()


# The job's config


def parse_config(text: str, credential: str | None = None) -> JobConfig:
    """The config, from the JSON of its parameter, and of the sibling that may hold its secrets.

    Raises:
        ConfigAbsentError: there is neither a token nor a JIT config (yet).
        ConfigMalformedError: it cannot be understood; a line for each fault.
    """
    faults: list[str] = []
    document = _object(text, "config", faults)
    secrets = {} if credential is None else _credential(credential, faults)
    config = None if document is None else _structure(document | secrets, JobConfig, "config", faults)
    if document is None or config is None or faults:
        raise ConfigMalformedError("\n  ".join(["the config cannot be used:", *faults]))
    if config.jit_token is None and config.jit_config is None:
        raise ConfigAbsentError("the config has neither jit_token nor jit_config yet")
    unknown = document.keys() - _CONFIG_FIELDS.keys()
    return evolve(config, unknown_keys=tuple(sorted(map(_shown, unknown))))


def _structure(document: dict[str, Any], cls: type[_T], what: str, faults: list[str]) -> _T | None:
    try:
        return _CONVERTER.structure(document, cls)
    except Exception as exc:  # noqa: BLE001 - cattrs gathers whatever the hooks raise
        for line in transform_error(exc, path=what, format_exception=_explain):
            fault, path = line.rsplit(" @ ", 1)
            faults.append(f"{path}: {fault}")
        return None


def _object(text: str, what: str, faults: list[str]) -> dict[str, Any] | None:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as exc:
        # A JSON error tells the place, and shows nothing of the text.
        faults.append(f"{what}: not JSON: {exc}")
        return None
    if not isinstance(document, dict):
        faults.append(f"{what}: not a JSON object")
        return None
    return document


def _credential(text: str, faults: list[str]) -> dict[str, Any]:
    document = _object(text, "credential", faults) or {}
    secrets: dict[str, Any] = {}
    for key in ("jit_token", "jit_config"):
        try:
            if (secret := _secret(document.get(key), None)) is not None:
                secrets[key] = secret.reveal()
        except ValueError as exc:
            faults.append(f"credential.{key}: {exc}")
    compressed = document.get("compressed", False)
    if not isinstance(compressed, bool):
        faults.append(f"credential.compressed: {_shown(compressed)} is not true or false")
    elif compressed and "jit_config" in secrets:
        try:
            secrets["jit_config"] = _inflate(secrets["jit_config"])
        except ValueError as exc:
            faults.append(f"credential.jit_config: {exc} {_HIDDEN}")
    return secrets


def _inflate(text: str) -> str:
    """The JIT config of which `text` is base64(gzip(base64decode(it)))."""
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        inflated = inflater.decompress(base64.b64decode(text, validate=True), _INFLATED_BYTES)
    except (binascii.Error, zlib.error):
        raise ValueError("is not the base64 of gzipped data") from None
    if not inflater.eof:
        raise ValueError(f"inflates to more than {_INFLATED_BYTES} bytes, or has no end")
    return base64.b64encode(inflated).decode()


def _explain(exc: BaseException, _type: object) -> str:
    return "missing" if isinstance(exc, KeyError) else str(exc)


# Messages


def message_to_json(message: StatusMessage) -> str:
    """The message as it is sent: one line of ASCII; what is not known is left out."""
    return json.dumps(_CONVERTER.unstructure(message))


def checked_message(message: StatusMessage) -> str:
    """The message as it is sent, within the queue's limit.

    Raises:
        MessageRefusedError: it has more than SQS's 262,144 bytes.
    """
    text = message_to_json(message)
    if len(text) > MESSAGE_BYTES:
        raise MessageRefusedError(f"the message has {len(text)} bytes: {MESSAGE_BYTES} at most")
    return text


def message_from_json(text: str) -> StatusMessage:
    """The message that `message_to_json` wrote."""
    return _CONVERTER.structure(json.loads(text), StatusMessage)


# The journal


def journal_to_json(record: JournalRecord) -> str:
    """The journal's content."""
    return json.dumps({"version": _JOURNAL_VERSION, **_CONVERTER.unstructure(record)}, indent=1)


def journal_from_json(text: str) -> JournalRecord:
    """The record that `journal_to_json` wrote.

    Raises:
        JournalDamagedError: nothing of this version wrote it.
    """
    faults: list[str] = []
    document = _object(text, "journal", faults) or {}
    version = document.pop("version", None)
    if not faults and version != _JOURNAL_VERSION:
        faults.append(f"journal: version {version!r}, not {_JOURNAL_VERSION}")
    record = None if faults else _structure(document, JournalRecord, "journal", faults)
    if record is None:
        raise JournalDamagedError(f"the journal cannot be understood: {'; '.join(faults)}")
    return record

"""Which instance this is, and in which region: from the settings, or else from the metadata service."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, Final, cast

from attrs import evolve

from agent_adapters.aws.metadata import InstanceMetadata, MetadataUnavailableError
from agent_app.settings import Settings

__all__ = ["identified", "metadata_of", "spare_metadata_the_proxy"]

_PATIENCE_SECONDS: Final = 20.0
"""A network may take so long to come up."""
_PAUSE_SECONDS: Final = 0.5
_METADATA_HOSTS: Final = ("169.254.169.254", "fd00:ec2::254")


def metadata_of(environ: Mapping[str, str]) -> InstanceMetadata | None:
    """The metadata service, as the environment has it; None: it is not to be asked."""
    if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return None
    return InstanceMetadata(environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT"))


def spare_metadata_the_proxy(environ: MutableMapping[str, str]) -> None:
    """Lets botocore itself ask the metadata service for credentials: a proxy answers for its own host."""
    names = ("no_proxy", "NO_PROXY")
    # Where both are set, the first counts.
    set_ = next((environ[name] for name in names if name in environ), "")
    hosts = [host for host in set_.split(",") if host]
    for name in names:
        environ[name] = ",".join(dict.fromkeys([*hosts, *_METADATA_HOSTS]))


def identified(
    settings: Settings,
    metadata: InstanceMetadata | None,
    patience: float = _PATIENCE_SECONDS,
    hurry: Sequence[object] = (),
) -> tuple[Settings, list[str]]:
    """The settings with instance ID and region, and a line for each that is not to be had. Never raises.

    Nothing is asked that is set. Asked again for `patience` seconds, unless there is something in `hurry`.
    """
    errors: list[str] = []
    found: dict[str, Any] = {}
    ask: dict[str, tuple[str, Callable[[InstanceMetadata], str]]] = {
        "instance_id": ("RUNS_FLEET_INSTANCE_ID", InstanceMetadata.instance_id),
        "aws_region": ("AWS_REGION", InstanceMetadata.region),
    }
    for name, (variable, question) in ask.items():
        if getattr(settings, name) is not None:
            continue
        if metadata is None:
            errors.append(f"{variable}: not set, and AWS_EC2_METADATA_DISABLED forbids to ask; set it")
            continue
        try:
            found[name] = _patiently(question, metadata, 0.0 if errors else patience, hurry)
        except Exception as exc:  # noqa: BLE001 - the instance must still be ended
            errors.append(f"{variable}: not set, and the metadata service does not tell; set it ({exc})")
    return evolve(settings, **found), errors


def _patiently(
    question: Callable[[InstanceMetadata], str],
    metadata: InstanceMetadata,
    patience: float,
    hurry: Sequence[object],
) -> str:
    # Imported here since most boots ask once, if at all.
    from tenacity import (  # noqa: PLC0415
        Retrying,
        retry_if_exception_type,
        stop_after_delay,
        stop_any,
        wait_fixed,
    )

    retrying = Retrying(
        stop=stop_any(stop_after_delay(patience), cast("Any", lambda _: bool(hurry))),
        wait=wait_fixed(_PAUSE_SECONDS),
        retry=retry_if_exception_type(MetadataUnavailableError),
        reraise=True,
    )
    return retrying(question, metadata)

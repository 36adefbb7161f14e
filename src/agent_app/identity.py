"""Which instance this is, and in which region: from the settings, or else from the metadata service."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import evolve

from agent_adapters.aws.metadata import InstanceMetadata, MetadataUnavailableError
from agent_app.settings import Settings

__all__ = ["identified", "metadata_of"]

_PATIENCE_SECONDS: Final = 20.0
"""A network may take so long to come up."""
_PAUSE_SECONDS: Final = 0.5


def metadata_of(environ: Mapping[str, str]) -> InstanceMetadata | None:
    """The metadata service, as the environment has it; None: it is not to be asked."""
    if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return None
    return InstanceMetadata(environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT"))


def identified(
    settings: Settings, metadata: InstanceMetadata | None, patience: float = _PATIENCE_SECONDS
) -> tuple[Settings, list[str]]:
    """The settings with instance ID and region, and a line for each that is not to be had.

    Returns within some 20 s; nothing is asked that is set.
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
            found[name] = _patiently(question, metadata, 0.0 if errors else patience)
        except MetadataUnavailableError as exc:
            errors.append(f"{variable}: not set, and the metadata service does not tell; set it ({exc})")
    return evolve(settings, **found), errors


def _patiently(
    question: Callable[[InstanceMetadata], str], metadata: InstanceMetadata, patience: float
) -> str:
    # Imported here since most boots ask once, if at all.
    from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed  # noqa: PLC0415

    retrying = Retrying(
        stop=stop_after_delay(patience),
        wait=wait_fixed(_PAUSE_SECONDS),
        retry=retry_if_exception_type(MetadataUnavailableError),
        reraise=True,
    )
    return retrying(question, metadata)

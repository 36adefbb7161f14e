"""The instance metadata service, version 2 only: nothing without a token."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from threading import Lock
from time import monotonic
from typing import Final

from support.faults import Answer, FakeServer, Reply, Request, wall_clock

ROLE: Final = "runs-fleet-runner"
ROLE_ACCESS_KEY_ID: Final = "ASIAPLANTEDROLEKEYID"
ROLE_SECRET_ACCESS_KEY: Final = "planted-role-secret-access-key-that-stays-secret"
ROLE_TOKEN: Final = "planted-role-session-token-that-stays-secret"

_TOKEN_PATH: Final = "/latest/api/token"
_TTL: Final = "x-aws-ec2-metadata-token-ttl-seconds"
_TTL_RANGE: Final = range(1, 21_601)
_METADATA: Final = "/latest/meta-data/"
_CREDENTIALS: Final = f"{_METADATA}iam/security-credentials/"
_CREDENTIALS_LAST: Final = timedelta(hours=6)
_NAMES: Final = {
    _TOKEN_PATH: "token",
    f"{_METADATA}instance-id": "instance-id",
    f"{_METADATA}placement/region": "region",
    f"{_METADATA}placement/availability-zone": "availability-zone",
    f"{_METADATA}spot/instance-action": "instance-action",
    f"{_METADATA}events/recommendations/rebalance": "rebalance",
    _CREDENTIALS: "security-credentials",
    _CREDENTIALS + ROLE: "security-credentials",
    "/latest/dynamic/instance-identity/document": "document",
}


class InstanceMetadata(FakeServer):
    """One instance's. Operations are `imds:` and the last part of the path; `imds:token` is the PUT."""

    def __init__(self, instance_id: str, region: str) -> None:
        super().__init__()
        self.instance_id, self.region = instance_id, region
        self._lock = Lock()
        self._tokens: dict[str, float] = {}
        self._issued = 0
        self._spot: str | None = None
        self._rebalance: str | None = None

    @property
    def environ(self) -> dict[str, str]:
        """What a process needs to find it."""
        return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": self.url}

    def spot_notice(self, time: datetime, action: str = "terminate") -> None:
        """The spot instance will be taken away."""
        self._spot = json.dumps({"action": action, "time": _timestamp(time)})

    def rebalance(self, time: datetime) -> None:
        """The spot instance is more likely than before to be taken away."""
        self._rebalance = json.dumps({"noticeTime": _timestamp(time)})

    def revoke_tokens(self) -> None:
        """Every token there is counts no more."""
        with self._lock:
            self._tokens.clear()

    def reset(self) -> None:
        """Only the tokens stay: no notice, no call, nothing goes wrong."""
        self.forget()
        self._spot = self._rebalance = None

    def operation(self, request: Request) -> str:
        return f"imds:{_NAMES.get(request.path, request.path.removeprefix(_METADATA).strip('/'))}"

    def refusal(self, request: Request, answer: Answer) -> Reply:  # noqa: ARG002
        return Reply(answer.status, answer.code.encode(), answer.headers)

    def answer(self, request: Request) -> Reply:
        if "x-forwarded-for" in request.headers:
            return _error(403, "Forbidden")
        if request.path == _TOKEN_PATH:
            return self._new_token(request)
        if request.method != "GET":
            return _error(405, "Method Not Allowed")
        token = request.headers.get("x-aws-ec2-metadata-token", "")
        with self._lock:
            valid = self._tokens.get(token, 0.0) > monotonic()
        if not valid:
            return _error(401, "Unauthorized")
        text = self._documents().get(request.path)
        if text is None:
            return _error(404, "Not Found")
        return Reply(200, text.encode(), {"Content-Type": "text/plain", "Server": "EC2ws"})

    def _new_token(self, request: Request) -> Reply:
        if request.method != "PUT":
            return _error(405, "Method Not Allowed")
        ttl = request.headers.get(_TTL, "")
        if not ttl.isdecimal() or int(ttl) not in _TTL_RANGE:
            return _error(400, "Bad Request")
        with self._lock:
            self._issued += 1
            token = f"planted-metadata-token-{self._issued}=="
            self._tokens[token] = monotonic() + int(ttl)
        return Reply(200, token.encode(), {"Content-Type": "text/plain", _TTL: ttl})

    def _documents(self) -> Mapping[str, str | None]:
        zone = f"{self.region}a"
        identity = {
            "accountId": "123456789012",
            "architecture": "x86_64",
            "availabilityZone": zone,
            "imageId": "ami-12c6146b",
            "instanceId": self.instance_id,
            "instanceType": "c7i.large",
            "pendingTime": _timestamp(wall_clock()),
            "privateIp": "10.0.0.10",
            "region": self.region,
            "version": "2017-09-30",
        }
        return {
            f"{_METADATA}instance-id": self.instance_id,
            f"{_METADATA}placement/region": self.region,
            f"{_METADATA}placement/availability-zone": zone,
            "/latest/dynamic/instance-identity/document": json.dumps(identity, indent=2),
            f"{_METADATA}spot/instance-action": self._spot,
            f"{_METADATA}events/recommendations/rebalance": self._rebalance,
            _CREDENTIALS: ROLE,
            _CREDENTIALS + ROLE: _credentials(),
        }


def _credentials() -> str:
    now = wall_clock()
    return json.dumps(
        {
            "Code": "Success",
            "LastUpdated": _timestamp(now),
            "Type": "AWS-HMAC",
            "AccessKeyId": ROLE_ACCESS_KEY_ID,
            "SecretAccessKey": ROLE_SECRET_ACCESS_KEY,
            "Token": ROLE_TOKEN,
            "Expiration": _timestamp(now + _CREDENTIALS_LAST),
        }
    )


def _timestamp(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _error(status: int, title: str) -> Reply:
    page = (
        f"<html><head><title>{status} - {title}</title></head><body><h1>{status} - {title}</h1></body></html>"
    )
    return Reply(status, page.encode(), {"Content-Type": "text/html", "Server": "EC2ws"})


@contextmanager
def instance_metadata(
    instance_id: str = "i-0123456789abcdef0", region: str = "eu-west-1"
) -> Iterator[InstanceMetadata]:
    """The metadata service of an instance with a role."""
    with InstanceMetadata(instance_id, region) as imds:
        yield imds

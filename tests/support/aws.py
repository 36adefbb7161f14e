"""The part of AWS that an agent sees: moto, and in front of it a proxy as strict as the real services.

moto keeps parameters, objects, queues, streams and instances. The proxy enforces what moto lets pass, writes
down what was accepted, and lets requests go wrong as planned.
"""

import base64
import hashlib
import http.client
import json
import logging
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from io import BufferedIOBase
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import boto3
from attrs import evolve
from botocore.config import Config
from moto.server import ThreadedMotoServer

from support.faults import PIECE_BYTES, Answer, FakeServer, Reply, Request, wall_clock

REGION: Final = "eu-west-1"
ACCESS_KEY_ID: Final = "AKIAPLANTEDACCESSKEY"
SECRET_ACCESS_KEY: Final = "planted-secret-access-key-that-stays-secret"

BATCH_BYTES: Final = 1_048_576
BATCH_EVENTS: Final = 10_000
EVENT_OVERHEAD_BYTES: Final = 26
EVENT_BYTES: Final = 1_000_000
"""One event with its overhead: "1 MB", read the strict way."""
BATCH_SPAN_MS: Final = 24 * 60 * 60 * 1000
OLDEST: Final = timedelta(days=14)
NEWEST: Final = timedelta(hours=2)
MESSAGE_BYTES: Final = 262_144
MOST_DELAY_SECONDS: Final = 900

_SIGNED: Final = re.compile(
    r"AWS4-HMAC-SHA256 Credential=[^/]+/\d{8}/[^/]+/(?P<service>[^/]+)/aws4_request\b"
)
_REFUSED_BY_SQS: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+)")
_CONDITIONS: Final = frozenset(
    {"range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"}
)
_LARGE_BYTES: Final = 1024 * 1024
_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "expect", "content-length", "date"}
)
_AWS_JSON: Final = "application/x-amz-json-1.1"
_SQS_TYPES: Final = {
    "AccessDenied": "com.amazon.coral.service#AccessDeniedException",
    "InvalidParameterValue": "com.amazon.coral.service#InvalidParameterValueException",
    "MissingParameter": "com.amazon.coral.service#MissingRequiredParameterException",
    "AWS.SimpleQueueService.NonExistentQueue": "com.amazonaws.sqs#QueueDoesNotExist",
}
_QUERIES_ON_BUCKETS: Final = {
    ("GET", "list-type"): "ListObjectsV2",
    ("GET", "location"): "GetBucketLocation",
    ("GET", "uploads"): "ListMultipartUploads",
    ("GET", "versions"): "ListObjectVersions",
    ("POST", "delete"): "DeleteObjects",
}
_BUCKETS: Final = {
    "GET": "ListObjects",
    "HEAD": "HeadBucket",
    "PUT": "CreateBucket",
    "DELETE": "DeleteBucket",
}
_QUERIES_ON_OBJECTS: Final = {
    ("PUT", "partNumber"): "UploadPart",
    ("POST", "uploads"): "CreateMultipartUpload",
    ("POST", "uploadId"): "CompleteMultipartUpload",
    ("GET", "uploadId"): "ListParts",
    ("GET", "attributes"): "GetObjectAttributes",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
}
_OBJECTS: Final = {
    "GET": "GetObject",
    "HEAD": "HeadObject",
    "PUT": "PutObject",
    "DELETE": "DeleteObject",
}


class _RefusedError(Exception):
    """The real service would not do this."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.answer = Answer(status, code)


class Aws(FakeServer):
    """The services behind one URL, and what a test may do that an agent may not."""

    def __init__(self, moto: tuple[str, int]) -> None:
        super().__init__()
        self._folder = TemporaryDirectory(prefix="aws-")
        self._copying = Lock()
        self.own_instance: str | None = None
        """When set, the only one whose termination the role allows."""
        self._moto = moto
        self._clients: dict[str, Any] = {}
        self._names = count(1)
        self._order = Lock()
        self._clear()
        self._checks: Mapping[str, Callable[[Request], Reply]] = {
            "logs:PutLogEvents": self._put_log_events,
            "sqs:SendMessage": self._send_message,
            "sqs:SendMessageBatch": self._send_message_batch,
            "ec2:TerminateInstances": self._terminate_instances,
            "s3:GetObject": self._get_object,
            "s3:PutObject": self._put_object,
            "s3:UploadPart": self._put_object,
        }

    @property
    def environ(self) -> dict[str, str]:
        """What a process needs to take this for AWS."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
            "AWS_REGION": REGION,
        }

    def client(self, service: str) -> Any:
        """A boto3 client past the proxy: it sees no fault, and is not written down."""
        if service not in self._clients:
            self._clients[service] = boto3.Session().client(
                service,
                region_name=REGION,
                endpoint_url="http://{}:{}".format(*self._moto),
                aws_access_key_id=ACCESS_KEY_ID,
                aws_secret_access_key=SECRET_ACCESS_KEY,
                config=Config(retries={"total_max_attempts": 1}),
            )
        return self._clients[service]

    def reset(self) -> None:
        """Nothing is there, nothing has happened, nothing goes wrong."""
        self.forget()
        self._ask_moto("POST", "/moto-api/reset")
        with self._order:
            self._clear()
        with self._copying:
            for copy in Path(self._folder.name).iterdir():
                copy.unlink()
        self.own_instance = None

    def _clear(self) -> None:
        self.terminations: list[str] = []
        """The IDs in accepted requests, oldest first."""
        self._events: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
        self._messages: dict[str, list[str]] = defaultdict(list)
        self._delivered: dict[str, list[str]] = defaultdict(list)

    def __exit__(self, *raised: object) -> None:
        for client in self._clients.values():
            client.close()
        super().__exit__(*raised)
        self._folder.cleanup()

    # what a test sets up, and looks at

    def instance(self) -> str:
        """The ID of a new instance, which runs."""
        ec2 = self.client("ec2")
        image = ec2.register_image(Name=f"image-{next(self._names)}")["ImageId"]
        answer = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1)
        return str(answer["Instances"][0]["InstanceId"])

    def state_of(self, instance_id: str) -> str:
        """`running`, `shutting-down`, `terminated`."""
        answer = self.client("ec2").describe_instances(InstanceIds=[instance_id])
        return str(answer["Reservations"][0]["Instances"][0]["State"]["Name"])

    def queue(self, *, fifo: bool = False) -> str:
        """The URL of a new queue, through the proxy."""
        attributes = {"MaximumMessageSize": str(MESSAGE_BYTES)}
        if fifo:
            attributes["FifoQueue"] = "true"
        name = f"queue-{next(self._names)}{'.fifo' if fifo else ''}"
        answer = self.client("sqs").create_queue(QueueName=name, Attributes=attributes)
        return f"{self.url}{urlsplit(answer['QueueUrl']).path}"

    def messages(self, queue_url: str) -> list[dict[str, Any]]:
        """All that was accepted, repeats too, oldest first."""
        with self._order:
            return [json.loads(body) for body in self._messages[urlsplit(queue_url).path]]

    def delivered(self, queue_url: str) -> list[dict[str, Any]]:
        """All that the queue has given to its consumer: a FIFO queue drops repeats. Empties the queue."""
        path, sqs = urlsplit(queue_url).path, self.client("sqs")
        moto_url = "http://{}:{}".format(*self._moto) + path
        while received := sqs.receive_message(QueueUrl=moto_url, MaxNumberOfMessages=10).get("Messages"):
            for message in received:
                self._delivered[path].append(message["Body"])
                sqs.delete_message(QueueUrl=moto_url, ReceiptHandle=message["ReceiptHandle"])
        return [json.loads(body) for body in self._delivered[path]]

    def log_group(self, name: str) -> None:
        """There is such a group from here on."""
        logs = self.client("logs")
        with suppress(logs.exceptions.ResourceAlreadyExistsException):
            logs.create_log_group(logGroupName=name)

    def log_events(self, group: str, stream: str) -> list[tuple[int, str]]:
        """Timestamps in milliseconds and texts, in the order of acceptance, repeats too."""
        with self._order:
            return list(self._events[group, stream])

    def log_lines(self, group: str, stream: str) -> list[str]:
        return [message for _, message in self.log_events(group, stream)]

    def bucket(self) -> str:
        """The name of a new bucket."""
        name = f"bucket-{next(self._names)}"
        location = {"LocationConstraint": REGION}
        self.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration=location)
        return name

    def put_parameter(self, name: str, text: str, *, secure: bool = False) -> None:
        kind = "SecureString" if secure else "String"
        self.client("ssm").put_parameter(Name=name, Value=text, Type=kind, Overwrite=True)

    # the proxy

    def operation(self, request: Request) -> str:
        service = _service(request)
        if "x-amz-target" in request.headers:
            return f"{service}:{request.headers['x-amz-target'].rpartition('.')[2]}"
        if service == "s3":
            return f"s3:{_operation_of_s3(request)}"
        return f"{service}:{_form(request).get('Action', request.path)}"

    def answer(self, request: Request) -> Reply:
        if not _SIGNED.match(request.headers.get("authorization", "")):
            code = "AccessDenied" if _service(request) == "s3" else "MissingAuthenticationToken"
            return self._error(request, Answer(403, code), "Missing Authentication Token")
        try:
            return self._checks.get(self.operation(request), self._forward)(request)
        except _RefusedError as refused:
            return self._error(request, refused.answer, str(refused))

    def refusal(self, request: Request, answer: Answer) -> Reply:
        return self._error(request, answer, f"planned: {answer.code or answer.status}")

    def _error(self, request: Request, answer: Answer, message: str) -> Reply:
        service, code, request_id = _service(request), answer.code, f"request-{next(self._names)}"
        headers = {"x-amzn-RequestId": request_id}
        if not code:
            return Reply(answer.status, b"", headers | dict(answer.headers))
        if "x-amz-target" in request.headers:
            headers |= {"Content-Type": request.headers.get("content-type", _AWS_JSON)}
            headers |= {"x-amzn-ErrorType": code}
            if service == "sqs":
                headers |= {"x-amzn-query-error": f"{code};{'Sender' if answer.status < 500 else 'Receiver'}"}
                code = _SQS_TYPES.get(code, f"com.amazonaws.sqs#{code}")
            text = json.dumps({"__type": code, "message": message})
        else:
            error = f"<Code>{escape(code)}</Code><Message>{escape(message)}</Message>"
            text = '<?xml version="1.0" encoding="UTF-8"?>\n' + _XML.get(service, _XML["sts"]).format(
                error=error, request_id=request_id
            )
            headers |= {"Content-Type": "application/xml"}
        return Reply(answer.status, text.encode(), headers | dict(answer.headers))

    def _forward(self, request: Request, content: bytes | None = None) -> Reply:
        """What moto says to it, or to the same request with other content."""
        connection = http.client.HTTPConnection(*self._moto)
        request.resources.callback(connection.close)
        connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.items():
            if name not in _HOP_BY_HOP:
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(request.length if content is None else len(content)))
        connection.endheaders()
        for piece in request.pieces() if content is None else [content]:
            connection.send(piece)
        response = request.resources.enter_context(connection.getresponse())
        headers = {name.lower(): value for name, value in response.getheaders()}
        length = headers.get("content-length")
        headers = {name: value for name, value in headers.items() if name not in _HOP_BY_HOP}
        if length is None:
            return Reply(response.status, response.read(), headers)
        return Reply(response.status, _pieces(response), headers, int(length))

    def _ask_moto(self, method: str, path: str) -> None:
        connection = http.client.HTTPConnection(*self._moto)
        try:
            connection.request(method, path)
            with connection.getresponse() as response:
                assert response.status == http.client.OK, response.read()
        finally:
            connection.close()

    # what the real services enforce

    def _put_log_events(self, request: Request) -> Reply:
        asked = json.loads(request.content)
        events = [(event["timestamp"], event["message"]) for event in asked["logEvents"]]
        _check_batch(events)
        now = wall_clock()
        oldest, newest = (int((now + away).timestamp() * 1000) for away in (-OLDEST, NEWEST))
        start = sum(timestamp < oldest for timestamp, _ in events)
        end = sum(timestamp <= newest for timestamp, _ in events)
        rejected: dict[str, int] = {}
        if start:
            rejected["tooOldLogEventEndIndex"] = start
        if end < len(events):
            rejected["tooNewLogEventStartIndex"] = end
        content = json.dumps(asked | {"logEvents": asked["logEvents"][start:end]}) if rejected else None
        with self._order:
            reply = self._forward(request, content.encode() if content else None)
            body = b"".join([reply.body] if isinstance(reply.body, bytes) else reply.body)
            if reply.status == http.client.OK:
                self._events[asked["logGroupName"], asked["logStreamName"]] += events[start:end]
                answer = json.loads(body)
                answer.pop("rejectedLogEventsInfo", None)
                body = json.dumps(answer | ({"rejectedLogEventsInfo": rejected} if rejected else {})).encode()
        # moto says text/html, the real service its protocol.
        others = {name: value for name, value in reply.headers.items() if name.lower() != "content-type"}
        return Reply(reply.status, body, {**others, "Content-Type": "application/x-amz-json-1.1"})

    def _send_message(self, request: Request) -> Reply:
        asked = json.loads(request.content) if "x-amz-target" in request.headers else _form(request)
        text, path = asked["MessageBody"], urlsplit(asked["QueueUrl"]).path
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > MESSAGE_BYTES:
            reason = f"Reason: Message must be shorter than {MESSAGE_BYTES} bytes."
            raise _RefusedError(400, "InvalidParameterValue", reason)
        if not 0 <= int(asked.get("DelaySeconds", 0)) <= MOST_DELAY_SECONDS:
            reason = f"Value {asked['DelaySeconds']} for parameter DelaySeconds is invalid."
            raise _RefusedError(400, "InvalidParameterValue", reason)
        if _REFUSED_BY_SQS.search(text):
            reason = (
                "Invalid characters found. Valid unicode characters are #x9 | #xA | #xD | #x20 to #xD7FF | …"
            )
            raise _RefusedError(400, "InvalidMessageContents", reason)
        if path.endswith(".fifo") and not asked.get("MessageGroupId"):
            reason = "The request must contain the parameter MessageGroupId."
            raise _RefusedError(400, "MissingParameter", reason)
        with self._order:
            reply = self._forward(request)
            if reply.status == http.client.OK:
                self._messages[path].append(text)
        return reply

    def _send_message_batch(self, _: Request) -> Reply:
        raise _RefusedError(400, "UnsupportedOperation", "this fake does not hold batches to their limits")

    def _terminate_instances(self, request: Request) -> Reply:
        asked = [value for name, value in _form(request).items() if name.startswith("InstanceId.")]
        if self.own_instance is not None and asked != [self.own_instance]:
            reason = "You are not authorized to perform this operation. no identity-based policy allows it"
            raise _RefusedError(403, "UnauthorizedOperation", reason)
        with self._order:
            reply = self._forward(request)
            if reply.status == http.client.OK:
                self.terminations += asked
        return reply

    def _put_object(self, request: Request) -> Reply:
        _check_digests(request)
        return self._forward(request)

    def _get_object(self, request: Request) -> Reply:
        """As moto says; the bytes of large objects from a file: for each range, moto would copy the whole."""
        head = self._forward(evolve(request, method="HEAD"))
        start, size = 0, head.length or 0
        if ranged := _CONTENT_RANGE.fullmatch(head.headers.get("content-range", "")):
            start, size = int(ranged[1]), int(ranged[2])
        if head.status in (http.client.OK, http.client.PARTIAL_CONTENT) and size >= _LARGE_BYTES:
            copy = self._copy(request, head.headers["etag"])
            if copy is not None:
                source = request.resources.enter_context(copy.open("rb"))
                source.seek(start)
                return evolve(head, body=_pieces(source))
        return self._forward(request)

    def _copy(self, request: Request, tag: str) -> Path | None:
        """The file with the object of this ETag, or None if the object is another one by now."""
        copy = Path(self._folder.name, hashlib.sha256(tag.encode()).hexdigest())
        headers = {name: value for name, value in request.headers.items() if name not in _CONDITIONS}
        with self._copying:
            if not copy.exists():
                whole = self._forward(evolve(request, headers=headers))
                if whole.headers.get("etag") != tag:
                    return None
                with copy.open("wb") as file:
                    file.writelines([whole.body] if isinstance(whole.body, bytes) else whole.body)
        return copy


_XML: Final = {
    "ec2": "<Response><Errors><Error>{error}</Error></Errors><RequestID>{request_id}</RequestID></Response>",
    "s3": "<Error>{error}<RequestId>{request_id}</RequestId></Error>",
    "sts": "<ErrorResponse><Error><Type>Sender</Type>{error}</Error>"
    "<RequestId>{request_id}</RequestId></ErrorResponse>",
}


def _service(request: Request) -> str:
    """As signed for; what is not signed is told from its form."""
    if signed := _SIGNED.match(request.headers.get("authorization", "")):
        return signed["service"]
    return "unsigned" if request.method == "POST" else "s3"


def _operation_of_s3(request: Request) -> str:
    bucket, _, key = request.path.lstrip("/").partition("/")
    if not bucket:
        return "ListBuckets"
    method, plain, with_query = request.method, _OBJECTS, _QUERIES_ON_OBJECTS
    if not key:
        plain, with_query = _BUCKETS, _QUERIES_ON_BUCKETS
    if key and method == "PUT" and "x-amz-copy-source" in request.headers:
        return "UploadPartCopy" if "partNumber" in request.query else "CopyObject"
    for name in request.query:
        if (method, name) in with_query:
            return with_query[method, name]
    return plain.get(method, method)


def _form(request: Request) -> dict[str, str]:
    text = request.content.decode("utf-8", "replace")
    return {name: values[0] for name, values in parse_qs(text, keep_blank_values=True).items()}


def _pieces(source: BufferedIOBase) -> Iterator[bytes]:
    while piece := source.read(PIECE_BYTES):
        yield piece


def _check_batch(events: list[tuple[int, str]]) -> None:
    """Holds it to the limits of PutLogEvents."""
    sizes = [len(message.encode()) + EVENT_OVERHEAD_BYTES for _, message in events]
    times = [timestamp for timestamp, _ in events]
    problem = ""
    if not 1 <= len(events) <= BATCH_EVENTS:
        problem = f"1 validation error detected: 'logEvents' must have length between 1 and {BATCH_EVENTS}"
    elif min(sizes) == EVENT_OVERHEAD_BYTES:
        problem = "1 validation error detected: 'message' must have length greater than or equal to 1"
    elif max(sizes) > EVENT_BYTES:
        problem = f"Log event too large: {max(sizes)} bytes exceeds limit of {EVENT_BYTES}"
    elif sum(sizes) > BATCH_BYTES:
        problem = f"Upload too large: {sum(sizes)} bytes exceeds limit of {BATCH_BYTES}"
    elif min(times) < 0:
        problem = "1 validation error detected: 'timestamp' must have value greater than or equal to 0"
    elif times != sorted(times):
        problem = "Log events in a single PutLogEvents request must be in chronological order."
    elif times[-1] - times[0] > BATCH_SPAN_MS:
        problem = "The batch of log events in a single PutLogEvents request cannot span more than 24 hours."
    if problem:
        raise _RefusedError(400, "InvalidParameterException", problem)


def _check_digests(request: Request) -> None:
    """Holds a body to every digest that came with it, in a header or behind the body."""
    sent = dict(request.headers)
    sha256, sha1, md5, crc32 = hashlib.sha256(), hashlib.sha1(), hashlib.md5(), 0  # noqa: S324 - as S3 does
    how = sent.get("x-amz-content-sha256", "")
    for piece in _decoded(request, sent) if how.startswith("STREAMING-") else request.pieces():
        crc32 = zlib.crc32(piece, crc32)
        for hash_ in (sha256, sha1, md5):
            hash_.update(piece)
    digests = {
        "x-amz-checksum-sha256": sha256.digest(),
        "x-amz-checksum-sha1": sha1.digest(),
        "x-amz-checksum-crc32": crc32.to_bytes(4, "big"),
        "content-md5": md5.digest(),
    }
    for name, digest in digests.items():
        if name in sent and sent[name] != base64.b64encode(digest).decode():
            raise _RefusedError(
                400, "BadDigest", f"The {name} you specified did not match the calculated one."
            )
    if re.fullmatch("[0-9a-f]{64}", how) and how != sha256.hexdigest():
        reason = "The provided 'x-amz-content-sha256' header does not match what was computed."
        raise _RefusedError(400, "XAmzContentSHA256Mismatch", reason)


def _decoded(request: Request, trailers: dict[str, str]) -> Iterator[bytes]:
    """The body without its aws-chunked encoding; what stands behind it goes to `trailers`."""
    body = request.body
    body.seek(0)
    while size := int(body.readline().partition(b";")[0] or b"0", 16):
        left = size
        while left and (piece := body.read(min(left, PIECE_BYTES))):
            left -= len(piece)
            yield piece
        body.readline()
    while line := body.readline().strip():
        name, _, value = line.decode("latin-1").partition(":")
        trailers[name.lower()] = value.strip()


@contextmanager
def aws_cloud() -> Iterator[Aws]:
    """AWS on this machine, for one test or, with `reset()` between them, for many."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto's server would write down each request
    os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"  # thousands, which each reset would load anew
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    try:
        with Aws(moto.get_host_and_port()) as aws:
            yield aws
    finally:
        server = moto._server
        assert server is not None
        moto.stop()
        server.server_close()  # which stop() leaves out

"""The fakes of the cloud are as strict as the cloud, and go wrong as planned."""

import base64
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from threading import Thread
from typing import Any

import boto3
import httpx
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError

from support.aws import (
    BATCH_BYTES,
    BATCH_SPAN_MS,
    EVENT_BYTES,
    EVENT_OVERHEAD_BYTES,
    MESSAGE_BYTES,
    NEWEST,
    OLDEST,
    REGION,
    Aws,
    aws_cloud,
)
from support.faults import Answer, Faults, Hang, Lose, Refuse, Slow, Truncate, denied, throttled, wall_clock
from support.github import GitHub, github_server
from support.imds import ROLE, ROLE_ACCESS_KEY_ID, ROLE_TOKEN, InstanceMetadata, instance_metadata

GROUP, STREAM = "/runs-fleet/runners", "i-0123456789abcdef0/67890"
VERSION = "2.330.0"
ARCHIVE = os.urandom(100_000)
ASKED: list[tuple[str, str, dict[str, Any]]] = [
    ("ssm", "get_parameter", {"Name": "x"}),
    ("logs", "describe_log_groups", {}),
    ("s3", "get_object", {"Bucket": "b", "Key": "k"}),
    ("sqs", "send_message", {"QueueUrl": "http://q/1/q", "MessageBody": "{}"}),
    ("ec2", "describe_instances", {}),
    ("sts", "get_caller_identity", {}),
]
"""Something to ask of each service."""

IMPATIENCE = 0.2
"""Seconds that a client waits for an answer that does not come."""


@pytest.fixture(scope="module")
def cloud() -> Iterator[Aws]:
    with aws_cloud() as aws:
        yield aws


@pytest.fixture
def aws(cloud: Aws) -> Iterator[Aws]:
    yield cloud
    cloud.reset()


class Clients:
    """boto3 through the proxy, each request tried once."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._clients: dict[str, Any] = {}

    def __getattr__(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = boto3.Session().client(
                service,
                region_name=REGION,
                endpoint_url=self._url,
                aws_access_key_id="AKIA",
                aws_secret_access_key="secret",
                config=Config(retries={"total_max_attempts": 1}, parameter_validation=False, read_timeout=20),
            )
        return self._clients[service]

    def close(self) -> None:
        for client in self._clients.values():
            client.close()


@pytest.fixture(scope="module")
def boto(cloud: Aws) -> Iterator[Clients]:
    clients = Clients(cloud.url)
    yield clients
    clients.close()


@pytest.fixture
def github() -> Iterator[GitHub]:
    with github_server() as github:
        github.publish(VERSION, "x64", ARCHIVE)
        yield github


@pytest.fixture
def imds() -> Iterator[InstanceMetadata]:
    with instance_metadata() as imds:
        yield imds


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=20, follow_redirects=True, trust_env=False) as client:
        yield client


def refusal(raised: pytest.ExceptionInfo[ClientError]) -> tuple[int, str]:
    response = raised.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


def signed(service: str) -> dict[str, str]:
    scope = f"AKIA/20250101/{REGION}/{service}/aws4_request"
    return {"Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"}


def now_ms() -> int:
    return int(wall_clock().timestamp() * 1000)


def event(message: str = "x", *, at: int | None = None) -> dict[str, Any]:
    return {"timestamp": now_ms() if at is None else at, "message": message}


def asset_url(github: GitHub, version: str = VERSION, arch: str = "x64") -> str:
    name = f"actions-runner-linux-{arch}-{version}.tar.gz"
    return f"{github.url}/actions/runner/releases/download/v{version}/{name}"


class TestPlans:
    def test_later_plans_win_until_they_are_used_up(self) -> None:
        faults = Faults()
        faults.plan("s3:*", Answer(500))
        faults.plan("s3:GetObject", Refuse(), times=1)
        hits = [faults.take(operation) for operation in ("s3:GetObject", "s3:GetObject", "sqs:SendMessage")]
        assert [hit and hit.fault for hit in hits] == [Refuse(), Answer(500), None]

    def test_only_what_was_planned_with_the_same_words_is_healed(self) -> None:
        faults = Faults()
        faults.plan("*", Answer(500))
        faults.plan("s3:*", Refuse())
        faults.heal("s3:*")
        hit = faults.take("s3:GetObject")
        assert hit is not None
        assert hit.fault == Answer(500)
        faults.heal()
        assert faults.take("s3:GetObject") is None


class TestFaults:
    def test_an_answer_comes_with_its_headers(self, github: GitHub, http: httpx.Client) -> None:
        github.faults.plan("github:latest", Answer(503, headers={"Retry-After": "7"}), times=1)
        url = f"{github.api_url}/repos/actions/runner/releases/latest"
        answers = [http.get(url), http.get(url)]
        assert [answer.status_code for answer in answers] == [503, 200]
        assert answers[0].headers["Retry-After"] == "7"
        assert [(call.operation, call.status) for call in github.calls] == [
            ("github:latest", 503),
            ("github:latest", 200),
        ]

    def test_a_refused_connection_has_no_answer(self, github: GitHub, http: httpx.Client) -> None:
        github.faults.plan("github:redirect", Refuse())
        with pytest.raises(httpx.RemoteProtocolError):
            http.get(asset_url(github))
        assert github.calls[0].status is None

    def test_a_hanging_request_is_answered_when_healed(self, github: GitHub, http: httpx.Client) -> None:
        github.faults.plan("github:download", Hang())
        answers: list[httpx.Response] = []
        asking = Thread(target=lambda: answers.append(http.get(asset_url(github))))
        asking.start()
        github.wait_for("github:download")
        asking.join(IMPATIENCE)
        assert asking.is_alive()
        github.faults.heal()
        asking.join()
        assert answers[0].content == ARCHIVE

    def test_what_nobody_waits_for_any_more_does_not_happen(self, github: GitHub) -> None:
        github.faults.plan("github:redirect", Hang())
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(asset_url(github), timeout=IMPATIENCE, trust_env=False)
        github.wait_for("github:redirect")  # the client may have gone before its request was read
        github.faults.heal()
        github.wait_until_unused()
        assert [call.status for call in github.calls] == [None]

    def test_a_client_may_go_in_the_middle_of_its_request(self, http: httpx.Client) -> None:
        with github_server() as github:
            host, _, port = github.url.removeprefix("http://").partition(":")
            chunked = b"Transfer-Encoding: chunked"
            for head, body in ((b"Content-Length: 9", b"x"), (chunked, b"5\r\nx"), (chunked, b"1\r\nx\r\n")):
                with socket.create_connection((host, int(port))) as client:
                    client.sendall(b"PUT / HTTP/1.1\r\n" + head + b"\r\n\r\n" + body)
            assert http.get(github.url).status_code == 404

    def test_a_server_ends_while_a_request_hangs(self, http: httpx.Client) -> None:
        with github_server() as github:
            github.faults.plan("*", Hang())
            with pytest.raises(httpx.ReadTimeout):
                http.get(github.url, timeout=IMPATIENCE)

    def test_a_truncated_answer_announces_what_it_does_not_send(
        self, github: GitHub, http: httpx.Client
    ) -> None:
        github.faults.plan("github:download", Truncate(70_000))
        got = b""
        with http.stream("GET", asset_url(github)) as answer:
            assert answer.headers["Content-Length"] == str(len(ARCHIVE))
            with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012 - what came before it counts
                for piece in answer.iter_raw():
                    got += piece
        assert got == ARCHIVE[:70_000]

    def test_a_lost_answer_is_that_of_a_service_that_has_acted(self, aws: Aws, boto: Clients) -> None:
        url = aws.queue()
        aws.faults.plan("sqs:SendMessage", Lose(), times=1)
        with pytest.raises(ConnectionClosedError):
            boto.sqs.send_message(QueueUrl=url, MessageBody='{"n": 1}')
        assert aws.messages(url) == [{"n": 1}]

    def test_a_slow_answer_takes_its_time_until_healed(self, github: GitHub, http: httpx.Client) -> None:
        github.faults.plan("github:download", Slow(len(ARCHIVE) * 5))
        start = time.monotonic()
        assert http.get(asset_url(github)).content == ARCHIVE
        assert time.monotonic() - start > 0.15
        github.faults.plan("github:download", Slow(1000))
        with http.stream("GET", asset_url(github)) as answer:
            pieces = answer.iter_raw()
            got = next(pieces)
            github.faults.heal()
            assert got + b"".join(pieces) == ARCHIVE

    @pytest.mark.parametrize(("service", "operation", "arguments"), ASKED)
    def test_each_service_refuses_in_its_own_way(
        self, aws: Aws, boto: Clients, service: str, operation: str, arguments: dict[str, Any]
    ) -> None:
        for answer in (denied(service), throttled(service)):
            aws.faults.plan(f"{service}:*", answer, times=1)
            with pytest.raises(ClientError) as raised:
                getattr(getattr(boto, service), operation)(**arguments)
            assert refusal(raised) == (answer.status, answer.code)


class TestAws:
    def test_calls_are_written_down_with_what_they_are(self, aws: Aws, boto: Clients) -> None:
        bucket = aws.bucket()
        aws.put_parameter("/a/b", "text", secure=True)
        assert boto.ssm.get_parameter(Name="/a/b", WithDecryption=True)["Parameter"]["Value"] == "text"
        boto.s3.put_object(Bucket=bucket, Key="a/b c", Body=b"x")
        boto.s3.head_object(Bucket=bucket, Key="a/b c")
        boto.s3.list_objects_v2(Bucket=bucket)
        boto.s3.head_bucket(Bucket=bucket)
        boto.sts.get_caller_identity()
        boto.ec2.describe_instances()
        boto.logs.create_log_group(logGroupName=GROUP)
        assert [(call.operation, call.status) for call in aws.calls] == [
            ("ssm:GetParameter", 200),
            ("s3:PutObject", 200),
            ("s3:HeadObject", 200),
            ("s3:ListObjectsV2", 200),
            ("s3:HeadBucket", 200),
            ("sts:GetCallerIdentity", 200),
            ("ec2:DescribeInstances", 200),
            ("logs:CreateLogGroup", 200),
        ]
        assert [call.at for call in aws.calls] == sorted(call.at for call in aws.calls)
        aws.reset()
        assert aws.calls == []
        with pytest.raises(ClientError) as raised:
            boto.ssm.get_parameter(Name="/a/b")
        assert refusal(raised) == (400, "ParameterNotFound")

    def test_what_is_not_signed_is_refused(self, aws: Aws, http: httpx.Client) -> None:
        assert http.get(f"{aws.url}/bucket/key").status_code == 403
        assert http.post(aws.url, data={"Action": "GetCallerIdentity"}).status_code == 403

    def test_its_environment_is_enough_for_boto3(self, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in aws.environ.items():
            monkeypatch.setenv(name, value)
        client = boto3.Session().client("sts", region_name=aws.environ["AWS_REGION"])
        client.get_caller_identity()
        client.close()
        [call] = aws.wait_for("sts:*", status=200)
        assert (call.service, call.operation) == ("sts", "sts:GetCallerIdentity")


class TestLogs:
    @pytest.fixture(autouse=True)
    def stream(self, aws: Aws, boto: Clients) -> None:
        aws.log_group(GROUP)
        boto.logs.create_log_stream(logGroupName=GROUP, logStreamName=STREAM)

    def put(self, boto: Clients, events: list[dict[str, Any]], **names: str) -> dict[str, Any]:
        where = {"logGroupName": GROUP, "logStreamName": STREAM} | names
        answer: dict[str, Any] = boto.logs.put_log_events(logEvents=events, **where)
        return answer

    def test_what_was_accepted_is_kept_in_order_with_repeats(self, aws: Aws, boto: Clients) -> None:
        at = now_ms()
        for _ in range(2):
            self.put(boto, [event("é", at=at), event("b", at=at + 1)])
        assert aws.log_events(GROUP, STREAM) == [(at, "é"), (at + 1, "b")] * 2
        assert aws.log_lines(GROUP, STREAM) == ["é", "b"] * 2

    def test_full_batches_are_accepted(self, aws: Aws, boto: Clients) -> None:
        at, half = now_ms(), "é" * (BATCH_BYTES // 4 - EVENT_OVERHEAD_BYTES // 2)
        self.put(boto, [event("x", at=at)] * 10_000)
        self.put(boto, [event(half, at=at), event(half, at=at + BATCH_SPAN_MS // 24)])
        self.put(
            boto, [event("x" * (EVENT_BYTES - EVENT_OVERHEAD_BYTES), at=at - BATCH_SPAN_MS), event(at=at)]
        )
        assert len(aws.log_lines(GROUP, STREAM)) == 10_004

    @pytest.mark.parametrize(
        "messages",
        [
            pytest.param([("x", 0)] * 10_001, id="too many"),
            pytest.param([], id="none"),
            pytest.param([("", 0)], id="empty"),
            pytest.param([("x" * (EVENT_BYTES - EVENT_OVERHEAD_BYTES + 1), 0)], id="event too large"),
            pytest.param([("é" * (BATCH_BYTES // 4 - 12), 0)] * 2, id="batch too large"),
            pytest.param([("x", 1), ("x", 0)], id="out of order"),
            pytest.param([("x", -BATCH_SPAN_MS - 1), ("x", 0)], id="longer than a day"),
        ],
    )
    def test_no_limit_is_exceeded(self, aws: Aws, boto: Clients, messages: list[tuple[str, int]]) -> None:
        at = now_ms()
        with pytest.raises(ClientError) as raised:
            self.put(boto, [event(message, at=at + offset) for message, offset in messages])
        assert refusal(raised) == (400, "InvalidParameterException")
        assert aws.log_lines(GROUP, STREAM) == []

    def test_events_too_old_are_left_out(self, aws: Aws, boto: Clients) -> None:
        old = now_ms() - int(OLDEST.total_seconds() * 1000)
        events = [event("a", at=old - 2000), event("b", at=old - 1000), event("c", at=old + 60_000)]
        answer = self.put(boto, events)
        assert answer["rejectedLogEventsInfo"] == {"tooOldLogEventEndIndex": 2}
        assert aws.log_lines(GROUP, STREAM) == ["c"]
        assert self.put(boto, events[:1])["rejectedLogEventsInfo"] == {"tooOldLogEventEndIndex": 1}

    def test_events_too_new_are_left_out(self, aws: Aws, boto: Clients) -> None:
        new = now_ms() + int(NEWEST.total_seconds() * 1000) + 60_000
        answer = self.put(boto, [event("a"), event("b", at=new), event("c", at=new + 1)])
        assert answer["rejectedLogEventsInfo"] == {"tooNewLogEventStartIndex": 1}
        assert aws.log_lines(GROUP, STREAM) == ["a"]

    @pytest.mark.parametrize("names", [{"logGroupName": "other"}, {"logStreamName": "other"}])
    def test_group_and_stream_have_to_be_there(self, boto: Clients, names: dict[str, str]) -> None:
        with pytest.raises(ClientError) as raised:
            self.put(boto, [event()], **names)
        assert refusal(raised) == (400, "ResourceNotFoundException")


class TestQueues:
    def test_every_accepted_message_is_kept(self, aws: Aws, boto: Clients) -> None:
        url = aws.queue()
        assert url.startswith(aws.url)
        for _ in range(2):
            boto.sqs.send_message(QueueUrl=url, MessageBody='{"n": 1}')
        assert aws.messages(url) == [{"n": 1}] * 2
        assert aws.delivered(url) == [{"n": 1}] * 2
        assert boto.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]

    def test_a_fifo_queue_drops_repeats(self, aws: Aws, boto: Clients) -> None:
        url = aws.queue(fifo=True)
        for _ in range(2):
            boto.sqs.send_message(
                QueueUrl=url, MessageBody='{"n": 1}', MessageGroupId="i-1", MessageDeduplicationId="m-1"
            )
        assert aws.messages(url) == [{"n": 1}] * 2
        assert aws.delivered(url) == [{"n": 1}]
        assert aws.delivered(url) == [{"n": 1}]

    @pytest.mark.parametrize(
        ("text", "fifo", "expected"),
        [
            pytest.param("x" * (MESSAGE_BYTES + 1), False, (400, "InvalidParameterValue"), id="too large"),
            pytest.param("a\x00b", False, (400, "InvalidMessageContents"), id="control character"),
            pytest.param("a\ufffe", False, (400, "InvalidMessageContents"), id="not a character"),
            pytest.param("{}", True, (400, "MissingParameter"), id="no group"),
        ],
    )
    def test_a_message_is_held_to_its_limits(
        self, aws: Aws, boto: Clients, text: str, expected: tuple[int, str], *, fifo: bool
    ) -> None:
        url = aws.queue(fifo=fifo)
        with pytest.raises(ClientError) as raised:
            boto.sqs.send_message(QueueUrl=url, MessageBody=text)
        assert refusal(raised) == expected
        assert aws.messages(url) == []

    def test_the_largest_message_is_accepted(self, aws: Aws, boto: Clients) -> None:
        url, text = aws.queue(), json.dumps("é\U0001f600\t" + "x" * (MESSAGE_BYTES - 10), ensure_ascii=False)
        assert len(text.encode()) == MESSAGE_BYTES
        boto.sqs.send_message(QueueUrl=url, MessageBody=text)
        assert len(aws.messages(url)) == 1

    def test_the_queue_has_to_be_there(self, aws: Aws, boto: Clients) -> None:
        with pytest.raises(ClientError) as raised:
            boto.sqs.send_message(QueueUrl=f"{aws.url}/123456789012/none", MessageBody="{}")
        assert refusal(raised) == (400, "AWS.SimpleQueueService.NonExistentQueue")


class TestInstances:
    def test_an_instance_is_terminated_by_itself_only(self, aws: Aws, boto: Clients) -> None:
        own, other = aws.instance(), aws.instance()
        aws.own_instance = own
        with pytest.raises(ClientError) as raised:
            boto.ec2.terminate_instances(InstanceIds=[other])
        assert refusal(raised) == (403, "UnauthorizedOperation")
        with pytest.raises(ClientError) as raised:
            boto.ec2.terminate_instances(InstanceIds=[own], DryRun=True)
        assert refusal(raised) == (412, "DryRunOperation")
        assert (aws.terminations, aws.state_of(own)) == ([], "running")
        boto.ec2.terminate_instances(InstanceIds=[own])
        assert aws.terminations == [own]
        assert aws.state_of(own) in ("shutting-down", "terminated")
        assert aws.state_of(other) == "running"

    def test_the_instance_has_to_be_there(self, aws: Aws, boto: Clients) -> None:
        with pytest.raises(ClientError) as raised:
            boto.ec2.terminate_instances(InstanceIds=["i-0123456789abcdef0"])
        assert refusal(raised) == (400, "InvalidInstanceID.NotFound")
        assert aws.terminations == []


class TestObjects:
    @pytest.fixture
    def bucket(self, aws: Aws) -> str:
        return aws.bucket()

    def test_large_bodies_pass_whole_and_in_ranges(self, boto: Clients, bucket: str) -> None:
        body = ARCHIVE * 80
        boto.s3.put_object(Bucket=bucket, Key="k", Body=body, ChecksumAlgorithm="SHA256")
        assert boto.s3.get_object(Bucket=bucket, Key="k")["Body"].read() == body
        answer = boto.s3.get_object(Bucket=bucket, Key="k", Range="bytes=100-299999")
        assert answer["Body"].read() == body[100:300_000]
        assert answer["ContentRange"] == f"bytes 100-299999/{len(body)}"
        assert boto.s3.head_object(Bucket=bucket, Key="k")["ContentLength"] == len(body)
        boto.s3.put_object(Bucket=bucket, Key="k", Body=body[::-1])
        assert boto.s3.get_object(Bucket=bucket, Key="k", Range="bytes=-5")["Body"].read() == body[4::-1]

    def test_a_body_in_chunks_arrives_without_them(
        self, boto: Clients, bucket: str, http: httpx.Client
    ) -> None:
        checksum = base64.b64encode(hashlib.sha256(b"hello world").digest())
        content = b"5\r\nhello\r\n6\r\n world\r\n0\r\nx-amz-checksum-sha256:" + checksum + b"\r\n\r\n"
        headers = signed("s3") | {
            "Content-Encoding": "aws-chunked",
            "X-Amz-Content-Sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            "X-Amz-Decoded-Content-Length": "11",
            "X-Amz-Trailer": "x-amz-checksum-sha256",
            "Expect": "100-continue",
        }
        url = f"{boto.s3.meta.endpoint_url}/{bucket}/k"
        assert http.put(url, headers=headers, content=iter([content[:9], content[9:]])).status_code == 200
        assert boto.s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"hello world"
        wrong = content.replace(b"hello", b"jello")
        assert http.put(url, headers=headers, content=wrong).status_code == 400

    def test_nothing_is_overwritten_where_nothing_may_be(self, boto: Clients, bucket: str) -> None:
        boto.s3.put_object(Bucket=bucket, Key="k", Body=b"a", IfNoneMatch="*")
        with pytest.raises(ClientError) as raised:
            boto.s3.put_object(Bucket=bucket, Key="k", Body=b"b", IfNoneMatch="*")
        assert refusal(raised) == (412, "PreconditionFailed")

    def test_an_object_that_has_changed_is_not_read_on(self, boto: Clients, bucket: str) -> None:
        tag = boto.s3.put_object(Bucket=bucket, Key="k", Body=b"first")["ETag"]
        assert (
            boto.s3.get_object(Bucket=bucket, Key="k", Range="bytes=2-", IfMatch=tag)["Body"].read() == b"rst"
        )
        boto.s3.put_object(Bucket=bucket, Key="k", Body=b"other")
        with pytest.raises(ClientError) as raised:
            boto.s3.get_object(Bucket=bucket, Key="k", Range="bytes=2-", IfMatch=tag)
        assert refusal(raised) == (412, "PreconditionFailed")
        with pytest.raises(ClientError) as raised:
            boto.s3.get_object(Bucket=bucket, Key="k", Range="bytes=5-")
        assert refusal(raised) == (416, "InvalidRange")

    def test_a_body_is_held_to_its_digest(self, boto: Clients, bucket: str) -> None:
        other = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
        with pytest.raises(ClientError) as raised:
            boto.s3.put_object(Bucket=bucket, Key="k", Body=b"body", ChecksumSHA256=other)
        assert refusal(raised) == (400, "BadDigest")
        with pytest.raises(ClientError) as raised:
            boto.s3.get_object(Bucket=bucket, Key="k")
        assert refusal(raised) == (404, "NoSuchKey")


class TestInstanceMetadata:
    def token(self, imds: InstanceMetadata, http: httpx.Client, ttl: str = "60") -> dict[str, str]:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": ttl}
        answer = http.put(f"{imds.url}/latest/api/token", headers=headers)
        assert answer.status_code == 200
        return {"X-aws-ec2-metadata-token": answer.text}

    def test_nothing_is_told_without_a_token(self, imds: InstanceMetadata, http: httpx.Client) -> None:
        url = f"{imds.url}/latest/meta-data/instance-id"
        assert http.get(url).status_code == 401
        headers = self.token(imds, http)
        assert http.get(url, headers=headers).text == imds.instance_id
        imds.revoke_tokens()
        assert http.get(url, headers=headers).status_code == 401
        assert [call.operation for call in imds.calls] == [
            "imds:instance-id",
            "imds:token",
            "imds:instance-id",
            "imds:instance-id",
        ]

    @pytest.mark.parametrize("ttl", [None, "0", "21601", "1h"])
    def test_a_token_has_a_life_of_six_hours_at_most(
        self, imds: InstanceMetadata, http: httpx.Client, ttl: str | None
    ) -> None:
        headers = {} if ttl is None else {"X-aws-ec2-metadata-token-ttl-seconds": ttl}
        assert http.put(f"{imds.url}/latest/api/token", headers=headers).status_code == 400
        assert http.get(f"{imds.url}/latest/api/token").status_code == 405

    def test_notices_come_when_they_are_given(self, imds: InstanceMetadata, http: httpx.Client) -> None:
        headers, at = self.token(imds, http), datetime(2025, 11, 25, 10, 0, tzinfo=UTC)
        spot = f"{imds.url}/latest/meta-data/spot/instance-action"
        rebalance = f"{imds.url}/latest/meta-data/events/recommendations/rebalance"
        assert [http.get(url, headers=headers).status_code for url in (spot, rebalance)] == [404, 404]
        imds.spot_notice(at)
        imds.rebalance(at)
        assert http.get(spot, headers=headers).json() == {
            "action": "terminate",
            "time": "2025-11-25T10:00:00Z",
        }
        assert http.get(rebalance, headers=headers).json() == {"noticeTime": "2025-11-25T10:00:00Z"}

    def test_it_tells_where_the_instance_is(self, imds: InstanceMetadata, http: httpx.Client) -> None:
        headers = self.token(imds, http)
        assert http.get(f"{imds.url}/latest/meta-data/placement/region", headers=headers).text == imds.region
        document = http.get(f"{imds.url}/latest/dynamic/instance-identity/document", headers=headers).json()
        assert (document["instanceId"], document["region"]) == (imds.instance_id, imds.region)

    def test_boto3_takes_its_credentials_from_it(
        self, imds: InstanceMetadata, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        for name, value in imds.environ.items():
            monkeypatch.setenv(name, value)
        credentials = boto3.Session().get_credentials()
        assert (credentials.access_key, credentials.token) == (ROLE_ACCESS_KEY_ID, ROLE_TOKEN)
        assert imds.calls[-1].target.endswith(ROLE)

    def test_it_goes_wrong_as_planned(self, imds: InstanceMetadata, http: httpx.Client) -> None:
        imds.faults.plan("imds:token", Answer(503), times=1)
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        answers = [http.put(f"{imds.url}/latest/api/token", headers=headers) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [503, 200]


class TestGitHub:
    def release(self, github: GitHub, http: httpx.Client, which: str = "latest") -> dict[str, Any]:
        answer = http.get(f"{github.api_url}/repos/actions/runner/releases/{which}")
        assert answer.status_code == 200
        release: dict[str, Any] = answer.json()
        return release

    def test_the_latest_release_is_the_highest(self, github: GitHub, http: httpx.Client) -> None:
        github.publish("2.99.0", "x64", ARCHIVE)
        release = self.release(github, http)
        assert (release["tag_name"], release["draft"], release["prerelease"]) == (f"v{VERSION}", False, False)
        assert self.release(github, http, "tags/v2.99.0")["tag_name"] == "v2.99.0"
        url = f"{github.api_url}/repos/actions/runner/releases/tags/v2.1.0"
        assert http.get(url).status_code == 404

    @pytest.mark.parametrize("digest", ["asset", "body", "none"])
    def test_a_digest_stands_where_it_was_published(
        self, github: GitHub, http: httpx.Client, digest: Any
    ) -> None:
        github.publish(VERSION, "arm64", b"archive", digest)
        release, sha256 = self.release(github, http), hashlib.sha256(b"archive").hexdigest()
        name = f"actions-runner-linux-arm64-{VERSION}.tar.gz"
        asset = next(asset for asset in release["assets"] if asset["name"] == name)
        assert asset["digest"] == (f"sha256:{sha256}" if digest == "asset" else None)
        noted = f"<!-- BEGIN SHA linux-arm64 -->{sha256}<!-- END SHA linux-arm64 -->"
        assert (noted in release["body"]) == (digest == "body")
        assert (asset["size"], asset["state"]) == (7, "uploaded")
        assert len(release["assets"]) > 2

    def test_downloads_are_redirected_and_go_on_where_they_broke(
        self, github: GitHub, http: httpx.Client
    ) -> None:
        whole = http.get(asset_url(github))
        assert (whole.history[0].status_code, whole.content) == (302, ARCHIVE)
        part = http.get(asset_url(github), headers={"Range": "bytes=99-", "If-Range": whole.headers["ETag"]})
        assert (part.status_code, part.content) == (206, ARCHIVE[99:])
        assert part.headers["Content-Range"] == f"bytes 99-{len(ARCHIVE) - 1}/{len(ARCHIVE)}"
        other = http.get(asset_url(github), headers={"Range": "bytes=99-", "If-Range": '"other"'})
        assert (other.status_code, other.content) == (200, ARCHIVE)
        assert http.get(asset_url(github), headers={"Range": "bytes=-5"}).content == ARCHIVE[-5:]
        none = http.get(asset_url(github), headers={"Range": f"bytes={len(ARCHIVE)}-"})
        assert (none.status_code, none.headers["Content-Range"]) == (416, f"bytes */{len(ARCHIVE)}")

    def test_other_bytes_come_under_the_same_digest(self, github: GitHub, http: httpx.Client) -> None:
        before, tag = self.release(github, http), http.get(asset_url(github)).headers["ETag"]
        github.tamper(VERSION, "x64", b"other")
        answer = http.get(asset_url(github))
        assert answer.content == b"other"
        assert answer.headers["ETag"] != tag
        assert self.release(github, http) == before

    def test_what_is_withdrawn_is_gone(self, github: GitHub, http: httpx.Client) -> None:
        github.withdraw(VERSION, "x64")
        assert http.get(asset_url(github)).status_code == 404
        names = [asset["name"] for asset in self.release(github, http)["assets"]]
        assert f"actions-runner-linux-x64-{VERSION}.tar.gz" not in names

    def test_the_api_is_limited_and_downloads_are_not(self, github: GitHub, http: httpx.Client) -> None:
        url = f"{github.api_url}/repos/actions/runner/releases/latest"
        github.rate_limit(1, reset_in=3600)
        answers = [http.get(url), http.get(url)]
        assert [answer.status_code for answer in answers] == [200, 403]
        assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == ["0", "0"]
        reset = datetime.fromtimestamp(int(answers[1].headers["x-ratelimit-reset"]), UTC)
        assert timedelta(minutes=59) < reset - wall_clock() < timedelta(minutes=61)
        assert http.get(asset_url(github)).status_code == 200
        github.rate_limit(0, reset_in=3600, retry_after=60, status=429)
        secondary = http.get(url)
        assert (secondary.status_code, secondary.headers["Retry-After"]) == (429, "60")
        github.rate_limit(0, reset_in=-1)
        assert http.get(url).status_code == 200

    def test_a_halted_download_stands_at_its_half(self, github: GitHub, http: httpx.Client) -> None:
        github.halt()
        got = b""
        with http.stream("GET", asset_url(github)) as answer:
            pieces = answer.iter_raw()
            while len(got) < len(ARCHIVE) // 2:
                got += next(pieces)
            github.wait_for_halt()
            assert got == ARCHIVE[: len(ARCHIVE) // 2]
            github.resume()
            assert got + b"".join(pieces) == ARCHIVE

    def test_it_ends_while_a_download_stands(self, http: httpx.Client) -> None:
        with github_server() as github:
            github.publish(VERSION, "x64", ARCHIVE)
            github.halt()
            with pytest.raises(httpx.ReadTimeout):
                http.get(asset_url(github), timeout=IMPATIENCE)

    def test_who_asks_has_to_have_a_name(self, github: GitHub, http: httpx.Client) -> None:
        del http.headers["User-Agent"]
        assert http.get(f"{github.api_url}/repos/actions/runner/releases/latest").status_code == 403

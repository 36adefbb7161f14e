"""HTTP that goes wrong as planned: the faults, and the server that they befall.

A fake service says what a request is (`operation`), what is true (`answer`), and how it refuses (`refusal`).
What is planned in `faults` comes between.
"""

import select
import socket
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Event, Lock, Thread
from time import monotonic
from typing import IO, Any, Final, Self
from urllib.parse import parse_qs, unquote, urlsplit

from attrs import define, field, frozen

PIECE_BYTES: Final = 256 * 1024
_IN_MEMORY_BYTES: Final = 4 * 1024 * 1024
"""Larger bodies of requests go to a file."""

_END_SECONDS: Final = 60.0
_PIECES_A_SECOND: Final = 20
_CUT_OFF: Final = "the client left in the middle of its request"
_BODILESS: Final = frozenset({204, 304})


def wall_clock() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - a fake is the outside world, which has a clock of its own


@frozen
class Answer:
    """This instead of what is true; the service is not asked. A `code` takes the form of its protocol."""

    status: int
    code: str = ""
    headers: Mapping[str, str] = field(factory=dict)


@frozen
class Refuse:
    """The connection is closed without an answer."""


@frozen
class Lose:
    """The service acts, and the connection is closed without its answer."""


@frozen
class Hang:
    """The request is read and not answered until healed; a client that has gone by then asked for nothing."""


@frozen
class Truncate:
    """The service acts; of its answer come the head and so many bytes, then the connection is closed.

    botocore holds no body to its length, but for what it streams: to it, `Truncate(0)` is an empty answer.
    """

    after_bytes: int


@frozen
class Slow:
    """What is true, so many bytes a second; at full speed from when it is healed."""

    bytes_per_second: int


Fault = Answer | Refuse | Lose | Hang | Truncate | Slow

_DENIED: Final = {
    "ssm": Answer(400, "AccessDeniedException"),
    "logs": Answer(400, "AccessDeniedException"),
    "s3": Answer(403, "AccessDenied"),
    "sqs": Answer(403, "AccessDenied"),
    "sts": Answer(403, "AccessDenied"),
    "ec2": Answer(403, "UnauthorizedOperation"),
}
_THROTTLED: Final = {
    "ssm": Answer(400, "ThrottlingException"),
    "logs": Answer(400, "ThrottlingException"),
    "s3": Answer(503, "SlowDown"),
    "sqs": Answer(403, "RequestThrottled"),
    "sts": Answer(400, "Throttling"),
    "ec2": Answer(503, "RequestLimitExceeded"),
}


def denied(service: str) -> Answer:
    """What this AWS service says to a role that may not."""
    return _DENIED[service]


def throttled(service: str) -> Answer:
    """What this AWS service says to who asks too often."""
    return _THROTTLED[service]


@define(eq=False)
class Planned:
    """A fault that waits for requests; `left` None is all of them."""

    match: str
    fault: Fault
    left: int | None
    healed: Event = field(factory=Event)


class Faults:
    """What is to go wrong. Later plans win over earlier ones, until they are used up or healed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._plans: list[Planned] = []

    def plan(self, match: str, fault: Fault, times: int | None = None) -> None:
        """Plans it for `times` requests, or all.

        Args:
            match: an operation such as `s3:GetObject`, or a pattern such as `s3:*` or `*`.
            fault: what befalls them.
            times: how many requests it hits; None is all until it is healed.
        """
        with self._lock:
            self._plans.append(Planned(match, fault, times))

    def heal(self, match: str | None = None) -> None:
        """Ends the plans made with this `match`, or all, also for requests that they have hit already."""
        with self._lock:
            ended = [planned for planned in self._plans if match in (None, planned.match)]
            self._plans = [planned for planned in self._plans if planned not in ended]
        for planned in ended:
            planned.healed.set()

    def take(self, operation: str) -> Planned | None:
        """The plan that hits this request, which is counted."""
        with self._lock:
            for planned in reversed(self._plans):
                if planned.left != 0 and fnmatchcase(operation, planned.match):
                    if planned.left is not None:
                        planned.left -= 1
                    return planned
        return None


@define
class Call:
    """A request that came; `status` is None for one that has no answer (yet)."""

    operation: str
    method: str
    target: str
    headers: Mapping[str, str]
    at: float
    status: int | None = None

    @property
    def service(self) -> str:
        return self.operation.partition(":")[0]


@define(slots=False)
class Request:
    """A request, read to its end. What `resources` holds is closed when it has been answered."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: IO[bytes]
    length: int
    resources: ExitStack

    @cached_property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @cached_property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    @cached_property
    def content(self) -> bytes:
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        self.body.seek(0)
        while piece := self.body.read(PIECE_BYTES):
            yield piece


@frozen
class Reply:
    """An answer. `length` is that of a body that comes in pieces, or of the one that a HEAD leaves out."""

    status: int
    body: bytes | Iterator[bytes] = b""
    headers: Mapping[str, str] = field(factory=dict)
    length: int | None = None


class FakeServer(ABC):
    """A service on 127.0.0.1, from the start of its `with` block to the end."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.over = Event()
        self._calls: list[Call] = []
        self._changed = Condition()
        self._failures: list[BaseException] = []
        self._listener = _Listener(self)

    @abstractmethod
    def operation(self, request: Request) -> str:
        """What is asked for, as `service:Operation`."""

    @abstractmethod
    def answer(self, request: Request) -> Reply:
        """What is true."""

    @abstractmethod
    def refusal(self, request: Request, answer: Answer) -> Reply:
        """The planned answer, in the form of the service's errors."""

    @property
    def url(self) -> str:
        host, port = self._listener.server_address[:2]
        return f"http://{host!s}:{port}"

    @property
    def calls(self) -> list[Call]:
        """All requests that came, in order."""
        with self._changed:
            return list(self._calls)

    def wait_for(
        self, match: str, times: int = 1, *, status: int | None = None, within: float = 120.0
    ) -> list[Call]:
        """Returns when so many have come, or, with a `status`, have been answered so.

        Args:
            match: an operation or a pattern, as in a plan.
            times: how many.
            status: counts only those that have this answer.
            within: seconds, after which it fails.

        Returns:
            The calls, oldest first.
        """
        found: list[Call] = []

        def enough() -> bool:
            found[:] = [
                call
                for call in self._calls
                if fnmatchcase(call.operation, match) and status in (None, call.status)
            ]
            return len(found) >= times

        with self._changed:
            assert self._changed.wait_for(enough, within), f"{match}: {len(found)} of {times} in {within} s"
        return found

    def wait_until_unused(self, within: float = 120.0) -> None:
        """Returns when no connection is open: every request that came has had its effect."""
        assert self._listener.is_idle(within), f"a connection is open after {within} s"

    def forget(self) -> None:
        """Heals the faults, and forgets the calls."""
        self.faults.heal()
        with self._changed:
            self._calls.clear()

    def called(self, call: Call) -> None:
        with self._changed:
            self._calls.append(call)
            self._changed.notify_all()

    def answered(self, call: Call, status: int) -> None:
        with self._changed:
            call.status = status
            self._changed.notify_all()

    def failed(self, error: BaseException) -> None:
        """The fake itself is wrong: the end of the `with` block says so."""
        self._failures.append(error)

    def __enter__(self) -> Self:
        Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.faults.heal()
        self._listener.end()
        for error in self._failures:
            raise RuntimeError(f"{type(self).__name__} failed") from error


class _Listener(ThreadingHTTPServer):
    """Knows its connections, to leave none open, and says nothing to anybody."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, fake: FakeServer) -> None:
        self.fake = fake
        self._connections: set[Any] = set()
        self._idle = Condition()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._idle:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._idle:
            self._connections.discard(request)
            self._idle.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):  # a client may go whenever it likes
            self.fake.failed(error)

    def end(self) -> None:
        self.shutdown()
        self.server_close()
        with self._idle:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        assert self.is_idle(_END_SECONDS), "a request has no end"

    def is_idle(self, within: float) -> bool:
        with self._idle:
            return self._idle.wait_for(lambda: not self._connections, within)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing: a test's output is its own."""

    def serve(self) -> None:
        fake = self.server.fake
        with ExitStack() as resources:
            request = self._request(resources)
            call = Call(fake.operation(request), self.command, self.path, request.headers, monotonic())
            planned = fake.faults.take(call.operation)
            fake.called(call)
            fault, healed = (planned.fault, planned.healed) if planned else (None, Event())
            if isinstance(fault, Hang):
                healed.wait()
            if isinstance(fault, Refuse) or (isinstance(fault, Hang) and self._is_deserted()):
                self.close_connection = True
                return
            reply = fake.refusal(request, fault) if isinstance(fault, Answer) else fake.answer(request)
            if isinstance(fault, Lose):
                self.close_connection = True
                return
            fake.answered(call, reply.status)
            self._write(reply, fault, healed)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815 - http.server looks for these

    def _is_deserted(self) -> bool:
        """Nobody waits for an answer any more."""
        if self.server.fake.over.is_set():
            return True
        poll = select.poll()  # select() knows the first 1024 descriptors only
        poll.register(self.connection, select.POLLIN)
        return bool(poll.poll(0)) and self.connection.recv(1, socket.MSG_PEEK) == b""

    def _request(self, resources: ExitStack) -> Request:
        body: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115 - the stack's
        resources.enter_context(body)
        for piece in self._body():
            body.write(piece)
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Request(self.command, self.path, headers, body, body.tell(), resources)

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            yield from self._exactly(int(self.headers.get("Content-Length", 0)))
            return
        while size := int(self._line().partition(b";")[0], 16):
            yield from self._exactly(size)
            self._line()
        while self._line():  # trailers
            pass

    def _line(self) -> bytes:
        line = self.rfile.readline()
        if not line:
            raise ConnectionAbortedError(_CUT_OFF)
        return line.strip()

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self.rfile.read(min(size, PIECE_BYTES))
            if not piece:
                raise ConnectionAbortedError(_CUT_OFF)
            size -= len(piece)
            yield piece

    def _write(self, reply: Reply, fault: Fault | None, healed: Event) -> None:
        self.send_response_only(reply.status)
        for name, value in {"Date": self.date_time_string(), **reply.headers}.items():
            self.send_header(name, value)
        length = reply.length
        if length is None:
            assert isinstance(reply.body, bytes), "a body in pieces needs its length"
            length = len(reply.body)
        if reply.status not in _BODILESS:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD" or reply.status in _BODILESS:
            return
        pieces = iter([reply.body]) if isinstance(reply.body, bytes) else reply.body
        if isinstance(fault, Slow):
            pieces = _slowly(pieces, fault.bytes_per_second, healed)
        left = length
        if isinstance(fault, Truncate):
            left = min(length, fault.after_bytes)
        for piece in pieces if left else ():
            self.wfile.write(piece[:left])
            left -= len(piece)
            if left <= 0:
                break
        if isinstance(fault, Truncate) and fault.after_bytes < length:
            self.close_connection = True


def _slowly(pieces: Iterator[bytes], bytes_per_second: int, healed: Event) -> Generator[bytes, None, None]:
    size = max(1, bytes_per_second // _PIECES_A_SECOND)
    for piece in pieces:
        for start in range(0, len(piece), size):
            yield piece[start : start + size]
            healed.wait(size / bytes_per_second)

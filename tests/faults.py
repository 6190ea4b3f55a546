"""What goes wrong between the loader and its servers, at an exact point: a proxy before SQS, one before PostgreSQL."""

import contextlib
import http.client
import json
import select
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Call(BaseHTTPRequestHandler):
    """A call to SQS on its way: `forward` brings the real answer, `answer` sends one, `cut` sends none."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        self.operation = self.headers["X-Amz-Target"].rpartition(".")[2]
        self.request_body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.calls[self.operation] += 1
            self.nth = self.server.calls[self.operation]
            self.server.clients.add("boto3" if "Amz-Sdk-Invocation-Id" in self.headers else "lean")
        self.server.fault(self)

    def do_CONNECT(self):
        """As an HTTP proxy does for HTTPS: passes bytes on, without understanding them."""
        self.server.calls["CONNECT"] += 1
        if self.server.refuses:
            return self.answer(self.server.refuses, b"")
        self.send_response(200)
        self.end_headers()
        host, port = self.path.split(":")
        with socket.create_connection((host, int(port))) as upstream:
            pump(self.connection, upstream)
        self.close_connection = True

    @property
    def entries(self) -> list[dict]:
        return json.loads(self.request_body)["Entries"]

    def forward(self, body: bytes | None = None) -> tuple[int, bytes]:
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name != "Content-Length"}
        upstream.request("POST", "/", body or self.request_body, headers)
        answer = upstream.getresponse()
        with contextlib.closing(upstream):
            return answer.status, answer.read()

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def cut(self) -> None:
        """Ends the connection with a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, *_):
        pass


Fault = Callable[[Call], None]


def none(call: Call) -> None:
    call.answer(*call.forward())


def error(code: str, status: int = 400) -> Fault:
    """SQS answers with an error, and does nothing."""
    return lambda call: call.answer(status, json.dumps({"__type": f"com.amazonaws.sqs#{code}"}).encode())


def reset(call: Call) -> None:
    """The call does not get there."""
    call.cut()


def lost_answer(call: Call) -> None:
    """SQS does what it is asked for, and nobody is told."""
    call.forward()
    call.cut()


def half_an_answer(call: Call) -> None:
    status, body = call.forward()
    call.send_response(status)
    call.send_header("Content-Length", str(len(body)))
    call.end_headers()
    call.wfile.write(body[: len(body) // 2])
    call.cut()


def not_json(call: Call) -> None:
    """As the login page of some network does."""
    call.answer(200, b"<html>welcome</html>")


def silence(call: Call) -> None:
    """Longer than a client waits that is told to wait for two seconds."""
    time.sleep(3)
    call.cut()


def every_other_delete_fails(call: Call) -> None:
    """Half of the entries are not deleted, and SQS says so."""
    entries = call.entries
    request = json.loads(call.request_body) | {"Entries": entries[::2]}
    status, body = call.forward(json.dumps(request).encode())
    failed = [{"Id": each["Id"], "SenderFault": False, "Code": "InternalError"} for each in entries[1::2]]
    call.answer(status, json.dumps(json.loads(body) | {"Failed": failed}).encode())


def beyond_the_limit(call: Call) -> None:
    """As SQS says of a message that has been hidden for twelve hours."""
    failed = [{"Id": each["Id"], "SenderFault": True, "Code": "InvalidParameterValue"} for each in call.entries]
    call.answer(200, json.dumps({"Failed": failed}).encode())


def every_entry_fails_for_now(call: Call) -> None:
    failed = [{"Id": each["Id"], "SenderFault": False, "Code": "InternalError"} for each in call.entries]
    call.answer(200, json.dumps({"Failed": failed}).encode())


def deletes_are_forgotten(call: Call) -> None:
    """SQS says that it deleted, and delivers again all the same: it may, with an old receipt handle."""
    call.answer(200, json.dumps({"Successful": [{"Id": each["Id"]} for each in call.entries]}).encode())


def on(operation: str, *faults: Fault) -> Fault:
    """An operation's first calls fail, each in its way; `none` lets one through."""
    return lambda call: (faults[call.nth - 1] if call.operation == operation and call.nth <= len(faults) else none)(
        call
    )


def always(operation: str, fault: Fault) -> Fault:
    return lambda call: fault(call) if call.operation == operation else none(call)


class Server(ThreadingHTTPServer):
    refuses = 0  # the status that CONNECT is refused with

    def get_request(self):
        try:
            return super().get_request()
        except ssl.SSLError:
            self.calls["not TLS"] += 1
            raise

    def handle_error(self, *_):
        """A client that went away is what these tests are about."""


@contextlib.contextmanager
def sqs_proxy(upstream_url: str, fault: Fault = none, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """An SQS endpoint, `server.url`, behind which is the real one; `server.calls` counts what was asked for."""
    server = Server(("127.0.0.1", 0), Call)
    server.upstream = urlsplit(upstream_url).netloc
    server.fault, server.calls, server.lock = fault, Counter(), threading.Lock()
    server.clients = set()  # which of the loader's two clients made the calls
    server.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    with serving(server):
        yield server


@contextlib.contextmanager
def postgres_proxy(port: int, fault: Callable[[str], bool]) -> Iterator[int]:
    """A port behind which PostgreSQL is. Each step is named to `fault` before it is passed on; True cuts the line.

    Steps: the first word of a query ("COMMIT"), and what the server says it has done ("COPY done", "COMMIT done").
    """

    class Line(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)) as server:
                back = threading.Thread(target=pump_messages, args=[server, self.request, done_of, fault], daemon=True)
                back.start()
                pump_messages(self.request, server, query_of, fault)
                back.join()

    with serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Line)) as server:
        yield server.server_address[1]


class Network(socketserver.ThreadingTCPServer):
    """Between clients and the port of a server on ::1, whatever they speak; it can be cut, and healed."""

    address_family = socket.AF_INET6

    def __init__(self, port: int):
        super().__init__(("::1", 0), Wire)
        self.port, self.is_cut, self.ends = port, False, set()

    def cut(self) -> None:
        self.is_cut = True
        hang_up(*self.ends.copy())

    def heal(self) -> None:
        self.is_cut = False


class Wire(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError), socket.create_connection(("::1", self.server.port)) as there:
            ends = {self.request, there}
            self.server.ends |= ends
            if not self.server.is_cut:
                pump(*ends)
            self.server.ends -= ends


@contextlib.contextmanager
def serving(server: socketserver.ThreadingMixIn) -> Iterator:
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def query_of(kind: bytes, content: bytes) -> str | None:
    return content.split()[0].rstrip(b";\0").decode().upper() if kind == b"Q" else None


def done_of(kind: bytes, content: bytes) -> str | None:
    return content.split()[0].rstrip(b"\0").decode() + " done" if kind == b"C" else None


def pump(*ends: socket.socket) -> None:
    """Copies both directions of a connection, in one thread: TLS cannot be read and written at once."""
    with contextlib.suppress(OSError):
        while True:
            for source in select.select(ends, [], [])[0]:
                if not (data := source.recv(65536)):
                    return hang_up(*ends)
                ends[source is ends[0]].sendall(data)


def pump_messages(source: socket.socket, target: socket.socket, name: Callable, fault: Callable[[str], bool]) -> None:
    """The same, one message of PostgreSQL's protocol after the other."""
    with contextlib.suppress(OSError), source.makefile("rb") as stream:
        if name is query_of:  # the first message from a client has no kind
            length = stream.read(4)
            target.sendall(length + stream.read(int.from_bytes(length, "big") - 4))
        while head := stream.read(5):
            content = stream.read(int.from_bytes(head[1:], "big") - 4)
            step = name(head[:1], content)
            if step and fault(step):
                break
            target.sendall(head + content)
    hang_up(source, target)


def hang_up(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

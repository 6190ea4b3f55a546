"""Stands in for SQS in the measurements: does what a loader needs, in the same time for any number of messages.

It is no emulator. `python -m benchmarks.sqs_stub` prints its URL; `GET /?messages=20000&latency=0.015` fills it, and
sets the seconds that each call takes; `GET /` tells how many messages are not deleted yet, and when it all happened.
"""

import asyncio
import hashlib
import itertools
import json
import sys
import time
from urllib.parse import parse_qsl, urlsplit

HEAD = "\r\n".join(
    (
        "HTTP/1.1 200 OK",
        "x-amzn-RequestId: 00000000-0000-0000-0000-000000000000",
        "Date: Sat, 21 Nov 2026 00:00:00 GMT",
        "Content-Type: application/x-amz-json-1.0",
        "connection: keep-alive",
        "Content-Length: {}\r\n\r\n",
    )
)
QUEUE = {"VisibilityTimeout": "30", "ApproximateNumberOfMessages": "0"}


class Queue:
    """Message number n is made when it is handed out, so that a long queue costs nothing."""

    def __init__(self, messages: int = 0, latency: float = 0):
        self.waiting = iter(range(messages))
        self.left, self.latency = messages, latency
        self.in_flight: set[int] = set()
        self.first = self.last = 0.0  # when the first message was asked for, and the last one deleted

    def receive(self, request: dict) -> dict:
        self.first = self.first or time.monotonic()
        numbers = list(itertools.islice(self.waiting, request["MaxNumberOfMessages"]))
        self.left -= len(numbers)
        self.in_flight.update(numbers)
        return {"Messages": [message(n) for n in numbers]} if numbers else {}

    def delete(self, entries: list[dict]) -> dict:
        self.in_flight.difference_update(int(each["ReceiptHandle"].split("-")[0]) for each in entries)
        self.last = time.monotonic()
        return {"Successful": [{"Id": each["Id"]} for each in entries]}

    def answer(self, operation: str, request: dict) -> dict:
        match operation:
            case "ReceiveMessage":
                return self.receive(request)
            case "DeleteMessageBatch":
                return self.delete(request["Entries"])
            case "DeleteMessage":
                self.delete([{"Id": "", **request}])
                return {}
            case "GetQueueUrl":
                return {"QueueUrl": "http://127.0.0.1/000000000000/login-queue"}
            case "GetQueueAttributes":
                return {"Attributes": QUEUE}
        return {"Successful": [{"Id": each["Id"]} for each in request["Entries"]]}


def message(number: int) -> dict:
    digest = hashlib.md5(b"%d" % number, usedforsecurity=False).hexdigest()
    login = {
        "user_id": digest, "app_version": "2.3.0", "device_type": "android", "ip": "192.0.2.1",
        "locale": None, "device_id": digest[:11],
    }  # fmt: skip
    return {
        "MessageId": f"{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:]}",
        "ReceiptHandle": f"{number}-{digest * 12}",  # as long as those of SQS
        "MD5OfBody": digest,
        "Body": json.dumps(login),
        "Attributes": {"SentTimestamp": "1795219200000", "ApproximateReceiveCount": "1"},
    }


class Connection(asyncio.Protocol):
    queue = Queue()

    def connection_made(self, transport) -> None:
        self.transport, self.read = transport, b""

    def data_received(self, data: bytes) -> None:
        self.read += data
        head, found, body = self.read.partition(b"\r\n\r\n")
        if not found:
            return
        line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
        size = int(headers.get("content-length", 0))
        if len(body) < size:
            return
        self.read = body[size:]
        if line.startswith("GET"):
            answer, latency = control(line.split()[1]), 0.0
        else:
            operation = headers["x-amz-target"].rpartition(".")[2]
            request = json.loads(body[:size])
            answer, latency = self.queue.answer(operation, request), self.queue.latency
            if operation == "ReceiveMessage" and not answer:
                latency += request.get("WaitTimeSeconds", 0)  # none comes while it waits
        content = json.dumps(answer)
        raw = (HEAD.format(len(content)) + content).encode()
        if latency:
            asyncio.get_running_loop().call_later(latency, self.transport.write, raw)
        else:
            self.transport.write(raw)


def control(target: str) -> dict:
    if asked := dict(parse_qsl(urlsplit(target).query)):
        Connection.queue = Queue(int(asked["messages"]), float(asked["latency"]))
    queue = Connection.queue
    return {"unfinished": queue.left + len(queue.in_flight), "first": queue.first, "last": queue.last}


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        asyncio.run(serve())
    except KeyboardInterrupt:
        sys.exit()

"""The loader on AWS Lambda, in Lambda's own runtime client, with events as AWS documents them."""

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from loader import lambda_function
from loader.errors import BadSetting
from tests import faults
from tests.conftest import ROOT
from tests.loading import Loading, a_loading, create_queue, until

loading = pytest.fixture(a_loading)

# From "Using Lambda with Amazon SQS", AWS Lambda Developer Guide.
STANDARD = {
    "messageId": "059f36b4-87a3-44ab-83d2-661975830a7d",
    "receiptHandle": "AQEBwJnKyrHigUMZj6rYigCgxlaS3SLy0a...",
    "body": "Test message.",
    "attributes": {
        "ApproximateReceiveCount": "1",
        "SentTimestamp": "1545082649183",
        "SenderId": "AIDAIENQZJOLO23YVJ4VO",
        "ApproximateFirstReceiveTimestamp": "1545082649185",
    },
    "messageAttributes": {
        "myAttribute": {
            "stringValue": "myValue",
            "stringListValues": [],
            "binaryListValues": [],
            "dataType": "String",
        }
    },
    "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
    "eventSource": "aws:sqs",
    "eventSourceARN": "arn:aws:sqs:us-east-2:123456789012:my-queue",
    "awsRegion": "us-east-2",
}
FIFO = {
    "messageId": "11d6ee51-4cc7-4302-9e22-7cd8afdaadf5",
    "receiptHandle": "AQEBBX8nesZEXmkhsmZeyIE8iQAMig7qw...",
    "body": "Test message.",
    "attributes": {
        "ApproximateReceiveCount": "1",
        "SentTimestamp": "1573251510774",
        "SequenceNumber": "18849496460467696128",
        "MessageGroupId": "1",
        "SenderId": "AIDAIO23YVJENQZJOL4VO",
        "MessageDeduplicationId": "1",
        "ApproximateFirstReceiveTimestamp": "1573251510774",
    },
    "messageAttributes": {},
    "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
    "eventSource": "aws:sqs",
    "eventSourceARN": "arn:aws:sqs:us-east-2:123456789012:fifo.fifo",
    "awsRegion": "us-east-2",
}
UNSTORABLE = "x\0y"


class Function:
    """A function's process, and the runtime API that it asks for events."""

    def __init__(self, env: dict[str, str]):
        self.events: queue.Queue[dict] = queue.Queue()
        self.answers: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.deadline_ms = 60_000
        self.failure: str | None = None
        self.on_answer = lambda: None
        function = self

        class Api(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = json.dumps(function.events.get()).encode()
                self.send_response(200)
                self.send_header("Lambda-Runtime-Aws-Request-Id", str(uuid.uuid4()))
                self.send_header("Lambda-Runtime-Trace-Id", "Root=1-00000000-000000000000000000000000")
                self.send_header("Lambda-Runtime-Deadline-Ms", str(function.deadline()))
                self.send_header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:1:function:loader")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                answer = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "null")
                function.on_answer()
                function.answers.put((self.path.rpartition("/")[2], answer))
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "awslambdaric", "loader.lambda_function.handler"],
            cwd=ROOT,
            env=env | {"AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self.server.server_port}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def deadline(self) -> int:
        return int(time.time() * 1000) + self.deadline_ms

    def invoke(self, *records: dict) -> list[str] | None:
        """The ids of the messages that are to come again; None when the process has died of it."""
        self.events.put({"Records": list(records)})
        answer = until(lambda: self.answer() or self.process.poll() is not None, 60)
        if answer is True:
            return None
        kind, content = answer
        if kind == "error":  # the invocation failed, as CloudWatch counts it, whatever the trigger is set to
            self.failure = content["errorType"]
            return [record["messageId"] for record in records]
        assert kind == "response", content
        return [failure["itemIdentifier"] for failure in content["batchItemFailures"]]

    def answer(self) -> tuple[str, Any] | None:
        with contextlib.suppress(queue.Empty):
            return self.answers.get_nowait()

    def end(self) -> str:
        """Ends the process; its log."""
        self.process.kill()
        self.server.shutdown()
        self.server.server_close()
        return self.process.communicate()[0]


@contextlib.contextmanager
def running(env: dict[str, str]) -> Iterator[Function]:
    function = Function(env)
    try:
        yield function
    finally:
        log = function.end()
    assert "Traceback" not in log, log


def received(loading: Loading, most: int = 10) -> list[dict]:
    """What Lambda's poller makes of the messages that it receives."""
    answer = loading.sqs.receive_message(
        QueueUrl=loading.url,
        MaxNumberOfMessages=most,
        WaitTimeSeconds=2,
        AttributeNames=["All"],
        MessageAttributeNames=["All"],
    )
    return [
        {
            "messageId": message["MessageId"],
            "receiptHandle": message["ReceiptHandle"],
            "body": message["Body"],
            "attributes": message["Attributes"],
            "messageAttributes": {},
            "md5OfBody": message["MD5OfBody"],
            "eventSource": "aws:sqs",
            "eventSourceARN": f"arn:aws:sqs:us-east-1:000000000000:{loading.queue_name}",
            "awsRegion": "us-east-1",
        }
        for message in answer.get("Messages", ())
    ]


def settle(loading: Loading, records: list[dict], again: list[str] | None) -> None:
    """What Lambda's poller does with the answer: deletes what is not to come again, all of it or nothing."""
    for record in records if again is not None else ():
        if record["messageId"] not in again:
            loading.sqs.delete_message(QueueUrl=loading.url, ReceiptHandle=record["receiptHandle"])


@pytest.mark.parametrize("record", [STANDARD, FIFO], ids=["standard", "fifo"])
def test_an_event_of_the_documentation_is_landed_as_the_loader_would(loading: Loading, record: dict):
    with running(loading.env) as function:
        assert function.invoke(record) == []

    attributes = record["attributes"]
    assert loading.query(
        """
        select message_id, queue, body, (extract(epoch from sent_at) * 1000)::bigint, receive_count, message_group_id,
            sequence_number, attributes
        from raw.sqs_messages
        """
    ) == [
        (
            record["messageId"],
            record["eventSourceARN"].rpartition(":")[2],
            record["body"],
            int(attributes["SentTimestamp"]),
            1,
            attributes.get("MessageGroupId"),
            attributes.get("SequenceNumber"),
            {"myAttribute": {"StringValue": "myValue", "DataType": "String"}} if record is STANDARD else None,
        )
    ]


def test_an_event_that_comes_twice_is_landed_once(loading: Loading):
    with running(loading.env) as function:
        assert function.invoke(STANDARD, STANDARD) == []
        assert function.invoke(STANDARD) == []

    assert loading.query("select sum(received), sum(landed), sum(duplicates) from raw.loads") == [(3, 1, 2)]


def test_only_what_is_refused_comes_again(loading: Loading):
    records = [STANDARD | {"messageId": f"m{n}", "body": body} for n, body in enumerate(["a", UNSTORABLE, "c"])]
    with running(loading.env) as function:
        assert function.invoke(*records) == ["m1"]

    assert loading.query("select message_id from raw.sqs_messages order by 1") == [("m0",), ("m2",)]


def test_of_a_fifo_queue_what_is_behind_a_refused_message_comes_again_too(loading: Loading):
    def record(n: int, group: str, body: str) -> dict:
        place = {"MessageGroupId": group, "SequenceNumber": f"{n:020}"}
        return FIFO | {"messageId": f"m{n}", "body": body, "attributes": FIFO["attributes"] | place}

    records = [record(0, "a", "a"), record(1, "a", UNSTORABLE), record(2, "a", "b"), record(3, "b", "b")]
    with running(loading.env) as function:
        assert sorted(function.invoke(*records)) == ["m1", "m2"]

    assert loading.query("select message_id from raw.sqs_messages order by 1") == [("m0",), ("m3",)]


def test_without_a_database_the_invocation_fails(loading: Loading):
    """So all messages come again, whatever the trigger is set to, and the stack's alarm on errors goes off."""
    function = Function(loading.env | {"PGPORT": "1"})
    function.deadline_ms = 11_000
    try:
        assert function.invoke(STANDARD) == [STANDARD["messageId"]]
        assert function.failure == "GaveUp"
    finally:
        log = function.end()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert lines[-1]["event"] == "nothing landed"
    assert lines[-1]["messages"] == 1
    assert STANDARD["body"] not in log


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_a_blocked_database_is_said_before_the_time_is_over(loading: Loading, warm: bool):
    """Lambda would end the function without a word, and its session would wait on for the lock."""
    function = Function(loading.env)
    try:
        if warm:
            function.invoke(STANDARD)
        function.deadline_ms = 18_000
        with contextlib.closing(loading.database.connect("postgres")) as blocking:
            blocking.cursor().execute("lock table raw.sqs_messages in exclusive mode")
            assert len(function.invoke(*({**STANDARD, "messageId": f"m{n}"} for n in range(2)))) == 2
            waiting = loading.query("select count(*) from pg_stat_activity where usename = 'loader_user'")
    finally:
        log = function.end()
    assert "canceling statement due to statement timeout" in log
    assert waiting == [(0,)]


def test_an_event_without_records_is_answered(loading: Loading):
    with running(loading.env) as function:
        assert function.invoke() == []


def test_the_log_has_counts_and_ids_only(loading: Loading):
    function = Function(loading.env)
    try:
        function.invoke(STANDARD | {"body": "a body 192.0.2.7"}, STANDARD | {"messageId": "m1", "body": UNSTORABLE})
    finally:
        log = function.end()
    assert "event landed" in log
    assert "192.0.2.7" not in log
    assert loading.env["PGPASSWORD"] not in log


STEPS = {
    "received": "COPY",
    "copied": "COPY done",
    "inserted": "INSERT done",
    "committing": "COMMIT",
    "committed": "COMMIT done",
    "answering": None,
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("fifo", [False, True], ids=["standard", "fifo"])
def test_a_killed_function_loses_nothing(loading: Loading, step: str | None, fifo: bool):
    if fifo:
        # An expired receipt handle does not delete from a FIFO queue: time enough for the slowest machine.
        attributes = {"FifoQueue": "true", "ContentBasedDeduplication": "true", "VisibilityTimeout": "5"}
        loading.url = create_queue(loading.sqs, **attributes)
    ids = loading.send(30, **({"MessageGroupId": "a"} if fifo else {}))

    with contextlib.ExitStack() as stack:
        kill = Kill(step)
        port = stack.enter_context(faults.postgres_proxy(int(loading.env["PGPORT"]), kill.at_postgres))
        kill.victim = Function(loading.env | loading.through(port))
        if step is None:
            kill.victim.on_answer = kill.now
        records = received(loading)
        kill.victim.invoke(*records)  # killed: whatever it answers, Lambda has not got it
        assert until(lambda: kill.victim.process.poll()) == -9
        kill.victim.end()

    with running(loading.env) as function:
        while sum(loading.waiting()):
            records = received(loading)
            settle(loading, records, function.invoke(*records) if records else [])

    loading.assert_landed_once(ids)


class Kill:
    """Kills the function when it comes to a step."""

    def __init__(self, step: str | None):
        self.step, self.victim, self.landing = step, None, False

    def at_postgres(self, step: str) -> bool:
        self.landing = self.landing or step == "COPY"  # before that, the loader prepares its connection
        return self.landing and step == self.step and self.now()

    def now(self) -> bool:
        until(lambda: self.victim).process.kill()
        self.victim.process.wait()
        return True


# What else Lambda may be given.


def handle(loading: Loading, monkeypatch, event: Any, **settings: str) -> Any:
    for name, value in (loading.env | settings).items():
        monkeypatch.setenv(name, value)
    lambda_function.database.cache_clear()
    return lambda_function.handler(event, SimpleNamespace(get_remaining_time_in_millis=lambda: 60_000))


@pytest.mark.parametrize("left_out", ["attributes", "messageAttributes", "md5OfBody"])
@pytest.mark.parametrize("null", [False, True], ids=["missing", "null"])
def test_what_a_record_leaves_out_is_unknown(loading: Loading, monkeypatch, left_out: str, null: bool):
    record = {name: value for name, value in STANDARD.items() if name != left_out} | ({left_out: None} if null else {})

    assert handle(loading, monkeypatch, {"Records": [record]}) == {"batchItemFailures": []}
    assert loading.query("select message_id from raw.sqs_messages") == [(STANDARD["messageId"],)]


def test_the_records_alone_are_taken_too(loading: Loading, monkeypatch):
    """As EventBridge Pipes gives them, which delete what is not named as a failure, too."""
    assert handle(loading, monkeypatch, [STANDARD]) == {"batchItemFailures": []}
    assert loading.query("select message_id from raw.sqs_messages") == [(STANDARD["messageId"],)]


@pytest.mark.parametrize(
    "event",
    [
        {"Records": [{"eventSource": "aws:s3", "s3": {}}]},
        {"Records": [STANDARD, {"EventSource": "aws:sns", "Sns": {}}]},
        {"Records": ["x"]},
        {"Records": [{name: value for name, value in STANDARD.items() if name != "messageId"}]},
        {"Records": [{name: value for name, value in STANDARD.items() if name != "eventSourceARN"}]},
        {"Records": [STANDARD | {"body": {"ip": "192.0.2.7"}}]},
        {"Records": {"a": 1}},
        None,
        "x",
        1,
    ],
)
def test_what_is_not_from_sqs_is_said_and_lands_nothing(loading: Loading, monkeypatch, event: Any):
    with pytest.raises(BadSetting, match=r"The event is not from SQS: set a queue as the function's trigger\."):
        handle(loading, monkeypatch, event)

    assert loading.query("select from raw.sqs_messages") == []


@pytest.mark.parametrize("event", [{}, {"Records": None}, {"Records": []}, {"key1": "value1"}])
def test_an_event_for_trying_a_function_out_is_answered(loading: Loading, monkeypatch, event: Any):
    assert handle(loading, monkeypatch, event) == {"batchItemFailures": []}


SECRETS = {
    "text": {"SecretString": "pass-word"},
    "no-username": {"SecretString": '{"password": "pass-word"}'},
    "password-that-is-no-text": {"SecretString": '{"username": "x", "password": ["pass-word"]}'},
    "a-list": {"SecretString": '["pass-word"]'},
    "binary": {"SecretBinary": "cGFzcy13b3Jk"},
}


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_of_another_form_is_one_line_without_it(loading: Loading, monkeypatch, capsys, name: str):
    def secret(call: faults.Call) -> None:
        call.answer(200, json.dumps(SECRETS[name]).encode())

    with faults.sqs_proxy("127.0.0.1:1", secret) as manager:
        settings = {"AWS_ENDPOINT_URL": manager.url, "LOADER_SECRET": "arn:aws:secretsmanager:us-east-1:1:secret:x"}
        with pytest.raises(BadSetting):
            handle(loading, monkeypatch, {"Records": [STANDARD]}, **settings)

    [line] = capsys.readouterr().err.splitlines()
    assert "The secret in LOADER_SECRET has to be JSON with username and password" in json.loads(line)["reason"]
    assert "pass-word" not in line


def test_secrets_manager_that_cannot_be_reached_is_said_before_the_time_is_over(loading: Loading, monkeypatch, capsys):
    """As from a subnet without a way there: packets are lost, and nothing is refused."""
    monkeypatch.setattr(lambda_function, "PATIENCE", 0.1)
    with faults.sqs_proxy("127.0.0.1:1", faults.silence) as manager:
        settings = {"AWS_ENDPOINT_URL": manager.url, "LOADER_SECRET": "arn:aws:secretsmanager:us-east-1:1:secret:x"}
        with pytest.raises(BadSetting):
            handle(loading, monkeypatch, {"Records": [STANDARD]}, **settings)

    [line] = capsys.readouterr().err.splitlines()
    assert "ReadTimeoutError" in json.loads(line)["reason"]
    assert "its subnets reach Secrets Manager" in json.loads(line)["reason"]

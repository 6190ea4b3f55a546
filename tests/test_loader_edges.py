"""The loader at the edges of real queues, clouds and databases: pools, odd answers, keys, clocks, broken ledgers."""

import base64
import contextlib
import gzip
import json
import os
import random
import string
import subprocess
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from unittest import mock

import botocore.exceptions
import pytest

from loader import errors
from loader.aws import Client, Fault, connect, region_of
from loader.errors import LoaderError
from loader.land import Database
from loader.sqs import Message, milliseconds
from tests import faults
from tests.conftest import administration
from tests.faults import always, on
from tests.loading import Loading, a_loading, end, until
from tests.pgbouncer import pgbouncer
from tests.pipeline import query

loading = pytest.fixture(a_loading)
both_clients = pytest.mark.parametrize("client", ["lean", "boto3"])

# A pool of connections.


@pytest.fixture
def pooled(loading: Loading) -> Iterator[Loading]:
    """Loaders come to the database through PgBouncer in transaction mode, over three connections."""
    env = loading.env
    with pgbouncer(env) as port:
        loading.env = env | {"PGPORT": str(port)}
        yield loading
    loading.env = env


@pytest.mark.pgbouncer
def test_loaders_share_a_pool_in_transaction_mode(pooled: Loading):
    """Two at once, one after another, and again after the server's sessions were ended under them."""
    ids = pooled.send(400)
    loaders = [pooled.start("--workers", "4", "--flush", "20") for _ in range(2)]
    results = [end(each) for each in loaders]
    ids += pooled.send(50)
    results.append(end(pooled.start("--workers", "2", "--flush", "10")))
    ids += pooled.send(200)
    last = pooled.start("--workers", "4", "--flush", "5")
    with administration(pooled.database.stack) as cursor:
        until(lambda: pooled.query("select count(*) from raw.sqs_messages")[0][0] > 460)
        cursor.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'loader_user' and datname = %s",
            [pooled.database.name],
        )
    results.append(end(last))

    assert [status for status, _, _ in results] == [0] * 4, results
    pooled.assert_landed_once(ids)


def test_nothing_of_a_transaction_stays_in_the_session(loading: Loading):
    loading.send(20)
    with loading.running(follow=True) as run:
        until(lambda: run.report.counts["deleted"] == 20)
        with run.database.turn:
            cursor = run.database.connection.cursor()
            cursor.execute("select count(*) from pg_class where relpersistence = 't'")
            assert cursor.fetchone() == (0,)
            cursor.connection.rollback()
        run.stopping.set()


# What answers in the place of SQS, or as SQS has been seen to.

EMPTY = {
    "messages-null": b'{"Messages": null}',
    "messages-empty": b'{"Messages": []}',
    "nothing": b"{}",
}
A_MESSAGE = b'{"MessageId": "1", "ReceiptHandle": "2", "Body": "3"'
NOT_SQS = {
    "html": (200, b"<html>welcome</html>"),
    "xml": (200, b"<ReceiveMessageResponse><ReceiveMessageResult/></ReceiveMessageResponse>"),
    "other-json": (200, b'{"status": "ok"}'),
    "a-list": (200, b"[]"),
    "a-string": (200, b'"welcome"'),
    "null": (200, b"null"),
    "a-number": (200, b"0"),
    "messages-of-another-kind": (200, b'{"Messages": {"a": 1}}'),
    "messages-in-an-object": (200, b'{"Messages": {}}'),
    "messages-in-a-text": (200, b'{"Messages": ""}'),
    "messages-false": (200, b'{"Messages": false}'),
    "nested-without-end": (200, b"[" * 100_000),
    "messages-with-nulls": (200, b'{"Messages": [null]}'),
    "a-message-without-a-body": (200, b'{"Messages": [{"MessageId": "1", "ReceiptHandle": "2"}]}'),
    "attributes-in-a-list": (200, b'{"Messages": [%b, "Attributes": ["x"]}]}' % A_MESSAGE),
    "own-attributes-in-a-text": (200, b'{"Messages": [%b, "MessageAttributes": "x"}]}' % A_MESSAGE),
    "own-attribute-that-is-a-text": (200, b'{"Messages": [%b, "MessageAttributes": {"a": "x"}}]}' % A_MESSAGE),
    "a-body-that-is-no-text": (200, b'{"Messages": [{"MessageId": "1", "ReceiptHandle": "2", "Body": {"a": 1}}]}'),
    "empty-body": (200, b""),
    "not-utf-8": (200, b"\xff\xfe\xfd"),
    "created": (201, b"{}"),
    "no-content": (204, b""),
    "redirect": (302, b""),
    "redirect-with-a-page": (301, b"<html>elsewhere</html>"),
    "forbidden-by-a-proxy": (403, b"<html>no</html>"),
    "not-found": (404, b"<html>no</html>"),
    "error-of-another-kind": (400, b'{"error": "no"}'),
    "bad-gateway": (502, b"<html>bad gateway</html>"),
    "unavailable": (503, b""),
}


def answer_with(status: int, body: bytes, **headers: str) -> faults.Fault:
    def fault(call: faults.Call) -> None:
        call.send_response(status)
        for name, value in ({"Location": "http://127.0.0.1:1/"} | headers).items():
            call.send_header(name, value)
        if status != 204:
            call.send_header("Content-Length", str(len(body)))
        call.end_headers()
        if status != 204:
            call.wfile.write(body)

    return fault


@both_clients
@pytest.mark.parametrize("name", NOT_SQS)
def test_who_is_not_sqs_is_no_empty_queue(loading: Loading, client: str, name: str):
    loading.client = client
    loading.send(1)
    with loading.faulty_sqs(always("ReceiveMessage", answer_with(*NOT_SQS[name]))):
        run = loading.ready(give_up_after=0)
        run.start()
        with pytest.raises(errors.NoSqs, match=r"SQS does not answer ReceiveMessage: .*HTTP status "):
            run.wait()

    assert loading.waiting() == (1, 0)


@both_clients
@pytest.mark.parametrize("operation", ["GetQueueUrl", "GetQueueAttributes", "DeleteMessageBatch"])
@pytest.mark.parametrize("name", ["html", "other-json", "a-list", "null", "no-content", "redirect"])
def test_who_is_not_sqs_is_found_out_at_every_call(loading: Loading, client: str, operation: str, name: str):
    loading.client = client
    loading.send(1)
    with loading.faulty_sqs(always(operation, answer_with(*NOT_SQS[name]))):
        status, _, err = end(loading.start("--give-up-after", "0", "--workers", "1"))

    assert (status, operation in err) == (8, True)


WRONG_SHAPES = {
    "batch-of-objects": ("DeleteMessageBatch", b'{"Successful": {}, "Failed": {}}'),
    "batch-of-texts": ("DeleteMessageBatch", b'{"Successful": "", "Failed": []}'),
    "batch-with-a-number-for-an-id": ("DeleteMessageBatch", b'{"Successful": [{"Id": 0}]}'),
    "batch-with-a-strange-id": ("DeleteMessageBatch", b'{"Successful": [{"Id": "x"}]}'),
    "batch-with-an-endless-id": ("DeleteMessageBatch", b'{"Successful": [{"Id": "' + b"9" * 5000 + b'"}]}'),
    "url-null": ("GetQueueUrl", b'{"QueueUrl": null}'),
    "url-empty": ("GetQueueUrl", b'{"QueueUrl": ""}'),
    "attributes-in-a-list": ("GetQueueAttributes", b'{"Attributes": []}'),
    "timeout-that-is-no-number": ("GetQueueAttributes", b'{"Attributes": {"VisibilityTimeout": "soon"}}'),
    "timeout-of-ages": ("GetQueueAttributes", b'{"Attributes": {"VisibilityTimeout": "99999999999"}}'),
    "retention-of-ages": ("GetQueueAttributes", b'{"Attributes": {"MessageRetentionPeriod": "99999999999"}}'),
    "counter-that-is-no-number": ("GetQueueAttributes", b'{"Attributes": {"ApproximateNumberOfMessages": "many"}}'),
    "policy-that-is-no-json": ("GetQueueAttributes", b'{"Attributes": {"RedrivePolicy": "none"}}'),
    "policy-in-a-list": ("GetQueueAttributes", b'{"Attributes": {"RedrivePolicy": "[1]"}}'),
    "policy-without-a-target": ("GetQueueAttributes", b'{"Attributes": {"RedrivePolicy": "{\\"a\\":5}"}}'),
    "target-without-a-name": (
        "GetQueueAttributes", b'{"Attributes": {"RedrivePolicy": {"deadLetterTargetArn": "arn:aws:sqs:r:1:"}}}',
    ),
    "policy-with-a-strange-target": (
        "GetQueueAttributes", b'{"Attributes": {"RedrivePolicy": {"deadLetterTargetArn": "dlq"}}}',
    ),
}  # fmt: skip


@both_clients
@pytest.mark.parametrize("name", WRONG_SHAPES)
def test_an_answer_of_another_shape_is_not_from_sqs(loading: Loading, client: str, name: str):
    loading.client = client
    loading.send(1)
    operation, body = WRONG_SHAPES[name]
    with loading.faulty_sqs(always(operation, answer_with(200, body))):
        status, _, err = end(loading.start("--give-up-after", "0", "--workers", "1"))

    assert (status, operation in err) == (8, True)


@pytest.mark.parametrize("attributes", [{}, {"VisibilityTimeout": None}, {"VisibilityTimeout": 5, "RedrivePolicy": ""}])
@pytest.mark.parametrize("command", ["doctor", "load"])
def test_attributes_that_an_emulator_leaves_out_are_unknown(loading: Loading, command: str, attributes: dict):
    loading.send(1)
    answer = json.dumps({"Attributes": attributes}).encode()
    with loading.faulty_sqs(always("GetQueueAttributes", answer_with(200, answer))):
        arguments = [sys.executable, "-m", "loader", command, "--queue-name", loading.queue_name]
        done = subprocess.run(arguments, env=loading.env, capture_output=True, text=True)

    assert done.stderr.count("\n") <= 1
    assert done.returncode == {"doctor": 11, "load": 0}[command], done.stderr  # without a dead-letter queue
    assert command == "load" or "ok    retention           how long messages are kept is unknown" in done.stdout


@both_clients
@pytest.mark.parametrize("name", EMPTY)
def test_no_messages_are_no_messages_however_it_is_put(loading: Loading, client: str, name: str):
    loading.client = client
    loading.send(3)
    with loading.faulty_sqs(on("ReceiveMessage", *[answer_with(200, EMPTY[name])] * 2)):
        report = loading.run(workers=2)

    assert report.counts["received"] == 0  # nothing came for either worker: drained


@both_clients
def test_null_in_place_of_a_list_is_none(loading: Loading, client: str):
    loading.client = client
    ids = loading.send(15)

    def with_nulls(call: faults.Call) -> None:
        status, body = call.forward()
        answer = json.loads(body)
        if "Batch" in call.operation:
            answer |= {"Failed": None}
        for message in answer.get("Messages") or ():
            message |= {"MessageAttributes": None}
        call.answer(status, json.dumps(answer).encode())

    with loading.faulty_sqs(with_nulls):
        loading.run()

    loading.assert_landed_once(ids)


@both_clients
def test_answers_may_be_compressed_and_chunked(loading: Loading, client: str):
    loading.client = client
    ids = loading.send(15)

    def compressed(call: faults.Call) -> None:
        _, body = call.forward()
        body = gzip.compress(body)
        call.send_response(200)
        call.send_header("Content-Encoding", "gzip")
        call.send_header("Transfer-Encoding", "chunked")
        call.end_headers()
        for part in (body[:10], body[10:]):
            call.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        call.wfile.write(b"0\r\n\r\n")

    with loading.faulty_sqs(compressed):
        loading.run()

    loading.assert_landed_once(ids)


@both_clients
def test_an_answer_may_have_more_than_was_asked_for_and_some_of_it_twice(loading: Loading, client: str):
    """And an empty body, the longest that SQS takes, another sum of it, nothing else, or more than anybody knows."""
    loading.client = client
    ids = loading.send(10)
    bodies = {ids[0]: "", ids[1]: "\u20ac" * (1024 * 1024 // 3)}

    def odd(call: faults.Call) -> None:
        status, body = call.forward()
        answer = json.loads(body)
        for each in answer.get("Messages") or ():
            each["Body"] = bodies.get(each["MessageId"], each["Body"])
            each["MD5OfBody"] = "0" * 32
            each["Unknown"] = {"a": [1]}
            if each["MessageId"] == ids[2]:
                del each["Attributes"]
        if "Messages" in answer:
            answer["Messages"] += answer["Messages"][:5]
        if call.operation == "DeleteMessageBatch":
            answer["Successful"] = [{"Id": "4711"}, *answer.get("Successful", ())]
            answer["Failed"] = [{"Id": "4712", "SenderFault": False, "Code": "InternalError"}]
        call.answer(status, json.dumps(answer).encode())

    with loading.faulty_sqs(odd):
        report = loading.run(workers=1, flush=50)

    loading.assert_landed_once(ids)
    assert report.counts["landed"] == 10
    assert report.counts["deleted"] == report.counts["received"] > 10
    landed = dict(loading.query("select message_id, body from raw.sqs_messages"))
    assert {name: landed[name] for name in bodies} == bodies


@both_clients
def test_what_is_neither_deleted_nor_failed_is_deleted_again(loading: Loading, client: str):
    loading.client = client
    ids = loading.send(5)
    with loading.faulty_sqs(on("DeleteMessageBatch", answer_with(200, b'{"Successful": [], "Failed": null}'))):
        report = loading.run(workers=1)

    assert report.counts["deleted"] == 5
    loading.assert_landed_once(ids)


# What becomes of an answer, with either client: the message, or the name of what is wrong.

ATTRIBUTES = '{"DataType": "%s", %s}'
SEEN_ALIKE = {
    "binary": (ATTRIBUTES % ("Binary.png", '"BinaryValue": "AAEC"'), {"DataType": "Binary.png", "BinaryValue": "AAEC"}),
    "binary-that-is-no-base64": (
        ATTRIBUTES % ("Binary", '"BinaryValue": "%%%"'), {"DataType": "Binary", "BinaryValue": "%%%"},
    ),
    "binary-that-is-a-number": (ATTRIBUTES % ("Binary", '"BinaryValue": 5'), {"DataType": "Binary", "BinaryValue": 5}),
    "binary-list": (
        ATTRIBUTES % ("Binary", '"BinaryListValues": ["AAEC"]'), {"DataType": "Binary", "BinaryListValues": ["AAEC"]},
    ),
    "list-that-is-a-text": (
        ATTRIBUTES % ("String", '"StringListValues": "x"'), {"DataType": "String", "StringListValues": "x"},
    ),
    "custom-type": (
        ATTRIBUTES % ("Number.int", '"StringValue": "1", "Unknown": null'),
        {"DataType": "Number.int", "StringValue": "1", "Unknown": None},
    ),
}  # fmt: skip
A_RECEIVED_MESSAGE = b'{"Messages": [%b}]}' % A_MESSAGE
ENCODED = {
    "gzip": gzip.compress(A_RECEIVED_MESSAGE),
    "deflate": zlib.compress(A_RECEIVED_MESSAGE),
    "byte-order-mark": b"\xef\xbb\xbf" + A_RECEIVED_MESSAGE,
    "utf-16": A_RECEIVED_MESSAGE.decode().encode("utf-16"),
}
LENGTH = b"Content-Length: %d\r\n\r\n" % len(A_RECEIVED_MESSAGE)
NOT_UNDERSTOOD = {
    "http-0.9": (A_RECEIVED_MESSAGE, "NotHTTP"),
    "http-2": (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", "NotHTTP"),
    "http-2-in-words": (b"HTTP/2 200 OK\r\n" + LENGTH + A_RECEIVED_MESSAGE, "NotHTTP"),
    "ssh": (b"SSH-2.0-OpenSSH_9\r\n", "NotHTTP"),
    "tls": (b"\x15\x03\x01\x00\x02\x02\x46", "NotHTTP"),
    "headers-without-end": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 400_000 + b"\r\n" + LENGTH, "NotHTTP"),
    "nothing": (b"", "ConnectionCut"),
    "shorter-than-said": (b"HTTP/1.1 200 OK\r\n" + LENGTH + A_RECEIVED_MESSAGE[:9], "ConnectionCut"),
    "longer-than-said": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" + A_RECEIVED_MESSAGE, "NotFromSQS"),
    "half-a-chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\n{", "ConnectionCut"),
    "half-a-gzip": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" + ENCODED["gzip"][:9], "NotFromSQS"),
}


def client_of(monkeypatch, client: str, endpoint: str) -> Client:
    settings = {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1", "ENDPOINT_URL": endpoint}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return connect(1, client == "lean")


def outcome(monkeypatch, client: str, fault: faults.Fault) -> dict | str:
    """Of one call of this client: the message, or the fault's name."""
    with faults.sqs_proxy("http://127.0.0.1:1", fault) as server:
        try:
            [received] = client_of(monkeypatch, client, server.url).call("ReceiveMessage", QueueUrl="q")["Messages"]
        except Fault as failed:
            return failed.code if failed.error.exit_status == 8 else str(failed.error)
    return received


@both_clients
@pytest.mark.parametrize("name", SEEN_ALIKE)
def test_attributes_are_what_sqs_sent(monkeypatch, client: str, name: str):
    sent, expected = SEEN_ALIKE[name]
    body = b'{"Messages": [%b, "MessageAttributes": {"a": %b}}]}' % (A_MESSAGE, sent.encode())
    received = outcome(monkeypatch, client, answer_with(200, body))

    assert json.loads(Message.of(received).attributes) == {"a": expected}


@both_clients
@pytest.mark.parametrize("name", ENCODED)
def test_json_may_be_compressed_or_encoded_otherwise(monkeypatch, client: str, name: str):
    """Whatever the headers say: botocore took a byte order mark for an empty queue."""
    headers = {"Content-Encoding": name} if name in ("gzip", "deflate") else {}
    received = outcome(monkeypatch, client, answer_with(200, ENCODED[name], **headers))

    assert received == json.loads(A_RECEIVED_MESSAGE)["Messages"][0]


@both_clients
@pytest.mark.parametrize("name", NOT_UNDERSTOOD)
def test_what_cannot_be_understood_has_one_name(monkeypatch, client: str, name: str):
    sent, code = NOT_UNDERSTOOD[name]

    def send(call: faults.Call) -> None:
        call.wfile.write(sent)
        call.close_connection = True

    assert outcome(monkeypatch, client, send) == code


# Who refused, and what about it.

KMS_MESSAGE = (
    "User: arn:aws:iam::1:user/x is not authorized to perform: kms:GenerateDataKey on the resource (Service: AWSKMS)"
)
# As the IAM User Guide has them, "Troubleshoot access denied error messages".
WHO = "User: arn:aws:iam::1:user/x is not authorized to perform: sqs:receivemessage on resource: arn:aws:sqs:::q "
DENIED = WHO + "because {} the sqs:receivemessage action"
EXPLICIT = WHO + "with an explicit deny in {}"
ALLOW = "Not permitted: sqs:receivemessage on {queue}. Allow it in "
REFUSALS = {
    "AccessDenied": (4, "Not permitted: sqs:ReceiveMessage on {queue}. Allow it in the IAM policy of the loader."),
    "com.amazonaws.sqs#KmsAccessDenied": (4, "Not permitted: kms:Decrypt for {queue}. Allow it in the IAM policy"),
    "KMS.AccessDeniedException": (4, "Not permitted: kms:Decrypt for {queue}. Allow it in the IAM policy of the"),
    "com.amazonaws.sqs#KmsDisabled": (18, "SQS cannot use the KMS key of {queue}: KmsDisabled. Enable that key"),
    "KMS.DisabledException": (18, "SQS cannot use the KMS key of {queue}: KMS.DisabledException. Enable"),
    "KMS.KMSInvalidStateException": (18, "SQS cannot use the KMS key of {queue}: KMS.KMSInvalidStateException."),
    "com.amazonaws.sqs#KmsNotFound": (18, "SQS cannot use the KMS key of {queue}: KmsNotFound."),
    "RequestExpired": (17, "The clock of this machine is not that of AWS: sqs:ReceiveMessage answers RequestExpired."),
    "RequestTimeTooSkewed": (17, "The clock of this machine is not that of AWS"),
    "InvalidSignatureException": (7, "No valid AWS credentials: InvalidSignatureException."),
    "InvalidClientTokenId": (7, "No valid AWS credentials: InvalidClientTokenId."),
    "OptInRequired": (4, "Not permitted: sqs:ReceiveMessage on {queue}. Sign the account up for the service, "),
    "KmsOptInRequired": (4, "Not permitted: kms:Decrypt for {queue}. Sign the account up for the service, "),
    "InvalidSecurity": (8, "SQS does not answer ReceiveMessage: InvalidSecurity. Check AWS_ENDPOINT_URL"),
    "AWS.SimpleQueueService.NonExistentQueue": (6, "There is no queue {queue} in us-east-1."),
    "com.amazonaws.sqs#QueueDoesNotExist": (6, "There is no queue {queue} in us-east-1."),
    "AWS.SimpleQueueService.KMS.DisabledException": (18, "SQS cannot use the KMS key of {queue}: "),
    "<script>alert(1)</script>": (8, "SQS does not answer ReceiveMessage: unknown."),
}


@both_clients
@pytest.mark.parametrize("code", REFUSALS)
def test_what_is_refused_names_the_service_and_the_remedy(loading: Loading, code: str, client: str):
    loading.client = client
    status, sentence = REFUSALS[code]
    with loading.faulty_sqs(always("ReceiveMessage", refuse(code))), pytest.raises(LoaderError) as caught:
        loading.run()

    assert caught.value.exit_status == status
    assert str(caught.value).startswith(sentence.format(queue=loading.queue_name))


def refuse(code: str, message: str = "", status: int = 400) -> faults.Fault:
    return answer_with(status, json.dumps({"__type": code, "message": message}).encode())


@both_clients
@pytest.mark.parametrize(
    ("code", "message", "expected", "sentence"),
    [
        ("AccessDeniedException", KMS_MESSAGE, 4, "Not permitted: kms:GenerateDataKey for {queue}."),
        ("AccessDenied", DENIED.format("no identity-based policy allows"), 4, ALLOW + "the IAM policy of the loader."),
        ("AccessDenied", DENIED.format("no resource-based policy allows"), 4, ALLOW + "the resource-based policy."),
        ("AccessDenied", DENIED.format("no VPC endpoint policy allows"), 4, ALLOW + "the VPC endpoint policy."),
        ("AccessDenied", DENIED.format("no permissions boundary allows"), 4, ALLOW + "the permissions boundary."),
        ("AccessDenied", DENIED.format("no service control policy allows"), 4, ALLOW + "the service control policy."),
        (
            "AccessDenied",
            EXPLICIT.format("a service control policy"),
            4,
            "Not permitted: sqs:receivemessage on {queue}. Remove what denies it from the service control policy.",
        ),
        (
            "AccessDenied",
            EXPLICIT.format("an identity-based policy"),
            4,
            "Not permitted: sqs:receivemessage on {queue}. Remove what denies it from the IAM policy of the loader.",
        ),
        ("SignatureDoesNotMatch", "Signature expired: 20261121T is now earlier than 2027", 17, "The clock of this"),
        ("InvalidSignatureException", "Signature not yet current: 2027", 17, "The clock of this machine"),
    ],
)
def test_what_a_code_leaves_open_its_message_tells(loading, client, code, message, expected, sentence):
    loading.client = client
    with loading.faulty_sqs(always("ReceiveMessage", refuse(code, message))), pytest.raises(LoaderError) as caught:
        loading.run()

    assert caught.value.exit_status == expected
    assert str(caught.value).startswith(sentence.format(queue=loading.queue_name))
    assert "arn:aws" not in str(caught.value)


@both_clients
@pytest.mark.parametrize(
    ("operation", "action"),
    [("DeleteMessageBatch", "sqs:DeleteMessage"), ("GetQueueUrl", "sqs:GetQueueUrl")],
)
def test_what_is_to_be_allowed_is_an_action_that_iam_knows(loading: Loading, client: str, operation: str, action: str):
    """It has none of batches."""
    loading.client = client
    loading.send(1)
    with loading.faulty_sqs(always(operation, refuse("AccessDenied", "Access to the resource is denied."))):
        status, _, err = end(loading.start())

    assert status == 4
    assert err.startswith(f"Not permitted: {action} on {loading.queue_name}. Allow it in the IAM policy of the loader.")


@both_clients
def test_a_throttled_key_is_waited_for(loading: Loading, client: str):
    loading.client = client
    ids = loading.send(3)
    with loading.faulty_sqs(on("ReceiveMessage", refuse("KmsThrottled"), refuse("KMS.ThrottlingException"))):
        loading.run()

    loading.assert_landed_once(ids)


# Credentials.

NO_KEYS = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}


def web_identity(folder: Path) -> dict[str, str | None]:
    (folder / "token").write_text("secret-token")
    return NO_KEYS | {
        "AWS_ROLE_ARN": "arn:aws:iam::000000000000:role/x",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(folder / "token"),
    }


def profile(folder: Path, text: str) -> dict[str, str | None]:
    (folder / "config").write_text(text)
    return NO_KEYS | {"AWS_CONFIG_FILE": str(folder / "config"), "AWS_PROFILE": "mine"}


def given(folder: Path, **changed: object) -> dict[str, str | None]:
    """By a program, as JSON."""
    keys = {"Version": 1, "AccessKeyId": "key", "SecretAccessKey": "secret-token", "SessionToken": "secret-token"}
    (folder / "keys").write_text(json.dumps(keys | changed))
    return profile(folder, f"[profile mine]\ncredential_process = cat {folder}/keys\n")


BROKEN_CREDENTIALS = {
    "no-token-file": lambda folder: web_identity(folder) | {"AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere/token"},
    "token-file-is-a-folder": lambda folder: web_identity(folder) | {"AWS_WEB_IDENTITY_TOKEN_FILE": str(folder)},
    "no-process": lambda folder: profile(folder, "[profile mine]\ncredential_process = /nowhere/program\n"),
    "process-fails": lambda folder: profile(
        folder, "[profile mine]\ncredential_process = sh -c 'echo secret-token >&2; exit 1'\n"
    ),
    "process-says-nonsense": lambda folder: profile(folder, "[profile mine]\ncredential_process = echo secret-token\n"),
    "process-gives-numbers": lambda folder: given(folder, AccessKeyId=1, SecretAccessKey=2),
    "process-gives-a-number-for-a-token": lambda folder: given(folder, SessionToken=["secret-token"]),
    "process-gives-no-id": lambda folder: given(folder, AccessKeyId=None),
    "process-gives-no-key": lambda folder: given(folder, SecretAccessKey=None),
    "process-gives-empty-keys": lambda folder: given(folder, AccessKeyId="", SecretAccessKey=""),
    "process-gives-expired-ones": lambda folder: given(folder, Expiration="2020-01-01T00:00:00Z"),
    "process-of-another-version": lambda folder: given(folder, Version=2),
    "two-roles-that-are-each-others-source": lambda folder: profile(
        folder,
        "[profile mine]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = other\n"
        "[profile other]\nrole_arn = arn:aws:iam::1:role/y\nsource_profile = mine\n",
    ),
    "no-container-token": lambda folder: NO_KEYS | {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:1/secret-token",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "/nowhere/token",
    },
    "no-container": lambda folder: NO_KEYS | {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:1/secret-token"},
    "container-token-of-two-lines": lambda folder: NO_KEYS | {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:1/",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": "secret-token\nX-Other: 1",
    },
    "session-token-of-two-lines": lambda folder: {"AWS_SESSION_TOKEN": "secret-token\r\nX-Other: 1"},
    "key-with-a-line-break": lambda folder: {"AWS_SECRET_ACCESS_KEY": "secret-token\n"},
    "key-that-is-not-ascii": lambda folder: {"AWS_SECRET_ACCESS_KEY": "secret-tokén"},
    "half-a-pair": lambda folder: {"AWS_SECRET_ACCESS_KEY": None},
    "broken-file": lambda folder: profile(folder, "secret-token\n[[["),
    "role-without-source": lambda folder: profile(
        folder, "[profile mine]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = none\n"
    ),
}  # fmt: skip


@both_clients
@pytest.mark.parametrize("name", BROKEN_CREDENTIALS)
def test_credentials_that_cannot_be_loaded_are_one_sentence_without_them(loading, tmp_path, client, name):
    loading.client = client
    status, out, err = end(loading.start(**BROKEN_CREDENTIALS[name](tmp_path)))

    assert (status, out) == (7, "")
    assert err.startswith("No valid AWS credentials: ")
    assert err.count("\n") == 1
    assert "secret-tok" not in err


STS_ERROR = "<ErrorResponse><Error><Code>{}</Code><Message>secret-token {}</Message></Error></ErrorResponse>"
STS = {
    "AccessDenied": (
        4,
        "Not permitted: sts:AssumeRoleWithWebIdentity. Allow it in the role's trust policy and the IAM",
    ),
    "InvalidIdentityToken": (7, "No valid AWS credentials: sts:AssumeRoleWithWebIdentity refused the identity token"),
    "ExpiredTokenException": (7, "No valid AWS credentials: sts:AssumeRoleWithWebIdentity refused the identity token"),
    "IDPRejectedClaim": (7, "No valid AWS credentials: sts:AssumeRoleWithWebIdentity refused the identity token"),
}


@both_clients
@pytest.mark.parametrize("code", STS)
def test_what_sts_refuses_is_not_said_of_sqs(loading: Loading, tmp_path, client: str, code: str):
    loading.client = client
    status, sentence = STS[code]
    with sts(STS_ERROR.format(code, ""), 403) as url:
        settings = web_identity(tmp_path) | {"AWS_ENDPOINT_URL_STS": url}
        done, _, err = end(loading.start(**settings))

    assert done == status
    assert err.startswith(sentence)
    assert "secret-token" not in err


@contextlib.contextmanager
def sts(answer: str, status: int) -> Iterator[str]:
    class Sts(faults.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            body = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
            self.send_response(body[0])
            self.send_header("Content-Length", str(len(body[1])))
            self.end_headers()
            self.wfile.write(body[1].encode())

        def log_message(self, *_):
            pass

    server = faults.ThreadingHTTPServer(("127.0.0.1", 0), Sts)
    server.answers = [(status, answer)]
    with faults.serving(server):
        yield f"http://127.0.0.1:{server.server_address[1]}"


def test_a_refresh_that_fails_hours_later_is_explained_as_at_the_start(loading: Loading, tmp_path):
    """Credentials that have to be renewed, and no token file any more."""
    soon = (datetime.now(timezone.utc) + timedelta(minutes=5)).isoformat()  # so that each call asks for new ones
    with sts(ASSUMED.format(soon), 200) as url:
        settings = web_identity(tmp_path) | {"AWS_ENDPOINT_URL_STS": url}
        loader = loading.start("--follow", "--workers", "1", **settings)
        [first] = loading.send(1)
        until(lambda: loading.query("select message_id from raw.sqs_messages") == [(first,)])
        (tmp_path / "token").unlink()
        status, _, err = end(loader)

    assert status == 7
    assert err.startswith(f"No valid AWS credentials: {tmp_path}/token: No such file or directory.")


class Container(faults.BaseHTTPRequestHandler):
    """The agent of ECS or EKS, that gives a program credentials: here such as have to be renewed at every call."""

    def do_GET(self):
        with self.server.lock:
            away = self.server.away > 0
            self.server.away -= away
        soon = (datetime.now(timezone.utc) + timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
        keys = {"AccessKeyId": "local", "SecretAccessKey": "local", "Token": "token", "Expiration": soon}
        body = json.dumps(keys).encode()
        self.send_response(500 if away else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@both_clients
def test_a_container_agent_that_is_away_for_a_while_is_waited_for(loading: Loading, client: str):
    """As it is while it is being updated: the credentials at hand would still do."""
    loading.client = client
    with faults.serving(faults.ThreadingHTTPServer(("127.0.0.1", 0), Container)) as agent:
        agent.away, agent.lock = 0, threading.Lock()
        settings = NO_KEYS | {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{agent.server_address[1]}/"}
        loader = loading.start("--follow", "--workers", "1", "--give-up-after", "60", **settings)
        ids = loading.send(1)
        until(lambda: loading.query("select from raw.sqs_messages"))
        agent.away = 4  # botocore asks three times
        until(lambda: agent.away <= 0 or loader.poll() is not None)
        ids += loading.send(5)
        until(lambda: loading.query("select count(*) from raw.sqs_messages") == [(6,)] or loader.poll() is not None)
        until(lambda: loading.waiting() == (0, 0) or loader.poll() is not None)
        status, _, err = end(loader, 15)

    assert status == 0, err
    loading.assert_landed_once(ids)


@pytest.mark.parametrize(
    ("raised", "code", "passing"),
    [
        (botocore.exceptions.CredentialRetrievalError(provider="x", error_msg="x"), "CredentialRetrievalError", True),
        (botocore.exceptions.ClientError({"Error": {"Code": "AccessDenied"}}, "AssumeRole"), "AccessDenied", False),
        (PermissionError(13, "Permission denied", "token"), "PermissionError", False),
        (RuntimeError("Credentials were refreshed, but are still expired."), "ExpiredCredentials", True),
    ],
)
def test_credentials_that_are_renewed_as_a_call_is_signed(monkeypatch, raised, code, passing):
    """boto3 looks at them once more than the loader does, and they may be due just then."""
    client = client_of(monkeypatch, "boto3", "http://127.0.0.1:9")
    signer = mock.Mock(get_frozen_credentials=mock.Mock(side_effect=raised))
    monkeypatch.setattr(client.client._request_signer, "_credentials", signer)
    with pytest.raises(Fault) as failed:
        client.call("GetQueueUrl", QueueName="q")
    assert (failed.value.code, failed.value.passing) == (code, passing)
    assert isinstance(failed.value.error, errors.NoCredentials | errors.NotPermitted)


ASSUMED = """
<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>
<AccessKeyId>local</AccessKeyId><SecretAccessKey>local</SecretAccessKey><SessionToken>token</SessionToken>
<Expiration>{}</Expiration>
</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>
"""

# Queues by URL, in other accounts and regions.


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/1/q", "eu-west-1"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/1/q", "cn-north-1"),
        ("https://sqs-fips.us-gov-west-1.amazonaws.com/1/q", "us-gov-west-1"),
        ("https://sqs.eu-west-1.api.aws/1/q", "eu-west-1"),
        ("https://vpce-1.sqs.eu-west-1.vpce.amazonaws.com/1/q", "eu-west-1"),
        ("https://eu-west-1.queue.amazonaws.com/1/q", "eu-west-1"),
        ("https://queue.amazonaws.com/1/q", "us-east-1"),
        ("http://127.0.0.1:4566/000000000000/q", None),
        ("http://sqs.eu-west-1.localhost.localstack.cloud:4566/000000000000/q", "eu-west-1"),
        ("http://queue.example/q", None),
        ("not a url", None),
        (None, None),
    ],
)
def test_the_region_of_a_queue_is_in_its_url(url: str | None, region: str | None):
    assert region_of(url) == region


@both_clients
def test_calls_are_signed_for_the_region_of_the_url(loading: Loading, monkeypatch, client: str):
    for name, value in loading.env.items():
        monkeypatch.setenv(name, value)
    signatures = []

    def note(call: faults.Call) -> None:
        signatures.append(call.headers["Authorization"])
        call.answer(200, b"{}")

    with loading.faulty_sqs(note) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        url = "https://sqs.eu-west-1.amazonaws.com/000000000000/q"
        connect(1, client == "lean", url).call("ReceiveMessage", QueueUrl=url)

    assert "/eu-west-1/sqs/aws4_request" in signatures[0]


@pytest.mark.parametrize("ending", ["/", "\r", " \r\n", "/\r"])
def test_a_url_may_end_in_a_slash_or_with_the_end_of_a_line(loading: Loading, ending: str):
    ids = loading.send(3)
    status, _, err = end(loading.start("--queue-url", loading.url + ending))

    assert (status, err) == (0, "")
    loading.assert_landed_once(ids)
    assert loading.query("select distinct queue from raw.sqs_messages") == [(loading.queue_name,)]


def test_a_name_may_end_with_the_end_of_a_line(loading: Loading):
    assert end(loading.start("--queue-name", loading.queue_name + "\r"))[0] == 0


def test_a_dead_letter_queue_is_looked_for_in_its_own_account(loading: Loading, monkeypatch):
    """Not in the caller's, who may work for another one."""
    dead = "arn:aws:sqs:us-east-1:123456789012:dead"
    asked = []

    def with_policy(call: faults.Call) -> None:
        request = json.loads(call.request_body)
        if call.operation == "GetQueueUrl" and request["QueueName"] == "dead":
            asked.append(request)
            return call.answer(200, json.dumps({"QueueUrl": loading.url}).encode())
        status, body = call.forward()
        if call.operation == "GetQueueAttributes":
            answer = json.loads(body)
            answer["Attributes"]["RedrivePolicy"] = json.dumps({"deadLetterTargetArn": dead, "maxReceiveCount": 5})
            body = json.dumps(answer).encode()
        call.answer(status, body)

    with loading.faulty_sqs(with_policy):
        queue = loading.ready().queue
        found, receives = queue.dead_letters(queue.attributes())

    assert (found.name, receives) == ("dead", 5)
    assert asked == [{"QueueName": "dead", "QueueOwnerAWSAccountId": "123456789012"}]


# What emulators and others make of a message.


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ("1795219200123", "1795219200123"),
        (1795219200123, "1795219200123"),
        (1795219200123.0, "1795219200123"),
        ("1795219200", "1795219200000"),
        (1795219200.25, "1795219200250"),
        ("1795219200.25", "1795219200250"),
        ("2026-11-21T00:00:00Z", "1795219200000"),
        ("2026-11-21T00:00:00", "1795219200000"),
        ("2026-11-21 00:00:00.25", "1795219200250"),
        ("1.795219200123e12", "1795219200123"),
        ("-1795219200123", None),
        ("32503680000000", None),
        ("2026-11-21T01:00:00.5+01:00", "1795219200500"),
        (None, None),
        ("", None),
        ("yesterday", None),
        ("nan", None),
        ("inf", None),
        pytest.param(10**400, None, id="huge"),
        ("0", None),
        ({}, None),
    ],
)
def test_a_time_is_taken_as_it_comes(sent: object, expected: str | None, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "Asia/Tokyo")  # AWS's times are in UTC, wherever the loader is
        time.tzset()
        taken = milliseconds(sent)
    time.tzset()
    assert taken == expected


def message(**changed: object) -> dict:
    return {"MessageId": str(uuid.uuid4()), "ReceiptHandle": "r", "Body": "{}"} | changed


STRANGE = {
    "seconds": {"Attributes": {"SentTimestamp": 1795219200.5, "ApproximateReceiveCount": 3}},
    "iso": {"Attributes": {"SentTimestamp": "2026-11-21T00:00:00Z", "ApproximateReceiveCount": "three"}},
    "numbers": {"Attributes": {"SequenceNumber": 12, "MessageGroupId": 7, "ApproximateReceiveCount": 2.0}},
    "no-attributes": {"Attributes": None, "MessageAttributes": None},
    "nul": {"MessageAttributes": {"a": {"DataType": "String", "StringValue": "203.0.113.9\0"}}},
    "nul-in-a-name": {"MessageAttributes": {"203.0.113.9\0": {"DataType": "String", "StringValue": "x"}}},
    "lone-surrogate": {"MessageAttributes": {"a": {"DataType": "String", "StringValue": "203.0.113.9\ud800"}}},
    "nul-in-a-list": {"MessageAttributes": {"a": {"StringListValues": ["203.0.113.9", "\0"], "DataType": "String"}}},
    "not-a-number": {"MessageAttributes": {"a": {"DataType": "Number", "StringValue": float("nan")}}},
    "infinite": {"MessageAttributes": {"a": {"DataType": "Number", "StringValue": float("inf")}}},
    "backslash-u": {"MessageAttributes": {"a": {"DataType": "String", "StringValue": "203.0.113.9\\u0000"}}},
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_attributes_land_and_no_value_is_in_the_servers_log(loading: Loading, name: str):
    log = loading.database.stack.folder / "postgres" / "server.log"
    written = log.stat().st_size
    database = loading.ready().database

    landing = database.land("q", [Message.of(message(**STRANGE[name]))])

    assert (landing.landed, landing.refused) == (1, [])
    with log.open("rb") as stream:
        stream.seek(written)
        assert b"203.0.113.9" not in stream.read()
    [(attributes,)] = loading.query("select attributes from raw.sqs_messages")
    assert (attributes is None) == ("MessageAttributes" not in STRANGE[name] or name == "no-attributes")
    if name == "nul":
        assert base64.b64decode(attributes["a"]["StringValue"].removeprefix("base64:")) == b"203.0.113.9\0"
    if name == "backslash-u":
        assert attributes["a"]["StringValue"] == "203.0.113.9\\u0000"


@pytest.mark.parametrize("body", ["203.0.113.9\0", "203.0.113.9\ud800"])
def test_a_body_that_text_cannot_hold_is_refused_and_not_in_the_servers_log(loading: Loading, body: str):
    log = loading.database.stack.folder / "postgres" / "server.log"
    written = log.stat().st_size
    database = loading.ready().database

    landing = database.land("q", [Message.of(message()), Message.of(message(Body=body))])

    assert (landing.landed, len(landing.refused)) == (1, 1)
    with log.open("rb") as stream:
        stream.seek(written)
        assert b"203.0.113.9" not in stream.read()


# The ledger, and what no message is to blame for.

NOTHING_LANDS = {
    "sequence-behind-by-one": ("select setval('raw.load_id_seq', (select max(load_id) - 1 from raw.loads))", 20),
    "sequence-started-over": ("select setval('raw.load_id_seq', 1, false)", 20),
    "sequence-used-up": ("alter sequence raw.load_id_seq maxvalue 2", 19),
    "ledger-refuses": ("alter table raw.loads add check (received < 0) not valid", 19),
    "table-refuses-everything": ("alter table raw.sqs_messages add check (body is null) not valid", 19),
    "trigger-refuses-everything": (
        "create function no() returns trigger language plpgsql as $$ begin raise 'no'; end $$;"
        "create trigger no before insert on raw.sqs_messages for each row execute function no()", 19,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTHING_LANDS)
def test_what_is_no_messages_fault_is_not_held_against_one(loading: Loading, name: str):
    change, status = NOTHING_LANDS[name]
    loading.send(2)
    loading.run(workers=1, flush=1)
    loading.execute(change)
    loading.send(20)

    done, out, err = end(loading.start("--workers", "2"))

    assert done == status, err
    assert "refused 0" in out or not out
    assert sum(loading.waiting()) == 20
    assert loading.query("select count(*) from raw.sqs_messages") == [(2,)]


def test_a_database_that_is_away_while_a_refusal_is_looked_into_is_waited_for(loading: Loading):
    """The line is cut between a message that is refused and the made-up one that tells whose fault it is."""
    loading.execute("alter table raw.sqs_messages add check (body !~ 'poison')")
    loading.send(["poison"])
    steps = []

    def cut_after_the_first_refusal(step: str) -> bool:
        steps.append(step)
        return steps[-2:-1] == ["ROLLBACK done"] and steps.count("ROLLBACK done") == 1

    with faults.postgres_proxy(int(loading.env["PGPORT"]), cut_after_the_first_refusal) as port:
        status, out, err = end(loading.start("--workers", "1", "--max-messages", "1", **loading.through(port)))

    assert "the database is away, will try again" in err
    assert (status, out.split(";")[0]) == (10, "received 1: landed 0, duplicates 0, refused 1, returned 0")


def test_a_sequence_that_falls_behind_while_a_loader_runs_stops_it(loading: Loading):
    """With a gap in the ledger there is not even a duplicate key, and dbt would never see what lands in it."""
    loading.execute("select setval('raw.load_id_seq', 100)")
    loader = loading.start("--follow", "--workers", "1")
    loading.send(1)
    until(lambda: loading.query("select from raw.loads"))
    loading.execute("select setval('raw.load_id_seq', 50)")
    loading.send(5)
    status, _, err = end(loader)

    assert status == 20
    assert "The sequence raw.load_id_seq is at 51, behind the ledger raw.loads at 101" in err
    assert sum(loading.waiting()) == 5
    assert loading.query("select count(*), max(load_id) from raw.loads") == [(1, 101)]


def test_doctor_compares_the_sequence_with_the_ledger(loading: Loading):
    loading.send(1)
    loading.run()
    loading.execute("select setval('raw.load_id_seq', 1, false)")
    env = {"LOADER_QUEUE_NAME": loading.queue_name} | loading.env
    done = subprocess.run([sys.executable, "-m", "loader", "doctor"], env=env, capture_output=True, text=True)

    assert done.returncode == 11
    assert "FAIL  ledger              The sequence raw.load_id_seq is at 0, behind the ledger" in done.stdout


# Timeouts.


@pytest.mark.parametrize("login_setting", ["statement_timeout = '400ms'", "transaction_timeout = '400ms'"])
def test_a_batch_that_takes_longer_than_a_timeout_is_halved(loading: Loading, login_setting: str):
    """Each row takes 10 ms, so that forty do not fit in."""
    name = login_setting.split()[0]
    with administration(loading.database.stack) as cursor:
        cursor.execute("select from pg_settings where name = %s", [name])
        if not cursor.rowcount:
            pytest.skip(f"this PostgreSQL has no {name}")
        cursor.execute(f"alter role loader_user in database {loading.database.name} set {login_setting}")
    loading.execute(
        "create function slow() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(0.01); return new; end $$;"
        "create trigger slow before insert on raw.sqs_messages for each row execute function slow()"
    )
    ids = loading.send(100)

    report = loading.run(workers=1, flush=100)

    loading.assert_landed_once(ids)
    assert report.counts["refused"] == 0
    assert loading.query("select max(received) < 100, count(*) < 60 from raw.loads") == [(True, True)]


def test_a_batch_that_takes_more_than_the_temporary_files_of_a_login_is_halved(loading: Loading):
    """PostgreSQL sorts a batch, in a file when it is larger than work_mem."""
    with administration(loading.database.stack) as cursor:
        for setting in ("work_mem = '64kB'", "temp_file_limit = '200kB'"):
            cursor.execute(f"alter role loader_user in database {loading.database.name} set {setting}")
    ids = loading.send(["".join(random.choices(string.ascii_letters, k=1500)) for _ in range(300)])

    report = loading.run(workers=1, flush=300, give_up_after=10)

    loading.assert_landed_once(ids)
    assert report.counts["refused"] == 0


def test_a_locked_table_is_waited_for_and_no_message_refused(loading: Loading):
    with administration(loading.database.stack) as cursor:
        cursor.execute(f"alter role loader_user in database {loading.database.name} set lock_timeout = '100ms'")
    with loading.running(workers=1, follow=True) as run:
        with contextlib.closing(loading.database.connect("postgres")) as other, other.cursor() as cursor:
            cursor.execute("lock table raw.sqs_messages")
            ids = loading.send(10)
            until(lambda: run.report.counts["received"] == 10)
            time.sleep(0.5)
            other.rollback()
        until(lambda: run.report.counts["deleted"] == 10)
        run.stopping.set()

    loading.assert_landed_once(ids)
    assert run.report.counts["refused"] == 0


def test_a_connection_on_which_landing_is_not_possible_is_closed(loading: Loading):
    """Or those of an outage would use up what the login may have, and it would last for ever."""
    with administration(loading.database.stack) as cursor:
        cursor.execute(f"alter role loader_user in database {loading.database.name} set lock_timeout = '10ms'")
    kept = []
    with contextlib.closing(loading.database.connect("postgres")) as other, other.cursor() as cursor:
        cursor.execute("lock table raw.sqs_messages")
        for _ in range(3):
            with mock.patch.dict(os.environ, loading.env), pytest.raises(errors.TimedOut) as caught:
                Database().open()
            kept.append(caught.value)
        sessions = "select count(*) from pg_stat_activity where (usename, datname) = ('loader_user', %s)"
        until(lambda: query(loading.database, sessions, loading.database.name, login="postgres") == [(0,)], seconds=5)


@pytest.mark.parametrize(
    ("setting", "status", "sentence"),
    [
        ("default_transaction_read_only = on", 14, "PostgreSQL is read-only: "),
        ("lock_timeout = '100ms'", 15, "PostgreSQL ended a statement: canceling statement due to lock timeout."),
        ("statement_timeout = '100ms'", 15, "PostgreSQL ended a statement: canceling statement due to statement "),
    ],
)
def test_a_setting_that_stops_landing_is_said_at_the_start(loading, setting, status, sentence):
    with administration(loading.database.stack) as cursor:
        cursor.execute(f"alter role loader_user in database {loading.database.name} set {setting}")
    with contextlib.closing(loading.database.connect("postgres")) as other, other.cursor() as cursor:
        cursor.execute("lock table raw.sqs_messages")
        done, _, err = end(loading.start())

    assert done == status
    assert err.startswith(sentence)


def test_what_stands_in_the_way_of_landing_from_the_start_is_said_in_its_own_words(loading: Loading):
    """No message is in it by then. Event triggers like this one keep programs from making tables."""
    loading.execute(
        "create function no() returns event_trigger language plpgsql as $$ begin raise 'no tables here'; end $$;"
        "create event trigger no on ddl_command_start when tag in ('CREATE TABLE') execute function no()"
    )
    status, _, err = end(loading.start())

    assert (status, err) == (16, "Refused by PostgreSQL: no tables here.\n")

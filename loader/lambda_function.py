"""The loader on AWS Lambda, which receives and deletes messages itself: lands the records of an SQS event."""

import functools
import json
import math
import os
import time
from contextlib import suppress
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from loader import errors
from loader.land import Database
from loader.report import Report
from loader.sqs import Message, name_in_raw

# Seconds of the function's timeout that are left when it stops waiting for the database: the last try takes ten.
MARGIN = 15.0
PATIENCE = 5.0  # seconds for each of three tries; by botocore's own, an event's time would be over before the reason


def handler(event: Any, context: Any) -> dict[str, list[dict[str, str]]]:
    """Lands the messages of one event, all of one queue, in raw.sqs_messages.

    They land under LOADER_QUEUE_NAME, or else the queue's own name: a function for several queues leaves it unset.

    Returns Lambda's partial batch response: `batchItemFailures` has the ids of the messages that SQS is to deliver
    again; Lambda deletes the others. An error that concerns all messages is raised: CloudWatch counts it, and nothing
    is deleted, even by a trigger without ReportBatchItemFailures. So is an event that is not from SQS.
    """
    report = Report("json")
    records = records_of(event)
    if not records:
        report.say("the event has no SQS records")
        return response([])
    messages = messages_of(records)
    queue = name_in_raw(os.environ.get("LOADER_QUEUE_NAME"), records[0]["eventSourceARN"])
    began = time.monotonic()
    try:
        connected = database()
        connected.say = report.say
        connected.until = time.monotonic() + context.get_remaining_time_in_millis() / 1000 - MARGIN
        landing = connected.land(queue, messages)
    except errors.LoaderError as error:
        database.cache_clear()  # the next event reads the secret again: the password may have changed
        report.say("nothing landed", messages=len(messages), reason=str(error), exit_status=error.exit_status)
        raise error from None
    report.landed(landing, time.monotonic() - began)
    again = [message for message, _ in landing.refused] + landing.held_back
    counts = {name: report.counts[name] for name in ("landed", "duplicates", "refused")}
    report.say("event landed", queue=queue, messages=len(messages), **counts, held_back=len(landing.held_back))
    return response(again)


def response(again: list[Message]) -> dict[str, list[dict[str, str]]]:
    return {"batchItemFailures": [{"itemIdentifier": message.id} for message in again]}


@functools.cache
def database() -> Database:
    """Kept between events, with its connection. The login is in PG*, or in the secret whose ARN is LOADER_SECRET."""
    if secret := os.environ.get("LOADER_SECRET"):
        try:
            patience = Config(connect_timeout=PATIENCE, read_timeout=PATIENCE, retries={"total_max_attempts": 3})
            found = boto3.client("secretsmanager", config=patience).get_secret_value(SecretId=secret)
        except (BotoCoreError, ClientError) as error:
            code = error.response["Error"]["Code"] if isinstance(error, ClientError) else type(error).__name__
            raise errors.BadSetting(
                problem=f"The secret in LOADER_SECRET cannot be read: {code}. Allow secretsmanager:GetSecretValue in "
                "the function's role, and check that its subnets reach Secrets Manager."
            ) from None
        try:
            login = json.loads(found["SecretString"])
            os.environ |= {"PGUSER": login["username"], "PGPASSWORD": login["password"]}
        except (KeyError, TypeError, ValueError):  # a text, or another form of JSON
            problem = "The secret in LOADER_SECRET has to be JSON with username and password."
            raise errors.BadSetting(problem=problem) from None
    return Database(give_up_after=math.inf)  # but at the end of each event's time


def records_of(event: Any) -> list[dict[str, Any]]:
    """From Lambda's own trigger, or from EventBridge Pipes, which give the records alone."""
    with suppress(AttributeError, TypeError):
        records = event if isinstance(event, list) else event.get("Records") or []
        if all(record.get("eventSource") == "aws:sqs" and has_all(record) for record in records):
            return records
    raise errors.BadSetting(problem="The event is not from SQS: set a queue as the function's trigger.")


def has_all(record: dict[str, Any]) -> bool:
    """What somebody wrote by hand, or a Pipe with an input template made, may lack some."""
    return all(isinstance(record.get(name), str) for name in ("messageId", "receiptHandle", "body", "eventSourceARN"))


def messages_of(records: list[dict[str, Any]]) -> list[Message]:
    """The messages of an event, in its order; one that it has twice is one message with two deliveries."""
    messages: dict[str, Message] = {}
    for record in records:
        message = Message.of(
            {
                "MessageId": record["messageId"],
                "ReceiptHandle": record["receiptHandle"],
                "Body": record["body"],
                "Attributes": record.get("attributes"),
                "MessageAttributes": {
                    name: as_received(value) for name, value in (record.get("messageAttributes") or {}).items()
                },
            }
        )
        if earlier := messages.get(message.id):
            message.deliveries += earlier.deliveries
        messages[message.id] = message
    return list(messages.values())


def as_received(attribute: dict[str, Any]) -> dict[str, Any]:
    """A message attribute as ReceiveMessage has it: names in another case, and no empty lists."""
    return {name[0].upper() + name[1:]: value for name, value in attribute.items() if value}

"""Makes queues and puts messages on them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from local.processes import StackError

BATCH = 10  # SQS takes no more in a call,
BATCH_BYTES = 256 * 1024  # nor, on older servers, more than this; a longer message goes alone
GIVE_UP_AFTER = 5


def client(environment: Mapping[str, str]) -> Any:
    """A client for the server that this environment names, asked directly whatever HTTP_PROXY says."""
    try:
        return boto3.client(
            "sqs",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            region_name=environment.get("AWS_DEFAULT_REGION"),
            aws_access_key_id=environment.get("AWS_ACCESS_KEY_ID"),
            aws_secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY"),
            config=Config(proxies={}),
        )
    except (BotoCoreError, ValueError) as error:
        raise StackError(f"SQS cannot be used: {error}") from None


def ensure_queue(sqs: Any, name: str) -> str:
    """The queue's URL. A missing queue is made, with another for what was received five times and never deleted."""
    try:
        with suppress(sqs.exceptions.QueueDoesNotExist):
            return sqs.get_queue_url(QueueName=name)["QueueUrl"]
        dead_letters = sqs.create_queue(QueueName=f"{name}-dlq")["QueueUrl"]
        asked = sqs.get_queue_attributes(QueueUrl=dead_letters, AttributeNames=["QueueArn"])
        redrive = {"deadLetterTargetArn": asked["Attributes"]["QueueArn"], "maxReceiveCount": GIVE_UP_AFTER}
        return sqs.create_queue(QueueName=name, Attributes={"RedrivePolicy": json.dumps(redrive)})["QueueUrl"]
    except (BotoCoreError, ClientError) as error:
        raise StackError(f"SQS did not answer when asked for the queue {name}: {error}") from None


def send(sqs: Any, url: str, bodies: Iterable[str]) -> int:
    """Send each body as it is, in order, and count them."""
    sent = 0
    for batch in batches(bodies):
        entries = [{"Id": str(number), "MessageBody": body} for number, body in enumerate(batch)]
        try:
            failed = sqs.send_message_batch(QueueUrl=url, Entries=entries).get("Failed", [])
        except (BotoCoreError, ClientError) as error:
            raise StackError(f"After {sent} messages, SQS took no more: {error}") from None
        before, sent = sent, sent + len(batch) - len(failed)
        if failed:
            number, code = before + int(failed[0]["Id"]) + 1, failed[0]["Code"]
            raise StackError(
                f"{sent} were sent. SQS refused message {number} ({code}): take it out, and send the rest."
            )
    return sent


def batches(bodies: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for body in bodies:
        length = len(body.encode())
        if batch and (len(batch) == BATCH or size + length > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(body)
        size += length
    if batch:
        yield batch

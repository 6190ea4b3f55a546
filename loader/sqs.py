"""The queue: its messages, and every call to it, made again while a fault may pass."""

import base64
import json
import math
import random
import re
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone

from loader import errors
from loader.aws import Client, Fault, redrive_policy

DEFAULT_NAME = "login-queue"
BATCH = 10  # messages in one call, by SQS's own limit
MAX_VISIBILITY = 12 * 3600  # seconds from the first receive, by SQS's own limit
DELETE_ATTEMPTS = 4
SYSTEM_ATTRIBUTES = ("SentTimestamp", "ApproximateReceiveCount", "MessageGroupId", "SequenceNumber")
SOURCE = "DeadLetterQueueSourceArn"  # of a dead letter

KINDS = ("", "NotVisible", "Delayed")


@dataclass(slots=True)
class Message:
    """A message as SQS delivered it. What an app wrote into it does not show in a repr."""

    id: str
    receipt: str = field(repr=False)
    body: str = field(repr=False)
    sent_at: str | None  # milliseconds since 1970
    receive_count: str | None
    group_id: str | None = field(repr=False)
    sequence_number: str | None
    attributes: str | None = field(repr=False)  # JSON
    deliveries: int = 1  # times received by the worker that holds it

    @classmethod
    def of(cls, answer: dict) -> "Message":
        system = (answer.get("Attributes") or {}).get
        custom = answer.get("MessageAttributes")
        return cls(
            answer["MessageId"],
            answer["ReceiptHandle"],
            answer["Body"],
            milliseconds(system("SentTimestamp")),
            whole_number(system("ApproximateReceiveCount")),
            as_text(system("MessageGroupId")),
            as_text(system("SequenceNumber")),
            as_jsonb(custom) if custom else None,
        )

    @property
    def ordered_in(self) -> str | None:
        """The group that it must keep its place in. A standard queue has groups too, but no order in them."""
        return self.group_id if self.sequence_number else None


def as_text(value: object) -> str | None:
    return None if value is None else str(value)


def whole_number(value: object) -> str | None:
    """As SQS writes one, and nothing else: what PostgreSQL cannot read, it would quote in its log."""
    text = str(value)
    return text if text.isdecimal() and text.isascii() and len(text) < 10 else None


def milliseconds(value: object) -> str | None:
    """A time as SQS has it, milliseconds since 1970. Emulators also send numbers, seconds, or ISO 8601."""
    if type(value) is str and len(value) == 13 and value.isdecimal() and "1" <= value < "7258118400000":
        return value
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        try:
            moment = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
            number = moment.replace(tzinfo=moment.tzinfo or timezone.utc).timestamp()
        except (ValueError, OverflowError):
            return None
    if abs(number) < 100_000_000_000:  # in seconds that is the year 5138, in milliseconds 1973
        number *= 1000
    return str(round(number)) if 946_684_800_000 <= number < 7_258_118_400_000 else None  # the years that raw takes


def as_jsonb(value: object) -> str:
    """JSON that PostgreSQL's jsonb can hold. It would quote what it cannot in the server's log."""
    try:
        text = json.dumps(value, default=as_base64, ensure_ascii=False, allow_nan=False)
        text.encode()
        if "\\u0000" not in text:
            return text
    except ValueError:  # a lone surrogate, or a number that is none
        pass
    return json.dumps(storable(value), default=as_base64, ensure_ascii=False)


def storable(value: object) -> object:
    """The same with base64 in place of each text that has a NUL or a lone surrogate in it; nothing is lost by that."""
    if isinstance(value, dict):
        return {storable(name): storable(each) for name, each in value.items()}
    if isinstance(value, list):
        return [storable(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= each <= "\udfff" for each in value)):
        return "base64:" + as_base64(value.encode("utf-8", "surrogatepass"))
    return value


def as_base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def name_in_raw(given: str | None, address: str | None) -> str:
    """The name that messages of a queue land under: the one that was given, or else that in its URL or ARN.

    They may differ: AWS itself names the queue of a CloudFormation stack; dbt_project.yml declares one name for all.
    """
    return (given or "").strip() or re.split("[/:]", (address or "").strip().rstrip("/"))[-1] or DEFAULT_NAME


class Queue:
    """One queue. Calls are made again until the fault passes, the time to give up has come, or the loader stops."""

    system_attributes = SYSTEM_ATTRIBUTES
    others: Collection[str] = ()  # ids of messages that were received and left alone

    def __init__(
        self,
        client: Client,
        name: str | None,
        url: str | None = None,
        give_up_after: float = 300,
        account: str | None = None,
    ):
        self.client = client
        self.region = client.region
        url = (url or "").strip().rstrip("/")
        self.name = self.name_in_raw = name_in_raw(name, url)
        self.give_up_after = give_up_after
        self.stopping = threading.Event()
        self.say = lambda event, **details: None
        owner = {"QueueOwnerAWSAccountId": account} if account else {}
        self.url = url or self.once("GetQueueUrl", QueueName=self.name, **owner)["QueueUrl"]
        attributes = self.attributes()
        self.arn = attributes.get("QueueArn")
        visibility = int(attributes.get("VisibilityTimeout") or 0)
        self.visibility = visibility if visibility > 0 else 30  # 0 hides nothing from anybody

    def receive(self, most: int, wait: int) -> list[Message]:
        """Up to `most` messages; none when nothing came within `wait` seconds."""
        return self.messages_of(self.patiently("ReceiveMessage", **self.wish(most, wait)))

    def receive_more(self, numbers: Iterable[int], at_once: int) -> Iterator[tuple[int, list[Message]]]:
        """By several calls at once, each for as many messages and without waiting: what was asked for, and what came.

        Nothing comes of a call that fails; `receive` is there to see whether the next one does.
        """
        wishes = (self.wish(most, 0) for most in numbers)
        for wish, answer in self.client.calls("ReceiveMessage", wishes, at_once):
            if isinstance(answer, Fault):
                self.say("SQS fault, will try again", operation="ReceiveMessage", fault=answer.code, attempt=1)
                answer = {}
            yield wish["MaxNumberOfMessages"], self.messages_of(answer)

    def messages_of(self, answer: dict) -> list[Message]:
        return [Message.of(each) for each in answer.get("Messages") or ()]

    def wish(self, most: int, wait: int) -> dict:
        return {
            "QueueUrl": self.url,
            "MaxNumberOfMessages": most,
            "WaitTimeSeconds": wait,
            "VisibilityTimeout": self.visibility,  # as the heartbeat has it, even if the queue's is changed meanwhile
            "MessageSystemAttributeNames": self.system_attributes,
            "MessageAttributeNames": ["All"],
        }

    def delete(self, messages: list[Message], at_once: int = 1) -> int:
        """Deletes, and tells how many deliveries that settles. What SQS will not delete comes again, and lands once."""
        settled = 0
        left = dict(enumerate(messages))
        batches = list(tens([{"Id": str(number), "ReceiptHandle": each.receipt} for number, each in left.items()]))
        for attempt in range(DELETE_ATTEMPTS):
            requests = [{"QueueUrl": self.url, "Entries": batch} for batch in batches]
            batches = []
            for request, answer in list(self.client.calls("DeleteMessageBatch", requests, at_once)):
                if isinstance(answer, Fault):
                    answer = self.patiently("DeleteMessageBatch", **request)
                for each in answer.get("Successful") or ():
                    if done := left.pop(int(each["Id"]), None):
                        settled += done.deliveries
                if failed := answer.get("Failed"):
                    codes = sorted({str(each.get("Code")) for each in failed})
                    self.say("SQS did not delete some messages", messages=len(failed), codes=codes, attempt=attempt + 1)
                    for each in failed:
                        if each.get("SenderFault"):  # there is no hope for it
                            left.pop(int(each["Id"]), None)
                if rest := [each for each in request["Entries"] if int(each["Id"]) in left]:
                    batches.append(rest)
            if not batches:
                break
            self.pause(attempt)
        return settled

    def keep(self, messages: list[Message], seconds: int) -> int:
        """Hides messages for so many seconds from now; with 0, gives them back. Tells for how many SQS does not do it.

        Those are deleted, or with somebody else, or have been hidden for as long as SQS allows.
        """
        refused = 0
        for batch in tens(messages):
            entries = [
                {"Id": str(i), "ReceiptHandle": each.receipt, "VisibilityTimeout": seconds}
                for i, each in enumerate(batch)
            ]
            operation = "ChangeMessageVisibilityBatch"
            failed = self.once(operation, QueueUrl=self.url, Entries=entries).get("Failed") or ()
            for each in failed:
                if not each.get("SenderFault"):
                    raise errors.NoSqs(operation=operation, reason=each.get("Code"))
            refused += len(failed)
        return refused

    def attributes(self) -> dict[str, str]:
        return self.once("GetQueueAttributes", QueueUrl=self.url, AttributeNames=["All"])["Attributes"]

    @staticmethod
    def backlog(attributes: dict[str, str]) -> int:
        """Messages on the queue, by SQS's own rough count: to be had, in flight, delayed."""
        return sum(int(attributes.get(f"ApproximateNumberOfMessages{kind}") or 0) for kind in KINDS)

    def peek(self) -> list[Message]:
        """Some messages, which everybody else can still receive. It counts as a receive of them all the same."""
        answer = self.once(
            "ReceiveMessage",
            QueueUrl=self.url,
            MaxNumberOfMessages=BATCH,
            VisibilityTimeout=0,
            MessageSystemAttributeNames=["SentTimestamp"],
        )
        return [Message.of(each) for each in answer.get("Messages") or ()]

    def dead_letters(self, attributes: dict) -> tuple["DeadLetters | None", int]:
        """The queue that a message goes to when it was received too often, and how often that is."""
        if not (policy := redrive_policy(attributes)):
            return None, 0
        *_, account, name = policy["deadLetterTargetArn"].split(":")
        try:
            return DeadLetters(self, name, account), int(policy.get("maxReceiveCount") or 0)
        except errors.NoQueue:
            remedy = f"The RedrivePolicy of {self.name} names it: create it, or change that policy"
            raise errors.NoQueue(queue=name, region=self.region, remedy=remedy) from None

    def patiently(self, operation: str, **parameters) -> dict:
        began = time.monotonic()
        attempt = 0
        while True:
            try:
                return self.client.call(operation, **parameters)
            except Fault as fault:
                waited = time.monotonic() - began
                limit = min(self.give_up_after, 3) if self.stopping.is_set() else self.give_up_after
                if not fault.passing or waited > limit:
                    raise fault.error from None
                self.say("SQS fault, will try again", operation=operation, fault=fault.code, attempt=attempt + 1)
            self.pause(attempt)
            attempt += 1

    def once(self, operation: str, **parameters) -> dict:
        """A call that is made again a single time: its caller knows what to do without an answer."""
        try:
            return self.client.call(operation, **parameters)
        except Fault as fault:
            if not fault.passing:
                raise fault.error from None
        self.pause(0)
        try:
            return self.client.call(operation, **parameters)
        except Fault as fault:
            raise fault.error from None

    def pause(self, attempt: int) -> None:
        """A pause that grows and that no two loaders make alike; short once the loader stops."""
        seconds = backoff(attempt, longest=20)
        if self.stopping.wait(seconds):
            time.sleep(min(seconds, 0.2))


class DeadLetters(Queue):
    """The dead-letter queue of `source`. What came from other queues, which may share it, is left alone."""

    system_attributes = (*SYSTEM_ATTRIBUTES, SOURCE)

    def __init__(self, source: Queue, name: str, account: str):
        super().__init__(source.client, name, give_up_after=source.give_up_after, account=account)
        self.name_in_raw, self.source = source.name, source.arn
        self.others: set[str] = set()

    def receive(self, most: int, wait: int) -> list[Message]:
        """As of any queue. Messages of others are no reason to take it for empty, unless they come again."""
        while True:
            known = len(self.others)
            messages = super().receive(most, wait)
            if messages or len(self.others) == known or self.stopping.is_set():
                return messages

    def messages_of(self, answer: dict) -> list[Message]:
        ours = []
        for each in answer.get("Messages") or ():
            if self.is_ours(each):
                ours.append(Message.of(each))
            else:
                self.others.add(each["MessageId"])
        return ours

    def is_ours(self, message: dict) -> bool:
        """One that names no queue was sent here by hand; or an emulator tells no sources, or no queue's ARN."""
        source = (message.get("Attributes") or {}).get(SOURCE)
        return not source or not self.source or source == self.source


def backoff(attempt: int, longest: float) -> float:
    """Seconds to wait: more each time, and never as long as another loader does."""
    return random.uniform(0, min(longest, 0.2 * 2 ** min(attempt, 9)))  # 2**1024 is no float


def tens(things: list) -> Iterator[list]:
    return (things[i : i + BATCH] for i in range(0, len(things), BATCH))

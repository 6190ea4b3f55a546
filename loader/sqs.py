"""The queue: every call to SQS, made again while a fault may pass, and its errors in the loader's own words."""

import base64
import json
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import boto3
import botocore.session
from botocore import exceptions as aws
from botocore import xform_name
from botocore.config import Config
from botocore.parsers import ResponseParserError

from loader import errors
from loader.fastpath import OPERATIONS, FastPath

BATCH = 10  # messages in one call, by SQS's own limit
LONG_POLL = 2  # seconds; a longer one would delay the end by as much and save next to nothing
READ_TIMEOUT = LONG_POLL + 5
MAX_VISIBILITY = 12 * 3600  # seconds from the first receive, by SQS's own limit
DELETE_ATTEMPTS = 4
SYSTEM_ATTRIBUTES = ["SentTimestamp", "ApproximateReceiveCount", "MessageGroupId", "SequenceNumber"]

KINDS = ("", "NotVisible", "Delayed")

NO_SUCH_CALL = {"InvalidAction", "NotImplemented", "UnknownOperationException", "UnsupportedOperation"}
NO_QUEUE = {"InvalidAddress", "NonExistentQueue", "QueueDeletedRecently", "QueueDoesNotExist"}
NO_CREDENTIALS = {
    "AuthFailure", "ExpiredToken", "ExpiredTokenException", "IncompleteSignature", "InvalidAccessKeyId",
    "InvalidClientTokenId", "InvalidSecurity", "InvalidSignatureException", "MissingAuthenticationToken",
    "RequestExpired", "SignatureDoesNotMatch", "TokenRefreshRequired", "UnrecognizedClientException",
}  # fmt: skip
NOT_PERMITTED = {"AccessDenied", "AccessDeniedException", "KmsAccessDenied", "OptInRequired", "UnauthorizedOperation"}
PASSING = {
    "InternalError", "InternalFailure", "KmsThrottled", "LimitExceededException", "OverLimit", "RequestLimitExceeded",
    "RequestThrottled", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException",
    "ThrottledException", "TooManyRequestsException",
}  # fmt: skip
AWS_ERRORS = (aws.BotoCoreError, aws.ClientError, ResponseParserError)
CREDENTIAL_ERRORS = (
    aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError, aws.TokenRetrievalError,
    aws.SSOError,
)  # fmt: skip
CONNECTION_ERRORS = (aws.HTTPClientError, aws.ConnectionError, ResponseParserError)


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
        system = answer.get("Attributes") or {}
        custom = answer.get("MessageAttributes")
        return cls(
            id=answer["MessageId"],
            receipt=answer["ReceiptHandle"],
            body=answer["Body"],
            sent_at=system.get("SentTimestamp"),
            receive_count=system.get("ApproximateReceiveCount"),
            group_id=system.get("MessageGroupId"),
            sequence_number=system.get("SequenceNumber"),
            attributes=json.dumps(custom, default=as_base64, ensure_ascii=False) if custom else None,
        )

    @property
    def ordered_in(self) -> str | None:
        """The group that it must keep its place in. A standard queue has groups too, but no order in them."""
        return self.group_id if self.sequence_number else None


def as_base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def connect(connections: int, lean: bool = True):
    """A boto3 client by AWS_* and ~/.aws; if lean, also the fast path for the two calls that are made most."""
    config = Config(
        user_agent="sqs-loader",  # a fixed one, because botocore makes its own anew for every call
        parameter_validation=False,
        max_pool_connections=connections,
        connect_timeout=5,
        read_timeout=READ_TIMEOUT,
        retries={"mode": "standard", "total_max_attempts": 2},
    )
    try:
        session = botocore.session.get_session()
        client = boto3.Session(botocore_session=session).client("sqs", config=config)
        return client, FastPath(session, client) if lean and session.get_credentials() else None
    except aws.NoRegionError:
        raise errors.BadSetting(problem="There is no AWS region: set AWS_DEFAULT_REGION.") from None
    except aws.ProfileNotFound as error:
        raise errors.NoCredentials(reason=reason(error)) from None
    except CREDENTIAL_ERRORS as error:
        raise errors.NoCredentials(reason=reason(error)) from None
    except OSError as error:  # from the lean path, which reads them at once
        raise errors.BadSetting(problem=f"AWS_CA_BUNDLE cannot be read: {error.strerror}.") from None
    except (aws.BotoCoreError, ValueError) as error:
        remedy = "Check AWS_DEFAULT_REGION and AWS_ENDPOINT_URL (http://host:port)."
        raise errors.BadSetting(problem=f"The AWS settings make no sense: {error}. {remedy}") from None


class Queue:
    """One queue. Calls are made again until the fault passes, the time to give up has come, or the loader stops."""

    def __init__(self, client, fast: FastPath | None, name: str, url: str | None = None, give_up_after: float = 300):
        self.client, self.fast = client, fast
        self.region = client.meta.region_name
        self.name = url.rpartition("/")[2] if url else name
        self.give_up_after = give_up_after
        self.stopping = threading.Event()
        self.say = lambda event, **details: None
        self.url = url or self.once("GetQueueUrl", QueueName=name)["QueueUrl"]
        attributes = self.attributes()
        self.visibility = int(attributes["VisibilityTimeout"]) or 30  # not 0, which hides nothing from anybody

    def receive(self, most: int, wait: int) -> list[Message]:
        """Up to `most` messages; none when nothing came within `wait` seconds."""
        answer = self.patiently(
            "ReceiveMessage",
            QueueUrl=self.url,
            MaxNumberOfMessages=most,
            WaitTimeSeconds=wait,
            VisibilityTimeout=self.visibility,  # as the heartbeat has it, even if the queue's is changed meanwhile
            MessageSystemAttributeNames=SYSTEM_ATTRIBUTES,
            MessageAttributeNames=["All"],
        )
        return [Message.of(each) for each in answer.get("Messages", ())]

    def delete(self, messages: list[Message]) -> int:
        """Deletes, and tells how many deliveries that settles. What SQS will not delete comes again, and lands once."""
        settled = 0
        for batch in tens(messages):
            for attempt in range(DELETE_ATTEMPTS):
                entries = [{"Id": str(i), "ReceiptHandle": each.receipt} for i, each in enumerate(batch)]
                answer = self.patiently("DeleteMessageBatch", QueueUrl=self.url, Entries=entries)
                done = {int(each["Id"]) for each in answer.get("Successful", ())}
                failed = {int(each["Id"]): each for each in answer.get("Failed", ())}
                hopeless = {i for i, each in failed.items() if each.get("SenderFault")}
                settled += sum(batch[i].deliveries for i in done)
                if failed:
                    codes = sorted({str(each.get("Code")) for each in failed.values()})
                    self.say("SQS did not delete some messages", messages=len(failed), codes=codes, attempt=attempt + 1)
                batch = [each for i, each in enumerate(batch) if i not in done | hopeless]
                if not batch:
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
            failed = self.once(operation, QueueUrl=self.url, Entries=entries).get("Failed", ())
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
        return sum(int(attributes.get(f"ApproximateNumberOfMessages{kind}", 0)) for kind in KINDS)

    def peek(self) -> list[Message]:
        """Some messages, which everybody else can still receive. It counts as a receive of them all the same."""
        answer = self.once(
            "ReceiveMessage",
            QueueUrl=self.url,
            MaxNumberOfMessages=BATCH,
            VisibilityTimeout=0,
            MessageSystemAttributeNames=["SentTimestamp"],
        )
        return [Message.of(each) for each in answer.get("Messages", ())]

    def beside(self, name: str) -> "Queue":
        """Another queue of the same account."""
        return Queue(self.client, self.fast, name, give_up_after=self.give_up_after)

    def redrive(self) -> Iterator[dict]:
        """Moves the messages of the dead-letter queue back, by SQS's own task; tells how far it is until it ends."""
        policy = json.loads(self.attributes().get("RedrivePolicy") or "{}")
        if not policy:
            raise errors.CannotRedrive(reason=f"{self.name} has no dead-letter queue")
        source = policy["deadLetterTargetArn"]
        try:
            self.client.start_message_move_task(SourceArn=source, DestinationArn=self.attributes()["QueueArn"])
        except AWS_ERRORS as error:
            if code_of(error) in NO_SUCH_CALL:
                raise errors.CannotRedrive(reason="this SQS has no StartMessageMoveTask") from None
            raise self.explained(error, "StartMessageMoveTask") from None
        while True:
            task = self.once("ListMessageMoveTasks", SourceArn=source, MaxResults=1)["Results"][0]
            yield task
            if task["Status"] not in ("RUNNING", "CANCELLING"):
                return
            time.sleep(1)

    def patiently(self, operation: str, **parameters) -> dict:
        began = time.monotonic()
        attempt = 0
        while True:
            try:
                return self.send(operation, parameters)
            except AWS_ERRORS as error:
                waited = time.monotonic() - began
                limit = min(self.give_up_after, 3) if self.stopping.is_set() else self.give_up_after
                if not passing(error) or waited > limit:
                    raise self.explained(error, operation) from None
                self.say("SQS fault, will try again", operation=operation, fault=code_of(error), attempt=attempt + 1)
            self.pause(attempt)
            attempt += 1

    def once(self, operation: str, **parameters) -> dict:
        try:
            return self.send(operation, parameters)
        except AWS_ERRORS as error:
            raise self.explained(error, operation) from None

    def send(self, operation: str, parameters: dict) -> dict:
        if self.fast and operation in OPERATIONS and (answer := self.fast.send(operation, parameters)) is not None:
            return answer
        return getattr(self.client, xform_name(operation))(**parameters)

    def hang_up(self) -> None:
        """To be called by a thread that makes no more calls."""
        if self.fast:
            self.fast.hang_up()

    def pause(self, attempt: int) -> None:
        """A pause that grows and that no two loaders make alike; short once the loader stops."""
        seconds = random.uniform(0, min(20, 0.2 * 2**attempt))
        if self.stopping.wait(seconds):
            time.sleep(min(seconds, 0.2))

    def explained(self, error: Exception, operation: str) -> errors.LoaderError:
        code = code_of(error)
        if code in NO_QUEUE:
            return errors.NoQueue(queue=self.name, region=self.region)
        if code in NO_CREDENTIALS or isinstance(error, CREDENTIAL_ERRORS):
            return errors.NoCredentials(reason=reason(error))
        if code in NOT_PERMITTED:
            return errors.NotPermitted(
                reason=f"sqs:{operation} on {self.name}", remedy="Allow it in the IAM policy of the loader"
            )
        return errors.NoSqs(operation=operation, reason=reason(error))


def passing(error: Exception) -> bool:
    """Whether the same call may well succeed in a moment."""
    if not isinstance(error, aws.ClientError):
        return isinstance(error, CONNECTION_ERRORS)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return code_of(error) in PASSING or status == 429 or status >= 500


def code_of(error: Exception) -> str:
    """The error's name, without the namespace that some answers put before it."""
    if isinstance(error, aws.ClientError):
        return error.response.get("Error", {}).get("Code", "unknown").rsplit(".")[-1]
    return type(error).__name__


def reason(error: Exception) -> str:
    """What to say of an error: AWS's code or botocore's sentence, never AWS's, which may quote what was sent."""
    return str(error).strip().rstrip(".") if isinstance(error, aws.BotoCoreError) else code_of(error)


def tens(messages: list[Message]) -> Iterator[list[Message]]:
    return (messages[i : i + BATCH] for i in range(0, len(messages), BATCH))

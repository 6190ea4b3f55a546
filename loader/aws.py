"""AWS: settings, credentials, and two clients for SQS that take the same answers and explain the same failures."""

import json
import os
import re
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from http.client import HTTPException, IncompleteRead
from typing import Any
from urllib.parse import urlsplit

import botocore.session
import pycurl
from botocore import exceptions as aws
from botocore import xform_name
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials
from botocore.httpsession import ProxyConfiguration, get_cert_path
from botocore.utils import get_environ_proxies

from loader import errors

USER_AGENT = "sqs-loader"
LONG_POLL = 2  # seconds; a longer one would delay the end by as much and save next to nothing
CONNECT_TIMEOUT = 5  # seconds
READ_TIMEOUT = LONG_POLL + 5  # seconds without a byte
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS  # as zlib.decompress has it: whichever the header says

NO_QUEUE = {"InvalidAddress", "NonExistentQueue", "QueueDeletedRecently", "QueueDoesNotExist"}
WRONG_CLOCK = {"RequestExpired", "RequestInTheFuture", "RequestTimeTooSkewed"}
BAD_IDENTITY = {"IDPCommunicationError", "IDPRejectedClaim", "InvalidIdentityToken"}
BAD_CREDENTIALS = {
    "AuthFailure", "ExpiredToken", "IncompleteSignature", "InvalidAccessKeyId", "InvalidClientTokenId",
    "InvalidSignature", "MissingAuthenticationToken", "SignatureDoesNotMatch",
    "TokenRefreshRequired", "Unauthorized", "UnrecognizedClient",
}  # fmt: skip
NOT_PERMITTED = {"AccessDenied", "UnauthorizedOperation"}
PASSING = {
    "IDPCommunicationError", "InternalError", "InternalFailure", "LimitExceeded", "OverLimit", "RequestLimitExceeded",
    "RequestThrottled", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttled", "Throttling",
    "TooManyRequests",
}  # fmt: skip

# What the key of an encrypted queue refuses, in SQS's words: `KmsDisabled`, once `KMS.DisabledException`.
KMS = re.compile(r"(?:AWS\.SimpleQueueService\.)?(?:KMS\.|Kms)(?:KMS)?(\w+?)(?:Exception)?")
ARN = re.compile(r"([^:]*:){5}[^:]+")
ACTION = re.compile(r"not authorized to perform: ([a-z0-9-]+:\w+)")
# What kind of policy does not allow it, or denies it.
POLICY = re.compile(
    r"(because no|explicit deny in an?) "
    r"((?:identity-based|resource-based|service control|resource control|session|VPC endpoint) policy"
    r"|permissions boundary)"
)
OUT_OF_TIME = re.compile(r"[Ss]ignature (expired|not yet current)")
SERVICES = {
    "GetRoleCredentials": "sso",
    "CreateToken": "sso-oidc",
}  # that give credentials; all others are calls of STS

# What befalls a connection, by name, as the log has it, and as a sentence has it.
NETWORK = {
    "CannotConnect": "Could not connect to {endpoint}",
    "CannotConnectToProxy": "Could not connect to the proxy for {endpoint}",
    "RefusedByProxy": "The proxy for {endpoint} answers CONNECT with HTTP status {status}",
    "UnknownHost": "Could not connect to {endpoint}, since there is no such name",
    "TimedOut": "{endpoint} took too long",
    "NotTrusted": "{endpoint}: certificate verify failed",
    "NoTLS": "{endpoint} did not agree on TLS",
    "NotHTTP": "{endpoint} does not speak HTTP/1.1",
    "ConnectionCut": "{endpoint} cut the connection",
}
OF_CURL = {
    pycurl.E_COULDNT_CONNECT: "CannotConnect",
    pycurl.E_COULDNT_RESOLVE_HOST: "UnknownHost",
    pycurl.E_COULDNT_RESOLVE_PROXY: "CannotConnectToProxy",
    97: "CannotConnectToProxy",  # CURLE_PROXY
    pycurl.E_OPERATION_TIMEDOUT: "TimedOut",
    pycurl.E_PEER_FAILED_VERIFICATION: "NotTrusted",
    pycurl.E_SSL_CACERT_BADFILE: "NotTrusted",
    pycurl.E_SSL_CONNECT_ERROR: "NoTLS",
    pycurl.E_UNSUPPORTED_PROTOCOL: "NotHTTP",
    pycurl.E_FTP_WEIRD_SERVER_REPLY: "NotHTTP",  # of any server
    100: "NotHTTP",  # CURLE_TOO_LARGE, of headers
    pycurl.E_SEND_ERROR: "ConnectionCut",
    pycurl.E_RECV_ERROR: "ConnectionCut",
    pycurl.E_GOT_NOTHING: "ConnectionCut",
    pycurl.E_PARTIAL_FILE: "ConnectionCut",
}
OF_BOTOCORE = {
    aws.EndpointConnectionError: "CannotConnect",
    aws.ProxyConnectionError: "CannotConnectToProxy",
    aws.ConnectTimeoutError: "TimedOut",
    aws.ReadTimeoutError: "TimedOut",
    aws.SSLError: "NotTrusted",
    aws.ConnectionClosedError: "ConnectionCut",  # or NotHTTP, by its cause
}
# The last two are those that libcurl would add.
HEADERS = ("Content-Type: application/x-amz-json-1.0", "Accept:", "Expect:")
IDENTITY = "Check AWS_WEB_IDENTITY_TOKEN_FILE, the identity provider and the trust policy of AWS_ROLE_ARN"
SIGN_UP = "Sign the account up for the service, and enable the region for it"
EXPORT = 'Run `eval "$(aws configure export-credentials --format env)"` before'
SIGN_IN = "Run `aws sso login` for this profile"
# Those of botocore's sentences that hold nothing but names of settings.
SAFE = (aws.NoCredentialsError, aws.PartialCredentialsError, aws.ProfileNotFound)


class Fault(Exception):
    """A call that failed: what to tell the operator, the name for the log, and whether it may pass by itself.

    It holds no text of AWS's or of an HTTP library's: those quote what was sent, credentials included.
    """

    def __init__(self, error: errors.LoaderError, code: str, passing: bool = False):
        super().__init__(code)
        self.error, self.code, self.passing = error, code, passing


class Client:
    """Makes calls to SQS with the session's credentials, region, endpoint, proxy and certificates."""

    def __init__(self, session: botocore.session.Session, client: Any):
        self.credentials = session.get_credentials()
        self.sound: ReadOnlyCredentials | None = None  # those that were last looked at
        self.client = client
        self.region: str = client.meta.region_name
        self.endpoint: str = client.meta.endpoint_url
        self.host = urlsplit(self.endpoint)._replace(path="").geturl().rpartition("@")[2]
        self.proxy = proxy_for(self.endpoint)

    at_once = 1  # calls that a thread can have under way

    def call(self, operation: str, **parameters: object) -> dict:
        """One call, its answer checked. Raises Fault."""
        [(_, answer)] = self.calls(operation, [parameters])
        if isinstance(answer, Fault):
            raise answer from None
        return answer

    def calls(self, operation: str, requests: Iterable[dict], at_once: int = 1) -> Iterator[tuple[dict, dict | Fault]]:
        """Makes a call for each, and tells what came of it, in the order in which they end.

        A request is taken when there is room for it, so that whoever gives them can stop on seeing an answer.
        """
        for request in requests:
            try:
                yield request, self.send(operation, request, self.current_credentials())
            except Fault as fault:
                yield request, fault

    def send(self, operation: str, parameters: dict, credentials: ReadOnlyCredentials) -> dict:
        raise NotImplementedError

    def hang_up(self) -> None:
        """To be called by a thread that makes no more calls."""

    def current_credentials(self) -> ReadOnlyCredentials:
        if self.credentials is None:
            raise without_credentials(aws.NoCredentialsError())
        try:
            frozen = self.credentials.get_frozen_credentials()  # fetches or refreshes them, where it is time
        except Exception as error:  # files, processes, HTTP, JSON: providers raise whatever they meet
            raise without_credentials(error) from None
        if frozen != self.sound:
            if not all(is_key(each) for each in (frozen.access_key, frozen.secret_key, frozen.token or "none")):
                reason = "a key or the session token is empty, or has a line break or another character that none has"
                raise Fault(errors.NoCredentials(reason=reason), "BadCredentials")
            self.sound = frozen
        return frozen

    def answer(self, operation: str, parameters: dict, status: int, body: bytes) -> dict:
        """What SQS answered. Whoever else answers, a proxy's page for one, is a fault and no empty queue.

        Neither client asks for compression; a proxy may compress all the same.
        """
        if body[:1] in (b"\x1f", b"\x78"):  # gzip, zlib: no JSON begins so
            with suppress(zlib.error):
                body = zlib.decompress(body, GZIP_OR_ZLIB)
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if status == 200:
            with suppress(KeyError, TypeError, AttributeError, ValueError):
                if isinstance(answer, dict) and SHAPES[operation](answer):
                    return answer
        elif isinstance(answer, dict) and isinstance(code := answer.get("__type"), str):
            message = str(answer.get("message") or answer.get("Message"))
            subject = str(parameters.get("QueueUrl") or parameters.get("QueueName") or "").rpartition("/")[2]
            raise refused("sqs", operation, code, message, status, subject, self.region)
        elif status == 429 or status >= 500:
            raise Fault(errors.NoSqs(operation=operation, reason=f"HTTP status {status}"), str(status), True)
        reason = f"what answers with HTTP status {status} at {self.host} is not SQS"
        raise Fault(errors.NoSqs(operation=operation, reason=reason), "NotFromSQS", True)

    def network(self, operation: str, name: str, status: int = 0) -> Fault:
        reason = NETWORK.get(name, name).format(endpoint=self.host, status=status)
        return Fault(errors.NoSqs(operation=operation, reason=reason), name, True)


class Lean(Client):
    """libcurl signs, connects and waits, outside the GIL and at a fraction of boto3's CPU.

    A thread can have several calls under way, which costs less than as many threads.
    """

    at_once = 8

    def __init__(self, session: botocore.session.Session, client: Any):
        super().__init__(session, client)
        trusted = get_cert_path(session.get_config_variable("ca_bundle") or True)
        self.options = {
            pycurl.URL: self.endpoint if urlsplit(self.endpoint).path else self.endpoint + "/",
            pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,  # FTP would send the key as a password
            pycurl.AWS_SIGV4: f"aws:amz:{self.region}:{client.meta.service_model.signing_name}",
            pycurl.POST: 1,
            pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
            pycurl.USERAGENT: USER_AGENT,
            pycurl.NOSIGNAL: 1,
            pycurl.CONNECTTIMEOUT: CONNECT_TIMEOUT,
            pycurl.LOW_SPEED_LIMIT: 1,
            pycurl.LOW_SPEED_TIME: client.meta.config.read_timeout,
            pycurl.CAINFO: trusted,
            pycurl.PROXY_CAINFO: trusted,
            pycurl.NOPROXY: "",  # as boto3 finds its proxy, not as libcurl would
            pycurl.PROXY: "",
        }
        if self.proxy:
            to = urlsplit(self.proxy)
            port = to.port or (443 if to.scheme == "https" else 80)
            self.options |= {pycurl.PROXY: self.proxy, pycurl.PROXYPORT: port}
        self.mine = threading.local()

    def calls(self, operation: str, requests: Iterable[dict], at_once: int = 1) -> Iterator[tuple[dict, dict | Fault]]:
        multi, idle = self.lines()
        requests = iter(requests)
        busy: dict[pycurl.Curl, tuple[Line, dict]] = {}
        try:
            while True:
                while len(busy) < at_once and (request := next(requests, None)) is not None:
                    try:
                        credentials = self.current_credentials()
                    except Fault as fault:
                        yield request, fault
                        continue
                    line = idle.pop() if idle else Line(self.options)
                    line.ask(operation, request, credentials)
                    busy[line.curl] = line, request
                    multi.add_handle(line.curl)
                if not busy:
                    return
                multi.perform()
                _, done, failed = multi.info_read(at_once)
                for curl in done:
                    line, request = busy.pop(curl)
                    multi.remove_handle(curl)
                    status, body = line.answer()
                    idle.append(line)
                    try:
                        answer: dict | Fault = self.answer(operation, request, status, body)
                    except Fault as fault:
                        answer = fault
                    yield request, answer
                for curl, number, _ in failed:
                    _, request = busy.pop(curl)
                    multi.remove_handle(curl)
                    status = curl.getinfo(pycurl.HTTP_CONNECTCODE)
                    curl.close()
                    name = "RefusedByProxy" if status >= 300 else OF_CURL.get(number, f"libcurl's error {number}")
                    yield request, self.network(operation, name, status)
                if not done and not failed and multi.select(1) <= 0:
                    time.sleep(0.002)  # there may be no socket to wait for yet, while a name is being looked up
        finally:
            for curl in busy:
                multi.remove_handle(curl)
                curl.close()

    def lines(self) -> tuple[pycurl.CurlMulti, list["Line"]]:
        """This thread's connections, and those of its handles that are not in use."""
        if not hasattr(self.mine, "lines"):
            self.mine.lines = pycurl.CurlMulti(), []
        return self.mine.lines

    def hang_up(self) -> None:
        if lines := self.mine.__dict__.pop("lines", None):
            multi, idle = lines
            for line in idle:
                line.curl.close()
            multi.close()


class Line:
    """A handle for calls one after the other, and what was last said by it in headers."""

    def __init__(self, options: dict[int, object]):
        self.curl = pycurl.Curl()
        self.said: tuple | None = None
        self.parts: list[bytes] = []
        for option, value in options.items():
            self.curl.setopt(option, os.fsencode(value) if isinstance(value, str) else value)  # it takes ASCII only
        self.curl.setopt(pycurl.WRITEFUNCTION, self.parts.append)

    def ask(self, operation: str, request: dict, credentials: ReadOnlyCredentials) -> None:
        if self.said != (operation, credentials):
            self.said = operation, credentials
            headers = [f"X-Amz-Target: AmazonSQS.{operation}", *HEADERS]
            if credentials.token:
                headers.append(f"X-Amz-Security-Token: {credentials.token}")
            self.curl.setopt(pycurl.HTTPHEADER, headers)
            self.curl.setopt(pycurl.USERNAME, credentials.access_key)
            self.curl.setopt(pycurl.PASSWORD, credentials.secret_key)
        self.curl.setopt(pycurl.POSTFIELDS, json.dumps(request))

    def answer(self) -> tuple[int, bytes]:
        """Status and body."""
        body = b"".join(self.parts)
        self.parts.clear()
        return self.curl.getinfo(pycurl.RESPONSE_CODE), body


class Boto3(Client):
    """The AWS SDK, for what is rarely asked for, and for who prefers it."""

    def __init__(self, session: botocore.session.Session, client: Any):
        super().__init__(session, client)
        self.asked = threading.local()
        client.meta.events.register("before-parse.sqs", self.check)

    def send(self, operation: str, parameters: dict, credentials: ReadOnlyCredentials) -> dict:
        self.asked.parameters = parameters
        try:
            getattr(self.client, xform_name(operation))(**parameters)
            return self.asked.answer
        except (aws.HTTPClientError, aws.ConnectionError) as error:
            raise self.network(operation, name_of(error)) from None
        except (aws.BotoCoreError, aws.ClientError, OSError, RuntimeError, ValueError) as error:
            # Not of the call, whose other failures `check` has seen: botocore asks for credentials again, to sign it.
            raise without_credentials(error) from None

    def check(self, operation_model: Any, response_dict: dict, **_: object) -> None:
        """In place of botocore's parser, which takes anything for an answer, and leaves out what it does not know."""
        status, body = response_dict["status_code"], response_dict["body"]
        self.asked.answer = self.answer(operation_model.name, self.asked.parameters, status, body)
        response_dict["body"] = b"{}"


def connect(connections: int, lean: bool = True, queue_url: str | None = None) -> Client:
    """A client by AWS_* and ~/.aws, in the region of the queue's URL where that names one.

    An empty variable is none, which botocore takes for a profile, a file or a region without a name.
    """
    for name in [name for name, value in os.environ.items() if name.startswith("AWS_") and not value]:
        del os.environ[name]
    config = Config(
        user_agent=USER_AGENT,  # a fixed one, because botocore makes its own anew for every call
        parameter_validation=False,
        max_pool_connections=connections,
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"total_max_attempts": 1},  # the queue makes calls again
    )
    session = botocore.session.get_session()
    bundle = None
    try:
        session.get_credentials()
        if bundle := session.get_config_variable("ca_bundle"):
            ssl.create_default_context(cafile=bundle)
    except Exception as error:  # as in current_credentials
        if bundle and isinstance(error, OSError):
            reason = "there is no certificate in it" if isinstance(error, ssl.SSLError) else error.strerror
            raise errors.BadSetting(problem=f"AWS_CA_BUNDLE cannot be read: {reason}.") from None
        raise without_credentials(error).error from None
    try:
        client = session.create_client("sqs", region_name=region_of(queue_url), config=config)
    except aws.NoRegionError:
        raise errors.BadSetting(problem="There is no AWS region: set AWS_DEFAULT_REGION.") from None
    except (aws.BotoCoreError, ValueError) as error:
        remedy = "Check AWS_DEFAULT_REGION and AWS_ENDPOINT_URL (http://host:port)."
        reason = re.sub(r"//.*@", "//", str(error)).rstrip(".")  # without the password that a URL may have in it
        raise errors.BadSetting(problem=f"The AWS settings make no sense: {reason}. {remedy}") from None
    if not has_a_port(client.meta.endpoint_url):
        raise errors.BadSetting(problem="AWS_ENDPOINT_URL is no URL (http://host:port): its port is no number of one.")
    return (Lean if lean else Boto3)(session, client)


def name_of(error: Exception) -> str:
    """What befell the connection, as botocore has it."""
    if isinstance(error, aws.SSLError) and "CERTIFICATE_VERIFY_FAILED" not in str(error):
        return "NoTLS"
    if isinstance(error, aws.ConnectionClosedError):
        cause = error.kwargs["error"].args[-1]  # what http.client raised, where it did
        cut = not isinstance(cause, HTTPException) or isinstance(cause, (ConnectionError, IncompleteRead))
        return "ConnectionCut" if cut else "NotHTTP"
    return OF_BOTOCORE.get(type(error), "HTTPError")


def proxy_for(endpoint: str) -> str | None:
    """The URL of the proxy that leads there, of those in http_proxy, https_proxy and no_proxy."""
    proxy = ProxyConfiguration(get_environ_proxies(endpoint)).proxy_url_for(endpoint)
    if proxy and not has_a_port(proxy):
        raise errors.BadSetting(
            problem="http_proxy or https_proxy is no URL (http://user:password@host:port). In user and password,"
            " percent-encode all but letters and digits."
        )
    return proxy


def has_a_port(url: str) -> bool:
    """Or none, and so that of its protocol. The error says no more: it has a piece of the URL, maybe of a password."""
    try:
        _ = urlsplit(url).port
    except ValueError:
        return False
    return True


def region_of(queue_url: str | None) -> str | None:
    """The region that a queue's URL names, as those of AWS do; signatures for another one would not be accepted."""
    host = urlsplit((queue_url or "").strip()).hostname or ""
    if host == "queue.amazonaws.com":
        return "us-east-1"
    region = r"([a-z]{2,4}(?:-[a-z]+)+-\d)"
    named = re.search(rf"(?:^|\.)(?:sqs|sqs-fips)\.{region}\.|^{region}\.queue\.", host)
    return (named[1] or named[2]) if named else None


def refused(service: str, operation: str, code: str, message: str, status: int, subject: str, region: str) -> Fault:
    """An error that AWS answers with. Its message is only looked at: it quotes what was sent."""
    code = code.rpartition("#")[2].partition(":")[0]
    if not re.fullmatch(r"[\w.-]{1,100}", code):
        code = "unknown"
    name = code.rpartition(".")[2].removesuffix("Exception")
    action = f"{service}:{operation.removesuffix('Batch')}"  # IAM has no actions for batches
    if kms := KMS.fullmatch(code):
        service, name, action = "kms", kms[1], "kms:Decrypt"
    if named := ACTION.search(message):
        action = named[1]
        service = action.partition(":")[0]
    error: errors.LoaderError
    if name == "OptInRequired":
        on = f" {'for' if service == 'kms' else 'on'} {subject}" if subject else ""
        error = errors.NotPermitted(reason=f"{action}{on}", remedy=SIGN_UP)
    elif service == "kms" and name in NOT_PERMITTED:
        where = "the IAM policy of the loader and in the policy of the queue's KMS key"
        error = errors.NotPermitted(reason=f"{action} for {subject}", remedy=f"Allow it in {where}")
    elif service == "kms" and name not in PASSING:
        error = errors.KeyUnusable(queue=subject, reason=code)
    elif name in NO_QUEUE or (operation == "GetQueueUrl" and name == "InvalidParameterValue"):
        error = errors.NoQueue(queue=subject, region=region)
    elif name in WRONG_CLOCK or OUT_OF_TIME.search(message):
        error = errors.WrongClock(operation=f"{service}:{operation}", reason=code)
    elif name in BAD_IDENTITY or (operation == "AssumeRoleWithWebIdentity" and name == "ExpiredToken"):
        error = errors.NoCredentials(reason=f"{action} refused the identity token, {code}", remedy=IDENTITY)
    elif name in BAD_CREDENTIALS:
        error = errors.NoCredentials(reason=code if service == "sqs" else f"{action} answers {code}")
    elif name in NOT_PERMITTED:
        on = f" on {subject}" if subject else ""
        error = errors.NotPermitted(reason=f"{action}{on}", remedy=remedy_in_policies(service, message))
    elif service in ("sqs", "kms"):
        error = errors.NoSqs(operation=operation, reason=code)
    else:
        error = errors.NoCredentials(reason=f"{action} answers {code}")
    return Fault(error, code, name in PASSING or status == 429 or status >= 500)


def remedy_in_policies(service: str, message: str) -> str:
    """Which policy to change: the one that AWS's message names, or else the loader's own."""
    whose = "the role's trust policy and " if service == "sts" else ""
    where, denied = f"{whose}the IAM policy of the loader", False
    if named := POLICY.search(message):
        denied = named[1].startswith("explicit")
        if named[2] != "identity-based policy":
            where = f"the {named[2]}"
    return f"Remove what denies it from {where}" if denied else f"Allow it in {where}"


def without_credentials(error: Exception) -> Fault:
    """Whatever a provider of credentials raised. Only what the operating system says of a file is passed on."""
    if isinstance(error, aws.ClientError):
        told = error.response.get("Error", {})
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        operation = error.operation_name
        service = SERVICES.get(operation, "sts")
        return refused(service, operation, str(told.get("Code")), str(told.get("Message")), status, "", "")
    if name := OF_BOTOCORE.get(type(error)):
        return Fault(errors.NoCredentials(reason=f"what gives them does not answer, {name}"), name, True)
    if isinstance(error, OSError):
        reason = f"{error.filename or 'their source'}: {error.strerror or 'cannot be read'}"
    elif isinstance(error, (aws.SSOError, aws.TokenRetrievalError)):
        reason = "the SSO session has expired, or there is none"
        return Fault(errors.NoCredentials(reason=reason, remedy=SIGN_IN), type(error).__name__)
    elif isinstance(error, (EOFError, aws.LoginError, aws.MissingDependencyException)):  # a prompt, or `aws login`
        reason = "with this profile, a person has to sign in"
        return Fault(errors.NoCredentials(reason=reason, remedy=EXPORT), type(error).__name__)
    elif isinstance(error, SAFE):
        reason = str(error).strip().rstrip(".")
    elif isinstance(error, aws.CredentialRetrievalError):  # an agent or a program, that may be back in a moment
        reason = f"{error.kwargs['provider']} gave none"
        return Fault(errors.NoCredentials(reason=reason), type(error).__name__, True)
    elif type(error) is RuntimeError:  # botocore's, of what it was just given
        reason = "those that were given have expired"
        return Fault(errors.NoCredentials(reason=reason), "ExpiredCredentials", True)
    else:
        reason = f"{type(error).__name__} while they were loaded"
    return Fault(errors.NoCredentials(reason=reason), type(error).__name__)


def is_key(value: object) -> bool:
    """Whether this may be (a part of) credentials. Programs and agents give them in JSON, so it may be anything."""
    return isinstance(value, str) and value != "" and value.isascii() and value.isprintable()


def is_batch(answer: dict) -> bool:
    lists = [each for name in ("Successful", "Failed") if (each := answer.get(name)) is not None]
    return bool(lists) and all(type(each) is list and all(is_id(entry["Id"]) for entry in each) for each in lists)


def is_id(text: str) -> bool:
    """Of a batch's entry: they are numbers here."""
    return text.isdecimal() and is_number(text)


def is_number(value: object) -> bool:
    return bool(re.fullmatch(r"-?[0-9]{1,10}", str(value)))  # in seconds, 317 years: more is beyond what Python waits


def is_attributes(answer: dict) -> bool:
    """Whatever is used of them; an emulator may leave some out."""
    attributes = {name: value for name, value in answer["Attributes"].items() if value is not None}
    numbers = ("VisibilityTimeout", "MessageRetentionPeriod", "Approximate")
    policy = redrive_policy(attributes)
    if policy and not (ARN.fullmatch(policy["deadLetterTargetArn"]) and is_number(policy.get("maxReceiveCount", 0))):
        return False
    return all(is_number(value) for name, value in attributes.items() if name.startswith(numbers))


def redrive_policy(attributes: dict) -> dict:
    """That of a queue's attributes; empty where there is none."""
    policy = attributes.get("RedrivePolicy") or {}
    return policy if isinstance(policy, dict) else json.loads(policy) or {}


def is_received(answer: dict) -> bool:
    """SQS leaves `Messages` out when there are none; it has sent null as well."""
    if "Messages" not in answer:
        return not answer
    messages = answer["Messages"]
    for each in messages or ():
        own = each.get("MessageAttributes") or {}
        if not type(each["Body"]) is type(each["MessageId"]) is type(each["ReceiptHandle"]) is str:
            return False
        if not all(isinstance(part, dict) for part in (each.get("Attributes") or {}, own, *own.values())):
            return False
    return messages is None or type(messages) is list


# Whether an answer looks like SQS's.
SHAPES: dict[str, Callable[[dict], bool]] = {
    "ReceiveMessage": is_received,
    "DeleteMessageBatch": is_batch,
    "ChangeMessageVisibilityBatch": is_batch,
    "GetQueueUrl": lambda answer: bool(answer["QueueUrl"].strip()),
    "GetQueueAttributes": is_attributes,
}

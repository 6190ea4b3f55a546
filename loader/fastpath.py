"""ReceiveMessage and DeleteMessageBatch at a third of boto3's CPU: its credentials and signer, Python's own HTTP.

Anything but a plain 200 is None, and the caller makes the call again through boto3, which knows errors and retries.
"""

import json
import ssl
import threading
import time
from functools import lru_cache
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import BotoCoreError
from botocore.httpsession import ProxyConfiguration, get_cert_path
from botocore.utils import get_environ_proxies

OPERATIONS = {"ReceiveMessage", "DeleteMessageBatch"}


class FastPath:
    """The same endpoint, region, credentials, certificates and proxies as the client's; a kept connection a thread."""

    def __init__(self, session, client):
        self.credentials = session.get_credentials()
        self.region = client.meta.region_name
        self.url = client.meta.endpoint_url
        self.timeout = client.meta.config.read_timeout
        self.tls = ssl.create_default_context(cafile=get_cert_path(session.get_config_variable("ca_bundle") or True))
        proxies = ProxyConfiguration(get_environ_proxies(self.url))
        self.proxy = proxies.proxy_url_for(self.url)
        self.proxy_headers = proxies.proxy_headers_for(self.proxy) if self.proxy else {}
        self.threads = threading.local()

    def connect(self) -> tuple[HTTPConnection, str, dict[str, str]]:
        """A connection, how to name the endpoint on it, and what a proxy wants to be told besides."""
        url, to = urlsplit(self.url), urlsplit(self.proxy or self.url)
        path = url.path or "/"
        if url.scheme == "http":
            connection = HTTPConnection(to.hostname, to.port, timeout=self.timeout)
            return connection, self.url if self.proxy else path, self.proxy_headers
        port = to.port or (80 if self.proxy else 443)
        connection = HTTPSConnection(to.hostname, port, timeout=self.timeout, context=self.tls)
        if self.proxy:
            connection.set_tunnel(url.hostname, url.port, self.proxy_headers)
        return connection, path, {}

    def send(self, operation: str, parameters: dict) -> dict | None:
        if self.proxy and self.proxy.startswith("https:"):
            return None  # to speak TLS with the proxy, and inside it with SQS, is more than http.client can
        body = json.dumps(parameters).encode()
        self.threads.line = connection, target, extra = getattr(self.threads, "line", None) or self.connect()
        try:
            credentials = self.credentials.get_frozen_credentials()
            headers = signed(self.url, self.region, credentials, operation, body, time.time() // 60)
            connection.request("POST", target, body, headers | extra)
            response = connection.getresponse()
            content = response.read()  # to the end, or the connection could not be used again
            answer = json.loads(content) if response.status == 200 else None
            return answer if isinstance(answer, dict) else None
        except (BotoCoreError, HTTPException, OSError, ValueError):
            return self.hang_up()

    def hang_up(self) -> None:
        """Closes this thread's connection; its next request opens it again."""
        if line := getattr(self.threads, "line", None):
            line[0].close()


@lru_cache(maxsize=16)  # to receive is the same request again and again; AWS takes a signature for five minutes
def signed(url: str, region: str, credentials: ReadOnlyCredentials, operation: str, body: bytes, minute: float) -> dict:
    headers = {
        "Content-Type": "application/x-amz-json-1.0",
        "User-Agent": "sqs-loader",
        "X-Amz-Target": f"AmazonSQS.{operation}",
    }
    request = AWSRequest("POST", url, headers=headers, data=body)
    SigV4Auth(credentials, "sqs", region).add_auth(request)
    return dict(request.headers.items())

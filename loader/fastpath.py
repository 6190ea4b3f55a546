"""ReceiveMessage and DeleteMessageBatch at a third of boto3's CPU: botocore's credentials and signer, urllib3's pool.

Anything but a plain 200 is None here, and the caller makes the call again through the boto3 client, which knows about
errors, retries and credentials that have to be renewed.
"""

import json
import time
from functools import lru_cache
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import BotoCoreError
from botocore.httpsession import ProxyConfiguration, create_urllib3_context, get_cert_path
from botocore.utils import get_environ_proxies
from urllib3 import PoolManager, ProxyManager, Timeout
from urllib3.exceptions import HTTPError

OPERATIONS = {"ReceiveMessage", "DeleteMessageBatch"}


class FastPath:
    """The same endpoint, region, credentials, certificates and proxies as the client's."""

    def __init__(self, session, client, connections: int):
        config = client.meta.config
        self.credentials = session.get_credentials()
        self.region = client.meta.region_name
        self.url = client.meta.endpoint_url
        settings = {
            "maxsize": connections,
            "timeout": Timeout(connect=config.connect_timeout, read=config.read_timeout),
            "ssl_context": create_urllib3_context(),
            "cert_reqs": "CERT_REQUIRED",
            "ca_certs": get_cert_path(session.get_config_variable("ca_bundle") or True),
        }
        proxies = ProxyConfiguration(get_environ_proxies(self.url))
        self.target = urlsplit(self.url).path or "/"
        if proxy := proxies.proxy_url_for(self.url):
            pools = ProxyManager(proxy, proxy_headers=proxies.proxy_headers_for(proxy), **settings)
            if self.url.startswith("http:"):
                self.target = self.url  # a proxy is told the whole of it
        else:
            pools = PoolManager(**settings)
        self.pool = pools.connection_from_url(self.url)

    def send(self, operation: str, parameters: dict) -> dict | None:
        body = json.dumps(parameters).encode()
        try:
            credentials = self.credentials.get_frozen_credentials()
            headers = signed(self.url, self.region, credentials, operation, body, time.time() // 60)
            answer = self.pool.urlopen(
                "POST", self.target, body, headers, retries=False, redirect=False, assert_same_host=False
            )
            content = json.loads(answer.data) if answer.status == 200 else None
        except (HTTPError, BotoCoreError, OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None


@lru_cache(maxsize=16)  # to receive is the same request again and again; AWS takes a signature for five minutes
def signed(
    url: str, region: str, credentials: ReadOnlyCredentials, operation: str, body: bytes, minute: float
) -> dict[str, str]:
    headers = {
        "Content-Type": "application/x-amz-json-1.0",
        "User-Agent": "sqs-loader",
        "X-Amz-Target": f"AmazonSQS.{operation}",
    }
    request = AWSRequest("POST", url, headers=headers, data=body)
    SigV4Auth(credentials, "sqs", region).add_auth(request)
    return dict(request.headers.items())

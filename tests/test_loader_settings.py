"""What the loader makes of the settings of AWS and of proxies: odd ones, empty ones, and secrets in them."""

import json
import os
import shutil
import socketserver
import subprocess
import sys

import pytest
from botocore.httpsession import get_cert_path
from click.testing import CliRunner

from loader.aws import connect, region_of
from loader.cli import main
from loader.errors import LoaderError
from loader.sqs import Queue
from tests import faults

both_clients = pytest.mark.parametrize("lean", [True, False], ids=["lean", "boto3"])


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    """Nothing but a key, a region and an endpoint where nobody is; sets others."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def change(**changed: str) -> None:
        for name, value in changed.items():
            monkeypatch.setenv(name, value)

    change(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret-key")
    change(AWS_DEFAULT_REGION="us-east-1", AWS_ENDPOINT_URL="http://127.0.0.1:1")
    return change


def failure(lean: bool) -> LoaderError:
    with pytest.raises(LoaderError) as caught:
        Queue(connect(1, lean), "q")
    assert "\n" not in caught.value.message
    return caught.value


# Proxies, whose URLs have passwords in them.

NO_PROXY_URL = {
    "port-that-is-no-number": "http://proxy:port",
    "slash-in-the-password": "http://user:sec/ret@127.0.0.1:1",
    "hash-in-the-password": "http://user:sec#ret@127.0.0.1:1",
    "question-mark-in-the-password": "http://user:sec?ret@127.0.0.1:1",
    "bracket-in-the-password": "http://user:sec[ret@127.0.0.1:1",
    "port-out-of-range": "http://127.0.0.1:65536",
}


@both_clients
@pytest.mark.parametrize("name", NO_PROXY_URL)
def test_a_proxy_that_is_no_url_is_said_without_its_password(settings, name: str, lean: bool):
    settings(http_proxy=NO_PROXY_URL[name])

    error = failure(lean)

    assert error.exit_status == 2
    assert "http_proxy" in error.message
    assert "sec" not in error.message


@pytest.mark.parametrize("sign", ["é", "%C3%A9"])
def test_a_proxys_password_may_have_letters_of_any_language(settings, sign: str):
    told = []

    def note(call: faults.Call) -> None:
        told.append(call.headers["Proxy-Authorization"])
        call.answer(200, b'{"QueueUrl": "http://q/q", "Attributes": {}}')

    with faults.sqs_proxy("http://127.0.0.1:1", note) as proxy:
        settings(http_proxy=proxy.url.replace("//", f"//user:passw{sign}rd@"), AWS_ENDPOINT_URL="http://sqs.test")
        Queue(connect(1), "q")

    assert told[0] == "Basic dXNlcjpwYXNzd8OpcmQ="


@both_clients
@pytest.mark.parametrize("status", [403, 407, 502])
def test_a_proxy_that_refuses_is_named(settings, lean: bool, status: int):
    """It has not cut the connection: it wants a password, or does not let anybody through to there."""
    with faults.sqs_proxy("http://127.0.0.1:1") as proxy:
        proxy.refuses = status
        settings(https_proxy=proxy.url, AWS_ENDPOINT_URL="https://sqs.test")
        error = failure(lean)

    assert error.exit_status == 8
    assert "proxy for https://sqs.test" in error.message
    assert f"HTTP status {status}" in error.message or not lean


@both_clients
def test_a_key_is_told_to_nobody_by_another_protocol(settings, lean: bool):
    """Which libcurl speaks as well, with the secret key for a password."""
    told = []

    class Ftp(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 welcome\r\n")
            while line := self.rfile.readline():
                told.append(line)
                self.wfile.write(b"331 go on\r\n")

    with faults.serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Ftp)) as server:
        settings(AWS_ENDPOINT_URL=f"ftp://127.0.0.1:{server.server_address[1]}")
        failure(lean)

    assert told == []


# Endpoints, regions, files, profiles.


@both_clients
def test_a_password_in_an_endpoint_is_not_printed(settings, lean: bool):
    settings(AWS_ENDPOINT_URL="http://user:se cret@nowhere_")

    error = failure(lean)

    assert error.exit_status == 2
    assert "cret" not in error.message
    assert "nowhere_" in error.message


NO_PORT = ["http://127.0.0.1:99999", "http://127.0.0.1:port", "http://user:sec/ret@127.0.0.1", " http://127.0.0.1:1 "]


@both_clients
@pytest.mark.parametrize("url", NO_PORT)
def test_an_endpoint_without_a_port_that_can_be_is_a_setting_to_change(settings, lean: bool, url: str):
    settings(AWS_ENDPOINT_URL=url)

    error = failure(lean)

    assert error.exit_status == 2
    assert "AWS_ENDPOINT_URL" in error.message
    assert "sec" not in error.message


@both_clients
@pytest.mark.parametrize("text", [b"", b"nonsense", b"\xff\x00"], ids=["empty", "text", "bytes"])
def test_a_file_without_certificates_is_no_fault_of_the_server(settings, lean: bool, tmp_path, text: bytes):
    (tmp_path / "ca.pem").write_bytes(text)
    settings(AWS_CA_BUNDLE=str(tmp_path / "ca.pem"), AWS_ENDPOINT_URL="https://127.0.0.1:1")

    error = failure(lean)

    assert (error.exit_status, error.message) == (2, "AWS_CA_BUNDLE cannot be read: there is no certificate in it.")


@both_clients
def test_certificates_may_be_in_a_folder_with_any_name(settings, lean: bool, tmp_path):
    shutil.copy(get_cert_path(True), tmp_path / "zertifikäte")
    settings(AWS_CA_BUNDLE=str(tmp_path / "zertifikäte"), AWS_ENDPOINT_URL="https://127.0.0.1:1")

    assert "Could not connect to https://127.0.0.1:1" in failure(lean).message


@both_clients
@pytest.mark.parametrize(
    "name",
    ["AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CA_BUNDLE", "AWS_RETRY_MODE", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE"],
)
def test_an_empty_variable_is_none(settings, name: str, lean: bool):
    """As compose files and CI set them."""
    settings(**{name: ""})

    assert "Could not connect to http://127.0.0.1:1" in failure(lean).message


@both_clients
def test_who_does_not_speak_tls_is_not_said_to_have_a_bad_certificate(settings, lean: bool):
    with faults.sqs_proxy("127.0.0.1:1") as plain:
        settings(AWS_ENDPOINT_URL=plain.url.replace("http", "https"))
        assert "did not agree on TLS" in failure(lean).message


@both_clients
def test_a_name_that_no_queue_can_have_is_no_fault_of_the_network(settings, lean: bool):
    with faults.sqs_proxy("127.0.0.1:1", faults.error("InvalidParameterValue")) as sqs:
        settings(AWS_ENDPOINT_URL=sqs.url)
        assert failure(lean).message.startswith("There is no queue q in us-east-1. Check --queue-name")


@pytest.mark.parametrize("timeout", ["30", "0", "-1"])
def test_numbers_may_be_below_zero(settings, timeout: str):
    """An emulator's, for a moment."""
    attributes = {"ApproximateNumberOfMessages": "-1", "VisibilityTimeout": timeout}
    answer = json.dumps({"QueueUrl": "http://q/q", "Attributes": attributes}).encode()
    with faults.sqs_proxy("127.0.0.1:1", lambda call: call.answer(200, answer)) as sqs:
        settings(AWS_ENDPOINT_URL=sqs.url)
        assert Queue(connect(1), "q").visibility == 30


@pytest.mark.parametrize("option", ["--max-seconds", "--give-up-after"])
def test_not_a_number_is_no_number_of_seconds(option: str):
    result = CliRunner().invoke(main, ["load", option, "nan"])

    assert result.exit_code == 2
    assert "nan is not a number of seconds" in result.output


def test_an_empty_region_is_none(settings):
    settings(AWS_DEFAULT_REGION="")

    assert failure(True).message == "There is no AWS region: set AWS_DEFAULT_REGION."


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.eusc-de-east-1.amazonaws.eu/1/q", "eusc-de-east-1"),
        ("https://sqs.us-isob-east-1.sc2s.sgov.gov/1/q", "us-isob-east-1"),
        ("https://sqs.cn-north-1.api.amazonwebservices.com.cn/1/q", "cn-north-1"),
        ("https://sqs-fips.us-east-1.api.aws/1/q", "us-east-1"),
        ("https://vpce-1-us-east-1a.sqs.us-east-1.vpce.amazonaws.com/1/q", "us-east-1"),
        ("https://cn-north-1.queue.amazonaws.com.cn/1/q", "cn-north-1"),
        ("https://us-gov-west-1.queue.amazonaws.com/1/q", "us-gov-west-1"),
    ],
)
def test_the_region_is_in_the_url_in_every_partition(url: str, region: str):
    assert region_of(url) == region


PROMPTS = {
    "mfa": """
[profile mine]
role_arn = arn:aws:iam::1:role/x
source_profile = base
mfa_serial = arn:aws:iam::1:mfa/me
[profile base]
aws_access_key_id = key
aws_secret_access_key = secret-key
""",
    "aws-login": """
[profile mine]
login_session = arn:aws:iam::1:user/me
""",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_profile_that_a_person_has_to_sign_in_with_is_said_with_what_helps(tmp_path, database, name: str):
    (tmp_path / "config").write_text(PROMPTS[name])
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    env = {name: value for name, value in database.env("loader_user").items() if name not in keys}
    env |= {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_PROFILE": "mine"}
    command = [sys.executable, "-m", "loader", "load"]
    done = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True
    )

    assert done.returncode == 7
    assert done.stderr.endswith('Run `eval "$(aws configure export-credentials --format env)"` before.\n')
    assert "Traceback" not in done.stderr


SSO = """
[profile mine]
sso_session = s
sso_account_id = 1
sso_role_name = r
[sso-session s]
sso_region = us-east-1
sso_start_url = https://x.test/start
sso_registration_scopes = sso:account:access
[profile old]
sso_start_url = https://x.test/start
sso_region = us-east-1
sso_account_id = 1
sso_role_name = r
"""


@both_clients
@pytest.mark.parametrize("profile", ["mine", "old"])
def test_who_is_not_signed_in_is_told_how_to(settings, monkeypatch, tmp_path, lean: bool, profile: str):
    (tmp_path / "config").write_text(SSO)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    settings(AWS_PROFILE=profile, AWS_CONFIG_FILE=str(tmp_path / "config"))

    error = failure(lean)

    assert error.exit_status == 7
    assert error.message.endswith("Run `aws sso login` for this profile.")

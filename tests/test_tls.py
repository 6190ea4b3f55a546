"""TLS to PostgreSQL, as libpq's own settings say it: every program of ours works with verify-full, none without."""

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from local import queues
from local.postgres import Account
from local.stack import Stack
from tests.conftest import ROOT, Database
from tests.pipeline import dbt, query

LOAD = ["-m", "loader", "load", "--max-messages", "1"]
MIGRATE = ["-m", "migrations"]

# The loader's login is in its certificate, the others have passwords; nobody gets in without TLS.
ACCESS = """
hostssl all loader_user 127.0.0.1/32 cert
hostssl all all 127.0.0.1/32 scram-sha-256
"""

pytestmark = pytest.mark.skipif(
    not shutil.which("openssl"), reason="openssl makes the certificates: apt install openssl"
)


@dataclass(frozen=True)
class Secured(Database):
    """A database behind TLS, and the certificates of both sides."""

    certificates: Path

    def env(self, login: str) -> dict[str, str]:
        verify = {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": str(self.certificates / "ca.crt")}
        return super().env(login) | verify

    def run(self, command: list[str], login: str, **settings: object) -> subprocess.CompletedProcess:
        environment = self.env(login) | {name: str(value) for name, value in settings.items()}
        return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def secured():
    """A local stack that speaks TLS only."""
    folder = Path(tempfile.mkdtemp(prefix="masked-logins-tls-"))
    certificates = folder / "postgres" / "tls"  # a folder of the server's account, which refuses a key that others own
    settings = {
        "ssl": "on",
        "ssl_cert_file": str(certificates / "server.crt"),
        "ssl_key_file": str(certificates / "server.key"),
        "ssl_ca_file": str(certificates / "ca.crt"),
        "hba_file": str(certificates / "pg_hba.conf"),
    }
    stack = Stack(folder, pg_port=0, sqs_port=0, settings=settings)
    account = Account()
    folder.chmod(0o755)
    account.folder(folder / "postgres")
    account.folder(certificates)
    make_certificates(certificates)
    (certificates / "pg_hba.conf").write_text(ACCESS)
    account.own(certificates / "server.key")
    try:
        stack.up()
        yield Secured(stack, "logins", certificates)
    finally:
        stack.remove()


def make_certificates(folder: Path) -> None:
    """Two authorities, of which the server's is `ca`; a certificate for 127.0.0.1 and one for the loader."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]
    for name in ("ca", "stranger"):
        openssl(
            "req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-days", "2", "-subj", f"/CN={name}"
        )
    (folder / "names").write_text("subjectAltName = IP:127.0.0.1")
    for name, subject in (("server", "/CN=a server"), ("loader", "/CN=loader_user")):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", subject)
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", "-days", "2", "-extfile", "names"),
            *("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"),
        )


def test_migrate_load_and_dbt_verify_the_server(secured):
    sqs = queues.client(secured.stack.environment("loader_user"))
    queues.send(sqs, queues.ensure_queue(sqs, "login-queue"), [json.dumps({"not": "a login"})])

    migrated = secured.run(MIGRATE, "migrator")
    assert migrated.returncode == 0, migrated.stderr

    certificate = {"PGSSLCERT": secured.certificates / "loader.crt", "PGSSLKEY": secured.certificates / "loader.key"}
    loaded = secured.run(LOAD, "loader_user", **certificate, PGPASSWORD="")
    assert loaded.returncode == 0, loaded.stderr

    dbt(secured, "run", "--select", "+rejected_messages")
    assert query(secured, "select count(*) from analytics.rejected_messages") == [(1,)]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        pytest.param({"PGSSLMODE": "disable"}, "no encryption", id="without-tls"),
        pytest.param({"PGSSLROOTCERT": "stranger.crt"}, "certificate verify failed", id="another-authority"),
        pytest.param({"PGHOST": "localhost"}, "does not match host name", id="another-name"),
    ],
)
@pytest.mark.parametrize(("command", "login"), [(MIGRATE, "migrator"), (LOAD, "loader_user")], ids=["migrate", "load"])
def test_what_cannot_be_verified_is_refused(secured, command, login, settings, reason):
    if authority := settings.get("PGSSLROOTCERT"):
        settings = {"PGSSLROOTCERT": secured.certificates / authority}

    refused = secured.run(command, login, **settings)

    assert refused.returncode == 3
    assert reason in refused.stderr


def test_the_loader_gets_in_by_its_certificate_alone(secured):
    refused = secured.run(LOAD, "loader_user")

    assert refused.returncode == 3
    assert "certificate" in refused.stderr

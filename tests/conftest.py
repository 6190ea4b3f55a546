"""What the tests stand on: a local stack per worker, a migrated database per test, a queue per test."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from local import queues
from local.postgres import StackError, choose_postgres
from local.stack import BOOTSTRAP, DATABASE, SUPERUSER, Stack
from tests import optional

ROOT = Path(__file__).parents[1]
STAND_IN = ROOT / "tests" / "citus_stand_in.sql"
# Another SQS than the local stack's, such as LocalStack: SQS_ENDPOINT=http://127.0.0.1:4566 make test ARGS='-k loader'.
SQS_ENDPOINT = {"AWS_ENDPOINT_URL": os.environ["SQS_ENDPOINT"]} if os.environ.get("SQS_ENDPOINT") else {}
NO_AWS_BUT_OURS = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


# Copying a database takes a tenth of the time there that it takes on a disk. Three workers need 0.6 GB of it.
MEMORY = Path("/dev/shm")


def pytest_configure(config: pytest.Config) -> None:
    optional.choose(config)
    forget_the_caller()


def forget_the_caller() -> None:
    """No test reads the caller's settings, nor those of a `make test` above it; none asks a machine for credentials."""
    if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 << 30:
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)
    for name in [name for name in os.environ if name.startswith(("PG", "AWS_", "DBT_", "LOADER_", "MAKE"))]:
        del os.environ[name]
    for name in ("MFLAGS", "ARGS"):
        os.environ.pop(name, None)
    os.environ |= NO_AWS_BUT_OURS


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: a test also waits, for a timeout of SQS's or for time to pass."""
    return min(4, (os.cpu_count() or 1) + 1)


@dataclass(frozen=True)
class Database:
    """A database that only one test uses."""

    stack: Stack
    name: str

    def env(self, login: str) -> dict[str, str]:
        """The environment of a program that is to work on this database as this login."""
        return self.stack.program(login, self.name) | {
            **NO_AWS_BUT_OURS,
            **SQS_ENDPOINT,
            # dbt's traces stay out of the tree, where the demo writes its own
            "DBT_TARGET_PATH": str(self.stack.folder / "dbt-target"),
            "DBT_LOG_PATH": str(self.stack.folder / "dbt-logs"),
        }

    def connect(self, login: str, **options: Any) -> Connection:
        """A connection of this login's, or of the superuser `postgres`; closed by the caller."""
        return self.stack.connect(login, self.name, **options)


@dataclass(frozen=True)
class Queue:
    """A queue that only one test uses."""

    client: Any
    url: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """For a stack, which ends with this process, even where it is killed."""
    # Not pytest's own folder for this: that is closed to the user whom PostgreSQL runs as.
    folder = tempfile.mkdtemp(prefix="masked-logins-test-")
    # Waits for the other end of its input to close, which not even SIGKILL prevents.
    janitor = ["sh", "-c", 'read _; exec "$@"', "sh", sys.executable, "-m", "local", "remove"]
    with subprocess.Popen(
        janitor, cwd=ROOT, env=os.environ | {"LOCAL_STATE": folder}, stdin=subprocess.PIPE, start_new_session=True
    ):
        yield Path(folder)


@contextlib.contextmanager
def temporary_stack(**options: Any) -> Iterator[Stack]:
    """Both servers, on ports of their own."""
    with temporary_folder() as folder:
        stack = Stack(folder, pg_port=0, sqs_port=0, **options)
        try:
            stack.up()
            yield stack
        finally:
            stack.remove()


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """The servers of this worker; the database `logins` is there, and empty."""
    with temporary_stack() as stack:
        yield stack


# For modules whose tests hold on Citus too: a real cluster (tests/cluster.py).
on_citus_too = pytest.mark.parametrize(
    "migrated", ["one-server", pytest.param("citus", marks=pytest.mark.citus)], indirect=True, scope="session"
)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Stack]:
    from tests.cluster import temporary_cluster  # which needs this module

    with temporary_cluster() as coordinator:
        yield coordinator


@pytest.fixture(scope="session")
def migrated(request: pytest.FixtureRequest) -> Iterator[Database]:
    """The database that each test gets a copy of: migrations applied, boundary deployed. Nobody connects to it."""
    sort = getattr(request, "param", "one-server")
    if sort == "citus":
        yield Database(request.getfixturevalue("cluster"), DATABASE)
    elif sort == "stand-in":
        with temporary_stack(settings={"max_prepared_transactions": "10"}) as stack:
            run_sql(Database(stack, "postgres"), BOOTSTRAP, CITUS="1")
            run_sql(Database(stack, DATABASE), STAND_IN)
            yield migrate(Database(stack, DATABASE), CITUS="1")
    else:
        yield request.getfixturevalue("on_one_server")


@pytest.fixture(scope="session")
def on_one_server(stack: Stack) -> Database:
    return migrate(Database(stack, DATABASE))


def migrate(database: Database, **settings: str) -> Database:
    result = run_migrations(database.env("migrator") | settings)
    assert result.returncode == 0, result.stdout + result.stderr
    return database


def run_migrations(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "migrations", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def run_sql(database: Database, file: Path, **settings: str) -> None:
    """psql, as the superuser."""
    options = ["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database.name, "-f", file]
    program(database.stack, "psql", *options, **settings)


def program(stack: Stack, name: str, *arguments: str | Path, **settings: str) -> None:
    """One of PostgreSQL's own, as the superuser."""
    environment = stack.shell(SUPERUSER, "postgres") | settings
    result = subprocess.run([stack._programs() / name, *arguments], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


NAMES: set[str] = set()  # of the databases that tests have just now

# `create database … template` copies everything but the grants on the database itself.
GRANTS = """
    select format(
        'grant %%s on database %%I to %%s',
        privilege_type,
        %(copy)s,
        case grantee when 0 then 'public' else grantee::regrole::text end
    )
    from pg_database, aclexplode(datacl)
    where datname = %(original)s
"""


@contextlib.contextmanager
def administration(stack: Stack) -> Iterator[Cursor]:
    """The superuser, outside any transaction; connected anew each time, since a test may have crashed the server."""
    with contextlib.closing(stack.connect(SUPERUSER, "postgres")) as connection:
        connection.autocommit = True
        yield connection.cursor()


@contextlib.contextmanager
def copy(migrated: Database, name: str | None = None) -> Iterator[Database]:
    # One that was used before, where it is free: dbt reads its project anew for each, half of what a test of it takes.
    name = name or next(each for each in map("test_{}".format, count(1)) if each not in NAMES)
    database = Database(migrated.stack, name)
    NAMES.add(name)
    for node in nodes(migrated.stack):
        with administration(node) as cursor:
            if nodes(migrated.stack)[1:]:  # Citus has a daemon there, and a template may have no session
                close(cursor, migrated.name)
            cursor.execute(f"create database {database.name} template {migrated.name} owner migrator")
            cursor.execute(f"revoke all on database {database.name} from public")
            cursor.execute(GRANTS, {"copy": database.name, "original": migrated.name})
            for (grant,) in cursor.fetchall():
                cursor.execute(grant)
    yield database
    for node in nodes(migrated.stack):
        with administration(node) as cursor:
            if nodes(migrated.stack)[1:]:
                close(cursor, database.name)
            cursor.execute(f"drop database {database.name} with (force)")
    NAMES.discard(name)


def close(cursor: Cursor, database: str) -> None:
    """Ends all its sessions, and lets nobody in."""
    cursor.execute(f"alter database {database} allow_connections false")
    cursor.execute("select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = %s", (database,))


def nodes(stack: Stack) -> list[Stack]:
    """All servers of a cluster, the coordinator first; or the one."""
    return [stack, *getattr(stack, "workers", [])]


@pytest.fixture(scope="session", params=[15, 17], ids=lambda major: f"postgresql{major}")
def migrated_either(request: pytest.FixtureRequest, stack: Stack, migrated: Database) -> Iterator[Database]:
    """`migrated` on the oldest PostgreSQL that is supported, and on one that parses in parallel."""
    with administration(stack) as cursor:
        is_usual = cursor.connection.server_version // 10000 == request.param
    if is_usual:
        yield migrated
        return
    try:
        programs = choose_postgres(str(request.param), None)
    except StackError:
        pytest.skip(f"there is no PostgreSQL {request.param} here")
    with temporary_stack(postgres_bin=programs) as other:
        yield migrate(Database(other, DATABASE))


@pytest.fixture(scope="module")
def either_postgres(migrated_either: Database) -> Iterator[Database]:
    with copy(migrated_either) as database:
        yield database


@pytest.fixture
def database(migrated: Database) -> Iterator[Database]:
    with copy(migrated) as database:
        yield database


@pytest.fixture(scope="module")
def module_database(migrated: Database) -> Iterator[Database]:
    """For a module whose tests only read what one of its fixtures made."""
    with copy(migrated) as database:
        yield database


@contextlib.contextmanager
def temporary_server(**options: Any) -> Iterator[Stack]:
    """A PostgreSQL with nothing in it."""
    stack = Stack(Path(tempfile.mkdtemp(prefix="masked-logins-empty-")), pg_port=0, sqs_port=0, **options)
    stack.folder.chmod(0o755)
    try:
        stack.start_postgres()
        yield stack
    finally:
        stack.remove()


@pytest.fixture
def empty_server() -> Iterator[Stack]:
    """Another PostgreSQL of the same version."""
    with temporary_server() as server:
        yield server


@pytest.fixture(scope="session")
def sqs(stack: Stack) -> Iterator[Any]:
    client = queues.client(stack.environment("loader_user") | SQS_ENDPOINT)
    yield client
    client.close()


@pytest.fixture
def queue(sqs: Any) -> Iterator[Queue]:
    queue = Queue(sqs, sqs.create_queue(QueueName=f"test-{uuid.uuid4()}")["QueueUrl"])
    yield queue
    sqs.delete_queue(QueueUrl=queue.url)

"""What every program makes of PostgreSQL's errors, and to whom none speaks without TLS."""

import contextlib
import os
import socket
import socketserver
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import psycopg2.errorcodes
import pytest
import yaml

from loader import errors, postgres
from tests.conftest import ROOT, administration
from tests.faults import serving

DBT = [str(Path(sys.executable).with_name("dbt")), "debug", "--project-dir", "dbt_project", "--profiles-dir"]
PYTHON = [sys.executable, "-m"]
PROGRAMS = {
    "load": ([*PYTHON, "loader", "load"], "loader_user"),
    "status": ([*PYTHON, "loader", "status"], "analyst_user"),
    "doctor": ([*PYTHON, "loader", "doctor"], "loader_user"),
    "report": ([*PYTHON, "report", "--output", os.devnull], "analyst_user"),
    "purge": ([*PYTHON, "privacy", "purge"], "privacy_officer_user"),
    "rotate-key": ([*PYTHON, "privacy", "rotate-key"], "migrator"),
    "dbt": ([*DBT, "dbt_project", "--connection"], "transformer_user"),
}
OURS = [name for name in PROGRAMS if name != "dbt"]


def run(database, program: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command, login = PROGRAMS[program]
    environment = database.env(login) | settings
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


CANNOT_CONNECT = {
    "no-server": ({"PGPORT": "1"}, 3, "Connection refused. Check PGHOST"),
    "no-such-database": ({"PGDATABASE": "nowhere"}, 3, 'database "nowhere" does not exist. Check PGHOST'),
    "wrong-password": ({"PGPASSWORD": "wrong"}, 3, "Check PGUSER and PGPASSWORD."),
    "no-password": (
        {"PGPASSWORD": ""},
        3,
        "Set PGPASSWORD, or the password of this login in the file that ENV_FILE names.",
    ),
    "bad-port": ({"PGPORT": "x"}, 3, "invalid integer value"),
    "no-authority": ({"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "/nowhere"}, 3, "Check PGSSLMODE"),
    "carriage-return": ({"PGHOST": "127.0.0.1\r"}, 3, r'host name "127.0.0.1\r" to address'),
    "bad-timeout": ({"PGCONNECT_TIMEOUT": "x"}, 3, "Check the variable of that option, which is PG and its name"),
    "bad-mode": ({"PGSSLMODE": "x"}, 3, "Check the variable of that option, which is PG and its name"),
    "bad-option": ({"PGOPTIONS": "-c statement_timeout=x"}, 3, "Check PGOPTIONS, PGTZ and PGDATESTYLE."),
    "too-many-connections": ({}, 13, "Close other connections"),
}


@pytest.mark.parametrize("name", CANNOT_CONNECT)
@pytest.mark.parametrize("program", OURS)
def test_where_no_connection_can_be_made_every_program_says_the_same(database, program: str, name: str):
    settings, status, sentence = CANNOT_CONNECT[name]
    with connection_limit(database, 0 if name == "too-many-connections" else -1):
        done = run(database, program, **settings)
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert sentence in said
    assert done.returncode == {"doctor": 11, "status": 6}.get(program, status)  # these looked at the queue before
    assert program in ("doctor", "status") or said.count("\n") == 1


@contextlib.contextmanager
def connection_limit(database, limit: int) -> Iterator[None]:
    with administration(database.stack) as cursor:
        cursor.execute(f"alter database {database.name} connection limit {limit}")
        yield
        cursor.execute(f"alter database {database.name} connection limit -1")


# What a statement of a program may run into: the exit status, and what is said. `value` is what must not be.
STATEMENTS = {
    "22P02": (16, "InvalidTextRepresentation 22P02"),
    "23505": (16, "UniqueViolation 23505"),
    "25006": (14, "PostgreSQL is read-only: value. Set PGHOST"),
    "40P01": (15, "PostgreSQL ended a statement: value. "),
    "42501": (4, "Run it as privacy_officer_user"),
    "42P01": (5, "Run `make migrate`"),
    "42P07": (16, "Refused by PostgreSQL: value."),
    "53100": (13, "Free disk space"),
    "53200": (13, "more memory"),
    "55P03": (15, "lock_timeout"),
    "57014": (15, "statement_timeout"),
    "57P01": (3, "No database: value."),
    "58030": (16, "IoError 58030"),
    "P0001": (16, "Refused by PostgreSQL: value."),
    "XX001": (16, "DataCorrupted XX001"),
}


@pytest.mark.parametrize("state", STATEMENTS)
def test_what_a_statement_runs_into_follows_from_its_sqlstate(database, state: str):
    status, sentence = STATEMENTS[state]
    with contextlib.closing(database.connect("postgres")) as connection, connection, connection.cursor() as cursor:
        cursor.execute("select pg_get_functiondef('privacy.purge(integer)'::regprocedure)")
        head = cursor.fetchone()[0].partition("AS $function$")[0]
        cursor.execute(
            f"{head.replace('LANGUAGE sql', 'LANGUAGE plpgsql')} as $$ begin raise exception using errcode = '{state}',"
            " message = 'value', detail = 'Failing row contains (value of a row).'; end $$"
        )
    done = run(database, "purge")
    assert done.returncode == status, done.stderr
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert "value of a row" not in done.stderr


def test_every_sqlstate_has_a_meaning_and_none_shows_a_value(database):
    """Those whose message PostgreSQL makes out of a value, above all."""
    states = {state for name, state in vars(psycopg2.errorcodes).items() if name.isupper() and len(state) == 5}
    states = sorted(state for state in states if state[:2] not in ("00", "01", "02"))
    assert len(states) > 200
    with contextlib.closing(database.connect("postgres")) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        for state in states:
            with pytest.raises(psycopg2.Error) as caught:
                cursor.execute(f"do $$ begin raise exception using errcode = '{state}', message = '192.0.2.1'; end $$")
            meaning = postgres.explain(caught.value, "Ask somebody")
            assert isinstance(meaning, errors.LoaderError)
            assert "\n" not in meaning.message
            if state[:2] in ("21", "22", "23", "38", "39", "44", "54", "XX"):
                assert "192.0.2.1" not in meaning.message
                assert state in meaning.message


# Of PostgreSQL, libpq and PgBouncer, who send no SQLSTATE with them, or 08P01.
TEXTS = {
    "no more connections allowed (max_client_conn)": (13, "Close other connections"),
    "client connections exceeded (max_user_client_connections)": (13, "Close other connections"),
    "query_wait_timeout": (13, "Close other connections"),
    "sorry, too many clients already": (13, "Close other connections"),
    'too many connections for role "loader_user"': (13, "Close other connections"),
    "session is read-only": (14, "Set PGHOST to the primary"),
    "session is not read-only": (3, "Check PGTARGETSESSIONATTRS"),
    "server is in hot standby mode": (14, "Set PGHOST to the primary"),
    "server is not in hot standby mode": (3, "Check PGTARGETSESSIONATTRS"),
    'invalid target_session_attrs value: "x"': (3, "Check PGTARGETSESSIONATTRS"),
    'no pg_hba.conf entry for host "192.0.2.1", user "x", database "y", SSL encryption': (3, "in its pg_hba.conf"),
    'no pg_hba.conf entry for host "192.0.2.1", user "x", database "y", no encryption': (3, "in its pg_hba.conf"),
    'pg_hba.conf rejects connection for host "192.0.2.1", user "x", database "y", SSL encryption': (3, "pg_hba.conf"),
    "local user with ID 10001 does not exist": (3, "Set PGUSER and PGPASSWORD"),
    "unsupported startup parameter: options": (3, "Unset PGOPTIONS, or name it in PgBouncer's ignore_startup"),
    'definition of service "x" not found': (3, "Check PGSERVICE and its file"),
    "transaction blocks not allowed in statement pooling mode": (3, "Set PgBouncer's pool_mode to transaction"),
    'could not translate host name "x" to address: Name or service not known': (3, "Check PGHOST"),
    "the database system is starting up": (3, "Try again in a moment"),
    "terminating connection due to administrator command": (3, "Try again in a moment"),
    "terminating connection due to idle-session timeout": (3, "Try again in a moment"),
    "server closed the connection unexpectedly": (3, "See the log of the server, or of the pool in front of it"),
    "SSL SYSCALL error: EOF detected": (3, "See the log of the server, or of the pool in front of it"),
    "SSL connection has been closed unexpectedly": (3, "See the log of the server, or of the pool in front of it"),
    "could not receive data from server: Connection reset by peer": (3, "See the log of the server"),
    "pgbouncer cannot connect to server": (3, "Check PGHOST"),
    "connection to the remote node x@10.0.0.2:5432 failed with the following error: SSL SYSCALL error: EOF detected": (
        3,
        "Check this worker of the Citus cluster",
    ),
    "Citus cannot reach its workers at 10.0.0.2:5432": (3, "Check this worker of the Citus cluster"),
}


@pytest.mark.parametrize("text", TEXTS)
def test_what_a_connection_fails_for_comes_with_a_remedy_that_helps(text: str):
    status, remedy = TEXTS[text]

    error = postgres.unreachable(text)

    assert error.exit_status == status
    assert remedy in error.message


def test_of_several_addresses_the_last_is_told_of(database):
    done = run(database, "purge", PGHOST="127.0.0.1,127.0.0.1", PGPORT=f"1,{database.env('migrator')['PGPORT']}",
               PGPASSWORD="wrong", PGSSLMODE="prefer")  # fmt: skip
    assert "password authentication failed" in done.stderr


class Rogue(socketserver.StreamRequestHandler):
    """A server in the real one's place, which has no TLS, and asks for the password itself."""

    def handle(self) -> None:
        while startup := self.rfile.read(4):
            content = self.rfile.read(int.from_bytes(startup, "big") - 4)
            if content[:4] in (b"\x04\xd2\x16\x2f", b"\x04\xd2\x16\x30"):  # may we speak TLS, or GSS?
                self.wfile.write(b"N")
                continue
            self.wfile.write(b"R\0\0\0\x08\0\0\0\x03")
            self.server.told.append(self.rfile.read(6))
            return


@pytest.fixture
def rogue() -> Iterator[socketserver.ThreadingTCPServer]:
    """At an address that is not the one of a local server."""
    with serving(socketserver.ThreadingTCPServer(("127.0.0.2", 0), Rogue)) as server:
        server.told = []
        yield server


def where(rogue) -> dict[str, str]:
    host, port = rogue.server_address
    return {"PGHOST": host, "PGPORT": str(port)}


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_password_goes_to_a_server_elsewhere_that_shows_no_certificate(database, rogue, program: str):
    done = run(database, program, **where(rogue))
    assert done.returncode != 0
    assert rogue.told == []
    assert program == "dbt" or "Check PGSSLMODE" in done.stdout + done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_pgsslmode_goes_before_the_default(database, rogue, program: str):
    run(database, program, **where(rogue), PGSSLMODE="disable")
    assert rogue.told != []


@pytest.mark.parametrize(
    ("settings", "local"),
    [
        ({}, True),
        ({"PGHOST": "localhost"}, True),
        ({"PGHOST": "::1"}, True),
        ({"PGHOST": "/run/postgresql"}, True),
        ({"PGHOST": "/run/postgresql,db.example"}, False),
        ({"PGHOST": "localhost.example"}, False),
        ({"PGHOST": "localhost", "PGHOSTADDR": "192.0.2.1"}, False),
        ({"PGSERVICE": "mine"}, False),
        ({"PGSERVICE": "mine", "PGHOST": "localhost"}, False),
    ],
)
def test_what_counts_as_a_server_on_this_machine(monkeypatch, settings: dict[str, str], local: bool):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert postgres.is_local() is local


def test_an_empty_pgsslmode_is_none(database):
    assert run(database, "rotate-key", PGSSLMODE="").returncode == 0


def test_a_server_that_is_silent_is_given_up_on(database):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = {"PGPORT": str(silent.getsockname()[1]), "PGSSLMODE": "disable", "PGCONNECT_TIMEOUT": "2"}
        done = run(database, "report", **settings)
    assert (done.returncode, "timeout expired" in done.stderr) == (3, True)


class Latin(socketserver.StreamRequestHandler):
    """A server that is shutting down, and says so in German and in Latin-1: it knows no client's encoding by then."""

    def handle(self) -> None:
        self.rfile.read(int.from_bytes(self.rfile.read(4), "big") - 4)
        fields = "SFATAL\0VFATAL\0C57P03\0Mdas Datenbanksystem fährt herunter\0\0".encode("latin-1")
        self.wfile.write(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)


@pytest.mark.parametrize("program", OURS)
def test_what_a_server_says_in_another_encoding_is_said(database, program: str):
    with serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Latin)) as server:
        settings = {"PGPORT": str(server.server_address[1]), "PGSSLMODE": "disable", "PGGSSENCMODE": "disable"}
        done = run(database, program, **settings)
    assert done.returncode == {"doctor": 11, "status": 6}.get(program, 3)
    assert r"FATAL: das Datenbanksystem f\xe4hrt herunter." in done.stdout + done.stderr


class EndsTheConnection:
    """A file whose reader loses its connection after the first line."""

    def __init__(self, database, pid: int):
        self.database, self.pid, self.lines = database, pid, [b"secret\n"]

    def read(self, size: int) -> bytes:
        if not self.lines:
            return b""
        with administration(self.database.stack) as cursor:
            cursor.execute("select pg_terminate_backend(%s, 5000)", [self.pid])
        return self.lines.pop()


def test_a_connection_that_is_lost_in_the_middle_of_copy_is_an_error_and_prints_nothing(database, capfd):
    with contextlib.closing(database.connect("loader_user")) as connection, connection.cursor() as cursor:
        cursor.execute("create temporary table copied (x text) on commit drop")
        data = EndsTheConnection(database, connection.info.backend_pid)
        with pytest.raises(psycopg2.OperationalError):
            postgres.copy(cursor, "copy pg_temp.copied from stdin", data)
    assert capfd.readouterr() == ("", "")
    assert sys.excepthook is sys.__excepthook__


def test_nobody_copies_otherwise():
    programs = [file for file in ROOT.glob("*/*.py") if file.parent.name not in ("tests", "benchmarks")]
    assert [file.name for file in programs if "copy_expert(" in file.read_text()] == ["postgres.py"]


def test_a_server_that_vanished_in_a_statement_is_noticed_within_a_minute(database, monkeypatch):
    """At the first unanswered probe after tcp_user_timeout: the system's own interval between probes is 75 seconds."""
    for name, value in database.env("loader_user").items():
        monkeypatch.setenv(name, value)
    with (
        contextlib.closing(postgres.connect("test")) as connection,
        socket.socket(fileno=os.dup(connection.fileno())) as wire,
    ):
        idle, interval, timeout = (
            wire.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT)
        )

    probes = range(idle + interval, 1000, interval)
    assert next(second for second in probes if second * 1000 >= timeout > 0) <= 60


def test_dbt_notices_it_in_minutes():
    """It has no more settings than this one; by the system's own, a run waits for over two hours."""
    profile = yaml.safe_load((ROOT / "dbt_project" / "profiles.yml").read_text())["masked_logins"]
    assert all(0 < target["keepalives_idle"] <= 60 for target in profile["outputs"].values())

"""PostgreSQL, for every program of the project: how to connect, and what an error means to whoever runs the program."""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import IO

import psycopg2
from psycopg2.extensions import ISOLATION_LEVEL_READ_COMMITTED
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from loader import errors

NULL = "\\N"  # in COPY's text format
INTERVALS = "set local intervalstyle = postgres"  # which alone psycopg2 understands

# A server that vanished without a word is noticed within a minute.
LIVENESS = {"keepalives_idle": 30, "keepalives_interval": 10, "tcp_user_timeout": 60_000}

THIS_MACHINE = ("", "localhost", "127.0.0.1", "::1")

# By SQLSTATE or how it begins, the longest first. The message of these names objects and settings, never a value.
MEANINGS: dict[str, type[errors.LoaderError]] = {
    "42501": errors.NotPermitted,
    **dict.fromkeys(("42P06", "42P07", "42701", "42710", "42723"), errors.Refused),  # something is there already
    "42": errors.NotMigrated,  # a table, column, type or function is missing or another one
    "3F": errors.NotMigrated,  # a schema is
    "25006": errors.ReadOnly,
    "25P03": errors.TimedOut,  # idle in a transaction
    "25P04": errors.TimedOut,  # transaction_timeout
    "55P03": errors.TimedOut,  # lock_timeout
    "57014": errors.TimedOut,  # statement_timeout, or cancelled by an administrator
    "40": errors.TimedOut,  # deadlock, serialization failure
    "53": errors.NoRoom,
    "08": errors.NoDatabase,
    "28": errors.NoDatabase,
    "3D": errors.NoDatabase,
    "57P": errors.NoDatabase,  # shut down, starting, terminated by an administrator
    "P0001": errors.Refused,  # raised by a function of migrations/, in its own words
}

# A connection that could not be made has no SQLSTATE, only libpq's text.
# PgBouncer's have 08P01 at most.
TOO_MANY = re.compile(
    r"too many (clients|connections)|remaining connection slots"
    r"|no more connections allowed|connections exceeded|query_wait_timeout"
)
STANDBY = re.compile(r"session is read-only|server is in hot standby mode")  # PGTARGETSESSIONATTRS wants another one
NOT_YET = re.compile(r"starting up|shutting down|in recovery mode|not yet accepting|terminating connection")
TLS = re.compile(r"SSL|certificate|encryption")
NO_CONNECT = re.compile(r"permission denied for database")  # which migrations/ grants to every role
# What libpq says of a connection that it had. From a worker Citus hands it on, with the SQLSTATE of an internal error.
LOST = re.compile(r"closed the connection|has been closed|connection not open|SSL SYSCALL|could not \w+ data")
OF_DBT = re.compile(r'"(analytics|staging)\.')  # the schemas that dbt fills
REMEDIES = {
    re.compile("remote node|its workers"): "Check this worker of the Citus cluster, and the network to it",
    re.compile("password authentication failed"): "Check PGUSER and PGPASSWORD",
    re.compile("local user with ID"): "Set PGUSER and PGPASSWORD",  # in a container, whose user has no name
    re.compile("no password supplied"): "Set PGPASSWORD, or the password of this login in the file that ENV_FILE names",
    NOT_YET: "Try again in a moment",
    re.compile("pg_hba.conf"): "Allow this login, database and address in its pg_hba.conf, or set PGSSLMODE as it asks",
    re.compile("target_session_attrs|session is not|server is not"): "Check PGTARGETSESSIONATTRS",
    re.compile(r'invalid (?!integer)\w+ value: |for connection option "(?!port)'): "Check the variable of that option, "
    "which is PG and its name in capitals without underscores",
    re.compile("(value for|configuration) parameter"): "Check PGOPTIONS, PGTZ and PGDATESTYLE",
    re.compile("definition of service|service file"): "Check PGSERVICE and its file",
    re.compile("startup parameter: options"): "Unset PGOPTIONS, or name it in PgBouncer's ignore_startup_parameters",
    LOST: "See the log of the server, or of the pool in front of it",
    re.compile("pooling mode"): "Set PgBouncer's pool_mode to transaction or session",
    TLS: "Check PGSSLMODE (unset, it is verify-full for a server elsewhere) and PGSSLROOTCERT, its authority's file",
}

NO_SPACE = "Free disk space on the server, or raise temp_file_limit"
ROOM = {
    "53100": NO_SPACE,
    "53200": "Give the server more memory, or lower work_mem",
    "53300": "Close other connections, or raise max_connections and the limits of the database and the login",
    "53400": NO_SPACE,
}


def connect(program: str, **options: object) -> Connection:
    """A connection to the database of PG*, named `program` in pg_stat_activity. Raises psycopg2.Error."""
    if not os.environ.get("PGSSLMODE"):
        if is_local():
            os.environ.pop("PGSSLMODE", None)  # libpq does not take an empty one
        else:
            # In the environment, so that a service file goes before it, and what this program starts does the same.
            os.environ["PGSSLMODE"] = "verify-full"
    if not os.environ.get("PGCONNECT_TIMEOUT"):
        options = {"connect_timeout": 10} | options
    options = LIVENESS | options
    try:
        connection = psycopg2.connect("", fallback_application_name=program, client_encoding="UTF8", **options)
    except UnicodeDecodeError as error:  # a server's language and encoding, until it knows the client's
        raise psycopg2.OperationalError(error.object.decode(errors="backslashreplace")) from None
    connection.isolation_level = ISOLATION_LEVEL_READ_COMMITTED  # whatever the login or the database was given
    return connection


def is_local(variables: Mapping[str, str] = os.environ) -> bool:
    """Whether PG* name a server on this machine, in whose place nobody else can answer. profiles.yml has it for dbt."""
    if variables.get("PGSERVICE"):
        return False  # its file may name any server
    host = variables.get("PGHOSTADDR") or variables.get("PGHOST") or ""
    return host in THIS_MACHINE or (host.startswith("/") and "," not in host)


@contextmanager
def transaction(program: str) -> Iterator[Cursor]:
    """On a connection of its own, committed at the end. Raises psycopg2.Error."""
    with closing(connect(program)) as connection, connection.cursor() as cursor:
        yield cursor
        connection.commit()  # an error rolls back by closing: a rollback would hide why the connection was lost


@contextmanager
def explained(permission: str, missing: type[errors.NotMigrated] = errors.NotMigrated) -> Iterator[None]:
    """Turns every error of PostgreSQL into one of errors.py; the arguments are those of `explain`."""
    try:
        yield
    except psycopg2.Error as error:
        raise explain(error, permission, missing) from None


def explain(
    error: psycopg2.Error, permission: str, missing: type[errors.NotMigrated] = errors.NotMigrated
) -> errors.LoaderError:
    """One sentence, without a value of any row, with its remedy.

    `permission` is the remedy where a privilege is missing, `missing` the class where a table or function is.
    """
    state, reason = error.pgcode or "", error.diag.message_primary
    if not state:  # the connection: never made, or lost
        return unreachable(reason or connection_failure(error))
    if state == "XX000" and LOST.search(reason or ""):
        return unreachable(f"Citus lost one of its workers: {reason.splitlines()[0]}")
    meaning = next((MEANINGS[key] for key in (state, state[:3], state[:2]) if key in MEANINGS), None)
    if meaning is None:
        return errors.Refused(reason=f"{name_of(error)} (the server's log has the details)")
    details = {"reason": (reason or name_of(error)).strip().rstrip(".")}
    if meaning is errors.NoDatabase:
        return unreachable(details["reason"])
    if meaning is errors.NotPermitted:
        details["remedy"] = permission
    elif meaning is errors.NoRoom:
        details["remedy"] = ROOM.get(state, NO_SPACE)
    elif meaning is errors.NotMigrated:
        meaning = errors.NotBuilt if OF_DBT.search(details["reason"]) else missing
    return meaning(**details)


def unreachable(reason: str) -> errors.LoaderError:
    if TOO_MANY.search(reason):
        return errors.NoRoom(reason=reason, remedy=ROOM["53300"])
    if STANDBY.search(reason):
        return errors.ReadOnly(reason=reason)
    if NO_CONNECT.search(reason):
        return errors.NotMigrated(reason=reason, remedy=f"Check PGDATABASE, or: {errors.NotMigrated.remedy}")
    remedies = [remedy for words, remedy in REMEDIES.items() if words.search(reason)]
    return errors.NoDatabase(reason=reason, **({"remedy": remedies[0]} if remedies else {}))


def connection_failure(error: psycopg2.Error) -> str:
    """What libpq says, in one line: of several addresses that it tried, of the last."""
    text = str(error).replace("\r", "\\r")  # a setting of a file with such lines ends in it
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    attempts = [line for line in lines if line.startswith("connection to server")]
    return (attempts or lines or [type(error).__name__])[-1 if attempts else 0].rstrip(".")


def name_of(error: psycopg2.Error) -> str:
    return f"{type(error).__name__} {error.pgcode}"


def copy(cursor: Cursor, statement: str, data: IO) -> None:
    """COPY, from `data` or to it. Raises psycopg2.Error, and prints nothing.

    When the server ends the connection in the middle of it, psycopg2 2.9 prints one error by sys.excepthook, with the
    line that it was at, before it raises the next.
    """
    hook = sys.excepthook
    sys.excepthook = lambda kind, error, traceback: kind is SystemError or hook(kind, error, traceback)
    try:
        cursor.copy_expert(statement, data)
    finally:
        sys.excepthook = hook


def copy_text(value: str | None) -> str:
    """A value as COPY's text format has it: four characters mean something there."""
    if value is None:
        return NULL
    if "\\" in value:
        value = value.replace("\\", "\\\\")
    if value.isprintable():  # the other three are not
        return value
    return value.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def wait_at_most_a_minute(cursor: Cursor) -> None:
    """For any one lock until the transaction ends, where neither the login nor PGOPTIONS say how long."""
    cursor.execute("select set_config('lock_timeout', '1min', true) where current_setting('lock_timeout') = '0'")


def assume(cursor: Cursor, role: str) -> None:
    """Goes on in this role until the transaction ends."""
    try:
        cursor.execute(f"set local role {role}")
    except psycopg2.errors.InvalidParameterValue as error:  # there is no such role
        raise errors.NotMigrated(reason=error.diag.message_primary) from None

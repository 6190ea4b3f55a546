"""python -m migrations"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote, urlencode

import click
import psycopg2
import psycopg2.errors
from psycopg2.extensions import connection as Connection

from loader import errors, postgres
from migrations import citus
from privacy.attest import WRITTEN_ONE_WAY

ROOT = Path(__file__).resolve().parent.parent
DBT_PROJECT = ROOT / "dbt_project"

ROLES = (
    *("loader", "transformer", "analyst", "privacy_officer", "monitor", "retention"),
    *("masker", "pipeline_owner"),
)

# bootstrap.sql says in a comment which roles it has made, or been told to use.
FOREIGN_ROLES = """
    select role from unnest(%s) as role
    where not exists (
        select from pg_roles where rolname = role and shobj_description(oid, 'pg_authid') like 'masked-logins: %%'
    )
"""

OLD_DATABASE = (
    "The database {database} was made by an earlier set of migrations, which this one replaces. Move its data to a new "
    "database: deploy/README.md, Move data from an earlier version."
)

NEWER_DATABASE = (
    "The database {database} was migrated by a newer release than this one, and cannot go back: run `make migrate` of "
    "that release, or a newer one."
)

OTHER_BACKSLASHES = (
    "standard_conforming_strings is off, so a backslash in a regular expression would mean something else. "
    "As superuser: alter database {database} reset standard_conforming_strings; "
    "alter role {login} reset standard_conforming_strings."
)

# What the database has of routines/: functions and triggers with their owners, settings and grants. An md5 for each
# would do to compare, and one for all is shorter.
IN_DATABASE = """
    select md5(string_agg(entry, ' ' order by entry)) from (
        select concat_ws(
            ' ', oid::regprocedure, proowner::regrole, prosecdef, provolatile, proparallel, proconfig,
            case when proname <> 'carried_over' then proacl::text end, md5(pg_get_functiondef(oid))
        )
        from pg_proc
        where pronamespace::regnamespace::text in ('raw', 'masking', 'privacy', 'analytics')
            and proname not like 'read\\_%'
        union all
        select concat(pg_get_triggerdef(oid), tgenabled) from pg_trigger
        where tgrelid::regclass::text in ('raw.sqs_messages', 'raw.loads', 'privacy.audit') and not tgisinternal
    ) as entries (entry)
"""

# A function that no file has any more.
LEFT_OVER = """
    select oid::regprocedure::text, proowner::regrole::text from pg_proc
    where
        pronamespace::regnamespace::text in ('raw', 'masking', 'privacy', 'analytics')
        and proowner in ('pipeline_owner'::regrole, 'masker'::regrole)
        and xmin <> pg_current_xact_id()::xid and proname not like 'read\\_%'
"""


RECORD_BOUNDARY = """
    create temporary table deployed on commit drop as
    select oid::regclass::text as view, md5(pg_get_viewdef(oid)) as definition from pg_class
    where relnamespace = 'masking'::regnamespace and relkind = 'v';
    delete from migrations.boundary where (view, definition) not in (select view, definition from deployed);
    insert into migrations.boundary select * from deployed where view not in (select view from migrations.boundary)
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Bring the database named by PG* up to date: tables (*.sql), functions (routines/), the boundary (dbt_project/).

    With CITUS set, raw is spread over the workers of a Citus cluster first, and stays so (routines/citus.sql). Exits
    with 0 when up to date, 3 without a database, 4 where it may not or cannot, 5 when a step failed.
    """
    try:
        with postgres.explained("Migrate as migrator (deploy/bootstrap.sql)"):
            migrate()
    except citus.CannotDistribute as error:
        fail(error.status, str(error))
    except KeyboardInterrupt:
        fail(130, "Interrupted. A migration that was under way is rolled back; run it again.")


def migrate() -> None:
    url = database_url()
    with one_at_a_time():
        citus.prepare()
        apply_migrations(url)
        apply_routines()
        citus.distribute()
        deploy_boundary()
        citus.bring_keys()
        apply_routines()  # drops what the boundary needed until now
        record_boundary()
    click.echo("The database is up to date: migrations and routines applied, boundary deployed.")


def connect() -> Connection:
    connection = postgres.connect("migrations")
    with connection.cursor() as cursor:
        cursor.execute(WRITTEN_ONE_WAY)  # what is recorded here is compared elsewhere
    connection.commit()
    return connection


def database_url() -> str:
    """The database of PG*, as a URL for dbmate, which knows neither every PG* variable nor sslmode=prefer."""
    connection = connect()
    with connection.cursor() as cursor:
        cursor.execute(
            "select current_setting('server_version_num')::integer, current_setting('server_encoding'),"
            " current_setting('standard_conforming_strings') = 'on',"
            " has_database_privilege(current_database(), 'create'),"
            " exists (select from pg_class where relname = 'applied' and relnamespace = to_regnamespace('migrations'))"
        )
        version, encoding, has_plain_backslashes, may_create, is_migrated = cursor.fetchone()
        if may_create and is_migrated:
            ours = [file.name.partition("_")[0] for file in (ROOT / "migrations").glob("*.sql")]
            cursor.execute(
                "select to_regclass('migrations.routines') is null from migrations.applied where version <> all(%s)",
                (ours,),
            )
            if unknown := cursor.fetchall():
                is_old = unknown[0] == (True,)
                fail(5, (OLD_DATABASE if is_old else NEWER_DATABASE).format(database=connection.info.dbname))
        cursor.execute(FOREIGN_ROLES, (list(ROLES),))
        foreign = [role for (role,) in cursor.fetchall()]
    info = connection.info
    if version < 150000:
        fail(4, f"PostgreSQL 15 or newer is needed; this is {version // 10000}.")
    if encoding != "UTF8":
        fail(4, f"The database {info.dbname} is encoded in {encoding}; create it with encoding 'UTF8'.")
    if not has_plain_backslashes:
        fail(4, OTHER_BACKSLASHES.format(login=info.user, database=info.dbname))
    if '"' in info.dbname:
        fail(4, "dbt cannot work in a database with a double quote in its name: choose another, in PGDATABASE.")
    if not may_create:
        fail(4, f"{info.user} may not create schemas in {info.dbname}: migrate as migrator (deploy/bootstrap.sql).")
    if foreign:
        fail(4, f"deploy/bootstrap.sql has not made these roles: {', '.join(foreign)}. Run it as superuser first.")
    login = f"{quote(info.user, safe='')}:{quote(info.password, safe='')}"
    given = info.dsn_parameters
    query = {name: given[name] for name in ("sslmode", "sslrootcert", "sslcert", "sslkey") if given.get(name)}
    if query["sslmode"] in ("allow", "prefer"):
        query["sslmode"] = "require" if info.ssl_in_use else "disable"
    host = f"{info.host}:{info.port}"
    if info.host.startswith("/"):  # the folder of a Unix socket
        host, query["socket"], query["port"] = "", info.host, info.port
    return f"postgres://{login}@{host}/{quote(info.dbname, safe='')}?{urlencode(query)}"


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Holds a lock on a table of migrator's: everybody could take an advisory lock. No load and no reader waits."""
    with closing(connect()) as connection, connection.cursor() as cursor:
        cursor.execute("select to_regclass('migrations.routines')")
        if cursor.fetchone() == (None,):
            cursor.execute("create schema if not exists migrations")
            cursor.execute("create table migrations.routines (files text, server text, in_database text)")
            cursor.execute("create table migrations.boundary (view text primary key, definition text)")
            connection.commit()
        postgres.wait_at_most_a_minute(cursor)
        try:
            cursor.execute("lock table migrations.routines in share update exclusive mode")
        except psycopg2.errors.LockNotAvailable:
            fail(5, "Another `make migrate` is under way in this database: wait for it to end.")
        yield


def apply_migrations(url: str) -> None:
    dbmate = [Path(sys.executable).with_name("dbmate"), "--migrations-dir", ROOT / "migrations", "--no-dump-schema"]
    dbmate += ["--migrations-table", "migrations.applied", "--env-file", os.devnull, "migrate"]
    # The URL holds the password, so it goes by the environment, not by the command line. It says all that PG* say, of
    # which dbmate's own client refuses to run with some.
    others = {name: value for name, value in os.environ.items() if not name.startswith("PG") or name == "PGOPTIONS"}
    if subprocess.run(dbmate, env=others | {"DATABASE_URL": url}).returncode:
        fail(5, "A migration failed and was rolled back; the database's reason is above.")


def apply_routines() -> None:
    """Makes functions, triggers and their grants what routines/ says, in one transaction, where they are not yet."""
    files = sorted((ROOT / "migrations" / "routines").glob("*.sql"))
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    with closing(connect()) as connection, connection.cursor() as cursor:
        cursor.execute(IN_DATABASE)
        [found] = cursor.fetchone()
        server = f"{connection.server_version} {citus.version(cursor)}"
        cursor.execute("select files, server, in_database from migrations.routines")
        if cursor.fetchone() == (wanted, server, found):
            return
        postgres.wait_at_most_a_minute(cursor)  # a trigger waits for the loads under way
        for file in files:
            citus.choose_workers(cursor, file.stem)
            try:
                cursor.execute(file.read_text(encoding="utf-8"))
            except psycopg2.Error as error:
                where = file.relative_to(ROOT)
                fail(5, f"{where} could not be applied and was rolled back: {error.diag.message_primary}.")
            cursor.execute("reset role")
        is_complete = drop_left_over(cursor)
        cursor.execute(IN_DATABASE)
        [found] = cursor.fetchone()
        cursor.execute("delete from migrations.routines")
        if is_complete:
            as_applied = (wanted, server, found)
            cursor.execute("insert into migrations.routines values (%s, %s, %s)", as_applied)
        connection.commit()


def drop_left_over(cursor) -> bool:
    """Drops the functions that no file has. Whether all could be: the boundary as it is may still use some."""
    cursor.execute(LEFT_OVER)
    in_use = []
    for routine, owner in cursor.fetchall():
        cursor.execute(f"savepoint before_drop; set local role {owner}")
        try:
            cursor.execute(f"drop function {routine}")
        except psycopg2.errors.DependentObjectsStillExist:
            cursor.execute("rollback to before_drop")
            in_use.append(routine)
        cursor.execute("reset role")
    return not in_use


def deploy_boundary() -> None:
    dbt = [Path(sys.executable).with_name("dbt"), "--quiet", "run", "--target", "boundary", "--select", "tag:boundary"]
    dbt += ["--project-dir", DBT_PROJECT, "--profiles-dir", DBT_PROJECT]
    # A folder of its own: dbt parses the whole project again where it finds what another target has parsed.
    dbt += ["--target-path", Path(os.environ.get("DBT_TARGET_PATH") or DBT_PROJECT / "target") / "boundary"]
    if subprocess.run(dbt).returncode:
        fail(5, "The boundary could not be deployed; dbt's reason is above.")


def record_boundary() -> None:
    """Keeps what was deployed, for `make attest` to compare with; a statement that changes nothing when nothing has."""
    with closing(connect()) as connection, connection.cursor() as cursor:
        cursor.execute(RECORD_BOUNDARY)
        connection.commit()


def fail(status: int, sentence: str) -> None:
    print(sentence, file=sys.stderr)
    raise SystemExit(status)


if __name__ == "__main__":
    errors.run(main, "python -m migrations")

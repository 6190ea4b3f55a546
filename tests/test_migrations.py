"""make migrate: applied once, harmless twice, and in one sentence when it cannot be."""

import subprocess
from dataclasses import replace

import pytest

from local.stack import BOOTSTRAP, DATABASE, LOGINS
from tests.conftest import STAND_IN, Database, administration, program, run_migrations, run_sql, temporary_stack
from tests.pipeline import dbt, land, query

LOGIN = '{"user_id": "u", "app_version": "1.2", "device_type": "ios", "ip": "192.0.2.1", "device_id": "d"}'

STRUCTURE = """
select
    c.oid::regclass::text, c.relacl::text, a.attname, a.atttypid::regtype::text, a.attacl::text,
    obj_description(c.oid)
from pg_class as c join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0
where c.relnamespace::regnamespace::text in ('raw', 'masking', 'staging', 'analytics', 'privacy')
union all
select oid::regprocedure::text, proacl::text, prosrc, null, null, null
from pg_proc where pronamespace::regnamespace::text in ('raw', 'masking', 'staging', 'analytics', 'privacy')
order by 1, 3
"""


def test_migrating_twice_changes_nothing(database):
    keys = query(database, "select kind, version, key from masking.keys", login="postgres")
    before = query(database, STRUCTURE, login="postgres")

    result = run_migrations(database.env("migrator"))

    assert result.returncode == 0, result.stderr
    assert query(database, STRUCTURE, login="postgres") == before
    assert query(database, "select kind, version, key from masking.keys", login="postgres") == keys
    assert len(keys) == 2


def test_each_database_makes_keys_of_its_own(stack, database):
    fresh = replace(database, name=f"{database.name}_fresh")
    with administration(stack) as cursor:
        cursor.execute(f"create database {fresh.name} owner migrator")
    try:
        assert run_migrations(fresh.env("migrator")).returncode == 0
        sql = "select kind, encode(key, 'hex') from masking.keys"
        keys = [set(query(each, sql, login="postgres")) for each in (database, fresh)]
    finally:
        with administration(stack) as cursor:
            cursor.execute(f"drop database {fresh.name}")
    assert [len(each) for each in keys] == [2, 2]
    assert keys[0].isdisjoint(keys[1])


def test_no_database_is_one_sentence_with_the_remedy(database):
    result = run_migrations(database.env("migrator") | {"PGPORT": "1"})
    assert result.returncode == 3
    [sentence] = result.stderr.splitlines()
    assert sentence.startswith("No database: ")
    assert sentence.endswith(" Check PGHOST, PGPORT, PGDATABASE, PGUSER and PGPASSWORD.")


@pytest.mark.parametrize(("argument", "status"), [("--help", 0), ("--dry-run", 2)])
def test_whoever_asks_for_something_else_gets_no_migration(database, argument, status):
    result = run_migrations(database.env("migrator") | {"PGPORT": "1"}, argument)
    assert result.returncode == status
    assert "PG*" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_a_login_that_may_not_migrate_is_told_who_may(database):
    result = run_migrations(database.env("loader_user"))
    assert result.returncode == 4
    assert result.stderr.strip().splitlines() == [
        f"loader_user may not create schemas in {database.env('loader_user')['PGDATABASE']}:"
        " migrate as migrator (deploy/bootstrap.sql)."
    ]


def test_citus_is_wanted_and_not_there(database):
    result = run_migrations(database.env("migrator") | {"CITUS": "1"})
    assert result.returncode == 4
    assert result.stderr.strip().splitlines() == [
        "CITUS is set, but there is no extension citus: see deploy/README.md, Beyond one server."
    ]


def test_a_database_that_has_run_on_one_server_is_spread_as_it_is():
    """What is in raw and what dbt has built stays; tokens stay equal, since the keys do."""
    with temporary_stack() as server:
        database = Database(server, DATABASE)
        assert run_migrations(database.env("migrator")).returncode == 0
        land(database, [LOGIN] * 5)
        dbt(database, "build")
        before = query(database, "select * from analytics.user_logins order by message_id")

        run_sql(Database(server, "postgres"), BOOTSTRAP, CITUS="1")
        run_sql(database, STAND_IN)
        assert run_migrations(database.env("migrator") | {"CITUS": "1"}).returncode == 0
        land(database, [LOGIN], prefix="n")
        dbt(database, "build")

        tables = query(database, "select count(*) from pg_dist_partition")
        assert tables == [(4,)]  # raw.sqs_messages, and what dbt made of it
        after = query(database, "select * from analytics.user_logins order by message_id")
        assert after[:5] == before
        assert len(after) == 6


def test_a_master_user_who_is_no_superuser_can_prepare_the_server(empty_server):
    """As on RDS, and with the PostgreSQL that asks more of whoever makes a role."""
    with administration(empty_server) as cursor:
        cursor.execute("create role master login createrole createdb password 'm'")
        logging = "log_statement, log_min_error_statement, log_min_duration_statement"
        cursor.execute(f"grant set on parameter {logging} to master")
    passwords = {f"{login.upper()}_PASSWORD": empty_server.environment(login)["PGPASSWORD"] for login in LOGINS}
    program(empty_server, "psql", "-X", "-q", "-f", BOOTSTRAP, PGUSER="master", PGPASSWORD="m", **passwords)
    assert run_migrations(Database(empty_server, DATABASE).env("migrator")).returncode == 0


def test_a_bootstrap_by_somebody_who_may_not_leaves_no_password_in_the_log(database):
    server = database.stack
    secret = {f"{login.upper()}_PASSWORD": f"sekret-{login}" for login in LOGINS}
    psql = [server._programs() / "psql", "-q", "-d", database.name, "-f", BOOTSTRAP]
    refused = subprocess.run(psql, env=server.shell("analyst_user", "logins") | secret, capture_output=True, text=True)
    assert refused.returncode == 3
    assert "sekret" not in (server.folder / "postgres" / "server.log").read_text()

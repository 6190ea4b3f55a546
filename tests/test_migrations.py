"""make migrate: applied once, harmless twice, and in one sentence when it cannot be."""

import contextlib
import shutil
from dataclasses import replace

import psycopg2.errors
import pytest

from local.stack import LOGINS
from migrations import __main__ as migrations
from tests.conftest import administration, run_migrations
from tests.pipeline import dbt, query

LOGIN = '{"user_id": "u", "app_version": "1.2", "device_type": "ios", "ip": "192.0.2.1", "device_id": "d"}'

KEYS = "select kind, version, key from masking.keys"

# With xmin, so that what was written again counts as changed, even if it was written as it had been.
STRUCTURE = """
select 'relation', oid::regclass::text, xmin::text, relacl::text from pg_class
where relnamespace::regnamespace::text in ('raw', 'masking', 'staging', 'analytics', 'privacy', 'migrations')
union all
select 'function', oid::regprocedure::text, xmin::text, proacl::text from pg_proc
where pronamespace::regnamespace::text in ('raw', 'masking', 'staging', 'analytics', 'privacy')
union all
select 'trigger', tgname, xmin::text, tgenabled::text from pg_trigger
union all
select 'view', ev_class::regclass::text, xmin::text, null from pg_rewrite
order by 1, 2
"""


def test_migrating_twice_changes_nothing(database):
    before = [query(database, sql, login="postgres") for sql in (KEYS, STRUCTURE)]

    result = run_migrations(database.env("migrator"))

    assert result.returncode == 0, result.stderr
    assert [query(database, sql, login="postgres") for sql in (KEYS, STRUCTURE)] == before
    assert len(before[0]) == 2


def test_migrating_twice_waits_for_no_loader_and_no_reader(database):
    """Each holds what it locks until the end of a transaction that does not end."""
    dbt(database, "run")
    with contextlib.ExitStack() as held:
        loader, reader = (
            held.enter_context(contextlib.closing(database.connect(login))).cursor()
            for login in ("loader_user", "transformer_user")
        )
        loader.execute(
            "insert into raw.sqs_messages (message_id, queue, body, load_id)"
            " select 'm', 'q', 'b', raw.current_load_id();"
            "insert into raw.loads (queue, received, landed, duplicates) values ('q', 1, 1, 0)"
        )
        reader.execute(
            "select count(*) from masking.stg_sqs__messages, masking.stg_sqs__mask_consistency, privacy.erased_messages"
        )

        result = run_migrations(database.env("migrator") | {"PGOPTIONS": "-c lock_timeout=3s"})

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("variable", ["PGGSSENCMODE", "PGCHANNELBINDING"])
def test_variables_that_libpq_alone_knows_do_no_harm(database, variable):
    """dbmate's own client refuses to work where one is set."""
    result = run_migrations(database.env("migrator") | {variable: "disable"})

    assert result.returncode == 0, result.stderr


def test_two_at_a_time_take_turns_and_nobody_else_can_hold_the_lock(database):
    with contextlib.closing(database.connect("migrator")) as other, other.cursor() as cursor:
        cursor.execute("lock table migrations.routines in share update exclusive mode")
        result = run_migrations(database.env("migrator") | {"PGOPTIONS": "-c lock_timeout=2s"})
    assert result.returncode == 5
    assert result.stderr.splitlines() == ["Another `make migrate` is under way in this database: wait for it to end."]
    for login in LOGINS:
        with contextlib.closing(database.connect(login)) as other, other.cursor() as cursor:
            if login != "migrator":
                with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                    cursor.execute("lock table migrations.routines in share update exclusive mode")


DRIFT = {
    "body": "create or replace function privacy.purge(keep_days integer) returns text language sql return 'drifted'",
    "grant": "grant execute on function privacy.bury(text[], bigint) to public",
    "lost-grant": "revoke execute on function privacy.forget_user from privacy_officer",
    "definer": "alter function privacy.forget_user security invoker",
    "setting": "alter function privacy.forget_user set search_path = public",
    "left-over": "create function privacy.drifted() returns int language sql return 1",
    "trigger": "alter table raw.sqs_messages disable trigger erase_again",
    "dropped-trigger": "drop trigger append_only on privacy.audit",
    "dropped-function": "drop function privacy.purge",
}


def test_functions_and_their_grants_are_made_what_the_files_say(database):
    """What was changed by hand is mended, what no file has is dropped, and nothing else changes."""
    as_the_files_say = query(database, ROUTINES, login="postgres")
    for drift in DRIFT.values():
        query(database, f"set role pipeline_owner; {drift}; select 1", login="postgres")
    drifted = query(database, ROUTINES, login="postgres")
    assert drifted != as_the_files_say

    result = run_migrations(database.env("migrator"))

    assert result.returncode == 0, result.stdout + result.stderr
    assert query(database, ROUTINES, login="postgres") == as_the_files_say


def test_a_function_of_dbts_with_the_name_of_ours_stops_no_migration(database):
    create = "create function analytics.decode_app_version(version text) returns text language sql return version"
    query(database, f"set role transformer; {create}; select 1", login="transformer_user")
    result = run_migrations(database.env("migrator"))
    assert result.returncode == 0, result.stderr


def test_each_kind_of_drift_is_noticed(database):
    def in_database() -> str:
        cursor.execute(migrations.IN_DATABASE)
        return cursor.fetchone()[0]

    with contextlib.closing(database.connect("postgres")) as connection, connection.cursor() as cursor:
        as_applied = in_database()
        for drift in DRIFT.values():
            cursor.execute(f"savepoint s; set local role pipeline_owner; {drift}")
            assert in_database() != as_applied, drift
            cursor.execute("rollback to s")
            assert in_database() == as_applied


ROUTINES = """
select
    oid::regprocedure::text, pg_get_functiondef(oid), proacl::text, proowner::regrole::text,
    obj_description(oid, 'pg_proc')
from pg_proc where pronamespace::regnamespace::text in ('raw', 'masking', 'privacy', 'analytics')
union all
select pg_get_triggerdef(oid), tgenabled::text, null, null, null from pg_trigger where not tgisinternal
order by 1
"""


def test_a_function_that_was_changed_or_removed_in_the_files_is_so_in_the_database(database, monkeypatch, tmp_path):
    shutil.copytree(migrations.ROOT / "migrations", tmp_path / "migrations")
    file = tmp_path / "migrations" / "routines" / "analytics.sql"
    another = file.with_name("another.sql")
    monkeypatch.setattr(migrations, "ROOT", tmp_path)
    for name, value in database.env("migrator").items():
        monkeypatch.setenv(name, value)

    file.write_text(file.read_text().replace("app_version / 1000000", "'v' || app_version / 1000000"))
    another.write_text("set local role masker; create function masking.another() returns int language sql return 1;")
    migrations.apply_routines()
    assert query(database, "select analytics.decode_app_version(2003000)") == [("v2.3.0",)]
    assert query(database, "select masking.another()", login="postgres") == [(1,)]

    query(database, "create view masking.v as select masking.another(); select 1", login="postgres")
    another.unlink()
    migrations.apply_routines()  # as long as the boundary uses it, it stays
    assert query(database, "select masking.another()", login="postgres") == [(1,)]

    query(database, "drop view masking.v; select 1", login="postgres")
    migrations.apply_routines()
    with pytest.raises(psycopg2.errors.UndefinedFunction):
        query(database, "select masking.another()", login="postgres")


def test_a_file_that_cannot_be_applied_changes_nothing(database, monkeypatch, tmp_path, capsys):
    shutil.copytree(migrations.ROOT / "migrations", tmp_path / "migrations")
    (tmp_path / "migrations" / "routines" / "zzz.sql").write_text("select 1 / 0")
    monkeypatch.setattr(migrations, "ROOT", tmp_path)
    for name, value in database.env("migrator").items():
        monkeypatch.setenv(name, value)
    before = query(database, STRUCTURE, login="postgres")
    with pytest.raises(SystemExit) as ended:
        migrations.apply_routines()
    assert ended.value.code == 5
    assert capsys.readouterr().err == (
        "migrations/routines/zzz.sql could not be applied and was rolled back: division by zero.\n"
    )
    assert query(database, STRUCTURE, login="postgres") == before


def test_a_database_of_earlier_migrations_is_told_how_to_move(database):
    earlier = "drop table migrations.routines; insert into migrations.applied values ('0014') returning 1"
    query(database, earlier, login="migrator")
    result = run_migrations(database.env("migrator"))
    assert result.returncode == 5
    [sentence] = result.stderr.splitlines()
    assert sentence.startswith(f"The database {database.name} was made by an earlier set of migrations")
    assert sentence.endswith("deploy/README.md, Move data from an earlier version.")


def test_a_database_of_a_newer_release_is_not_taken_for_one_of_an_earlier(database):
    """As after a rollback, or from a checkout that was not updated: its data need not move anywhere."""
    query(database, "insert into migrations.applied values ('0999') returning 1", login="migrator")
    result = run_migrations(database.env("migrator"))
    assert result.returncode == 5
    [sentence] = result.stderr.splitlines()
    assert sentence.startswith(f"The database {database.name} was migrated by a newer release than this one")


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
    assert "python -m migrations" in result.stdout + result.stderr
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
        "CITUS is set, but there is no extension citus: see deploy/README.md, Citus."
    ]


@pytest.mark.parametrize(
    ("options", "status"),
    [("-c statement_timeout=1ms", 15), ("-c transaction_read_only=on -c default_transaction_read_only=on", 14)],
    ids=["timeout", "read-only"],
)
def test_whatever_the_database_says_is_one_sentence(stack, migrated, options, status):
    fresh = replace(migrated, name=f"{migrated.name}_refused")
    with administration(stack) as cursor:
        cursor.execute(f"create database {fresh.name} owner migrator")
    try:
        result = run_migrations(fresh.env("migrator") | {"PGOPTIONS": options})
    finally:
        with administration(stack) as cursor:
            cursor.execute(f"drop database {fresh.name}")
    assert result.returncode == status, result.stderr
    assert len(result.stderr.splitlines()) == 1

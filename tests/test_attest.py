"""make attest: a database as the project says passes; each kind of drift is one line that says what to do."""

import contextlib
import json

import psycopg2.errors
import pytest

from privacy import attest
from tests.conftest import administration, temporary_server
from tests.officer import as_superuser, privacy
from tests.pipeline import dbt, land, query

TAKEN = "staging.int_messages__masked"


@pytest.fixture(scope="module")
def built(module_database):
    land(module_database, ['{"user_id": "u"}'])
    dbt(module_database, "run")
    return module_database


def found_off(cursor) -> dict[str, str]:
    """What is off, and its remedy."""
    return {item.finding: item.remedy for item in attest.examine(cursor) if not item.well}


@contextlib.contextmanager
def superuser(database):
    """In a transaction that is rolled back."""
    with contextlib.closing(database.connect("postgres")) as connection, connection.cursor() as cursor:
        yield cursor
        connection.rollback()


def test_a_new_database_is_as_the_contract_says(either_postgres):
    with superuser(either_postgres) as cursor:
        expected = attest.CONTRACT.read_text().splitlines()
        off = [str(item) for item in attest.against_contract(attest.inventory(cursor), expected) if not item.well]
    assert off == []


# What somebody does, and the line that shows it.
DRIFT = {
    "grant-on-table": (
        "grant select on raw.sqs_messages to analyst",
        "the project does not have: relation raw.sqs_messages: analyst SELECT",
    ),
    "grant-on-column": (
        "grant select (body) on raw.sqs_messages to loader",
        "the project does not have: relation raw.sqs_messages: loader SELECT (body)",
    ),
    "grant-lost": (
        "revoke insert on raw.loads from loader; revoke insert (load_id) on raw.loads from loader",
        "the database does not have: relation raw.loads: loader INSERT (duplicates, landed, load_id, queue, received)",
    ),
    "grant-to-public": (
        "grant usage on schema raw to public",
        "the project does not have: schema raw: PUBLIC USAGE",
    ),
    "grant-option": (
        "grant usage on schema raw to loader with grant option",
        "the project does not have: schema raw: loader USAGE with grant option",
    ),
    "grant-on-database": (
        "do $$ begin execute format('grant create on database %I to transformer', current_database()); end $$",
        "the project does not have: database: transformer CREATE",
    ),
    "grant-on-function": (
        "grant execute on function masking.masked to transformer",
        "the project does not have: function masking.masked(text,text,integer,integer): transformer EXECUTE",
    ),
    "grant-on-sequence": (
        "grant update on raw.load_id_seq to loader",
        "the project does not have: relation raw.load_id_seq: loader UPDATE",
    ),
    "owner-of-table": (
        "alter table privacy.audit owner to transformer",
        "the project does not have: relation privacy.audit is owned by transformer, kind r",
    ),
    "owner-of-schema": (
        "alter schema privacy owner to transformer",
        "the project does not have: schema privacy is owned by transformer",
    ),
    "owner-of-database": (
        "do $$ begin execute format('alter database %I owner to transformer', current_database()); end $$",
        "the project does not have: database is owned by transformer",
    ),
    "owner-of-function": (
        "alter function privacy.record owner to postgres",
        "the project does not have: function privacy.record(text,bigint,text,text,bigint) is owned by postgres, vu"
        " search_path=pg_catalog, pg_temp",
    ),
    "function-with-definers-rights": (
        "alter function masking.ensure_keys security definer",
        "the project does not have: function masking.ensure_keys(text[]) is owned by masker, security definer,"
        " vu search_path=pg_catalog, pg_temp",
    ),
    "function-removed": (
        "drop function privacy.purge",
        "the database does not have: function privacy.purge(integer): retention EXECUTE",
    ),
    "function-added": (
        "create function privacy.f() returns int language sql return 1",
        "the project does not have: function privacy.f() is owned by postgres, vu ",
    ),
    "function-named-as-what-dbt-makes-on-citus": (
        "create function masking.read_keys() returns int language sql return 1",
        "the project does not have: function masking.read_keys() is owned by postgres, vu ",
    ),
    "function-of-an-owner-elsewhere": (
        "create schema x authorization masker; set role masker;"
        " create function x.f() returns int language sql return 1; reset role",
        "the project does not have: function x.f() is owned by masker, vu ",
    ),
    "view-of-an-owner-elsewhere": (
        "create schema x authorization masker; set role masker; create view x.v as select key from masking.keys;"
        " reset role",
        "the project does not have: relation x.v is owned by masker, kind v",
    ),
    "view-of-a-superusers-elsewhere": (
        "create schema x; create view x.v as select body from raw.sqs_messages",
        "the project does not have: relation x.v is owned by postgres, kind v",
    ),
    "function-of-a-superusers-elsewhere": (
        "create schema x; create function x.f() returns setof text language sql security definer"
        " begin atomic select body from raw.sqs_messages; end",
        "the project does not have: function x.f() is owned by postgres, security definer, vu ",
    ),
    "copy-of-keys-that-is-refreshed": (
        "create schema x; create materialized view x.v as select key from masking.keys",
        "the project does not have: relation x.v is owned by postgres, kind m",
    ),
    "publication": (
        "create publication p for table raw.sqs_messages",
        "the project does not have: publication p has raw.sqs_messages",
    ),
    "publication-of-everything": (
        "create publication p for all tables",
        "the project does not have: publication p has masking.keys",
    ),
    "unlogged": (
        "alter table privacy.erased_messages set unlogged",
        "the project does not have: relation privacy.erased_messages is owned by pipeline_owner, kind r, unlogged",
    ),
    "default-of-a-column": (
        "alter table privacy.audit alter login set default 'somebody'",
        "the project does not have: column privacy.audit.login: name not null default 'somebody'::name",
    ),
    "samples-of-bodies": (
        "alter table raw.sqs_messages alter body set statistics 100",
        "the project does not have: column raw.sqs_messages.body: text not null",
    ),
    "index-with-values": (
        "create index i on raw.sqs_messages (left(body, 100))",
        "the project does not have: index raw.i on raw.sqs_messages is on an expression",
    ),
    "statistics-of-bodies": (
        "create statistics raw.s on left(body, 100) from raw.sqs_messages",
        "the project does not have: statistics s on raw.sqs_messages",
    ),
    "parameter": (
        "grant set on parameter session_replication_role to loader",
        "the project does not have: parameter session_replication_role: loader SET",
    ),
    "trigger-disabled": (
        "alter table privacy.audit disable trigger append_only",
        "the project does not have: trigger CREATE TRIGGER append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON"
        " privacy.audit FOR EACH STATEMENT EXECUTE FUNCTION privacy.refuse_change(), D",
    ),
    "trigger-removed": (
        "drop trigger in_this_load on raw.loads",
        "the database does not have: trigger CREATE TRIGGER in_this_load BEFORE INSERT ON raw.loads FOR EACH ROW"
        " EXECUTE FUNCTION raw.in_this_load(), O",
    ),
    "constraint-removed": (
        "alter table raw.sqs_messages drop constraint load_id_is_positive",
        "the database does not have: constraint load_id_is_positive on raw.sqs_messages: CHECK ((load_id > 0))",
    ),
    "row-security": (
        "alter table raw.sqs_messages enable row level security",
        "the project does not have: relation raw.sqs_messages is owned by pipeline_owner, kind r, row security",
    ),
    "policy": ("create policy p on raw.sqs_messages", "the project does not have: policy p on raw.sqs_messages"),
    "rule": (
        "create rule r as on delete to privacy.audit do instead nothing",
        "the project does not have: rule r on privacy.audit",
    ),
    "default-privileges": (
        "alter default privileges for role pipeline_owner grant select on tables to analyst",
        "the project does not have: default privileges of pipeline_owner r: analyst SELECT",
    ),
    "default-privileges-lost": (
        "alter default privileges for role masker grant execute on functions to public",
        "the database does not have: default privileges of masker f: masker EXECUTE",
    ),
    "role-attribute": ("alter role loader createrole", "the project does not have: role loader createrole nologin"),
    "view-added": (
        "set role masker; create view masking.v with (security_barrier) as select 1 as x; reset role",
        "view masking.v is not the one that `make migrate` deployed",
    ),
    "view-without-barrier": (
        "alter view masking.stg_sqs__messages reset (security_barrier)",
        "masking.stg_sqs__messages has no security_barrier",
    ),
    "view-granted": (
        "grant select on masking.base_sqs__messages to analyst",
        "masking.base_sqs__messages: analyst SELECT",
    ),
    "table-of-dbts-granted": (
        "grant select on analytics.user_logins to loader",
        "analytics.user_logins: loader SELECT",
    ),
    "table-of-dbts-owned": (
        "alter table analytics.user_logins owner to analyst",
        "analytics.user_logins belongs to analyst",
    ),
    "table-of-dbts-hidden": (f"alter table {TAKEN} enable row level security", f"{TAKEN} has row security"),
    "table-of-dbts-unlogged": (f"alter table {TAKEN} set unlogged", f"{TAKEN} is unlogged"),
    "trigger-of-transformers": (
        f"create trigger t after insert on {TAKEN} execute function suppress_redundant_updates_trigger()",
        f"trigger t on {TAKEN}",
    ),
    "index-of-transformers": (
        f"create index i on {TAKEN} (md5(subject))",
        f"index staging.i on {TAKEN} is on an expression",
    ),
    "check-of-transformers": (f"alter table {TAKEN} add constraint c check (true)", f"constraint c on {TAKEN}"),
    "function-of-transformers": (
        "set role transformer; create function staging.f() returns int language sql return 1; reset role",
        "function staging.f() belongs to transformer",
    ),
    "type-of-transformers": (
        "set role transformer; create domain staging.d as text; reset role",
        "type staging.d belongs to transformer",
    ),
    "materialized-view": (
        "set role transformer; create materialized view analytics.m as select 1 as x; reset role",
        "analytics.m is of the kind m",
    ),
    "member-of-an-owner": (
        "create role boss login; grant masker to boss",
        "boss is in masker (granted by postgres)",
    ),
    "member-of-a-powerful-role": (
        "create role boss login; grant pg_execute_server_program to boss with admin option",
        "boss is in pg_execute_server_program and may add others (granted by postgres)",
    ),
    "daily-role-in-another": (
        "grant pg_monitor to loader",
        "loader is in pg_monitor (granted by postgres)",
    ),
    "member-of-a-superuser": ("grant postgres to analyst_user", "analyst_user is in postgres (granted by postgres)"),
    "member-of-the-login-for-backups": (
        "create role boss login; grant backup_user to boss",
        "boss is in backup_user (granted by postgres)",
    ),
    "member-of-an-officers-login": (
        "grant privacy_officer_user to analyst_user",
        "analyst_user is in privacy_officer_user (granted by postgres)",
    ),
    "superuser": ("create role boss superuser", "boss: superuser"),
    "superuser-with-a-name-of-rds": ("create role rds_boss superuser", "rds_boss: superuser"),
    "member-with-a-name-of-rds": (
        "create role rds_boss login; grant pg_read_all_data to rds_boss",
        "rds_boss is in pg_read_all_data (granted by postgres)",
    ),
    "bypasses-row-security": ("create role boss bypassrls", "boss: bypasses row security"),
    "replication": ("alter role analyst_user replication", "analyst_user: replication"),
    "functions-open": (
        "grant execute on function pg_advisory_lock(bigint) to public",
        "1 functions for advisory locks and large objects are open to every login",
    ),
    "log-setting": ("set local log_statement = 'all'", "log_statement is all"),
    "no-copy-of-the-audit-in-the-log": ("set local log_min_messages = fatal", "log_min_messages is fatal"),
    "parameters-in-the-log": ("set local pgaudit.log_parameter = on", "pgaudit.log_parameter is on"),
    "triggers-off": ("set local session_replication_role = replica", "session_replication_role is replica"),
    "triggers-off-for-a-login": (
        "alter role loader_user set session_replication_role = replica",
        "session_replication_role is replica for loader_user in every database",
    ),
    "log-setting-of-the-database": (
        "do $$ begin execute format('alter database %I set debug_print_plan = on', current_database()); end $$",
        "debug_print_plan is on for every login in this database",
    ),
    "log-setting-of-a-login-here": (
        "do $$ begin execute format("
        "'alter role analyst_user in database %I set log_statement = %L', current_database(), 'all'); end $$",
        "log_statement is all for analyst_user in this database",
    ),
    "setting-of-the-login-that-looks": (
        "alter role postgres set log_statement = 'none'",
        "log_statement is none for postgres in every database",
    ),
    "event-trigger": (
        "create schema x; create function x.f() returns event_trigger language plpgsql as 'begin end';"
        " create event trigger of_nobodys on ddl_command_end execute function x.f()",
        "the project does not have: event trigger of_nobodys executes x.f()",
    ),
    "old-keys": ("update masking.keys set created_at = now() - interval '500 days'", "500 days old"),
    "no-keys": ("truncate masking.keys", "masking.keys is empty"),
    "rotation-open": (
        "grant execute on function masking.carried_over to transformer",
        "a rotation is open",
    ),
    "sequence-behind": (
        "select setval('raw.load_id_seq', 1); alter table raw.loads disable trigger user;"
        " insert into raw.loads (load_id, queue, received, landed, duplicates) values (99, 'q', 0, 0, 0)",
        "raw.load_id_seq is at 1, the newest load is 99",
    ),
    "sequence-that-gives-the-newest-number-again": (
        "select setval('raw.load_id_seq', 99, false); alter table raw.loads disable trigger user;"
        " insert into raw.loads (load_id, queue, received, landed, duplicates) values (99, 'q', 0, 0, 0)",
        "raw.load_id_seq is at 98, the newest load is 99",
    ),
}


@pytest.mark.parametrize("drift", DRIFT)
def test_each_drift_is_reported_with_what_to_do(built, drift):
    statements, finding = DRIFT[drift]
    with superuser(built) as cursor:
        before = found_off(cursor)
        cursor.execute(statements)
        after = found_off(cursor)
    assert before == {}
    assert after[finding] != ""


def test_a_function_with_another_body_is_reported(built):
    with superuser(built) as cursor:
        cursor.execute(
            "create or replace function privacy.purge(keep_days integer) returns text language sql return 'x'"
        )
        off = found_off(cursor)
    [body] = [line for line in off if "privacy.purge(integer) has the body" in line and "project" in line]
    assert off[body] == attest.MIGRATE


def test_the_command_ends_with_11_when_something_is_off(built):
    well = privacy(built, "attest", login="monitor_user")
    assert (well.returncode, well.stderr) == (0, ""), well.stdout
    assert "ok    record       last audit entry: none" in well.stdout

    as_superuser(built, "grant select on raw.sqs_messages to analyst; select 1")
    off = privacy(built, "attest", "--json", login="monitor_user")
    as_superuser(built, "revoke select on raw.sqs_messages from analyst; select 1")

    assert off.returncode == 11
    assert [each for each in json.loads(off.stdout) if not each["well"]] == [
        {
            "kind": "contract",
            "well": False,
            "finding": "the project does not have: relation raw.sqs_messages: analyst SELECT",
            "remedy": attest.BY_HAND,
        }
    ]


def test_who_may_not_see_it_all_is_told_who_may(built):
    refused = privacy(built, "attest", login="analyst_user")
    assert refused.returncode == 4
    assert "Run it as a login in the role monitor, or as superuser" in refused.stderr


@pytest.mark.parametrize("login", ["backup_user", "postgres"])
def test_the_login_of_monitoring_sees_as_much_as_one_that_reads_everything(built, login):
    assert privacy(built, "attest", login="monitor_user").stdout == privacy(built, "attest", login=login).stdout


def test_the_outcome_is_recorded_when_asked_for_and_only_then(built):
    def recorded() -> list[tuple]:
        return query(built, "select login, failed from privacy.attestations order by at", login="monitor_user")

    privacy(built, "attest", login="monitor_user")
    assert recorded() == []

    well = privacy(built, "attest", "--record", login="monitor_user")
    as_superuser(built, "grant select on raw.sqs_messages to analyst; select 1")
    off = privacy(built, "attest", "--record", login="monitor_user")
    as_superuser(built, "revoke select on raw.sqs_messages from analyst; select 1")

    assert (well.returncode, off.returncode) == (0, 11)
    assert recorded() == [("monitor_user", 0), ("monitor_user", 1)]


def test_the_master_user_and_the_roles_of_rds_are_no_drift(built):
    with superuser(built) as cursor:
        cursor.execute(
            "create role rds_superuser; create role rds_replication replication; create role rdsadmin superuser;"
            "create role master createrole createdb login in role rds_superuser;"
            "grant pg_signal_backend, pg_checkpoint, pg_read_all_data to rds_superuser with admin option"
        )
        assert found_off(cursor) == {}
        cursor.execute("alter role master replication")
        assert list(found_off(cursor)) == ["master: replication, creates roles"]


def test_who_may_create_roles_is_reported_where_that_is_in_every_role(built):
    """Up to PostgreSQL 15. From 16 on, as Vault's login, it gives what it was given with admin option, and no more."""
    with superuser(built) as cursor:
        cursor.execute("create role vault login createrole; grant loader, transformer to vault with admin option")
        reported = ["vault: creates roles"] if cursor.connection.server_version < 160000 else []
        assert list(found_off(cursor)) == reported


def test_a_slot_that_gets_every_change_is_reported():
    """Of raw and the keys, too, whatever a publication says: such as one of a tool that copies databases."""
    with temporary_server(settings={"wal_level": "logical"}) as server, administration(server) as cursor:
        for plugin in ("test_decoding", "pgoutput"):
            cursor.execute("select pg_create_logical_replication_slot('of_' || %s, %s)", [plugin] * 2)
        off = [item.finding for item in attest.powers(cursor) if not item.well]
    assert "the replication slot of_test_decoding (test_decoding) gets every change in this database" in off
    assert not any("pgoutput" in finding for finding in off)


def test_it_changes_nothing(built, monkeypatch):
    for name, value in built.env("postgres").items():
        monkeypatch.setenv(name, value)
    with attest.reading() as cursor, pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        cursor.execute("create table public.t ()")

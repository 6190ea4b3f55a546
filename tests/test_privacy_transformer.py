"""Nothing that transformer does to its tables changes what an officer's functions do, or runs inside them."""

import contextlib
import json

import psycopg2
import psycopg2.errors
import pytest

from tests.conftest import copy
from tests.officer import as_superuser
from tests.pipeline import dbt, land, query

REASON = "ticket 77: account closed"
TAKEN = "staging.int_messages__masked"
CALLS = (f"privacy.forget_user('u1', '{REASON}')", "privacy.purge(28)")


def login(user_id: str) -> str:
    fields = {
        "user_id": user_id,
        "ip": "192.0.2.1",
        "device_id": f"of-{user_id}",
        "app_version": "1.2",
        "device_type": "ios",
    }
    return json.dumps(fields)


@pytest.fixture(scope="module")
def built(module_database):
    """Three persons in raw, old enough to be purged; a fourth of whom only dbt's tables know."""
    land(module_database, [login("u1"), login("u2"), login("u3")])
    land(module_database, [login("u4")], prefix="purged")
    dbt(module_database, "run")
    as_superuser(module_database, "update raw.loads set loaded_at = loaded_at - interval '40 days' returning 1")
    as_superuser(module_database, "delete from raw.sqs_messages where message_id = 'purged0' returning 1")
    return module_database


# As transformer. The trap says who runs it, and its disguises pass for functions that the planner may run.
TRAP = f"""
    set local role transformer;
    create function staging.trap() returns boolean language plpgsql as $f$
    begin
        raise warning 'trapped: %', current_user;
        return true;
    end $f$;
    create function staging.folds(anyelement) returns boolean language sql immutable as 'select staging.trap()';
    create function staging.triggered() returns trigger language plpgsql as $f$
    begin
        perform staging.trap();
        return null;
    end $f$;
    alter function staging.trap() immutable;
    create domain staging.trapped as text check (staging.folds(value));
    create collation staging.blind (provider = icu, locale = 'und-u-ks-level1', deterministic = false);
    create type staging.pair as (a text, b text);
    create view staging.as_it_is as select * from {TAKEN};
"""
ALTER = f"alter table {TAKEN}"
RENAME = f"{ALTER} rename to real; alter table staging.real owner to transformer"
GRANT = f"grant select, update on {TAKEN} to pipeline_owner"

# What transformer may do and what makes the functions refuse to work.
REFUSED = {
    "view": f"{RENAME}; create view {TAKEN} as select * from staging.real where staging.trap(); {GRANT}",
    "materialized-view": f"{RENAME}; create materialized view {TAKEN} as select * from staging.real; {GRANT}",
    "partitioned": f"{RENAME}; create table {TAKEN} (like staging.real) partition by list (message_id); {GRANT}",
    "partition": f"{RENAME}; create table staging.whole (like staging.real) partition by list (message_id);"
    f" create table {TAKEN} partition of staging.whole default; {GRANT}",
    "rule": f"create rule r as on update to {TAKEN} do also select staging.trap()",
    "policy": f"{ALTER} enable row level security; create policy p on {TAKEN} using (staging.trap())",
    "forced-policy": f"create policy p on {TAKEN} using (staging.trap()); {ALTER} enable row level security,"
    " force row level security",
    "index-on-expression": f"create index on {TAKEN} (staging.folds(subject))",
    "partial-index": f"create index on {TAKEN} (load_id) where staging.folds(1)",
    "index-with-collation": f"create index on {TAKEN} (subject collate staging.blind)",
    "statistics": f"create statistics staging.s on (staging.folds(1)), load_id from {TAKEN}",
    "child": f"create table staging.child () inherits ({TAKEN})",
    "parent": f"create table staging.parent (); {ALTER} inherit staging.parent",
    "check": f"{ALTER} add check (staging.folds(1)) not valid",
    "check-on-column": f"{ALTER} add check (staging.folds(subject)) not valid",
    "generated-column": f"{ALTER} add masked_trap text generated always as (staging.folds(1)::text) stored",
    "domain": f"{ALTER} add masked_trap staging.trapped",
    "domain-of-subject": f"drop view staging.as_it_is cascade; {ALTER} alter subject type staging.trapped",
    "array-of-domain": f"{ALTER} add masked_trap staging.trapped[]",
    "composite": f"{ALTER} add masked_trap staging.pair",
    "collation-of-subject": f"drop view staging.as_it_is cascade; {ALTER} alter subject type text"
    " collate staging.blind",
    "subject-of-another-type": f"drop view staging.as_it_is cascade; {ALTER} alter subject type name",
    "padded-subject": f"drop view staging.as_it_is cascade; {ALTER} alter subject type character(200)",
    "message_id-cut": f"drop view staging.as_it_is cascade; {ALTER} alter message_id type name",
    "load_id-of-another-type": "drop view staging.as_it_is, analytics.queue_health cascade;"
    f" {ALTER} alter load_id type double precision",
    "tokens-of-another-type": f"{ALTER} add masked_trap xml",
    "another-column": f"{ALTER} add x staging.pair[]",
    "no-subject": f"drop view staging.as_it_is cascade; {ALTER} rename subject to object",
}

# What may stand there: it changes nothing, and does not run.
IN_VAIN = {
    "trigger": f"create trigger t before insert or update or delete on {TAKEN} execute function staging.triggered()",
    "constraint-trigger": f"create constraint trigger t after insert on {TAKEN} for each row"
    " execute function staging.triggered()",
    "default": f"{ALTER} add x boolean; {ALTER} alter x set default staging.trap()",
    "functions-of-the-same-name": "create function staging.btrim(text) returns text language sql as"
    " 'select staging.trap()::text'; create function staging.count() returns bigint language sql as 'select 0'",
    "operator": "create function staging.eq(text, text) returns boolean language sql as 'select staging.trap()';"
    " create operator staging.= (leftarg = text, rightarg = text, function = staging.eq)",
    "search-path": "set local search_path = staging, pg_temp, pg_catalog",
    "table-of-the-same-name": f"create temporary table int_messages__masked (like {TAKEN})",
    "statistics-of-columns": f"create statistics staging.s on subject, load_id from {TAKEN}; analyze {TAKEN}",
    "index": f"create index on {TAKEN} (subject)",
    "foreign-key": f"create table staging.f (message_id text references {TAKEN} (message_id))",
}


def called(cursor, call: str) -> tuple:
    """What the call brings back and leaves, as privacy_officer_user."""
    cursor.execute("set local session authorization privacy_officer_user")
    cursor.execute(f"select * from {call}")
    returned = cursor.fetchall()
    cursor.execute("reset session authorization")
    cursor.execute(
        "select array(select message_id from raw.sqs_messages order by 1),"
        " array(select message_id from privacy.erased_messages order by 1)"
    )
    return returned, cursor.fetchall()


@pytest.fixture
def cursor(built):
    """The superuser, in a transaction that is rolled back."""
    with contextlib.closing(built.connect("postgres")) as connection, connection.cursor() as cursor:
        yield cursor
        connection.rollback()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("attack", REFUSED)
def test_is_refused(cursor, attack, call):
    cursor.execute(f"{TRAP}; {REFUSED[attack]}; reset role")
    cursor.connection.notices.clear()
    with pytest.raises(psycopg2.Error, match=r"is not as dbt makes it|row-level security"):
        called(cursor, call)
    assert not any("trapped" in notice for notice in cursor.connection.notices)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("attack", IN_VAIN)
def test_changes_nothing(cursor, attack, call):
    cursor.execute("savepoint before")
    expected = called(cursor, call)
    cursor.execute(f"rollback to before; {TRAP}; {IN_VAIN[attack]}; reset role")
    cursor.connection.notices.clear()
    assert called(cursor, call) == expected
    assert not any("trapped" in notice for notice in cursor.connection.notices)


def test_the_trap_works(cursor):
    cursor.execute(f"{TRAP}; {REFUSED['view']}; reset role; select count(*) from {TAKEN}")
    assert cursor.connection.notices[-1] == "WARNING:  trapped: postgres\n"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "change",
    [
        f"create index on {TAKEN} (md5(subject))",
        f"create index concurrently on {TAKEN} (md5(subject))",
        f"create statistics staging.late on (md5(subject)), load_id from {TAKEN}",
        f"{ALTER} enable row level security",
        f"create rule r as on update to {TAKEN} do also select 1",
        f"create table staging.child () inherits ({TAKEN})",
    ],
)
def test_nothing_is_changed_while_the_function_is_at_work(built, call, change):
    with (
        contextlib.closing(built.connect("privacy_officer_user")) as officer,
        contextlib.closing(built.connect("transformer_user")) as transformer,
    ):
        officer.cursor().execute(f"select {call}")
        transformer.autocommit = True
        at_work = transformer.cursor()
        at_work.execute("set role transformer; set lock_timeout = '300ms'")
        with pytest.raises(psycopg2.errors.LockNotAvailable):
            at_work.execute(change)
        at_work.execute(f"insert into {TAKEN} (message_id, load_id) select 'x', 1 where false")  # as dbt does
        officer.rollback()


def test_what_is_erased_from_raw_raw_says(cursor):
    """Everybody's messages are made the victim's, and the victim's somebody else's; the victim's leave all the same."""
    cursor.execute(
        f"set local role transformer; update {TAKEN} set subject = case subject when 'u1' then 'u2' else 'u1' end;"
        "update analytics.user_logins set user_id = case user_id when 'u1' then 'u2' else 'u1' end; reset role"
    )
    _, left = called(cursor, CALLS[0])
    assert left == [(["m1", "m2"], ["m0", "purged0"])]
    cursor.execute("select removed from privacy.audit where action = 'person erased'")
    assert cursor.fetchall() == [(1,)]


DESTRUCTIVE = """
    select oid::regprocedure::text from pg_proc
    where
        pronamespace::regnamespace::text in ('raw', 'masking', 'privacy', 'analytics', 'staging')
        and prosrc ~* '(delete from|truncate|update privacy|originals)'
        and exists (
            select from unnest(array['loader', 'transformer', 'analyst', 'privacy_officer', 'monitor', 'retention'])
                as role
            where has_function_privilege(role, oid, 'execute')
        )
    order by 1
"""


def test_what_removes_or_reveals_anything_puts_itself_on_record(built):
    """Each function that somebody may call, and that removes or reveals something; each was looked at."""
    assert query(built, DESTRUCTIVE, login="postgres") == [
        ("privacy.erase_returned()",),  # tombstones are its record; of what was erased before
        ("privacy.find_tokens(text,text)",),  # on record: tokens looked up; it gives tokens alone
        ("privacy.forget_user(text,text)",),  # on record: person erased
        ("privacy.purge(integer)",),  # on record: messages purged
        ("privacy.seal_originals(boolean)",),  # reveals nothing: returns a number
        ("privacy.sealed_original(bigint)",),  # on record: original handed out
    ]
    with contextlib.closing(built.connect("postgres")) as connection, connection.cursor() as cursor:
        for call in CALLS:
            called(cursor, call)
        cursor.execute("select login, action, removed from privacy.audit order by id")
        assert cursor.fetchall() == [
            ("privacy_officer_user", "person erased", 1),
            ("privacy_officer_user", "messages purged", 2),
        ]
        connection.rollback()


ERASED = "u1"


@pytest.mark.parametrize("next_run", [("run",), ("run", "--full-refresh")], ids=" ".join)
def test_no_statistic_holds_an_erased_user_id(migrated, next_run):
    with copy(migrated) as database:
        land(database, [login(ERASED)] + [login(f"other{n}") for n in range(20)])
        land(database, [login(ERASED)] * 5, prefix="more")
        dbt(database, "run")
        with contextlib.closing(database.connect("postgres")) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute("analyze")
        statistics = (
            "select schemaname, tablename, attname from pg_stats where schemaname in ('staging', 'analytics')"
            f" and concat(most_common_vals, histogram_bounds) ~ '\\m{ERASED}\\M'"
        )
        assert query(database, statistics, login="postgres") != []
        query(database, f"select {CALLS[0]}", login="privacy_officer_user")
        dbt(database, *next_run)
        assert query(database, statistics, login="postgres") == []

"""What one login could do to stop the others: locks, connections, large objects, temporary files."""

import contextlib
import re

import psycopg2
import psycopg2.errors
import pytest

from local.stack import LOGINS
from tests.conftest import ROOT, copy, run_migrations
from tests.officer import REASON, Officer, as_officer, as_superuser, privacy
from tests.pipeline import dbt, land, query

DAILY = [login for login in LOGINS if login != "migrator"]
LOCKS = "select count(pg_advisory_lock(4611686018427387904 + n)) from generate_series(0, 4000) n"


@pytest.fixture
def open_to_all(database):
    """Where bootstrap.sql was run by somebody who is no superuser, as on RDS, everybody may take advisory locks."""
    advisory = "grant execute on function pg_advisory_lock(bigint), pg_try_advisory_xact_lock_shared(bigint) to public"
    as_superuser(database, f"{advisory}; select 1")
    return database


@pytest.mark.parametrize("login", DAILY)
@pytest.mark.parametrize(
    "attempt",
    [
        "select pg_advisory_lock(1)",
        "select pg_try_advisory_lock_shared(1, 2)",
        "select pg_advisory_xact_lock(1)",
        "select lo_create(0)",
        "select lo_from_bytea(0, 'x')",
        "select lo_creat(-1)",
        "set temp_file_limit = -1",
        "set max_locks_per_transaction = 1",
    ],
)
def test_what_nobody_needs_nobody_may(database, login, attempt):
    with (
        contextlib.closing(database.connect(login)) as connection,
        connection.cursor() as cursor,
        pytest.raises((psycopg2.errors.InsufficientPrivilege, psycopg2.errors.CantChangeRuntimeParam)),
    ):
        cursor.execute(attempt)


@pytest.mark.parametrize("login", DAILY)
@pytest.mark.parametrize("name", ["postgres", "template1"])
def test_no_login_gets_into_a_database_that_is_nobodys(stack, migrated, login, name):
    with pytest.raises(psycopg2.OperationalError, match="does not have CONNECT privilege"):
        stack.connect(login, name)


@pytest.mark.parametrize("login", DAILY)
def test_a_login_has_no_more_connections_than_its_share(database, login):
    with contextlib.ExitStack() as held:

        def connect_many() -> None:
            for _ in range(40):
                held.enter_context(contextlib.closing(database.connect(login)))

        with pytest.raises(psycopg2.OperationalError, match="too many connections for role"):
            connect_many()
        held.enter_context(contextlib.closing(database.connect("migrator")))


def test_the_shares_leave_some_for_others(stack):
    limits = "select sum(rolconnlimit) < current_setting('max_connections')::int from pg_roles where rolname = any(%s)"
    with contextlib.closing(stack.connect("postgres", "postgres")) as connection, connection.cursor() as cursor:
        cursor.execute(limits, (list(LOGINS),))
        assert cursor.fetchall() == [(True,)]


@pytest.mark.parametrize("login", ["analyst_user", "privacy_officer_user", "monitor_user"])
def test_a_reader_ends_by_itself(database, login):
    limits = "current_setting('statement_timeout'), current_setting('temp_file_limit')"
    assert query(database, f"select {limits}", login=login) == [("15min", "8GB")]


def test_loads_and_migrations_pass_by_locks_that_somebody_holds(open_to_all):
    """Every number that a load could lock next, and the one that dbmate would."""
    with contextlib.closing(open_to_all.connect("monitor_user")) as other, other.cursor() as cursor:
        cursor.execute(LOCKS)

        land(open_to_all, ["one", "two"])
        land(open_to_all, ["three"], prefix="later")
        dbt(open_to_all, "build")
        assert query(open_to_all, "select count(*) from analytics.rejected_messages") == [(3,)]
        migrated = run_migrations(open_to_all.env("migrator"))
        assert migrated.returncode == 0, migrated.stderr


def test_a_load_under_way_is_waited_for_whoever_holds_its_lock(open_to_all):
    """Its lock is then a lower one, and what dbt may read ends below it."""
    with (
        contextlib.closing(open_to_all.connect("monitor_user")) as other,
        contextlib.closing(open_to_all.connect("loader_user")) as loader,
    ):
        other.cursor().execute(LOCKS)
        under_way = loader.cursor()
        under_way.execute("select raw.current_load_id()")
        [under_way_id] = under_way.fetchone()
        land(open_to_all, ["one"])
        [(safe,)] = query(open_to_all, "select raw.safe_load_id()", login="transformer_user")
        assert safe <= under_way_id
        loader.commit()
        [(safe,)] = query(open_to_all, "select raw.safe_load_id()", login="transformer_user")
        assert safe == under_way_id + 2


@pytest.fixture(scope="module")
def built(module_database):
    land(module_database, ["one"])
    dbt(module_database, "run")
    return module_database


FORGED = [
    ("-1", "2026-01-01"),
    ("0", "2026-01-01"),
    ("1", "2026-01-01"),
    ("9223372036854775807", "2026-01-01"),
    ("raw.current_load_id() + 1", "2026-01-01"),
    ("5 + (set_config('raw.load_id', pg_current_xact_id() || ':5', true) is null)::integer", "2026-01-01"),
    ("raw.current_load_id()", "infinity"),
    ("raw.current_load_id()", "-infinity"),
    ("raw.current_load_id()", "1970-01-01"),
    ("raw.current_load_id()", "294276-01-01"),
]


@pytest.mark.parametrize(("load_id", "sent_at"), FORGED)
def test_the_loaders_login_forges_no_load(database, load_id, sent_at):
    land(database, ["one"])
    insert = "insert into raw.sqs_messages (message_id, queue, body, sent_at, load_id)"
    with pytest.raises((psycopg2.errors.CheckViolation, psycopg2.errors.InvalidParameterValue)):
        as_superuser(database, f"set role loader; {insert} select 'x', 'q', 'b', '{sent_at}', {load_id}; select 1")


@pytest.mark.parametrize("load_id", ["-1", "1", "9223372036854775807"])
def test_a_row_of_the_ledger_is_of_the_load_that_writes_it(database, load_id):
    land(database, ["one"])
    row = f"(load_id, queue, received, landed, duplicates) values ({load_id}, 'q', 0, 0, 0)"
    [(written,)] = query(database, f"insert into raw.loads {row} returning load_id", login="loader_user")
    assert written == 2


@pytest.mark.parametrize(
    "forged",
    [
        "insert into raw.sqs_messages (message_id, queue, body, load_id) select 'x', 'q', 'b', raw.current_load_id()",
        "insert into raw.loads (queue, received, landed, duplicates) values ('q', 5, 5, 0)",
    ],
    ids=["raw-without-ledger", "ledger-without-raw"],
)
def test_conservation_is_proved_both_ways(migrated, forged):
    with copy(migrated) as database:
        land(database, ["one"])
        with (
            contextlib.closing(database.connect("loader_user")) as connection,
            connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(forged)
        result = dbt(database, "build", expect=False)
        failed = {each.node.name for each in result.result if str(each.status) == "fail"}
        assert failed & {"assert_raw_is_what_landed", "assert_landed_is_accepted_plus_rejected"}


def make_impatient(database, function: str) -> None:
    """It gives up after a moment in place of a minute."""
    [(definition,)] = as_superuser(database, f"select pg_get_functiondef('{function}'::regproc)")
    as_superuser(database, definition.replace("'1min'", "'100ms'") + "; select 1")


def test_an_erasure_does_not_wait_for_ever_for_who_seals(database, tmp_path):
    """Nor for anything else that transformer's login could hold."""
    assert privacy(database, "seal-with", str(Officer(tmp_path).public_key)).returncode == 0
    land(database, ["one"])
    dbt(database, "run")
    make_impatient(database, "privacy.forget_user")
    with contextlib.closing(database.connect("transformer_user")) as other:
        other.cursor().execute("select privacy.seal_originals()")
        with pytest.raises(psycopg2.errors.LockNotAvailable):
            as_officer(database, f"set statement_timeout = '10s'; select privacy.forget_user('u9', '{REASON}')")


def test_a_rule_about_two_persons_does_not_wait_for_ever_for_an_officer(database):
    make_impatient(database, "privacy.require_two_persons")
    with contextlib.closing(database.connect("privacy_officer_user")) as officer:
        officer.cursor().execute(f"select privacy.find_tokens('abcdef', '{REASON}')")
        with pytest.raises(psycopg2.errors.LockNotAvailable):
            as_superuser(database, "set statement_timeout = '10s'; select privacy.require_two_persons(true)")


# Who stops whom as long as a transaction is open; PRIVACY.md says so.
ERASE = f"select privacy.forget_user('u9', '{REASON}')"
LOAD = "insert into raw.sqs_messages (message_id, queue, body, load_id) select 'x', 'q', 'b', raw.current_load_id()"
BUILD = "set role transformer; lock table staging.int_messages__masked in share row exclusive mode"
REPLACE = "set role transformer; lock table analytics.users in access exclusive mode"
HELD_UP = [
    ("loader_user", LOAD, "privacy_officer_user", ERASE),
    ("transformer_user", BUILD, "privacy_officer_user", ERASE),
    ("retention_user", "select privacy.purge(28)", "transformer_user", BUILD),
    ("privacy_officer_user", ERASE, "transformer_user", BUILD),
    ("privacy_officer_user", ERASE, "loader_user", LOAD),
    ("analyst_user", "select 1 from analytics.users", "transformer_user", REPLACE),
]


@pytest.mark.parametrize(("login", "does", "whom", "what"), HELD_UP)
def test_an_open_transaction_holds_up_what_privacy_md_says(built, login, does, whom, what):
    with contextlib.closing(built.connect(login)) as holder, contextlib.closing(built.connect(whom)) as other:
        unlimited = "set statement_timeout = 0; set idle_in_transaction_session_timeout = 0"  # which any login may
        holder.cursor().execute(f"{unlimited}; {does}")
        with pytest.raises(psycopg2.errors.QueryCanceled):
            other.cursor().execute(f"set statement_timeout = '300ms'; {what}")


def test_a_load_that_stays_open_holds_back_what_dbt_reads(database):
    with contextlib.closing(database.connect("loader_user")) as loader, loader.cursor() as cursor:
        cursor.execute("select raw.current_load_id(); set idle_in_transaction_session_timeout = 0")
        land(database, ["one"])
        dbt(database, "run")
        assert query(database, "select count(*) from analytics.rejected_messages") == [(0,)]


def test_the_login_for_backups_can_keep_the_servers_log(database):
    """Whoever may replicate may, and pg_basebackup replicates."""
    slot = "select pg_create_physical_replication_slot('kept', true); select pg_drop_replication_slot('kept')"
    assert len(query(database, slot, login="backup_user")) == 1


def test_a_reader_that_holds_a_lock_does_not_stop_a_load(database):
    """What readers may lock is what they may read; nobody needs more than that of raw to land."""
    with contextlib.closing(database.connect("transformer_user")) as other, other.cursor() as cursor:
        cursor.execute(
            "select message_id from raw.sqs_messages; select * from raw.loads; select * from raw.pipeline_state"
        )
        assert land(database, ["one"]) == ["m0"]


@pytest.mark.parametrize("folder", ["migrations/routines", "dbt_project"])
def test_nothing_compares_each_message_with_each(folder):
    """PostgreSQL does that for `not in (select …)`, as soon as what is selected does not fit into work_mem: a full
    refresh of a million messages took hours. masking.keys has a handful of rows."""
    files = [file for file in (ROOT / folder).rglob("*.sql") if file.name != "keys.sql" and "target" not in file.parts]
    assert files
    assert [file.name for file in files if re.search(r"not in\s*\(\s*select", file.read_text(), re.I)] == []


@pytest.mark.parametrize("text", ["1." * 500_000 + "1", ":" * 100_000, "1:" * 100_000], ids=["dots", "colons", "both"])
def test_a_long_text_is_searched_for_addresses_once_and_not_once_a_part(database, text):
    """Where a long field is declared, one message of an app could keep each build busy for hours."""
    search = f"set statement_timeout = '60s'; select masking.exposes('{text}', '198.51.100.7', 'address')"
    assert as_superuser(database, search) == [(False,)]


def test_of_many_texts_an_envelope_is_looked_for_in_few(database):
    """To read each of them as JSON took three times as long as to read the message."""
    looked = """
        set track_functions = 'all'; begin;
        select masking.is_around(jsonb_object_agg(number::text, '{'), array['user_id'])
        from generate_series(1, 10000) as number;
        select calls from pg_stat_xact_user_functions where funcname = 'parse_json'
    """
    [(calls,)] = as_superuser(database, looked)
    assert 0 < calls <= 100

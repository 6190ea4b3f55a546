"""On Citus, played by one PostgreSQL (citus_stand_in.sql): what is there and nowhere else. on_citus_too has the rest.

Citus itself is not to be had here; what the stand-in cannot tell is said in deploy/README.md.
"""

import json
import os
import threading
from contextlib import closing
from unittest import mock

import psycopg2.errors
import pytest

from loader.land import Database as Landing
from loader.sqs import Message
from local.stack import DATABASE
from tests.conftest import Database, administration, migrate, run_migrations, temporary_stack
from tests.officer import Officer, as_superuser, as_transformer, privacy
from tests.pipeline import dbt, land, query

pytestmark = pytest.mark.parametrize("migrated", ["citus"], indirect=True, scope="session")

TABLES = {
    "raw.sqs_messages", "staging.int_messages__masked", "analytics.user_logins", "analytics.rejected_messages"
}  # fmt: skip


def login(number: int) -> str:
    return json.dumps(
        {"user_id": f"u{number % 7}", "app_version": "1.2", "device_type": "ios", "ip": "192.0.2.1", "device_id": "d"}
    )


def message(number: int) -> Message:
    answer = {"MessageId": f"id-{number}", "ReceiptHandle": "r", "Body": login(number)}
    return Message.of(answer | {"Attributes": {"SentTimestamp": "1795300000000", "ApproximateReceiveCount": "1"}})


def forget(database: Database, user_id: str) -> None:
    words = ["forget", "--user-id", user_id, "--reason", "ticket 77: closed"]
    done = privacy(database, *words, login="privacy_officer_user")
    assert done.returncode == 0, done.stderr


def distributed(database: Database) -> set[str]:
    found = as_superuser(database, "select logicalrelid::text from pg_dist_partition")
    return {table for (table,) in found}


def test_the_loader_counts_what_it_lands_there(database):
    landing = Landing()
    with mock.patch.dict(os.environ, database.env("loader_user")):
        first = landing.land("logins", [message(number) for number in range(3)])
        second = landing.land("logins", [message(number) for number in range(2, 5)])
    landing.disconnect()

    assert (first.landed, first.duplicates) == (3, 0)
    assert (second.landed, second.duplicates) == (2, 1)
    ledger = query(database, "select received, landed, duplicates from raw.loads order by load_id", login="loader_user")
    assert ledger == [(3, 3, 0), (3, 2, 1)]
    loads = as_transformer(database, "select load_id, count(*) from raw.sqs_messages group by load_id order by load_id")
    assert [count for _, count in loads] == [3, 2]


def test_what_dbt_builds_is_spread_and_stays_so(database):
    land(database, map(login, range(20)))
    dbt(database, "build")
    assert distributed(database) == TABLES
    land(database, map(login, range(20)), prefix="n")
    dbt(database, "build")
    dbt(database, "build", "--full-refresh")
    assert query(database, "select count(*), count(distinct masked_ip) from analytics.user_logins") == [(40, 1)]


def test_views_that_lend_their_owners_rights_to_nobody_are_enough(database):
    """Citus reads shards as whoever asks, whatever the view's owner may."""
    land(database, [*map(login, range(9)), "not json"])
    dbt(database, "build")
    views = (
        "select oid::regclass::text from pg_class where relkind = 'v' and relnamespace::regnamespace::text = any(%s)"
    )
    with closing(database.connect("postgres")) as connection, connection, connection.cursor() as cursor:
        cursor.execute(views, (["masking", "analytics"],))
        names = [name for (name,) in cursor.fetchall()]
        for name in names:
            cursor.execute(f"alter view {name} set (security_invoker = true)")
    assert len(names) >= 7

    for view in ("stg_sqs__messages", "base_sqs__messages", "stg_sqs__mask_consistency"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            as_transformer(database, f"select * from masking.{view}")
    assert len(as_transformer(database, "select masked_ip from masking.read_stg_sqs__messages()")) == 10
    reports = [name for name in names if name.startswith("analytics.")]
    for report in reports:
        assert query(database, f"select * from {report}")
    health = "select landed, accepted, rejected, unaccounted from analytics.pipeline_health"
    assert query(database, health, login="monitor_user") == [(10, 9, 1, 0)]


@pytest.mark.parametrize(
    "statement",
    [
        "select masking.masked('ip', '192.0.2.1', 1)",
        "select * from masking.keys",
        "select * from masking.read_base_sqs__messages()",
        "select raw.distribute()",
        "select body from raw.sqs_messages",
    ],
)
def test_dbt_can_neither_mask_what_it_likes_nor_see_what_is_plain(database, statement):
    with pytest.raises((psycopg2.errors.InsufficientPrivilege, psycopg2.errors.UndefinedFunction)):
        as_transformer(database, statement)


def test_dbt_waits_for_what_a_worker_has_prepared_and_not_finished(database):
    """An in-doubt transaction's load is over on the coordinator, and its rows are not to be seen yet."""
    as_superuser(database, "insert into pg_dist_node values ('worker', 5432, 1) returning 1")
    with closing(database.connect("postgres")) as worker, worker.cursor() as cursor:
        worker.autocommit = True
        cursor.execute("begin; create table public.in_doubt (); prepare transaction 'citus_0_1_2_3'")
        bound = []
        asking = threading.Thread(
            target=lambda: bound.extend(as_transformer(database, "select raw.safe_load_id()")), daemon=True
        )
        asking.start()
        asking.join(1)
        assert bound == []
        cursor.execute("commit prepared 'citus_0_1_2_3'")
        asking.join(60)
        assert len(bound) == 1


def test_a_worker_that_is_away_stops_dbt_and_is_named(database):
    as_superuser(database, "insert into pg_dist_node values ('worker', 1, 1) returning 1")
    with pytest.raises(psycopg2.errors.RaiseException, match="Citus cannot reach its workers at worker:1"):
        as_transformer(database, "select raw.safe_load_id()")


# Keys on the workers: another server plays one, with the functions that Citus would have taken there.


@pytest.fixture(scope="module")
def worker():
    with temporary_stack(settings={"log_statement": "all", "log_min_messages": "debug1"}) as server:
        yield migrate(Database(server, DATABASE))


@pytest.fixture
def with_worker(database, worker):
    """The coordinator, which knows the worker by its address and enters it with the same password."""
    env = worker.env("migrator")
    as_superuser(database, "insert into pg_dist_node values (%s, %s, 1) returning 1", env["PGHOST"], int(env["PGPORT"]))
    with administration(worker.stack) as cursor:
        cursor.execute("alter role migrator password %s", (database.env("migrator")["PGPASSWORD"],))
        cursor.execute(f"alter database logins rename to {database.name}")
    yield database, Database(worker.stack, database.name)
    with administration(worker.stack) as cursor:
        cursor.execute(f"alter database {database.name} rename to logins")


def masked(database: Database, version: int) -> str:
    return as_superuser(database, "select masking.masked('ip', '192.0.2.1', %s)", version)[0][0]


def test_every_worker_has_the_keys_and_no_log_has(with_worker):
    coordinator, worker = with_worker
    assert masked(worker, 1) != masked(coordinator, 1)

    done = run_migrations(coordinator.env("migrator"))
    assert done.returncode == 0, done.stderr
    assert masked(worker, 1) == masked(coordinator, 1)

    rotated = privacy(coordinator, "rotate-key")
    assert rotated.returncode == 0, rotated.stderr
    with pytest.raises(psycopg2.errors.RaiseException, match="no key of kind ip, version 2"):
        masked(worker, 2)
    assert run_migrations(coordinator.env("migrator")).returncode == 0
    assert masked(worker, 2) == masked(coordinator, 2)

    log = (worker.stack.folder / "postgres" / "server.log").read_text()
    keys = [bytes(key) for (key,) in as_superuser(coordinator, "select key from masking.keys")]
    assert len(keys) == 4
    assert "copy masking.keys" in log
    assert not any(key.hex() in log for key in keys)


def test_a_worker_that_takes_no_keys_is_named(with_worker):
    coordinator, worker = with_worker
    with administration(worker.stack) as cursor:
        cursor.execute("alter role migrator password 'another'")
    done = run_migrations(coordinator.env("migrator"))
    assert done.returncode == 5
    address = worker.env("migrator")
    assert f"The worker {address['PGHOST']}:{address['PGPORT']} could not be given the masking keys:" in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        "grant execute on function masking.masked to analyst",
        "grant execute on function masking.carried_over to loader",
        "grant select on masking.keys to transformer",
        "alter function masking.masked security invoker",
        "alter function masking.masked rename to other",
    ],
)
def test_a_worker_that_would_mask_for_anybody_gets_no_keys(with_worker, change):
    coordinator, worker = with_worker
    [(before,)] = as_superuser(worker, "select key from masking.keys where kind = 'ip' and version = 1")
    with closing(worker.connect("postgres")) as connection, connection, connection.cursor() as cursor:
        cursor.execute(change)
    try:
        done = run_migrations(coordinator.env("migrator"))
    finally:
        with closing(worker.connect("postgres")) as connection, connection, connection.cursor() as cursor:
            if "rename" in change:
                cursor.execute("alter function masking.other rename to masked")
            cursor.execute("alter function masking.masked security definer")
            cursor.execute("revoke execute on function masking.masked, masking.carried_over from analyst, loader")
            cursor.execute("revoke select on masking.keys from transformer")
    assert done.returncode == 5
    assert done.stderr.endswith("gets no keys: its schema masking is not as here, or open to others.\n")
    assert as_superuser(worker, "select key from masking.keys where kind = 'ip' and version = 1") == [(before,)]


def test_what_a_worker_leaves_open_to_public_is_closed(with_worker):
    """PostgreSQL opens new functions to PUBLIC, and Citus takes to a worker what is granted, not what is not."""
    coordinator, worker = with_worker
    with closing(worker.connect("postgres")) as connection, connection, connection.cursor() as cursor:
        cursor.execute("grant execute on function masking.masked, masking.carried_over to public")
    assert run_migrations(coordinator.env("migrator")).returncode == 0
    for call in ("masking.masked('ip', '192.0.2.1', 1)", "masking.carried_over('ip', repeat('0', 64), 1)"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            query(worker, f"select {call}")


def test_originals_of_somebody_erased_who_comes_back_are_not_sealed_again(database, tmp_path):
    officer = Officer(tmp_path)
    assert privacy(database, "seal-with", str(officer.public_key)).returncode == 0
    land(database, [login(1), json.dumps(json.loads(login(2)) | {"ip": "192.0.2.9", "device_id": "other"})])
    dbt(database, "run")
    forgotten = privacy(
        database, "forget", "--user-id", "u1", "--reason", "ticket 77: closed", login="privacy_officer_user"
    )
    assert forgotten.returncode == 0, forgotten.stderr
    before = as_superuser(database, "select count(*) from privacy.originals")
    with closing(database.connect("transformer_user")) as connection, connection, connection.cursor() as cursor:
        cursor.execute("select privacy.erase_returned()")
        land(database, [login(1)])
        cursor.execute("select privacy.seal_originals()")
    assert as_superuser(database, "select count(*) from privacy.originals") == before


def test_a_redelivery_before_dbts_next_run_does_not_stop_it(database):
    land(database, [login(1), login(2)])
    dbt(database, "run")
    forget(database, "u1")
    land(database, [login(1)])
    dbt(database, "build")
    dbt(database, "build")
    assert query(database, "select user_id from analytics.user_logins") == [("u2",)]
    assert as_superuser(database, "select message_id from raw.sqs_messages") == [("m1",)]


# The stand-in.


@pytest.mark.parametrize(
    ("login_of", "first", "then", "refusal"),
    [
        pytest.param(
            "loader_user",
            "select 1",
            "with i as (insert into raw.sqs_messages (message_id, queue, body) values ('x', 'q', 'b')) select 1",
            "WITH clauses",
            id="data-modifying-with",
        ),
        pytest.param(
            "migrator",
            "set role pipeline_owner; update raw.sqs_messages set queue = 'q'; set role masker",
            "select 1 from raw.sqs_messages",
            "connection that is in use",
            id="another-role-in-the-transaction",
        ),
        pytest.param(
            "postgres",
            "set role pipeline_owner",
            "update raw.sqs_messages set queue = masking.canonical_text(queue)",
            "STABLE functions",
            id="update-by-a-function",
        ),
        pytest.param(
            "postgres",
            "create table public.t (a text primary key); create trigger t before insert on public.t"
            " execute function suppress_redundant_updates_trigger()",
            "select create_distributed_table('public.t', 'a')",
            "because it has triggers",
            id="trigger",
        ),
    ],
)
def test_the_stand_in_refuses_what_citus_refuses(database, login_of, first, then, refusal):
    land(database, [login(1)])
    with closing(database.connect(login_of)) as connection, connection.cursor() as cursor:
        cursor.execute(first)
        with pytest.raises(psycopg2.errors.RaiseException, match=refusal):
            cursor.execute(then)

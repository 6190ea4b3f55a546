"""analytics.pipeline_health: counts that add up, ages that grow, for a login that sees nothing else."""

import contextlib

import psycopg2.errors
import pytest
import yaml

from tests.conftest import ROOT, administration, copy
from tests.pipeline import dbt, land

LOGIN = '{{"user_id":"u{}","app_version":"1.0","device_type":"ios","ip":"192.0.2.1","locale":null,"device_id":"d"}}'


@pytest.fixture(scope="module")
def built(module_database):
    land(module_database, [LOGIN.format(1), LOGIN.format(2), "not json", "[]"])
    dbt(module_database, "run", "--select", "+pipeline_health")
    return module_database


@pytest.fixture
def cursor(built):
    """The superuser, whose changes are undone."""
    with contextlib.closing(built.connect("postgres")) as connection, connection.cursor() as cursor:
        yield cursor


def health(cursor, columns: str) -> tuple:
    cursor.execute(f"select {columns} from analytics.pipeline_health")
    return cursor.fetchone()


def test_landed_is_accepted_or_rejected(cursor):
    assert health(cursor, "received, landed, duplicates, untransformed") == (4, 4, 0, 0)
    assert health(cursor, "accepted, rejected, erased, unaccounted") == (2, 2, 0, 0)
    assert health(cursor, "rejected_by_reason") == ({"not_json": 1, "not_an_object": 1},)
    assert health(cursor, "landed_to_analytics = interval '0', newest_load_at <= measured_at") == (True, True)


def test_what_dbt_has_not_taken_waits(cursor):
    cursor.execute("update raw.loads set loaded_at = loaded_at - interval '2 hours'")
    cursor.execute(
        "insert into raw.loads (loaded_at, queue, received, landed, duplicates)"
        " values (now() - interval '1 hour', 'login-queue', 9, 7, 2)"
    )

    assert health(cursor, "received, landed, duplicates, untransformed, unaccounted") == (13, 11, 2, 7, 0)
    assert health(cursor, "landed_to_analytics = interval '1 hour'") == (True,)


def test_what_is_erased_before_dbt_takes_it_is_erased_and_does_not_wait(cursor):
    cursor.execute("insert into raw.loads (queue, received, landed, duplicates) values ('login-queue', 3, 3, 0)")
    cursor.execute(
        "insert into privacy.erased_messages (message_id, load_id, erasure)"
        " select 'gone' || n, (select max(load_id) from raw.loads), privacy.record('person erased')"
        " from generate_series(1, 2) as n"
    )
    columns = "landed, accepted, rejected, erased, untransformed, unaccounted"
    assert health(cursor, columns) == (7, 2, 2, 2, 1, 0)


def test_an_open_rotation_is_seen(cursor):
    assert health(cursor, "rotation_is_open") == (False,)
    cursor.execute("grant execute on function masking.carried_over to transformer")
    assert health(cursor, "rotation_is_open") == (True,)


def test_a_sequence_behind_its_ledger_is_seen(cursor):
    assert health(cursor, "sequence_is_behind") == (False,)
    ahead = "select last_value + 1, 'login-queue', 0, 0, 0 from raw.load_id_seq"
    cursor.execute("set local session_replication_role = replica")  # as a restore does: no trigger takes a number
    cursor.execute(f"insert into raw.loads (load_id, queue, received, landed, duplicates) {ahead}")
    assert health(cursor, "sequence_is_behind") == (True,)


def test_redeliveries_alone_do_not_wait(cursor):
    cursor.execute("insert into raw.loads (queue, received, landed, duplicates) values ('login-queue', 2, 0, 2)")
    assert health(cursor, "duplicates, untransformed, landed_to_analytics = interval '0'") == (2, 0, True)


@pytest.mark.parametrize(
    ("change", "unaccounted"),
    [
        pytest.param("delete from analytics.user_logins where message_id = 'm1'", 1, id="a-login-is-lost"),
        pytest.param("delete from analytics.rejected_messages where message_id = 'm3'", 1, id="a-rejection-is-lost"),
        pytest.param("update raw.loads set landed = 3, duplicates = 1", -1, id="a-row-too-many"),
    ],
)
def test_what_does_not_add_up_is_unaccounted_for(cursor, change, unaccounted):
    cursor.execute(change)
    assert health(cursor, "unaccounted") == (unaccounted,)


def test_a_loss_is_not_hidden_by_a_row_too_many_of_another_load(built):
    """As of an erasure that dbt has not carried out yet."""
    for queue in ("login-queue", "another-queue"):
        with copy(built) as database, contextlib.closing(database.connect("postgres")) as connection:
            land(database, [LOGIN.format(3)], prefix="n", queue=queue)
            dbt(database, "run", "--select", "+pipeline_health")
            cursor = connection.cursor()
            cursor.execute("delete from analytics.user_logins where message_id = 'm1'")
            cursor.execute("update raw.loads set landed = 0, duplicates = 1 where landed = 1")
            assert health(cursor, "unaccounted") == (1,)


def test_counts_are_of_one_day_and_ages_of_any(cursor):
    cursor.execute("update raw.loads set loaded_at = loaded_at - interval '2 days'")
    assert health(cursor, "landed, accepted, rejected, rejected_by_reason, unaccounted") == (0, 0, 0, {}, 0)

    cursor.execute("delete from staging.int_messages__masked")
    assert health(cursor, "untransformed, landed_to_analytics > interval '1 day'") == (4, True)


def test_before_the_first_load(cursor):
    cursor.execute("truncate raw.loads, raw.sqs_messages, staging.int_messages__masked")
    cursor.execute("truncate analytics.user_logins, analytics.rejected_messages")

    assert health(cursor, "newest_load_at, sent_to_landed") == (None, None)
    assert health(cursor, "landed, untransformed, accepted, unaccounted") == (0, 0, 0, 0)


@contextlib.contextmanager
def login_in(role: str, built):
    """A cursor of a new login that has joined this role."""
    with administration(built.stack) as administrator:
        administrator.execute(f"create role watcher login in role {role}")
        administrator.execute("alter role watcher password 'watcher'")
    target = built.stack.environment("analyst_user", built.name)
    login = {"host": target["PGHOST"], "port": target["PGPORT"], "user": "watcher", "password": "watcher"}
    try:
        with contextlib.closing(psycopg2.connect(dbname=built.name, **login)) as connection:
            connection.autocommit = True
            yield connection.cursor()
    finally:
        with administration(built.stack) as administrator:
            administrator.execute("drop role watcher")


def test_the_monitor_sees_this_and_nothing_else(built):
    with login_in("monitor", built) as cursor:
        assert health(cursor, "unaccounted") == (0,)
        for table in ("analytics.user_logins", "analytics.rejected_messages", "raw.loads", "masking.keys"):
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute(f"select * from {table}")


def test_the_timer_that_purges_can_neither_recover_nor_forget(built):
    with login_in("retention", built) as cursor:
        cursor.execute("select privacy.purge(30)")
        for call in (
            "privacy.request_recovery(repeat('0', 64), 'out of curiosity')",
            "privacy.forget_user('u1', 'out of curiosity')",
        ):
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute(f"select {call}")


@pytest.mark.parametrize("name", ["queue_health", "pipeline_health", "attestation", "queue_rejected"])
def test_the_exporter_finds_the_columns_it_is_told_of(cursor, name):
    queries = yaml.safe_load((ROOT / "deploy" / "monitoring" / "queries.yaml").read_text())
    cursor.execute("set local role monitor")
    cursor.execute("insert into privacy.attestations (failed) values (0)")
    cursor.execute(queries[name]["query"])

    assert [column.name for column in cursor.description] == [
        column for metric in queries[name]["metrics"] for column in metric
    ]
    assert cursor.rowcount == (2 if name == "queue_rejected" else 1)

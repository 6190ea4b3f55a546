"""A Citus cluster that crashes, grows, begins as one server and becomes one again: nothing is lost or doubled."""

import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import psycopg2
import psycopg2.errors
import pytest

from loader import postgres
from local import queues
from local.stack import SUPERUSER
from tests.cluster import BIN, port, temporary_node
from tests.conftest import ROOT, Database, administration, migrate, nodes, run_migrations, temporary_server
from tests.instructions import checkout, follow
from tests.loading import until
from tests.officer import as_superuser, as_transformer, privacy
from tests.pipeline import dbt, land, query

pytestmark = [pytest.mark.citus, pytest.mark.parametrize("migrated", ["citus"], indirect=True, scope="session")]

LOGINS = "select user_id, masked_ip, masked_device_id, message_id from analytics.user_logins order by message_id"
CONSERVED = """
    select
        (select sum(landed) from raw.loads),
        (select count(*) from raw.sqs_messages),
        (select count(*) from analytics.user_logins),
        (select count(distinct message_id) from analytics.user_logins)
"""


def login(number: int, user: str = "u") -> str:
    event = {"user_id": user, "app_version": "1.2", "device_type": "ios", "ip": f"192.0.2.{number % 250}"}
    return json.dumps(event | {"device_id": f"device-{number:06}"})


@contextmanager
def loaders(database: Database, count: int, url: str) -> Iterator[list[subprocess.Popen]]:
    """So many at once, until all of them are told to stop."""
    command = [
        sys.executable,
        "-m",
        "loader",
        "load",
        "--follow",
        "--queue-name",
        url.rpartition("/")[2],
        "--workers",
        "2",
    ]
    running = [
        subprocess.Popen(command, cwd=ROOT, env=database.env("loader_user"), stderr=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    try:
        yield running
    finally:
        for each in running:
            each.terminate()
        said = [each.communicate(timeout=60)[1] for each in running]
    assert [each.returncode for each in running] == [0] * count, said


@contextmanager
def dbt_in_a_loop(database: Database) -> Iterator[None]:
    over = threading.Event()

    def loop() -> None:
        while not over.is_set():
            dbt(database, "run", expect=None)  # while a worker is away, it ends with an error

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def send(client, url: str, numbers: range) -> None:
    for start in range(numbers.start, numbers.stop, 10):
        entries = [{"Id": str(n), "MessageBody": login(n)} for n in range(start, min(start + 10, numbers.stop))]
        assert not client.send_message_batch(QueueUrl=url, Entries=entries).get("Failed")


def test_crashes_of_workers_and_coordinator_lose_and_double_nothing(database):
    """Three loaders, dbt in a loop; a worker crashes, another is away for 25 s, then the coordinator crashes."""
    cluster = database.stack
    first, second = cluster.workers
    for node in nodes(cluster):  # or a crash repeats all that earlier tests wrote since the last one
        with administration(node) as cursor:
            cursor.execute("checkpoint")
    client = queues.client(cluster.environment("loader_user"))
    url = queues.ensure_queue(client, "login-queue")
    client.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "20"})
    landed = "select coalesce(sum(landed), 0) from raw.loads"
    sent = 1600
    with loaders(database, 3, url), dbt_in_a_loop(database):
        send(client, url, range(400))
        until(lambda: query(database, landed, login="loader_user") > [(100,)], 120)
        first.restart_postgres("immediate")
        send(client, url, range(400, 800))
        time.sleep(3)
        second.stop_postgres("immediate")
        time.sleep(25)
        second.start_postgres()
        send(client, url, range(800, 1200))
        time.sleep(3)
        cluster.restart_postgres("immediate")
        send(client, url, range(1200, sent))
        until(lambda: all_landed(database, landed) == sent, 300)
    as_superuser(database, "select recover_prepared_transactions()")
    dbt(database, "build")
    assert as_superuser(database, CONSERVED) == [(sent, sent, sent, sent)]


def all_landed(database: Database, landed: str) -> int:
    try:
        return int(query(database, landed, login="loader_user")[0][0])
    except psycopg2.Error:  # away
        return -1


def test_dbt_waits_for_a_commit_that_a_worker_is_in_doubt_of(database):
    land(database, map(login, range(20)))
    worker = Database(database.stack.workers[0], database.name)
    [(shard,)] = as_superuser(
        database,
        "select 'raw.sqs_messages_' || min(shardid) from pg_dist_shard_placement"
        " inner join pg_dist_shard using (shardid) where logicalrelid = 'raw.sqs_messages'::regclass and nodeport = %s",
        int(worker.env("postgres")["PGPORT"]),
    )
    with closing(worker.connect("loader_user")) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("set citus.enable_ddl_propagation = off")
        cursor.execute(
            f"begin; insert into {shard} (message_id, queue, body, load_id, loaded_at)"
            " values ('x', 'q', 'b', 99, now());"
            " prepare transaction 'citus_0_999999_1_1'"
        )
    bound: list = []
    asking = threading.Thread(target=lambda: bound.extend(as_transformer(database, "select raw.safe_load_id()")))
    asking.start()
    asking.join(2)
    assert bound == []
    as_superuser(database, "select recover_prepared_transactions()")  # as the daemon does each minute
    asking.join(90)
    assert bound == [(2,)]


def test_a_worker_that_is_away_is_named(database):
    worker = database.stack.workers[0]
    worker.stop_postgres()
    try:
        with pytest.raises(
            psycopg2.Error, match=f"::1:{worker.environment(SUPERUSER)['PGPORT']}|connection to the remote"
        ):
            as_transformer(database, "select raw.safe_load_id()")
    finally:
        worker.start_postgres()


def test_a_worker_that_is_lost_before_the_commit_is_told_of_as_such(database):
    """Citus then hands on what libpq says, as an internal error."""
    worker = database.stack.workers[0]
    land(database, [login(n) for n in range(20)])
    with closing(database.connect("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("update raw.sqs_messages set receive_count = 2")
        worker.stop_postgres("immediate")
        try:
            with pytest.raises(psycopg2.Error) as lost:
                connection.commit()
        finally:
            worker.start_postgres()
    said = postgres.explain(lost.value, "").message
    assert said.endswith("Check this worker of the Citus cluster, and the network to it."), said


def test_readers_of_a_full_refresh_wait_for_nothing_and_a_purge_removes_what_is_old(database):
    land(database, [login(n, f"u{n % 5}") for n in range(60)])
    dbt(database, "run")
    before = query(database, LOGINS)
    over, seen = threading.Event(), set()

    def read() -> None:
        with closing(database.connect("analyst_user")) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute("set lock_timeout = '5s'")
            while not over.is_set():
                cursor.execute("select count(*) from analytics.user_logins where message_id = 'm7'")  # on one shard
                seen.update(cursor.fetchall())

    reader = threading.Thread(target=read)
    reader.start()
    dbt(database, "run", "--full-refresh")
    over.set()
    reader.join()
    assert seen == {(1,)}
    assert query(database, LOGINS) == before

    as_superuser(database, "update raw.loads set loaded_at = now() - interval '40 days' returning 1")
    purged = privacy(database, "purge", login="privacy_officer_user")
    assert purged.stdout.startswith("Removed from raw: 60 messages"), purged.stderr
    dbt(database, "build")
    assert query(database, LOGINS) == before


OPEN_TO_ALL = """
select oid::regprocedure from pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner)))
where pronamespace::regnamespace::text in ('raw', 'masking', 'privacy', 'staging', 'analytics') and grantee = 0
"""


def test_a_node_is_added_and_takes_its_share(database):
    land(database, map(login, range(40)))
    dbt(database, "run")
    before = query(database, LOGINS)
    with ExitStack() as stack:
        added = temporary_node(stack, database.stack, database.name)
        with administration(added) as cursor:  # Citus tells the node what roles may do in each database
            cursor.execute("create database logins")
        as_superuser(database, "select citus_add_node('::1', %s)", port(added))
        assert run_migrations(database.env("migrator")).returncode == 0
        rebalance(database)
        spread = as_superuser(
            database,
            "select count(*) from pg_dist_shard_placement inner join pg_dist_shard using (shardid)"
            " where logicalrelid = 'raw.sqs_messages'::regclass and nodeport = %s",
            port(added),
        )
        assert spread >= [(2,)]
        land(database, map(login, range(40)), prefix="n")
        dbt(database, "build")
        after = query(database, LOGINS)
        assert [row for row in after if row[3].startswith("m")] == before
        assert {row[1] for row in after} == {row[1] for row in before}
        there = Database(added, database.name)
        assert as_superuser(there, OPEN_TO_ALL) == []
        for statement in ("table masking.keys", "select masking.masked('ip', '192.0.2.1', 1)"):
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                as_transformer(there, statement)


def rebalance(database: Database) -> None:
    with closing(database.connect("postgres")) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("select citus_rebalance_start(shard_transfer_mode => 'block_writes')")
        cursor.execute("select citus_rebalance_wait()")


@pytest.fixture
def live(migrated: Database) -> Iterator[Database]:
    """A database on the coordinator's server that knows nothing of Citus."""
    database = Database(migrated.stack, f"live_{uuid.uuid4().hex}")
    with administration(migrated.stack) as cursor:
        cursor.execute(f"create database {database.name} owner migrator template template0")
    try:
        yield migrate(database)
    finally:
        for node in nodes(migrated.stack):
            with administration(node) as cursor:
                cursor.execute(f"drop database if exists {database.name} with (force)")


def test_a_live_database_is_made_a_cluster(live, tmp_path):
    folder = checkout(tmp_path / "checkout")
    land(live, map(login, range(40)))
    dbt(live, "build")
    before = query(live, LOGINS)

    for node in nodes(live.stack):
        follow("Citus, every node", folder, Database(node, live.name), BIN)
    follow("Citus, coordinator", folder, live, BIN, live.stack.addresses)
    land(live, map(login, range(40)), prefix="n")
    dbt(live, "build")

    assert as_superuser(live, "select count(*) from pg_dist_partition") >= [(4,)]
    after = query(live, LOGINS)
    assert [row for row in after if row[3].startswith("m")] == before
    assert {row[1] for row in after} == {row[1] for row in before}
    assert len(after) == 80


def test_a_backup_of_a_cluster_is_restored_into_one_server(database, tmp_path):
    folder = checkout(tmp_path / "checkout")
    land(database, map(login, range(40)))
    dbt(database, "run")
    before = query(database, LOGINS)
    follow("back up", folder, database, BIN)

    with temporary_server() as server:
        restored, programs = Database(server, database.name), server._programs()
        for step in ("restore", "rows of raw", "rows of dbt", "erase again"):
            follow(step, folder, restored, programs)
        land(restored, map(login, range(40)), prefix="n")
        dbt(restored, "build")
        after = query(restored, LOGINS)
    assert [row for row in after if row[3].startswith("m")] == before
    assert {row[1] for row in after} == {row[1] for row in before}

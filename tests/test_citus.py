"""On a Citus cluster (tests/cluster.py): what is there alone. Modules marked on_citus_too run there as well."""

import hashlib
import hmac
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import psycopg2
import pytest

from loader.land import Database as Landing
from loader.sqs import Message
from local import queues
from local.events import ODD_ADDRESSES, generate
from local.stack import DATABASE
from tests.conftest import Database, copy, migrate, nodes, run_migrations
from tests.instructions import checkout, commands, run
from tests.leakcheck import Needles
from tests.officer import as_superuser, privacy
from tests.pipeline import dbt, query
from tests.test_privileges import LOGINS, MATRIX

pytestmark = [pytest.mark.citus, pytest.mark.parametrize("migrated", ["citus"], indirect=True, scope="session")]

ROWS = "select md5(string_agg({columns}, '|' order by message_id)), count(*) from analytics.{table} as t"
KEYS = {"ip": "11" * 32, "device_id": "22" * 32}


def login(number: int, **changed: object) -> str:
    event = {"user_id": f"u{number % 7}", "app_version": "1.2", "device_type": "ios"}
    return json.dumps(event | {"ip": f"192.0.2.{number % 250}", "device_id": f"device-{number:06}"} | changed)


def hmac_of(kind: str, value: str) -> str:
    return hmac.new(bytes.fromhex(KEYS[kind]), value.encode(), hashlib.sha256).hexdigest()


def workers(database: Database) -> list[Database]:
    return [Database(node, database.name) for node in database.stack.workers]


def import_keys(database: Database) -> None:
    typed = "".join(f"{kind} {key}\n" for kind, key in KEYS.items())
    done = privacy(database, "rotate-key", "--import", typed=typed)
    assert done.returncode == 0, done.stderr
    assert run_migrations(database.env("migrator")).returncode == 0


def checksums(database: Database) -> list:
    columns = "t.user_id, device_type, masked_ip, masked_device_id, locale, app_version, create_date, t.message_id"
    logins = f"concat_ws(',', {columns})"
    rejected = "concat_ws(',', t.message_id, reason, body_bytes)"
    return [
        query(database, ROWS.format(columns=logins, table="user_logins")),
        query(database, ROWS.format(columns=rejected, table="rejected_messages")),
    ]


def load(database: Database, bodies: list[str], prefix: str) -> None:
    """As the loader does it, so that nothing plain is in a statement."""
    attributes = {"SentTimestamp": "1795300000000", "ApproximateReceiveCount": "1"}
    messages = [
        Message.of({"MessageId": f"{prefix}{n}", "ReceiptHandle": "r", "Body": body, "Attributes": attributes})
        for n, body in enumerate(bodies)
    ]
    landing = Landing()
    with mock.patch.dict(os.environ, database.env("loader_user")):
        landed = landing.land("login-queue", messages)
    landing.disconnect()
    assert (landed.landed, landed.duplicates, landed.refused) == (len(messages), 0, [])


def logs(database: Database) -> list[Path]:
    return [node.folder / "postgres" / "server.log" for node in nodes(database.stack)]


class Built(NamedTuple):
    database: Database
    bodies: list[str]
    logged: list[int]  # bytes in each node's log before


@pytest.fixture(scope="module")
def built(module_database):
    """1,500 messages in three loads, with keys that are known here."""
    logged = [log.stat().st_size for log in logs(module_database)]
    import_keys(module_database)
    bodies = [message.body for message in generate(1500, seed=11)]
    for part in range(3):
        load(module_database, bodies[part::3], prefix=f"load{part}-")
        dbt(module_database, "run")
    return Built(module_database, bodies, logged)


def test_what_is_published_is_what_one_server_publishes(built, stack):
    migrate(Database(stack, DATABASE))
    with copy(Database(stack, DATABASE)) as on_one_server:
        import_keys(on_one_server)
        for part in range(3):
            load(on_one_server, built.bodies[part::3], prefix=f"load{part}-")
        dbt(on_one_server, "run")
        assert checksums(built.database) == checksums(on_one_server)


def test_every_token_is_pythons_hmac(built):
    database, bodies, _ = built
    plain = {f"load{n % 3}-{n // 3}": body for n, body in enumerate(bodies)}
    compared = 0
    for message_id, ip, device_id in query(
        database, "select message_id, masked_ip, masked_device_id from analytics.user_logins"
    ):
        event = json.loads(plain[message_id])
        if event["ip"].replace(".", "").isdigit():
            compared += 1
            assert ip == hmac_of("ip", event["ip"])
            assert device_id == hmac_of("device_id", event["device_id"].strip().lower().strip("{}"))
    assert compared > 1000


def test_all_of_dbts_tests_pass_and_tables_are_spread(built):
    database = built.database
    dbt(database, "build")
    spread = as_superuser(database, "select logicalrelid::text, colocationid from pg_dist_partition")
    of_raw, of_dbt = (
        {"raw.sqs_messages"},
        {"staging.int_messages__masked", "analytics.user_logins", "analytics.rejected_messages"},
    )
    assert of_raw | of_dbt <= {table for table, _ in spread}
    groups = dict(spread)
    assert len({group for table, group in spread if table not in of_raw}) == 1
    assert groups["raw.sqs_messages"] not in {groups[table] for table in of_dbt}


# The window of the boundary.


@pytest.fixture(scope="module")
def much(migrated):
    """100,000 messages in raw, and a window of 500 after them."""
    with copy(migrated) as database, closing(database.connect("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("set role pipeline_owner")
        for number, prefix in ((100_000, "m"), (500, "n")):
            cursor.execute(
                """
                insert into raw.sqs_messages (message_id, queue, body, sent_at, load_id)
                select %(prefix)s || n, 'login-queue', json_build_object(
                    'user_id', 'u' || n, 'app_version', '1.2', 'device_type', 'ios',
                    'ip', '10.1.' || n / 250 || '.' || n %% 250, 'device_id', 'device-' || n
                ), now(), (select raw.current_load_id())
                from generate_series(1, %(number)s) as n;
                insert into raw.loads (queue, received, landed, duplicates)
                values ('login-queue', %(number)s, %(number)s, 0)
                """,
                {"number": number, "prefix": prefix},
            )
            connection.commit()
        connection.autocommit = True
        cursor.execute("vacuum analyze raw.sqs_messages")
        yield database


def explained(database: Database, sql: str) -> tuple[dict, str]:
    with closing(database.connect("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("set role masker; set citus.explain_all_tasks = on")
        cursor.execute(f"explain (analyze, verbose, buffers, format json) {sql}")
        [[plan]] = cursor.fetchone()
    return plan, json.dumps(plan)


def received(plan: dict) -> int:
    """Bytes that came from the workers."""
    [size] = [
        value
        for key, value in plan["Plan"]["Distributed Query"]["Job"].items()
        if key.startswith("Tuple data received")
    ]
    number, unit = size.split()
    return int(number) * {"bytes": 1, "kB": 1024, "MB": 1024**2}[unit]


def tasks(plan: dict) -> Iterator[dict]:
    """What the workers ran, wherever in the plan."""
    for task in plan.get("Distributed Query", {}).get("Job", {}).get("Tasks", []):
        for [remote] in task["Remote Plan"]:
            yield remote
    for below in [*plan.get("Plans", []), *(each for each in plan.get("Distributed Query", {}).get("Subplans", []))]:
        yield from tasks(below.get("PlannedStmt", [{}])[0].get("Plan", below))


def test_workers_mask_a_window_and_nothing_plain_travels(much):
    """What dbt runs (read_stg_sqs__messages), as the function's owner does."""
    plan, text = explained(much, "select * from masking.stg_sqs__messages where load_id > 1 and load_id < 3")
    assert plan["Plan"]["Actual Rows"] == 500
    assert "Subplan" not in text  # an intermediate result would be on the coordinator
    assert text.count("masking.masked(") > 0
    assert received(plan) < 500 * 400  # bodies with tokens are twice that


def test_a_window_costs_what_is_in_it_however_much_raw_holds(much):
    plan, text = explained(much, "select * from masking.stg_sqs__messages where load_id > 1 and load_id < 3")
    assert "Seq Scan" not in text
    assert text.count("sqs_messages_load_id_idx") == plan["Plan"]["Distributed Query"]["Job"]["Task Count"]


def test_what_is_plain_is_not_asked_for_in_sealing_either(much):
    """base_sqs__masked_values for its functions: the original travels, to be sealed, and nothing else that is plain."""
    _, text = explained(
        much,
        "select distinct kind, token, mask_key_version, original from masking.base_sqs__masked_values"
        " where load_id > 1 and load_id < 3",
    )
    assert "Seq Scan" not in text


def test_what_proves_the_masks_travels_as_hashes_with_a_secret_part(much):
    """The masks are proved by counting distinct values, for which Citus brings them to the coordinator."""
    plan, _ = explained(much, "select * from masking.stg_sqs__mask_consistency")
    sent = [output for task in tasks(plan["Plan"]) for output in task["Plan"]["Output"]]
    assert any("masking.secret_part()" in output for output in sent)
    assert not [output for output in sent if re.fullmatch(r"(\w+\.)*(canonical\.\w+|body|ip|device_id)", output)]


# Who may do what, on every node.


def refusals(database: Database, login: str, statements: list[str], **options: str) -> dict[str, str | None]:
    """What each statement was refused with; None where it was not. The server stays up, or the next would fail."""
    outcomes = {}
    with closing(database.connect(login, **options)) as connection:
        for statement in statements:
            with connection.cursor() as cursor:
                try:
                    cursor.execute("set local statement_timeout = '10s'")
                    if statement.startswith("copy "):
                        cursor.copy_expert(statement, io.BytesIO())
                    else:
                        cursor.execute(statement)
                    outcomes[statement] = None
                except psycopg2.Error as error:
                    outcomes[statement] = error.pgcode or str(error)
            connection.rollback()
    return outcomes


ONLY_BY_A_FUNCTION = {"select * from masking.stg_sqs__messages", "select * from masking.stg_sqs__mask_consistency"}


def test_the_privilege_matrix_holds_on_the_coordinator_and_workers_allow_no_more(built):
    database = built.database
    for login_of in LOGINS:
        for node in [database, *workers(database)]:
            outcomes = refusals(node, login_of, [statement for statement, _ in MATRIX])
            for statement, may in MATRIX:
                may = () if statement in ONLY_BY_A_FUNCTION else may
                if node is database or login_of not in may:
                    assert (outcomes[statement] is None) == (login_of in may), (login_of, node.stack.folder, statement)


def attacks(database: Database) -> list[str]:
    """Around the tables: shards by name, other nodes, functions of Citus."""
    shards = as_superuser(
        database,
        "select format('%I.%I', nspname, relname || '_' || shardid) from pg_dist_shard"
        " inner join pg_class on pg_class.oid = logicalrelid inner join pg_namespace on pg_namespace.oid = relnamespace"
        " where logicalrelid = 'raw.sqs_messages'::regclass",
    )
    assert len(shards) == 8
    raw, plain = "'raw.sqs_messages'", "select body from raw.sqs_messages"
    node = "'::1', 1"
    return [
        *(f"select body from {shard}" for (shard,) in shards),
        *(f"copy {shard} to stdout" for (shard,) in shards[:1]),
        f"select * from run_command_on_workers('{plain}')",
        f"select * from run_command_on_all_nodes('{plain}')",
        f"select * from run_command_on_coordinator('{plain}')",
        f"select * from run_command_on_shards({raw}, 'select body from %s')",
        f"select * from run_command_on_placements({raw}, 'select body from %s')",
        "select * from master_run_on_worker(array['x'], array[1], array['select 1'], false)",
        f"select undistribute_table({raw})",
        f"select alter_distributed_table({raw}, shard_count := 2)",
        f"select create_distributed_table_concurrently({raw}, 'queue')",
        "select create_reference_table('raw.loads')",
        "select citus_add_local_table_to_metadata('masking.keys')",
        f"select citus_move_shard_placement((select min(shardid) from pg_dist_shard), {node}, {node})",
        f"select citus_copy_shard_placement((select min(shardid) from pg_dist_shard), {node}, {node})",
        "select worker_split_copy((select min(shardid) from pg_dist_shard), 'x', '{}')",  # ended the server
        f"select worker_copy_table_to_node({raw}, 1)",
        f"select isolate_tenant_to_new_shard({raw}, 'x')",
        f"select citus_add_node({node})",
        f"select citus_remove_node({node})",
        "select citus_update_node(1, 'x', 1)",
        "select citus_rebalance_start()",
        "select recover_prepared_transactions()",
        f"select create_intermediate_result('x', '{plain}')",
        f"select * from worker_partition_query_result('x', '{plain}', 0, 'hash', '{{0}}', '{{0}}', false)",
        f"select worker_save_query_explain_analyze('{plain}', '{{}}')",
        "select worker_apply_shard_ddl_command(1, 'raw', 'create table x ()')",
        "select worker_create_or_replace_object('create function masking.f() returns integer return 1')",
        f"select worker_drop_distributed_table({raw})",
        f"select citus_drop_all_shards({raw}, 'raw', 'sqs_messages')",
        f"select truncate_local_data_after_distributing_table({raw})",
        "select citus_internal.delete_shard_metadata((select min(shardid) from pg_dist_shard))",
        "select citus_internal.update_relation_colocation('raw.sqs_messages'::regclass, 1)",
        f"select lock_relation_if_exists({raw}, 'ACCESS EXCLUSIVE')",
        "table pg_dist_authinfo",
        "create extension dblink",
        "create extension postgres_fdw",
        "set session authorization masker",
        "set role masker",
        "set citus.enable_manual_metadata_changes_for_user = 'postgres'",
    ]


@pytest.mark.parametrize("name", ["psql", "citus_internal gpid=10000000001"], ids=["login", "passing-for-a-node"])
def test_nothing_of_citus_leads_around_the_grants(built, name):
    database = built.database
    for login_of in LOGINS:
        for node in [database, *workers(database)]:
            outcomes = refusals(node, login_of, attacks(database), application_name=name)
            assert [statement for statement, refusal in outcomes.items() if refusal is None] == [], login_of


def test_workers_have_the_functions_that_mask_and_no_others_and_none_is_open(built):
    database = built.database
    functions = """
        select oid::regprocedure::text, prosecdef, md5(prosrc), array(
            select grantee::regrole::text from aclexplode(coalesce(proacl, acldefault('f', proowner))) order by 1
        )
        from pg_proc where pronamespace::regnamespace::text in ('raw', 'masking', 'privacy', 'analytics')
    """
    there = set(map(str, as_superuser(database, functions)))
    for worker in workers(database):
        here = as_superuser(worker, functions)
        assert {name.partition(".")[0] for name, *_ in here} == {"masking", "analytics"}
        assert not any("-" in grantees for *_, grantees in here)
        assert set(map(str, here)) <= there


def test_the_refusals_of_the_readme_are_refused_on_every_node(built, tmp_path):
    database = built.database
    folder = checkout(tmp_path / "checkout")
    for node in [database, *workers(database)]:
        for command, login_of in commands("refused: Citus, every node"):
            done = run(command, login_of, folder, node, node.stack._programs())
            assert done.returncode == 1, command
            assert "permission denied" in done.stderr or "does not exist" in done.stderr, command


def test_no_log_of_any_node_has_a_plain_value_or_a_key(built):
    """Every statement is logged (tests/cluster.py), also what nodes say to one another."""
    database = built.database
    plain = as_superuser(database, "select ip, device_id from masking.base_sqs__messages where reason is null")
    assert len(plain) > 1000
    needles = Needles(
        {
            "ip": {ip.encode() for ip, _ in plain} - {ip.encode() for ip in ODD_ADDRESSES},
            "device_id": {device_id.encode() for _, device_id in plain},
            "key": {bytes.fromhex(key) for key in KEYS.values()},
        }
    )
    places = [(str(log), log.read_bytes()[start:]) for log, start in zip(logs(database), built.logged, strict=True)]
    assert all(b"masking.masked(" in content for _, content in places[1:])
    assert needles.found_in(places) == []


# Commands.


@pytest.mark.parametrize(
    ("login_of", "command"),
    [
        ("analyst_user", "python -m loader status"),
        ("loader_user", "python -m loader doctor"),
        ("postgres", "python -m privacy attest"),
        ("analyst_user", "python -m report"),
        ("transformer_user", "dbt --quiet docs generate --static --project-dir dbt_project --profiles-dir dbt_project"),
        ("transformer_user", "dbt --quiet source freshness --project-dir dbt_project --profiles-dir dbt_project"),
    ],
)
def test_commands_work_as_on_one_server(built, login_of, command, tmp_path):
    database = built.database
    queues.ensure_queue(queues.client(database.env("loader_user")), "login-queue")
    options = "PGOPTIONS='-c log_statement=ddl' " if login_of == "postgres" else ""  # here it is `all`
    done = run(
        f"{options}.venv/bin/{command}", login_of, checkout(tmp_path / "checkout"), database, database.stack._programs()
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("grant execute on function masking.masked to analyst", "is not as on the coordinator, or open to others"),
        ("alter function masking.carried_over security invoker", "is not as on the coordinator, or open to others"),
        ("alter function masking.masked rename to other", "is not as on the coordinator, or open to others"),
        ("grant select on masking.keys to transformer", "masking.keys is open to others there"),
    ],
)
def test_a_worker_that_would_mask_for_anybody_gets_no_keys(database, change, reason):
    worker = workers(database)[0]
    with closing(worker.connect("postgres")) as connection, connection, connection.cursor() as cursor:
        cursor.execute("set citus.enable_ddl_propagation = off; delete from masking.keys")
        cursor.execute(change)
    done = run_migrations(database.env("migrator"))
    assert done.returncode == 5
    assert done.stderr.startswith(f"The worker ::1:{worker.env('postgres')['PGPORT']} gets no keys: ")
    assert reason in done.stderr
    assert as_superuser(worker, "select count(*) from masking.keys") == [(0,)]


def test_what_a_worker_leaves_open_to_the_public_is_closed(database):
    """PostgreSQL opens new functions to PUBLIC, and Citus takes to a worker what is granted, not what is not."""
    worker = workers(database)[0]
    with closing(worker.connect("postgres")) as connection, connection, connection.cursor() as cursor:
        cursor.execute("set citus.enable_ddl_propagation = off")
        cursor.execute("grant execute on function masking.masked, masking.carried_over to public")
    assert run_migrations(database.env("migrator")).returncode == 0
    calls = ["select masking.masked('ip', '192.0.2.1', 1)", "select masking.carried_over('ip', repeat('0', 64), 1)"]
    assert set(refusals(worker, "transformer_user", calls).values()) == {"42501"}

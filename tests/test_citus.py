"""On a Citus cluster (tests/cluster.py): what is there alone. Modules marked on_citus_too run there as well."""

import hashlib
import hmac
import json
from contextlib import closing

import pytest

from local.events import generate
from local.stack import DATABASE
from tests.conftest import Database, copy, migrate, needs_citus, run_migrations
from tests.officer import as_superuser, privacy
from tests.pipeline import dbt, land, query

pytestmark = [needs_citus, pytest.mark.parametrize("migrated", ["citus"], indirect=True, scope="session")]

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


@pytest.fixture(scope="module")
def built(module_database):
    """1,500 messages in three loads, with keys that are known here."""
    import_keys(module_database)
    bodies = [message.body for message in generate(1500, seed=11)]
    for part in range(3):
        land(module_database, bodies[part::3], prefix=f"load{part}-")
        dbt(module_database, "run")
    return module_database, bodies


def test_what_is_published_is_what_one_server_publishes(built, stack):
    on_citus, bodies = built
    migrate(Database(stack, DATABASE))
    with copy(Database(stack, DATABASE)) as on_one_server:
        import_keys(on_one_server)
        for part in range(3):
            land(on_one_server, bodies[part::3], prefix=f"load{part}-")
        dbt(on_one_server, "run")
        assert checksums(on_citus) == checksums(on_one_server)


def test_every_token_is_pythons_hmac(built):
    database, bodies = built
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
    database, _ = built
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

"""Citus, played by one PostgreSQL (citus_stand_in.sql): what differs on a cluster runs, where there is none.

What Citus itself does is tried on a cluster (test_citus.py). The refusals are tried on both.
"""

import json
from contextlib import closing

import psycopg2
import pytest

from tests.conftest import run_migrations
from tests.officer import Officer, as_superuser, as_transformer, privacy
from tests.pipeline import dbt, land, query


def login(number: int) -> str:
    event = {"user_id": f"u{number % 7}", "app_version": "1.2", "device_type": "ios", "ip": f"192.0.2.{number}"}
    return json.dumps(event | {"device_id": f"device-{number}"})


@pytest.mark.parametrize("migrated", ["stand-in"], indirect=True, scope="session")
def test_a_pipeline_from_landing_to_recovery(database, tmp_path):
    officer = Officer(tmp_path)
    assert privacy(database, "seal-with", str(officer.public_key)).returncode == 0
    land(database, [*map(login, range(20)), "not json"])
    dbt(database, "build")
    assert len(as_superuser(database, "select from pg_dist_partition")) == 4

    assert privacy(database, "rotate-key").returncode == 0
    dbt(database, "run", "--target", "boundary", "--select", "tag:boundary", login="migrator")
    before = query(database, "select masked_ip from analytics.user_logins")
    dbt(database, "run-operation", "carry_tokens_over")
    assert privacy(database, "close-rotation").returncode == 0
    [(token,)] = query(database, "select masked_ip from analytics.user_logins where message_id = 'm1'")
    assert (token,) not in before
    assert officer.reveal(database, token) == "ip 192.0.2.1"

    dbt(database, "build", "--full-refresh")
    health = "select landed, accepted, rejected, unaccounted from analytics.pipeline_health"
    assert query(database, health, login="monitor_user") == [(21, 20, 1, 0)]
    assert as_transformer(database, "select count(*) from masking.read_stg_sqs__messages()") == [(21,)]


@pytest.mark.parametrize("migrated", ["stand-in"], indirect=True, scope="session")
def test_a_cluster_without_workers_is_named(database):
    as_superuser(database, "delete from pg_dist_partition; delete from pg_dist_node; select 1")
    result = run_migrations(database.env("migrator") | {"CITUS": "1"})
    assert (result.returncode, result.stderr) == (
        4,
        "CITUS is set, but no node takes shards: add some (deploy/README.md, Citus).\n",
    )


@pytest.mark.parametrize(
    "migrated", ["stand-in", pytest.param("citus", marks=pytest.mark.citus)], indirect=True, scope="session"
)
@pytest.mark.parametrize(
    ("login_of", "first", "then", "refusal"),
    [
        pytest.param(
            "migrator",
            "set role pipeline_owner; update raw.sqs_messages set queue = 'q'; set role masker",
            "select 1 from raw.sqs_messages",
            "modified in this transaction by a different user",
            id="another-role-in-the-transaction",
        ),
        pytest.param(
            "postgres",
            "set role pipeline_owner",
            "update raw.sqs_messages set queue = masking.token(queue, 'key')",
            "STABLE functions",
            id="update-by-a-function",
        ),
        pytest.param(
            "postgres",
            "create table public.t (a text primary key); create trigger t before insert on public.t"
            " for each row execute function suppress_redundant_updates_trigger()",
            "select create_distributed_table('public.t', 'a')",
            "because it has triggers|triggers are not supported",
            id="trigger",
        ),
        pytest.param(
            "postgres",
            "create table public.t (a text primary key, b text)",
            "select create_distributed_table('public.t', 'b')",
            "cannot create constraint on",
            id="key-without-the-distribution-column",
        ),
    ],
)
def test_what_citus_refuses(database, login_of, first, then, refusal):
    land(database, [login(1)])
    with closing(database.connect(login_of)) as connection, connection.cursor() as cursor:
        cursor.execute(first)
        with pytest.raises(psycopg2.Error, match=refusal):
            cursor.execute(then)

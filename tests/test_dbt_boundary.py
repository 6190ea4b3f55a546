"""The boundary: deployed by masker alone, compared by everybody else, replaced without harm to what stands on it."""

import contextlib
import json

import psycopg2.errors
import pytest

from tests.pipeline import dbt, land, query

LOGIN = '{"user_id": "u", "app_version": "2.3.0", "device_type": "ios", "ip": "192.0.2.%s", "device_id": "d-%s"}'


@pytest.fixture(scope="module")
def built(either_postgres):
    land(either_postgres, [LOGIN % (n % 256, n) for n in range(2000)])
    dbt(either_postgres, "build")
    return either_postgres


def as_masker(database, *statements):
    with contextlib.closing(database.connect("migrator")) as connection, connection, connection.cursor() as cursor:
        cursor.execute("set role masker")
        for statement in statements:
            cursor.execute(statement)


def deploy(database, expect=True):
    return dbt(database, "run", "--target", "boundary", "--select", "tag:boundary", login="migrator", expect=expect)


def sentences(result):
    """What dbt says of the models that failed."""
    return [node.message for node in result.result if node.status == "error"]


def definition(database, view):
    return query(database, "select pg_get_viewdef(%s::regclass)", f"masking.{view}", login="postgres")[0][0]


def test_transformer_builds_tests_and_documents_without_seeing_a_body(built):
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        query(built, "select body from raw.sqs_messages", login="transformer_user")
    for command in (["build", "--full-refresh"], ["docs", "generate", "--static"], ["source", "freshness"]):
        dbt(built, *command)


def test_every_unit_test_passes(built):
    result = dbt(built, "test", "--select", "test_type:unit").result
    statuses = [each.status for each in result if each.node.resource_type == "unit_test"]
    assert len(statuses) >= 12
    assert set(statuses) == {"pass"}


@pytest.mark.parametrize(
    ("view", "change"),
    [
        pytest.param(
            "base_sqs__messages", "create or replace view {view} with (security_barrier) as {sql} limit 5", id="other"
        ),
        pytest.param("stg_sqs__messages", "alter view {view} reset (security_barrier)", id="no-barrier"),
        pytest.param("stg_sqs__mask_consistency", "drop view {view}", id="gone"),
    ],
)
def test_a_boundary_that_is_not_the_projects_stops_the_run_and_is_named(built, view, change):
    as_masker(built, change.format(view=f"masking.{view}", sql=definition(built, view).rstrip(";")))

    [said] = sentences(dbt(built, "run", "--select", view, expect=False))

    assert f"masking.{view} in the database is not the one in this project: deploy it with `make migrate`." in said
    deploy(built)
    dbt(built, "run", "--select", "tag:boundary")


def test_deploying_keeps_what_stands_on_the_boundary_and_who_may_read_it(built):
    with contextlib.closing(built.connect("transformer_user")) as connection, connection, connection.cursor() as cursor:
        cursor.execute("create view staging.mine as select message_id from masking.stg_sqs__messages")
    as_masker(
        built,
        "create or replace view masking.stg_sqs__messages as "
        f"{definition(built, 'stg_sqs__messages').rstrip(';')} limit 0",
    )
    assert query(built, "select count(*) from staging.mine", login="transformer_user") == [(0,)]

    deploy(built)

    assert query(built, "select count(*) from staging.mine", login="transformer_user") == [(2000,)]
    with contextlib.closing(built.connect("transformer_user")) as connection, connection, connection.cursor() as cursor:
        cursor.execute("drop view staging.mine")


OTHER_COLUMNS = """
    drop view masking.stg_sqs__mask_consistency;
    create view masking.stg_sqs__mask_consistency as select text 'ip' as field, bigint '0' as numbers, 1 as more;
    grant select on masking.stg_sqs__mask_consistency to transformer
"""


def test_a_view_with_other_columns_is_made_anew(built):
    as_masker(built, OTHER_COLUMNS)
    deploy(built)
    dbt(built, "run", "--select", "tag:boundary")


def test_a_view_with_other_columns_that_somebody_uses_is_left_and_the_columns_are_named(built):
    as_masker(built, OTHER_COLUMNS)
    with contextlib.closing(built.connect("transformer_user")) as connection, connection, connection.cursor() as cursor:
        cursor.execute("create view staging.mine as select field from masking.stg_sqs__mask_consistency")

    [said] = sentences(deploy(built, expect=False))

    assert (
        "masking.stg_sqs__mask_consistency cannot be replaced in place: field, numbers, more would be renamed" in said
    )
    assert "drop view masking.stg_sqs__mask_consistency cascade." in said
    as_masker(built, "drop view masking.stg_sqs__mask_consistency cascade")
    deploy(built)


def test_columns_can_be_added_at_the_end(built):
    as_masker(
        built,
        "drop view masking.stg_sqs__mask_consistency",
        "create view masking.stg_sqs__mask_consistency as select text 'logins' as event_type",
    )
    deploy(built)
    assert (
        query(built, "select messages from masking.stg_sqs__mask_consistency", login="transformer_user")
        == [(2000,)] * 2
    )


PARALLEL = """
    set max_parallel_workers_per_gather = 2; set parallel_setup_cost = 0; set parallel_tuple_cost = 0;
    set min_parallel_table_scan_size = 0
"""


def test_it_parses_and_masks_in_parallel_workers(built):
    with contextlib.closing(built.connect("transformer_user")) as connection, connection.cursor() as cursor:
        cursor.execute(PARALLEL)
        cursor.execute(
            "explain (format json, verbose) create temporary table t as select * from masking.stg_sqs__messages"
        )
        plan = cursor.fetchone()[0][0]["Plan"]
        if connection.server_version < 160000:  # "is this valid?" takes an exception block there
            assert "Gather" not in json.dumps(plan)
            return
        [gather] = [node for node in nodes(plan) if node["Node Type"] == "Gather"]
        below = json.dumps(gather["Plans"])
        assert "masking.parse_json(messages.body" in below
        assert "extensions.hmac(" in below


def nodes(plan):
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def test_parallel_workers_come_to_the_same_result(built):
    totals = "select count(*), count(reason), md5(string_agg(t::text, ',' order by message_id)) from t"
    results = set()
    for settings in (PARALLEL, "set max_parallel_workers_per_gather = 0"):
        with contextlib.closing(built.connect("transformer_user")) as connection, connection.cursor() as cursor:
            cursor.execute(settings)
            cursor.execute("create temporary table t as select * from masking.stg_sqs__messages")
            cursor.execute(totals)
            results.add(cursor.fetchone())
    assert len(results) == 1

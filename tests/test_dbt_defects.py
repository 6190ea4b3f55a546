"""Each kind of defect is planted in turn: the dbt tests that should catch it do, and no others."""

import contextlib

import pytest

from tests.conftest import copy, on_citus_too
from tests.pipeline import dbt, land, parsed

pytestmark = on_citus_too

LOGIN = '{"user_id": "%s", "app_version": "2.3.0", "device_type": "ios", "ip": "192.0.2.%s", "device_id": "d-%s"}'

# who can do it, what is done, and the tests that fail of it
DEFECTS = {
    "plain-address-for-a-token": (
        "transformer",
        "update analytics.user_logins set masked_ip = '192.0.2.1' where message_id = 'm1'",
        {"is_token_user_logins_masked_ip", "assert_published_is_what_the_boundary_says"},
    ),
    "plain-device-for-a-token": (
        "transformer",
        "update analytics.user_logins set masked_device_id = 'd-1' where message_id = 'm1'",
        {"is_token_user_logins_masked_device_id", "assert_published_is_what_the_boundary_says"},
    ),
    "plain-address-in-an-open-column": (
        "transformer",
        "update analytics.user_logins set locale = '192.0.2.1' where message_id = 'm1'",
        {"assert_published_is_what_the_boundary_says"},
    ),
    "bare-hash-for-a-token": (
        "transformer",
        "update analytics.user_logins set masked_ip = encode(sha256('192.0.2.1'), 'hex') where message_id = 'm1'",
        {"assert_published_is_what_the_boundary_says"},
    ),
    "two-tokens-for-one-value": (
        "transformer",
        "update analytics.user_logins set masked_ip = repeat('a', 64) where message_id = 'm1'",
        {"assert_published_is_what_the_boundary_says"},
    ),
    "another-day": (
        "transformer",
        "update analytics.user_logins set create_date = create_date + 1 where message_id = 'm1'",
        {"assert_published_is_what_the_boundary_says"},
    ),
    "null-user": (
        "transformer",
        """
        do $$ begin
            alter table analytics.user_logins alter column user_id drop not null;
            update analytics.user_logins set user_id = null where message_id = 'm1';
        end $$
        """,
        {"not_null_user_logins_user_id", "not_null_users_user_id", "assert_published_is_what_the_boundary_says"},
    ),
    "null-token": (
        "transformer",
        """
        do $$ begin
            alter table analytics.user_logins alter column masked_ip drop not null;
            update analytics.user_logins set masked_ip = null where message_id = 'm1';
        end $$
        """,
        {"not_null_user_logins_masked_ip", "assert_published_is_what_the_boundary_says"},
    ),
    "doubled-login": (
        "transformer",
        """
        alter table analytics.user_logins drop constraint user_logins_pkey;
        insert into analytics.user_logins select * from analytics.user_logins where message_id = 'm1'
        """,
        {"unique_user_logins_message_id", "unique_login_events_message_id", "assert_each_message_has_one_outcome"},
    ),
    "doubled-rejection": (
        "transformer",
        """
        alter table analytics.rejected_messages drop constraint rejected_messages_pkey;
        insert into analytics.rejected_messages select * from analytics.rejected_messages
        """,
        {"unique_rejected_messages_message_id", "assert_each_message_has_one_outcome"},
    ),
    "lost-login": (
        "transformer",
        "delete from analytics.user_logins where message_id = 'm1'",
        {"assert_each_message_has_one_outcome"},
    ),
    "lost-everywhere": (
        "transformer",
        """
        delete from analytics.user_logins where message_id = 'm1';
        delete from staging.int_messages__masked where message_id = 'm1'
        """,
        {"assert_landed_is_accepted_plus_rejected"},
    ),
    "accepted-and-rejected": (
        "transformer",
        """
        insert into analytics.rejected_messages (message_id, queue, load_id, reason)
        select message_id, 'q', load_id, 'not_json' from analytics.user_logins where message_id = 'm1';
        delete from analytics.user_logins where message_id = 'm2'
        """,
        {"assert_each_message_has_one_outcome", "assert_published_is_what_the_boundary_says"},
    ),
    "rejected-for-another-reason": (
        "transformer",
        "update analytics.rejected_messages set reason = '192.0.2.1' where message_id = 'm20'",
        {"assert_published_is_what_the_boundary_says"},
    ),
    "rejected-in-another-load": (
        "transformer",
        "update analytics.rejected_messages set load_id = load_id + 1 where message_id = 'm20'",
        {"assert_published_is_what_the_boundary_says"},
    ),
    "plain-address-in-staging-alone": (  # which a full refresh publishes, once raw is purged
        "transformer",
        "update staging.int_messages__masked set masked_ip = '192.0.2.1' where message_id = 'm1'",
        {"assert_published_is_what_the_boundary_says"},
    ),
    "lost-from-raw": (
        "pipeline_owner",
        "delete from raw.sqs_messages where message_id = 'm1'",
        {"assert_raw_is_what_landed"},
    ),
    "landed-without-a-row-in-the-ledger": (
        "pipeline_owner",
        "delete from raw.loads where load_id = (select max(load_id) from raw.loads)",
        {"assert_raw_is_what_landed", "assert_landed_is_accepted_plus_rejected"},
    ),
    "in-another-load-than-the-ledger-says": (
        "pipeline_owner",
        "update raw.sqs_messages set load_id = (select min(load_id) from raw.loads) where message_id = 'last0'",
        {"assert_raw_is_what_landed", "assert_published_is_what_the_boundary_says"},
    ),
    "load-id-beyond-the-sequence": (
        "pipeline_owner",
        "select setval('raw.load_id_seq', 1, false)",
        {"assert_load_ids_are_behind_the_sequence"},
    ),
    "load-id-that-comes-again": (
        "pipeline_owner",
        "select setval('raw.load_id_seq', (select max(load_id) from raw.loads), false)",
        {"assert_load_ids_are_behind_the_sequence"},
    ),
    "load-id-that-comes-again-and-brought-only-duplicates": (
        "pipeline_owner",
        """
        insert into raw.loads (queue, received, landed, duplicates) values ('login-queue', 1, 0, 1);
        select setval('raw.load_id_seq', (select max(load_id) from raw.loads), false)
        """,
        {"assert_load_ids_are_behind_the_sequence"},
    ),
    "boundary-that-masks-without-a-key": (
        "masker",
        """
        create or replace function masking.token(value text, key bytea) returns text language sql stable parallel safe
        return encode(sha256(convert_to(value, 'UTF8')), 'hex')
        """,
        {"assert_masks_are_consistent", "assert_published_is_what_the_boundary_says"},
    ),
    "boundary-that-masks-one-value-in-two-ways": (
        "masker",
        """
        create or replace function masking.token(value text, key bytea) returns text language sql volatile
        return encode(sha256(uuid_send(gen_random_uuid())), 'hex')
        """,
        {"assert_masks_are_consistent", "assert_published_is_what_the_boundary_says"},
    ),
    "boundary-that-masks-two-values-in-one-way": (
        "masker",
        """
        create or replace function masking.token(value text, key bytea) returns text language sql stable parallel safe
        return encode(sha256(key), 'hex')
        """,
        {"assert_masks_are_consistent", "assert_published_is_what_the_boundary_says"},
    ),
    "boundary-that-accepts-what-exposes-a-value": (
        "masker",
        """
        do $$ begin
            execute 'create or replace view masking.base_sqs__messages with (security_barrier) as '
                || replace(pg_get_viewdef('masking.base_sqs__messages'), $s$'exposes_plain_value'$s$, 'null');
        end $$
        """,
        {"assert_masks_are_consistent"},
    ),
    "masks-compared-of-no-login": (
        "masker",
        """
        create or replace function masking.parse_json(body text) returns jsonb language sql stable return null::jsonb
        """,
        {"assert_masks_are_consistent", "assert_published_is_what_the_boundary_says"},
    ),
    "users-of-a-device-in-two-clusters": (
        "pipeline_owner",
        """
        create or replace function analytics.components(nodes integer[], neighbours integer[]) returns integer[]
        language sql return array(select generate_series(1, (select max(node) from unnest(nodes) as every (node))))
        """,
        {"assert_users_of_a_device_are_in_one_cluster"},
    ),
    "table-of-a-model-that-was-renamed": (
        "transformer",
        "create table analytics.logins as select user_id, masked_ip from analytics.user_logins",
        {"assert_an_erasure_reaches_every_table"},
    ),
}
# reports, and the tests that fail where a report has not all its rows, or each of them twice
LEAVES_OUT = """
do $$ begin
    execute 'create or replace view analytics.{0} as '
        || rtrim(pg_get_viewdef('analytics.{0}'), ';') || ' limit 0';
end $$
"""
MADE_FROM_ALL = ("daily_logins", "hourly_logins", "users")
DEFECTS |= {
    f"{report}-that-leaves-something-out": ("transformer", LEAVES_OUT.format(report), {test})
    for report, test in {
        **{report: f"adds_up_to_{report}_logins__ref_user_logins_" for report in MADE_FROM_ALL},
        "login_events": "adds_up_to_login_events_1__ref_user_logins_",
    }.items()
}
TWICE = """
do $$ declare definition text := rtrim(pg_get_viewdef('analytics.{0}'), ';'); begin
    execute format('create or replace view analytics.{0} as (%1$s) union all (%1$s)', definition);
end $$
"""
DEFECTS |= {
    f"{report}-with-each-row-twice": ("transformer", TWICE.format(report), {test})
    for report, test in {
        "shared_devices": "unique_shared_devices_masked_device_id",
        "user_devices": "unique_together_user_devices_user_id__masked_device_id",
        "user_ips": "unique_together_user_ips_user_id__masked_ip",
    }.items()
}
OWNERS_LOGIN = {"transformer": "transformer_user", "masker": "migrator", "pipeline_owner": "migrator"}


@pytest.fixture(scope="module")
def sound(module_database):
    bodies = [LOGIN % (f"u{n}", n % 5, n % 12) for n in range(20)]
    land(module_database, [*bodies, "not json", LOGIN % ("d-1", 1, 1)])
    land(module_database, [LOGIN % ("last", 1, 1)], prefix="last")
    dbt(module_database, "build")
    return module_database


@pytest.fixture
def database(sound):
    """A copy, always of the same name, so that dbt need not parse the project again."""
    with copy(sound, f"{sound.name}_with_a_defect") as database:
        yield database


def failures(database):
    """The tests that fail; without those of pipeline_health, which counts what tests of conservation count."""
    result = dbt(database, "test", "--select", "test_type:data", expect=None).result
    failed = {each.node.name for each in result if each.node.resource_type == "test" and each.status != "pass"}
    return {name for name in failed if "pipeline_health" not in name}


def test_nothing_fails_without_a_defect(database):
    assert failures(database) == set()


@pytest.mark.parametrize(("role", "defect", "caught_by"), DEFECTS.values(), ids=DEFECTS)
def test_a_defect_is_caught_by_the_right_tests_and_no_others(database, role, defect, caught_by):
    with (
        contextlib.closing(database.connect(OWNERS_LOGIN[role])) as connection,
        connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(f"set role {role}")
        cursor.execute(defect)

    assert failures(database) == caught_by


def test_every_test_of_our_own_is_caught_failing_above(sound):
    tests = {node.name for node in parsed(sound, "transformer_user").nodes.values() if node.resource_type == "test"}
    dbts_own = {name for name in tests if name.startswith(("not_null_", "unique_"))}
    of_pipeline_health = {name for name in tests if "pipeline_health" in name}
    assert tests - dbts_own - of_pipeline_health <= set().union(*(caught_by for _, _, caught_by in DEFECTS.values()))

"""The privilege matrix of DESIGN: who may do what, tried as each login; and nobody anything else."""

import contextlib

import psycopg2.errors
import pytest

from tests.pipeline import dbt, land, query

LOGINS = ("loader_user", "transformer_user", "analyst_user", "privacy_officer_user", "monitor_user")
READERS = ("transformer_user", "analyst_user", "privacy_officer_user")
LOGIN = '{"user_id":"u","app_version":"1.0","device_type":"ios","ip":"192.0.2.1","locale":null,"device_id":"d"}'

MESSAGE = "(message_id, queue, body, load_id) select 'x', 'q', 'b', raw.current_load_id()"

# statement, who may run it (everybody else is refused)
MATRIX = [
    # raw
    ("select body from raw.sqs_messages", ()),
    ("select attributes from raw.sqs_messages", ()),
    ("select message_group_id from raw.sqs_messages", ()),
    ("select * from raw.sqs_messages", ()),
    ("select message_id, queue, sent_at, load_id, loaded_at from raw.sqs_messages", ("transformer_user",)),
    ("select count(*) from raw.sqs_messages", ("transformer_user", "monitor_user")),
    ("select * from raw.loads", ("loader_user", "transformer_user")),
    ("select load_id from raw.loads", ("loader_user", "transformer_user", "monitor_user")),
    ("select load_id from raw.sqs_messages", ("transformer_user", "monitor_user")),
    ("select * from raw.load_id_seq", ()),
    ("select * from raw.pipeline_state", ("loader_user", "transformer_user", "monitor_user")),
    ("select raw.safe_load_id()", ("transformer_user",)),
    ("select raw.is_distributed()", ("transformer_user",)),
    ("select raw.distribute()", ()),
    (f"insert into raw.sqs_messages {MESSAGE}", ("loader_user",)),
    (f"insert into raw.sqs_messages {MESSAGE} returning body", ()),
    ("insert into raw.loads (queue, received, landed, duplicates) values ('q', 1, 1, 0)", ("loader_user",)),
    ("insert into raw.loads (loaded_by, queue, received, landed, duplicates) values ('me', 'q', 1, 1, 0)", ()),
    ("update raw.sqs_messages set body = ''", ()),
    ("delete from raw.sqs_messages", ()),
    ("truncate raw.sqs_messages", ()),
    ("update raw.loads set landed = 0", ()),
    ("select setval('raw.load_id_seq', 1000)", ()),
    ("copy raw.sqs_messages to stdout", ()),
    ("create trigger t before insert on raw.sqs_messages execute function suppress_redundant_updates_trigger()", ()),
    # masking
    ("select * from masking.keys", ()),
    ("select key from masking.keys", ()),
    ("select kind, version, created_at from masking.keys", ("monitor_user",)),
    ("insert into masking.keys values ('ip', 2, decode(repeat('00', 32), 'hex'))", ()),
    ("select * from masking.base_sqs__messages", ()),
    ("select count(*) from masking.base_sqs__messages", ()),
    ("select * from masking.stg_sqs__messages", ("transformer_user",)),
    ("select * from masking.stg_sqs__mask_consistency", ("transformer_user",)),
    ("select masking.canonical_address('192.0.2.1')", ("transformer_user",)),
    ("select masking.ensure_keys('{ip}')", ()),
    ("select masking.kinds()", ()),
    ("select * from masking.base_sqs__masked_values", ()),
    ("select masking.masked('ip', '192.0.2.1', 1)", ()),
    ("create or replace view masking.stg_sqs__messages as select 1 as message_id", ()),
    ("alter view masking.stg_sqs__messages reset (security_barrier)", ()),
    ("create function masking.f() returns int language sql return 1", ()),
    # extensions
    ("select extensions.hmac('x', 'y', 'sha256')", ()),
    # staging
    ("select * from staging.int_messages__masked", ("transformer_user",)),
    ("create table staging.t (i int)", ("transformer_user",)),
    # analytics
    ("select * from analytics.user_logins", READERS),
    ("select * from analytics.rejected_messages", READERS),
    ("create view analytics.v as select 1 as one", ("transformer_user",)),
    ("delete from analytics.user_logins", ("transformer_user",)),
    ("select * from analytics.shared_devices", READERS),
    ("select * from analytics.pipeline_health", (*READERS, "monitor_user")),
    ("select * from analytics.account_clusters", READERS),
    ("select * from analytics.user_devices", READERS),
    ("select analytics.decode_app_version(1)", READERS),
    ("select analytics.components('{1}', '{1}')", READERS),
    # privacy
    ("select * from privacy.originals", ()),
    ("select * from privacy.public_keys", ()),
    ("select * from privacy.tombstone_key", ()),
    ("select * from privacy.audit", ("privacy_officer_user",)),
    ("select at, action from privacy.audit", ("privacy_officer_user", "monitor_user")),
    ("select * from privacy.attestations", ("monitor_user",)),
    ("insert into privacy.attestations (failed) values (1)", ("monitor_user",)),
    ("insert into privacy.attestations (at, failed) values (now(), 1)", ()),
    ("delete from privacy.attestations", ()),
    ("insert into privacy.audit (action) values ('x')", ()),
    ("delete from privacy.audit", ()),
    ("select * from privacy.erased_messages", ()),
    ("select message_id, load_id from privacy.erased_messages", ("transformer_user",)),
    ("select privacy.request_recovery(repeat('0', 64), 'a lawful request')", ("privacy_officer_user",)),
    ("select privacy.find_tokens('abcdef', 'a lawful request')", ("privacy_officer_user",)),
    ("select privacy.require_reason('a lawful request')", ()),
    ("select privacy.forget_user('nobody', 'a lawful request')", ("privacy_officer_user",)),
    ("select privacy.purge(28)", ("privacy_officer_user",)),
    ("select privacy.seal_originals()", ("transformer_user",)),
    ("select privacy.erase_returned()", ("transformer_user",)),
    ("select privacy.bury('{m0}', 1)", ()),
    ("select privacy.record('x')", ()),
    ("select privacy.require_plain_table()", ()),
    ("select privacy.seal_with('')", ()),
    ("select privacy.require_two_persons(false)", ()),
    # the database and the server
    ("create temporary table t (i int)", ("loader_user", "transformer_user", "privacy_officer_user")),
    ("create table public.t (i int)", ()),
    ("create schema s", ()),
    ("create role r", ()),
    ("set role masker", ()),
    ("set role pipeline_owner", ()),
    ("set role migrator", ()),
    ("select pg_read_file('PG_VERSION')", ()),
    ("copy (select 1) to program 'true'", ()),
]


@pytest.fixture(scope="module")
def built(module_database):
    land(module_database, [LOGIN, "not json"])
    dbt(module_database, "run")
    return module_database


@pytest.fixture(scope="module")
def connections(built):
    with contextlib.ExitStack() as stack:
        yield {login: stack.enter_context(contextlib.closing(built.connect(login))) for login in LOGINS}


@pytest.mark.parametrize("login", LOGINS)
@pytest.mark.parametrize(("statement", "allowed"), [pytest.param(*row, id=row[0]) for row in MATRIX])
def test_each_login_may_do_what_the_matrix_says_and_no_more(connections, statement, allowed, login):
    connection = connections[login]
    try:
        with connection.cursor() as cursor:
            if login in allowed:
                cursor.execute(statement)
            else:
                with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                    cursor.execute(statement)
    finally:
        connection.rollback()


OPEN_TO_PUBLIC = """
select acl.what, acl.privilege_type
from (
    select 'database' as what, (aclexplode(coalesce(datacl, acldefault('d', datdba)))).*
    from pg_database where datname = current_database()
    union all
    select 'schema ' || nspname, (aclexplode(coalesce(nspacl, acldefault('n', nspowner)))).*
    from pg_namespace where nspname = any(%(schemas)s || array['public', 'extensions', 'migrations'])
    union all
    select 'relation ' || relnamespace::regnamespace || '.' || relname,
        (aclexplode(coalesce(relacl, acldefault(case when relkind = 'S' then 's' else 'r' end::"char", relowner)))).*
    from pg_class where relnamespace::regnamespace::text = any(%(schemas)s) and relkind in ('r', 'p', 'v', 'm', 'S')
    union all
    select 'function ' || oid::regprocedure, (aclexplode(coalesce(proacl, acldefault('f', proowner)))).*
    from pg_proc where pronamespace::regnamespace::text = any(%(schemas)s)
) as acl
where grantee = 0
"""


def test_nothing_is_open_to_public(built):
    schemas = ["raw", "masking", "staging", "analytics", "privacy"]
    with built.connect("postgres") as connection, connection.cursor() as cursor:
        cursor.execute(OPEN_TO_PUBLIC, {"schemas": schemas})
        assert cursor.fetchall() == []


def test_a_view_of_dbts_on_raw_shows_nothing_to_anybody(built):
    with contextlib.closing(built.connect("transformer_user")) as connection, connection.cursor() as cursor:
        cursor.execute("set role transformer")
        cursor.execute("create view analytics.bodies as select body from raw.sqs_messages")  # allowed: it reads nothing
        cursor.execute("grant select on analytics.bodies to public")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute("select * from analytics.bodies")


def test_no_statistic_holds_a_sample_of_a_body_or_a_key(built):
    with built.connect("postgres") as connection, connection.cursor() as cursor:
        cursor.execute("analyze raw.sqs_messages, masking.keys")
        cursor.execute("select attname from pg_stats where tablename in ('sqs_messages', 'keys')")
        sampled = {name for (name,) in cursor.fetchall()}
    assert sampled.isdisjoint({"body", "attributes", "message_group_id", "key"})
    assert "message_id" in sampled


def test_no_login_but_the_migrator_can_take_on_an_owner(built):
    members = query(
        built,
        "select rolname from pg_roles where rolcanlogin and not rolsuper"
        " and (pg_has_role(oid, 'masker', 'member') or pg_has_role(oid, 'pipeline_owner', 'member'))",
    )
    assert members == [("migrator",)]


def test_no_function_looks_names_up_where_its_caller_says(built):
    """transformer may create functions and operators with the names of PostgreSQL's own. (`return …` has its names.)"""
    found = (
        "select oid::regprocedure::text from pg_proc"
        " where pronamespace::regnamespace::text in ('raw', 'masking', 'privacy', 'analytics') and prosqlbody is null"
        " and not coalesce('search_path=pg_catalog, pg_temp' = any(proconfig), false)"
    )
    assert query(built, found, login="postgres") == []

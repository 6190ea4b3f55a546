"""What an attacker with a stolen login would try, as that login: one table, every attempt refused or fruitless."""

import contextlib
import hashlib
import hmac
import ipaddress
import json
import re
from collections import deque

import psycopg2
import psycopg2.errors
import pytest

from tests.conftest import on_citus_too
from tests.officer import Officer, as_superuser, forget, privacy
from tests.pipeline import dbt, land, query

pytestmark = on_citus_too

REASON = "ticket 77: account closed"
EVERYBODY = ("loader_user", "transformer_user", "analyst_user", "privacy_officer_user")
NET = "198.51.100."
BODIES = [
    json.dumps(
        {"user_id": f"u{n}", "app_version": "1.2", "device_type": "ios", "ip": ip, "device_id": f"593-47-{n:04}"}
    )
    for n, ip in enumerate([*(f"{NET}{n}" for n in range(200)), "gateway"])
]
BODIES += ["not json", "[" * 5000, BODIES[0][:-1] + ', "x": "' + "x" * 5000 + '"}']
BODIES += [BODIES[0].replace('"u0"', '"a:b:c"').replace(f"{NET}0", f"{NET}1, {NET}2")]


@pytest.fixture(scope="module")
def built(module_database, tmp_path_factory):
    """Logins, masked and sealed, and some messages that are none, which make the functions take their other ways."""
    officer = Officer(tmp_path_factory.mktemp("officer"))
    assert privacy(module_database, "seal-with", str(officer.public_key)).returncode == 0
    land(module_database, BODIES)
    dbt(module_database, "run")
    done = forget(module_database, "u199", REASON)
    assert done.returncode == 0, done.stderr
    land(module_database, BODIES[:100], prefix="again")  # for a look at what may be the person's
    return module_database


@pytest.fixture(scope="module")
def secrets(built) -> set[str]:
    """Everything plain that could come out, and the keys, as the server would print them."""
    plain = {f"{NET}{n}" for n in range(200)} | {f"593-47-{n:04}" for n in range(201)}
    keys = "select encode(key, 'hex') from masking.keys union select encode(key, 'hex') from privacy.tombstone_key"
    return plain | {key for (key,) in as_superuser(built, keys)}


def as_bytes_in_a_plan(secret: str) -> str:
    """How PostgreSQL prints the bytes of a constant."""
    return " ".join(str(byte) for byte in (bytes.fromhex(secret) if len(secret) == 64 else secret.encode()))


def everything_said(database, login: str, statements: str) -> str:
    """All that these statements bring back: rows, errors with their details, and messages."""
    connection = database.connect(login)
    said: list[object] = []
    with contextlib.closing(connection), connection.cursor() as cursor:
        connection.autocommit = True
        connection.notices = deque()  # psycopg2 drops all but the last fifty messages of a list
        for statement in statements.split(";\n"):
            try:
                cursor.execute(statement)
                said += cursor.fetchall() if cursor.description else []
            except psycopg2.Error as error:
                said += [str(error), error.diag.message_detail, error.diag.context]
        said += connection.notices
    return " ".join(map(str, said))


REFUSED = [
    # the mask as an oracle, and keys
    ("select masking.token('198.51.100.1', (select key from masking.keys limit 1))", EVERYBODY),
    ("select masking.carried_over('ip', repeat('0', 64), 1)", EVERYBODY),
    ("select extensions.hmac('198.51.100.1', 'k', 'sha256')", EVERYBODY),
    ("select key from privacy.tombstone_key", EVERYBODY),
    ("create table analytics.k (like masking.keys including all)", EVERYBODY),
    ("alter table masking.keys disable trigger all", EVERYBODY),
    ("grant select on masking.keys to public", EVERYBODY),
    ("select masking.open_rotation()", EVERYBODY),
    # views and functions of one's own
    ("create view analytics.v as select * from masking.base_sqs__messages; select * from analytics.v", EVERYBODY),
    ("create materialized view staging.v as select body from raw.sqs_messages", EVERYBODY),
    ("create or replace view masking.stg_sqs__messages as select 1 as x", EVERYBODY),
    ("create function masking.canonical_ip(text, text) returns text language sql return $1", EVERYBODY),
    ("create function raw.f() returns text language sql security definer return 'x'", EVERYBODY),
    ("create rule r as on insert to raw.sqs_messages do also select 1", EVERYBODY),
    ("create policy p on raw.sqs_messages using (true)", EVERYBODY),
    ("create index on raw.sqs_messages (md5(body))", EVERYBODY),
    ("create statistics analytics.s on body, queue from raw.sqs_messages", EVERYBODY),
    ("create publication p for table raw.sqs_messages", EVERYBODY),
    (
        "create operator analytics.= (leftarg = text, rightarg = text, function = texteq)",
        ("loader_user", "analyst_user"),
    ),
    ("create extension pg_stat_statements schema extensions", EVERYBODY),
    ("create function pg_temp.f() returns int language c as 'libc', 'getpid'", EVERYBODY),
    # becoming somebody else
    ("set role masker", EVERYBODY),
    ("set role pipeline_owner", EVERYBODY),
    ("set role privacy_officer", ("loader_user", "transformer_user", "analyst_user")),
    ("set session authorization postgres", EVERYBODY),
    ("alter role current_user superuser", EVERYBODY),
    ("set session_replication_role = replica", EVERYBODY),
    # the server and its files
    ("copy (select 1) to program 'id'", EVERYBODY),
    ("copy (select 1) to '/tmp/x'", EVERYBODY),
    ("select pg_read_file('postgresql.conf')", EVERYBODY),
    ("select pg_ls_dir('.')", EVERYBODY),
    ("select lo_import('/etc/passwd')", EVERYBODY),
    ("load 'auto_explain'", EVERYBODY),
    ("set log_statement = 'none'", EVERYBODY),
    ("select pg_reload_conf()", EVERYBODY),
    # statistics
    ("select stavalues1 from pg_statistic", EVERYBODY),
    # recovery and erasure
    ("select * from privacy.originals", EVERYBODY),
    (
        "select privacy.request_recovery(repeat('0', 64), 'because I like to')",
        ("loader_user", "transformer_user", "analyst_user"),
    ),
    ("select privacy.sealed_original(1)", ("loader_user", "transformer_user", "analyst_user")),
    ("select privacy.forget_user('u1', 'because I like to')", ("loader_user", "transformer_user", "analyst_user")),
    ("select privacy.seal_with('x')", EVERYBODY),
    ("select privacy.require_two_persons(false)", EVERYBODY),
    ("insert into privacy.audit (action) values ('x')", EVERYBODY),
    ("select privacy.record('x')", EVERYBODY),
    ("alter table privacy.audit disable trigger append_only", EVERYBODY),
    ("delete from privacy.erased_messages", EVERYBODY),
]


@pytest.fixture(scope="module")
def connections(built):
    with contextlib.ExitStack() as stack:
        yield {login: stack.enter_context(contextlib.closing(built.connect(login))) for login in EVERYBODY}


@pytest.mark.parametrize(("attempt", "logins"), [pytest.param(*row, id=row[0]) for row in REFUSED])
def test_is_refused(connections, attempt, logins):
    for login in logins:
        with connections[login].cursor() as cursor:
            with pytest.raises((psycopg2.errors.InsufficientPrivilege, psycopg2.errors.UndefinedObject)):
                cursor.execute(attempt)
            connections[login].rollback()


LOUD = "set client_min_messages = debug5;\nset debug_print_plan = on;\nset debug_print_rewritten = on;\n"
LOUD += "set debug_pretty_print = off;\n"  # which breaks lines in the middle of a number
PLANNED = LOUD + "set plan_cache_mode = force_custom_plan;\nbegin;\n"
BOUNDARY = "masking.stg_sqs__messages"
FRUITLESS = {
    "explain": f"explain (analyze, verbose, settings) select * from {BOUNDARY}",
    "printed-plans": f"{PLANNED}select masked_ip, reason from {BOUNDARY};\nselect masked_ip, reason from {BOUNDARY}",
    "printed-plans-of-counts": f"{PLANNED}select * from masking.stg_sqs__mask_consistency",
    "printed-plans-of-sealing": f"{PLANNED}select privacy.seal_originals();\nselect masking.key_version()",
    "printed-plans-of-erasing": f"{PLANNED}select privacy.erase_returned();\n"
    f"select privacy.forget_user('u5', '{REASON}');\nrollback",
    "printed-plans-of-landing": f"{PLANNED}insert into raw.sqs_messages (message_id, queue, body) select '', '', ''",
    "cast-errors": f"select masked_ip::inet from {BOUNDARY};\nselect user_id::integer from {BOUNDARY};\n"
    f"select masked_device_id::jsonb from {BOUNDARY}",
    "division-in-a-filter": f"select count(*) from {BOUNDARY} where 1 / (length(masked_ip) - 64) > 0",
    "leaky-function": "create function pg_temp.show(text) returns boolean cost 0.0001 language plpgsql as "
    f"$$ begin raise notice '%', $1; return true; end $$;\nselect count(*) from {BOUNDARY} where pg_temp.show(user_id)",
    "shadowed-functions": "begin;\ncreate function staging.octet_length(text) returns integer language plpgsql as "
    "$$ begin raise notice '%', $1; return 0; end $$;\nset search_path = staging, pg_catalog;\n"
    f"select masked_ip from {BOUNDARY};\nrollback",
    "shadowed-operators": "begin;\ncreate function staging.found(text, text) returns boolean language plpgsql as "
    "$$ begin raise notice '%', $1; return true; end $$;\n"
    "create operator staging.~~ (leftarg = text, rightarg = text, function = staging.found);\n"
    f"set search_path = staging, pg_catalog;\nselect masked_ip, reason from {BOUNDARY};\nrollback",
    "shadowed-tables": "create temporary table keys (kind text, version int, key bytea);\n"
    "create temporary table sqs_messages (message_id text, body text);\nset search_path = pg_temp, masking, raw;\n"
    f"select masked_ip from {BOUNDARY};\nselect * from sqs_messages",
    "statistics": "select * from pg_stats;\nselect * from pg_stats_ext;\nselect * from pg_stats_ext_exprs",
    "other-sessions": "select * from pg_stat_activity;\nselect * from pg_prepared_statements",
    "definitions": "select prosrc, pg_get_functiondef(oid) from pg_proc where prokind = 'f';\n"
    "select pg_get_viewdef(oid) from pg_class where relkind = 'v';\nselect * from pg_description",
    "large-objects": "select lo_get(oid) from pg_largeobject_metadata;\nselect * from pg_largeobject",
    "settings": "select * from pg_settings;\nselect * from pg_file_settings;\nselect * from pg_hba_file_rules",
    "timeout-in-the-middle": f"set statement_timeout = '5ms';\nselect count(*), pg_sleep(0.1) from {BOUNDARY}",
    "duplicate-key": "insert into raw.sqs_messages (message_id, queue, body) values ('m0', 'q', 'x')",
    "not-null": "insert into raw.sqs_messages (message_id, queue, body) values ('evil', 'q', null)",
}


@pytest.mark.parametrize("login", EVERYBODY)
@pytest.mark.parametrize("attempt", FRUITLESS)
def test_brings_nothing_plain_to_light(built, secrets, login, attempt):
    said = everything_said(built, login, FRUITLESS[attempt])
    numbers = re.sub(r"\s+", " ", said)
    assert not any(secret in said or as_bytes_in_a_plan(secret) in numbers for secret in secrets), "something came out"


def test_the_search_above_finds_what_it_looks_for(built, secrets):
    """A superuser sees it all, in a row and in a printed plan."""
    said = everything_said(built, "postgres", "select body from raw.sqs_messages")
    assert sum(secret in said for secret in secrets) > 390
    said = everything_said(built, "postgres", f"{LOUD}select * from raw.sqs_messages where body = '{NET}7'")
    assert as_bytes_in_a_plan(f"{NET}7") in re.sub(r"\s+", " ", said)


HASHES = [hashlib.md5, hashlib.sha1, hashlib.sha256, hashlib.sha512, hashlib.sha3_256, hashlib.blake2b]


def test_no_token_is_a_bare_hash_of_any_candidate(built):
    """Nor one under a key that anybody could guess."""
    candidates = [f"{NET}{n}" for n in range(200)] + [f"593-47-{n:04}" for n in range(200)] + ["gateway", "raw:gateway"]
    candidates += [str(int(ipaddress.ip_address(f"{NET}{n}"))) for n in range(200)]
    guesses = (b"", b"ip", b"device_id", b"key", b"secret", b"masking", bytes(32))
    computed = {hashed(value.encode()).hexdigest()[:64] for value in candidates for hashed in HASHES}
    computed |= {hmac.new(key, value.encode(), hashlib.sha256).hexdigest() for value in candidates for key in guesses}
    tokens = {
        token for row in query(built, "select masked_ip, masked_device_id from analytics.user_logins") for token in row
    }
    assert len(tokens) > 400
    assert tokens.isdisjoint(computed)

"""Citus: what `make migrate` does there besides. routines/citus.sql and dbt_project/macros/citus.sql have the rest."""

import io
import os
from contextlib import closing

import psycopg2
from psycopg2.extensions import cursor as Cursor

from loader import postgres

HAS_CITUS = "select to_regclass('pg_catalog.pg_dist_node') is not null"
TAKES_SHARDS = "select exists (select from pg_dist_node where noderole = 'primary' and shouldhaveshards)"
IS_SPREAD = "select exists (select from pg_dist_partition where logicalrelid = to_regclass('raw.sqs_messages'))"

# The files of routines/ that workers get: what parses and masks, and what views call. No other function is there.
ON_WORKERS = {"_closed", "analytics", "keys", "masking"}

# Each in a transaction of its own. Citus takes to the workers what an object depends on, roles among it, as superuser;
# but as migrator, who may not, when the same transaction has made something there already. And what one role has made
# on a worker, another role does not see there before the commit.
FIRST = (
    "create schema if not exists extensions",
    "create extension if not exists pgcrypto schema extensions",
    "grant usage on schema extensions to masker, pipeline_owner",
    "do $$ begin execute format('grant connect on database %I to masker, pipeline_owner', current_database()); end $$",
)

WORKERS = "select nodename, nodeport from pg_dist_node where isactive and noderole = 'primary' and groupid <> 0"

# A worker gets functions with what is granted, and PostgreSQL grants EXECUTE to PUBLIC: that this was revoked is no
# grant, and stays behind.
CLOSE = """
    do $$
    declare
        open record;
    begin
        for open in
            select oid::regprocedure as routine from pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner)))
            where
                pronamespace::regnamespace::text in ('raw', 'masking', 'privacy', 'analytics')
                and proowner in ('pipeline_owner'::regrole, 'masker'::regrole) and grantee = 0
        loop
            execute format('revoke execute on function %s from public', open.routine);
        end loop;
    end $$
"""

# What the owners' functions are, and who may execute them. (A rotation grants carried_over to transformer, and takes it
# back. On a node that was added, dbt's own are open until its next run, and can no more than the views before them.)
FUNCTIONS = """
    select
        proname, oid::regprocedure::text, proowner::regrole::text, prosecdef, proconfig::text, md5(prosrc),
        array(
            select case grantee when 0 then 'public' else grantee::regrole::text end
            from aclexplode(coalesce(proacl, acldefault('f', proowner)))
            where grantee <> 'transformer'::regrole or proname <> 'carried_over'
            order by 1
        )::text
    from pg_proc
    where
        pronamespace::regnamespace::text in ('raw', 'masking', 'privacy', 'analytics', 'staging')
        and proowner in ('pipeline_owner'::regrole, 'masker'::regrole)
"""
NEEDED = {"masked", "carried_over", "key_version", "token", "parse_json"}

KEYS_ARE_OPEN = """
    select from pg_class, aclexplode(relacl) where oid = to_regclass('masking.keys') and grantee <> 'masker'::regrole
"""
KEYS = """
    create table if not exists masking.keys (
        kind text, version integer, key bytea not null, primary key (kind, version)
    );
    alter table masking.keys alter column key set statistics 0;
    delete from masking.keys
"""


class CannotDistribute(Exception):
    """With the exit status."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


def prepare() -> None:
    """Makes on the workers what the migrations rest on. Once: a node that is added later is told by Citus."""
    with closing(postgres.connect("migrations")) as coordinator, coordinator.cursor() as cursor:
        coordinator.autocommit = True
        cursor.execute(HAS_CITUS)
        if cursor.fetchone() == (False,):
            return
        cursor.execute(IS_SPREAD)
        if cursor.fetchone() == (False,):
            for statement in FIRST:
                cursor.execute(statement)


def version(cursor: Cursor) -> str:
    """Of the extension, or nothing; where it is new, every function has to be taken to the workers."""
    cursor.execute("select extversion from pg_extension where extname = 'citus'")
    return "".join(f"Citus {extension}" for (extension,) in cursor.fetchall())


def choose_workers(cursor: Cursor, routines: str) -> None:
    """Whether the file that follows is applied to workers too; without Citus, this setting is nobody's."""
    cursor.execute(f"set local citus.enable_ddl_propagation = {'on' if routines in ON_WORKERS else 'off'}")


def distribute() -> None:
    """Spreads raw over the workers, once, where CITUS says so."""
    with closing(postgres.connect("migrations")) as coordinator, coordinator.cursor() as cursor:
        cursor.execute("set role pipeline_owner")
        cursor.execute("select raw.is_distributed()")
        if cursor.fetchone() == (False,):
            if not os.environ.get("CITUS"):
                return
            cursor.execute(HAS_CITUS)
            if cursor.fetchone() == (False,):
                raise CannotDistribute(4, "CITUS is set, but there is no extension citus: see deploy/README.md, Citus.")
            cursor.execute(TAKES_SHARDS)
            if cursor.fetchone() == (False,):
                raise CannotDistribute(4, "CITUS is set, but no node takes shards: add some (deploy/README.md, Citus).")
            cursor.execute("select raw.distribute()")
            coordinator.commit()


def bring_keys() -> None:
    """After the boundary, whose kinds have their keys by then: brings every worker the keys that there are."""
    with closing(postgres.connect("migrations")) as coordinator, coordinator.cursor() as cursor:
        cursor.execute("set role pipeline_owner")
        cursor.execute("select raw.is_distributed()")
        if cursor.fetchone() == (False,):
            return
        cursor.execute(WORKERS)
        workers = cursor.fetchall()
        cursor.execute("set role masker")
        keys = io.BytesIO()
        postgres.copy(cursor, "copy masking.keys (kind, version, key) to stdout", keys)
        cursor.execute(FUNCTIONS)
        functions = set(cursor.fetchall())
    for host, port in workers:
        try:
            with closing(psycopg2.connect(host=host, hostaddr="", port=port, connect_timeout=10)) as worker:
                bring_keys_to(worker.cursor(), keys.getvalue(), functions)
                worker.commit()
        except psycopg2.Error as error:
            reason = error.diag.message_primary or postgres.connection_failure(error)
            raise CannotDistribute(5, f"The worker {host}:{port} could not be given the keys: {reason}.") from None
        except CannotDistribute as refusal:
            raise CannotDistribute(5, f"The worker {host}:{port} gets no keys: {refusal}.") from None


def bring_keys_to(cursor: Cursor, keys: bytes, functions: set[tuple]) -> None:
    """To a worker whose functions are the coordinator's, and closed to others. By COPY, whose data no log shows."""
    cursor.execute("set citus.enable_ddl_propagation = off")  # what follows is for this worker alone
    cursor.execute(CLOSE)
    cursor.execute(FUNCTIONS)
    there = set(cursor.fetchall())
    if other := sorted(routine for _, routine, *_ in there - functions):
        raise CannotDistribute(5, f"{', '.join(other)} is not as on the coordinator, or open to others")
    if missing := sorted(NEEDED - {name for name, *_ in there}):
        raise CannotDistribute(5, f"it has no function {', '.join(missing)}")
    cursor.execute(KEYS_ARE_OPEN)
    if cursor.rowcount:
        raise CannotDistribute(5, "masking.keys is open to others there")
    cursor.execute("set role masker")
    cursor.execute(KEYS)
    postgres.copy(cursor, "copy masking.keys (kind, version, key) from stdin", io.BytesIO(keys))

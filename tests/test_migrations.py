"""make migrate: applied once, harmless twice, and in one sentence when it cannot be."""

import os
import subprocess
import sys
from dataclasses import replace

from tests.conftest import administration
from tests.pipeline import query

STRUCTURE = """
select
    c.oid::regclass::text, c.relacl::text, a.attname, a.atttypid::regtype::text, a.attacl::text,
    obj_description(c.oid)
from pg_class as c join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0
where c.relnamespace::regnamespace::text in ('raw', 'masking', 'staging', 'analytics', 'privacy')
union all
select oid::regprocedure::text, proacl::text, prosrc, null, null, null
from pg_proc where pronamespace::regnamespace::text in ('raw', 'masking', 'staging', 'analytics', 'privacy')
order by 1, 3
"""


def migrate(environment: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "migrations"], env=os.environ | environment, capture_output=True, text=True
    )


def test_migrating_twice_changes_nothing(database):
    keys = query(database, "select kind, version, key from masking.keys", login="postgres")
    before = query(database, STRUCTURE, login="postgres")

    result = migrate(database.env("migrator"))

    assert result.returncode == 0, result.stderr
    assert query(database, STRUCTURE, login="postgres") == before
    assert query(database, "select kind, version, key from masking.keys", login="postgres") == keys
    assert len(keys) == 2


def test_each_database_makes_keys_of_its_own(stack, database):
    fresh = replace(database, name=f"{database.name}_fresh")
    with administration(stack) as cursor:
        cursor.execute(f"create database {fresh.name} owner migrator")
    try:
        assert migrate(fresh.env("migrator")).returncode == 0
        sql = "select kind, encode(key, 'hex') from masking.keys"
        keys = [set(query(each, sql, login="postgres")) for each in (database, fresh)]
    finally:
        with administration(stack) as cursor:
            cursor.execute(f"drop database {fresh.name}")
    assert [len(each) for each in keys] == [2, 2]
    assert keys[0].isdisjoint(keys[1])


def test_no_database_is_one_sentence_with_the_remedy(database):
    result = migrate(database.env("migrator") | {"PGPORT": "1"})
    assert result.returncode == 3
    [sentence] = result.stderr.splitlines()
    assert sentence.startswith("No database: ")
    assert sentence.endswith(" Check PGHOST, PGPORT, PGDATABASE, PGUSER and PGPASSWORD.")


def test_a_login_that_may_not_migrate_is_told_who_may(database):
    result = migrate(database.env("loader_user"))
    assert result.returncode == 4
    assert result.stderr.strip().splitlines() == [
        f"loader_user may not create schemas in {database.env('loader_user')['PGDATABASE']}:"
        " migrate as migrator (deploy/bootstrap.sql)."
    ]

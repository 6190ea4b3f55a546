"""A full refresh gives the same rows, in the same table; a purge takes from raw what dbt has, and from nothing else."""

import contextlib
import re
import threading

import psycopg2.errors
import pytest

from local.events import generate
from tests.pipeline import dbt, land, query

CHECKSUM = (
    "select count(*), md5(string_agg(logins::text, '|' order by message_id)) from analytics.user_logins as logins"
)
ANALYSTS_VIEW = (
    "create view analytics.mine as select user_id, locale from analytics.user_logins where locale is not null"
)
COLUMNS = """
select column_name, data_type, character_maximum_length, is_nullable
from information_schema.columns where (table_schema, table_name) = ('analytics', 'user_logins')
order by ordinal_position
"""


@pytest.fixture(scope="module")
def built(module_database):
    bodies = [message.body for message in generate(600, seed=4)]
    for part in range(3):
        land(module_database, bodies[part::3], prefix=f"load{part}-")
        dbt(module_database, "run")
    return module_database


def execute(database, *statements, login="transformer_user"):
    with contextlib.closing(database.connect(login)) as connection, connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def test_the_columns_are_those_of_the_assignment_then_lineage(built):
    assert query(built, COLUMNS, login="transformer_user") == [
        ("user_id", "character varying", 128, "NO"),
        ("device_type", "character varying", 32, "NO"),
        ("masked_ip", "character varying", 256, "NO"),
        ("masked_device_id", "character varying", 256, "NO"),
        ("locale", "character varying", 32, "YES"),
        ("app_version", "integer", None, "NO"),
        ("create_date", "date", None, "NO"),
        ("message_id", "text", None, "NO"),
        ("mask_key_version", "integer", None, "NO"),
        ("load_id", "bigint", None, "NO"),
        ("logged_in_at", "timestamp with time zone", None, "NO"),
        ("ip_is_placeholder", "boolean", None, "NO"),
        ("device_id_is_placeholder", "boolean", None, "NO"),
    ]


def test_a_full_refresh_gives_the_same_rows_in_the_same_place(built):
    before = query(built, CHECKSUM), query(built, "select xmin::text, ctid::text from analytics.user_logins order by 2")
    assert before[0][0][0] > 300

    dbt(built, "build", "--full-refresh")

    after = query(built, CHECKSUM), query(built, "select xmin::text, ctid::text from analytics.user_logins order by 2")
    assert after == before


def test_a_full_refresh_mends_what_is_wrong_and_leaves_the_rest(built):
    before = query(built, CHECKSUM)
    execute(
        built,
        "update analytics.user_logins set locale = 'XX' where message_id like 'load0-1%'",
        "delete from analytics.user_logins where message_id like 'load2-1%'",
        "insert into analytics.user_logins"
        " select 'x', 'x', masked_ip, masked_device_id, 'x', 1, create_date, 'nowhere', mask_key_version, load_id,"
        " logged_in_at, false, false"
        " from analytics.user_logins limit 1",
    )
    assert query(built, CHECKSUM) != before

    dbt(built, "run", "--full-refresh")

    assert query(built, CHECKSUM) == before


def test_a_full_refresh_keeps_analysts_views_and_grants_and_nobody_waits(built):
    execute(built, ANALYSTS_VIEW, "grant select on analytics.mine, analytics.user_logins to analyst")
    execute(built, "update analytics.user_logins set locale = null")  # so that all rows are written again
    count = "select count(*) from analytics.mine"
    with contextlib.closing(built.connect("analyst_user")) as reader, reader.cursor() as cursor:
        cursor.execute(count)  # and stays in its transaction: a lock that would stop a table from being replaced
        assert cursor.fetchone() == (0,)
        run = threading.Thread(target=dbt, args=(built, "run", "--full-refresh"))
        run.start()
        while run.is_alive():
            with contextlib.closing(built.connect("analyst_user", options="-c lock_timeout=100")) as other:
                other.cursor().execute(count)
        run.join()
        cursor.execute(count)
        assert cursor.fetchone()[0] > 100

    [(owner, privileges)] = query(
        built,
        "select relowner::regrole::text, relacl::text from pg_class where oid = 'analytics.user_logins'::regclass",
    )
    assert owner == "transformer"
    assert "analyst=r/transformer" in privileges
    execute(built, "drop view analytics.mine")


def test_a_report_is_replaced_in_place_and_only_when_it_is_another(built):
    [(definition,)] = query(built, "select rtrim(pg_get_viewdef('analytics.daily_logins'), ';')")
    execute(
        built,
        "create view analytics.mine as select * from analytics.daily_logins",
        "grant select on analytics.mine to analyst",
    )
    rule = "select oid, xmin::text from pg_rewrite where ev_class = 'analytics.daily_logins'::regclass"
    before = query(built, rule)
    dbt(built, "run")
    assert query(built, rule) == before

    execute(built, f"create or replace view analytics.daily_logins as {definition} limit 0")
    dbt(built, "run")
    assert query(built, "select rtrim(pg_get_viewdef('analytics.daily_logins'), ';')") == [(definition,)]
    assert query(built, "select sum(logins) from analytics.mine") == query(
        built, "select count(*) from analytics.user_logins"
    )
    execute(built, "drop view analytics.mine")


COMMENTS = """
select objoid::regclass::text, objsubid, description, pg_description.xmin::text
from pg_description
inner join pg_class on classoid = 'pg_class'::regclass and objoid = pg_class.oid
where relnamespace::regnamespace::text in ('staging', 'analytics')
order by objoid, objsubid
"""


def test_comments_are_written_only_where_they_are_not_there_already(built):
    before = query(built, COMMENTS)
    assert {table for table, *_ in before} >= {"analytics.users", "analytics.user_logins"}
    dbt(built, "run")
    assert query(built, COMMENTS) == before

    execute(
        built,
        "comment on column analytics.users.ips is null",
        "comment on table analytics.user_logins is 'of another version'",
    )
    dbt(built, "run")
    assert [row[:3] for row in query(built, COMMENTS)] == [row[:3] for row in before]


def test_a_full_refresh_follows_the_columns_and_names_one_of_another_type(built):
    before = query(built, CHECKSUM)
    execute(
        built,
        "alter table staging.int_messages__masked drop column body_bytes, add column extra text",
        "alter table analytics.rejected_messages alter column body_bytes type bigint",
    )
    failed = dbt(built, "run", "--full-refresh", expect=False).result
    [said] = [node.message for node in failed if node.status == "error"]
    assert "analytics.rejected_messages.body_bytes has another type than integer, which the project has." in said

    execute(built, re.search(r"alter table .+?(?= \(or)", said)[0])  # the statement that it names
    dbt(built, "build", "--full-refresh")
    assert query(built, CHECKSUM) == before
    extra = "select from pg_attribute where attrelid = 'staging.int_messages__masked'::regclass and attname = 'extra'"
    assert query(built, extra, login="transformer_user") == []


INDEXES = """
select regexp_replace(pg_get_indexdef(indexrelid), 'INDEX .* ON', 'ON') from pg_index
where indrelid in ('analytics.user_logins'::regclass, 'staging.int_messages__masked'::regclass) order by 1
"""


def test_a_full_refresh_makes_the_indexes_that_are_missing_and_no_others(built):
    before = query(built, INDEXES, login="postgres")
    assert ("CREATE ON analytics.user_logins USING btree (user_id, logged_in_at)",) in before
    droppable = "indrelid = 'analytics.user_logins'::regclass and not indisprimary"
    names = query(built, f"select indexrelid::regclass from pg_index where {droppable}")
    execute(built, *(f"drop index {name}" for (name,) in names))
    dbt(built, "run", "--full-refresh")
    assert query(built, INDEXES, login="postgres") == before


# What a purge does comes last: it cannot be undone.


def age(database, days, loads):
    """Let these loads have landed so many days ago."""
    execute(
        database,
        f"update raw.loads set loaded_at = now() - interval '{days} days' where load_id in ({loads})",
        f"update raw.sqs_messages set loaded_at = now() - interval '{days} days' where load_id in ({loads})",
        login="postgres",
    )


def in_raw(database):
    return query(
        database, "select array_agg(distinct load_id order by load_id) from raw.sqs_messages", login="postgres"
    )[0][0]


def purge(database, keep_days=30):
    return query(database, "select privacy.purge(%s)", keep_days, login="privacy_officer_user")[0][0]


def test_a_purge_removes_what_is_old_and_transformed_and_says_so(built):
    published = query(built, CHECKSUM)
    land(built, ["not transformed yet"], prefix="waiting")
    [first, second, third, waiting] = in_raw(built)
    age(built, 31, f"{first}, {waiting}")
    age(built, 29, second)
    removed = query(built, "select count(*) from raw.sqs_messages where load_id = %s", first, login="postgres")[0][0]

    said = purge(built)

    assert said == (
        f"Removed from raw: {removed} messages that landed more than 30 days ago,"
        f" of the loads that dbt has taken (up to {first})."
    )
    assert in_raw(built) == [second, third, waiting]
    assert "Removed from raw: 0 messages" in purge(built)
    dbt(built, "build")
    assert query(built, CHECKSUM) == published


def test_after_a_purge_nothing_is_forgotten_by_a_full_refresh(built):
    before = query(built, CHECKSUM)

    dbt(built, "build", "--full-refresh")
    assert query(built, CHECKSUM) == before


def test_raw_is_kept_for_as_long_as_sqs_can_deliver_again(built):
    for keep_days in (27, 0, -1, None):
        with pytest.raises(psycopg2.errors.RaiseException, match="raw is kept for 28 days or more"):
            purge(built, keep_days)


@pytest.mark.parametrize("login", ["loader_user", "transformer_user", "analyst_user"])
def test_nobody_but_a_privacy_officer_purges(built, login):
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        query(built, "select privacy.purge(30)", login=login)


def test_when_all_of_raw_is_purged_everything_still_holds(built):
    dbt(built, "build")
    published = query(built, CHECKSUM)
    age(built, 40, "select load_id from raw.loads")

    purge(built)

    assert in_raw(built) is None
    dbt(built, "build")
    land(built, ["new"], prefix="new")
    dbt(built, "build")
    assert query(built, CHECKSUM) == published


def test_a_full_refresh_takes_no_longer_for_what_is_purged(built):
    """The planner was told of the rows that raw has, none, and each of the others was compared with all of them."""
    age(built, 40, "select load_id from raw.loads")
    purge(built)
    execute(
        built,
        """
        create temporary table purged as
        select held.* from staging.int_messages__masked as held, generate_series(1, 40000) limit 40000;
        update purged set message_id = gen_random_uuid(), is_accepted = false, reason = 'not_json', load_id = 1;
        insert into staging.int_messages__masked select * from purged
        """,
    )
    query(built, "alter role transformer_user set statement_timeout = '20s'; select 1", login="postgres")
    try:
        dbt(built, "run", "--full-refresh", "--select", "int_messages__masked")
    finally:
        query(built, "alter role transformer_user reset statement_timeout; select 1", login="postgres")
    held = "select count(*) > 40000 from staging.int_messages__masked"
    assert query(built, held, login="transformer_user") == [(True,)]

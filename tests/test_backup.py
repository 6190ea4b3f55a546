"""deploy/README.md, Back up and restore, Upgrade PostgreSQL: its commands, taken from there and run one by one."""

import os
import subprocess
from pathlib import Path

import pytest

from local.postgres import StackError, choose_postgres
from local.stack import DATABASE, SUPERUSER
from tests.conftest import Database, migrate, temporary_server, temporary_stack
from tests.instructions import checkout, commands, follow
from tests.loading import until
from tests.officer import as_superuser
from tests.pipeline import dbt, land, query

LOGIN = '{{"user_id":"{}","app_version":"1.0","device_type":"ios","ip":"192.0.2.{}","locale":null,"device_id":"d{}"}}'
LOGGED_IN = (
    "select message_id, user_id, masked_ip, masked_device_id, load_id from analytics.user_logins order by message_id"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkout(tmp_path)


# As transformer, in the database that is backed up. Whatever runs it as a superuser makes transformer_user one.
PLANTED = """
    set role transformer;
    create function staging.evil() returns boolean language plpgsql as $f$
    begin
        alter role transformer_user superuser;
        return true;
    exception when insufficient_privilege then return true;
    end $f$;
    create table staging.evil (x integer check (staging.evil()));
    insert into staging.evil values (1);
    alter table analytics.user_logins add constraint evil check (staging.evil());
    create index on analytics.user_logins (load_id) where load_id > 0;
    alter table analytics.user_logins enable row level security;
    create policy evil on analytics.user_logins using (staging.evil());
    create materialized view analytics.evil as select staging.evil();
    reset role;
    select lo_create(0);
"""


@pytest.fixture
def postgres_15():
    try:
        programs = choose_postgres("15", None)
        choose_postgres("17", None)
    except StackError:
        pytest.skip("there is no PostgreSQL 15 and 17 here")
    with temporary_stack(postgres_bin=programs) as server:
        yield migrate(Database(server, DATABASE))


def test_a_backup_of_15_is_restored_into_17_and_goes_on(postgres_15, folder):
    database, programs = postgres_15, choose_postgres("17", None)
    purged = land(database, [LOGIN.format("old", 3, 3)], prefix="purged")
    taken = land(database, [LOGIN.format("ann", 1, 1), LOGIN.format("bob", 2, 2), "not json"], prefix="taken")
    dbt(database, "run")
    as_superuser(
        database, "update raw.loads set loaded_at = loaded_at - interval '40 days' where load_id = 1 returning 1"
    )
    query(database, "select privacy.purge(28)", login="retention_user")
    landed = land(database, [LOGIN.format("cy", 1, 2)], prefix="landed")
    before = query(database, LOGGED_IN)
    as_superuser(database, PLANTED)

    follow("back up", folder, database, programs)
    query(database, "select privacy.forget_user('bob', 'ticket 77: account closed')", login="privacy_officer_user")
    land(database, [LOGIN.format("bob", 9, 9)], prefix="lost")
    query(database, "select privacy.forget_user('bob', 'ticket 78: once more')", login="privacy_officer_user")
    (folder / "logins.dump").rename(folder / "logins.dump.kept")
    follow("back up", folder, database, programs)  # later, of which only the record of erasures is used
    (folder / "logins.dump.kept").replace(folder / "logins.dump")

    with temporary_server(postgres_bin=programs) as server:
        restored = Database(server, DATABASE)
        for step in ("restore", "rows of raw", "rows of dbt", "erase again", "check"):
            follow(step, folder, restored, programs)
        later = land(restored, [LOGIN.format("dee", 1, 1)], prefix="later")
        dbt(restored, "build")

        after = query(restored, LOGGED_IN)
        kept = [row for row in after if row in before]
        assert kept == [row for row in before if row[1] != "bob"]
        assert {row[0] for row in after} == {*purged, taken[0], *landed, *later}
        assert query(restored, "select message_id, reason from analytics.rejected_messages") == [(taken[2], "not_json")]
        tokens = {row[1]: row[2:4] for row in after}
        assert tokens["dee"] == tokens["ann"]
        assert tokens["cy"][0] == tokens["ann"][0]
        assert "bob" not in str(as_superuser(restored, "select * from raw.sqs_messages"))
        erased = "select count(*) from privacy.erased_messages"
        assert as_superuser(restored, erased) == [(2,)]

        planted = "select from pg_proc where proname = 'evil' union all select from pg_class where relname = 'evil'"
        assert as_superuser(restored, planted) == []
        assert as_superuser(restored, "select rolname from pg_roles where rolsuper") == [(SUPERUSER,)]


def test_data_of_an_earlier_version_is_moved(database, folder, empty_server):
    """Of the tables that are moved, the earlier version had one column less."""
    programs = empty_server._programs()
    landed = land(database, [LOGIN.format("ann", 1, 1), "not json"])
    dbt(database, "run")
    before = query(database, LOGGED_IN)
    as_superuser(database, "alter table raw.loads drop queue cascade; select 1")
    follow("back up", folder, database, programs)

    steps = ("restore", "before rows of an earlier version", "rows of raw", "after rows of an earlier version", "check")
    for step in steps:
        follow(step, folder, Database(empty_server, DATABASE), programs)

    assert query(Database(empty_server, DATABASE), LOGGED_IN) == before
    assert landed[0] == before[0][0]


def test_the_server_goes_back_to_a_moment():
    """Its write-ahead log has what no dump has: what was landed since."""
    with temporary_server() as reached:
        folder = reached.folder / "backup"
        account = reached._account
        account.folder(folder)
        account.folder(folder / "wal")
        archive = f"test ! -f {folder}/wal/%f && cp %p {folder}/wal/%f"
        settings = {"archive_mode": "on", "archive_command": archive}
        with temporary_stack(settings=settings) as server:
            database, programs = migrate(Database(server, DATABASE)), server._programs()
            land(database, [LOGIN.format("ann", 1, 1)], prefix="before")
            variables = {**server.environment("backup_user"), "BACKUP": str(folder)}
            as_postgres(account, "base backup", programs, variables)
            land(database, [LOGIN.format("bob", 2, 2)], prefix="since")
            [(moment,)] = as_superuser(database, "select clock_timestamp()::text")
            as_superuser(database, "select pg_sleep(0.1)")
            as_superuser(database, "delete from raw.sqs_messages returning 1")
            as_superuser(database, "select pg_switch_wal()")
            server.stop_postgres()

            data = folder / "data"
            port = server.environment("migrator")["PGPORT"]
            as_postgres(
                account,
                "recover",
                programs,
                {"BACKUP": str(folder), "MOMENT": moment, "PGDATA": str(data), "PGPORT": port},
            )
            try:
                until(lambda: as_superuser(database, "select pg_is_in_recovery()") == [(False,)])
                there = "select message_id from raw.sqs_messages order by 1"
                assert as_superuser(database, there) == [("before0",), ("since0",)]
            finally:
                account.run(programs / "pg_ctl", "stop", "--mode=immediate", f"--pgdata={data}")


def test_a_server_that_is_there_is_not_recovered_into(tmp_path):
    """The copy would be a folder inside its own, and the server itself would begin to replay the log."""
    for folder in ("base", "data"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "PG_VERSION").touch()
    variables = {"PATH": os.defpath, "BACKUP": str(tmp_path), "PGDATA": str(tmp_path / "data"), "MOMENT": "x"}
    *steps, start = [command for command, _ in commands("commands: recover")]
    assert start.startswith("pg_ctl start")
    subprocess.run(["sh"], input="\n".join(steps), env=variables, capture_output=True, text=True)
    assert not {"base", "recovery.signal"} & {each.name for each in (tmp_path / "data").iterdir()}


def as_postgres(account, name: str, programs: Path, variables: dict[str, str]) -> None:
    """As the operating system's user who runs PostgreSQL."""
    for command, _ in commands(f"commands: {name}"):
        done = subprocess.run(
            ["sh", "-ec", command],
            cwd="/",
            env={"PATH": f"{programs}{os.pathsep}{os.defpath}", **variables},
            capture_output=True,
            text=True,
            **account.switch,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

"""The backup drill of deploy/README.md: dump, restore into an empty server, load more. Nothing lost, tokens equal."""

from pathlib import Path

import pytest

from local.stack import BOOTSTRAP, LOGINS, Stack
from tests.conftest import Database, administration, program
from tests.pipeline import dbt, land, query

LOGIN = '{{"user_id":"{}","app_version":"1.0","device_type":"ios","ip":"192.0.2.{}","locale":null,"device_id":"d{}"}}'
LOGGED_IN = (
    "select message_id, user_id, masked_ip, masked_device_id, load_id from analytics.user_logins order by message_id"
)


@pytest.fixture
def backup(database):
    """A login that may read everything and change nothing, as a dump has to."""
    with administration(database.stack) as cursor:
        cursor.execute("create role backup login password 'backup' in role pg_read_all_data")
        cursor.execute(f"grant connect on database {database.name} to backup")
    yield {"PGUSER": "backup", "PGPASSWORD": "backup"}
    with administration(database.stack) as cursor:
        cursor.execute(f"revoke connect on database {database.name} from backup")
        cursor.execute("drop role backup")


def test_a_restored_server_goes_on_where_the_dump_was_taken(database, backup, empty_server, tmp_path):
    taken = land(database, [LOGIN.format("ann", 1, 1), LOGIN.format("bob", 2, 2), "not json"], prefix="taken")
    dbt(database, "run")
    landed = land(database, [LOGIN.format("cy", 1, 2)], prefix="landed")
    before = query(database, LOGGED_IN)

    dump(database, backup, tmp_path)
    restore(tmp_path, empty_server)

    restored = Database(empty_server, database.name)
    later = land(restored, [LOGIN.format("dee", 1, 1)], prefix="later")
    dbt(restored, "build")
    after = query(restored, LOGGED_IN)

    kept = [row for row in after if row in before]
    assert kept == before
    assert {row[0] for row in after} == {*taken[:2], *landed, *later}
    assert query(restored, "select message_id, reason from analytics.rejected_messages") == [(taken[2], "not_json")]

    tokens = {row[1]: row[2:4] for row in after}
    assert tokens["dee"] == tokens["ann"]
    assert tokens["cy"] == (tokens["ann"][0], tokens["bob"][1])

    loads = {row[0]: row[4] for row in after}
    assert loads[taken[0]] < loads[landed[0]] < loads[later[0]]


def dump(database: Database, backup: dict[str, str], folder: Path) -> None:
    program(database.stack, "pg_dump", "--format=custom", f"--file={folder / 'logins.dump'}", database.name, **backup)
    roles = ["--roles-only", "--no-role-passwords", f"--file={folder / 'roles.sql'}"]
    program(database.stack, "pg_dumpall", *roles, "--database", database.name, **backup)


def restore(folder: Path, server: Stack) -> None:
    """Roles, then the database, then bootstrap.sql for the logins' passwords."""
    program(server, "psql", "-X", "-q", "-d", "postgres", "-f", folder / "roles.sql")  # `postgres` is there already
    program(server, "pg_restore", "--exit-on-error", "--create", "-d", "postgres", folder / "logins.dump")
    passwords = {f"{login.upper()}_PASSWORD": server.environment(login)["PGPASSWORD"] for login in LOGINS}
    program(server, "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", BOOTSTRAP, **passwords)

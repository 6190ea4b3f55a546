"""deploy/bootstrap.sql: roles, database and logins, on any server, by a superuser or by RDS's master user."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from local.postgres import StackError, choose_postgres
from local.stack import BOOTSTRAP, DATABASE, LOGINS, SUPERUSER, Stack
from tests.conftest import Database, administration, run_migrations, temporary_server

MEMBERSHIPS = {
    ("loader_user", "loader"),
    ("transformer_user", "transformer"),
    ("analyst_user", "analyst"),
    ("privacy_officer_user", "privacy_officer"),
    ("monitor_user", "monitor"),
    ("retention_user", "retention"),
    ("backup_user", "pg_read_all_data"),
    ("migrator", "masker"),
    ("migrator", "pipeline_owner"),
}


@pytest.fixture(params=[version for version in ("15", "17", os.environ.get("LOCAL_POSTGRES")) if version])
def server(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """The oldest PostgreSQL that is supported, one of those that ask more of whoever makes a role, and the one chosen;
    empty."""
    try:
        programs = choose_postgres(request.param, None)
    except StackError:
        pytest.skip(f"there is no PostgreSQL {request.param} here")
    with temporary_server(postgres_bin=programs) as server:
        yield server


def master(server: Stack) -> dict[str, str]:
    """A login with what RDS's master user has; it may not set log_statement."""
    with administration(server) as cursor:
        cursor.execute("create role master login createrole createdb password 'm'")
    return {"PGUSER": "master", "PGPASSWORD": "m"}


def bootstrap(server: Stack, database: str = DATABASE, **settings: str) -> subprocess.CompletedProcess[str]:
    passwords = {f"{login.upper()}_PASSWORD": server.environment(login)["PGPASSWORD"] for login in LOGINS}
    return subprocess.run(
        [server._programs() / "psql", "-X", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-f", BOOTSTRAP],
        env=server.shell(SUPERUSER, database) | passwords | settings,
        capture_output=True,
        text=True,
    )


def run(server: Stack, *statements: str, database: str = "postgres") -> list[tuple]:
    """As the superuser; the rows of the last statement."""
    with closing(server.connect(SUPERUSER, database)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def memberships(server: Stack) -> set[tuple[str, str]]:
    return set(
        run(
            server,
            "select distinct member::regrole::text, roleid::regrole::text from pg_auth_members"
            " where roleid::regrole::text !~ '^pg_(monitor|read_all_s|stat)' and member::regrole::text <> 'master'",
        )
    )


@pytest.mark.parametrize(
    ("by_superuser", "name"), [(True, "logins"), (False, "Log-ins 2 %s")], ids=["superuser", "master-user"]
)
def test_makes_what_is_missing_and_says_what(server, by_superuser, name):
    who = {} if by_superuser else master(server)

    first, again = bootstrap(server, name, **who), bootstrap(server, name, **who)

    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    created = first.stdout.splitlines()[0]
    assert created.startswith("Created: role loader; ")
    assert "login loader_user, in role loader; " in created
    assert created.endswith(f"database {name}, owner migrator.")
    assert again.stdout.splitlines()[0] == "Everything was there already; memberships are repaired."
    assert memberships(server) == {pair for pair in MEMBERSHIPS if by_superuser or pair[0] != "backup_user"}
    if not by_superuser:
        assert "No login backup_user" in first.stdout
        assert "stay open to every login" in first.stdout
    migrated = run_migrations(Database(server, name).env("migrator"))
    assert migrated.returncode == 0, migrated.stderr


def test_repairs_memberships_and_can_add_a_login_later(server):
    who = master(server)
    assert bootstrap(server, **who, LOADER_USER_PASSWORD="").returncode == 0
    run(server, "revoke transformer from transformer_user", "revoke masker from migrator")

    result = bootstrap(server, **who)

    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Created: login loader_user, in role loader.")
    assert memberships(server) == {pair for pair in MEMBERSHIPS if pair[0] != "backup_user"}


def test_a_master_user_of_15_may_administer_the_roles_after_an_upgrade(server):
    """From 16 on, who may create roles administers only those that it has the admin option on."""
    assert bootstrap(server, **master(server)).returncode == 0
    roles = run(
        server,
        "select rolname from pg_roles where shobj_description(oid, 'pg_authid') like 'masked-logins: %'"
        " and not pg_has_role('master', oid, 'member with admin option')",
    )
    assert roles == []


@pytest.mark.parametrize("server", ["17"], indirect=True)
def test_a_master_user_without_the_admin_option_is_told_who_can_give_it(server):
    who = master(server)
    assert bootstrap(server).returncode == 0
    run(server, "grant connect, temporary on database postgres to master")

    result = bootstrap(server, **who)

    assert result.returncode == 3
    assert "may not administer these roles: " in result.stderr
    assert re.search(r"grant .*\bmigrator, .* to master with admin option", result.stderr)


STRANGERS = {
    "create role analyst; create role boss login; grant analyst to boss": "analyst (has the members boss)",
    "create role loader createrole": "loader (may create roles)",
    "create role monitor superuser": "monitor (is a superuser)",
    "create role retention; grant pg_execute_server_program to retention": (
        "retention (is a member of pg_execute_server_program)"
    ),
    "create role masker login": "masker (can log in)",
    "create role loader_user login replication": "loader_user (may replicate, can log in)",
    "create role transformer; create schema s authorization transformer": "transformer (owns objects)",
    "create role privacy_officer; create table t (); grant select on t to privacy_officer": (
        "privacy_officer (has privileges)"
    ),
    "create role analyst_user; alter role analyst_user set work_mem = '1GB'": "analyst_user (has settings)",
    "create role pipeline_owner; create database other owner pipeline_owner": "pipeline_owner (owns objects)",
}


def test_roles_that_were_there_before_are_not_used_in_silence(server):
    run(server, *"; ".join(STRANGERS).split("; "))
    before = run(server, "select rolname from pg_roles order by 1")

    refused = bootstrap(server)

    assert refused.returncode == 3
    assert [named for named in STRANGERS.values() if named not in refused.stderr] == []
    assert "Nothing was changed." in refused.stderr
    assert run(server, "select rolname from pg_roles order by 1") == before
    told_to = bootstrap(server, ADOPT_ROLES="1")
    assert told_to.returncode == 0, told_to.stderr


def test_migrator_becomes_nobody_else(server):
    """With CREATEROLE, on 15, it could become the server's own user."""
    assert bootstrap(server).returncode == 0
    with closing(server.connect("migrator", DATABASE)) as connection, connection.cursor() as cursor:
        for attempt in (
            "grant pg_execute_server_program to migrator",
            "grant pg_write_server_files to masker",
            "create role r",
            "alter role loader login",
            "alter role migrator createrole",
            "copy (select 1) to program 'true'",
        ):
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute(attempt)
            connection.rollback()


def test_migrate_does_not_use_roles_that_bootstrap_has_not_made(server):
    roles = ["loader", "transformer", "analyst", "privacy_officer", "monitor", "retention", "masker", "pipeline_owner"]
    run(
        server,
        *(f"create role {role}" for role in roles),
        "create role migrator login",
        "create database logins owner migrator",
    )
    password = server.environment("migrator")["PGPASSWORD"]
    run(server, f"alter role migrator password '{password}'")
    result = run_migrations(Database(server, DATABASE).env("migrator"))
    assert result.returncode == 4
    assert "deploy/bootstrap.sql has not made these roles: " in result.stderr


def test_whoever_may_not_bootstrap_leaves_no_password_in_the_log(server):
    assert bootstrap(server).returncode == 0
    secret = {f"{login.upper()}_PASSWORD": f"sekret-{login}" for login in LOGINS}
    run(server, "grant connect on database postgres to analyst_user")
    analyst = {"PGUSER": "analyst_user", "PGPASSWORD": server.environment("analyst_user")["PGPASSWORD"]}
    assert bootstrap(server, **analyst, **secret).returncode == 3
    assert "sekret" not in Path(server.folder / "postgres" / "server.log").read_text()

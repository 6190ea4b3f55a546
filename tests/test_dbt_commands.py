"""What dbt users type: it works as dbt documents it, or is refused with a sentence; and dbt that stays and follows."""

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dbt_project.follow import LOOK
from local.stack import SUPERUSER
from tests.conftest import ROOT
from tests.loading import until
from tests.officer import as_officer, as_transformer
from tests.pipeline import DBT_PROJECT, dbt, land, query

LOGIN = '{"user_id": "u%s", "app_version": "2.3.0", "device_type": "ios", "ip": "192.0.2.%s", "device_id": "d-%s"}'


@pytest.fixture(scope="module")
def built(module_database):
    land(module_database, [LOGIN % (n, n, n % 3) for n in range(1, 7)])
    dbt(module_database, "run")
    return module_database


def forget(database, person: str) -> None:
    as_officer(database, "select * from privacy.forget_user(%s, 'ticket 77: account closed')", person)


def published(database):
    shared = "select count(*), sum(logins) from analytics.shared_devices"
    return query(database, "select count(*) from analytics.user_logins"), query(database, shared)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["run", "--empty"], id="run"),
        pytest.param(["build", "--empty", "--full-refresh"], id="full-refresh"),
        pytest.param(["run", "--select", "shared_devices", "--empty"], id="one-view"),
    ],
)
def test_nothing_that_analysts_read_is_replaced_by_an_empty_one(built, arguments):
    before = published(built)
    with pytest.raises(AssertionError, match="--empty is refused: it would empty what analysts read"):
        dbt(built, *arguments)
    assert published(built) == before


def test_clone_is_refused_and_leaves_everything_where_it_is(built, tmp_path):
    before = published(built)
    dbt(built, "compile", "--target-path", str(tmp_path))
    with pytest.raises(AssertionError, match="dbt clone is refused"):
        dbt(built, "clone", "--state", str(tmp_path), "--full-refresh", "--select", "user_logins")
    assert published(built) == before


def test_nothing_is_modified_when_nothing_was_and_defer_reads_what_is_there(built, tmp_path):
    dbt(built, "compile", "--target-path", str(tmp_path))
    modified = dbt(built, "run", "--select", "state:modified", "--state", str(tmp_path)).result
    assert [each for each in modified if each.node.resource_type == "model"] == []
    before = published(built)
    dbt(built, "run", "--select", "shared_devices", "--defer", "--state", str(tmp_path))
    assert published(built) == before


def test_a_run_that_failed_is_retried_from_where_it_failed(built, tmp_path):
    with contextlib.closing(built.connect("transformer_user")) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            "alter table analytics.user_logins rename to elsewhere; create view analytics.user_logins as select 1"
        )
    failed = dbt(built, "run", "--target-path", str(tmp_path), expect=False).result
    assert {node.node.name for node in failed if node.status == "error"} == {"user_logins"}
    with contextlib.closing(built.connect("transformer_user")) as connection, connection, connection.cursor() as cursor:
        cursor.execute("drop view analytics.user_logins; alter table analytics.elsewhere rename to user_logins")

    retried = dbt(built, "retry", "--state", str(tmp_path)).result
    assert "user_logins" in {node.node.name for node in retried}
    assert "int_messages__masked" not in {node.node.name for node in retried}


def test_failures_that_are_stored_stop_later_builds_only_where_there_are_some(built):
    dbt(built, "test", "--store-failures", "--exclude", "tag:full_scan")
    reaches = ("test", "--select", "assert_an_erasure_reaches_every_table")
    dbt(built, *reaches)
    stored = "not_null_user_logins_user_id"
    with contextlib.closing(built.connect("transformer_user")) as connection, connection, connection.cursor() as cursor:
        cursor.execute(f"insert into staging.{stored} (user_id) values ('u1')")
    tested = dbt(built, *reaches, expect=False).result
    assert [each.failures for each in tested if each.status == "fail"] == [1]
    dbt(built, "test", "--store-failures", "--select", stored)
    dbt(built, *reaches)


def test_a_load_that_is_erased_whole_is_nothing_for_dbt_to_take(database):
    dbt(database, "run")
    land(database, [LOGIN % (1, 1, 1)])
    assert as_transformer(database, LOOK) == [(True, 0)]
    forget(database, "u1")
    assert as_transformer(database, LOOK) == [(False, 1)]


def test_dbt_that_follows_publishes_what_lands_removes_who_is_erased_and_ends_when_told(database):
    dbt(database, "run")
    program = [sys.executable, DBT_PROJECT / "follow.py", "--every", "0.2", "--target", "test"]
    follower = subprocess.Popen(
        program, cwd=ROOT, env=database.env("transformer_user"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        land(database, [LOGIN % (1, 1, 1)])
        until(lambda: published(database)[0] == [(1,)] or follower.poll() is not None, seconds=120)
        forget(database, "u1")
        until(lambda: published(database)[0] == [(0,)] or follower.poll() is not None, seconds=120)
        follower.send_signal(signal.SIGTERM)
        said, _ = follower.communicate(timeout=60)
    finally:
        follower.kill()
    assert follower.returncode == 0, said


def test_a_follower_without_a_database_says_so_and_ends(database):
    settings = database.env("transformer_user") | {"PGPORT": "1"}
    program = [sys.executable, DBT_PROJECT / "follow.py", "--give-up-after", "0"]
    done = subprocess.run(program, cwd=ROOT, env=settings, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("No database: ")


def test_a_follower_that_waits_for_its_database_says_so_at_once(database):
    settings = database.env("transformer_user") | {"PGPORT": "1"}
    program = [sys.executable, DBT_PROJECT / "follow.py"]
    with subprocess.Popen(program, cwd=ROOT, env=settings, stderr=subprocess.PIPE, text=True) as follower:
        assert follower.stderr.readline().startswith("No database: ")
        follower.terminate()
    assert follower.returncode == 0


def test_a_follower_says_why_dbt_fails_and_gives_up(database):
    dbt(database, "run")
    query(database, "drop view masking.stg_sqs__messages cascade; select true", login=SUPERUSER)
    program = [sys.executable, DBT_PROJECT / "follow.py", "--give-up-after", "0", "--target", "test"]
    done = subprocess.run(program, cwd=ROOT, env=database.env("transformer_user"), capture_output=True, text=True)
    assert done.returncode == 1
    assert "make migrate" in done.stdout
    assert done.stderr.splitlines()[-1] == "Error: dbt has failed for 0 s; what it said is above."


def test_a_follower_ends_though_nobody_can_read_why_dbt_fails(database):
    dbt(database, "run")
    query(database, "drop view masking.stg_sqs__messages cascade; select true", login=SUPERUSER)
    program = [sys.executable, DBT_PROJECT / "follow.py", "--give-up-after", "0", "--target", "test"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(program, cwd=ROOT, env=database.env("transformer_user"), stdout=full, timeout=120)
    assert done.returncode == 1

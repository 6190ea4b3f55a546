"""Settings that somebody gives a database or a login change nothing of what the programs do, or they refuse to work."""

import contextlib
import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import psycopg2
import pytest

from loader.land import PREPARE
from tests.conftest import administration, run_migrations
from tests.officer import REASON, as_officer, as_superuser, as_transformer, forget, privacy
from tests.pipeline import LAND, SENT_AT, dbt, land, query

FORGET = "select * from privacy.forget_user(%s, %s)"
SEARCH_PATH = "search_path = raw, masking, privacy, staging, analytics, migrations, public"


def login(user_id: str = "gone", **more: object) -> str:
    fields = {"user_id": user_id, "ip": "10.0.0.1", "device_id": "own-1", "app_version": "1.2", "device_type": "ios"}
    return json.dumps(fields | more)


def give(database, setting: str) -> None:
    with administration(database.stack) as cursor:
        cursor.execute(f"alter database {database.name} set {setting}")


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_transaction_that_cannot_see_an_erasure_lands_nothing(database, level):
    """Its snapshot is older than the tombstones: the person would be back."""
    land(database, [login()])
    dbt(database, "run")
    redriven = {"queue": "login-queue", "ids": ["again"], "bodies": [login()], "times": [SENT_AT], "n": 1}
    give(database, f"default_transaction_isolation = '{level}'")
    with contextlib.closing(database.connect("loader_user")) as connection, connection.cursor() as cursor:
        cursor.execute("select from raw.loads")
        assert "1 removed" in forget(database).stdout
        with contextlib.suppress(psycopg2.errors.RaiseException):
            cursor.execute(LAND, redriven)
        connection.commit()
    assert as_superuser(database, "select message_id from raw.sqs_messages") == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("default_transaction_isolation", "repeatable read"),
        ("default_transaction_isolation", "serializable"),
        ("client_encoding", "LATIN1"),  # which has not all that a description may have
    ],
)
def test_dbt_says_with_which_setting_it_does_not_work(database, setting, value):
    give(database, f"{setting} = '{value}'")
    with pytest.raises(AssertionError, match=f"{setting} is not .* reset {setting}"):
        dbt(database, "run")


def clocks_change(ago: timedelta) -> str:
    """A time zone whose clocks went an hour forward then."""
    then = datetime.now(timezone.utc) - ago
    day = then.timetuple().tm_yday
    return f"timezone = 'AAA0BBB,J{min(day, 365)}/{then.hour},J{(day + 99) % 365 + 1}'"


def test_a_day_has_24_hours_wherever_clocks_change(database):
    """28 days are what SQS can keep a message; with summer time in between, the calendar has an hour less."""
    land(database, [login()])
    dbt(database, "run")
    as_superuser(database, "update raw.loads set loaded_at = now() - interval '671.5 hours' returning 1")
    give(database, clocks_change(timedelta(days=10)))
    assert privacy(database, "purge", "--keep-days", "28", login="privacy_officer_user").returncode == 0
    assert as_superuser(database, "select count(*) from raw.sqs_messages") == [(1,)]


def test_windows_are_of_hours_wherever_clocks_change(database):
    now = datetime.now(timezone.utc)
    times = [now - timedelta(hours=24 * days - 0.5) for days in (1, 7, 30)]
    land(database, [login(f"u{n}") for n in range(3)], times=times)
    land(database, [login("now")], prefix="now", times=[now])
    dbt(database, "run")
    as_superuser(
        database, "update raw.loads set loaded_at = now() - interval '191.5 hours' where load_id = 1 returning 1"
    )
    give(database, clocks_change(timedelta(hours=5)))
    windows = "select users_last_day, users_last_week, users_last_30_days from analytics"
    for mart in ("shared_devices", "shared_ips"):
        assert query(database, f"{windows}.{mart}") == [(2, 3, 4)]
    assert query(database, "select landed, landed_week_before from analytics.queue_health") == [(1, 3)]


@pytest.mark.parametrize("how", ["command", "sql"])
def test_a_person_is_found_whatever_a_backslash_means(database, how):
    land(database, [login()[:-1]])
    dbt(database, "run")
    give(database, "standard_conforming_strings = off")
    if how == "command":
        assert "1 removed" in forget(database).stdout
    else:
        assert as_officer(database, FORGET, "gone", REASON)[0][0] == 1
    assert as_superuser(database, "select message_id from raw.sqs_messages") == []


def test_nothing_is_built_where_a_backslash_means_something_else(database):
    give(database, "standard_conforming_strings = off")
    migrated = run_migrations(database.env("migrator"))
    assert (migrated.returncode, migrated.stdout) == (4, "")
    assert "reset standard_conforming_strings" in migrated.stderr
    with pytest.raises(AssertionError, match="reset standard_conforming_strings"):
        dbt(database, "run")


def test_an_address_in_the_open_is_found_whatever_a_backslash_means(database):
    give(database, "standard_conforming_strings = off")
    found = "select masking.exposes('v7 10.0.0.1', '10.0.0.1', 'address')"
    assert as_transformer(database, found) == [(True,)]


@pytest.mark.parametrize("setting", [SEARCH_PATH, "quote_all_identifiers = on"])
def test_names_are_understood_wherever_they_are_looked_for(database, setting):
    land(database, [login()])
    dbt(database, "run")
    before = privacy(database, "attest", login="postgres").stdout
    give(database, setting)
    assert privacy(database, "attest", login="postgres").stdout == before
    assert run_migrations(database.env("migrator")).returncode == 0
    assert privacy(database, "attest", login="postgres").stdout == before


def test_a_column_leaves_with_its_views_wherever_names_are_looked_for(database):
    dbt(database, "run")
    as_superuser(
        database,
        "drop view analytics.users cascade; alter table analytics.user_logins add gone text;"
        "create view analytics.users as select gone from analytics.user_logins;"
        "alter view analytics.users owner to transformer; select 1",
    )
    give(database, SEARCH_PATH)
    dbt(database, "run", "--full-refresh")
    shown = "select attname from pg_attribute where attrelid = 'analytics.users'::regclass and attname = 'user_id'"
    assert as_superuser(database, shown) == [("user_id",)]


@pytest.mark.parametrize("style", ["iso_8601", "sql_standard", "postgres_verbose"])
def test_old_keys_are_reported_however_intervals_are_written(database, style):
    as_superuser(database, "update masking.keys set created_at = now() - interval '500 days' returning 1")
    give(database, f"intervalstyle = '{style}'")
    assert "OFF   keys         500 days old" in privacy(database, "attest", login="postgres").stdout


@pytest.mark.parametrize("setting", ["client_encoding = 'LATIN1'", "intervalstyle = 'iso_8601'"])
def test_the_report_is_written_whatever_it_is_given(database, tmp_path, setting):
    land(database, [login("東京")])
    dbt(database, "run")
    give(database, setting)
    command = [sys.executable, "-m", "report", "--output", str(tmp_path / "pages")]
    done = subprocess.run(command, env=database.env("analyst_user"), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("style", ["iso_8601", "sql_standard", "postgres_verbose"])
def test_status_tells_times_however_intervals_are_written(database, style):
    land(database, [login()])
    dbt(database, "run")
    give(database, f"intervalstyle = '{style}'")
    command = [sys.executable, "-m", "loader", "status", "--json"]
    done = subprocess.run(command, env=database.env("monitor_user"), capture_output=True, text=True)
    assert json.loads(done.stdout)["pipeline"]["sent_to_landed"] > 86400


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_person_is_erased_whatever_letters_the_login_is_given(database, encoding):
    land(database, [login("東京")])
    dbt(database, "run")
    give(database, f"client_encoding = '{encoding}'")
    assert "1 removed" in forget(database, "東京").stdout


@pytest.mark.parametrize("call", ["forget_user('gone', %s)", "find_tokens('abcdef', %s)"])
def test_what_is_on_record_is_on_disk_when_it_is_committed(database, call):
    """Or a server that crashes brings the person back, and forgets who asked for an original."""
    dbt(database, "run")
    give(database, "synchronous_commit = off")
    with contextlib.closing(database.connect("privacy_officer_user")) as connection, connection.cursor() as cursor:
        cursor.execute(f"select * from privacy.{call}", [REASON])
        cursor.execute("select current_setting('synchronous_commit')")
        assert cursor.fetchall() == [("on",)]


@pytest.mark.parametrize(("given", "used"), [("0", "1min"), ("5s", "5s")])
def test_a_loader_that_is_gone_in_a_transaction_keeps_nobody_waiting(database, given, used):
    """Its machine, say: PostgreSQL would hear of that by TCP, after two hours."""
    give(database, f"idle_in_transaction_session_timeout = '{given}'")
    with contextlib.closing(database.connect("loader_user")) as connection, connection.cursor() as cursor:
        cursor.execute(PREPARE)
        cursor.execute("show idle_in_transaction_session_timeout")
        assert cursor.fetchall() == [(used,)]

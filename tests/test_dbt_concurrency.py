"""Loads that commit late, dbt runs that overlap or are killed: every landed message is published once."""

import contextlib
import random
import signal
import subprocess
import threading
import time

import pytest

from tests.pipeline import DBT_PROJECT, dbt, land, query

LOGIN = '{"user_id": "u", "app_version": "2.3.0", "device_type": "ios", "ip": "192.0.2.1", "device_id": "d"}'
WRITERS = 8
SECONDS = 8

INSERT = """
with load as materialized (select raw.current_load_id() as load_id)
insert into raw.sqs_messages (message_id, queue, body, sent_at, load_id)
select message_id, 'login-queue', body, now(), load_id from unnest(%s) as message (message_id), load,
lateral (select case when message_id like '%%0' then 'not json' else %s end as body) as said
on conflict do nothing
"""
LEDGER = "insert into raw.loads (queue, received, landed, duplicates) values ('login-queue', %s, %s, %s)"

# The cursor that most pipelines have, on the same messages: all that landed later than the last one taken.
CONTROL = """
create table if not exists public.control (message_id text, loaded_at timestamptz);
insert into public.control
select message_id, loaded_at from raw.sqs_messages
where loaded_at > (select coalesce(max(loaded_at), '-infinity') from public.control)
"""

OUTCOMES = """
select
    count(*) as landed,
    count(*) filter (where (accepted.message_id is null) = (rejected.message_id is null)) as lost_or_doubled,
    count(*) filter (where control.message_id is null) as lost_by_the_control
from raw.sqs_messages as landed
left join analytics.user_logins as accepted using (message_id)
left join analytics.rejected_messages as rejected using (message_id)
left join public.control as control using (message_id)
"""


def write(database, number, over):
    """Loads that stay open for a while, commit in another order than they began, and now and then do not."""
    chance = random.Random(number)
    with contextlib.closing(database.connect("loader_user")) as connection:
        load = 0
        while not over.is_set():
            load += 1
            # some ids of this load are delivered to the next writer as well
            ids = [f"{(number + (n < 2)) % WRITERS}-{load}-{n}" for n in range(10)]
            with connection.cursor() as cursor:
                cursor.execute(INSERT, (ids, LOGIN))
                landed = cursor.rowcount
                time.sleep(chance.choice([0, 0.01, 0.1, 0.3, 1]))
                cursor.execute(LEDGER, (len(ids), landed, len(ids) - landed))
            connection.rollback() if chance.random() < 0.1 else connection.commit()


def control(database, over):
    with contextlib.closing(database.connect("postgres")) as connection:
        while not over.wait(0.05):
            with connection, connection.cursor() as cursor:
                cursor.execute(CONTROL)


def test_no_message_of_a_late_commit_is_lost_or_doubled(either_postgres):
    database, over = either_postgres, threading.Event()
    threads = [threading.Thread(target=write, args=(database, number, over)) for number in range(WRITERS)]
    threads.append(threading.Thread(target=control, args=(database, over)))
    for thread in threads:
        thread.start()

    runs, started = 0, time.monotonic()
    while time.monotonic() - started < SECONDS or runs < 3:
        dbt(database, "run", "--select", "int_messages__masked+1", "--exclude", "pipeline_health")
        runs += 1
    over.set()
    for thread in threads:
        thread.join()
    dbt(database, "build")

    [(landed, lost_or_doubled, lost_by_the_control)] = query(database, OUTCOMES, login="postgres")
    assert landed > 200
    assert lost_or_doubled == 0
    assert lost_by_the_control > 0, "the messages did not commit late enough to prove anything"


@pytest.fixture(scope="module")
def built(module_database):
    land(module_database, [LOGIN] * 10)
    dbt(module_database, "run")
    return module_database


def test_a_load_that_is_still_open_is_waited_for_and_not_passed_by(built):
    with contextlib.closing(built.connect("loader_user")) as late, late.cursor() as cursor:
        cursor.execute(INSERT, (["late"], LOGIN))
        land(built, [LOGIN], prefix="later")
        before = published(built)
        dbt(built, "run")
        assert published(built) == before

        cursor.execute(LEDGER, (1, 1, 0))
        late.commit()

    dbt(built, "build")
    assert published(built) == before | {"late", "later0"}


def published(database):
    return {message_id for (message_id,) in query(database, "select message_id from analytics.user_logins")}


def start(database, *arguments, **options):
    """dbt in a process of its own."""
    command = ["dbt", *arguments, "--project-dir", DBT_PROJECT, "--profiles-dir", DBT_PROJECT]
    env = database.env("transformer_user") | {
        "DBT_TARGET_PATH": str(options["folder"]),
        "DBT_LOG_PATH": str(options["folder"]),
    }
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(database, condition, *parameters):
    for _ in range(1200):
        if query(database, condition, *parameters, login="postgres")[0][0]:
            return
        time.sleep(0.05)
    pytest.fail(f"never came true: {condition}")


IS_WAITING = (
    "select count(*) > %s from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
)


def test_of_two_runs_at_once_one_waits_and_takes_what_is_left(built, tmp_path):
    before = published(built)
    ids = land(built, [LOGIN] * 100, prefix="at-once")
    with contextlib.closing(built.connect("transformer_user")) as blocker, blocker.cursor() as cursor:
        cursor.execute("lock table staging.int_messages__masked in share row exclusive mode")
        runs = [start(built, "run", folder=tmp_path / str(n)) for n in range(2)]
        wait_for(built, IS_WAITING, 1)
        blocker.rollback()

    for run in runs:
        said, _ = run.communicate(timeout=120)
        assert run.returncode == 0, said
    dbt(built, "build")
    assert published(built) == before | set(ids)


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        pytest.param("staging.int_messages__masked", [], id="increment"),
        pytest.param("analytics.user_logins", [], id="increment-half-way"),
        pytest.param("analytics.user_logins", ["--full-refresh"], id="full-refresh"),
    ],
)
def test_a_run_that_is_killed_leaves_all_or_nothing_of_a_model_and_the_next_one_goes_on(
    built, tmp_path, model, arguments
):
    before = published(built)
    ids = land(built, [LOGIN] * 50, prefix=f"{model}{arguments}-")
    with contextlib.closing(built.connect("postgres")) as blocker, blocker.cursor() as cursor:
        cursor.execute(f"lock table {model} in share mode")  # lets dbt read and not write
        run = start(built, "run", *arguments, folder=tmp_path)
        wait_for(built, IS_WAITING, 0)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        query(
            built,
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and usename = 'transformer_user'",
            login="postgres",
        )
        blocker.rollback()
    assert published(built) == before

    dbt(built, "build")
    assert published(built) == before | set(ids)


def test_retry_goes_on_where_a_run_stopped(built, tmp_path):
    [landed] = land(built, [LOGIN], prefix="retried")
    with contextlib.closing(built.connect("transformer_user")) as connection, connection, connection.cursor() as cursor:
        cursor.execute("create view analytics.mine as select locale from analytics.user_logins")
        cursor.execute("alter table analytics.user_logins rename column locale to language")
    failed = start(built, "run", folder=tmp_path)
    said, _ = failed.communicate(timeout=120)
    assert failed.returncode == 1, said
    assert landed not in published(built)

    with contextlib.closing(built.connect("transformer_user")) as connection, connection, connection.cursor() as cursor:
        cursor.execute("alter table analytics.user_logins rename column language to locale")
        cursor.execute("drop view analytics.mine")
    retried = start(built, "retry", folder=tmp_path)
    said, _ = retried.communicate(timeout=120)

    assert retried.returncode == 0, said
    assert "int_messages__masked" not in said, "what had succeeded was done again"
    assert landed in published(built)


def test_a_run_with_nothing_new_changes_nothing(built):
    dbt(built, "run")
    before = query(built, "select xmin::text, ctid::text, message_id from analytics.user_logins order by 3")
    dbt(built, "run")
    assert query(built, "select xmin::text, ctid::text, message_id from analytics.user_logins order by 3") == before


def test_after_a_year_of_silence_the_source_is_stale_and_new_messages_are_taken(built):
    before = published(built)
    with contextlib.closing(built.connect("postgres")) as connection, connection, connection.cursor() as cursor:
        cursor.execute("update raw.sqs_messages set loaded_at = loaded_at - interval '1 year'")
        cursor.execute("update raw.loads set loaded_at = loaded_at - interval '1 year'")
    dbt(built, "source", "freshness", expect=False)
    dbt(built, "build")

    [new] = land(built, [LOGIN], prefix="new")
    dbt(built, "build")

    assert published(built) == before | {new}
    dbt(built, "source", "freshness")

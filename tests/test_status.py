"""`python -m loader status`: the figures are the database's and the queue's, and the exit status can be relied on."""

import json
import os
import pty
import subprocess
import sys
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import botocore.session
import pytest
from botocore.stub import ANY, Stubber
from click.testing import CliRunner
from psycopg2.extras import RealDictCursor

from loader import status
from loader.cli import main
from tests.conftest import administration, copy
from tests.loading import set_dead_letter_queue
from tests.pipeline import dbt, land, query

ROOT = Path(__file__).parents[1]
LOGIN = '{{"user_id":"u{}","app_version":"1.0","device_type":"ios","ip":"192.0.2.1","locale":null,"device_id":"d"}}'
WELL, NO_DATABASE, NOT_PERMITTED, NOT_BUILT, NO_QUEUE, NOT_WELL = 0, 3, 4, 5, 6, 11


@pytest.fixture(scope="module")
def built(module_database):
    land(module_database, [LOGIN.format(1), LOGIN.format(2), "not json", "[]"])
    dbt(module_database, "run", "--select", "+pipeline_health")
    return module_database


@pytest.fixture
def dead(sqs, queue):
    """The queue's dead-letter queue, by URL."""
    dead = sqs.create_queue(QueueName=f"{queue.name}-dlq")["QueueUrl"]
    set_dead_letter_queue(sqs, queue.url, dead, receives=5)
    yield dead
    sqs.delete_queue(QueueUrl=dead)


@pytest.fixture
def ask(built, queue, dead):
    """Asks as a person on call does; their login sees what the role monitor sees."""

    def ask(*options, login="analyst_user", database=built, queue=queue.name, **settings):
        environment = database.env(login) | settings
        return CliRunner().invoke(main, ["status", "--queue-name", queue, *options], env=environment)

    return ask


def test_all_is_well(ask, built, queue):
    answer = ask("--json")
    assert answer.exit_code == WELL, answer.output
    told = json.loads(answer.stdout)
    assert told["well"]
    assert told["attention"] == []
    assert told["queue"] == {"name": queue.name, "waiting": 0, "in_flight": 0, "delayed": 0, "oldest": 0}
    columns = "received, landed, duplicates, accepted, rejected, erased, untransformed, unaccounted, mask_key_version"
    [figures] = query(built, f"select {columns}, rejected_by_reason from analytics.pipeline_health")
    assert figures == (4, 4, 0, 2, 2, 0, 0, 0, 1, {"not_json": 1, "not_an_object": 1})
    assert tuple(told["pipeline"][name] for name in [*columns.split(", "), "rejected_by_reason"]) == figures


def test_the_screen_says_the_same(ask, queue):
    answer = ask("--queue-url", queue.url, queue="login-queue")
    assert answer.exit_code == WELL
    assert "Accepted             2   in analytics, masked" in answer.stdout
    assert "1 not_an_object, 1 not_json" in answer.stdout
    assert "Missing              0   since 4 = 2 accepted + 2 rejected + 0 erased + 0 for dbt" in answer.stdout
    assert answer.stdout.endswith("All is well.\n")


def test_a_live_queue_that_was_not_looked_at_is_named(ask, queue):
    """Its messages may wait there for a loader, whatever the database says."""
    looked_at = f"All is well on {queue.name} and in the database. Not looked at in SQS: login-queue (--queue-name).\n"
    assert ask().stdout.endswith(looked_at)


@pytest.mark.parametrize(
    ("count", "live"), [("received", True), ("untransformed", True), ("landed_week_before", True), ("landed", False)]
)
def test_a_queue_lives_for_eight_days_after_its_last_message(count, live):
    counts = dict.fromkeys(("received", "untransformed", "landed_week_before", "landed"), 0) | {count: 1}
    assert ("logins" in status.live_queues({"queues": {"logins": counts}})) is live


def test_a_lag_may_be_as_long_as_one_likes(ask):
    assert ask("--max-lag", "inf").exit_code == WELL


def test_a_login_in_the_role_monitor_is_enough(ask, built):
    with administration(built.stack) as administrator:
        administrator.execute("create role on_call login in role monitor")
        administrator.execute("alter role on_call password 'on_call'")
    try:
        assert ask(PGUSER="on_call", PGPASSWORD="on_call").exit_code == WELL
    finally:
        with administration(built.stack) as administrator:
            administrator.execute("drop role on_call")


def test_what_it_may_not_see_it_says_and_shows_the_rest(ask):
    answer = ask(login="loader_user")
    assert answer.exit_code == NOT_PERMITTED
    assert "Grant the role monitor to this login." in answer.stdout
    assert "Waiting              0" in answer.stdout


def test_without_a_queue_it_shows_the_database(ask):
    answer = ask("--json", queue="no-such-queue")
    assert answer.exit_code == NO_QUEUE
    told = json.loads(answer.stdout)
    assert (told["well"], told["queue"], told["dead_letters"], told["pipeline"]["landed"]) == (False, None, None, 4)
    assert "There is no queue no-such-queue" in told["attention"][0]


def test_without_a_database_it_shows_the_queue(ask, queue):
    answer = ask("--json", PGPORT="1")
    assert answer.exit_code == NO_DATABASE
    told = json.loads(answer.stdout)
    assert (told["queue"]["name"], told["pipeline"]) == (queue.name, None)
    assert "Check PGHOST" in told["attention"][0]


def test_before_dbt_has_run_it_says_what_to_run(ask, database):
    answer = ask(database=database)
    assert answer.exit_code == NOT_BUILT
    assert "then `make build`" in answer.stdout


def test_dead_letters_need_a_person(ask, sqs, queue, dead):
    sqs.send_message(QueueUrl=dead, MessageBody="poison")
    answer = ask()
    assert answer.exit_code == NOT_WELL
    fix = "fix what stopped them, then run `python -m loader redrive`."
    assert f"{queue.name}-dlq holds 1 message: {fix}" in answer.stdout


@pytest.mark.parametrize(
    ("receives", "trouble"),
    [
        pytest.param(None, "has no dead-letter queue", id="none"),
        pytest.param(1, "maxReceiveCount is 1", id="one-receive"),
        pytest.param(5, None, id="well"),
    ],
)
def test_status_and_doctor_agree_on_the_dead_letter_queue(built, sqs, queue, dead, ask, receives, trouble):
    if receives:
        set_dead_letter_queue(sqs, queue.url, dead, receives)
    else:
        sqs.set_queue_attributes(QueueUrl=queue.url, Attributes={"RedrivePolicy": ""})
    options = ["--queue-name", queue.name]
    doctor = CliRunner().invoke(main, ["doctor", *options], env=built.env("loader_user"))
    answer = ask()
    assert (answer.exit_code == WELL) is (doctor.exit_code == WELL) is (trouble is None), answer.output + doctor.output
    if trouble:
        [found] = [line.split(maxsplit=3)[3] for line in doctor.stdout.splitlines() if trouble in line]
        assert f"{found}." in answer.stdout


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param(
            "insert into raw.loads (loaded_at, queue, received, landed, duplicates)"
            " values (now() - interval '2 h', 'login-queue', 1, 1, 0)",
            "The oldest landed message has waited for dbt for 2 h: run `make build`.",
            id="dbt-stands-still",
        ),
        pytest.param(
            "delete from analytics.user_logins where message_id = 'm1'",
            "1 unaccounted for: once no dbt is running, `dbt test` in dbt_project/ says where.",
            id="a-login-is-lost",
        ),
    ],
)
def test_the_pipeline_may_need_a_person(ask, built, change, sentence, monkeypatch):
    with closing(built.connect("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute(change)
        changed = status.health_of(connection.cursor(cursor_factory=RealDictCursor))  # and never committed
    monkeypatch.setattr(status, "pipeline_health", lambda: changed)

    answer = ask()
    assert answer.exit_code == NOT_WELL
    assert answer.stdout.endswith(sentence + "\n")


def test_the_balance_adds_up_where_one_load_has_a_row_too_many_and_another_one_too_few(built):
    with closing(built.connect("analyst_user")) as connection:
        seen = status.health_of(connection.cursor(cursor_factory=RealDictCursor))
    [*_, last] = status.pipeline_rows(seen | {"accepted": 1, "erased": 1, "unaccounted": 1})
    assert last == ("Missing", "1", "since 4 = 1 accepted + 2 rejected + 1 erased + 0 for dbt + 1 - 1 too many")


NOW = datetime(2026, 11, 21, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("waiting", "oldest", "newest_load_at", "sentence"),
    [
        pytest.param(5, HOUR * 2, NOW, "The oldest message has been on the queue for 2 h.", id="too-old"),
        pytest.param(5, HOUR, NOW - HOUR * 9, "", id="old-enough"),
        pytest.param(5, None, None, "Messages wait on logins, and none from there has ever landed.", id="never-loaded"),
        pytest.param(
            5,
            None,
            NOW - HOUR * 3,
            "Messages wait on logins, and none from there has landed for 3 h.",
            id="loader-gone",
        ),
        pytest.param(5, None, NOW - HOUR, "", id="just-loaded"),
        pytest.param(0, timedelta(0), None, "", id="nothing-to-load"),
    ],
)
def test_a_queue_that_nobody_empties_needs_a_person(waiting, oldest, newest_load_at, sentence):
    seen = SimpleNamespace(
        queue={"name": "logins", "waiting": waiting, "oldest": oldest},
        dead_letters={"name": "dlq", "waiting": 0, "receives": 5},
        pipeline={
            "measured_at": NOW,
            "newest_load_at": newest_load_at,
            "landed_to_analytics": timedelta(0),
            "unaccounted": 0,
            "rotation_is_open": False,
            "sequence_is_behind": False,
            "queues": {"logins": {"newest_load_at": newest_load_at, "rejections_jumped": False}},
        },
    )
    expected = [f"{sentence} Is `python -m loader load` running?"] if sentence else []
    assert list(status.troubles(seen, max_lag=HOUR)) == expected


@pytest.mark.parametrize(
    ("change", "jumped"),
    [
        pytest.param({}, False, id="none"),
        pytest.param({"rejected": 2}, False, id="as-ever"),
        pytest.param({"rejected": 10}, True, id="ten-times-as-many"),
        pytest.param({"rejected": 10, "rejected_week_before": 70}, False, id="always-so-many"),
        pytest.param({"accepted": 95, "rejected": 5, "rejected_week_before": 0}, False, id="not-more-than-5-percent"),
        pytest.param({"accepted": 94, "rejected": 5, "rejected_week_before": 0}, True, id="more-than-5-percent"),
        pytest.param({"accepted": 3, "rejected": 3}, False, id="too-few-to-tell"),
        pytest.param({"rejected": 90, "landed_week_before": 0}, True, id="half-of-the-first-day"),
        pytest.param({"rejected": 10, "landed_week_before": 0}, False, id="a-tenth-of-the-first-day"),
    ],
)
def test_rejections_jump_when_far_more_are_rejected_than_before(built, change, jumped):
    counts = {"accepted": 90, "rejected": 0, "landed_week_before": 700, "rejected_week_before": 7} | change
    arguments = ", ".join(f"{name} => {count}" for name, count in counts.items())
    assert query(built, f"select analytics.rejections_jumped({arguments})") == [(jumped,)]


def test_a_jump_in_the_share_of_rejections_needs_a_person(built, ask):
    with copy(built) as database:
        land(database, ["not json"] * 20, prefix="bad")
        dbt(database, "run", "--select", "+queue_health")
        answer = ask(database=database)
    assert answer.exit_code == NOT_WELL
    assert "22 of 24 messages from login-queue were rejected in 24 hours, far more than before" in answer.stdout


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("grant execute on function masking.carried_over to transformer", "A key rotation has begun and has not ended"),
        ("select setval('raw.load_id_seq', 1, false)", "raw.load_id_seq is behind the ledger"),
    ],
)
def test_what_stops_the_pipeline_is_told(built, ask, change, told):
    with copy(built) as database:
        with closing(database.connect("postgres")) as connection, connection, connection.cursor() as cursor:
            cursor.execute(change)
        answer = ask(database=database)
    assert answer.exit_code == NOT_WELL
    assert told in answer.stdout


def test_cloudwatch_tells_the_age_of_the_oldest(built, ask, sqs, queue, monkeypatch):
    given = {"region_name": "us-east-1", "aws_access_key_id": "x", "aws_secret_access_key": "x"}
    cloudwatch = botocore.session.get_session().create_client("cloudwatch", **given)
    points = [{"Timestamp": NOW, "Maximum": 7300.0}, {"Timestamp": NOW - HOUR, "Maximum": 10.0}]
    monkeypatch.setattr(status, "cloudwatch_of", lambda queue: cloudwatch)
    sqs.send_message(QueueUrl=queue.url, MessageBody="{}")

    with Stubber(cloudwatch) as stub:
        asked = dict.fromkeys(("Namespace", "MetricName", "StartTime", "EndTime", "Period", "Statistics"), ANY)
        # the queue's own name, whatever its messages land under
        asked["Dimensions"] = [{"Name": "QueueName", "Value": queue.name}]
        stub.add_response("get_metric_statistics", {"Label": "age", "Datapoints": points}, asked)
        answer = ask("--max-lag", "7200", "--queue-url", queue.url, "--queue-name", "login-queue")
    assert answer.exit_code == NOT_WELL
    assert "Oldest             2 h   on the queue" in answer.stdout

    with Stubber(cloudwatch) as stub:
        stub.add_client_error("get_metric_statistics", "AccessDenied")
        with copy(built) as database:
            land(database, [LOGIN.format(3)], prefix="n", queue=queue.name)
            answer = ask(database=database)
    assert answer.exit_code == WELL
    assert "Oldest               ?" in answer.stdout


@pytest.mark.parametrize(
    "point", [{"Timestamp": NOW}, {"Maximum": 1.0}, {"Timestamp": NOW, "Maximum": float("inf")}], ids=str
)
def test_what_is_not_cloudwatch_tells_no_age(monkeypatch, point):
    cloudwatch = SimpleNamespace(get_metric_statistics=lambda **_: {"Datapoints": [point]})
    monkeypatch.setattr(status, "cloudwatch_of", lambda queue: cloudwatch)
    assert status.age_of_oldest(SimpleNamespace(url="http://localhost/1/logins")) is None


@pytest.mark.parametrize(
    ("age", "said"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (172800, "2 days"), (-5, "0 s")],
)
def test_ages_are_said_in_one_unit(age, said):
    assert status.span(timedelta(seconds=age)) == said


@pytest.mark.parametrize(
    ("on_a_terminal", "settings", "coloured"),
    [
        pytest.param(True, {}, True, id="terminal"),
        pytest.param(True, {"NO_COLOR": "1"}, False, id="no-color"),
        pytest.param(False, {}, False, id="pipe"),
    ],
)
def test_colours_are_for_terminals_that_want_them(built, queue, dead, on_a_terminal, settings, coloured):
    environment = {name: value for name, value in built.env("analyst_user").items() if name != "NO_COLOR"} | settings
    command = [sys.executable, "-m", "loader", "status", "--queue-name", queue.name]
    assert ("\x1b[" in said(command, environment, on_a_terminal)) is coloured


def said(command, environment, on_a_terminal):
    if not on_a_terminal:
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout
    ours, theirs = pty.openpty()
    subprocess.run(command, cwd=ROOT, env=environment, stdout=theirs, check=True)
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        return terminal.read(65536).decode()

"""What the loader promises of every message: whole, once, in order, and never printed."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from loader.land import Database
from loader.load import Batch
from loader.sqs import Message
from tests import faults
from tests.loading import Loading, a_loading, create_queue, end, set_dead_letter_queue, until

loading = pytest.fixture(a_loading)

UGLY = {
    "key-order": '{"b": 1, "a": 2}',
    "duplicate-keys": '{"a": 1, "a": 2}',
    "spaces": '  {"a" :1 ,\n\t"b":  2}  ',
    "escaped-nul": '{"a": "\\u0000"}',
    "escaped-lone-surrogate": '{"a": "\\ud800"}',
    "trailing-zeros": '{"a": 1.10, "b": 1e400}',
    "emoji": '{"a": "\U0001f600\U0001f468\u200d\U0001f469"}',
    "not-json": "hello",
    "one-character": "x",
    "blank": " ",
    "copy-null": "\\N",
    "copy-end": "\\.",
    "copy-end-in-a-line-of-its-own": "a\n\\.\nb",
    "backslashes": "\\ \\\\ \\t \\n \\x41 \\101",
    "tabs-and-line-ends": "a\tb\nc\r\nd\re",
    "line-separators": "a\u2028b\u2029c\u0085d",
    "quotes": "'\"`$$ '; drop table raw.loads; --",
    "percent": "%s %(a)s %%",
    "invisible": "\ufeff\u200b\u007f\u00ad",
    "right-to-left": "\u05d0\u202e\u0627",
    "last-characters": "\ufffd\U0010ffff",
    "one-mebibyte": '{"a": "' + "\u00fc" * (512 * 1024 - 5) + '"}',
    "deeply-nested": "[" * 20_000 + "]" * 20_000,
}


@pytest.fixture(scope="module", params=["lean", "boto3"])
def ugly(request, module_database, sqs):
    """Bodies as they are in raw after one loader landed them all, by message id, and the ids by name."""
    with pytest.MonkeyPatch.context() as patch:
        for loading in a_loading(module_database, sqs, patch):
            loading.client = request.param
            ids = {name: loading.send([body])[0] for name, body in UGLY.items()}
            loading.run()
            yield ids, dict(loading.query("select message_id, body from raw.sqs_messages"))


@pytest.mark.parametrize("name", UGLY)
def test_a_body_lands_byte_for_byte(ugly, name: str):
    ids, landed = ugly
    assert landed[ids[name]] == UGLY[name]


@pytest.mark.parametrize("client", ["lean", "boto3"])
def test_what_sqs_says_of_a_message_is_kept_beside_it(loading: Loading, client: str):
    loading.client = client
    attributes = {
        "text": {"DataType": "String", "StringValue": 'a\t"b"\\ \U0001f600'},
        "number": {"DataType": "Number.int", "StringValue": "1.10"},
        "bytes": {"DataType": "Binary", "BinaryValue": b"\x00\xff\n"},
    }
    before = time.time()
    loading.send(["plain"])
    loading.send(["with attributes"], MessageAttributes=attributes)

    loading.run()

    plain, rich = loading.query(
        "select queue, extract(epoch from sent_at)::float, receive_count, message_group_id, sequence_number, attributes"
        " from raw.sqs_messages order by body"
    )
    assert plain[0] == loading.queue_name
    assert before - 1 < plain[1] < time.time() + 1
    assert plain[2:] == (1, None, None, None)
    assert {name: value.get("StringValue", value.get("BinaryValue")) for name, value in rich[5].items()} == {
        "text": 'a\t"b"\\ \U0001f600', "number": "1.10", "bytes": "AP8K"
    }  # fmt: skip


@pytest.mark.parametrize("client", ["lean", "boto3"])
def test_the_lean_path_does_without_boto3_while_nothing_is_wrong(loading: Loading, client: str):
    loading.client = client
    loading.send(20)
    with loading.faulty_sqs(faults.none) as proxy:
        loading.run()

    assert proxy.clients == {client}


def test_a_message_delivered_twice_lands_once_and_is_deleted(loading: Loading):
    ids = loading.send(25)
    with loading.faulty_sqs(faults.on("DeleteMessageBatch", *[faults.deletes_are_forgotten] * 3)):
        report = loading.run(workers=1)

    loading.assert_landed_once(ids)
    assert report.counts["landed"] == 25
    assert report.counts["duplicates"] == 25
    assert report.counts["received"] == report.counts["deleted"] == 50
    assert loading.query("select sum(received), sum(landed), sum(duplicates) from raw.loads") == [(50, 25, 25)]


def test_the_newest_receipt_handle_of_a_message_held_twice_is_the_one_that_deletes(loading: Loading):
    [message_id] = loading.send(1)
    queue, batch = loading.ready().queue, Batch()
    batch.add(queue.receive(10, 1), time.monotonic())
    first = batch.messages[message_id].receipt
    queue.keep(list(batch.messages.values()), 0)

    batch.add(queue.receive(10, 1), time.monotonic())

    message = batch.messages[message_id]
    assert message.receipt != first
    assert message.deliveries == 2
    assert queue.delete([message]) == 2
    assert loading.waiting() == (0, 0)
    queue.client.hang_up()


def test_a_slow_database_does_not_bring_messages_back(loading: Loading):
    """The table is closed for longer than the visibility timeout, and the heartbeat keeps what is held."""
    ids = loading.send(60)
    with loading.slow_database(1.5):
        report = loading.run(workers=3, flush=20)

    loading.assert_landed_once(ids)
    assert report.counts["received"] == 60
    assert report.counts["duplicates"] == 0


@pytest.mark.parametrize("before", ["0", "30"])
def test_messages_are_hidden_for_as_long_as_the_heartbeat_thinks(loading: Loading, before: str):
    """Where the queue says that they are not, and where that changes while a loader runs."""
    url = create_queue(loading.sqs, VisibilityTimeout=before)
    other = Loading(loading.database, loading.sqs, url, loading.env)
    run = other.ready(workers=3, flush=10)
    loading.sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "0"})
    ids = other.send(30)
    with other.slow_database(0.5):
        run.start()
        run.wait()

    other.assert_landed_once(ids)
    assert run.report.counts["received"] == 30


def test_four_loaders_on_one_queue_share_it(loading: Loading):
    ids = loading.send(600)
    loaders = [loading.start("--workers", "2", "--flush", "50") for _ in range(4)]
    results = [end(loader) for loader in loaders]

    loading.run()

    loading.assert_landed_once(ids)
    assert [status for status, *_ in results] == [0] * 4
    received = sum(int(re.match(r"received (\d+)", out)[1]) for _, out, _ in results)
    assert loading.query("select sum(received) from raw.loads") == [(received,)]


def test_two_that_land_the_same_messages_do_not_lock_each_other_out(loading: Loading):
    """In opposite orders, each would wait for the row that the other has inserted."""
    messages = [Message(f"{n:05}", "", "body", "1795219200000", "1", None, None, None) for n in range(4000)]
    databases = [loading.ready().database for _ in range(2)]
    troubles = []
    for database in databases:
        database.say = lambda event, **details: troubles.append(details)
    with ThreadPoolExecutor(2) as pool:
        landings = pool.map(Database.land, databases, ["q", "q"], [messages, messages[::-1]])

    assert sorted(landing.landed for landing in landings) == [0, 4000]
    assert troubles == []


def test_a_refused_message_stays_on_the_queue_and_keeps_no_other_out(loading: Loading):
    loading.execute("alter table raw.sqs_messages add check (body !~ 'poison')")
    ids = loading.send(["poison 192.0.2.1", *(f"good {n}" for n in range(57)), "poison 192.0.2.2"])

    loader = loading.start("--workers", "1", "--log-format", "json", "--max-messages", "59")
    status, out, err = end(loader)

    assert status == 10
    assert out.startswith("received 59: landed 57, duplicates 0, refused 2, returned 0; deleted 57, not deleted 0")
    refusals = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert {each["message_id"] for each in refusals if "message_id" in each} == {ids[0], ids[-1]}
    assert "CheckViolation" in err
    assert "192.0.2" not in out + err
    assert sum(loading.waiting()) == 2
    assert loading.query("select sum(received), sum(landed) from raw.loads") == [(57, 57)]


def test_a_queue_with_nothing_but_refused_messages_is_drained(loading: Loading):
    loading.execute("alter table raw.sqs_messages add check (body !~ 'poison')")
    loading.send(["poison"] * 3)

    report = loading.run()

    assert report.counts["refused"] >= 3
    assert sum(loading.waiting()) == 3


def test_what_is_behind_more_refused_messages_than_a_transaction_has_lands(loading: Loading):
    """They never leave a dead-letter queue, so that what is behind them there would not land by any `redrive`."""
    loading.execute("alter table raw.sqs_messages add check (body !~ 'poison')")
    loading.send([*["poison"] * 6, "good"])

    report = loading.run(workers=1, flush=3)

    assert report.counts["landed"] == 1
    assert report.counts["refused"] >= 6


def test_a_refused_message_goes_to_the_dead_letter_queue(loading: Loading):
    dead = create_queue(loading.sqs)
    set_dead_letter_queue(loading.sqs, loading.url, dead, receives=1)
    loading.execute("alter table raw.sqs_messages add check (body !~ 'poison')")
    loading.send(["poison"])
    loading.run()
    time.sleep(1)

    loading.run()

    assert sum(loading.waiting()) == 0
    assert Loading(None, loading.sqs, dead, {}).waiting() == (1, 0)


def test_fifo_groups_keep_their_order_and_one_does_not_stall_another(loading: Loading):
    url = create_queue(loading.sqs, FifoQueue="true")
    fifo = Loading(loading.database, loading.sqs, url, loading.env)
    for n in range(5):
        for group in "abc":
            body = "poison" if (group, n) == ("b", 2) else f"{group}{n}"
            loading.sqs.send_message(
                QueueUrl=url, MessageBody=body, MessageGroupId=group, MessageDeduplicationId=f"{group}{n}"
            )
    loading.execute("alter table raw.sqs_messages add constraint no_poison check (body !~ 'poison')")
    fifo.run()
    stalled = [row[0] for row in fifo.query("select body from raw.sqs_messages order by body")]

    loading.execute("alter table raw.sqs_messages drop constraint no_poison")
    time.sleep(1)
    fifo.run()

    assert stalled == [*(f"a{n}" for n in range(5)), "b0", "b1", *(f"c{n}" for n in range(5))]
    for group in "abc":
        rows = fifo.query(
            "select body, load_id from raw.sqs_messages where message_group_id = %s order by sequence_number", group
        )
        assert [body[1] for body, _ in rows if body != "poison"] == [str(n) for n in range(5) if (group, n) != ("b", 2)]
        assert [load_id for _, load_id in rows] == sorted(load_id for _, load_id in rows)


def test_what_comes_after_a_refused_message_in_its_fifo_group_is_held_back(loading: Loading):
    """SQS may hand out several of a group at once; the emulator does not, so these are made up."""
    loading.execute("alter table raw.sqs_messages add check (body !~ 'poison')")
    bodies = ["a0", "b0", "poison", "a1", "b1", "a2", "b2", "b3"]
    messages = [
        Message(str(n), "", body, "1795219200000", "1", "b" if body == "poison" else body[0], f"{n:020}", None)
        for n, body in enumerate(bodies)
    ]
    database = loading.ready().database

    landing = database.land("q.fifo", messages)

    assert [each.body for each in landing.durable] == ["a0", "b0", "a1", "a2"]
    assert [(each.body, why) for each, why in landing.refused] == [("poison", "CheckViolation 23514")]
    assert [each.body for each in landing.held_back] == ["b1", "b2", "b3"]


def test_a_transaction_has_no_more_messages_than_flush_says(loading: Loading):
    loading.send(30)

    loading.run(workers=2, flush=3)

    assert loading.query("select max(received), sum(received) from raw.loads") == [(3, 30)]


def test_max_messages_bounds_a_run(loading: Loading):
    loading.send(50)

    report = loading.run(workers=4, max_messages=23)

    assert report.counts["received"] == report.counts["deleted"] == 23
    assert loading.waiting() == (27, 0)


def test_more_than_was_asked_for_does_not_move_the_bound(loading: Loading):
    run = loading.ready(max_messages=3)

    assert run.reserve(10) == 3
    run.count_received(5, 3)

    assert run.reserve(1) == 0
    assert not run.goes_on()


@pytest.mark.parametrize("bound", [["--max-messages", "10"], ["--max-seconds", "0.5"]], ids=["messages", "seconds"])
def test_a_run_that_a_bound_ends_does_not_say_that_the_queue_is_drained(loading: Loading, bound: list[str]):
    loading.send(30)
    with loading.slow_database(0.5):
        status, _, err = end(loading.start("--workers", "2", "--flush", "5", *bound))

    assert (status, err) == (0, "")
    assert sum(loading.waiting()) > 0


def test_told_to_stop_it_does_not_say_that_the_queue_is_drained(loading: Loading):
    loading.send(30)
    with loading.slow_database(1):
        loader = loading.start("--workers", "2", "--flush", "5")
        until(lambda: is_landing(loading))
        status, _, err = end(loader, signal.SIGINT)

    assert (status, err) == (0, "")
    assert sum(loading.waiting()) > 0


def test_max_seconds_bounds_a_run_that_follows(loading: Loading):
    ids = loading.send(5)

    loading.run(follow=True, max_seconds=1)

    loading.assert_landed_once(ids)


def test_told_to_stop_it_finishes_the_flush_in_hand_and_exits_with_0(loading: Loading):
    ids = loading.send(40)
    with loading.slow_database(1):
        loader = loading.start("--follow", "--workers", "2", "--flush", "10")
        until(lambda: is_landing(loading))
        status, out, _ = end(loader, signal.SIGTERM)

    visible, in_flight = loading.waiting()
    [(landed,)] = loading.query("select count(*) from raw.sqs_messages")
    assert status == 0
    assert in_flight == 0
    assert landed > 0
    assert landed + visible == len(ids)
    assert out.startswith(f"received {landed}: landed {landed}, ")


def test_told_to_stop_it_hands_back_what_the_database_does_not_take(loading: Loading, monkeypatch):
    monkeypatch.setattr("loader.load.GRACE", 0.2)
    loading.send(20)
    with loading.slow_database(3), loading.running(follow=True, flush=10) as run:
        until(lambda: is_landing(loading))
        run.stopping.set()

    assert loading.query("select count(*) from raw.sqs_messages") == [(0,)]
    assert loading.waiting() == (20, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_before_it_has_begun_it_ends_at_once(loading: Loading, number: int):
    """As the first process of a container does only if it says so; here, while SQS does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        loader = loading.start(AWS_ENDPOINT_URL=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with silent.accept()[0]:
            assert end(loader, number) == (128 + number, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["load", "status", "doctor", "redrive"])
def test_told_to_stop_while_it_is_being_loaded_it_ends_at_once(tmp_path, command: str, number: int):
    """Here by one of its own imports, which is in the place of a library."""
    (tmp_path / "psycopg2.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\nwhile True: pass\n")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-m", "loader", command], env=env, capture_output=True, text=True)

    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")


def test_a_second_ctrl_c_ends_it_at_once_and_loses_nothing(loading: Loading):
    ids = loading.send(40)
    with loading.slow_database(2):
        loader = loading.start("--follow", "--workers", "2", "--flush", "10")
        until(lambda: is_landing(loading))
        loader.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert loader.poll() is None
        assert end(loader, signal.SIGINT)[0] == 128 + signal.SIGINT

    loading.run()

    loading.assert_landed_once(ids)


def test_no_value_reaches_any_log(loading: Loading):
    """Not in the loader's output, and not in PostgreSQL's log when it logs every statement."""
    log = loading.database.stack.folder / "postgres" / "server.log"
    written = log.stat().st_size
    loading.execute(f"alter database {loading.database.name} set log_statement = 'all'")
    loading.execute("alter role loader_user set log_min_duration_statement = 0")
    secret = {"DataType": "String", "StringValue": "secret-attribute 203.0.113.9"}
    loading.send(["secret-body 203.0.113.9", "\\. secret-body\t203.0.113.9"], MessageAttributes={"a": secret})

    status, out, err = end(loading.start("--log-format", "json"))

    loading.execute("alter role loader_user reset log_min_duration_statement")
    with os.fdopen(os.open(log, os.O_RDONLY), "rb") as stream:
        stream.seek(written)
        logged = stream.read().decode()
    assert (status, loading.waiting()) == (0, (0, 0))
    assert "raw.sqs_messages" in logged
    for value in ("secret", "203.0.113.9"):
        assert value not in logged + out + err


def is_landing(loading: Loading) -> bool:
    """Whether a loader is held up by slow_database."""
    sleeping = "select from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'"
    return bool(loading.query(sleeping))

"""What the loader shows: a progress line, logs, metrics, and what doctor and redrive say."""

import contextlib
import fcntl
import json
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
import urllib.request
from datetime import timedelta

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from loader.doctor import retention
from loader.report import Look, Report, progress_line
from loader.sqs import Queue
from local.processes import free_port
from tests import faults
from tests.conftest import ROOT
from tests.loading import KILLED, Loading, a_loading, create_queue, end, set_dead_letter_queue, until
from tests.test_crash_matrix import Kill

loading = pytest.fixture(a_loading)


@pytest.mark.parametrize(
    ("looks", "line"),
    [
        pytest.param([], "landed 1,500", id="nothing-known"),
        pytest.param([(0, 9000, 0, 0)], "landed 1,500", id="looked-once"),
        pytest.param(
            [(0, 9000, 0, 0), (5, 8000, 1500, 1500)],
            "landed 1,500, 300/s; backlog 8,000, 100/s arriving, done in 0:00:40",
            id="shrinking",
        ),
        pytest.param(
            [(0, 9000, 0, 0), (5, 7500, 1500, 1500)],
            "landed 1,500, 300/s; backlog 7,500, done in 0:00:25",
            id="nothing-arrives",
        ),
        pytest.param(
            [(0, 8000, 0, 0), (5, 9000, 1500, 1500)],
            "landed 1,500, 300/s; backlog 9,000, 500/s arriving, growing",
            id="growing",
        ),
        pytest.param([(0, 0, 1500, 1500), (5, 0, 1500, 1500)], "landed 1,500, 0/s; backlog 0", id="idle"),
        pytest.param(
            [(0, 9000, 0, 0), (15, 9100, 1000, 0), (30, 6000, 2500, 2500)],
            "landed 1,500, 83/s; backlog 6,000, done in 0:01:00",
            id="a-counter-that-jumps",
        ),
    ],
)
def test_the_progress_line(looks: list, line: str):
    assert progress_line([Look(*each) for each in looks], 1500) == line


def test_rates_are_of_the_last_half_minute(monkeypatch):
    report, now = Report(), 1000.0
    monkeypatch.setattr("loader.report.time.monotonic", lambda: now)
    for _ in range(20):
        now += 5
        report.look(100)

    assert [each.at for each in report.looks] == [now - seconds for seconds in range(30, -1, -5)]


def test_lines_of_many_threads_do_not_mix(loading: Loading):
    """Where Python does not buffer standard error, as in the image."""
    program = """
import threading
from loader.report import Report
report = Report("json")
write = lambda: [report.say("event", number=n, text="x" * 50) for n in range(200)]
threads = [threading.Thread(target=write) for _ in range(16)]
[each.start() for each in threads]
[each.join() for each in threads]
"""
    done = subprocess.run([sys.executable, "-u", "-c", program], capture_output=True, text=True, check=True)

    lines = done.stderr.splitlines()
    assert len(lines) == 3200
    assert all(json.loads(line)["event"] == "event" for line in lines)


def test_a_terminal_sees_progress_and_a_file_does_not(loading: Loading):
    loading.send(20)
    ours, theirs = pty.openpty()
    with contextlib.closing(os.fdopen(ours, "rb", 0)) as terminal:
        process = subprocess.run(
            loading.command(),
            env=loading.env,
            stdout=subprocess.PIPE,
            stderr=theirs,
            check=True,
            text=True,
        )
        os.close(theirs)
        shown = terminal.read(65536).decode()  # all of it: nobody writes any more
    loading.send(20)
    status, out, err = end(loading.start("--max-messages", "20"))

    assert shown.startswith(f"\r\033[K{loading.queue_name}: landed 0")
    assert shown.endswith("\r\033[K")
    assert (
        process.stdout
        == out
        == "received 20: landed 20, duplicates 0, refused 0, returned 0; deleted 20, not deleted 0\n"
    )
    assert (status, err) == (0, "")


@pytest.mark.parametrize(
    ("wide", "shows"), [(1, ""), (20, "landed 8,000,000, 3"), (60, "landed"), (200, "queue: landed")]
)
def test_progress_is_one_line_of_the_terminal(monkeypatch, wide: int, shows: str):
    """What goes on in a second line is not taken back: there would be five new ones a second."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, wide, 0, 0))
    with os.fdopen(ours, "rb", 0) as terminal, os.fdopen(theirs, "w") as stderr, monkeypatch.context() as here:
        here.setattr("sys.stderr", stderr)
        report = Report(progress=True, queue="queue")
        report.looks = [Look(0, 9_000_000, 7_000_000, 7_000_000), Look(30, 8_500_000, 8_000_000, 8_000_000)]
        report.counts["landed"] = 8_000_000
        report.show_progress()
        shown = terminal.read(4096).decode().removeprefix("\r\033[K")

    assert len(shown) < wide
    assert shown.startswith(shows)
    assert wide < 200 or "arriving, done in" in shown


def test_the_json_log_is_one_object_a_line(loading: Loading):
    loading.send(20)
    with loading.faulty_sqs(faults.on("DeleteMessageBatch", faults.every_other_delete_fails)):
        _, _, err = end(loading.start("--log-format", "json", "--workers", "1", "--max-messages", "20"))

    events = [json.loads(line) for line in err.splitlines()]
    assert {"event": "SQS did not delete some messages", "messages": 5, "codes": ["InternalError"], "attempt": 1} in [
        {name: value for name, value in event.items() if name != "at"} for event in events
    ]


def test_the_metrics_agree_with_the_result(loading: Loading):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    loading.send(20)
    loader = loading.start("--follow", "--workers", "2", "--metrics-port", str(port))
    until(lambda: loading.query("select from raw.sqs_messages having count(*) = 20"))
    until(lambda: loading.waiting() == (0, 0))
    metrics = until(lambda: read_metrics(port, "loader_deleted_total", 20))
    status, out, _ = end(loader, 15)

    assert status == 0
    assert out.startswith("received 20: landed 20, duplicates 0, refused 0, returned 0; deleted 20")
    assert metrics["loader_received_total"] == metrics["loader_landed_total"] == 20
    assert metrics["loader_duplicates_total"] == metrics["loader_refused_total"] == metrics["loader_in_flight"] == 0
    assert metrics["loader_flush_seconds_count"] >= 1
    assert metrics["loader_database_up"] == 1
    assert metrics["loader_last_success_timestamp_seconds"] > 1_700_000_000
    assert {"loader_backlog", "loader_oldest_message_seconds"} <= metrics.keys()


def health_checks() -> dict[str, list[str]]:
    """The commands by which Docker and ECS ask a loader."""
    (command,) = re.findall(r"^HEALTHCHECK.*\n *CMD (.*)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    template = (ROOT / "deploy" / "aws" / "pipeline.yaml").read_text()
    (ecs,) = re.findall(r"HealthCheck:\n((?: {12}.*\n)+)", template)
    return {"docker": json.loads(command), "ecs": yaml.safe_load(ecs)["Command"][1:]}


@pytest.mark.parametrize("where", ["docker", "ecs"])
def test_a_loader_that_waits_for_messages_is_healthy(loading: Loading, where: str):
    port = free_port("127.0.0.1", 0)
    python, *arguments = (word.replace(":9108/", f":{port}/") for word in health_checks()[where])
    asked = [sys.executable, *arguments]
    assert python == "python"
    assert subprocess.run(asked, stderr=subprocess.DEVNULL).returncode == 1  # nothing runs there

    loader = loading.start("--follow", "--workers", "1", "--metrics-port", str(port))
    try:
        until(lambda: subprocess.run(asked, stderr=subprocess.DEVNULL).returncode == 0)
    finally:
        loader.terminate()
        end(loader)


@pytest.mark.parametrize(("options", "answers"), [([], False), (["--metrics-host", "0.0.0.0"], True)])
def test_metrics_are_served_to_this_machine_alone_unless_told_otherwise(loading: Loading, options, answers: bool):
    with socket.create_server(("127.0.0.2", 0)) as probe:
        port = probe.getsockname()[1]
    loader = loading.start("--follow", "--workers", "1", "--metrics-port", str(port), *options)
    until(lambda: is_open("127.0.0.1", port))
    assert is_open("127.0.0.2", port) is answers
    end(loader, 15)


def is_open(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
        return True
    return False


def read_metrics(port: int, name: str, value: float) -> dict[str, float] | None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families if family.name.startswith("loader_") for sample in family.samples]
    assert all(sample.labels["queue"].startswith("load-") for sample in samples)
    metrics = {sample.name: sample.value for sample in samples}
    return metrics if metrics[name] == value else None


@pytest.mark.parametrize("host", ["x" * 64, "a..b", "nowhere.invalid"])
def test_a_metrics_host_that_does_not_exist_is_said(loading: Loading, host: str):
    status, _, err = end(loading.start("--metrics-port", "1234", "--metrics-host", host))

    assert status == 2
    assert err.startswith(f"No metrics on port 1234 of {host}: ")


def test_a_metrics_port_that_is_taken_is_said(loading: Loading):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, _, err = end(loading.start("--metrics-port", str(taken.getsockname()[1])))

    assert status == 2
    assert err.startswith("No metrics on port ")


def test_doctor_finds_nothing_wrong_and_leaves_no_trace(loading: Loading):
    with_dead_letters(loading, 5)
    loading.send(3)
    before = loading.query("select count(*) from raw.loads union all select count(*) from raw.sqs_messages")

    status, out, err = tell(loading, "doctor", "--flush", "100")

    assert (status, err) == (0, "")
    assert [line[:4] for line in out.splitlines()] == ["ok  "] * 9
    assert loading.query("select count(*) from raw.loads union all select count(*) from raw.sqs_messages") == before
    assert loading.waiting() == (3, 0)


def arrange_no_policy(loading: Loading) -> None:
    pass


def arrange_one_receive(loading: Loading) -> None:
    with_dead_letters(loading, 1)


def arrange_dead_letters(loading: Loading) -> None:
    Loading(None, loading.sqs, with_dead_letters(loading, 5), {}).send(2)


def arrange_slow_landing(loading: Loading) -> None:
    with_dead_letters(loading, 5)
    loading.slow_database(0.5).__enter__()


def arrange_no_keys(loading: Loading) -> None:
    with_dead_letters(loading, 5)
    loading.execute("truncate masking.keys cascade")


def arrange_refused(loading: Loading) -> None:
    loading.execute("alter table raw.sqs_messages add check (body !~ 'x')")


def arrange_no_database(loading: Loading) -> None:
    loading.env = loading.env | {"PGPORT": "1"}


def arrange_not_migrated(loading: Loading) -> None:
    loading.env = loading.env | {"PGDATABASE": "postgres"}


def arrange_no_grant(loading: Loading) -> None:
    loading.execute("revoke insert on raw.loads from loader")


def arrange_no_queue(loading: Loading) -> None:
    loading.env = loading.env | {"LOADER_QUEUE_NAME": "no-such-queue"}


def arrange_deleted_dead_letter_queue(loading: Loading) -> None:
    loading.sqs.delete_queue(QueueUrl=with_dead_letters(loading, 5))


def arrange_reads_bodies(loading: Loading) -> None:
    loading.execute("grant select on raw.sqs_messages to loader")


SICK = {
    "no-dead-letter-queue": (arrange_no_policy, "dead-letter queue", "set a RedrivePolicy with maxReceiveCount 5"),
    "one-receive-only": (arrange_one_receive, "dead-letter queue", "set 5 in the RedrivePolicy"),
    "dead-letters": (arrange_dead_letters, "dead-letter queue", "holds 2 messages: fix what stopped them"),
    "slow-landing": (arrange_slow_landing, "visibility timeout", "raise VisibilityTimeout to 2 at least"),
    "no-keys": (arrange_no_keys, "masking key", "restore it from a backup; in a new database, run `make migrate`"),
    "no-database": (arrange_no_database, "database", "Check PGHOST, PGPORT"),
    "not-migrated": (arrange_not_migrated, "database", "Run `make migrate` as migrator"),
    "no-grant": (arrange_no_grant, "database", "Grant the role loader to this login"),
    "refused": (arrange_refused, "database", "A made-up batch does not land: CheckViolation 23514"),
    "no-queue": (arrange_no_queue, "queue", "There is no queue no-such-queue"),
    "dead-letter-queue-deleted": (arrange_deleted_dead_letter_queue, "dead-letter queue", "create it, or change that"),
    "reads-bodies": (arrange_reads_bodies, "grants", "load as a login that has the role loader and no other"),
}


@pytest.mark.parametrize("name", SICK)
def test_doctor_says_what_is_wrong_and_what_to_do(loading: Loading, name: str):
    arrange, check, remedy = SICK[name]
    arrange(loading)

    status, out, _ = tell(loading, "doctor", "--flush", "100")

    assert status == 11
    assert any(line.startswith(f"FAIL  {check:<19} ") and remedy in line for line in out.splitlines()), out


@pytest.mark.parametrize(("days", "well"), [(1, True), (3, False)])
def test_doctor_compares_the_oldest_message_with_the_retention(loading: Loading, monkeypatch, days: int, well: bool):
    """CloudWatch knows that age; there is none here."""
    monkeypatch.setattr("loader.doctor.age_of_oldest", lambda queue_name: timedelta(days=days))
    loading.send(1)
    queue = loading.ready().queue

    check = retention(queue, queue.attributes())

    assert check.well is well
    assert ("before messages expire" in check.finding) is not well


def test_redrive_without_a_dead_letter_queue_says_so(loading: Loading):
    status, out, err = tell(loading, "redrive")

    assert (status, out) == (12, "")
    assert err.startswith(f"{loading.queue_name} has no dead-letter queue. Give it a redrive policy")
    assert err.endswith("If it is a dead-letter queue itself, name the queue that its messages came from.\n")


def test_redrive_names_the_queue_whose_dead_letter_queue_was_deleted(loading: Loading):
    dead = with_dead_letters(loading, 1)
    loading.sqs.delete_queue(QueueUrl=dead)

    status, out, err = tell(loading, "redrive")

    assert (status, out) == (6, "")
    assert err == (
        f"There is no queue {dead.rpartition('/')[2]} in us-east-1. The RedrivePolicy of {loading.queue_name} names it:"
        " create it, or change that policy.\n"
    )


@pytest.mark.parametrize("fifo", [False, True], ids=["standard", "fifo"])
@pytest.mark.parametrize("client", ["lean", "boto3"])
def test_redrive_lands_each_dead_letter_once_though_some_had_landed(loading: Loading, client: str, fifo: bool):
    """They had landed, but the loader was not allowed to delete them: after a redrive by SQS, each would land again."""
    attributes = {"FifoQueue": "true"} if fifo else {}
    loading.url = create_queue(loading.sqs, **attributes)
    dead = with_dead_letters(loading, 1, **attributes)

    def send(body: str) -> None:
        loading.send([body], **({"MessageGroupId": "g", "MessageDeduplicationId": body} if fifo else {}))

    send("landed")
    with loading.faulty_sqs(faults.always("DeleteMessageBatch", faults.error("AccessDenied"))):
        assert end(loading.start())[0] == 4
    send("not landed")
    until(lambda: not loading.sqs.receive_message(QueueUrl=loading.url, VisibilityTimeout=0).get("Messages"))
    assert counted(loading, dead) == 2

    status, out, err = tell(loading, "redrive", "--client", client)

    assert (status, err) == (0, "")
    assert out == "received 2: landed 1, duplicates 1, refused 0, returned 0; deleted 2, not deleted 0\n"
    assert counted(loading, dead) == 0
    assert sorted(loading.query("select body, queue from raw.sqs_messages")) == [
        ("landed", loading.queue_name), ("not landed", loading.queue_name),
    ]  # fmt: skip


def test_a_killed_redrive_lands_nothing_twice(loading: Loading):
    """It had committed, and deleted nothing."""
    dead = with_dead_letters(loading, 1)
    ids = loading.send(20)
    receive_until_all_are_dead(loading, loading.url)
    loading.does = "redrive"
    kill = Kill("DeleteMessageBatch")
    with loading.faulty_sqs(kill.at_sqs):
        kill.victim = loading.start("--workers", "1")
        assert end(kill.victim)[0] == KILLED

    status, out, _ = end(loading.start())

    assert (status, out[:40]) == (0, "received 20: landed 0, duplicates 20, re")
    assert counted(loading, dead) == 0
    loading.assert_landed_once(ids)


def test_redrive_leaves_what_postgresql_still_refuses(loading: Loading):
    dead = with_dead_letters(loading, 1)
    loading.execute("alter table raw.sqs_messages add constraint no_two check (body <> 'two')")
    ids = [send_to(loading, dead, body) for body in ("one", "two", "three")]

    status, out, err = tell(loading, "redrive")

    assert status == 10
    assert ": landed 2, duplicates 0, refused " in out
    assert f"PostgreSQL refused a message message_id={ids[1]}" in err
    assert "They stay in the dead-letter queue, or go there in the end." in err
    assert counted(loading, dead) == 1
    assert loading.query("select distinct queue from raw.sqs_messages") == [(loading.queue_name,)]


@pytest.mark.parametrize(("client", "hidden"), [("lean", 0), ("boto3", 1)])
def test_redrive_takes_no_dead_letter_of_another_queue(loading: Loading, client: str, hidden: int):
    """Several queues may share a dead-letter queue. That of another is not ours to read, nor to delete.

    Ours may be among them, and not be had just now: somebody holds it, or it is behind one of theirs in a FIFO group.
    """
    dead = with_dead_letters(loading, 1)
    if hidden:
        send_to(loading, dead, "held by somebody")
        loading.sqs.receive_message(QueueUrl=dead, VisibilityTimeout=60)
    other = create_queue(loading.sqs)
    set_dead_letter_queue(loading.sqs, other, dead, receives=1)
    for number in range(30):
        send_to(loading, other, f"theirs {number}")
    loading.send(["ours"])
    for queue in (other, loading.url):
        receive_until_all_are_dead(loading, queue)
    assert counted(loading, dead) == 31 + hidden

    status, out, err = tell(loading, "redrive", "--client", client, "--workers", "2")

    assert (status, out[:21]) == (0, "received 1: landed 1,")
    assert loading.query("select body from raw.sqs_messages") == [("ours",)]
    assert " left in the dead-letter queue, because they came from other queues messages=30\n" in err
    assert ("drained, but the queue counts more messages" in err) is bool(hidden)
    assert counted(loading, dead) == 30 + hidden


@pytest.mark.parametrize("unknown", ["source", "arn"])
def test_redrive_takes_a_dead_letter_of_which_nobody_knows_where_it_came_from(loading: Loading, unknown: str):
    """One that was sent there by hand, with null for its source; or of an emulator that does not tell queues' ARNs."""
    dead = with_dead_letters(loading, 1)
    if unknown == "source":
        send_to(loading, dead, "ours")
    else:
        loading.send(["ours"])
        receive_until_all_are_dead(loading, loading.url)

    def null(call: faults.Call) -> None:
        status, body = call.forward()
        answer = json.loads(body)
        if "QueueArn" in answer.get("Attributes", {}) and unknown == "arn":
            answer["Attributes"]["QueueArn"] = None
        for each in answer.get("Messages") or ():
            each["Attributes"].setdefault("DeadLetterQueueSourceArn", None)
        call.answer(status, json.dumps(answer).encode())

    with loading.faulty_sqs(null):
        status, out, _ = tell(loading, "redrive")

    assert (status, out[:21]) == (0, "received 1: landed 1,")
    assert counted(loading, dead) == 0


def tell(loading: Loading, *command: str) -> tuple[int, str, str]:
    env = {"LOADER_QUEUE_NAME": loading.queue_name} | loading.env
    result = subprocess.run([sys.executable, "-m", "loader", *command], env=env, capture_output=True, text=True)
    assert "Traceback" not in result.stderr, result.stderr
    return result.returncode, result.stdout, result.stderr


def send_to(loading: Loading, url: str, body: str) -> str:
    return loading.sqs.send_message(QueueUrl=url, MessageBody=body)["MessageId"]


def counted(loading: Loading, url: str) -> int:
    return Queue.backlog(loading.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"])


def with_dead_letters(loading: Loading, receives: int, **attributes: str) -> str:
    dead = create_queue(loading.sqs, **attributes)
    set_dead_letter_queue(loading.sqs, loading.url, dead, receives)
    return dead


def receive_until_all_are_dead(loading: Loading, url: str) -> None:
    while loading.sqs.receive_message(QueueUrl=url, VisibilityTimeout=0, MaxNumberOfMessages=10).get("Messages"):
        pass

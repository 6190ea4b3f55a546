"""Steps of the tests of the loader: a queue to load from, a loader to run, and what must be true at the end."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from loader.aws import connect
from loader.land import Database
from loader.load import Run
from loader.report import Report
from loader.sqs import Queue
from tests import faults


@dataclass
class Loading:
    """A queue with a visibility timeout of a second, an empty database, and the loader's settings for both."""

    database: Any
    sqs: Any
    url: str
    env: dict[str, str]
    client: str = "lean"
    does: str = "load"

    @property
    def queue_name(self) -> str:
        return self.url.rpartition("/")[2]

    def send(self, bodies: int | Iterable[str], **details: Any) -> list[str]:
        """Queues bodies, or so many; returns their message ids."""
        bodies = [json.dumps({"number": n}) for n in range(bodies)] if isinstance(bodies, int) else list(bodies)
        ids = []
        for start in range(0, len(bodies), 10):
            entries = [
                {"Id": str(n), "MessageBody": body, **details} for n, body in enumerate(bodies[start : start + 10])
            ]
            ids += [
                each["MessageId"]
                for each in self.sqs.send_message_batch(QueueUrl=self.url, Entries=entries)["Successful"]
            ]
        return ids

    def command(self, *options: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "loader",
            self.does,
            "--queue-name",
            self.queue_name,
            "--client",
            self.client,
            *options,
        ]

    def start(self, *options: str, **changed: str | None) -> subprocess.Popen:
        """A loader as a process of its own, with these variables changed, or None of them."""
        env = {name: value for name, value in (self.env | changed).items() if value is not None}
        return subprocess.Popen(
            self.command(*options), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    @contextmanager
    def faulty_sqs(self, fault: faults.Fault) -> Iterator[faults.Server]:
        """As long as this lasts, loaders come to SQS through a proxy with this fault."""
        with faults.sqs_proxy(self.env["AWS_ENDPOINT_URL"], fault) as proxy:
            direct, self.env = self.env, self.env | {"AWS_ENDPOINT_URL": proxy.url}
            yield proxy
            self.env = direct

    @contextmanager
    def running(self, **options: Any) -> Iterator[Run]:
        """A loader in this process; waited for at the end."""
        with mock.patch.dict(os.environ, self.env):
            run = self.ready(**options)
            run.start()
            try:
                yield run
            finally:
                run.wait()

    def run(self, **options: Any) -> Report:
        """A loader in this process, until its end; what it counted."""
        with self.running(**options) as run:
            pass
        assert options.get("max_seconds") or not run.stopping.is_set(), "it did not end by itself"
        return run.report

    def ready(self, give_up_after: float = 30, **options: Any) -> Run:
        """A loader in this process, connected and not started."""
        database = Database(give_up_after)
        with mock.patch.dict(os.environ, self.env):
            database.open()
            queue = Queue(connect(8, lean=self.client == "lean"), self.queue_name, give_up_after=give_up_after)
        report = Report()
        queue.say = database.say = report.say
        return Run(queue, database, report, **{"workers": 2, "flush": 50, "max_seconds": 60, **options})

    def through(self, port: int) -> dict[str, str]:
        """What leads a loader through a proxy before PostgreSQL, that has to understand what passes."""
        return {"PGPORT": str(port), "PGSSLMODE": "disable", "PGGSSENCMODE": "disable"}

    @contextmanager
    def slow_database(self, seconds: float) -> Iterator[None]:
        """Every landing takes so long."""
        self.execute(
            f"""
            create function slow() returns trigger language plpgsql as
            $$ begin perform pg_sleep({seconds}); return null; end $$;
            create trigger slow before insert on raw.sqs_messages execute function slow();
            """
        )
        yield
        self.execute("drop trigger slow on raw.sqs_messages")

    def execute(self, sql: str) -> None:
        with closing(self.database.connect("postgres")) as connection, connection, connection.cursor() as cursor:
            cursor.execute(sql)

    def query(self, sql: str, *parameters: Any) -> list[tuple]:
        with closing(self.database.connect("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchall()

    def waiting(self) -> tuple[int, int]:
        """Messages on the queue, and in flight."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        attributes = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)["Attributes"]
        return int(attributes[names[0]]), int(attributes[names[1]])

    def assert_landed_once(self, ids: list[str]) -> None:
        """All are landed, nothing else is, nothing is left on the queue, and the ledger agrees."""
        rows = self.query("select message_id from raw.sqs_messages")
        assert sorted(ids) == sorted(row[0] for row in rows)
        assert self.waiting() == (0, 0)
        ledger = self.query(
            """
            select l.load_id, l.landed, count(m.message_id)
            from raw.loads l full join raw.sqs_messages m using (load_id) group by l.load_id
            """
        )
        assert all(load_id and landed == rows for load_id, landed, rows in ledger), ledger


def a_loading(database: Any, sqs: Any, monkeypatch: Any) -> Iterator[Loading]:
    """The fixture `loading`."""
    monkeypatch.setattr("loader.load.LONG_POLL", 1)  # as long as the queue's visibility timeout: no drain misses any
    url = create_queue(sqs)
    yield Loading(database, sqs, url, database.env("loader_user"))
    sqs.delete_queue(QueueUrl=url)


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def create_queue(sqs: Any, **attributes: str) -> str:
    fifo = ".fifo" if attributes.get("FifoQueue") else ""
    attributes = {"VisibilityTimeout": "1"} | attributes
    return sqs.create_queue(QueueName=f"load-{uuid.uuid4()}{fifo}", Attributes=attributes)["QueueUrl"]


def set_dead_letter_queue(sqs: Any, url: str, dead: str, receives: int) -> None:
    """Of the queue with this URL, by URL; `receives` is how often a message is received before it goes there."""
    arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": receives})
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": policy})


def end(process: subprocess.Popen, number: int | None = None) -> tuple[int, str, str]:
    """Waits for a loader to end, told to by a signal or not: its exit status, stdout and stderr."""
    if number:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    return process.returncode, out, err


KILLED = -signal.SIGKILL

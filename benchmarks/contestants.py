"""One way of loading, measured in a process of its own: `python -m benchmarks.contestants NAME MESSAGES` prints JSON.

Imports, connecting and the start of Python are not counted. PostgreSQL's part is the CPU time of the one process that
serves the connection; the disk's work is not in it.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import boto3
import psycopg2

from benchmarks.sqs_stub import message
from loader.aws import connect
from loader.land import Database
from loader.load import Run
from loader.report import Report
from loader.sqs import Message, Queue

TICK = os.sysconf("SC_CLK_TCK")
Work = Callable[[int], None]


def bare() -> tuple[Work, None]:
    """boto3 as it comes, one thread, nothing written: the floor of everything that is built on it."""
    sqs = boto3.client("sqs")
    url = sqs.get_queue_url(QueueName="login-queue")["QueueUrl"]

    def work(messages: int) -> None:
        while messages > 0:
            answer = sqs.receive_message(
                QueueUrl=url, MaxNumberOfMessages=10, MessageSystemAttributeNames=["All"], MessageAttributeNames=["All"]
            )
            entries = [
                {"Id": str(n), "ReceiptHandle": each["ReceiptHandle"]} for n, each in enumerate(answer["Messages"])
            ]
            sqs.delete_message_batch(QueueUrl=url, Entries=entries)
            messages -= len(entries)

    return work, None


def naive() -> tuple[Work, int]:
    """As people write it: one INSERT, one commit and one delete for each message."""
    sqs, connection = boto3.client("sqs"), psycopg2.connect("")
    url = sqs.get_queue_url(QueueName="login-queue")["QueueUrl"]
    insert = (
        "insert into raw.sqs_messages (message_id, queue, body) values (%s, 'login-queue', %s) on conflict do nothing"
    )

    def work(messages: int) -> None:
        while messages > 0:
            for each in sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]:
                with connection.cursor() as cursor:
                    cursor.execute(insert, (each["MessageId"], each["Body"]))
                connection.commit()
                sqs.delete_message(QueueUrl=url, ReceiptHandle=each["ReceiptHandle"])
                messages -= 1

    return work, connection.info.backend_pid


def loader(workers: int, lean: bool = True) -> tuple[Work, int]:
    database = Database()
    database.open()
    queue = Queue(connect(workers * 2, lean), "login-queue")

    def work(messages: int) -> None:
        report = Report()
        queue.say = database.say = report.say
        run = Run(queue, database, report, workers=workers, max_messages=messages)
        run.start()
        run.wait()
        assert report.counts["deleted"] == messages, report.result()

    return work, database.connection.info.backend_pid


def landing() -> tuple[Work, int]:
    """The database's part of the loader alone, messages being there: COPY, INSERT, ledger, commit, 500 at a time."""
    database = Database()
    database.open()

    def work(messages: int) -> None:
        for start in range(0, messages, 500):
            database.land("login-queue", made[start : start + 500])

    made = [Message.of(message(n)) for n in range(int(sys.argv[2]))]
    return work, database.connection.info.backend_pid


CONTESTANTS: dict[str, Callable[[], tuple[Work, int | None]]] = {
    "bare boto3": bare,
    "naive": naive,
    **{f"loader, {workers} workers": lambda workers=workers: loader(workers) for workers in (1, 4, 16, 32)},
    "loader on boto3, 16 workers": lambda: loader(16, lean=False),
    "landing alone": landing,
}


def cpu_of(pid: int | None) -> float:
    """User and system time of another process, in seconds."""
    if pid is None:
        return 0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def main() -> None:
    name, messages = sys.argv[1], int(sys.argv[2])
    work, backend = CONTESTANTS[name]()
    wall, client, server = time.perf_counter(), time.process_time(), cpu_of(backend)
    work(messages)
    result = {
        "wall": time.perf_counter() - wall,
        "client": time.process_time() - client,
        "postgres": cpu_of(backend) - server,
        "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

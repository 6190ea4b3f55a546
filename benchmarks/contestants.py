"""Ways of loading, each as a command that goes on until it is ended, so that all are measured from outside alike."""

import os
import sys
from collections.abc import Callable

BARE, COPY, INSERT = "bare boto3", "mq-bridge, COPY", "mq-bridge, INSERT"
FIELDS = ("user_id", "app_version", "device_type", "ip", "locale", "device_id")
# What mq-bridge writes to. It knows no message id, so that there is no key, and what comes twice is there twice.
TABLES = f"""
    create schema bench;
    create table bench.copied ({", ".join(f"{name} text" for name in FIELDS)});
    create table bench.inserted (body text);
    grant usage on schema bench to loader;
    grant insert, select on all tables in schema bench to loader
"""


def loader(workers: int, client: str = "lean") -> list[str]:
    return [sys.executable, "-m", "loader", "load", "--workers", str(workers), "--client", client]


def here(name: str, python: str = sys.executable) -> list[str]:
    return [python, "-m", "benchmarks.contestants", name]


def commands(mq_bridge: str | None) -> dict[str, list[str]]:
    """By name. `mq_bridge` is the Python of the environment where mq-bridge is."""
    others = {name: here(name, mq_bridge) for name in (COPY, INSERT)} if mq_bridge else {}
    return {
        BARE: here(BARE),
        "naive": here("naive"),
        **others,
        **{f"loader, {workers} workers": loader(workers) for workers in (1, 4, 16, 32)},
        "loader on boto3, 16 workers": loader(16, "boto3"),
    }


def bare() -> None:
    """boto3 as it comes, one thread, nothing written: the floor of everything that is built on it."""
    import boto3

    sqs = boto3.client("sqs")
    url = sqs.get_queue_url(QueueName="login-queue")["QueueUrl"]
    while True:
        answer = sqs.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=10,
            WaitTimeSeconds=1,
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        if messages := answer.get("Messages"):
            entries = [{"Id": str(n), "ReceiptHandle": each["ReceiptHandle"]} for n, each in enumerate(messages)]
            sqs.delete_message_batch(QueueUrl=url, Entries=entries)


def naive() -> None:
    """As people write it: one INSERT, one commit and one delete for each message."""
    import boto3
    import psycopg2

    sqs, connection = boto3.client("sqs"), psycopg2.connect("")
    url = sqs.get_queue_url(QueueName="login-queue")["QueueUrl"]
    insert = (
        "insert into raw.sqs_messages (message_id, queue, body, load_id)"
        " values (%s, 'login-queue', %s, raw.current_load_id()) on conflict do nothing"
    )
    while True:
        answer = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=1)
        for each in answer.get("Messages", ()):
            with connection.cursor() as cursor:
                cursor.execute(insert, (each["MessageId"], each["Body"]))
            connection.commit()
            sqs.delete_message(QueueUrl=url, ReceiptHandle=each["ReceiptHandle"])


def mq_bridge(output: dict[str, object]) -> None:
    """A consumer written in Rust, from PyPI."""
    from mq_bridge import Route

    database = "postgres://{PGUSER}:{PGPASSWORD}@{PGHOST}:{PGPORT}/{PGDATABASE}".format(**os.environ)
    queue = {
        "queue_url": "http://127.0.0.1/000000000000/login-queue",
        "endpoint_url": os.environ["AWS_ENDPOINT_URL"],
        "region": os.environ["AWS_DEFAULT_REGION"],
        "access_key": os.environ["AWS_ACCESS_KEY_ID"],
        "secret_key": os.environ["AWS_SECRET_ACCESS_KEY"],
        "max_messages": 10,
        "wait_time_seconds": 1,
    }
    route = {
        "input": {"aws": queue},
        "output": {"sqlx": {"url": database} | output},
        "batch_size": 500,
        "concurrency": 8,
    }
    Route.from_config({"routes": {"logins": route}}, "logins").run()


RUN: dict[str, Callable[[], None]] = {
    BARE: bare,
    "naive": naive,
    COPY: lambda: mq_bridge({"table": "bench.copied", "bulk_copy": True, "columns": "auto"}),
    INSERT: lambda: mq_bridge(
        {
            "table": "bench.inserted",
            "insert_query": "insert into bench.inserted (body) values (convert_from($1, 'utf8'))",
        }
    ),
}

if __name__ == "__main__":
    RUN[sys.argv[1]]()

"""What a Citus cluster costs and gives, next to one PostgreSQL of the same programs; where CITUS_BIN names some."""

import os
import time
from collections.abc import Callable
from unittest import mock

from benchmarks.dbt import Bench, Cost, interleaved, show
from loader.land import Database as Landing
from loader.sqs import Message
from local.stack import DATABASE
from tests.cluster import BIN, temporary_cluster
from tests.conftest import Database, migrate, temporary_stack


def compare(messages: int, new: int, rounds: int) -> None:
    """Prints loading, the first build of so many messages, and increments on top of them."""
    settings = {"log_statement": "none"}
    with temporary_stack(postgres_bin=BIN) as server, temporary_cluster(settings) as coordinator:
        migrate(Database(server, DATABASE))
        benches = {
            "one PostgreSQL": Bench(server, DATABASE),
            "Citus: a coordinator, two workers": Bench(coordinator, DATABASE),
        }
        for flush in (500, 5_000):
            show(f"Landing 10,000 messages, {flush:,} at a time", interleaved(rounds, loads(benches, flush)), 10_000)
        for bench in benches.values():
            bench.land(messages)
        show(f"First build of {messages:,} messages", interleaved(1, models(benches)), messages)
        for bench in benches.values():
            bench.sql("vacuum analyze")
        show(f"{new:,} new messages", interleaved(rounds, increments(benches, new)), new)


def loads(benches: dict[str, Bench], flush: int) -> dict[str, Callable[[], Cost]]:
    return {name: lambda bench=bench: through_the_loader(bench, 10_000, flush) for name, bench in benches.items()}


def models(benches: dict[str, Bench]) -> dict[str, Callable[[], Cost]]:
    return {name: lambda bench=bench: bench.models()._replace(cpu=0) for name, bench in benches.items()}


def increments(benches: dict[str, Bench], new: int) -> dict[str, Callable[[], Cost]]:
    def increment(bench: Bench) -> Cost:
        bench.land(new)
        return bench.models()._replace(cpu=0)

    return {name: lambda bench=bench: increment(bench) for name, bench in benches.items()}


def through_the_loader(bench: Bench, messages: int, flush: int) -> Cost:
    """As a loader lands them, without SQS."""
    landing, run = Landing(), time.monotonic_ns()
    body = '{"user_id": "u", "app_version": "1.2", "device_type": "ios", "ip": "192.0.2.1", "device_id": "d"}'
    batches = [
        [Message.of({"MessageId": f"{run}-{start + n}", "ReceiptHandle": "r", "Body": body}) for n in range(flush)]
        for start in range(0, messages, flush)
    ]
    with mock.patch.dict(os.environ, bench.stack.program("loader_user", bench.name)):
        landing.open()
        started = time.perf_counter()
        for batch in batches:
            assert landing.land("login-queue", batch).landed == len(batch)
        wall = time.perf_counter() - started
    landing.disconnect()
    return Cost(wall, 0)

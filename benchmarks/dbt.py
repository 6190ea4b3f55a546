"""What dbt costs, measured here: a full refresh, increments as history grows, its own start, reports,
freshness and a purge."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchmarks import cpu_of
from local.queues import client, ensure_queue
from local.stack import SUPERUSER, Stack

IDLE = 30  # seconds
PROJECT = Path(__file__).parents[1] / "dbt_project"

# (Two statements, because Citus takes no data-modifying WITH.)
LAND = """
insert into raw.sqs_messages (message_id, queue, body, sent_at, load_id)
select
    gen_random_uuid(), 'login-queue',
    json_build_object(
        'user_id', gen_random_uuid(), 'app_version', n %% 9 || '.' || n %% 20, 'device_type', 'android',
        'ip', format('10.%%s.%%s.%%s', n %% 200, n %% 250, n %% 77),
        'locale', case when n %% 10 < 7 then 'RU' end, 'device_id', format('%%s-%%s-%%s', n %% 900, n %% 97, n %% 9999)
    ),
    now() - n * interval '1 millisecond', (select raw.current_load_id())
from generate_series(1, %(n)s) as n;
insert into raw.loads (queue, received, landed, duplicates) values ('login-queue', %(n)s, %(n)s, 0)
"""
REPORTS = ("daily_logins", "shared_devices", "shared_ips", "account_clusters")
# The same parsing and masking, the same columns, key and index, and nothing else.
FLOOR = """
insert into public.floor
select
    user_id::varchar(128), device_type::varchar(32), masked_ip::varchar(256), masked_device_id::varchar(256),
    locale::varchar(32), app_version, (sent_at at time zone 'utc')::date, message_id, mask_key_version, load_id,
    date_trunc('second', sent_at, 'utc'), ip_is_placeholder, device_id_is_placeholder
from masking.base_sqs__messages where reason is null
"""
FLOOR_TABLE = """
create table if not exists public.floor (like analytics.user_logins including all);
truncate public.floor
"""

# What the boundary cannot do without: parse, take each field out once, mask two of them. No verdict, no guard.
PARSED_AND_MASKED = """
explain (analyze, timing off)
select
    message_id, event ->> 'user_id', event ->> 'app_version', event ->> 'device_type', event ->> 'locale',
    masking.token(masking.canonical_address(event ->> 'ip'), (select key from masking.keys where kind = 'ip')),
    masking.token(
        masking.canonical_identifier(event ->> 'device_id'), (select key from masking.keys where kind = 'device_id')
    )
from raw.sqs_messages
cross join lateral unnest(array[masking.parse_json(body)]) as parsed (event)
"""
BODY = '{"user_id": "u", "app_version": "1.0", "device_type": "ios", "ip": "192.0.2.1", "device_id": "d"}'
BOUNDARY = "explain (analyze, timing off) select * from masking.stg_sqs__messages"


class Cost(NamedTuple):
    """Seconds on the clock, and of the server's processors, which are the same on a busy machine."""

    wall: float
    cpu: float


class Bench:
    """One database with messages in it."""

    def __init__(self, stack: Stack, name: str) -> None:
        self.stack, self.name = stack, name
        self.env = stack.program("transformer_user") | {
            "PGDATABASE": name,
            "DBT_TARGET_PATH": str(stack.folder / f"dbt-{name}"),
            "DBT_LOG_PATH": str(stack.folder / f"dbt-{name}"),
        }

    def cpu(self) -> float:
        """Processor seconds of all of the server's processes that have ended, as every session's does with it."""
        time.sleep(0.3)
        server = int((self.stack.folder / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
        return cpu_of(server, of_its_children=True)

    def sql(self, statement: str, **parameters: int) -> Cost:
        """What a statement of the superuser's costs, with the commit."""
        before = self.cpu()
        with closing(self.stack.connect(SUPERUSER, self.name)) as connection:
            connection.autocommit = True
            started = time.perf_counter()
            with connection.cursor() as cursor:
                cursor.execute(statement, parameters or None)
            wall = time.perf_counter() - started
        return Cost(wall, self.cpu() - before)

    def land(self, messages: int) -> None:
        for done in range(0, messages, 100_000):
            self.sql(LAND, n=min(100_000, messages - done))

    def dbt(self, *arguments: str) -> tuple[Cost, float]:
        """What the models cost, from the start of the first to the end of the last; seconds of the whole command."""
        command = [Path(sys.executable).with_name("dbt"), "--quiet", *arguments]
        before, started = self.cpu(), time.perf_counter()
        subprocess.run(command, env=self.env, cwd=PROJECT, check=True)
        wall = time.perf_counter() - started
        results = json.loads(Path(self.env["DBT_TARGET_PATH"], "run_results.json").read_text())["results"]
        steps = [step for each in results if each["unique_id"].startswith("model.") for step in each["timing"]]
        times = [datetime.fromisoformat(step[name]) for step in steps for name in ("started_at", "completed_at")]
        return Cost((max(times) - min(times)).total_seconds(), self.cpu() - before), wall

    def models(self, *arguments: str) -> Cost:
        return self.dbt("run", "--select", "config.materialized:incremental", *arguments)[0]

    def settle(self) -> None:
        self.sql("vacuum analyze")
        self.sql("checkpoint")


@contextmanager
def server(names: list[str]) -> Iterator[dict[str, Bench]]:
    """A PostgreSQL of its own that writes to the disk as in production, with a migrated database for each name."""
    settings = {"fsync": "on", "full_page_writes": "on", "max_wal_size": "8GB", "shared_buffers": "1GB"}
    settings["autovacuum"] = "off"  # here, settle() does its work between the measurements
    stack = Stack(Path(tempfile.mkdtemp(prefix="masked-logins-bench-")), pg_port=0, sqs_port=0, settings=settings)
    try:
        stack.up()
        for name in names:
            with closing(stack.connect(SUPERUSER, "postgres")) as connection:
                connection.autocommit = True
                connection.cursor().execute(f"create database {name} owner migrator")
            env = stack.program("migrator") | {"PGDATABASE": name}
            subprocess.run([sys.executable, "-m", "migrations"], env=env, check=True, stdout=subprocess.DEVNULL)
        yield {name: Bench(stack, name) for name in names}
    finally:
        stack.remove()
        shutil.rmtree(stack.folder, ignore_errors=True)


def interleaved(rounds: int, contestants: dict[str, Callable[[], Cost]]) -> dict[str, list[Cost]]:
    """So that whatever else the machine does falls on all alike."""
    costs = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, measure in contestants.items():
            costs[name].append(measure())
    return costs


def show(title: str, costs: dict[str, list[Cost]], rows: int = 0) -> None:
    """A line for each: medians, and how many times the first one's."""
    print(f"\n{title:<46}{'seconds':>9}{'':>9}{'server CPU':>12}")
    first = None
    for name, each in costs.items():
        median = Cost(*map(statistics.median, zip(*each, strict=True)))
        first = first or median
        rate = f"{rows / median.wall:>10,.0f} rows/s" if rows else ""
        cpu = f"{median.cpu:>12.2f} {median.cpu / first.cpu:>6.2f} x" if first.cpu else ""
        print(f"  {name:<44}{median.wall:>9.2f} {median.wall / first.wall:>6.2f} x{cpu}{rate}", flush=True)


def boundary(bench: Bench, messages: int, rounds: int) -> None:
    bench.land(messages)
    bench.settle()
    contestants = {
        "parsed and masked, without a verdict": lambda: bench.sql(PARSED_AND_MASKED),
        "everything from the boundary": lambda: bench.sql(BOUNDARY),
    }
    show(f"The boundary, {messages:,} messages", interleaved(rounds, contestants), messages)


def full_refresh(bench: Bench, messages: int, rounds: int) -> None:
    bench.models()
    tables = "staging.int_messages__masked, analytics.user_logins, analytics.rejected_messages"

    def floor() -> Cost:
        bench.sql(FLOOR_TABLE)
        bench.settle()
        return bench.sql(FLOOR)

    def first() -> Cost:
        bench.sql(f"drop table {tables} cascade")
        bench.settle()
        return bench.models()

    def same() -> Cost:
        bench.settle()
        return bench.models("--full-refresh")

    def every_row_differs() -> Cost:
        bench.sql("update staging.int_messages__masked set device_type = 'x'")
        bench.sql("update analytics.user_logins set device_type = 'x'")
        bench.sql("vacuum full analyze staging.int_messages__masked, analytics.user_logins")
        bench.settle()
        return bench.models("--full-refresh")

    contestants = {
        "one bare insert … select": floor,
        "first build": first,
        "full refresh, nothing differs": same,
        "full refresh, every row differs": every_row_differs,
    }
    show(f"Full refresh of {messages:,} messages", interleaved(rounds, contestants), messages)


def increments(benches: dict[int, Bench], new: int, rounds: int) -> None:
    for held, bench in benches.items():
        bench.land(held)
        bench.models()
        bench.settle()

    def increment(bench: Bench) -> Cost:
        bench.land(new)
        return bench.models()

    contestants = {f"{held:,} messages there": lambda bench=bench: increment(bench) for held, bench in benches.items()}
    interleaved(1, contestants)  # to warm up
    show(f"{new:,} new messages", interleaved(rounds, contestants))


def overhead(bench: Bench, rounds: int) -> None:
    program = Path(sys.executable).with_name("dbt")

    def wall(*arguments: str) -> Cost:
        return Cost(bench.dbt(*arguments)[1], 0)

    def version() -> Cost:
        started = time.perf_counter()
        subprocess.run([program, "--version"], env=bench.env, cwd=PROJECT, check=True, capture_output=True)
        return Cost(time.perf_counter() - started, 0)

    contestants = {
        "dbt run, nothing new": lambda: wall("run"),
        "of that in models": lambda: bench.dbt("run")[0]._replace(cpu=0),
        "without partial parsing": lambda: wall("--no-partial-parse", "run"),
        "dbt --version": version,
    }
    show("dbt's own", interleaved(rounds, contestants))


def reports(bench: Bench, rounds: int) -> None:
    def read(name: str) -> Cost:
        return bench.sql(f"select count(report::text) from analytics.{name} as report")

    bench.dbt("run")
    contestants = {name: lambda name=name: read(name) for name in REPORTS}
    show("Reading a whole report", interleaved(rounds, contestants))


def freshness(bench: Bench, sent: int) -> None:
    """From sent to user_logins, with a loader and a dbt that stay; then what both cost while nothing arrives."""
    sqs = client(bench.env)
    url = ensure_queue(sqs, "login-queue")
    loader = [sys.executable, "-m", "loader", "load", "--follow", "--queue-name", "login-queue"]
    follow = [sys.executable, PROJECT / "follow.py"]
    quiet = {"cwd": PROJECT.parent, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    loads = subprocess.Popen(loader, env=bench.env | bench.stack.program("loader_user", bench.name), **quiet)
    builds = subprocess.Popen(follow, env=bench.env, **quiet)
    try:
        waits = [published(bench, sqs, url, n) for n in range(sent + 1)][1:]  # the first waits for dbt to start
        before = [cpu_of(process.pid) for process in (loads, builds)]
        time.sleep(IDLE)
        after = [cpu_of(process.pid) for process in (loads, builds)]
    finally:
        for process in (loads, builds):
            process.terminate()
            process.wait()
    median, p95 = statistics.median(waits), statistics.quantiles(waits, n=20)[-1]
    print(f"\nFrom sent to user_logins, both following, {sent} messages one by one")
    print(f"  {'median':<44}{median:>9.2f} s\n  {'95th percentile':<44}{p95:>9.2f} s")
    for name, start, end in zip(("loader", "dbt"), before, after, strict=True):
        print(f"  {f'{name}, while nothing arrives':<44}{100 * (end - start) / IDLE:>9.2f} % of a core")


def published(bench: Bench, sqs: Any, url: str, number: int) -> float:
    """Seconds until a login that is sent now can be read; at some moment between two looks of dbt's."""
    time.sleep(number * 0.618 % 2)
    sent = time.perf_counter()
    message_id = sqs.send_message(QueueUrl=url, MessageBody=BODY)["MessageId"]
    with closing(bench.stack.connect("analyst_user", bench.name)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        while time.perf_counter() - sent < 300:
            cursor.execute("select from analytics.user_logins where message_id = %s", (message_id,))
            if cursor.rowcount:
                return time.perf_counter() - sent
            time.sleep(0.02)
    raise click.ClickException("A message that was sent 300 s ago is not in analytics.user_logins.")


def purge(bench: Bench) -> None:
    bench.sql("update raw.loads set loaded_at = now() - interval '40 days' where load_id <= 2")
    bench.sql("update raw.sqs_messages set loaded_at = now() - interval '40 days' where load_id <= 2")
    bench.sql("vacuum full raw.sqs_messages")
    costs = {
        "privacy.purge": [bench.sql("select privacy.purge(30)")],
        "vacuum": [bench.sql("vacuum raw.sqs_messages")],
    }
    show("Purge of 200,000 messages, once", costs)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--messages", default=1_000_000, show_default=True, help="Of the full refresh; 200,000 or more for a purge."
)
@click.option("--held", default="100000,1000000,5000000", show_default=True, help="Messages there before an increment.")
@click.option("--new", default=10_000, show_default=True, help="Messages of an increment.")
@click.option("--rounds", default=5, show_default=True, help="Of which the medians are.")
def main(messages: int, held: str, new: int, rounds: int) -> None:
    """Print what dbt costs here. With the defaults it takes a quarter of an hour and 15 GB of disk for a while."""
    sizes = [int(each) for each in held.split(",")]
    with server(["refresh", *(f"held_{size}" for size in sizes)]) as benches:
        refresh = benches.pop("refresh")
        boundary(refresh, messages, rounds)
        full_refresh(refresh, messages, max(rounds - 2, 1))
        overhead(refresh, rounds)
        reports(refresh, rounds)
        freshness(refresh, 4 * rounds)
        if messages >= 200_000:
            purge(refresh)
        increments(dict(zip(sizes, benches.values(), strict=True)), new, rounds)
    if os.environ.get("CITUS_BIN"):
        from benchmarks import citus  # which needs the programs

        citus.compare(200_000, new, rounds)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.dbt")

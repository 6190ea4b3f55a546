"""The loader beside a bare boto3 loop and the naive way, interleaved, on this machine: one table for each question."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click

from benchmarks.contestants import CONTESTANTS
from local.stack import SUPERUSER, Stack

REGION_LATENCY = 0.015  # seconds a call takes to SQS in the same region, about
# One thread waits for most of its time then, so that fewer messages tell as much.
FEWER = {"bare boto3": 10, "naive": 100, "loader, 1 workers": 10, "loader, 4 workers": 2}


class Bench:
    def __init__(self, stack: Stack, url: str):
        self.stack = stack
        self.url = url
        self.env = stack.program("loader_user") | {"AWS_ENDPOINT_URL": url}

    def measure(self, name: str, messages: int, latency: float, processes: int = 1) -> dict[str, float]:
        """One run, on an empty table: messages a second, CPU in microseconds a message, memory in MiB."""
        self.empty()
        urllib.request.urlopen(f"{self.url}/?messages={messages}&latency={latency}").close()
        command = [sys.executable, "-m", "benchmarks.contestants", name, str(messages // processes)]
        runs = [subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE) for _ in range(processes)]
        results = [json.loads(run.communicate()[0]) for run in runs]
        return {
            "rate": messages / max(each["wall"] for each in results),
            "client": sum(each["client"] for each in results) / messages * 1e6,
            "postgres": sum(each["postgres"] for each in results) / messages * 1e6,
            "cores": sum(each["client"] + each["postgres"] for each in results) / max(each["wall"] for each in results),
            "rss": max(each["rss"] for each in results),
        }

    def empty(self) -> None:
        with closing(self.stack.connect(SUPERUSER)) as connection, connection, connection.cursor() as cursor:
            cursor.execute("truncate raw.sqs_messages, raw.loads")


@contextmanager
def bench() -> Iterator[Bench]:
    """A PostgreSQL of its own, that writes to the disk as one in production does, and the stub for SQS."""
    stack = Stack(
        Path(tempfile.mkdtemp(prefix="masked-logins-bench-")), pg_port=0, sqs_port=0,
        settings={"fsync": "on", "full_page_writes": "on"},
    )  # fmt: skip
    stub = subprocess.Popen([sys.executable, "-m", "benchmarks.sqs_stub"], stdout=subprocess.PIPE, text=True)
    try:
        stack.up()
        migrate = [sys.executable, "-m", "migrations"]
        subprocess.run(migrate, env=stack.program("migrator"), check=True, stdout=subprocess.DEVNULL)
        yield Bench(stack, stub.stdout.readline().strip())
    finally:
        stub.terminate()
        stub.wait()
        stub.stdout.close()
        stack.remove()
        shutil.rmtree(stack.folder, ignore_errors=True)


HEADS = ("", "messages/s", "x", "client us", "PostgreSQL us", "CPU, x", "cores", "MiB")
FORM = "{:<28} {:>24} {:>6} {:>16} {:>14} {:>7} {:>6} {:>4}"


def show(title: str, rows: dict[str, list[dict[str, float]]]) -> None:
    """A table; what is x of something is so of the first row. CPU time is by message, in microseconds."""
    click.echo(f"\n{title}\n\n{FORM.format(*HEADS)}")
    median = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in rows.items()
    }
    first = next(iter(median.values()))
    for name, runs in rows.items():
        of = median[name]
        click.echo(
            FORM.format(
                name,
                spread(runs, "rate"),
                f"{of['rate'] / first['rate']:.2f}",
                spread(runs, "client"),
                spread(runs, "postgres"),
                f"{(of['client'] + of['postgres']) / (first['client'] + first['postgres']):.2f}",
                f"{of['cores']:.2f}",
                f"{of['rss']:.0f}",
            )
        )


def spread(runs: list[dict[str, float]], key: str) -> str:
    values = [run[key] for run in runs]
    return f"{statistics.median(values):,.0f} ({min(values):,.0f}-{max(values):,.0f})"


@click.command()
@click.option("--messages", default=20_000, show_default=True, help="In the queue, for each run.")
@click.option("--repetitions", default=5, show_default=True, help="Of each, interleaved.")
@click.option("--longest", default=200_000, show_default=True, help="The longest queue.")
def main(messages: int, repetitions: int, longest: int) -> None:
    """Measures the loader: medians, and in brackets the ranges, of the repetitions.

    SQS is played by benchmarks/sqs_stub.py, which takes the same time for any number of messages; its CPU time is not
    counted. PostgreSQL is a real one, with fsync.
    """
    with bench() as here:
        for latency in (0.0, REGION_LATENCY):
            rows = {name: [] for name in CONTESTANTS if not (latency and name == "landing alone")}
            for _ in range(repetitions):
                for name, runs in rows.items():
                    share = FEWER.get(name, 1) if latency else {"naive": 10}.get(name, 1)
                    runs.append(here.measure(name, messages // share, latency))
            show(f"{messages:,} messages, {latency * 1000:.0f} ms added to each call", rows)
        rows = {f"{n:,} in the queue": [] for n in (longest // 100, longest // 10, longest)}
        for _ in range(min(repetitions, 3)):
            for n, runs in zip((longest // 100, longest // 10, longest), rows.values(), strict=True):
                runs.append(here.measure("loader, 16 workers", n, 0))
        show("Is it flat? The loader, 16 workers", rows)
        rows = {"1 loader, 16 workers": [], "2 loaders, 16 workers each": []}
        for _ in range(repetitions):
            for processes, runs in zip((1, 2), rows.values(), strict=True):
                runs.append(here.measure("loader, 16 workers", messages * processes, REGION_LATENCY, processes))
        show(f"Does it scale by number? {REGION_LATENCY * 1000:.0f} ms added", rows)


if __name__ == "__main__":
    os.environ.pop("PGOPTIONS", None)
    main()

"""The loader beside a bare boto3 loop, the naive way and mq-bridge, interleaved: one table for each question."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click

from benchmarks import cpu_of
from benchmarks.contestants import BARE, COPY, INSERT, TABLES, commands
from local.stack import SUPERUSER, Stack

ROOT = Path(__file__).parents[1]
MQ_BRIDGE = "mq-bridge==1.2.0"
REGION_LATENCY = 0.015  # seconds a call takes to SQS in the same region, about
# Who waits for most of the time then, or is slow, tells as much with fewer messages.
FEWER = {BARE: 10, "naive": 100, COPY: 10, INSERT: 10, "loader, 1 workers": 10, "loader, 4 workers": 2}


class Bench:
    def __init__(self, stack: Stack, url: str, commands: dict[str, list[str]]):
        self.stack, self.url, self.commands = stack, url, commands
        self.env = stack.program("loader_user") | {"AWS_ENDPOINT_URL": url, "PYTHONPATH": str(ROOT)}

    def measure(self, name: str, messages: int, latency: float, processes: int = 1) -> dict[str, float]:
        """One run, on empty tables, from the first message asked for to the last one deleted; the start beside it.

        messages a second, CPU in microseconds a message, memory in MiB, the start in seconds.
        """
        self.sql("truncate raw.sqs_messages, raw.loads, bench.copied, bench.inserted")
        self.ask(f"?messages={messages}&latency={latency}")
        began = time.monotonic()
        runs = [
            subprocess.Popen(self.commands[name], env=self.env, stdout=subprocess.DEVNULL, cwd=ROOT)
            for _ in range(processes)
        ]
        try:
            while not self.ask()["first"]:
                self.wait(runs, 0.005)
            before = self.cpu(runs)
            while (told := self.ask())["unfinished"]:
                self.wait(runs, 0.02)
            after = self.cpu(runs)
            rss = max(peak_of(run.pid) for run in runs)
        finally:
            for run in runs:
                run.kill()
                run.wait()
        wall = told["last"] - told["first"]
        client, postgres = (1e6 * (b - a) / messages for a, b in zip(before, after, strict=True))
        return {
            "rate": messages / wall,
            "client": client,
            "postgres": postgres,
            "cores": client * messages / 1e6 / wall,
            "rss": rss,
            "start": told["first"] - began,
            "start_cpu": before[0] / processes,
        }

    def wait(self, runs: list[subprocess.Popen], seconds: float) -> None:
        if ended := [run for run in runs if run.poll() is not None]:
            raise click.ClickException(f"{ended[0].args} ended before the queue was empty")
        time.sleep(seconds)

    def cpu(self, runs: list[subprocess.Popen]) -> tuple[float, float]:
        """Seconds of the clients, and of the processes of PostgreSQL that serve them."""
        with closing(self.stack.connect(SUPERUSER)) as connection, connection.cursor() as cursor:
            cursor.execute("select pid from pg_stat_activity where usename = 'loader_user'")
            backends = [pid for (pid,) in cursor.fetchall()]
        return sum(cpu_of(run.pid) for run in runs), sum(map(cpu_of, backends))

    def ask(self, question: str = "") -> dict[str, float]:
        with urllib.request.urlopen(f"{self.url}/{question}") as answer:
            return json.load(answer)

    def sql(self, statement: str) -> None:
        with closing(self.stack.connect(SUPERUSER)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(statement)


def peak_of(pid: int) -> float:
    """The most memory that a process has had so far, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def environment_of_mq_bridge() -> str | None:
    """The Python of an environment of its own, since the project does not need it; made where there is none."""
    folder = Path(sys.prefix) / "mq-bridge"
    python = folder / "bin" / "python"
    if not python.exists():
        click.echo(f"Installing {MQ_BRIDGE} into {folder} ...", err=True)
        venv.create(folder, with_pip=True)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", MQ_BRIDGE]
    if subprocess.run(install).returncode:
        click.echo("mq-bridge cannot be installed here, and is left out.", err=True)
        return None
    return str(python)


@contextmanager
def bench() -> Iterator[Bench]:
    """A PostgreSQL of its own, that writes to the disk as one in production does, and the stub for SQS."""
    stack = Stack(
        Path(tempfile.mkdtemp(prefix="masked-logins-bench-")), pg_port=0, sqs_port=0,
        settings={"fsync": "on", "full_page_writes": "on"},
    )  # fmt: skip
    stub = subprocess.Popen([sys.executable, "-m", "benchmarks.sqs_stub"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        stack.up()
        migrate = [sys.executable, "-m", "migrations"]
        subprocess.run(migrate, env=stack.program("migrator"), check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        here = Bench(stack, stub.stdout.readline().strip(), commands(environment_of_mq_bridge()))
        here.sql(TABLES)
        yield here
    finally:
        stub.terminate()
        stub.wait()
        stub.stdout.close()
        stack.remove()
        shutil.rmtree(stack.folder, ignore_errors=True)


HEADS = ("", "messages/s", "x", "client us", "x", "PostgreSQL us", "cores", "MiB", "start s", "CPU s")
FORM = "{:<28} {:>24} {:>6} {:>16} {:>6} {:>14} {:>6} {:>4} {:>8} {:>6}"


def show(title: str, rows: dict[str, list[dict[str, float]]]) -> None:
    """A table; what is x of something is so of the first row. CPU time is by message, in microseconds.

    `start` is the time from the command to the first message asked for, and the CPU that it takes.
    """
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
                f"{of['client'] / first['client']:.2f}",
                spread(runs, "postgres"),
                f"{of['cores']:.2f}",
                f"{of['rss']:.0f}",
                f"{of['start']:.2f}",
                f"{of['start_cpu']:.2f}",
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
            rows = {name: [] for name in here.commands}
            for _ in range(repetitions):
                for name, runs in rows.items():
                    share = FEWER.get(name, 1) if latency or name == "naive" else 1
                    runs.append(here.measure(name, messages // share, latency))
            show(f"{messages:,} messages, {latency * 1000:.0f} ms added to each call", rows)
        rows = {f"{n:,} in the queue": [] for n in (longest // 100, longest // 10, longest)}
        for _ in range(min(repetitions, 3)):
            for n, runs in zip((longest // 100, longest // 10, longest), rows.values(), strict=True):
                runs.append(here.measure("loader, 32 workers", n, 0))
        show("Is it flat? The loader, 32 workers", rows)
        rows = {"1 loader, 32 workers": [], "2 loaders, 32 workers each": []}
        for _ in range(repetitions):
            for processes, runs in zip((1, 2), rows.values(), strict=True):
                runs.append(here.measure("loader, 32 workers", messages * processes, REGION_LATENCY, processes))
        show(f"Does it scale by number? {REGION_LATENCY * 1000:.0f} ms added", rows)


if __name__ == "__main__":
    os.environ.pop("PGOPTIONS", None)
    main()

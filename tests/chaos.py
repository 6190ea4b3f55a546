"""make chaos: run the whole pipeline with random faults, several at once, and check what must hold.

With CITUS_BIN it runs on a Citus cluster (tests/cluster.py), and faults hit its nodes and the network between them.

A plan is a list of events with their times. Actions start programs, faults begin and end. The seed determines the whole
plan, so a plan can be saved, replayed and shrunk. (Processes do not run at the same speed each time, so the outcome may
differ.) At the end of each round all faults end, the pipeline has two minutes to settle, and every invariant
(tests/invariants.py) is checked.
"""

import contextlib
import ctypes
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psycopg2

from local import queues
from local.events import generate
from local.processes import command_of, number_in
from local.stack import DATABASE, SUPERUSER, Stack
from privacy.__main__ import erase
from tests import cluster, faults, oracle, signups
from tests.conftest import ROOT, Database, administration, close, copy, forget_the_caller, nodes, temporary_stack
from tests.instructions import checkout, follow
from tests.instructions import run as type_in
from tests.invariants import ALWAYS, BY_DBT, FITTING, Seen, broken, look
from tests.leakcheck import LOUD, Needles, database_places, file_places, secrets_of
from tests.officer import Officer
from tests.pgbouncer import PGBOUNCER, pgbouncer
from tests.pipeline import query

QUEUES = ("login-queue", signups.QUEUE)  # that the declaration knows
ANY_QUEUE = ("login-queue", "login-queue", signups.QUEUE)
ROUND = 40.0  # seconds of faults, after which the pipeline may settle
SETTLES_WITHIN = 120.0  # seconds
NO_DATABASE = 3  # the exit status
LOOKS_ON_A_CLUSTER = 4
EXECUTE = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
REASON = "ticket 77: account closed"
# at: seconds since the pipeline last settled; do: an entry below; lasts: of a fault; its parameters
Event = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    weight: float
    play: Callable[..., Any]
    draws: dict[str, Callable[[random.Random], Any]]
    in_short_runs: bool


ACTIONS: dict[str, Entry] = {}
FAULTS: dict[str, Entry] = {}


def entry(
    table: dict[str, Entry], weight: float, in_short_runs: bool = True, **draws: Callable[[random.Random], Any]
) -> Callable[[Callable], Callable]:
    """Enters a function in a table; the plan draws its parameters."""

    def enter(play: Callable) -> Callable:
        table[play.__name__] = Entry(weight, play, draws, in_short_runs)
        return play

    return enter


def one_of(*choices: Any) -> Callable[[random.Random], Any]:
    return lambda rng: rng.choice(choices)


def between(least: float, most: float) -> Callable[[random.Random], Any]:
    return lambda rng: round(rng.uniform(least, most), 2)


def whole(least: int, most: int) -> Callable[[random.Random], int]:
    return lambda rng: rng.randint(least, most)


# Of all that is there at that moment, which one.
WHICH = between(0, 0.99)
NODE = WHICH  # of a cluster, the coordinator first


def make_plan(seed: int, seconds: float) -> list[Event]:
    """Rounds of events, each ending in `settle`."""
    rng = random.Random(seed)
    rounds = max(1, round(seconds / ROUND))
    length = seconds / rounds
    return [event for _ in range(rounds) for event in make_round(rng, length, seconds >= ROUND)]


def make_round(rng: random.Random, seconds: float, is_long: bool) -> list[Event]:
    start = ["send", "loader", "loader", "send"]
    start = ["pool", *start] if rng.random() < 0.25 else start
    events = [draw(rng, 0.0, ACTIONS[name], name) for name in start]
    # each queue has a loader
    loaders = [event for event in events if event["do"] == "loader"]
    for event, queue in zip(loaders, QUEUES, strict=True):
        event["queue"] = queue
    events.append({"at": 0.0, "do": "start"})
    for table, every in ((ACTIONS, 0.6), (FAULTS, 1.2)):
        entries = {name: each for name, each in table.items() if is_long or each.in_short_runs}
        at = 0.5
        while (at := at + rng.expovariate(1 / every)) < seconds:
            [name] = rng.choices(list(entries), [each.weight for each in entries.values()])
            events.append(draw(rng, at, entries[name], name))
    return [*sorted(events, key=lambda event: event["at"]), {"at": round(seconds, 2), "do": "settle"}]


def draw(rng: random.Random, at: float, entry: Entry, name: str) -> Event:
    return {"at": round(at, 2), "do": name} | {parameter: draw(rng) for parameter, draw in entry.draws.items()}


# What runs: each program a process of its own.


class Forked:
    """A process of the dbt server's (tests/dbt_server.py), to be asked as subprocess.Popen is."""

    def __init__(self, pid: int, output: Path):
        self.pid, self.status = pid, output.with_name(f"{output.name}.status")

    def poll(self) -> int | None:
        if command_of(self.pid):
            return None
        return int(self.status.read_text()) if self.status.exists() else -signal.SIGKILL


class DbtServer:
    def __init__(self, project: Path, environment: dict[str, str]):
        command = [sys.executable, "-m", "tests.dbt_server", str(project)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "ready\n"

    def start(self, arguments: list[str], environment: dict[str, str], output: Path) -> Forked:
        order = {"arguments": arguments, "environment": environment, "output": str(output)}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return Forked(int(self.process.stdout.readline()), output)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@dataclass(frozen=True)
class Step:
    program: str  # as invariants.FITTING names it
    login: str
    arguments: list[str]
    is_secret: bool = False  # what it prints on standard output, which no log keeps


@dataclass(eq=False)
class Job:
    """A program, or several of which each needs that the one before succeeded."""

    name: str
    steps: list[Step]
    then: Callable[[int, str], None]  # with the last status, and what the last program printed
    running: Step | None = None
    process: Any = None
    output: Path | None = None
    was_killed: bool = False
    was_told: bool = False  # to end


# Before Python has set up anything, and when told a second time.
BY_SIGTERM = (-signal.SIGTERM, 128 + signal.SIGTERM)

DBT, OFFICER = "transformer_user", "privacy_officer_user"
MIGRATE = Step("migrations", "migrator", ["-m", "migrations"])
ROTATION = [  # as `make rotate-key` has it
    Step("privacy", "migrator", ["-m", "privacy", "rotate-key"]),
    MIGRATE,
    Step("dbt", DBT, ["run-operation", "carry_tokens_over"]),
    Step("privacy", "migrator", ["-m", "privacy", "close-rotation"]),
]


class Weather:
    """The faults that the two proxies inject at present; each applies to every nth call or step."""

    def __init__(self) -> None:
        self.sqs: list[tuple[str, int, faults.Fault]] = []
        self.postgres: list[tuple[str, int, Callable[[], bool]]] = []
        self.steps: Counter[str] = Counter()

    def at_sqs(self, call: faults.Call) -> None:
        for operation, every, fault in list(self.sqs):
            if operation in ("", call.operation) and call.nth % every == 0:
                return fault(call)
        faults.none(call)

    def at_postgres(self, step: str) -> bool:
        self.steps[step] += 1
        return any(
            fault()
            for wanted, every, fault in list(self.postgres)
            if wanted in ("", step) and self.steps[step] % every == 0
        )


@dataclass
class Server:
    """The PostgreSQL, or one node of a cluster."""

    stack: Stack
    disk: Path | None  # of the tables
    wal_disk: Path | None
    network: faults.Network | None  # between a worker and its coordinator
    is_frozen: bool = False
    log_read: int = 0  # bytes

    @property
    def database(self) -> Database:
        return Database(self.stack, DATABASE)

    def start(self) -> None:
        """But where there is no room for its WAL: then, whoever makes room does it."""
        if not (self.wal_disk and (self.wal_disk / "filler").exists()):
            self.stack.start_postgres()

    def freeze(self) -> None:
        self.is_frozen = True
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)
        self.is_frozen = False

    def signal(self, number: int) -> None:
        """To the server and all its children."""
        server = number_in(self.stack.folder / "postgres" / "data" / "postmaster.pid")
        for pid in (server, *children_of(server)) if server else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def read_log(self) -> bytes:
        """What it has written since it was last read."""
        with (self.stack.folder / "postgres" / "server.log").open("rb") as log:
            log.seek(self.log_read)
            said = log.read()
            self.log_read = log.tell()
        return said


@dataclass
class Place:
    """The servers, the proxies in front of them, and dbt with the project parsed. Each run gets its own database."""

    stack: Stack
    servers: list[Server]
    folder: Path
    root: Path  # of the programs
    weather: Weather
    sqs: Any
    proxies: dict[str, str]  # environment
    officer: Officer
    pool: int | None  # PgBouncer's port
    dbt: DbtServer | None = None

    @property
    def database(self) -> Database:
        return Database(self.stack, DATABASE)

    def env(self, login: str) -> dict[str, str]:
        environment = self.database.env(login) | self.proxies
        return environment | {"PATH": f"{self.officer.folder}{os.pathsep}{environment['PATH']}"}  # gpg

    @property
    def is_cluster(self) -> bool:
        return len(self.servers) > 1

    def server(self, node: float) -> Server:
        return self.servers[int(node * len(self.servers))]

    @contextlib.contextmanager
    def dbt_server(self, project: Path) -> Iterator[DbtServer]:
        environment = self.env(DBT) | {"DBT_TARGET_PATH": str(self.folder / "target"), "DBT_LOG_LEVEL_FILE": "none"}
        environment["PYTHONWARNINGS"] = "ignore"  # of semaphores that a killed run leaves
        with contextlib.closing(DbtServer(project, environment)) as server:
            yield server


def children_of(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


PRISTINE = "pristine"


DISK, WAL_DISK = 96, 512  # MiB
NEW_MOUNTS = 0x20000  # CLONE_NEWNS


def has_mounts_of_its_own() -> bool:
    """From now on what this process mounts, and those that it starts, is gone with them. Only for root."""
    if os.geteuid() != 0 or ctypes.CDLL(None).unshare(NEW_MOUNTS) != 0:
        return False
    return subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True).returncode == 0


def small_disk(stack: Stack, name: str, size: int) -> Path:
    """A disk of so many MiB, with a folder for PostgreSQL."""
    disk = stack._cluster / f"disk-of-{name}"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", disk], check=True)
    (disk / name).mkdir()
    stack._account.own(disk / name)
    return disk


def move_wal(stack: Stack, disk: Path) -> None:
    stack.stop_postgres()
    there = stack.folder / "postgres" / "data" / "pg_wal"
    subprocess.run(["cp", "-a", f"{there}/.", disk / "wal"], check=True)
    shutil.rmtree(there)
    there.symlink_to(disk / "wal")
    stack.start_postgres()


def on_servers(stack: Stack, networks: list[faults.Network], with_small_disks: bool) -> Iterator[Server]:
    for node, network in zip(nodes(stack), [None, *networks], strict=True):
        disk = small_disk(node, "tables", DISK) if with_small_disks else None
        wal_disk = small_disk(node, "wal", WAL_DISK) if with_small_disks else None
        if wal_disk:
            move_wal(node, wal_disk)
        yield Server(node, disk, wal_disk, network)


@contextlib.contextmanager
def temporary_place(with_small_disks: bool = False, with_citus: bool = False) -> Iterator[Place]:
    """Disks of their own for the tables and for the WAL make mounts of this process's own, where that is possible."""
    with_small_disks = with_small_disks and has_mounts_of_its_own()
    settings, networks = LOUD | {"max_wal_size": "96MB", "min_wal_size": "32MB"}, []
    if with_citus:
        settings["auto_explain.log_analyze"] = "off"  # with it, Citus refuses every insert from a select

    @contextlib.contextmanager
    def network(port: int) -> Iterator[int]:
        with faults.serving(faults.Network(port)) as between:
            networks.append(between)
            yield between.server_address[1]

    with contextlib.ExitStack() as opened:
        servers = cluster.temporary_cluster(settings, network) if with_citus else temporary_stack(settings=settings)
        stack = opened.enter_context(servers)
        (folder := stack.folder / "chaos").mkdir()  # which goes with the stack, even where this process is killed
        weather, environment = Weather(), stack.environment(SUPERUSER)
        proxy = opened.enter_context(faults.sqs_proxy(environment["AWS_ENDPOINT_URL"], weather.at_sqs))
        port = opened.enter_context(faults.postgres_proxy(int(environment["PGPORT"]), weather.at_postgres))
        proxies = {"AWS_ENDPOINT_URL": proxy.url, "PGPORT": str(port)}
        proxies |= {"PGSSLMODE": "disable", "PGGSSENCMODE": "disable"}  # the proxy has to understand what passes
        sqs = opened.enter_context(contextlib.closing(queues.client(environment)))
        (folder / "officer").mkdir()
        loader = stack.environment("loader_user") | proxies
        pool = opened.enter_context(pgbouncer(loader)) if PGBOUNCER else None
        root = signups.with_signups(folder / "programs")
        servers = list(on_servers(stack, networks, with_small_disks))
        place = Place(stack, servers, folder, root, weather, sqs, proxies, Officer(folder / "officer"), pool)

        migrate = [sys.executable, *MIGRATE.arguments]
        subprocess.run(migrate, cwd=root, env=place.env(MIGRATE.login), check=True, capture_output=True)
        place.dbt = opened.enter_context(place.dbt_server(root / "dbt_project"))
        first = place.dbt.start(["run"], place.env(DBT), folder / "first.log")
        wait(lambda: first.poll() is not None, 120)
        assert first.poll() == 0, (folder / "first.log").read_text()
        with contextlib.closing(place.database.connect(SUPERUSER)) as connection, connection:
            cursor = connection.cursor()
            cursor.execute("create extension pg_stat_statements schema extensions; set role pipeline_owner")
            cursor.execute("select privacy.seal_with(%s)", (place.officer.public_key.read_text(),))
        for server in servers:
            with administration(server.stack) as cursor:
                close(cursor, DATABASE)
                cursor.execute(f"alter database {DATABASE} rename to {PRISTINE}")
                if server.disk:
                    cursor.execute(f"create tablespace small location '{server.disk / 'tables'}'")
                    cursor.execute(f"alter database {PRISTINE} set tablespace small")
        yield place


class Enough(Exception):
    """The finding that a run was played for."""


class Run:
    """One run of a plan: what is under way, what was sent and asked for, and what came of it."""

    def __init__(
        self, place: Place, history: Path, root: Path | None = None, dbt: DbtServer | None = None, planted="select"
    ):
        """The programs are those of another folder, and dbt another, where a test has put a defect in; or it is SQL."""
        self.place, self.database = place, place.database
        self.root, self.dbt = root or place.root, dbt or place.dbt
        self.planted = planted
        self.history = history
        self.folder, self.secrets = (Path(tempfile.mkdtemp(dir=place.folder)) for _ in range(2))
        self.backup = self.secrets / "backup.dump"
        self.urls: dict[str, str] = {}  # by queue
        self.dead_letters: dict[str, str] = {}
        self.sent: dict[str, str] = {}
        self.queue_of: dict[str, str] = {}
        self.persons: dict[str, None] = {}  # in the order in which they came
        self.asked: set[str] = set()
        self.to_erase: set[str] = set()
        self.settled_load = 0
        self.jobs: list[Job] = []
        self.endings: list[tuple[str, int, str]] = []
        self.revealed: list[tuple[str, str]] = []  # tokens, and what was recovered
        self.is_pooled = False
        self.findings: list[str] = []
        self.seen: Seen | None = None  # when it last settled
        self.under_way = contextlib.ExitStack()
        self.ends: list[tuple[float, contextlib.ExitStack]] = []  # of the faults under way
        self.began = self.round_began = time.monotonic()
        self.dbt_goes_on = True
        self.looked_at = 0.0
        self.is_wanted: Callable[[str], bool] = lambda finding: False
        self.times_seen: Counter[str] = Counter()  # running, that something did not hold which always holds

    def play(self, plan: Iterable[Event], until: Callable[[str], bool] = lambda finding: False) -> list[str]:
        """The broken invariants. Stops after the first round that breaks one, or at once with the finding wanted."""
        self.is_wanted = until
        plan = list(plan)
        if not plan or plan[-1]["do"] != "settle":
            plan.append({"at": 0.0, "do": "settle"})
        with self.set_up():
            try:
                self.play_events(plan)
            except Enough:
                pass
            except Exception as error:  # whatever it is, the history is kept, and the next seed has its turn
                self.write({"raised": traceback.format_exc()})
                self.found([f"raises: {type(error).__name__}"])
        return self.findings

    def play_events(self, plan: list[Event]) -> None:
        for event in plan:
            while time.monotonic() - self.round_began < event["at"]:
                self.tick()
                time.sleep(0.02)
            self.write(event)
            self.do(event)
            if self.findings and event["do"] == "settle":
                return

    @contextlib.contextmanager
    def set_up(self) -> Iterator[None]:
        name, sqs = Database(self.place.stack, PRISTINE), self.place.sqs
        for server in self.place.servers:
            server.read_log()
        with copy(name, DATABASE), self.history.open("a") as self.lines:
            # PostgreSQL writes no WAL for the next 32 numbers of a sequence that was copied with its database: a crash
            # would hand them out again. After a checkpoint it does.
            for server in self.place.servers:
                self.query("checkpoint", on=server)
            self.query(self.planted)
            for queue in QUEUES:
                self.urls[queue], self.dead_letters[queue] = create_queues(sqs, queue)
            self.began = self.round_began = time.monotonic()
            try:
                yield
            finally:
                self.under_way.close()
                for job in self.jobs:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(job.process.pid, signal.SIGKILL)
                for job in self.jobs:
                    wait(lambda process=job.process: process.poll() is not None, 30)
                for url in (*self.urls.values(), *self.dead_letters.values()):
                    sqs.delete_queue(QueueUrl=url)
                if self.place.is_cluster:  # or a worker keeps the database
                    self.query("select recover_prepared_transactions()")

    def do(self, event: Event) -> None:
        parameters = {name: value for name, value in event.items() if name not in ("at", "do", "lasts")}
        if event["do"] in SCENES:
            SCENES[event["do"]](self)
        elif event["do"] in ACTIONS:
            ACTIONS[event["do"]].play(self, **parameters)
        else:
            fault = self.under_way.enter_context(contextlib.ExitStack())
            fault.enter_context(FAULTS[event["do"]].play(self, **parameters))
            self.ends.append((time.monotonic() + event.get("lasts", 0), fault))

    def tick(self) -> None:
        """What happens all the time: faults end, programs end and are followed by others, invariants are looked at."""
        now = time.monotonic()
        for end in [end for end in self.ends if end[0] <= now]:
            self.ends.remove(end)
            end[1].close()
        for job in list(self.jobs):
            if (status := job.process.poll()) is not None:
                self.ended(job, status)
        if self.dbt_goes_on and not self.alive("dbt"):
            self.start("dbt", Step("dbt", DBT, ["run"]))
        if now - self.looked_at > 1:
            self.looked_at = now
            self.look_at_what_always_holds()

    def heal(self) -> None:
        self.under_way.close()
        self.ends = []
        for server in self.place.servers:
            self.query(CALM, on=server)  # what a fault could not end while the server was away

    def stop(self, server: Server, mode: str) -> None:
        self.thaw()
        server.stack.stop_postgres(mode)

    def thaw(self) -> None:
        """All: a server does not stop while one of its sessions waits for another server that is frozen."""
        for server in self.place.servers:
            server.thaw()

    # Programs.

    def start(self, name: str, *steps: Step, then: Callable[[int, str], None] = lambda status, said: None) -> None:
        job = Job(name, list(steps), then)
        self.jobs.append(job)
        self.next_step(job)

    def next_step(self, job: Job) -> None:
        job.running = step = job.steps.pop(0)
        number = len(list(self.folder.glob("*.log")))
        job.output = self.folder / f"{number}-{job.name}.log"
        job.output.touch()
        target = self.folder / f"{number}-target"
        environment = self.place.env(step.login) | {"DBT_TARGET_PATH": str(target), "DBT_LOG_PATH": str(target)}
        if self.is_pooled and step.program == "loader":
            environment["PGPORT"] = str(self.place.pool)
        if step.program == "dbt":
            job.process = self.dbt.start(step.arguments, environment, job.output)
        else:
            printed = self.secrets / job.output.name if step.is_secret else job.output
            with job.output.open("ab") as output, printed.open("ab") as stdout:
                command = [sys.executable, *step.arguments]
                job.process = subprocess.Popen(command, cwd=self.root, env=environment, stdout=stdout, stderr=output)

    def ended(self, job: Job, status: int) -> None:
        program, said = job.running.program, job.output.read_text(errors="replace")
        is_ours = (job.was_killed and status == -signal.SIGKILL) or (job.was_told and status in BY_SIGTERM)
        self.write(
            {"saw": f"{job.name} ({program}) ended with {status}", "said": said.strip()[-300:] if status else ""}
        )
        if not is_ours and program in FITTING:
            self.endings.append((program, status, said))
        if status == 0 and job.steps and not job.was_killed:
            self.next_step(job)
        else:
            self.jobs.remove(job)
            is_shown = job.running.is_secret and status == 0
            job.then(status, (self.secrets / job.output.name).read_text() if is_shown else said)

    def alive(self, name: str) -> list[Job]:
        return [job for job in self.jobs if job.name == name]

    def tell_to_end(self, job: Job) -> None:
        job.was_told = True
        os.kill(job.process.pid, signal.SIGTERM)

    def pick(self, which: float) -> Job | None:
        return self.jobs[int(which * len(self.jobs))] if self.jobs else None

    def finish(self, names: Callable[[Job], bool], seconds: float) -> bool:
        """Waits for some programs to end; whether they did."""
        return self.wait(lambda: not any(map(names, self.jobs)), seconds)

    def wait(self, condition: Callable[[], Any], seconds: float) -> bool:
        def ticked() -> Any:
            self.tick()
            return condition()

        return wait(ticked, seconds)

    # What is seen.

    def write(self, line: dict[str, Any]) -> None:
        now = {} if "at" in line else {"at": round(time.monotonic() - self.round_began, 2)}
        self.lines.write(json.dumps(now | line) + "\n")
        self.lines.flush()

    def found(self, findings: Iterable[str]) -> None:
        for finding in findings:
            if finding not in self.findings:
                self.findings.append(finding)
                self.write({"found": finding})
                if self.is_wanted(finding):
                    raise Enough

    def query(self, sql: str, *parameters: Any, on: Server | None = None) -> list[tuple]:
        """As the superuser, past the proxy. Raises psycopg2.Error where a server is away; waits for nothing."""
        if any(server.is_frozen for server in self.place.servers):
            raise psycopg2.OperationalError("frozen")
        database = on.database if on else self.database
        options = {"connect_timeout": 2, "options": "-c statement_timeout=5s"}
        with contextlib.closing(database.connect(SUPERUSER, **options)) as connection, connection:
            cursor = connection.cursor()
            cursor.execute(sql, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def look_at_what_always_holds(self) -> None:
        """On a cluster no statement sees all nodes at one moment: there, it has to be seen several times running."""
        enough = LOOKS_ON_A_CLUSTER if self.place.is_cluster else 1
        always = {name: sql for name, sql in ALWAYS.items() if not (self.place.is_cluster and name in BY_DBT)}
        with contextlib.suppress(psycopg2.Error):
            numbers = self.query(" union all ".join(f"select '{name}', ({sql})" for name, sql in always.items()))
            for name, number in numbers:
                self.times_seen[name] = self.times_seen[name] + 1 if number else 0
            self.found(f"{name}: {number} at one moment" for name, number in numbers if self.times_seen[name] >= enough)

    def landings(self) -> int:
        return self.query("select count(*) from raw.loads")[0][0]

    def messages_of(self, person: str) -> set[str]:
        """Those in raw that an erasure has to find: of the person, or with the person's id as a text of its own."""
        there = {message_id for (message_id,) in self.query("select message_id from raw.sqs_messages")}
        return {each for each in there & self.sent.keys() if f'"{person}"' in self.sent[each]}

    def waiting(self) -> tuple[int, int, int]:
        """Messages on the queue, in flight, and on the dead-letter queue."""
        there, in_flight = map(sum, zip(*map(self.counters, self.urls.values()), strict=True))
        return there, in_flight, sum(sum(self.counters(url)) for url in self.dead_letters.values())

    def counters(self, url: str) -> tuple[int, int]:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        attributes = self.place.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        return int(attributes[names[0]]), int(attributes[names[1]])


def create_queues(sqs: Any, name: str) -> tuple[str, str]:
    """The queue and its dead-letter queue, where nothing should come: no fault of the servers is a message's."""
    fifo = {"FifoQueue": "true"} if name.endswith(".fifo") else {}
    dead_letters = sqs.create_queue(QueueName=f"dlq-{name}", Attributes=fifo)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=dead_letters, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 1000})
    attributes = {"VisibilityTimeout": "3", "RedrivePolicy": policy} | fifo
    return sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"], dead_letters


def wait(condition: Callable[[], Any], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


# Actions.

UGLY = [
    "\N{PILE OF POO}\N{ZERO WIDTH JOINER}",
    '"\\u0000"',
    "\\N",
    "\\.",
    "a\tb\\tc\r\nd\\n",
    "{",
    "[" * 5000,
    "x" * 200_000,
    "SGVsbG8gd29ybGQsIGhlbGxv",
    '{"user_id": "\\ud800"}',
    "'; drop table raw.sqs_messages; --",
    "null",
    '{"a": 1e999999}',
]


@entry(
    ACTIONS,
    weight=10,
    number=one_of(10, 30, 60),
    events=whole(1, 4),
    ugly=whole(0, len(UGLY) * 2),
    queue=one_of(*ANY_QUEUE),
)
def send(run: Run, number: int, events: int, ugly: int, queue: str = QUEUES[0]) -> None:
    """Bodies of few seeds, so that persons return and bodies are sent again."""
    put(run, [event.body for event in generate(number, events)] + UGLY[ugly : ugly + 1], queue)


def put(run: Run, bodies: Iterable[str], queue: str) -> None:
    for batch in queues.batches(bodies):
        entries = [{"Id": str(n), "MessageBody": body} for n, body in enumerate(batch)]
        if queue.endswith(".fifo"):
            for n, each in enumerate(entries):
                each |= {"MessageGroupId": f"group-{n % 3}", "MessageDeduplicationId": str(uuid.uuid4())}
        answer = run.place.sqs.send_message_batch(QueueUrl=run.urls[queue], Entries=entries)
        assert not answer.get("Failed")
        for each in answer["Successful"]:
            body = batch[int(each["Id"])]
            run.sent[each["MessageId"]], run.queue_of[each["MessageId"]] = body, queue
            if oracle.reason(body) is None:
                run.persons[json.loads(body)["user_id"]] = None


@entry(
    ACTIONS,
    weight=3,
    workers=whole(1, 6),
    flush=one_of(5, 20, 100),
    client=one_of("lean", "lean", "boto3"),
    queue=one_of(*ANY_QUEUE),
)
def loader(run: Run, workers: int, flush: int, client: str, queue: str = QUEUES[0]) -> None:
    if len(run.alive("loader")) < 6:
        start_loader(run, workers, flush, client, queue)


def start_loader(run: Run, workers: int, flush: int, client: str, queue: str, **then: Callable) -> None:
    options = ["--follow", "--give-up-after", "60", "--client", client, "--queue-name", queue]
    options += ["--workers", str(workers), "--flush", str(flush)]
    run.start("loader", Step("loader", "loader_user", ["-m", "loader", "load", *options]), **then)


def keep_loading(run: Run, queue: str) -> None:
    """Starts a loader again that found no database, as its supervisor does: PgBouncer goes on refusing for a while."""

    def again(status: int, said: str) -> None:
        if status == NO_DATABASE:
            keep_loading(run, queue)

    start_loader(run, workers=2, flush=100, client="lean", queue=queue, then=again)


@entry(ACTIONS, weight=1, which=WHICH)
def stop_a_loader(run: Run, which: float) -> None:
    if loaders := run.alive("loader"):
        run.tell_to_end(loaders[int(which * len(loaders))])


@entry(ACTIONS, weight=0.3, in_short_runs=False)
def backup(run: Run) -> None:
    """While everything goes on. The last one that succeeds is restored to the side when all has settled.

    Not that of a cluster, which is restored into one server (tests/test_citus_faults.py): here is no other.
    """
    if not run.place.is_cluster and not run.alive("backup"):
        file = run.secrets / "unfinished.dump"
        dump = [run.place.stack._programs() / "pg_dump", "--format=custom", "-B", "--lock-wait-timeout=20s"]
        step = Step("pg_dump", "backup_user", ["-c", EXECUTE, *map(str, dump), f"--file={file}"])
        run.start("backup", step, then=lambda status, said: status or file.replace(run.backup))


@entry(ACTIONS, weight=1)
def dbt(run: Run) -> None:
    """Beside the one that goes on all the time."""
    if len(run.alive("dbt")) < 2:
        run.start("dbt", Step("dbt", DBT, ["run"]))


@entry(ACTIONS, weight=0.5)
def full_refresh(run: Run) -> None:
    if not run.alive("full_refresh"):
        run.start("full_refresh", Step("dbt", DBT, ["run", "--full-refresh"]))


@entry(ACTIONS, weight=2, which=WHICH)
def forget(run: Run, which: float) -> None:
    """An erasure that succeeds has erased at least what was in raw when it began."""
    if not run.persons:
        return
    person = list(run.persons)[int(which * len(run.persons))]
    try:
        theirs = run.messages_of(person)
    except psycopg2.Error:
        theirs = set()
    run.asked.add(person)
    command = ["-m", "privacy", "forget", "--user-id", person, "--reason", REASON]
    run.start(
        "forget",
        Step("privacy", OFFICER, command),
        then=lambda status, said: run.to_erase.update(theirs) if status == 0 else None,
    )


@entry(ACTIONS, weight=0.5, in_short_runs=False)
def purge(run: Run) -> None:
    """Of what landed before the pipeline last settled: made old enough, because nothing can bring it again."""
    with contextlib.suppress(psycopg2.Error):
        run.query(
            "update raw.loads set loaded_at = loaded_at - interval '60 days' where load_id <= %s", run.settled_load
        )
        run.start("purge", Step("privacy", OFFICER, ["-m", "privacy", "purge"]))


@entry(ACTIONS, weight=0.3, in_short_runs=False)
def migrations(run: Run) -> None:
    if not run.alive("migrations"):
        run.start("migrations", MIGRATE)


@entry(ACTIONS, weight=0.4, in_short_runs=False)
def rotate_key(run: Run) -> None:
    if not run.alive("rotate_key"):
        run.start("rotate_key", *ROTATION)


@entry(ACTIONS, weight=1, which=WHICH)
def reveal(run: Run, which: float) -> None:
    """Where two persons are required, another one approves the request, which is then made good."""
    try:
        tokens = run.query("select token from privacy.originals order by token")
    except psycopg2.Error:
        return
    if not tokens:
        return
    [token] = tokens[int(which * len(tokens))]

    def ask(*arguments: str, then: Callable[[int, str], None] = lambda status, said: None) -> None:
        step = Step("privacy", OFFICER, ["-m", "privacy", "reveal", *arguments], is_secret=True)

        def ended(status: int, said: str) -> None:
            if status == 0:
                run.revealed.append((token, said.strip()))
            then(status, said)

        run.start("reveal", step, then=ended)

    def approve(status: int, said: str) -> None:
        if waiting := re.search(r"request ([0-9]+) waits for the approval", said):
            step = Step("privacy", SUPERUSER, ["-m", "privacy", "approve", waiting[1]])
            run.start("approve", step, then=lambda status, said: status or ask("--request", waiting[1]))

    ask("--token", token, "--reason", REASON, then=approve)


@entry(ACTIONS, weight=0.5, required=one_of("yes", "no"))
def two_persons(run: Run, required: str) -> None:
    run.start("two_persons", Step("privacy", "migrator", ["-m", "privacy", "require-two-persons", required]))


@entry(ACTIONS, weight=1)
def report(run: Run) -> None:
    """What analysts read."""
    if not run.alive("report"):
        pages = run.folder / f"{time.monotonic_ns()}-report"
        run.start("report", Step("report", "analyst_user", ["-m", "report", "--output", str(pages)]))


@entry(ACTIONS, weight=0)
def pool(run: Run) -> None:
    """Loaders of this run come through PgBouncer, where it is installed."""
    run.is_pooled = run.place.pool is not None


# Faults.


@entry(FAULTS, weight=2, which=WHICH)
@contextlib.contextmanager
def kill(run: Run, which: float) -> Iterator[None]:
    if job := run.pick(which):
        run.write({"saw": f"killed {job.name}"})
        job.was_killed = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(job.process.pid, signal.SIGKILL)
    yield


@entry(FAULTS, weight=2, lasts=between(0.5, 6), which=WHICH)
@contextlib.contextmanager
def freeze(run: Run, which: float) -> Iterator[None]:
    if not (job := run.pick(which)):
        yield
        return
    run.write({"saw": f"froze {job.name}"})
    with contextlib.suppress(ProcessLookupError):
        os.kill(job.process.pid, signal.SIGSTOP)
    yield
    with contextlib.suppress(ProcessLookupError):
        os.kill(job.process.pid, signal.SIGCONT)


@entry(FAULTS, weight=1, lasts=between(0, 4), mode=one_of("fast", "immediate"), node=NODE)
@contextlib.contextmanager
def postgres_stopped(run: Run, mode: str, node: float = 0) -> Iterator[None]:
    server = run.place.server(node)
    run.stop(server, mode)
    yield
    server.start()


@entry(FAULTS, weight=1, lasts=between(0.5, 5), node=NODE)
@contextlib.contextmanager
def postgres_frozen(run: Run, node: float = 0) -> Iterator[None]:
    """All its processes: connections are made, and nothing answers."""
    server = run.place.server(node)
    server.freeze()
    yield
    server.thaw()


@entry(FAULTS, weight=1, lasts=between(0.5, 5), which=WHICH)
@contextlib.contextmanager
def network_cut(run: Run, which: float) -> Iterator[None]:
    """Between the coordinator of a cluster and one of its workers."""
    networks = [server.network for server in run.place.servers if server.network]
    if not networks:
        yield
        return
    network = networks[int(which * len(networks))]
    network.cut()
    yield
    network.heal()


CUT = """
    select pg_terminate_backend(pid) from pg_stat_activity
    where usename like %s and pid <> pg_backend_pid() and backend_type = 'client backend'
"""


@entry(FAULTS, weight=1, login=one_of("loader_user", "transformer_user", "%"), node=NODE)
@contextlib.contextmanager
def connections_cut(run: Run, login: str, node: float = 0) -> Iterator[None]:
    with contextlib.suppress(psycopg2.Error):
        run.query(CUT, login, on=run.place.server(node))
    yield


IMPATIENT = ("loader_user", DBT, "migrator", OFFICER, "analyst_user")
ONE_NODE = "set citus.enable_ddl_propagation = off;"  # and no others; without Citus, this setting is nobody's
CALM = f"{ONE_NODE} alter database {DATABASE} connection limit -1;"
CALM += ";".join(f"alter role {login} in database {DATABASE} reset all" for login in IMPATIENT)


@contextlib.contextmanager
def altered(run: Run, sql: str, login: str, server: Server) -> Iterator[None]:
    """Settings are for connections that are made from now on."""
    with contextlib.suppress(psycopg2.Error):
        run.query(ONE_NODE + sql, on=server)
        run.query(CUT, login, on=server)
    yield
    with contextlib.suppress(psycopg2.Error):
        run.query(CALM, on=server)


@entry(FAULTS, weight=1, in_short_runs=False, lasts=between(0.5, 5), left=one_of(0, 64, 1024), node=NODE)
@contextlib.contextmanager
def disk_full(run: Run, left: int, node: float = 0) -> Iterator[None]:
    """But for so many KiB: that of the tables, where they have one of their own."""
    if not (disk := run.place.server(node).disk):
        yield
        return
    with filled(disk, left):
        yield


@entry(FAULTS, weight=0.7, in_short_runs=False, lasts=between(0.5, 4), node=NODE)
@contextlib.contextmanager
def wal_disk_full(run: Run, node: float = 0) -> Iterator[None]:
    """The server ends with a PANIC when it needs another file for its WAL, and does not come up without one."""
    server = run.place.server(node)
    if not server.wal_disk:
        yield
        return
    run.thaw()
    with filled(server.wal_disk):
        with contextlib.suppress(psycopg2.Error):
            for _ in range(8):  # as many as are there already
                run.query("select pg_logical_emit_message(true, '', ''), pg_switch_wal()", on=server)
        yield
    server.start()


@contextlib.contextmanager
def filled(disk: Path, left: int = 0) -> Iterator[None]:
    """But for so many KiB."""
    filler, free = disk / "filler", os.statvfs(disk)
    size = free.f_bavail * free.f_bsize - left * 1024
    with contextlib.suppress(OSError), filler.open("ab") as file:
        os.posix_fallocate(file.fileno(), file.tell(), max(size, 1))
    yield
    filler.unlink(missing_ok=True)


@entry(FAULTS, weight=1, lasts=between(0.5, 4), left=one_of(0, 1, 3), node=NODE)
def out_of_connections(run: Run, left: int, node: float = 0) -> contextlib.AbstractContextManager:
    return altered(run, f"alter database {DATABASE} connection limit {left}", "%", run.place.server(node))


@entry(
    FAULTS,
    weight=2,
    lasts=between(1, 6),
    login=one_of(*IMPATIENT),
    setting=one_of("statement_timeout", "lock_timeout"),
    milliseconds=one_of(20, 200, 1000),
    node=NODE,
)
def timeouts(
    run: Run, login: str, setting: str, milliseconds: int, node: float = 0
) -> contextlib.AbstractContextManager:
    sql = f"alter role {login} in database {DATABASE} set {setting} = {milliseconds}"
    return altered(run, sql, login, run.place.server(node))


@entry(
    FAULTS,
    weight=2,
    lasts=between(0.5, 4),
    step=one_of("COMMIT", "COMMIT done", "COPY", "INSERT done", "SELECT", ""),
    every=whole(1, 8),
)
@contextlib.contextmanager
def lines_cut(run: Run, step: str, every: int) -> Iterator[None]:
    """Connections to PostgreSQL end at this step."""
    yield from during(run.place.weather.postgres, (step, every, lambda: True))


@entry(
    FAULTS,
    weight=2,
    lasts=between(1, 6),
    step=one_of("COMMIT", "INSERT done", ""),
    every=whole(1, 3),
    seconds=between(0.05, 1),
)
@contextlib.contextmanager
def slow_lines(run: Run, step: str, every: int, seconds: float) -> Iterator[None]:
    """Steps on their way to or from PostgreSQL take so long. Where not all of them do, transactions overtake others."""
    yield from during(run.place.weather.postgres, (step, every, lambda: time.sleep(seconds)))


def during(faults: list, fault: Any) -> Iterator[None]:
    faults.append(fault)
    yield
    faults.remove(fault)


def slow(call: faults.Call) -> None:
    time.sleep(1)
    faults.none(call)


def delivered_twice(call: faults.Call) -> None:
    """Whoever asks next gets the same messages."""
    status, body = call.forward()
    for message in json.loads(body).get("Messages") or ():
        request = json.loads(call.request_body)
        again = {"QueueUrl": request["QueueUrl"], "ReceiptHandle": message["ReceiptHandle"], "VisibilityTimeout": 0}
        call.headers.replace_header("X-Amz-Target", "AmazonSQS.ChangeMessageVisibility")
        call.forward(json.dumps(again).encode())
    call.answer(status, body)


# By name: the operation that meets the fault, all of them where it is empty.
SQS_FAULTS: dict[str, tuple[str, faults.Fault]] = {
    "throttled": ("", faults.error("RequestThrottled")),
    "broken": ("", faults.error("InternalFailure", 500)),
    "slow": ("", slow),
    "reset": ("", faults.reset),
    "silent": ("", faults.silence),
    "receives_lost": ("ReceiveMessage", faults.lost_answer),
    "receives_cut_short": ("ReceiveMessage", faults.half_an_answer),
    "delivered_twice": ("ReceiveMessage", delivered_twice),
    "deletes_reset": ("DeleteMessageBatch", faults.reset),
    "deletes_lost": ("DeleteMessageBatch", faults.lost_answer),
    "deletes_fail_in_part": ("DeleteMessageBatch", faults.every_other_delete_fails),
    "deletes_forgotten": ("DeleteMessageBatch", faults.deletes_are_forgotten),
    "not_kept": ("ChangeMessageVisibilityBatch", faults.every_entry_fails_for_now),
}


@entry(FAULTS, weight=5, lasts=between(0.5, 6), fault=one_of(*SQS_FAULTS), every=whole(1, 3))
@contextlib.contextmanager
def sqs(run: Run, fault: str, every: int) -> Iterator[None]:
    operation, play = SQS_FAULTS[fault]
    yield from during(run.place.weather.sqs, (operation, every, play))


# The beginning and the end of a round.


def start(run: Run) -> None:
    """Nothing fails before the pipeline is at work, however slow the machine is."""
    before = run.landings()
    run.wait(lambda: run.landings() > before, SETTLES_WITHIN)
    run.round_began = time.monotonic()


# Who waits for what, where something does not end.
SESSIONS = """
    select pid, usename, state, wait_event_type, wait_event, now() - xact_start, pg_blocking_pids(pid), left(query, 60)
    from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
"""


def settle(run: Run) -> None:
    """All faults end. Loaders have to do what is left, and all else has to end; and then every invariant holds."""
    run.heal()
    run.dbt_goes_on = False
    if not run.finish(lambda job: job.name != "loader", 2 * SETTLES_WITHIN):
        return run.found([f"settles: {job.name} does not end" for job in run.jobs if job.name != "loader"])
    if run.query("select rotation_is_open from raw.pipeline_state") == [(True,)]:
        run.start("rotate_key", *ROTATION)  # as the README says: it goes on where it stopped
        run.finish(lambda job: job.name == "rotate_key", 2 * SETTLES_WITHIN)
    for queue in QUEUES:
        keep_loading(run, queue)

    began = time.monotonic()
    if not run.wait(lambda: not any(run.waiting()[:2]), SETTLES_WITHIN):
        run.found([f"settles: after two minutes, {run.waiting()[:2]} on the queue"])
        run.write({"sessions": [" ".join(map(str, session)) for session in run.query(SESSIONS)]})
        run.write({"loaders": [job.output.read_text(errors="replace")[-1000:] for job in run.alive("loader")]})
    bring_back(run)
    for job in run.alive("loader"):
        run.tell_to_end(job)
    run.finish(lambda job: True, 60)
    erase_again(run)
    last: list[int] = []
    run.start("dbt", Step("dbt", DBT, ["run"]), then=lambda status, said: last.append(status))
    run.finish(lambda job: True, 60)
    status = Step("status", "monitor_user", ["-m", "loader", "status"])
    run.start("status", status, then=lambda status, said: last.append(status))
    if not run.finish(lambda job: True, 60) or last != [0, 0] or time.monotonic() - began > SETTLES_WITHIN:
        run.found([f"settles: not all is well two minutes after the last fault (dbt and status ended with {last})"])

    run.seen = look(run.database, **observed(run))
    run.found(broken(run.seen))
    if run.backup.exists() and not run.findings:
        run.found(f"restored: {wrong}" for wrong in restore_to_the_side(run))
    run.settled_load = run.query("select coalesce(max(load_id), 0) from raw.loads")[0][0]
    run.write({"saw": f"settled after {time.monotonic() - began:.0f} s", "sent": len(run.sent)})
    run.round_began, run.dbt_goes_on, run.endings = time.monotonic(), True, []


def bring_back(run: Run) -> None:
    """What was erased, as a redrive does: under new ids. No row of it may come into raw, or stay there."""
    erased = run.query("select distinct message_id from privacy.erased_messages where body_mac is not null")
    bodies = sorted({(run.queue_of[each], run.sent[each]) for (each,) in erased if each in run.sent})[:20]
    before = set(run.sent)
    for queue, body in bodies:
        put(run, [body], queue)
    run.wait(lambda: not any(run.waiting()[:2]), SETTLES_WITHIN)
    if run.place.is_cluster:  # where dbt's next run removes it
        run.start("dbt", Step("dbt", DBT, ["run"]))
        run.finish(lambda job: job.name != "loader", 60)
    there = run.query(
        "select count(*) from raw.sqs_messages where message_id = any(%s)", list(run.sent.keys() - before)
    )
    run.found(f"erased_persons_are_gone: {number} messages came back" for (number,) in there if number)


def erase_again(run: Run) -> None:
    """Everybody who has asked for it, now that nothing fails and nothing of theirs is on its way."""
    for person in sorted(run.asked):
        with contextlib.closing(run.database.connect(OFFICER)) as connection, connection, connection.cursor() as cursor:
            run.to_erase |= run.messages_of(person)
            erase(cursor, person, REASON)


EMPTY = """
    set session_replication_role = replica;
    do $$ begin
        execute (
            select 'truncate ' || string_agg(format('%I.%I', schemaname, tablename), ', ') from pg_tables
            where schemaname in ('raw', 'masking', 'privacy')
        );
    end $$;
    select true
"""


def restore_to_the_side(run: Run) -> Iterator[str]:
    """As deploy/README.md says, in a database that is new; what does not hold afterwards."""
    programs, folder = run.place.stack._programs(), checkout(Path(tempfile.mkdtemp(dir=run.secrets)))
    for name in signups.PROGRAMS:
        (folder / name).unlink()
        (folder / name).symlink_to(run.root / name)
    follow("back up", folder, run.database, programs)  # of which only the record of erasures is used
    run.backup.replace(folder / "logins.dump")

    def play(*steps: Step) -> None:
        for step in steps:
            command = [".venv/bin/python", *step.arguments]
            if step.program == "dbt":
                project = ["--project-dir", "dbt_project", "--profiles-dir", "dbt_project"]
                command = [".venv/bin/dbt", "--quiet", *step.arguments, *project]
            done = type_in(shlex.join(command), step.login, folder, restored, programs)
            said = (done.stdout + done.stderr)[-600:]
            assert done.returncode == 0, f"{step.program} {step.arguments[-1]} ended with {done.returncode}: {said}"

    with copy(Database(run.place.stack, PRISTINE), "restored") as restored:
        query(restored, EMPTY, login=SUPERUSER)
        for name in ("rows of raw", "rows of dbt"):
            follow(name, folder, restored, programs)
        old = "select from staging.int_messages__masked where mask_key_version < masking.key_version()"
        if query(restored, old, login=SUPERUSER):  # a rotation was open
            play(*ROTATION)
        follow("erase again", folder, restored, programs)
        play(Step("dbt", DBT, ["build"]))

        with contextlib.closing(restored.connect(SUPERUSER)) as connection, connection.cursor() as cursor:
            for name, count in ALWAYS.items():
                cursor.execute(count)
                if number := cursor.fetchone()[0]:
                    yield f"{name}: {number}"
            cursor.execute("select message_id, body from raw.sqs_messages")
            changed = [message_id for message_id, body in cursor.fetchall() if run.sent.get(message_id) != body]
            if changed:
                yield f"{len(changed)} messages are not what was sent"
            persons = Needles({"person": [each.encode() for each in run.asked]})
            places = [place for place in database_places(connection) if "pg_stat" not in place[0]]
            yield from persons.found_in(places)


SCENES = {"start": start, "settle": settle}


def observed(run: Run) -> dict[str, Any]:
    """What the invariants need to know besides the database's tables."""
    places, files = [], list(file_places("output", run.folder))
    for number, server in enumerate(run.place.servers):
        everything = "-c citus.override_table_visibility=off -c search_path=public,extensions"  # shards, and statements
        with contextlib.closing(server.database.connect(SUPERUSER, options=everything)) as connection:
            there = database_places(connection, is_worker=server.network is not None)
            places += [(f"server {number}, {name}", content) for name, content in there]
        files.append((f"server {number}, its log", server.read_log()))
    [raw] = run.query("select array_agg(body) from raw.sqs_messages")
    plain = [("raw.sqs_messages", "\n".join(raw[0] or ()).encode())]
    secrets = secrets_of(run.database, run.sent.values())
    # On a cluster auto_explain has Citus send an EXPLAIN of each query to workers; PRIVACY.md says what comes of it.
    kept = [place for place in places if not (run.place.is_cluster and place[0].endswith("pg_stat_statements"))]
    return {
        "sent": run.sent,
        "to_erase": run.to_erase,
        "may_erase": {each for each, body in run.sent.items() if any(person in body for person in run.asked)},
        "persons_left": Needles({"person": [each.encode() for each in run.asked]}).found_in(kept + plain),
        "leaks": Needles(secrets).found_in(places + files),
        "endings": run.endings,
        "revealed": run.revealed,
        "waiting": run.waiting(),
    }


# The command.


def shrink(plan: list[Event], fails: Callable[[list[Event]], bool]) -> list[Event]:
    """A plan with as few events as still fail: by leaving out halves, quarters, ... and in the end single events."""
    size = len(plan)
    while size := size // 2:
        start = 0
        while start < len(plan) and size <= max(1, len(plan) // 2):
            if fails(shorter := plan[:start] + plan[start + size :]):
                plan = shorter
            else:
                start += size
        if (shorter := without_waits(plan)) != plan and fails(shorter):
            plan = shorter
    return plan


def without_waits(plan: list[Event], longest: float = 2.0) -> list[Event]:
    """What is left out leaves time in which nothing happens."""
    shorter, at, before = [], 0.0, 0.0
    for event in plan:
        is_next_round = event["at"] < before
        at = 0.0 if is_next_round else round(at + min(event["at"] - before, longest), 2)
        before = event["at"]
        shorter.append(event | {"at": at})
    return shorter


def read_plan(history: Path) -> list[Event]:
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    return [line for line in lines if "do" in line]


def write_plan(plan: list[Event], path: Path) -> None:
    path.write_text("".join(json.dumps(event) + "\n" for event in plan))


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--seed", default=1, help="Seed of the plan: what happens, and when.")
@click.option("--minutes", default=1.0, type=click.FloatRange(0.1), help="Minutes of faults, all rounds together.")
@click.option("--seeds", default=1, type=click.IntRange(1), help="Number of runs: this seed and those that follow.")
@click.option("--replay", type=click.Path(path_type=Path, exists=True), help="Replay the plan of this history.")
@click.option(
    "--shrink", "is_shrunk", is_flag=True, help="Shrink a plan that fails: leave out events that it fails without."
)
@click.option(
    "--shrink-minutes",
    default=30.0,
    help="How long at most. The smallest plan so far is on file, and can be shrunk further.",
)
@click.option(
    "--folder", default=".", type=click.Path(path_type=Path, file_okay=False), help="Where histories of failed runs go."
)
def main(
    seed: int, minutes: float, seeds: int, replay: Path | None, is_shrunk: bool, shrink_minutes: float, folder: Path
) -> None:
    """Run the pipeline with random faults, by seed, and check every invariant. Exit status 1 if one is broken.

    On a Citus cluster, if CITUS_BIN names the programs of a PostgreSQL that has Citus.
    """
    forget_the_caller()
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    with temporary_place(with_small_disks=True, with_citus=bool(os.environ.get("CITUS_BIN"))) as place:
        for number in range(seed, seed + (1 if replay else seeds)):
            plan = read_plan(replay) if replay else make_plan(number, minutes * 60)
            name = replay.stem if replay else f"chaos-{number}"
            history = folder / f"{name}{'-again' if replay else ''}.jsonl"
            history.unlink(missing_ok=True)
            began = time.monotonic()
            findings = Run(place, history).play(plan)
            click.echo(f"{name}: {len(plan)} events, {time.monotonic() - began:.0f} s, {len(findings)} findings")
            if not findings:
                history.unlink()
                continue
            failed += 1
            click.echo("\n".join(f"    {finding}" for finding in findings))
            say_how_to_replay(history)
            if is_shrunk:
                deadline = time.monotonic() + shrink_minutes * 60
                shrink_to(history.with_suffix(".shrunk.jsonl"), place, plan, set(map(sort_of, findings)), deadline)
    sys.exit(1 if failed else 0)


def say_how_to_replay(history: Path) -> None:
    click.echo(f"    make chaos ARGS='--replay {history}'")


def shrink_to(file: Path, place: Place, plan: list[Event], broken: set[str], deadline: float) -> None:
    """Writes each smaller plan in which one of these findings shows, as soon as it has been seen to."""

    def fails(plan: list[Event], attempts: int) -> int:
        """In which attempt, a race not being won each time; 0 where in none, or where time is up."""
        for attempt in range(1, attempts + 1):
            if time.monotonic() > deadline:
                return 0
            findings = Run(place, Path(os.devnull)).play(plan, until=lambda finding: sort_of(finding) in broken)
            if broken & set(map(sort_of, findings)):
                write_plan(plan, file)
                click.echo(f"    still fails with {len(plan)} events")
                return attempt
        return 0

    if attempts := fails(plan, attempts=3):
        small = shrink(plan, lambda shorter: fails(shorter, attempts) > 0)
        click.echo(f"    shrunk to {len(small)} events{' when time was up' if time.monotonic() > deadline else ''}:")
        say_how_to_replay(file)
    else:
        click.echo("    not shrunk: it does not fail again")


def sort_of(finding: str) -> str:
    """Without what differs each time: numbers and ids."""
    return re.sub(r"[0-9]+", "", ":".join(finding.split(":")[:2]))


def name_of(finding: str) -> str:
    return finding.partition(":")[0]


if __name__ == "__main__":
    main(prog_name="python -m tests.chaos")

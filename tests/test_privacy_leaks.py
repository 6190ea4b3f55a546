"""The leak gate: a whole run with all logging turned up leaves no plain value and no key but where it belongs."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import pytest

from local.events import generate
from local.processes import free_port
from local.queues import client, ensure_queue, send
from local.stack import DATABASE, HOST, SUPERUSER, Stack
from tests.conftest import ROOT, Database, migrate
from tests.leakcheck import LOUD, Needles, database_places, file_places, forms, secrets_of
from tests.officer import Officer, privacy
from tests.pipeline import query


@dataclass
class Run:
    """What a run leaves behind."""

    database: Database
    folder: Path
    needles: Needles = field(default_factory=lambda: Needles({}))
    erased_person: str = ""
    said: dict[str, bytes] = field(default_factory=dict)

    @property
    def server_log(self) -> Path:
        return self.database.stack.folder / "postgres" / "server.log"

    def places(self) -> Iterator[tuple[str, bytes]]:
        with contextlib.closing(self.database.connect(SUPERUSER)) as connection:
            yield from database_places(connection)
        yield from file_places("the server's log", self.server_log)
        yield from file_places("dbt's target", self.folder / "target")
        yield from file_places("dbt's log", self.folder / "logs")
        yield from self.said.items()

    def program(self, name: str, login: str, *command: str, status: int = 0) -> None:
        """Run a program and keep all it says."""
        env = self.database.env(login)
        env |= {"DBT_TARGET_PATH": str(self.folder / "target"), "DBT_LOG_PATH": str(self.folder / "logs")}
        done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.said[name] = self.said.get(name, b"") + done.stdout
        assert done.returncode == status, f"{name} ended with {done.returncode}"

    def dbt(self, *arguments: str, **options) -> None:
        project = ["--project-dir", "dbt_project", "--profiles-dir", "dbt_project"]
        dbt = str(Path(sys.executable).with_name("dbt"))
        self.program("dbt's output", "transformer_user", dbt, "--debug", *arguments, *project, **options)

    def load(self, messages: int) -> None:
        """Land so many messages, and look at the metrics before the loader is stopped."""
        port = free_port(HOST, 20_000)
        command = [sys.executable, "-m", "loader", "load", "--follow", "--log-format", "json"]
        command += ["--metrics-port", str(port)]
        with (self.folder / "loader.log").open("wb") as log:
            loader = subprocess.Popen(command, cwd=ROOT, env=self.database.env("loader_user"), stdout=log, stderr=log)
        landed = "select coalesce(sum(landed), 0) from raw.loads"
        while query(self.database, landed, login="loader_user") < [(messages,)] and loader.poll() is None:
            time.sleep(0.2)
        self.said["the loader's metrics"] = urlopen(f"http://{HOST}:{port}/metrics").read()
        loader.terminate()
        assert loader.wait(30) == 0
        self.said["the loader's log"] = (self.folder / "loader.log").read_bytes()

    def execute(self, statement: str) -> None:
        connection = self.database.connect(SUPERUSER)
        with contextlib.closing(connection), connection, connection.cursor() as cursor:
            cursor.execute(statement)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[Run]:
    stack = Stack(Path(tempfile.mkdtemp(prefix="masked-logins-leaks-")), pg_port=0, sqs_port=0, settings=LOUD)
    try:
        stack.up()
        yield whole_run(Database(stack, DATABASE), tmp_path_factory.mktemp("run"))
    finally:
        stack.remove()


def whole_run(database: Database, folder: Path) -> Run:
    """Everything that is ever done, with messages of every kind, a failing test and keys both made and imported."""
    bodies = [event.body for event in generate(300, seed=5)]
    bodies.append(json.dumps({"ip": "203.0.113.203", "device_id": "long-" * 9, "x": "x" * 5000}))  # measured for depth
    imported = [os.urandom(32), os.urandom(32)]
    run = Run(database, folder)

    migrate(database)
    run.execute("create extension pg_stat_statements schema extensions")
    lines = "ip {}\ndevice_id {}\n".format(*(key.hex() for key in imported))
    assert privacy(database, "rotate-key", "--import", typed=lines).returncode == 0
    (folder / "officer").mkdir()
    officer = Officer(folder / "officer")
    assert privacy(database, "seal-with", str(officer.public_key)).returncode == 0

    sqs = client(database.env("loader_user"))
    send(sqs, ensure_queue(sqs, "login-queue"), bodies)
    run.load(len(bodies))

    run.dbt("run")
    first = "(select min(message_id) from analytics.user_logins)"
    spoil = f"update analytics.user_logins set masked_ip = {{}} where message_id = {first}"
    run.execute(spoil.format("'!' || masked_ip"))
    run.dbt("test", "--store-failures", status=1)
    run.execute(spoil.format("substr(masked_ip, 2)"))

    [(token, user_id)] = query(database, "select masked_ip, user_id from analytics.user_logins limit 1")
    assert officer.reveal(database, token).startswith("ip ")
    assert privacy(database, "rotate-key").returncode == 0
    run.program("the migration's output", "migrator", sys.executable, "-m", "migrations")
    run.dbt("run-operation", "carry_tokens_over")
    assert privacy(database, "close-rotation").returncode == 0
    forget = ["forget", "--user-id", user_id, "--reason", "ticket 77: account closed"]
    assert privacy(database, *forget, login="privacy_officer_user").returncode == 0
    run.dbt("run")
    run.dbt("docs", "generate", "--static")
    run.execute("analyze")

    run.needles = Needles(secrets_of(database, bodies))
    run.erased_person = user_id
    return run


def test_no_plain_value_and_no_key_is_anywhere_else(run):
    places = list(run.places())
    assert run.needles.found_in(places) == []
    assert len(run.needles.names) > 1000
    looked_at = {name for name, content in places if content}
    assert looked_at.issuperset(
        {
            *("analytics.user_logins", "staging.int_messages__masked", "privacy.originals", "privacy.audit"),
            *("masking.stg_sqs__messages", "raw.loads", "extensions.pg_stat_statements", "definitions"),
            *("pg_stats", "pg_statistic", "pg_description", "pg_proc", "pg_views", "pg_stat_activity"),
            *("dbt's target manifest.json", "dbt's target run_results.json", "dbt's target catalog.json"),
            *("dbt's target static_index.html", "dbt's target partial_parse.msgpack"),
            *("the server's log server.log", "dbt's log dbt.log", "dbt's output", "the migration's output"),
            *("the loader's log", "the loader's metrics"),
        }
    )
    assert any(name.startswith("staging.is_token_") for name in looked_at), "no failed test was stored"


def test_an_erased_person_is_not_even_in_the_statement_that_erased_them(run):
    person = Needles({"erased person": [run.erased_person.encode()]})
    assert person.found_in(run.places()) == []
    assert person.found_in([("here", f"forget_user('{run.erased_person}')".encode())]) == ["here: erased person, plain"]


# Where a leak is planted, how, and the place in which the gate must find it.
PLANTED = [
    ("create table analytics.leak as select {} as x", "analytics.leak"),
    ("create table staging.leak as select convert_to({}, 'UTF8') as x", "staging.leak"),  # bytea, shown in hex
    ("create view privacy.leak as select {} as x", "pg_views"),
    ("create function privacy.leak() returns text language sql as $$ select {} $$", "pg_proc"),
    ("comment on schema analytics is {}", "pg_description"),
    ("create table masking.leak as select {} as x from generate_series(1, 9); analyze masking.leak", "pg_stats"),
    ("create table staging.leaky (x text default {})", "definitions"),
    ("create function privacy.leak(integer) returns text language sql return {}", "definitions"),
    ("do $$ begin perform {}; end $$", "extensions.pg_stat_statements"),
    ("alter role analyst_user set planted.leak = {}", "pg_db_role_setting"),
    ("select lo_from_bytea(0, convert_to({}, 'UTF8'))", "pg_largeobject"),
    ("select {}", "the server's log server.log"),
]


def test_a_planted_leak_is_found_in_every_place_and_form_and_is_not_shown(run):
    """The last test here: it spoils the run."""
    ip = sorted(value for value, name in run.needles.names.items() if name == "ip, plain")[-1]
    key = next(value for value, name in run.needles.names.items() if name == "key, plain")
    planted = [*forms(ip, is_key=False), *forms(key, is_key=True)]
    text = b" ".join(form for _, form in planted if form != key).decode()
    for statement, _ in PLANTED:
        run.execute(statement.format(f"'{text}'"))
    files = ["dbt's target static_index.html", "dbt's target manifest.json", "dbt's log dbt.log"]
    for name in ("target/static_index.html", "target/manifest.json", "logs/dbt.log"):
        with (run.folder / name).open("ab") as file:
            file.write(text.encode() + key)
    for said in run.said:
        run.said[said] += text.encode()

    report = run.needles.found_in(run.places())

    everywhere = ["ip, plain", "ip, hex", "ip, base64", "ip, sha256", "ip, md5", "key, hex", "key, base64"]
    in_hex = ["ip, hex"]  # of a bytea, which is shown in hex, all that can be seen is the plain value
    expected = {
        f"{place}: {name}"
        for place in [*(place for _, place in PLANTED), *files, *run.said]
        for name in (in_hex if place in ("staging.leak", "pg_largeobject") else everywhere)
    }
    assert expected - set(report) == set()
    assert {f"{file}: key, plain" for file in files} <= set(report)
    assert not any(needle.decode("latin-1") in line for line in report for needle in run.needles.names)

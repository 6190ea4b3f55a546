"""`make demo`: one screen that adds up, nothing plain on it, and no harm done by running it again."""

import json
import os
import re
import subprocess
import sys
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path

import pytest

from loader.land import Database
from local.demo import today
from local.history import PREFIX, as_received, history
from tests.conftest import run_migrations, temporary_stack
from tests.instructions import blocks

ROOT = Path(__file__).parents[1]
COUNT = 200


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """The environment of somebody whose shell is set up for other servers, and whose local stack is empty."""
    folder = tmp_path_factory.mktemp("demo")
    traces = {"DBT_TARGET_PATH": str(folder / "target"), "DBT_LOG_PATH": str(folder / "logs")}
    elsewhere = {
        "PGHOST": "db.example.com",
        "PGSSLMODE": "verify-full",
        "AWS_PROFILE": "work",
        "HTTP_PROXY": "http://::1:9",
    }
    with temporary_stack() as stack:
        yield os.environ | traces | elsewhere | {"LOCAL_STATE": str(stack.folder)}


@pytest.fixture(scope="module")
def screens(shell):
    """What the demo shows the first time, and the second."""
    return [
        subprocess.run(
            [sys.executable, "-m", "local", "demo", "--count", str(COUNT)],
            cwd=ROOT,
            env=shell,
            capture_output=True,
            text=True,
        )
        for _ in range(2)
    ]


def figures(screen):
    """The numbers of a screen, by the word before them."""
    found = re.findall(r"^(\w+) +([\d,]+) {3}", screen.stdout, re.MULTILINE)
    return {word: int(number.replace(",", "")) for word, number in found}


def test_the_screen_adds_up(screens):
    first, _ = screens
    assert first.returncode == 0, first.stderr
    shown = figures(first)
    assert shown["History"] > 5000
    assert shown["Received"] == shown["Landed"] == shown["History"] + COUNT == shown["Accepted"] + shown["Rejected"]
    landed, accepted, rejected = (f"{shown[name]:,}" for name in ("Landed", "Accepted", "Rejected"))
    balance = f"Balance    {landed} = {landed} + 0, and {landed} = {accepted} + {rejected} + 0: nothing is lost"
    assert balance in first.stdout


def test_it_says_what_was_made_up_and_has_no_queue_behind_it(screens):
    assert "of these: made up for the 42 days before, landed by the loader's code without a queue" in screens[0].stdout


def test_each_reason_is_shown(screens):
    shown = re.findall(r"\d+ ([a-z_]+)(?=\s)", screens[0].stdout)
    assert {event.reason for event in today(COUNT, seed=1)} - {None} <= set(shown)


def test_postgres_own_refusal_is_shown(screens):
    assert screens[0].stdout.endswith("    ERROR:  permission denied for schema raw\n")


def test_run_again_it_adds_messages_and_says_which(screens):
    first, second = screens
    assert second.returncode == 0, second.stderr
    assert "200 messages sent to login-queue just now, seed 1" in first.stdout
    assert "200 messages sent to login-queue just now, seed 2" in second.stdout
    assert figures(second)["Landed"] == figures(first)["Landed"] + COUNT
    assert figures(second)["History"] == figures(first)["History"]


def test_a_history_of_which_a_part_was_landed_is_completed(tmp_path, monkeypatch):
    """Ctrl-C in the middle of the first demo."""
    traces = {"DBT_TARGET_PATH": str(tmp_path / "target"), "DBT_LOG_PATH": str(tmp_path / "logs")}
    with temporary_stack() as stack:
        assert run_migrations(stack.program("migrator")).returncode == 0
        for name, value in stack.program("loader_user").items():
            monkeypatch.setenv(name, value)
        part = islice(history(datetime.now(timezone.utc)), 100)
        database = Database()
        database.open()
        database.land("login-queue", [as_received(f"{PREFIX}{n:06}", *sent) for n, sent in enumerate(part)])
        database.disconnect()
        done = subprocess.run(
            [sys.executable, "-m", "local", "demo", "--count", "20"],
            cwd=ROOT,
            env=os.environ | traces | {"LOCAL_STATE": str(stack.folder)},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert figures(done)["History"] > 5000


def test_nothing_plain_is_shown(screens):
    said = "".join(screen.stdout + screen.stderr for screen in screens)
    for event in [*today(COUNT, seed=1), *today(COUNT, seed=2)]:
        if event.reason is None:
            login = json.loads(event.body)
            assert login["device_id"].strip() not in said
            assert login["ip"] not in said or login["ip"] in ("127.0.0.1", "::1")


# What people type after the demo, from the project's folder; in a shell of their own, `make` makes .venv for it.
in_venv = pytest.mark.skipif(sys.prefix != str(ROOT / ".venv"), reason="`make` works in .venv, these tests elsewhere")


def typed(shell, *lines):
    environment = {name: value for name, value in shell.items() if not name.startswith(("PG", "AWS_"))}
    script = "set -e\n" + "\n".join(lines)
    return subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)


@in_venv
def test_what_the_screen_says_to_type_works(shell, screens):
    lines = re.findall(r"^    (eval .*|psql .*)$", screens[0].stdout, re.MULTILINE)
    assert len(lines) == 3
    said = typed(shell, *lines)
    assert "(5 rows)" in said.stdout
    assert max(map(len, said.stdout.splitlines())) <= 80
    assert said.stderr.startswith("ERROR:  permission denied for schema raw\n")


@in_venv
def test_what_the_readme_says_to_type_works(shell, screens):
    shown = [block.splitlines() for block in blocks(ROOT / "README.md")]
    analyst, transformer = [lines for lines in shown if lines[0].startswith("    eval")]
    *psql, make = analyst
    said = typed(shell, *psql)
    assert "(5 rows)" in said.stdout
    assert max(map(len, said.stdout.splitlines())) <= 80
    assert make.split()[:2] == ["make", "report"]  # test_what_people_type_next_works, into a folder of its own
    assert said.stderr.startswith("ERROR:  permission denied for schema raw\n")

    said = typed(shell, *transformer)
    assert said.returncode == 0, said.stdout
    assert said.stdout.count("Completed successfully") == 2


@in_venv
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param("make load", "received 0: landed 0", id="load"),
        pytest.param("make status", "All is well.", id="status"),
        pytest.param("make doctor", "masking.keys is not empty", id="doctor"),
        pytest.param("make report ARGS=\"--output '$LOCAL_STATE/report'\"", "report/index.html", id="report"),
        pytest.param('eval "$(make -s env AS=transformer_user)"; cd dbt_project && dbt --version', "1.11", id="dbt"),
        pytest.param('eval "$(make -s env AS=loader_user)"; python -m loader load', "received 0", id="loader"),
    ],
)
def test_what_people_type_next_works(shell, screens, line, expected):
    said = typed(shell, line)
    assert said.returncode == 0, said.stderr
    assert expected in said.stdout

"""`make demo`: one screen that adds up, nothing plain on it, and no harm done by running it again."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.events import generate
from tests.conftest import temporary_stack

ROOT = Path(__file__).parents[1]
COUNT = 200


@pytest.fixture(scope="module")
def screens(tmp_path_factory):
    """What the demo shows the first time, and the second, to somebody whose shell is set up for other servers."""
    folder = tmp_path_factory.mktemp("demo")
    traces = {"DBT_TARGET_PATH": str(folder / "target"), "DBT_LOG_PATH": str(folder / "logs")}
    elsewhere = {
        "PGHOST": "db.example.com",
        "PGSSLMODE": "verify-full",
        "AWS_PROFILE": "work",
        "HTTP_PROXY": "http://::1:9",
    }
    with temporary_stack() as stack:
        yield [
            subprocess.run(
                [sys.executable, "-m", "deploy.local", "demo", "--count", str(COUNT)],
                cwd=ROOT,
                env=os.environ | traces | elsewhere | {"LOCAL_STATE": str(stack.folder)},
                capture_output=True,
                text=True,
            )
            for _ in range(2)
        ]


def test_the_screen_adds_up(screens):
    first, _ = screens
    assert first.returncode == 0, first.stderr
    rejected = sum(event.reason is not None for event in generate(COUNT, seed=1))
    accepted = COUNT - rejected
    assert f"Balance    200 = 200 + 0, and 200 = {accepted} + {rejected}: nothing is lost" in first.stdout


def test_each_reason_is_shown(screens):
    shown = re.findall(r"\d+ ([a-z_]+)(?=\s)", screens[0].stdout)
    assert {event.reason for event in generate(COUNT, seed=1)} - {None} <= set(shown)


def test_postgres_own_refusal_is_shown(screens):
    assert screens[0].stdout.endswith("    ERROR:  permission denied for schema raw\n")


def test_run_again_it_adds_messages_and_says_which(screens):
    first, second = screens
    assert second.returncode == 0, second.stderr
    assert "200 messages sent to login-queue just now, seed 1" in first.stdout
    assert "200 messages sent to login-queue just now, seed 2" in second.stdout
    assert "Balance    400 = 400 + 0" in second.stdout


def test_nothing_plain_is_shown(screens):
    said = "".join(screen.stdout + screen.stderr for screen in screens)
    for event in [*generate(COUNT, seed=1), *generate(COUNT, seed=2)]:
        if event.reason is None:
            login = json.loads(event.body)
            assert login["device_id"].strip() not in said
            assert login["ip"] not in said or login["ip"] in ("127.0.0.1", "::1")

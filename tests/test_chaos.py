"""Chaos of a few fixed seeds finds nothing; and it can find: each invariant is seen to fail, planted defects too."""

import contextlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests import chaos
from tests.conftest import ROOT
from tests.invariants import ALWAYS, INVARIANTS, Seen, broken
from tests.pipeline import land

SECONDS = 8
SEEDS = (1, 2)
LOGIN = '{{"user_id": "u{}", "app_version": "1.0", "device_type": "ios", "ip": "192.0.2.1", "device_id": "d"}}'


@pytest.fixture(scope="module")
def place():
    with chaos.temporary_place() as place:
        yield place


def play(place, seed, history=Path(os.devnull), at_once=False, **options) -> chaos.Run:
    run = chaos.Run(place, history, **options)
    run.play(chaos.make_plan(seed, SECONDS), at_once)
    return run


@pytest.fixture(scope="module")
def runs(place) -> dict[int, chaos.Run]:
    return {}


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_fails_at_random_and_every_invariant_holds(place, runs, seed, tmp_path):
    runs[seed] = play(place, seed, tmp_path / "history.jsonl")

    assert runs[seed].findings == []
    assert len(runs[seed].sent) > 100
    # what can be replayed
    assert chaos.read_plan(tmp_path / "history.jsonl") == chaos.make_plan(seed, SECONDS)


@pytest.fixture(scope="module")
def seen(place, runs) -> Seen:
    """After a run in which somebody was erased."""
    run = runs.get(SEEDS[0]) or play(place, SEEDS[0])
    assert run.seen.tombstones
    return run.seen


def without_first(rows):
    return rows[1:]


def changed_first(rows, **values):
    return [rows[0] | values, *rows[1:]]


def ended(*ending):
    return lambda seen: {"endings": [ending]}


# By invariant, what is seen instead of what is there.
FALSIFIED = {
    "what_is_sent_has_landed": {
        "lost": lambda seen: {"sent": seen.sent | {"lost": "{}"}},
        "never-sent": lambda seen: {"sent": dict(list(seen.sent.items())[1:])},
        "twice": lambda seen: {"raw": [*seen.raw, seen.raw[0]]},
        "purged": lambda seen: {"purged": seen.purged + 1},
    },
    "raw_is_what_was_sent": {"a-blank": lambda seen: {"raw": changed_first(seen.raw, body=seen.raw[0]["body"] + " ")}},
    "ledger_and_raw_agree": {
        "unknown-load": lambda seen: {"raw": changed_first(seen.raw, load_id=10**9)},
        "less": lambda seen: {"raw": without_first(seen.raw)},
        "more": lambda seen: {"raw": [*seen.raw, seen.raw[0]]},
        "sum": lambda seen: {"loads": changed_first(seen.loads, received=10**9)},
    },
    "each_message_has_one_outcome": {
        "not-taken": lambda seen: {"taken": without_first(seen.taken)},
        "not-published": lambda seen: {"logins": without_first(seen.logins)},
        "both": lambda seen: {"rejected": [*seen.rejected, seen.logins[0] | {"reason": "not_json"}]},
    },
    "published_is_what_python_says": {
        "accepted": lambda seen: {
            "logins": [*seen.logins, seen.logins[0] | {"message_id": seen.rejected[0]["message_id"]}],
        },
        "reason": lambda seen: {"rejected": changed_first(seen.rejected, reason="because")},
        "column": lambda seen: {"logins": changed_first(seen.logins, app_version=0)},
        "token": lambda seen: {"keys": seen.keys | {"ip": [b"k" * 32]}},
    },
    "one_key_version_a_table": {"mixed": lambda seen: {"key_versions": {"analytics": [1, 2]}}},
    "erased_persons_are_gone": {
        "not-erased": lambda seen: {"to_erase": {*seen.to_erase, seen.raw[0]["message_id"]}},
        "too-much": lambda seen: {"may_erase": set()},
        "in-raw": lambda seen: {"raw": [*seen.raw, seen.tombstones[0] | {"body": ""}]},
        "published": lambda seen: {"rejected": [*seen.rejected, seen.tombstones[0] | {"reason": ""}]},
        "same-body": lambda seen: {
            "raw": changed_first(seen.raw, body=seen.sent[seen.tombstones[0]["message_id"]]),
        },
        "left": lambda seen: {"persons_left": ["pg_stats: person, plain"]},
    },
    "originals_are_those_of_what_is_published": {
        "missing": lambda seen: {"originals": set(list(seen.originals)[1:])},
        "left": lambda seen: {"originals": {*seen.originals, ("ip", "0" * 64)}},
    },
    "nothing_plain_is_anywhere_else": {"leak": lambda seen: {"leaks": ["output 1-loader.log: ip, plain"]}},
    "programs_end_with_a_status_and_a_sentence": {
        "status": ended("loader", 16, "Refused by PostgreSQL: no."),
        "silent": ended("loader", 3, ""),
        "traceback": ended("dbt", 1, "Traceback (most recent call last):\nError: no."),
        "signal": ended("privacy", -11, ""),
    },
    "the_queues_are_empty": {
        "waiting": lambda seen: {"waiting": (1, 0, 0)},
        "in-flight": lambda seen: {"waiting": (0, 1, 0)},
        "dead-letters": lambda seen: {"waiting": (0, 0, 1)},
    },
}


def test_each_invariant_has_been_seen_to_fail():
    assert [each.__name__ for each in INVARIANTS] == list(FALSIFIED)


@pytest.mark.parametrize(
    ("name", "falsify"),
    [
        pytest.param(name, falsify, id=f"{name}-{case}")
        for name, cases in FALSIFIED.items()
        for case, falsify in cases.items()
    ],
)
def test_an_invariant_that_is_broken_is_found(seen, name, falsify):
    assert broken(seen) == []
    assert name in set(map(chaos.name_of, broken(replace(seen, **falsify(seen)))))


# What breaks that which always holds.
SPOILED = {
    "the_cursor_skips_nothing": "delete from staging.int_messages__masked where message_id = 'm0'",
    "one_key_version_a_table": "update analytics.user_logins set mask_key_version = 2 where message_id = 'm0'",
    "erased_persons_are_gone": """
        insert into privacy.erased_messages (message_id, load_id, erasure)
        select 'm0', 1, id from privacy.audit limit 1
    """,
    "each_message_has_one_outcome": """
        insert into analytics.rejected_messages (message_id, queue, load_id, reason, body_bytes)
        values ('m0', 'login-queue', 1, 'not_json', 1)
    """,
}


def test_what_always_holds_is_looked_at_all_the_time(place):
    assert SPOILED.keys() == ALWAYS.keys()
    run = chaos.Run(place, Path(os.devnull))
    with run.set_up():
        land(run.database, [LOGIN.format(n) for n in range(2)])
        run.tick()
        run.dbt_goes_on = False
        assert run.finish(lambda job: True, 60)
        run.look_at_what_always_holds()
        assert run.findings == []
        for name, sql in SPOILED.items():
            run.query(sql)
            run.look_at_what_always_holds()
            assert chaos.name_of(run.findings[-1]) == name


# Defects of the kind that such pipelines have, each in a copy of the programs.


@pytest.fixture
def programs(tmp_path) -> Path:
    for name in ("dbt_project", "loader", "migrations", "privacy"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("target", "logs", "__pycache__"))
    return tmp_path


def plant(file: Path, was: str, becomes: str) -> None:
    text = file.read_text()
    assert text.count(was) == 1
    file.write_text(text.replace(was, becomes))


def test_a_loader_that_deletes_before_it_commits_is_found(place, programs):
    landing = "    landing = run.database.land(run.queue.name, list(batch.messages.values()))\n"
    plant(programs / "loader/load.py", landing, "    run.queue.delete(list(batch.messages.values()))\n" + landing)

    found = play(place, 1, at_once=True, root=programs).findings

    assert "what_is_sent_has_landed" in map(chaos.name_of, found)


def late_commits(seconds: float) -> list[chaos.Event]:
    """Small loads of several loaders, of which every other one is long on its way to its commit."""
    loaders = [{"at": 0.0, "do": "loader", "workers": 2, "flush": 5, "client": "lean"}] * 3
    slow = {"at": 0.0, "do": "slow_lines", "lasts": seconds, "step": "COMMIT", "every": 2, "seconds": 0.5}
    times = [n / 2 for n in range(1, int(seconds) * 2)]
    return [slow, *loaders, *({"at": at, "do": "send", "number": 30, "events": 1, "ugly": 99} for at in times)]


def test_a_cursor_that_is_read_inside_the_scanning_statement_is_found(place, programs):
    """The statement takes as long as over many messages."""
    plant(
        programs / "dbt_project/macros/load_window.sql",
        "{{ return(scalar('select raw.safe_load_id()') if execute else 0) }}",
        "{{ return('(select raw.safe_load_id() from pg_sleep(1))') }}",
    )
    with place.dbt_server(programs / "dbt_project") as dbt:
        run = chaos.Run(place, Path(os.devnull), root=programs, dbt=dbt)
        found = run.play(late_commits(30), at_once=True)

    assert "the_cursor_skips_nothing" in map(chaos.name_of, found)


def test_a_tombstone_that_is_passed_over_is_found(place):
    planted = "alter table raw.sqs_messages disable trigger erase_again"

    found = play(place, 1, at_once=True, planted=planted).findings

    assert "erased_persons_are_gone" in map(chaos.name_of, found)


# The plan, and the command.


def test_a_seed_makes_one_plan_and_another_seed_another():
    assert chaos.make_plan(7, 60) == chaos.make_plan(7, 60) != chaos.make_plan(8, 60)
    done = {event["do"] for event in chaos.make_plan(7, 3600)}
    assert done == {*chaos.ACTIONS, *chaos.FAULTS, *chaos.SCENES}


def test_a_plan_is_shrunk_to_what_it_fails_of():
    plan = [{"do": number} for number in range(40)]

    def fails(plan):
        return {3, 17, 18} <= {event["do"] for event in plan}

    assert chaos.shrink(plan, fails) == [{"do": 3}, {"do": 17}, {"do": 18}]


def test_a_run_that_fails_says_how_to_see_it_again_and_is_shrunk(place, tmp_path, monkeypatch):
    monkeypatch.setattr(chaos, "temporary_place", lambda: contextlib.nullcontext(place))
    monkeypatch.setattr(chaos, "pytest_configure", lambda: None)
    monkeypatch.setattr(chaos.Run, "play", lambda run, plan: [f"settles: {e['do']}" for e in plan if e["do"] == "kill"])

    done = CliRunner().invoke(chaos.main, ["--seed", "7", "--shrink", "--folder", str(tmp_path)])

    assert done.exit_code == 1
    assert f"make chaos ARGS='--replay {tmp_path}/chaos-7.jsonl'" in done.output
    [shrunk] = (json.loads(line) for line in (tmp_path / "chaos-7.shrunk.jsonl").read_text().splitlines())
    assert shrunk["do"] == "kill"

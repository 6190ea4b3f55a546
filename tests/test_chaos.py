"""Chaos of a few fixed seeds finds nothing; and it can find: each invariant is seen to fail, planted defects too."""

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests import chaos
from tests.invariants import ALWAYS, INVARIANTS, Seen, broken
from tests.pipeline import land
from tests.signups import copy_programs

SECONDS = 6
SEEDS = (1, 2)
LOGIN = '{{"user_id": "u{}", "app_version": "1.0", "device_type": "ios", "ip": "192.0.2.1", "device_id": "d"}}'


@pytest.fixture(scope="module")
def place():
    with chaos.temporary_place() as place:
        yield place


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_fails_at_random_and_every_invariant_holds(place, seed, tmp_path):
    run, plan = chaos.Run(place, tmp_path / "history.jsonl"), chaos.make_plan(seed, SECONDS)

    assert run.play(plan) == []

    assert len(run.sent) > 50
    assert chaos.read_plan(tmp_path / "history.jsonl") == plan  # what can be replayed


# Plans of what has to happen for some defect to show.


def plan_of(*events: chaos.Event) -> list[chaos.Event]:
    """After a first load of each queue."""
    begin = [
        {"at": 0.0, "do": action, "queue": queue} | parameters
        for queue in chaos.QUEUES
        for action, parameters in (("send", SEND), ("loader", LOADER))
    ]
    return [*begin, {"at": 0.0, "do": "start"}, *sorted(events, key=lambda event: event["at"])]


SEND = {"number": 30, "events": 1, "ugly": 6}
LOADER = {"workers": 2, "flush": 5, "client": "lean"}


def erasures() -> list[chaos.Event]:
    return plan_of(*({"at": 1.0 + n, "do": "forget", "which": n / 4} for n in range(3)))


def killed_loaders() -> list[chaos.Event]:
    """Most of them on their way to a commit."""
    slow = {"at": 0.0, "do": "slow_lines", "lasts": 9, "step": "COMMIT", "every": 1, "seconds": 0.5}
    times = [0.7 * n for n in range(1, 8)]
    events = [{"do": "send"} | SEND, {"do": "kill", "which": 0.0}, {"do": "loader"} | LOADER]
    return plan_of(slow, *({"at": at} | event for at in times for event in events))


def late_commits(seconds: float) -> list[chaos.Event]:
    """Small loads of several loaders, of which every other one is long on its way to its commit."""
    slow = {"at": 0.0, "do": "slow_lines", "lasts": seconds, "step": "COMMIT", "every": 2, "seconds": 0.5}
    loaders = [{"at": 0.0, "do": "loader"} | LOADER] * 2
    sends = [{"at": n / 2, "do": "send"} | SEND for n in range(1, int(seconds) * 2)]
    return plan_of(slow, *loaders, *sends)


@pytest.fixture(scope="module")
def seen(place) -> Seen:
    """After a run in which somebody was erased."""
    run = chaos.Run(place, Path(os.devnull))
    assert run.play(erasures()) == []
    assert run.seen.tombstones
    return run.seen


def without_first(rows):
    return rows[1:]


def changed_first(rows, **values):
    return [rows[0] | values, *rows[1:]]


def in_group(sequence_number, load_id):
    row = {"message_id": f"in-a-group-{sequence_number}", "body": "", "message_group_id": "overtaken"}
    return row | {"sequence_number": str(sequence_number), "load_id": load_id}


TOKEN = "0" * 64


def audited(*actions):
    """Each about the one before, by the same officer."""
    row = {"token": TOKEN, "login": "privacy_officer_user"}
    return [row | {"id": n, "action": action, "about": n - 1} for n, action in enumerate(actions, 1)]


def ended(*ending):
    return lambda seen: {"endings": [ending]}


# By invariant, what is seen instead of what is there.
FALSIFIED = {
    "what_is_sent_has_landed": {
        "lost": lambda seen: {"sent": seen.sent | {"lost": "{}"}},
        "never-sent": lambda seen: {"raw": changed_first(seen.raw, message_id="nobody's")},
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
    "fifo_groups_keep_their_order": {
        "overtaken": lambda seen: {"raw": [*seen.raw, *map(in_group, (1, 2), (9, 8))]},
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
        "in-raw": lambda seen: {"raw": changed_first(seen.raw, message_id=seen.tombstones[0]["message_id"])},
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
    "every_recovery_is_in_the_audit": {
        "missing": lambda seen: {"revealed": [(TOKEN, "")]},
        "not-asked-for": lambda seen: {"audit": audited("recovery approved", "original handed out")},
        "not-approved": lambda seen: {
            "audit": audited("two persons required", "recovery requested", "original handed out")
        },
        "another-value": lambda seen: {
            "audit": audited("recovery requested", "original handed out"),
            "revealed": [(TOKEN, "ip 192.0.2.99")],
        },
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
def programs(place, tmp_path) -> Path:
    return copy_programs(place.root, tmp_path)


def plant(file: Path, was: str, becomes: str) -> None:
    text = file.read_text()
    assert text.count(was) == 1
    file.write_text(text.replace(was, becomes))


def findings(place, plan: list[chaos.Event], **planted) -> set[str]:
    """Which invariants are broken, one of them at least as soon as it is seen."""
    return set(map(chaos.name_of, chaos.Run(place, Path(os.devnull), **planted).play(plan, at_once=True)))


def test_a_loader_that_deletes_before_it_commits_is_found(place, programs):
    landing = "    landing = run.database.land(run.queue.name, list(batch.messages.values()))\n"
    plant(programs / "loader/load.py", landing, "    run.queue.delete(list(batch.messages.values()))\n" + landing)

    assert "what_is_sent_has_landed" in findings(place, killed_loaders(), root=programs)


def test_a_cursor_that_is_read_inside_the_scanning_statement_is_found(place, programs):
    """The statement takes as long as over many messages."""
    plant(
        programs / "dbt_project/macros/load_window.sql",
        "{{ return(scalar('select raw.safe_load_id()') if execute else 0) }}",
        "{{ return('(select raw.safe_load_id() from pg_sleep(1))') }}",
    )
    with place.dbt_server(programs / "dbt_project") as dbt:
        assert "the_cursor_skips_nothing" in findings(place, late_commits(30), root=programs, dbt=dbt)


def test_a_tombstone_that_is_passed_over_is_found(place):
    planted = "alter table raw.sqs_messages disable trigger erase_again"

    assert "erased_persons_are_gone" in findings(place, erasures(), planted=planted)


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
    monkeypatch.setattr(chaos, "temporary_place", lambda **_: contextlib.nullcontext(place))
    monkeypatch.setattr(chaos, "pytest_configure", lambda: None)
    monkeypatch.setattr(chaos.Run, "play", lambda run, plan: [f"settles: {e['do']}" for e in plan if e["do"] == "kill"])

    done = CliRunner().invoke(chaos.main, ["--seed", "7", "--shrink", "--folder", str(tmp_path)])

    assert done.exit_code == 1
    assert f"make chaos ARGS='--replay {tmp_path}/chaos-7.jsonl'" in done.output
    [shrunk] = (json.loads(line) for line in (tmp_path / "chaos-7.shrunk.jsonl").read_text().splitlines())
    assert shrunk["do"] == "kill"

    again = CliRunner().invoke(chaos.main, ["--replay", f"{tmp_path}/chaos-7.shrunk.jsonl", "--folder", str(tmp_path)])
    assert again.output.startswith("chaos-7.shrunk: 1 events, ")


def test_a_run_that_cannot_go_on_is_a_finding_with_its_history(place, tmp_path, monkeypatch):
    def fails(run):
        raise OSError("no")

    monkeypatch.setitem(chaos.SCENES, "settle", fails)
    history = tmp_path / "history.jsonl"

    assert chaos.Run(place, history).play([]) == ["raises: OSError"]
    assert "OSError: no" in history.read_text()

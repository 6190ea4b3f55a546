"""Chaos of a few fixed seeds finds nothing; and it can find: each invariant is seen to fail, planted defects too."""

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests import chaos
from tests.invariants import ALWAYS, BY_DBT, INVARIANTS, Seen, broken
from tests.pipeline import land
from tests.signups import copy_programs

SECONDS = 6
SEEDS = (1, 2)
LOGIN = '{{"user_id": "u{}", "app_version": "1.0", "device_type": "ios", "ip": "192.0.2.1", "device_id": "d"}}'


@pytest.fixture(scope="module")
def place():
    with chaos.temporary_place() as place:
        yield place


@pytest.fixture(scope="module")
def cluster():
    with chaos.temporary_place(with_citus=True) as place:
        yield place


@pytest.fixture(params=["place", pytest.param("cluster", marks=pytest.mark.citus)])
def either_place(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_fails_at_random_and_every_invariant_holds(place, seed, tmp_path):
    run, plan = chaos.Run(place, tmp_path / "history.jsonl"), chaos.make_plan(seed, SECONDS)

    assert run.play(plan) == []

    assert len(run.sent) > 50
    assert chaos.read_plan(tmp_path / "history.jsonl") == plan  # what can be replayed


@pytest.mark.citus
def test_nodes_of_a_cluster_and_its_network_fail_and_every_invariant_holds(cluster, tmp_path):
    """A worker crashes, the other one cannot be reached, then freezes; in the end the coordinator crashes."""
    first, second = 0.5, 0.9
    plan = plan_of(
        {"at": 1.0, "do": "postgres_stopped", "lasts": 2, "mode": "immediate", "node": first},
        {"at": 1.5, "do": "send"} | SEND,
        {"at": 2.0, "do": "network_cut", "lasts": 2, "which": second},
        {"at": 4.0, "do": "forget", "which": 0.5},
        {"at": 5.0, "do": "send"} | SEND,
        {"at": 5.5, "do": "postgres_frozen", "lasts": 2, "node": second},
        {"at": 6.0, "do": "kill", "which": 0.0},
        {"at": 8.0, "do": "postgres_stopped", "lasts": 1, "mode": "immediate", "node": 0.0},
    )
    run = chaos.Run(cluster, tmp_path / "history.jsonl")

    assert run.play([*plan, {"at": 10.0, "do": "settle"}]) == []

    assert len(run.sent) > 50


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


def test_what_always_holds_is_looked_at_all_the_time(either_place):
    assert SPOILED.keys() == ALWAYS.keys() > BY_DBT
    run = chaos.Run(either_place, Path(os.devnull))
    with run.set_up():
        land(run.database, [LOGIN.format(n) for n in range(2)])
        run.tick()
        run.dbt_goes_on = False
        assert run.finish(lambda job: True, 60)
        run.look_at_what_always_holds()
        assert run.findings == []
        for name in SPOILED.keys() - (BY_DBT if either_place.is_cluster else set()):
            run.query(SPOILED[name])
            for _ in range(chaos.LOOKS_ON_A_CLUSTER if either_place.is_cluster else 1):
                assert not run.findings or chaos.name_of(run.findings[-1]) != name
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


def breaks(name: str, place, plan: list[chaos.Event], **planted) -> bool:
    """Whether this invariant does not hold, of which nothing more has to be seen."""
    run = chaos.Run(place, Path(os.devnull), **planted)
    return name in map(chaos.name_of, run.play(plan, until=lambda finding: chaos.name_of(finding) == name))


def test_a_loader_that_deletes_before_it_commits_is_found(place, programs):
    landing = "    landing = run.database.land(run.queue.name_in_raw, list(batch.messages.values()))\n"
    plant(programs / "loader/load.py", landing, "    run.queue.delete(list(batch.messages.values()))\n" + landing)

    assert breaks("what_is_sent_has_landed", place, killed_loaders(), root=programs)


def test_a_cursor_that_is_read_inside_the_scanning_statement_is_found(place, programs):
    """The statement takes as long as over many messages."""
    plant(
        programs / "dbt_project/macros/load_window.sql",
        "{{ return(scalar('select raw.safe_load_id()') if execute else 0) }}",
        "{{ return('(select raw.safe_load_id() from pg_sleep(1))') }}",
    )
    with place.dbt_server(programs / "dbt_project") as dbt:
        assert breaks("the_cursor_skips_nothing", place, late_commits(30), root=programs, dbt=dbt)


def test_a_tombstone_that_is_passed_over_is_found(place):
    planted = "alter table raw.sqs_messages disable trigger erase_again"

    assert breaks("erased_persons_are_gone", place, erasures(), planted=planted)


@pytest.mark.citus
def test_what_was_erased_and_stays_when_it_returns_to_a_cluster_is_found(cluster):
    """There, no trigger refuses it: dbt's next run removes it."""
    planted = "create or replace function privacy.erase_returned() returns bigint language sql"
    planted += " as 'select raw.safe_load_id() - 1'"

    assert breaks("erased_persons_are_gone", cluster, erasures(), planted=planted)


# The plan, and the command.


def test_a_seed_makes_one_plan_and_another_seed_another():
    assert chaos.make_plan(7, 60) == chaos.make_plan(7, 60) != chaos.make_plan(8, 60)
    done = {event["do"] for event in chaos.make_plan(7, 3600)}
    assert done == {*chaos.ACTIONS, *chaos.FAULTS, *chaos.SCENES}


def test_a_plan_is_shrunk_to_what_it_fails_of():
    plan = [{"at": float(number), "do": number} for number in range(40)]
    runs = []

    def fails(plan):
        runs.append(plan)
        return {3, 17, 18} <= {event["do"] for event in plan}

    small = chaos.shrink(plan, fails)

    assert [event["do"] for event in small] == [3, 17, 18]
    assert [event["at"] for event in small] == [2.0, 4.0, 5.0]  # without the waits
    assert len(runs) < 40  # each takes a minute


def test_waits_are_left_out_in_each_round():
    plan = [{"at": at, "do": "kill"} for at in (0.0, 1.5, 30.0, 31.0, 0.0, 20.0)]

    assert [event["at"] for event in chaos.without_waits(plan)] == [0.0, 1.5, 3.5, 4.5, 0.0, 2.0]


@pytest.fixture
def command(place, monkeypatch, tmp_path):
    """Run here, with `plays` for what happens in a run."""

    def invoke(plays, *arguments: str):
        monkeypatch.setattr(chaos, "temporary_place", lambda **_: contextlib.nullcontext(place))
        monkeypatch.setattr(chaos, "forget_the_caller", lambda: None)
        monkeypatch.setattr(chaos.Run, "play", lambda run, plan, until=None: plays(plan))
        return CliRunner().invoke(chaos.main, [*arguments, "--folder", str(tmp_path)])

    return invoke


def test_a_run_that_fails_says_how_to_see_it_again_and_is_shrunk(command, tmp_path):
    def plays(plan):
        return [f"settles: {len(plan)} left, as of a {event['do']}" for event in plan if event["do"] == "kill"]

    done = command(plays, "--seed", "7", "--shrink")

    assert done.exit_code == 1
    assert f"make chaos ARGS='--replay {tmp_path}/chaos-7.jsonl'" in done.output
    assert "    shrunk to 1 events:\n" in done.output
    assert done.output.endswith(f"    make chaos ARGS='--replay {tmp_path}/chaos-7.shrunk.jsonl'\n")
    [shrunk] = chaos.read_plan(tmp_path / "chaos-7.shrunk.jsonl")
    assert shrunk["do"] == "kill"

    again = command(plays, "--replay", f"{tmp_path}/chaos-7.shrunk.jsonl")
    assert again.output.startswith("chaos-7.shrunk: 1 events, ")


def test_a_plan_is_not_shrunk_to_one_that_fails_of_something_else(command, tmp_path):
    def plays(plan):
        return ["settles: dbt does not end"] if len(plan) > 9 else ["settles: reveal does not end"]

    done = command(plays, "--seed", "7", "--shrink")

    assert len(chaos.read_plan(tmp_path / "chaos-7.shrunk.jsonl")) == 10
    assert "shrunk to 10 events" in done.output


def test_a_plan_that_does_not_fail_again_is_not_shrunk(command, tmp_path):
    times = iter([["settles: dbt does not end"], [], [], []])

    done = command(lambda plan: next(times), "--seed", "7", "--shrink")

    assert "not shrunk: it does not fail again" in done.output
    assert not (tmp_path / "chaos-7.shrunk.jsonl").exists()


def test_shrinking_ends_in_time_with_the_smallest_plan_so_far(command, tmp_path):
    def plays(plan):
        time.sleep(0.02)
        return ["settles: dbt does not end"] if sum(event["do"] == "send" for event in plan) > 5 else []

    done = command(plays, "--seed", "7", "--shrink", "--shrink-minutes", "0.001")

    assert "events when time was up:" in done.output
    assert chaos.read_plan(tmp_path / "chaos-7.shrunk.jsonl")


def test_a_run_that_cannot_go_on_is_a_finding_with_its_history(place, tmp_path, monkeypatch):
    def fails(run):
        raise OSError("no")

    monkeypatch.setitem(chaos.SCENES, "settle", fails)
    history = tmp_path / "history.jsonl"

    assert chaos.Run(place, history).play([]) == ["raises: OSError"]
    assert "OSError: no" in history.read_text()

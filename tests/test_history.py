"""The made-up history: weeks like real ones, with what analysts are to find in them, landed as the loader lands."""

import hashlib
import json
import subprocess
import sys
from collections import Counter, defaultdict
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from local.history import ALL_ZERO, BROKEN, DAYS, history, people
from tests.pipeline import dbt, query

ROOT = Path(__file__).parents[1]
TODAY = datetime(2026, 11, 27, 8, 30, tzinfo=timezone.utc)  # a Friday


@pytest.fixture(scope="module")
def sent():
    return list(history(TODAY))


@pytest.fixture(scope="module")
def logins(sent):
    return [(sent_at, json.loads(event.body)) for sent_at, event in sent if event.reason is None]


def test_the_same_day_has_the_same_history_on_every_python(sent):
    lines = "\n".join(f"{sent_at.isoformat()} {event.body}" for sent_at, event in sent)
    assert hashlib.sha256(lines.encode()).hexdigest() == (
        "5d106881868d0d99b5d2ace6d2467bbb3ecd5e5ac2944a1921fac0225a9b489b"
    )


def test_it_ends_with_the_day_before_and_each_day_has_its_logins_in_order(sent):
    times = [sent_at for sent_at, _ in sent]
    assert times == sorted(times)
    midnight = TODAY.replace(hour=0, minute=0)
    assert {time.date() for time in times} == {(midnight - timedelta(days=ago)).date() for ago in range(1, DAYS + 1)}


def test_it_grows_rests_at_weekends_and_sleeps_at_night(sent):
    days = Counter(sent_at.date() for sent_at, _ in sent)
    mondays = [days[day] for day in sorted(days) if day.weekday() == 0]
    sundays = [days[day] for day in sorted(days) if day.weekday() == 6]
    assert mondays == sorted(mondays)
    assert mondays[-1] > 1.5 * mondays[0]
    assert all(sunday < monday for sunday, monday in zip(sundays, mondays, strict=True))
    hours = Counter(sent_at.hour for sent_at, _ in sent)
    assert hours[20] > 4 * hours[4]


def test_a_release_spreads_from_the_day_it_is_published(logins):
    shares = {
        day: Counter(login["app_version"] for sent_at, login in logins if sent_at.date() == (TODAY - ago).date())
        for day, ago in ((8, timedelta(DAYS - 8)), (10, timedelta(DAYS - 10)), (20, timedelta(DAYS - 20)))
    }
    assert shares[8]["5.3.0"] == 0 < shares[10]["5.3.0"] < shares[20]["5.3.0"]


def test_the_bad_release_is_a_spike_of_rejections_for_one_reason(sent):
    rejected = Counter(sent_at.date() for sent_at, event in sent if event.reason)
    days = Counter(sent_at.date() for sent_at, _ in sent)
    usual = sorted(rejected[day] / days[day] for day in days)[len(days) // 2]
    spike = max(days, key=lambda day: rejected[day])
    assert usual < 0.02
    assert rejected[spike] / days[spike] > 0.08
    assert {(spike - day).days for day in days if rejected[day] / days[day] > 0.04} <= {-2, -1, 0, 1, 2}
    broken = [event.reason for _, event in sent if f'"{BROKEN}"' in event.body and '"android"' in event.body]
    assert Counter(broken).most_common(1)[0][0] == "missing_device_id"


def test_three_in_ten_have_no_locale(logins):
    users = {login["user_id"]: login["locale"] for _, login in logins}
    assert 0.25 < list(users.values()).count(None) / len(users) < 0.4


def users_by(logins, field):
    users = defaultdict(set)
    for _, login in logins:
        users[login[field]].add(login["user_id"])
    return users


def test_a_ring_shares_devices_and_an_office_an_address(logins):
    devices = users_by(logins, "device_id")
    placeholders = devices.pop(ALL_ZERO)
    assert len(placeholders) > 10
    ring = sorted(devices.values(), key=len)[-4:]
    assert all(len(users) >= 6 for users in ring)
    office = sorted(users_by(logins, "ip").values(), key=len)[-1]
    assert len(office) >= 24
    assert not office & set().union(*ring)


def test_those_who_log_in_today_are_its_accounts_with_their_latest_versions(logins):
    everybody = people()
    known = {login["user_id"] for _, login in logins}
    assert len({login["user_id"] for login in everybody} & known) > 0.95 * len(everybody)
    assert {login["app_version"] for login in everybody} > {"6.0.1", "6.1.0"}
    assert BROKEN not in {login["app_version"] for login in everybody}


@pytest.fixture(scope="module")
def landed(module_database):
    """What the history's own command says, twice."""
    command = [sys.executable, "-m", "local.history", "login-queue"]
    environment = module_database.env("loader_user")
    said = [subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True) for _ in range(2)]
    assert [each.stderr for each in said] == ["", ""]
    dbt(module_database, "build")
    return module_database


def test_it_is_landed_as_the_loader_lands_a_load_for_each_day(landed):
    [(loads, received, landed_new, duplicates, queues)] = query(
        landed,
        "select count(*), sum(received), sum(landed), sum(duplicates), array_agg(distinct queue) from raw.loads",
        login="transformer_user",
    )
    assert (loads, queues) == (2 * DAYS, ["login-queue"])
    assert landed_new == duplicates == received / 2


def test_its_times_are_of_the_past_and_published(landed):
    [(first, last)] = query(landed, "select min(create_date), max(create_date) from analytics.user_logins")
    assert (last - first).days == DAYS - 1
    assert last < datetime.now(timezone.utc).date()


def test_what_watches_the_pipeline_is_not_alarmed(landed):
    [health] = query(
        landed,
        "select untransformed, unaccounted, not bool_or(rejections_jumped), max(landed) = sum(accepted + rejected)"
        " from analytics.queue_health group by untransformed, unaccounted",
    )
    assert health == (0, 0, True, True)

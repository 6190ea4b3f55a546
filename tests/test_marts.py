"""What analysts ask: every mart follows an erasure, a late message and a new key, and increments equal a rebuild."""

import json

import pytest

from tests.conftest import on_citus_too
from tests.pipeline import dbt, land, query
from tests.test_privacy_erasure import forget
from tests.test_privacy_keys import rotate

pytestmark = on_citus_too


def login(user_id: str, device_id: str, ip: str, app_version: str = "1.2") -> str:
    fields = {"user_id": user_id, "device_id": device_id, "ip": ip, "app_version": app_version, "device_type": "ios"}
    return json.dumps(fields)


LOADS = {
    "first": [login("gone", "d1", "192.0.2.1"), login("stays", "d1", "192.0.2.2"), login("gone", "d2", "192.0.2.1")],
    "second": [login("stays", "unknown", "0.0.0.0"), login("gone", "d1", "192.0.2.2", "1.3"), "not a login"],
    "third": [login("late", "d2", "192.0.2.1"), login("stays", "d3", "192.0.2.2")],
}
MARTS = """
select relname from pg_class where relnamespace = 'analytics'::regnamespace and relkind in ('r', 'v', 'p')
order by relname
"""


def marts(database) -> dict[str, list[str]]:
    """Every row of everything in analytics, as text: a mart added tomorrow is compared too."""
    names = [name for (name,) in query(database, MARTS) if name != "pipeline_health"]  # says when it was asked
    return {
        name: [row for (row,) in query(database, f"select mart::text from analytics.{name} as mart order by 1")]
        for name in names
    }


@pytest.fixture
def built(database):
    for prefix, bodies in LOADS.items():
        land(database, bodies, prefix=prefix)
        dbt(database, "run")
    return database


def assert_a_rebuild_changes_nothing(database) -> dict[str, list[str]]:
    before = marts(database)
    dbt(database, "run", "--full-refresh")
    assert marts(database) == before
    return before


def test_loads_one_by_one_give_what_a_rebuild_gives(built):
    rows = assert_a_rebuild_changes_nothing(built)
    assert {"users", "user_devices", "user_ips", "login_events", "hourly_logins"} <= rows.keys()
    assert all(rows.values())


def test_an_erased_person_leaves_every_mart_at_once(built):
    forget(built)
    rows = assert_a_rebuild_changes_nothing(built)
    assert "gone" not in str(rows)
    asked = "select user_id, logins, devices, ips from analytics.users order by 1"
    assert query(built, asked) == [("late", 1, 1, 1), ("stays", 3, 2, 1)]
    assert query(built, "select * from analytics.shared_devices") == []


def test_a_new_key_changes_tokens_in_every_mart_and_nothing_else(built):
    counts = "select users, logins from analytics.shared_devices order by 1, 2"
    pairs = "select user_id, logins, came_later from analytics.user_devices order by 1, 2, 3"
    tokens = "select masked_device_id from analytics.user_devices"
    before = query(built, counts), query(built, pairs)
    old = set(query(built, tokens))
    rotate(built)
    assert (query(built, counts), query(built, pairs)) == before
    assert not old & set(query(built, tokens))
    assert_a_rebuild_changes_nothing(built)

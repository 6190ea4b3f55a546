"""What analysts query says what Python counts: random logins, late ones, an erasure, a new key, a full refresh."""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import closing
from datetime import datetime, timedelta, timezone
from itertools import chain, pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import on_citus_too
from tests.pipeline import dbt, land, query
from tests.test_privacy_erasure import forget
from tests.test_privacy_keys import rotate

pytestmark = on_citus_too

NOW = datetime.now(timezone.utc)
WINDOWS = {"users_last_day": 1, "users_last_week": 7, "users_last_30_days": 30}
IP_CONNECTS = 5  # users, as dbt_project.yml has it
PLACEHOLDERS = {"unknown", "0.0.0.0"}


class Login(NamedTuple):
    """Its id, when it was sent, and what it says."""

    message_id: str
    sent_at: datetime
    user_id: str
    device_id: str
    ip: str
    version: int

    @property
    def at(self) -> datetime:
        return self.sent_at.replace(microsecond=0)

    @property
    def body(self) -> str:
        fields = {"user_id": self.user_id, "device_id": self.device_id, "ip": self.ip, "device_type": "ios"}
        return json.dumps(fields | {"app_version": f"{self.version}.0"})


def random_logins(seed: int, number: int = 240) -> list[Login]:
    """In the last 40 days, often in the same second, a few by a clock that is ahead; none at the edge of a window.

    Half of them by few people with few devices, half by many, of whom up to six are connected.
    """
    draw = random.Random(seed)
    devices, ips = [f"d{n}" for n in range(9)] + ["unknown"], [f"192.0.2.{n}" for n in range(9)] + ["0.0.0.0"]
    logins = []
    for n in range(number):
        hours = draw.choice([draw.randrange(24), draw.randrange(24 * 7), draw.randrange(-24 * 9, 24 * 40)])
        sent_at = NOW - timedelta(hours=hours + 0.5, seconds=draw.randrange(2), milliseconds=draw.randrange(1000))
        who = draw.choice(["gone", *"bcdefgh"]), draw.choice(devices), draw.choice(ips)
        if n % 2:
            user = draw.randrange(90)
            who = f"u{user}", draw.choice([f"r{user // 2}", f"own{user}"]), f"198.51.100.{user // 6}"
        logins.append(Login(f"m{n}", sent_at, *who, draw.randint(1, 3)))
    return logins


@pytest.fixture(scope="module")
def built(module_database):
    """In three loads, not in the order of their times: in each are logins older than some that are there already."""
    logins = random_logins(seed=15)
    for part in range(0, len(logins), 80):
        some = logins[part : part + 80]
        times = [*(login.sent_at for login in some), NOW]
        ids = land(module_database, [*(login.body for login in some), "not json"], f"p{part}-", times=times)
        logins[part : part + 80] = [login._replace(message_id=i) for login, i in zip(some, ids, strict=False)]
        dbt(module_database, "run")
    return module_database, logins


def by(logins: Iterable[Login], *names: str) -> dict:
    """The logins of each value, or pair of values, in order of time; without placeholders."""
    groups = defaultdict(list)
    for login in sorted(logins, key=lambda login: (login.at, login.message_id)):
        key = tuple(getattr(login, name) for name in names)
        if not PLACEHOLDERS & set(key):
            groups[key if len(names) > 1 else key[0]].append(login)
    return groups


def different(logins: Iterable[Login], name: str) -> int:
    return len({getattr(login, name) for login in logins} - PLACEHOLDERS)


def expected_pairs(logins: list[Login], name: str, tokens: dict[str, str]) -> list[tuple]:
    first_of = {user_id: theirs[0].at for user_id, theirs in by(logins, "user_id").items()}
    return [
        (user_id, tokens[value], len(theirs), theirs[0].at, theirs[-1].at, theirs[0].at > first_of[user_id])
        for (user_id, value), theirs in by(logins, "user_id", name).items()
    ]


def expected_shared(logins: list[Login], name: str, tokens: dict[str, str]) -> list[tuple]:
    return [
        (
            *(tokens[value], different(theirs, "user_id"), len(theirs), theirs[0].at.date(), theirs[-1].at.date()),
            *(
                different((each for each in theirs if NOW - timedelta(days=days) < each.at <= NOW), "user_id")
                for days in WINDOWS.values()
            ),
        )
        for value, theirs in by(logins, name).items()
        if different(theirs, "user_id") > 1
    ]


def changed(before: str, now: str) -> bool | None:
    return None if PLACEHOLDERS & {before, now} else before != now


def expected_events(logins: list[Login], tokens: dict[str, str]) -> list[tuple]:
    rows = []
    for theirs in by(logins, "user_id").values():
        compared = [(None,) * 4] + [
            (
                now.at - before.at,
                changed(before.ip, now.ip),
                changed(before.device_id, now.device_id),
                now.version != before.version,
            )
            for before, now in pairwise(theirs)
        ]
        for number, (login, to_previous) in enumerate(zip(theirs, compared, strict=True), 1):
            marked = ((tokens[value], value in PLACEHOLDERS) for value in (login.ip, login.device_id))
            shown = (login.message_id, login.user_id, login.at, *chain.from_iterable(marked))
            rows.append((*shown, login.version * 1_000_000, number, *to_previous))
    return rows


def flooded(neighbours: dict[object, set]) -> list[set]:
    """The connected components of a graph, by walking through it."""
    components, reached = [], set()
    for start in neighbours:
        component, to_visit = set(), {start} - reached
        while to_visit:
            component |= to_visit
            to_visit = set().union(*(neighbours[node] for node in to_visit)) - component
        components += [component] if component else []
        reached |= component
    return components


def expected_links(logins: list[Login], tokens: dict[str, str]) -> list[tuple]:
    """Users and what they share, as a graph of both."""
    links = {}
    for name, most in {"device_id": len(logins), "ip": IP_CONNECTS}.items():
        users = {value: {login.user_id for login in theirs} for value, theirs in by(logins, name).items()}
        pairs = by(logins, "user_id", name).items()
        links |= {pair: (name, theirs) for pair, theirs in pairs if 1 < len(users[pair[1]]) <= most}
    neighbours = defaultdict(set)
    for user_id, value in links:
        neighbours["user", user_id].add(value)
        neighbours[value].add(("user", user_id))
    clusters = {node: min(n[1] for n in of if n[0] == "user") for of in flooded(neighbours) for node in of}
    return [
        (
            *(clusters["user", user_id], user_id),
            *(tokens[value] if name == column else None for column in ("device_id", "ip")),
            *(len(theirs), theirs[0].at, theirs[-1].at),
        )
        for (user_id, value), (name, theirs) in links.items()
    ]


def expected_clusters(links: list[tuple]) -> list[tuple]:
    clusters = defaultdict(list)
    for link in links:
        clusters[link[0]].append(link)
    return [
        (
            cluster,
            *(len({link[column] for link in of} - {None}) for column in (1, 2, 3)),
            *(min(link[5] for link in of), max(link[6] for link in of)),
        )
        for cluster, of in clusters.items()
    ]


def expected_marts(logins: list[Login], tokens: dict[str, str]) -> dict[str, list[tuple]]:
    hours, days = defaultdict(list), defaultdict(list)
    for login in logins:
        hours[login.at.replace(minute=0, second=0)].append(login)
        days[login.at.date(), login.version].append(login)
    first, last = (end(day for day, _ in days) for end in (min, max))
    return {
        "users": [
            (user_id, len(of), different(of, "device_id"), different(of, "ip"), of[0].at, of[-1].at)
            for user_id, of in by(logins, "user_id").items()
        ],
        "user_devices": expected_pairs(logins, "device_id", tokens),
        "user_ips": expected_pairs(logins, "ip", tokens),
        "shared_devices": expected_shared(logins, "device_id", tokens),
        "shared_ips": expected_shared(logins, "ip", tokens),
        "login_events": expected_events(logins, tokens),
        "account_links": expected_links(logins, tokens),
        "account_clusters": expected_clusters(expected_links(logins, tokens)),
        "hourly_logins": [(hour, len(of), different(of, "user_id")) for hour, of in hours.items()],
        "daily_logins": [
            (
                *(day, "ios", version * 1_000_000, f"{version}.0.0", None, len(of)),
                *(different(of, name) for name in ("user_id", "device_id", "ip")),
            )
            for (day, version), of in days.items()
        ],
        "days": [(first + timedelta(days=day),) for day in range((last - first).days + 1)],
    }


def tokens_of(database, logins: list[Login]) -> dict[str, str]:
    """By the plain value; what a token is, other tests prove."""
    rows = query(database, "select message_id, masked_device_id, masked_ip from analytics.user_logins")
    masked = {message_id: tokens for message_id, *tokens in rows}
    tokens = {}
    for login in logins:
        tokens[login.device_id], tokens[login.ip] = masked[login.message_id]
    return tokens


def assert_marts_say_what_python_counts(database, logins: list[Login]) -> None:
    expected = expected_marts(logins, tokens_of(database, logins))
    assert expected.keys() == {mart for (mart,) in query(database, EVERYTHING)} - TABLES
    for mart, rows in expected.items():
        assert rows, mart
        assert sorted(query(database, f"select * from analytics.{mart}"), key=repr) == sorted(rows, key=repr), mart


EVERYTHING = """
select relname from pg_class
where relnamespace = 'analytics'::regnamespace and relkind in ('r', 'v', 'p') and relname not like '%_health'
"""


TABLES = {"user_logins", "rejected_messages"}  # what the marts are made of; other tests have them


def everything(database) -> dict[str, str]:
    """All that analysts read, as text; a mart that is added tomorrow is looked through too."""
    texts = {name: str(query(database, f"select * from analytics.{name}")) for (name,) in query(database, EVERYTHING)}
    assert texts.keys() >= TABLES
    return texts


EDGES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=60)


@settings(deadline=None, max_examples=100)
@given(edges=EDGES)
def test_components_are_those_that_a_walk_finds(built, edges):
    neighbours = {node: {node} for node in range(1, max(map(max, edges)) + 1)}
    for a, b in edges:
        neighbours[a].add(b)
        neighbours[b].add(a)
    smallest = {node: min(component) for component in flooded(neighbours) for node in component}
    [(components,)] = query(built[0], "select analytics.components(%s, %s)", *map(list, zip(*edges, strict=True)))
    assert components == [smallest[node] for node in sorted(smallest)]


# One after another: each leaves the database to the next.


def test_every_mart_says_what_python_counts(built):
    assert_marts_say_what_python_counts(*built)


MARKED = """
select attname, array_agg(relname::text) from pg_attribute inner join pg_class on pg_class.oid = attrelid
where relnamespace = 'analytics'::regnamespace and attname in ('ip_is_placeholder', 'device_id_is_placeholder')
    and relkind in ('r', 'v', 'p') group by attname
"""


def test_placeholders_are_marked_or_left_out(built):
    """Or an analyst would take them for a device or an address that many users share."""
    database, _ = built
    for marker, marked in query(database, MARKED):
        masked = f"masked_{marker.removesuffix('_is_placeholder')}"
        [(token,)] = query(database, f"select distinct {masked} from analytics.user_logins where {marker}")
        found = {name for name, text in everything(database).items() if token in text}
        assert found == set(marked), marker


@pytest.mark.parametrize("ago", [0.5, 20])
def test_every_mart_says_the_same_wherever_clocks_change(built, ago):
    """Forward at midnight, so that a day begins at one o'clock."""
    database, _ = built
    day = (NOW - timedelta(days=ago)).timetuple().tm_yday
    zones = "UTC", f"AAA0BBB,J{min(day, 365)}/0,J{(day + 99) % 365 + 1}/0"
    for (mart,) in query(database, EVERYTHING):
        said = []
        for zone in zones:
            connection = database.connect("analyst_user", options=f"-c timezone={zone}")
            with closing(connection), connection.cursor() as cursor:
                cursor.execute(f"select * from analytics.{mart}")
                said.append(Counter(cursor.fetchall()))
        assert said[0] == said[1], mart


def test_a_rebuild_changes_nothing(built):
    database, logins = built
    dbt(database, "run", "--full-refresh")
    assert_marts_say_what_python_counts(database, logins)


def test_a_new_key_changes_the_tokens_in_every_mart_and_nothing_else(built):
    database, logins = built
    old_tokens = set(tokens_of(database, logins).values())
    rotate(database)
    assert_marts_say_what_python_counts(database, logins)
    texts = everything(database)
    assert [name for name, text in texts.items() if any(token in text for token in old_tokens)] == []


def test_an_erased_person_has_left_every_mart(built):
    database, logins = built
    assert "'gone'" in everything(database)["users"]
    forget(database)
    dbt(database, "run")
    assert_marts_say_what_python_counts(database, [login for login in logins if login.user_id != "gone"])
    assert [name for name, text in everything(database).items() if "'gone'" in text] == []

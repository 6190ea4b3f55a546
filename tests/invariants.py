"""The invariants: one function each, which yields what is wrong, never a value.

Each compares what was sent and requested with what the database holds, read as superuser in one snapshot.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from psycopg2.extras import DictCursor

from loader.text import visible
from tests import oracle


@dataclass(frozen=True)
class Seen:
    sent: dict[str, str]  # bodies, by message id
    raw: list[dict]  # message_id, body, load_id, message_group_id, sequence_number
    loads: list[dict]  # load_id, received, landed, duplicates, is_old: whether a purge may have been there
    tombstones: list[dict]  # message_id, load_id, was_in_raw
    purged: int
    taken: list[str]  # message ids in staging
    logins: list[dict]
    rejected: list[dict]  # message_id, reason
    originals: set[tuple[str, str]]  # kind and token
    audit: list[dict]  # id, action, about, token, login
    keys: dict[str, list[bytes]]
    key_versions: dict[str, list[int]]  # by table
    to_erase: set[str] = frozenset()  # messages that were in raw when an erasure began that succeeded
    may_erase: set[str] = frozenset()  # those of everybody whose erasure was asked for
    persons_left: list[str] = ()  # places in which somebody erased can be found
    leaks: list[str] = ()
    revealed: list[tuple[str, str]] = ()  # tokens, and what was recovered: its kind, a blank and the value
    endings: list[tuple[str, int, str]] = ()  # of programs that nobody killed: name, status, what it said
    waiting: tuple[int, int, int] = (0, 0, 0)  # on the queue, in flight, on the dead-letter queue


QUERIES = {
    "raw": "select message_id, body, load_id, message_group_id, sequence_number from raw.sqs_messages",
    "loads": """
        select load_id, received, landed, duplicates, loaded_at < now() - interval '28 days' as is_old from raw.loads
    """,
    "tombstones": "select message_id, load_id, body_mac is not null as was_in_raw from privacy.erased_messages",
    "purged": "select coalesce(sum(messages), 0)::integer as purged from raw.purges",
    "taken": "select message_id from staging.int_messages__masked",
    "logins": """
        select
            message_id, user_id, device_type, locale, app_version, masked_ip, masked_device_id
        from analytics.user_logins
        union all
        select
            message_id, user_id, device_type, locale, app_version, masked_ip, masked_device_id
        from analytics.user_signups
    """,
    "rejected": "select message_id, reason from analytics.rejected_messages",
    "originals": "select kind, token from privacy.originals",
    "audit": "select id, action, about, token, login from privacy.audit order by id",
    "keys": "select kind, array_agg(key order by version) as keys from masking.keys group by kind",
    "key_versions": """
        select 'staging' as place, array_agg(distinct mask_key_version) as versions from staging.int_messages__masked
        union all select 'logins', array_agg(distinct mask_key_version) from analytics.user_logins
        union all select 'signups', array_agg(distinct mask_key_version) from analytics.user_signups
        union all select 'originals', array_agg(distinct key_version) from privacy.originals
    """,
}


def look(database: Any, **observed: Any) -> Seen:
    """One snapshot of the database, with what was observed besides."""
    with closing(database.connect("postgres", cursor_factory=DictCursor)) as connection:
        connection.set_session("repeatable read", readonly=True)
        found = {}
        with connection.cursor() as cursor:
            for name, sql in QUERIES.items():
                cursor.execute(sql)
                found[name] = [dict(row) for row in cursor.fetchall()]
    found["purged"] = found["purged"][0]["purged"]
    found["taken"] = [row["message_id"] for row in found["taken"]]
    found["originals"] = {(row["kind"], row["token"]) for row in found["originals"]}
    found["keys"] = {row["kind"]: [bytes(key) for key in row["keys"]] for row in found["keys"]}
    found["key_versions"] = {row["place"]: row["versions"] or [] for row in found["key_versions"]}
    return Seen(**found, **observed)


# What holds at any time, as a number that is 0.
ALWAYS = {
    "the_cursor_skips_nothing": """
        select count(*) from raw.sqs_messages as landed
        where
            load_id <= (select max(load_id) from staging.int_messages__masked)
            and not exists (select from staging.int_messages__masked as held where held.message_id = landed.message_id)
    """,
    "one_key_version_a_table": """
        select
            (select count(distinct mask_key_version) > 1 from staging.int_messages__masked)::integer
            + (select count(distinct mask_key_version) > 1 from analytics.user_logins)::integer
            + (select count(distinct mask_key_version) > 1 from analytics.user_signups)::integer
            + (select count(distinct key_version) > 1 from privacy.originals)::integer
    """,
    "erased_persons_are_gone": """
        select count(*) from raw.sqs_messages where message_id in (select message_id from privacy.erased_messages)
    """,
    "each_message_has_one_outcome": """
        select count(*) from analytics.user_logins inner join analytics.rejected_messages using (message_id)
    """,
}

# Those that on a cluster hold after each run of dbt, since there a table has no trigger to refuse what was erased.
BY_DBT = {"erased_persons_are_gone"}

INVARIANTS: list[Callable[[Seen], Iterator[str]]] = []


def invariant(function: Callable[[Seen], Iterator[str]]) -> Callable[[Seen], Iterator[str]]:
    INVARIANTS.append(function)
    return function


def broken(seen: Seen) -> list[str]:
    """What does not hold: the name of the invariant, and what is wrong."""
    return [f"{each.__name__}: {finding}" for each in INVARIANTS for finding in each(seen)]


def ids(rows: list[dict]) -> list[str]:
    return [row["message_id"] for row in rows]


def counted(what: str, found: Any) -> Iterator[str]:
    if found := sorted(found):
        yield f"{len(found)} {what}: {', '.join(map(str, found[:5]))}"


@invariant
def what_is_sent_has_landed(seen: Seen) -> Iterator[str]:
    erased = {row["message_id"] for row in seen.tombstones}
    yield from counted("lost", seen.sent.keys() - set(ids(seen.raw)) - erased - set(seen.taken))
    yield from counted("landed and never sent", set(ids(seen.raw)) - seen.sent.keys())
    yield from counted("landed more than once", [key for key, n in Counter(ids(seen.raw)).items() if n > 1])
    gone = len(set(seen.taken) - set(ids(seen.raw)) - erased)
    gone += len({row["message_id"] for row in seen.tombstones if not row["was_in_raw"]})
    if gone != seen.purged:
        yield f"{gone} left raw by a purge, and the ledger of purges says {seen.purged}"


@invariant
def raw_is_what_was_sent(seen: Seen) -> Iterator[str]:
    changed = [row["message_id"] for row in seen.raw if row["body"] != seen.sent.get(row["message_id"])]
    yield from counted("are not in raw byte for byte", changed)


@invariant
def ledger_and_raw_agree(seen: Seen) -> Iterator[str]:
    there = Counter(row["load_id"] for row in seen.raw) + Counter(row["load_id"] for row in seen.tombstones)
    known = {row["load_id"]: row for row in seen.loads}
    yield from counted("loads in raw that the ledger does not know", there.keys() - known.keys())
    more = [load for load, row in known.items() if there[load] > row["landed"]]
    less = [load for load, row in known.items() if there[load] < row["landed"] and not row["is_old"]]
    yield from counted("loads with more than the ledger says", more)
    yield from counted("loads with less than the ledger says", less)
    odd = [load for load, row in known.items() if row["received"] != row["landed"] + row["duplicates"]]
    yield from counted("loads whose sum is wrong", odd)


@invariant
def fifo_groups_keep_their_order(seen: Seen) -> Iterator[str]:
    """A load that waited for another one of the same messages has the lower number, and these as duplicates."""
    waited = {row["load_id"] for row in seen.loads if row["received"] > row["landed"]}
    last: dict[str, int] = {}
    in_order = sorted((row for row in seen.raw if row["message_group_id"]), key=lambda row: int(row["sequence_number"]))
    for row in in_order:
        if row["load_id"] < last.get(row["message_group_id"], 0) and row["load_id"] not in waited:
            yield f"{row['message_id']} landed before one that came earlier in its group"
        last[row["message_group_id"]] = row["load_id"]


@invariant
def each_message_has_one_outcome(seen: Seen) -> Iterator[str]:
    outcomes = Counter(ids(seen.logins)) + Counter(ids(seen.rejected))
    yield from counted("in raw and not taken by dbt", set(ids(seen.raw)) - set(seen.taken))
    yield from counted("taken by dbt and not published", set(seen.taken) - outcomes.keys())
    yield from counted("published and not taken", outcomes.keys() - set(seen.taken))
    yield from counted("published more than once", [key for key, n in outcomes.items() if n > 1])


@invariant
def published_is_what_python_says(seen: Seen) -> Iterator[str]:
    reasons = {row["message_id"]: row["reason"] for row in seen.rejected} | dict.fromkeys(ids(seen.logins))
    misjudged = [key for key, reason in reasons.items() if key in seen.sent and reason != oracle.reason(seen.sent[key])]
    yield from counted("are judged otherwise", misjudged)
    wrong: dict[str, list[str]] = {}
    for row in seen.logins:
        if row["message_id"] not in seen.sent or row["message_id"] in misjudged:
            continue
        expected = oracle.login(seen.sent[row["message_id"]], seen.keys)
        for column in [name for name, value in expected.items() if row[name] != value]:
            wrong.setdefault(column, []).append(row["message_id"])
    for column, messages in wrong.items():
        yield from counted(f"have another {column}", messages)


@invariant
def one_key_version_a_table(seen: Seen) -> Iterator[str]:
    newest = max(map(len, seen.keys.values()))
    for place, versions in seen.key_versions.items():
        if set(versions) - {newest}:
            yield f"{place} has tokens of the keys {versions}, and the newest is {newest}"


@invariant
def erased_persons_are_gone(seen: Seen) -> Iterator[str]:
    erased = {row["message_id"] for row in seen.tombstones}
    yield from counted("were to be erased, and have no tombstone", seen.to_erase - erased)
    yield from counted("are erased, and nobody asked for it", erased - seen.may_erase)
    yield from counted("are erased, and in raw", erased & set(ids(seen.raw)))
    yield from counted("are erased, and published", erased & {*seen.taken, *ids(seen.logins), *ids(seen.rejected)})
    barred = {seen.sent.get(row["message_id"]) for row in seen.tombstones if row["was_in_raw"]}
    returned = [row["message_id"] for row in seen.raw if row["body"] in barred]
    yield from counted("are in raw with an erased body", returned)
    yield from counted("places that still have an erased person", seen.persons_left)


@invariant
def originals_are_those_of_what_is_published(seen: Seen) -> Iterator[str]:
    tokens = {(kind, row[f"masked_{kind}"]) for row in seen.logins for kind in seen.keys}
    if missing := len(tokens - seen.originals):
        yield f"{missing} tokens have no sealed original"
    if left := len(seen.originals - tokens):
        yield f"{left} sealed originals belong to no login"


@invariant
def every_recovery_is_in_the_audit(seen: Seen) -> Iterator[str]:
    by_id = {row["id"]: row for row in seen.audit}
    handed_out = [row for row in seen.audit if row["action"] == "original handed out"]
    recovered = Counter(token for token, _ in seen.revealed)
    if missing := (recovered - Counter(row["token"] for row in handed_out)).total():
        yield f"{missing} recoveries are not in the audit"
    for row in handed_out:
        request = by_id.get(row["about"])
        if not request or request["action"] != "recovery requested" or request["token"] != row["token"]:
            yield f"audit {row['id']}: nobody asked for what was handed out"
            continue
        since = [each for each in seen.audit if each["id"] < row["id"]]
        rules = [each for each in since if each["action"] in ("two persons required", "one person suffices")]
        during = [each["action"] for each in rules if each["id"] > request["id"]]
        during += [each["action"] for each in rules if each["id"] < request["id"]][-1:]
        approvals = [each for each in since if each["action"] == "recovery approved" and each["about"] == request["id"]]
        if set(during) == {"two persons required"} and not {each["login"] for each in approvals} - {request["login"]}:
            yield f"audit {row['id']}: handed out without the approval of another officer"
    if not seen.revealed:
        return
    versions = range(1, max(map(len, seen.keys.values())) + 1)
    right = {
        (oracle.token(seen.keys[kind][:version], value), f"{kind} {visible(value)}")
        for kind, value in {each for body in seen.sent.values() for each in oracle.masked_values(body)}
        for version in versions
    }
    if wrong := len(set(seen.revealed) - right):
        yield f"{wrong} recovered originals are not what was sent"


@invariant
def nothing_plain_is_anywhere_else(seen: Seen) -> Iterator[str]:
    yield from counted("places", seen.leaks)


# How a program may end while everything fails around it: of the README's table, what fits. A database that is away, out
# of room or ending statements; of privacy, what a function refuses; of dbt, models that failed, or no connection.
FITTING = {
    "loader": {0, 3, 8, 9, 13, 15},
    "privacy": {0, 1, 3, 13, 15, 16},
    "migrations": {0, 3, 5, 13, 15},
    "dbt": {0, 1, 2},
    "report": {0, 3, 13, 15},
    "status": {0},
}
SENTENCE = re.compile(r"\w.*[.!?)…]", re.MULTILINE)


@invariant
def programs_end_with_a_status_and_a_sentence(seen: Seen) -> Iterator[str]:
    for name, status, said in seen.endings:
        if status not in FITTING[name]:
            yield f"{name} ended with {status}"
        elif status and not SENTENCE.search(said):
            yield f"{name} ended with {status}, and without a sentence"
        if "Traceback (most recent call last)" in said:
            yield f"{name} ended with a traceback"


@invariant
def the_queues_are_empty(seen: Seen) -> Iterator[str]:
    for number, where in zip(seen.waiting, ("on the queue", "in flight", "on the dead-letter queue"), strict=True):
        if number:
            yield f"{number} {where}"

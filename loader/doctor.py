"""`loader doctor`: checks everything that a load depends on, changes nothing, and gives a remedy for each failure."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from loader.aws import redrive_policy
from loader.errors import RESTORE_KEYS, LoaderError, SequenceBehind
from loader.land import Away, Database, Refused, insert, made_up
from loader.sqs import Queue
from loader.status import ENOUGH_RECEIVES, age_of_oldest, dead_letter_trouble, dead_letters, span

PRIVILEGES = """
    select
        has_column_privilege('raw.sqs_messages', 'body', 'select'),
        (select rolsuper from pg_catalog.pg_roles where rolname = current_user),
        current_user
"""
# The loader may not look at the keys; that there is something in the table, anybody may see.
KEYS = """
    select coalesce(sum(pg_catalog.pg_relation_size(c.oid)), 0)
    from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = 'masking' and c.relname = 'keys'
"""


@dataclass
class Check:
    name: str
    well: bool
    finding: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.well else 'FAIL'}  {self.name:<19} {self.finding}"


def examine(open_queue: Callable[[], Queue], database: Database, flush: int) -> Iterator[Check]:
    """One check after the other. What cannot be examined, because an earlier check failed, is left out."""
    queue = None
    try:
        queue = open_queue()
        attributes = queue.attributes()
        yield Check("queue", True, f"{queue.name} in {queue.region}, about {queue.backlog(attributes)} messages")
        yield dead_letter_queue(queue, attributes)
        yield retention(queue, attributes)
    except LoaderError as error:
        yield Check("queue", False, str(error))
    try:
        database.open()
        version = database.connection.server_version // 10000
        yield Check("database", True, f"{database.connection.info.dbname}, PostgreSQL {version}")
        yield Check("migrations", True, "what landing needs is there, and may be used")
        yield Check("ledger", True, f"at load {database.newest}, and the sequence of loads is not behind it")
        with database.transaction() as cursor:
            yield grants(cursor)
            yield keys(cursor)
        if queue:
            yield visibility(queue, seconds_to_land(database, flush), flush)
    except SequenceBehind as error:
        yield Check("ledger", False, str(error))
    except LoaderError as error:
        yield Check("database", False, str(error))
    except (Away, Refused) as error:
        yield Check("database", False, f"A made-up batch does not land: {error}")


def dead_letter_queue(queue: Queue, attributes: dict[str, str]) -> Check:
    try:
        dead = dead_letters(queue, attributes)
    except LoaderError as error:
        return Check("dead-letter queue", False, str(error))
    trouble = dead_letter_trouble(queue.name, dead)
    fine = f"{dead['name']}, after {dead['receives']} receives; it is empty"
    return Check("dead-letter queue", not trouble, trouble or fine)


def retention(queue: Queue, attributes: dict[str, str]) -> Check:
    if not attributes.get("MessageRetentionPeriod"):  # an emulator's, which keeps them for as long as it runs
        return Check("retention", True, "how long messages are kept is unknown")
    kept = timedelta(seconds=int(attributes["MessageRetentionPeriod"]))
    if not queue.backlog(attributes):
        return Check("retention", True, f"messages are kept for {span(kept)}, and none waits")
    if (age := age_of_oldest(queue) or age_of_some(queue, attributes)) is None:
        return Check("retention", True, f"messages are kept for {span(kept)}; the age of the oldest is unknown")
    finding = f"messages are kept for {span(kept)}, the oldest has waited for {span(age)}"
    if age > kept / 2:
        finding += ": run more loaders, or raise MessageRetentionPeriod, before messages expire"
    return Check("retention", age <= kept / 2, finding)


def age_of_some(queue: Queue, attributes: dict[str, str]) -> timedelta | None:
    """Of the oldest of ten, where CloudWatch does not tell. Looking counts as a receive: not where few are allowed."""
    if int(redrive_policy(attributes).get("maxReceiveCount") or ENOUGH_RECEIVES) < ENOUGH_RECEIVES:
        return None
    sent = [int(each.sent_at) / 1000 for each in queue.peek() if each.sent_at]
    return timedelta(seconds=time.time() - min(sent)) if sent else None


def visibility(queue: Queue, seconds: float, flush: int) -> Check:
    finding = f"{queue.visibility} s; landing {flush} messages takes {seconds:.3f} s"
    if queue.visibility < 3 * seconds:
        finding += f": raise VisibilityTimeout to {int(3 * seconds) + 1} at least, or lower --flush"
    return Check("visibility timeout", queue.visibility >= 3 * seconds, finding)


def seconds_to_land(database: Database, flush: int) -> float:
    """Measured with made-up messages in a transaction that is rolled back."""
    messages = made_up(flush)
    began = time.monotonic()
    with database.transaction() as cursor:
        insert(cursor, "doctor", messages)
        cursor.connection.rollback()
    return time.monotonic() - began


def grants(cursor) -> Check:
    cursor.execute(PRIVILEGES)
    reads_bodies, is_superuser, login = cursor.fetchone()
    if reads_bodies or is_superuser:
        return Check("grants", False, f"{login} can read bodies: load as a login that has the role loader and no other")
    return Check("grants", True, f"{login} may add messages, and read none (for all logins: make attest)")


def keys(cursor) -> Check:
    cursor.execute(KEYS)
    [size] = cursor.fetchone()
    if not size:
        return Check("masking key", False, f"masking.keys is missing or empty: {RESTORE_KEYS}")
    return Check("masking key", True, "masking.keys is not empty; the loader may see no more of it")

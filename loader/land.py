"""The database: lands messages in raw.sqs_messages together with their row in the ledger, one transaction a batch."""

import io
import itertools
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from loader import errors, postgres
from loader.postgres import NULL, copy_text
from loader.sqs import Message, backoff

# All of it ends with the transaction: behind PgBouncer, the next one may run in another session. A deleted message has
# to be on disk; where the server is set to promise more than that, it stays so. Text columns, so that no line of COPY
# can be bad: PostgreSQL would write a bad line into its log. Between two statements there are milliseconds; a loader
# whose machine is gone would keep others waiting that were delivered the same messages, for hours by TCP's defaults.
PREPARE = """
    select set_config('synchronous_commit', 'on', true) where current_setting('synchronous_commit') = 'off';
    select set_config('idle_in_transaction_session_timeout', '60s', true)
    where current_setting('idle_in_transaction_session_timeout') = '0';
    create temporary table incoming (
        message_id text, body text, sent_at text, receive_count text,
        message_group_id text, sequence_number text, attributes text
    ) on commit drop
"""

# In a fixed order, so that two loaders that hold the same messages do not deadlock, and groups of a FIFO queue keep
# theirs. What is returned is counted: the statement's own count takes duplicates for rows on Citus.
LAND = """
    insert into raw.sqs_messages (
        message_id, queue, body, sent_at, receive_count, message_group_id, sequence_number, attributes, load_id
    )
    select
        message_id, %(queue)s, body, to_timestamp(sent_at::double precision / 1000), receive_count::integer,
        message_group_id, sequence_number, attributes::jsonb, (select raw.current_load_id())
    from pg_temp.incoming
    order by sequence_number collate "C", message_id collate "C"
    on conflict do nothing
    returning 1
"""

# In the same transaction, so with the same load_id.
RECORD = """
    insert into raw.loads (queue, received, landed, duplicates)
    values (%(queue)s, %(received)s, %(landed)s, %(received)s - %(landed)s)
    returning load_id
"""


LEDGER = "select newest_load_id, last_load_id, sequence_is_behind from raw.pipeline_state"

# Unless the login's own is shorter. It does not end a commit that waits for a standby, which would be taken for one
# that the standby has.
LIMIT = """
    select set_config('statement_timeout', %(milliseconds)s::text, true)
    from pg_catalog.pg_settings
    where name = 'statement_timeout' and setting::integer not between 1 and %(milliseconds)s
"""
LAST_STATEMENT = 3.0  # seconds, also where less is left

# What may be the fault of a message. The text of these may quote one, so they are only named.
DATA_ERRORS = ("22", "23", "44", "54", "P0")
# What a smaller batch may not run into: a timeout of the statement or transaction, memory, or temp_file_limit.
SIZE_ERRORS = ("57014", "25P04", "53200", "53400")


class Refused(Exception):
    """PostgreSQL refuses something in this batch. Says the name of its error, never the value."""


class Away(Exception):
    """The database cannot be used just now, and may be in a moment."""

    def __init__(self, trouble: errors.LoaderError):
        super().__init__(trouble)
        self.trouble = trouble


class TooMuch(Away):
    """It could not be done in one statement; half of it may be."""


@dataclass
class Landing:
    """What became of the messages of a batch."""

    durable: list[Message] = field(default_factory=list)
    landed: int = 0
    duplicates: int = 0
    refused: list[tuple[Message, str]] = field(default_factory=list)
    held_back: list[Message] = field(default_factory=list)  # behind a refused one in its FIFO group

    def __add__(self, other: "Landing") -> "Landing":
        return Landing(
            self.durable + other.durable,
            self.landed + other.landed,
            self.duplicates + other.duplicates,
            self.refused + other.refused,
            self.held_back + other.held_back,
        )


class Database:
    """One connection by PG*, used by one worker at a time, and made anew when it breaks."""

    def __init__(self, give_up_after: float = 300):
        self.give_up_after = give_up_after
        self.until = math.inf  # by time.monotonic(): it gives up then as well, and ends a statement that still runs
        self.stopping = threading.Event()
        self.there = threading.Event()  # cleared while the database is away: nothing is received meanwhile
        self.say = lambda event, **details: None
        self.turn = threading.Lock()
        self.connection: Connection | None = None
        self.newest = 0  # number in the ledger; the next is above it, or dbt would never read what it brings
        self.most: float = math.inf  # messages that are worth trying to land in one statement

    def open(self) -> None:
        """Connects, and makes sure of all that landing needs, before the first message is received."""
        try:
            with self.transaction():
                pass
        except Away as away:
            raise away.trouble from None

    def land(self, queue: str, messages: list[Message]) -> Landing:
        """Lands what can be landed. A message that is refused is found by halving, and keeps no other one out."""
        if len(messages) <= self.most:
            try:
                landed = self.land_together(queue, messages)
            except TooMuch as too_much:
                if self.stopping.is_set():
                    raise
                if time.monotonic() >= self.until:
                    raise too_much.trouble from None
                self.most = len(messages) // 2
            except Refused as refusal:
                if len(messages) == 1:
                    self.make_sure_that_others_land(queue, refusal)
                    return Landing(refused=[(messages[0], str(refusal))])
            else:
                self.most += len(messages) // 8 + 1
                received = sum(each.deliveries for each in messages)
                return Landing(durable=messages, landed=landed, duplicates=received - landed)
        half = len(messages) // 2
        first = self.land(queue, messages[:half])
        broken = {each.ordered_in for each, _ in first.refused} | {each.ordered_in for each in first.held_back}
        broken.discard(None)
        rest = [each for each in messages[half:] if each.ordered_in not in broken]
        held_back = [each for each in messages[half:] if each.ordered_in in broken]
        return first + (self.land(queue, rest) if rest else Landing()) + Landing(held_back=held_back)

    def land_together(self, queue: str, messages: list[Message]) -> int:
        """Lands all or none, and tells how many were new. While the database is away, tries again."""
        away_since = in_doubt = None
        for attempt in itertools.count():
            try:
                with self.transaction() as cursor:
                    load_id, landed = insert(cursor, queue, messages)
                    if in_doubt and landed == 0 and is_in_ledger(cursor, in_doubt[0]):
                        cursor.connection.rollback()  # the commit whose answer was lost did hold: no second ledger row
                        return in_doubt[1]
                    if load_id <= self.newest:
                        raise errors.SequenceBehind(sequence=load_id, ledger=self.newest)
                    in_doubt = load_id, landed
                self.newest = load_id
                return landed
            except Away as away:
                away_since = away_since or time.monotonic()
                if self.stopping.is_set() or (isinstance(away, TooMuch) and len(messages) > 1):
                    raise
                self.wait_for_it(away, away_since, attempt)

    def make_sure_that_others_land(self, queue: str, refusal: Refused) -> None:
        """By a made-up message, rolled back. What is refused as well says nothing against the one at hand."""
        began = time.monotonic()
        for attempt in itertools.count():
            try:
                with self.transaction() as cursor:
                    insert(cursor, queue, made_up(1))
                    return cursor.connection.rollback()
            except Refused:
                raise errors.NothingLands(reason=refusal) from None
            except Away as away:
                if self.stopping.is_set():
                    raise
                self.wait_for_it(away, began, attempt)

    def look(self) -> None:
        """Makes sure of a database that nobody uses just now; waits for it, and gives up on it, as who lands does."""
        began = time.monotonic()
        for attempt in itertools.count():
            if self.turn.locked() or self.stopping.is_set():
                return
            try:
                with self.transaction() as cursor:
                    return cursor.execute("select")
            except Away as away:
                self.wait_for_it(away, began, attempt)

    def wait_for_it(self, away: Away, since: float, attempt: int) -> None:
        """A pause that grows, until it has been away for too long."""
        now = time.monotonic()
        left = min(since + self.give_up_after, self.until) - now
        if left <= 0:
            raise errors.GaveUp(seconds=now - since, reason=away) from None
        self.say("the database is away, will try again", reason=str(away), attempt=attempt + 1)
        self.stopping.wait(min(backoff(attempt, longest=10), left))

    def limit(self, cursor: Cursor) -> None:
        """By the server, so that nothing of it goes on there once the program is gone."""
        if self.until < math.inf:
            seconds = max(self.until - time.monotonic(), LAST_STATEMENT)
            cursor.execute(LIMIT, {"milliseconds": round(1000 * seconds)})

    @contextmanager
    def transaction(self) -> Iterator:
        """A cursor for one transaction, committed at the end. No error leaves a connection that cannot be used."""
        with self.turn:
            try:
                if not self.connection:
                    self.connection, self.newest = connect(self.limit)
                with self.connection.cursor() as cursor:
                    self.limit(cursor)
                    yield cursor
                self.connection.commit()
                self.there.set()
            except psycopg2.Error as error:
                trouble = explained(error, landing=bool(self.connection))
                if isinstance(trouble, (Refused, TooMuch)):
                    with suppress(psycopg2.Error):
                        self.connection.rollback()
                    self.there.set()
                else:
                    self.there.clear()
                if not isinstance(trouble, Refused):
                    self.disconnect()
                raise trouble from None
            except BaseException:
                self.disconnect()
                raise

    def disconnect(self) -> None:
        connection, self.connection = self.connection, None
        if connection:
            with suppress(psycopg2.Error):
                connection.close()

    def cancel(self) -> None:
        """Stops the statement that is running, if one is."""
        with suppress(psycopg2.Error, AttributeError):
            self.connection.cancel()


def connect(limit: Callable[[Cursor], None]) -> tuple[Connection, int]:
    """A connection on which landing is known to be possible, and the newest number in the ledger."""
    connection = postgres.connect("loader")
    try:
        with connection.cursor() as cursor:
            limit(cursor)
            cursor.execute(PREPARE)
            cursor.execute("explain " + LAND, {"queue": ""})  # fails where a table or a grant is missing
            cursor.execute("explain " + RECORD, {"queue": "", "received": 0, "landed": 0})
            cursor.execute(LEDGER)
            newest, sequence, is_behind = cursor.fetchone()
        connection.commit()
        if is_behind:
            raise errors.SequenceBehind(sequence=sequence, ledger=newest)
    except BaseException:
        connection.close()  # at once: the error may keep it, and those of an outage use up what the login may have
        raise
    return connection, newest


def insert(cursor: Cursor, queue: str, messages: list[Message]) -> tuple[int, int]:
    """Inserts what is new, and the row in the ledger; tells that row's id, and how many messages were new."""
    lines = io.BytesIO("".join(map(copy_line, messages)).encode("utf-8", "surrogatepass"))
    cursor.execute(PREPARE)
    postgres.copy(cursor, "copy pg_temp.incoming from stdin", lines)
    cursor.execute(LAND, {"queue": queue})
    landed = cursor.rowcount
    received = sum(each.deliveries for each in messages)
    try:
        cursor.execute(RECORD, {"queue": queue, "received": received, "landed": landed})
    except psycopg2.Error as error:
        if (error.pgcode or "").startswith(DATA_ERRORS):  # no message is to blame for what the ledger refuses
            raise errors.NothingLands(reason=f"raw.loads: {postgres.name_of(error)}") from None
        raise
    return cursor.fetchone()[0], landed


def made_up(number: int) -> list[Message]:
    """Messages like many, for a transaction that is rolled back."""
    now = str(round(time.time() * 1000))
    return [Message(f"made-up-{uuid.uuid4()}", "", "x" * 200, now, "1", None, None, None) for _ in range(number)]


def copy_line(message: Message) -> str:
    """What are numbers in there, Message.of has made sure of."""
    return (
        f"{copy_text(message.id)}\t{copy_text(message.body)}\t{message.sent_at or NULL}\t"
        f"{message.receive_count or NULL}\t{copy_text(message.group_id)}\t{copy_text(message.sequence_number)}\t"
        f"{copy_text(message.attributes)}\n"
    )


def is_in_ledger(cursor, load_id: int) -> bool:
    cursor.execute("select from raw.loads where load_id = %s", [load_id])
    return cursor.rowcount == 1


def explained(error: psycopg2.Error, landing: bool) -> Exception:
    """What an error of PostgreSQL is to the loader. While it connects, no message is to blame."""
    state = error.pgcode or ""
    if landing and state.startswith(DATA_ERRORS):
        return Refused(postgres.name_of(error))
    trouble = postgres.explain(error, "Grant the role loader to this login")
    if isinstance(trouble, (errors.NotPermitted, errors.NotMigrated)):
        return trouble
    return TooMuch(trouble) if landing and state in SIZE_ERRORS else Away(trouble)

"""The way of a message: receive, land, commit, delete. Every worker does all of it; one thread keeps what they hold."""

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field

from loader.aws import LONG_POLL
from loader.errors import LoaderError
from loader.land import Away, Database
from loader.report import LOOK_EVERY, Report
from loader.sqs import BATCH, KINDS, MAX_VISIBILITY, Message, Queue

FLUSH_BYTES = 4 * 1024 * 1024
GRACE = 5  # seconds that a flush in hand is given, once the loader is told to stop


def work(run: "Run") -> None:
    """What each worker does until the queue is drained, a bound is reached or the loader is told to stop."""
    try:
        while run.goes_on():
            with run.holding() as batch:
                asked = receive(run, batch)
                landed = batch.messages and land_and_delete(run, batch)
            if landed:
                run.wake_the_idle()
            elif asked:
                run.wait_for_the_others()
    except Away:
        pass  # told to stop while the database was away; what was held has been handed back
    except BaseException as error:
        run.fail(error)
    finally:
        run.queue.client.hang_up()
        run.leave()


def receive(run: "Run", batch: "Batch") -> bool:
    """Fills the batch until it is worth a transaction or nothing more comes at once. False when it could not ask."""
    asked = False
    while run.goes_on() and not batch.is_full(run) and run.database.there.wait(0 if batch.messages else 0.5):
        if not (most := run.reserve(min(BATCH, run.flush - len(batch.messages)))):
            break
        asked, now = True, time.monotonic()
        messages = run.poll(most, waiting=not batch.messages)
        batch.add(messages, now)
        run.count_received(len(messages), most)
        if not messages or not receive_at_once(run, batch):
            break
    return asked


def receive_at_once(run: "Run", batch: "Batch") -> bool:
    """Where one call brought messages, several will. False when one of them brings nothing."""
    asked_for, more = 0, run.at_once > 1

    def numbers() -> Iterator[int]:
        nonlocal asked_for
        while more and run.goes_on() and not batch.is_full(run) and run.database.there.is_set():
            most = run.reserve(min(BATCH, run.flush - len(batch.messages) - asked_for))
            if most <= 0:
                return
            asked_for += most
            yield most

    for most, messages in run.queue.receive_more(numbers(), run.at_once):
        asked_for -= most
        batch.add(messages, time.monotonic())
        run.count_received(len(messages), most)
        more = more and bool(messages)
    return more or run.at_once == 1


def land_and_delete(run: "Run", batch: "Batch") -> bool:
    """One transaction, committed; then the deletes. What PostgreSQL refuses stays on the queue, for its own timeout.

    False when this brought nothing new, so that the queue may be empty.
    """
    began = time.monotonic()
    landing = run.database.land(run.queue.name_in_raw, list(batch.messages.values()))
    run.report.landed(landing, time.monotonic() - began)
    if run.cancelled:
        return False  # a commit that waited for a standby answers as if one had it, and may be here alone: hand back
    batch.messages, batch.durable = {each.id: each for each in landing.durable}, True
    try:
        run.report.add(deleted=run.queue.delete(landing.durable, run.at_once))
    finally:
        batch.messages = {}
    return bool(landing.durable) or run.refuses_more(landing.refused)


def keep_visible(run: "Run") -> None:
    """The heartbeat: what has been held for half of the visibility timeout is kept for another whole one."""
    half = run.queue.visibility / 2
    with ThreadPoolExecutor(run.workers, "keeper") as pool:
        while not run.over.wait(half / 8):
            due = [batch for batch in list(run.batches) if time.monotonic() - batch.kept > half * 7 / 8]
            list(pool.map(run.keep, due))


def watch(run: "Run") -> None:
    """Looks at the queue's own counters now and then, for the progress line and the metrics."""
    while not run.over.is_set():
        with suppress(LoaderError):
            run.report.look(run.queue.backlog(run.queue.attributes()))
        run.over.wait(LOOK_EVERY)


def look_after(run: "Run") -> None:
    """Of a loader that follows: sees whether the database is there, which nobody would notice while nothing comes."""
    try:
        while not run.over.wait(LOOK_EVERY):
            run.database.look()
    except LoaderError as error:
        run.fail(error)


@dataclass(eq=False)
class Batch:
    """The messages that a worker holds, by id: received, and not yet landed and deleted."""

    messages: dict[str, Message] = field(default_factory=dict)
    size: int = 0
    since: float = 0  # when the first was asked for
    kept: float = 0  # when all were last kept
    durable: bool = False  # landed, and being deleted
    unkept: bool = False  # as was said; once, because the heartbeat tries again every moment
    lock: threading.Lock = field(default_factory=threading.Lock)  # so that what was handed back is not kept again

    def add(self, messages: list[Message], asked: float) -> None:
        if not self.messages:
            self.since = self.kept = asked
        for message in messages:
            if earlier := self.messages.get(message.id):
                message.deliveries += earlier.deliveries
            self.messages[message.id] = message  # the newer receipt handle is the one that deletes
            self.size += len(message.body) + len(message.attributes or "")

    def is_full(self, run: "Run") -> bool:
        return (
            len(self.messages) >= run.flush
            or self.size >= FLUSH_BYTES
            or bool(self.messages and time.monotonic() - self.since > run.queue.visibility / 3)
        )


def threads(workers: int, at_once: int) -> int:
    """That make so many calls, each up to `at_once` of them. Four can land while others receive."""
    return max(min(workers, 4), math.ceil(workers / at_once))


class Run:
    """What the workers share: the queue, the database, what is held, and when to end."""

    def __init__(
        self,
        queue: Queue,
        database: Database,
        report: Report,
        *,
        workers: int = 32,
        flush: int = 500,
        follow: bool = False,
        max_messages: int | None = None,
        max_seconds: float | None = None,
        watched: bool = False,
    ):
        self.queue, self.database, self.report = queue, database, report
        self.workers = threads(workers, queue.client.at_once)
        self.at_once = math.ceil(workers / self.workers)  # calls that each of them makes
        self.flush, self.follow, self.max_seconds = flush, follow, max_seconds
        self.watched = watched
        report.queue = queue.name
        self.stopping = queue.stopping = database.stopping = threading.Event()
        self.over = threading.Event()  # all workers have left
        self.error: BaseException | None = None
        self.batches: set[Batch] = set()
        self.changed = threading.Condition()
        self.door = threading.Lock()
        self.active = self.workers
        self.idle: set[int] = set()  # workers that hold nothing and whose last long poll brought nothing
        self.refused: set[str] = set()  # ids of messages that PostgreSQL refused
        self.drained = self.cancelled = False
        self.left = float("inf") if max_messages is None else max_messages

    def start(self) -> None:
        for target in [keep_visible] + [watch] * self.watched + [look_after] * self.follow + [work] * self.workers:
            threading.Thread(target=target, args=[self], name=target.__name__, daemon=True).start()

    def wait(self) -> None:
        """Returns when all workers have left; soon after being told to stop, whatever the database does."""
        began, told = time.monotonic(), None
        while not self.over.wait(0.2):
            self.report.show_progress()
            if self.max_seconds is not None and time.monotonic() - began > self.max_seconds:
                self.stopping.set()
            if self.stopping.is_set():
                told = told or time.monotonic()
                if time.monotonic() - told > GRACE:
                    self.cancelled = True
                    threading.Thread(target=self.database.cancel, daemon=True).start()
                if time.monotonic() - told > 2 * GRACE:
                    break
        if self.error:
            raise self.error

    def say_what_is_left(self) -> None:
        """Nothing more came; but others may hold messages, and some may be delayed. SQS counts them roughly."""
        with suppress(LoaderError):
            attributes = self.queue.attributes()
            if self.queue.backlog(attributes) > len(self.queue.others):
                left = {kind or "Visible": attributes.get(f"ApproximateNumberOfMessages{kind}") for kind in KINDS}
                self.report.say("drained, but the queue counts more messages", **left)

    def goes_on(self) -> bool:
        return not (self.stopping.is_set() or self.drained or self.left <= 0)

    def poll(self, most: int, waiting: bool) -> list[Message]:
        """Receives. Of the idle workers of a loader that follows, one at a time asks, so that silence costs little."""
        with self.door if self.follow and threading.get_ident() in self.idle else nullcontext():
            if self.stopping.is_set() or not self.database.there.is_set():  # since it came to the door
                return []
            return self.queue.receive(most, LONG_POLL if waiting else 0)

    @contextmanager
    def holding(self) -> Iterator[Batch]:
        """A batch that the heartbeat knows of. What is still in it at the end is handed back."""
        batch = Batch()
        with self.changed:
            self.batches.add(batch)
        try:
            yield batch
        finally:
            with self.changed:
                self.batches.remove(batch)
            with batch.lock, suppress(LoaderError):
                self.queue.keep(list(batch.messages.values()), 0)

    def keep(self, batch: Batch) -> None:
        with batch.lock:
            if not batch.messages or batch not in self.batches:
                return
            now = time.monotonic()
            seconds = min(self.queue.visibility, int(MAX_VISIBILITY - (now - batch.since)) - 1)
            held = list(batch.messages.values())
            try:
                lost = self.queue.keep(held, seconds) if seconds > 0 else len(held)
                batch.kept = now if lost < len(held) else float("inf")  # nothing more can be done for these
            except LoaderError as error:
                if not batch.unkept:
                    self.report.say("could not keep messages, will try again", messages=len(held), reason=str(error))
                batch.unkept = True
            else:
                batch.unkept = False
                if lost and not batch.durable:  # else they may well be deleted already, which is as good
                    self.report.say("visibility timeout expired: they are redelivered and deduplicated", messages=lost)

    def reserve(self, most: int) -> int:
        with self.changed:
            most = max(0, min(most, self.left))  # below 0 where SQS sent more than it was asked for
            self.left -= most
            return most

    def count_received(self, received: int, reserved: int) -> None:
        with self.changed:
            self.left += reserved - received
            if received:
                self.idle.discard(threading.get_ident())
        self.report.add(received=received)

    def refuses_more(self, refused: list[tuple[Message, str]]) -> bool:
        """Whether some are refused for the first time; others may be behind them. With --follow, it asks on anyway."""
        if self.follow:
            return False
        with self.changed:
            known = len(self.refused)
            self.refused.update(message.id for message, _ in refused)
            return len(self.refused) > known

    def wake_the_idle(self) -> None:
        """While something was landed, more may have come."""
        with self.changed:
            self.idle.clear()
            self.changed.notify_all()

    def wait_for_the_others(self) -> None:
        """A long poll brought nothing, or nothing but what was refused before. When that is so of all: the end."""
        with self.changed:
            self.idle.add(threading.get_ident())
            self.see_whether_drained()
            while not self.follow and threading.get_ident() in self.idle and self.goes_on():
                self.changed.wait(0.2)

    def see_whether_drained(self) -> None:
        if not self.follow and self.goes_on() and len(self.idle) >= self.active:
            self.drained = True
            self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        self.error = self.error or error
        self.stopping.set()

    def leave(self) -> None:
        with self.changed:
            self.active -= 1
            self.idle.discard(threading.get_ident())
            self.see_whether_drained()
            if self.active == 0:
                self.over.set()

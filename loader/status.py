"""The state of the pipeline on one screen: backlog, the last 24 hours, and what needs attention.

It asks for no more than a login in the role `monitor` may see: the queues' counters, and analytics.pipeline_health.
"""

import json
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from typing import Any

import botocore.session
import click
from botocore.config import Config
from psycopg2.extras import RealDictCursor

from loader import errors, postgres
from loader.aws import connect
from loader.sqs import Queue

COUNTERS = {
    "waiting": "ApproximateNumberOfMessages",
    "in_flight": "ApproximateNumberOfMessagesNotVisible",
    "delayed": "ApproximateNumberOfMessagesDelayed",
}
ENOUGH_RECEIVES = 3  # a loader that is killed, or a message released on shutdown, costs one

PIPELINE = """
    select
        measured_at, newest_load_at, sent_to_landed, landed_to_analytics, untransformed, received, landed, duplicates,
        accepted, rejected, erased, unaccounted, landed_week_before, rejected_week_before, rejected_by_reason,
        mask_key_version, rotation_is_open, sequence_is_behind
    from analytics.pipeline_health
"""
QUEUES = """
    select
        queue, newest_load_at, landed_to_analytics, untransformed, received, landed, duplicates, accepted, rejected,
        erased, unaccounted, landed_week_before, rejections_jumped
    from analytics.queue_health order by queue
"""


class Status:
    """What was seen. A part that could not be is None, and why is in `unseen`."""

    def __init__(self, queue_name: str | None, queue_url: str | None, max_lag: timedelta):
        self.unseen: list[errors.LoaderError] = []
        queue = self.see(lambda: Queue(connect(1, queue_url=queue_url), queue_name, queue_url))
        self.queue = queue and self.see(lambda: backlog(queue))
        self.dead_letters = queue and self.see(lambda: dead_letters(queue, queue.attributes()))
        self.pipeline = self.see(pipeline_health)
        self.attention = [str(error) for error in self.unseen] + list(troubles(self, max_lag))

    def see(self, part: Callable[[], dict]) -> Any:
        try:
            return part()
        except errors.LoaderError as error:
            self.unseen.append(error)

    @property
    def exit_status(self) -> int:
        """That of the first part that could not be seen: of what that hides, nobody knows."""
        return next((error.exit_status for error in self.unseen), errors.NotWell.exit_status if self.attention else 0)


# What is looked at.


def backlog(queue: Queue) -> dict:
    attributes = queue.attributes()
    counted = {name: int(attributes.get(counter) or 0) for name, counter in COUNTERS.items()}
    return {"name": queue.name, **counted, "oldest": age_of_oldest(queue) if counted["waiting"] else timedelta(0)}


def age_of_oldest(queue: Queue) -> timedelta | None:
    """From CloudWatch; SQS itself does not tell. None without an answer, or without the permission."""
    now = datetime.now(timezone.utc)
    try:
        points = cloudwatch_of(queue).get_metric_statistics(
            Namespace="AWS/SQS",
            MetricName="ApproximateAgeOfOldestMessage",
            Dimensions=[{"Name": "QueueName", "Value": queue.url.rpartition("/")[2]}],
            StartTime=now - timedelta(minutes=15),
            EndTime=now,
            Period=60,
            Statistics=["Maximum"],
        )["Datapoints"]
        return timedelta(seconds=max(points, key=lambda each: each["Timestamp"])["Maximum"]) if points else None
    except Exception:  # whatever the emulator, proxy or provider of credentials in its place does
        return None


def cloudwatch_of(queue: Queue) -> Any:
    config = Config(connect_timeout=5, read_timeout=5, retries={"total_max_attempts": 1})
    return botocore.session.get_session().create_client("cloudwatch", queue.region, config=config)


def dead_letters(queue: Queue, attributes: dict[str, str]) -> dict:
    """The dead-letter queue: its name (None where there is none), its messages, and how many receives lead there."""
    dead, receives = queue.dead_letters(attributes)
    if not dead:
        return {"name": None, "waiting": 0, "receives": 0}
    return {"name": dead.name, "waiting": dead.backlog(dead.attributes()), "receives": receives}


def dead_letter_trouble(queue: str, dead: dict) -> str | None:
    """What is wrong with the dead-letter queue, with the remedy; for `status` and `doctor`, which have to agree."""
    if not dead["name"]:
        return (
            f"{queue} has no dead-letter queue, so a message that PostgreSQL refuses is redelivered until it expires:"
            " set a RedrivePolicy with maxReceiveCount 5"
        )
    if dead["receives"] < ENOUGH_RECEIVES:
        return (
            f"maxReceiveCount is {dead['receives']}, so a loader that is killed a few times sends good messages to"
            f" {dead['name']}: set 5 in the RedrivePolicy"
        )
    if dead["waiting"]:
        return (
            f"{dead['name']} holds {dead['waiting']:,} {'message' if dead['waiting'] == 1 else 'messages'}:"
            " fix what stopped them, then run `python -m loader redrive`"
        )
    return None


def pipeline_health() -> dict:
    with (
        postgres.explained("Grant the role monitor to this login", missing=errors.NotBuilt),
        closing(postgres.connect("loader status")) as connection,
        connection.cursor(cursor_factory=RealDictCursor) as cursor,
    ):
        return health_of(cursor)


def health_of(cursor: RealDictCursor) -> dict:
    """The pipeline's row, and under `queues` each queue's, by name."""
    cursor.execute(postgres.INTERVALS)
    cursor.execute(PIPELINE)
    seen = dict(cursor.fetchone())
    cursor.execute(QUEUES)
    return seen | {"queues": {row["queue"]: dict(row) for row in cursor.fetchall()}}


def troubles(status: Status, max_lag: timedelta) -> Iterator[str]:
    """What needs attention, each with its remedy."""
    queue, dead, seen = status.queue, status.dead_letters, status.pipeline
    if queue and dead and (trouble := dead_letter_trouble(queue["name"], dead)):
        yield f"{trouble}."
    if queue and queue["waiting"]:
        is_it_running = "Is `python -m loader load` running?"
        if queue["oldest"] is not None:
            if queue["oldest"] > max_lag:
                yield f"The oldest message has been on the queue for {span(queue['oldest'])}. {is_it_running}"
        elif seen and (since := since_last_load(seen, queue["name"])) is None:
            yield f"Messages wait on {queue['name']}, and none from there has ever landed. {is_it_running}"
        elif seen and since > max_lag:
            yield f"Messages wait on {queue['name']}, and none from there has landed for {span(since)}. {is_it_running}"
    if seen and seen["landed_to_analytics"] > max_lag:
        yield f"The oldest landed message has waited for dbt for {span(seen['landed_to_analytics'])}: run `make build`."
    if seen and seen["unaccounted"]:
        yield f"{seen['unaccounted']:,} unaccounted for: once no dbt is running, `dbt test` in dbt_project/ says where."
    if seen and seen["rotation_is_open"]:
        yield "A key rotation has begun and has not ended; dbt builds nothing meanwhile: run `make rotate-key` again."
    if seen and seen["sequence_is_behind"]:
        yield "raw.load_id_seq is behind the ledger, so no loader starts: `python -m loader doctor` says how to set it."
    for each in seen["queues"].values() if seen else ():
        if each["rejections_jumped"]:
            yield (
                f"{each['rejected']:,} of {each['accepted'] + each['rejected']:,} messages from {each['queue']} were"
                " rejected in 24 hours, far more than before: the reasons are above, and explained in README.md."
            )


# How it is shown.

Row = tuple[str, str, str]  # what, how much, and a note
UNKNOWN = "?"


def screen(status: Status) -> str:
    rows = [*queue_rows(status.queue), *dead_letter_rows(status.dead_letters), *pipeline_rows(status.pipeline)]
    lines = [f"{what:<13}{figure:>9}   {note}".rstrip() for what, figure, note in rows]
    said = [click.style(each, fg="red") for each in status.attention] or [click.style(all_is_well(status), fg="green")]
    return "\n".join([*lines, "", *said])


def all_is_well(status: Status) -> str:
    looked_at = status.queue["name"]
    others = ", ".join(name for name in live_queues(status.pipeline) if name != looked_at)
    if others:
        return f"All is well on {looked_at} and in the database. Not looked at in SQS: {others} (--queue-name)."
    return "All is well."


def live_queues(seen: dict) -> dict[str, dict]:
    """From which something has landed in eight days: not a former one that is still declared."""
    counts = ("received", "untransformed", "landed_week_before")
    return {name: each for name, each in seen.get("queues", {}).items() if any(each[count] for count in counts)}


def queue_rows(queue: dict | None) -> Iterator[Row]:
    if not queue:
        yield "Waiting", UNKNOWN, ""
        return
    others = f"{queue['in_flight']:,} in flight, {queue['delayed']:,} delayed"
    yield "Waiting", f"{queue['waiting']:,}", f"on {queue['name']}; {others}"
    if queue["oldest"] is None:
        yield "Oldest", UNKNOWN, "unknown: no access to CloudWatch"
    else:
        yield "Oldest", span(queue["oldest"]), "on the queue"


def dead_letter_rows(dead: dict | None) -> Iterator[Row]:
    if dead and not dead["name"]:
        yield "Dead letters", "none", "the queue has no redrive policy"
    else:
        yield "Dead letters", f"{dead['waiting']:,}" if dead else UNKNOWN, f"on {dead['name']}" if dead else ""


def pipeline_rows(seen: dict | None) -> Iterator[Row]:
    if not seen:
        yield "Landed", UNKNOWN, ""
        return
    if seen["newest_load_at"]:
        waited = "ago"
        if seen["sent_to_landed"] is not None:  # its messages may have been purged or erased since
            waited += f"; time in queue {span(seen['sent_to_landed'])}"
        yield "Last load", span(since_last_load(seen)), waited
    else:
        yield "Last load", "never", ""
    waiting = f"waiting for dbt, the oldest for {span(seen['landed_to_analytics'])}"
    yield "For dbt", f"{seen['untransformed']:,}", waiting
    yield "Key", str(seen["mask_key_version"] or "none"), "version in use"

    queues = live_queues(seen)
    for name, each in queues.items() if len(queues) > 1 else ():
        yield "", f"{each['landed']:,}", f"landed from {name} in 24 hours; {each['untransformed']:,} waiting for dbt"

    ends = {name: seen[name] for name in ("accepted", "rejected", "erased")}
    # dbt takes loads in order: what waits is of this day, or all of this day waits
    ends["for dbt"] = min(seen["untransformed"], seen["landed"] - seen["erased"])
    yield "", "", ""
    yield "In 24 hours", "", ""
    yield "Received", f"{seen['received']:,}", "from SQS"
    yield "Landed", f"{seen['landed']:,}", f"in raw.sqs_messages; {seen['duplicates']:,} duplicates"
    yield "Accepted", f"{seen['accepted']:,}", "in analytics, masked"
    yield "Rejected", f"{seen['rejected']:,}", "in analytics.rejected_messages"
    reasons = sorted(seen["rejected_by_reason"].items(), key=lambda item: (-item[1], item[0]))
    for text in textwrap.wrap(", ".join(f"{number:,}\N{NO-BREAK SPACE}{reason}" for reason, number in reasons), 72):
        yield "", "", "  " + text.replace("\N{NO-BREAK SPACE}", " ")
    yield "Erased", f"{seen['erased']:,}", "on request"
    became = " + ".join(f"{number:,} {name}" for name, number in ends.items())
    missing = seen["unaccounted"]
    too_many = sum(ends.values()) + missing - seen["landed"]  # in other loads than those that miss some
    balance = f"{became}{f' + {missing:,}' if missing else ''}{f' - {too_many:,} too many' if too_many else ''}"
    yield "Missing", f"{missing:,}", f"since {seen['landed']:,} = {balance}"


def since_last_load(seen: dict, queue: str | None = None) -> timedelta | None:
    """Of all queues, or of this one, where others may be doing well. None where nothing has landed yet."""
    of = seen if queue is None or "queues" not in seen else seen["queues"].get(queue, {"newest_load_at": None})
    return of["newest_load_at"] and seen["measured_at"] - of["newest_load_at"]


def span(age: timedelta) -> str:
    """An age as people say it, in one unit."""
    seconds = max(age.total_seconds(), 0)
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def to_json(status: Status) -> str:
    """The same for a machine. Ages are in seconds, times in ISO 8601; a part that could not be seen is null."""
    return json.dumps(
        {
            "well": not status.attention,
            "attention": status.attention,
            "queue": status.queue,
            "dead_letters": status.dead_letters,
            "pipeline": status.pipeline,
        },
        default=lambda value: value.total_seconds() if isinstance(value, timedelta) else value.isoformat(),
    )

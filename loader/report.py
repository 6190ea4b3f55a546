"""What the loader tells: counts and ids, never a value. The result goes to stdout, everything else to stderr."""

import json
import os
import sys
import threading
import time
from bisect import bisect_left
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import NamedTuple

LOOK_EVERY = 5  # seconds between two looks at the queue's counters, which are rough and lag behind,
SMOOTHED = 30  # so that rates and estimates are of this many seconds
FLUSH_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
COUNTS = {
    "received": "Deliveries received from SQS.",
    "landed": "Messages that were new, and are now in raw.sqs_messages.",
    "duplicates": "Deliveries of messages that had landed before.",
    "deleted": "Deliveries settled by deleting the message.",
    "refused": "Deliveries that PostgreSQL refused; they stay on the queue.",
}


class Look(NamedTuple):
    """At the queue's counters, and what had become of its messages by then."""

    at: float
    backlog: int
    landed: int
    deleted: int


class Report:
    """Counts for the result, the progress line and the metrics."""

    def __init__(self, log_format: str = "text", progress: bool = False, queue: str = ""):
        self.queue = queue
        self.as_json = log_format == "json"
        self.progress = progress
        self.lock = threading.Lock()
        self.writing = threading.Lock()
        self.counts = dict.fromkeys(COUNTS, 0)
        self.flushes = [0] * (len(FLUSH_BOUNDS) + 1)  # how many took up to each bound, and longer than the last
        self.flush_seconds = 0.0
        self.last_success = 0.0
        self.oldest_sent = 0.0
        self.looks: list[Look] = []

    def add(self, **counts: int) -> None:
        with self.lock:
            for name, number in counts.items():
                self.counts[name] += number

    def landed(self, landing, seconds: float) -> None:
        for message, why in landing.refused:
            self.say("PostgreSQL refused a message", message_id=message.id, why=why)
        with self.lock:
            self.counts["landed"] += landing.landed
            self.counts["duplicates"] += landing.duplicates
            self.counts["refused"] += sum(message.deliveries for message, _ in landing.refused)
            self.flushes[bisect_left(FLUSH_BOUNDS, seconds)] += 1
            self.flush_seconds += seconds
            if landing.durable:
                self.last_success = time.time()
                self.oldest_sent = min([int(each.sent_at) for each in landing.durable if each.sent_at] or [0]) / 1000

    def say(self, event: str, **details: object) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        if self.as_json:
            line = json.dumps({"at": now, "event": event, **details})
        else:
            line = f"{now} {event}" + "".join(f" {name}={value}" for name, value in details.items())
        self.write(("\r\033[K" if self.progress else "") + line + "\n")

    def write(self, text: str) -> None:
        """In one piece: standard error may be unbuffered, and threads write at the same time."""
        with self.writing:
            sys.stderr.write(text)
            sys.stderr.flush()

    def look(self, backlog: int) -> None:
        now = time.monotonic()
        recent = [each for each in self.looks if each.at > now - SMOOTHED - LOOK_EVERY / 2]
        self.looks = [*recent, Look(now, backlog, self.counts["landed"], self.counts["deleted"])]

    @property
    def backlog(self) -> int:
        """Messages on the queue, in flight or not, when last looked at."""
        return self.looks[-1].backlog if self.looks else 0

    @property
    def oldest(self) -> float:
        """Age in seconds of the oldest message landed last; of none, once there is none."""
        return time.time() - self.oldest_sent if self.backlog and self.oldest_sent else 0

    def show_progress(self) -> None:
        if self.progress:
            line, room = progress_line(self.looks, self.counts["landed"]), columns()
            named = f"{self.queue}: {line}"
            self.write(f"\r\033[K{named if room is None or len(named) <= room else line[:room]}")

    def end_progress(self) -> None:
        if self.progress:
            self.write("\r\033[K")

    def result(self) -> str:
        """received = landed + duplicates + refused + returned. What landed and is not deleted comes again."""
        counts = self.counts
        durable = counts["landed"] + counts["duplicates"]
        returned = counts["received"] - durable - counts["refused"]
        return (
            f"received {counts['received']}: landed {counts['landed']}, duplicates {counts['duplicates']}, "
            f"refused {counts['refused']}, returned {returned}; "
            f"deleted {counts['deleted']}, not deleted {durable - counts['deleted']}"
        )


def columns() -> int | None:
    """Of the terminal, but for the last: a longer line would go on in the next, and stay there. None where unknown."""
    with suppress(OSError, ValueError, AttributeError):
        if wide := os.get_terminal_size(sys.stderr.fileno()).columns:
            return wide - 1
    return None


def progress_line(looks: list[Look], landed: int) -> str:
    """Landed, rate, backlog, what arrives meanwhile, and how long the backlog will last at that."""
    line = f"landed {landed:,}"
    if len(looks) < 2:
        return line
    first, last = looks[0], looks[-1]
    seconds = last.at - first.at
    shrinks = (first.backlog - last.backlog) / seconds
    arrives = (last.deleted - first.deleted) / seconds - shrinks  # a message is in the backlog until it is deleted
    line += f", {(last.landed - first.landed) / seconds:,.0f}/s; backlog {last.backlog:,}"
    if arrives >= 1:
        line += f", {arrives:,.0f}/s arriving"
    if last.backlog and shrinks > 0:
        line += f", done in {timedelta(seconds=round(last.backlog / shrinks))}"
    return line + ", growing" if shrinks <= -1 else line

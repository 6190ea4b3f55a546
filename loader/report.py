"""What the loader tells: counts and ids, never a value. The result on stdout, everything else on stderr."""

import json
import sys
import threading
import time
from bisect import bisect_left
from datetime import datetime, timezone

FLUSH_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
COUNTS = {
    "received": "Deliveries received from SQS.",
    "landed": "Messages that were new and are now in raw.sqs_messages.",
    "duplicates": "Deliveries of messages that had landed before.",
    "deleted": "Deliveries settled by deleting the message.",
    "refused": "Deliveries that PostgreSQL refused; they stay on the queue.",
}
LOOK_EVERY = 5  # seconds between two looks at the queue's own counters


class Report:
    def __init__(self, log_format: str = "text", progress: bool = False, watch: bool = False):
        self.json = log_format == "json"
        self.progress = progress
        self.watch = watch or progress
        self.lock = threading.Lock()
        self.counts = dict.fromkeys(COUNTS, 0)
        self.flushes = [0] * (len(FLUSH_BOUNDS) + 1)
        self.flush_seconds = 0.0
        self.last_success: float | None = None
        self.oldest: float = 0
        self.backlog: int | None = None

    def add(self, **counts: int) -> None:
        with self.lock:
            for name, number in counts.items():
                self.counts[name] += number

    def landed(self, landing, seconds: float) -> None:
        sent = [int(each.sent_at) / 1000 for each in landing.durable if each.sent_at]
        for message, why in landing.refused:
            self.say("PostgreSQL refused a message", message_id=message.id, why=why)
        self.add(
            landed=landing.landed,
            duplicates=landing.duplicates,
            refused=sum(message.deliveries for message, _ in landing.refused),
        )
        with self.lock:
            self.flushes[bisect_left(FLUSH_BOUNDS, seconds)] += 1
            self.flush_seconds += seconds
            if landing.durable:
                self.last_success = time.time()
                self.oldest = self.last_success - min(sent, default=self.last_success)

    def say(self, event: str, **details: object) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        if self.json:
            line = json.dumps({"at": now, "event": event, **details})
        else:
            line = f"{now} {event}" + "".join(f" {name}={value}" for name, value in details.items())
        print(("\r\033[K" if self.progress else "") + line, file=sys.stderr, flush=True)

    def tick(self, run) -> None:
        pass

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

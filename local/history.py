"""Made-up logins of the weeks before today, for analysts to look into; python -m local.history lands them in raw.

Accounts join, update the app and log in by day and week, as people do. To be found among them: an office and a carrier
behind one address each, families, a release that breaks a field, and two groups of accounts that are one person's.
"""

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta, timezone
from uuid import UUID

import click

from loader.land import Database
from loader.sqs import Message
from local import events
from local.events import Event, Login

DAYS = 42
PEOPLE = 400  # besides the office and the groups
SEED = 0
PREFIX = "history-"  # of message ids: everybody sees that these are not from SQS
RELEASES = {-20: "5.2.0", 9: "5.3.0", 25: "6.0.0", 27: "6.0.1", 38: "6.1.0"}  # by day of the history
OLDEST = "5.1.0"
BROKEN = "6.0.0"  # on Android, it mostly sends no device_id; withdrawn after two days
REJECTED_ONE_IN = 150  # besides
ALL_ZERO = "00000000-0000-0000-0000-000000000000"  # the advertising id of who does not want to be tracked

# Weights: of days from Monday, and of UTC hours.
WEEK = (1, 1, 1, 0.98, 0.92, 0.75, 0.7)
AWAKE = (4, 2, 1, 1, 1, 2, 5, 9, 12, 12, 11, 11, 13, 12, 11, 11, 12, 14, 17, 20, 21, 18, 13, 8)
AT_WORK = (*(0,) * 7, 3, 9, 8, 7, 6, 5, 7, 7, 6, 4, 1, *(0,) * 6)
AT_NIGHT = (1, 6, 8, 5, *(0,) * 20)


@dataclass(frozen=True)
class Account:
    """Who logs in. A login is from one of the devices and one of the addresses."""

    user_id: str
    device_type: str
    locale: str | None
    devices: tuple[str, ...]
    addresses: tuple[str, ...]
    joined: int  # day of the history
    a_day: float  # logins
    updates_after: float  # days from a release
    hours: tuple[int, ...] = AWAKE

    def version(self, day: int) -> str:
        offered = {version: since for since, version in RELEASES.items() if version != BROKEN or self.updates_after < 2}
        installed = [version for version, since in offered.items() if since + self.updates_after <= day]
        return installed[-1] if installed else OLDEST

    def login(self, rng: random.Random, day: int) -> Login:
        return {
            "user_id": self.user_id,
            "app_version": self.version(day),
            "device_type": self.device_type,
            "ip": rng.choice(self.addresses),
            "locale": self.locale,
            "device_id": rng.choice(self.devices),
        }


def people() -> list[Login]:
    """What each account sends when it logs in today."""
    rng = random.Random(SEED)
    return [account.login(rng, DAYS) for account in accounts(rng)]


def history(today: datetime) -> Iterator[tuple[datetime, Event]]:
    """The messages of the weeks before the UTC day of `today`, by the time at which they were sent."""
    rng = random.Random(SEED)
    everybody = accounts(rng)
    reasons = itertools.cycle(events.REJECTED)
    midnight = datetime.combine(today.astimezone(timezone.utc).date(), time(), timezone.utc)
    for day in range(DAYS):
        date = midnight - timedelta(days=DAYS - day)
        logins = []
        for account in everybody:
            a_day = account.a_day * WEEK[date.weekday()] if account.joined <= day else 0
            for _ in range(int(a_day) + (rng.random() < a_day % 1)):
                logins.append((date + moment(rng, account.hours), account.login(rng, day)))
        for sent_at, login in sorted(logins, key=lambda each: each[0]):
            yield sent_at, as_sent(rng, login, reasons)


def moment(rng: random.Random, hours: tuple[int, ...]) -> timedelta:
    """A time of the day, in whole milliseconds as SQS has it."""
    hour = rng.choice([hour for hour, weight in enumerate(hours) for _ in range(weight)])
    return timedelta(hours=hour, milliseconds=rng.randrange(3_600_000))


def as_sent(rng: random.Random, login: Login, reasons: Iterator[str]) -> Event:
    if login["app_version"] == BROKEN and login["device_type"] == "android" and rng.random() < 0.8:
        return Event(json.dumps(login | {"device_id": None}), "missing_device_id")
    if rng.randrange(REJECTED_ONE_IN) == 0:
        return events.rejected(rng, next(reasons), login)
    return Event(json.dumps(login | {"ip": events.spelled(rng, login["ip"])}), None)


def accounts(rng: random.Random) -> list[Account]:
    found = [*crowd(rng), *office(rng, 24), *ring(rng, 14, devices=4, joined=30), *ring(rng, 6, devices=1, joined=17)]
    return sorted(found, key=lambda account: account.joined)


def crowd(rng: random.Random) -> Iterator[Account]:
    """A third of them joined before the history begins, the others in it, more from week to week."""
    carrier = events.address(rng)
    before = None
    for number in range(PEOPLE):
        account = somebody(rng, joined=int(DAYS * (number / PEOPLE - 0.35) / 0.65))
        if before and rng.random() < 0.12:  # a family
            account = replace(account, addresses=before.addresses, locale=before.locale)
            if rng.random() < 0.3:
                account = replace(account, devices=before.devices, device_type=before.device_type)
        elif rng.random() < 0.15:
            account = replace(account, addresses=(*account.addresses, carrier))
        before = account
        yield account


def somebody(rng: random.Random, joined: int) -> Account:
    device_type = "android" if rng.random() < 0.58 else "ios"
    hides = device_type == "ios" and rng.random() < 0.12
    devices = [ALL_ZERO if hides else events.device(rng) for _ in range(1 if rng.random() < 0.85 else 2)]
    return Account(
        user_id=str(UUID(int=rng.getrandbits(128), version=4)),
        device_type=device_type,
        locale=None if rng.random() < 0.3 else rng.choice(events.LOCALES),
        devices=tuple(devices),
        addresses=tuple(events.address(rng) for _ in range(rng.choice((1, 1, 2, 3)))),
        joined=max(joined, 0),
        a_day=rng.choice((0.2, 0.4, 0.6, 1, 1.2, 2.5)),
        updates_after=rng.choice((0, 0, 1, 1, 2, 3, 5, 8, 13, 2 * DAYS)),
    )


def office(rng: random.Random, desks: int) -> Iterator[Account]:
    """Phones and accounts of their own, one address, at work."""
    address = (events.address(rng),)
    for _ in range(desks):
        yield replace(somebody(rng, joined=0), addresses=address, a_day=1, hours=AT_WORK)


def ring(rng: random.Random, users: int, devices: int, joined: int) -> Iterator[Account]:
    """One person's accounts: opened within days, used at night from a few devices and addresses, never updated."""
    shared = [events.device(rng) for _ in range(devices)]
    homes = [events.address(rng) for _ in range(1 + devices // 2)]
    for number in range(users):
        yield replace(
            somebody(rng, joined=joined + number // 5),
            device_type="android",
            locale=None,
            devices=(shared[number % devices], shared[(number + 1) % devices]),
            addresses=(homes[number % len(homes)],),
            a_day=1.6,
            updates_after=2 * DAYS,
            hours=AT_NIGHT,
        )


@click.command()
@click.argument("queue")
def main(queue: str) -> None:
    """Land the history as messages of this queue, by the loader's own code: a load for each day, with past timestamps.

    PG* name the database and a login in the role loader. Idempotent: a message that has landed is a duplicate.
    """
    database = Database()
    database.open()
    messages = [
        (sent_at.date(), as_received(f"{PREFIX}{number:06}", sent_at, event))
        for number, (sent_at, event) in enumerate(history(datetime.now(timezone.utc)))
    ]
    for _, day in itertools.groupby(messages, key=lambda dated: dated[0]):
        database.land(queue, [message for _, message in day])
    database.disconnect()
    click.echo(f"landed {len(messages):,} messages of the {DAYS} days before today, with timestamps of those days")


def as_received(message_id: str, sent_at: datetime, event: Event) -> Message:
    milliseconds = str(round(sent_at.timestamp() * 1000))
    return Message(message_id, "", event.body, milliseconds, "1", None, None, None)


if __name__ == "__main__":
    main(prog_name="python -m local.history")

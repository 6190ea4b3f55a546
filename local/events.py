"""Made-up login messages, the same for the same seed, each with what must become of it."""

import ipaddress
import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

Login = dict[str, Any]

REJECTED_EVERY = 10  # each time for the next reason, so that 200 messages have them all
LONGEST = {"user_id": 128, "device_type": 32, "locale": 32}
REQUIRED = ("user_id", "app_version", "device_type", "ip", "device_id")
LOCALES = ("RU", "US", "DE", "BR", "IN", "pt-BR", "zh-Hant-TW")
VERSIONS = ("0.96", "1.9", "1.10", "2.3", "2.3.0", "3.4.12", "6.02", "6.2.0", "12")
ODD_ADDRESSES = ("127.0.0.1", "239.1.2.3", "240.0.0.1", "0.0.0.0", "::1", "fe80::1", "unknown", "10.0.0.1, 10.0.0.2")


@dataclass(frozen=True)
class Event:
    body: str = field(repr=False)
    reason: str | None  # why it must be rejected; None when it must be accepted


def generate(count: int, seed: int, people: list[Login] | None = None) -> Iterator[Event]:
    """So many messages: mostly logins, some of them sent twice.

    `people` is what each user sends; where it names no version, any. Without it, people are made up who share things.
    """
    rng = random.Random(seed)
    people = people or _people(rng, max(count // 3, 5))
    reasons = itertools.cycle(REJECTED)
    sent_again = None
    for number in range(1, count + 1):
        if number % REJECTED_EVERY == 0:
            yield rejected(rng, next(reasons), _login(rng, people))
        elif sent_again:
            yield sent_again
            sent_again = None
        else:
            event = Event(json.dumps(_login(rng, people), ensure_ascii=False), None)
            yield event
            sent_again = event if rng.random() < 0.03 else None


def _people(rng: random.Random, how_many: int) -> list[Login]:
    """What stays the same from login to login. One in four takes the device of the one before, or the address."""
    people: list[Login] = []
    for _ in range(how_many):
        other = people[-1] if people else {}
        people.append(
            {
                "user_id": str(UUID(int=rng.getrandbits(128))),
                "device_type": rng.choice(("android", "ios")),
                "ip": other["ip"] if other and rng.random() < 0.25 else address(rng),
                "device_id": other["device_id"] if other and rng.random() < 0.25 else device(rng),
                "locale": None if rng.random() < 0.3 else rng.choice(LOCALES),
            }
        )
    return people


def address(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.05:
        return rng.choice(ODD_ADDRESSES)
    if kind < 0.2:
        return str(ipaddress.IPv6Address((0x20010DB8 << 96) + rng.getrandbits(32)))
    return str(ipaddress.IPv4Address(rng.getrandbits(32)))


def device(rng: random.Random) -> str:
    if rng.random() < 0.2:
        return f"{rng.getrandbits(64):016x}"
    return f"{rng.randrange(1000):03}-{rng.randrange(100):02}-{rng.randrange(10000):04}"


def _login(rng: random.Random, people: list[Login]) -> Login:
    """One login, its values spelled as apps spell them."""
    person = rng.choice(people)
    login = {
        "user_id": person["user_id"],
        "app_version": person.get("app_version") or rng.choice(VERSIONS),
        "device_type": person["device_type"],
        "ip": spelled(rng, person["ip"]),
        "locale": person["locale"],
        "device_id": person["device_id"] if rng.random() < 0.9 else f" {person['device_id'].upper()} ",
    }
    if login["locale"] is None and rng.random() < 0.1:
        del login["locale"]
    if rng.random() < 0.05:
        login["network"] = "wifi"  # a field that nobody asked for
    return login


def spelled(rng: random.Random, ip: str) -> str:
    """An address in one of its spellings, which are all the same address."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return ip
    if address.version == 4:
        return f"::ffff:{ip}" if rng.random() < 0.05 else ip
    return rng.choice((ip, ip.upper(), address.exploded))


# What is wrong with a rejected message: ways to spoil a good login, by the reason that must be given.


def _with(**values: Any) -> Callable[[Login], Login]:
    return lambda login: login | values


def _without(name: str) -> Callable[[Login], Login]:
    return lambda login: {key: value for key, value in login.items() if key != name}


REJECTED: dict[str, list[Callable[[Login], Any]]] = {
    "not_json": [
        lambda login: "hello",
        lambda login: json.dumps(login)[:-1],
        lambda login: json.dumps(login | {"user_id": "u\0"}),  # JSON, but no PostgreSQL text can hold it
        lambda login: "[" * 10_000,
    ],
    "not_an_object": [lambda login: [login], lambda login: "null", lambda login: "42"],
    **{f"missing_{name}": [_without(name), _with(**{name: None}), _with(**{name: " \t"})] for name in REQUIRED},
    **{f"{name}_not_text": [_with(**{name: 7}), _with(**{name: [7]})] for name in (*REQUIRED, "locale")},
    **{f"{name}_too_long": [_with(**{name: "é" * (most + 1)})] for name, most in LONGEST.items()},
    "app_version_malformed": [_with(app_version=version) for version in ("v2.3", "2.3.0.1", "2.", "two")],
    "app_version_out_of_range": [_with(app_version=version) for version in ("2147.0.0", "1.1000", "1.0.1000")],
    "exposes_plain_value": [
        lambda login: login | {"user_id": login["device_id"]},
        _with(ip="192.0.2.7", locale="192.0.2.7"),
        _with(device_id="593-47-5928", device_type="593-47-5928 "),
    ],
}


def rejected(rng: random.Random, reason: str, login: Login) -> Event:
    spoiled = rng.choice(REJECTED[reason])(login)
    return Event(spoiled if isinstance(spoiled, str) else json.dumps(spoiled, ensure_ascii=False), reason)

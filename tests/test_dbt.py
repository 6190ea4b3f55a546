"""What dbt makes of messages: each accepted or rejected for the right reason, masked as Python masks, none lost."""

import hashlib
import hmac
import ipaddress
import json
from collections import Counter
from pathlib import Path

import pytest

from local.events import generate
from tests.conftest import on_citus_too
from tests.pipeline import dbt, land, query

pytestmark = on_citus_too

REAL_MESSAGES = Path(__file__).parents[2] / "shared" / "real" / "login_messages.jsonl"

LOGIN = {
    "user_id": "u-1",
    "app_version": "2.3.0",
    "device_type": "ios",
    "ip": "192.0.2.1",
    "locale": "RU",
    "device_id": "593-47-5928",
}


def login(**fields) -> str:
    """A login as JSON with some fields replaced; ... leaves a field out."""
    return json.dumps({name: value for name, value in (LOGIN | fields).items() if value is not ...})


ACCEPTED = {
    "plain": login(),
    "locale-null": login(locale=None),
    "locale-absent": login(locale=...),
    "locale-blank": login(locale=" \t"),
    "one-part-version": login(app_version="7"),
    "largest-version": login(app_version="2146.999.999"),
    "leading-zeros": login(app_version="0006.002.0000"),
    "not-an-address": login(ip="localhost"),
    "multicast": login(ip="239.1.2.3"),
    "no-address-in-both": login(ip="proxy 1.2.3.4000, 2001:db8:", locale="fw 1.2.3.4000, 2001:db8::g"),
    "unknown-fields": login(extra={"ip": ["10.0.0.1"]}, IP="10.0.0.2"),
    "longest-user-id": login(user_id="é" * 128),
    "emoji": login(user_id="🦊"),
    "spaces-around": f" \n{login()}\t",
    "duplicate-key-last-wins": login()[:-1] + ', "device_type": "android"}',
    "nested-900-deep": login()[:-1] + ', "x": ' + "[" * 900 + "]" * 900 + "}",
    "brackets-in-a-string": login(extra="[{" * 10_000),
    "many-flat-objects": login(extra=[{}] * 10_000),
    "ten-thousand-keys": login(**{f"k{n}": n for n in range(10_000)}),
    "one-mebibyte": login(extra="x" * (1_048_576 - 200)),
    "huge-number": login()[:-1] + ', "x": 1e400}',
}
REJECTED = {
    "empty": ("", "not_json"),
    "not-json": ("hello", "not_json"),
    "cut-off": (login()[:-1], "not_json"),
    "two-objects": (login() * 2, "not_json"),
    "nan": ('{"user_id": NaN}', "not_json"),
    "byte-order-mark": ("\ufeff" + login(), "not_json"),
    "escaped-nul": (login(user_id="u\0"), "not_json"),
    "escaped-nul-in-a-key": (login(**{"\0": 1}), "not_json"),
    "lone-surrogate": (login(user_id="\ud800"), "not_json"),
    "number-beyond-numeric": (login()[:-1] + ', "x": 1e200000}', "not_json"),
    "deep-array": ("[" * 100_000, "not_json"),
    "deep-object": ('{"a":' * 100_000 + "1" + "}" * 100_000, "not_json"),
    "deep-in-a-field": (login()[:-1] + ', "x": ' + "[" * 20_000 + "]" * 20_000 + "}", "not_json"),
    "unclosed-string-of-brackets": ('"' + "[" * 100_000, "not_json"),
    "array": (f"[{login()}]", "not_an_object"),
    "string": ('"x"', "not_an_object"),
    "json-null": ("null", "not_an_object"),
    "another-type": ('{"foo": "x", "bar": 1}', "missing_user_id"),
    "user-id-null": (login(user_id=None), "missing_user_id"),
    "device-id-absent": (login(device_id=...), "missing_device_id"),
    "ip-blank": (login(ip=" "), "missing_ip"),
    "device-type-blank": (login(device_type="\t\n"), "missing_device_type"),
    "version-null": (login(app_version=None), "missing_app_version"),
    "version-number": (login(app_version=2.3), "app_version_not_text"),
    "ip-number": (login(ip=3221225985), "ip_not_text"),
    "ip-array": (login(ip=["192.0.2.1"]), "ip_not_text"),
    "locale-object": (login(locale={}), "locale_not_text"),
    "user-id-long": (login(user_id="é" * 129), "user_id_too_long"),
    "device-type-long": (login(device_type="x" * 33), "device_type_too_long"),
    "locale-long": (login(locale="x" * 33), "locale_too_long"),
    "version-words": (login(app_version="v2.3"), "app_version_malformed"),
    "version-four-parts": (login(app_version="1.2.3.4"), "app_version_malformed"),
    "version-ends-in-a-dot": (login(app_version="2."), "app_version_malformed"),
    "version-newline": (login(app_version="2.3\n"), "app_version_malformed"),
    "version-arabic-digits": (login(app_version="٢.٣"), "app_version_malformed"),
    "version-too-large": (login(app_version="2147.0.0"), "app_version_out_of_range"),
    "version-part-too-large": (login(app_version="1.1000"), "app_version_out_of_range"),
    "version-endless": (login(app_version="9" * 100_000), "app_version_out_of_range"),
    "device-id-as-user-id": (login(user_id=" 593-47-5928"), "exposes_plain_value"),
    "ip-as-locale": (login(locale="192.0.2.1"), "exposes_plain_value"),
}


@pytest.fixture(scope="module")
def judged(module_database) -> dict[str, str | None]:
    """The reason given for each body above, by its name; None where it was accepted."""
    names = [*ACCEPTED, *REJECTED]
    ids = land(module_database, [*ACCEPTED.values(), *(body for body, _ in REJECTED.values())])
    dbt(module_database, "build")
    reasons = dict(query(module_database, "select message_id, null from analytics.user_logins"))
    reasons |= dict(query(module_database, "select message_id, reason from analytics.rejected_messages"))
    return {name: reasons[message_id] for name, message_id in zip(names, ids, strict=True)}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_login_is_accepted(judged, name):
    assert judged[name] is None


@pytest.mark.parametrize("name", REJECTED)
def test_anything_else_is_rejected_with_its_reason(judged, name):
    assert judged[name] == REJECTED[name][1]


def test_generated_events_end_as_their_labels_say(database):
    events = list(generate(500, seed=7))
    ids = land(database, [event.body for event in events])
    dbt(database, "build")

    rejected = dict(query(database, "select message_id, reason from analytics.rejected_messages"))
    accepted = {row[0] for row in query(database, "select message_id from analytics.user_logins")}

    expected = {message_id: event.reason for message_id, event in zip(ids, events, strict=True)}
    assert rejected == {message_id: reason for message_id, reason in expected.items() if reason}
    assert accepted == {message_id for message_id, reason in expected.items() if not reason}


@pytest.mark.skipif(not REAL_MESSAGES.exists(), reason="the assignment's messages are not beside this checkout")
def test_the_real_messages_are_all_accepted_and_another_type_is_not(database):
    bodies = REAL_MESSAGES.read_text().splitlines()
    land(database, [*bodies, '{"foo": "x", "bar": 1}'])
    dbt(database, "build")

    logins = [json.loads(body) for body in bodies]
    counted = query(
        database,
        "select count(*), count(distinct masked_ip), count(distinct masked_device_id), count(locale),"
        " count(distinct app_version) from analytics.user_logins",
    )
    assert counted == [
        (
            len(logins),
            len({row["ip"] for row in logins}),
            len({row["device_id"] for row in logins}),
            sum(row["locale"] is not None for row in logins),
            len({tuple(map(int, (row["app_version"] + ".0").split(".")[:3])) for row in logins}),
        )
    ]
    assert query(database, "select reason from analytics.rejected_messages") == [("missing_user_id",)]


def test_a_token_is_the_hmac_of_the_canonical_value_under_the_kinds_key(database):
    addresses = {
        " 192.0.2.1\n": "192.0.2.1",
        "::FFFF:192.0.2.1": "192.0.2.1",
        "::ffff:c000:0201": "192.0.2.1",
        "2001:DB8:0:0:0:0:0:1": str(ipaddress.ip_address("2001:db8::1")),
        "::192.0.2.1": "::192.0.2.1",
        "010.1.1.1": "10.1.1.1",
        "192.0.2.1, 10.0.0.1": "raw:192.0.2.1, 10.0.0.1",
        "UNKNOWN": "raw:unknown",
        "Ä": "raw:Ä",
    }
    land(database, [login(ip=ip, device_id=" ABC-é ") for ip in addresses])
    dbt(database, "run")

    keys = dict(query(database, "select kind, key from masking.keys", login="postgres"))

    def token(kind: str, canonical: str) -> str:
        return hmac.new(bytes(keys[kind]), canonical.encode(), hashlib.sha256).hexdigest()

    rows = query(database, "select masked_ip, masked_device_id from analytics.user_logins")
    assert Counter(ip for ip, _ in rows) == Counter(token("ip", canonical) for canonical in addresses.values())
    assert {device for _, device in rows} == {token("device_id", "abc-é")}


def test_a_user_is_the_same_with_blanks_around_and_shares_a_device_with_nobody(database):
    """As for an erasure, which finds them all."""
    land(database, [login(user_id=user) for user in ("p1", " p1", "p1\n\t")] + [login(user_id="p 1", device_id="d")])
    dbt(database, "build")
    users = query(database, "select user_id, logins from analytics.users order by logins")
    assert users == [("p 1", 1), ("p1", 3)]
    assert query(database, "select users from analytics.shared_devices") == []


def test_the_day_is_the_utc_day_of_the_queue_whatever_the_session_thinks(database):
    land(database, [login()])  # sent at 23:59:59.999 UTC
    with database.connect("postgres") as connection, connection.cursor() as cursor:
        cursor.execute(f"alter role transformer_user in database {database.name} set timezone = 'Asia/Tokyo'")
    dbt(database, "run")
    assert query(database, "select create_date::text from analytics.user_logins") == [("2026-11-21",)]


def test_a_second_run_takes_only_what_is_new(database):
    land(database, [login(), "x"], prefix="first")
    dbt(database, "run")
    land(database, [login(), "x"], prefix="second")
    results = {result.node.name: result.adapter_response.get("rows_affected") for result in dbt(database, "run").result}
    assert (results["int_messages__masked"], results["user_logins"], results["rejected_messages"]) == (2, 1, 1)
    dbt(database, "test")

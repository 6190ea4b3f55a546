"""Arbitrary messages: none stops dbt, each ends where an oracle in Python says, and no sum fails to add up."""

import hmac
import ipaddress
import itertools
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pipeline import dbt, land, query

FIELDS = ("user_id", "app_version", "device_type", "ip", "locale", "device_id")
LONGEST = {"user_id": 128, "device_type": 32, "locale": 32, "ip": 256, "device_id": 256}
PLACEHOLDERS = {"ip": {"0.0.0.0", "::", "raw:unknown", "raw:null", "raw:none", "raw:-"}}
PLACEHOLDERS["device_id"] = {"00000000-0000-0000-0000-000000000000", "unknown", "null", "none", "-"}
GUID = re.compile(r"\{([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\}")
BLANKS = " \t\n\r\v\f"
NUMBERS = itertools.count()


def canonical(text):
    """As masking.canonical_text: ASCII case and ASCII blanks do not count."""
    return "".join(c.lower() if c.isascii() else c for c in text.strip(BLANKS))


def parse(body):
    """The message in a list, or None where PostgreSQL cannot hold it as jsonb."""
    if len(body.encode()) > 4096 and depth(body) > 1000:
        return None
    try:
        event = json.loads(
            body, parse_constant=refuse, parse_int=exponent, parse_float=exponent, object_pairs_hook=pairs
        )
        pairs([("", event)])
    except ValueError:
        return None
    return [event]


def depth(body):
    """How deep it is nested, counting all brackets outside strings, whatever else is wrong."""
    outside = re.sub(r'"(?:[^"\\]|\\.)*"', "", body, flags=re.DOTALL)
    return max(itertools.accumulate((1 if c in "[{" else -1 for c in outside if c in "[]{}"), initial=0))


def refuse(constant):
    raise ValueError(constant)


def exponent(number):
    """Numeric has room for 131072 digits before the point and 16383 after it."""
    if not -16000 < int(number.lower().partition("e")[2] or 0) < 131000:
        raise ValueError("beyond numeric")
    return 0


def pairs(items):
    """An object, the last of equal keys; but what PostgreSQL cannot hold, it cannot hold in any of them."""
    for text in flatten(items):
        if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            raise ValueError("not text")
    return dict(items)


def flatten(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from flatten(part)


def reason(body):
    if (parsed := parse(body)) is None:
        return "base64" if re.fullmatch(r"[A-Za-z0-9+/_-]{16,}={0,2}[ \t\n\r\f\v]*", body) else "not_json"
    [event] = parsed
    if isinstance(event, str) and isinstance((parse(event) or [None])[0], dict):
        return "json_in_a_string"
    if not isinstance(event, dict):
        return "not_an_object"
    for field in FIELDS:
        value = event.get(field)
        if value is None and field != "locale":
            return f"missing_{field}"
        if not isinstance(value, str | None):
            return f"{field}_not_text"
        if field != "locale" and not value.strip(BLANKS):
            return f"missing_{field}"
        if len(value or "") > LONGEST.get(field, 10**9):
            return f"{field}_too_long"
        if field == "app_version":
            if not re.fullmatch(r"[0-9]+(\.[0-9]+){0,2}", value):
                return "app_version_malformed"
            major, *rest = map(int, value.split("."))
            if major > 2146 or any(part > 999 for part in rest):
                return "app_version_out_of_range"
    opens = [canonical(event.get(field) or "") for field in ("user_id", "device_type", "locale")]
    ip, device = address(event["ip"]), identifier(event["device_id"])
    if ip not in PLACEHOLDERS["ip"] and any(has_address(text, ip) for text in opens):
        return "exposes_plain_value"
    opens.append(event["app_version"])
    if device not in PLACEHOLDERS["device_id"] and any(has_value(text, device) for text in opens):
        return "exposes_plain_value"
    return None


def identifier(text):
    return GUID.sub(r"\1", canonical(text)) if GUID.fullmatch(canonical(text)) else canonical(text)


def address(text):
    """As masking.canonical_address: what a gateway writes around an address is not part of it."""
    bare = canonical(text)
    if bracketed := re.fullmatch(r"\[([^][]*)\](:[0-9]+)?(/[0-9]+)?", bare):
        bare = bracketed[1] + (bracketed[3] or "")
    elif with_port := re.fullmatch(r"([0-9.]+):[0-9]+(/[0-9]+)?", bare):
        bare = with_port[1] + (with_port[2] or "")
    bare = re.sub("%[^/]*", "", bare)
    try:
        found = ipaddress.ip_interface(bare).ip
    except ValueError:
        return f"raw:{canonical(text)}"
    return str(getattr(found, "ipv4_mapped", None) or found)


def has_value(text, value):
    """Alone or among other text; of a short value, as a word of its own."""
    word = rf"(?<![0-9A-Za-z]){re.escape(value)}(?![0-9A-Za-z])"
    return value in text and (len(value) >= 6 or bool(re.search(word, text)))


def has_address(text, ip):
    if ip.startswith("raw:"):
        return has_value(text, ip[4:])
    for begin, end in itertools.combinations(range(len(text) + 1), 2):
        whole = not (text[begin - 1 : begin].isdigit() or text[end : end + 1].isdigit())
        if 2 <= end - begin <= 45 and whole and re.fullmatch("[0-9a-f.:]+", part := text[begin:end]):
            if "." in part and ":" not in part and part.count(".") != 3:
                continue
            if address(part) == ip and not part.startswith("["):
                return True
    return False


# What may stand in a text column; in JSON, anything may be escaped.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
BLANK = st.text(BLANKS, max_size=2)
VERSIONS = st.lists(st.integers(0, 2200) | st.integers(0, 999), min_size=1, max_size=4).map(
    lambda parts: ".".join(map(str, parts))
)
# IPv4 in the last part of an IPv6 address is written in more than one way.
IPV6 = st.ip_addresses(v=6).filter(lambda ip: ip not in ipaddress.ip_network("::/96"))
MAPPED = st.ip_addresses(v=4).map(lambda ip: f"::FFFF:{ip}")
ADDRESSES = st.ip_addresses(v=4).map(str) | IPV6.map(str) | IPV6.map(lambda ip: ip.exploded.upper()) | MAPPED
SAID = {
    "user_id": st.text() | st.text("é", min_size=127, max_size=130),
    "app_version": VERSIONS | st.from_regex(r"[0-9.v-]{0,9}", fullmatch=True),
    "device_type": st.sampled_from(["ios", "Android", " ", "vivo"]) | st.text("xé", min_size=31, max_size=34),
    "ip": st.builds("{}{}{}".format, BLANK, ADDRESSES, BLANK) | st.text().map("host {}".format),
    "locale": st.none() | st.sampled_from(["RU", "", "ios"]) | st.text(),
    "device_id": st.builds(
        "{}{}{}".format, BLANK, st.sampled_from(["ios", "593-47-5928", "v", "É"]) | st.text(), BLANK
    ),
}
PARTS = st.tuples(st.integers(0, 2146), st.integers(0, 999), st.integers(0, 999))
LOGINS = st.fixed_dictionaries(SAID)
SOUND = st.fixed_dictionaries(
    SAID | {"user_id": st.uuids().map(str), "app_version": PARTS.map("{0[0]}.{0[1]}.{0[2]}".format)}
)
ODD = st.tuples(LOGINS, st.dictionaries(st.sampled_from(FIELDS) | st.text(), ANY, max_size=2)).map(
    lambda d: d[0] | d[1]
)
LACKING = st.tuples(LOGINS, st.sampled_from(FIELDS)).map(lambda d: {k: v for k, v in d[0].items() if k != d[1]})
JSON = st.builds(
    json.dumps, LOGINS | ODD | LACKING | ANY, ensure_ascii=st.booleans(), indent=st.sampled_from([None, 1])
)
CUT = st.builds(lambda body, at, put: body[:at] + put + body[at + 1 :], JSON, st.integers(0, 99), TEXT)
NESTED = st.builds(
    lambda body, n, brackets: body[:-1] + f', "more": {brackets[0] * n}{brackets[1] * n}' + body[-1:],
    LOGINS.map(json.dumps),
    st.sampled_from([1, 500, 2500, 20000]),
    st.sampled_from(["[]", ['[{"a":', "}]"], "{}", "[ "]),
)
# A message is text in UTF-8; SQS lets no NUL through.
BODIES = (SOUND.map(json.dumps) | JSON | CUT | NESTED | TEXT).filter(
    lambda body: not re.search("[\0\ud800-\udfff]", body)
)


SEVERAL = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
SAYS = """
select reason, user_id, device_type, locale, app_version, masked_ip, masked_device_id
from masking.stg_sqs__messages where message_id = any(%s) order by load_id, array_position(%s, message_id)
"""


@pytest.fixture(scope="module")
def keys(either_postgres):
    keys = query(either_postgres, "select kind, key from masking.keys", login="postgres")
    return {kind: bytes(key) for kind, key in keys}


def token(key, text):
    return hmac.new(key, text.encode(), "sha256").hexdigest()


@SEVERAL
@given(bodies=st.lists(BODIES, min_size=1, max_size=8))
def test_each_message_is_judged_and_masked_as_python_does(either_postgres, keys, bodies):
    ids = land(either_postgres, bodies, prefix=f"{next(NUMBERS)}-")

    said = query(either_postgres, SAYS, ids, ids, login="transformer_user")

    assert [row[0] for row in said] == [reason(body) for body in bodies]
    for body, row in zip(bodies, said, strict=True):
        if row[0] is not None:
            assert set(row[1:]) == {None}
            continue
        [event] = parse(body)
        version = [*map(int, event["app_version"].split(".")), 0, 0]
        assert row[1:] == (
            event["user_id"],
            event["device_type"],
            (event.get("locale") or "") if (event.get("locale") or "").strip(BLANKS) else None,
            version[0] * 1_000_000 + version[1] * 1_000 + version[2],
            token(keys["ip"], address(event["ip"])),
            token(keys["device_id"], identifier(event["device_id"])),
        )


IPV4 = st.ip_addresses(v=4).filter(lambda ip: str(ip) not in PLACEHOLDERS["ip"])  # which hide nobody
SPELLINGS = [
    str,
    lambda ip: f"::ffff:{ip}",
    lambda ip: f"::FFFF:{int(ip) >> 16:x}:{int(ip) & 0xFFFF:X}",
    lambda ip: f"0:0:0:0:0:ffff:{ip}",
    lambda ip: f"{ip}:5678",
    lambda ip: f"[::ffff:{ip}]:443",
    lambda ip: f"{ip}/32",
]
SPELLINGS_6 = [
    str,
    lambda ip: ip.exploded,
    lambda ip: ip.exploded.upper(),
    lambda ip: f"[{ip}]",
    lambda ip: f"[{ip.exploded}]:443",
    lambda ip: f"{ip}%eth0",
    lambda ip: f"{ip}/64",
]
DEVICES = [str, lambda guid: str(guid).upper(), lambda guid: f"{{{guid}}}", lambda guid: f" {guid} "]
ADDRESS_TWICE = st.tuples(IPV4, st.sampled_from(SPELLINGS), st.sampled_from(SPELLINGS)) | st.tuples(
    IPV6, st.sampled_from(SPELLINGS_6), st.sampled_from(SPELLINGS_6)
)
DEVICE_TWICE = st.tuples(st.uuids(), st.sampled_from(DEVICES), st.sampled_from(DEVICES))
AROUND = st.sampled_from(["{}", "login from {}", "ip={}", "<{}>", "at {}.", "({})", "x-{}-y", "user {}, ios"])


@SEVERAL
@given(pairs=st.lists(st.tuples(ADDRESS_TWICE, DEVICE_TWICE, AROUND, st.booleans()), min_size=1, max_size=5))
def test_no_spelling_of_a_masked_value_passes_in_an_open_field(either_postgres, pairs):
    bodies = []
    for (ip, one, other), (guid, this, that), around, is_address in pairs:
        event = {"app_version": "1", "device_type": "ios", "ip": one(ip), "device_id": this(guid)}
        bodies.append(json.dumps(event | {"user_id": around.format(other(ip) if is_address else that(guid))}))
    ids = land(either_postgres, bodies, prefix=f"{next(NUMBERS)}-")

    said = query(either_postgres, SAYS, ids, ids, login="transformer_user")

    assert [row[0] for row in said] == ["exposes_plain_value"] * len(bodies), bodies


def test_dbt_publishes_all_of_them_and_every_test_passes(either_postgres):
    """After the test above, and on what it landed."""
    dbt(either_postgres, "build")

    [(landed, accepted, rejected)] = query(
        either_postgres,
        "select (select sum(landed) from raw.loads), (select count(*) from analytics.user_logins),"
        " (select count(*) from analytics.rejected_messages)",
        login="postgres",
    )
    assert landed == accepted + rejected
    assert accepted > 0
    assert rejected > 0


@settings(deadline=None, max_examples=50)
@given(versions=st.lists(PARTS, min_size=2, max_size=20))
def test_packed_versions_sort_as_versions_do_and_can_be_read_back(either_postgres, versions):
    body = '{"user_id": "u", "app_version": "%s", "device_type": "ios", "ip": "192.0.2.1", "device_id": "d"}'
    ids = land(either_postgres, [body % ".".join(map(str, parts)) for parts in versions], prefix=f"{next(NUMBERS)}-")

    packed = [row[4] for row in query(either_postgres, SAYS, ids, ids, login="transformer_user")]

    assert sorted(range(len(ids)), key=lambda n: (packed[n], n)) == sorted(
        range(len(ids)), key=lambda n: (versions[n], n)
    )
    unpacked = query(
        either_postgres,
        "select analytics.decode_app_version(packed) from unnest(%s) with ordinality as v (packed, n) order by n",
        packed,
    )
    assert [text for (text,) in unpacked] == [".".join(map(str, parts)) for parts in versions]

"""Arbitrary messages: none stops dbt, each ends where an oracle in Python says, and no sum fails to add up."""

import ipaddress
import itertools
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.oracle import BLANKS, FIELDS, PLACEHOLDERS, login, reason
from tests.pipeline import dbt, land, query

NUMBERS = itertools.count()

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
COLUMNS = ("reason", "user_id", "device_type", "locale", "app_version", "masked_ip", "masked_device_id")
SAYS = f"""
select {", ".join(COLUMNS)}
from masking.stg_sqs__messages where message_id = any(%s) order by load_id, array_position(%s, message_id)
"""


@pytest.fixture(scope="module")
def keys(either_postgres):
    keys = query(either_postgres, "select kind, key from masking.keys", login="postgres")
    return {kind: [bytes(key)] for kind, key in keys}


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
        assert dict(zip(COLUMNS[1:], row[1:], strict=True)) == login(body, keys)


def is_somebodys(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """A placeholder hides nobody, however it is written."""
    return str(getattr(ip, "ipv4_mapped", None) or ip) not in PLACEHOLDERS["ip"]


IPV4 = st.ip_addresses(v=4).filter(is_somebodys)
SPELLINGS = [
    str,
    lambda ip: f"::ffff:{ip}",
    lambda ip: f"::FFFF:{int(ip) >> 16:x}:{int(ip) & 0xFFFF:X}",
    lambda ip: f"0:0:0:0:0:ffff:{ip}",
    lambda ip: f"{ip}:5678",
    lambda ip: f"[::ffff:{ip}]:443",
    lambda ip: f"{ip}/32",
    lambda ip: ".".join(f"{int(part):03}" for part in str(ip).split(".")),
    lambda ip: f"{ip}%eth0",
]
SPELLINGS_6 = [
    str,
    lambda ip: ip.exploded,
    lambda ip: ip.exploded.upper(),
    lambda ip: f"[{ip}]",
    lambda ip: f"[{ip.exploded}]:443",
    lambda ip: f"{ip}%eth0",
    lambda ip: f"{ip}/64",
    lambda ip: f"{ip.exploded[:30]}{ip.packed[-4]}.{ip.packed[-3]}.{ip.packed[-2]}.{ip.packed[-1]}",
]
DEVICES = [str, lambda guid: str(guid).upper(), lambda guid: f"{{{guid}}}", lambda guid: f" {guid} "]
ADDRESS_TWICE = st.tuples(IPV4, st.sampled_from(SPELLINGS), st.sampled_from(SPELLINGS)) | st.tuples(
    IPV6.filter(is_somebodys), st.sampled_from(SPELLINGS_6), st.sampled_from(SPELLINGS_6)
)
DEVICE_TWICE = st.tuples(st.uuids(), st.sampled_from(DEVICES), st.sampled_from(DEVICES))
# Words, names and numbers may stand at once before and after it. (Of what is hexadecimal, before a short IPv6 address
# nobody could say where it begins.)
BEFORE = ["", "login from ", "ip=", "<", "(", "x-", "7.", "node.", "v1.2.", "at:", "https://", "é", "::"]
AFTER = ["", ".", ">", ")", "-y", ", ios", ".7", ".example.com", ".eth0", ":443", "/path", "é", "::"]
AROUND = st.builds("{}{{}}{}".format, st.sampled_from(BEFORE), st.sampled_from(AFTER))


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

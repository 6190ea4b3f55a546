"""What must become of a message, worked out in Python alone: whether it is accepted, and what is then published."""

import hmac
import ipaddress
import itertools
import json
import re

FIELDS = ("user_id", "app_version", "device_type", "ip", "locale", "device_id")
LONGEST = {"user_id": 128, "device_type": 32, "locale": 32, "ip": 256, "device_id": 256}
PLACEHOLDERS = {"ip": {"0.0.0.0", "::", "raw:unknown", "raw:null", "raw:none", "raw:-"}}
PLACEHOLDERS["device_id"] = {"00000000-0000-0000-0000-000000000000", "unknown", "null", "none", "-"}
GUID = re.compile(r"\{([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\}")
ENCODED = re.compile(r"[A-Za-z0-9+/_-]{16,}(?:[\r\n]+[A-Za-z0-9+/_-]+)*={0,2}[ \t\n\r\f\v]*")
HEX = frozenset("0123456789abcdef")
BLANKS = " \t\n\r\v\f"


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
        return "base64" if ENCODED.fullmatch(body) else "not_json"
    [event] = parsed
    if isinstance(event, str) and isinstance((parse(event) or [None])[0], dict | str):
        return "json_in_a_string"
    if isinstance(event, str) and ENCODED.fullmatch(event):
        return "base64"
    if not isinstance(event, dict):
        return "not_an_object"
    required = set(FIELDS) - {"locale"}
    inside = [(parse(each) or [None])[0] if isinstance(each, str) else each for each in event.values()]
    if required.isdisjoint(event) and any(isinstance(each, dict) and required <= each.keys() for each in inside):
        return "in_another_object"
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
    opens = [canonical(event.get(field) or "") for field in ("user_id", "device_type", "locale", "app_version")]
    opens.append(".".join(str(int(part)) for part in [*event["app_version"].split("."), "0", "0"][:3]))  # as published
    ip, device = address(event["ip"]), identifier(event["device_id"])
    if ip not in PLACEHOLDERS["ip"] and any(has_address(text, ip) for text in opens):
        return "exposes_plain_value"
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
    if four := re.fullmatch(r"0*([0-9]+)\.0*([0-9]+)\.0*([0-9]+)\.0*([0-9]+)\.?(/[0-9]+)?", bare):
        bare = ".".join(four.groups()[:4]) + (four[5] or "")
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
    """An address, or of a value that is none an address in it; a placeholder hides nobody."""
    if ip.startswith("raw:"):
        return has_value(text, ip[4:]) or bool(addresses_in(text) & addresses_in(ip[4:]) - {"0.0.0.0", "::"})
    return ip in addresses_in(text)


def addresses_in(text):
    """Whatever stands next to an address: a digit would be of the address, and a hexadecimal one if it has room."""
    found = set()
    for begin, end in itertools.combinations(range(len(text) + 1), 2):
        part = text[begin:end]
        first, last = part.split(":")[0], part.split(":")[-1]
        before, after = text[:begin][-1:], text[end:][:1]
        if re.fullmatch(r"[0-9]+(\.[0-9]+){3}", part):
            whole = not (before.isdecimal() or after.isdecimal())
        elif re.fullmatch(r"[0-9a-f]{0,4}:[0-9a-f:]*:([0-9a-f]{0,4}|[0-9]+(\.[0-9]+){3})", part):
            whole = (before not in HEX or len(first) == 4) and (
                not after.isdecimal() if "." in last else after not in HEX or len(last) == 4
            )
        else:
            continue
        if whole and not (as_address := address(part)).startswith("raw:"):
            found.add(as_address)
    return found


def token(keys, text):
    """By the keys of a kind in the order of their versions, each applied to the token of the one before."""
    for key in keys:
        text = hmac.new(key, text.encode(), "sha256").hexdigest()
    return text


def masked_values(body):
    """Kind and canonical form of each; nothing of a message that is rejected."""
    if reason(body) is not None:
        return []
    [event] = parse(body)
    return [("ip", address(event["ip"])), ("device_id", identifier(event["device_id"]))]


def login(body, keys):
    """What is published of an accepted message, by column; `keys` are lists, by kind."""
    [event] = parse(body)
    (_, ip), (_, device_id) = masked_values(body)
    major, minor, patch, *_ = *map(int, event["app_version"].split(".")), 0, 0
    return {
        "user_id": event["user_id"].strip(BLANKS),
        "device_type": event["device_type"].strip(BLANKS),
        "locale": (event.get("locale") or "").strip(BLANKS) or None,
        "app_version": major * 1_000_000 + minor * 1_000 + patch,
        "masked_ip": token(keys["ip"], ip),
        "masked_device_id": token(keys["device_id"], device_id),
    }

"""The leak gate: looks for plain values and keys wherever they must not be; tells where and in what form, not what."""

import base64
import contextlib
import hashlib
import io
import json
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from local.events import ODD_ADDRESSES
from local.stack import SUPERUSER
from tests.pipeline import query

# Settings of a PostgreSQL that writes down all that it can.
LOUD = {
    "shared_preload_libraries": "pg_stat_statements,auto_explain",
    "log_statement": "all",
    "log_min_duration_statement": "0",
    "log_min_messages": "debug1",
    "log_error_verbosity": "verbose",
    "log_parameter_max_length_on_error": "-1",
    "log_temp_files": "0",
    "pg_stat_statements.track": "all",
    "pg_stat_statements.max": "50000",  # when it is full, statements may be in it with their values (PRIVACY.md)
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_verbose": "on",
}

# Plain is allowed in raw and masking where no daily role can read it; everything else is looked through, the whole
# catalogue included: comments, function bodies, view definitions, statistics, statements, large objects.
RELATIONS = r"""
select c.oid::regclass::text
from pg_class as c
where
    (c.relkind in ('r', 'p', 'm') or c.relkind = 'v' and (%(all_views)s or c.relname like 'pg\_%%'))
    and c.relnamespace not in ('information_schema'::regnamespace, 'pg_toast'::regnamespace)
    and c.oid is distinct from to_regclass('privacy.tombstone_key')
    and (
        c.relnamespace::regnamespace::text not in ('raw', 'masking')
        or exists (
            select from unnest(array['loader', 'transformer', 'analyst', 'privacy_officer', 'monitor']) as daily (role)
            inner join pg_roles on rolname = daily.role
            where has_table_privilege(daily.role, c.oid, 'select')
        )
    )
"""
# What the catalogue keeps as trees, in which a text is a list of numbers, as it was written.
DEFINITIONS = """
select pg_get_expr(adbin, adrelid) from pg_attrdef
union all select pg_get_functiondef(oid) from pg_proc where prokind <> 'a'
union all select pg_get_constraintdef(oid) from pg_constraint
union all select pg_get_indexdef(indexrelid) from pg_index where indexprs is not null or indpred is not null
union all select pg_get_triggerdef(oid) from pg_trigger
union all select pg_get_ruledef(oid) from pg_rewrite
union all select pg_get_expr(polqual, polrelid) || pg_get_expr(polwithcheck, polrelid) from pg_policy
union all select pg_get_statisticsobjdef(oid) from pg_statistic_ext
"""
SHORTEST = 7
"""Shorter values are found everywhere by chance."""


def forms(value: bytes, is_key: bool) -> Iterator[tuple[str, bytes]]:
    """What a value looks like in the ways that it could have been written down."""
    yield "plain", value
    yield "hex", value.hex().encode()
    yield "hex", value.hex().upper().encode()
    for before in range(3):  # in base64 a value looks different after each number of bytes, and ends in what follows it
        encoded = base64.b64encode(bytes(before) + value).rstrip(b"=")
        yield "base64", encoded[-(-before * 4 // 3) : len(encoded) - (len(value) + before) % 3 or None]
    if not is_key:
        yield "sha256", hashlib.sha256(value).hexdigest().encode()
        yield "md5", hashlib.md5(value).hexdigest().encode()


class Needles:
    """What is looked for: values by what they are, the keys among them as `key`."""

    def __init__(self, secrets: Mapping[str, Iterable[bytes]]):
        self.names = {
            form: f"{what}, {how}"
            for what, values in secrets.items()
            for value in values
            for how, form in forms(value, is_key=what == "key")
            if len(form) >= SHORTEST and b"\n" not in form
        }

    def found_in(self, places: Iterable[tuple[str, bytes]]) -> list[str]:
        """Where any of it is, and what it is there; one line each."""
        with tempfile.TemporaryDirectory() as folder:
            needles, haystack = Path(folder, "needles"), Path(folder, "haystack")
            needles.write_bytes(b"\n".join(self.names) + b"\n")
            haystack.mkdir()
            names = []
            for number, (place, content) in enumerate(places):
                names.append(place)
                Path(haystack, str(number)).write_bytes(content)
            # grep looks for ten thousand strings at once, at the speed of the disk.
            command = [
                "grep",
                "--text",
                "--only-matching",
                "--fixed-strings",
                "-H",
                "--file",
                needles,
                "--recursive",
                ".",
            ]
            found = subprocess.run(command, cwd=haystack, env={"LC_ALL": "C"}, stdout=subprocess.PIPE).stdout
        hits = (line.removeprefix(b"./").partition(b":") for line in found.split(b"\n")[:-1])
        return sorted({f"{names[int(number)]}: {self.names[needle]}" for number, _, needle in hits})


def secrets_of(database: Any, bodies: Iterable[str]) -> dict[str, set[bytes]]:
    """Every address and device id as it was spelt and in its canonical form, and every key.

    Without the odd addresses, like 127.0.0.1, which stand in any log.
    """
    secrets: dict[str, set[str]] = {"ip": set(), "device_id": set()}
    for body in bodies:
        with contextlib.suppress(ValueError, RecursionError):
            message = json.loads(body)
            message = message[0] if isinstance(message, list) else message
            for kind in secrets:
                value = message.get(kind) if isinstance(message, dict) else None
                secrets[kind] |= {value, value.strip().lower()} if isinstance(value, str) else set()
    canonical = "select regexp_replace(ip, '^raw:', ''), device_id from masking.base_sqs__messages where reason is null"
    for ip, device_id in query(database, canonical, login=SUPERUSER):
        secrets["ip"].add(ip)
        secrets["device_id"].add(device_id)
    keys = "select key from masking.keys union all select key from privacy.tombstone_key"
    return {
        "ip": {ip.encode() for ip in secrets["ip"] - set(ODD_ADDRESSES)},
        "device_id": {device_id.encode() for device_id in secrets["device_id"]},
        "key": {bytes(key) for (key,) in query(database, keys, login=SUPERUSER)},
    }


def database_places(connection, is_worker: bool = False) -> Iterator[tuple[str, bytes]]:
    """Each relation with all its rows, as a superuser sees them, and what only functions show.

    Views of the project cannot be read on a worker of a cluster.
    """
    with connection.cursor() as cursor:
        cursor.execute(RELATIONS, {"all_views": not is_worker})
        places = {relation: f"select * from {relation}" for (relation,) in cursor.fetchall()}
        for place, content in (places | {"definitions": DEFINITIONS}).items():
            rows = io.BytesIO()
            cursor.copy_expert(f"copy ({content}) to stdout", rows)
            yield place, rows.getvalue()


def file_places(name: str, *paths: Path) -> Iterator[tuple[str, bytes]]:
    """Files, and all files in folders."""
    for path in paths:
        for file in [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file()):
            yield f"{name} {file.name}", file.read_bytes()

"""The file that ENV_FILE names: the servers of one environment and the passwords of its logins (.env.example)."""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from loader import postgres
from local.processes import StackError

SUPERUSER = "postgres"
DATABASE = "logins"  # that bootstrap.sql creates, unless PGDATABASE names another
# What shells and Docker Compose read alike; so no $ and no backslash, but in single quotes. (systemd takes less of it:
# deploy/schedule/masked-logins-loader.service.)
LINE = re.compile(r"""(?:export\s+)?([A-Za-z_]\w*)=((?:'[^']*'|"[^"$`\\]*"|[^\s'"$`\\;&|<>()~])*)(?:\s+#.*)?""")
QUOTED = re.compile(r"""'([^']*)'|"([^"]*)"|([^'"]+)""")
UNCHANGED = "choose-one"  # what .env.example has in place of a password


def read(file: Path) -> dict[str, str]:
    """NAME=value lines, quoted as in a shell; a variable without a value is left out. Raises StackError."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StackError(f"ENV_FILE: {file} cannot be read ({getattr(error, 'strerror', 'not UTF-8')}).") from None
    settings = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        if not (found := LINE.fullmatch(line)):
            raise StackError(f"{file}, line {number}: expected NAME=value, or NAME='value' for other than simple text.")
        settings[found[1]] = "".join(map("".join, QUOTED.findall(found[2])))
    return {name: value for name, value in settings.items() if value}


def environment(file: Path, login: str, shell: Mapping[str, str]) -> dict[str, str]:
    """The variables of a program that is to work as this login on the servers of the file.

    The file's PGUSER and PGPASSWORD go first, then `login` and <LOGIN>_PASSWORD. From `shell` comes what the file does
    not set, but no PG variable: a password belongs to one server. All passwords are for the superuser alone, who
    creates the logins. Raises StackError.
    """
    settings = read(file)
    if not ("PGHOST" in settings or "PGHOSTADDR" in settings):
        raise StackError(f"{file} does not set PGHOST, the PostgreSQL server.")
    is_superuser = login == SUPERUSER
    user = settings.get("PGUSER") or (settings.get("POSTGRES_USER") if is_superuser else login) or SUPERUSER
    password = settings.get("PGPASSWORD") or settings.get(f"{login.upper()}_PASSWORD")
    if password == UNCHANGED:
        raise StackError(f"{file}: the password of {login} is still {UNCHANGED}.")
    kept = {name: value for name, value in shell.items() if not name.startswith("PG")}
    given = {name: value for name, value in settings.items() if is_superuser or not name.endswith("_PASSWORD")}
    if not postgres.is_local(given):
        given = {"PGSSLMODE": "verify-full"} | given  # for psql too, which would not ask for a certificate by itself
    return kept | {"PGDATABASE": DATABASE} | given | {"PGUSER": user} | ({"PGPASSWORD": password} if password else {})


def write(file: Path, settings: Mapping[str, str]) -> None:
    """A new file of this kind, which only its owner can read. Raises StackError where one is there."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise StackError(f"{file} cannot be created: {error.strerror}.") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.writelines(f"{name}={shlex.quote(value)}\n" for name, value in settings.items())

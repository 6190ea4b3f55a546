"""Runs generated logins through the whole pipeline, after weeks of history, and shows the result on one screen."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import psycopg2

from loader.text import visible
from local.events import Event, generate
from local.history import DAYS, PREFIX, people
from local.processes import StackError
from local.queues import client, ensure_queue, send
from local.stack import Stack

ROOT = Path(__file__).parents[1]
DBT = str(Path(sys.executable).with_name("dbt"))

LOOK = "select left(masked_device_id, 8) as device, users, logins from analytics.shared_devices limit 5"
REFUSED = "select body from raw.sqs_messages"
LOGINS = """
    select create_date, user_id, device_type, left(masked_ip, 12) || '…', left(masked_device_id, 12) || '…',
        coalesce(locale, ''), app_version
    from analytics.user_logins order by load_id desc, message_id limit 5
"""
SHARED_DEVICES = """
    select left(masked_device_id, 12) || '…', users, logins, first_seen_on, last_seen_on
    from analytics.shared_devices order by users desc, logins desc, 1 limit 5
"""
LEDGER = """
    select count(*), coalesce(sum(received), 0), coalesce(sum(landed), 0), coalesce(sum(duplicates), 0),
        (select count(*) from privacy.erased_messages)
    from raw.loads
"""
HISTORY = f"""
    select count(*) filter (where message_id like '{PREFIX}%'), count(*) from raw.sqs_messages
"""


def run(stack: Stack, queue: str, count: int) -> None:
    """Every step as the login whose step it is; run again, it adds messages that were not there before."""
    stack.up()
    # Meanwhile, since it takes seconds and needs no database.
    with subprocess.Popen(
        [DBT, "--quiet", "parse"],
        cwd=ROOT / "dbt_project",
        env=stack.program("transformer_user"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ):
        _step("Migrating the database", [sys.executable, "-m", "migrations"], stack.program("migrator"))
        loader = stack.program("loader_user")
        [(history, in_raw)] = _query(stack, "transformer_user", HISTORY)
        if in_raw == history:  # nothing yet, or a part: an interrupted demo's, which is completed
            _step("Landing a history, without a queue", [sys.executable, "-m", "local.history", queue], loader)

        seed = (in_raw - history) // count + 1
        sent = send(client(loader), ensure_queue(client(loader), queue), (event.body for event in today(count, seed)))
        click.echo(f"Sent {sent:,} generated messages to {queue} (seed {seed}).", err=True)
        _step("Loading", [sys.executable, "-m", "loader", "load", "--queue-name", queue], loader)

    # Unit tests are of the SQL, not of these messages; `make build` runs them too, in five seconds more.
    build = [DBT, "--no-use-colors", "build", "--exclude-resource-type", "unit_test"]
    _step("Building and testing", build, stack.program("transformer_user"), "dbt_project")
    _screen(stack, f"{sent:,} messages sent to {queue} just now, seed {seed}")


def today(count: int, seed: int) -> Iterator[Event]:
    """What is sent to the queue: logins of the accounts of the history, and every kind of message that is rejected."""
    return generate(count, seed, people())


def _step(what: str, command: list[str], environment: dict[str, str], folder: str = "") -> None:
    """Run a command quietly; its last line is its result, and all its lines are shown when it fails."""
    click.echo(f"{what} …", err=True)
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT / folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        click.echo(done.stdout, err=True)
        raise StackError(f"{what} failed; its output is above.")
    click.echo(f"    {done.stdout.strip().rpartition(chr(10))[2]} ({time.monotonic() - started:.1f} s)", err=True)


def _screen(stack: Stack, went_in: str) -> None:
    [(loads, received, landed, duplicates, erased)] = _query(stack, "transformer_user", LEDGER)
    [(history, _)] = _query(stack, "transformer_user", HISTORY)
    [(accepted,)] = _query(stack, "analyst_user", "select count(*) from analytics.user_logins")
    reasons = _query(
        stack, "analyst_user", "select reason, count(*) from analytics.rejected_messages group by 1 order by 2 desc, 1"
    )
    rejected = sum(number for _, number in reasons)
    adds_up = received == landed + duplicates and landed == accepted + rejected + erased

    click.echo(f"""
Sent       {went_in}
Received   {received:>7,}   in {loads:,} loads since the database was created
Landed     {landed:>7,}   in raw.sqs_messages, unmasked, access restricted; {duplicates:,} duplicates
History    {history:>7,}   of these: made up for the {DAYS} days before, landed by the loader's code without a queue
Accepted   {accepted:>7,}   in analytics.user_logins, masked
Rejected   {rejected:>7,}   in analytics.rejected_messages, with a reason and no value
Erased     {erased:>7,}   at a person's request (`make forget`)
Balance    {received:,} = {landed:,} + {duplicates:,}, and {landed:,} = {accepted:,} + {rejected:,} + {erased:,}\
: {"nothing is lost" if adds_up else "DOES NOT ADD UP"}

Why messages were rejected
{_columns([f"{number:>7,} {reason}" for reason, number in reasons])}

The latest logins, as analyst_user sees them (tokens have 64 digits)
{_table(_query(stack, "analyst_user", LOGINS), "date user_id device masked_ip masked_device_id locale version")}

Devices that several users share
{_table(_query(stack, "analyst_user", SHARED_DEVICES), "masked_device_id users logins first last")}

Look for yourself; `make down` stops the servers.
    eval "$(make -s env AS=analyst_user)"
    psql -c '{LOOK}'
    psql -c '{REFUSED}'
    ERROR:  {_refusal(stack)}""")
    if not adds_up:
        raise StackError("The balance does not add up: `dbt test` in dbt_project/ says where.")


def _query(stack: Stack, login: str, sql: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(stack.connect(login)) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def _refusal(stack: Stack) -> str:
    """What PostgreSQL says, just now, when an analyst asks for the messages themselves."""
    try:
        _query(stack, "analyst_user", REFUSED)
    except psycopg2.errors.InsufficientPrivilege as error:
        return error.diag.message_primary
    raise StackError("analyst_user can read raw.sqs_messages: the grants are not those of migrations/.")


def _table(rows: Iterable[tuple[Any, ...]], header: str) -> str:
    lines = [header.split(), *([visible(str(value)) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("    " + "  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _columns(items: list[str], across: int = 3) -> str:
    return "\n".join(
        "".join(f"{item:<35}" for item in items[i : i + across]).rstrip() for i in range(0, len(items), across)
    )

"""python -m privacy: rotates keys, recovers originals, erases persons and what is old. PG* name the database."""

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getpass
from typing import BinaryIO, TextIO

import click
from psycopg2.extensions import cursor as Cursor

from loader import errors, postgres
from loader.text import visible
from privacy import attest as attestation

TOKEN_DIGITS = 64
LONGEST_USER_ID = 1000  # a subject has 640 at most (declaration.sql); PostgreSQL searches for no more than about 2,000
REQUEST = click.IntRange(1, 2**63 - 1)  # bigint: for another type of number, there is no function
LISTED = 10  # candidates, of the tokens that begin with the digits that were given
# 32 bytes or more: what masking.keys accepts. Zeros alone are to HMAC what an empty key is.
KEY = re.compile(r"(?!0+$)(?:[0-9a-fA-F]{2}){32,}")
# As HMAC takes a key: with zeros behind it, and hashed where it is longer than a block. So two may be one.
SAME_KEYS = """
    select count(*) <> count(distinct rtrim(
        case when octet_length(key) > 64 then sha256(key) else key end, decode('00', 'hex')
    )) from masking.keys
"""


def text(argument: str) -> str:
    """What a shell passes may be any bytes; PostgreSQL takes UTF-8."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("this is not UTF-8.") from None
    return argument


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Commands of the operator and the privacy officer. PG* name the database and the login, as for psql."""


@main.command("rotate-key")
@click.option(
    "--import", "imported", is_flag=True, help="Read the new keys from standard input instead of making them."
)
def rotate_key(imported: bool) -> None:
    """As migrator: start a key rotation with new keys, or continue an open one.

    Then deploy the boundary (make migrate), convert the tokens in all tables (dbt run-operation carry_tokens_over, as
    transformer) and end the rotation (close-rotation).

    Keys to import are one line for each kind (`ip`, `device_id` and what else dbt_project.yml declares): the kind, a
    blank and at least 64 hexadecimal digits, not all 0. Where nothing has been landed yet they become the first keys;
    otherwise they are the next.
    """
    with _transaction("masker") as cursor:
        declared = _kinds(cursor)
        if declared and not imported:
            postgres.assume(cursor, "pipeline_owner")
            cursor.execute("select privacy.require_keys_of_tokens()")
    if not declared:
        raise click.ClickException(f"masking.keys is empty: {errors.RESTORE_KEYS}.")
    new_keys = _read_keys(sys.stdin or io.StringIO(), declared) if imported else None
    with _transaction("masker") as cursor:
        cursor.execute("lock table masking.keys in share row exclusive mode")  # of two at once, one makes keys
        if _scalar(cursor, "select rotation_is_open from raw.pipeline_state"):
            if imported:
                raise click.ClickException("A rotation is open: finish it without new keys first.")
            click.echo(f"Continuing the rotation to key {_scalar(cursor, 'select masking.key_version()')}.")
            return
        version = _scalar(cursor, "select masking.key_version()") + 1
        kinds = _kinds(cursor)
        if imported and kinds != declared:
            raise click.ClickException(f"The kinds have changed meanwhile. Give the keys of {', '.join(kinds)}.")
        if new_keys is None:
            cursor.execute(
                "insert into masking.keys (kind, version, key) "
                "select kind, %s, extensions.gen_random_bytes(32) from unnest(%s) as kind",
                (version, kinds),
            )
        else:
            if _nothing_masked_yet(cursor):
                cursor.execute("delete from masking.keys")
                version = 1
            _import(cursor, version, new_keys)
        if version > 1:
            cursor.execute("select masking.open_rotation()")
    click.echo(f"Key {version} is {'imported' if imported else 'made'}.")


@main.command("close-rotation")
def close_rotation() -> None:
    """As migrator: end a key rotation. From then on, transformer cannot convert tokens."""
    with _transaction("pipeline_owner") as cursor:
        if _scalar(cursor, "select to_regclass('staging.int_messages__masked') is not null"):
            cursor.execute("select privacy.require_plain_table()")
            cursor.execute("select privacy.require_tokens_of_one_key()")
        postgres.assume(cursor, "masker")
        cursor.execute("select masking.close_rotation()")
        click.echo(f"The rotation to key {_scalar(cursor, 'select masking.key_version()')} is finished.")


@main.command("seal-with")
@click.argument("public_key", type=click.File("rb"))
def seal_with(public_key: BinaryIO) -> None:
    """As migrator: encrypt originals with this public key from now on (OpenPGP, armored, RSA)."""
    try:
        armored = public_key.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        armored = ""
    if not armored or "\0" in armored:
        raise click.ClickException("This is no armored key: export it with gpg --armor --export, as it is.")
    if "PRIVATE KEY" in armored:
        raise click.ClickException("This is a private key. It stays with the privacy officer: export the public one.")
    with _transaction("pipeline_owner") as cursor:
        key_id = _scalar(cursor, "select privacy.seal_with(%s)", armored)
    click.echo(f"Originals are sealed with key {key_id}.")


@main.command("require-two-persons")
@click.argument("required", type=click.Choice(["yes", "no"]))  # not bool, which takes an unset variable for no
def require_two_persons(required: str) -> None:
    """As migrator: whether another officer has to approve each recovery (yes or no)."""
    with _transaction("pipeline_owner") as cursor:
        cursor.execute("select privacy.require_two_persons(%s)", (required == "yes",))
    outcome = {"yes": "Another officer has to approve each recovery.", "no": "One officer suffices for a recovery."}
    click.echo(outcome[required])


@main.command()
@click.option(
    "--token", type=text, help="From masked_ip or masked_device_id: 64 hexadecimal digits, or the first 6 or more."
)
@click.option("--reason", type=text, help="Why, for the audit.")
@click.option("--request", type=REQUEST, help="A request made before, when another officer has approved it.")
def reveal(token: str | None, reason: str | None, request: int | None) -> None:
    """As privacy officer, with the private key: show the original behind a token."""
    if not request and not (token and reason):
        raise click.UsageError("Give --token and --reason, or --request.")
    gpg = shutil.which("gpg")
    if not gpg:
        raise click.ClickException("GnuPG opens the sealed original, and gpg is not on this machine: apt install gnupg")
    if not request:
        token = _whole_token(token.strip().rstrip("….").lower(), reason)  # as the demo and the pages shorten one
        with _transaction() as cursor:  # committed before anything is handed out, or nothing is
            request = _scalar(cursor, "select privacy.request_recovery(%s, %s)", token, reason)
        click.echo(f"Request {request} is on record.", err=True)
    with _transaction() as cursor:
        cursor.execute("select kind, sealed from privacy.sealed_original(%s)", (request,))
        originals = cursor.fetchall()
    if not originals:
        raise click.ClickException("There is no original behind this token: unknown, forgotten, or never sealed.")
    # Its input is the sealed original, so gpg is told the terminal on which to ask for the passphrase.
    env = ({"GPG_TTY": os.ttyname(0)} if sys.stdin and sys.stdin.isatty() else {}) | os.environ
    for kind, sealed in originals:
        opened = subprocess.run([gpg, "--quiet", "--decrypt"], input=sealed, stdout=subprocess.PIPE, text=True, env=env)
        if opened.returncode:
            raise click.ClickException("gpg could not open it; is the private key in this keyring?")
        click.echo(f"{kind} {visible(opened.stdout)}")


@main.command()
@click.argument("request", type=REQUEST)
def approve(request: int) -> None:
    """As another privacy officer: approve a recovery. The approval holds for an hour.

    Shows who asked, for which token and why, and on a terminal waits for a yes.
    """
    with _transaction() as cursor:
        cursor.execute(
            "select login, at, token, reason from privacy.audit where id = %s and action = 'recovery requested'",
            (request,),
        )
        for login, at, token, reason in cursor:
            said = f"Request {request}, by {visible(login)} on {at:%Y-%m-%d at %H:%M}: token {token}, {visible(reason)}"
            click.echo(said, err=True)
    if sys.stdin and sys.stdin.isatty():
        click.confirm("Approve it?", abort=True, err=True)
    with _transaction() as cursor:
        cursor.execute("select privacy.approve_recovery(%s)", (request,))
    click.echo(f"Request {request} is approved for an hour.")


@main.command()
@click.option("--user-id", type=text, required=True)
@click.option("--reason", type=text, required=True, help="Why, for the audit; without naming the person.")
def forget(user_id: str, reason: str) -> None:
    """As privacy officer: erase a person's messages. dbt's next run removes them from analytics."""
    if not user_id.strip(" \t\n\r\v\f"):  # what is blank to the database
        raise click.UsageError("Give --user-id (make forget USER_ID=… REASON=…).")
    if len(user_id) > LONGEST_USER_ID:
        raise click.UsageError(
            f"A user_id has at most {LONGEST_USER_ID:,} characters. A message with a longer one is rejected, and `make "
            "purge` deletes it when it is old enough."
        )
    with _transaction() as cursor:
        from_raw, from_originals, from_analytics, not_looked_into = erase(cursor, user_id, reason)
    if not (from_raw or from_originals or from_analytics):
        click.echo("There is nothing of this user.")
    else:
        click.echo(f"raw.sqs_messages: {from_raw:,} removed")
        click.echo(f"privacy.originals: {from_originals:,} removed")
        click.echo(f"analytics.user_logins: {from_analytics:,} removed by dbt's next run")
    if not_looked_into:
        click.echo(f"{not_looked_into:,} rejected messages in raw are encoded or compressed, and were not looked into.")


def erase(cursor: Cursor, user_id: str, reason: str) -> tuple[int, int, int, int]:
    """Erase a person; what privacy.forget_user() counts.

    The person goes by COPY: what a statement says stays in the server's log when it fails, and in its statistics.
    """
    row = "\t".join(map(postgres.copy_text, (user_id, reason)))
    cursor.execute("create temporary table erasure (user_id text, reason text) on commit drop")
    postgres.copy(cursor, "copy pg_temp.erasure from stdin", io.StringIO(row))
    cursor.execute("select forgotten.* from pg_temp.erasure, privacy.forget_user(user_id, reason) as forgotten")
    return cursor.fetchone()


@main.command("erase-again")
def erase_again() -> None:
    """As migrator, after a restore: repeat the erasures since the backup. Run dbt afterwards."""
    with _transaction("pipeline_owner") as cursor:
        removed = _scalar(cursor, "select privacy.erase_known()")
    click.echo(f"raw.sqs_messages: {removed:,} removed, whose erasure is on record")


@main.command()
@click.option("--keep-days", type=click.IntRange(max=36_500), default=30, show_default=True, help="28 or more.")
def purge(keep_days: int) -> None:
    """Delete old messages from raw that dbt has processed. Tokens and counts stay.

    As privacy officer or as a login in the role retention.
    """
    with _transaction() as cursor:
        click.echo(_scalar(cursor, "select privacy.purge(%s)", keep_days))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For a machine.")
@click.option("--max-key-age", type=int, default=400, show_default=True, help="Days that the newest keys may have.")
@click.option("--record", is_flag=True, help="Add the outcome to privacy.attestations, which alerts read.")
@click.option("--print-contract", is_flag=True, help="Print what privacy/contract.txt should have, and check nothing.")
def attest(as_json: bool, max_key_age: int, record: bool, print_contract: bool) -> None:
    """Compare the live database with the project, and print a remedy for each difference.

    As a login in the role monitor, such as monitor_user, or as superuser. Reads only; with --record, it adds one row.
    Exit status 11 when something is off.
    """
    with postgres.explained("Run it as a login in the role monitor, or as superuser"):
        with attestation.reading() as cursor:
            if print_contract:
                return click.echo("\n".join(attestation.inventory(cursor)))
            items = list(attestation.examine(cursor, max_key_age))
        failed = sum(not item.well for item in items)
        if record:
            attestation.record(failed)
    click.echo(attestation.to_json(items) if as_json else "\n".join(map(str, items)))
    if failed:
        raise errors.NotWell(failed=failed)
    if not as_json:
        click.echo("The database is as the project says.")  # CloudWatch counts this line (deploy/aws/pipeline.yaml)


@contextmanager
def _transaction(role: str | None = None) -> Iterator[Cursor]:
    """One transaction, as migrator in this role or else as the privacy officer."""
    with (
        postgres.explained("Run it as migrator" if role else "Run it as privacy_officer_user"),
        postgres.transaction("privacy") as cursor,
    ):
        postgres.wait_at_most_a_minute(cursor)
        if role:
            postgres.assume(cursor, role)
        yield cursor


def _scalar(cursor: Cursor, query: str, *parameters: object) -> object:
    cursor.execute(query, parameters)
    return cursor.fetchone()[0]


def _kinds(cursor: Cursor) -> list[str]:
    cursor.execute("select masking.kinds()")
    return [kind for (kind,) in cursor.fetchall()]


def _whole_token(token: str, reason: str) -> str:
    """The one token that begins so. The look-up is on record, whatever it finds."""
    if len(token) >= TOKEN_DIGITS:
        return token
    with _transaction() as cursor:
        cursor.execute("select privacy.find_tokens(%s, %s)", (token, reason))
        found = [each for (each,) in cursor.fetchall()]
    if not found:
        raise click.ClickException(
            "No original has a token that begins so. It was forgotten or never sealed, or the token is older than the "
            "newest key: then give all 64 digits."
        )
    if len(found) > 1:
        listed = "\n".join(found[:LISTED] + ["..."] * (len(found) > LISTED))
        raise click.ClickException(f"More than one token begins so. Give more digits:\n{listed}")
    click.echo(f"{token} begins the token {found[0]}.", err=True)  # maybe not the one that is meant: of an older key
    return found[0]


def _read_keys(source: TextIO, kinds: list[str]) -> dict[str, str]:
    """Keys by kind. Typed, they are not shown; and no error says what was read."""
    try:
        typed = source.isatty()
        given = "" if typed else source.read().lstrip("\ufeff")
        lines = [f"{kind} {getpass(f'{kind}: ')}" for kind in kinds] if typed else given.split("\n")
    except (UnicodeDecodeError, OSError):  # bytes in place of digits, or what cannot be read
        lines = []
    words = [line.split() for line in lines if line.strip()]
    if sorted(line[0] for line in words) != sorted(kinds) or not all(
        len(line) == 2 and KEY.fullmatch(line[1]) for line in words
    ):
        raise click.ClickException(
            f"Wanted is one line for each of {', '.join(kinds)}: the kind, a blank and at least 64 hexadecimal digits, "
            "not all 0."
        )
    return dict(words)


def _nothing_masked_yet(cursor: Cursor) -> bool:
    """Whether the keys are those that the migration made, and have never masked anything."""
    cursor.execute("set local role pipeline_owner")
    cursor.execute("lock table raw.loads in share mode")
    landed = _scalar(cursor, "select exists (select from raw.loads)")
    cursor.execute("set local role masker")
    return not landed and _scalar(cursor, "select bool_and(origin = 'generated') from masking.keys")


def _import(cursor: Cursor, version: int, new_keys: dict[str, str]) -> None:
    """By COPY, whose data PostgreSQL logs only when a line is bad; and none is, after _read_keys."""
    lines = "".join(f"{kind}\t{version}\t\\\\x{key}\timported\n" for kind, key in new_keys.items())
    postgres.copy(cursor, "copy masking.keys (kind, version, key, origin) from stdin", io.StringIO(lines))
    if _scalar(cursor, SAME_KEYS):
        raise click.ClickException("One of these keys is that of another kind or of before: a key is accepted once.")


if __name__ == "__main__":
    errors.run(main, "python -m privacy")

"""What `python -m privacy` says and ends with: one sentence with its remedy, and the loader's exit statuses."""

import contextlib
import os
import pty
import subprocess
import sys
import threading

import pytest

from tests.conftest import ROOT, administration
from tests.loading import until
from tests.officer import as_superuser, privacy

MIGRATE = "Run `make migrate` as migrator."
AS_MIGRATOR = "Run it as migrator."
AS_OFFICER = "Run it as privacy_officer_user."
FORGET = ["forget", "--user-id", "u1", "--reason", "case 1234"]
OFFICER = "privacy_officer_user"
END_WAITING = """
    select pg_terminate_backend(pid) from pg_stat_activity
    where usename = 'migrator' and datname = current_database() and wait_event_type = 'Lock'
"""


def test_two_persons_are_required_by_yes_and_no_longer_by_no(database):
    required = privacy(database, "require-two-persons", "yes")
    assert required.stdout == "Another officer has to approve each recovery.\n"
    assert privacy(database, "require-two-persons", "no").stdout == "One officer suffices for a recovery.\n"


def test_a_variable_that_is_not_set_switches_no_rule_off(database):
    assert privacy(database, "require-two-persons", "yes").returncode == 0
    done = privacy(database, "require-two-persons", "")
    assert done.returncode == 2
    assert "is not one of 'yes', 'no'" in done.stderr
    assert as_superuser(database, "select two_persons from privacy.settings") == [(True,)]


def test_who_approves_sees_what_was_asked_for_and_by_whom(database):
    [(request,)] = as_superuser(
        database, "select privacy.request_recovery(%s, %s)", "0" * 64, "case 1234: \x1b[2Jfraud"
    )
    done = privacy(database, "approve", str(request), login=OFFICER)
    assert done.stdout == f"Request {request} is approved for an hour.\n"
    at = "select to_char(at, 'YYYY-MM-DD at HH24:MI') from privacy.audit where id = %s"
    [(when,)] = as_superuser(database, at, request)
    said = f"Request {request}, by postgres on {when}: token {'0' * 64}, case 1234: \\x1b[2Jfraud\n"
    assert done.stderr == said


def test_on_a_terminal_an_approval_waits_for_a_yes(database):
    [(request,)] = as_superuser(database, "select privacy.request_recovery(%s, %s)", "0" * 64, "case 1234: fraud")
    approved = "select action from privacy.audit where about = %s"
    command = [sys.executable, "-m", "privacy", "approve", str(request)]
    for answer, status, found in (("n\n", 1, []), ("y\n", 0, [("recovery approved",)])):
        ours, theirs = pty.openpty()
        os.write(ours, answer.encode())
        done = subprocess.run(command, env=database.env(OFFICER), stdin=theirs, capture_output=True, text=True)
        os.close(ours)
        os.close(theirs)
        assert (done.returncode, as_superuser(database, approved, request)) == (status, found), done.stderr


def test_there_are_no_keys(database):
    as_superuser(database, "delete from masking.keys returning 1")
    done = privacy(database, "rotate-key")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("Error: masking.keys is empty: restore it from a backup; ")


def test_no_command_waits_for_a_lock_without_end(database):
    """By the limit of its own, which is a minute: made short here where the command asks for it."""
    short = "create schema early; create function early.set_config(text, text, boolean) returns text language sql"
    as_superuser(database, f"{short} as 'select pg_catalog.set_config($1, ''200ms'', $3)'; select 1")
    as_superuser(database, "grant usage on schema early to public; select 1")
    with contextlib.closing(database.connect("postgres")) as holder, holder.cursor() as cursor:
        cursor.execute("lock table masking.keys")
        early = {"PGOPTIONS": "-c search_path=early,pg_catalog"}
        command = [sys.executable, "-m", "privacy", "rotate-key"]
        done = subprocess.run(command, cwd=ROOT, env=database.env("migrator") | early, capture_output=True, text=True)
    assert done.returncode == 15
    assert done.stderr.startswith("PostgreSQL ended a statement: canceling statement due to lock timeout.")


def test_a_command_whose_connection_is_lost_says_why(database):
    """It waits for a lock, and its session is ended."""
    with contextlib.closing(database.connect("postgres")) as holder, holder.cursor() as cursor:
        cursor.execute("lock table privacy.audit")
        waiting = threading.Thread(target=lambda: said.append(privacy(database, "require-two-persons", "yes")))
        said: list[subprocess.CompletedProcess[str]] = []
        waiting.start()
        until(lambda: as_superuser(database, END_WAITING), 60)
        waiting.join(60)
    [done] = said
    assert done.returncode == 3
    assert done.stderr in (  # whichever libpq comes to read
        "No database: terminating connection due to administrator command. Try again in a moment.\n",
        "No database: server closed the connection unexpectedly. See the log of the server, or of the pool in front of"
        " it.\n",
    )


@pytest.mark.parametrize("user_id", ["", " "])
def test_without_a_person_nobody_is_forgotten_and_the_user_id_is_asked_for(database, user_id):
    done = privacy(database, "forget", "--user-id", user_id, "--reason", "", login=OFFICER)
    assert done.returncode == 2
    assert done.stderr.endswith("Error: Give --user-id (make forget USER_ID=… REASON=…).\n")


def test_a_user_id_that_is_too_long_to_search_for_is_refused_and_not_shown(database):
    done = privacy(database, "forget", "--user-id", "é" * 5000, "--reason", "case 1234", login=OFFICER)
    assert done.returncode == 2
    assert "A user_id has at most 1,000 characters." in done.stderr
    assert "é" not in done.stderr


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("--user-id", ["forget", "--user-id", "\udcffann", "--reason", "case 1234"]),
        ("--reason", ["forget", "--user-id", "u1", "--reason", "\udcffcase 1234"]),
        ("--token", ["reveal", "--token", "\udcff", "--reason", "case 1234"]),
        ("--reason", ["reveal", "--token", "abcdef", "--reason", "\udcffcase 1234"]),
    ],
)
def test_an_argument_that_is_not_utf_8_is_named_and_not_shown(database, option, arguments):
    done = privacy(database, *arguments, login=OFFICER)
    assert done.returncode == 2
    assert done.stderr.endswith(f"Error: Invalid value for '{option}': this is not UTF-8.\n")
    assert "ann" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["approve", str(2**63)], ["reveal", "--request", str(2**63)], ["purge", "--keep-days", str(2**31)]],
    ids=lambda arguments: arguments[0],
)
def test_a_number_that_is_too_large_is_named_and_not_taken_for_a_missing_migration(database, arguments):
    done = privacy(database, *arguments, login=OFFICER)
    assert done.returncode == 2
    assert f"{arguments[-1]} is not in the range" in done.stderr


@pytest.mark.parametrize(
    "key",
    [b"", b"\x99\x01\x0d\x04", "-----BEGIN PGP PUBLIC KEY BLOCK-----".encode("utf-16"), b"a\0b"],
    ids=["empty", "not-armored", "utf-16", "nul"],
)
def test_a_key_that_is_not_armored_is_said_to_be_so(database, tmp_path, key):
    """As gpg exports one without --armor, or another shell than its own writes it to a file."""
    (tmp_path / "officer.asc").write_bytes(key)
    done = privacy(database, "seal-with", str(tmp_path / "officer.asc"))
    assert done.returncode == 1
    assert done.stderr == "Error: This is no armored key: export it with gpg --armor --export, as it is.\n"


def test_a_text_that_is_no_key_is_said_to_be_none(database, tmp_path):
    (tmp_path / "officer.asc").write_text("gpg: WARNING: nothing exported\n")
    done = privacy(database, "seal-with", str(tmp_path / "officer.asc"))
    assert (done.returncode, done.stderr) == (16, "Refused by PostgreSQL: not an armored OpenPGP public key.\n")


@pytest.mark.parametrize(
    ("login", "program"),
    [("monitor_user", "privacy attest --print-contract"), ("migrator", "migrations")],
    ids=["privacy", "migrations"],
)
def test_output_that_cannot_be_written_is_one_sentence(database, login, program):
    shell = ["bash", "-c", f"{sys.executable} -m {program} > /dev/full"]
    done = subprocess.run(shell, cwd=ROOT, env=database.env(login), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "Standard output cannot be written: No space left on device.\n")


@pytest.mark.parametrize("where", ["2> /dev/full", "2>&-", "2> >(exec 0<&-)", "2< /dev/null"])
@pytest.mark.parametrize(("command", "status"), [("close-rotation", 3), ("reveal", 2)])
def test_an_error_that_nobody_can_read_has_its_exit_status(database, where, command, status):
    shell = ["bash", "-c", f"{sys.executable} -m privacy {command} {where}"]
    done = subprocess.run(shell, cwd=ROOT, env=database.env("migrator") | {"PGPORT": "1"}, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (status, b"")


# A command, the login, what the environment has otherwise; the exit status, how the sentence begins and its remedy.
ENDINGS = {
    "no-database": (["close-rotation"], "migrator", {"PGPORT": "1"}, 3, "No database: connection to", "Check PGHOST"),
    "not-migrator": (["rotate-key"], OFFICER, {}, 4, "Not permitted: permission denied to set role", AS_MIGRATOR),
    "no-officer": (["purge"], "loader_user", {}, 4, "Not permitted: permission denied for schema", AS_OFFICER),
    "elsewhere": (
        ["close-rotation"],
        "migrator",
        {"PGDATABASE": "postgres"},
        5,
        "The database is not migrated: ",
        "PGDATABASE",
    ),
    "not-built": (FORGET, OFFICER, {}, 5, "dbt has not built analytics: relation", "`make build` as transformer_user."),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_what_cannot_work_is_one_sentence_with_its_remedy_and_a_status_of_its_own(database, name):
    arguments, login, changed, status, sentence, remedy = ENDINGS[name]
    command = [sys.executable, "-m", "privacy", *arguments]
    done = subprocess.run(command, env=database.env(login) | changed, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(sentence)
    assert remedy in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_role_that_is_missing_is_one_that_migrations_make(database):
    """Roles are those of the whole server: for a moment, this one has another name."""
    with administration(database.stack) as cursor:
        cursor.execute("alter role masker rename to somebody")
        done = privacy(database, "close-rotation")
        cursor.execute("alter role somebody rename to masker")
    assert done.returncode == 5
    assert (
        done.stderr == 'The database is not migrated: role "masker" does not exist. Run `make migrate` as migrator.\n'
    )

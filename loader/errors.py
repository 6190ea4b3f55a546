"""Errors that users see: one class for each remedy. The docstring is the message, `meaning` the line in --help."""

import errno
import os
import sys
from contextlib import suppress
from typing import IO, Any

import click

RESTORE_KEYS = "restore it from a backup; in a new database, run `make migrate`"
NO_ROOM_FOR_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class LoaderError(click.ClickException):
    """Ends the program with one sentence and an exit status of its own."""

    exit_status: int
    meaning: str
    remedy = ""  # where the error brings none of its own

    def __init__(self, **details: object):
        # `python -OO` leaves no docstrings.
        text = self.__doc__ or f"Error: {self.meaning}. Unset PYTHONOPTIMIZE to see more."
        super().__init__(" ".join(text.format(**({"remedy": self.remedy} | details)).split()))

    @property
    def exit_code(self) -> int:
        return self.exit_status

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(self.message, file=file, err=True)


class BadSetting(LoaderError):
    """{problem}"""

    exit_status, meaning = 2, "bad usage, or an invalid setting"


class NoDatabase(LoaderError):
    """No database: {reason}. {remedy}."""

    exit_status, meaning = 3, "cannot connect to the database"
    remedy = "Check PGHOST, PGPORT, PGDATABASE, PGUSER and PGPASSWORD"


class NotPermitted(LoaderError):
    """Not permitted: {reason}. {remedy}."""

    exit_status, meaning = 4, "permission denied, by the database or by AWS"


class NotMigrated(LoaderError):
    """The database is not migrated: {reason}. {remedy}."""

    exit_status, meaning = 5, "the database is not migrated"
    remedy = "Run `make migrate` as migrator"


class NoQueue(LoaderError):
    """There is no queue {queue} in {region}. {remedy}."""

    exit_status, meaning = 6, "the queue does not exist, or was deleted"
    remedy = "Check --queue-name or --queue-url, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL"


class NoCredentials(LoaderError):
    """No valid AWS credentials: {reason}. {remedy}."""

    exit_status, meaning = 7, "AWS credentials are missing or expired"
    remedy = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role"


class NoSqs(LoaderError):
    """SQS does not answer {operation}: {reason}. Check AWS_ENDPOINT_URL and the network. Nothing is lost: messages that
    were not deleted will be redelivered."""

    exit_status, meaning = 8, "SQS unavailable for longer than --give-up-after"


class GaveUp(LoaderError):
    """The database was away for {seconds:.0f} s. {reason} Nothing is lost: the messages are back on the queue."""

    exit_status, meaning = 9, "database unavailable for longer than --give-up-after"


class MessagesRefused(LoaderError):
    """PostgreSQL refused {refused} deliveries. They stay in the dead-letter queue, or go there in the end. Their ids
    are in the log; fix the cause, then run `python -m loader redrive`."""

    exit_status, meaning = 10, "done, but PostgreSQL refused some messages; they stay on the queue"


class NotWell(LoaderError):
    """Checks failed: {failed}. Each line says what to do."""

    exit_status, meaning = 11, "status, doctor, attest: something needs attention"


class NotBuilt(NotMigrated):
    """dbt has not built analytics: {reason}. {remedy}."""

    remedy = "Run `make migrate` as migrator, then `make build` as transformer_user"


class NoDeadLetterQueue(LoaderError):
    """{queue} has no dead-letter queue. Give it a redrive policy, so that messages that cannot land leave the queue. If
    it is a dead-letter queue itself, name the queue that its messages came from."""

    exit_status, meaning = 12, "redrive: the queue has no dead-letter queue"


class NoRoom(LoaderError):
    """PostgreSQL has no room: {reason}. {remedy}."""

    exit_status, meaning = 13, "PostgreSQL is out of connections, disk space or memory"


class ReadOnly(LoaderError):
    """PostgreSQL is read-only: {reason}. Set PGHOST to the primary, or PGTARGETSESSIONATTRS to read-write. On the
    primary, see default_transaction_read_only, which some services set when the disk is nearly full."""

    exit_status, meaning = 14, "PostgreSQL is a standby or read-only"


class TimedOut(LoaderError):
    """PostgreSQL ended a statement: {reason}. Find the blocking session in pg_stat_activity and pg_locks, check the
    login's statement_timeout and lock_timeout, then run it again."""

    exit_status, meaning = 15, "PostgreSQL cancelled a statement: timeout, deadlock or administrator"


class Refused(LoaderError):
    """Refused by PostgreSQL: {reason}."""

    exit_status, meaning = 16, "PostgreSQL returned another error"


class WrongClock(LoaderError):
    """The clock of this machine is not that of AWS: {operation} answers {reason}. Set it by NTP."""

    exit_status, meaning = 17, "the clock of this machine is wrong, so AWS rejects its requests"


class KeyUnusable(LoaderError):
    """SQS cannot use the KMS key of {queue}: {reason}. Enable that key, or set another one for the queue."""

    exit_status, meaning = 18, "the queue's KMS key is disabled or deleted"


class NothingLands(LoaderError):
    """PostgreSQL refuses every message, even a test message: {reason}. Nothing is lost: the messages are back on the
    queue. Fix the cause, which `python -m loader doctor` also shows."""

    exit_status, meaning = 19, "PostgreSQL refuses every message, even a test message"


class SequenceBehind(LoaderError):
    """The sequence raw.load_id_seq is at {sequence}, behind the ledger raw.loads at {ledger}: dbt would never read new
    messages. As pipeline_owner: select setval('raw.load_id_seq', (select max(load_id) from raw.loads))."""

    exit_status, meaning = 20, "the sequence raw.load_id_seq is behind raw.loads (after a restore)"


class Log:
    """Standard error. A log that nobody reads any more, or a full disk, changes nothing about how a program ends."""

    def __init__(self, stream: IO[str]):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
        with suppress(OSError):
            self.stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.stream.flush()


def run(program: click.Command, name: str, **options: Any) -> None:
    """Runs a program. It ends with a sentence as well where nothing more can be written to standard output."""
    with suppress(AttributeError):  # closed, or replaced
        sys.stdout.reconfigure(errors="backslashreplace")  # what its encoding lacks; stderr does so by itself
    if not sys.stderr:  # closed: click would fail
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    sys.stderr = Log(sys.stderr)
    try:
        program(prog_name=name, **options)
    except OSError as error:
        if error.errno not in NO_ROOM_FOR_OUTPUT:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python would try once more at its end
        ending = error.__context__  # what the program was about to end with, where it is more than that
        if not isinstance(ending, LoaderError):
            ending = BadSetting(problem=f"Standard output cannot be written: {error.strerror}.")
        ending.show()
        sys.exit(ending.exit_status)


def exit_statuses() -> str:
    """The table of exit statuses, for --help."""
    lines = ["  0   done: the queue is empty, a limit is reached, or it was told to stop"]
    lines += [f"  {error.exit_status:<3} {error.meaning}" for error in LoaderError.__subclasses__()]
    return "\n".join(["\b", "Exit status:", *lines])

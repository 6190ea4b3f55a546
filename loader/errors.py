"""What can go wrong, one class for each thing an operator can do about it: the docstring is the sentence shown."""

from typing import IO, Any

import click


class LoaderError(click.ClickException):
    """Ends the program, of the loader's or of deploy/, with one sentence and an exit status of its own."""

    exit_status: int
    meaning: str  # the line in --help
    remedy = ""  # where the error brings none of its own

    def __init__(self, **details: object):
        super().__init__(" ".join(self.__doc__.format(**({"remedy": self.remedy} | details)).split()))

    @property
    def exit_code(self) -> int:
        return self.exit_status

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(self.message, file=file, err=True)


class BadSetting(LoaderError):
    """{problem}"""

    exit_status, meaning = 2, "bad usage, or a setting that makes no sense"


class NoDatabase(LoaderError):
    """No database: {reason}. {remedy}."""

    exit_status, meaning = 3, "no database"
    remedy = "Check PGHOST, PGPORT, PGDATABASE, PGUSER and PGPASSWORD"


class NotPermitted(LoaderError):
    """Not permitted: {reason}. {remedy}."""

    exit_status, meaning = 4, "no permission, in the database or in AWS"


class NotMigrated(LoaderError):
    """The database is not migrated: {reason}. {remedy}."""

    exit_status, meaning = 5, "the database is not migrated"
    remedy = "Run `make migrate` as migrator"


class NoQueue(LoaderError):
    """There is no queue {queue} in {region}. Check --queue-name, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL."""

    exit_status, meaning = 6, "no such queue, or it was deleted meanwhile"


class NoCredentials(LoaderError):
    """No valid AWS credentials: {reason}. {remedy}."""

    exit_status, meaning = 7, "no AWS credentials, or they expired"
    remedy = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role"


class NoSqs(LoaderError):
    """SQS does not answer {operation}: {reason}. Check AWS_ENDPOINT_URL and the network. Nothing is lost: what was not
    deleted comes again."""

    exit_status, meaning = 8, "SQS did not answer, or refused, for longer than --give-up-after"


class GaveUp(LoaderError):
    """The database was away for {seconds:.0f} s. {reason} Nothing is lost: what was held is back on the queue."""

    exit_status, meaning = 9, "the database was away for longer than --give-up-after"


class MessagesRefused(LoaderError):
    """PostgreSQL refused {refused} deliveries: they stay on the queue, and its redrive policy moves them to the
    dead-letter queue. Their ids are in the log; mend the cause, then run `python -m loader redrive`."""

    exit_status, meaning = 10, "done, but PostgreSQL refused some messages: they stay on the queue"


class NotWell(LoaderError):
    """Not all is well: {failed} of the checks failed, and beside each is what to do."""

    exit_status, meaning = 11, "status, doctor, attest: something needs a person"


class NotBuilt(NotMigrated):
    """dbt has not built analytics: {reason}. {remedy}."""

    remedy = "Run `make migrate` as migrator, then `make build` as transformer_user"


class CannotRedrive(LoaderError):
    """Nothing is moved: {reason}."""

    exit_status, meaning = 12, "redrive: there is nothing to move from, or SQS cannot"


class NoRoom(LoaderError):
    """PostgreSQL has no room: {reason}. {remedy}."""

    exit_status, meaning = 13, "PostgreSQL is out of connections, disk space or memory"


class ReadOnly(LoaderError):
    """PostgreSQL only reads: {reason}. Set PGHOST to the primary, or PGTARGETSESSIONATTRS to read-write."""

    exit_status, meaning = 14, "PostgreSQL is a standby, or set to read only"


class TimedOut(LoaderError):
    """PostgreSQL ended a statement: {reason}. See pg_stat_activity and pg_locks for what holds it up, and the login's
    statement_timeout and lock_timeout; then run it again."""

    exit_status, meaning = 15, "PostgreSQL ended a statement: a timeout, a deadlock or an administrator"


class Refused(LoaderError):
    """Refused by PostgreSQL: {reason}."""

    exit_status, meaning = 16, "PostgreSQL refused for another reason"


class WrongClock(LoaderError):
    """The clock of this machine is not that of AWS: {operation} answers {reason}. Set it by NTP."""

    exit_status, meaning = 17, "this machine's clock is wrong, so that AWS takes no signature of it"


class KeyUnusable(LoaderError):
    """SQS cannot use the KMS key of {queue}: {reason}. Enable that key, or set another one for the queue."""

    exit_status, meaning = 18, "the queue's KMS key is disabled or deleted"


class NothingLands(LoaderError):
    """PostgreSQL refuses whatever is landed, so that no message is to blame: {reason}. Nothing is lost: what was held
    is back on the queue. Mend the cause, which `python -m loader doctor` shows too."""

    exit_status, meaning = 19, "PostgreSQL refuses every message: what is wrong is no message's fault"


class SequenceBehind(LoaderError):
    """The sequence raw.load_id_seq is at {sequence}, behind the ledger raw.loads at {ledger}: dbt would never read what
    lands now. As pipeline_owner: select setval('raw.load_id_seq', (select max(load_id) from raw.loads))."""

    exit_status, meaning = 20, "raw.load_id_seq is behind raw.loads, after a restore for one"


def exit_statuses() -> str:
    """The table of exit statuses, for --help."""
    lines = ["  0   done: the queue is drained, a bound is reached, or it was told to stop"]
    lines += [f"  {error.exit_status:<3} {error.meaning}" for error in LoaderError.__subclasses__()]
    return "\n".join(["\b", "Exit status:", *lines])

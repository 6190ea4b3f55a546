"""python dbt_project/follow.py: dbt in one process that stays, so that what lands is in analytics within seconds."""

import gc
import signal
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

PROJECT = Path(__file__).resolve().parent
sys.path.insert(0, str(PROJECT.parent))

import click  # noqa: E402
from dbt.cli.main import dbtRunner  # noqa: E402

from loader import errors, postgres  # noqa: E402

# Whether there is what dbt has not taken, by the ledger; and how many messages are erased, which dbt has to remove. A
# look that costs next to nothing; the first one comes before there are tables.
FIRST_LOOK = "select true, count(*) from privacy.erased_messages"
LOOK = """
    select
        exists (
            select from raw.loads
            where
                load_id > (select coalesce(max(load_id), 0) from staging.int_messages__masked)
                and landed > (select count(*) from privacy.erased_messages as gone where gone.load_id = loads.load_id)
        ),
        (select count(*) from privacy.erased_messages)
"""
# A view shows what has landed as it is: it is built by the first run, by one after a failure, and before the tests.
ALL_BUT_VIEWS = ["--exclude", "config.materialized:view"]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--every", default=2.0, type=click.FloatRange(0.1), help="Seconds between two looks for new messages.")
@click.option("--test-every", default=3600.0, type=click.FloatRange(1), help="Seconds between two runs of dbt's tests.")
@click.option(
    "--give-up-after", default=600.0, type=click.FloatRange(0), help="Seconds for which dbt may keep failing."
)
@click.option("--target", help="Target of profiles.yml; without it, dbt's default.")
def main(every: float, test_every: float, give_up_after: float, target: str | None) -> None:
    """Run dbt whenever messages have landed or were erased, and its tests from time to time, until SIGTERM or Ctrl-C.

    PG* name the database and the login, which is transformer's. A run that fails is tried again; dbt says on stdout why
    it failed, and this program on stderr that there is no database. Ends with 1 when it has kept failing, and with the
    loader's exit statuses where there is no database.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stopping.set())
    dbt = Dbt(target)
    tested, failing_since = time.monotonic(), None
    removed = None  # messages, by the last run if it succeeded
    while not stopping.is_set():
        succeeded = True
        try:
            has_landed, erased = look(FIRST_LOOK if removed is None else LOOK)
            if has_landed or erased != removed:
                succeeded = dbt.invoke("run", *(ALL_BUT_VIEWS if removed is not None else ()))
                removed = erased if succeeded else None
            if time.monotonic() - tested > test_every:
                succeeded, tested = dbt.invoke("run") and dbt.invoke("test") and succeeded, time.monotonic()
        except errors.LoaderError as error:
            succeeded, failure = False, error
            if give_up_after and not failing_since:
                error.show()
        else:
            failure = click.ClickException(f"dbt has failed for {give_up_after:.0f} s; what it said is above.")
        failing_since = None if succeeded else failing_since or time.monotonic()
        if failing_since and time.monotonic() - failing_since >= give_up_after:
            raise failure
        stopping.wait(every if succeeded else max(every, 10))


def look(query: str) -> tuple[bool, int]:
    """Whether something has landed that dbt has not taken, and how much is erased. Raises one of errors.py."""
    with (
        postgres.explained("Run it as transformer_user"),
        closing(postgres.connect("dbt follow")) as connection,
        connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(query)
        return cursor.fetchone()


class Dbt:
    """dbt in this process, with the project parsed once."""

    def __init__(self, target: str | None) -> None:
        self.options = ["--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT)]
        self.options += ["--target", target] if target else []
        self.runner = dbtRunner(callbacks=[say])
        parsed = self.call("parse")
        if not parsed.success:
            raise click.ClickException("The dbt project cannot be read; dbt's reason is above.")
        self.runner = dbtRunner(manifest=parsed.result, callbacks=[say])
        gc.freeze()  # what stays need not be looked through for garbage, which took a fifth of each run

    def invoke(self, command: str, *arguments: str) -> bool:
        """Whether it succeeded."""
        return self.call(command, *arguments).success

    def call(self, command: str, *arguments: str):
        # Without the files that describe a run, which the next one replaces within seconds, and without dbt's log, a
        # thousand lines for each run that nobody reads: two fifths of its time.
        quiet = ["--no-write-json", "--log-level", "none", "--log-level-file", "none"]
        return self.runner.invoke([*quiet, command, *arguments, *self.options])


def say(event) -> None:
    """Prints what dbt reports as an error. Where that fails, dbt would wait forever for its thread that reports."""
    if event.info.level == "error":
        with suppress(OSError):
            print(event.info.msg, flush=True)


if __name__ == "__main__":
    errors.run(main, "python dbt_project/follow.py")

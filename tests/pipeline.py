"""Steps of the pipeline as the tests take them: messages landed without SQS, dbt in this process."""

import contextlib
import functools
import gc
import io
import os
import tempfile
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from itertools import islice, repeat
from pathlib import Path
from unittest import mock

from dbt.cli.main import dbtRunner
from dbt_common.behavior_flags import BehaviorFlagRendered

DBT_PROJECT = Path(__file__).parents[1] / "dbt_project"
# dbt asks for its own name by reading the source of all that called it: here, pytest's whole stack, a twelfth of a run.
SHALLOW = mock.patch.object(BehaviorFlagRendered, "_default_source", return_value="tests")

LAND = """
insert into raw.sqs_messages (message_id, queue, body, sent_at, load_id)
select message_id, %(queue)s, body, sent_at, (select raw.current_load_id())
from unnest(%(ids)s, %(bodies)s, %(times)s::timestamptz[]) as message (message_id, body, sent_at);
insert into raw.loads (queue, received, landed, duplicates) values (%(queue)s, %(n)s, %(n)s, 0)
"""


SENT_AT = datetime(2026, 11, 21, 23, 59, 59, 999_000, tzinfo=timezone.utc)


def land(
    database,
    bodies: Iterable[str],
    prefix: str = "m",
    queue: str = "login-queue",
    times: Iterable[datetime] = repeat(SENT_AT),
) -> list[str]:
    """Land each body in one load, as the loader's login; returns their message ids, in order."""
    bodies = list(bodies)
    ids = [f"{prefix}{n}" for n in range(len(bodies))]
    message = {"queue": queue, "ids": ids, "bodies": bodies, "times": list(islice(times, len(ids)))}
    with contextlib.closing(database.connect("loader_user")) as connection, connection, connection.cursor() as cursor:
        cursor.execute(LAND, message | {"n": len(ids)})
    return ids


def dbt(
    database, *arguments: str, login: str = "transformer_user", expect: bool | None = True, project: Path = DBT_PROJECT
):
    """Run a dbt command on this database; its result, or a failed test with what dbt said. None: it may fail or not."""
    return invoke(dbtRunner(parsed(database, login, project)), database, login, arguments, expect, project)


def parsed(database, login: str, project: Path = DBT_PROJECT):
    """The project as dbt reads it for this database."""
    manifest, place = read(project, state_of(project)), database.env(login)["PGDATABASE"]
    for node in [*manifest.nodes.values(), *manifest.sources.values()]:
        if node.database and node.database != place:
            node.relation_name = node.relation_name and node.relation_name.replace(f'"{node.database}".', f'"{place}".')
            node.database = place
    return manifest


def state_of(project: Path) -> int:
    """Another number when a file of the project has changed."""
    files = [
        *project.glob("*.yml"),
        *(file for each in ("models", "macros", "tests") for file in project.glob(f"{each}/**/*")),
    ]
    return hash(frozenset((file, file.stat().st_mtime_ns) for file in files))


@functools.cache
def read(project: Path, state: int):
    """dbt reads the project once: that takes longer than most of what is then done with it."""
    manifest = invoke(dbtRunner(), NoDatabase(), "", ["parse"], True, project).result
    gc.freeze()  # as dbt_project/follow.py
    return manifest


class NoDatabase:
    """What a project is read for: no node has this name in the end."""

    def env(self, login: str) -> dict[str, str]:
        return os.environ | {"PGDATABASE": "read", "PGUSER": "transformer_user"}


def invoke(runner: dbtRunner, database, login: str, arguments: Sequence[str], expect: bool | None, project: Path):
    said = io.StringIO()
    runner.callbacks.append(lambda event: event.info.level == "debug" or print(event.info.msg, file=said))
    with tempfile.TemporaryDirectory() as folder:
        settings = {"DBT_PROJECT_DIR": project, "DBT_PROFILES_DIR": project, "DBT_TARGET_PATH": folder}
        settings["DBT_LOG_LEVEL_FILE"] = "none"  # dbt never closes its log
        settings["DBT_LOG_LEVEL"] = "none"  # it formats what it does not show as well, a tenth of a run
        settings["DBT_WRITE_JSON"] = "--target-path" in arguments  # a sixth of a run
        if arguments[0] == "build" and project == DBT_PROJECT:
            # These read no data, and take a third of a build: test_dbt_boundary runs them once on each PostgreSQL.
            settings["DBT_EXCLUDE_RESOURCE_TYPES"] = "unit_test"
        environment = database.env(login) | {name: str(value) for name, value in settings.items()}
        with mock.patch.dict(os.environ, environment), contextlib.redirect_stdout(said), SHALLOW:
            result = runner.invoke([*arguments])
    assert expect in (None, result.success), said.getvalue()
    return result


def query(database, sql: str, *parameters, login: str = "analyst_user") -> list[tuple]:
    with contextlib.closing(database.connect(login)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        return cursor.fetchall()

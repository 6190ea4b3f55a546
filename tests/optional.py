"""Parts that need more than `make install` gets. Each is left out of `make test`, and has a target of its own."""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable

import pytest

from tests.browser import CHROMIUM
from tests.pgbouncer import PGBOUNCER


def docker_answers() -> bool:
    ask = [["docker", "compose", "version"], ["docker", "info"]]
    return bool(shutil.which("docker")) and not any(
        subprocess.run(each, capture_output=True).returncode for each in ask
    )


# By their marks: whether it is here, and what it is.
PARTS: dict[str, tuple[Callable[[], object], str]] = {
    "chromium": (lambda: CHROMIUM, "Chromium (apt install chromium)"),
    "citus": (
        lambda: shutil.which("postgres", path=os.environ.get("CITUS_BIN", "")),
        "CITUS_BIN, the folder of the programs of a PostgreSQL that has Citus",
    ),
    "compose": (docker_answers, "a Docker engine that answers, and docker's plugin compose"),
    "kubectl": (lambda: shutil.which("kubectl"), "kubectl"),
    "pgbouncer": (lambda: PGBOUNCER, "PgBouncer (apt install pgbouncer)"),
    "promtool": (lambda: shutil.which("promtool"), "promtool (apt install prometheus)"),
    "schedule": (
        lambda: importlib.util.find_spec("airflow") and importlib.util.find_spec("dagster"),
        "Airflow and Dagster, which it installs",
    ),
}


def choose(config: pytest.Config) -> None:
    """The tests of the part that `-m` names, or those that need none. A part that is not here is an error."""
    for part, (_, need) in PARTS.items():
        config.addinivalue_line("markers", f"{part}: needs {need}")
    part = config.option.markexpr
    if not part:
        config.option.markexpr = f"not ({' or '.join(PARTS)})"
    elif part in PARTS and not PARTS[part][0]():
        raise pytest.UsageError(f"`make {part}-test` needs {PARTS[part][1]}.")

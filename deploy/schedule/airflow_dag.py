"""Airflow 3: copy this file to the folder of DAGs. MASKED_LOGINS is the project's folder, ENV_FILE its settings.

Where Airflow's user cannot write to dbt_project/, DBT_LOG_PATH and DBT_TARGET_PATH name folders of its own.
"""

import os
from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

PROJECT = os.environ.get("MASKED_LOGINS", "/opt/masked-logins")
START = datetime(2026, 1, 1)


def make(target: str, **options) -> BashOperator:
    """A task that runs a target of the Makefile, on the servers that the environment names."""
    return BashOperator(task_id=target, bash_command=f"make -s {target}", cwd=PROJECT, append_env=True, **options)


# One run at a time: dbt builds everything that has landed until then.
with DAG("masked_logins", schedule="*/5 * * * *", start_date=START, catchup=False, max_active_runs=1):
    retry = {"retries": 2, "retry_delay": timedelta(seconds=30)}  # each step is idempotent
    load, status = make("load", **retry), make("status")
    # what has landed is built even if a load fails, such as at one message that PostgreSQL refuses
    build = make("build", trigger_rule="all_done", **retry)
    load >> build >> status
    load >> status  # which is last, and so decides whether the run has failed

with DAG("masked_logins_purge", schedule="0 3 * * *", start_date=START, catchup=False, max_active_runs=1):
    make("purge")
    make("attest", env={"ARGS": "--record"})

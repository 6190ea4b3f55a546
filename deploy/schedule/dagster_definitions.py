"""Dagster: `dagster dev -f deploy/schedule/dagster_definitions.py`. MASKED_LOGINS is the project's folder, ENV_FILE its
settings.

Where Dagster's user cannot write to dbt_project/, DBT_LOG_PATH and DBT_TARGET_PATH name folders of its own.
"""

import os
import subprocess

import dagster as dg

PROJECT = os.environ.get("MASKED_LOGINS", "/opt/masked-logins")
UNDER_WAY = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
RETRY = dg.RetryPolicy(max_retries=2, delay=30)  # each step is idempotent


def make(context: dg.AssetExecutionContext | dg.OpExecutionContext, target: str, *variables: str) -> None:
    """Run a target of the Makefile, on the servers that the environment names."""
    done = subprocess.run(
        ["make", "-s", target, *variables], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    context.log.info(done.stdout)
    if done.returncode:
        raise dg.Failure(f"make {target} failed; its output is above.")


@dg.asset(retry_policy=RETRY)
def sqs_messages(context: dg.AssetExecutionContext) -> None:
    """raw.sqs_messages: everything that was on the queue."""
    make(context, "load")


@dg.asset(deps=[sqs_messages], retry_policy=RETRY)
def user_logins(context: dg.AssetExecutionContext) -> None:
    """analytics.user_logins and all that dbt builds and tests beside it."""
    make(context, "build")


@dg.op
def purge(context: dg.OpExecutionContext) -> None:
    make(context, "purge")


@dg.op
def attest(context: dg.OpExecutionContext) -> None:
    make(context, "attest", "ARGS=--record")


@dg.job
def retention() -> None:
    purge()
    attest()


def every_five_minutes(name: str, asset: dg.AssetsDefinition, *, minute: int) -> dg.ScheduleDefinition:
    """A job of its own for an asset, one run at a time: it takes all that is there until then."""
    job = dg.define_asset_job(name, [asset])

    @dg.schedule(name=f"{name}_every_five_minutes", job=job, cron_schedule=f"{minute}-59/5 * * * *")
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        if context.instance.get_runs_count(dg.RunsFilter(job_name=name, statuses=UNDER_WAY)):
            return dg.SkipReason("the previous run is under way")
        return dg.RunRequest()

    return schedule


defs = dg.Definitions(
    assets=[sqs_messages, user_logins],
    jobs=[retention],
    schedules=[
        every_five_minutes("load", sqs_messages, minute=0),
        # what has landed is built even if a load fails, such as at one message that PostgreSQL refuses
        every_five_minutes("build", user_logins, minute=2),
        dg.ScheduleDefinition(job=retention, cron_schedule="0 3 * * *"),
    ],
)

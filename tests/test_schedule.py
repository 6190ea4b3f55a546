"""deploy/schedule: each file is what its program reads, and runs nothing that does not exist."""

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "schedule"
UNITS = sorted(FOLDER.glob("masked-logins-*"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_unit_is_accepted_by_systemd(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("there is no systemd here")
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/masked-logins/.venv/bin", str(installed())))
    command = ["systemd-analyze", "verify", "--man=no", *(tmp_path / unit.name for unit in UNITS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def installed() -> Path:
    return Path(sys.executable).parent


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit.suffix == ".service"], ids=lambda unit: unit.name)
def test_every_command_of_a_unit_exists_with_its_options(unit):
    commands = re.findall(r"^ExecStart=/opt/masked-logins/\.venv/bin/(.+)$", unit.read_text(), re.MULTILINE)
    assert commands
    for program, *arguments in map(str.split, commands):
        done = subprocess.run([installed() / program, *arguments, "--help"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        known = set(re.findall(r"--[a-z-]+", done.stdout))
        assert {each for each in arguments if each.startswith("--")} <= known


def test_every_timer_starts_a_service():
    timers = {unit.stem for unit in UNITS if unit.suffix == ".timer"}
    services = {unit.stem for unit in UNITS if unit.suffix == ".service"}
    assert timers == services - {"masked-logins-loader", "masked-logins-dbt-follow"}  # which run all the time
    enabled = re.search(r"systemctl enable --now (.*)", (FOLDER / "masked-logins-loader.service").read_text())[1]
    assert set(enabled.split()) == {f"{each}.timer" for each in timers} | {"masked-logins-loader.service"}


def test_dbt_runs_by_the_clock_or_all_the_time_and_not_both():
    follow = (FOLDER / "masked-logins-dbt-follow.service").read_text()
    assert "\nConflicts=masked-logins-dbt.timer\n" in follow
    assert "disable --now masked-logins-dbt.timer && systemctl enable --now masked-logins-dbt-follow.service" in follow


def jobs() -> list[str]:
    """The commands of the crontab, without when and as whom."""
    lines = [line for line in (FOLDER / "crontab").read_text().splitlines() if re.match(r"[*\d]", line)]
    return [line.split(maxsplit=6)[6] for line in lines]


def test_cron_runs_targets_that_exist_and_has_no_percent_sign_which_it_would_cut_at():
    named = re.findall(r"make -s (?:-k )?-C /opt/masked-logins ([a-z ]+?)(?: ARGS=--record)? 2>&1", " ".join(jobs()))
    assert [each.split() for each in named] == [["load", "build"], ["status"], ["purge"], ["attest"]]
    assert {target for each in named for target in each.split()} <= TARGETS
    assert "%" not in " ".join(jobs())


def test_cron_writes_where_nobody_else_can():
    """In /tmp, anybody can be first to make a folder, and give dbt a manifest; or a lock, and keep it."""
    written = re.findall(r"^DBT_\w+_PATH=(\S+)$|flock -n (\S+)", (FOLDER / "crontab").read_text(), re.MULTILINE)
    assert len(written) == 3
    assert all("".join(each).startswith("/var/lib/masked-logins/") for each in written)


@pytest.mark.parametrize(
    ("status", "said", "mailed"),
    [
        pytest.param(0, "received 0", "", id="well"),
        pytest.param(2, "No database", "No database\n", id="failed"),
        pytest.param(1, "", "", id="the-run-before-goes-on"),
    ],
)
def test_cron_mails_only_what_failed(tmp_path, status, said, mailed):
    (tmp_path / "make").write_text(f"#!/bin/sh\nprintf '%s' '{said}'\nexit {status}\n")
    (tmp_path / "make").chmod(0o755)
    lock = str(tmp_path / "lock")
    job = jobs()[0].replace("/var/lib/masked-logins/lock", lock)
    environment = {"PATH": f"{tmp_path}:{os.defpath}"}
    done = subprocess.run(["sh", "-c", job], env=environment, capture_output=True, text=True)
    assert done.stdout == mailed


def test_dbt_builds_what_has_landed_even_if_a_load_fails(tmp_path):
    """One message that PostgreSQL refuses, and each load until the dead-letter queue has it ends with 10."""
    (tmp_path / "Makefile").write_text("load:\n\t@echo refused; exit 10\nbuild:\n\t@echo built > built\n")
    job = jobs()[0].replace("/var/lib/masked-logins/lock", str(tmp_path / "lock"))
    job = job.replace("/opt/masked-logins", str(tmp_path))
    done = subprocess.run(["sh", "-c", job], capture_output=True, text=True)
    assert (tmp_path / "built").exists()
    assert "refused" in done.stdout


def test_airflow_builds_what_has_landed_even_if_a_load_fails_and_says_so(monkeypatch):
    """Airflow's own classes are played: which tasks wait for which, and for what."""
    tasks = {}

    class Task(SimpleNamespace):
        def __init__(self, task_id, trigger_rule="all_success", **_):
            super().__init__(id=task_id, rule=trigger_rule, after=set())
            tasks[task_id] = self

        def __rshift__(self, other):
            other.after.add(self.id)
            return other

        def __lshift__(self, other):
            self.after.add(other.id)
            return other

    operators = SimpleNamespace(BashOperator=Task)
    sdk = SimpleNamespace(DAG=lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setitem(sys.modules, "airflow.providers.standard.operators.bash", operators)
    monkeypatch.setitem(sys.modules, "airflow.sdk", sdk)
    load("airflow_dag")
    assert (tasks["build"].after, tasks["build"].rule) == ({"load"}, "all_done")
    # the last task says how a run has ended
    assert (tasks["status"].after, tasks["status"].rule) == ({"load", "build"}, "all_success")


@pytest.mark.parametrize("name", ["airflow_dag", "dagster_definitions"])
def test_the_orchestrators_run_targets_that_exist(name):
    source = (FOLDER / f"{name}.py").read_text()
    compile(source, name, "exec")
    named = set(re.findall(r'make\((?:context, )?"([a-z]+)"', source))
    assert {"load", "build", "purge"} <= named <= TARGETS


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.schedule
def test_airflow_takes_the_dags():
    dags = {each.dag_id: each for each in vars(load("airflow_dag")).values() if hasattr(each, "dag_id")}
    assert dags


@pytest.mark.schedule
def test_dagster_runs_the_jobs(tmp_path, monkeypatch):
    dagster = importlib.import_module("dagster")
    monkeypatch.setenv("MASKED_LOGINS", str(tmp_path))
    (tmp_path / "Makefile").write_text("build load purge attest:\n\t@echo $@ $(ARGS) >> made\n")
    definitions = load("dagster_definitions").defs
    dagster.Definitions.validate_loadable(definitions)
    assert {each.job_name for each in definitions.schedules} == {"load", "build", "retention"}
    for job, made in (("load", {"load"}), ("build", {"build"}), ("retention", {"attest --record", "purge"})):
        assert definitions.resolve_job_def(job).execute_in_process().success
        assert {each.strip() for each in (tmp_path / "made").read_text().splitlines()} == made
        (tmp_path / "made").unlink()

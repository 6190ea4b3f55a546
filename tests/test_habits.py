"""What people type without thinking works as they expect: dbt's commands in dbt_project/, and the Tab key."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dbt.cli.main import cli, dbtRunner

from tests.pipeline import land

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
LOGIN = '{{"user_id":"u{}","app_version":"1.0","device_type":"ios","ip":"192.0.2.1","locale":null,"device_id":"d"}}'


@pytest.fixture
def type_dbt(module_database, monkeypatch):
    """Types a dbt command in dbt_project/, as transformer_user, with no option for where anything is."""
    monkeypatch.chdir(ROOT / "dbt_project")
    for name, value in module_database.env("transformer_user").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DBT_LOG_LEVEL_FILE", "none")

    def type_dbt(command):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            result = dbtRunner().invoke(command.split()[1:])
        assert result.success, said.getvalue()
        assert "warning" not in said.getvalue().lower()
        return result.result, said.getvalue()

    return type_dbt


@pytest.mark.parametrize("target", ["", " --target dev", " --target test"])
def test_debug_finds_everything_in_order(type_dbt, target):
    _, said = type_dbt("dbt debug" + target)
    assert "All checks passed!" in said


def test_ls_lists_the_models(type_dbt):
    models, _ = type_dbt("dbt ls --resource-type model --output name")
    assert {"user_logins", "rejected_messages", "stg_sqs__messages"} <= set(models)


def test_a_model_runs_with_what_it_stands_on_and_is_shown(type_dbt, module_database):
    land(module_database, [LOGIN.format(n) for n in range(3)])
    type_dbt("dbt run")
    run, _ = type_dbt("dbt run --select +user_logins")
    assert [each.node.name for each in run if each.node.resource_type == "model"] == [
        "base_sqs__messages",
        "stg_sqs__messages",
        "int_messages__masked",
        "user_logins",
    ]
    shown, said = type_dbt("dbt show --select user_logins")
    assert len(shown.results[0].agate_table.rows) == 3
    assert "masked_ip" in said


# Calls what Tab calls, for the words typed so far, and prints what it offers.
TAB = """
eval "$START_UP"
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
$(complete -p "$1" | sed 's/.*-F \\([^ ]*\\).*/\\1/') "$1"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash here")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        pytest.param(["loader", "st"], ["status"], id="command"),
        pytest.param(["loader", "load", "--max-"], ["--max-messages", "--max-seconds"], id="option"),
        pytest.param(["loader", "load", "--log-format", ""], ["text", "json"], id="choice"),
    ],
)
def test_tab_completes_the_loader(typed, offered):
    start_up = re.search(r"```bash\n(.*?_LOADER_COMPLETE.*?)```", CONTRIBUTING, re.DOTALL)[1]
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "START_UP": start_up}
    pressed = subprocess.run(
        ["bash", "-c", TAB, "bash", *typed], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert pressed.stdout.split() == offered


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash here")
def test_the_line_that_makes_tab_complete_dbt_works_in_a_fresh_home(tmp_path):
    typed = re.search(r"^ {4}(?:mkdir .*\n {4})?_DBT_COMPLETE=.*$", CONTRIBUTING, re.MULTILINE)[0]
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    subprocess.run(["bash", "-ec", typed], env=environment, check=True)
    assert "dbt" in (tmp_path / ".local/share/bash-completion/completions/dbt").read_text()


def test_tab_completes_dbt(monkeypatch, capsys):
    assert "_DBT_COMPLETE=bash_source dbt" in CONTRIBUTING
    for name, value in {"_DBT_COMPLETE": "bash_complete", "COMP_WORDS": "dbt sho", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        cli.main([], prog_name="dbt")
    assert capsys.readouterr().out == "plain,show\n"

"""The Makefile: every target is in the help, and what a fresh machine lacks is reported with its remedy."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from local.stack import NO_CAPABILITIES
from tests import optional

ROOT = Path(__file__).parents[1]


def make(*arguments, folder=ROOT, **settings):
    return subprocess.run(["make", *arguments], cwd=folder, env=os.environ | settings, capture_output=True, text=True)


@pytest.fixture
def fresh(tmp_path):
    """A clone in which nothing is installed."""
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_help_is_the_default_and_lists_every_target():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert [line.split()[0] for line in make().stdout.splitlines()] == targets
    assert targets


def test_a_part_that_needs_more_has_a_target_which_fails_where_that_is_missing(tmp_path):
    targets = set(re.findall(r"^([a-z]+)-test:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert targets == set(optional.PARTS)
    only_one = "import pytest\n@pytest.mark.promtool\ndef test_alerts(): pass\ndef test_usual(): pass\n"
    (tmp_path / "test_one.py").write_text(only_one)
    options = ["-m", "pytest", "-q", "-p", "tests.conftest"]
    run = [sys.executable, *options, "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path]
    for chosen, status in [(["-m", "promtool"], 4), ([], 0)]:
        done = subprocess.run([*run, *chosen, tmp_path], cwd=ROOT, env={"PATH": ""}, capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
        assert ("`make promtool-test` needs promtool (apt install prometheus)." in done.stderr) == bool(chosen)
        assert ("1 passed, 1 deselected" in done.stdout) == (not chosen)


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        pytest.param('case "$2" in *version*) exit 1; esac', "Python 3.10 to 3.13 is needed", id="another-python"),
        pytest.param('case "$2" in *ensurepip*) exit 1; esac', "apt install python3-venv", id="no-venv"),
    ],
)
def test_what_is_missing_is_said_with_its_remedy(fresh, script, sentence):
    python = fresh / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    result = make("install", f"PYTHON={python}", folder=fresh)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_a_python_that_dbt_runs_on_is_taken_where_the_usual_one_is_newer(fresh):
    for name in ("python3", "python3.13"):
        (fresh / name).write_text('#!/bin/sh\ncase "$2" in *version*) exit 1; esac\n')
    (fresh / "python3.12").write_text(PIP % 0)
    for python in fresh.glob("python3*"):
        python.chmod(0o755)
    result = make("install", folder=fresh, PATH=f"{fresh}:{os.defpath}")
    assert result.returncode == 0, result.stderr
    assert (fresh / ".venv" / "bin" / "python").read_text() == PIP % 0


def test_settings_that_could_not_be_written_are_not_there(fresh):
    """An empty file would be up to date for the next `make prod.env`."""
    assert make("prod.env", "PYTHON=missing", folder=fresh).returncode == 2
    assert not (fresh / "prod.env").exists()


# Plays Python and its pip: makes a .venv of itself, and collects 45 packages.
PIP = """#!/bin/sh
case "$*" in
*"venv "*.venv) mkdir -p .venv/bin; cp "$0" .venv/bin/python;;
*"pip install"*) for n in $(seq 45); do echo "Collecting p$n"; done; echo "Installing collected packages: p1"; exit %d;;
esac
"""


@pytest.mark.parametrize("status", [0, 1])
def test_the_installation_shows_progress_and_its_failure_is_one(fresh, status):
    python = fresh / "python"
    python.write_text(PIP % status)
    python.chmod(0o755)
    result = make("install", f"PYTHON={python}", folder=fresh)
    everything = len(PINNED.findall((ROOT / "requirements-dev.txt").read_text()))
    assert f"    20 of {everything} packages\n    40 of {everything} packages\n    unpacking\n" in result.stderr
    assert (result.returncode == 0) == (fresh / ".venv" / "installed").exists() == (status == 0)


def test_two_that_install_at_once_install_once(fresh):
    """As `make demo` in one terminal and `make test` in another do."""
    python = fresh / "python"
    python.write_text(
        PIP.replace("exit %d", "echo install >> log; sleep 0.5; echo '#!'$PWD/.venv/bin/python > .venv/bin/dbt")
    )
    python.chmod(0o755)
    both = [subprocess.Popen(["make", "-s", "install", f"PYTHON={python}"], cwd=fresh) for _ in range(2)]
    assert [each.wait() for each in both] == [0, 0]
    assert (fresh / "log").read_text() == "install\n"


@pytest.mark.parametrize("command", ["load", "status", "doctor", "redrive"])
def test_each_command_of_the_loader_has_a_target_that_takes_its_options(command):
    assert make("-n", command, "ARGS=--help").stdout.endswith(f"/python -m loader {command} --help\n")


@pytest.mark.parametrize("target", ["down", "clean"])
def test_stopping_what_never_ran_installs_nothing(fresh, target):
    assert make(target, folder=fresh).returncode == 0
    assert not (fresh / ".venv").exists()


def installed(fresh: Path) -> Path:
    """The folder of its programs, in which make takes everything to be."""
    programs = fresh / ".venv" / "bin"
    programs.mkdir(parents=True)
    (fresh / ".venv" / "installed").touch()
    (programs / "dbt").write_text(f"#!{programs}/python\n")
    return programs


@pytest.mark.parametrize("python", [None, "#!/bin/sh\n", "#!/bin/sh\nexit 1\n"], ids=["gone", "works", "upgraded"])
@pytest.mark.parametrize("moved", [False, True])
def test_what_was_installed_elsewhere_or_with_another_python_is_installed_anew(fresh, python, moved):
    """After an upgrade of the system, .venv has the new Python and the packages of the old one, or no Python at all."""
    programs = installed(fresh)
    if python:
        (programs / "python").write_text(python)
        (programs / "python").chmod(0o755)
    (fresh / "newest").write_text(PIP.replace("mkdir", "echo $*; mkdir") % 0)
    (fresh / "newest").chmod(0o755)
    folder = fresh.rename(fresh.with_name(f"{fresh.name}-moved")) if moved else fresh
    result = make("-s", "install", "PYTHON=./newest", folder=folder)
    assert result.returncode == 0, result.stderr
    works = python == "#!/bin/sh\n" and not moved
    assert ("-m venv --clear .venv" in result.stdout) != works
    assert (folder / ".venv" / "installed").exists()


def test_targets_run_one_after_the_other_also_with_j(fresh):
    """Many have -j in MAKEFLAGS. dbt would build what has not landed yet."""
    python = installed(fresh) / "python"
    python.write_text('#!/bin/sh\necho "begin $*"; sleep 0.2; echo "end $*"\n')
    python.chmod(0o755)
    begun, ended, *_ = make("-j4", "load", "build", folder=fresh).stdout.splitlines()
    assert (begun.split()[0], ended) == ("begin", begun.replace("begin", "end", 1))


RECIPES = re.findall(r"^([a-z-]+):.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
TYPED = [(target, name) for target, recipe in RECIPES for name in re.findall(r'"\$\$([A-Z_]+)"', recipe)]


@pytest.mark.parametrize(("target", "name"), TYPED)
def test_what_is_typed_is_passed_on_as_it_is(fresh, target, name):
    """A user_id may have any character. make takes $b in a variable for another one, and a$b for a: somebody else."""
    python = installed(fresh) / "python"
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    typed = r"a$b $(shell date) $$ ${HOME} `d` 'e' \"f\" \ # %"
    assert typed in make("-s", target, f"{name}={typed}", folder=fresh).stdout.splitlines()
    assert typed in make("-s", target, folder=fresh, **{name: typed}).stdout.splitlines()


@pytest.mark.parametrize("target", ["build", "demo", "docs"])
@pytest.mark.parametrize("others", ["", "logs", "logs/dbt.log", "target"])
def test_dbt_says_where_it_cannot_write(fresh, others, target):
    """As Airflow's user, or after somebody has run the demo as root. dbt itself would print nothing."""
    (installed(fresh) / "python").symlink_to("/bin/true")
    for folder in ("logs", "target") if others else ():
        (fresh / "dbt_project" / folder).mkdir(parents=True)
    path = fresh / "dbt_project" / others
    path.touch(mode=0o400) if path.suffix else path.mkdir(exist_ok=True)
    path.chmod(0o500)

    def run(**settings):
        command = [*NO_CAPABILITIES, "make", "-s", target]
        return subprocess.run(command, cwd=fresh, env=os.environ | settings, capture_output=True, text=True)

    result = run()
    assert result.returncode == 2
    assert f"dbt cannot write to dbt_project/{others.split('/')[0]}" in result.stderr
    elsewhere = run(DBT_LOG_PATH=str(fresh / "of mine"), DBT_TARGET_PATH=str(fresh / "too"))
    assert elsewhere.returncode == 0
    assert elsewhere.stdout == (f"{fresh / 'too'}/static_index.html\n" if target == "docs" else "")


REQUIREMENTS = ("requirements.txt", "requirements-dev.txt", "deploy/requirements-lint.txt")
# A package with its version, perhaps a condition, and the hashes of its files.
PINNED = re.compile(
    r"([a-z0-9.-]+)(?:\[[a-z,-]+\])?==([\w.]+)(?: ; [^\\]+)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)(?:\n    # .*)?\n"
)


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_every_requirement_has_a_version_and_hashes(name):
    text = (ROOT / name).read_text()
    assert PINNED.sub("", text) == "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert PINNED.search(text)


def locked(name: str) -> set[tuple[str, str]]:
    return {each[:2] for each in PINNED.findall((ROOT / name).read_text())}


def test_what_develops_contains_what_runs():
    assert locked("requirements.txt") < locked("requirements-dev.txt")
    # jsonschema reads a grammar with it, each time that dbt starts: 1.4 of 4.2 seconds
    assert "rfc3987-syntax" not in dict(locked("requirements-dev.txt"))


def test_pyproject_and_the_requirements_agree():
    declared = re.findall(r'^    "([a-z0-9-]+)==([\w.]+)', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert len(declared) > 20
    assert set(declared) <= locked("requirements-dev.txt") | locked("deploy/requirements-lint.txt")

"""Servers of one's own, by the README: each command exactly as written, in a shell where nothing else is set."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from local import queues, settings
from local.events import generate
from local.processes import StackError
from local.stack import LOGINS, NO_CAPABILITIES, SUPERUSER
from tests.instructions import block, checkout

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
[TYPED] = re.findall(r"\n\n((?: {4}.*\n)* {4}export ENV_FILE=.*\n(?: {4}.*\n)*)", README)

LOGIN_ELSEWHERE = (
    "ENV_FILE=other.env make login NAME=eve || true",
    'eval "$(make -s env ENV_FILE=prod.env AS=migrator)"',
    "psql -XAtc \"select count(*) from pg_roles, pg_database where rolname = 'eve' or datname = 'mistake'\"",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkout(tmp_path_factory.mktemp("typed") / "checkout")


@pytest.fixture
def type_lines(folder):
    def type_lines(*lines, **environment):
        shell = {"PATH": os.environ["PATH"], "HOME": str(folder), "DBT_LOG_PATH": str(folder / "logs")} | environment
        script = ["bash", "-ec", "\n".join(lines)]
        return subprocess.run(script, cwd=folder, env=shell, capture_output=True, text=True)

    return type_lines


@pytest.fixture
def servers(stack, empty_server):
    """What a reader writes into the file: a PostgreSQL with nothing in it, and SQS, whose queue has one login."""
    sqs = queues.client(stack.environment("loader_user"))
    url = queues.ensure_queue(sqs, "login-queue")
    queues.send(sqs, url, [next(event.body for event in generate(100, seed=1) if event.reason is None)])
    superuser = empty_server.environment(SUPERUSER)
    of_sqs = {each: value for each, value in stack.environment("loader_user").items() if each.startswith("AWS_")}
    yield of_sqs | {
        "PGHOST": superuser["PGHOST"],
        "PGPORT": superuser["PGPORT"],
        "PGDATABASE": "own",
        "POSTGRES_PASSWORD": superuser["PGPASSWORD"],
    }
    sqs.delete_queue(QueueUrl=url)
    sqs.close()


def test_every_command_works_as_written(type_lines, servers, folder):
    create, *others = [line.strip() for line in TYPED.splitlines()]
    created = type_lines("umask 022", create)
    assert created.returncode == 0, created.stderr
    with (folder / "prod.env").open("a") as file:
        file.writelines(f"{name}={value}\n" for name, value in servers.items())

    done = type_lines(*others)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "received 1: landed 1, duplicates 0" in done.stdout
    assert "All is well." in done.stdout
    assert "Login ada is in the role analyst" in done.stdout
    for name in ("prod.env", "ada.env"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600

    as_ada = type_lines(
        'eval "$(make -s env ENV_FILE=ada.env)"',
        "psql -XAtc 'select current_user, count(*) from analytics.user_logins'",
        "psql -Xc 'select body from raw.sqs_messages'",
    )
    assert as_ada.stdout == "ada|1\n"
    assert "permission denied for schema raw" in as_ada.stderr

    mistaken = type_lines("sed 's/^PGDATABASE=.*/PGDATABASE=mistake/' prod.env > other.env", *LOGIN_ELSEWHERE)
    assert "There is no database mistake: correct PGDATABASE" in mistaken.stderr
    assert (mistaken.stdout, (folder / "eve.env").exists()) == ("0\n", False)

    for name in ("", "a/b", "-x", "analyst", "loader_user", "migrator"):
        refused = type_lines("export ENV_FILE=prod.env", f"make login NAME={name}")
        assert refused.returncode == 2
        assert "a name of letters" in refused.stderr or f"{name} is a role of the pipeline" in refused.stderr
        assert not (folder / f"{name}.env").exists()
    assert type_lines("export ENV_FILE=prod.env", "make doctor").returncode == 0  # with the loader's own password

    # Nobody who reads the one database sees anything of the other.
    *tries, drops = block("commands typed: a database of your own").splitlines()
    reads = "psql -XAtc 'select count(*) from analytics.user_logins'"
    tried = type_lines(*tries, f'(eval "$(make -s env AS=analyst_user)" && {reads})')
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert int(tried.stdout.splitlines()[-1]) > 10_000
    as_ada = type_lines('eval "$(make -s env ENV_FILE=ada.env)"', reads)
    assert as_ada.stdout == "1\n"
    dropped = type_lines("export ENV_FILE=try.env", drops, 'eval "$(make -s env)"', "psql -Xc '' || echo gone")
    assert dropped.stdout == "gone\n", dropped.stdout + dropped.stderr

    others = ("rm ada.env", "make login NAME=ada", "make rotate-key", "make attest")
    again = type_lines("export ENV_FILE=prod.env", *others)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "already a member" not in again.stderr


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path / "own.env").write_text(text)
        return tmp_path / "own.env"

    return write


OWN = "PGHOST=db.example.com\n" + "".join(f"{login.upper()}_PASSWORD='of {login}'\n" for login in LOGINS)


@pytest.mark.parametrize("login", LOGINS)
def test_a_program_gets_the_password_of_its_login_and_no_other(file, login):
    given = settings.environment(file(OWN), login, {"PGPASSWORD": "of another server", "PGSERVICE": "x", "HOME": "/"})
    server = {"PGHOST": "db.example.com", "PGSSLMODE": "verify-full", "PGDATABASE": "logins"}
    assert given == server | {"HOME": "/", "PGUSER": login, "PGPASSWORD": f"of {login}"}


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        pytest.param("PGHOST=db.example.com", "verify-full", id="elsewhere"),
        pytest.param("PGHOST=db.example.com\nPGSSLMODE=require", "require", id="as-the-file-says"),
        pytest.param("PGHOST=localhost", None, id="here"),
    ],
)
def test_a_server_elsewhere_has_to_show_its_certificate(file, text, mode):
    assert settings.environment(file(text), "migrator", {"PGSSLMODE": "disable"}).get("PGSSLMODE") == mode


def test_bootstrap_gets_the_passwords_of_all_logins_as_the_superuser_of_the_file(file):
    given = settings.environment(file(OWN + "POSTGRES_USER=master\nPOSTGRES_PASSWORD='$x'\n"), SUPERUSER, {})
    assert (given["PGUSER"], given["PGPASSWORD"]) == ("master", "$x")
    assert {f"{login.upper()}_PASSWORD": f"of {login}" for login in LOGINS}.items() <= given.items()


def test_the_login_of_a_file_for_one_login_goes_before_that_of_the_command(file):
    text = "PGHOST=::1\nexport PGUSER=ada # her own\nPGPASSWORD='a b'"
    given = settings.environment(file(text), "analyst_user", {})
    assert given == {"PGHOST": "::1", "PGDATABASE": "logins", "PGUSER": "ada", "PGPASSWORD": "a b"}


@pytest.mark.parametrize(("text", "name"), [("", "logins"), ("PGDATABASE=", "logins"), ("PGDATABASE=own", "own")])
@pytest.mark.parametrize("login", [SUPERUSER, "migrator"])
def test_every_program_works_in_the_database_that_bootstrap_creates(file, login, text, name):
    """libpq would look for one with the login's name."""
    assert settings.environment(file(f"PGHOST=h\n{text}"), login, {})["PGDATABASE"] == name


@pytest.mark.parametrize(
    ("text", "password"),
    [
        pytest.param("PGPASSWORD=a#b", "a#b", id="number-sign"),
        pytest.param("PGPASSWORD=#b", "#b", id="number-sign-first"),
        pytest.param("PGPASSWORD=ab # don't tell", "ab", id="comment"),
        pytest.param("# don't tell\nPGPASSWORD=ab", "ab", id="apostrophe-in-a-comment"),
        pytest.param("PGPASSWORD='a$\\\"#b c'", 'a$\\"#b c', id="single-quotes"),
        pytest.param('PGPASSWORD="a\'b"', "a'b", id="double-quotes"),
        pytest.param("  export PGPASSWORD='ab' \r\n", "ab", id="export-and-the-end-of-lines-of-windows"),
        pytest.param("\ufeffPGPASSWORD=ab", "ab", id="byte-order-mark"),
        pytest.param("PGPASSWORD='a\u2028b'", "a\u2028b", id="other-separator-of-lines"),
        pytest.param("PGPASSWORD=geheim-\u00e4", "geheim-\u00e4", id="umlaut"),
        pytest.param("PGPASSWORD=''", None, id="empty"),
    ],
)
def test_a_value_is_what_a_shell_and_compose_take_it_for(tmp_path, text, password):
    (tmp_path / "own.env").write_bytes(text.encode())
    assert settings.read(tmp_path / "own.env").get("PGPASSWORD") == password
    shell = f"set -a; . {tmp_path}/own.env; printenv PGPASSWORD"
    if "\ufeff" not in text and "\r" not in text:  # which a shell would take for letters
        assert subprocess.run(["sh", "-c", shell], capture_output=True, text=True).stdout == f"{password or ''}\n"


@pytest.mark.parametrize("value", ["a'b", "a b", "a'$b", "\u00e4#"])
def test_what_is_written_is_read_again(tmp_path, value):
    settings.write(tmp_path / "new.env", {"PGPASSWORD": value})
    assert settings.read(tmp_path / "new.env") == {"PGPASSWORD": value}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("PGPORT=5432", "does not set PGHOST", id="no-host"),
        pytest.param("PGHOST=h\nLOADER_USER_PASSWORD='choose-one'", "loader_user is still choose-one", id="unchanged"),
        pytest.param("PGHOST=h\n\nPGUSER", "line 3: expected NAME=value", id="no-value"),
        pytest.param("PGHOST='h", "line 1: expected NAME=value", id="open-quote"),
        pytest.param("PGHOST=h PGPORT=1", "line 1: expected NAME=value", id="two-in-a-line"),
        pytest.param("PGPASSWORD=a$b", "line 1: expected NAME=value", id="expanded-by-shells-and-compose"),
        pytest.param('PGPASSWORD="a$b"', "line 1: expected NAME=value", id="expanded-in-double-quotes"),
        pytest.param("PGPASSWORD=a\\b", "line 1: expected NAME=value", id="backslash"),
        pytest.param("PGPASSWORD=a;b", "line 1: expected NAME=value", id="two-commands-in-a-shell"),
        pytest.param("PGPASSWORD = a", "line 1: expected NAME=value", id="blanks-around-the-sign"),
    ],
)
def test_what_is_wrong_with_a_file_is_a_sentence_that_shows_no_value(file, text, sentence):
    with pytest.raises(StackError, match=sentence):
        settings.environment(file(text), "loader_user", {})


def test_a_file_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(StackError, match=r"ENV_FILE: .*own\.env cannot be read \(No such file or directory\)"):
        settings.read(tmp_path / "own.env")


def local(*arguments, **environment):
    command = [sys.executable, "-m", "local", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


def test_what_make_env_left_in_the_shell_leads_nowhere_else(stack, file):
    shell = stack.environment("analyst_user") | {"LOCAL_STATE": str(stack.folder), "ENV_FILE": str(file(OWN))}
    asked = ["run", "--as", "loader_user", "--", "sh", "-c", "echo $PGUSER $PGHOST $PGPORT $AWS_ENDPOINT_URL."]
    assert local(*asked, **shell).stdout == "loader_user db.example.com .\n"


def test_made_up_messages_are_not_sent_to_aws(file):
    refused = local("send", ENV_FILE=str(file(OWN)))
    assert refused.returncode == 1
    assert "made-up logins do not belong in AWS" in refused.stderr


def test_a_server_that_is_named_by_a_service_is_not_taken_for_the_local_one(tmp_path):
    asked = ["run", "--as", "loader_user", "--", "sh", "-c", "echo $PGSERVICE"]
    assert local(*asked, PGSERVICE="prod", LOCAL_STATE=str(tmp_path)).stdout == "prod\n"


@pytest.mark.parametrize("named", ["ENV_FILE", "PGHOST"])
def test_servers_of_ones_own_are_reached_where_somebody_else_has_a_local_stack(tmp_path, file, named):
    """As cron's user does, where root has tried the demo."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "stack.json").touch(mode=0)
    server = {named: str(file(OWN)) if named == "ENV_FILE" else "db.example.com"}
    command = [*NO_CAPABILITIES, sys.executable, "-m", "local", "run", "--as", "loader_user", "--", "sh", "-c"]
    environment = os.environ | server | {"LOCAL_STATE": str(tmp_path / "state")}
    done = subprocess.run([*command, "echo $PGHOST"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("db.example.com\n", "")


def test_a_login_whose_creation_is_interrupted_leaves_no_password_behind(tmp_path):
    (tmp_path / "psql").write_text("#!/bin/sh\nkill -INT $PPID\nsleep 1\n")
    (tmp_path / "psql").chmod(0o755)
    (tmp_path / "own.env").write_text("PGHOST=localhost\nPOSTGRES_PASSWORD=x\n")
    settings = {"ENV_FILE": "own.env", "PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    # a job in the background of a shell, which these tests may be, ignores it
    command = ["env", "--default-signal=INT", sys.executable, "-m", "local", "login", "ada"]
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "\nAborted!\n")
    assert not (tmp_path / "ada.env").exists()

"""The local stack starts anywhere, gives way to others, keeps what it promised to keep, and leaves no process."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg2
import pytest

from local.postgres import Account, choose_postgres, find_postgres, major
from local.processes import StackError, wait
from local.stack import DATABASE, LOGINS, NO_CAPABILITIES, SUPERUSER, Stack
from tests import faults
from tests.pgbouncer import answers

ROOT = Path(__file__).parents[1]
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root has to act as another user")


@pytest.fixture
def folder():
    """A folder that PostgreSQL's user can get to, whoever runs the tests."""
    folder = Path(tempfile.mkdtemp(prefix="masked-logins-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def own(folder):
    """A stack that this test may stop, break and remove."""
    stack = Stack(folder / "state", pg_port=0, sqs_port=0)
    yield stack
    stack.remove()


def query(stack, sql, login=SUPERUSER, database=DATABASE):
    with contextlib.closing(stack.connect(login, database)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall() if cursor.description else None


def processes_of(folder):
    """The command lines of all that runs with this folder in its arguments or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command, environment = ((process / name).read_bytes() for name in ("cmdline", "environ"))
            if os.fsencode(folder) in command + environment:
                found.append(command.replace(b"\0", b" ").decode())
    return found


def test_up_twice_is_one_stack(own):
    own.up()
    first, running = own.environment("analyst_user"), processes_of(own.folder)
    own.up()
    assert own.environment("analyst_user") == first
    assert processes_of(own.folder) == running


def test_down_leaves_no_process_and_keeps_the_database(own):
    own.up()
    query(own, "create table kept (n int)")
    own.down()
    assert not own.running
    assert processes_of(own.folder) == []

    own.down()
    own.up()
    assert query(own, "select * from kept") == []


def test_remove_leaves_nothing(own):
    own.up()
    own.remove()
    assert processes_of(own.folder) == []
    assert not own.folder.exists()


def test_a_taken_port_gives_way_to_a_free_one_which_is_kept(folder, caplog):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as other, caplog.at_level("WARNING"):
        taken = other.getsockname()[1]
        own = Stack(folder / "state", pg_port=taken, sqs_port=0)
        own.up()
    try:
        used = own.environment("migrator")["PGPORT"]
        assert caplog.messages == [f"Port {taken} is taken by another program: PostgreSQL uses {used}."]
        own.restart_postgres()
        assert own.environment("migrator")["PGPORT"] == used != str(taken)
    finally:
        own.remove()


def test_a_stale_process_id_stops_nobody(own):
    own.up()
    own.down()
    with subprocess.Popen(["sleep", "60"]) as innocent:
        (own.folder / "postgres" / "data" / "postmaster.pid").write_text(f"{innocent.pid}\n")
        port = own.environment("migrator")["AWS_ENDPOINT_URL"].rpartition(":")[2]
        (own.folder / "sqs" / f"ministack-{port}.pid").write_text(str(innocent.pid))
        own.down()
        assert innocent.poll() is None
        own.up()
        assert own.running
        innocent.kill()


def test_a_crash_loses_nothing_that_was_committed(own):
    own.up()
    query(own, "create table committed as select 1 as n")
    own.restart_postgres("immediate")
    assert query(own, "select n from committed") == [(1,)]


def test_the_servers_of_a_test_run_that_is_killed_end_too():
    run = "from tests.conftest import temporary_stack as t\nwith t() as stack: print(stack.folder, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", run], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killed:
        folder = Path(killed.stdout.readline().strip())
        assert processes_of(folder)
        killed.kill()
    wait(lambda: not folder.exists() and not processes_of(folder), f"{folder} is still there.")


@pytest.mark.pgbouncer
def test_the_pool_of_a_test_run_that_is_killed_ends_too(stack, folder):
    run = "import os; from tests.pgbouncer import *\nwith pgbouncer(os.environ) as port: print(port, flush=1); input()"
    env = os.environ | stack.environment("loader_user") | {"TMPDIR": str(folder)}
    with subprocess.Popen(
        [sys.executable, "-c", run], cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killed:
        port = int(killed.stdout.readline())
        assert answers(port)
        killed.kill()
    wait(lambda: not answers(port) and not any(folder.iterdir()), "PgBouncer, or what it read, is still there.")


def test_settings_of_a_tests_own_reach_the_server(own):
    own.settings["log_statement"] = "all"
    own.up()
    assert query(own, "show log_statement", database="postgres") == [("all",)]


def test_only_this_machine_gets_in_and_only_by_password(stack):
    assert query(stack, "show listen_addresses") == [("127.0.0.1",)]
    assert query(stack, "select distinct auth_method from pg_hba_file_rules") == [("scram-sha-256",)]
    env = stack.environment("analyst_user")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(host=env["PGHOST"], port=env["PGPORT"], dbname="logins", user="analyst_user", password="guess")


def test_secrets_are_for_their_owner_alone(stack):
    assert (stack.folder / "stack.json").stat().st_mode & 0o777 == 0o600
    assert (stack.folder / "postgres").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("login", LOGINS)
def test_each_login_has_the_rights_of_its_group_alone(stack, login):
    groups = "'{loader, transformer, analyst, privacy_officer, monitor, retention}'::text[]"
    held = query(stack, f"select g from unnest({groups}) as g where pg_has_role('{login}', g, 'usage')")
    assert held == ([] if login in ("migrator", "backup_user") else [(login.removesuffix("_user"),)])
    assert query(stack, f"select rolsuper from pg_roles where rolname = '{login}'") == [(False,)]


# Root, whom PostgreSQL refuses.


@pytest.fixture
def hidden(folder):
    """A folder like /root: nobody else gets into it."""
    hidden = folder / "hidden"
    hidden.mkdir(mode=0o700)
    return hidden


@as_root
def test_a_folder_that_postgres_cannot_reach_gets_a_link_to_one_that_it_can(hidden):
    own = Stack(hidden / "state", pg_port=0, sqs_port=0)
    own.up()
    target = (own.folder / "postgres").readlink()
    assert target.stat().st_mode & 0o777 == 0o700
    assert target.stat().st_uid != 0

    own.remove()
    assert not target.exists()


@as_root
def test_the_sqs_server_has_no_privileges(own):
    own.up()
    status = Path(f"/proc/{own._sqs_pid()}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"
    readable = own._account.run("env", sys.executable, "-c", "import ministack").returncode == 0
    assert (fields["Uid"].split()[0] != "0") == readable


@as_root
def test_programs_that_postgres_cannot_reach_are_copied(hidden):
    shutil.copytree(find_postgres()[-1].parent, hidden / "pg")
    own = Stack(hidden / "state", postgres_bin=hidden / "pg" / "bin", pg_port=0, sqs_port=0)
    own.up()
    assert query(own, "select 1") == [(1,)]
    own.remove()


@as_root
def test_a_reboot_that_cleared_tmp_costs_the_database_and_nothing_else(hidden):
    own = Stack(hidden / "state", pg_port=0, sqs_port=0)
    own.up()
    own.down()
    shutil.rmtree((own.folder / "postgres").readlink())
    own.up()
    assert query(own, "select 1", login="migrator") == [(1,)]
    own.remove()


@as_root
def test_a_folder_in_tmp_that_somebody_else_made_is_not_used(hidden):
    own = Stack(hidden / "state", pg_port=0, sqs_port=0)
    own.up()
    target = (own.folder / "postgres").readlink()
    own.stop_postgres()
    os.chown(target, 12345, 12345)
    with pytest.raises(StackError, match=f"{target} is not the folder that was made here"):
        own.up()
    os.chown(target, Account().uid, Account().gid)
    own.remove()


@as_root
def test_another_users_stack_is_left_alone(hidden):
    own = Stack(hidden / "state", pg_port=0, sqs_port=0)
    (own.folder / "postgres").mkdir(parents=True)
    os.chown(own.folder / "postgres", 12345, 12345)
    with pytest.raises(StackError, match="postgres is not the folder that was made here"):
        own.up()


@as_root
@pytest.mark.parametrize("action", [["up"], ["down"], ["env"], ["send"], ["run", "--as", "migrator", "--", "true"]])
def test_who_works_in_anothers_checkout_is_told_to_have_a_folder_of_their_own(folder, action):
    state = folder / "state"
    for name in ("postgres", "sqs"):
        (state / name).mkdir(parents=True)
    (state / "stack.json").touch(mode=0o600)
    for path in (state, *state.iterdir()):
        os.chown(path, 12345, 12345)
    command = [*NO_CAPABILITIES, sys.executable, "-m", "local", *action]
    environment = os.environ | {"LOCAL_STATE": str(state)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "set LOCAL_STATE to a folder of yours, or act as its owner" in done.stderr


# Which PostgreSQL.


def test_every_server_found_is_new_enough_newest_first_and_the_wheels_last():
    *installed, wheel = [major(place) for place in find_postgres()]
    assert installed == sorted(installed, reverse=True)
    assert min([*installed, wheel]) >= 15


@pytest.mark.parametrize(
    ("wanted", "cluster", "sentence"),
    [
        pytest.param("9", None, "There is no PostgreSQL 9 with pgcrypto here", id="version-not-here"),
        pytest.param("/nowhere", None, "There is no PostgreSQL /nowhere with pgcrypto here", id="folder-not-there"),
        pytest.param(None, 12, "was made by PostgreSQL 12, and this is", id="cluster-of-another-version"),
    ],
)
def test_a_server_that_cannot_be_had_is_a_sentence(wanted, cluster, sentence):
    with pytest.raises(StackError, match=sentence):
        choose_postgres(wanted, cluster)


# The commands.


@pytest.fixture(scope="module")
def local(stack):
    """Runs `python -m local` on the stack of this worker."""

    def run(*arguments, state=stack.folder, **environment):
        return subprocess.run(
            [sys.executable, "-m", "local", *arguments],
            cwd=ROOT,
            env=os.environ | {"LOCAL_STATE": str(state)} | environment,
            capture_output=True,
            text=True,
        )

    return run


def test_env_is_all_that_a_shell_needs(local, stack, tmp_path):
    (tmp_path / "env").write_text(local("env", "--as", "analyst_user").stdout)
    shell = subprocess.run(
        ["bash", "-c", '. ./env && psql -XAtc "select current_user, current_database()" && command -v dbt'],
        cwd=tmp_path,
        env={"PATH": os.defpath, "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
    )
    assert shell.stdout.split() == ["analyst_user|logins", str(Path(sys.executable).with_name("dbt"))], shell.stderr


def test_a_command_runs_as_the_login_that_it_needs_whoever_the_shell_is(local, stack):
    asked = ["run", "--as", "loader_user", "--", "sh", "-c", "echo $PGUSER $PGHOST $PGOPTIONS"]
    assert local(*asked, PGOPTIONS="-c role=x").stdout == "loader_user 127.0.0.1\n"
    assert local(*asked, **stack.environment("analyst_user")).stdout == "loader_user 127.0.0.1\n"


def test_a_command_runs_on_the_callers_own_server_when_one_is_named(local):
    asked = ["run", "--as", "loader_user", "--", "sh", "-c", "echo $PGUSER $PGHOST"]
    assert local(*asked, PGHOST="db.example.com", PGUSER="me").stdout == "me db.example.com\n"


@pytest.mark.parametrize("command", [["env"], ["send"], ["run", "--as", "migrator", "--", "true"]])
def test_without_a_stack_a_command_says_how_to_start_one(local, tmp_path, command):
    result = local(*command, state=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "Error: The local stack is not running: `make up` starts it.\n"


def test_with_a_server_of_ones_own_the_remedy_is_not_only_the_local_stack(local, tmp_path):
    result = local("env", state=tmp_path, PGHOST="db.example.com")
    assert result.returncode == 1
    assert result.stderr.endswith("For servers of your own, set ENV_FILE (`make prod.env`).\n")


def test_a_file_is_sent_line_by_line_unchanged(local, queue, tmp_path):
    lines = ['{"a":1, "a": 2}\r', "é 🦊", "  "]
    (tmp_path / "messages.jsonl").write_text("\n".join([*lines, ""]), newline="")
    result = local("send", "--queue-name", queue.name, "--file", str(tmp_path / "messages.jsonl"))
    assert result.stdout == f"Sent 3 messages to {queue.name}.\n"

    received = queue.client.receive_message(QueueUrl=queue.url, MaxNumberOfMessages=10)["Messages"]
    assert sorted(message["Body"] for message in received) == sorted(lines)


@pytest.mark.parametrize("operation", ["GetQueueUrl", "CreateQueue", "SendMessageBatch"])
def test_a_queue_that_sqs_refuses_is_a_sentence(local, sqs, operation):
    """A name that it does not take, for one."""
    refused = faults.always(operation, faults.error("InvalidParameterValue"))
    with faults.sqs_proxy(sqs.meta.endpoint_url, refused) as proxy:
        settings = {"AWS_ENDPOINT_URL": proxy.url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        settings["AWS_DEFAULT_REGION"] = "us-east-1"
        done = local("send", "--count", "1", "--queue-name", f"new-{operation}", **settings)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "InvalidParameterValue" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_line_is_no_message(local, queue, tmp_path):
    (tmp_path / "messages.jsonl").write_bytes(b"one\n\n\r\ntwo\n\n")
    result = local("send", "--queue-name", queue.name, "--file", str(tmp_path / "messages.jsonl"))
    assert (result.returncode, result.stdout) == (0, f"Sent 2 messages to {queue.name}.\n")


def test_a_line_that_is_not_text_is_named(local, queue, tmp_path):
    (tmp_path / "messages").write_bytes(b"good\n\xff\n")
    result = local("send", "--queue-name", queue.name, "--file", str(tmp_path / "messages"))
    assert result.returncode == 1
    assert result.stderr.endswith("messages, line 2: not UTF-8, which SQS requires.\n")


@pytest.fixture
def closed(folder, monkeypatch):
    """A folder for the state that PostgreSQL's user cannot reach, and a folder for temporary files that all can."""
    temporary = folder / "tmp"
    temporary.mkdir()
    temporary.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    (folder / "closed").mkdir(mode=0o700)
    return folder / "closed"


@as_root
def test_where_the_cluster_is_nobody_can_tell_in_advance(closed):
    account = Account()
    account.folder(closed / "one")
    place = account.place(closed / "one")
    (closed / "one").unlink()
    account.folder(closed / "one")
    assert place != account.place(closed / "one")
    assert place.stat().st_mode & 0o777 == 0o700


@as_root
@pytest.mark.parametrize("action", ["up", "down", "remove"])
def test_a_link_in_place_of_the_cluster_leads_nowhere(closed, action):
    """Somebody put it there when the folder had been cleaned away."""
    stack = Stack(closed, pg_port=0, sqs_port=0)
    account = Account()
    account.folder(closed / "postgres")
    place = account.place(closed / "postgres")
    victim = closed.parent / "victim"
    victim.mkdir()
    account.own(victim)
    (victim / "kept").touch()
    place.rmdir()
    place.symlink_to(victim)

    with pytest.raises(StackError, match="is not the folder that was made here"):
        getattr(stack, action)()
    assert (victim / "kept").exists()


@as_root
def test_a_link_in_place_of_the_password_file_is_not_written_through(closed):
    account, victim = Account(), closed / "victim"
    victim.write_text("kept")
    (closed / "password").symlink_to(victim)
    account.write(closed / "password", "secret")
    assert victim.read_text() == "kept"
    assert victim.stat().st_uid == 0
    assert (closed / "password").read_text() == "secret"

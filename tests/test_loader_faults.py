"""What the loader does when AWS or the database fail: it goes on when they do, or says in one sentence why not."""

import contextlib
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pycurl
import pytest

from loader.aws import Fault, connect
from loader.errors import GaveUp, LoaderError, NoCredentials, NoDatabase, NoSqs
from loader.land import Away, Database
from loader.load import Run
from loader.metrics import Metrics
from tests import faults
from tests.conftest import administration
from tests.faults import always, error, on
from tests.loading import Loading, a_loading, create_queue, end, until

loading = pytest.fixture(a_loading)

# What befalls the first calls of an operation, one after the other.
AWS_FAULTS = {
    "receive-refused-for-now": on(
        "ReceiveMessage",
        error("RequestThrottled", 403),
        error("AWS.SimpleQueueService.RequestThrottled"),  # a name that botocore takes for final
        faults.none,
        error("OverLimit"),
        error("InternalError", 500),
        error("ServiceUnavailable", 503),
    ),
    "receive-cut-off": on(
        "ReceiveMessage", faults.reset, faults.lost_answer, faults.none, faults.half_an_answer, faults.reset
    ),
    "receive-times-out": on("ReceiveMessage", faults.none, faults.silence),
    "delete-refused-for-now": on(
        "DeleteMessageBatch",
        error("ThrottlingException"),
        error("AWS.SimpleQueueService.RequestThrottled"),
        faults.none,
        error("InternalError", 500),
        error("ServiceUnavailable", 503),
    ),
    "delete-cut-off": on(
        "DeleteMessageBatch", faults.reset, faults.lost_answer, faults.none, faults.half_an_answer, faults.not_json
    ),
    "delete-times-out": on("DeleteMessageBatch", faults.none, faults.silence),
    "delete-fails-in-part": always("DeleteMessageBatch", faults.every_other_delete_fails),
    "everything-delivered-twice": on("DeleteMessageBatch", *[faults.deletes_are_forgotten] * 6),
    "heartbeat-fails": on("ChangeMessageVisibilityBatch", error("InternalError", 500)),
}


@pytest.mark.parametrize("client", ["lean", "boto3"])
@pytest.mark.parametrize("name", AWS_FAULTS)
def test_a_fault_of_aws_loses_and_doubles_nothing(loading: Loading, name: str, client: str, monkeypatch):
    monkeypatch.setattr("loader.aws.READ_TIMEOUT", 2)
    loading.client = client
    ids = loading.send(60)
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(loading.faulty_sqs(AWS_FAULTS[name]))
        if name == "heartbeat-fails":
            stack.enter_context(loading.slow_database(0.8))
        report = loading.run(workers=2, flush=30)

    loading.assert_landed_once(ids)
    assert report.counts["landed"] == 60
    assert name != "delete-fails-in-part" or report.counts["duplicates"] == 0  # what failed was tried again, alone
    assert proxy.calls["ReceiveMessage"] > 6
    assert loading.query("select sum(received) from raw.loads") == [(report.counts["received"],)]


@pytest.mark.parametrize("refused_by", ["own-clock", "sqs"])
def test_what_sqs_hides_no_longer_lands_once_and_is_said_once(loading: Loading, monkeypatch, capsys, refused_by: str):
    """It hides a message for twelve hours at most. Here for two seconds or one, and the table is closed for longer."""
    ids = loading.send(10)
    if refused_by == "own-clock":
        monkeypatch.setattr("loader.load.MAX_VISIBILITY", 2)
    fault = always("ChangeMessageVisibilityBatch", faults.beyond_the_limit) if refused_by == "sqs" else faults.none
    with (
        loading.faulty_sqs(fault) as proxy,
        contextlib.closing(loading.database.connect("postgres")) as other,
        other.cursor() as cursor,
    ):
        run = loading.ready(workers=2, flush=10)
        cursor.execute("lock table raw.sqs_messages")
        run.start()
        until(lambda: run.report.counts["received"] == 20)  # the other worker has them too
        time.sleep(1)
        other.rollback()
        run.wait()

    loading.assert_landed_once(ids)
    assert run.report.counts["landed"] == 10
    said = capsys.readouterr().err.count("visibility timeout expired")
    assert 1 <= said <= run.report.counts["received"] / 10  # once a batch
    assert proxy.calls["ChangeMessageVisibilityBatch"] < 10


def test_what_is_deleted_is_not_said_to_come_again(loading: Loading, capsys):
    """The heartbeat asks for a batch while it is being deleted, ten by ten."""
    ids = loading.send(30)

    def slowly(call: faults.Call) -> None:
        time.sleep(0.4)
        faults.none(call)

    with loading.faulty_sqs(always("DeleteMessageBatch", slowly)) as proxy:
        loading.run(workers=1, flush=30)

    loading.assert_landed_once(ids)
    assert proxy.calls["ChangeMessageVisibilityBatch"] > 0
    assert capsys.readouterr().err == ""


def test_a_heartbeat_that_sqs_could_not_do_for_some_is_made_again_and_said_once(loading: Loading, capsys):
    """It is made several times a second: in an outage, nothing else could be read in the log."""
    loading.send(10)

    def twice(call: faults.Call) -> None:
        fails = call.operation == "ChangeMessageVisibilityBatch" and call.nth <= 2
        (faults.every_entry_fails_for_now if fails else faults.none)(call)

    with loading.faulty_sqs(twice) as proxy:
        run = loading.ready()
        with run.holding() as batch:
            batch.add(run.queue.receive(10, 1), asked := time.monotonic())
            run.keep(batch)
            run.keep(batch)
            assert batch.kept == asked
            run.keep(batch)
            assert batch.kept > asked
        run.queue.client.hang_up()

    assert proxy.calls["ChangeMessageVisibilityBatch"] == 4  # the last one hands them back
    assert capsys.readouterr().err.count("could not keep messages") == 1


def test_a_commit_whose_answer_is_lost_is_counted_once(loading: Loading):
    """The line to the database is cut when the commit has held: landing again finds that out, by the ledger."""
    ids = loading.send(20)
    steps = []

    def cut_after_the_first_commit(step: str) -> bool:
        steps.append(step)
        return step == "COMMIT done" and "COPY" in steps and steps.count("COMMIT done") == 2

    with faults.postgres_proxy(int(loading.env["PGPORT"]), cut_after_the_first_commit) as port:
        loading.env |= loading.through(port)
        report = loading.run(workers=1)

    loading.assert_landed_once(ids)
    assert steps.count("COPY done") > steps.count("COMMIT done") - 2
    assert (report.counts["landed"], report.counts["duplicates"]) == (20, 0)
    assert loading.query("select sum(received), sum(landed), sum(duplicates) from raw.loads") == [(20, 20, 0)]


@pytest.mark.parametrize("step", ["COPY", "COPY done", "INSERT done", "COMMIT"])
def test_a_line_to_the_database_that_is_cut_is_made_anew(loading: Loading, step: str):
    ids = loading.send(20)
    steps = []

    def cut(now: str) -> bool:
        steps.append(now)
        return now == step and "COPY" in steps and steps.count(step) == (2 if step == "COMMIT" else 1)

    with faults.postgres_proxy(int(loading.env["PGPORT"]), cut) as port:
        loading.env |= loading.through(port)
        report = loading.run(workers=1)

    loading.assert_landed_once(ids)
    assert steps.count("COPY") > 1
    assert (report.counts["received"], report.counts["duplicates"]) == (20, 0)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_the_database_is_restarted_under_load(loading: Loading, mode: str):
    ids = loading.send(1000)
    with loading.running(workers=4, flush=20) as run:
        until(lambda: run.report.counts["landed"] > 100)
        loading.database.stack.restart_postgres(mode)

    loading.assert_landed_once(ids)


def test_while_the_database_refuses_connections_nothing_more_is_received(loading: Loading):
    """What is held stays held for longer than the visibility timeout, and is landed when the database is back."""
    ids = loading.send(20)
    with loading.running(workers=2, flush=10, follow=True) as run:
        until(lambda: run.report.counts["deleted"] == 20)
        refuse_connections(loading)
        ids += loading.send(1)
        until(lambda: not run.database.there.is_set())
        time.sleep(1.2)  # a long poll that was under way comes to its end
        held = run.report.counts["received"] - 20
        ids += loading.send(30)
        time.sleep(1.5)
        assert loading.waiting() == (30, held)
        refuse_connections(loading, False)
        until(lambda: run.report.counts["deleted"] == 51)
        run.stopping.set()

    loading.assert_landed_once(ids)
    assert run.report.counts["duplicates"] == 0


def test_it_gives_up_on_the_database_and_hands_back_what_it_holds(loading: Loading):
    loader = loading.start("--follow", "--workers", "2", "--flush", "10", "--give-up-after", "1")
    [first] = loading.send(1)
    until(lambda: loading.query("select message_id from raw.sqs_messages") == [(first,)])
    refuse_connections(loading)
    loading.send(15)

    status, _, err = end(loader)

    assert status == 9
    assert err.strip().splitlines()[-1].startswith("The database was away for ")
    assert loading.waiting() == (15, 0)


def test_it_stops_at_once_while_the_database_is_away(loading: Loading):
    loader = loading.start("--follow", "--workers", "2")
    [first] = loading.send(1)
    until(lambda: loading.query("select message_id from raw.sqs_messages") == [(first,)])
    refuse_connections(loading)
    loading.send(5)
    until(lambda: loading.waiting()[1])
    time.sleep(0.3)

    status, _, _ = end(loader, signal.SIGTERM)

    assert status == 0
    assert loading.waiting() == (5, 0)


@pytest.mark.parametrize("on_lambda", [False, True])
def test_no_pause_goes_beyond_the_time_to_give_up(on_lambda: bool):
    """On Lambda, what is left after that is for the last attempt and the answer."""
    database, pauses = Database(give_up_after=300 if on_lambda else 5), []
    database.stopping = SimpleNamespace(wait=pauses.append)
    if on_lambda:
        database.until = time.monotonic() + 1

    for _ in range(50):
        database.wait_for_it(Away(NoDatabase(reason="x")), time.monotonic() - 4, 9)

    assert max(pauses) <= 1


def test_an_outage_may_last_for_days(loading: Loading):
    """The pause before the next attempt is of a power of two."""
    run = loading.ready(give_up_after=float("inf"))
    run.stopping.set()

    run.queue.pause(5000)
    run.database.wait_for_it(Away(NoDatabase(reason="x")), time.monotonic(), 5000)


def test_an_idle_loader_sees_that_the_database_is_away_and_when_it_is_back(loading: Loading, monkeypatch):
    """Nothing is received meanwhile; what was sent meanwhile lands afterwards."""
    monkeypatch.setattr("loader.load.LOOK_EVERY", 0.1)
    away = threading.Event()
    with faults.postgres_proxy(int(loading.env["PGPORT"]), lambda step: away.is_set()) as port:
        loading.env |= loading.through(port)
        with loading.running(follow=True) as run:
            until(lambda: run.idle)
            assert database_up(run) == 1
            away.set()
            until(lambda: database_up(run) == 0)
            time.sleep(1.2)  # a long poll that was under way comes to its end
            ids = loading.send(5)
            time.sleep(0.5)
            assert loading.waiting() == (5, 0)
            away.clear()
            until(lambda: run.report.counts["deleted"] == 5)
            assert database_up(run) == 1
            run.stopping.set()

    loading.assert_landed_once(ids)


def test_an_idle_loader_gives_up_on_the_database_as_a_busy_one_does(loading: Loading, monkeypatch):
    monkeypatch.setattr("loader.load.LOOK_EVERY", 0.1)
    away = threading.Event()
    with faults.postgres_proxy(int(loading.env["PGPORT"]), lambda step: away.is_set()) as port:
        loading.env |= loading.through(port)
        run = loading.ready(follow=True, give_up_after=0.5)
        run.start()
        until(lambda: run.idle)
        away.set()

        with pytest.raises(GaveUp, match=r"The database was away for "):
            run.wait()


def test_a_commit_that_no_standby_has_confirmed_deletes_nothing(loading: Loading, monkeypatch):
    """Told to stop, the loader cancels a commit that waits for a standby; PostgreSQL answers as if it had held."""
    monkeypatch.setattr("loader.load.GRACE", 0.5)
    ids = loading.send(20)
    run = loading.ready(workers=1, flush=20)
    with administration(loading.database.stack) as cursor:
        cursor.execute("alter system set synchronous_standby_names = 'nobody'")
        cursor.execute("select pg_reload_conf()")
        try:
            run.start()
            until(lambda: loading.query("select from pg_stat_activity where wait_event = 'SyncRep'"))
            run.stopping.set()
            run.wait()
        finally:
            cursor.execute("alter system reset synchronous_standby_names")
            cursor.execute("select pg_reload_conf()")

    assert run.report.counts["deleted"] == 0
    assert loading.waiting() == (20, 0)
    loading.run()
    loading.assert_landed_once(ids)


def database_up(run: Run) -> float:
    [up] = [family for family in Metrics(run).collect() if family.name == "loader_database_up"]
    return up.samples[0].value


def refuse_connections(loading: Loading, refuse: bool = True) -> None:
    """For this database; the test itself looks at the queue only, meanwhile."""
    with contextlib.closing(loading.database.stack.connect("postgres", "postgres")) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            name = loading.database.name
            cursor.execute(f"alter database {name} with allow_connections {not refuse}")
            if refuse:
                cursor.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name])


OUTPUTS = {
    "stdout-full": ("exec {} > /dev/full", 2, "Standard output cannot be written: No space left on device."),
    "stdout-closed": ("exec {} >&-", 0, ""),
    "stdout-read-by-nobody": ("{} | true; exit ${PIPESTATUS[0]}", 1, ""),
    "stdin-closed": ("exec {} <&-", 0, ""),
    "stderr-closed": ("exec {} 2>&-", 0, ""),
    "stderr-read-by-nobody": ("exec {} 2> >(true)", 0, ""),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_messages_land_whatever_becomes_of_what_is_said(loading: Loading, name: str):
    """A log that nobody takes is no reason to stop."""
    line, expected, sentence = OUTPUTS[name]
    ids = loading.send(20)
    command = shlex.join(loading.command("--workers", "1"))
    with loading.faulty_sqs(on("DeleteMessageBatch", faults.every_other_delete_fails)):
        shell = ["bash", "-c", line.replace("{}", command)]
        done = subprocess.run(shell, env=loading.env, capture_output=True, text=True)

    loading.assert_landed_once(ids)
    assert done.returncode == expected, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().endswith(sentence)


def test_why_a_run_failed_is_said_though_standard_output_is_full(loading: Loading):
    loading.send(1)
    loading.execute("alter table raw.sqs_messages add check (body is null) not valid")

    shell = ["bash", "-c", f"exec {shlex.join(loading.command())} > /dev/full"]
    done = subprocess.run(shell, env=loading.env, capture_output=True, text=True)

    assert done.returncode == 19
    assert done.stderr.startswith("PostgreSQL refuses every message, even a test message: CheckViolation 23514.")


def test_what_the_encoding_of_a_terminal_lacks_is_shown_as_python_would(loading: Loading):
    command = [sys.executable, "-m", "loader", "doctor", "--queue-name", loading.queue_name]
    env = loading.env | {"PYTHONIOENCODING": "latin-1", "PGDATABASE": "日本"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)

    assert done.returncode == 11, done.stderr
    assert r'database "\u65e5\u672c" does not exist' in done.stdout


def test_without_docstrings_an_error_is_named_all_the_same(loading: Loading):
    done, out, err = end(loading.start(PGPORT="1", PYTHONOPTIMIZE="2"))

    assert (done, out) == (3, "")
    assert err == "Error: cannot connect to the database. Unset PYTHONOPTIMIZE to see more.\n"


# What the environment lacks, or what SQS says; the exit status, and how the sentence begins.
ENDINGS = {
    "no-queue": ({}, ["--queue-name", "no-such-queue"], 6, "There is no queue no-such-queue in us-east-1."),
    "no-credentials": (
        {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, [], 7,
        "No valid AWS credentials: Unable to locate credentials.",
    ),
    "no-profile": ({"AWS_PROFILE": "nobody"}, [], 7, "No valid AWS credentials: The config profile (nobody) could not"),
    "no-region": ({"AWS_DEFAULT_REGION": None}, [], 2, "There is no AWS region: set AWS_DEFAULT_REGION."),
    "no-endpoint": ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, [], 8, "SQS does not answer GetQueueUrl: Could not"),
    "endpoint-is-no-url": ({"AWS_ENDPOINT_URL": "nonsense"}, [], 2, "The AWS settings make no sense: Invalid endpoint"),
    "empty-region": (
        {"AWS_DEFAULT_REGION": "", "AWS_ENDPOINT_URL": None}, [], 2,
        "There is no AWS region: set AWS_DEFAULT_REGION.",
    ),
    "no-certificates": ({"AWS_CA_BUNDLE": "/nowhere"}, [], 2, "AWS_CA_BUNDLE cannot be read: No such file"),
    "no-database": ({"PGPORT": "1"}, [], 3, "No database: connection to server at"),
    "no-such-database": ({"PGDATABASE": "nowhere"}, [], 3, "No database: "),
    "wrong-password": ({"PGPASSWORD": "wrong"}, [], 3, "No database: "),
    "not-migrated": ({"PGDATABASE": "postgres"}, [], 5, "The database is not migrated: "),
    "another-role": ("analyst_user", [], 4, "Not permitted: permission denied to create temporary tables"),
    "bad-number": ({}, ["--workers", "0"], 2, "Usage: "),
    "bad-option": ({}, ["--no-such-option"], 2, "Usage: "),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDINGS)
def test_what_cannot_work_is_said_in_one_sentence_with_a_status_of_its_own(loading: Loading, name: str):
    changed, options, expected, sentence = ENDINGS[name]
    changed = loading.database.env(changed) if isinstance(changed, str) else changed

    status, out, err = end(loading.start(*options, **changed))

    assert (status, out) == (expected, "")
    assert err.startswith(sentence)
    assert expected == 2 or err.count("\n") == 1


@pytest.mark.parametrize("ending", [NoCredentials(reason="x"), NoSqs(operation="x", reason="y")])
def test_a_sentence_is_on_one_line_wherever_it_is_shown(ending: LoaderError):
    assert "\n" not in str(ending)
    assert "  " not in str(ending)


# A call that SQS answers with an error for good; the exit status, and how the sentence begins.
REFUSALS = {
    "ExpiredToken": (7, "No valid AWS credentials: ExpiredToken."),
    "InvalidClientTokenId": (7, "No valid AWS credentials: InvalidClientTokenId."),
    "AccessDenied": (4, "Not permitted: sqs:{operation} on {queue}. Allow it in the IAM policy of the loader."),
    "AWS.SimpleQueueService.NonExistentQueue": (6, "There is no queue {queue} in us-east-1."),
    "InvalidAddress": (6, "There is no queue {queue} in us-east-1."),
    "InvalidParameterValue": (8, "SQS does not answer {operation}: InvalidParameterValue."),
}


@pytest.mark.parametrize("client", ["lean", "boto3"])
@pytest.mark.parametrize("code", REFUSALS)
def test_what_aws_refuses_ends_the_loader(loading: Loading, code: str, client: str):
    loading.client = client
    loading.send(1)
    status, sentence = REFUSALS[code]
    with loading.faulty_sqs(always("ReceiveMessage", error(code))), pytest.raises(LoaderError) as caught:
        loading.run()

    assert caught.value.exit_status == status
    assert str(caught.value).startswith(sentence.format(operation="ReceiveMessage", queue=loading.queue_name))
    assert loading.waiting() == (1, 0)


@pytest.mark.parametrize("client", ["lean", "boto3"])
def test_credentials_that_expire_before_the_deletes_cost_nothing_but_a_second_delivery(loading: Loading, client: str):
    loading.client = client
    ids = loading.send(10)
    with (
        loading.faulty_sqs(always("DeleteMessageBatch", error("ExpiredToken", 403))),
        pytest.raises(NoCredentials, match=r"No valid AWS credentials: ExpiredToken\."),
    ):
        loading.run()

    loading.run()

    loading.assert_landed_once(ids)


def test_a_queue_that_is_deleted_meanwhile_ends_a_loader_that_follows(loading: Loading):
    url = create_queue(loading.sqs)
    loader = Loading(loading.database, loading.sqs, url, loading.env).start("--follow", "--workers", "2")
    Loading(loading.database, loading.sqs, url, {}).send(1)
    until(lambda: loading.query("select from raw.sqs_messages"))
    loading.sqs.delete_queue(QueueUrl=url)

    status, out, err = end(loader)

    assert status == 6
    assert out.startswith("received 1: landed 1")
    assert err.startswith("There is no queue load-")


def test_it_gives_up_on_sqs(loading: Loading):
    loading.send(1)
    with loading.faulty_sqs(always("ReceiveMessage", error("InternalError", 500))):
        status, _, err = end(loading.start("--give-up-after", "0.5", "--workers", "2"))

    assert status == 8
    assert err.strip().splitlines()[-1].startswith("SQS does not answer ReceiveMessage: InternalError.")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> str:
    """A certificate for 127.0.0.1 that nobody trusts yet, and its key, in one file."""
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate: apt install openssl")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"),
        ],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return str(folder / "cert.pem")


@pytest.fixture
def tls(certificate: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.replace("cert.pem", "key.pem"))
    return context


@pytest.fixture
def sqs_over_tls(loading: Loading, tls: ssl.SSLContext):
    with faults.sqs_proxy(loading.env["AWS_ENDPOINT_URL"], tls=tls) as server:
        yield server


@pytest.mark.parametrize("client", ["lean", "boto3"])
def test_tls_is_verified(loading: Loading, sqs_over_tls, certificate: str, client: str):
    loading.client = client
    ids = loading.send(20)
    changed = {"AWS_ENDPOINT_URL": sqs_over_tls.url}

    refused, _, err = end(loading.start("--give-up-after", "0", **changed))
    trusted, _, _ = end(loading.start("--max-messages", "20", AWS_CA_BUNDLE=certificate, **changed))

    assert (refused, trusted) == (8, 0)
    assert sqs_over_tls.clients == {client}
    assert "certificate verify failed" in err
    loading.assert_landed_once(ids)


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "boto3"])
def test_nothing_is_sent_to_whom_is_not_trusted(loading: Loading, sqs_over_tls, certificate, monkeypatch, lean: bool):
    for name, value in loading.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", sqs_over_tls.url)
    request = {"QueueUrl": loading.url, "MaxNumberOfMessages": 1, "WaitTimeSeconds": 0}

    with pytest.raises(Fault, match="NotTrusted"):
        connect(1, lean).call("ReceiveMessage", **request)
    refused = dict(sqs_over_tls.calls)
    monkeypatch.setenv("AWS_CA_BUNDLE", certificate)
    answer = connect(1, lean).call("ReceiveMessage", **request)

    assert "ReceiveMessage" not in refused
    assert not answer.get("Messages")
    assert sqs_over_tls.clients == {"lean" if lean else "boto3"}


@pytest.mark.parametrize("client", ["lean", "boto3"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_is_used(loading: Loading, sqs_over_tls, certificate: str, client: str, scheme: str):
    loading.client = client
    ids = loading.send(20)
    with faults.sqs_proxy(loading.env["AWS_ENDPOINT_URL"]) as proxy:
        changed = {"no_proxy": "", "NO_PROXY": "", f"{scheme}_proxy": proxy.url, "AWS_CA_BUNDLE": certificate}
        if scheme == "https":
            changed["AWS_ENDPOINT_URL"] = sqs_over_tls.url
        status, _, _ = end(loading.start("--max-messages", "20", **changed))

    assert status == 0
    assert proxy.calls["CONNECT" if scheme == "https" else "DeleteMessageBatch"] > 0
    assert (sqs_over_tls if scheme == "https" else proxy).clients == {client}
    loading.assert_landed_once(ids)


@pytest.mark.parametrize("client", ["lean", "boto3"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_speaks_tls_is_spoken_to_in_tls(
    loading: Loading, sqs_over_tls, certificate: str, tls: ssl.SSLContext, client: str, scheme: str
):
    loading.client = client
    ids = loading.send(20)
    with faults.sqs_proxy(loading.env["AWS_ENDPOINT_URL"], tls=tls) as proxy:
        changed = {"no_proxy": "", "NO_PROXY": "", f"{scheme}_proxy": proxy.url, "AWS_CA_BUNDLE": certificate}
        if scheme == "https":
            changed["AWS_ENDPOINT_URL"] = sqs_over_tls.url
        status, _, err = end(loading.start("--max-messages", "20", **changed))

    assert status == 0, err
    assert proxy.calls["CONNECT" if scheme == "https" else "DeleteMessageBatch"] > 0
    assert proxy.calls["not TLS"] == 0
    assert (sqs_over_tls if scheme == "https" else proxy).clients == {client}
    loading.assert_landed_once(ids)


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "boto3"])
def test_a_proxy_that_shows_no_trusted_certificate_is_told_nothing(loading: Loading, tls, monkeypatch, lean: bool):
    for name, value in loading.env.items():
        monkeypatch.setenv(name, value)
    with faults.sqs_proxy(loading.env["AWS_ENDPOINT_URL"], tls=tls) as proxy:
        for name, value in {"no_proxy": "", "NO_PROXY": "", "http_proxy": f"https://user:pass@{proxy.url[8:]}"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(Fault) as caught:
            connect(1, lean).call("GetQueueUrl", QueueName=loading.queue_name)

    assert not proxy.clients
    assert "user" not in str(caught.value.error)
    assert "pass" not in str(caught.value.error)


def test_a_proxy_without_a_port_is_at_80_for_either_client(loading: Loading, monkeypatch):
    for name, value in loading.env.items():
        monkeypatch.setenv(name, value)
    for name, value in {"AWS_ENDPOINT_URL": "https://sqs.test", "https_proxy": "http://proxy.test"}.items():
        monkeypatch.setenv(name, value)

    options = connect(1).options

    assert (options[pycurl.PROXY], options[pycurl.PROXYPORT]) == ("http://proxy.test", 80)

"""Recovery: the officer gets an original back, also after raw is purged, and never without it being on record."""

import contextlib
import hashlib
import hmac
import json
import os
import pty
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import psycopg2.errors
import pytest
from pysequoia import ArmorKind, CipherSuite, Tsk, armor

from tests.conftest import administration, on_citus_too
from tests.instructions import ROOT, blocks, checkout, run
from tests.loading import until
from tests.officer import Officer, as_officer, as_superuser, audit, privacy
from tests.pipeline import dbt, land, query

pytestmark = on_citus_too

LOGIN = {"user_id": "u1", "app_version": "1.2", "device_type": "ios", "locale": None}
REASON = "case 1234: fraud"


@pytest.fixture(scope="module")
def officer(tmp_path_factory) -> Officer:
    return Officer(tmp_path_factory.mktemp("officer"))


@pytest.fixture(scope="module")
def sealed(module_database, officer):
    """Two logins from one address, masked and sealed; then raw is emptied."""
    assert privacy(module_database, "seal-with", str(officer.public_key)).returncode == 0
    logins = [("::FFFF:203.0.113.9", " D-1 "), ("203.0.113.9", "d-2"), ("Gateway ", "d-2")]
    land(module_database, [json.dumps(LOGIN | {"ip": ip, "device_id": device_id}) for ip, device_id in logins])
    dbt(module_database, "run")
    as_superuser(module_database, "delete from raw.sqs_messages returning 1")
    return module_database


@pytest.fixture
def two_officers(sealed):
    """Another officer's login, while two persons are required."""
    with administration(sealed.stack) as cursor:
        cursor.execute("create role second_officer login password 'second' in role privacy_officer")
    assert privacy(sealed, "require-two-persons", "yes").returncode == 0
    yield "second_officer"
    assert privacy(sealed, "require-two-persons", "no").returncode == 0
    with administration(sealed.stack) as cursor:
        cursor.execute("drop role second_officer")


def token(database, message_id: str, column: str = "masked_ip") -> str:
    return query(database, f"select {column} from analytics.user_logins where message_id = %s", message_id)[0][0]


def test_the_original_comes_back_after_raw_is_gone(sealed, officer):
    before = len(audit(sealed))
    assert officer.reveal(sealed, token(sealed, "m0")) == "ip 203.0.113.9"
    assert officer.reveal(sealed, token(sealed, "m0", "masked_device_id")) == "device_id d-1"
    assert officer.reveal(sealed, token(sealed, "m2")) == "ip gateway"
    assert audit(sealed)[before:] == ["recovery requested", "original handed out"] * 3


def test_of_two_who_fetch_one_original_at_once_one_gets_it(sealed):
    [(request,)] = as_officer(sealed, "select privacy.request_recovery(%s, %s)", token(sealed, "m0"), REASON)
    fetch = "select * from privacy.sealed_original(%s)"
    with (
        contextlib.closing(sealed.connect("privacy_officer_user")) as first,
        contextlib.closing(sealed.connect("privacy_officer_user", options="-c lock_timeout=1s")) as second,
    ):
        first.cursor().execute(fetch, [request])
        with pytest.raises(psycopg2.errors.LockNotAvailable):
            second.cursor().execute(fetch, [request])
        first.commit()
    with pytest.raises(psycopg2.errors.RaiseException, match="is over: make a new one"):
        as_officer(sealed, fetch, request)


def test_a_transaction_that_sees_the_past_fetches_nothing(sealed):
    """There, neither a new rule about two persons nor what was handed out meanwhile would count."""
    [(request,)] = as_officer(sealed, "select privacy.request_recovery(%s, %s)", token(sealed, "m0"), REASON)
    fetch = "select * from privacy.sealed_original(%s)"
    past = "-c default_transaction_isolation=repeatable\\ read"
    with contextlib.closing(sealed.connect("privacy_officer_user", options=past)) as other, other.cursor() as cursor:
        cursor.execute("select from privacy.audit")
        assert len(as_officer(sealed, fetch, request)) == 1
        with pytest.raises(psycopg2.errors.RaiseException, match="READ COMMITTED is needed"):
            cursor.execute(fetch, [request])


def test_each_token_is_sealed_once(sealed):
    assert as_superuser(sealed, "select kind, count(*) from privacy.originals group by kind order by kind") == [
        ("device_id", 2),
        ("ip", 2),
    ]


@pytest.mark.skipif(not shutil.which("gpg"), reason="no GnuPG here; the other tests open with another OpenPGP")
def test_gnupg_opens_it_too(sealed, officer, tmp_path):
    tmp_path.chmod(0o700)
    env = {"GNUPGHOME": str(tmp_path), "PATH": os.environ["PATH"]}
    subprocess.run(["gpg", "--batch", "--import", officer.private_key], env=env, check=True, capture_output=True)
    command = ["-m", "privacy", "reveal", "--token", token(sealed, "m0"), "--reason", REASON]
    env = sealed.env("privacy_officer_user") | env
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True)
    subprocess.run(["gpgconf", "--kill", "all"], env=env)
    assert done.stdout == "ip 203.0.113.9\n", done.stderr


def test_gpg_can_ask_for_the_passphrase_on_the_terminal(sealed, tmp_path):
    """Its input is the sealed original, so it does not know the terminal unless it is told."""
    (tmp_path / "gpg").write_text('#!/bin/sh\ncat > /dev/null; printf %s "$GPG_TTY"\n')
    (tmp_path / "gpg").chmod(0o700)
    terminal, ours = pty.openpty()
    command = [sys.executable, "-m", "privacy", "reveal", "--token", token(sealed, "m0"), "--reason", REASON]
    env = sealed.env("privacy_officer_user")
    env["PATH"] = f"{tmp_path}{os.pathsep}{env['PATH']}"
    env.pop("GPG_TTY", None)
    done = subprocess.run(command, stdin=ours, env=env, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == (f"ip {os.ttyname(ours)}\n", 0), done.stderr
    os.close(terminal)
    os.close(ours)


@pytest.mark.skipif(not shutil.which("gpg"), reason="no GnuPG here: apt install gnupg")
def test_the_officers_commands_work_as_written(database, tmp_path, monkeypatch):
    folder, home = checkout(tmp_path / "checkout"), tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    (home / "none").touch()  # instead of a person who types a passphrase
    (home / "gpg.conf").write_text(f"batch\npinentry-mode loopback\npassphrase-file {home / 'none'}\n")
    monkeypatch.setenv("GNUPGHOME", str(home))
    written = {block.split(maxsplit=2)[1]: block.strip().splitlines() for block in blocks(ROOT / "PRIVACY.md")}
    instead = {}

    def typed(command: str, login: str) -> str:
        done = run(command.strip(), login, folder, database, database.stack._programs(), instead)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    generate, add, export = written["--quick-generate-key"]
    typed(generate, "privacy_officer_user")
    [key] = [line for line in typed("gpg --with-colons --list-keys", "migrator").splitlines() if line.startswith("fpr")]
    instead["FINGERPRINT"] = key.split(":")[9]
    typed(add, "privacy_officer_user")
    typed(export, "privacy_officer_user")
    typed(".venv/bin/python -m privacy seal-with officer.asc", "migrator")
    land(database, [json.dumps(LOGIN | {"ip": "203.0.113.9", "device_id": "d"})])
    dbt(database, "run")

    [reveal], [forget] = written["reveal"], written["forget"]
    instead["…"] = token(database, "m0")
    assert typed(reveal, "privacy_officer_user") == "ip 203.0.113.9\n"
    instead["…"] = "u1"
    erase, publish = forget, ".venv/bin/dbt --quiet run --project-dir dbt_project --profiles-dir dbt_project"
    typed(f"{erase} || true", "privacy_officer_user")  # its last step is transformer's, on servers of one's own
    typed(publish, "transformer_user")
    assert query(database, "select count(*) from analytics.user_logins") == [(0,)]
    subprocess.run(["gpgconf", "--kill", "all"], env=os.environ | {"GNUPGHOME": str(home)})


def test_a_token_with_nothing_behind_it_is_on_record_as_that(sealed, officer):
    before = len(audit(sealed))
    assert "There is no original behind this token" in officer.reveal(sealed, "0" * 64)
    assert audit(sealed)[before:] == ["recovery requested", "no original found"]


def test_the_first_digits_of_a_token_are_enough_where_no_other_begins_so(sealed, officer):
    before = len(audit(sealed))
    whole = token(sealed, "m0")
    assert officer.reveal(sealed, f" {whole[:12].upper()}") == "ip 203.0.113.9"
    assert audit(sealed)[before:] == ["tokens looked up", "recovery requested", "original handed out"]
    recorded = "select token from privacy.audit order by id desc limit 3"
    assert as_officer(sealed, recorded) == [(whole,), (whole,), (whole[:12],)]


def test_digits_are_taken_as_the_demo_and_the_pages_print_them_and_the_token_found_is_told(sealed, officer):
    """Digits from before a key rotation may begin a newer token of somebody else: the officer can compare."""
    whole = token(sealed, "m0")
    command = ["reveal", "--token", f"{whole[:12]}…", "--reason", REASON]
    done = privacy(sealed, *command, login="privacy_officer_user", path=f"{officer.folder}{os.pathsep}")
    assert (done.returncode, done.stdout) == (0, "ip 203.0.113.9\n")
    assert f"{whole[:12]} begins the token {whole}" in done.stderr


def test_digits_that_begin_several_tokens_list_them_and_reveal_none(database, officer):
    """Only what is sealed counts: transformer could have written any token into analytics."""
    assert privacy(database, "seal-with", str(officer.public_key)).returncode == 0
    begin_so = [f"abcdef{n:058x}" for n in range(11)]
    sealed = "insert into privacy.originals (kind, token, key_version, sealed) select 'ip', {}, 1, '\\x00' returning 1"
    land(database, [json.dumps(LOGIN | {"ip": "203.0.113.9", "device_id": "d-1"})])
    dbt(database, "run")
    as_superuser(database, f"update analytics.user_logins set masked_ip = '{'abcdef' + 'f' * 58}' returning 1")

    before = len(audit(database))
    assert "No original has a token that begins so." in officer.reveal(database, "abcdef")
    as_superuser(database, sealed.format(f"unnest(array{begin_so[:2]})"))
    said = officer.reveal(database, "abcdef").splitlines()
    assert said == ["Error: More than one token begins so. Give more digits:", *begin_so[:2]]
    as_superuser(database, sealed.format(f"unnest(array{begin_so[2:]})"))
    assert officer.reveal(database, "abcdef").splitlines()[1:] == [*begin_so[:10], "..."]
    assert audit(database)[before:] == ["tokens looked up"] * 3


@pytest.mark.parametrize("digits", ["", "abcde", "abcdefg", "%"])
def test_what_cannot_begin_a_token_is_refused(sealed, digits):
    with pytest.raises(psycopg2.errors.RaiseException, match="not the beginning of a token"):
        as_officer(sealed, "select privacy.find_tokens(%s, %s)", digits, REASON)


def test_tokens_are_not_looked_up_without_a_reason(sealed):
    with pytest.raises(psycopg2.errors.RaiseException, match="a reason is needed"):
        as_officer(sealed, "select privacy.find_tokens('abcdef', 'short')")


def test_without_the_private_key_there_is_nothing_to_see(sealed, tmp_path):
    """Not with another pair, and not for a superuser with all that the database holds."""
    assert "could not open it" in Officer(tmp_path).reveal(sealed, token(sealed, "m0"))
    decrypt = "select extensions.pgp_pub_decrypt(sealed, key) from privacy.originals, privacy.public_keys"
    with pytest.raises(psycopg2.errors.ExternalRoutineInvocationException, match="Cannot decrypt with public key"):
        as_superuser(sealed, decrypt)


def test_no_statistic_holds_a_sealed_original_or_its_token(sealed):
    """There they would outlive an erasure and a key rotation."""
    as_superuser(sealed, "analyze privacy.originals; select 1")
    sampled = "select attname from pg_stats where schemaname = 'privacy' and tablename = 'originals' order by 1"
    assert as_superuser(sealed, sampled) == [("key_version",), ("kind",)]


def test_a_request_has_to_be_committed_before_anything_is_handed_out(sealed):
    ask = "select * from privacy.sealed_original(privacy.request_recovery(%s, %s))"
    with pytest.raises(psycopg2.errors.RaiseException, match="commit the request first"):
        as_officer(sealed, ask, token(sealed, "m0"), REASON)


def test_no_original_is_handed_out_alone_after_the_audit_says_that_two_persons_are_required(sealed):
    [(request,)] = as_officer(sealed, "select privacy.request_recovery(%s, %s)", token(sealed, "m0"), REASON)
    with contextlib.closing(sealed.connect("migrator")) as rule, ThreadPoolExecutor() as threads:
        rule.cursor().execute("set role pipeline_owner; select privacy.require_two_persons(true)")
        handed_out = threads.submit(as_officer, sealed, "select * from privacy.sealed_original(%s)", request)
        until(lambda: handed_out.done() or as_superuser(sealed, "select 1 from pg_locks where not granted"))
        rule.commit()
        with pytest.raises(psycopg2.errors.RaiseException, match="waits for the approval of another officer"):
            handed_out.result()
    assert privacy(sealed, "require-two-persons", "no").returncode == 0


def test_a_rollback_does_not_take_back_the_request(sealed):
    """Who rolls back after having seen the original has been on record before."""
    requested = "select privacy.request_recovery(%s, %s)"
    [(request,)] = as_officer(sealed, requested, token(sealed, "m0"), REASON)
    before = audit(sealed)
    with contextlib.closing(sealed.connect("privacy_officer_user")) as connection, connection.cursor() as cursor:
        cursor.execute("select sealed from privacy.sealed_original(%s)", (request,))
        assert cursor.fetchall() != []
        connection.rollback()
    assert audit(sealed) == before
    assert before[-1] == "recovery requested"


def test_an_original_is_handed_out_once_a_request_and_to_who_asked(sealed, two_officers):
    [(request,)] = as_officer(sealed, "select privacy.request_recovery(%s, %s)", "0" * 64, REASON)
    hand_out = "select * from privacy.sealed_original(%s)"
    with pytest.raises(psycopg2.errors.RaiseException, match="waits for the approval of another officer"):
        as_officer(sealed, hand_out, request)
    with pytest.raises(psycopg2.errors.RaiseException, match="needs the approval of another officer"):
        as_officer(sealed, "select privacy.approve_recovery(%s)", request)

    here = sealed.env("privacy_officer_user")
    second = psycopg2.connect(
        host=here["PGHOST"], port=here["PGPORT"], dbname=sealed.name, user=two_officers, password="second"
    )
    with contextlib.closing(second), second.cursor() as cursor:
        cursor.execute("select privacy.approve_recovery(%s)", (request,))
        second.commit()
        with pytest.raises(psycopg2.errors.RaiseException, match="of yours"):
            cursor.execute(hand_out, (request,))
        second.rollback()

        assert as_officer(sealed, hand_out, request) == []  # nobody has that token
        with pytest.raises(psycopg2.errors.RaiseException, match="is over"):
            as_officer(sealed, hand_out, request)
        with pytest.raises(psycopg2.errors.RaiseException, match="is over"):  # an approval would change nothing
            cursor.execute("select privacy.approve_recovery(%s)", (request,))


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("203.0.113.9", REASON),
        (None, REASON),
        ("0" * 63, REASON),
        ("0" * 64, None),
        ("0" * 64, "because  "),
        ("0" * 64, "\n" * 10),
        ("0" * 64, "a \t      \n b"),
    ],
    ids=["no-token", "null", "short", "no-reason", "no-real-reason", "blank", "nearly-blank"],
)
def test_a_request_names_a_token_and_a_reason(sealed, token, reason):
    with pytest.raises(psycopg2.errors.RaiseException):
        as_officer(sealed, "select privacy.request_recovery(%s, %s)", token, reason)


@pytest.mark.parametrize("login", ["postgres", "privacy_officer_user", "migrator", "transformer_user"])
@pytest.mark.parametrize(
    "change", ["update privacy.audit set reason = ''", "delete from privacy.audit", "truncate privacy.audit cascade"]
)
def test_nobody_changes_the_audit(sealed, login, change):
    for attempt in (change, f"set role pipeline_owner; {change}"):
        with pytest.raises((psycopg2.errors.RaiseException, psycopg2.errors.InsufficientPrivilege)):
            query(sealed, attempt, login=login)


def test_a_private_key_is_not_let_in(database, officer, tmp_path):
    private = tmp_path / "private.asc"
    private.write_text("-----BEGIN PGP PRIVATE KEY BLOCK-----\n")
    assert "This is a private key" in privacy(database, "seal-with", str(private)).stderr
    assert as_superuser(database, "select count(*) from privacy.public_keys") == [(0,)]


def test_a_key_that_pgcrypto_cannot_encrypt_to_is_refused(database, tmp_path):
    key = tmp_path / "key.asc"
    key.write_text(str(Tsk.generate("x", cipher_suite=CipherSuite.Cv25519).extract_certificate()))
    said = privacy(database, "seal-with", str(key)).stderr
    assert "pgcrypto cannot encrypt to this key (Unknown public-key encryption algorithm)" in said
    assert as_superuser(database, "select count(*) from privacy.public_keys") == [(0,)]


@pytest.mark.skipif(not shutil.which("gpg"), reason="no GnuPG here: apt install gnupg")
def test_a_key_that_is_too_short_is_refused(database, tmp_path):
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--batch", "--homedir", home, "--passphrase", "", "--pinentry-mode", "loopback"]

    def said(*arguments: str) -> str:
        return subprocess.run([*gpg, *arguments], check=True, capture_output=True, text=True).stdout

    said("--quick-generate-key", "x", "rsa2048", "cert")
    fingerprint = said("--with-colons", "--list-keys").partition("\nfpr")[2].split(":")[8 + 1]
    said("--quick-add-key", fingerprint, "rsa1024", "encr")
    (tmp_path / "key.asc").write_text(said("--armor", "--export"))
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"])
    assert "shorter than 2048 bits" in privacy(database, "seal-with", str(tmp_path / "key.asc")).stderr
    assert as_superuser(database, "select count(*) from privacy.public_keys") == [(0,)]


def test_two_keys_in_one_file_are_said_to_be_two(database, officer, tmp_path):
    """As gpg exports them by a name that the next officer's key has as well."""
    both = tmp_path / "both.asc"
    keys = [bytes(Tsk.from_file(str(each.private_key)).extract_certificate()) for each in (officer, Officer(tmp_path))]
    both.write_text(armor(b"".join(keys), ArmorKind.PublicKey))
    said = privacy(database, "seal-with", str(both)).stderr
    assert "pgcrypto cannot encrypt to this key (Several keys given" in said


def test_a_key_that_comes_later_seals_what_is_in_raw_and_a_rotation_keeps_old_tokens_good(database, officer):
    land(database, [json.dumps(LOGIN | {"ip": "203.0.113.9", "device_id": "d-1"})])
    dbt(database, "run")
    old = token(database, "m0")
    assert "no original behind this token" in officer.reveal(database, old)

    assert privacy(database, "seal-with", str(officer.public_key)).returncode == 0
    assert privacy(database, "rotate-key").returncode == 0
    [(key,)] = as_superuser(database, "select key from masking.keys where kind = 'ip' and version = 2")
    new = hmac.new(bytes(key), old.encode(), hashlib.sha256).hexdigest()
    assert [officer.reveal(database, each) for each in (old, new)] == ["ip 203.0.113.9"] * 2

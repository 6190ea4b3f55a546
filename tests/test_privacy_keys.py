"""Keys: rotated from the tokens alone, never mixed in a table, resumed when interrupted; imported once, never shown."""

import contextlib
import hashlib
import hmac
import io
import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import click
import psycopg2.errors
import pytest

from privacy.__main__ import rotate_key
from tests.conftest import nodes, on_citus_too, run_migrations
from tests.instructions import checkout, follow
from tests.loading import until
from tests.officer import Officer, as_superuser, as_transformer, forget, privacy
from tests.pipeline import dbt, land, query

pytestmark = on_citus_too

KEYS = "ip {}\ndevice_id {}\n"
FIRST, SECOND = KEYS.format("ab" * 32, "cd" * 32), KEYS.format("12" * 32, "34" * 32)
SAME = "Error: One of these keys is that of another kind or of before: a key is accepted once.\n"
TABLES = ("staging.int_messages__masked", "analytics.user_logins")


def login(number: int) -> str:
    return json.dumps(
        {
            "user_id": f"u{number}",
            "app_version": "1.2.3",
            "device_type": "ios",
            "ip": f"198.51.100.{number // 2}",
            "locale": None,
            "device_id": f"d{number // 3}",
        }
    )


def token(value: str, *keys: str) -> str:
    """What Python makes of a value: its token under the first key, the token of that under the second, and so on."""
    for key in keys:
        value = hmac.new(bytes.fromhex(key), value.encode(), hashlib.sha256).hexdigest()
    return value


def deploy_boundary(database) -> None:
    if len(nodes(database.stack)) > 1:  # workers get their keys besides
        assert run_migrations(database.env("migrator")).returncode == 0
        return
    dbt(database, "run", "--target", "boundary", "--select", "tag:boundary", login="migrator")


def rotate(database, steps: tuple[str, ...] = ("add", "deploy", "carry", "close"), **options) -> str:
    """make rotate-key, or some of its steps; returns what the first says."""
    said = ""
    if "add" in steps:
        done = privacy(database, "rotate-key", *(["--import"] if "typed" in options else []), **options)
        assert done.returncode == 0, done.stderr
        said = done.stdout
    if "deploy" in steps:
        deploy_boundary(database)
    if "carry" in steps:
        dbt(database, "run-operation", "carry_tokens_over")
    if "close" in steps:
        assert privacy(database, "close-rotation").returncode == 0
    return said


def versions(database) -> dict[str, list[int]]:
    return {
        table: [row[0] for row in as_transformer(database, f"select distinct mask_key_version from {table}")]
        for table in TABLES
    }


def superuser(database, statement: str) -> None:
    with closing(database.connect("postgres")) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)


def test_tokens_are_carried_over_when_raw_is_gone_and_stay_joinable(database):
    assert rotate(database, ("add", "deploy"), typed=FIRST) == "Key 1 is imported.\n"
    land(database, [login(n) for n in range(12)], prefix="before")
    dbt(database, "run")
    superuser(database, "delete from raw.sqs_messages")

    rotate(database, typed=SECOND)
    land(database, [login(n) for n in range(12)], prefix="after")
    dbt(database, "run")

    assert versions(database) == {table: [2] for table in TABLES}
    expected = {
        (f"u{n}", token(f"198.51.100.{n // 2}", "ab" * 32, "12" * 32), token(f"d{n // 3}", "cd" * 32, "34" * 32))
        for n in range(12)
    }
    for prefix in ("before", "after"):
        rows = query(
            database,
            "select user_id, masked_ip, masked_device_id from analytics.user_logins where message_id like %s",
            f"{prefix}%",
        )
        assert set(rows) == expected


def test_until_something_has_landed_imported_keys_are_the_first(database):
    """Also after a rotation that somebody tried out: another pipeline with these keys is to have the same tokens."""
    dbt(database, "run")
    rotate(database)
    assert rotate(database, typed=FIRST) == "Key 1 is imported.\n"
    land(database, [login(1)])
    dbt(database, "run")
    masked = query(database, "select masked_ip, masked_device_id, mask_key_version from analytics.user_logins")
    assert masked == [(token("198.51.100.0", "ab" * 32), token("d0", "cd" * 32), 1)]


def test_no_statistic_holds_a_token_of_the_old_key(database):
    """Analysts can read the statistics of what they can read, and a stolen key reverts what is there."""
    if nodes(database.stack)[1:]:
        pytest.skip("on Citus, the coordinator has no statistics of values, and analysts log in to no other node")
    land(database, [login(n // 3) for n in range(12)])
    dbt(database, "run")
    superuser(database, "analyze staging.int_messages__masked, analytics.user_logins")
    shown = "select attname from pg_stats, unnest(%s) as token where concat(most_common_vals, histogram_bounds) ~ token"
    old = [token for (token,) in query(database, "select masked_ip from analytics.user_logins")]
    assert query(database, shown, old) != []
    rotate(database)
    assert query(database, shown, old) == []


def test_an_interrupted_rotation_mixes_nothing_and_is_resumed(database):
    land(database, [login(n) for n in range(6)], prefix="before")
    dbt(database, "run")

    # The keys are there, the boundary is not deployed.
    rotate(database, ("add",))
    land(database, [login(6)], prefix="during")
    refused = dbt(database, "run", expect=False)
    assert "make migrate" in str([result.message for result in refused.result])

    # The boundary is deployed, the tables are not carried over.
    rotate(database, ("deploy",))
    refused = dbt(database, "run", expect=False)
    assert "finish the rotation with `make rotate-key`" in str([result.message for result in refused.result])
    assert versions(database) == {table: [1] for table in TABLES}

    # The second of the two tables cannot be carried over: nor is the first.
    spoil = "update analytics.user_logins set masked_ip = {} where message_id = 'before0'"
    superuser(database, spoil.format("'!' || masked_ip"))
    dbt(database, "run-operation", "carry_tokens_over", expect=False)
    assert versions(database) == {table: [1] for table in TABLES}
    superuser(database, spoil.format("substr(masked_ip, 2)"))

    # From the beginning again: no third key.
    assert rotate(database) == "Continuing the rotation to key 2.\n"
    dbt(database, "build")
    assert versions(database) == {table: [2] for table in TABLES}
    assert query(database, "select count(*) from analytics.user_logins") == [(7,)]


def test_a_rotation_is_not_closed_before_its_tables_are_carried_over(database):
    """It could be opened again with a third key alone, which a secret manager would not have."""
    land(database, [login(1)])
    dbt(database, "run")
    rotate(database, ("add", "deploy"))
    refused = privacy(database, "close-rotation")
    assert (refused.returncode, refused.stdout) == (16, "")
    assert "a key rotation is under way: finish it with `make rotate-key`" in refused.stderr
    assert rotate(database) == "Continuing the rotation to key 2.\n"


def test_of_two_rotations_at_once_one_makes_keys(database):
    """As when two hear of a stolen key."""
    waiting = "select 1 from pg_locks where relation = 'masking.keys'::regclass and not granted"
    with closing(database.connect("postgres")) as holder, ThreadPoolExecutor() as threads:
        holder.cursor().execute("lock table masking.keys in share row exclusive mode")
        both = [threads.submit(privacy, database, "rotate-key") for _ in range(2)]
        until(lambda: len(as_superuser(database, waiting)) == 2)
        holder.rollback()
        said = sorted(each.result().stdout for each in both)
    assert said == ["Continuing the rotation to key 2.\n", "Key 2 is made.\n"]


def test_a_rotation_that_another_has_ended_has_nothing_to_carry_over(database):
    """An error would have whoever sees it begin one more."""
    land(database, [login(1)])
    dbt(database, "run")
    rotate(database)
    dbt(database, "run-operation", "carry_tokens_over")
    assert privacy(database, "close-rotation").stdout == "The rotation to key 2 is finished.\n"
    assert versions(database) == {table: [2] for table in TABLES}


def test_an_erasure_during_a_rotation_leaves_no_original(database, tmp_path):
    """Originals have their new tokens first, then what is masked anew, then the tables: some would not be found."""
    assert privacy(database, "seal-with", str(Officer(tmp_path).public_key)).returncode == 0
    land(database, [login(0)], prefix="purged")
    dbt(database, "run")
    superuser(database, "delete from raw.sqs_messages")
    land(database, [login(0).replace("d0", "d9")], prefix="kept")
    land(database, [login(9)], prefix="restored")
    dbt(database, "run")
    superuser(  # as after a restore: the record of erasures is newer than the rest
        database,
        "insert into privacy.erased_messages (message_id, load_id, erasure) "
        "select message_id, load_id, 1 from staging.int_messages__masked where message_id = 'restored0'",
    )
    erase = partial(forget, database, "u0")
    erase_again = partial(privacy, database, "erase-again")
    originals = "select count(*) from privacy.originals"

    for step in ("add", "deploy"):
        rotate(database, (step,))
        for either in (erase, erase_again):
            refused = either()
            assert (refused.returncode, refused.stdout) == (16, "")
            assert "finish it with `make rotate-key`" in refused.stderr
    assert as_superuser(database, originals) == [(5,)]

    rotate(database)
    assert erase().returncode == 0
    assert as_superuser(database, originals) == [(2,)]
    assert erase_again().returncode == 0
    assert as_superuser(database, originals) == [(0,)]
    dbt(database, "build")
    assert query(database, "select count(*) from analytics.user_logins") == [(0,)]


def test_a_kind_that_is_declared_while_keys_are_typed_is_rotated_too(database, monkeypatch):
    """Between the question for the keys and the answer minutes may pass, and a deployment."""
    land(database, [login(1)])

    class Typed(io.StringIO):
        def read(self, *size):
            superuser(database, "set role masker; select masking.ensure_keys(array['email'])")
            return SECOND

    for name, value in database.env("migrator").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdin", Typed())
    with contextlib.suppress(click.ClickException):
        rotate_key.callback(imported=True)
    newest = "select distinct max(version) from masking.keys group by kind"
    assert len(as_superuser(database, newest)) == 1


def test_what_was_sealed_is_erased_when_the_message_is_rejected_since(database, tmp_path):
    """A declaration may change: what was accepted and sealed is rejected by the next full refresh."""
    assert privacy(database, "seal-with", str(Officer(tmp_path).public_key)).returncode == 0
    land(database, [login(0), login(9)])
    dbt(database, "run")
    superuser(database, "update raw.sqs_messages set body = replace(body, '1.2.3', 'x') where message_id = 'm0'")
    dbt(database, "run", "--full-refresh")
    assert forget(database, "u0").returncode == 0
    assert as_superuser(database, "select count(*) from privacy.originals") == [(2,)]


def test_tokens_of_a_field_that_is_declared_no_more_are_not_left_to_an_old_key(database):
    land(database, [login(1)])
    dbt(database, "run")
    superuser(database, "alter table staging.int_messages__masked add masked_email text")
    rotate(database, ("add", "deploy"))
    with pytest.raises(AssertionError, match=r"alter table .* drop column masked_email"):
        dbt(database, "run-operation", "carry_tokens_over")
    superuser(database, "alter table staging.int_messages__masked drop column masked_email")
    assert rotate(database) == "Continuing the rotation to key 2.\n"


def test_a_missing_key_is_an_error_and_no_null(database):
    land(database, [login(1)])
    superuser(database, "insert into masking.keys (kind, version, key) select 'ip', 2, extensions.gen_random_bytes(32)")
    deploy_boundary(database)
    with pytest.raises(psycopg2.errors.RaiseException, match="has no key of kind device_id, version 2"):
        as_superuser(database, "select masked_device_id from masking.stg_sqs__messages")


def test_keys_that_are_lost_are_not_made_anew(database):
    """New ones, as version 1 again, would make other tokens of the same values, in silence."""
    superuser(database, "truncate masking.keys")
    migrated = run_migrations(database.env("migrator"))
    assert migrated.returncode == 5
    assert "masking.keys is empty: restore it from a backup" in migrated.stdout + migrated.stderr
    assert as_superuser(database, "select count(*) from masking.keys") == [(0,)]


def test_keys_older_than_the_tokens_are_not_rotated(database):
    """As where they are restored from an older backup than dbt's tables: no new key makes the tokens of a lost one."""
    rotate(database, ("add", "deploy"), typed=FIRST)
    land(database, [login(1)])
    dbt(database, "run")
    rotate(database, typed=SECOND)
    superuser(database, "delete from masking.keys where version = 2")
    deploy_boundary(database)
    refused = dbt(database, "run", expect=False)
    assert "restore masking.keys, which ends with key 1, from a newer backup" in str(
        [result.message for result in refused.result]
    )
    for either in (partial(privacy, database, "rotate-key"), partial(forget, database, "u1")):
        refused = either()
        assert (refused.returncode, refused.stdout) == (16, "")
        assert "there are tokens of key 2, and masking.keys ends with key 1: restore it" in refused.stderr
    assert as_transformer(database, "select masking.key_version()") == [(1,)]
    rotate(database, typed=SECOND)  # the lost one
    dbt(database, "build")


def test_no_token_is_made_outside_a_rotation(database):
    """Neither is one inside it for anything that is not a token."""
    rotate(database, ("add",))
    ask = "select masking.carried_over('ip', %s, 1)"
    assert as_transformer(database, ask, "0" * 64) != [("0" * 64,)]
    with pytest.raises(psycopg2.errors.RaiseException, match="takes tokens"):
        as_transformer(database, ask, "198.51.100.7")
    rotate(database, ("close",))
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        as_transformer(database, ask, "0" * 64)


def test_keys_are_read_as_windows_writes_them(database):
    typed = "\ufeff" + FIRST.replace("\n", "\r\n")
    assert privacy(database, "rotate-key", "--import", typed=typed).stdout == "Key 1 is imported.\n"


def test_a_key_is_imported_once(database):
    assert privacy(database, "rotate-key", "--import", typed=FIRST).stdout == "Key 1 is imported.\n"
    again = privacy(database, "rotate-key", "--import", typed=FIRST)
    assert again.stderr == SAME
    swapped = privacy(database, "rotate-key", "--import", typed=KEYS.format("cd" * 32, "ef" * 32))
    assert swapped.returncode == 1
    keys = "select kind, version, encode(key, 'hex'), origin from masking.keys order by kind"
    assert as_superuser(database, keys) == [("device_id", 1, "cd" * 32, "imported"), ("ip", 1, "ab" * 32, "imported")]


@pytest.mark.parametrize(
    "typed",
    [
        pytest.param(KEYS.format("ab" * 32, "AB" * 32), id="equal"),
        pytest.param(KEYS.format("ab" * 32, "ab" * 32 + "00"), id="zeros-behind-it"),
        pytest.param(KEYS.format("ab" * 65, hashlib.sha256(b"\xab" * 65).hexdigest()), id="longer-than-a-block"),
    ],
)
def test_two_kinds_have_two_keys(database, typed):
    """Or their tokens could be compared. HMAC pads a short key with zeros, and hashes a long one."""
    done = privacy(database, "rotate-key", "--import", typed=typed)
    assert (done.returncode, done.stderr) == (1, SAME)
    assert as_transformer(database, "select masking.key_version()") == [(1,)]
    assert as_superuser(database, "select distinct origin from masking.keys") == [("generated",)]


@pytest.mark.parametrize(
    "shell",
    [
        pytest.param(r"printf 'ip \xff\xfe' | {}", id="bytes"),
        pytest.param("{} <&-", id="closed"),
        pytest.param("{} 0>/dev/null", id="for-writing"),
    ],
)
def test_what_is_no_text_is_no_key(database, shell):
    """As when a step is missing that makes digits of a key."""
    command = shlex.join([sys.executable, "-m", "privacy", "rotate-key", "--import"])
    shell = ["bash", "-c", shell.format(command)]
    done = subprocess.run(shell, env=database.env("migrator"), capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("Error: Wanted is one line for each of ")


@pytest.mark.parametrize(
    "typed",
    [
        pytest.param("", id="nothing"),
        pytest.param("ip " + "ab" * 32, id="one-kind"),
        pytest.param(FIRST + FIRST, id="twice"),
        pytest.param(KEYS.format("ab" * 31, "cd" * 32), id="31-bytes"),
        pytest.param(KEYS.format("ab" * 32, "cd" * 32 + "d"), id="half-a-byte"),
        pytest.param(KEYS.format("ab" * 32, "in-words-" * 8), id="no-hex"),
        pytest.param(KEYS.format("ab" * 32, "00" * 32), id="zeros"),
        pytest.param("ab" * 32 + "\n" + "cd" * 32, id="no-kind"),
    ],
)
def test_what_is_no_key_is_refused_and_not_shown(database, typed):
    done = privacy(database, "rotate-key", "--import", typed=typed)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert not any(word in done.stdout + done.stderr for word in typed.split() if len(word) > 9)
    assert as_transformer(database, "select masking.key_version()") == [(1,)]


def test_the_four_steps_of_a_rotation_work_as_written(database, tmp_path):
    land(database, [login(1)])
    dbt(database, "run")
    follow("rotate", checkout(tmp_path / "checkout"), database, database.stack._programs())
    assert query(database, "select mask_key_version from analytics.user_logins") == [(2,)]

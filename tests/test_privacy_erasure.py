"""Erasure: a person leaves every table, others stay whole, the queue cannot bring them back, and the counts add up."""

import base64
import contextlib
import gzip
import json
from concurrent.futures import ThreadPoolExecutor

import psycopg2.errors
import pytest

from tests.conftest import on_citus_too
from tests.loading import until
from tests.officer import REASON, Officer, as_officer, as_superuser, as_transformer, forget, privacy
from tests.pipeline import LAND, SENT_AT, dbt, land, query

pytestmark = on_citus_too


def login(user_id: object = "gone", ip: str = "203.0.113.1", device_id: str = "own-1", **more) -> str:
    fields = {"user_id": user_id, "ip": ip, "device_id": device_id, "app_version": "1.2", "device_type": "ios"}
    return json.dumps(fields | more)


PERSONS = {
    "accepted": login(),
    "shares-the-address": login(ip="203.0.113.7", device_id="own-2"),
    "rejected": login(app_version="x"),
    "not-json": login()[:-1],
    "array": f"[{login()}]",
}
OTHERS = {
    "another": login("stays", ip="203.0.113.7", device_id="theirs"),
    "another-rejected": login("stays", app_version="x"),
    "named-in-passing": login("stays", ip="203.0.113.7", device_id="theirs", note="gone"),
    "name-in-name": login("gone-2", ip="203.0.113.7", device_id="theirs"),
    "not-json": "gone",
}


def is_distributed(database) -> bool:
    return as_transformer(database, "select raw.is_distributed()") == [(True,)]


def everywhere(database) -> set[str]:
    """The ids of the messages that any table has something of."""
    tables = ["raw.sqs_messages", "staging.int_messages__masked"]
    tables += ["analytics.user_logins", "analytics.rejected_messages"]
    every = " union ".join(f"select message_id from {table}" for table in tables)
    return {message_id for (message_id,) in as_superuser(database, every)}


@pytest.fixture(scope="module")
def forgotten(module_database, tmp_path_factory):
    """A database from which the person was erased, with what the command said, and the officer who may look."""
    database, officer = module_database, Officer(tmp_path_factory.mktemp("officer"))
    assert privacy(database, "seal-with", str(officer.public_key)).returncode == 0
    land(database, PERSONS.values(), prefix="person")
    others = land(database, OTHERS.values(), prefix="other")
    dbt(database, "run")
    tokens = dict(query(database, "select message_id, masked_ip from analytics.user_logins"))
    said = forget(database)
    dbt(database, "build")
    return database, officer, set(others), tokens, said


def test_the_person_is_nowhere_and_everybody_else_is_where_they_were(forgotten):
    database, _, others, tokens, said = forgotten
    assert everywhere(database) == others
    remaining = dict(query(database, "select message_id, masked_ip from analytics.user_logins"))
    assert remaining == {message_id: token for message_id, token in tokens.items() if message_id in others}
    assert said.stdout.splitlines() == [
        "raw.sqs_messages: 5 removed",
        "privacy.originals: 3 removed",
        "analytics.user_logins: 2 removed by dbt's next run",
    ]


def test_values_of_the_person_alone_cannot_be_recovered_and_shared_ones_can(forgotten):
    database, officer, _, tokens, _ = forgotten
    assert officer.reveal(database, tokens["person1"]) == "ip 203.0.113.7"
    assert "no original behind this token" in officer.reveal(database, tokens["person0"])


def test_the_second_time_there_is_nothing_and_both_times_are_on_record(forgotten):
    database = forgotten[0]
    assert forget(database).stdout == "There is nothing of this user.\n"
    erasures = "select removed, reason from privacy.audit where action = 'person erased' order by id"
    assert as_officer(database, erasures)[:2] == [(5, REASON), (0, REASON)]


def test_what_stays_names_nobody(forgotten):
    database = forgotten[0]
    stays = str(as_superuser(database, "select * from privacy.erased_messages"))
    stays += str(as_superuser(database, "select * from privacy.audit where action = 'person erased'"))
    assert not any(value in stays for value in ("gone", "203.0.113", "own-"))


@pytest.mark.parametrize("prefix", ["person", "redriven"])
def test_the_queue_cannot_bring_the_person_back(forgotten, prefix):
    """Redelivered with its old id, or redriven from a dead-letter queue with a new one: landed, and erased at once.

    On Citus, where tables have no triggers, with dbt's next run.
    """
    database, _, others, _, _ = forgotten
    landed = "select sum(landed) from raw.loads"
    [(before,)] = query(database, landed, login="loader_user")
    land(database, [PERSONS["accepted"]], prefix=prefix)
    assert query(database, landed, login="loader_user") == [(before + 1,)]
    if is_distributed(database):
        dbt(database, "run")
    assert everywhere(database) == others


def test_the_counts_add_up(forgotten):
    database = forgotten[0]
    land(database, [login("stays")], prefix="next")
    dbt(database, "build")  # with its tests: landed = accepted + rejected + erased, for one
    erased = as_transformer(database, "select count(*) from privacy.erased_messages")
    assert erased == [(len(PERSONS) + 2,)]


AS_WRITTEN = {
    "line-break-in-it": ("a\nb", login("a\nb", app_version="x"), True),
    "line-break-in-it-twice-encoded": ("a\nb", json.dumps(login("a\nb")), True),
    "tab-in-it": ("a\tb", login("a\tb", app_version="x"), True),
    "other-control-character": ("a\x01b", login("a\x01b", app_version="x"), True),
    "slash-escaped": ("a/b", r'{"user_id": "a\/b"}', True),
    "backslash": ("a\\b", json.dumps(login("a\\b")), True),
    "quote": ('a"b', json.dumps(login('a"b')), True),
    "digits-in-mixed-case": ("g\u00ea\U0001f600", r'{"user_id": "g\u00eA\ud83D\uDe00"}', True),
    "blank-before": ("gone", r'{"user_id": "\u000b\u000Cgone"}', True),
    "number-in-a-string": ("7", json.dumps(json.dumps({"user_id": 7}, indent=1)), True),
    "number-in-a-list": ("7", '{"ids": [6, 7]}', True),
    "number-in-a-list-after-a-text": ("7", '["login", 6, 7, "ios"]', True),
    "number-in-a-list-after-an-object": ("7", json.dumps('[{"a": []}, 7]'), True),
    "number-in-a-list-after-a-list": ("7", "[[], 7]", True),
    "as-python-prints-it": ("gone", "{'user_id': 'gone'}", True),
    "letter-after-a-line-break": ("n1", r'{"user_id": "\n1"}', False),
    "no-blank-before": ("gone", r'{"user_id": "\bgone"}', False),
    "number-in-a-text": ("7", '{"note": "1,7,9", "more": "a:7}"}', False),
    "number-after-a-text": ("7", '{"note": "a, 7, 9", "more": 5, "last": "5, 7}"}', False),
    "longer-number": ("7", '{"user_id": 77, "a": 7.5, "b": -7}', False),
    "wildcards": ("a%_.*", login("axyzz", app_version="x"), False),
    "another-normal-form": ("e\u0301", login("\u00e9", app_version="x"), False),
}


@pytest.fixture(scope="module")
def as_written(module_database):
    pattern = "select %s ~ privacy.naming(%s)"
    return lambda person, body: as_superuser(module_database, pattern, body, person) == [(True,)]


@pytest.mark.parametrize("name", AS_WRITTEN)
def test_a_rejected_message_names_the_person_however_it_is_written_and_nobody_else(as_written, name):
    person, body, named = AS_WRITTEN[name]
    assert as_written(person, body) is named


LAND_WITH_MORE = """
    insert into raw.sqs_messages (message_id, queue, body, attributes, message_group_id, sent_at, load_id)
    select 'a' || n, 'login-queue', body, attributes::jsonb, group_id, now(), (select raw.current_load_id())
    from unnest(%s, %s, %s) with ordinality as message (body, attributes, group_id, n);
    insert into raw.loads (queue, received, landed, duplicates) values ('login-queue', %s, %s, 0) returning 1
"""


def test_what_sqs_says_of_a_message_that_is_none_names_the_person_too(database):
    user = json.dumps({"user": {"DataType": "String", "StringValue": "gone"}})
    messages = [("x", user, None), ("x", None, "gone"), ("x", None, "gone-2"), (login("stays"), user, "gone")]
    query(database, LAND_WITH_MORE, *map(list, zip(*messages, strict=True)), 4, 4, login="loader_user")
    dbt(database, "run")
    assert forget(database).stdout.startswith("raw.sqs_messages: 2 removed")
    dbt(database, "run")
    assert everywhere(database) == {"a3", "a4"}


def test_messages_that_are_encoded_are_counted(database):
    encoded = base64.b64encode(login().encode()).decode()
    lines = base64.encodebytes(login().encode()).decode()
    zipped = base64.b64encode(gzip.compress(login().encode())).decode()
    envelope = {"Type": "Notification", "TopicArn": "t", "Message": zipped}
    looked_into = [
        login("stays", device_id="0f8fad5b-d9cb-469f-a165-70867728950e", app_version="x"),
        "just some words of text",
    ]
    bodies = [encoded, lines, zipped, json.dumps(encoded), json.dumps(envelope), json.dumps({"data": encoded})]
    land(database, bodies + looked_into)
    dbt(database, "run")
    assert forget(database).stdout.splitlines()[-1] == (
        "6 rejected messages in raw are encoded or compressed, and were not looked into."
    )


def test_messages_with_something_encoded_in_their_attributes_are_counted(database):
    binary = {"user": {"DataType": "Binary", "BinaryValue": base64.b64encode(b"gone").decode()}}
    text = {"user": {"DataType": "String", "StringValue": base64.b64encode(login().encode()).decode()}}
    surrogate = {"user": {"DataType": "String", "StringValue": "base64:" + base64.b64encode(b"gone\0").decode()}}
    attributes = [json.dumps(each) for each in (binary, text, surrogate)]
    messages = [["x"] * 4, [*attributes, '{"user": {"StringValue": "stays"}}'], [None, None, None, "stays"]]
    query(database, LAND_WITH_MORE, *messages, 4, 4, login="loader_user")
    dbt(database, "run")
    assert forget(database).stdout.splitlines()[-1].startswith("3 rejected messages in raw are encoded")


def test_a_short_user_id_may_be_a_part_of_the_reasons_words(database):
    land(database, [login("7"), login("77")])
    dbt(database, "run")
    assert forget(database, "7", "ticket 78: account closed").stdout.startswith("raw.sqs_messages: 1 removed")
    assert forget(database, "77", "ticket 77: account closed").returncode != 0


def test_only_blanks_that_are_no_user_id_are_refused(database):
    land(database, [login("\u00a0")])
    dbt(database, "run")
    assert forget(database, "\u00a0").stdout.startswith("raw.sqs_messages: 1 removed")
    assert "Give --user-id" in forget(database, " \t").stderr


FORGET = "select * from privacy.forget_user(%(user_id)s, %(reason)s)", {"user_id": "gone", "reason": REASON}
REDRIVEN = {"queue": "login-queue", "ids": ["again"], "bodies": [login()], "times": [SENT_AT], "n": 1}


@pytest.mark.parametrize(
    ("holder", "held", "waiting"),
    [
        pytest.param("loader_user", (LAND, REDRIVEN), forget, id="landed-first"),
        pytest.param("privacy_officer_user", FORGET, lambda at: land(at, [login()], "x"), id="erased-first"),
    ],
)
def test_what_lands_while_the_person_is_erased_is_erased(database, holder, held, waiting):
    """Redriven under a new id: neither transaction sees what the other has not committed."""
    land(database, [login(), login("stays")])
    dbt(database, "run")
    waits_for_a_lock = "select 1" + (" from pg_locks where not granted" if not is_distributed(database) else "")
    with contextlib.closing(database.connect(holder)) as connection, ThreadPoolExecutor() as threads:
        connection.cursor().execute(*held)
        other = threads.submit(waiting, database)
        until(lambda: other.done() or as_superuser(database, waits_for_a_lock))
        connection.commit()
        other.result()
    dbt(database, "build")
    assert everywhere(database) == {"m1"}


def test_who_comes_back_later_is_somebody_new(forgotten):
    database = forgotten[0]
    land(database, [login(app_version="1.3")], prefix="later")
    assert "later0" in everywhere(database)


def test_after_a_purge_the_person_leaves_what_is_left(database):
    land(database, [login(), login("stays")])
    dbt(database, "run")
    as_superuser(database, "delete from raw.sqs_messages returning 1")
    assert "analytics.user_logins: 1 removed" in forget(database).stdout
    dbt(database, "run")
    assert everywhere(database) == {"m1"}


def test_nobody_waits_for_what_is_erased_before_dbt_ran(database):
    land(database, [login("stays")])
    dbt(database, "run")
    land(database, [login()], prefix="next")
    health = "select untransformed, landed_to_analytics > interval '0' from analytics.pipeline_health"
    assert query(database, health, login="monitor_user") == [(1, True)]
    forget(database)
    assert query(database, health, login="monitor_user") == [(0, False)]


@pytest.mark.parametrize("reason", ["", "short", "the person called stays asked for it", "Stays is gone", "\n" * 10])
def test_a_reason_is_given_and_does_not_name_the_person(forgotten, reason):
    with pytest.raises(psycopg2.errors.RaiseException, match="a reason is needed"):
        as_officer(forgotten[0], "select * from privacy.forget_user('stays', %s)", reason)


def test_a_reason_does_not_name_the_person_in_other_letters_that_look_the_same(forgotten):
    """An accented letter is one character or two, as the keyboard has it."""
    with pytest.raises(psycopg2.errors.RaiseException, match="a reason is needed"):
        as_officer(forgotten[0], "select * from privacy.forget_user('jos\u00e9 p', 'Jose\u0301 P asked for it')")


def test_the_rule_about_two_persons_is_the_one_on_record_after_a_restore(database):
    """The record of erasures, and so the audit, is newer than the rest."""
    dbt(database, "run")
    assert privacy(database, "require-two-persons", "yes").returncode == 0
    as_superuser(database, "update privacy.settings set two_persons = false returning 1")
    assert privacy(database, "erase-again").returncode == 0
    assert as_superuser(database, "select two_persons from privacy.settings") == [(True,)]

"""The event is declared once: each change that the README describes is made on a copy of the project, to its end."""

import base64
import json
import re
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import yaml
from dbt.cli.main import dbtRunner

from local.stack import SUPERUSER
from tests.conftest import ROOT
from tests.officer import Officer, audit, forget, privacy
from tests.pipeline import DBT_PROJECT, dbt, invoke, land, parsed, query
from tests.signups import described, described_column
from tests.test_report import make_report

MART = "models/analytics/user_logins.sql"
COLUMNS = "models/analytics/_analytics__models.yml"
FIELDS = "      fields:"
ALL_FIELDS = (DBT_PROJECT / "dbt_project.yml").read_text().partition(FIELDS)[2].partition("\non-run-start")[0]
LAST_COLUMN = "        device_id_is_placeholder\n"
LAST_DESCRIPTION = "      - name: device_id_is_placeholder\n"


def message(n: int = 1, **changes: object) -> str:
    event = {
        "user_id": f"u{n}",
        "app_version": "2.3.0",
        "device_type": "ios",
        "ip": f"192.0.2.{n}",
        "device_id": f"d-{n}",
    }
    return json.dumps(event | changes)


@pytest.fixture
def project(tmp_path: Path) -> "Project":
    return Project(tmp_path)


class Project:
    """A copy of the dbt project for each change, since dbt keeps what it has parsed."""

    def __init__(self, folder: Path):
        self.parent, self.folder = folder, DBT_PROJECT

    def copy(self) -> None:
        folder = self.parent / f"project-{len(list(self.parent.iterdir()))}"
        self.folder = shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("target", "logs"))

    def change(self, file: str, old: str, new: str) -> None:
        self.copy()
        text = (self.folder / file).read_text()
        assert text.count(old) == 1, old
        (self.folder / file).write_text(text.replace(old, new))

    def declare(self, old: str, new: str) -> None:
        self.change("dbt_project.yml", old, new)

    def publish(self, column: str, data_type: str) -> None:
        self.change(MART, LAST_COLUMN, f"{LAST_COLUMN.rstrip()},\n        {column}\n")
        self.change(COLUMNS, LAST_DESCRIPTION, described_column(column, data_type) + LAST_DESCRIPTION)
        # in the order of the model, as everywhere: here it comes before the last one
        self.change(MART, f"{LAST_COLUMN.rstrip()},\n        {column}\n", f"        {column},\n{LAST_COLUMN}")

    def add_event(self, declared: str, model: str, select: str, columns: dict[str, str]) -> None:
        self.declare("\non-run-start:", declared)
        (self.folder / f"models/analytics/{model}.sql").write_text(select)
        (self.folder / f"models/analytics/_{model}.yml").write_text(described(model, columns))

    def migrate(self, database, expect: bool = True):
        options = ["run", "--target", "boundary", "--select", "tag:boundary"]
        return dbt(database, *options, login="migrator", expect=expect, project=self.folder)

    def dbt(self, database, *arguments: str, **options):
        return dbt(database, *arguments, project=self.folder, **options)


def said_in_readme(change: str) -> list[str]:
    """The arguments that `make build` has there, in the recipe of this change."""
    [recipe] = re.findall(rf"^\| {change}.*`make build( ARGS=(.*))?`", (ROOT / "README.md").read_text(), re.MULTILINE)
    return recipe[1].split()


def logins(database, columns: str) -> dict[str, tuple]:
    rows = query(database, f"select message_id, {columns} from analytics.user_logins order by message_id")
    return {row[0]: row[1:] for row in rows}


def test_an_open_field_is_added_also_to_the_past_and_guarded(database, project):
    land(database, [message(network="wifi"), message(2), message(3, network="from 192.0.2.3")], prefix="past")
    dbt(database, "run")
    assert len(logins(database, "user_id")) == 3

    project.declare(FIELDS, f"{FIELDS}\n        network: {{type: text, longest: 16}}")
    project.publish("network", "text")
    project.migrate(database)
    project.dbt(database, "build", "--full-refresh")
    land(database, [message(4, network="lte"), message(5, network="x" * 17), message(6, network="")], prefix="new")
    project.dbt(database, "build")

    assert logins(database, "network") == {"past0": ("wifi",), "past1": (None,), "new0": ("lte",), "new2": (None,)}
    rejected = query(database, "select message_id, reason from analytics.rejected_messages order by message_id")
    assert rejected == [("new1", "network_too_long"), ("past2", "exposes_plain_value")]


def test_a_masked_field_of_a_new_kind_has_a_key_and_is_recovered_rotated_and_erased(database, project, tmp_path):
    officer = Officer(tmp_path)
    assert privacy(database, "seal-with", str(officer.public_key)).returncode == 0
    land(database, [message(1, email=" Ann@Example.org"), message(2, email="ann@example.ORG")], prefix="past")
    dbt(database, "run")

    (tmp_path / "projects").mkdir()
    project.parent = tmp_path / "projects"
    project.declare("  kinds:", "  kinds:\n    email: {form: text}\n   ".rstrip())
    project.declare(FIELDS, f"{FIELDS}\n        email: {{masked_as: email, longest: 254}}")
    project.publish("masked_email", "text")
    project.migrate(database)
    project.dbt(database, "build", "--full-refresh")

    [(ann,), (ann_again,)] = logins(database, "masked_email").values()
    assert ann == ann_again
    assert officer.reveal(database, ann) == "email ann@example.org"

    assert privacy(database, "rotate-key").returncode == 0
    project.migrate(database)
    project.dbt(database, "run-operation", "carry_tokens_over")
    assert privacy(database, "close-rotation").returncode == 0
    project.dbt(database, "build")
    [(rotated,), _] = logins(database, "masked_email").values()
    assert rotated != ann
    assert officer.reveal(database, rotated) == "email ann@example.org"

    for person in ("u1", "u2"):
        done = forget(database, person)
        assert done.returncode == 0, done.stderr
    project.dbt(database, "build")
    assert logins(database, "user_id") == {}
    assert "no original behind this token" in officer.reveal(database, rotated)
    assert audit(database).count("person erased") == 2


def test_a_field_is_read_from_inside_an_object(database, project):
    nested = {"device_id": None, "device": {"id": "d-9"}, " app ": {" null": "RU"}}
    land(database, [message(1, **nested), message(2)], prefix="past")
    dbt(database, "run")
    project.declare("device_id: {masked_as: device_id,", "device_id: {path: device.id, masked_as: device_id,")
    project.declare("locale: {type: text,", "locale: {path: ' app . null', type: text,")  # names like any other
    project.migrate(database)
    land(database, [message(1, **nested), message(2, **nested), message(3), message(4, device="d-9")])
    project.dbt(database, "build", *said_in_readme("read a field from a nested object"))

    tokens = logins(database, "masked_device_id")
    assert set(tokens) == {"past0", "m0", "m1"}
    assert len(set(tokens.values())) == 1
    assert set(logins(database, "locale").values()) == {("RU",)}
    reasons = query(database, "select distinct reason from analytics.rejected_messages")
    assert reasons == [("missing_device_id",)]


def test_a_longer_user_id_takes_the_one_statement_that_the_error_names(database, project):
    land(database, [message(user_id="u" * 150)])
    dbt(database, "build")
    assert query(database, "select reason from analytics.rejected_messages") == [("user_id_too_long",)]

    project.declare(
        "user_id: {type: text, required: true, longest: 128}", "user_id: {type: text, required: true, longest: 200}"
    )
    project.migrate(database)
    land(database, [message(user_id="u" * 150)], prefix="later")
    for command in (["build"], ["run", "--full-refresh"]):
        failed = project.dbt(database, *command, expect=False)
        said = next(node.message for node in failed.result if node.status == "error")
        assert "analytics.user_logins.user_id is character varying(128), and varchar(200) is declared." in said
        assert "dbt run-operation widen_columns" in said
    project.dbt(database, "run-operation", "widen_columns")
    project.dbt(database, "build", "--full-refresh")
    assert set(logins(database, "user_id")) == {"m0", "later0"}


def test_a_shorter_user_id_cuts_off_none_of_those_that_raw_has_no_longer(database, project):
    """Two users would be one."""
    land(database, [message(user_id="somebody1"), message(user_id="somebody2")], prefix="purged")
    land(database, [message(user_id="somebody3")])
    dbt(database, "run")
    query(database, "delete from raw.sqs_messages where message_id like 'purged%' returning 1", login=SUPERUSER)
    project.declare(
        "user_id: {type: text, required: true, longest: 128}", "user_id: {type: text, required: true, longest: 8}"
    )
    project.migrate(database)
    failed = project.dbt(database, "run", "--full-refresh", expect=False)
    said = next(node.message for node in failed.result if node.status == "error")
    assert "event logins, field user_id: longest: 8 would cut off texts of up to 9 characters" in said
    assert set(logins(database, "user_id").values()) == {("somebody1",), ("somebody2",), ("somebody3",)}


LOGOUTS = """
    logouts:
      queues: [logout-queue]
      model: user_logouts
      subject: user_id
      fields:
        user_id: {type: text, required: true, longest: 128}
        device_id: {masked_as: device_id, path: locale.device, required: true, longest: 256}
        device_type: {type: text, longest: 32}
        after_seconds: {type: integer}

on-run-start:"""

USER_LOGOUTS = """
select user_id, masked_device_id, device_type, after_seconds, sent_at, message_id, mask_key_version, load_id
from {{ ref('int_messages__masked') }}
where is_accepted and event_type = 'logouts' and {{ in_load_window('load_id') }}
"""

LOGOUT_COLUMNS = {
    "user_id": "text",
    "masked_device_id": "text, data_tests: [is_token]",
    "device_type": "text",
    "after_seconds": "bigint",
    "sent_at": "timestamptz",
    "message_id": "text",
    "mask_key_version": "integer",
    "load_id": "bigint",
}


def test_a_second_event_type_has_tokens_that_join(database, project):
    """Its fields may be elsewhere than those of the first, inside what is a field there, and be optional."""
    project.add_event(LOGOUTS, "user_logouts", USER_LOGOUTS, LOGOUT_COLUMNS)
    project.migrate(database)
    land(database, [message(1), "not json"])
    logout = {"user_id": "u1", "locale": {"device": "D-1"}, "device_type": " ", "after_seconds": 60}
    land(
        database, [json.dumps(logout), json.dumps(logout | {"after_seconds": "60"})], prefix="out", queue="logout-queue"
    )
    land(database, [message(2)], prefix="lost", queue="another-queue")
    project.dbt(database, "build")

    joined = query(
        database,
        "select user_id, after_seconds, logouts.device_type from analytics.user_logouts as logouts"
        " join analytics.user_logins using (user_id, masked_device_id)",
    )
    assert joined == [("u1", 60, None)]
    reasons = query(database, "select queue, reason from analytics.rejected_messages order by queue")
    assert reasons == [
        ("another-queue", "unknown_queue"),
        ("login-queue", "not_json"),
        ("logout-queue", "after_seconds_not_integer"),
    ]
    health = (
        "select queue, event_type, landed, accepted, rejected, unaccounted from analytics.queue_health order by queue"
    )
    assert query(database, health, login="monitor_user") == [
        ("another-queue", None, 1, 0, 1, 0),
        ("login-queue", "logins", 2, 1, 1, 0),
        ("logout-queue", "logouts", 2, 1, 1, 0),
    ]

    done = forget(database, "u1")
    assert done.stdout.startswith("raw.sqs_messages: 3 removed")  # the rejected logout names the person too
    project.dbt(database, "build")
    assert query(database, "select count(*) from analytics.user_logouts") == [(0,)]


VISITS = """
    visits:
      queues: [visit-queue]
      model: user_visits
      subject: user_id
      fields:
        user_id: {type: text, path: who.id, required: true, longest: 640}

on-run-start:"""

USER_VISITS = """
{{ config(indexes=[{'columns': ['user_id', 'sent_at']}]) }}
select user_id, sent_at, message_id, mask_key_version, load_id
from {{ ref('int_messages__masked') }}
where is_accepted and event_type = 'visits' and {{ in_load_window('load_id') }}
"""

VISIT_COLUMNS = {
    "user_id": "text",
    "sent_at": "timestamptz",
    "message_id": "text",
    "mask_key_version": "integer",
    "load_id": "bigint",
}


def test_an_event_type_without_masked_fields_and_whose_subjects_are_as_long_as_an_index_takes(database, project):
    project.add_event(VISITS, "user_visits", USER_VISITS, VISIT_COLUMNS)
    project.migrate(database)
    land(database, [message(1)])
    longest = "".join(chr(0x20000 + n * 7919 % 40000) for n in range(640))  # of four bytes each, hardly compressible
    land(database, [json.dumps({"who": {"id": longest}})], prefix="visit", queue="visit-queue")
    project.dbt(database, "build")
    assert query(database, "select user_id from analytics.user_visits") == [(longest,)]


def in_sns(text: str) -> str:
    envelope = {"Type": "Notification", "MessageId": "i", "TopicArn": "arn:aws:sns:eu-central-1:1:t", "Message": text}
    return json.dumps(envelope | {"MessageAttributes": {"kind": {"Type": "String", "Value": "login"}}})


def in_eventbridge(detail: object) -> str:
    return json.dumps({"version": "0", "detail-type": "login", "source": "app", "resources": [], "detail": detail})


POINTER = '["software.amazon.payloadoffloading.PayloadS3Pointer", {"s3BucketName": "b", "s3Key": "k"}]'
ENCODED = base64.b64encode(message().encode()).decode()
EVENT = {"user_id": "u1", "locale": {"device": "d-1"}}
ENVELOPES = {
    "login-queue": {  # declared: sns
        in_sns(message()): None,
        in_sns("hello"): "not_json",
        in_sns(ENCODED): "base64",
        in_sns(POINTER): "s3_pointer",
        in_sns(json.dumps(message())): "json_in_a_string",
        in_sns("[]"): "not_an_object",
        in_sns(json.dumps({"data": json.loads(message())})): "in_another_object",
        in_sns(in_sns(message())): "in_sns_envelope",
        in_sns(in_eventbridge(EVENT)): "in_eventbridge_envelope",
        in_sns(message(user_id=None)): "missing_user_id",
        in_eventbridge(EVENT): "in_eventbridge_envelope",
        json.dumps(in_sns(message())): "json_in_a_string",
        message(): "not_in_sns_envelope",
        POINTER: "s3_pointer",
        ENCODED: "base64",
        "hello": "not_json",
    },
    "logout-queue": {  # declared: eventbridge
        in_eventbridge(EVENT): None,
        in_eventbridge(message()): "json_in_a_string",
        in_eventbridge(ENCODED): "base64",
        in_eventbridge(None): "not_an_object",
        in_eventbridge({"body": json.dumps(EVENT)}): "in_another_object",
        in_eventbridge(json.loads(in_sns(message()))): "in_sns_envelope",
        in_sns(in_eventbridge(EVENT)): "in_sns_envelope",
        message(): "not_in_eventbridge_envelope",
        POINTER: "s3_pointer",
        ENCODED: "base64",
        "hello": "not_json",
    },
}


def test_a_declared_envelope_is_unwrapped_and_what_else_comes_has_the_reason_that_helps(database, project):
    project.declare("envelope: none", "envelope: sns")
    declared = LOGOUTS.replace("model:", "envelope: eventbridge\n      model:")
    project.add_event(declared, "user_logouts", USER_LOGOUTS, LOGOUT_COLUMNS)
    project.migrate(database)
    for queue, cases in ENVELOPES.items():
        ids = land(database, cases, prefix=queue, queue=queue)
        said = "select message_id, reason from masking.stg_sqs__messages where queue = %s"
        reasons = dict(query(database, said, queue, login="transformer_user"))
        assert [reasons[each] for each in ids] == list(cases.values())


def test_no_time_that_is_published_has_a_masked_value_in_it(database, project):
    """As the message has it or as it is published: here on another day."""
    project.declare(FIELDS, f"{FIELDS}\n        seen_at: {{type: timestamp}}")
    project.migrate(database)
    days = {"2026-11-22": "exposes_plain_value", "2026-11-21": "exposes_plain_value", "2026-11-20": None}
    ids = land(database, [message(device_id=day, seen_at="2026-11-22T00:30:00+02:00") for day in days])
    reasons = dict(
        query(database, "select message_id, reason from masking.stg_sqs__messages", login="transformer_user")
    )
    assert [reasons[each] for each in ids] == list(days.values())
    exposed = "select sum(messages_with_value_in_the_open) from masking.stg_sqs__mask_consistency"
    assert query(database, exposed, login="transformer_user") == [(0,)]


def test_a_blank_text_is_null_where_the_field_is_not_required_whatever_its_type(database, project):
    """As apps write it that always send all fields. It hides no exposed value, in the fields beside it neither."""
    project.declare("app_version: {type: version, required: true}", "app_version: {type: version}")
    project.declare(FIELDS, f"{FIELDS}\n        seen_at: {{type: timestamp}}")
    project.migrate(database)
    blank = {"app_version": " ", "seen_at": "\t", "locale": ""}
    cases = {
        message(**blank): None,
        message(**blank | {"seen_at": "soon"}): "seen_at_malformed",
        message(**blank | {"app_version": "v1"}): "app_version_malformed",
        message(**blank | {"locale": "of 192.0.2.1", "ip": "192.0.2.1"}): "exposes_plain_value",
    }
    ids = land(database, cases)
    said = "select message_id, reason, num_nulls(app_version, seen_at, locale) from masking.stg_sqs__messages"
    found = {each: rest for each, *rest in query(database, said, login="transformer_user")}
    assert [found[each][0] for each in ids] == list(cases.values())
    assert found[ids[0]] == [None, 3]


def test_a_field_is_removed_with_its_column(database, project):
    project.declare(FIELDS, f"{FIELDS}\n        network: {{type: text, longest: 16}}")
    before = project.folder
    project.publish("network", "text")
    project.migrate(database)
    land(database, [message(network="wifi")])
    project.dbt(database, "build")

    project.folder = before
    project.declare("\n        network: {type: text, longest: 16}", "")
    project.migrate(database)
    project.dbt(database, "build", "--full-refresh")
    columns = "select count(*) from pg_attribute where attname = 'network' and not attisdropped"
    assert query(database, columns) == [(0,)]
    assert set(logins(database, "user_id")) == {"m0"}


def test_a_field_that_is_masked_from_now_on_is_not_left_published(database, project):
    project.declare(FIELDS, f"{FIELDS}\n        network: {{type: text, longest: 16}}")
    project.publish("network", "text")
    project.migrate(database)
    land(database, [message(network="wifi")])
    project.dbt(database, "run")

    project.declare("network: {type: text, longest: 16}", "network: {masked_as: device_id, longest: 16}")
    project.migrate(database)
    failed = project.dbt(database, "build", expect=False)  # its author forgot the model, and the full refresh
    said = next(node.message for node in failed.result if node.status == "error")
    assert "staging.int_messages__masked has network, which is no longer declared. Take it out of the models" in said
    project.folder = DBT_PROJECT
    project.declare(FIELDS, f"{FIELDS}\n        network: {{masked_as: device_id, longest: 16}}")
    project.publish("masked_network", "text")
    project.dbt(database, "build", "--full-refresh")
    [(token,)] = logins(database, "masked_network").values()
    assert len(token) == 64
    tables = "select attrelid::regclass::text from pg_attribute where attname = 'network' and not attisdropped"
    assert query(database, tables) == [("masking.base_sqs__messages",)]


@pytest.mark.parametrize(("was", "is_now"), [("integer", "text, longest: 9"), ("version", "integer")])
def test_a_field_of_another_type_is_not_mixed_with_what_it_was(database, project, was, is_now):
    """A column of integers takes versions too, and the other way about."""
    values = {"integer": 7, "text, longest: 9": "7", "version": "1.2"}
    project.declare(FIELDS, f"{FIELDS}\n        network: {{type: {was}}}")
    project.migrate(database)
    land(database, [message(network=values[was])])
    project.dbt(database, "run")

    project.declare(f"network: {{type: {was}}}", f"network: {{type: {is_now}}}")
    project.migrate(database)
    land(database, [message(2, network=values[is_now])], prefix="later")
    for command in (["run"], ["run", "--full-refresh"]):
        failed = project.dbt(database, *command, expect=False)
        said = next(node.message for node in failed.result if node.status == "error")
        assert "staging.int_messages__masked.network has another type than" in said
    [statement] = re.findall("alter table .*?::[a-z]+", said)
    query(database, f"{statement}; select 1", login="transformer_user")
    project.dbt(database, "build", "--full-refresh")
    staged = "select network::text from staging.int_messages__masked where message_id = 'later0'"
    assert query(database, staged, login="transformer_user") == [("7",)]


USER_DAYS = """
{{ config(materialized='incremental', contract={'enforced': false}) }}
select user_id, create_date, count(*) as logins from {{ ref('user_logins') }} group by user_id, create_date
"""


def test_a_report_that_grows_where_no_erasure_reaches_it_fails_a_test(database, project):
    project.copy()
    (project.folder / "models/reports/user_days.sql").write_text(USER_DAYS)
    reaches = "assert_an_erasure_reaches_every_table"
    project.dbt(database, "run", "--exclude", "user_days")
    project.dbt(database, "test", "--select", reaches)
    project.dbt(database, "run", "--select", "user_days")
    tested = project.dbt(database, "test", "--select", reaches, expect=False).result
    assert [each.failures for each in tested if each.status == "fail"] == [1]


def test_a_report_may_end_with_a_comment(database, project):
    project.copy()
    config = "{{ config(contract={'enforced': false}) }}"
    (project.folder / "models/reports/mine.sql").write_text(f"{config} select 1 as one -- as everywhere")
    for _ in ("made", "left as it is"):
        project.dbt(database, "run", "--select", "mine")


WRONG = {
    "unknown-kind": (
        "masked_as: ip,",
        "masked_as: address,",
        "field ip: masked_as: address is not one of ip, device_id",
    ),
    "unknown-type": ("locale: {type: text,", "locale: {type: string,", "field locale: type: string is not one of text"),
    "no-length": ("locale: {type: text, longest: 32}", "locale: {type: text}", "field locale: longest: how many"),
    "no-type-and-no-kind": ("ip: {masked_as: ip, ", "ip: {", "field ip: type is missing (or masked_as, with a kind)"),
    "misspelt-key": (
        "longest: 32}\n        device_id",
        "lenght: 32}\n        device_id",
        "field locale: lenght is unknown",
    ),
    "unknown-form": ("form: identifier", "form: guid", "kind device_id: form: guid is not one of address, identifier"),
    "unknown-subject": ("subject: user_id", "subject: account", "subject: account is not one of its fields"),
    "masked-subject": ("subject: user_id", "subject: ip", "subject: ip is not one of its fields that is open"),
    "subject-longer-than-an-index-takes": (
        "user_id: {type: text, required: true, longest: 128}",
        "user_id: {type: text, required: true, longest: 641}",
        "subject: user_id is in an index, which takes no more than 640 characters (longest)",
    ),
    "nothing-masked": (
        f"{FIELDS}{ALL_FIELDS}",
        f"{FIELDS}\n        user_id: {{type: text, required: true, longest: 9}}\n",
        "vars, events: no field is masked_as a kind",
    ),
    "queue-twice": ("[login-queue]", "[login-queue, login-queue]", "the queue login-queue is declared twice"),
    "column-twice": (
        FIELDS,
        f"{FIELDS}\n        ip_is_placeholder: {{type: boolean}}",
        "column ip_is_placeholder is declared twice",
    ),
    "passes-for-a-token": (
        FIELDS,
        f"{FIELDS}\n        masked_pan: {{type: text, longest: 19}}",
        "masked_pan would pass for a column of tokens, masked_…: give it another name, and say where it is (path: ",
    ),
    "column-of-every-table": (FIELDS, f"{FIELDS}\n        ctid: {{type: integer}}", "ctid is a word of SQL"),
    "column-of-the-boundary": (
        FIELDS,
        f"{FIELDS}\n        body_and_attributes: {{type: text, longest: 9}}",
        "field body_and_attributes: a name has small letters",
    ),
    "no-events": ("  events:\n    logins:", "  events:\n  logins:\n    logins:", "vars, events: nothing is declared"),
    "events-in-a-list": ("  events:\n    logins:", "  events:\n  - logins:", "vars, events: nothing is declared"),
    "no-kinds": ("  kinds:  #", "  kinds: {}\n  kind:  #", "vars, kinds: nothing is declared"),
    "kind-in-a-list": ("masked_as: ip,", "masked_as: [ip],", "field ip: masked_as: ['ip'] is not one of ip, device_id"),
    "no-model": ("model: user_logins", "model:", "event logins: model is the name of a model"),
    "reserved-name": (
        FIELDS,
        f"{FIELDS}\n        load_id: {{type: integer}}",
        "field load_id: a name has small letters",
    ),
    "word-of-sql": (
        FIELDS,
        f"{FIELDS}\n        user: {{type: text, longest: 9}}",
        "field user: user is a word of SQL: give it another name",
    ),
    "kind-as-a-word-of-sql": (
        "kinds:  # of masked values; each has its own keys",
        "kinds:\n    user: {form: text}",
        "kind user: user is a word of SQL: give it another name.",
    ),
    "queue-not-in-a-list": ("queues: [login-queue]", "queues: login-queue", "queues is a list of queues' names"),
    "no-queue": ("queues: [login-queue]", "queues: []", "queues: of which one are its messages?"),
    "queue-by-url": (
        "queues: [login-queue]",
        "queues: [https://sqs.eu-central-1.amazonaws.com/123456789012/login-queue]",
        "queues is a list of queues' names",
    ),
    "none-not-in-a-list": (
        '[0.0.0.0, "::", unknown, "null", none, "-"]',
        "unknown",
        "kind ip: none is a list of texts, and none blank",
    ),
    "none-blank": ('"::", unknown', '" ", unknown', "kind ip: none is a list of texts, and none blank"),
    "none-no-text": ('"::", unknown', "null, unknown", "kind ip: none is a list of texts, and none blank"),
    "none-with-a-null-character": (
        '"::", unknown',
        r'"a\0", unknown',
        "kind ip: none is a list of texts, and none blank",
    ),
    "path-with-a-null-character": ("locale: {type", r'locale: {path: "a\0", type', "field locale: path is names"),
    "required-no-boolean": (
        "required: true}\n        device_type",
        "required: 'no'}\n        device_type",
        "required is true or false",
    ),
    "field-of-nothing": (FIELDS, f"{FIELDS}\n        network:", "field network: nothing is declared"),
    "subject-in-a-list": ("subject: user_id", "subject: [user_id]", "subject is the name of a field"),
    "queues-of-nothing": ("queues: [login-queue]", "queues:", "queues is a list of queues' names"),
    "queue-with-a-colon": ("queues: [login-queue]", "queues: {login-queue: 1}", "queues is a list of queues' names"),
    "path-of-nothing": ("locale: {type", "locale: {path: null, type", "field locale: path is names with dots between"),
    "path-no-text": ("locale: {type", "locale: {path: 1.10, type", "field locale: path is names with dots between"),
    "empty-path": ("locale: {type", "locale: {path: 'app.', type", "field locale: path"),
    "path-with-a-quote": ("locale: {type", "locale: {path: app.it's, type", "field locale: path"),
    "path-of-64-bytes": (
        "locale: {type",
        f"locale: {{path: {'é' * 32}, type",
        "is longer than the 63 bytes that PostgreSQL takes",
    ),
    "no-fields": (f"{FIELDS}{ALL_FIELDS}", f"{FIELDS} [user_id]\n", "fields: nothing is declared"),
    "longer-than-a-message": ("longest: 32}\n        device_id", "longest: 99999999}\n        device_id", "longest"),
    "one-place": ("locale: {type", "locale: {path: user_id, type", "user_id and locale are read from the same place"),
    "envelope": ("envelope: none", "envelope: xml", "envelope: xml is not one of none, sns, eventbridge"),
    "users-of-an-address": (
        "users_that_an_ip_connects: 5",
        "users_that_an_ip_connects: many",
        "users_that_an_ip_connects: many is not a number of users",
    ),
    "users-of-an-address-below-zero": (
        "users_that_an_ip_connects: 5",
        "users_that_an_ip_connects: -1",
        "users_that_an_ip_connects: -1 is not a number of users",
    ),
    "precision": ("shown_to_the: second", "shown_to_the: week", "shown_to_the: week is not one of second, minute"),
}


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("        locale: {type: text, longest: 32}\n", "", "a model names the field locale, which is not declared"),
        ("    logins:\n", "    signins:\n", "event logins: a model names it, and it is not declared"),
    ],
    ids=["field", "event"],
)
def test_a_model_that_names_what_is_not_declared_is_told_so_in_a_sentence(module_database, project, old, new, sentence):
    project.declare(old, new)
    with pytest.raises(AssertionError, match=r"dbt_project\.yml, event ") as stopped:
        project.dbt(module_database, "compile")
    assert sentence in str(stopped.value)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_declaration_is_refused_in_a_sentence(module_database, name):
    old, new, sentence = WRONG[name]
    declared = (DBT_PROJECT / "dbt_project.yml").read_text()
    assert declared.count(old) == 1
    wrong = json.dumps(yaml.safe_load(declared.replace(old, new))["vars"])
    reader = "users_that_an_ip_connects" if "users_that_an_ip_connects" in old else "checked_events"
    with pytest.raises(AssertionError, match=r"dbt_project\.yml, ") as stopped:
        dbt(module_database, "run-operation", reader, "--vars", wrong)
    assert sentence in str(stopped.value)


def test_dbt_that_stays_while_its_project_is_changed_says_what_is_wrong(database, project):
    """As follow.py does: the project is read once, its vars by each run."""
    project.copy()
    stays = dbtRunner(parsed(database, "transformer_user", project.folder))
    file = project.folder / "dbt_project.yml"
    old, new, sentence = WRONG["unknown-kind"]
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(AssertionError, match=sentence):
        invoke(stays, database, "transformer_user", ["run"], True, project.folder)


def test_a_coarser_time_is_shown_also_of_the_past_and_claims_no_more(database, project, tmp_path_factory):
    at = datetime.now(timezone.utc) - timedelta(hours=23.5)
    land(database, [message(1, device_id="d"), message(2, device_id="d")], times=[at, at])
    dbt(database, "run")
    project.declare("shown_to_the: second", "shown_to_the: day")
    project.dbt(database, "run")
    project.dbt(database, "test", "--select", "assert_published_is_what_the_boundary_says", expect=False)
    project.dbt(database, "run", "--full-refresh")
    project.dbt(database, "test", "--select", "assert_published_is_what_the_boundary_says")
    day = at.replace(hour=0, minute=0, second=0, microsecond=0)
    assert query(database, "select distinct logged_in_at from analytics.user_logins") == [(day,)]
    assert query(database, "select users_last_day from analytics.shared_devices") == [(2,)]
    folder = tmp_path_factory.mktemp("report")
    assert make_report(database, folder).returncode == 0
    assert [file.name for file in folder.iterdir() if re.search("hour,|hour of|00:00</td>", file.read_text())] == []


@pytest.mark.parametrize("name", ["unknown-kind", "masked-subject"])  # one part; how the parts go together
def test_a_wrong_declaration_stops_before_anything_is_built(database, project, name):
    old, new, sentence = WRONG[name]
    project.declare(old, new)
    with pytest.raises(AssertionError, match=sentence):
        project.dbt(database, "build")
    assert query(database, "select count(*) from pg_class where relname = 'user_logins'") == [(0,)]


def test_words_of_sql_are_those_that_the_server_has(database):
    listed = (DBT_PROJECT / "macros/declaration.sql").read_text().partition("macro taken_names()")[2]
    reserved = query(database, "select word from pg_get_keywords() where catcode in ('R', 'T')")
    assert {word for (word,) in reserved} <= set(re.findall("[a-z_]+", listed.partition("endmacro")[0]))

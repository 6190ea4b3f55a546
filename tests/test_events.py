"""The made-up messages are what the tests and the demo take them for, and reach the queue as they are."""

import hashlib
import json
import re
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.events import generate
from local.processes import StackError
from local.queues import BATCH, BATCH_BYTES, batches, ensure_queue, send

REASONS = """
    not_json not_an_object exposes_plain_value app_version_malformed app_version_out_of_range
    missing_user_id missing_app_version missing_device_type missing_ip missing_device_id
    user_id_not_text app_version_not_text device_type_not_text ip_not_text locale_not_text device_id_not_text
    user_id_too_long device_type_too_long locale_too_long
"""


@pytest.fixture(scope="module")
def events():
    return list(generate(1000, seed=1))


@pytest.fixture(scope="module")
def logins(events):
    return [json.loads(event.body) for event in events if event.reason is None]


def test_the_same_seed_makes_the_same_messages_on_every_python(events):
    bodies = "\n".join(event.body for event in events)
    assert (
        hashlib.sha256(bodies.encode()).hexdigest()
        == "d2600678cbfa6f422598f43061bc13a35f91550583966245e5bb7b96d1a4bd72"
    )
    assert bodies != "\n".join(event.body for event in generate(1000, seed=2))


@pytest.mark.parametrize("count", [0, 1, 9, 10, 333])
def test_there_are_as_many_as_asked_for(count):
    assert len(list(generate(count, seed=3))) == count


def test_two_hundred_have_every_reason_for_rejection():
    assert {event.reason for event in generate(200, seed=4)} == {None, *REASONS.split()}


def test_three_in_ten_have_no_locale_and_none_has_the_text_of_nothing(logins):
    locales = [login.get("locale") for login in logins]
    assert 0.25 < locales.count(None) / len(locales) < 0.35
    assert not {"None", "null", ""} & set(locales)


@pytest.mark.parametrize("name", ["device_id", "ip"])
def test_people_share_devices_and_addresses(logins, name):
    users = defaultdict(set)
    for login in logins:
        users[login[name].strip().lower()].add(login["user_id"])
    assert sum(len(sharing) > 1 for sharing in users.values()) > 20


def test_some_are_sent_twice(events):
    bodies = [event.body for event in events]
    assert len(bodies) - len(set(bodies)) > 10


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(r'"app_version": "\d+\.\d+"', id="two-part-version"),
        pytest.param(r'"app_version": "\d+\.\d+\.\d+"', id="three-part-version"),
        pytest.param(r'"ip": "2001:db8::', id="ipv6"),
        pytest.param(r'"ip": "2001:DB8::', id="ipv6-upper-case"),
        pytest.param(r'"ip": "2001:0db8:0000:', id="ipv6-in-full"),
        pytest.param(r'"ip": "::ffff:\d+\.', id="ipv4-mapped"),
        pytest.param(r'"ip": "127\.', id="loopback"),
        pytest.param(r'"ip": "(22[4-9]|23\d)\.', id="multicast"),
        pytest.param(r'"ip": "2[45]\d\.', id="class-e"),
        pytest.param(r'"ip": "unknown"', id="not-an-address"),
        pytest.param(r'"device_id": " [0-9A-F]{16} "', id="device-id-upper-case-and-blanks"),
        pytest.param(r'"network": "wifi"', id="unknown-field"),
    ],
)
def test_good_logins_come_in_every_spelling(events, pattern):
    assert any(re.search(pattern, event.body) for event in events if event.reason is None)


def test_an_events_body_is_not_printed_by_accident(events):
    assert repr(events[0]) == "Event(reason=None)"


@given(st.lists(st.integers(1, 2 * BATCH_BYTES), max_size=40))
def test_batches_keep_every_message_in_order_and_within_the_limits(sizes):
    bodies = ["x" * size for size in sizes]
    made = list(batches(bodies))
    assert [body for batch in made for body in batch] == bodies
    assert all(len(batch) <= BATCH for batch in made)
    assert all(len(batch) == 1 or sum(map(len, batch)) <= BATCH_BYTES for batch in made)


def test_messages_reach_the_queue_as_they_are(queue):
    bodies = ['{"b":1,  "a": 1.0}', "🦊", "  blanks  ", "x" * 2**20, *(event.body for event in generate(25, seed=5))]
    assert send(queue.client, queue.url, bodies) == len(bodies)

    received = []
    while messages := queue.client.receive_message(QueueUrl=queue.url, MaxNumberOfMessages=10).get("Messages"):
        received += [message["Body"] for message in messages]
    assert sorted(received) == sorted(bodies)


def test_what_sqs_refuses_ends_in_a_sentence_that_names_it(queue):
    with pytest.raises(StackError) as refused:
        send(queue.client, queue.url, ["good"] * 12 + ["", "good"])
    assert str(refused.value).startswith("13 were sent. SQS refused message 13 (")
    assert str(refused.value).endswith("): take it out, and send the rest.")


def test_a_missing_queue_is_made_with_a_dead_letter_queue(sqs):
    url = ensure_queue(sqs, "made-by-a-test")
    assert ensure_queue(sqs, "made-by-a-test") == url

    asked = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"])
    redrive = json.loads(asked["Attributes"]["RedrivePolicy"])
    assert redrive["deadLetterTargetArn"].endswith(":made-by-a-test-dlq")
    assert int(redrive["maxReceiveCount"]) == 5

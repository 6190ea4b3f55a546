"""`make report`: the page's figures are the database's, it holds nothing plain, and opens from the disk, alone."""

import json
import re
import subprocess
import sys
from collections import Counter
from contextlib import closing
from html import unescape
from pathlib import Path

import pytest

from local.events import generate
from tests.browser import background, needs_chromium, open_page
from tests.pipeline import dbt, land, query

ROOT = Path(__file__).parents[1]
SHOWN = 20  # rows of a table
EVENTS = list(generate(600, seed=3))
HOSTILE = {
    "user_id": "u",
    "app_version": "1.2.3",
    "device_type": "<img src=//example.com>",
    "ip": "192.0.2.77",
    "locale": "</table>\u202e\x07<script>1",
    "device_id": "hostile-device",
}
# Three months of days, with a gap, the day a matter of the message alone.
SPREAD = """
    update raw.sqs_messages set sent_at = timestamptz '2026-11-21 12:00+00'
        - interval '1 day' * (substr(message_id, 2)::integer * 7919 % 90)
    where substr(message_id, 2)::integer % 90 <> 3
"""


def make_report(database, page, login="analyst_user", **settings):
    """As `make report` does, in a process of its own."""
    command = [sys.executable, "-m", "report", "--output", page]
    environment = database.env(login) | settings
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def pages(module_database, tmp_path_factory):
    """The page before the first message, and the page of three months."""
    pages = [tmp_path_factory.mktemp("report") / "below" / name for name in ("empty.html", "report.html")]
    for page in pages:
        dbt(module_database, "run")
        made = make_report(module_database, page)
        assert made.returncode == 0, made.stderr
        if page == pages[0]:
            land(module_database, [event.body for event in EVENTS] + [json.dumps(HOSTILE)])
            with closing(module_database.connect("postgres")) as connection, connection, connection.cursor() as cursor:
                cursor.execute(SPREAD)
    return pages


@pytest.fixture
def built(pages, module_database):
    return module_database


@pytest.fixture
def file(pages):
    return pages[1]


@pytest.fixture
def page(file):
    return file.read_text()


def bars(page, title):
    """What a chart's bars say when pointed at: logins by day and kind."""
    chart = re.search(rf">{title}</h2>(.*?)</svg>", page, re.DOTALL)[1]
    said = re.findall(r"<title>([\d-]+), (.*?): ([\d,]+)</title>", chart)
    return {(day, unescape(kind)): int(number.replace(",", "")) for day, kind, number in said}


def table(page, title):
    section = re.search(rf"<h2>{title}</h2>(.*?)</section>", page, re.DOTALL)[1]
    rows = re.findall(r'<th scope="row">(.*?)</th><td class="number">([\d,]+)</td>', section)
    return {unescape(kind): int(number.replace(",", "")) for kind, number in rows}


def figure(page, name):
    return int(re.search(rf'id="{name}"[^>]*>([\d,]+)<', page)[1].replace(",", ""))


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("Logins a day", "'logins'"),
        ("By kind of device", "device_type"),
        ("By version", "analytics.decode_app_version(app_version)"),
    ],
)
def test_bars_are_the_last_sixty_days_of_logins(built, page, title, kind):
    shown = bars(page, title)
    kinds = {kind for _, kind in shown}
    expected = Counter()
    for day, name, number in query(
        built,
        f"select create_date::text, {kind}, count(*) from analytics.user_logins"
        " where create_date > date '2026-11-21' - 60 group by 1, 2",
    ):
        expected[day, name if name in kinds else "all others"] += number
    assert shown == expected
    assert sum(shown.values()) > 300


def test_frequent_kinds_are_told_apart_and_versions_sort_as_versions(built, page):
    kinds = list(dict.fromkeys(kind for _, kind in bars(page, "By version")))
    assert len(kinds) == 7
    assert kinds.pop() == "all others"
    assert kinds == sorted(kinds, key=lambda version: [int(part) for part in version.split(".")])


def test_the_table_beside_a_chart_has_its_numbers_and_the_days_without_any(page):
    chart = re.search(r">Logins a day</h2>(.*?)</section>", page, re.DOTALL)[1]
    rows = re.findall(r'<th scope="row">([\d-]+)</th><td class="number">([\d,]+)</td>', chart)
    assert len(rows) == 60
    assert {(day, "logins"): int(number) for day, number in rows if number != "0"} == bars(page, "Logins a day")
    assert any(number == "0" for _, number in rows)


def test_totals_locales_and_reasons_are_the_databases(built, page):
    [[*totals]] = query(
        built,
        "select count(*), count(distinct user_id), count(distinct masked_device_id), count(distinct masked_ip)"
        " from analytics.user_logins",
    )
    assert [figure(page, name) for name in ("logins", "users", "devices", "addresses")] == totals
    locales = dict(
        query(built, "select coalesce(locale, 'none given'), count(*) from analytics.user_logins group by 1")
    )
    locales[r"</table>\u202e\x07<script>1"] = locales.pop(HOSTILE["locale"])
    assert table(page, "Locales") == locales
    reasons = dict(query(built, "select reason, count(*) from analytics.rejected_messages group by 1"))
    assert table(page, "Rejected, by reason") == reasons
    assert figure(page, "rejected") == sum(reasons.values())


def test_freshness_is_the_databases(built, page):
    [row] = query(built, "select untransformed, landed, unaccounted from analytics.pipeline_health")
    assert tuple(figure(page, name) for name in ("untransformed", "landed", "unaccounted")) == row == (0, 601, 0)


@pytest.mark.parametrize(
    ("what", "column", "model"),
    [("device", "masked_device_id", "shared_devices"), ("address", "masked_ip", "shared_ips")],
)
def test_shared_tokens_are_short_and_whole_on_hover(built, page, what, column, model):
    found = query(built, f"select {column}, users, logins from analytics.{model} order by users desc, logins desc, 1")
    section = re.search(rf'id="shared-{what}">(.*?)</section>', page, re.DOTALL)[1]
    shown = re.findall(
        r'<abbr title="([0-9a-f]{64})" tabindex="0">([0-9a-f]{12})…</abbr></th>'
        r'<td class="number">(\d+)</td><td class="number">(\d+)</td>',
        section,
    )
    assert [(whole, int(users), int(logins)) for whole, _, users, logins in shown] == found[:SHOWN]
    assert all(whole.startswith(short) for whole, short, _, _ in shown)
    assert f"of {len(found)}." in section


def test_nothing_plain_is_in_it(page):
    values = {HOSTILE["ip"], HOSTILE["device_id"]}
    for event in EVENTS:
        if event.reason is None:
            login = json.loads(event.body)
            values |= {login["ip"].strip(), login["device_id"].strip()}
    assert len(values) > 200
    assert [value for value in values if value.lower() in page.lower()] == []


def test_nothing_in_it_is_loaded_or_run(page):
    tags = re.sub(r'<link rel="icon" href="data:,">', "", page)
    assert re.findall(r"<script|<link|<img|<iframe|<[^>]*\s(?:src|href|on\w+)=|@import|url\(", tags) == []
    assert set(re.findall(r"\w+://[^\s\"<]+", page)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "default-src 'none'" in page


def test_before_the_first_message_there_is_a_page(pages):
    page = pages[0].read_text()
    assert "<dd>never</dd>" in page
    assert page.count("<p>None.</p>") == 4


@pytest.mark.parametrize(
    ("settings", "status", "sentence"),
    [
        pytest.param({}, 5, "dbt has not built analytics: ", id="not-built"),
        pytest.param({"PGPORT": "1"}, 3, "No database: ", id="no-database"),
    ],
)
def test_what_is_missing_is_a_sentence_with_a_status_of_its_own(database, tmp_path, settings, status, sentence):
    made = make_report(database, tmp_path / "page", **settings)
    assert made.returncode == status
    assert made.stderr.startswith(sentence)
    assert made.stderr.count("\n") == 1
    assert not (tmp_path / "page").exists()


def test_a_login_that_is_no_analyst_is_told_so(built, tmp_path):
    made = make_report(built, tmp_path / "page", login="loader_user")
    assert made.returncode == 4
    assert made.stderr.startswith("Not permitted: permission denied for schema analytics. ")
    assert made.stderr.endswith("Run it as a login in the role analyst.\n")


def test_where_the_page_may_not_be_written_it_says_so(built, tmp_path):
    (tmp_path / "file").touch()
    for page, reason in (
        (tmp_path / "file" / "below" / "page", "Not a directory"),
        ("/dev/full", "No space left on device"),
    ):
        made = make_report(built, page)
        assert made.returncode == 1
        assert made.stderr == f"Error: {page} cannot be written: {reason}. Choose another --output.\n"


@needs_chromium
def test_a_browser_shows_the_same_in_silence_and_asks_nobody(file, page):
    opened = open_page(file)
    assert opened.console == []
    assert opened.requests == []
    assert bars(opened.dom, "By version") == bars(page, "By version")
    assert table(opened.dom, "Locales") == table(page, "Locales")


@needs_chromium
def test_it_is_light_or_dark_as_its_reader_is(file):
    assert background(file, "--blink-settings=preferredColorScheme=1") == (0xFF, 0xFF, 0xFF)
    assert background(file, "--blink-settings=preferredColorScheme=0") == (0x14, 0x17, 0x1A)


@needs_chromium
def test_a_page_that_asks_or_complains_would_be_noticed(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<img src="http://example.com/x.png"><script>nope()</script>')
    opened = open_page(page)
    assert opened.requests == ["http://example.com/x.png"]
    assert "nope is not defined" in opened.console[0]

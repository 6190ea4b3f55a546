"""`make report`: the pages' figures are the database's, they hold nothing plain, and open from the disk, alone."""

import json
import re
import subprocess
import sys
from collections import Counter
from contextlib import closing
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from loader.text import visible
from local.events import generate
from report.charts import steps
from tests.browser import Browser
from tests.pipeline import dbt, land, query

ROOT = Path(__file__).parents[1]
PAGES = 12  # of each kind
ROWS = 30  # of a page's tables
EVENTS = list(generate(600, seed=3))
HOSTILE = {
    "app_version": "1.2.3",
    "device_type": "<img src=//example.com>",
    "ip": "192.0.2.77",
    "locale": "</table>\u202e\x07<script>1",
    "device_id": "hostile-device",
}
INVISIBLE = "\u034f\u115f\u2800\u3164\ufe0f\uffa0\U000e0100"  # letters and marks, as Unicode sorts them
HOSTILE_USERS = [f"</code><script>alert({n})</script>'\"\\../\u202e  \x07\x85{INVISIBLE}" for n in range(9)]
# Three months of days, with a gap, the day a matter of the message alone.
SPREAD = """
    update raw.sqs_messages set sent_at = timestamptz '2026-11-21 12:00+00'
        - interval '1 day' * (substr(message_id, 2)::integer * 7919 % 90)
    where substr(message_id, 2)::integer % 90 <> 3
"""
USED = {
    "cluster": "user_id in (select user_id from analytics.account_links where cluster_id = %s)",
    "device": "masked_device_id = %s",
    "address": "masked_ip = %s",
}


def make_report(database, folder, login="analyst_user", **settings):
    """As `make report` does, in a process of its own."""
    command = [sys.executable, "-m", "report", "--output", folder]
    environment = database.env(login) | settings
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def sites(module_database, tmp_path_factory):
    """The site before the first message, and the site of three months."""
    folders = [tmp_path_factory.mktemp("report") / "below" / name for name in ("empty", "report")]
    for folder in folders:
        dbt(module_database, "run")
        made = make_report(module_database, folder)
        assert made.returncode == 0, made.stderr
        if folder == folders[0]:
            hostile = [json.dumps(HOSTILE | {"user_id": user}) for user in HOSTILE_USERS]
            land(module_database, [event.body for event in EVENTS] + hostile)
            with closing(module_database.connect("postgres")) as connection, connection, connection.cursor() as cursor:
                cursor.execute(SPREAD)
    return folders


@pytest.fixture
def built(sites, module_database):
    return module_database


@pytest.fixture
def site(sites):
    return sites[1]


@pytest.fixture
def page(site):
    return (site / "index.html").read_text()


@pytest.fixture
def everything(site):
    return "".join(file.read_text() for file in site.iterdir())


def bars(page, title):
    """What a chart's bars say when pointed at: a number by day and kind."""
    chart = re.search(rf">{title}</h2>(.*?)</svg>", page, re.DOTALL)[1]
    said = re.findall(r"<title>([\d-]+), (.*?): ([\d,]+)</title>", chart)
    return {(day, unescape(kind)): int(number.replace(",", "")) for day, kind, number in said}


def table(page, title):
    section = re.search(rf"<h2>{title}</h2>(.*?)</section>", page, re.DOTALL)[1]
    rows = re.findall(r'<th scope="row">(.*?)</th><td class="number" [^>]*>([\d,]+)</td>', section)
    return {unescape(kind): int(number.replace(",", "")) for kind, number in rows}


def figure(page, name):
    return int(re.search(rf'id="{name}"[^>]*>([\d,]+)<', page)[1].replace(",", ""))


def listed(page, kind):
    """The rows of one of the overview's lists: its page, what it is about, users."""
    section = re.search(rf'id="most-{kind}">(.*?)</section>', page, re.DOTALL)[1]
    found = re.findall(
        r'<a href="([^"]+)">Details</a> <code class="token" tabindex="0">(.*?)</code></th>'
        r'<td class="number" data-label="Users">([\d,]+)</td>',
        section,
    )
    return [(file, unescape(key), int(users)) for file, key, users in found]


@pytest.mark.parametrize(
    ("title", "rows", "kind", "day"),
    [
        ("Logins per day", "user_logins", "'logins'", "create_date"),
        (
            "New users per day",
            "users",
            "'new users'",
            "(first_seen_at at time zone 'utc')::date",
        ),
        ("By type of device", "user_logins", "device_type", "create_date"),
        ("By app version", "user_logins", "analytics.decode_app_version(app_version)", "create_date"),
        ("Rejected per day, by reason", "rejected_messages", "reason", "(sent_at at time zone 'utc')::date"),
    ],
)
def test_bars_are_the_last_sixty_days(built, page, title, rows, kind, day):
    shown = bars(page, title)
    kinds = {kind for _, kind in shown}
    expected = Counter()
    for at, name, number in query(
        built,
        f"select {day}::text, {kind}, count(*) from analytics.{rows}"
        f" where {day} > date '2026-11-21' - 60 group by 1, 2",
    ):
        expected[at, visible(name) if visible(name) in kinds else "all others"] += number
    assert shown == expected
    assert sum(shown.values()) > 30


def test_frequent_kinds_are_told_apart_and_versions_sort_as_versions(page):
    kinds = re.search(r">By app version</h2>.*?<ul class=\"legend\">(.*?)</ul>", page, re.DOTALL)[1]
    kinds = re.findall(r"</i>(.*?)</li>", kinds)
    assert len(kinds) == 7
    assert kinds.pop() == "all others"
    assert kinds == sorted(kinds, key=lambda version: [int(part) for part in version.split(".")])


def test_the_table_below_a_chart_has_its_numbers_and_the_days_without_any(page):
    chart = re.search(r">Logins per day</h2>(.*?)</section>", page, re.DOTALL)[1]
    rows = re.findall(r'<th scope="row">([\d-]+)</th><td class="number" [^>]*>([\d,]+)</td>', chart)
    assert len(rows) == 60
    assert {(day, "logins"): int(number) for day, number in rows if number != "0"} == bars(page, "Logins per day")
    assert any(number == "0" for _, number in rows)


def test_hours_of_the_week_are_four_whole_weeks(built, page):
    chart = re.search(r">By weekday and hour, four weeks</h2>(.*?)</svg>", page, re.DOTALL)[1]
    shown = [int(number) for number in re.findall(r"<title>\w+ \d+:00, ([\d,]+)</title>", chart)]
    assert len(shown) == 7 * 24
    [(expected,)] = query(
        built,
        "select count(*) from analytics.user_logins"
        " where create_date >= date '2026-11-21' - 28 and create_date < '2026-11-21'",
    )
    assert sum(shown) == expected > 0


def test_totals_locales_and_reasons_are_the_databases(built, page):
    [[*totals]] = query(
        built,
        "select count(*), count(distinct user_id),"
        " count(distinct masked_device_id) filter (where not device_id_is_placeholder),"
        " count(distinct masked_ip) filter (where not ip_is_placeholder) from analytics.user_logins",
    )
    assert [figure(page, name) for name in ("logins", "users", "devices", "addresses")] == totals
    locales = query(built, "select coalesce(locale, 'none given'), count(*) from analytics.user_logins group by 1")
    assert table(page, "Locales") == {visible(locale): number for locale, number in locales}
    reasons = dict(query(built, "select reason, count(*) from analytics.rejected_messages group by 1"))
    assert table(page, "Rejected messages, by reason") == reasons
    assert figure(page, "rejected") == sum(reasons.values())


def test_the_state_of_the_pipeline_is_the_databases(built, page):
    [row] = query(built, "select untransformed, landed, unaccounted from analytics.pipeline_health")
    assert tuple(figure(page, name) for name in ("untransformed", "landed", "unaccounted")) == row == (0, 609, 0)


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        (
            "cluster",
            "select cluster_id, users from analytics.account_clusters order by users desc, devices desc, cluster_id",
        ),
        (
            "device",
            "select masked_device_id, users from analytics.shared_devices order by users desc, logins desc, 1",
        ),
        (
            "address",
            "select masked_ip, users from (select masked_ip, count(distinct user_id) as users, count(*) as logins,"
            " count(distinct case when device_id_is_placeholder then user_id else masked_device_id end) as devices"
            " from analytics.user_logins where not ip_is_placeholder group by 1) as used where users > 1"
            " order by users - devices desc, users desc, logins desc, 1",
        ),
    ],
)
def test_the_most_suspicious_have_a_page_each_with_the_databases_numbers(built, site, page, kind, most):
    found = query(built, most)
    shown = listed(page, kind)
    assert [(key, users) for _, key, users in shown] == [(visible(key), users) for key, users in found[:PAGES]]
    assert f"{PAGES} of {len(found)} " in page
    for (file, _, _), (key, _) in zip(shown, found, strict=False):
        assert re.fullmatch(rf"{kind}-[0-9a-f]{{16}}\.html", file)
        text = (site / file).read_text()
        users = query(
            built,
            "select user_id, count(*), count(distinct masked_device_id) filter (where not device_id_is_placeholder),"
            f" to_char(max(logged_in_at) at time zone 'utc', 'YYYY-MM-DD HH24:MI') from analytics.user_logins"
            f" where {USED[kind]} group by 1 order by 2 desc, 1",
            key,
        )
        assert cells(text, "users", (0, 1, 2, 5)) == [
            tuple(map(str, (visible(user), *rest))) for user, *rest in users[:ROWS]
        ]
        tokens = query(
            built,
            f"select masked_device_id, count(*) from analytics.user_logins where {USED[kind]} group by 1"
            f" union all select masked_ip, count(*) from analytics.user_logins where {USED[kind]} group by 1",
            *(key, key),
        )
        in_table = {token: int(logins) for token, logins in cells(text, "tokens", (0, 3))}
        assert len(in_table) == min(len(tokens), ROWS)
        assert in_table.items() <= dict(tokens).items()


def cells(page, name, columns):
    """The text of some columns of a table."""
    rows = re.search(rf'<table id="{name}">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)[1].split("</tr>")[:-1]
    found = []
    for row in rows:
        row = re.sub(r"<a .*?</a>", "", row)
        texts = [unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
        found.append(tuple(texts[column] for column in columns))
    return found


def test_the_sql_on_each_page_runs_as_it_is_and_finds_what_the_page_shows(built, site):
    ran = 0
    for file in site.glob("*-*.html"):
        kind, text = file.name.partition("-")[0], file.read_text()
        for sql in re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL):
            found = query(built, unescape(sql).replace("%", "%%"))
            ran += 1
            if "user_logins" in sql or "login_events" in sql:
                users = cells(text, "users", (1,))
                assert len(found) == sum(int(number) for (number,) in users) or len(users) == ROWS
            assert found, (kind, sql)
    assert ran == 2 * 3 * PAGES


def test_every_link_leads_to_a_page_and_every_page_is_linked(site):
    texts = {file.name: file.read_text() for file in site.iterdir()}
    links = {link for text in texts.values() for link in re.findall(r'<a href="([^"]*)"', text)}
    assert links == set(texts)
    assert len(texts) == 3 * PAGES + 1


def test_pages_of_an_earlier_report_are_removed_and_nothing_else(built, tmp_path):
    old, other = tmp_path / f"device-{'0' * 16}.html", tmp_path / "notes.html"
    for file in (old, other):
        file.touch()
    assert make_report(built, tmp_path).returncode == 0
    assert (old.exists(), other.exists()) == (False, True)


def test_nothing_plain_is_in_it(everything):
    values = {HOSTILE["ip"], HOSTILE["device_id"]}
    for event in EVENTS:
        if event.reason is None:
            login = json.loads(event.body)
            values |= {login["ip"].strip(), login["device_id"].strip()}
    values -= {"unknown"}
    assert len(values) > 200
    assert [value for value in values if value.lower() in everything.lower()] == []


def test_two_ids_that_are_not_the_same_do_not_look_the_same(everything):
    assert [hex(ord(letter)) for letter in INVISIBLE if letter in everything] == []


class Tags(HTMLParser):
    """The elements of a page, and their attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes.update((name, value) for name, value in attributes)


def test_nothing_in_it_is_loaded_or_run(site):
    names = {file.name for file in site.iterdir()}
    for file in site.iterdir():
        text = file.read_text()
        found = Tags(text)
        assert not found.tags & {"script", "img", "image", "iframe", "object", "embed", "form", "base", "use"}
        assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("src", "style", "srcset")]
        assert {value for name, value in found.attributes if name.endswith("href")} <= names | {"data:,"}
        assert re.findall(r"@import|url\(", text) == []
        policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)[1]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


def test_before_the_first_message_there_is_a_page(sites):
    [file] = sites[0].iterdir()
    assert "<dd>never</dd>" in file.read_text()
    assert file.read_text().count("<p>None.</p>") == 5


@pytest.mark.parametrize("most", [0, 1, 4, 5, 6, 99, 100, 101, 12_345])
def test_an_axis_has_a_few_round_numbers_up_to_the_most(most):
    ticks = steps(most)
    assert ticks[0] == 0
    assert ticks[-1] >= most > ticks[-2] or most == 0
    assert 2 <= len(ticks) <= 6
    assert {str(tick).rstrip("0") for tick in ticks[1:2]} <= {"1", "2", "5"}


@pytest.mark.parametrize(
    ("settings", "status", "sentence"),
    [
        pytest.param({}, 5, "dbt has not built analytics: ", id="not-built"),
        pytest.param({"PGPORT": "1"}, 3, "No database: ", id="no-database"),
    ],
)
def test_what_is_missing_is_a_sentence_with_a_status_of_its_own(database, tmp_path, settings, status, sentence):
    made = make_report(database, tmp_path / "report", **settings)
    assert made.returncode == status
    assert made.stderr.startswith(sentence)
    assert made.stderr.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_a_login_that_is_no_analyst_is_told_so(built, tmp_path):
    made = make_report(built, tmp_path / "report", login="loader_user")
    assert made.returncode == 4
    assert made.stderr.startswith("Not permitted: permission denied for schema analytics. ")
    assert made.stderr.endswith("Run it as a login in the role analyst.\n")


def test_where_the_pages_may_not_be_written_it_says_so(built, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "index.html").symlink_to("/dev/full")
    for folder, reason in (
        (tmp_path / "file" / "below", "Not a directory"),
        (tmp_path / "file", "File exists"),
        (tmp_path / "full", "No space left on device"),
    ):
        made = make_report(built, folder)
        assert made.returncode == 1
        assert made.stderr == f"Error: {folder} cannot be written: {reason}. Choose another --output.\n"


# In a browser.


def one_of_each(site):
    """The overview, and the largest page of each kind."""
    kinds = [max(site.glob(f"{kind}-*"), key=lambda file: file.stat().st_size) for kind in USED]
    return [site / "index.html", *kinds]


@pytest.mark.chromium
def test_a_browser_shows_the_same_in_silence_and_asks_nobody(site, page):
    for file in one_of_each(site):
        with Browser(file) as browser:
            assert browser.requests == [file.as_uri()]
            assert browser.console == []
            assert browser.evaluate("document.styleSheets.length") == 1  # which the policy has let in
    with Browser(site / "index.html") as browser:
        assert bars(browser.evaluate("document.documentElement.outerHTML"), "By app version") == bars(
            page, "By app version"
        )


@pytest.mark.chromium
def test_nothing_from_apps_is_live_markup(site, page):
    [file] = [file for file, key, _ in listed(page, "cluster") if "script" in key]
    with Browser(site / file) as browser:
        assert browser.evaluate("document.querySelectorAll('script, img, iframe, object, embed, form').length") == 0
        shown = browser.evaluate("[...document.querySelectorAll('#users .user-id')].map(each => each.innerText)")
        assert sorted(shown) == sorted(map(visible, HOSTILE_USERS))


@pytest.mark.chromium
@pytest.mark.parametrize("width", [390, 700, 1000])
def test_no_column_is_cut_off_on_a_phone_or_elsewhere(site, width):
    for file in one_of_each(site):
        with Browser(file, width=width) as browser:
            browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            beyond = (
                "[...document.querySelectorAll('section')].map(s => [...s.querySelectorAll('th, td, code, svg, pre')]"
                ".filter(e => e.getBoundingClientRect().right > s.getBoundingClientRect().right).length)"
            )
            assert sum(browser.evaluate(beyond)) == 0
            assert browser.evaluate("document.querySelectorAll('td').length") > 20


@pytest.mark.chromium
def test_a_click_selects_a_whole_token_of_which_a_part_is_shown(site):
    for file, token in ((site / "index.html", "#most-device .token"), (one_of_each(site)[1], "#tokens .token")):
        with Browser(file) as browser:
            assert browser.evaluate(f"document.querySelector({token!r}).getBoundingClientRect().width") < 200
            browser.click(token)
            selected = browser.evaluate("getSelection().toString()")
            assert re.fullmatch("[0-9a-f]{64}", selected)


BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.mark.chromium
@pytest.mark.parametrize(
    ("media", "colour"),
    [
        ({"prefers_color_scheme": "light"}, "rgb(255, 255, 255)"),
        ({"prefers_color_scheme": "dark"}, "rgb(20, 23, 26)"),
        ({"prefers_color_scheme": "dark", "medium": "print"}, "rgb(255, 255, 255)"),
    ],
)
def test_it_is_light_or_dark_as_its_reader_is_and_light_in_print(site, media, colour):
    with Browser(site / "index.html", **media) as browser:
        assert browser.evaluate(BACKGROUND) == colour


@pytest.mark.chromium
def test_in_print_tokens_are_whole_and_nothing_is_cut_off(site):
    a4 = 718  # pixels between margins
    for file in one_of_each(site):
        with Browser(file, width=a4, medium="print") as browser:
            assert browser.evaluate("document.documentElement.scrollWidth") <= a4
            cut = (
                "[...document.querySelectorAll('.token, .user-id, pre')].filter(e => e.scrollWidth > e.clientWidth + 1)"
            )
            assert browser.evaluate(f"{cut}.filter(e => e.clientWidth).length") == 0


@pytest.mark.chromium
def test_a_page_that_asks_or_complains_would_be_noticed(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<img src="http://example.com/x.png"><script>nope()</script>')
    with Browser(page) as browser:
        assert browser.requests == [page.as_uri(), "http://example.com/x.png"]
        assert "nope is not defined" in "".join(browser.console)

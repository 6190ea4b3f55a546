"""`make report` of what is unusual: texts that look like the report's own, wide letters, other clocks, coarse times."""

import json
import re
from datetime import timedelta
from hashlib import sha256

import pytest

from tests.browser import Browser
from tests.pipeline import SENT_AT, dbt, land, query
from tests.test_report import ROOT, bars, cells, listed, make_report

VICTIM = "victim"
SAME_DIGITS = sha256(VICTIM.encode()).hexdigest()  # an id like the name of the other's page
WIDE = ["東" * 128, "W" * 128, "😀" * 128, "\u05d0" * 64 + "1" * 64]
KINDS = ["all others", *(f"type-{n}" for n in range(8))]
BAD_DAYS = 3  # after the last login, of rejected messages alone


def login(user_id: str, device_id: str, **more: object) -> str:
    fields = {"user_id": user_id, "device_id": device_id, "ip": f"192.0.2.{len(device_id)}", "app_version": "1.0"}
    return json.dumps(fields | {"device_type": "ios"} | more)


@pytest.fixture(scope="module")
def built(module_database):
    logins = [
        *(login(user, "d") for user in (VICTIM, "victim-2")),
        *(login(user, "dd") for user in (SAME_DIGITS, "z")),
        *(login(user, "ddd") for user in WIDE),
        *(
            login(f"k{n}", f"device-{n}", device_type=kind, ip="unknown")
            for n, kind in enumerate(KINDS)
            for _ in range(9 - n)
        ),
    ]
    land(module_database, logins)
    later = [SENT_AT + timedelta(days=1 + n % BAD_DAYS) for n in range(30)]
    land(module_database, ["not json"] * 30, prefix="bad", times=later)
    dbt(module_database, "run")
    return module_database


@pytest.fixture(scope="module")
def site(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "pages"
    made = make_report(built, folder)
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="module")
def page(site):
    return (site / "index.html").read_text()


def test_times_are_utc_whatever_the_session_has(built, site, page, tmp_path):
    made = make_report(built, tmp_path / "elsewhere", PGTZ="Asia/Kolkata")
    assert made.returncode == 0, made.stderr
    for file in site.glob("*-*.html"):
        assert (tmp_path / "elsewhere" / file.name).read_text() == file.read_text()
    for text in (page, (tmp_path / "elsewhere" / "index.html").read_text()):
        assert re.search(r"</code>, [\d-]+ [\d:]+ UTC\. Days and hours are UTC\.", text)


def test_days_on_which_everything_is_rejected_are_shown(page):
    shown = bars(page, "Rejected per day, by reason")
    days = [(SENT_AT + timedelta(days=1 + n)).date().isoformat() for n in range(BAD_DAYS)]
    assert shown == {(day, "not_json"): 10 for day in days}
    rows = re.findall(r'<th scope="row">(\d+-\d+-\d+)</th>', page)
    assert max(rows) == days[-1]


def test_what_an_app_calls_as_the_report_calls_the_rest_is_counted_with_it(built, page):
    numbers = bars(page, "By type of device")
    [(logins,)] = query(built, "select count(*) from analytics.user_logins")
    assert sum(numbers.values()) == logins
    assert sum(number for (_, kind), number in numbers.items() if kind == "all others") > 9


def test_no_user_id_takes_the_place_of_another_page(site, page):
    clusters = {key: file for file, key, _ in listed(page, "cluster")}
    assert len(set(clusters.values())) == len(clusters) == 3
    for key in (VICTIM, SAME_DIGITS):
        users = {user for (user,) in cells((site / clusters[key]).read_text(), "users", (0,))}
        assert key in users


def test_every_chart_has_its_numbers_in_a_table(site):
    checked = 0
    for file in site.iterdir():
        for section in re.findall(r"<section>(?:(?!</section>).)*<title>.*?</section>", file.read_text(), re.DOTALL):
            if "Days with logins" in section:
                continue  # the table of users has the first and the last
            said = re.findall(r"<title>[^<]*?([\d,]+)</title>", section)
            written = re.findall(r'<td class="number"[^>]*>([\d,]+)</td>', section)
            assert sorted(number for number in said if number != "0") == sorted(
                number for number in written if number != "0"
            )
            checked += 1
    assert checked > 6


def test_what_can_be_reached_by_keyboard_is_in_nothing_that_passes_for_a_picture(site):
    for file in site.iterdir():
        for svg in re.findall(r"<svg.*?</svg>", file.read_text(), re.DOTALL):
            assert "<a " not in svg or 'role="img"' not in svg


def test_the_folder_of_the_pages_is_its_owners_alone(site):
    assert site.stat().st_mode & 0o777 == 0o700


@pytest.mark.chromium
@pytest.mark.parametrize("medium", ["screen", "print"])
def test_no_id_is_cut_off(site, page, medium):
    [file] = [file for file, _, users in listed(page, "cluster") if users == len(WIDE)]
    with Browser(site / file, width=390, medium=medium) as browser:
        outside = "[...document.querySelectorAll('svg[viewBox] text')].filter(each => each.getBBox().x < -0.5)"
        assert browser.evaluate(f"{outside}.map(each => each.textContent)") == []
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390


def contrast(one: str, other: str) -> float:
    """By WCAG 2: text needs 4.5, what a chart is read by 3."""
    light = []
    for colour in (one, other):
        digits = colour if len(colour) == 6 else "".join(digit * 2 for digit in colour)
        parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        light.append(0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_every_colour_can_be_seen_in_light_and_dark():
    style = (ROOT / "report" / "templates" / "style.css").read_text()
    themes = [dict(re.findall(r"--(\w+): #(\w+)", theme)) for theme in re.findall(r":root {(.*?)}", style, re.DOTALL)]
    assert [len(colours) for colours in themes] == [14, 14]
    for colours in themes:
        for name, colour in colours.items():
            if name not in ("paper", "card", "line"):
                needed = 3 if re.fullmatch(r"c\d", name) else 4.5
                assert min(contrast(colour, colours[on]) for on in ("paper", "card")) >= needed, (name, colour)

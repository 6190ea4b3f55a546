"""python -m report: what analysts ask first, as a small site. PG* name the database and the login, as for psql.

The pages are made from `analytics` alone, have no script, load nothing, and show tokens: they may go where those may.
"""

import base64
import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

import click
import jinja2
from markupsafe import Markup

from loader import errors, postgres
from loader.status import span
from loader.text import shows, visible
from report import charts
from report.read import LIMITS, Subject, read

TEMPLATES = Path(__file__).parent / "templates"
FOLDER = Path(__file__).parents[1] / "dbt_project" / "target" / "report"
OVERVIEW = "index.html"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=FOLDER,
    help="The folder for the pages; a new one is readable by you alone.",
)
def main(output: Path) -> None:
    """Build the analysts' pages from what dbt has published."""
    with postgres.explained("Run it as a login in the role analyst", missing=errors.NotBuilt):
        found = read()
    try:
        write(output, dict(pages(**found)))
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {error.strerror}. Choose another --output.") from None
    click.echo(os.path.relpath(output / OVERVIEW))


def write(folder: Path, pages: dict[str, str]) -> None:
    """Writes the pages, and removes those of earlier reports: what they are about may have been erased."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # a new one: who may read analytics, chooses who else may
    for kind in ("cluster", "device", "address"):
        for page in folder.glob(f"{kind}-{'[0-9a-f]' * 16}.html"):
            page.unlink()
    for name, page in pages.items():
        (folder / name).write_text(page, encoding="utf-8")


def pages(subjects: list[Subject], **found: Any) -> Iterator[tuple[str, str]]:
    """Each page's name and text. Jinja escapes all that comes from apps; nothing from them is marked as safe."""
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"visible": visible, "span": span, "short": short, "pair": lambda *both: both}
    environment.globals |= {
        "style": Markup(style),
        "style_hash": base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        "hours": range(24),
        "time_format": "%Y-%m-%d" if found["totals"].are_days else "%Y-%m-%d %H:%M",
        "size": {"width": charts.WIDTH, "height": charts.HEIGHT, "bottom": charts.BOTTOM},
    }
    yield OVERVIEW, environment.get_template("overview.html").render(subjects=subjects, **overview(**found))
    template = environment.get_template("subject.html")
    links = {(each.kind, each.key): each.page for each in subjects}
    links |= {("user", user): each.page for each in subjects for user in each.members}
    for each in subjects:
        yield each.page, template.render(subject=each, links=links, queries=queries(each), **details(each, found))


def overview(totals: Any, period: Any, charts_of: dict[str, list], hours: list, **parts: Any) -> dict[str, Any]:
    days = charts.days_until(period.last_day, period.first_day, LIMITS["days"]) if period.last_day else []
    series = {title: charts.by_kind(rows, days) for title, rows in charts_of.items()}
    drawn = {title: charts.bars(days, kinds) for title, kinds in series.items()} if days else {}
    week = {} if totals.are_days else charts.by_weekday(hours)
    return parts | {"totals": totals, "days": days, "series": series, "drawn": drawn, "week": week}


def details(subject: Subject, found: dict[str, Any]) -> dict[str, Any]:
    parts = subject.parts
    first = min(user.first_seen_at.date() for user in parts["users"])
    numbers = {row.hour: row.number for row in parts["hours"]}
    hours = {"logins": [numbers.get(hour, 0) for hour in range(24)]}
    return {
        "users": parts["users"],
        "tokens": parts["tokens"],
        "graph": charts.graph(parts),
        "timeline": charts.timeline(parts, charts.days_until(found["period"].last_day, first, LIMITS["days"])),
        "by_hour": None if found["totals"].are_days else {"series": hours, "drawn": charts.bars(range(24), hours)},
    }


def queries(subject: Subject) -> list[tuple[str, str]]:
    """What to ask next, with what it answers; for psql or any other tool."""
    key = literal(subject.key)
    if subject.kind == "cluster":
        return [
            ("What connects these users:", f"select * from analytics.account_links where cluster_id = {key};"),
            (
                "Their logins in order, each with what changed:",
                "select * from analytics.login_events\nwhere user_id in (\n"
                f"    select user_id from analytics.account_links where cluster_id = {key}\n)\norder by logged_in_at;",
            ),
        ]
    column, pairs = {"device": ("masked_device_id", "user_devices"), "address": ("masked_ip", "user_ips")}[subject.kind]
    return [
        (
            "Its users, and whether each had logged in from elsewhere before:",
            f"select * from analytics.{pairs}\nwhere {column} = {key}\norder by first_seen_at;",
        ),
        ("Its logins:", f"select * from analytics.user_logins\nwhere {column} = {key}\norder by logged_in_at;"),
    ]


def literal(text: str) -> str:
    """A text in SQL. What does not show is written as an escape, so that what is copied is what is seen."""
    if all(map(shows, text)) and "\\" not in text:
        return "'" + text.replace("'", "''") + "'"
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return "E'" + "".join(each if shows(each) else f"\\U{ord(each):08x}" for each in escaped) + "'"


def short(text: str, columns: int) -> str:
    """What has room in so many columns of a drawing, of which a wide letter takes two."""
    ends = list(accumulate(2 if east_asian_width(each) in "FW" else 1 for each in text))
    return text if not ends or ends[-1] <= columns else text[: bisect_right(ends, columns - 1)] + "…"


if __name__ == "__main__":
    errors.run(main, "python -m report")

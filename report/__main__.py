"""python -m report: what analysts ask first, as one page. PG* name the database and the login, as for psql.

The page is made from `analytics` alone, has no script, loads nothing, and shows tokens: it may go where those may.
"""

import os
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import click
import jinja2
import pygal
from markupsafe import Markup
from psycopg2.extras import NamedTupleCursor

from loader import errors, postgres
from loader.status import span
from loader.text import visible

HERE = Path(__file__).parent
PAGE = HERE.parent / "dbt_project" / "target" / "report.html"

LIMITS = {"days": 60, "kinds": 6, "rows": 20}  # of charts, of what a chart tells apart, of tables
AT_LEAST = 14  # days in a chart, so that the first day is not one bar as wide as the page

TOTALS = """
    select
        count(*) as logins, count(distinct user_id) as users, count(distinct masked_device_id) as devices,
        count(distinct masked_ip) as addresses, min(create_date) as first_day, max(create_date) as last_day,
        array_agg(distinct mask_key_version) as keys
    from analytics.user_logins
"""
HEALTH = "select * from analytics.pipeline_health"
LOGINS = """
    select 'logins' as kind, create_date, sum(logins)::bigint as number
    from analytics.daily_logins where create_date > %(last_day)s::date - %(days)s
    group by create_date order by create_date
"""
# Each of the frequent kinds by day, and the others together as null.
BY_DAY = """
    with
    days as (
        select create_date, {kind} as kind, {place} as place, sum(logins) as number
        from analytics.daily_logins where create_date > %(last_day)s::date - %(days)s group by 1, 2, 3
    ),
    frequent as (
        select kind, place, sum(number) as total from days group by 1, 2 order by total desc, kind limit %(kinds)s
    )
    select frequent.kind, days.create_date, sum(days.number)::bigint as number
    from days left join frequent using (kind)
    group by frequent.kind, frequent.place, frequent.total, days.create_date
    order by frequent.place nulls last, frequent.total desc, frequent.kind, days.create_date
"""
DEVICE_TYPES = BY_DAY.format(kind="device_type", place="0")
VERSIONS = BY_DAY.format(kind="app_version_text", place="app_version")
LOCALES = """
    with
    locales as (select locale, sum(logins) as number from analytics.daily_logins group by locale),
    ranked as (select *, row_number() over (order by number desc, locale) > %(rows)s as is_rare from locales)
    select
        case when is_rare then 'all others' else coalesce(locale, 'none given') end as kind,
        sum(number)::bigint as number
    from ranked group by is_rare, 1 order by is_rare, 2 desc, 1
"""
REASONS = "select reason as kind, count(*) as number from analytics.rejected_messages group by 1 order by 2 desc, 1"
SHARED = """
    select {token} as token, users, logins, first_seen_on, last_seen_on, count(*) over () as found
    from analytics.{model} order by users desc, logins desc, 1 limit %(rows)s
"""
SHARED_DEVICES = SHARED.format(token="masked_device_id", model="shared_devices")
SHARED_ADDRESSES = SHARED.format(token="masked_ip", model="shared_ips")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default=PAGE, help="Where the page goes.")
def main(output: Path) -> None:
    """Build the analysts' page from what dbt has published."""
    with postgres.explained("Run it as a login in the role analyst", missing=errors.NotBuilt):
        page = render(**read())
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {error.strerror}. Choose another --output.") from None
    click.echo(os.path.relpath(output))


def read() -> dict[str, Any]:
    """Everything on the page, as of one moment, so that its figures agree."""
    with closing(postgres.connect("report")) as connection:
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        with connection.cursor(cursor_factory=NamedTupleCursor) as cursor:

            def rows(sql: str) -> list:
                cursor.execute(sql, LIMITS | {"last_day": totals.last_day})
                return cursor.fetchall()

            cursor.execute(TOTALS)
            totals = cursor.fetchone()
            [health] = rows(HEALTH)
            return {
                "totals": totals,
                "health": health,
                "charts": {
                    "Logins a day": rows(LOGINS),
                    "By kind of device": rows(DEVICE_TYPES),
                    "By version": rows(VERSIONS),
                },
                "locales": rows(LOCALES),
                "reasons": rows(REASONS),
                "shared": {"device": rows(SHARED_DEVICES), "address": rows(SHARED_ADDRESSES)},
            }


def render(totals: Any, charts: dict[str, list], **parts: Any) -> str:
    days = days_until(totals.last_day, totals.first_day) if totals.logins else []
    environment = jinja2.Environment(
        autoescape=True, loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"visible": visible, "span": span}
    series = {title: by_kind(rows, days) for title, rows in charts.items()}
    drawn = {title: draw(days, kinds) for title, kinds in series.items()} if days else {}
    return environment.get_template("page.html").render(
        totals=totals, days=days, series=series, drawn=drawn, limits=LIMITS, **parts
    )


def days_until(last: date, first: date) -> list[date]:
    """The last days up to this one, those without a login included."""
    number = min(max(AT_LEAST, (last - first).days + 1), LIMITS["days"])
    return [last - timedelta(days=ago) for ago in reversed(range(number))]


def by_kind(rows: list, days: list[date]) -> dict[str, list[int]]:
    kinds: dict[str, dict[date, int]] = {}
    for row in rows:
        kinds.setdefault(visible(row.kind or "all others"), {})[row.create_date] = row.number
    return {kind: [numbers.get(day, 0) for day in days] for kind, numbers in kinds.items()}


def draw(days: list[date], kinds: dict[str, list[int]]) -> Markup:
    """Bars by day, stacked, as SVG that takes its colours and type from the page's own style."""
    chart = pygal.StackedBar(
        width=340, height=190, margin=4, spacing=6, css=[], js=[], show_legend=False, disable_xml_declaration=True,
        max_scale=6, min_scale=1, x_labels_major_every=-(-len(days) // 5), show_minor_x_labels=False, truncate_label=-1,
        formatter="{:,.0f}".format,
    )  # fmt: skip
    chart.x_labels = [f"{day.day} {day:%b}" for day in days]
    for kind, numbers in kinds.items():
        bars = zip(days, numbers, strict=True)
        chart.add(kind, [{"value": number, "tooltip": f"{day}, {kind}: {number:,}"} for day, number in bars])
    chart.add_xml_filter(without_surplus)
    return Markup(chart.render(is_unicode=True))


def without_surplus(svg: Element) -> Element:
    """Without what pygal keeps for its script, the script, its style, and the bars of nothing."""
    for parent in list(svg.iter()):
        for child in list(parent):
            is_bar_of_nothing = child.get("class") == "bar" and child.find("rect").get("height") == "0.0"
            if child.tag in ("defs", "desc") or callable(child.tag) or is_bar_of_nothing:
                parent.remove(child)
    svg.remove(svg.find("title"))
    del svg.attrib["id"]
    return svg


if __name__ == "__main__":
    main(prog_name="python -m report")

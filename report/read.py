"""Everything that the report shows, read from the schema analytics as of one moment."""

from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from psycopg2.extras import NamedTupleCursor

from loader import postgres

LIMITS = {
    "days": 60,  # in a chart
    "kinds": 6,  # that a chart tells apart
    "pages": 12,  # of each kind: the most suspicious
    "rows": 30,  # in the tables of a page
}

TOTALS = """
    select
        count(*) as logins, count(distinct user_id) as users,
        bool_and(logged_in_at = date_trunc('day', logged_in_at, 'utc')) as are_days,
        count(distinct masked_device_id) filter (where device_id_is_placeholder is not true) as devices,
        count(distinct masked_ip) filter (where ip_is_placeholder is not true) as addresses,
        min(create_date) as first_day, max(create_date) as last_day, array_agg(distinct mask_key_version) as keys
    from analytics.user_logins
"""
# Also days on which everything was rejected.
PERIOD = """
    select least(%(first_day)s::date, min(day)) as first_day, greatest(%(last_day)s::date, max(day)) as last_day
    from (select (sent_at at time zone 'utc')::date as day from analytics.rejected_messages) as rejected
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
        select create_date, {kind} as kind, {place} as place, sum({number}) as number
        from ({rows}) as each_one where create_date > %(last_day)s::date - %(days)s group by 1, 2, 3
    ),
    frequent as (
        select kind, place, sum(number) as total from days group by 1, 2 order by total desc, kind limit %(kinds)s
    )
    select frequent.kind, days.create_date, sum(days.number)::bigint as number
    from days left join frequent using (kind)
    group by frequent.kind, frequent.place, frequent.total, days.create_date
    order by frequent.place nulls last, frequent.total desc, frequent.kind, days.create_date
"""
DAILY = {"rows": "select * from analytics.daily_logins", "number": "logins"}
DEVICE_TYPES = BY_DAY.format(kind="device_type", place="0", **DAILY)
VERSIONS = BY_DAY.format(kind="app_version_text", place="app_version", **DAILY)
REJECTED = BY_DAY.format(
    kind="reason",
    place="0",
    rows="select reason, (sent_at at time zone 'utc')::date as create_date from analytics.rejected_messages",
    number="1",
)
NEW_USERS = """
    select 'new users' as kind, first_seen_at::date as create_date, count(*) as number
    from (select first_seen_at at time zone 'utc' as first_seen_at from analytics.users) as users
    where first_seen_at >= %(last_day)s::date - %(days)s + 1 group by 2
"""
# Whole weeks of whole days: the last day may not be over.
HOURS = """
    select extract(isodow from hour at time zone 'utc')::integer as weekday,
        extract(hour from hour at time zone 'utc')::integer as hour, sum(logins)::bigint as number
    from analytics.hourly_logins
    where hour >= (%(last_day)s::date - 28)::timestamp at time zone 'utc'
        and hour < %(last_day)s::date::timestamp at time zone 'utc'
    group by 1, 2
"""
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

# What deserves a page. More users than devices is what tells a ring from an office; a device that an app does not tell
# is a device all the same.
CLUSTERS = """
    select cluster_id as key, users, devices, ips as addresses, first_seen_at::date as first_day,
        last_seen_at::date as last_day, count(*) over () as found
    from analytics.account_clusters order by users desc, devices desc, 1 limit %(pages)s
"""
DEVICES = """
    select masked_device_id as key, users, 1 as devices, null as addresses, logins, first_seen_on as first_day,
        last_seen_on as last_day, count(*) over () as found
    from analytics.shared_devices order by users desc, logins desc, 1 limit %(pages)s
"""
ADDRESSES = """
    with
    used as materialized (
        select masked_ip, count(distinct case when device_id_is_placeholder then user_id else masked_device_id end)
            as devices
        from analytics.user_logins where ip_is_placeholder is not true group by masked_ip
    )
    select masked_ip as key, users, devices, 1 as addresses, logins, first_seen_on as first_day,
        last_seen_on as last_day, count(*) over () as found
    from analytics.shared_ips inner join used using (masked_ip)
    order by users - devices desc, users desc, logins desc, 1 limit %(pages)s
"""
MEMBERS = "select distinct cluster_id, user_id from analytics.account_links where cluster_id = any(%(keys)s)"

# What a page shows of the logins that its subject is about. Materialized: on Citus the rest is done on the coordinator,
# and some of it can only be done there.
WHERE = {
    "cluster": "user_id = any(%(members)s)",
    "device": "masked_device_id = %(key)s",
    "address": "masked_ip = %(key)s",
}
LOGINS_OF = "with logins as materialized (select * from analytics.user_logins where {where})"
USERS = """
    select
        user_id, count(*) as logins, min(logged_in_at) as first_seen_at, max(logged_in_at) as last_seen_at,
        count(distinct masked_device_id) filter (where device_id_is_placeholder is not true) as devices,
        count(distinct masked_ip) filter (where ip_is_placeholder is not true) as addresses,
        array(
            select analytics.decode_app_version(version)
            from unnest(array_agg(distinct app_version)) as version order by version
        ) as versions,
        count(*) over () as found
    from logins group by user_id order by logins desc, user_id limit %(rows)s
"""
TOKENS = """
    select kind, token, is_placeholder, count(distinct user_id) as users, count(*) as logins,
        min(logged_in_at) as first_seen_at, max(logged_in_at) as last_seen_at, count(*) over () as found
    from logins
    cross join lateral (
        values
        ('device', masked_device_id, device_id_is_placeholder),
        ('address', masked_ip, ip_is_placeholder)
    ) as tokens (kind, token, is_placeholder)
    group by 1, 2, 3 order by users desc, logins desc, token limit %(rows)s
"""
EDGES = """
    select user_id, masked_device_id, masked_ip, count(*) as logins
    from logins where user_id = any(%(shown)s) group by 1, 2, 3 order by 1, 2, 3
"""
DAYS = """
    select user_id, create_date, count(*) as logins
    from logins where user_id = any(%(shown)s) and create_date > %(last_day)s::date - %(days)s group by 1, 2
    order by 1, 2
"""
BY_HOUR = """
    select extract(hour from logged_in_at at time zone 'utc')::integer as hour, count(*) as number
    from logins group by 1
"""


@dataclass
class Subject:
    """What a page is about: a cluster of accounts, a device or an address."""

    kind: str
    key: str  # a token, or for a cluster the id of one of its users
    row: Any
    members: list[str] = field(default_factory=list)
    parts: dict[str, list] = field(default_factory=dict)

    @property
    def page(self) -> str:
        """Its file. An id is an app's text, which may be no name for a file, or begin as another does."""
        name = sha256(self.key.encode()).hexdigest() if self.kind == "cluster" else self.key
        return f"{self.kind}-{name[:16]}.html"


def read() -> dict[str, Any]:
    """What templates/ want, so that all figures agree. Raises psycopg2.Error."""
    with closing(postgres.connect("report")) as connection:
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        with connection.cursor(cursor_factory=NamedTupleCursor) as cursor:
            cursor.execute(f"{postgres.INTERVALS}; set local timezone = 'UTC'")

            def rows(sql: str, **parameters: Any) -> list:
                cursor.execute(sql, LIMITS | parameters)
                return cursor.fetchall()

            [totals] = rows(TOTALS)
            [period] = rows(PERIOD, first_day=totals.first_day, last_day=totals.last_day)
            [health] = rows(HEALTH)
            days = {"last_day": period.last_day or health.measured_at.date()}
            return {
                "totals": totals,
                "period": period,
                "health": health,
                "charts_of": {
                    "Logins per day": rows(LOGINS, **days),
                    "New users per day": rows(NEW_USERS, **days),
                    "By type of device": rows(DEVICE_TYPES, **days),
                    "By app version": rows(VERSIONS, **days),
                    "Rejected per day, by reason": rows(REJECTED, **days),
                },
                "hours": rows(HOURS, **days),
                "locales": rows(LOCALES),
                "reasons": rows(REASONS),
                "subjects": subjects(rows, days),
            }


def subjects(rows: Any, days: dict[str, Any]) -> list[Subject]:
    found = [
        Subject(kind, row.key, row)
        for kind, sql in (("cluster", CLUSTERS), ("device", DEVICES), ("address", ADDRESSES))
        for row in rows(sql)
    ]
    members = defaultdict(list)
    for cluster, user in rows(MEMBERS, keys=[each.key for each in found if each.kind == "cluster"]):
        members[cluster].append(user)
    for each in found:
        each.members = members[each.key]
        about = days | {"key": each.key, "members": each.members}
        logins = LOGINS_OF.format(where=WHERE[each.kind])
        users = rows(logins + USERS, **about)
        about["shown"] = [user.user_id for user in users]
        others = {"tokens": TOKENS, "edges": EDGES, "days": DAYS, "hours": BY_HOUR}
        each.parts = {"users": users} | {name: rows(logins + sql, **about) for name, sql in others.items()}
    return found

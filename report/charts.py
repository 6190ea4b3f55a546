"""Where things are in the report's charts, which templates/charts.html draws as SVG.

No charting library: ECharts (1.1 MB minified), Vega-Lite with Vega (0.8 MB), Plot with D3 (0.5 MB), Chart.js (0.2 MB)
and uPlot (0.05 MB) are well kept and work offline, but each is a script in a page that shows text from apps, and whose
Content-Security-Policy can forbid scripts without it. Chart.js, uPlot and by default ECharts paint on a canvas, which
print, dark mode and screen readers do not reach. Four charts as SVG need less code than the settings of any of them.
"""

import itertools
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

WIDTH, HEIGHT = 340, 150  # of what is plotted, in the SVG's units; a phone shows about one pixel for each
LEFT, BOTTOM = 34, 18  # for the labels
AT_LEAST = 14  # days in a chart, so that the first day is not one bar as wide as the page


def days_until(last: date, first: date, most: int) -> list[date]:
    """The last days up to this one, those without a login included."""
    number = min(max(AT_LEAST, (last - first).days + 1), most)
    return [last - timedelta(days=ago) for ago in reversed(range(number))]


def by_kind(rows: list, days: list[date]) -> dict[str, list[int]]:
    """The number of each day, by kind; a kind that is null is all the others, and one that is called so is of them."""
    kinds: dict[str, dict[date, int]] = {}
    for row in rows:
        numbers = kinds.setdefault("all others" if row.kind is None else row.kind, {})
        numbers[row.create_date] = numbers.get(row.create_date, 0) + row.number
    return {kind: [numbers.get(day, 0) for day in days] for kind, numbers in kinds.items()}


def bars(labels: Sequence[Any], kinds: dict[str, list[int]]) -> dict[str, Any]:
    """Bars stacked by kind, one for each label, which every few have below them."""
    most = max([sum(numbers) for numbers in zip(*kinds.values(), strict=True)] or [0])
    ticks = steps(most)
    scale, step = HEIGHT / ticks[-1], (WIDTH - LEFT) / len(labels)
    drawn = []
    for at, label in enumerate(labels):
        below = 0
        for place, (kind, numbers) in enumerate(kinds.items()):
            if number := numbers[at]:
                drawn.append(
                    {
                        "x": LEFT + at * step + step * 0.1,
                        "y": HEIGHT - (below + number) * scale,
                        "width": step * 0.8,
                        "height": number * scale,
                        "place": place,
                        "title": f"{label}, {kind}: {number:,}",
                    }
                )
                below += number
    return {
        "bars": drawn,
        "ticks": [{"y": HEIGHT - tick * scale, "label": f"{tick:,}"} for tick in ticks],
        "labels": some_labels(labels, LEFT, step, 6),
    }


def steps(most: int) -> list[int]:
    """Round numbers from 0 to at least `most`, two to six of them."""
    sizes = (digit * 10**zeros for zeros in itertools.count() for digit in (1, 2, 5))
    size = next(size for size in sizes if most <= 5 * size)
    return [size * number for number in range(-(-max(most, 1) // size) + 1)]


def some_labels(labels: Sequence[Any], left: float, step: float, most: int) -> list[dict[str, Any]]:
    """Below what begins at `left` and is `step` wide for each: as many as there is room for."""
    every = -(-len(labels) // most)
    return [{"x": left + (at + 0.5) * step, "label": short(label)} for at, label in enumerate(labels)][::every]


def short(label: Any) -> str:
    return f"{label.day} {label:%b}" if isinstance(label, date) else str(label)


def graph(parts: dict[str, list], most: int = 16) -> dict[str, Any]:
    """Users at the left, their devices and addresses at the right, and a line where one logged in from the other."""
    users = [user.user_id for user in parts["users"][:most]]
    tokens = [token for token in parts["tokens"] if not token.is_placeholder][:most]
    logins: dict[tuple[str, str], int] = {}
    for edge in parts["edges"]:
        for token in (edge.masked_device_id, edge.masked_ip):
            logins[edge.user_id, token] = logins.get((edge.user_id, token), 0) + edge.logins

    def middle(token: Any) -> float:
        """Beside its users, so that fewer lines cross."""
        at = [place for place, user in enumerate(users) if (user, token.token) in logins]
        return sum(at) / len(at) if at else len(users)

    tokens.sort(key=middle)
    height = 18 * max(len(users), len(tokens), 1)
    rows = {"users": height / max(len(users), 1), "tokens": height / max(len(tokens), 1)}
    heaviest = max(logins.values(), default=1)
    return {
        "height": height,
        "users": [{"user_id": user, "y": (at + 0.5) * rows["users"]} for at, user in enumerate(users)],
        "tokens": [{"token": token, "y": (at + 0.5) * rows["tokens"]} for at, token in enumerate(tokens)],
        "lines": [
            {
                "y1": (left + 0.5) * rows["users"],
                "y2": (right + 0.5) * rows["tokens"],
                "width": 0.6 + 2.4 * logins[user, token.token] / heaviest,
                "kind": token.kind,
            }
            for left, user in enumerate(users)
            for right, token in enumerate(tokens)
            if (user, token.token) in logins
        ],
    }


def timeline(parts: dict[str, list], days: list[date], most: int = 20) -> dict[str, Any]:
    """A line for each user, a mark for each day with logins, the larger the more."""
    users = [user.user_id for user in parts["users"][:most]]
    step, line = (WIDTH - 2 * LEFT) / len(days), 14
    busiest = max([day.logins for day in parts["days"]] or [1])
    first = days[0]
    return {
        "height": line * len(users),
        "users": [{"user_id": user, "y": (at + 0.5) * line} for at, user in enumerate(users)],
        "marks": [
            {
                "x": 2 * LEFT + ((day.create_date - first).days + 0.5) * step,
                "y": (users.index(day.user_id) + 0.5) * line,
                "radius": 1.5 + 3.5 * (day.logins / busiest) ** 0.5,
                "title": f"{day.create_date}: {day.logins:,}",
            }
            for day in parts["days"]
            if day.user_id in users and day.create_date >= first
        ],
        "labels": some_labels(days, 2 * LEFT, step, 5),
    }


def by_weekday(rows: list) -> dict[str, list[int]]:
    """The number of each hour, by weekday; nothing when there are none."""
    numbers = {(row.weekday, row.hour): row.number for row in rows}
    days = enumerate(("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"), 1) if numbers else ()
    return {name: [numbers.get((weekday, hour), 0) for hour in range(24)] for weekday, name in days}

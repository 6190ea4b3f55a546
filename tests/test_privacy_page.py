"""PRIVACY.md claims nothing without a test, and names no test that does not exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "PRIVACY.md").read_text()
NAMED = sorted(set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)))


def tables(last_column: str) -> list[list[str]]:
    """The rows of all tables whose last column is called so."""
    rows = []
    for table in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        header, _, *body = table.splitlines()
        if header.rstrip("| ").endswith(f"| {last_column}"):
            rows += [[cell.strip() for cell in line.strip("|").split("|")] for line in body]
    return rows


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_test_that_it_names_exists(file, name):
    assert f"def {name}(" in (ROOT / "tests" / file).read_text()


def test_every_claim_names_its_test():
    claims = tables("shown by")
    assert len(claims) > 20
    assert [claim[0] for claim in claims if not re.search(r"`test_\w+\.py::test_\w+`", claim[-1])] == []


def test_every_risk_has_an_owner_and_a_remedy():
    risks = tables("Remedy")
    assert len(risks) > 8
    assert [risk[0] for risk in risks if not all(risk) or len(risk) != 3] == []


def test_every_test_is_named_in_full():
    """Not by its file alone, which would show whatever is in it."""
    assert re.findall(r"`test_\w+\.py`|`\w+\.py::", PAGE) == [
        f"`{file}::" for file, _ in re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)
    ]

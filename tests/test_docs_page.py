"""`make docs`: one page that opens from the disk, alone, and whose lineage shows the boundary."""

import json
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from tests.browser import open_page

PROJECT = Path(__file__).parents[1] / "dbt_project"
# dbt's page takes the addresses of its icons for real ones until its own script has filled them in.
HARMLESS = "Unsafe attempt to load URL file:"


@pytest.fixture(scope="module")
def page(module_database, tmp_path_factory):
    target = tmp_path_factory.mktemp("docs")
    command = [Path(sys.executable).with_name("dbt"), "--quiet", "docs", "generate", "--static"]
    command += ["--project-dir", PROJECT, "--profiles-dir", PROJECT, "--target-path", target]
    made = subprocess.run(command, env=module_database.env("transformer_user"), capture_output=True, text=True)
    assert made.returncode == 0, made.stdout
    return target / "static_index.html"


@pytest.fixture(scope="module")
def manifest(page):
    text = page.read_text()
    return json.JSONDecoder().raw_decode(text, text.index("{manifest:") + len("{manifest:"))[0]


def lineage(manifest, node, stop=()):
    """A node and what it is made from, not looking behind some."""
    parents = [] if node in stop else manifest["parent_map"][node]
    return {node}.union(*(lineage(manifest, parent, stop) for parent in parents))


def test_nothing_in_it_is_loaded(page):
    assert re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?:https?:)?//', page.read_text()) == []


def test_it_describes_the_reports_and_what_they_are_for(page):
    text = page.read_text()
    assert "Devices that more than one user logged in from" in text
    assert "fraud_review" in text


MARTS = [path.stem for folder in ("analytics", "reports") for path in (PROJECT / "models" / folder).glob("*.sql")]
MARTS = [mart for mart in MARTS if not mart.endswith("_health")]  # which read times and ids of raw


@pytest.mark.parametrize("mart", MARTS)
def test_what_analysts_read_comes_from_bodies_and_keys_through_the_boundary_alone(manifest, mart):
    mart, boundary = f"model.masked_logins.{mart}", "model.masked_logins.stg_sqs__messages"
    locked = {"source.masked_logins.raw.sqs_messages", "source.masked_logins.masking.keys"}
    assert boundary in lineage(manifest, mart)
    assert locked <= lineage(manifest, mart)
    assert not locked & lineage(manifest, mart, stop={boundary})


READ_BY = {
    "login_dashboard": ["report/read.py"],
    "monitoring": ["loader/status.py", "deploy/monitoring/queries.yaml"],
}


@pytest.mark.parametrize("exposure", READ_BY)
def test_an_exposure_names_what_its_programs_read(manifest, exposure):
    models = {node["name"] for node in manifest["nodes"].values() if node["resource_type"] == "model"}
    texts = "".join((PROJECT.parent / file).read_text() for file in READ_BY[exposure])
    named = manifest["exposures"][f"exposure.masked_logins.{exposure}"]["depends_on"]["nodes"]
    assert {name.rpartition(".")[2] for name in named} == models & set(re.findall(r"from\s+analytics\.(\w+)", texts))


def test_the_first_page_names_each_model_that_analysts_read(manifest):
    overview = (PROJECT / "models" / "_overview.md").read_text()
    analysts = {
        node["name"]
        for node in manifest["nodes"].values()
        if "analyst" in node["config"].get("grants", {}).get("select", ())
    }
    assert set(MARTS) < analysts
    assert [name for name in analysts if f"`{name}`" not in overview] == []


def test_the_boundary_has_a_colour_of_its_own(manifest):
    coloured = {node["name"] for node in manifest["nodes"].values() if (node.get("docs") or {}).get("node_color")}
    assert coloured == {model.stem for model in (PROJECT / "models" / "boundary").glob("*.sql")}


@pytest.mark.chromium
def test_a_browser_shows_a_model_and_its_lineage_and_asks_nobody(page):
    opened = open_page(page, "#!/model/model.masked_logins.user_logins?g_v=1&g_i=%2Buser_logins")
    text = unescape(re.sub(r"<[^>]+>", " ", opened.dom))
    assert "Lineage Graph" in text
    assert "<canvas" in opened.dom
    assert "Id of the user, as the app sends it, without blanks around it." in text
    assert opened.requests == []
    assert [said for said in opened.console if HARMLESS not in said] == []

"""The README tells the truth: its help text, its commands, its links, its tree."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_loaders_help_is_the_real_one():
    printed = subprocess.run(
        [sys.executable, "-m", "loader", "load", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    shown = re.search(r"```\n\$ python -m loader load --help\n(.*?)```", README, re.DOTALL)
    assert shown
    assert shown[1] == printed


def test_every_make_target_it_names_exists():
    named = set(re.findall(r"(?:`|\(|^ {4})make (?:-s )?([a-z][a-z-]*)", README, re.MULTILINE))
    listed = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "env", "migrate", "load", "build"} <= named
    assert named <= listed


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "PRIVACY.md", "deploy/README.md"])
def test_every_link_leads_somewhere(page):
    folder = (ROOT / page).parent
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    assert [target for target in targets if "://" not in target and not (folder / target).exists()] == []


def test_every_file_it_names_exists():
    named = re.findall(r"`((?:loader|migrations|dbt_project|deploy|tests|benchmarks)/[\w./-]*)`", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_its_tree_is_the_tree():
    tree = re.search(r"```\n(loader/ .*?)```", README, re.DOTALL)[1]
    shown = re.findall(r"^(\w+)/ ", tree, re.MULTILINE)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert sorted(shown) == sorted({name.partition("/")[0] for name in tracked if "/" in name and name[0] != "."})

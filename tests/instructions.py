"""The commands of the documents, taken from there and run one by one."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from local.stack import LOGINS, SUPERUSER

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "PRIVACY.md", "SECURITY.md", "deploy/README.md")]


def block(comment: str) -> str:
    """The block of code under this comment."""
    text = "".join(page.read_text() for page in PAGES)
    [found] = re.findall(rf"<!-- {re.escape(comment)} -->\n((?: {{4}}.*\n)+)", text)
    return "".join(line.strip() + "\n" for line in found.splitlines())


def commands(name: str) -> list[tuple[str, str]]:
    """The commands under this name, each with the login that it wants."""
    lines = [re.fullmatch(r"(.*?)(?: +# as (\w+).*)?", line) for line in block(name).splitlines()]
    return [(line[1], line[2] or "backup_user") for line in lines]


def checkout(folder: Path) -> Path:
    """Makes a folder a checkout of the project, in which the commands are typed."""
    folder.mkdir(exist_ok=True)
    for entry in ROOT.iterdir():
        if entry.name not in (".venv", ".local"):
            (folder / entry.name).symlink_to(entry)
    (folder / ".venv").mkdir()
    for entry in Path(sys.prefix).iterdir():
        if not entry.name.startswith("installed"):
            (folder / ".venv" / entry.name).symlink_to(entry)
    (folder / ".venv" / "installed").touch()  # or make would install into it
    return folder


def blocks(page: Path) -> list[str]:
    """All blocks of code that are typed in a shell, each with the comment above it."""
    text = re.sub(r"^```(?!bash)(.*\n)*?```$", "", page.read_text(), flags=re.MULTILINE)
    return re.findall(r"^(?:<!-- .* -->\n)?(?: {4,}.*\n)+|^```bash\n(?:.*\n)*?```\n", text, re.MULTILINE)


def follow(name: str, folder: Path, database: Any, programs: Path, instead: Mapping[str, str] | None = None) -> None:
    """Runs the commands on this database, with these programs of PostgreSQL's, and texts replaced by others."""
    for command, login in commands(f"commands: {name}"):
        done = run(command, login, folder, database, programs, instead)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def run(
    command: str, login: str, folder: Path, database: Any, programs: Path, instead: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    for text, replacement in (instead or {}).items():
        command = command.replace(text, replacement)
    environment = database.env(SUPERUSER if login == "superuser" else login)
    environment |= {f"{each.upper()}_PASSWORD": database.stack.environment(each)["PGPASSWORD"] for each in LOGINS}
    environment["PATH"] = os.pathsep.join([str(programs), environment["PATH"]])
    return subprocess.run(["sh", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True)

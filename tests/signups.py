"""A copy of the programs with a second event type: signups have a login's fields, a FIFO queue and a model."""

import shutil
from pathlib import Path

from tests.conftest import ROOT

QUEUE = "signup-queue.fifo"
PROGRAMS = ("dbt_project", "loader", "migrations", "privacy", "report")

DECLARATION = """
    signups:
      queues: [{queue}]
      model: user_signups
      subject: user_id
{fields}
"""

MODEL = """
select
    user_id, device_type, masked_ip, masked_device_id, locale, app_version, message_id, mask_key_version, load_id
from {{ ref('int_messages__masked') }}
where is_accepted and event_type = 'signups' and {{ in_load_window('load_id') }}
"""

COLUMNS = {
    "user_id": "text",
    "device_type": "text",
    "masked_ip": "text",
    "masked_device_id": "text",
    "locale": "text",
    "app_version": "integer",
    "message_id": "text, constraints: [{type: primary_key}]",
    "mask_key_version": "integer",
    "load_id": "bigint",
}


def described(model: str, columns: dict[str, str]) -> str:
    """The YAML of a model with these columns, each with its type and what else dbt is to know of it."""
    lines = "".join(map(described_column, columns, columns.values()))
    return f"models:\n  - name: {model}\n    description: A model of this test.\n    columns:\n{lines}"


def described_column(name: str, data_type: str) -> str:
    return f"      - {{name: {name}, description: A column of this test., data_type: {data_type}}}\n"


def copy_programs(source: Path, folder: Path) -> Path:
    for name in PROGRAMS:
        shutil.copytree(source / name, folder / name, ignore=shutil.ignore_patterns("target", "logs", "__pycache__"))
    return folder


def with_signups(folder: Path) -> Path:
    """The folder, which is new, with the programs in it."""
    project = copy_programs(ROOT, folder) / "dbt_project"
    models = project / "models" / "analytics"
    text = (project / "dbt_project.yml").read_text()
    head, mark, tail = text.partition("\n\non-run-start:")
    fields = head[head.index("      fields:") :]
    (project / "dbt_project.yml").write_text(head + DECLARATION.format(queue=QUEUE, fields=fields) + mark + tail)
    (models / "user_signups.sql").write_text(MODEL)
    (models / "_user_signups.yml").write_text(described("user_signups", COLUMNS))
    return folder

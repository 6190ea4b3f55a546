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

COLUMNS = """
models:
  - name: user_signups
    description: The signups.
    columns:
      - {name: user_id, data_type: text, description: The user.}
      - {name: device_type, data_type: text, description: What the device is.}
      - {name: masked_ip, data_type: text, description: The address.}
      - {name: masked_device_id, data_type: text, description: The device.}
      - {name: locale, data_type: text, description: The locale.}
      - {name: app_version, data_type: integer, description: The version.}
      - {name: message_id, data_type: text, description: The message, constraints: [{type: primary_key}]}
      - {name: mask_key_version, data_type: integer, description: The key.}
      - {name: load_id, data_type: bigint, description: The load.}
"""


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
    (models / "_user_signups.yml").write_text(COLUMNS)
    return folder

"""The operator's and the officer's side in tests: the commands, and a key pair of which the database sees one half."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from pysequoia import CipherSuite, Tsk
from pysequoia.packet import PacketPile

from tests.pipeline import query

as_superuser = partial(query, login="postgres")
as_officer = partial(query, login="privacy_officer_user")
as_transformer = partial(query, login="transformer_user")
REASON = "ticket 77: account closed"

# Stands in for `gpg --quiet --decrypt` where there is no GnuPG: the same format, read by other people's code.
GPG = """#!{python}
import sys
from pysequoia import Tsk, decrypt
key = Tsk.from_file({key!r})
sys.stdout.buffer.write(decrypt(sys.stdin.buffer.read(), decryptor=key.decryptor()).bytes)
"""


class Officer:
    """A key pair in a folder, and a `gpg` that opens with it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.private_key, self.public_key, gpg = (folder / name for name in ("private.pgp", "public.asc", "gpg"))
        packets = list(PacketPile.from_bytes(bytes(Tsk.generate("Privacy officer", cipher_suite=CipherSuite.RSA2k))))
        identity, *subkeys = packets[:4], packets[4:6], packets[6:]
        [encryption] = [pair for pair in subkeys if pair[1].key_flags.transport_encryption]
        key = Tsk.from_packets(identity + encryption)  # pgcrypto takes one subkey: without the other, for signing
        self.private_key.write_bytes(bytes(key))
        self.public_key.write_text(str(key.extract_certificate()))
        gpg.write_text(GPG.format(python=sys.executable, key=str(self.private_key)))
        gpg.chmod(0o700)

    def reveal(self, database, token: str, reason: str = "case 1234: fraud") -> str:
        path = f"{self.folder}{os.pathsep}"
        done = privacy(
            database, "reveal", "--token", token, "--reason", reason, login="privacy_officer_user", path=path
        )
        return done.stdout.strip() if done.returncode == 0 else done.stderr


def privacy(database, *arguments: str, login: str = "migrator", path: str = "", typed: str | None = None):
    """python -m privacy, as this login; its exit status and what it said."""
    env = database.env(login)
    command = [sys.executable, "-m", "privacy", *arguments]
    env["PATH"] = path + env["PATH"]
    return subprocess.run(command, env=env, input=typed, capture_output=True, text=True)


def forget(database, user_id: str = "gone", reason: str = REASON) -> subprocess.CompletedProcess[str]:
    return privacy(database, "forget", "--user-id", user_id, "--reason", reason, login="privacy_officer_user")


def audit(database) -> list[str]:
    return [action for (action,) in as_officer(database, "select action from privacy.audit order by id")]

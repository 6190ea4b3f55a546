"""A loader killed at any step loses nothing and doubles nothing: the next one finishes what it had begun."""

import contextlib
import signal

import pytest

from tests import faults
from tests.loading import KILLED, Loading, a_loading, end, until

loading = pytest.fixture(a_loading)

# Where the loader is killed: the server that it talks to, the step there, and what that means.
POINTS = {
    "handed-out": ("sqs", "ReceiveMessage answered", "SQS has handed out messages, the loader has not got them"),
    "received": ("postgres", "COPY", "the loader holds messages, and has not begun to land them"),
    "copied": ("postgres", "COPY done", "the rows are in the temporary table"),
    "inserted": ("postgres", "INSERT done", "the rows and the ledger are written, and not committed"),
    "committing": ("postgres", "COMMIT", "the commit is on its way, and does not arrive"),
    "committed": ("postgres", "COMMIT done", "the commit holds, and the loader does not know"),
    "deleting": ("sqs", "DeleteMessageBatch", "the first delete is on its way, and does not arrive"),
    "amid-deletes": ("sqs", "DeleteMessageBatch 3", "two deletes are done, the others are not"),
    "deleted": ("sqs", "DeleteMessageBatch answered", "a delete is done, and the loader does not know"),
    "heartbeat": ("sqs", "ChangeMessageVisibilityBatch", "the database is slow, and the heartbeat does not arrive"),
    "kept": ("sqs", "ChangeMessageVisibilityBatch answered", "the same, and SQS keeps messages for a dead loader"),
}
# The two clients differ in these calls and in nothing else.
CASES = [
    pytest.param(server, step, client, id=f"{name}-{client}")
    for name, (server, step, _) in POINTS.items()
    for client in ("lean", "boto3")
    if client == "lean" or step.startswith(("ReceiveMessage", "DeleteMessageBatch"))
]


@pytest.mark.parametrize(("server", "step", "client"), CASES)
def test_a_killed_loader_loses_nothing(loading: Loading, server: str, step: str, client: str):
    loading.client = client
    ids = loading.send(60)
    kill = Kill(step)
    with contextlib.ExitStack() as stack:
        if server == "sqs":
            proxy = stack.enter_context(faults.sqs_proxy(loading.env["AWS_ENDPOINT_URL"], kill.at_sqs))
            changed = {"AWS_ENDPOINT_URL": proxy.url}
        else:
            port = stack.enter_context(faults.postgres_proxy(int(loading.env["PGPORT"]), kill.at_postgres))
            changed = loading.through(port)
        if step.startswith("ChangeMessageVisibility"):
            stack.enter_context(loading.slow_database(2))
        kill.victim = loading.start("--workers", "2", "--flush", "30", **changed)
        assert end(kill.victim)[0] == KILLED

    loading.run()

    loading.assert_landed_once(ids)


class Kill:
    """Kills a loader when it comes to a step."""

    def __init__(self, step: str):
        self.step, self.victim, self.landing = step, None, False

    def at_sqs(self, call: faults.Call) -> None:
        if self.step in (call.operation, f"{call.operation} {call.nth}"):
            return self.now()
        answer = call.forward()
        if self.step == f"{call.operation} answered":
            self.now()
        call.answer(*answer)

    def at_postgres(self, step: str) -> bool:
        self.landing = self.landing or step == "COPY"  # before that, the loader prepares its connection
        return self.landing and step == self.step and self.now()

    def now(self) -> bool:
        until(lambda: self.victim).send_signal(signal.SIGKILL)
        self.victim.wait()
        return True

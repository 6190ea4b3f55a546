"""docker-compose.yml on a real Docker engine: `make compose-test`.

Images come from their registries. Where none can be reached, stand-ins are built of Debian's packages (debootstrap and
stand_ins.Dockerfile), and a warning at the end names them.
"""

import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml

from tests.conftest import ROOT
from tests.loading import until

pytestmark = pytest.mark.compose

SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
PYTHON = "python:3.13-slim-bookworm"  # the base of deploy/Dockerfile
PASSWORD = "a$b$$c${HOME}"  # what a shell or compose would expand
CITUS = SERVICES["citus"]["image"].partition(":-")[2].rstrip("}")
WITHOUT_STAND_IN = {"grafana", "citus"}  # not among Debian's packages


def docker(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, cwd=ROOT, **options)


def done(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def images() -> set[str]:
    """The services whose images are there: pulled, or stood in for."""
    wanted = {PYTHON: "python"} | {
        service["image"]: service["image"].partition(":")[0].rpartition("/")[2]
        for service in SERVICES.values()
        if service["image"] != "masked-logins" and "$" not in service["image"]
    }
    wanted |= {"postgres:17.10": "postgres", CITUS: "citus"}
    made = []
    for image, stage in wanted.items():
        is_there = any(docker(*get, image).returncode == 0 for get in (("image", "inspect"), ("pull", "--quiet")))
        if not is_there and not stand_in(image, stage):
            made.append(f"{image}: not there, not tested")
            wanted[image] = ""
        elif not json.loads(done(docker("image", "inspect", image)))[0]["RepoDigests"]:
            made.append(f"{image}: a stand-in")
    if made:
        warnings.warn("Not from a registry. " + "; ".join(made), ContainersWarning, stacklevel=1)
    if not wanted[PYTHON]:
        pytest.skip("no registry can be reached, nor can stand-ins be built (apt install debootstrap, as root)")
    return {stage for stage in wanted.values() if stage}


class ContainersWarning(UserWarning):
    """Something that the report has to say about what the tests ran on."""


def stand_in(image: str, stage: str) -> bool:
    if stage in WITHOUT_STAND_IN:
        return False
    if docker("image", "inspect", "debian").returncode and not import_debian():
        return False
    version = image.partition(":")[2]
    build = docker(
        *("build", "--quiet", "--target", stage, "--build-arg", f"VERSION={version}", "--tag", image, "-"),
        input=(ROOT / "tests" / "stand_ins.Dockerfile").read_text(),
    )
    return build.returncode == 0


def import_debian() -> bool:
    if not shutil.which("debootstrap") or os.getuid():
        return False
    script = """
        folder=$(mktemp -d)
        trap 'rm -rf "$folder"' EXIT
        debootstrap --variant=minbase --include=ca-certificates trixie "$folder"
        cp /etc/ssl/certs/ca-certificates.crt "$folder/etc/ssl/certs/"
        tar -C "$folder" -c . | docker import - debian
    """
    return subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True).returncode == 0


class Compose:
    """A project of its own, whose ports are not published: those of a stack that runs here may be the same."""

    def __init__(self, folder: Path, **settings: str):
        names = [line.partition("=")[0] for line in (ROOT / ".env.example").read_text().splitlines()]
        passwords = [f"{name}='{PASSWORD}'" for name in names if name.endswith("_PASSWORD")]
        (folder / "env").write_text("\n".join([*passwords, *(f"{name}={value}" for name, value in settings.items())]))
        published = [name for name, service in SERVICES.items() if "ports" in service]
        (folder / "ports.yml").write_text(
            "services:\n" + "".join(f"  {name}: {{ports: !reset []}}\n" for name in published)
        )
        self.options = (
            *("compose", "--project-name", "masked-logins-test", "--env-file", str(folder / "env")),
            *("--file", str(ROOT / "docker-compose.yml"), "--file", str(folder / "ports.yml")),
        )

    def __call__(self, *arguments: str) -> str:
        return done(docker(*self.options, *arguments))

    def query(self, sql: str) -> str:
        psql = ("psql", "-X", "-At", "-h", "127.0.0.1", "-U", "postgres", "-d", "logins", "-c", sql)
        return self("exec", "-T", "--env", f"PGPASSWORD={PASSWORD}", "postgres", *psql)

    def prometheus(self, query: str) -> list[dict]:
        """Asked from a container: the port is not published."""
        url = f"http://prometheus:9090/api/v1/query?{urlencode({'query': query})}"
        ask = f"import urllib.request; print(urllib.request.urlopen({url!r}).read().decode())"
        answer = self("run", "--rm", "--no-deps", "-T", "send", "python", "-c", ask)
        return json.loads(answer)["data"]["result"]

    def state(self, service: str) -> dict:
        identity = self("ps", "--all", "--quiet", service).strip()
        return json.loads(done(docker("inspect", identity)))[0]["State"]


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Compose:
    return Compose(tmp_path_factory.mktemp("compose"))


@pytest.fixture(scope="module")
def ran_once(images: set[str], compose: Compose) -> Iterator[Compose]:
    """After `docker compose up --build`, with a database of its own."""
    compose("--profile", "*", "down", "--volumes")
    compose("up", "--build", "--detach")
    compose("wait", "dbt")
    yield compose
    compose("--profile", "*", "down", "--volumes")


def test_a_password_may_contain_a_dollar_sign(compose: Compose):
    config = json.loads(compose("config", "--format", "json"))
    # `config` doubles each $, so that what it prints can be read as a compose file again.
    environment = config["services"]["postgres"]["environment"]
    assert environment["MIGRATOR_PASSWORD"] == PASSWORD.replace("$", "$$")


def test_one_service_builds_the_image():
    assert [name for name, service in SERVICES.items() if "build" in service] == ["migrate"]


def test_all_messages_are_landed_and_built_once(ran_once: Compose):
    assert ran_once.state("dbt")["ExitCode"] == 0
    assert "ERROR=0" in ran_once("logs", "dbt")
    assert ran_once.query("select count(*), count(distinct message_id) from raw.sqs_messages") == "1000|1000\n"
    outcomes = (
        "select (select count(*) from analytics.user_logins) + (select count(*) from analytics.rejected_messages)"
    )
    assert ran_once.query(outcomes) == "1000\n"


def test_no_program_runs_as_root_or_can_write_its_image(ran_once: Compose):
    for service in ("migrate", "send", "load", "dbt", "sqs"):
        identity = ran_once("ps", "--all", "--quiet", service).strip()
        (container,) = json.loads(done(docker("inspect", identity)))
        assert container["Config"]["User"] not in ("", "root", "0"), service
        assert container["HostConfig"]["ReadonlyRootfs"], service
        assert container["HostConfig"]["CapDrop"] == ["ALL"], service


@pytest.fixture(scope="module")
def watched(ran_once: Compose, images: set[str]) -> Compose:
    """With profile monitoring, whose services include those of profile follow."""
    services = ["loader", "dbt-follow", "prometheus", "postgres-exporter"]
    services += ["grafana"] if "grafana" in images else []
    ran_once("--profile", "monitoring", "up", "--detach", *services)
    return ran_once


def test_a_loader_that_follows_is_healthy_and_survives_a_restart_of_the_database(watched: Compose):
    def landed(messages: int) -> bool:
        return watched.query("select count(*) from raw.sqs_messages") == f"{messages}\n"

    until(lambda: watched.state("loader")["Health"]["Status"] == "healthy", 120)
    until(lambda: landed(2000), 120)  # `up` has run `send` once more
    watched("restart", "postgres")
    watched("run", "--rm", "--no-deps", "send")
    until(lambda: landed(3000), 120)


def test_prometheus_sees_the_loader_and_the_database(watched: Compose):
    def value(query: str) -> str:
        return until(lambda: watched.prometheus(query), 180)[0]["value"][1]

    until(lambda: value('queue_health_unaccounted{queue="login-queue"}') == "0", 180)
    assert value('up{job="loader"}') == "1"
    until(lambda: float(value("loader_landed_total")) > 0, 60)  # it asks now and then
    assert "collector failed" not in watched("logs", "postgres-exporter")


def test_a_loader_ends_in_good_order_when_it_is_stopped(watched: Compose):
    watched("stop", "loader")
    assert watched.state("loader")["ExitCode"] == 0
    assert "received " in watched("logs", "loader")


def test_down_with_every_profile_leaves_nothing(watched: Compose):
    watched("--profile", "*", "down")
    assert watched("--profile", "*", "ps", "--all", "--quiet") == ""


def test_on_citus_the_database_is_three_servers(images: set[str], tmp_path: Path):
    if "citus" not in images:
        pytest.skip(f"there is no {CITUS}")
    compose = Compose(tmp_path, CITUS=CITUS)
    compose("--profile", "*", "down", "--volumes")
    try:
        compose("--profile", "citus", "up", "--build", "--detach")
        compose("wait", "dbt")
        assert compose.state("dbt")["ExitCode"] == 0, compose("logs", "dbt")
        assert compose.query("select count(*) from pg_dist_node where shouldhaveshards") == "2\n"
        for table in ("raw.sqs_messages", "staging.int_messages__masked"):
            shards = f"select count(distinct nodename) from citus_shards where table_name = '{table}'::regclass"
            assert (table, compose.query(shards)) == (table, "2\n")
        assert compose.query("select count(*), count(distinct message_id) from raw.sqs_messages") == "1000|1000\n"
    finally:
        compose("--profile", "*", "down", "--volumes")

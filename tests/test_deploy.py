"""What deploy/ says must be true of the programs that it starts, watches and gives rights to."""

import contextlib
import functools
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import botocore.session
import psycopg2
import pytest
import yaml

from loader.aws import Lean
from loader.cli import main
from loader.load import FLUSH_BYTES, threads
from loader.metrics import Metrics
from loader.report import Report
from loader.sqs import BATCH
from local.stack import LOGINS
from tests.conftest import ROOT, Database
from tests.pipeline import dbt, land

DEPLOY = ROOT / "deploy"
MONITORING = DEPLOY / "monitoring"
PROMETHEUS = json.loads((MONITORING / "grafana" / "dashboard.json").read_text())["panels"][0]["datasource"]


class Template(yaml.SafeLoader):
    """CloudFormation: of `!Ref x` and other functions, the argument."""


def argument(loader: Template, tag: str, node: yaml.Node):
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True)


Template.add_multi_constructor("!", argument)


def documents(path, loader=yaml.SafeLoader):
    return list(yaml.load_all(path.read_text(), loader))


@functools.cache
def resources() -> dict[str, dict]:
    (template,) = documents(DEPLOY / "aws" / "pipeline.yaml", Template)
    return template["Resources"]


# Watching: dashboards and alerts rest on metrics that exist.


def metrics() -> set[str]:
    """Everything that loader and postgres_exporter show, and what Prometheus itself adds."""
    run = SimpleNamespace(
        report=Report(), batches=[], database=SimpleNamespace(there=SimpleNamespace(is_set=lambda: True))
    )
    names = {sample.name for metric in Metrics(run).collect() for sample in metric.samples}
    for query, details in documents(MONITORING / "queries.yaml")[0].items():
        names |= {f"{query}_{column}" for metric in details["metrics"] for column in metric}
    return names | {"up"}


def named_in(expression: str) -> set[str]:
    """The metrics of a PromQL expression: names that are no function, label or word of the language."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]|\b(by|without|on)\s*\([^)]*\)', " ", expression)
    return set(re.findall(r"\b[a-z_]\w*\b(?!\s*\()", bare)) - {"and", "or", "unless"}


def test_every_panel_shows_a_metric_that_exists():
    panels = json.loads((MONITORING / "grafana" / "dashboard.json").read_text())["panels"]
    shown = {
        panel["title"]: [named_in(target["expr"]) for target in panel["targets"]]
        for panel in panels
        if panel["datasource"] == PROMETHEUS
    }
    assert all(names and names <= metrics() for targets in shown.values() for names in targets), shown
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_every_data_source_of_the_dashboard_is_provisioned():
    panels = json.loads((MONITORING / "grafana" / "dashboard.json").read_text())["panels"]
    provisioned = documents(MONITORING / "grafana" / "datasources.yml")[0]["datasources"]
    assert {(panel["datasource"]["type"], panel["datasource"]["uid"]) for panel in panels} == {
        (source["type"], source["uid"]) for source in provisioned
    }


def alerts() -> dict[str, dict]:
    return {
        rule["alert"]: rule for group in documents(MONITORING / "alerts.yml")[0]["groups"] for rule in group["rules"]
    }


def test_every_alert_rests_on_metrics_that_exist_and_says_what_to_do():
    for name, rule in alerts().items():
        assert named_in(rule["expr"]) <= metrics(), name
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "remedy"}


def test_every_alert_is_seen_to_fire_and_to_stay_silent():
    tests = [test for case in documents(MONITORING / "alerts_test.yml")[0]["tests"] for test in case["alert_rule_test"]]
    assert {test["alertname"] for test in tests if test.get("exp_alerts")} == set(alerts())
    assert {test["alertname"] for test in tests if not test.get("exp_alerts")} == set(alerts())


@pytest.mark.promtool
def test_the_alert_rules_pass_their_own_tests():
    for command in ("check rules --lint=all", "test rules"):
        file = "alerts_test.yml" if command == "test rules" else "alerts.yml"
        result = subprocess.run(["promtool", *command.split(), MONITORING / file], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


# Rights: the policies allow what the loader calls, and no more.


def policy(name: str) -> list[dict]:
    return json.loads((DEPLOY / "aws" / f"iam-{name}.json").read_text())["Statement"]


def allowed_by(*policies: str) -> set[str]:
    return {action for name in policies for statement in policy(name) for action in statement["Action"]}


def test_the_policies_allow_what_the_loader_calls_and_no_more():
    source = "".join(path.read_text() for path in (ROOT / "loader").glob("*.py"))
    operations = botocore.session.get_session().get_service_model("sqs").operation_names
    called = {f"sqs:{name.removesuffix('Batch')}" for name in operations if f'"{name}"' in source}
    # SQS calls these with the caller's permissions where a queue has a customer's key.
    encryption = {"kms:Decrypt", "kms:GenerateDataKey"}
    others = {"cloudwatch:GetMetricStatistics"} if "get_metric_statistics" in source else set()
    allowed = allowed_by("loader", "redrive", "status")

    assert {"sqs:ReceiveMessage", "sqs:DeleteMessage"} <= called
    assert called | others <= allowed
    assert allowed - encryption <= called | others


def test_status_asks_for_no_more_than_to_read():
    assert allowed_by("status") == {"sqs:GetQueueAttributes", "sqs:GetQueueUrl", "cloudwatch:GetMetricStatistics"}


def test_the_dead_letter_queue_may_be_loaded_from_as_the_queue_may():
    """By who has both policies. The loader alone can see how many messages are there, and no more."""
    queue, dead_letters, _ = policy("loader")
    (redrive,) = policy("redrive")

    assert redrive["Resource"] == dead_letters["Resource"] == f"{queue['Resource']}-dlq"
    assert sorted(dead_letters["Action"] + redrive["Action"]) == queue["Action"]


def test_a_role_of_kubernetes_can_be_assumed_by_one_service_account():
    (statement,) = policy("trust")
    account = statement["Condition"]["StringEquals"]
    accounts = {
        f"system:serviceaccount:masked-logins:{each['metadata']['name']}"
        for each in documents(DEPLOY / "kubernetes" / "access.yaml")
        if each["kind"] == "ServiceAccount"
    }
    assert {value for key, value in account.items() if key.endswith(":sub")} <= accounts
    assert {value for key, value in account.items() if key.endswith(":aud")} == {"sts.amazonaws.com"}


def test_keda_does_not_act_as_the_loader_whose_role_trusts_the_loader_alone():
    (authentication,) = [
        document
        for document in documents(DEPLOY / "kubernetes" / "loader.yaml")
        if document["kind"] == "TriggerAuthentication"
    ]
    assert authentication["spec"]["podIdentity"].get("identityOwner", "keda") == "keda"


def test_the_template_has_the_policies_of_the_files():
    (redrive,) = resources()["RedriveRole"]["Properties"]["Policies"]
    assert [(each["Sid"], each["Action"]) for each in redrive["PolicyDocument"]["Statement"]] == [
        (each["Sid"], each["Action"]) for each in policy("redrive")
    ]
    statements = resources()["LoadFromQueue"]["Properties"]["PolicyDocument"]["Statement"]
    # The last one is `!If [HasQueueKey, {…}, …]`.
    statements = [statement if isinstance(statement, dict) else statement[1] for statement in statements]
    assert [(each["Sid"], set(each["Action"])) for each in statements] == [
        (each["Sid"], set(each["Action"])) for each in policy("loader")
    ]


@pytest.mark.parametrize(
    ("key", "taken"),
    [
        ("", True),
        ("arn:aws:kms:eu-central-1:111122223333:key/0a1b2c3d-0000-4000-8000-000000000000", True),
        ("arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab", True),
        ("arn:aws-cn:kms:cn-north-1:111122223333:key/0a1b2c3d-0000-4000-8000-000000000000", True),
        ("arn:aws:kms:eu-central-1:111122223333:alias/queue", False),
        ("alias/queue", False),
        ("0a1b2c3d-0000-4000-8000-000000000000", False),
    ],
)
def test_a_stack_takes_only_a_key_that_its_policies_can_allow(key: str, taken: bool):
    """SQS takes an alias as well; IAM does not, so that the loader would be refused at its first message."""
    (template,) = documents(DEPLOY / "aws" / "pipeline.yaml", Template)
    assert bool(re.fullmatch(template["Parameters"]["QueueKey"]["AllowedPattern"], key)) == taken


# Commands: every one that a manifest gives to a container is one that the image understands.


def commands():
    for service in documents(ROOT / "docker-compose.yml")[0]["services"].items():
        yield service[0], service[1].get("command", [])
    for file in ("loader", "migrate", "scheduled", "follow/dbt"):
        for document in documents(DEPLOY / "kubernetes" / f"{file}.yaml"):
            template = document["spec"].get("jobTemplate", document)["spec"].get("template", {})
            for container in template.get("spec", {}).get("containers", []):
                yield document["metadata"]["name"], container["command"]
    for name, resource in resources().items():
        for container in resource.get("Properties", {}).get("ContainerDefinitions", []):
            yield name, container["Command"]
    (command,) = re.findall(r"^CMD (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    yield "Dockerfile", json.loads(command)


def test_the_images_user_can_read_what_somebody_built_who_shares_no_files(tmp_path):
    copied = tmp_path / "app" / "deploy" / "aws"
    copied.mkdir(mode=0o700, parents=True)
    (copied / "rds-ca.pem").touch(mode=0o600)
    (copied.parent / "run").touch(mode=0o700)
    for command in re.findall(r"^RUN (.* /app)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE):
        subprocess.run(["sh", "-c", command.replace("/app", str(tmp_path / "app"))], check=True)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (copied, copied / "rds-ca.pem", copied.parent / "run")}
    assert modes == {"aws": 0o755, "rds-ca.pem": 0o644, "run": 0o755}


LOADERS = [(where, command[3:]) for where, command in commands() if command[:3] == ["python", "-m", "loader"]]


@pytest.mark.parametrize(("where", "arguments"), LOADERS, ids=[where for where, _ in LOADERS])
def test_the_loader_understands_its_command(where, arguments):
    command = main.commands[arguments[0]]
    command.make_parser(command.context_class(command)).parse_args(list(arguments[1:]))


def test_a_loader_has_memory_for_the_largest_messages():
    largest = resources()["Queue"]["Properties"]["MaximumMessageSize"]
    (workers,) = [option.default for option in main.commands["load"].params if option.name == "workers"]
    held = threads(workers, Lean.at_once) * FLUSH_BYTES + workers * BATCH * largest
    needed = 4 * held / 2**20  # one character beyond U+FFFF, and Python takes four bytes for each
    (deployment, *_) = documents(DEPLOY / "kubernetes" / "loader.yaml")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    kubernetes = container["resources"]["limits"]["memory"]
    ecs = resources()["LoaderTask"]["Properties"]["Memory"]

    # as much again for what is being parsed and copied, which is what was measured
    assert 2 * needed < int(kubernetes.removesuffix("Mi")) == int(ecs)


def test_metrics_are_served_where_they_are_looked_for():
    served = {a[a.index("--metrics-port") + 1] for _, a in LOADERS if "--metrics-port" in a}
    (scraped,) = [
        job for job in documents(MONITORING / "prometheus.yml")[0]["scrape_configs"] if job["job_name"] == "loader"
    ]
    (deployment, *_) = documents(DEPLOY / "kubernetes" / "loader.yaml")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (health,) = re.findall(r"127\.0\.0\.1:(\d+)/metrics", (DEPLOY / "Dockerfile").read_text())
    (task,) = resources()["LoaderTask"]["Properties"]["ContainerDefinitions"]
    (ecs,) = re.findall(r"127\.0\.0\.1:(\d+)/metrics", task["HealthCheck"]["Command"][-1])
    assert f"--metrics-port {ecs}" in " ".join(task["Command"])

    assert served == {
        health,
        ecs,
        str(scraped["dns_sd_configs"][0]["port"]),
        str(container["ports"][0]["containerPort"]),
    }


# The clock: Kubernetes and ECS do the same, as often, as the same login and for as long at most.


def by_cronjobs() -> dict[tuple, tuple]:
    jobs = {}
    for job in documents(DEPLOY / "kubernetes" / "scheduled.yaml"):
        run = job["spec"]["jobTemplate"]["spec"]
        (container,) = run["template"]["spec"]["containers"]
        (login,) = [source["secretRef"]["name"] for source in container["envFrom"]]
        jobs[tuple(container["command"])] = job["spec"]["schedule"], run["activeDeadlineSeconds"], login
    return jobs


def by_schedules() -> dict[tuple, tuple]:
    """A task has no deadline of its own, so that its command begins with one."""
    schedules = {}
    for schedule in of_type("AWS::Scheduler::Schedule").values():
        target = schedule["Target"]
        (container,) = resources()[target["EcsParameters"]["TaskDefinitionArn"]]["Properties"]["ContainerDefinitions"]
        (override,) = json.loads(target.get("Input", "{}")).get("containerOverrides", [{"name": container["Name"]}])
        assert override["name"] == container["Name"]
        timeout, seconds, *command = override.get("command", container["Command"])
        assert timeout == "timeout"
        schedules[tuple(command)] = as_cron(schedule["ScheduleExpression"]), int(seconds), login_of(container)
    return schedules


def of_type(kind: str) -> dict[str, dict]:
    return {name: resource["Properties"] for name, resource in resources().items() if resource["Type"] == kind}


def as_cron(expression: str) -> str:
    if every := re.fullmatch(r"rate\((\d+) minutes\)", expression):
        return f"*/{every[1]} * * * *"
    minute, hour = re.fullmatch(r"cron\((\S+) (\S+) \* \* \? \*\)", expression).groups()
    return f"{minute} {hour} * * *"


def login_of(container: dict) -> str:
    """The last part of the secret's name, which Kubernetes calls its own secret."""
    assert [secret["Name"] for secret in container["Secrets"]] == ["PGUSER", "PGPASSWORD"]
    (secret,) = {re.match(r"\$\{(\w+)\}", secret["ValueFrom"])[1] for secret in container["Secrets"]}
    return resources()[secret]["Properties"]["Name"].removeprefix("${AWS::StackName}/")


def test_ecs_does_by_the_clock_what_kubernetes_does():
    assert by_schedules() == by_cronjobs()


def test_the_clock_may_start_what_it_starts_and_nothing_else():
    started = {
        each["Target"]["EcsParameters"]["TaskDefinitionArn"] for each in of_type("AWS::Scheduler::Schedule").values()
    }
    run, hand_over = resources()["SchedulerRole"]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]
    assert (run["Action"], set(run["Resource"])) == ("ecs:RunTask", started)
    assert (hand_over["Action"], hand_over["Resource"]) == ("iam:PassRole", "TaskExecutionRole.Arn")
    assert hand_over["Condition"] == {"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}}


def test_every_login_that_a_program_uses_is_created_and_readable():
    created = {properties["Name"]: name for name, properties in of_type("AWS::SecretsManager::Secret").items()}
    used = {
        each["remoteRef"]["key"].replace("masked-logins/", "${AWS::StackName}/")
        for document in documents(DEPLOY / "kubernetes" / "secrets.yaml")
        for each in document["spec"].get("data", [])
    }
    (readable,) = resources()["TaskExecutionRole"]["Properties"]["Policies"]
    (statement,) = readable["PolicyDocument"]["Statement"]
    assert set(created) == used
    assert set(statement["Resource"]) == {"Database.MasterUserSecret.SecretArn", *created.values()}


def test_the_bootstrap_task_sets_the_password_of_every_login_that_has_a_secret():
    (container,) = resources()["BootstrapTask"]["Properties"]["ContainerDefinitions"]
    passwords = {
        re.match(r"\$\{(\w+)\}", secret["ValueFrom"])[1]: secret["Name"]
        for secret in container["Secrets"]
        if secret["Name"] not in ("PGUSER", "PGPASSWORD")
    }
    names = {
        name: json.loads(properties["GenerateSecretString"]["SecretStringTemplate"])["username"]
        for name, properties in of_type("AWS::SecretsManager::Secret").items()
    }
    assert passwords == {name: f"{login.upper()}_PASSWORD" for name, login in names.items()}
    assert set(passwords.values()) <= set(re.findall(r"\\getenv \w+ (\w+)", (DEPLOY / "bootstrap.sql").read_text()))


@pytest.mark.kubectl
def test_dbt_that_follows_takes_the_place_of_its_build_by_the_clock(tmp_path):
    main = shutil.copytree(DEPLOY / "kubernetes", tmp_path / "kubernetes") / "kustomization.yaml"
    (line,) = re.findall(r"^# +(components: .*)$", (main.parent / "follow" / "kustomization.yaml").read_text(), re.M)
    main.write_text(f"{main.read_text()}\n{line}\n")
    made = built(main.parent)
    # in a cluster that has the CronJob, `kubectl apply` stops it; one that were only left out would go on
    assert made["CronJob", "dbt-build"]["spec"]["suspend"] is True
    assert "suspend" not in made["CronJob", "dbt-freshness"]["spec"]
    (usual,) = made["CronJob", "dbt-freshness"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    (container,) = made["Deployment", "dbt-follow"]["spec"]["template"]["spec"]["containers"]
    same = ("image", "envFrom", "securityContext", "volumeMounts")
    assert [container[key] for key in same] == [usual[key] for key in same]


def built(folder: Path) -> dict[tuple[str, str], dict]:
    made = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True).stdout
    return {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(made)}


WORKLOADS = {"Deployment", "Job", "CronJob"}


@pytest.fixture
def pods(tmp_path) -> dict[str, dict]:
    """The pod template of each program, as kustomize makes it."""
    main = shutil.copytree(DEPLOY / "kubernetes", tmp_path / "kubernetes") / "kustomization.yaml"
    main.write_text(f"{main.read_text()}\ncomponents: [follow]\n")
    specs = {name: document["spec"] for (kind, name), document in built(main.parent).items() if kind in WORKLOADS}
    return {name: spec.get("jobTemplate", {"spec": spec})["spec"]["template"] for name, spec in specs.items()}


@pytest.mark.kubectl
def test_each_program_has_the_settings_and_one_login_of_its_own(pods):
    logins = {}
    for name, pod in pods.items():
        (container,) = pod["spec"]["containers"]
        settings, secret = container["envFrom"]
        assert settings["configMapRef"]["name"].startswith("settings-"), name
        logins[name] = secret["secretRef"]["name"]
    assert logins == {
        **{"migrate": "migrator", "loader": "loader", "purge": "retention", "attest": "monitor"},
        **dict.fromkeys(("dbt-build", "dbt-freshness", "dbt-follow"), "transformer"),
    }


@pytest.mark.kubectl
def test_no_deployment_selects_the_pods_of_another_program(pods):
    """kubectl logs deploy/dbt-follow would show a build's."""
    names = [pod["metadata"]["labels"]["app.kubernetes.io/name"] for pod in pods.values()]
    assert [names.count(name) for name in ("loader", "dbt-follow")] == [1, 1]


@pytest.mark.kubectl
def test_an_environment_has_the_logins_of_its_own_stack_and_reaches_its_own_database(tmp_path):
    main = shutil.copytree(DEPLOY / "kubernetes", tmp_path / "kubernetes") / "kustomization.yaml"
    text = main.read_text().replace("stack=masked-logins ", "stack=masked-logins-test ")
    main.write_text(text.replace("database_network=10.0.0.0/8 ", "database_network=192.168.0.0/16 "))
    made = built(main.parent)
    keys = {
        each["remoteRef"]["key"]
        for (kind, _), document in made.items()
        if kind == "ExternalSecret"
        for each in document["spec"]["data"]
    }
    secrets = of_type("AWS::SecretsManager::Secret").values()
    assert keys == {each["Name"].replace("${AWS::StackName}", "masked-logins-test") for each in secrets}
    _, database = made["NetworkPolicy", "names-and-the-database"]["spec"]["egress"]
    assert database["to"] == [{"ipBlock": {"cidr": "192.168.0.0/16"}}]


# A release: the migration has run before a new loader starts.


def test_kubernetes_applies_everything_but_the_programs_first():
    first, second = [], []
    for name in ("access", "secrets", "migrate", "loader", "scheduled", "follow/dbt"):
        for document in documents(DEPLOY / "kubernetes" / f"{name}.yaml"):
            labels = document["metadata"].get("labels", {})
            is_program = labels.get("app.kubernetes.io/component") == "program"
            (second if is_program else first).append(document["kind"])
    assert {"Namespace", "ExternalSecret", "Job"} <= set(first)
    assert not {"Deployment", "CronJob", "ScaledObject"} & set(first)
    assert {"Deployment", "CronJob", "ScaledObject"} <= set(second)


def release() -> list[str]:
    """The commands of a release, as somebody pastes them."""
    return re.findall(r"^#   (kubectl .*)$", (DEPLOY / "kubernetes" / "kustomization.yaml").read_text(), re.M)


@pytest.mark.parametrize("failing", [None, "--selector", "jsonpath", "condition=complete"])
def test_pasted_commands_start_no_program_before_its_migration(tmp_path, failing):
    """A shell goes on with the next line, whatever became of the one before."""
    (tmp_path / "kubectl").write_text(f'#!/bin/sh\necho "$*"\ncase "$*" in *{failing}*) exit 1; esac\n')
    (tmp_path / "kubectl").chmod(0o755)
    shell = {"PATH": f"{tmp_path}:{os.defpath}"}
    done = subprocess.run(["sh"], input="\n".join(release()), env=shell, capture_output=True, text=True)
    assert ("apply -k deploy/kubernetes" in done.stdout.splitlines()) == (failing is None)


class Kubernetes(BaseHTTPRequestHandler):
    """As much of an API server as `kubectl wait` asks: one job, with the conditions that are set here."""

    conditions: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        conditions = [{"type": each, "status": "True"} for each in self.conditions]
        job = {"kind": "Job", "apiVersion": "batch/v1", "metadata": {"name": "migrate", "namespace": "masked-logins"}}
        job["metadata"] |= {"resourceVersion": "1", "uid": "1"}
        verbs = ["get", "list", "watch"]
        resource = {"name": "jobs", "singularName": "job", "namespaced": True, "kind": "Job", "verbs": verbs}
        version = {"groupVersion": "batch/v1", "version": "v1"}
        path, _, options = self.path.partition("?")
        answer = {
            "/api": {"kind": "APIVersions", "versions": []},
            "/apis": {
                "kind": "APIGroupList",
                "groups": [{"name": "batch", "versions": [version], "preferredVersion": version}],
            },
            "/apis/batch/v1": {"kind": "APIResourceList", "groupVersion": "batch/v1", "resources": [resource]},
            "/apis/batch/v1/namespaces/masked-logins/jobs": {
                "kind": "JobList",
                "apiVersion": "batch/v1",
                "metadata": {"resourceVersion": "1"},
                "items": [job | {"status": {"conditions": conditions}}],
            },
            "/apis/batch/v1/namespaces/masked-logins/jobs/migrate": job | {"status": {"conditions": conditions}},
        }.get(path)
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if "watch=true" in options:
            return time.sleep(0.1)  # no event; then kubectl lists again
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.kubectl
@pytest.mark.parametrize(
    ("conditions", "ends_well"),
    [
        pytest.param(["SuccessCriteriaMet", "Complete"], True, id="completed"),
        pytest.param(["FailureTarget", "Failed"], False, id="failed"),
    ],
)
def test_waiting_for_the_migration_ends_when_it_fails_too(tmp_path, monkeypatch, conditions, ends_well):
    waits = [command for command in release() if " wait " in command]
    monkeypatch.setattr(Kubernetes, "conditions", conditions)
    with ThreadingHTTPServer(("127.0.0.1", 0), Kubernetes) as server:
        threading.Thread(target=server.serve_forever).start()
        client = f"kubectl --server=http://127.0.0.1:{server.server_port} --cache-dir={tmp_path}"
        script = "\n".join(waits).removesuffix("&&").replace("kubectl", client).replace("--timeout=30s", "--timeout=1s")
        try:
            done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=20)
        finally:
            server.shutdown()
    assert (done.returncode == 0) == ends_well, done.stderr
    assert "condition met" in done.stdout


# Alarms on AWS: each part of the clock's work is missed when it does not succeed, whatever the reason.

CONDITION = r'\$\.([\w.]+) = ("[^"]*"|\d+)'


def is_counted(pattern: str, line: str) -> bool:
    """As CloudWatch does: a phrase, or conditions on a line of JSON."""
    if not pattern.startswith("{"):
        return json.loads(pattern) in line
    assert re.fullmatch(rf"\{{ {CONDITION}( && {CONDITION})* \}}", pattern)
    event = json.loads(line) if line.startswith("{") else {}
    found = [
        (functools.reduce(lambda part, key: part.get(key, {}), path.split("."), event), json.loads(wanted))
        for path, wanted in re.findall(CONDITION, pattern)
    ]
    return all(value == wanted for value, wanted in found)


def counted_by_alarms(database: Database) -> dict[str, int]:
    """What the metrics are after each scheduled command has run once, as the image runs it."""
    logins = {"transformer": "transformer_user", "retention": "retention_user", "monitor": "monitor_user"}
    lines = []
    for command, (_, _, login) in by_schedules().items():
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        project = {"DBT_PROJECT_DIR": "dbt_project", "DBT_PROFILES_DIR": "dbt_project", "PGSSLMODE": "disable"}
        env = database.env(logins[login]) | project | {"PATH": path}
        lines += subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    filters = [
        (metric["MetricName"], each["FilterPattern"])
        for each in of_type("AWS::Logs::MetricFilter").values()
        for metric in each["MetricTransformations"]
    ]
    return {name: sum(is_counted(pattern, line) for line in lines) for name, pattern in filters}


def test_alarms_miss_what_fails_and_hear_of_what_succeeds(database):
    missed_when_less_than_one = {
        alarm["MetricName"]
        for alarm in of_type("AWS::CloudWatch::Alarm").values()
        if (alarm["Namespace"], alarm["Statistic"], alarm["ComparisonOperator"], alarm["Threshold"])
        == ("MaskedLogins/${AWS::StackName}", "Sum", "LessThanThreshold", 1)
        and alarm["TreatMissingData"] == "breaching"  # a task that never starts prints nothing
    }
    with contextlib.closing(database.connect("postgres")) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("revoke usage on schema masking from transformer")
            assert counted_by_alarms(database) == dict.fromkeys(missed_when_less_than_one, 0)
            cursor.execute("grant usage on schema masking to transformer")
    land(database, ["{}"])
    assert counted_by_alarms(database) == dict.fromkeys(missed_when_less_than_one, 1)
    assert len(missed_when_less_than_one) == len(by_schedules())


def test_the_alarm_for_freshness_says_how_old_the_newest_message_is_then():
    sources = (ROOT / "dbt_project" / "models" / "boundary" / "_boundary__sources.yml").read_text()
    assert re.findall(r"error_after: (.*?\})", sources) == ["{count: 1, period: day}"]
    assert "no message has landed for a day" in resources()["FreshnessAlarm"]["Properties"]["AlarmDescription"]


# Environments.


def test_compose_asks_for_every_password_that_bootstrap_takes():
    taken = set(re.findall(r"\\getenv \w+ (\w+_PASSWORD)", (DEPLOY / "bootstrap.sql").read_text())) - {"LOGIN_PASSWORD"}
    asked = documents(ROOT / "docker-compose.yml")[0]["services"]["postgres"]["environment"]
    example = (ROOT / ".env.example").read_text()

    assert taken == {name for name in asked if name.endswith("_PASSWORD")} - {"POSTGRES_PASSWORD"}
    assert {f"{login.upper()}_PASSWORD" for login in LOGINS} <= taken
    assert all(re.search(rf"^(# )?{name}=", example, re.MULTILINE) for name in asked)


def test_compose_gives_no_service_but_the_databases_more_than_it_needs():
    services = documents(ROOT / "docker-compose.yml")[0]["services"]
    databases = {"postgres", "citus-worker-1", "citus-worker-2"}  # their entrypoint changes owners, then its own user
    closed = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
    open_ = {name for name, service in services.items() if not closed.items() <= service.items()}
    assert open_ == databases


def test_nothing_defaults_to_production():
    profile = yaml.safe_load((ROOT / "dbt_project" / "profiles.yml").read_text())["masked_logins"]
    assert profile["target"] == "dev"
    assert "localhost" not in str(profile["outputs"]["prod"])


def test_production_wants_the_servers_certificate(database):
    with pytest.raises(AssertionError, match="server does not support SSL"):
        dbt(database, "show", "--inline", "select 1 as one", "--target", "prod")


def test_there_is_one_version_number():
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    (tag,) = [image["newTag"] for image in documents(DEPLOY / "kubernetes" / "kustomization.yaml")[0]["images"]]
    newest, *_ = re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert {tag, newest} == {version}


def test_actions_are_named_by_commit():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    used = re.findall(r"uses: (.+)$", workflow, re.MULTILINE)
    assert used
    assert [each for each in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}  # v[\d.]+", each)] == []


@pytest.mark.parametrize(
    ("run", "manifest", "built"),
    [
        pytest.param("1", True, True, id="the-newest"),
        pytest.param("1", False, False, id="expired"),
        pytest.param("", False, False, id="none-yet"),
    ],
)
def test_a_pull_request_is_built_whether_or_not_main_has_left_a_manifest(tmp_path, run, manifest, built):
    (workflow,) = documents(ROOT / ".github" / "workflows" / "ci.yml")
    steps = [step["run"] for step in workflow["jobs"]["dbt"]["steps"] if "state" in step.get("run", "")]
    download = "mkdir state; touch state/manifest.json" if manifest else "exit 1"
    programs = {"gh": f'case "$2" in list) echo "{run}";; download) {download};; esac', "make": 'echo "$*"'}
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    shell = {"PATH": f"{tmp_path}:{os.defpath}"}
    for step in steps:
        done = subprocess.run(["bash", "-ec", step], cwd=tmp_path, env=shell, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert ("--select" in done.stdout) == built


# Logs in Elasticsearch: Filebeat's configuration and the saved search rest on lines that the programs really write.


def test_the_saved_search_finds_a_refused_message_in_the_loaders_log(database, queue):
    sent = queue.client.send_message(QueueUrl=queue.url, MessageBody="x")["MessageId"]
    with contextlib.closing(database.connect("postgres")) as connection, connection, connection.cursor() as cursor:
        cursor.execute("alter table raw.sqs_messages add constraint refuse check (body <> 'x')")
    loader = [sys.executable, "-m", "loader", "load", "--log-format", "json", "--queue-name", queue.name]
    options = ["--max-messages", "1"]
    log = subprocess.run([*loader, *options], cwd=ROOT, env=database.env("loader_user"), capture_output=True, text=True)
    lines = [json.loads(line) for line in log.stderr.splitlines() if line.startswith("{")]

    _, search = map(json.loads, (MONITORING / "elk" / "kibana.ndjson").read_text().splitlines())
    query = json.loads(search["attributes"]["kibanaSavedObjectMeta"]["searchSourceJSON"])["query"]["query"]
    field, value = re.fullmatch(r'masked_logins\.(\w+) : "(.+)"', query).groups()
    (found,) = [line for line in lines if line.get(field) == value]
    assert {column.removeprefix("masked_logins.") for column in search["attributes"]["columns"]} <= found.keys()
    assert found["message_id"] == sent


def test_filebeat_reads_the_time_of_every_line(database):
    """Go's layout of a time is 2006-01-02 15:04:05, whose fraction has as many digits as the nines."""
    formats = {"2006": "%Y", "01": "%m", "02": "%d", "15": "%H", "04": "%M", "05": "%S", "-07:00": "%z", "Z": "Z"}
    (filebeat,) = documents(MONITORING / "elk" / "filebeat.yml")
    assert filebeat["processors"][0]["decode_json_fields"]["target"] == "masked_logins"
    stamps = {each["timestamp"]["field"]: each["timestamp"] for each in filebeat["processors"][1:]}

    def read(stamp: dict, text: str) -> datetime:
        (layout,) = stamp["layouts"]
        date, time = layout.split("T")
        clock, zone = re.fullmatch(r"([\d:]+)\.9+(.+)", time).groups()
        parts = [*date.split("-"), *clock.split(":")]
        year, month, day, hour, minute, second = (formats[part] for part in parts)
        return datetime.strptime(text, f"{year}-{month}-{day}T{hour}:{minute}:{second}.%f{formats[zone]}")

    for stamp in stamps.values():
        assert all(read(stamp, example) for example in stamp["test"])
    report = io.StringIO()
    with contextlib.redirect_stderr(report):
        Report("json").say("event")
    assert read(stamps["masked_logins.at"], json.loads(report.getvalue())["at"])
    command = [Path(sys.executable).with_name("dbt"), "--log-format", "json", "parse"]
    project = ["--project-dir", "dbt_project", "--profiles-dir", "dbt_project"]
    env = database.env("transformer_user")
    dbt_log = subprocess.run([*command, *project], cwd=ROOT, env=env, capture_output=True, text=True).stdout
    written = [json.loads(line)["info"]["ts"] for line in dbt_log.splitlines() if line.startswith("{")]
    assert written
    assert all(read(stamps["masked_logins.info.ts"], text) for text in written)


def test_filebeat_reads_logs_that_are_shorter_than_a_kilobyte():
    """From 9 on, it waits until a file is as long as what it knows files by, 1,024 bytes: purge writes one line."""
    (filebeat,) = documents(MONITORING / "elk" / "filebeat.yml")
    assert filebeat["filebeat.inputs"][0].get("prospector.scanner.fingerprint.length", 1024) == 64  # its minimum


# What deploy/README.md gives to other tools.

README = (DEPLOY / "README.md").read_text()


def test_every_way_to_run_it_ends_with_alarms_that_notify():
    """Without Live=yes, nobody hears of messages in the dead-letter queue, and the database can be deleted."""
    live = [name for name, each in of_type("AWS::CloudWatch::Alarm").items() if each.get("ActionsEnabled")]
    assert {"OldestMessageAlarm", "DeadLetterAlarm", "StorageAlarm"} <= set(live)
    (on_aws,) = re.findall(r"^4\. \*\*Start\.\*\*(?:.*\n)+?\n", README, re.MULTILINE)
    (on_kubernetes,) = re.findall(r"^\*\*On Kubernetes\*\*(?:.*\n)+?(?=\| policy)", README, re.MULTILINE)
    assert "`Live=yes`" in on_kubernetes
    assert "Live=yes`" in on_aws


def test_it_says_which_operators_the_cluster_has_to_have():
    own = r"([a-z]+(\.k8s\.io)?/)?v\d+"
    kinds = {
        document["apiVersion"]
        for name in ("access", "secrets", "migrate", "loader", "scheduled")
        for document in documents(DEPLOY / "kubernetes" / f"{name}.yaml")
    }
    assert {each for each in kinds if not re.fullmatch(own, each)} == {"keda.sh/v1alpha1", "external-secrets.io/v1"}
    (needs,) = re.findall(r"They need Docker,\n(?:.+\n)+", README)
    assert "KEDA (2.13 or newer), External Secrets (0.16 or newer)" in needs


def test_it_says_how_many_connections_a_persons_login_has():
    (limit,) = re.findall(r"\(:'login_name', .*, (\d+)\)", (DEPLOY / "bootstrap.sql").read_text())
    assert f"as an analyst (`make login NAME=ada`), who has {limit} connections" in README


def test_a_task_of_more_than_ten_minutes_is_waited_for(tmp_path):
    """`aws ecs wait` looks a hundred times, every six seconds, and then fails."""
    (functions,) = re.findall(r"^ {7}output\(\) .*?^ {7}\}\n", README, re.MULTILINE | re.DOTALL)
    script = """#!/bin/sh
        case "$1 $2" in
        "ecs wait") echo >> waits; test "$(wc -l < waits)" -eq 3;;
        "ecs describe-tasks") test "$(wc -l < waits)" -eq 3 && echo 0;;
        *) echo id;;
        esac"""
    (tmp_path / "aws").write_text(script)
    (tmp_path / "aws").chmod(0o755)
    shell = {"PATH": f"{tmp_path}:{os.defpath}"}
    done = subprocess.run(["sh", "-c", f"{functions}run MigrateTask"], cwd=tmp_path, env=shell, capture_output=True)
    assert done.stdout == b"0\n"


def test_a_login_of_vaults_can_do_what_its_role_may(database, queue):
    vault, create, drop = re.findall(r"^ +((?:create|drop) role (?:vault|\"\{\{name\}\}\").*)$", README, re.MULTILINE)
    values = {"{{name}}": "v-loader-1", "{{password}}": "p", "{{expiration}}": "2100-01-01 00:00:00+00", "…": "v"}
    queue.client.send_message(QueueUrl=queue.url, MessageBody="{}")

    env = database.env("loader_user")
    server = {"host": env["PGHOST"], "port": env["PGPORT"], "dbname": env["PGDATABASE"]}

    def run(connection, statement: str) -> None:
        for name, value in values.items():
            statement = statement.replace(name, value)
        with contextlib.closing(connection), connection, connection.cursor() as cursor:
            cursor.execute(statement)

    def as_vault(statement: str) -> None:
        run(psycopg2.connect(user="vault", password="v", **server), statement)

    run(database.connect("postgres"), vault)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: run(database.connect("postgres"), "drop owned by vault; drop role vault"))
        as_vault(create)
        stack.callback(as_vault, drop)
        loader = [sys.executable, "-m", "loader", "load", "--queue-name", queue.name, "--max-messages", "1"]
        login = {"PGUSER": "v-loader-1", "PGPASSWORD": "p"}
        result = subprocess.run(loader, cwd=ROOT, env=env | login, capture_output=True, text=True)
        assert result.stdout.startswith("received 1: landed 1, "), result.stderr


def test_the_pipeline_of_gitlab_is_one_and_calls_targets_that_exist(tmp_path):
    (block,) = re.findall(r"```yaml\n(# \.gitlab-ci\.yml\n.*?)```", README, re.DOTALL)
    (tmp_path / ".gitlab-ci.yml").write_text(block)
    check = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.gitlab-ci"]
    result = subprocess.run([*check, tmp_path / ".gitlab-ci.yml"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (jenkins,) = re.findall(r"```groovy\n(.*?)```", README, re.DOTALL)
    assert set(re.findall(r"\bmake ([a-z-]+)", block + jenkins)) == {"lint", "test"} <= set(targets)

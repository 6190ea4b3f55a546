"""The CloudFormation stack, created on MiniStack: an emulator, so that what AWS itself checks is left to cfn-lint."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from typing import Any

import boto3
import pytest

from local.processes import free_port, wait
from local.stack import answers
from tests.conftest import ROOT, Database
from tests.loading import Loading, until
from tests.test_lambda import received, running, settle

TEMPLATE = (ROOT / "deploy" / "aws" / "pipeline.yaml").read_text()
# What MiniStack 1.5.33 cannot do: it has no ARN of the master user's secret, and no text where a number is expected.
GAPS = {
    "!GetAtt Database.MasterUserSecret.SecretArn": "!Ref MigratorLogin",
    "Database.MasterUserSecret.SecretArn": "MigratorLogin",
    "!Ref Loaders": "1",
}
HOST = "127.0.0.1"
ACCOUNTS = count(1)
# A stack's queue has a name of its own in AWS. Its messages land under the one that the event is declared with.
DECLARED = "login-queue"


class Aws:
    """An account on the emulator, which takes an access key of twelve digits for the account's number."""

    def __init__(self, port: int, account: str):
        self.env = {
            "AWS_ENDPOINT_URL": f"http://{HOST}:{port}",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_ACCESS_KEY_ID": account,
            "AWS_SECRET_ACCESS_KEY": "local",
        }
        self.template = TEMPLATE
        for gap, instead in GAPS.items():
            assert gap in self.template
            self.template = self.template.replace(gap, instead)
        ec2 = self.client("ec2")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        blocks = ("10.0.1.0/24", "10.0.2.0/24")
        subnets = [ec2.create_subnet(VpcId=vpc, CidrBlock=block)["Subnet"]["SubnetId"] for block in blocks]
        self.parameters = {
            "Image": "111122223333.dkr.ecr.eu-central-1.amazonaws.com/masked-logins:2",
            "MigrationImage": "111122223333.dkr.ecr.eu-central-1.amazonaws.com/masked-logins:2",
            "Vpc": vpc,
            "Subnets": ",".join(subnets),
            "AlarmTopic": self.client("sns").create_topic(Name="alarms")["TopicArn"],
        }

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.env["AWS_ENDPOINT_URL"],
            region_name=self.env["AWS_DEFAULT_REGION"],
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
        )

    def deploy(self, stack: str, template: str | None = None, *, update: bool = False, **parameters: str) -> str:
        """Creates or updates a stack; the status it ends with."""
        cloudformation = self.client("cloudformation")
        (cloudformation.update_stack if update else cloudformation.create_stack)(
            StackName=stack,
            TemplateBody=template or self.template,
            Capabilities=["CAPABILITY_IAM"],
            Parameters=[
                {"ParameterKey": name, "ParameterValue": value}
                for name, value in (self.parameters | parameters).items()
            ],
        )
        return until(lambda: self.ended(stack))

    def ended(self, stack: str) -> str | None:
        (found,) = self.client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
        return None if found["StackStatus"].endswith("IN_PROGRESS") else found["StackStatus"]

    def outputs(self, stack: str) -> dict[str, str]:
        (found,) = self.client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
        return {output["OutputKey"]: output["OutputValue"] for output in found["Outputs"]}

    def resources(self, stack: str) -> dict[str, str]:
        """Physical ids by logical ones."""
        found = self.client("cloudformation").describe_stack_resources(StackName=stack)["StackResources"]
        return {each["LogicalResourceId"]: each["PhysicalResourceId"] for each in found}

    def container(self, stack: str, task: str) -> dict:
        """The container that a task definition of this stack was registered with."""
        arn = self.resources(stack)[task]
        registered = self.client("ecs").describe_task_definition(taskDefinition=arn)["taskDefinition"]
        (container,) = registered["containerDefinitions"]
        return container


@pytest.fixture(scope="module")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Its port."""
    port, tmp_path = free_port(HOST, 0), tmp_path_factory.mktemp("ministack")
    settings = {
        "PATH": os.defpath,
        "GATEWAY_PORT": str(port),
        "BIND_HOST": HOST,
        "MINISTACK_HOST": HOST,
        "LOG_LEVEL": "WARNING",
        "TMPDIR": str(tmp_path),
    }
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "ministack"], cwd=tmp_path, env=settings, stdout=log, stderr=log
        )
    try:
        wait(lambda: answers(port), "MiniStack does not start")
        yield port
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def aws(ministack: int) -> Aws:
    """An account of the test's own."""
    return Aws(ministack, f"{next(ACCOUNTS):012}")


def send(aws: Aws, url: str, messages: int) -> None:
    for start in range(0, messages, 10):
        entries = [{"Id": str(n), "MessageBody": json.dumps({"number": start + n})} for n in range(10)]
        aws.client("sqs").send_message_batch(QueueUrl=url, Entries=entries)


def queues_in_raw(database: Database) -> list[tuple]:
    with contextlib.closing(database.connect("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("select distinct queue from raw.sqs_messages")
        return cursor.fetchall()


@pytest.mark.parametrize("run_on", ["ecs", "kubernetes"])
def test_a_stack_is_created_and_its_queue_is_drained(aws: Aws, database: Database, run_on: str):
    assert aws.deploy("production", RunOn=run_on) == "CREATE_COMPLETE"
    url = aws.outputs("production")["QueueUrl"]
    send(aws, url, 50)

    settings = {"LOADER_QUEUE_URL": url, "LOADER_QUEUE_NAME": DECLARED}
    if run_on == "ecs":
        container = aws.container("production", "LoaderTask")
        settings = {each["name"]: each["value"] for each in container["environment"]}
        settings = {name: value for name, value in settings.items() if not name.startswith("PG")}
        assert settings.keys() == {"AWS_DEFAULT_REGION", "LOADER_QUEUE_NAME", "LOADER_QUEUE_URL"}
    drained = subprocess.run(
        [sys.executable, "-m", "loader", "load"],
        cwd=ROOT,
        env=database.env("loader_user") | aws.env | settings,
        capture_output=True,
        text=True,
    )

    assert drained.returncode == 0, drained.stderr
    assert drained.stdout.startswith("received 50: landed 50, ")
    assert queues_in_raw(database) == [(DECLARED,)]


def test_a_stack_with_lambda_drains_its_queue_with_the_password_of_its_secret(aws: Aws, database: Database):
    assert aws.deploy("production", RunOn="lambda") == "CREATE_COMPLETE"
    resources = aws.resources("production")
    url = aws.outputs("production")["QueueUrl"]
    functions, sqs = aws.client("lambda"), aws.client("sqs")
    function = functions.get_function_configuration(FunctionName=resources["LoaderFunction"])
    (trigger,) = functions.list_event_source_mappings(FunctionName=resources["LoaderFunction"])["EventSourceMappings"]
    assert trigger["EventSourceArn"] == aws.outputs("production")["QueueArn"]
    assert trigger["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert function["ImageConfigResponse"]["ImageConfig"]["Command"] == ["loader.lambda_function.handler"]
    assert function["ImageConfigResponse"]["ImageConfig"]["EntryPoint"] == ["python", "-m", "awslambdaric"]

    login = database.env("loader_user")
    secret = function["Environment"]["Variables"]["LOADER_SECRET"]
    password = {"username": login.pop("PGUSER"), "password": login.pop("PGPASSWORD")}
    aws.client("secretsmanager").put_secret_value(SecretId=secret, SecretString=json.dumps(password))
    send(aws, url, 30)
    name = {"LOADER_QUEUE_NAME": function["Environment"]["Variables"]["LOADER_QUEUE_NAME"]}
    with running(login | aws.env | name | {"LOADER_SECRET": secret}) as process:
        loading = Loading(database, sqs, url, {})
        while sum(loading.waiting()):
            records = received(loading)
            settle(loading, records, process.invoke(*records) if records else [])

    assert loading.query("select count(*), count(distinct message_id) from raw.sqs_messages") == [(30, 30)]
    assert queues_in_raw(database) == [(DECLARED,)]


@pytest.mark.parametrize("run_on", ["ecs", "lambda"])
def test_the_dead_letters_of_a_stack_land_by_a_task_of_it(aws: Aws, database: Database, run_on: str):
    assert aws.deploy("production", RunOn=run_on) == "CREATE_COMPLETE"
    send(aws, aws.resources("production")["DeadLetters"], 20)
    container = aws.container("production", "RedriveTask")
    settings = {each["name"]: each["value"] for each in container["environment"] if not each["name"].startswith("PG")}

    done = subprocess.run(
        [sys.executable, *container["command"][1:]],
        cwd=ROOT,
        env=database.env("loader_user") | aws.env | settings,
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("received 20: landed 20, ")
    assert queues_in_raw(database) == [(DECLARED,)]


def test_both_queues_refuse_requests_without_tls(aws: Aws):
    aws.deploy("production")
    sqs, resources = aws.client("sqs"), aws.resources("production")
    for name in ("Queue", "DeadLetters"):
        wanted = {"QueueUrl": resources[name], "AttributeNames": ["Policy", "QueueArn"]}
        attributes = sqs.get_queue_attributes(**wanted)["Attributes"]
        (statement,) = json.loads(attributes["Policy"])["Statement"]
        assert (statement["Effect"], statement["Principal"], statement["Action"]) == ("Deny", "*", "sqs:*")
        assert statement["Resource"] == attributes["QueueArn"]
        assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_an_account_can_have_several_stacks(aws: Aws):
    assert aws.deploy("production") == "CREATE_COMPLETE"
    assert aws.deploy("staging", RunOn="lambda") == "CREATE_COMPLETE"

    production, staging = aws.resources("production"), aws.resources("staging")
    assert [name for name in production if production[name] == staging.get(name)] == []


def test_after_a_failed_first_deployment_nothing_is_left_and_the_next_one_succeeds(aws: Aws):
    failing = {
        "Type": "AWS::Logs::MetricFilter",
        "DependsOn": ["Queue", "DeadLetters", "Database", "LoaderService"],
        "Properties": {"LogGroupName": "missing", "FilterPattern": "", "MetricTransformations": []},
    }
    template = aws.template.replace("Resources:\n", f"Resources:\n  Failing: {json.dumps(failing)}\n", 1)

    assert aws.deploy("production", template) == "ROLLBACK_COMPLETE"
    aws.client("cloudformation").delete_stack(StackName="production")

    assert not aws.client("sqs").list_queues().get("QueueUrls")
    assert aws.client("rds").describe_db_instances()["DBInstances"] == []
    assert aws.deploy("production") == "CREATE_COMPLETE"


def test_nothing_runs_before_the_stack_is_live(aws: Aws):
    def state() -> tuple:
        (service,) = aws.client("ecs").list_services(cluster=aws.outputs("production")["Cluster"])["serviceArns"]
        described = aws.client("ecs").describe_services(
            cluster=aws.outputs("production")["Cluster"], services=[service]
        )
        schedules = {each["State"] for each in aws.client("scheduler").list_schedules()["Schedules"]}
        (instance,) = aws.client("rds").describe_db_instances()["DBInstances"]
        alarms = aws.client("cloudwatch").describe_alarms()["MetricAlarms"]
        # A metric without data is trouble: such an alarm would be on before it may notify, and stay so in silence.
        waiting = [each for each in alarms if each["TreatMissingData"] == "breaching"]
        alarms = len(waiting), {each["ActionsEnabled"] for each in alarms}
        return described["services"][0]["desiredCount"], schedules, instance["DeletionProtection"], alarms

    aws.deploy("production")
    assert state() == (0, {"DISABLED"}, False, (0, {False}))

    aws.deploy("production", update=True, Live="yes")
    assert state() == (1, {"ENABLED"}, True, (4, {True}))


def test_a_new_image_is_migrated_before_its_loader_starts(aws: Aws):
    aws.deploy("production", Live="yes")
    old = aws.parameters["Image"]

    aws.deploy("production", update=True, Live="yes", MigrationImage="masked-logins:3")

    images = {
        task: aws.container("production", task)["image"]
        for task in ("BootstrapTask", "MigrateTask", "LoaderTask", "RedriveTask", "DbtTask", "PurgeTask", "AttestTask")
    }
    assert images == {
        "BootstrapTask": "masked-logins:3",
        "MigrateTask": "masked-logins:3",
        "LoaderTask": old,
        "RedriveTask": old,
        "DbtTask": old,
        "PurgeTask": old,
        "AttestTask": old,
    }


def test_programs_move_and_a_stack_that_is_live_no_more_can_be_removed_without_its_queues(aws: Aws):
    aws.deploy("production", Live="yes")
    url, database = aws.outputs("production")["QueueUrl"], aws.resources("production")["Database"]

    def programs() -> tuple[bool, int, int]:
        """Whether the loader is a service, and how many triggers and schedules there are."""
        cluster = aws.outputs("production")["Cluster"]
        return (
            bool(aws.client("ecs").list_services(cluster=cluster)["serviceArns"]),
            len(aws.client("lambda").list_event_source_mappings()["EventSourceMappings"]),
            len(aws.client("scheduler").list_schedules()["Schedules"]),
        )

    for run_on, expected in (("lambda", (False, 1, 4)), ("kubernetes", (False, 0, 0)), ("ecs", (True, 0, 4))):
        assert aws.deploy("production", update=True, Live="yes", RunOn=run_on) == "UPDATE_COMPLETE"
        assert programs() == expected
        assert aws.outputs("production")["QueueUrl"] == url
        assert aws.resources("production")["Database"] == database

    assert aws.deploy("production", update=True, Live="no") == "UPDATE_COMPLETE"
    [instance] = aws.client("rds").describe_db_instances()["DBInstances"]
    assert not instance["DeletionProtection"]
    aws.client("cloudformation").delete_stack(StackName="production")
    until(lambda: not aws.client("rds").describe_db_instances()["DBInstances"])
    assert len(aws.client("sqs").list_queues()["QueueUrls"]) == 2

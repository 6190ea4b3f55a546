"""The documents tell the truth: help text, links, tree, and every command, which a test runs as it is written there."""

import re
import subprocess
import sys

import pytest

from tests.instructions import PAGES, ROOT, blocks

README = (ROOT / "README.md").read_text()
DOCS = (ROOT / "dbt_project" / "models" / "_shared__docs.md").read_text()


def test_the_loaders_help_is_the_real_one():
    printed = subprocess.run(
        [sys.executable, "-m", "loader", "load", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    shown = re.search(r"```\n\$ python -m loader load --help\n(.*?)```", README, re.DOTALL)
    assert shown
    assert shown[1] == printed


def test_it_is_short_and_found_by_the_words_of_the_field():
    assert len(README.splitlines()) <= 250
    words = ("dead-letter queue", "retries", "idempotent", "upgrade", "GDPR", "pseudonymize", "key rotation", "erasure")
    assert [word for word in words if word not in README] == []


def test_every_make_target_it_names_exists():
    named = set(re.findall(r"(?:`|\(|^ {4})make (?:-s )?([a-z][a-z-]*)", README, re.MULTILINE))
    listed = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "env", "migrate", "load", "build"} <= named
    assert named - {"prod"} <= listed  # make prod.env


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "PRIVACY.md", "SECURITY.md", "deploy/README.md"])
def test_every_link_leads_somewhere(page):
    folder = (ROOT / page).parent
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    assert [target for target in targets if "://" not in target and not (folder / target).exists()] == []


def anchors(page):
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_section_that_exists(page):
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text())
    assert [link for link in links if link[1] not in anchors(page.parent / link[0] if link[0] else page)] == []


def test_every_file_it_names_exists():
    named = re.findall(r"`((?:loader|migrations|dbt_project|deploy|tests|benchmarks)/[\w./-]*)`", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_its_reasons_are_those_of_the_documentation_of_the_column():
    documented = re.search(r"{% docs reason %}.*?(\|.*\|)\n{% enddocs %}", DOCS, re.DOTALL)[1]
    assert documented in README


def test_its_tree_is_the_tree():
    tree = re.search(r"```\n(loader/ .*?)```", README, re.DOTALL)[1]
    shown = re.findall(r"^(\w+)/ ", tree, re.MULTILINE)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert sorted(shown) == sorted({name.partition("/")[0] for name in tracked if "/" in name and name[0] != "."})


def test_the_database_is_prepared_without_the_callers_psqlrc_and_stops_at_an_error():
    texts = [page.read_text() for page in [*PAGES, ROOT / "Makefile"]]
    options = re.findall(r"psql (.*)-f deploy/bootstrap.sql", "".join(texts))
    assert set(options) == {"-X -v ON_ERROR_STOP=1 -d postgres "}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "PRIVACY.md", "SECURITY.md", "deploy/README.md"])
def test_no_command_leaves_its_reader_in_another_folder(page):
    assert re.findall(r"^ {4}.*(?<!\()\bcd .*$", (ROOT / page).read_text(), re.MULTILINE) == []


# Every block of commands, by its first words: the test that takes it from the page and runs it, or why none can.
RUN_AS_WRITTEN = {
    "make demo": "test_demo.py::test_the_screen_adds_up",
    'eval "$(make -s env AS=analyst_user)"': "test_demo.py::test_what_the_readme_says_to_type_works",
    'eval "$(make -s env AS=transformer_user)"': "test_demo.py::test_what_the_readme_says_to_type_works",
    "make prod.env": "test_own_servers.py::test_every_command_works_as_written",
    "mkdir -p ~/.local": "test_habits.py::test_the_line_that_makes_tab_complete_dbt_works_in_a_fresh_home",
    "```bash": "test_habits.py::test_tab_completes_the_loader",
    "<!-- commands typed: a database": "test_own_servers.py::test_every_command_works_as_written",
    "make attest": "test_own_servers.py::test_every_command_works_as_written",
    "make rotate-key": "test_own_servers.py::test_every_command_works_as_written",
    "<!-- commands: rotate -->": "test_privacy_keys.py::test_the_four_steps_of_a_rotation_work_as_written",
    "gpg --quick-generate-key": "test_privacy_recovery.py::test_the_officers_commands_work_as_written",
    "make reveal TOKEN=": "test_privacy_recovery.py::test_the_officers_commands_work_as_written",
    "make forget USER_ID=": "test_privacy_recovery.py::test_the_officers_commands_work_as_written",
    "create role vault": "test_deploy.py::test_a_login_of_vaults_can_do_what_its_role_may",
    "<!-- commands: back up -->": "test_backup.py::test_a_backup_of_15_is_restored_into_17_and_goes_on",
    "<!-- commands: restore -->": "test_backup.py::test_a_backup_of_15_is_restored_into_17_and_goes_on",
    "<!-- commands: rows of raw -->": "test_backup.py::test_a_backup_of_15_is_restored_into_17_and_goes_on",
    "<!-- commands: rows of dbt -->": "test_backup.py::test_a_backup_of_15_is_restored_into_17_and_goes_on",
    "<!-- commands: erase again -->": "test_backup.py::test_a_backup_of_15_is_restored_into_17_and_goes_on",
    "<!-- commands: check -->": "test_backup.py::test_a_backup_of_15_is_restored_into_17_and_goes_on",
    "archive_mode = on": "test_backup.py::test_the_server_goes_back_to_a_moment",
    "<!-- commands: base backup -->": "test_backup.py::test_the_server_goes_back_to_a_moment",
    "<!-- commands: recover -->": "test_backup.py::test_the_server_goes_back_to_a_moment",
    "<!-- commands: before rows of an earlier version -->": "test_backup.py::test_data_of_an_earlier_version_is_moved",
    "<!-- commands: after rows of an earlier version -->": "test_backup.py::test_data_of_an_earlier_version_is_moved",
    "<!-- postgresql.conf of a node -->": "cluster.py::temporary_cluster",
    "<!-- pg_hba.conf of a node -->": "cluster.py::temporary_cluster",
    "<!-- commands: Citus, every node -->": "cluster.py::temporary_cluster",
    "<!-- commands: Citus, coordinator -->": "cluster.py::temporary_cluster",
    "<!-- refused: Citus, every node -->": "test_citus.py::test_the_refusals_of_the_readme_are_refused_on_every_node",
}
NOT_RUN_AS_WRITTEN = {
    "make test ARGS": "would run these tests inside of themselves, and the linters, which CI runs beside them",
    "make chromium-test": "are tests themselves",
    "key() { vault": "needs a Vault server",
    "wrap() { aws": "needs AWS KMS",
    "aws ecr": "needs an AWS account and Docker",
    "aws cloudformation": "needs an AWS account; test_aws.py creates the stack on an emulator",
    "output() { aws": "needs an AWS account; test_aws.py creates the stack on an emulator",
    "aws iam": "needs an AWS account",
}


def typed(page):
    return [block.strip().splitlines()[0].strip() for block in blocks(page)]


def test_every_block_of_commands_is_run_as_written_or_there_is_a_reason():
    found = [first for page in PAGES for first in typed(page)]
    known = [*RUN_AS_WRITTEN, *NOT_RUN_AS_WRITTEN]
    assert [first for first in found if not any(first.startswith(each) for each in known)] == []
    assert [each for each in known if not any(first.startswith(each) for first in found)] == []


# Which test runs a command, or the program that its recipe in the Makefile is.
RUN_BY = {
    "dbt clone": "test_dbt_commands.py::test_clone_is_refused_and_leaves_everything_where_it_is",
    "dbt build": "test_demo.py::test_the_screen_adds_up",
    "dbt debug": "test_habits.py::test_debug_finds_everything_in_order",
    "dbt ls": "test_habits.py::test_ls_lists_the_models",
    "dbt run": "test_habits.py::test_a_model_runs_with_what_it_stands_on_and_is_shown",
    "dbt run-operation": "test_privacy_keys.py::test_tokens_are_carried_over_when_raw_is_gone_and_stay_joinable",
    "dbt show": "test_habits.py::test_a_model_runs_with_what_it_stands_on_and_is_shown",
    "dbt test": "test_dbt_defects.py",
    "make": "test_makefile.py::test_help_is_the_default_and_lists_every_target",
    "make attest": "test_attest.py::test_the_command_ends_with_11_when_something_is_off",
    "make bootstrap": "test_own_servers.py::test_every_command_works_as_written",
    "make login": "test_own_servers.py::test_every_command_works_as_written",
    "make prod": "test_own_servers.py::test_every_command_works_as_written",
    "python -m local.history login-queue": "test_own_servers.py::test_every_command_works_as_written",
    "make approve": "test_privacy_recovery.py",
    "make build": "test_demo.py::test_the_screen_adds_up",
    "make chaos": "test_chaos.py::test_everything_fails_at_random_and_every_invariant_holds",
    "make demo": "test_demo.py::test_the_screen_adds_up",
    "make docs": "test_docs_page.py::test_nothing_in_it_is_loaded",
    "make doctor": "test_demo.py::test_what_people_type_next_works",
    "make down": "test_local_stack.py::test_down_leaves_no_process_and_keeps_the_database",
    "make env": "test_demo.py::test_what_the_screen_says_to_type_works",
    "make forget": "test_privacy_erasure.py",
    "make freshness": "test_dbt_project.py",
    "make install": "test_makefile.py::test_what_is_missing_is_said_with_its_remedy",
    "make leakcheck": "test_privacy_leaks.py",
    "make load": "test_demo.py::test_what_people_type_next_works",
    "make migrate": "test_migrations.py::test_migrating_twice_changes_nothing",
    "make purge": "test_dbt_refresh.py::test_a_purge_removes_what_is_old_and_transformed_and_says_so",
    "make redrive": "test_makefile.py::test_each_command_of_the_loader_has_a_target_that_takes_its_options",
    "make report": "test_demo.py::test_what_people_type_next_works",
    "make reveal": "test_privacy_recovery.py",
    "make rotate-key": "test_privacy_keys.py",
    "make send": "test_local_stack.py::test_a_file_is_sent_line_by_line_unchanged",
    "make status": "test_demo.py::test_what_people_type_next_works",
    "make up": "test_local_stack.py::test_up_twice_is_one_stack",
    "psql": "test_demo.py::test_what_the_screen_says_to_type_works",
    "python -m privacy": "test_privacy_commands.py",
    "python -m privacy attest": "test_attest.py::test_the_command_ends_with_11_when_something_is_off",
    "python -m privacy close-rotation": "test_privacy_keys.py",
    "python -m privacy require-two-persons": "test_privacy_recovery.py",
    "python -m privacy rotate-key": "test_privacy_keys.py",
    "python -m privacy seal-with": "test_privacy_recovery.py",
    "python -m loader": "test_readme.py::test_the_loaders_help_is_the_real_one",
    "python -m loader doctor": "test_loader_shows.py::test_doctor_finds_nothing_wrong_and_leaves_no_trace",
    "python -m loader load": "test_demo.py::test_what_people_type_next_works",
    "python -m loader redrive": "test_loader_shows.py::test_redrive_lands_each_dead_letter_once_though_some_had_landed",
    "python -m loader status": "test_status.py::test_all_is_well",
    "python -m migrations": "test_migrations.py::test_migrating_twice_changes_nothing",
}
NOT_RUN = {
    "docker compose up": "needs a Docker engine: `make compose-test`",
    "make bench": "takes minutes, and asserts nothing",
    "make bench-dbt": "takes minutes, and asserts nothing",
    "make chromium-test": "is tests itself",
    "make citus-test": "is tests itself, and needs a Citus cluster",
    "make clean": "would remove the demo of whoever runs the tests",
    "make compose-test": "needs a Docker engine, and is tests itself",
    "make kubectl-test": "is tests itself",
    "make lint": "is what CI runs beside the tests",
    "make pgbouncer-test": "is tests itself",
    "make promtool-test": "is tests itself",
    "make requirements": "asks PyPI for every package; test_makefile.py checks what it has written",
    "make schedule-test": "installs packages of hundreds of megabytes, and is tests itself",
    "make test": "is these tests",
}
COMMAND = re.compile(
    r"(make(?! -s)(?: [a-z][a-z-]*)?|make -s env|python -m [\w.]+(?: [a-z][a-z-]*)?|dbt [a-z][a-z-]*"
    r"|docker compose [a-z]+|psql)\b"
)


def commands(page):
    """What a page tells to type: indented lines, shells' blocks, and code in the running text."""
    text = (ROOT / page).read_text()
    typed = re.findall(r"^ {4}(?! )(.+)$", text, re.MULTILINE) + re.findall(r"`([^`\n]+)`", text)
    for line in typed + re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for each in re.split(r"&&|;|\||\$\(", line.partition("#")[0]):
            if found := COMMAND.match(each.strip()):
                yield found[1].replace("make -s", "make")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "PRIVACY.md", "deploy/README.md"])
def test_every_command_is_run_by_a_test(page):
    named = set(commands(page))
    assert named
    assert named - RUN_BY.keys() - NOT_RUN.keys() == set()


@pytest.mark.parametrize("test", sorted({*RUN_BY.values(), *RUN_AS_WRITTEN.values()}))
def test_the_tests_that_run_commands_exist(test):
    file, _, name = test.partition("::")
    assert f"def {name}" in (ROOT / "tests" / file).read_text()

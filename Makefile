# The one door: people, the README and CI all come in by these targets.

.DEFAULT_GOAL := help
.PHONY: help install demo test up down env send load migrate build docs report status doctor redrive bench freshness lint \
    clean compose-test requirements sbom rotate-key reveal approve forget leakcheck attest contract purge bench-dbt

PYTHON ?= python3
# (not ?=, because make has an AS of its own: the assembler)
AS = analyst_user

BIN := .venv/bin
LOCAL := $(BIN)/python -m local
PRIVACY := $(BIN)/python -m privacy
PROJECT := --project-dir dbt_project --profiles-dir dbt_project

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

install: .venv/installed  ## make .venv, or bring it up to date

.venv/installed: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo 'Python 3.10 or newer is needed; if it has another name: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo 'This Python cannot make a .venv: apt install python3-venv' >&2; exit 1; }
	@echo 'Installing into .venv, which takes a minute ...' >&2
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

demo: install  ## made-up logins through the whole pipeline, on servers started here; again, and it adds more
	@$(LOCAL) demo

test: install  ## every test, on servers of its own (ARGS='-k name' for some)
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope $(ARGS)

compose-test: install  ## docker-compose.yml on a real Docker engine; without a registry, on stand-ins of its images
	@$(BIN)/python -m pytest -m containers -r sw -W default:::tests.test_compose tests/test_compose.py $(ARGS)

up: install  ## start the local PostgreSQL and SQS
	@$(LOCAL) up

down: $(if $(wildcard .local),install)  ## stop them; the database is kept, the queues are not
	@test ! -d .local || $(LOCAL) down

env: install  ## what a shell has to set to work as a login: eval "$(make -s env AS=analyst_user)"
	@$(LOCAL) env --as $(AS)

send: install  ## made-up messages to the queue (ARGS='--count 100 --seed 2', or ARGS='--file messages.jsonl')
	@$(LOCAL) send $(ARGS)

# These work on the servers that PGHOST and AWS_* name, or else on the local ones as the login given here.

migrate: install  ## apply migrations/ and deploy the boundary
	@$(LOCAL) run --as migrator -- $(BIN)/python -m migrations

load: install  ## land what is on the queue in raw.sqs_messages (ARGS='--help' for more)
	@$(LOCAL) run --as loader_user -- $(BIN)/python -m loader load $(ARGS)

build: install  ## dbt: mask, build and test what analysts read (ARGS='--full-refresh' to start over)
	@$(LOCAL) run --as transformer_user -- $(BIN)/dbt build $(PROJECT) $(ARGS)

docs: install  ## the documentation of every table and column, as one page
	@$(LOCAL) run --as transformer_user -- $(BIN)/dbt --quiet docs generate --static $(PROJECT)
	@echo dbt_project/target/static_index.html

report: install  ## logins, versions, locales, shared devices and addresses, what was rejected: one page for analysts
	@$(LOCAL) run --as analyst_user -- $(BIN)/python -m report $(ARGS)

status: install  ## how the pipeline does, and whether it needs a person (ARGS='--json' for a machine)
	@$(LOCAL) run --as analyst_user -- $(BIN)/python -m loader status $(ARGS)

doctor: install  ## all that a load depends on, one line each, with the remedy
	@$(LOCAL) run --as loader_user -- $(BIN)/python -m loader doctor $(ARGS)

redrive: install  ## the messages of the dead-letter queue back to the queue, once what stopped them is mended
	@$(LOCAL) run --as loader_user -- $(BIN)/python -m loader redrive $(ARGS)

# Privacy. Logins as above; on servers of yours each step takes its own login (PRIVACY.md).

leakcheck: install  ## a whole run with all logging turned up, then a search for plain values and keys everywhere
	@$(BIN)/python -m pytest tests/test_privacy_leaks.py $(ARGS)

rotate-key: install  ## new masking keys, and all tables carried over; interrupted, run it again (IMPORT=1: keys on stdin)
	@$(LOCAL) run --as migrator -- $(PRIVACY) rotate-key $(if $(IMPORT),--import)
	@$(LOCAL) run --as migrator -- $(BIN)/python -m migrations
	@$(LOCAL) run --as transformer_user -- $(BIN)/dbt --quiet run-operation carry_tokens_over $(PROJECT)
	@$(LOCAL) run --as migrator -- $(PRIVACY) close-rotation

reveal: install  ## the original behind a token, on record (TOKEN=…, or its first digits, REASON=…; or REQUEST=… once it is approved)
	@$(LOCAL) run --as privacy_officer_user -- $(PRIVACY) reveal \
	    $(if $(REQUEST),--request "$$REQUEST",--token "$$TOKEN" --reason "$$REASON")

approve: install  ## let another officer's recovery pass, where two persons are required (REQUEST=…)
	@$(LOCAL) run --as privacy_officer_user -- $(PRIVACY) approve "$$REQUEST"

forget: install  ## erase a person everywhere (USER_ID=… REASON=…)
	@$(LOCAL) run --as privacy_officer_user -- $(PRIVACY) forget --user-id "$$USER_ID" --reason "$$REASON"
	@$(LOCAL) run --as transformer_user -- $(BIN)/dbt --quiet run $(PROJECT)

contract: install  ## write privacy/contract.txt anew, after a change of migrations/
	@$(BIN)/python -m tests.contract

attest: install  ## what the live database allows, against what the project says (ARGS='--json' for a machine)
	@$(LOCAL) run --as backup_user -- $(PRIVACY) attest $(ARGS)

purge: install  ## remove old messages from raw, those that dbt has taken (KEEP_DAYS=30)
	@$(LOCAL) run --as privacy_officer_user -- $(PRIVACY) purge $(if $(KEEP_DAYS),--keep-days "$$KEEP_DAYS")

bench: install  ## how fast, measured here
	@$(BIN)/python -m benchmarks $(ARGS)

bench-dbt: install  ## what dbt costs: full refresh, increments, start (ARGS='--messages 100000' for a quick one)
	@$(BIN)/python -m benchmarks.dbt $(ARGS)

freshness: install  ## fails when nothing has landed for too long
	@$(LOCAL) run --as transformer_user -- $(BIN)/dbt --quiet source freshness $(PROJECT)

.venv/installed-lint: .venv/installed deploy/requirements-lint.txt
	@echo 'Installing the linters of deploy/, which takes a minute ...' >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r deploy/requirements-lint.txt
	@touch $@

COMPILE = UV_CUSTOM_COMPILE_COMMAND='make requirements' $(BIN)/uv pip compile --no-strip-extras --quiet --universal --python-version 3.10 \
    --fork-strategy fewest --generate-hashes --annotation-style line $(ARGS) pyproject.toml

requirements: .venv/installed-lint  ## requirements*.txt from pyproject.toml, with hashes (ARGS=--upgrade for newer versions)
	@$(COMPILE) --output-file requirements.txt
	@$(COMPILE) --group dev --constraints requirements.txt --output-file requirements-dev.txt
	@$(COMPILE) --group lint --constraints requirements-dev.txt --output-file deploy/requirements-lint.txt

sbom: .venv/installed-lint  ## what the image installs, as CycloneDX (sbom.json)
	@$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.json requirements.txt
	@echo sbom.json

lint: .venv/installed-lint  ## every linter; changes nothing
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/sqlfluff lint dbt_project/models dbt_project/tests migrations
	@$(BIN)/yamllint --strict .
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(BIN)/hadolint deploy/Dockerfile
	@$(BIN)/cfn-lint deploy/aws/pipeline.yaml
	@if command -v kubectl >/dev/null; then \
	    kubectl kustomize deploy/kubernetes > .venv/kubernetes.yaml && \
	    $(BIN)/kubernetes-validate --strict --quiet .venv/kubernetes.yaml; \
	else echo 'NOT CHECKED: deploy/kubernetes, for want of kubectl' >&2; fi
	@if command -v promtool >/dev/null; then \
	    promtool check rules --lint=all deploy/monitoring/alerts.yml >/dev/null && \
	    promtool check config deploy/monitoring/prometheus.yml >/dev/null; \
	else echo 'NOT CHECKED: deploy/monitoring, for want of promtool (apt install prometheus)' >&2; fi

clean: $(if $(wildcard .local),install)  ## stop the local servers and remove their data and every cache; .venv stays
	@test ! -d .local || $(LOCAL) remove
	@rm -rf .hypothesis .pytest_cache .ruff_cache dbt_project/logs dbt_project/target logs
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

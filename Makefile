# Entry point for users, the README and CI.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# `make load build` is one after the other, also where MAKEFLAGS has -j.
.NOTPARALLEL:
PARTS := chromium-test citus-test kubectl-test pgbouncer-test promtool-test
.PHONY: help install demo test up down env send bootstrap login load migrate build docs report status doctor redrive bench \
    freshness lint clean compose-test requirements sbom rotate-key reveal approve forget leakcheck chaos attest contract \
    purge bench-dbt $(PARTS) schedule-test .writable .anew

# dbt-core 1.11 does not start on Python 3.14
SUPPORTED = import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))
PYTHON ?= $(or $(shell for each in python3 python3.13 python3.12 python3.11 python3.10; do \
    $$each -c '$(SUPPORTED)' 2>/dev/null && echo $$each && break; done),python3)
# not ?=, because make itself sets AS, the assembler
AS = analyst_user

# What people type is passed on as it is: make would take $b in USER_ID='a$b' for a variable, and another person be erased.
$(foreach each,USER_ID REASON TOKEN REQUEST KEEP_DAYS NAME ROLE,$(if $(value $(each)),\
    $(eval override export $(each) := $$(value $(each)))))

BIN := .venv/bin
LINT := .venv/lint/bin
LOCAL := $(BIN)/python -m local
PRIVACY := $(BIN)/python -m privacy
STATE := $(or $(LOCAL_STATE),.local)
PROJECT := --project-dir dbt_project --profiles-dir dbt_project

# Shows one line for every twenty packages. pip's own lines are left out, its errors are not.
pip_install = { $(2)/bin/python -m pip install --disable-pip-version-check --require-hashes -r $(1) || echo FAILED; } | \
    awk -v all="$$(grep -c '^[a-z].*==' $(1))" '/^Collecting / && ++n % 20 == 0 {print "    " n " of " all " packages"} \
        /^Installing collected/ {print "    unpacking"} /^FAILED$$/ {failed = 1} {fflush()} END {exit failed}' >&2

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

# .venv is made anew where it cannot work: the path is in its scripts, and its packages are for one minor version of Python.
WORKS = .venv/bin/python -c 'import click' >/dev/null 2>&1 && grep -qsF "$$(realpath .venv/bin)/python" .venv/bin/dbt
STALE := $(if $(wildcard .venv/installed),$(shell $(WORKS) || echo --clear))

install: .venv/installed  ## create or update .venv, also after Python or the folder has changed

.venv/installed: requirements-dev.txt $(if $(STALE),.anew)
	@$(PYTHON) -c '$(SUPPORTED)' || { \
	    echo 'Python 3.10 to 3.13 is needed: dbt does not run on others. If you have one elsewhere: make PYTHON=... demo;' \
	        'without one: make .env, docker compose up' >&2; exit 1; \
	}
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo 'This Python cannot make a .venv: apt install $(or $(filter python3%,$(notdir $(PYTHON))),python3)-venv' >&2; exit 1; }
	@echo 'Installing Python packages into .venv (about a minute) ...' >&2
	@exec 3<$<; flock 3; test $@ -nt $< && $(WORKS) || { \
	    $(PYTHON) -m venv $(STALE) .venv && $(call pip_install,$<,.venv) && touch $@; \
	}

demo: install .writable  ## run generated logins through the whole pipeline, after six weeks of history; run it again to add more
	@$(LOCAL) demo

test: install  ## run the tests, on servers of their own (ARGS='-k name' for some)
	@$(BIN)/python -m pytest -n auto --dist loadscope $(ARGS)

# Parts that `make test` leaves out, because they need more than `make install` gets.
chromium-test:  ## open the pages in Chromium
citus-test:  ## test on a Citus cluster (CITUS_BIN=/usr/lib/postgresql/15/bin)
kubectl-test:  ## test what kubectl makes of deploy/kubernetes
pgbouncer-test:  ## test behind a pool of connections
promtool-test:  ## test the alert rules
$(PARTS): install
	@$(BIN)/python -m pytest -n auto --dist loadscope -m $(@:-test=) $(ARGS)

compose-test: install  ## test docker-compose.yml on a Docker engine (without a registry, on stand-ins of its images)
	@$(BIN)/python -m pytest -m compose -r sw -W default:::tests.test_compose tests/test_compose.py $(ARGS)

schedule-test: .venv/schedule/installed  ## load deploy/schedule into Airflow and Dagster, which it installs
	@.venv/schedule/bin/python -m pytest -m schedule tests/test_schedule.py $(ARGS)

# Some of their packages are other versions than those of .venv, of which they take the rest.
.venv/schedule/installed: .venv/installed
	@echo 'Installing Airflow and Dagster into .venv/schedule (a few minutes) ...' >&2
	@$(BIN)/python -m venv --clear .venv/schedule
	@cd .venv && ls -d "$$PWD"/lib/python3*/site-packages > "$$(ls -d schedule/lib/python3*/site-packages)/venv.pth"
	@.venv/schedule/bin/python -m pip install --quiet --disable-pip-version-check 'protobuf<7' apache-airflow==3.3.2 dagster==1.13.29
	@touch $@

up: install  ## start the local PostgreSQL and SQS
	@$(LOCAL) up

down: $(if $(wildcard $(STATE)),install)  ## stop them; keeps the database, not the queues
	@test ! -d '$(STATE)' || $(LOCAL) down

env: install  ## print the settings of a login for the shell: eval "$(make -s env AS=analyst_user)"
	@$(LOCAL) env --as $(AS)

send: install  ## send generated messages to the local queue (ARGS='--count 100 --seed 2', or ARGS='--file messages.jsonl')
	@$(LOCAL) send $(ARGS)

# A copy of .env.example with generated passwords, which only its owner can read.
define new_env_file
@umask 077; $(PYTHON) -c 'import re, secrets; template = open(".env.example").read(); \
    print(re.sub("\047choose-one\047", lambda _: secrets.token_urlsafe(24), template), end="")' > $@
@echo '$@ is created, with generated passwords. Edit it: your servers, and the passwords that exist already.' >&2
endef
.env: ; $(new_env_file)
%.env: ; $(new_env_file)

# dbt ends without a word where it cannot write, as in a checkout in which somebody else has run it before.
.writable:
	@for each in "$${DBT_LOG_PATH:-dbt_project/logs}" "$${DBT_TARGET_PATH:-dbt_project/target}"; do \
	    mkdir -p "$$each" 2>/dev/null && test -z "$$(find "$$each" ! -writable 2>/dev/null)" || { \
	        echo "dbt cannot write to $$each: act as its owner, or set DBT_LOG_PATH and DBT_TARGET_PATH" >&2; exit 1; \
	    }; \
	done

# Each of these works as the login given here: on the servers in the file ENV_FILE, or else on those that PGHOST and AWS_*
# name (as PGUSER), or else on the local ones.

bootstrap: install  ## create database, roles and logins on a server of yours, once, as superuser (ENV_FILE=prod.env)
	@$(LOCAL) run --as postgres -- psql -X -v ON_ERROR_STOP=1 -d postgres -f deploy/bootstrap.sql

login: install  ## create a login for a person, or set a new password (NAME=ada ROLE=analyst)
	@$(LOCAL) login $(if $(ROLE),--role "$$ROLE") -- "$$NAME"

migrate: install .writable  ## apply migrations/ and deploy the boundary
	@$(LOCAL) run --as migrator -- $(BIN)/python -m migrations

load: install  ## load messages from the queue into raw.sqs_messages (ARGS='--help' for more)
	@$(LOCAL) run --as loader_user -- $(BIN)/python -m loader load $(ARGS)

build: install .writable  ## mask, build and test with dbt (ARGS='--full-refresh' to start over)
	@$(LOCAL) run --as transformer_user -- $(BIN)/dbt build $(PROJECT) $(ARGS)

docs: install .writable  ## write the documentation of every table and column, as one HTML file
	@$(LOCAL) run --as transformer_user -- $(BIN)/dbt --quiet docs generate --static $(PROJECT)
	@echo "$${DBT_TARGET_PATH:-dbt_project/target}/static_index.html"

report: install  ## write the report for analysts, as HTML pages that work from disk
	@$(LOCAL) run --as analyst_user -- $(BIN)/python -m report $(ARGS)

status: install  ## show the state of the pipeline and what needs attention (ARGS='--json' for machines)
	@$(LOCAL) run --as analyst_user -- $(BIN)/python -m loader status $(ARGS)

doctor: install  ## check everything that a load depends on, with remedies
	@$(LOCAL) run --as loader_user -- $(BIN)/python -m loader doctor $(ARGS)

redrive: install  ## load the messages of the dead-letter queue, after what stopped them is fixed
	@$(LOCAL) run --as loader_user -- $(BIN)/python -m loader redrive $(ARGS)

# Privacy (PRIVACY.md). Logins as above.

leakcheck: install  ## run everything with maximum logging, then search everywhere for plain values and keys
	@$(BIN)/python -m pytest tests/test_privacy_leaks.py $(ARGS)

chaos: install  ## kill, freeze and cut everything at random, then check that nothing is lost (ARGS='--seed 7 --minutes 10')
	@$(BIN)/python -m tests.chaos $(ARGS)

rotate-key: install .writable  ## rotate the masking keys; run it again if interrupted (IMPORT=1: keys on stdin)
	@$(LOCAL) run --as migrator -- $(PRIVACY) rotate-key $(if $(IMPORT),--import)
	@$(LOCAL) run --as migrator -- $(BIN)/python -m migrations
	@$(LOCAL) run --as transformer_user -- $(BIN)/dbt --quiet run-operation carry_tokens_over $(PROJECT)
	@$(LOCAL) run --as migrator -- $(PRIVACY) close-rotation

reveal: install  ## recover the original of a token, audited (TOKEN=…, or its first digits, REASON=…; or an approved REQUEST=…)
	@$(LOCAL) run --as privacy_officer_user -- $(PRIVACY) reveal \
	    $(if $(REQUEST),--request "$$REQUEST",--token "$$TOKEN" --reason "$$REASON")

approve: install  ## approve another officer's recovery (REQUEST=…)
	@$(LOCAL) run --as privacy_officer_user -- $(PRIVACY) approve "$$REQUEST"

forget: install .writable  ## erase a person (USER_ID=… REASON=…)
	@$(LOCAL) run --as privacy_officer_user -- $(PRIVACY) forget --user-id "$$USER_ID" --reason "$$REASON"
	@$(LOCAL) run --as transformer_user -- $(BIN)/dbt --quiet run $(PROJECT)

contract: install  ## update privacy/contract.txt after a change in migrations/
	@$(BIN)/python -m tests.contract

attest: install  ## compare the live database with the project (ARGS='--json' for machines)
	@$(LOCAL) run --as monitor_user -- $(PRIVACY) attest $(ARGS)

purge: install  ## delete old messages from raw that dbt has processed (KEEP_DAYS=30)
	@$(LOCAL) run --as privacy_officer_user -- $(PRIVACY) purge $(if $(KEEP_DAYS),--keep-days "$$KEEP_DAYS")

bench: install  ## measure throughput on this machine
	@$(BIN)/python -m benchmarks $(ARGS)

bench-dbt: install  ## measure dbt: full refresh, increments, start (ARGS='--messages 100000' for a quick one)
	@$(BIN)/python -m benchmarks.dbt $(ARGS)

freshness: install .writable  ## fail if nothing has landed for too long
	@$(LOCAL) run --as transformer_user -- $(BIN)/dbt --quiet source freshness $(PROJECT)

# In an environment of their own: one of them brings a package that would make every start of dbt half again as long.
.venv/lint/installed: .venv/installed deploy/requirements-lint.txt
	@echo 'Installing the linters into .venv/lint (about a minute) ...' >&2
	@$(BIN)/python -m venv --clear .venv/lint
	@$(call pip_install,deploy/requirements-lint.txt,.venv/lint)
	@touch $@

COMPILE = UV_CUSTOM_COMPILE_COMMAND='make requirements' $(LINT)/uv pip compile --no-strip-extras --quiet \
    --universal --python-version 3.10 --fork-strategy fewest --generate-hashes --annotation-style line $(ARGS)

requirements: .venv/lint/installed  ## update requirements*.txt from pyproject.toml, with hashes (ARGS=--upgrade for newer versions)
	@$(COMPILE) pyproject.toml --output-file requirements.txt
	@$(COMPILE) pyproject.toml --group dev --constraints requirements.txt --output-file requirements-dev.txt
	@$(COMPILE) --group lint --output-file deploy/requirements-lint.txt

sbom: .venv/lint/installed  ## write what the image installs, as CycloneDX (sbom.json)
	@$(LINT)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.json requirements.txt
	@echo sbom.json

lint: .venv/lint/installed  ## run every linter; changes nothing
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/sqlfluff lint dbt_project/models dbt_project/tests migrations
	@$(BIN)/yamllint --strict .
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(LINT)/hadolint deploy/Dockerfile
	@$(LINT)/cfn-lint deploy/aws/pipeline.yaml
	@if command -v kubectl >/dev/null; then \
	    kubectl kustomize deploy/kubernetes > .venv/kubernetes.yaml && \
	    $(LINT)/kubernetes-validate --strict --quiet .venv/kubernetes.yaml; \
	else echo 'NOT CHECKED: deploy/kubernetes, for want of kubectl' >&2; fi
	@if command -v promtool >/dev/null; then \
	    promtool check rules --lint=all deploy/monitoring/alerts.yml >/dev/null && \
	    promtool check config deploy/monitoring/prometheus.yml >/dev/null; \
	else echo 'NOT CHECKED: deploy/monitoring, for want of promtool (apt install prometheus)' >&2; fi

clean: $(if $(wildcard $(STATE)),install)  ## stop the local servers, delete their data and every cache; keeps .venv
	@test ! -d '$(STATE)' || $(LOCAL) remove
	@rm -rf .hypothesis .pytest_cache .ruff_cache dbt_project/logs dbt_project/target logs
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

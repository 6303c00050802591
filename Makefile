# Every command a developer needs. `make help` lists them; each makes its own .venv when it is missing.

PYTHON ?= python3
# Tests wait for processes more than they compute: twice the cores is fastest.
WORKERS ?= $(shell expr 2 \* $$(nproc 2>/dev/null || echo 2))
export UV_PYTHON_DOWNLOADS = never
BIN = .venv/bin
READY = .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo serve agent test test-again test-unit test-demo test-browser test-faults test-airflow faults accept lint format lock bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.txt pyproject.toml
	@echo "setting up .venv"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(READY)

demo: $(READY) ## a real DAG on real Airflow through the control plane to a real agent (ONCE=1: run it, stop, exit)
	@ONCE=$(ONCE) $(BIN)/python -m deploy.demo

serve: $(READY) ## the control plane alone, on the embedded PostgreSQL unless EDGECONTROL_DATABASE_URL is set
	@$(BIN)/python manage.py serve

agent: $(READY) ## edge-agent.pyz, the agent in one file, which the control plane then offers for download
	@$(BIN)/python -m deploy.agent_file

test: $(READY) ## all tests but those marked slow
	@$(BIN)/python -m pytest -m "not slow" -n $(WORKERS)

test-again: $(READY) ## those that failed in the last run, one after the other
	@$(BIN)/python -m pytest -m "not slow" --last-failed --last-failed-no-failures none --maxfail 1

test-unit: $(READY) ## the tests that need neither database nor network
	@$(BIN)/python -m pytest tests/unit tests/test_architecture.py

test-demo: $(READY) ## the example DAG on real Airflow, compared with the job table, the logs and the machine's files
	@$(BIN)/python -m pytest tests/acceptance/test_demo.py

test-browser: $(READY) ## a walk through the admin in Chromium, with a real agent (SCREENSHOTS=FOLDER: take the pictures of the docs)
	@SCREENSHOTS=$(SCREENSHOTS) $(BIN)/python -m pytest tests/acceptance/test_browser_walk.py tests/acceptance/test_agent_file.py

test-faults: $(READY) ## five of the fault cases
	@$(BIN)/python -m pytest tests/acceptance/faults -m ci -n 2

faults: $(READY) ## break real processes, print what was lost: nothing (FULL=1: real intervals; SEED=n; FAULTS_TABLE=FILE)
	@FULL=$(FULL) SEED=$(SEED) FAULTS_TABLE=$(FAULTS_TABLE) $(BIN)/python -m pytest tests/acceptance/faults -n $(if $(FULL),6,3)

test-airflow: $(READY) ## what runs inside Airflow, on others (VERSION=3.2.2; EXCLUDE_NEWER=YYYY-MM-DD: lock that version first)
	@$(BIN)/python -m tests.airflow_versions $(VERSION) $(if $(EXCLUDE_NEWER),--exclude-newer $(EXCLUDE_NEWER)) --workers $(WORKERS)

accept: test ## everything, with real Airflow runs and all fault cases
	@$(BIN)/python -m pytest -m "slow and not faults"
	@$(MAKE) faults

lint: $(READY) ## formatting, lint, types, migrations, API schema
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@EDGECONTROL_DATABASE_URL=postgresql://127.0.0.1/unused $(BIN)/mypy  # reads the settings, needs no database
	@$(BIN)/python manage.py makemigrations --check --dry-run
	@$(BIN)/python manage.py spectacular --validate --fail-on-warn --file /dev/null

format: $(READY) ## rewrite the code as lint wants it
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: $(READY) ## write requirements.txt anew from pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate --no-header \
		--upgrade pyproject.toml --output-file requirements.txt

bench: $(READY) ## the figures of this machine: dispatch; beside edge3: executor; with real Airflow: throughput, footprint (40 minutes)
	@$(BIN)/python benchmarks/dispatch.py
	@$(BIN)/python benchmarks/executor.py
	@$(BIN)/python benchmarks/throughput.py
	@$(BIN)/python benchmarks/footprint.py

clean: ## remove what the commands above made, .venv included
	rm -rf .venv .bench .environments .demo .edgecontrol .mypy_cache .pytest_cache .ruff_cache *.egg-info workers_app/downloads

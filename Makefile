# Needs only Python 3.11 or 3.12. The first call creates the environment in .local.
PYTHON ?= python3
PROJECT = $(PYTHON) local/bootstrap.py
# Two workers, each with its own components. One thread each: more would wait for each other.
PYTEST = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(PROJECT) --dev -m pytest \
	-n 2 --dist loadfile --no-loadscope-reorder --durations=10

.PHONY: help run check test test-all
.PHONY: faults accuracy bench bench-page bench-drawings fuzz-page clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## run everything until Ctrl-C
	@$(PROJECT) -m local.stack run

check: ## check style, types and import rules
	@$(PROJECT) --dev -m ruff check .
	@$(PROJECT) --dev -m ruff format --check .
	@$(PROJECT) --dev -m mypy .
	@$(PROJECT) --dev .local/venv/bin/lint-imports

test: check ## run the checks and the tests, on real components and a real browser: 15 minutes
	@$(PYTEST) -m "not long"

test-all: check ## run all tests: every kind of fault, the long variants and Airflow, too
	@$(PROJECT) --dev --airflow -c pass
	@FUZZED_BODIES=10000 $(PYTEST)

faults: ## inject fifty faults over 100,000 samples; count what was lost or learned twice
	@$(PROJECT) --dev -m benchmarks.loop.faults $(FAULTS)

bench: ## measure throughput, freshness and growth (BENCH=--quick: a few minutes)
	@$(PROJECT) --dev --bench -W ignore -m benchmarks.loop $(BENCH)

bench-page: ## send 100 requests/s for a minute to the page of a running make run
	@$(PROJECT) --dev --bench -m locust -f benchmarks/loop/page_load.py \
		--headless --only-summary -u 100 -r 100 -t 60s

accuracy: ## measure each learner's prequential accuracy (ACCURACY=--help: options)
	@$(PROJECT) --dev --bench -W ignore -m benchmarks.loop.accuracy $(ACCURACY)

bench-drawings: ## measure the accuracy on drawings, before and after teaching
	@$(PROJECT) --dev --bench -m benchmarks.loop.drawings

fuzz-page: ## send 10,000 fuzzed bodies to the page
	@FUZZED_BODIES=10000 $(PROJECT) --dev -m pytest -s -k fuzzed tests/integration/test_server.py

clean: ## delete what make run created in RUN_DIR; in the default .local also the environment
	@$(PROJECT) --clean

.PHONY: lock audit licences sbom
lock: ## write requirements/*.lock from the requirements files
	@$(PROJECT) -m local.supply_chain lock

audit: ## look up known vulnerabilities of all locked packages
	@$(PROJECT) --audit -m local.supply_chain audit

licences: ## list the licence of every package
	@$(PROJECT) --audit -m local.supply_chain licences

sbom: ## write .local/sbom.json, a bill of materials (CycloneDX)
	@$(PROJECT) --audit -m local.supply_chain sbom

.PHONY: docs forecast forecast-dags
docs: ## generate docs/settings.md, docs/benchmarks.md and the figures in README.md
	@$(PROJECT) --dev -W ignore -m benchmarks.pages

forecast: ## run the whole forecast and report its figures
	@$(PROJECT) --forecast -W ignore -m benchmarks.forecast.report

forecast-dags: ## run both Airflow DAGs in their own environment
	@$(PROJECT) --dev --airflow -m pytest tests/e2e/test_forecast_dags.py

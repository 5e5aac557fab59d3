# Needs Python 3.11 or 3.12 and nothing else; the environment is made in .local at the first call.
PYTHON ?= python3
PROJECT = $(PYTHON) local/bootstrap.py
# Two workers, each with components of its own. One thread each: two would wait for each other.
PYTEST = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(PROJECT) --dev -m pytest \
	-n 2 --dist loadfile --no-loadscope-reorder --durations=10

.PHONY: help run check test test-all
.PHONY: faults accuracy bench bench-page bench-drawings fuzz-page clean

help: ## print what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## start everything, until Ctrl-C
	@$(PROJECT) -m local.stack run

check: ## style, types and import rules
	@$(PROJECT) --dev -m ruff check .
	@$(PROJECT) --dev -m ruff format --check .
	@$(PROJECT) --dev -m mypy .
	@$(PROJECT) --dev .local/venv/bin/lint-imports

test: check ## the checks and the tests, on real components and in a real browser: 15 minutes
	@$(PYTEST) -m "not long"

test-all: check ## everything, with every kind of fault, the long variants and Airflow
	@$(PROJECT) --dev --airflow -c pass
	@FUZZED_BODIES=10000 $(PYTEST)

faults: ## fifty faults over 100,000 samples: what was lost, what was learned twice
	@$(PROJECT) --dev -m benchmarks.loop.faults $(FAULTS)

bench: ## throughput against what people would use instead, freshness, growth: benchmarks/results/loop.json (BENCH=--quick: a look)
	@$(PROJECT) --dev --bench -W ignore -m benchmarks.loop $(BENCH)

bench-page: ## load on the page of a running make run: 100 requests/s for a minute
	@$(PROJECT) --dev --bench -m locust -f benchmarks/loop/page_load.py --headless --only-summary -u 100 -r 100 -t 60s

accuracy: ## how often each learner is right before it learns: table, benchmarks/results/accuracy.json, plots in docs (ACCURACY=--help)
	@$(PROJECT) --dev --bench -W ignore -m benchmarks.loop.accuracy $(ACCURACY)

bench-drawings: ## how many drawings of the benchmark's own stroke set are read right, before and after teaching
	@$(PROJECT) --dev --bench -m benchmarks.loop.drawings

fuzz-page: ## 10,000 fuzzed bodies at the page
	@FUZZED_BODIES=10000 $(PROJECT) --dev -m pytest -s -k fuzzed tests/integration/test_server.py

clean: ## forget everything that was made and learned in RUN_DIR, by default .local with the environment
	@$(PROJECT) --clean

.PHONY: docs forecast forecast-dags
docs: ## write docs/settings.md, docs/benchmarks.md and the README's figures from code and results
	@$(PROJECT) --dev -W ignore -m benchmarks.pages

forecast: ## simulate, train, update seven days, score, time the joins and the stream, report
	@$(PROJECT) --forecast -W ignore -m benchmarks.forecast.report

forecast-dags: ## run both Airflow DAGs, in an environment of Airflow's own
	@$(PROJECT) --dev --airflow -m pytest tests/e2e/test_forecast_dags.py

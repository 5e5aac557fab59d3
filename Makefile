# Needs Python 3.11 or 3.12 and nothing else; the environment is made in .local at the first call.
PYTHON ?= python3
PROJECT = $(PYTHON) bootstrap.py

.PHONY: run test faults clean

run: ## start everything, until Ctrl-C
	@$(PROJECT) local_stack.py run

test: ## lint, types and every test
	@$(PROJECT) --dev -m ruff check .
	@$(PROJECT) --dev -m ruff format --check .
	@$(PROJECT) --dev -m mypy .
	@$(PROJECT) --dev -m pytest

faults: ## fifty faults over 100,000 samples: what was lost, what was learned twice
	@$(PROJECT) --dev -m benchmarks.faults $(FAULTS)

clean: ## forget everything that was made and learned
	@if [ -x .local/venv/bin/python ]; then .local/venv/bin/python local_stack.py clean; fi
	@rm -rf .local

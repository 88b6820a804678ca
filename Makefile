# `make study` and `make test` set everything up by themselves; a second call starts at once.
# They need Linux, Python 3.11 or newer with pip, and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# uv installs exactly the set that requirements.lock names, torch and torchvision as a pair.
UV_VERSION := 0.13.9
UV := .tools/bin/uv

.PHONY: study test test-long lint types setup lock benchmark gpu-check clean

study: setup  ## train the gamma x eta grid of Fisher SAM on digits, and draw its heatmap
	$(BIN)/study run studies/digits_sensitivity.yaml

test: lint types  ## what CI runs
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/integration tests

test-long: setup  ## the whole fault matrix and the soak: most of an hour
	$(BIN)/python -m pytest -m long

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@echo "setting up $(VENV) (once; minutes at the most)"
	@test -x $(UV) || $(PYTHON) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target .tools uv==$(UV_VERSION)
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	@$(UV) pip sync --quiet --python $(BIN)/python requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

lock: $(VENV)/.installed  ## take the newest versions that pyproject.toml allows
	$(UV) pip compile --quiet --universal --python-version 3.11 --extra dev --no-emit-index-url --no-header --upgrade pyproject.toml -o requirements.lock

benchmark: setup  ## what the control plane and a step cost, beside a plain loop
	$(BIN)/python -m benchmarks

gpu-check: setup  ## on a GPU: correctness, then speed, then a study, in eight minutes; on a CPU everything small
	$(BIN)/python -m benchmarks.gpu

clean:
	rm -rf $(VENV) .tools

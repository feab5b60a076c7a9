# `make demo` and `make test` do everything on a fresh machine: environment, installation, run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What is imported is compiled then; compiling all of it here would take half a minute.
# PyTorch's CPU index, say, on a Linux machine without a GPU: make demo TORCH_INDEX=…
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# Told to keep no bytecode, as in many containers, Python would compile PyTorch anew in each process: 14 s instead of 6.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test check bench format clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.demo
	$(BIN)/midblock demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.all

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing midblock into $(VENV) (a minute or two the first time)"
	$(PIP) --editable ".[demo]"
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing midblock and its tools into $(VENV) (a minute or two the first time)"
	$(PIP) --editable ".[dev]"
	@touch $@ $(VENV)/.demo

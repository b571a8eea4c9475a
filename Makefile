# Two commands do everything: make demo, make test. Both install what they need into .venv first.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
# a CPU machine: make demo TORCH_INDEX=<an index of CPU builds of torch>
PIP_INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX),)

.PHONY: demo test lint clean

demo: .venv/.ready
	$(BIN)/python train.py

test: .venv/.ready
	bash tests/install_system.sh
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "tunediff needs Python 3.11 or newer; name one: make demo PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_INDEX) "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_INDEX) -e ".[test]"
	@touch $@

clean:
	rm -rf .venv build dist

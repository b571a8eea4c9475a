# Two commands do everything: make demo, make test. Both install the versions of constraints.txt into .venv first.
PYTHON ?= python3
BIN := .venv/bin
# a CPU machine: make demo TORCH_INDEX=<an index of CPU builds of torch>
PIP_INSTALL := install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX),)
SUITE := -m pytest -n auto --dist loadgroup
# an environment from nothing, outside the lock: $(call fresh,folder,options of pip). Its torch is named, for pip knows no
# newest or lowest CPU build
TORCH ?= torch==2.13.0
fresh = $(PYTHON) -m venv --clear $(1) && $(1)/bin/pip $(PIP_INSTALL) "$(TORCH)" && $(1)/bin/pip $(PIP_INSTALL) $(2) -e ".[test]"

# the numbers of README.md and bench/results.md, from runs of this machine
results: .venv/.ready
	$(BIN)/python bench/publish.py

# every published claim of conf/experiment on the embedded pair, and RESULTS.md
reproduce: .venv/.ready
	$(BIN)/python bench/reproduce.py

.PHONY: demo reproduce test test-newest test-lowest lock lint licences audit clean results

demo: .venv/.ready
	$(BIN)/python train.py

test: .venv/.ready
	bash tests/install_system.sh
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python $(SUITE); passed=$$?; wait $$types && exit $$passed

# the newest versions that pyproject.toml allows
test-newest:
	$(call fresh,.venv-newest)
	OMP_NUM_THREADS=1 .venv-newest/bin/python $(SUITE)

# the lowest
test-lowest:
	mkdir -p build
	$(PYTHON) tests/lowest.py > build/lowest.txt
	$(call fresh,.venv-lowest,-c build/lowest.txt)
	OMP_NUM_THREADS=1 .venv-lowest/bin/python $(SUITE)

# packages of one platform are left out: torch names their exact versions itself
lock:
	$(call fresh,.venv-newest)
	.venv-newest/bin/pip freeze --all --exclude pip --exclude-editable > .venv-newest/frozen.txt
	echo "# All that make demo and make test install, in exact versions. Written by make lock." > constraints.txt
	grep -vE '^(nvidia|cuda|triton)' .venv-newest/frozen.txt | sed 's/+.*//' | tr 'A-Z_' 'a-z-' | LC_ALL=C sort >> constraints.txt

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

licences: .venv/.ready
	$(BIN)/python bench/dependencies.py licences

# known holes of the locked packages: of those that cannot be looked up pip-audit would say nothing wrong, hence --strict.
# Without a network: make audit ADVISORIES=<a copy of github.com/pypa/advisory-database>
audit: .venv/.ready
ifdef ADVISORIES
	$(BIN)/python bench/dependencies.py advisories $(ADVISORIES)
else
	$(PYTHON) -m venv --clear .venv-audit
	.venv-audit/bin/pip $(PIP_INSTALL) "pip-audit>=2.10,<3"
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r constraints.txt
endif

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "tunediff needs Python 3.11 or newer; name one: make demo PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip $(PIP_INSTALL) -c constraints.txt -e ".[test]"
	@touch $@

clean:
	rm -rf .venv .venv-newest .venv-lowest .venv-audit build dist

# make demo: install and run the main job on embedded images.
# make check: format, lint, types and the tests of seconds. make test: every law, method and command, as CI runs it.
# make test-all: the long tests and the comparisons with other packages too. docs/testing.md says what is where.
# make mutants: one-line mutations, each of which must fail a test.
# make peers: the packages our attacks are compared with; tests/peers and tools.peers use them where they are.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
# tests marked data want real shards, which come with nobody's clone: they run where these are
DATA := $(if $(ROBUST_TRAIN_DATA)$(wildcard ../shared/data),,and not data)

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-all check mutants peers clean
demo: $(INSTALLED)
	@$(BIN)/python -m launch.train

test: $(INSTALLED)
	$(PYTEST) -m "not long and not gpu $(DATA)"

test-all: $(INSTALLED) .venv/peers
	$(PYTEST) -m "not gpu $(DATA)"

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow and not long and not cluster and not gpu and not browser $(DATA)"

mutants: $(INSTALLED)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing into .venv: about 2 GB, a minute or two"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --quiet -e ".[all,dev]" -c constraints.txt
	@touch $@

.venv/peers: $(INSTALLED) peers.txt
	@$(BIN)/python -m pip install --quiet --quiet --no-deps -r peers.txt
	@touch $@

# robustbench pins an older timm, installs a package named tests that would hide ours, and needs pkg_resources
.venv-peers/installed: constraints.txt
	@echo "installing robustbench into .venv-peers: about 1.3 GB, a minute or two"
	@$(PYTHON) -m venv .venv-peers
	@grep -v "^timm==" constraints.txt > .venv-peers/constraints.txt
	@.venv-peers/bin/python -m pip install --quiet --quiet robustbench==1.1.1 "setuptools<81" -c .venv-peers/constraints.txt
	@touch $@

peers: .venv/peers .venv-peers/installed

clean:
	rm -rf .venv .venv-peers build *.egg-info

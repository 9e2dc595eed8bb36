# make demo: install and run the main job on embedded images. make test: install and run every test.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test check clean
demo: $(INSTALLED)
	@$(BIN)/python -m launch.train

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu"

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not cluster and not gpu and not browser"

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing into .venv: about 2 GB, a minute or two"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --quiet -e ".[all,dev]" -c constraints.txt
	@touch $@

clean:
	rm -rf .venv build *.egg-info

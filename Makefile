# Every target starts from nothing: the environment is built once and kept in .venv.
#   make quickstart [ARGS="parallel=tp2 stage.steps=50"]     PYTHON=python3.12 chooses the interpreter

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
FOLDERS := train model data parallel launch
# One thread a process: worlds of several processes share few cores, and threads that wait for each other cost more.
export OMP_NUM_THREADS ?= 1

.PHONY: quickstart test check format docs test-gpu clean

quickstart: $(STAMP)
	$(BIN)/python -m launch.quickstart $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(FOLDERS)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# build/site/index.html opens from disk
docs: $(STAMP)
	$(BIN)/python -m mkdocs build --strict

# make prove-core [PLANT=defect]: with a planted defect the proof has to fail
prove-%: $(STAMP)
	$(BIN)/python -m tests.prove.$* $(if $(PLANT),--plant $(PLANT)) $(ARGS)

# every planted defect in turn: each has to make the proof fail
prove-%-plants: $(STAMP)
	$(BIN)/python -m tests.prove.$* --plants

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu $(ARGS)
	$(BIN)/python -m launch.benchmark

# Keeps .venv and every run that is not the quickstart's.
clean:
	rm -rf runs/quickstart runs/proof build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(FOLDERS) tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Python %d.%d is too old, 3.11 is needed: make PYTHON=python3.12 ..." % v[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[samples,dev]'
	touch $@

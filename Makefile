# The environment is made by the first Python >= 3.11 found; another one: make PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PRESET ?= quick
SEED ?= 0
BIN := .venv/bin
INSTALLED := .venv/.installed
# a file of tests, or a notebook, to a core: torch gains little from a second one
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

.PHONY: course test lab notebooks verify clean

course: $(INSTALLED)  ## run every notebook, print seconds and claims
	$(BIN)/python -m rgdm_lib.course run --preset $(PRESET) --seed $(SEED)

test: $(INSTALLED)  ## what CI runs
	$(BIN)/ruff check .
	$(PARALLEL) --durations=10
	$(PARALLEL) --nbval-lax --nbval-current-env --nbval-cell-timeout=600 notebooks/*.ipynb
	$(BIN)/python -m rgdm_lib.course verify 01 07

lab: $(INSTALLED)  ## open the course
	$(BIN)/jupyter lab --notebook-dir=notebooks

notebooks: $(INSTALLED)  ## rebuild the .ipynb files from notebooks/src
	$(BIN)/python -m rgdm_lib.course build

verify: $(INSTALLED)  ## two runs of every notebook, byte-identical results
	$(BIN)/python -m rgdm_lib.course verify --preset $(PRESET) --seed $(SEED)

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 found; install one, or: make PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[course,dev]"
	touch $@

clean:  ## remove the environment and the runs
	rm -rf .venv runs notebooks/runs

# make demo: the runtime alone, one metasurface designed.   make test: everything installed and checked.
PYTHON ?= python3
BIN = .venv/bin
PIP = $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: demo test soak fuzz install-dev clean

demo: .venv/.runtime
	$(BIN)/python cli.py infer examples/targets/splitter.json --out demo

# A worker of pytest for every core, of one thread each: the threads of several would wait for one another.
test: install-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# Half an hour of good and bad requests to a server: what is lost, and what grows.
soak: install-dev
	$(BIN)/python bench/soak.py

# Sixty times what the tests try, at random: about an hour on a core. FUZZ=10 make fuzz is ten minutes.
FUZZ ?= 60
fuzz: install-dev
	FUZZ=$(FUZZ) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz tests/runtime/test_bundle_fuzz.py tests/runtime/test_schedulers_refusals.py

install-dev: .venv/.dev

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The stamps name what was installed from, so that an environment follows the files it is made from.
.venv/.runtime: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[cpu,lab]"
	touch $@

# PyTorch first and by version: a range would bring several gigabytes of CUDA packages.
.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) torch==2.13.0
	$(PIP) -e ".[dev]"
	touch $@ .venv/.runtime

clean:
	rm -rf .venv build dist *.egg-info demo

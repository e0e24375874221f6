# Two commands do all the set-up: a virtual environment, the installation,
# and the work. PYTHON=... chooses another interpreter, 3.11 or newer.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv

.PHONY: demo test lint docs clean

demo: $(VENV)/.demo
	$(VENV)/bin/python -m sjft_jax.main --config=configs/demo.py --workdir=runs/demo

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

docs: $(VENV)/.docs
	$(VENV)/bin/mkdocs build --strict

# One file per set of extras says that it is installed.
$(VENV)/.%: setup.cfg pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV)

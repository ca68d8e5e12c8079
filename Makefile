# The commands of this repository. Each makes the environment it needs:
# $(VENV) belongs to make, and is made anew when PYTHON changes.

PYTHON ?= python3
VENV ?= .venv

RUN := $(VENV)/bin/python
MADE := $(VENV)/.made-with-$(subst /,-,$(PYTHON))
INSTALLED := $(VENV)/.installed

.PHONY: help demo test lint format docs site bench clean
.NOTPARALLEL:

help:
	@echo "make demo    train a network on bad batches with and without clipping, in one picture"
	@echo "make test    run all tests, the examples of every docstring and the code of every page"
	@echo "make lint    check style, spelling and types"
	@echo "make format  repair what the linter can repair"
	@echo "make docs    build the documentation and serve it on this machine"
	@echo "make site    build the documentation alone"
	@echo "make bench   time a training step beside Optax's clipping, and per-example clipping beside jax-privacy's"
	@echo "make clean   remove the environment and everything that was built"
	@echo
	@echo "Choose another Python by its command: make test PYTHON=python3.13"

demo: $(INSTALLED)-examples
	@$(RUN) examples/demo.py

# With jax-privacy, which [test] leaves out since it would raise the lowest Optax: without
# it the tests of its adapter are skipped.
test: $(INSTALLED)-test $(INSTALLED)-bench
	@$(RUN) -m pytest -n 2 --dist loadgroup

lint: $(INSTALLED)-test $(INSTALLED)-lint
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m ruff format --quiet --check .
	@$(RUN) -m codespell_lib
	@$(RUN) -m pyright --pythonpath $(RUN)

format: $(INSTALLED)-lint
	@$(RUN) -m ruff check --quiet --fix .
	@$(RUN) -m ruff format --quiet .

docs: site
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs serve

# Not --quiet, which hides the warnings that shall fail a build.
site: $(INSTALLED)-docs
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build

bench: $(INSTALLED)-bench
	@$(RUN) benchmarks/overhead.py
	@$(RUN) benchmarks/memory.py
	@$(RUN) benchmarks/per_example.py --slow

clean:
	@rm -rf $(VENV) build dist site .hypothesis .pytest_cache .ruff_cache *.png
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each extra. It is older than pyproject.toml when that has changed. Python
# compiles what it imports; pip would compile all modules, in two thirds of its time.
$(INSTALLED)-%: pyproject.toml $(MADE)
	@echo "Installing optaxclip[$*] into $(VENV); the first time this takes a minute or two."
	@$(RUN) -m pip install -qq --no-compile --disable-pip-version-check --editable ".[$*]"
	@touch $@

# Ctrl-C ends the making of it, too, without a traceback.
$(MADE):
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	  "optaxclip needs Python 3.11 or newer, $(PYTHON) is %d.%d: name a newer one, as in make PYTHON=python3.13" % v[:2])'
	@$(PYTHON) -c 'import signal, venv; signal.signal(signal.SIGINT, signal.SIG_DFL); \
	  venv.main(["--clear", "$(VENV)"])'
	@touch $@

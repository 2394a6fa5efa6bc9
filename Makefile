# Two commands matter: `make study` and `make test`. Each makes its own environment first; what is up to date is left alone.
# make itself ends with 2 after any failure and prints the command's own exit code as "Error N"; `python -m helpers` returns it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
# 3.11 is what everything was run with; 3.12 and 3.13 are what the lock resolves for as well.
FITS = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c '$(FITS)' 2>/dev/null && { command -v $$p; break; }; done)
NARROW = $(if $(PROFILE),--profile "$(PROFILE)") $(if $(MODEL),--model "$(MODEL)") $(if $(SEED),--seed "$(SEED)") $(if $(FORCE),--force)
COMPUTED = $(if $(COMPUTE),--compute "$(COMPUTE)")
UV ?= uv
TARGETS ?= $(foreach p,3.11 3.12 3.13,$(p):x86_64-unknown-linux-gnu $(p):aarch64-unknown-linux-gnu) \
	3.12:x86_64-pc-windows-msvc 3.13:aarch64-apple-darwin
STRIPPED = --keep-id --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.language_info"

TESTS = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python
WORKERS ?= 2
PARALLEL = -n $(WORKERS) --dist loadscope --no-loadscope-reorder

.PHONY: study architecture test test-all cover check golden coverage gate power book pdf launch bench clean lock lock-check doctor env help

study: .venv/.stamp  ## run the chapters that are not done, then build the book (PROFILE=quick MODEL= SEED= FORCE=1)
	@$(BIN)/python -m helpers study $(NARROW) $(COMPUTED)

test: check  ## what a change needs: form, and all tests but those marked slow (WORKERS=2)
	@$(TESTS) -m pytest -m "not slow" $(PARALLEL)

test-all: check  ## all tests, the slow ones too; what the nightly run checks
	@$(TESTS) -m pytest $(PARALLEL)

cover: .venv/.stamp  ## which lines of src/helpers `make test` runs, its kernels and commands included
	@rm -rf build/coverage
	mkdir -p build/coverage
	$(TESTS) -m coverage run -m pytest -m "not slow" $(PARALLEL)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --skip-covered --show-missing

check: .venv/.stamp  ## form, types and notebooks, in seconds: what `make test` looks at first
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	shopt -s nullglob
	notebooks=(notebooks/*.ipynb)
	if [ $${#notebooks[@]} -gt 0 ]; then $(BIN)/nbstripout --verify $(STRIPPED) "$${notebooks[@]}"; fi

architecture: .venv/.stamp  ## draw the wings in ARCHITECTURE.md from the imports
	@cd tests && ../$(BIN)/python -m support.house

golden: .venv/.stamp  ## record the golden values of new definitions, and code that gives the old ones still
	@cd tests && OMP_NUM_THREADS=1 ../$(BIN)/python -m support.golden

coverage: .venv/.stamp  ## simulate how often intervals hold what was planted, for the book (some minutes)
	@cd tests && OMP_NUM_THREADS=1 ../$(BIN)/python -m support.coverage

gate: .venv/.stamp  ## try `revalidate` on the embedded model: how often it errs, how long it takes, for the book (minutes)
	@cd tests && ../$(BIN)/python -m support.gate_trial

power: .venv/.stamp  ## what each claim will decide with more seeds or items, from the committed runs, for the book
	@OMP_NUM_THREADS=1 $(BIN)/python -m helpers.book.power

book: .venv/.stamp  ## build the book from executed chapters; no model is touched (PROFILE=)
	@$(BIN)/python -m helpers book $(NARROW)

pdf: .venv/.stamp  ## the whole book as one PDF, printed by chromium (PROFILE=)
	@$(BIN)/python -m helpers pdf $(NARROW)

launch: .venv/.stamp  ## write the notebooks that Colab opens, for the address in _config.yml
	@$(BIN)/python -m helpers.book.away.launch

bench: .venv/.stamp  ## measure the speed-ups as ratios against plain formulations
	@for file in benchmarks/[a-z]*.py; do $(BIN)/python "$$file"; done

doctor: .venv/.stamp  ## what differs from the pins, and what a run would lack
	@$(BIN)/python -m helpers doctor

env: .venv/.stamp  ## make the environment, or bring it up to date

clean:  ## remove build/, logs/ and the results of quick and smoke; committed results, environment and cache stay
	@rm -rf build logs .snakemake results/quick results/smoke

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

# torch comes first, by its pin alone: pip then takes a CPU build where the machine offers one.
# The stamp is written last; without it the environment is half-made and is made anew.
.venv/.stamp: requirements.lock pyproject.toml
	@if [ -f $@ ] && $(BIN)/python -c '$(FITS)'; then rm $@; else
		rm -rf .venv
		if [ -n "$(PYTHON)" ] && ! "$(PYTHON)" -c '$(FITS)'; then
			echo "error: $(PYTHON) is $$("$(PYTHON)" --version 2>&1 | tail -n 1); Python 3.11, 3.12 or 3.13 is needed: make env PYTHON=path" >&2; exit 14
		elif command -v uv >/dev/null; then uv venv --quiet --seed --python "$(or $(PYTHON),3.11)" .venv
		elif [ -n "$(PYTHON)" ]; then "$(PYTHON)" -m venv .venv
		else
			echo "error: Python 3.11, 3.12 or 3.13 is needed and none was found (python3 is $$(python3 --version 2>&1 | tail -n 1)); install one, or name it: make env PYTHON=path" >&2; exit 14
		fi
	fi
	install() { $(BIN)/python -I src/helpers/runner/installing.py $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off "$$@"; }
	if command -v uv >/dev/null; then
		if [ -n "$${PIP_FIND_LINKS:-}" ]; then export UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}"; fi
		if [ -n "$${PIP_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$PIP_INDEX_URL}"; fi
		install() { $(BIN)/python -I src/helpers/runner/installing.py uv pip install --python $(BIN)/python "$$@"; }
	fi
	echo "making the environment in .venv with $$($(BIN)/python --version) (once; some minutes)"
	install "$$(grep '^torch==' requirements.lock)" -c requirements.lock
	install -r requirements.lock
	install -e . --no-deps
	touch $@
	echo "the environment is made"

lock: .venv/.stamp  ## write requirements.lock anew from pyproject.toml, in a fresh environment
	@rm -rf build/lock
	$(BIN)/python -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep -o 'torch==[0-9.]*' pyproject.toml)"
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check -e '.[study]'
	{ sed -n '/^#/p' requirements.lock
	  build/lock/bin/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//'
	} > build/requirements.lock
	mv build/requirements.lock requirements.lock
	rm -rf build/lock

lock-check:  ## ask whether the pins can be met on each Python and system that is named here; needs uv and a network
	@command -v $(UV) >/dev/null || { echo "error: uv is needed to resolve for other systems; install it, or name it: make lock-check UV=path" >&2; exit 14; }
	if [ -n "$${PIP_FIND_LINKS:-}" ]; then export UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}"; fi
	if [ -n "$${PIP_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$PIP_INDEX_URL}"; fi
	export MACOSX_DEPLOYMENT_TARGET=14.0  # the oldest macOS that bitsandbytes is built for
	failed=0
	for target in $(TARGETS); do
		python=$${target%%:*} system=$${target#*:}
		if said=$$($(UV) pip compile --quiet --no-header --no-annotate --python-version $$python --python-platform $$system requirements.lock 2>&1 >/dev/null)
		then echo "the lock resolves for Python $$python on $$system"
		else echo "error: the lock does not resolve for Python $$python on $$system:"$$'\n'"$$said" >&2; failed=14; fi
	done
	exit $$failed

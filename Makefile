# make setup   a virtual environment in .venv with everything the project needs
# make demo    train on data.jsonl and compare, on the catalogue's 1.5B model
# make bench   speed and memory beside the stock recipe, TRL, transformers and bare llama.cpp (half an hour, idle machine)
# make test    lint, types, import contracts, tests (a quarter of an hour); CI does that
# make wheel   build the wheel and test it without the source: CI does that too
# make trust   kill, fuzz, load and team it up: what takes minutes, CI does that too (SOAK=600 seconds of load, FUZZ=30 a reader)
# make lock    pin every package by its hashes in locks/; make sbom writes the bill of materials of what a user installs
#
# PYTHON=python3.12 chooses the interpreter; TORCH_INDEX=URL takes torch from another package index (README: CUDA, CPU).
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin

.PHONY: setup demo test check wheel trust bench lock sbom docs messages clean

setup: .venv/.done

# Everything but torch is taken by its hash. torch is taken by its version: which wheel is right depends on the machine.
TORCH := torch==2.13.0

.venv/.done: pyproject.toml locks/dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement locks/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/znatok demo

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/hadolint Dockerfile
	$(BIN)/python tools/messages.py --check
	$(BIN)/python tools/generate_docs.py --check

# Two test processes share the cores: a thread that spins while it waits for another one takes the other process's core.
test wheel trust: export OMP_WAIT_POLICY = passive

test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 15 --cov --cov-report=term --cov-fail-under=90

wheel: setup
	$(BIN)/python tools/try_wheel.py

SOAK ?= 600
FUZZ ?= 30

trust: setup
	SOAK=$(SOAK) FUZZ=$(FUZZ) $(BIN)/python -m pytest -n 2 --dist worksteal --durations 15 tests/trust

# What a user may install, and what the set-up installs.
EXTRAS := --extra llamacpp --extra quant --extra search --extra judge --extra web
LOCK = $(BIN)/uv pip compile pyproject.toml locks/build.in --config-file locks/uv.toml --universal --python-version 3.11 $(EXTRAS) \
	--generate-hashes --no-annotate --no-emit-package torch --custom-compile-command 'make lock' --quiet

lock:
	$(LOCK) --output-file locks/run.txt
	$(LOCK) --extra dev --constraint locks/run.txt --output-file locks/dev.txt

sbom: setup
	printf '$(TORCH)\n' | cat locks/run.txt - | \
		$(BIN)/cyclonedx-py requirements - --pyproject pyproject.toml --output-reproducible --output-file sbom.json

bench: setup
	$(BIN)/python -m pip install --quiet --editable '.[dev,llamacpp,quant,search,judge,web,bench]'
	$(BIN)/python benchmarks/load.py
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/serve.py

docs: setup
	$(BIN)/python tools/generate_docs.py

messages: setup
	$(BIN)/python tools/messages.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage

# make setup   a virtual environment in .venv with everything the project needs
# make demo    train on data.jsonl and compare, on the catalogue's 1.5B model
# make bench   speed and memory beside the stock recipe, TRL, transformers and bare llama.cpp (half an hour, idle machine)
# make test    lint, types, import contracts, tests: what CI runs
# make wheel   build the wheel and test it without the source: CI does that too
#
# PYTHON=python3.12 chooses the interpreter; TORCH_INDEX=URL takes torch from another package index (README: CUDA, CPU).
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin

.PHONY: setup demo test check wheel bench docs messages clean

setup: .venv/.done

.venv/.done: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install --quiet --editable '.[dev,llamacpp,quant,search,judge,web]'
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

test: check
	$(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=90

wheel: setup
	$(BIN)/python tools/try_wheel.py

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

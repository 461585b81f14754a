# make demo    installs the base package into .venv and runs the main job; results in out/
# make test    installs what the tests need, then lint, types and every test
# make check   lint and types only
# make bench   performance comparisons (benchmarks/)
# make readme  refreshes what the README shows

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.DEFAULT_GOAL := demo
.PHONY: demo test check bench readme clean

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "einsight needs Python 3.11 or newer as $(PYTHON); name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python's venv module is missing; on Debian: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/base.stamp: pyproject.toml $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/test.stamp: pyproject.toml tests/constraints.txt $(BIN)/python
	$(PIP) -c tests/constraints.txt torch numpy triton
	$(PIP) -c tests/constraints.txt -e '.[dev,tune,gpu]'
	@touch $(VENV)/base.stamp $@

MODEL   := --model examples/models/llama-3.1-8b.json
TARGETS := --target h100-sxm --target h200-sxm --target b200
PREFILL := $(MODEL) --phase prefill --batch 1 --seq 8192 $(TARGETS)
DECODE  := $(MODEL) --phase decode --batch 32 --seq 8192 $(TARGETS)

demo: $(VENV)/base.stamp
	@mkdir -p out
	$(BIN)/einsight simulate $(PREFILL) --plot out/prefill.svg
	$(BIN)/einsight simulate $(DECODE) --plot out/decode.svg
	$(BIN)/einsight report out examples/llama-3.1-8b-*.yaml $(TARGETS)

check: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/mypy

# -rs: the run ends with every skipped test and its reason
test: check
	$(BIN)/pytest -n 2 -rs

bench: $(VENV)/base.stamp
	$(BIN)/python benchmarks/bench_cli.py
	$(BIN)/python benchmarks/bench_predict.py

# after a change to a model's numbers: what the README shows
readme: $(VENV)/test.stamp
	$(BIN)/python tests/test_readme.py
	$(BIN)/einsight simulate examples/llama-3.1-8b-*.yaml --target h100-sxm --plot docs/roofline.svg > /dev/null

clean:
	rm -rf $(VENV) out build dist .src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

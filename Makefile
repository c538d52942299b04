# make demo    speech in, a packed 1-bit recogniser and its word error rate out, on a corpus made on the spot
# make test    format, lint and tests
# Both set up .venv first. The other targets: venv, kaldifeat, lint, modern-venv, modern-test, clean.

SHELL := /bin/bash
PYTHON_VERSION := $(shell cat .python-version)
VENV := .venv
# The second lane: a present torch, no k2.
MODERN_VERSION := 3.11
MODERN_VENV := .venv-modern
# For example PYTEST_FLAGS="-k quant -x".
PYTEST_FLAGS ?=
# Tests of a file stay together, for what they share; each takes one thread.
WORKERS ?= 2
PYTEST := python -m pytest --numprocesses $(WORKERS) --dist loadfile --durations=15 $(PYTEST_FLAGS)
INSTALLED_FROM := requirements.txt requirements-k2.txt pyproject.toml .ci/install .ci/find-python

.PHONY: demo test lint venv kaldifeat modern-venv modern-test clean

demo: venv
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" egs/librispeech/demo.sh

test: lint
	$(VENV)/bin/$(PYTEST)

lint: venv
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

venv: $(VENV)/.installed

$(VENV)/.installed: $(INSTALLED_FROM) .python-version
	.ci/install $(VENV) $(PYTHON_VERSION)

# Optional: batch features on the GPU. lhotse's extractor is the default.
kaldifeat: venv
	.ci/kaldifeat/build $(VENV)

modern-venv: $(MODERN_VENV)/.installed

$(MODERN_VENV)/.installed: $(INSTALLED_FROM)
	.ci/install $(MODERN_VENV) $(MODERN_VERSION)

modern-test: modern-venv
	$(MODERN_VENV)/bin/$(PYTEST)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find lowbit_k2 tests egs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

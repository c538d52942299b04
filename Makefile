# make demo    speech in, a packed 1-bit recogniser and its word error rate out, on a corpus made on the spot
# make test    format, lint and tests
# make transcribe-demo   words of three utterances of AN4 by a trained 1-bit model, without PyTorch
# make wheel   a wheel of the packed runtime with its library, for any Python from 3.10
# The first two set up .venv. The other targets: venv, kaldifeat, lint, modern-venv, modern-test, clean.

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
INSTALLED_FROM := requirements.txt requirements-k2.txt pyproject.toml setup.py .ci/install .ci/find-python

.PHONY: demo test lint venv kaldifeat modern-venv modern-test transcribe-demo wheel clean

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

# An environment with the packed runtime's packages alone, and the one that counts word errors.
DEMO_VENV := .venv-demo
# An AN4 that is there, instead of a download.
AN4 ?= egs/an4/download/an4
transcribe-demo: $(DEMO_VENV)/.installed $(AN4)
	$(DEMO_VENV)/bin/python egs/an4/local/demo.py --corpus-dir $(AN4)

egs/an4/download/an4:
	egs/an4/prepare.sh --stage 0 --stop-stage 0

$(DEMO_VENV)/.installed: requirements.txt pyproject.toml setup.py
	python=$$(.ci/find-python $(PYTHON_VERSION)) && $$python -m venv $(DEMO_VENV)
	$(DEMO_VENV)/bin/python -m pip --disable-pip-version-check install -e . "$$(grep '^kaldialign==' requirements.txt)"
	touch $@

# Needs no environment of its own: pip brings the build tools.
wheel:
	rm -rf build
	python=$$(.ci/find-python $(PYTHON_VERSION)) && $$python lowbit_k2/runtime/build.py >/dev/null && \
	  $$python -m pip --disable-pip-version-check wheel --no-deps --wheel-dir dist .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find lowbit_k2 tests egs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

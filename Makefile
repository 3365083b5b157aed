# `make demo` and `make test` do all set-up themselves, from a bare clone.

MODEL := smollm2-135m-instruct
VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip
# Only for type checks: libp2p and multiaddr bring trio-typing, whose stubs hide trio's own types.
TYPES_VENV := .venv-check
# The first that is new enough; `make PYTHON=/path/to/python3 …` takes another.
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all check gallery clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

install: $(VENV)/.installed-dev ## p2pgrid and its development tools into .venv

demo: $(VENV)/.installed ## three nodes on this machine answer a question together
	@$(BIN)/p2pgrid models pull $(MODEL)
	@$(BIN)/p2pgrid swarm --nodes 3 --model $(MODEL) --prompt "Explain gravity in two sentences."

test: WHICH := -m "not slow"
test: test-all ## the test suite without its slow tests

# Or each of a hundred processes would compile p2pgrid for itself.
test test-all: export PYTHONDONTWRITEBYTECODE :=
test-all: $(VENV)/.installed-dev ## the whole test suite
	@$(call get,chromium zsh fish)
	@$(BIN)/p2pgrid models pull $(MODEL)
	@$(BIN)/python -m pytest --numprocesses 2 --no-loadscope-reorder $(WHICH)

check: $(VENV)/.installed-dev $(TYPES_VENV)/.installed ## lint, format, types, import layers, house rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --python-executable $(TYPES_VENV)/bin/python
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m pytest tests/test_tidy.py

gallery: $(VENV)/.installed-dev ## the page's screenshots in docs/gallery
	@$(call get,chromium)
	@$(BIN)/p2pgrid models pull $(MODEL)
	@$(BIN)/python -m tests.e2e.gallery

clean: ## remove everything that make made here
	@rm -rf $(VENV) $(TYPES_VENV) dist build .mypy_cache .ruff_cache .import_linter_cache .hypothesis .pytest_cache
	@find p2pgrid tests -name __pycache__ -type d -prune -exec rm -rf {} +

# ── set-up: each stamp is older than pyproject.toml when the dependencies may have changed ──

$(VENV)/.installed: pyproject.toml
	@$(check_python)
	@$(check_compiler)
	@test -x $(BIN)/python || { echo "· creating $(VENV) with $$("$(PYTHON)" --version)"; "$(PYTHON)" -m venv $(VENV); }
	@echo "· installing p2pgrid and what it needs (a minute or two)"
	@$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "· installing the development tools"
	@$(PIP) install --quiet --editable '.[dev]'
	@touch $@

$(TYPES_VENV)/.installed: $(VENV)/.installed
	@echo "· installing the libraries once more, for type checks"
	@$(BIN)/python -m venv --clear --without-pip $(TYPES_VENV)
	@$(BIN)/python -c 'import re, tomllib; print(*(d for d in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"] if re.match(r"[\w-]+", d)[0] not in ("libp2p", "multiaddr")), sep="\n")' > $(TYPES_VENV)/requirements.txt
	@$(PIP) --python $(TYPES_VENV)/bin/python install --quiet --no-compile --requirement $(TYPES_VENV)/requirements.txt
	@touch $@

define check_python
test -n "$(PYTHON)" || { \
	echo "p2pgrid: needs Python 3.11 or newer and finds none: install it, or say make PYTHON=/path/to/python3" >&2; exit 1; }; \
"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "p2pgrid: needs Python 3.11 or newer, and $(PYTHON) is not: say make PYTHON=/path/to/python3" >&2; exit 1; }
endef

# fastecdsa, which libp2p needs, is compiled against GMP everywhere but on Macs with Apple's processors.
# Tried by compiling: it does not matter where the headers come from.
define check_compiler
complete() { \
	"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || return 1; \
	test "$$(uname -sm)" != "Darwin arm64" || return 0; \
	printf '#include <Python.h>\n#include <gmp.h>\n' | \
		$${CC:-cc} -fsyntax-only -x c -I"$$("$(PYTHON)" -c 'import sysconfig; print(sysconfig.get_path("include"))')" - 2>/dev/null; \
}; \
if ! complete && test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
	echo "· installing gcc, libgmp-dev, python3-dev, python3-venv with apt-get"; \
	apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq gcc libc6-dev libgmp-dev python3-dev python3-venv >/dev/null || true; \
fi; \
complete || { \
	echo "p2pgrid: lacks a C compiler, the headers of GMP or of Python, or Python's venv: install gcc libgmp-dev python3-dev python3-venv (Debian, Ubuntu), gcc gmp-devel python3-devel (Fedora), or the Xcode tools and gmp (macOS), then run make again" >&2; exit 1; }
endef

# Tests look at the page in a browser and complete in shells. What is missing here they skip, and say so.
define get
missing=; for program in $(1); do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
if test -n "$$missing" && test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
	echo "· installing$$missing with apt-get, for tests"; \
	apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends $$missing >/dev/null || true; \
fi
endef

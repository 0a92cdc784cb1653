# Everything a person does with this tree. Each target installs what it needs first; a second run finds it there.
SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
export PATH := $(CURDIR)/.venv/bin:$(PATH):/usr/sbin:/sbin
CACHE := $(or $(MESHSCOPE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/meshscope)
export MESHSCOPE_CACHE := $(CACHE)
PYTEST := .venv/bin/python -m pytest
C_FILES = $(wildcard kprobes/*.c kprobes/*.h)

.PHONY: help venv build demo test test-host test-vm lint reference bench jaeger vm fuzz clean FORCE

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One stamp per set of packages: `run` is what an operator needs, `dev` adds test and lint tools.
.venv/.run .venv/.dev: .venv/.%: pyproject.toml scripts/setup.sh
	@scripts/setup.sh $*
	@touch $@

venv: .venv/.dev ## apt packages and .venv with everything the tests need

build: .venv/.run ## compile the kernel side
	@$(MAKE) -C kprobes

demo: build ## a small shop, watched live; SECONDS=20 ends by itself
	@.venv/bin/python deploy/demo/demo.py $(if $(SECONDS),--seconds $(SECONDS))

test: test-host test-vm ## all tests: this kernel, then the short live suite under Debian 12's own kernel

test-host: venv build $(CACHE)/bin/jaeger
	$(PYTEST) $(ARGS)

test-vm: venv build
	MESHSCOPE_LIVE=short scripts/vm.sh $(PYTEST) -p no:cacheprovider tests/live $(ARGS)

lint: venv build ## ruff, mypy, clang-format, ABI padding, test twins
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run -Werror $(C_FILES)
	clang -x c -fsyntax-only -Wall -Wpadded -Werror kprobes/meshscope.h
	python scripts/mirror.py

reference: venv ## docs/reference.md, from the code
	python scripts/reference.py > docs/reference.md

bench: venv build ## what it costs, next to what it is compared with
	@for f in bench/*.py; do case $$f in */_*) continue;; esac; echo "== $$f"; python $$f || exit 1; done

jaeger: $(CACHE)/bin/jaeger ## a real Jaeger (and OpenTelemetry Collector) for the tests, built once, cached
$(CACHE)/bin/jaeger: scripts/jaeger.sh
	@scripts/jaeger.sh $@

vm: venv ## a command under Debian 12's own kernel: make vm CMD='uname -r'
	@scripts/vm.sh $(or $(CMD),uname -r)

fuzz: venv ## mutate HTTP conversations for SECONDS (default 60)
	MESHSCOPE_FUZZ_SECONDS=$(or $(SECONDS),60) $(PYTEST) tests/parsers -k 'harness or fuzz or mutat' --timeout 0

clean: ## what was built here; the cache stays
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	$(MAKE) -C kprobes clean

# Every target sets up what it needs: uv (in .uv/ where the machine has none) and the locked environment.
.DEFAULT_GOAL := help
.PHONY: help demo test check lint types effect effect-all bench families soak scaling interop gpu-kit setup clean

PYTHON ?= $(shell command -v python3.12 >/dev/null 2>&1 && python3.12 -c '' 2>/dev/null && echo python3.12 || echo python3)
SYSTEM_UV := $(shell command -v uv 2>/dev/null)
UV := $(if $(SYSTEM_UV),$(SYSTEM_UV),.uv/bin/uv)
BIN := .venv/bin
INTEROP := .cache/interop
CLIENTS := .cache/clients
AXE := 4.14.1
OPENAI_NPM := 7.59.0
# Requirements of benchmarks/gpu/check.py, except torch, transformers, peft and their dependencies.
GPU_KIT := annotated-types filelock fonticon-materialdesignicons7 ftfy open-clip-torch pydantic pydantic-core pyyaml \
  regex sentencex typing-extensions typing-inspection wcwidth
GPU_PLATFORMS := manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64
# Two files of tests at a time, in the order of tests/conftest.py.
TESTS := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
export UV_PYTHON_DOWNLOADS := never

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: setup ## run the whole loop on MiniWorld: 2 CPU cores, no GPU, no network after installation
	$(BIN)/jsfree run --config configs/miniworld.yaml --set source.count=1600

test: setup .cache/browser/.synced ## run the tests, except those marked slow
	$(TESTS) -m "not slow and not soak"

check: lint types .cache/browser/.synced $(CLIENTS)/.synced ## run lint, types and all tests except those marked soak, as CI does
	$(TESTS) -m "not soak"

lint: setup ## run ruff and check spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/typos

types: setup ## run mypy in strict mode
	$(BIN)/mypy

effect-all: setup .cache/weights-1 ## measure the default with views, over rounds, from another m0, and in prose (hours)
	$(BIN)/python benchmarks/effect.py --settings default --views 3 5
	$(BIN)/python benchmarks/effect.py --settings default --rounds 4 --seeds 0
	$(BIN)/python benchmarks/effect.py --settings default --weights .cache/weights-1
	$(BIN)/python benchmarks/effect.py --settings prose

.cache/weights-1: | setup
	$(BIN)/jsfree miniworld pretrain --seed 1 --out .cache/weights-1.partial
	mv .cache/weights-1.partial $@

effect: setup ## measure the effect: three seeds of three settings (about 40 minutes)
	$(BIN)/python benchmarks/effect.py

bench: setup ## compare the speed of generation, scoring and training with peers (about 20 minutes)
	$(UV) sync --frozen --group bench
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/dpo.py

families: setup ## measure how exactly every model family is decoded and trained (about 3 minutes)
	PYTHONPATH=. $(BIN)/python benchmarks/families.py

soak: setup ## kill workers, raylets and drivers at random, and send 5,000 generated requests (about an hour)
	JSFREE_API_CASES=5000 $(BIN)/pytest -n 0 tests/serve/http/test_openapi.py -k generated
	$(BIN)/pytest -n 0 -m soak
	$(BIN)/python benchmarks/soak.py

scaling: setup ## measure how generation scales: here, and simulated on 16 nodes (about 20 minutes)
	$(BIN)/python benchmarks/scaling.py

interop: setup $(INTEROP)/.synced ## compare captions by jsfree, transformers and vLLM, and the engines of jsfree serve (in a separate environment)
	PYTHONPATH=. $(BIN)/python benchmarks/interop.py --peers $(INTEROP)/bin/python

# The versions of the lock file, with vLLM built for CPUs instead of the package vllm, and without jsfree.
$(INTEROP)/.synced: uv.lock benchmarks/interop-requirements.txt | $(UV)
	$(UV) venv --quiet --clear --python .venv/bin/python $(INTEROP)
	$(UV) export --quiet --frozen --extra vllm --no-default-groups --no-emit-project --no-emit-package vllm \
	  --output-file $(INTEROP)/requirements.txt
	$(UV) pip install --quiet --python $(INTEROP)/bin/python --requirement $(INTEROP)/requirements.txt
	$(UV) pip install --quiet --python $(INTEROP)/bin/python --no-deps --requirement benchmarks/interop-requirements.txt
	@touch $@

gpu-kit: setup ## collect wheels for a GPU machine with torch and transformers but no network (Python 3.12)
	@rm -rf .gpu-kit && mkdir -p .cache
	@$(UV) export --quiet --frozen --no-default-groups --no-emit-project --no-hashes --no-annotate --no-header \
	  --output-file .cache/gpu-kit.txt
	@$(UV) tool run --quiet --python $(BIN)/python pip download -qq --dest .gpu-kit --constraint .cache/gpu-kit.txt \
	  --no-deps --only-binary :all: --python-version 3.12 --implementation cp $(GPU_PLATFORMS:%=--platform %) $(GPU_KIT)
	@du -sh .gpu-kit

setup: .venv/.synced

# axe-core, which the tests of the pages run in Chromium. They skip what needs it on machines without npm.
.cache/browser/.synced:
	@mkdir -p $(@D)
	@if command -v npm >/dev/null; then npm install --silent --no-audit --no-fund --prefix $(@D) axe-core@$(AXE); fi
	@touch $@

# Clients of the server, which tests run in processes of their own. Without npm its client's test is skipped.
$(CLIENTS)/.synced: tests/serve/http/clients/requirements.txt | .venv/.synced
	$(UV) venv --quiet --clear --python $(BIN)/python $(CLIENTS)
	$(UV) pip install --quiet --no-compile-bytecode --no-deps --python $(CLIENTS)/bin/python --requirement $<
	@if command -v npm >/dev/null; then npm install --silent --no-audit --no-fund --prefix $(@D) openai@$(OPENAI_NPM); fi
	@touch $@

.venv/.synced: pyproject.toml uv.lock | $(UV)
	$(UV) sync --frozen
	@touch $@

.uv/bin/uv:
	@echo "uv is not installed; putting it into .uv/"
	@$(PYTHON) -m venv .uv || { echo "error: $(PYTHON) has no venv module; install it (Debian: python3-venv) or install uv"; exit 1; }
	@.uv/bin/pip install --quiet --disable-pip-version-check uv

clean: ## remove environments, caches and runs
	rm -rf .venv .uv .cache .gpu-kit .mypy_cache .pytest_cache .ruff_cache runs

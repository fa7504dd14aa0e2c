# Each target first makes the virtual environment .venv, which the first time takes some minutes and, on Linux, 7 GB.
# Needed beforehand: make and Python 3.10 or newer. Another one than python3: make test PYTHON=python3.12

MINIMUM := 3.10
NEW_ENOUGH := import sys; sys.exit(sys.version_info < tuple(map(int, "$(MINIMUM)".split("."))))
PYTHON ?= $(or $(shell for python in python3 python3.12 python3.11 python3.10; do \
	"$$python" -c '$(NEW_ENOUGH)' 2>/dev/null && echo "$$python" && break; done),python3)

VENV := .venv
BIN := $(VENV)/bin
# PIP_CONSTRAINT carries the same versions into the builds of the few packages that come as source.
PIP_INSTALL := PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
LOG := >$(VENV)/install.log 2>&1 || { tail -n 20 $(VENV)/install.log >&2; exit 1; }
# The tests and the demo make their own data and a tiny model: nothing is fetched from a hub, nothing reports home.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_EVALUATE_OFFLINE=1 TRANSFORMERS_OFFLINE=1 \
	HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1 WANDB_MODE=disabled TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg

.DELETE_ON_ERROR:
.PHONY: help demo test quick check matrix bench speed leaderboard nano rooms clean

help:  ## This list
	@awk -F ':.*## +' '/^[a-z]+:.*## /{printf "%-13s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/installed  ## Questions about drawn scenes, answered twice each by the small model
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(OFFLINE) bash examples/demo.sh

test: $(VENV)/installed  ## The tests; some of them only: make test ARGS="tests/packaging -x"
	@$(OFFLINE) $(BIN)/python -m pytest --durations=10 --durations-min=1 $(ARGS)

# The method itself; the scores of POPE and GQA; every engine against the naive one, on a tiny model; the small model on
# drawn scenes; and who imports whom.
QUICK := \
	tests/dualfocus_lmms/test_boxes.py \
	tests/dualfocus_lmms/test_zoom.py \
	tests/dualfocus_lmms/test_prompts.py \
	tests/dualfocus_lmms/test_flow.py \
	tests/dualfocus_lmms/test_flow_regions.py \
	tests/dualfocus_lmms/test_flow_selection.py \
	tests/dualfocus_lmms/test_selection.py \
	tests/dualfocus_lmms/test_joint_rules.py \
	tests/dualfocus_lmms/test_trace.py \
	tests/tasks/test_scoring.py \
	tests/tasks/test_pope.py \
	tests/tasks/test_gqa.py \
	tests/models/engines/test_engines.py::test_engines_agree_where_some_samples_are_skipped_and_under_the_release_protocol \
	tests/models/tiny/test_nano.py::test_it_finds_the_thing_and_reads_its_digit \
	tests/packaging/test_imports.py

quick: $(VENV)/installed  ## Does the method still stand? Under a minute
	@$(OFFLINE) $(BIN)/python -m pytest -n 2 $(QUICK) $(ARGS)

check: $(VENV)/installed-dev  ## Style, spelling and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/typos
	@$(BIN)/python -m mypy

matrix: $(VENV)/installed-dev  ## Install and try the lowest, pinned and newest releases on every Python there is
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/compatibility.py $(ARGS)

bench: $(VENV)/installed  ## Time, tokens and memory of every engine, as ratios to plain inference
	@$(BIN)/dualfocus bench $(ARGS)

speed: $(VENV)/installed  ## The figures in docs/speed.md anew; the machine must be quiet
	@$(OFFLINE) $(BIN)/dualfocus bench --size 100m --device cpu --batch-size 1 --batch-size 4 \
		--out results/data/speed/cpu-100m $(ARGS)
	@sed -e '/<!-- figures -->/,/<!-- end -->/{ /<!-- /!d; }' -e '/<!-- figures -->/r results/data/speed/cpu-100m/report.md' \
		docs/speed.md >docs/speed.md.new
	@mv docs/speed.md.new docs/speed.md

leaderboard: $(VENV)/installed  ## Write results/README.md from the numbers in results/data
	@$(BIN)/dualfocus leaderboard --write

nano: $(VENV)/installed  ## Train the small model from scratch; continues an interrupted run; ARGS="--seed 1": another last stage
	@$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m dualfocus_lmms.train.nano --until tower
	@$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m torch.distributed.run --standalone --nproc_per_node 2 \
		-m dualfocus_lmms.train.nano --until base
	@$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m dualfocus_lmms.train.nano $(ARGS)

rooms: $(VENV)/installed  ## The rooms of the package, their size and what each imports
	@$(BIN)/python tests/rooms.py

$(BIN)/pip:
	@$(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { \
		echo "Needed is Python $(MINIMUM) or newer, $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing)." >&2; \
		echo "Name another one: make test PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing into $(VENV)" >&2
	@$(PIP_INSTALL) -e '.[test]' $(LOG)
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "Installing the tools for check into $(VENV)" >&2
	@$(PIP_INSTALL) -e '.[test,dev]' $(LOG)
	@touch $@

clean:  ## Remove what the targets above made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

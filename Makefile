# Two commands: `make quickstart` and `make test`. Each sets up all that it needs in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
# Hundreds of processes import what others have imported: what Python compiles is kept.
unexport PYTHONDONTWRITEBYTECODE
MINUTES ?= 60
THINK_SECONDS ?= 1
# Tests wait for servers, browsers and one another: two workers left a quarter of two cores idle.
WORKERS ?= 3

.PHONY: room quickstart smoke test test-fast lint unit proofs campaign kills models methods spread docs setup wheel labels synthetic votes bench clean help

help:
	@echo "make quickstart   the whole recipe on a real 135M model: about 11 minutes on two CPU cores"
	@echo "make test         lint, types, import rules and all tests"
	@echo "make test-fast    the tests of every day: about six minutes on two cores"
	@echo "make proofs       tests that take too long for every day: benchmarks, and more losses trained and resumed"
	@echo "make campaign     a lead runs a campaign of 20 raters on the page, in real browsers: an hour, or MINUTES=5"
	@echo "make kills        recipes killed at 40 random moments, half of them under ZeRO-2 and 3, against uncut ones: an hour or two"
	@echo "make models       every architecture and chat template through all stages, and docs/models.md: about 7 minutes on two cores"
	@echo "make spread       ten steps of each stage under ZeRO-1, 2, 3 and FSDP2 on two processes, against one: about 10 minutes"
	@echo "make methods      every adapter method through all stages that train, and docs/methods.md: about half an hour on two cores"
	@echo "make docs         the documentation, into site/; links are checked"
	@echo "make wheel        the wheel in an environment of its own, without the training packages: it labels, exports, compares"
	@echo "make mutation     small faults in the code that figures rest on, each of which a test must notice: hours"
	@echo "make labels       win rates by judgments bought, after the quickstart: 40 minutes, or MINUTES=20 and again later"
	@echo "make synthetic    what synthetic demonstrations are worth, after the quickstart: 45 minutes, or MINUTES=20 and again later"
	@echo "make votes        DPO losses with wrong votes, in worlds whose best policy is known: about a minute"
	@echo "make bench        our training steps against TRL's: hours on two CPU cores; benchmarks/training.py takes cases"
	@echo "make room         prepare on 1,000,000 generated tickets, killed once: time, memory, the same bytes"
	@echo "make smoke        the quickstart in small: every stage, a few rows and steps"

quickstart: setup
	$(BIN)/tiebreak run --config configs/quickstart/pipeline.yaml

smoke: setup
	rm -rf runs/smoke
	$(BIN)/tiebreak run --config configs/smoke/pipeline.yaml

labels: setup
	$(BIN)/python benchmarks/labels.py --minutes $(MINUTES)

synthetic: setup
	$(BIN)/python benchmarks/synthetic.py --minutes $(MINUTES)

votes: setup
	$(BIN)/python benchmarks/wrong_votes.py

bench: setup
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/reward_accuracy.py

room: setup
	$(BIN)/python benchmarks/data_room.py --kill

test: lint unit

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-fast: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow"

unit: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=40 --durations-min=4

proofs: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile --proofs -m proof

campaign: $(VENV)/dev.stamp
	PYTHONPATH=.:tests:tests/labeling_ui $(BIN)/python tests/labeling_ui/whole_campaign.py --minutes $(MINUTES) --think-seconds $(THINK_SECONDS)

kills: $(VENV)/dev.stamp
	PYTHONPATH=.:tests $(BIN)/python tests/stages/kills.py

models: $(VENV)/dev.stamp
	PYTHONPATH=.:tests $(BIN)/python tests/models/table.py

spread: $(VENV)/dev.stamp
	$(BIN)/python -m pytest tests/sharded/ten_steps.py -s

methods: $(VENV)/dev.stamp
	PYTHONPATH=.:tests:tests/methods $(BIN)/python tests/methods/table.py

docs: $(VENV)/docs.stamp
	$(BIN)/python -m tiebreak.command.reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(VENV)/dev.stamp
	BARE_INSTALL=1 $(BIN)/python -m pytest tests/test_wheel.py

mutation: $(VENV)/dev.stamp
	$(BIN)/python tests/mutation.py

setup: $(VENV)/run.stamp

# Where there is no GPU, the CPU build of torch is asked for by its exact version first; a GPU machine takes the default.
$(VENV)/run.stamp: pyproject.toml constraints.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit("Tiebreak needs Python 3.11 or newer; this is " + sys.version) if sys.version_info < (3, 11) else None'
	command -v nvidia-smi >/dev/null 2>&1 || $(BIN)/pip install --quiet --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,dev]'
	touch $@

$(VENV)/docs.stamp: $(VENV)/run.stamp
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) .bench runs build dist site *.egg-info

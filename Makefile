# make demo        compile and run the pinpad study, small: four world models, judged and drawn
# make test        what CI runs: lint, format, types, tests
# make test-slow   the long tests too
# make generate    what the specs and the golden tests compile to, written anew: read the diff
# make bench       benchmarks, printed as ratios
#
# Each sets up .venv by itself: Python 3.11 or later is all it needs.
# PYTHON=python3.12 picks an interpreter; JOBS=4 runs four stages at a time;
# TORCH_INDEX=URL adds an index of torch builds, such as PyTorch's index of CPU builds.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
JOBS ?= 2
TORCH_INDEX ?=

bin := .venv/bin
ready := .venv/ready
index := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
pip := $(bin)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint test-slow generate bench clean

$(ready): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("expc needs Python 3.11 or later") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(pip) --upgrade 'pip>=25.1'
	$(pip) $(index) --constraint constraints.txt --editable '.[runtime,new,onnx,shogi,arrow,ray]' --group dev
	touch $@

demo: $(ready)
	$(bin)/expc compile specs/pinpad_tiny.yaml
	$(bin)/expc run generated/pinpad_tiny --jobs $(JOBS)
	@echo
	@echo "results: runs/pinpad_tiny, one folder for each run; the table again: $(bin)/expc status pinpad_tiny"
	@echo "pictures: runs/pinpad_tiny/*/boundaries/*.png; what they show: docs/studies/pinpad.md"
	@echo "the code that ran: generated/pinpad_tiny; TensorBoard: $(bin)/tensorboard --logdir runs/pinpad_tiny"

test: lint
	$(bin)/python -m pytest -q

lint: $(ready)
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/shellcheck .ci/run runtime/expc_runtime/sweep/*.bash generated/*/*.sh tests/cluster/*.sh

test-slow: $(ready)
	$(bin)/python -m pytest -q -m 'slow or not slow'

generate: $(ready)
	$(bin)/expc schema > specs/spec.schema.json
	$(bin)/expc rule --all --format md > docs/rules.md
	for folder in generated/*/; do $(bin)/expc compile "specs/$$(basename "$$folder").yaml" || exit; done
	$(bin)/python -m pytest -q tests/compiler --expc-update

bench: $(ready)
	for one in startup step save launch pinpad_env; do $(bin)/python -m benchmarks.$$one || exit; done

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis

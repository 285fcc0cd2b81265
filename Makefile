# Everything is installed into .venv and built in this folder; nothing else on the machine changes.
PYTHON ?= python3
TORCH ?= torch>=2.10
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BUILT := $(VENV)/.built
CXX_FILES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: help demo setup bccd build test lint format docs wheel sanitize emulate fuzz kill-test bench gpu-check gpu-bench
.PHONY: clean no-data

help: # prints the lines below that contain two number signs
	@awk -F ':.*## ' '/^##@/ { print "\n" substr($$0, 5) } /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

##@ Start
demo: build ## train a small FCOS on generated images, evaluate it, draw its detections (minutes)
	$(BIN)/fcos-fast demo

DATA ?= $(FCOS_FAST_BCCD)
bccd: $(if $(DATA),build,no-data) ## train and evaluate on images of blood cells; DATA=FOLDER of BCCD_Dataset's BCCD
	$(BIN)/fcos-fast train --config bccd --data.root $(DATA)

no-data:
	@echo "make bccd DATA=FOLDER: the folder BCCD of https://github.com/Shenggan/BCCD_Dataset" >&2; exit 2

setup: $(READY) ## create .venv, build, install everything; the other targets do it first when needed

$(READY): pyproject.toml setup.py
	@echo "== setup: $(VENV) with torch, the extensions and all dependencies; takes minutes the first time"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)" torchvision numpy "setuptools>=77" wheel ninja pybind11
	$(BIN)/python -m pip install --verbose --no-build-isolation --editable ".[dev]" > $(VENV)/build.log 2>&1 \
		|| { tail -n 40 $(VENV)/build.log; echo "== setup failed; full log: $(VENV)/build.log"; exit 1; }
	@grep -A 4 -m 1 "=====" $(VENV)/build.log || true
	@touch $(READY) $(BUILT)
	@echo "== setup done; $(BIN)/fcos-fast info lists what runs natively; full log: $(VENV)/build.log"

##@ Develop
build: $(BUILT) ## rebuild the extensions after a change in csrc

$(BUILT): $(READY) $(CXX_FILES)
	@echo "== csrc has changed: building"
	$(BIN)/python setup.py --quiet build_ext --inplace > $(VENV)/build.log 2>&1 || { tail -n 40 $(VENV)/build.log; exit 1; }
	@touch $(BUILT)

test: build ## run all tests
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal --durations=10

lint: setup ## check style and types: ruff, clang-format, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy

format: setup ## rewrite files in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

docs: build ## build the HTML documentation in build/docs; warnings are errors
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs build/docs
	@echo "== docs: build/docs/index.html"

wheel: setup ## build sdist and manylinux wheel in dist/; test the wheel with the oldest and the newest torch
	$(BIN)/python tools/wheel.py

clean: ## delete everything that was built, except .venv
	rm -rf build dist *.egg-info fcos_fast/*.so $(READY) $(BUILT)

##@ Test more
sanitize: setup ## run the CPU operators' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(BIN)/python -m tests.sanitize

emulate: build ## run the operators' tests on the CUDA kernels, emulated on the CPU (minutes)
	$(BIN)/python -m tests.emulation.run

MINUTES ?= 30
fuzz: build ## search for inputs on which an operator and its reference differ; MINUTES=30
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

kill-test: build ## kill training runs 80 times, resume them, compare with an uninterrupted run (minutes)
	KILLS=40 $(BIN)/python -m pytest tests/engine/test_kill.py -s

##@ Measure
bench: OUT ?= benchmarks/results/local.json
bench: build ## time the operators against their peers; OUT=FILE.json
	$(BIN)/python -m pytest benchmarks --ignore benchmarks/tests --benchmark-only --benchmark-quiet --results $(OUT)
	$(BIN)/python -m benchmarks.plot $(OUT) $(basename $(OUT)).svg

##@ On a GPU, with the torch of PYTHON and the nvcc on the PATH instead of .venv; needs no network
gpu-check: OUT ?= build/gpu-check-results
gpu-check: ## build, run the GPU tests and compute-sanitizer; OUT=FOLDER, BUDGET=SECONDS
	$(PYTHON) -m tests.gpu_check $(OUT) $(if $(BUDGET),--seconds $(BUDGET))

gpu-bench: OUT ?= build/gpu-bench-results
gpu-bench: ## build, time the operators against their peers on the GPU; OUT=FOLDER, BUDGET=SECONDS
	$(PYTHON) -m benchmarks.gpu_bench $(OUT) $(if $(BUDGET),--seconds $(BUDGET))

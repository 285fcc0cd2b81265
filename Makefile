# What a newcomer runs. Everything happens inside .venv; nothing else on the machine changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BUILT := $(VENV)/.built
CXX_FILES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: help setup build test fuzz kill-test emulate lint format demo bccd bench gpu-check gpu-bench sanitize clean

help:
	@echo "make demo     train a small FCOS on generated images and look at what it learnt (minutes)"
	@echo "make test     run every test"
	@echo "make fuzz     search for inputs on which an operator and its reference differ (MINUTES=30)"
	@echo "make kill-test  kill -9 a training run 80 times, and compare its end with that of one left alone (minutes)"
	@echo "make emulate  run the CUDA kernels on the CPU, a thread at a time, against the operators' tests (minutes)"
	@echo "make lint     check style: ruff, clang-format"
	@echo "make bench    time the operators beside their peers (OUT=file.json)"
	@echo "make gpu-check OUT=FOLDER  build, GPU tests and compute-sanitizer in eight minutes, without .venv or network"
	@echo "make gpu-bench OUT=FOLDER  build and time on a GPU beside its peers, too; without a GPU both are rehearsed"
	@echo "make sanitize the CPU operators' tests under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make bccd     train and evaluate on photographs of blood cells (DATA=folder of BCCD_Dataset's BCCD)"
	@echo "make setup    make .venv, build the extensions, install (the others do it when it is missing)"
	@echo "make build    rebuild the extensions after a change in csrc"
	@echo "make format   rewrite files in the project's style"

setup: $(READY)

$(READY): pyproject.toml setup.py
	@echo "== setup: $(VENV) with torch, the extensions and everything for training and tests; some minutes the first time"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch>=2.10" torchvision numpy "setuptools>=77" wheel ninja pybind11
	$(BIN)/python -m pip install --verbose --no-build-isolation --editable ".[dev]" > $(VENV)/build.log 2>&1 \
		|| { tail -n 40 $(VENV)/build.log; echo "== setup failed; the whole log is $(VENV)/build.log"; exit 1; }
	@grep -A 4 -m 1 "=====" $(VENV)/build.log || true
	@touch $(READY) $(BUILT)
	@echo "== setup done: $(BIN)/fcos-fast info shows what runs; $(VENV)/build.log is the build's log"

build: $(BUILT)

$(BUILT): $(READY) $(CXX_FILES)
	@echo "== csrc has changed: building"
	$(BIN)/python setup.py --quiet build_ext --inplace > $(VENV)/build.log 2>&1 || { tail -n 40 $(VENV)/build.log; exit 1; }
	@touch $(BUILT)

test: build
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal --durations=10
	@echo "== tests passed; skipped ones and their reasons stand above; $(BIN)/fcos-fast info shows what runs"

kill-test: build
	KILLS=40 $(BIN)/python -m pytest tests/engine/test_kill.py -s

sanitize: setup
	$(BIN)/python -m tests.sanitize

fuzz: build
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

emulate: build
	$(BIN)/python -m tests.emulation.run

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

demo: build
	$(BIN)/fcos-fast demo

MINUTES ?= 30
DATA ?= ../shared/data/bccd
bccd: build
	$(BIN)/fcos-fast train --config bccd --data.root $(DATA)

bench: OUT ?= benchmarks/results/local.json
bench: build
	$(BIN)/python -m pytest benchmarks --ignore benchmarks/tests --benchmark-only --benchmark-quiet --results $(OUT)
	$(BIN)/python -m benchmarks.plot $(OUT) $(basename $(OUT)).svg

# Both take the Python, the torch and the nvcc that are there, not .venv: they need no network.
gpu-check gpu-bench: BUDGET ?= 465
gpu-check: OUT ?= build/gpu-check-results
gpu-check:
	$(PYTHON) -m tests.gpu_check $(OUT) --commit "$(COMMIT)" --seconds $(BUDGET)

gpu-bench: OUT ?= build/gpu-bench-results
gpu-bench:
	$(PYTHON) -m benchmarks.gpu_bench $(OUT) --commit "$(COMMIT)" --seconds $(BUDGET)

clean:
	rm -rf build dist *.egg-info fcos_fast/*.so $(READY) $(BUILT)

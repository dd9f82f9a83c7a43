# make run · make test · make help. Works with Python 3.11 to 3.13 and nothing else installed; PYTHON=... names one.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Not taken from the environment (conda and some shells set HOST): make run HOST=0.0.0.0 PORT=8080
HOST = 127.0.0.1
PORT = 8000
PROVIDER = cpu
export PROVIDER
PYTHON ?=
export PYTHON

BIN := .venv/bin
# One thread for each of at most two workers: the notebooks share the machine.
WORKERS := $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); echo $$(( n < 2 ? 1 : 2 )))
# A run with fewer passed tests than this has lost some on the way.
LEAST := 1150
quiet := env -u IN_TEST OMP_NUM_THREADS=1

.PHONY: help run serve-env env hooks test lint notebooks export docs repro container audit sla bench agree course fuzz screenshot lock clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 18

run: serve-env ## serve the shipped models and the page (HOST=127.0.0.1 PORT=8000 PROVIDER=cpu, or openvino)
	@echo "Starting the service; Ctrl-C ends it."
	@exec .venv-serve/bin/fashion_serve --host "$(HOST)" --port "$(PORT)" --provider "$(PROVIDER)"

serve-env: ## make .venv-serve, the serving environment, without torch
	@scripts/environment.sh serve

env: ## make .venv, the full development environment
	@scripts/environment.sh dev

hooks: env ## install git's hooks: notebooks merge cell by cell, commits and pushes are checked
	scripts/hooks.sh

test: env ## run every check that CI runs
	$(BIN)/ruff check .
	$(quiet) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --least $(LEAST) --durations 10

lint: env ## check the style of code and notebooks
	$(BIN)/ruff check .

notebooks: env ## run every notebook and store its outputs (NB=01_image for one)
	$(quiet) $(BIN)/python scripts/notebooks.py $(NB)

export: env ## write fashion_nbdev/ from the notebooks
	env -u IN_TEST $(BIN)/nbdev_export

docs: env ## write README.md from nbs/index.ipynb
	$(BIN)/python scripts/readme.py

repro: env ## run the pipeline, what is not up to date of it (ONLY=benchmark@short tries every step in a minute or two)
	env PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro $(ONLY)

container: env ## build the service's image with Docker, Podman or Buildah and try it (BASE=... for another base image)
	$(BIN)/python -m pytest -q tests/test_container.py --image build --base "$(BASE)"

audit: env ## ask pip-audit for known vulnerabilities in what is pinned
	$(BIN)/python scripts/audit.py

sla: env ## measure the promises of the service under load, and repeat its tests as often as its goals say (half an hour)
	for model in clothing fashion_mnist fashion_mnist_small; do env OMP_NUM_THREADS=1 $(BIN)/fashion_load --model $$model --soaked 100000 || exit 1; done
	env OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --long serve/tests
	$(BIN)/fashion_benchmark --sla

bench: env ## measure the models, other runtimes, the service, others beside it and what our code adds; results/ and the README (two hours, nothing else running)
	for model in clothing fashion_mnist fashion_mnist_small; do run=runs/$$model/pipeline; \
		env OMP_NUM_THREADS=1 $(BIN)/fashion_benchmark --model $$model $$([ ! -f $$run/model_fp32.onnx ] || echo --compare $$run/model_fp32.onnx) || exit 1; \
		$(BIN)/fashion_runtimes --model $$model $$([ ! -d $$run/best_model ] || echo --run $$run) || exit 1; done
	for name in 05_improvements 08a_load 08d_limits; do $(quiet) $(BIN)/python scripts/notebooks.py $$name --flags slow || exit 1; done
	for model in clothing fashion_mnist fashion_mnist_small; do env OMP_NUM_THREADS=1 $(BIN)/fashion_load --model $$model --soaked 100000 || exit 1; done
	for model in clothing fashion_mnist; do env OMP_NUM_THREADS=1 $(BIN)/fashion_load --model $$model --provider openvino || exit 1; done
	env OMP_NUM_THREADS=1 $(BIN)/python benchmarks/guard.py
	env OMP_NUM_THREADS=1 $(BIN)/python benchmarks/rivals.py
	kept=0; $(BIN)/fashion_benchmark --sla || kept=$$?; \
	$(BIN)/python scripts/notebooks.py 05_improvements 07f_sla 08_benchmark 08b_stress 08c_runtimes index; \
	$(BIN)/python scripts/readme.py; exit $$kept

agree: env ## compare what make bench has measured with the results of a commit, within the spread that both state (COMMIT=HEAD)
	$(BIN)/python benchmarks/agree.py $(or $(COMMIT),HEAD)

course: env ## train fast.ai's course recipe and ours in turns until 94 % of the validation images are right (an hour, nothing else running)
	$(BIN)/python benchmarks/course/course.py

fuzz: env ## feed damaged pictures to the decoder (FOR=600 seconds; writes results/fuzz.json)
	$(BIN)/python scripts/fuzz.py $(or $(FOR),600) results/fuzz.json

screenshot: env ## take nbs/images/page.png, the README's picture of the page, in a browser
	$(quiet) $(BIN)/python -m pytest -q serve/tests/test_page.py --screenshot nbs/images/page.png

lock: ## resolve constraints.txt and serve's hashed requirements (UPGRADE=1 for the newest)
	@UPGRADE=$(UPGRADE) scripts/lock.sh "$$(scripts/environment.sh python)"

clean: ## remove environments, caches and built files, never data, runs or models
	rm -rf .venv .venv-serve .pytest_cache .ruff_cache .hypothesis build dist _docs _proc *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -type d -prune -exec rm -rf {} +

# `make demo` and `make test` need Python 3.11 and nothing else: they make their own environment in .venv.
PYTHON ?= python3
# faiss-cpu or faiss-gpu, which exclude each other: what was chosen once stays, until another is asked for.
FAISS ?= $(if $(wildcard .venv/.installed-gpu),gpu,cpu)
INSTALLED := .venv/.installed-$(FAISS)
BIN := .venv/bin
LINT := $(MAKE) --no-print-directory --keep-going
export MAPET_DATA_ROOT ?= data
export DO_NOT_TRACK = true
export PREFECT_SERVER_ANALYTICS_ENABLED = false

.PHONY: install demo up down status deploy test lint lint-code lint-format lint-imports lint-safety lint-types audit soak \
	bench gpu-check clean

# Made again when a dependency changes, or the other FAISS is wanted.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed; set PYTHON=..."'
	$(PYTHON) -m venv .venv
	@echo "installing (four to seven minutes the first time: PyTorch is large)"
	rm -f .venv/.installed-*
	@# Both: they write the same files, so taking one away would leave holes in the other, which pip calls installed.
	$(BIN)/python -m pip uninstall -qq --disable-pip-version-check --yes faiss-cpu faiss-gpu
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(FAISS),dev]'
	touch $@

install: $(INSTALLED)  ## the environment alone; FAISS=gpu for a machine with an NVIDIA GPU

demo: $(INSTALLED)  ## tokens of real images and three pre-trainings on them, in minutes
	$(BIN)/mapet reproduce demo

up: $(INSTALLED)  ## Prefect server, MLflow server and a worker per GPU on this machine; RUNS=2 for two runs at once
	@$(BIN)/python -m flows.services up $(if $(RUNS),--runs $(RUNS))

down: $(INSTALLED)  ## stop them; runs keep what is done
	@$(BIN)/python -m flows.services down

status: $(INSTALLED)  ## what runs, and whether it works
	@$(BIN)/python -m flows.services status

deploy: $(INSTALLED)  ## register every preset with Prefect again, after a change
	@$(BIN)/python -m flows.services deploy

# The linters beside the tests, which take longer; what they say comes after, whole, and each of them has its say.
test: $(INSTALLED)  ## every check there is
	@said=$$(mktemp); $(LINT) lint > $$said 2>&1 & lint=$$!; \
	trap 'kill $$lint 2> /dev/null; rm -f $$said' EXIT; trap 'exit 130' INT TERM; \
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder; \
	tests=$$?; wait $$lint; linted=$$?; cat $$said; exit $$((tests ? tests : linted))

lint: lint-code lint-format lint-imports lint-safety lint-types  ## style, directions of imports, types

lint-code: $(INSTALLED)
	$(BIN)/ruff check .

lint-format: $(INSTALLED)
	$(BIN)/ruff format --check .

lint-imports: $(INSTALLED)
	$(BIN)/lint-imports

lint-safety: $(INSTALLED)
	$(BIN)/bandit -q -c pyproject.toml -r models storage pipeline flows

lint-types: $(INSTALLED)
	$(BIN)/mypy

audit: $(INSTALLED)  ## known vulnerabilities of the pinned packages; `test` asks too, if PyPI can be asked
	$(BIN)/pip-audit --strict -r constraints.txt --no-deps --disable-pip

soak: $(INSTALLED)  ## an hour of kills and damaged files; MINUTES=10 for less, SEED=1 for others
	$(BIN)/python -m tests.faults.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

bench: $(INSTALLED)  ## measurements of this machine, to benchmarks/results/
	$(BIN)/python -m benchmarks

gpu-check: $(INSTALLED)  ## does this machine's NVIDIA GPU compute what it should, and how fast? 25 minutes; STEPS=attention,kmeans for some
	$(BIN)/python -m benchmarks.gpu_check $(if $(STEPS),--steps $(STEPS))

clean:  ## remove the environment; results stay
	rm -rf .venv

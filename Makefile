# `make demo` and `make test` need Python 3.11 and nothing else: they make their own environment in .venv.
PYTHON ?= python3
FAISS ?= cpu
BIN := .venv/bin
export MAPET_DATA_ROOT ?= data
export DO_NOT_TRACK = true
export PREFECT_SERVER_ANALYTICS_ENABLED = false

.PHONY: install demo up down status deploy test audit soak bench clean

# Made again when a dependency changes. FAISS=gpu installs faiss-gpu in place of faiss-cpu.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed; set PYTHON=..."'
	$(PYTHON) -m venv .venv
	@echo "installing (four to seven minutes the first time: PyTorch is large)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(FAISS),dev]'
	touch $@

install: .venv/.installed  ## the environment alone; FAISS=gpu for a machine with an NVIDIA GPU

demo: .venv/.installed  ## tokens of real images and three pre-trainings on them, in minutes
	$(BIN)/mapet reproduce demo

up: .venv/.installed  ## Prefect server, MLflow server and a worker per GPU on this machine; JOBS=2 for two runs at once
	@$(BIN)/python -m flows.services up $(if $(JOBS),--jobs $(JOBS))

down: .venv/.installed  ## stop them; runs keep what is done
	@$(BIN)/python -m flows.services down

status: .venv/.installed  ## what runs, and whether it works
	@$(BIN)/python -m flows.services status

deploy: .venv/.installed  ## register every preset with Prefect again, after a change
	@$(BIN)/python -m flows.services deploy

test: .venv/.installed  ## every check there is
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/bandit -q -c pyproject.toml -r models storage pipeline flows
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder

audit: .venv/.installed  ## known vulnerabilities of the pinned packages; `test` asks too, if PyPI can be asked
	$(BIN)/pip-audit --strict -r constraints.txt --no-deps --disable-pip

soak: .venv/.installed  ## an hour of kills and damaged files; MINUTES=10 for less, SEED=1 for others
	$(BIN)/python -m tests.faults.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

bench: .venv/.installed  ## measurements of this machine, to benchmarks/results/
	$(BIN)/python -m benchmarks

clean:  ## remove the environment; results stay
	rm -rf .venv

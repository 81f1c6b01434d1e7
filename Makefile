# Two commands do all set-up: `make demo` (raw log in, trained and evaluated model out) and `make test`.
PYTHON ?= python3
comma := ,
# What to install beside the package; without EXTRAS=..., what is installed already stays.
EXTRAS ?= $(or $(shell cat .venv/.extras 2>/dev/null),dev$(comma)cluster$(comma)serve)
ACCELERATOR ?= $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
TORCH := 2.13.0
FBGEMM := 1.8.0
TORCHREC := 1.8.0
BIN := .venv/bin
STAMP := .venv/.installed-$(ACCELERATOR)-$(subst $(comma),-,$(EXTRAS))
RUN := runs/demo
# Processes that run tests; tests of one file stay in one of them.
WORKERS ?= 2

ifeq ($(ACCELERATOR),gpu)
FBGEMM_PACKAGE := fbgemm-gpu==$(FBGEMM)
else
FBGEMM_PACKAGE := fbgemm-gpu-cpu==$(FBGEMM)
endif

.PHONY: help env demo test check soak notebooks clean

help:
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/:/'

env: $(STAMP) ## build or refresh the environment in .venv

$(STAMP): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v in ((3, 11), (3, 12)) else f"LASER needs Python 3.11 or 3.12, found {v[0]}.{v[1]}: run make PYTHON=python3.11")'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch==$(TORCH) $(FBGEMM_PACKAGE)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[$(EXTRAS)]'
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps torchrec==$(TORCHREC)
	@echo '$(EXTRAS)' > .venv/.extras
	@touch $@

demo: env ## prepare the bundled data, train, test and report
	$(BIN)/laser-prep run conf/prep/movielens_small.yaml --out prepared/movielens_small
	$(BIN)/laser fit -c conf/demo.yaml
	$(BIN)/laser test -c conf/demo.yaml
	$(BIN)/laser report $(RUN)
	@echo "Open $(RUN)/report.html"

test: env ## the whole test suite
	$(BIN)/python -m pytest -m "not soak" -n $(WORKERS) --dist loadfile

check: env ## style, types, import contracts, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports
	$(BIN)/codespell

soak: env ## long tests: crashes, stress
	$(BIN)/python -m pytest -m soak --timeout 3600

notebooks: env ## train a small model with sigmoid gates and one with softmax, and run the notebooks into docs/notebooks
	$(BIN)/laser-prep run conf/prep/movielens_small.yaml --out prepared/movielens_small
	for gate in sigmoid softmax; do \
		options="-c conf/demo.yaml -c notebooks/small.yaml --model.network.init_args.gate $$gate"; \
		options="$$options --trainer.default_root_dir runs/notebooks/$$gate"; \
		$(BIN)/laser fit $$options && $(BIN)/laser test $$options --gates || exit 1; \
	done
	$(BIN)/python notebooks/render.py docs/notebooks

clean: ## remove the environment and everything that was produced
	rm -rf .venv prepared runs

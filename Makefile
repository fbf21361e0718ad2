# make setup   everything into .venv, from the lock file
# make demo    build, serve, detect on one image, stop; with any YOLOX:  make demo MODEL=yolox_nano.onnx IMAGE=dog.jpg
# make test    unit tests, and server tests against a real tritonserver
# make test-pythons, test-training, test-gpu   what needs other Pythons, PyTorch, a GPU
PYTHON ?= python3
VENV   ?= .venv
MODEL  ?=
IMAGE  ?=
BIN    := $(VENV)/bin

.PHONY: bench-gpu setup demo test test-pythons torch test-training test-gpu fuzz load soak chaos sbom auditable audit lint lock clean

setup: $(VENV)/.installed

# Triton's Python stubs and NumPy 1 set the limits.
FITS := import sys; (3, 10) <= sys.version_info[:2] <= (3, 12) or sys.exit("error: $(PYTHON) is Python %s, and pinstream \
  needs 3.10 to 3.12; name one of these, as in: make setup PYTHON=python3.12" % sys.version.split()[0])

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c '$(FITS)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: setup
	$(BIN)/pinstream demo $(if $(MODEL),--model "$(MODEL)") $(if $(IMAGE),--image "$(IMAGE)")

# Four on two cores, since servers mostly wait; with five, tests failed for time. Files in the order of testpaths, of which
# the long ones come first.
test: setup
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

test-pythons: setup
	.ci/pythons

# PyTorch is large and only training needs it, so it is not in the lock file and stays out of .venv.
TORCH ?= torch==2.13.0
torch: .run/torch/.installed

.run/torch/.installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --upgrade --target .run/torch $(TORCH)
	touch $@

test-training: torch
	PYTHONPATH="$(CURDIR)/.run/torch" $(BIN)/python -c "import torch"
	OMP_NUM_THREADS=1 PYTHONPATH="$(CURDIR)/.run/torch" $(BIN)/python -m pytest -n 2 --dist loadfile tests/unit/training \
	  --ignore tests/unit/training/test_shapes.py
	.ci/training passed

# Both halves run, whatever becomes of the first.
test-gpu: export PINSTREAM_REQUIRE_GPU := 1
test-gpu: export PINSTREAM_GPU_RESULTS := benchmarks/results/gpu-tests.json
test-gpu:
	@failed=0; \
	python3 -m pytest tests/gpu -k "not exact" || failed=1; \
	python3 -m pytest tests/gpu -k exact || failed=1; \
	exit $$failed

# The long forms of what `make test` does in seconds; each writes its figures to benchmarks/results.
fuzz: setup
	PYTHONPATH=.:model_repository/yolox/1 $(BIN)/python -m tests.fuzz.long --out benchmarks/results/fuzz.json

# RUN names some of the soak's servers, as `make soak RUN=service-poll`; else there are four, side by side. PAUSE is how many
# seconds a client waits between an answer and its next request.
SECONDS ?= 1800
RUN     ?=
PAUSE   ?= 0.05
soak: OUT := benchmarks/results/soak.json
soak: setup
	PYTHONPATH=. $(BIN)/python -m tests.soak --seconds $(SECONDS) --every 20 --pause $(PAUSE) $(addprefix --run ,$(RUN)) --out "$(OUT)"

# Twice what the service can do, from clients of whom some give up, and who have a core of their own.
load: SECONDS := 600
load: setup
	PYTHONPATH=.:model_repository/yolox/1 $(BIN)/python -m tests.load --seconds $(SECONDS) --client-cores 1 --out benchmarks/results/load.json

# Processes killed, files damaged, clients killed, over and over under load.
chaos: SECONDS := 600
chaos: setup
	PYTHONPATH=.:model_repository/yolox/1 $(BIN)/python -m tests.chaos --seconds $(SECONDS) --out benchmarks/results/chaos.json

# What the lock file has, and what the container gets, as CycloneDX, and that nothing is missing in them. Then the known
# vulnerabilities of both; they come from PyPI's JSON interface, which mirrors often lack: `make auditable` says whether it
# is there.
.DELETE_ON_ERROR:
AUDIT := .run/audit/bin
sbom: .run/sbom.json .run/sbom-deploy.json

$(AUDIT):
	$(PYTHON) -m venv .run/audit
	$@/pip install --quiet --disable-pip-version-check pip-audit==2.10.1 cyclonedx-bom==7.5.0

.run/deploy.txt: deploy/requirements.txt deploy/Dockerfile
	@mkdir -p .run
	{ cat $<; sed -n 's/^ARG TENSORRT_VERSION=/tensorrt==/p' deploy/Dockerfile; } > $@

.run/sbom.json: requirements.lock
.run/sbom-deploy.json: .run/deploy.txt
.run/sbom.json .run/sbom-deploy.json: | $(AUDIT)
	$(AUDIT)/cyclonedx-py requirements $< --output-reproducible -o $@
	test "$$($(PYTHON) -c 'import json; print(len(json.load(open("$@"))["components"]))')" = "$$(grep -c '^[^ #].*==' $<)"

auditable: | $(AUDIT)
	@echo 'pip==25.0' > .run/probe.txt
	@$(AUDIT)/pip-audit --requirement .run/probe.txt --disable-pip --no-deps --strict --format json 2>.run/probe.log \
	  | grep -q dependencies

audit: sbom
	$(AUDIT)/pip-audit --strict --requirement requirements.lock --disable-pip --require-hashes
	$(AUDIT)/pip-audit --strict --requirement .run/deploy.txt --disable-pip --no-deps

# Half an hour on a machine with an NVIDIA GPU, TensorRT and PyTorch; see benchmarks/run_gpu.sh.
bench-gpu:
	OUT=build benchmarks/run_gpu.sh

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml && $(BIN)/hadolint deploy/Dockerfile
	$(BIN)/mypy model_repository/yolox_preprocess/1/model.py
	$(BIN)/mypy model_repository/yolox_postprocess/1/model.py

lock: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --universal --python-version 3.10 --generate-hashes --no-header --no-annotate \
	  --extra draw --extra server --extra gpu --extra rtx --extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .run build dist

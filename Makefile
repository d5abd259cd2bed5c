# Everything runs in .venv, which is made on the first call; `make help` lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
EXTRAS := dev,openvino,onnx,monai-bundle,dicom,sweep,slurm,tensorboard
DEMO   := outputs/demo
SECONDS := 60

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast lint types format reference gpu-check ray-check bench bench-nnunet-env \
	bench-accuracy bench-nnunet fuzz advisories licences clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1|/' | \
		awk -F'|' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: $(STAMP)  ## make .venv with the package, its extras and the tools of development

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

# The demo's steps are the commands that a user would type. It trains for minutes, not hours.
DEMO_TRAINING := budget=minutes trainer=cpu augment=mild augment.flip_p=0 paths.cache=$(DEMO)/cache

demo: $(STAMP)  ## phantoms, training, prediction, evaluation, report: at most 15 minutes on 2 cores
	$(BIN)/python -m pancreas_mtl.phantom output_dir=$(DEMO)/data \
		num_train=260 num_validation=30 num_test=30 difficulty=easy size=small
	$(BIN)/python train.py experiment=balanced data=quiz data.root=$(DEMO)/data \
		output_dir=$(DEMO)/run overwrite=true fold=official $(DEMO_TRAINING)
	$(BIN)/python predict.py model=$(DEMO)/run/bundle input=$(DEMO)/data/test \
		output_dir=$(DEMO)/predictions overwrite=true lesion_candidates=true attention=true preview=true
	$(BIN)/python -m pancreas_mtl.evaluate predictions=$(DEMO)/predictions \
		references=$(DEMO)/data/references output_dir=$(DEMO)/evaluation
	$(BIN)/python -m pancreas_mtl.report runs=[$(DEMO)/run,$(DEMO)/evaluation] output_dir=$(DEMO)/report

test: $(STAMP)  ## the whole test suite
	$(BIN)/python -m pytest -n auto --dist worksteal

test-fast: $(STAMP)  ## the tests that take seconds
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

fuzz: $(STAMP)  ## fuzz every reader of files for SECONDS each, 60 unless given
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[fuzz]'
	for target in nifti gzipped header plan config weights table dataset journal; do \
		$(BIN)/python tests/trust/fuzz_by_coverage.py $$target -max_total_time=$(SECONDS) || exit 1; \
	done

AUDIT := .venv-audit/bin
$(AUDIT)/pip-audit:
	$(PYTHON) -m venv .venv-audit
	$(AUDIT)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt pip-audit pip-licenses

advisories: $(AUDIT)/pip-audit  ## known vulnerabilities of the pinned packages; fails if PyPI is not reached
	$(AUDIT)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

licences: $(STAMP) $(AUDIT)/pip-audit  ## licences of all installed packages; fails on one that spreads
	$(AUDIT)/pip-licenses --python=$(BIN)/python --partial-match \
		--fail-on='GNU General Public;GPL-2;GPL-3;Affero;AGPL;SSPL;Commons Clause;Noncommercial'

lint: $(STAMP)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy
	$(BIN)/mypy

format: $(STAMP)  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: $(STAMP)  ## write docs/reference and docs/errors.md from the code and conf/
	$(BIN)/python docs/build_reference.py
	$(BIN)/python docs/build_errors.py

gpu-check: $(STAMP)  ## the tests that need a CUDA device, with what it gets done in a second
	$(BIN)/python -m pytest -m gpu -rs -s

# hydra-ray-launcher asks for cloudpickle < 3, and for boto3, which asks for python-dateutil < 3.
RAY := .ray

ray-check: $(RAY)/.ready  ## the test on a local Ray cluster, in an environment of its own
	$(RAY)/bin/python -m pytest -rs tests/test_launchers.py -k ray_cluster

$(RAY)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(RAY)
	grep -vE '^(cloudpickle|python-dateutil)==' constraints.txt > $(RAY)/constraints.txt
	$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check -c $(RAY)/constraints.txt \
		-e '.[ray]' pytest pytest-timeout
	@touch $@

# Stock nnU-Net is a rival to measure against, in an environment of its own.
NNUNET := .nnunet

bench-nnunet-env: $(NNUNET)/.ready  ## make .nnunet, an environment with stock nnU-Net

$(NNUNET)/.ready:
	$(PYTHON) -m venv $(NNUNET)
	$(NNUNET)/bin/python -m pip install --quiet --disable-pip-version-check \
		torch==2.13.0 nnunetv2==2.8.1
	@touch $@

bench: $(STAMP) $(NNUNET)/.ready  ## inference, data and training against stock nnU-Net: hours
	$(BIN)/python -m pancreas_mtl.benchmark what=inference
	$(BIN)/python -m pancreas_mtl.benchmark what=data
	$(BIN)/python -m pancreas_mtl.benchmark what=train

COMPARISON := heads

bench-accuracy: $(STAMP)  ## a COMPARISON of conf/comparison on hard phantoms, three seeds each: hours on 2 cores
	$(BIN)/python -m pancreas_mtl.bench_accuracy comparison=$(COMPARISON)

CONFIRMATION := outputs/bench-accuracy/confirmation

bench-nnunet: $(STAMP) $(NNUNET)/.ready  ## half an hour of training for `balanced` and for nnU-Net v2, same phantoms and plan
	$(BIN)/python -m pancreas_mtl.bench_accuracy comparison=confirmation seeds=[0]
	$(BIN)/python docs/rivals/nnunet.py $(CONFIRMATION) balanced/seed0 --minutes 30 --venv $(NNUNET)

clean:  ## remove caches and outputs, but not .venv
	rm -rf outputs multirun build .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

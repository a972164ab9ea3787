# make quick   measure this machine and leave a report        make test    everything that must hold
# make cpu     every workload and engine with tiny models; installs peft, accelerate and DeepSpeed for it
# make prove   the long campaigns behind the claims           make bench   the cost of our own instruments
# make cluster a Slurm of four hosts on this machine, to play with; as root
# SYSTEM_TORCH=1 builds on the torch (and its backend) that is installed already, and installs none.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
SYSTEM_TORCH ?= 0
# Short: a socket lies in it, whose path may have 107 letters.
CLUSTER ?= /tmp/assay-cluster
# One mark a way of installing: a change of mind installs again.
INSTALLED := $(VENV)/.installed-$(SYSTEM_TORCH)
TESTED := $(VENV)/.tested-$(SYSTEM_TORCH)
ENGINES := $(VENV)/.engines-$(SYSTEM_TORCH)

# One list out of pyproject.toml, without torch: for machines whose torch is not ours to choose.
names = $(shell sed -n '/^$(1) = \[/,/^\]/s/^    \("[^"]*"\),.*/\1/p' pyproject.toml | grep -v '"torch')

ifeq ($(SYSTEM_TORCH),1)
INSTALL = $(PIP) 'setuptools>=77' $(call names,dependencies) && $(PIP) --no-deps --no-build-isolation --editable .
INSTALL_DEV = $(PIP) $(call names,dev)
INSTALL_ENGINES = $(PIP) accelerate peft deepspeed
else
INSTALL = $(PIP) --constraint constraints.txt --editable .
INSTALL_DEV = $(PIP) --constraint constraints.txt --editable '.[dev]'
INSTALL_ENGINES = $(PIP) --constraint constraints.txt --editable '.[accelerate,deepspeed,finetune]'
endif

.PHONY: quick cpu test prove bench cluster lint clean

quick: $(INSTALLED)
	$(BIN)/assay run suites/quick.yaml

cpu: $(ENGINES)
	$(BIN)/assay run suites/cpu.yaml

test: $(TESTED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

prove: $(TESTED)
	$(BIN)/pytest -m prove --timeout 3600

bench: $(TESTED)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/instrumentation.py
	$(BIN)/python benchmarks/reading.py
	$(BIN)/python -m benchmarks.rivals
	$(BIN)/python benchmarks/mfu.py
	$(BIN)/python benchmarks/ceilings.py
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/beacon.py
	$(BIN)/python benchmarks/coverage.py
	$(BIN)/python benchmarks/collective_calls.py
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 2 benchmarks/adaptive.py
	$(BIN)/python benchmarks/share.py
	$(BIN)/python benchmarks/weights.py
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.launch
	$(BIN)/python -m benchmarks.rendezvous

cluster: $(TESTED)
	$(BIN)/python -m tests.cluster start $(CLUSTER)

$(VENV)/bin/python:
ifeq ($(SYSTEM_TORCH),1)
	@$(PYTHON) -c "import torch" || { echo "SYSTEM_TORCH=1: $(PYTHON) has no torch; name one that has: PYTHON=..."; exit 2; }
endif
	$(PYTHON) -m venv $(VENV)
ifeq ($(SYSTEM_TORCH),1)
	# Its packages are seen behind our own, whether that torch lies in the system, a container or another venv.
	$(PYTHON) -c "import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])" \
		> "$$($(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/system-torch.pth"
endif

$(INSTALLED): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL)
	touch $@

$(ENGINES): $(INSTALLED)
	$(INSTALL_ENGINES)
	touch $@

$(TESTED): $(INSTALLED)
	$(INSTALL_DEV)
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info

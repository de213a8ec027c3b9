# make demo        a street scene, segmented by plain PyTorch and by the fused kernels
# make test        everything that CI runs: lint, types, tests, the CUDA build where nvcc is
# make score       the score of the default weights on scenes of textures that they never saw
# make triton      the Triton kernels without a GPU: interpreted, and compiled for seven architectures
# make ptx         the CUDA and Triton kernels without a GPU: their PTX, executed and watched
# make cuda-architectures   the CUDA kernels compiled for every architecture, held to their budget
# make oldest-torch  the sources compiled against the oldest torch, which is downloaded
# make wheels      the wheel: its audit, and conformance beside two PyTorches, which are downloaded
# make isa         the conformance suite on every instruction set that this CPU has
# make aarch64     the CPU kernels cross-compiled, on an emulated Arm
# make sanitize    the same under AddressSanitizer and UndefinedBehaviorSanitizer
# make slow        the tests that take minutes: eight scenes learnt by heart on the CPU
# make hub-kernels the kernels as a repository of Hugging Face's `kernels`, into build/hub-kernels
# make docs        the documentation as a site: build/site/index.html
# make format      rewrite the sources in the project's format
# make gpu-report  on a machine with an NVIDIA GPU: conformance and timings, into benchmarks/results;
#                  FIRST=1: the most important, in two minutes
# make gpu-carry   what a GPU machine without a network may lack, into build/carry
#
# PYTHON=python3.12 chooses the interpreter of the virtual environment, VENV=.venv its folder.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# A worker has a core, and one thread: for a small network, two take twice the processor time. Tests of
# several threads ask for them. Threads wait asleep: spinning, they take three times as long where a
# core is shared. The C++ backend must be there, or the tests fail instead of passing it by. Hundreds
# of processes are started, which would compile what they import each anew: bytecode is kept.
export PYTHONDONTWRITEBYTECODE :=
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE FASSD_KERNELS_REQUIRE=cpu $(BIN)/python -m pytest
# A worker that crashes ends the run, which names the test: with another in its place the run would
# wait for ever for the rest of that file.
CORES = -n $(WORKERS) --max-worker-restart 0
WORKERS ?= auto
ASAN := $(filter /%,$(shell $(CXX) -print-file-name=libasan.so))
NVCC := $(firstword $(wildcard $(shell command -v nvcc) /usr/local/cuda/bin/nvcc))
# What `make aarch64` needs and is not here.
NO_AARCH64 := $(strip $(foreach program,aarch64-linux-gnu-g++ aarch64-linux-gnu-objdump qemu-aarch64,\
  $(if $(shell command -v $(program)),,$(program))))
UBSAN := $(filter /%,$(shell $(CXX) -print-file-name=libubsan.so))
SOURCES := setup.py pyproject.toml constraints.txt $(wildcard build_backend/*.py csrc/* csrc/*/*)
CXX_SOURCES := $(wildcard examples/cpp/*.cpp scripts/*/*.cpp csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp \
  csrc/*/*.cu csrc/*/*.cuh tests/aarch64/*.h tests/aarch64/*.cpp)

.PHONY: demo test triton executor ptx ptx-count ptx-calibrate ptx-networks cuda-architectures oldest-torch wheels isa aarch64 sanitize sanitizer score slow lint docs format hub-kernels gpu-report gpu-carry clean

demo: $(VENV)/.installed
	$(BIN)/fassd demo -o demo

# pip, which keeps one core busy, would compile 20,000 files to bytecode, most of them never imported.
# On the other core, what does not wait for all that it installs is compiled.
test:
	$(MAKE) $(TWO) LATER=--no-compile $(if $(NVCC),executor) lint docs $(if $(ASAN),sanitizer)
	$(PYTEST) $(CORES) --dist loadfile --no-loadscope-reorder --durations=20 \
	  --ignore=tests/triton_backend --ignore=tests/ptx --ignore=tests/aarch64 tests/conformance tests \
	  --backend cpu
	$(MAKE) $(TWO) EVERY=16 WORKERS=$(HALF) $(if $(filter Linux,$(shell uname -s)),triton) \
	  $(if $(NVCC),ptx) aarch64 isa $(if $(ASAN),sanitize)
	$(if $(ASAN),,@echo "make sanitize was left out: $(CXX) has no libasan.so")
	$(if $(NVCC),,@echo "make ptx was left out: nvcc is not on this machine")

# pytest is begun a dozen times, and each last test would leave all cores but one without work: two
# targets at a time, each on half of the cores, keep them all busy.
TWO := -j 2 $(if $(filter output-sync,$(.FEATURES)),-Oline)
HALF := $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores > 3 ? cores / 2 : 0)))

# `make test` runs every row of the conformance tables, and 40 drawn calls of each operator, on the
# kernels that this CPU takes; one row in sixteen, one in five of other long lists, and 10 calls, on
# all others, the reference among them, which would take an hour. By hand, these targets run them
# all (tests/conformance/conftest.py has the numbers). How operators are
# registered is the same whatever computes them: it is tested once, with the rows of the tables.
EVERY ?= 1
CONFORMANCE := tests/conformance --ignore=tests/conformance/test_registration.py
# Gradients are PyTorch's of the reference, whichever kernels compute the results.
RESULTS := --ignore=tests/conformance/test_gradients.py
# Some tests take half a minute: dealt one by one, they leave no worker without work for long.
DEALT = $(CORES) --maxschedchunk 1
TRITON = $(PYTEST) -q $(DEALT) --durations=5
triton: $(VENV)/.developing
	TRITON_INTERPRET=1 $(TRITON) tests/triton_backend $(CONFORMANCE) --backend triton \
	  --every $(EVERY) $(if $(filter 1,$(EVERY)),,$(RESULTS))
	$(if $(filter 1,$(EVERY)),FASSD_TEST_ARCHITECTURES=all) $(TRITON) tests/triton_backend

# What nvcc makes of csrc/cuda, and Triton of its kernels, executed on the CPU (tests/ptx): of sm_80 as
# on a GPU of 8.6, of sm_90 with copies that arrive at any time and kernels that start before the one
# ahead of them has ended. To look for races takes ten times as long. What Triton costs is compiling:
# of the conformance suite it runs what the interpreter does not compute.
SEED ?= $(shell date +%s)
PTX := PYTHONPATH=tests:. $(BIN)/python -m ptx.build
COUNTED := capability=90 multiprocessors=4
RANDOM := capability=90 multiprocessors=2 arrival=random overlap=1 seed=$(SEED)
EXECUTED = $(TRITON) $(CONFORMANCE) $(RESULTS)
EXECUTED_CUDA = LD_PRELOAD=$$($(PTX)) PTX_SETTINGS="$(1)" FASSD_KERNELS_DEPENDENT_LAUNCH=1 \
  $(EXECUTED) --backend cuda
# Where rows are sampled, what the order of copies and launches cannot change is executed once.
ORDERED = $(if $(filter 1,$(EVERY)),,-k "test_cuda or test_table or test_layouts or test_drawn")
EXECUTED_TRITON = PTX_BACKEND=triton PTX_SETTINGS="$(RANDOM)" $(EXECUTED) --backend triton \
  --every $(if $(filter 1,$(EVERY)),1,80)
executor:
	PYTHONPATH=tests $(PYTHON) -m ptx.build

ptx: $(VENV)/.developing
	$(if $(filter 1,$(EVERY)),FASSD_TEST_PTX=all) $(TRITON) tests/ptx
	$(EXECUTED_TRITON) -k "test_table and bfloat16"
	$(EXECUTED_TRITON) -k "test_table and float32" --tf32
	$(PTX) host
	LD_PRELOAD=$$($(PTX)) PTX_SETTINGS="$(COUNTED)" $(TRITON) tests/ptx/test_count.py
	$(call EXECUTED_CUDA,capability=86) tests/ptx/test_cuda.py tests/ptx/test_host.py \
	  tests/ptx/test_mutations.py --every $(EVERY)
	$(call EXECUTED_CUDA,$(RANDOM)) tests/ptx/test_cuda.py --every $(if $(filter 1,$(EVERY)),1,80) \
	  $(ORDERED)
	$(call EXECUTED_CUDA,$(RANDOM) races=1) -k "test_table or test_drawn" \
	  --every $(if $(filter 1,$(EVERY)),4,80)
	$(if $(filter 1,$(EVERY)),for settings in capability=86 "capability=90 multiprocessors=1"; do \
	  LD_PRELOAD=$$($(PTX)) PTX_SETTINGS="$$settings" PYTHONPATH=tests:. \
	  $(BIN)/python -m ptx.mutations || exit 1; done)

# Instructions of every launch of FASSD-Net, by part, and the time that it takes to issue them.
COUNT = LD_PRELOAD=$$($(PTX)) PTX_SETTINGS="$(1)" PYTHONPATH=tests:. $(BIN)/python -m ptx.count
ptx-count: $(VENV)/.developing
	$(PTX) host
	$(call COUNT,capability=90)

# The time model's figures, from what kernels execute now, and the budget of what they may.
ptx-calibrate: $(VENV)/.developing
	$(PTX) host
	$(call COUNT,$(COUNTED)) --calibrate
	$(MAKE) $(VENV)/.developing
	$(PTX) host
	$(call COUNT,$(COUNTED)) --budget

# The table of what whole networks lose in 16 bits and TF32; an hour.
ptx-networks: $(VENV)/.developing
	$(PTX) host
	LD_PRELOAD=$$($(PTX)) PTX_SETTINGS="capability=90" PYTHONPATH=tests:. \
	  $(BIN)/python -m ptx.networks --backend cuda
	PTX_BACKEND=triton PTX_SETTINGS="capability=90" PYTHONPATH=tests:. \
	  $(BIN)/python -m ptx.networks --backend triton

# `make test` compiles for sm_90: what the sources say of it alone is one hint to the launch after.
cuda-architectures: $(VENV)/.developing
	FASSD_TEST_ARCHITECTURES=all $(PYTEST) tests/install/test_cuda_build.py

# The binaries that are built here load in every torch since: csrc compiles against its headers, and
# asks for no symbol that its libraries lack.
oldest-torch: $(VENV)/.developing
	PYTHONPATH=tests:. $(BIN)/python -m install.oldest_torch

# One binary, installed beside the PyTorch that the make targets install and beside a later one with
# CUDA. EVERY: one row in so many of the conformance tables.
wheels: $(VENV)/.developing
	PYTHONPATH=tests:. $(BIN)/python -m install.installed --every $(if $(filter 1,$(EVERY)),64,$(EVERY))

KERNELS = $(PYTEST) -q $(DEALT) $(CONFORMANCE) --backend cpu

# The best instruction set is what `make test` has run on; these are the others, and the reference.
TILES := -k "bfloat16 and not test_any or quantized_operators"
QUANTIZED := tests/kernels/test_quantized_operators.py
isa: $(VENV)/.developing
	FASSD_KERNELS_CPU=portable $(KERNELS) $(QUANTIZED) --backend reference --every $(EVERY)
	if grep -qw avx512f /proc/cpuinfo; then \
	  FASSD_KERNELS_CPU=avx2 $(KERNELS) $(QUANTIZED) $(RESULTS) --every $(EVERY); fi
	if grep -qw amx_bf16 /proc/cpuinfo; then \
	  FASSD_KERNELS_CPU=avx512 $(KERNELS) $(QUANTIZED) $(RESULTS) --every $(EVERY) $(TILES); \
	else FASSD_KERNELS_CPU=emulation $(KERNELS) $(RESULTS) --every $(EVERY) $(TILES); fi

# Calls of the conformance suite, each computed by the emulated kernels; then a file of a thousand
# drawn calls, which the driver judges without Python on three CPUs. The file and the driver are all
# that a board needs to do the same. Emulation is slow: of tables, one row in so many.
AARCH64_CALLS := build/aarch64/drawn.calls
aarch64: $(VENV)/.developing
ifneq ($(NO_AARCH64),)
	@echo "make aarch64 was left out: not on this machine: $(NO_AARCH64)"
else
	$(TRITON) tests/aarch64
	PYTHONPATH=tests:. $(KERNELS) $(RESULTS) -p aarch64.host --every $(if $(filter 1,$(EVERY)),4,48) \
	  -k "$(if $(filter 1,$(EVERY)),not another_device,test_table and not contiguous)"
	$(if $(filter 1,$(EVERY)),PYTHONPATH=tests:. $(BIN)/python -m aarch64.cases $(AARCH64_CALLS))
	$(if $(filter 1,$(EVERY)),AARCH64_CALLS=$(AARCH64_CALLS) $(TRITON) tests/aarch64 -k written)
endif

# A build of its own, found before the sources; the sanitizers' runtime has to be there first.
SANITIZED := build/sanitize/lib
sanitizer: $(VENV)/.torch
	FASSD_KERNELS_SANITIZE=1 FASSD_KERNELS_CUDA=0 $(BIN)/python setup.py --quiet build \
	  --build-base build/sanitize --build-lib $(SANITIZED)
	grep -q __asan_init $(SANITIZED)/fassd_kernels/_C*.so

sanitize: sanitizer $(VENV)/.developing
	LD_PRELOAD="$(ASAN) $(UBSAN)" \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	  UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
	  $(KERNELS) $(QUANTIZED) $(RESULTS) -o pythonpath="tests $(SANITIZED)" -p no:cacheprovider --capture=sys \
	  --every $(EVERY) --fuzz $(if $(filter 1,$(EVERY)),2,1)

score: $(VENV)/.installed
	$(BIN)/fassd synth streets --split val --count 100 --size 512x1024
	$(BIN)/fassd val --data streets --model fassd_net
	$(BIN)/fassd val --data streets --model fassd_net_l2

slow: $(VENV)/.developing
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

format: $(VENV)/.developing
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

# Strict: a link that leads nowhere, a page that no menu has, a name without a page fail.
docs: $(VENV)/.developing
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build

hub-kernels: $(VENV)/.installed
	rm -rf build/hub-kernels
	$(BIN)/python scripts/hub_kernels/make.py build/hub-kernels

# Without FIRST it takes up what was measured before. OUT: the folder of results.
gpu-report:
	python3 -m benchmarks.gpu_report --resume $(if $(FIRST),--first) $(if $(OUT),--output $(OUT))

# Python alone, for any version of it; the report puts this folder on its path.
CARRIED := pytest-reportlog pytest-timeout
gpu-carry: $(VENV)/.torch
	$(PIP) install --quiet -c constraints.txt --no-deps --upgrade --target build/carry $(CARRIED)

# PyTorch, and what compiles against it.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(LATER) -c constraints.txt torch ninja "setuptools>=77.0.3"
	touch $@

# Editable, so that in this folder Python sees one package, the sources as they stand with the
# extension built beside them.
$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(PIP) install --quiet -c constraints.txt --editable .
	touch $@

# What is compiled is kept for the wheel of the tests.
KEEPING := $(if $(filter default,$(origin CXX)),CXX="$(CURDIR)/tests/install/c++")
$(VENV)/.developing: $(VENV)/.torch $(SOURCES)
	$(KEEPING) $(PIP) install --quiet $(LATER) -c constraints.txt --editable '.[dev]'
	$(PIP) install --quiet -c constraints.txt --no-deps --upgrade --target $(VENV)/hub-kernels kernels
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist demo *.egg-info fassd_kernels/*.so fassd_kernels/_build.json

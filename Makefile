PYTHON ?= python3
TORCH ?= 2.13.0
TORCHES ?= 2.11.0 2.13.0 newest
OLDEST ?= 2.11.0
VISION ?= torchvision==0.29.1 timm==1.0.31 monai==1.6.1 pytorch-ignite==0.5.5
ARGS ?=
MACHINE ?= this-machine

BIN := .venv/bin
CODE := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
SOURCES := $(filter csrc/%,$(CODE)) tools/cuda_build.py setup.py pyproject.toml

WITH_KERNELS := PATH="$(CURDIR)/$(BIN):$$PATH" WEIGHTED_BCE_REQUIRE_EXT=1 \
    WEIGHTED_BCE_CUDA="$${WEIGHTED_BCE_CUDA-1}"
INSTALL = $(WITH_KERNELS) $(BIN)/pip install -q --no-build-isolation --no-deps -e .
ONE_KIND := $(if $(shell command -v nvidia-smi),,9.0+PTX)
PYTEST := $(BIN)/python -m pytest --durations=15
EACH_TORCH := $(TORCHES:%=torch-%)

.PHONY: demo test test-all integrations vision docs wheel versions oldest $(EACH_TORCH) bench results \
    gpu lint format clean help

help:           ## show this list
	@grep -hE '^[a-z-]+: .*##' Makefile | sed 's/:.*##/\t/'

.venv/.dependencies: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q torch==$(TORCH)
	$(BIN)/pip install -q "setuptools>=77" wheel ninja "pybind11>=2.12"
	WEIGHTED_BCE_BUILD=0 $(BIN)/pip install -q --no-build-isolation \
	    -e ".[cuda,test,integrations,bench,examples,docs,dev]"
	touch $@

# Without a GPU, kernels for one architecture are enough for all tests except those that read the
# machine code of the others, and they compile in half of the time.
.venv/.built: .venv/.dependencies $(SOURCES)
	TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST-$(ONE_KIND)}" $(INSTALL)
	touch $@

.venv/.built-for-all-gpus: .venv/.dependencies $(SOURCES)
	TORCH_CUDA_ARCH_LIST= $(INSTALL)
	touch .venv/.built $@

demo: .venv/.built  ## train a classifier on sparse labels with several losses and compare them
	$(BIN)/python -m examples.sparse_labels $(ARGS)

test: .venv/.built  ## run the tests, with a share of the exhaustive ones
	$(PYTEST) -n 2 -m "not large" $(ARGS)
	$(PYTEST) -m large $(ARGS)

# The workers of pytest-xdist have one thread each. These tests run once more with all threads, since
# they are about what the parts of a call do at the same time.
WITH_THREADS := $(addprefix tests/,$(addsuffix .py,test_deferred_gradient test_determinism \
    test_errors test_fused_step test_layouts test_linear test_linear_autograd test_linear_rows \
    test_memory test_op_errors test_sparse_loss))

test-all: .venv/.built-for-all-gpus  ## run every test in full, then make oldest
	$(PYTEST) --all -n 2 -m "not large" $(ARGS)
	$(PYTEST) --all -m large $(ARGS)
	$(PYTEST) --all $(WITH_THREADS)
	$(MAKE) oldest ARGS=

integrations: .venv/.built  ## run the tests with trainers and other libraries
	$(PYTEST) -n 2 tests/integrations $(ARGS)

# These libraries need another torch. The extension works with it, since its ABI is stable.
build/vision/.dependencies: Makefile
	$(PYTHON) -m venv build/vision
	build/vision/bin/pip install -q $(VISION) pytest hypothesis numpy psutil
	touch $@

vision: .venv/.built build/vision/.dependencies  ## run the tests with torchvision, timm and MONAI
	build/vision/bin/python -m pytest tests/integrations/test_vision.py $(ARGS)

docs: .venv/.dependencies  ## build the documentation into build/docs; warnings are errors
	$(BIN)/python -m sphinx -q -W --keep-going docs build/docs

wheel: .venv/.dependencies  ## build the sdist and the wheel, and check that the ABI is stable
	rm -rf dist build/wheel
	$(WITH_KERNELS) $(BIN)/python -m build --no-isolation
	$(BIN)/python -m zipfile -e dist/*.whl build/wheel
	$(BIN)/torch-abi-audit --check torch build/wheel/weighted_bce

versions: oldest $(EACH_TORCH)  ## test one wheel with each torch of TORCHES, and make oldest

# The tests are those of the sdist, without the package next to them, so they import the wheel's.
$(EACH_TORCH): torch-%: wheel
	rm -rf build/$@
	$(BIN)/python -m venv build/$@
	build/$@/bin/pip install -q torch$(patsubst %,==%,$(filter-out newest,$*)) \
	    "$$(echo dist/*.whl)[test,bench,examples]"
	mkdir build/$@/sdist
	tar -xzf dist/*.tar.gz -C build/$@/sdist --strip-components 1 --exclude '*/weighted_bce'
	cd build/$@/sdist && ../bin/python -W error -c "import weighted_bce as w; \
	    print(w.show_config()); assert 'site-packages' in w.__file__"
	cd build/$@/sdist && ../bin/python -m pytest -n 2 -m "not large" $(ARGS)
	cd build/$@/sdist && ../bin/python -m pytest -m large

build/oldest/.dependencies: pyproject.toml
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/pip install -q torch==$(OLDEST) "setuptools>=77" wheel ninja "pybind11>=2.12"
	WEIGHTED_BCE_BUILD=0 build/oldest/bin/pip install -q --no-build-isolation ".[test]"
	touch $@

# The build uses the headers of the torch in OLDEST and the nvcc of .venv. The build and the tests do
# not see the extension in this folder.
OLDEST_TESTS := $(addprefix tests/,$(addsuffix .py,test_ops test_edges test_autograd \
    test_compile test_linear test_linear_autograd test_fused_step test_fused_step_rules \
    test_fused_step_scaling test_deferred_gradient test_deferred_operations test_sparse_loss \
    test_transforms test_vmap))
oldest: .venv/.dependencies build/oldest/.dependencies  ## build and test with the oldest torch
	rm -rf build/oldest/source build/oldest/tests-alone
	mkdir build/oldest/source build/oldest/tests-alone
	cp -r csrc tools weighted_bce setup.py pyproject.toml README.md LICENSE build/oldest/source
	rm -f build/oldest/source/weighted_bce/*.so
	CUDA_HOME="$$(echo $(CURDIR)/.venv/lib/python*/site-packages/nvidia/cu13)" \
	    PATH="$(CURDIR)/build/oldest/bin:$$PATH" WEIGHTED_BCE_REQUIRE_EXT=1 \
	    WEIGHTED_BCE_CUDA="$${WEIGHTED_BCE_CUDA-1}" \
	    TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST-$(ONE_KIND)}" build/oldest/bin/pip install -q \
	    --no-build-isolation --no-deps --no-cache-dir --force-reinstall build/oldest/source
	cp -r tests pyproject.toml build/oldest/tests-alone
	cd build/oldest/tests-alone && ../bin/python -W error -c "import weighted_bce as w; \
	    facts = str(w.show_config()); print(facts); assert 'site-packages' in w.__file__; \
	    assert 'built against torch: $(OLDEST)' in facts"
	cd build/oldest/tests-alone && ../bin/python -m pytest -n 2 $(OLDEST_TESTS) $(ARGS)

bench: .venv/.built  ## compare with the usual ways to compute this loss, in a minute
	$(BIN)/python -m bench --quick --out build/bench $(ARGS)

results: .venv/.built  ## measure all there is, into bench/results/MACHINE, README.md and docs
	$(BIN)/python -m bench --out bench/results/$(MACHINE) $(ARGS)
	$(BIN)/python -m bench.documentation

# The parts share MINUTES. OUT is the folder of the results, LIBRARY is an extension that an earlier
# run left there, and COMMIT is needed where the sources are not a git repository.
MINUTES ?= 9
OUT ?= build/gpu
PARTS ?= build,smoke,figures,tests,sanitize,profile
gpu:            ## build, check and measure the package on this machine's GPU; PYTHON needs torch
	@$(PYTHON) -m tools.gpu --minutes $(MINUTES) --out "$(OUT)" --parts $(PARTS) \
	    $(if $(LIBRARY),--library "$(LIBRARY)") $(if $(COMMIT),--commit "$(COMMIT)")

lint: .venv/.dependencies  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CODE)

format: .venv/.dependencies  ## format all sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CODE)

clean:          ## remove everything that was built
	rm -rf .venv build dist wheelhouse *.egg-info weighted_bce/*.so examples/out

# All tasks of a checkout. They need only make and Python 3.10 or newer.
#
#   PYTHON=python3.12    the Python of new environments (`make clean` removes old ones)
#   VENV=.venv           where the environment is
#   ARGS="-x -k store"   further arguments for what is run: pytest, the benchmarks, the drill
#   TESTS=path           the tests to run; all of them by default
#   LOWEST_VENV=.venv-lowest   the environment with the lowest versions, for `make test-lowest`;
#                        it takes the oldest Python
#   COMPAT_VENV=.venv-compat   the environment with other projects' tests, for `make compat`
#   ENGINES_VENV=.venv-engines   the environment with Dask and Ray, for `make test-engines`
#   CLOUDS_VENV=.venv-clouds   the environment with emulators of clouds, for `make test-clouds`; one
#                        emulator pins other versions, so it is in $(CLOUDS_VENV)-ministack
#   DIST_VENV=.venv-dist   the environment with the tools that build and check wheels, for `make dist`
#   JOBS=3               processes among which the tests are divided when all are run; 0: none, as
#                        --pdb and -s need it

PYTHON ?= python3
VENV ?= .venv
BENCH_VENV ?= .venv-bench
LOWEST_VENV ?= .venv-lowest
MUTANTS_VENV ?= .venv-mutants
COMPAT_VENV ?= .venv-compat
ENGINES_VENV ?= .venv-engines
CLOUDS_VENV ?= .venv-clouds
DIST_VENV ?= .venv-dist
#: The files that `make mutants` changes: see .ci/mutants.
MUTANTS ?= frames cookies table delivery
ROUNDS ?= 1
TESTS ?=
# Tests wait for about half of their time, so three processes keep two CPUs busy.
JOBS ?= 3
ARGS ?=

BIN := $(VENV)/bin
BENCH_BIN := $(BENCH_VENV)/bin
LOWEST_BIN := $(LOWEST_VENV)/bin
MUTANTS_BIN := $(MUTANTS_VENV)/bin
COMPAT_BIN := $(COMPAT_VENV)/bin
ENGINES_BIN := $(ENGINES_VENV)/bin
CLOUDS_BIN := $(CLOUDS_VENV)/bin
#: The tests of `make test-lowest`: those that use other packages, and the promises to users.
LOWEST_TESTS := $(addprefix entangle/tests/test_,behaviour.py cli.py dependencies.py docker.py http.py interpreter.py \
    memory.py pickled_classes.py progress.py source.py sources.py ssh.py values.py web.py)

#: The tests that run what the pages show.
PAGES_TESTS := $(addprefix entangle/tests/test_,shown_blocks.py coming_from.py tutorial.py docs.py)

# Without a PATH, as in an empty environment, Python cannot find its own prefix.
PATH ?= /usr/local/bin:/usr/bin:/bin
export PATH

# Programs here have their own budget of CPUs; they must not take job slots of a make around this.
unexport MAKEFLAGS MFLAGS MAKELEVEL

# The tests start thousands of Pythons. Without bytecode files, each would compile our modules.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
# A half-made environment must not look like a whole one to the next call.
.DELETE_ON_ERROR:
.PHONY: help run test test-lowest test-engines test-clouds compat compat-dask compat-futures compat-joblib gpu services services-gremlin services-browser lint lint-ruff lint-format lint-mypy lint-pyright lint-refused format bench docs dist image drill mutants clean

help:
	@echo 'make run     install into $(VENV) and run the main example'
	@echo 'make test    the tests                    (TESTS=path, ARGS="-x -k name", JOBS=$(JOBS))'
	@echo 'make test-lowest  some of the tests with the lowest versions that pyproject.toml allows  (PYTHON=the oldest)'
	@echo 'make compat  tests of other projects, with entangle in place of what they test'
	@echo 'make test-engines  the tests over real Slurm, Dask and Ray, in $(ENGINES_VENV)    (.ci/engines installs Slurm, as root)'
	@echo 'make test-clouds  the tests against emulators of AWS, in $(CLOUDS_VENV)    (docker and an image: make services)'
	@echo 'make gpu     the tests that need a GPU, with whichever of numba, cupy, torch and jax $(VENV) has'
	@echo 'make services  install and start what tests need: ssh server, docker, an image, a Gremlin server, a browser  (as root)'
	@echo 'make lint    ruff, mypy and pyright, as the pre-commit hooks do'
	@echo 'make format  format, and correct what ruff can'
	@echo 'make bench   every benchmark beside its peers, in $(BENCH_VENV); writes the tables in docs/benchmarks.md and README.md'
	@echo 'make docs    the documentation, into build/docs'
	@echo 'make dist    wheel and sdist, checked, and the main example run from each, in fresh environments'
	@echo 'make image   the docker image "entangle"'
	@echo 'make drill   the heavy fault tests, which "make test" leaves out    (ROUNDS=$(ROUNDS))'
	@echo 'make mutants  change a file in a hundred ways, and see which changes its tests notice    (MUTANTS="cookies table")'
	@echo 'make clean   remove environments, caches and builds'

run: $(VENV)/.installed
	$(BIN)/python -m entangle.examples.example

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(if $(TESTS),$(TESTS),-n $(JOBS) --dist loadfile) $(ARGS)

test-lowest: $(LOWEST_VENV)/.installed-lowest
	$(LOWEST_BIN)/python -m pytest -n $(JOBS) --dist loadfile $(if $(TESTS),$(TESTS),$(LOWEST_TESTS)) $(ARGS)

# Tests of an engine that is not installed are skipped; in CI they fail.
test-engines: $(ENGINES_VENV)/.installed-engines
	$(ENGINES_BIN)/python -m pytest $(if $(TESTS),$(TESTS),-n 2 entangle/tests/engines) $(ARGS)

# Each process has emulators of its own, so the tests of one file stay together.
test-clouds: $(CLOUDS_VENV)/.installed-clouds $(CLOUDS_VENV)-ministack/.installed-ministack
	$(CLOUDS_BIN)/python -m pytest $(if $(TESTS),$(TESTS),-n 2 --dist loadfile entangle/tests/clouds) $(ARGS)

compat: compat-dask compat-futures compat-joblib

# Not recorded: the records would lie in the directories of the tests.
COMPAT_PYTEST = ENTANGLE_RECORD=0 $(COMPAT_BIN)/python -m pytest -q -c entangle/tests/compat/pytest.ini

compat-dask: $(COMPAT_VENV)/.installed-compat
	$(COMPAT_PYTEST) -p entangle.tests.compat.dask_default entangle/tests/compat/dask_get.py --pyargs \
	    dask.tests.test_base dask.tests.test_delayed dask.bag.tests.test_bag dask.array.tests.test_array_core $(ARGS)

# CPython's own tests of executors, from the Python of this environment.
compat-futures: $(COMPAT_VENV)/.installed-compat
	ENTANGLE_RECORD=0 $(COMPAT_BIN)/python -m entangle.tests.compat.cpython_executor

compat-joblib: $(COMPAT_VENV)/.installed-compat
	PYTHONPATH='$(CURDIR)/entangle/tests/compat/joblib_site' $(COMPAT_PYTEST) -W ignore \
	    -p entangle.tests.compat.joblib_differences --pyargs joblib.test.test_parallel $(ARGS)
	$(COMPAT_PYTEST) entangle/tests/compat/sklearn_numbers.py $(ARGS)

# CI has no GPU. On a machine with one, install the libraries beside what the tests need.
gpu: $(VENV)/.installed-test
	$(BIN)/python -m pytest -rA entangle/tests/on_a_gpu.py entangle/tests/test_gpus.py $(ARGS)

services: services-gremlin services-browser
	.ci/services

lint: lint-ruff lint-format lint-mypy lint-pyright lint-refused

lint-ruff: $(VENV)/.installed-dev
	$(BIN)/ruff check

lint-format: $(VENV)/.installed-dev
	$(BIN)/ruff format --check

lint-mypy: $(VENV)/.installed-dev
	$(BIN)/mypy --strict entangle
	$(BIN)/mypy --strict entangle/tests/typing

lint-pyright: $(VENV)/.installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python entangle/tests/typing

# Checks that mypy and pyright refuse wrong programs, and accept right ones.
lint-refused: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m lint entangle/tests/test_typing.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(BENCH_VENV)/.installed
	$(BENCH_BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/floors.py
	$(BIN)/python docs/task_arguments.py
	$(BIN)/codespell
	$(BIN)/python docs/prose.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest -q -m pages $(if $(TESTS),$(TESTS),-n 2 $(PAGES_TESTS)) $(ARGS)
	@echo 'open build/docs/index.html'

dist: $(DIST_VENV)/.installed-dist
	.ci/dist $(PYTHON) $(DIST_VENV)

image:
	docker build -t entangle .

drill: $(VENV)/.installed-test
	@round=1; while [ $$round -le $(ROUNDS) ]; do \
	    echo "round $$round of $(ROUNDS)"; \
	    $(BIN)/python -m pytest -m drill -q $(TESTS) $(ARGS) || exit $$?; \
	    round=$$((round + 1)); \
	done

mutants: $(MUTANTS_VENV)/.installed-test
	@for file in $(MUTANTS); do $(MUTANTS_BIN)/python .ci/mutants $$file $(ARGS) || exit $$?; done

services-gremlin:
	.ci/gremlin fetch

# The browser in which tests open the page.
services-browser:
	.ci/browser

clean:
	rm -rf .venv .venv-* $(VENV) $(BENCH_VENV) $(LOWEST_VENV) $(MUTANTS_VENV) $(COMPAT_VENV) $(ENGINES_VENV) $(CLOUDS_VENV) $(CLOUDS_VENV)-ministack $(DIST_VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is newer than its sources, so a second call installs nothing.

$(VENV)/.installed: $(VENV)/pyvenv.cfg pyproject.toml setup.py
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/pyvenv.cfg pyproject.toml setup.py
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: $(VENV)/pyvenv.cfg pyproject.toml setup.py
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed-test $(VENV)/.installed

$(LOWEST_VENV)/.installed-lowest: $(LOWEST_VENV)/pyvenv.cfg pyproject.toml setup.py .ci/lowest
	$(LOWEST_BIN)/python .ci/lowest >$(LOWEST_VENV)/lowest.txt
	$(LOWEST_BIN)/python -m pip install --quiet --constraint $(LOWEST_VENV)/lowest.txt --editable '.[test]'
	@touch $@

$(MUTANTS_VENV)/.installed-test: $(MUTANTS_VENV)/pyvenv.cfg pyproject.toml setup.py .ci/mutants-requirements.txt
	$(MUTANTS_BIN)/python -m pip install --quiet --requirement .ci/mutants-requirements.txt --editable '.[test]'
	@touch $@

$(DIST_VENV)/.installed-dist: $(DIST_VENV)/pyvenv.cfg .ci/dist-requirements.txt
	$(DIST_VENV)/bin/python -m pip install --quiet --requirement .ci/dist-requirements.txt
	@touch $@

$(COMPAT_VENV)/.installed-compat: $(COMPAT_VENV)/pyvenv.cfg pyproject.toml setup.py .ci/compat-requirements.txt
	$(COMPAT_BIN)/python -m pip install --quiet --requirement .ci/compat-requirements.txt --editable .
	@touch $@

$(ENGINES_VENV)/.installed-engines: $(ENGINES_VENV)/pyvenv.cfg pyproject.toml setup.py .ci/engines-requirements.txt
	$(ENGINES_BIN)/python -m pip install --quiet --requirement .ci/engines-requirements.txt --editable '.[cli]'
	@touch $@

$(CLOUDS_VENV)/.installed-clouds: $(CLOUDS_VENV)/pyvenv.cfg pyproject.toml setup.py .ci/clouds-requirements.txt
	$(CLOUDS_BIN)/python -m pip install --quiet --requirement .ci/clouds-requirements.txt --editable '.[aws,test]'
	@touch $@

$(CLOUDS_VENV)-ministack/.installed-ministack: $(CLOUDS_VENV)-ministack/pyvenv.cfg .ci/ministack-requirements.txt
	$(CLOUDS_VENV)-ministack/bin/python -m pip install --quiet --requirement .ci/ministack-requirements.txt
	@touch $@

# Without entangle: benchmarks run from the source tree, since an installation changes start times.
$(BENCH_VENV)/.installed: $(BENCH_VENV)/pyvenv.cfg benchmarks/requirements.txt
	$(BENCH_BIN)/python -m pip install --quiet --requirement benchmarks/requirements.txt
	@touch $@

# Some systems have venv without ensurepip; there the system's pip installs pip.
%/pyvenv.cfg:
	@command -v '$(PYTHON)' >/dev/null || { \
	    echo 'There is no "$(PYTHON)" here. Name a Python 3.10 or newer: make PYTHON=/path/to/python3' >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "entangle needs Python 3.10 or newer; $(PYTHON) is $$('$(PYTHON)' -V 2>&1). Name a newer one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@'$(PYTHON)' -m venv '$*' >/dev/null 2>&1 \
	    || { '$(PYTHON)' -m venv --clear --without-pip '$*' && '$(PYTHON)' -m pip --python '$*/bin/python' install --quiet pip; } \
	    || { echo '$(PYTHON) cannot make a virtual environment with pip in it. On Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }

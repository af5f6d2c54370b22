# `make demo` and `make test` are all that a fresh machine needs: Rust, make and Python 3 with pip.

CARGO ?= cargo
# What is shipped is compiled with it: drivers of CUDA 12 load what NVRTC 12 made, those of CUDA 13 as well.
NVRTC_PACKAGE := nvidia-cuda-nvrtc-cu12==12.9.86
# Hugging Face's kernels, and the newest transformers on PyPI that takes it: transformers names the versions that it works with.
# torchtitan, and what its rotary modules import of what it depends on.
FITTING := transformers==5.22.2 kernels==0.17.2 torchtitan==0.3.0 spmd_types==0.2.3 tyro docstring_parser
# Of each fuzz target.
FUZZ_SECONDS ?= 600
# Processes that run the Python package's tests: while one waits for a compiler, the other goes on.
PYTEST_WORKERS ?= 2
# The NVRTC that `make nvrtc` has fetched, once it has: the command searches no folder of this kind by itself.
OWN_NVRTC := ls -d $(CURDIR)/.venv/lib*/python3*/site-packages/nvidia/*/lib/libnvrtc.so.1* 2>/dev/null | head -n 1
ifeq ($(origin ROPEJIT_NVRTC),undefined)
export ROPEJIT_NVRTC = $(shell $(OWN_NVRTC))
endif
# The oldest Rust that is promised.
MSRV = $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
BIN := $(or $(CARGO_TARGET_DIR),target)/release/ropejit

.PHONY: help build nvrtc demo test test-remote test-pictures test-transformers miri fuzz kernels check-kernels check-priors lint python test-python coverage lint-python test-candle lint-candle test-capi lint-capi capi-header gpu-bundle priors peers-bundle python-packages deny msrv release-check clean

help:
	@echo "make demo        what it is about, after a build of minutes (no GPU needed)"
	@echo "make docs        the book of docs/, in book/ (needs mdBook)"
	@echo "make test-docs   the Rust programs and the commands of README.md and docs/"
	@echo "make test        all tests that need no GPU (ten minutes on two cores)"
	@echo "make test-transformers  forms of RoPE, bit for bit with transformers on the CPU (installs PyTorch)"
	@echo "make test-remote  packs over nginx, s3s-fs and docker-registry on this machine, and all faults of a network"
	@echo "make miri        unsafe code that needs no GPU, in Miri (a nightly toolchain with miri and rust-src)"
	@echo "make test-pictures  whether every text of the pictures and of the report can be read, narrow and wide, light and dark (needs Chromium)"
	@echo "make fuzz        the readers of entries, of packs, of config.json and of kernels' descriptions against any input (FUZZ_SECONDS each)"
	@echo "make kernels     the kernels that the crate ships, from templates/ into cache/"
	@echo "make check-kernels  whether these are what templates/ compiles to (ARCHS=sm_90: of one architecture)"
	@echo "make check-priors  which shipped choices were measured with older templates, and how to measure them again"
	@echo "make lint        format, clippy, documentation, feature combinations (some minutes)"
	@echo "make python      the Python package's wheel, in dist/"
	@echo "make test-python its tests, in .venv-python (installs PyTorch, transformers, diffusers and kernels)"
	@echo "make coverage    which functions of the installed transformers patch() recognises, and which not and why"
	@echo "make lint-python format, clippy of its native part"
	@echo "make test-candle tests of the crate for candle, on the CPU (compiles candle: minutes)"
	@echo "make lint-candle format, clippy of it"
	@echo "make test-capi   tests of the libraries for C (needs cc and c++)"
	@echo "make lint-capi   format, clippy of it"
	@echo "make capi-header capi/include/ropejit.h, from the crate"
	@echo "make deny        licences and known holes of all crates (needs cargo-deny)"
	@echo "make msrv        whether the oldest Rust that Cargo.toml states still compiles it (needs rustup)"
	@echo "make release-check  the crate and the wheel as they would be published (docs/release.md)"
	@echo "make peers-bundle  the wheel and what it is measured against in .gpu/, for a GPU host without a network"
	@echo "make gpu-bundle  stripped binaries and a script in .gpu/, for a GPU host without a toolchain"
	@echo "make priors      the same, and how to measure there what cache/priors ships for a GPU model"

build:
	$(CARGO) build --release

# NVRTC from PyPI, into .venv, where none is found.
nvrtc: build
	@$(BIN) doctor --require nvrtc >/dev/null 2>&1 || { \
		echo "NVRTC was not found, fetching $(NVRTC_PACKAGE) into .venv"; \
		python3 -m venv .venv && .venv/bin/pip install --quiet --disable-pip-version-check '$(NVRTC_PACKAGE)' \
		&& ROPEJIT_NVRTC=$$($(OWN_NVRTC)) $(BIN) doctor --require nvrtc >/dev/null || { rm -rf .venv; exit 1; }; }

# Without NVRTC, and without a network to get it, the processor shows it as well.
demo: build
	@$(MAKE) --no-print-directory --silent nvrtc || echo "NVRTC is not to be had: the processor's compiler serves, where there is no GPU" >&2
	@$(BIN) demo

test: nvrtc
	$(CARGO) test --release --all-targets
	$(CARGO) test --release --doc
	$(CARGO) test --package ropejit-dev --tests

# The faults need nothing more. Of servers, s3s-fs is built (some minutes, into target/servers); nginx, docker-registry, skopeo and
# minisign are used where they are: apt-get install nginx-light docker-registry skopeo minisign openssl
test-remote:
	@test -x target/servers/bin/s3s-fs || $(CARGO) install s3s-fs --version 0.13.0 --locked --features binary --root target/servers
	PATH="$(CURDIR)/target/servers/bin:$$PATH" $(CARGO) test --test remote

# Playwright from PyPI drives the Chromium that is there (apt-get install chromium); where there is none, it says so.
test-pictures: build
	@test -x .venv-pictures/bin/python || { python3 -m venv .venv-pictures && \
		.venv-pictures/bin/pip install --quiet --disable-pip-version-check 'playwright>=1.50,<2'; }
	.venv-pictures/bin/python scripts/check_pictures.py $(BIN)

# transformers on the CPU over a grid of forms, bit for bit: PyTorch and transformers from PyPI, some gigabytes.
test-transformers: build
	@test -x .venv-transformers/bin/python || { python3 -m venv .venv-transformers && \
		.venv-transformers/bin/pip install --quiet --disable-pip-version-check torch transformers; }
	.venv-transformers/bin/python tests/data/make_eager.py target/eager
	ROPEJIT_TEST_EAGER=$(CURDIR)/target/eager $(CARGO) test --release --test it eager -- --nocapture

# Addresses of tensors go through numbers, as a launch takes them: their provenance is exposed, not checked. What a compiler has
# made and what the driver does is out of Miri's sight; tests/it/host.rs has AddressSanitizer for the former.
miri:
	MIRIFLAGS="-Zmiri-permissive-provenance -Zmiri-disable-isolation" $(CARGO) +nightly miri test --lib -- families::rope::launch:: rope::reference

# Needs a C++ compiler, for libFuzzer; any Rust will do.
fuzz: $(patsubst fuzz/fuzz_targets/%.rs,fuzz-%,$(wildcard fuzz/fuzz_targets/*.rs))

# Each is one thread: `make -j2 fuzz` runs two at a time.
fuzz-%:
	scripts/fuzz.sh $* $(FUZZ_SECONDS)

# One NVRTC makes the same bytes everywhere.
kernels: nvrtc
	$(CARGO) run --release --package ropejit-dev --bin ship_kernels

check-kernels: nvrtc
	$(CARGO) run $(if $(ARCHS),,--release) --package ropejit-dev --bin ship_kernels -- --check $(ARCHS)

# Fails where some are stale. They still order candidates, so no test does.
check-priors:
	@$(CARGO) run --quiet --package ropejit-dev --bin check_priors

lint: check-pages
	$(CARGO) fmt --check --package ropejit --package ropejit-dev
	$(CARGO) clippy --all-targets --test remote --features metrics -- -D warnings
	$(CARGO) clippy --package ropejit-dev --all-targets --features bench -- -D warnings
	$(CARGO) clippy --no-default-features --all-targets -- -D warnings
	$(CARGO) clippy --no-default-features --features remote --lib -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --document-private-items

# Links of all pages, without a network, and whether the pictures of docs/ are what the results say.
.PHONY: check-pages test-docs docs
check-pages:
	python3 scripts/check_links.py --test
	python3 scripts/check_links.py
	python3 benches/first_calls.py --check
	python3 benches/peers/report.py benches/results/python --check

# Rust programs of the pages are run, options of their commands compared with the help.
test-docs: build
	python3 scripts/check_examples.py $(BIN) --release

MDBOOK ?= mdbook
docs: check-pages
	@command -v '$(MDBOOK)' >/dev/null || { \
		echo "mdBook was not found: cargo install mdbook --version 0.4.52 --locked, or MDBOOK=/path/to/mdbook" >&2; exit 1; }
	$(MDBOOK) build docs

# The wheel serves Python 3.10 and newer, whatever builds it, and the glibc that its symbols need, which its file's name says. With
# WHEEL_TAG=manylinux_2_34, say, a build that needs a newer glibc fails.
python:
	@test -x .venv-maturin/bin/maturin || { python3 -m venv .venv-maturin && \
		.venv-maturin/bin/pip install --quiet --disable-pip-version-check 'maturin>=1.9,<2'; }
	rm -rf dist
	.venv-maturin/bin/maturin build --release --locked --manifest-path python/Cargo.toml --out dist $(if $(WHEEL_TAG),--compatibility $(WHEEL_TAG))

# What the package's tests need, gigabytes of it: .ci/run fetches them while it compiles.
python-packages:
	rm -rf .venv-python
	python3 -m venv .venv-python
	.venv-python/bin/pip install --quiet --disable-pip-version-check --no-compile torch transformers diffusers kernels pytest pytest-xdist numpy \
		&& .venv-python/bin/pip install --quiet --disable-pip-version-check --no-compile --no-deps --target .venv-python/fitting $(FITTING) \
		|| { rm -rf .venv-python; exit 1; }

# Tests of what needs versions that fit each other run once more with them.
test-python: python
	@test -x .venv-python/bin/pytest || $(MAKE) python-packages
	.venv-python/bin/pip install --quiet --disable-pip-version-check --force-reinstall --no-deps dist/ropejit-*.whl
	.venv-python/bin/python -m pytest -q -n $(PYTEST_WORKERS) --dist worksteal python/tests
	PYTHONPATH=.venv-python/fitting .venv-python/bin/python -m pytest -q python/tests/test_kernels_hub.py python/tests/test_integrations.py

# Without the native module's work: it reads texts.
coverage:
	@test -x .venv-python/bin/python || $(MAKE) test-python
	PYTHONPATH=$(CURDIR)/python/tests .venv-python/bin/python python/tests/transformers_coverage.py --check

lint-python:
	$(CARGO) fmt --package ropejit-python --check
	$(CARGO) clippy --package ropejit-python -- -D warnings

# Both in the dev profile: they compile in half the time, and the tests are small.
test-candle:
	$(CARGO) test --package ropejit-candle

lint-candle:
	$(CARGO) fmt --package ropejit-candle --check
	$(CARGO) clippy --package ropejit-candle --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --package ropejit-candle

test-capi:
	$(CARGO) test --package ropejit-capi

lint-capi:
	$(CARGO) fmt --package ropejit-capi --check
	$(CARGO) clippy --package ropejit-capi --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --package ropejit-capi

capi-header:
	$(CARGO) run --quiet --package ropejit-capi --example header

# cargo install --locked cargo-deny
deny:
	$(CARGO) deny check

# rustup toolchain install --profile minimal $(MSRV)
msrv:
	cargo +$(MSRV) check --locked --workspace --features metrics
	cargo +$(MSRV) check --locked --no-default-features

# What the pages promise.
release-check: WHEEL_TAG = manylinux_2_34
release-check: python
	$(CARGO) publish --dry-run --locked
	@test -x .venv-maturin/bin/twine || .venv-maturin/bin/pip install --quiet --disable-pip-version-check twine
	.venv-maturin/bin/twine check --strict dist/*

# Peers come from PyPI and are carried, not kept.
peers-bundle: python
	scripts/peers-bundle.sh

gpu-bundle: nvrtc
	scripts/gpu-bundle.sh

# Four minutes on a GPU, measuring all candidates.
priors: gpu-bundle
	@echo "On the GPU host, in a copy of .gpu/: ./run.sh OUT priors"
	@echo "Then copy OUT/<gpu>.lock to cache/priors/ and name it in SHIPPED, in src/families/rope/prior.rs."

clean:
	$(CARGO) clean
	rm -rf .gpu .venv .venv-pictures .venv-transformers .venv-python .venv-maturin dist book

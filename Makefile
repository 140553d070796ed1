# What can be done here; `make help` lists it.

export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin
SHELL := /bin/bash
STAGE := scripts/stage
BIN := $(CURDIR)/target/release

.PHONY: help demo build deps root test fmt clippy doc unit namespaces kernel-lab soak bench clean
.NOTPARALLEL:

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: root deps build ## BIRD and FRR with a sidecar each, attacked: under a minute after the build
	@examples/demo/demo $(BIN)

build: deps ## The two binaries, optimised: target/release/ao-sidecar and aoctl
	@$(STAGE) "build" cargo build --release -p ao-sidecar

deps: ## Install missing Debian packages, check the Rust toolchain
	@scripts/deps

root:
	@(($$(id -u) == 0)) || { echo "network namespaces need root: run this with sudo" >&2; exit 1; }

test: root deps fmt clippy doc unit namespaces kernel-lab ## Every test, the long ones short
	@echo "all tests passed"

fmt: ## Is the code formatted?
	@$(STAGE) "format" cargo fmt --all -- --check --files-with-diff

clippy: ## Lints, warnings denied
	@$(STAGE) "clippy" cargo clippy --all-targets -- -D warnings

doc: ## Documentation, warnings denied
	@RUSTDOCFLAGS="-D warnings" $(STAGE) "docs" cargo doc --no-deps

unit: ## Unit, vector, property and simulated-pair tests
	@$(STAGE) "unit tests" scripts/unit-tests

namespaces: root build ## Real daemons, attacks, restarts in network namespaces
	@AO_BIN_DIR=$(BIN) $(STAGE) "namespace tests" scripts/namespace-tests

kernel-lab: root build ## A virtual machine whose kernel has TCP-AO, VRF and netem
	@$(STAGE) "kernel lab, build" tests/kernel-lab/build
	@$(STAGE) "kernel lab" tests/kernel-lab/run -- tests/kernel-lab/self-test
	@AO_BIN_DIR=$(BIN) $(STAGE) "kernel lab, sidecar" tests/kernel-lab/sidecar-tests

soak: root deps build ## The namespace tests with full figures: some hours
	@AO_SOAK=1 AO_BIN_DIR=$(BIN) $(STAGE) "soak" scripts/namespace-tests

bench: root deps build ## MACs beside other libraries, throughput beside TCP-MD5, idle cost
	@$(STAGE) "clippy" cargo clippy -p ao-bench --all-targets -- -D warnings
	@$(STAGE) "MACs and packet edits" cargo bench -p ao-engine -p ao-bench
	@$(STAGE) "throughput, HMAC-SHA-1" tests/bench/throughput --rounds 7 --bin $(BIN)
	@$(STAGE) "throughput, AES-CMAC" tests/bench/throughput --rounds 7 --bin $(BIN) --algorithm aes-128-cmac-96
	@$(STAGE) "idle cost" tests/bench/idle --bin $(BIN) --check

clean: ## Remove what was built
	cargo clean

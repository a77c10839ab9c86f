# hybrid: `make help` lists the targets.
#
# Cargo builds everything with one profile (release) and for the whole workspace at once: a part alone would have the
# features of its dependencies unified differently, and Wasmtime would be built again for it.

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
INSTALL ?= install

SHIM := containerd-shim-hybrid-v1
# The triple of the host: .cargo/config.toml asks for it by name, so cargo puts the output in a folder of that name.
TRIPLE := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
TARGET := $(or $(CARGO_TARGET_DIR),target)
OUT := $(TARGET)/$(TRIPLE)/release
# .cargo/config.toml names the folder for x86_64; the environment comes before it.
export LIBSECCOMP_LIB_PATH ?= /usr/lib/$(shell uname -m)-linux-gnu

.DEFAULT_GOAL := build
.PHONY: help deps test-deps build demo check fmt clippy deny audit doc unit e2e cri docker test test-node fuzz bench bench-service install uninstall clean

help: ## show this list
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "  make %-13s %s\n", $$1, $$2 }'

deps: ## install what building takes, by apt, if it is missing
	@scripts/dependencies build

test-deps:
	@scripts/dependencies build test

build: deps ## build the shim
	$(CARGO) build --release --workspace --locked
	@echo "$(OUT)/$(SHIM)"

demo: test-deps ## run Linux and WebAssembly images through a private containerd
	$(CARGO) build --release --workspace --locked
	scripts/isolated scripts/demo "$(OUT)"

check: fmt clippy unit doc deny ## everything that needs no containerd

fmt:
	$(CARGO) fmt --all --check

clippy: test-deps
	$(CARGO) clippy --release --workspace --all-targets --locked -- -D warnings

unit: test-deps
	$(CARGO) test --release --workspace --locked --lib --bins

doc: deps
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --workspace --locked --no-deps

deny: ## check licences, sources and who may depend on whom (with cargo-deny, if it is installed)
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --locked check bans licenses sources; \
	else echo "deny: not checked: cargo install --locked cargo-deny"; fi

audit: ## check the dependencies for advisories (with cargo-deny, over the network)
	$(CARGO) deny --locked check advisories

e2e: test-deps ## only the tests through containerd (HYBRID_CONTAINERD, HYBRID_RUNTIME: see shim/tests/e2e/main.rs)
	$(CARGO) test --release --workspace --locked --test e2e

cri: test-deps ## only the tests of pods, through the Container Runtime Interface (HYBRID_CONTAINERD, HYBRID_RUNTIME: as above)
	$(CARGO) test --release --workspace --locked --test cri

docker: test-deps ## only the tests through Docker Engine (HYBRID_RUNTIME: as above)
	$(CARGO) test --release --workspace --locked --test docker

test: fmt clippy ## formatting, lints, unit tests, and end-to-end tests through each containerd, its CRI, Docker Engine and a node
	$(CARGO) test --release --workspace --locked
	scripts/test-node smoke

test-node: ## tests in a Debian 13 node with systemd, cgroup v2 and AppArmor, by qemu (FILTER="exec::" for some only)
	@scripts/dependencies build test node
	scripts/test-node $(FILTER)

fuzz: deps ## run each fuzz target for a while (SECONDS=60; with cargo-fuzz and a nightly toolchain)
	scripts/fuzz $(or $(SECONDS),60)

bench: test-deps ## the time of a task's life beside runc's shim
	$(CARGO) bench --workspace --locked --bench life

bench-service: test-deps ## requests per second of a WebAssembly service beside the wasmtime command, which is built for it
	HYBRID_WASMTIME=$$(scripts/wasmtime) $(CARGO) bench --workspace --locked --bench service

install: ## put the shim where containerd finds it (PREFIX, DESTDIR); build it before
	@test -x "$(OUT)/$(SHIM)" || { echo "install: $(OUT)/$(SHIM) is missing: run make build first" >&2; exit 1; }
	$(INSTALL) -D -m 0755 "$(OUT)/$(SHIM)" "$(DESTDIR)$(PREFIX)/bin/$(SHIM)"

uninstall: ## remove it again
	rm -f "$(DESTDIR)$(PREFIX)/bin/$(SHIM)"

clean: ## remove what was built
	$(CARGO) clean

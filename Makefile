# vmsweep's targets. Each one sets up first what it needs: Debian packages (as root), node_modules with the
# project's own Node 26, the guest image. That is idempotent and takes a moment when nothing is to do.

SHELL := /bin/bash
export PATH := $(CURDIR)/node_modules/.bin:$(PATH)

NODE := node_modules/.bin/node
# Three files at a time, on two cores too: many wait for commits and rests. The time limit is a guard against hanging, not a measurement.
TEST := $(NODE) --test --test-reporter=spec --test-concurrency=3 --test-timeout=1200000 \
	--test-global-setup=test/support/clear-leftovers.ts

# The tests' seeds follow from the commit's tree (but for fast-check's, which prints its own): the same sources are tested
# alike here and in CI, and each change brings other seeds. VMSWEEP_SEED=N make test repeats a run; make soak goes by chance.
SEED = $(shell printf %d 0x0$$(git rev-parse --short=7 "HEAD^{tree}" 2>/dev/null))

.DEFAULT_GOAL := help
.PHONY: help setup setup-guest check test test-clients soak demo bench build format lock clean

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

setup: ## Debian packages where missing (as root), node_modules
	@tools/setup.sh

setup-guest: setup ## the guest image too (once, half a minute or more; kept in the user's cache folder)
	@tools/setup.sh --guest

check test: export VMSWEEP_SEED ?= $(SEED)

check: setup ## types, format, lint, unused exports, layers, unit tests: under a minute
	@$(NODE) tools/check.ts

test: setup-guest check ## check, then everything under test/: real tools, real guests
	@echo "VMSWEEP_SEED=$$VMSWEEP_SEED"
	@$(TEST) "test/**/*.test.ts"

soak: setup-guest ## long runs: test/soak/*.soak.ts, and all variants, seeds and mutations of what make test runs in part
	@VMSWEEP_THOROUGH=1 VMSWEEP_SIM_RUNS=100000 VMSWEEP_FUZZ_COUNT=200000 $(TEST) --test-timeout=14400000 \
		"test/soak/**/*.soak.ts" "test/sim/**/*.test.ts" "test/fuzz/**/*.test.ts" "test/interop/map*.test.ts" \
		"test/interop/sweep-file-systems.test.ts" "test/interop/qcow2-sweep.test.ts" "test/guest/{f2fs,lvm,at-rest}.test.ts"

test-clients: setup-guest ## tests of NBD, qcow2 and guests in Debian 13: QEMU 10, libnbd 1.22, and these projects' own test programs (as root)
	@tools/in-debian.sh trixie $(TEST) "test/interop/{handshake,nbd-,qcow2-,vdi,vhd,vmdk,cli-serve,snapshots,upkeep,clean-off,locks}*.test.ts" \
		"test/guest/*.test.ts" "test/peers/*.test.ts"

demo: setup-guest ## a guest deletes files and the host gets the space back
	@$(NODE) tools/demo.ts

bench: setup-guest ## the server against nbdkit and qemu-nbd, in a guest, many disks; then map, sweep and convert against their peers
	@$(NODE) bench/run.ts
	@$(NODE) bench/guest.ts
	@$(NODE) bench/many.ts
	@$(NODE) bench/offline.ts

build: setup ## the package for publishing, as JavaScript, in dist/
	@$(NODE) tools/build.ts

format: setup ## put all sources into the project's format
	@biome check --write --linter-enabled=false

lock: ## package-lock.json anew, after a change of package.json
	@npm install --package-lock-only --loglevel=error
	@$(NODE) tools/complete-lock.ts

clean: ## what was built; node_modules and the guest image stay
	rm -rf dist coverage .cache

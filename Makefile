# `make help` lists the commands.

# .ci/tools installs into these directories: Python modules, promtool, helm and gungraun-runner; packages for Node.
VENV := $(CURDIR)/target/python
NODE := $(CURDIR)/target/node
export PATH := $(VENV)/bin:$(PATH)

SEEDS ?= 10000
TIME ?= 600
MINUTES ?= 10
RATE ?= 2000
TARGETS ?= query job_body http1 coalescer scheduler

.PHONY: help run test check deny counts load vendors compare sweep soak soak-cluster outages fuzz build dist deb manifests tools

help:
	@echo 'make run            start the gateway in front of a simulated upstream, with APIs that hold and that never do: no key, no network'
	@echo 'make test           install the programs that the tests need, and run all tests'
	@echo 'make check          format, lints, documentation, dependencies and instruction counts, each without a warning'
	@echo 'make deny           dependencies alone: licences, duplicate versions, sources (deny.toml)'
	@echo 'make counts         instruction counts alone: a hit, a pass-through, a join, a leave and a landing, with budgets (benches/counts.rs)'
	@echo 'make load           upstream calls of a team on DAYS (10) scripted days, with and without the gateway; SEED=n, MIX=FILE'
	@echo 'make vendors        upstream calls and delays of five vendors'"'"' polling loops, with and without the gateway; SEED=n, RUNS=n'
	@echo 'make compare        measure the gateway beside other proxies: 15 minutes on an idle machine; PART="hits waits", ROUNDS=n, RESUME=1, QUICK=1'
	@echo 'make sweep SEEDS=n  the first n (10000) random schedules of the coalescer, alone and with the scheduler; SEED=n: one schedule, with a trace'
	@echo 'make soak           MINUTES (10) of load at RATE (2000) requests a second with faults, every answer checked; SEED=n'
	@echo 'make soak-cluster   MINUTES (10) of waits at three replicas with a fault each 5 s: lost waits, delays and calls'
	@echo 'make outages        restart the upstream four times under 200 waits: lost waits, delays and calls'
	@echo 'make fuzz TIME=n    fuzz each of TARGETS (fuzz/targets/) for n (600) seconds'
	@echo 'make build          build the gateway with a profile of its own load, as it is distributed: a sixth less CPU a request'
	@echo 'make dist           build a static binary, the Debian package, their notices and checksums in target/dist/'
	@echo 'make deb            build the Debian package alone'
	@echo 'make manifests      write deploy/kubernetes/team.yaml from the Helm chart'

run:
	cargo run --release --locked -- serve --sim

# Named targets: without them cargo would also build the long runs of tests/soak and tests/outages.
test: tools
	cargo test --locked --lib --test cache_memory --test it

check:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
	@$(MAKE) --no-print-directory fuzz-check deny counts

deny:
	@.ci/deny target

counts:
	@.ci/tools counts "$(VENV)" "$(NODE)"
	cargo bench --locked --profile counts --bench counts

load:
	cargo bench --locked --bench load -- $(if $(DAYS),--days $(DAYS)) $(if $(SEED),--seed $(SEED)) $(if $(MIX),--mix "$(MIX)")

vendors:
	cargo bench --locked --bench vendors -- $(if $(RUNS),--runs $(RUNS)) $(if $(SEED),--seed $(SEED))

compare:
	@.ci/tools build "$(VENV)" "$(NODE)"
	benches/compare $(PART) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(QUICK),--quick) $(if $(RESUME),--resume)

sweep:
	CLIPGATE_SWEEP_SEEDS=$(SEEDS) $(if $(SEED),CLIPGATE_SWEEP_SEED=$(SEED)) \
		cargo test --locked --lib --config 'profile.test.opt-level=2' -- --nocapture \
		no_client_is_worse_off_than_alone no_outage_and_no_neighbour_leaves_a_client_worse_off_than_alone

soak:
	cargo run --release --locked --example soak -- --minutes $(MINUTES) --rate $(RATE) $(if $(SEED),--seed $(SEED))

soak-cluster:
	CLIPGATE_SOAK_SECONDS=$$(($(MINUTES) * 60)) cargo test --locked --test it -- --nocapture --exact \
		cluster::soak::no_wait_is_lost_while_replicas_and_the_engine_fail

outages:
	cargo build --release --locked --bin clipgate
	cargo run --locked --example outages

.PHONY: fuzz-check
# The targets compile. Their workspace is not built with the gateway; libfuzzer needs a C++ compiler.
fuzz-check:
	@if command -v c++ >/dev/null; then cargo check --manifest-path fuzz/Cargo.toml --target-dir target/fuzz; \
	else echo 'no C++ compiler: the fuzz targets are not checked' >&2; fi

# Failing inputs are in fuzz/artifacts/.
fuzz:
	@cargo +nightly fuzz --version || { \
		echo 'missing: rustup toolchain install nightly; cargo install cargo-fuzz; a C++ compiler' >&2; exit 1; }
	cargo +nightly fuzz build
	for target in $(TARGETS); do \
		dict=; if [ -e fuzz/$$target.dict ]; then dict=-dict=fuzz/$$target.dict; fi; \
		cargo +nightly fuzz run $$target -- -max_total_time=$(TIME) -len_control=0 $$dict || exit 1; \
	done

build:
	@.ci/tools build "$(VENV)" "$(NODE)"
	deploy/build

dist:
	@.ci/tools dist "$(VENV)" "$(NODE)"
	deploy/dist

deb:
	@.ci/tools dist "$(VENV)" "$(NODE)"
	deploy/dist deb

manifests: tools
	helm template clipgate deploy/helm/clipgate --set autoscaling.enabled=true,serviceMonitor.enabled=true \
		>deploy/kubernetes/team.yaml

tools:
	@.ci/tools tests "$(VENV)" "$(NODE)"

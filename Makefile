# make help says what there is.

# For promtool and gungraun-runner, for python3 with the modules that the system's own has not, and for node's (.ci/tools).
VENV := $(CURDIR)/target/python
NODE := $(CURDIR)/target/node
export PATH := $(VENV)/bin:$(PATH)

SEEDS ?= 10000
TIME ?= 600
MINUTES ?= 10
RATE ?= 2000
TARGETS ?= query job_body coalescer scheduler

.PHONY: help run test check deny counts compare sweep soak outages fuzz deb manifests tools

help:
	@echo 'make run            run the gateway before a simulated upstream: no key, no network'
	@echo 'make test           install what the tests need where that can be done, and run them all'
	@echo 'make check          format, lints, documentation and dependencies, each without a warning'
	@echo 'make deny           just the dependencies: licences, versions twice, where they come from (deny.toml)'
	@echo 'make counts         instructions of a hit, a join, a leave, a landing, held to their budgets (benches/counts.rs)'
	@echo 'make compare        the gateway beside what else there is: half an hour, on a machine that does nothing else'
	@echo 'make sweep SEEDS=n  the first n random schedules of the merging (10000); SEED=n: just that one, told'
	@echo 'make soak           MINUTES (10) of all weathers at RATE (2000) requests a second, each answer checked; SEED=n'
	@echo 'make outages        200 waits while the upstream is restarted four times: none may be lost, how late, how many calls'
	@echo 'make fuzz TIME=n    n seconds (600) of made-up inputs for each of TARGETS (fuzz/targets/)'
	@echo 'make deb            the Debian package, in target/debian/'
	@echo 'make manifests      deploy/kubernetes/team.yaml anew, from the chart'

run:
	cargo run --release --locked -- serve --sim

test: tools counts
	cargo test --locked

check: deny
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

deny:
	@.ci/deny target

counts: tools
	cargo bench --locked --profile counts --bench counts

compare:
	benches/compare

sweep:
	CLIPGATE_SWEEP_SEEDS=$(SEEDS) $(if $(SEED),CLIPGATE_SWEEP_SEED=$(SEED)) \
		cargo test --locked --lib no_client_is_worse_off_than_alone -- --nocapture

soak:
	cargo run --release --locked --example soak -- --minutes $(MINUTES) --rate $(RATE) $(if $(SEED),--seed $(SEED))

outages:
	cargo build --release --locked --bin clipgate
	cargo run --locked --example outages

# Needs a nightly toolchain, cargo-fuzz and a C++ compiler. What it finds is in fuzz/artifacts/.
fuzz:
	@cargo +nightly fuzz --version || { \
		echo 'missing: rustup toolchain install nightly; cargo install cargo-fuzz' >&2; exit 1; }
	cargo +nightly fuzz build
	for target in $(TARGETS); do \
		dict=; if [ -e fuzz/$$target.dict ]; then dict=-dict=fuzz/$$target.dict; fi; \
		cargo +nightly fuzz run $$target -- -max_total_time=$(TIME) -len_control=0 $$dict || exit 1; \
	done

# With the manual and the completions, which the gateway itself writes, and the notices of what others wrote.
deb:
	@cargo deb --version >/dev/null || { echo 'missing: cargo install --locked cargo-deb' >&2; exit 1; }
	cargo build --release --locked
	mkdir -p target/deb/man
	target/release/clipgate man target/deb/man
	for shell in bash zsh fish; do target/release/clipgate completions $$shell >target/deb/clipgate.$$shell || exit 1; done
	deploy/third-party.py target/deb
	cargo deb --no-build --locked

manifests: tools
	helm template clipgate deploy/helm/clipgate --set autoscaling.enabled=true,serviceMonitor.enabled=true \
		>deploy/kubernetes/team.yaml

tools:
	@.ci/tools "$(VENV)" "$(NODE)"

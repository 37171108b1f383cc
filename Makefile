# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# Everything a person or CI does to this project, as one word each. `make` alone says which.
# Needed beforehand: Go, make, git, bash. On Debian, as root, `make deps DEPS=install` installs the rest.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

GO      ?= go
BUILD   := build
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
MODULE  := github.com/amsagent/amsagent

# No cgo: one static file runs on every Linux. No path, build id or VCS stamp: the same sources give the same bytes
# in any folder, from a clone or from a tarball; the version is stamped by us.
LDFLAGS := -s -w -buildid= -X $(MODULE)/cmd/amsagent/cli.version=$(VERSION)
GOBUILD := $(GO) build -buildvcs=false -ldflags '$(LDFLAGS)'
# One set of flags for programs, tests and linters, so that everything is compiled once.
export CGO_ENABLED ?= 0
export GOFLAGS := $(strip $(GOFLAGS) -trimpath)

# The largest binary we accept, in bytes, stripped: MongoDB's driver is 9 MB of it, and a node_exporter 20 MB.
MAX_SIZE := 18200000

FUZZTIME  ?= 20s
BENCHTIME ?= 1s
# Where `make install` puts things; DESTDIR is prefixed to all of it, for who packages it in another way.
PREFIX    ?= /usr/local
DESTDIR   ?=
# What happens if a Debian package is missing. skip: its tests are skipped, and it is named. install: it is installed, as
# root. require: that, and a failure if it is missing after all.
DEPS ?= skip
# Which of the heavy tests `make e2e` runs, as regular expressions: RUN=TestCrash SKIP=TestCrashKill.
RUN  ?=
SKIP ?=
# The tests of crashes try each n-th combination of a system call, a way to fail and what follows.
CRASH_EVERY ?= 1

# ---------------------------------------------------------------------------------------------------------------------

.PHONY: help
help: ## this list
	@echo 'amsagent: what make can do here. The two to start with: make demo, make test.'
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo 'Settings: FUZZTIME=$(FUZZTIME)  BENCHTIME=$(BENCHTIME)  DEPS=$(DEPS) (or install: install Debian packages that tests use, as root)  VERSION=$(VERSION)'

.PHONY: build
build: ## the agent for this machine, static and stripped: build/amsagent
	@mkdir -p $(BUILD)
	$(GOBUILD) -o $(BUILD)/amsagent ./cmd/amsagent

.PHONY: build-sandbox
build-sandbox: ## the sandbox with its stand-ins, for the demo and for tests: build/sandbox
	cd sandbox && $(GO) build -buildvcs=false -o ../$(BUILD)/sandbox ./cmd/sandbox

# An unknown cloud is refused before anything is built, and so is a demo on real servers (REAL=1) by another user than root.
REAL   :=
CLOUD  := aws
CLOUDS := aws azure alibaba gcp
ifneq ($(filter demo,$(MAKECMDGOALS)),)
  ifeq ($(filter $(CLOUD),$(CLOUDS)),)
    $(error CLOUD=$(CLOUD): no such cloud can be pretended (there are: $(CLOUDS)))
  endif
  ifneq ($(REAL),)
    ifneq ($(shell id -u),0)
      $(error REAL=1 needs root: each real server is put into a network namespace of its own (sudo make demo REAL=1))
    endif
  endif
endif

.PHONY: demo
demo: build build-sandbox ## a cluster of two nodes on your machine, on an emulated CLOUD (aws, azure, alibaba, gcp); no root, no AMS needed. MONGO=host:port: on your own MongoDB; REAL=1: on real servers, as root
	$(if $(REAL),@$(MAKE) --no-print-directory real-fetch RELEASES=2.17.1)
	@GO='$(GO)' tools/scripts/demo.sh $(CLOUD) $(REAL)

.PHONY: demo-embedded
demo-embedded: ## the demo on the database that it compiles on a machine that cannot have a mongod
	cd sandbox/embedded && $(GO) mod tidy -diff
	@$(MAKE) --no-print-directory demo EMBEDDED=1

# The tests wait more than they compute: more of them at a time than there are cores. Two packages of the sandbox at a time
# are quicker than four, and a MongoDB among fewer others answers in time beside a busy core.
# The time is less than a tier's step has, so that a test that hangs is seen with its goroutines.
# Go keeps the results of packages that did not change, but does not see the programs that the sandbox's tests start. CI keeps none.
TESTFLAGS := -timeout 20m
# What prints the tests' results: gotestsum where failed tests are run again (RERUN), else a program of ours.
RUNNER := $(BUILD)/tools/$(if $(RERUN),gotestsum,contract)
.PHONY: test test-agent test-sandbox
test: deps ## every test of the agent and of its sandbox that is quick and certain (on a mongod, which is fetched; without one the tests that need it are skipped)
	@failed=0; \
	$(MAKE) --no-print-directory test-agent || failed=1; \
	$(MAKE) --no-print-directory -o build -o build-sandbox test-sandbox || failed=1; \
	exit $$failed

test-agent: build build-sandbox $(RUNNER) ## the half of test that tests the agent, and the tests of our tools
	@failed=0; \
	tools/scripts/gotest.sh . ./... $(TESTFLAGS) -p 6 -parallel 8 $(if $(CI),-count=1) || failed=1; \
	tools/scripts/gotest.sh tools ./... $(TESTFLAGS) $(if $(CI),-count=1) || failed=1; \
	exit $$failed

# The tests of package bench are the other programs of its benchmarks.
test-sandbox: build build-sandbox $(RUNNER) ## the half of test that starts programs: stories, the registry on a mongod, templates
	@tools/scripts/gotest.sh sandbox "$$(cd sandbox && $(GO) list ./... | grep -v /bench$$ | paste -sd' ')" $(TESTFLAGS) -p 2 -parallel 8 -count=1

.PHONY: story
story: build build-sandbox ## one story: S=drain plays testdata/script/drain.txtar; KEEP=1 keeps its machines and prints where; WORLD=real or booted, as root
	@WORLD='$(WORLD)' tools/scripts/story.sh '$(S)' $(if $(KEEP),-testwork)

.PHONY: race
race: deps build build-sandbox $(RUNNER) ## the same tests under the race detector, but for those of whole programs, into which it does not see (needs a C compiler)
	@CGO_ENABLED=1 tools/scripts/gotest.sh . ./... -race -skip=^TestEventTable$$ -shuffle=on -timeout=20m
	@CGO_ENABLED=1 tools/scripts/gotest.sh sandbox "$$(cd sandbox && $(GO) list ./... | grep -v /e2e$$ | paste -sd' ')" -race -shuffle=on -timeout=20m

.PHONY: faults
faults: build build-sandbox $(RUNNER) ## whole, the random and exhaustive tests of which the gate has a sample (must.Sample), beside their packages' others
	@AMSAGENT_FAULTS=all tools/scripts/gotest.sh . "$$(tools/scripts/packages.sh . 'must\.Sample\(' | paste -sd' ')" -count=1 -timeout 20m

.PHONY: arm64
arm64: build build-sandbox $(RUNNER) ## the tests of what edits, joins and reads metadata, as arm64 programs under an emulator (about 6 minutes)
	@tools/scripts/deps.sh arm64 $(DEPS)
	@DEPS=$(DEPS) tools/scripts/arm64.sh

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME each
	@tools/scripts/fuzz.sh $(FUZZTIME)

# Proofs: each takes longer than three minutes, so the heavy tier has a sample of it. They run before a release and after a
# change of what they prove.
.PHONY: prove-attack prove-balance prove-crash prove-drains prove-fuzz prove-outage prove-ready prove-surroundings
prove-attack: ## 160 drains of nodes whose files the server's user exchanges meanwhile (about 10 minutes, as root)
	@AMSAGENT_ATTACKS=160 $(MAKE) --no-print-directory e2e RUN='^TestAttackDrain$$'

prove-balance: ## 100 drains before each kind of load balancer at 1,000 requests a second each, then five minutes without balance (about 20 minutes, as root)
	@BALANCE_DRAINS=100 BALANCE_RATE=1000 BALANCE_DEAD=300 $(MAKE) --no-print-directory e2e RUN='^TestBalance$$'

prove-crash: ## joins and leaves are killed, and fail, at every system call in every way (about an hour, as root)
	@$(MAKE) --no-print-directory e2e RUN='$(or $(RUN),^TestCrash)'

prove-drains: ## 500 drains on each cloud, in which the daemon is killed at random moments (about half an hour, as root)
	@CLOUD_DRAINS=500 $(MAKE) --no-print-directory e2e RUN='^TestCrashKillClouds$$'

prove-fuzz: ## every fuzz target for five minutes each (about five hours)
	@tools/scripts/fuzz.sh 5m

prove-outage: ## MongoDB answers nothing for half an hour: no health check fails, no drain begins (as root)
	@OUTAGE=30m $(MAKE) --no-print-directory e2e RUN='^TestOutage$$'

prove-ready: ## 20 rounds of readiness on a real Ant Media Server (more than an hour, as root)
	@REAL_ROUNDS=20 $(MAKE) --no-print-directory real-test RUN='^TestRealReady$$'

prove-surroundings: ## the gate itself: killed at five moments, then twice at once in strange folders (about 15 minutes, as root)
	@tools/scripts/surroundings.sh

.PHONY: bench
bench: size ## speeds as ratios of one run, what a daemon takes after BENCH_MINUTES (10), and the size of the binary
	@tools/scripts/bench.sh $(BENCHTIME)

.PHONY: e2e
e2e: build build-sandbox $(RUNNER) ## the heavy tests with real components: crashes at every system call, booted machines, soak; RUN and SKIP choose
	@tools/scripts/deps.sh heavy $(DEPS)
	@tools/scripts/real.sh mongod aws prometheus
	@tools/scripts/axe.sh
	@CRASH_EVERY='$(CRASH_EVERY)' RUN='$(RUN)' SKIP='$(or $(SKIP),^TestReal)' tools/scripts/e2e.sh

.PHONY: screenshots
screenshots: ## pictures of the pages of `amsagent web` in Chromium, from TestWeb: docs/pictures (about 8 minutes)
	@PICTURES='$(CURDIR)/docs/pictures' PICTURES_HISTORY=6m $(MAKE) --no-print-directory e2e RUN='^TestWeb$$'

.PHONY: real-test
real-test: build build-sandbox $(RUNNER) ## the tests on a real Ant Media Server with a real mongod, as root; RUN=TestRealJoin for one of them
	-@$(MAKE) --no-print-directory real-fetch # without a release the others' tests run all the same
	@RUN='$(or $(RUN),^TestReal)' SKIP='$(SKIP)' E2E_FLAGS='-p 1 -parallel 3' E2E_TIMEOUT=$${E2E_TIMEOUT:-$(if $(REAL_IDLE)$(REAL_ROUNDS),6h,55m)} tools/scripts/e2e.sh

# The daemon's tests take minutes, and the others left out start sets and users of the real mongod for themselves.
ENGINES_SKIP := ^Test(Certificates|Daemon|Rights|LargeRow|StreamsByIndex)
.PHONY: engines
engines: build build-sandbox $(RUNNER) ## the registry's tests on a replica set, and on an engine that is not MongoDB: FerretDB 2 on DocumentDB (as root; 1 GB, once)
	@CLUSTER_SET=yes tools/scripts/gotest.sh sandbox ./clustertest -count=1
	@tools/scripts/documentdb.sh tools/scripts/gotest.sh sandbox ./clustertest -count=1 -skip '$(ENGINES_SKIP)'

.PHONY: contract
contract: $(BUILD)/tools/contract ## compares the tests that a TIER ran (TEST_JSON) with test/contract.txt, as the last step of each tier does
	@tools/scripts/contract.sh $(TIER) $(TEST_JSON)

.PHONY: gate
gate: ## what every change must pass, and CI runs: lint, tidy-check, test, demo (docs/testing.md)
	@tools/scripts/tier.sh gate

.PHONY: real
real: ## the stories on a real Ant Media Server with a real mongod and ffmpeg (docs/reality.md; about 40 minutes, as root)
	@tools/scripts/tier.sh real

.PHONY: heavy
heavy: ## what is slow: races, booted machines, crashes at every system call, three more demos, reproducible builds, fuzz (up to two hours, as root)
	@tools/scripts/tier.sh heavy

.PHONY: bare
bare: ## the gate in an empty Debian 12 with git, make and this machine's Go, in a clone with nothing beside it (about 12 minutes, as root)
	@tools/scripts/bare.sh

.PHONY: lint
lint: $(BUILD)/tools/staticcheck $(BUILD)/tools/actionlint $(BUILD)/tools/hclfmt ## the quick linters: gofmt, go vet, staticcheck without tests, the rules of internal/house, shellcheck, actionlint, hclfmt
	@tools/scripts/deps.sh lint $(DEPS)
	@tools/scripts/lint.sh quick

.PHONY: lint-all
lint-all: $(BUILD)/tools/golangci-lint ## all linters, tests included (the linter is compiled at first use: some minutes)
	@tools/scripts/lint.sh all

.PHONY: stats
stats: ## sizes of the parts, and other figures, beside their budgets (the binary's if it is built); LIST=unused, branchy, words or insides lists what is counted
	@cd tools && $(GO) run ./stats .. $(LIST)

.PHONY: fmt
fmt: $(BUILD)/tools/gofumpt ## format the Go sources in place (the only target that rewrites them, besides generate)
	git ls-files -z -co --exclude-standard -- '*.go' | xargs -0 $(BUILD)/tools/gofumpt -w

.PHONY: generate
generate: ## man pages, completions, licences and changelogs, as the packages hold them: build/package/data
	@tools/scripts/package.sh data '$(VERSION)' $(BUILD)

.PHONY: package
package: cross $(BUILD)/tools/nfpm ## .deb and .rpm for both machines, the same bytes in any folder: build/packages
	@tools/scripts/package.sh all '$(VERSION)' $(BUILD)

# The file of an SSH key that signs a release; without it SHA256SUMS is not signed.
SIGN_KEY ?=

.PHONY: release
release: package ## what is published: packages, tarballs, bills of materials, SHA256SUMS, signed by SIGN_KEY where given: build/release
	@tools/scripts/release.sh $(BUILD) '$(SIGN_KEY)'

.PHONY: release-check
release-check: release ## a second release, in another folder and compiled again, has the same bytes, and its signature holds for no others
	@tools/scripts/deps.sh release $(DEPS)
	@tools/scripts/release-check.sh '$(VERSION)' $(BUILD)

.PHONY: draft
draft: ## a draft of the release VERSION on GitHub, with the files of build/release (run by CI after a tag; needs gh)
	@tools/scripts/draft.sh '$(VERSION)' $(BUILD)

.PHONY: install
install: ## what the packages hold, as `make build generate` left it, below $(DESTDIR)$(PREFIX) (/usr/local); enables and starts nothing
	@if [ ! -x '$(BUILD)/amsagent' ] || [ ! -d '$(BUILD)/package/data' ]; then \
	  command -v $(GO) >/dev/null || { echo 'install: nothing is built yet; run this first, as your own user: make build generate' >&2; exit 1; }; \
	  $(MAKE) --no-print-directory build generate; \
	fi
	@tools/scripts/package-install.sh install '$(DESTDIR)' '$(PREFIX)' $(BUILD)

.PHONY: uninstall
uninstall: ## removes what install put there; run amsagent leave before, on a node
	@tools/scripts/package-install.sh uninstall '$(DESTDIR)' '$(PREFIX)' $(BUILD)

.PHONY: tidy-check
tidy-check: ## go.mod and go.sum of the three modules list what is used and nothing else
	$(GO) mod tidy -diff
	cd sandbox && $(GO) mod tidy -diff
	cd tools && $(GO) mod tidy -diff

.PHONY: cross
cross: ## the agent for linux/amd64 and linux/arm64, static and not larger than MAX_SIZE: build/amsagent-linux-*
	@mkdir -p $(BUILD)
	GOOS=linux GOARCH=amd64 $(GOBUILD) -o $(BUILD)/amsagent-linux-amd64 ./cmd/amsagent
	GOOS=linux GOARCH=arm64 $(GOBUILD) -o $(BUILD)/amsagent-linux-arm64 ./cmd/amsagent
	@tools/scripts/size.sh $(MAX_SIZE) $(BUILD)/amsagent-linux-amd64 $(BUILD)/amsagent-linux-arm64

.PHONY: size
size: build ## fails if the binary of this machine is larger than MAX_SIZE or not static
	@tools/scripts/size.sh $(MAX_SIZE) $(BUILD)/amsagent

.PHONY: deps
deps: ## names the Debian packages that are missing for tests, or installs them (DEPS=install, as root), and fetches a mongod
	@tools/scripts/deps.sh test $(DEPS)
	@tools/scripts/real.sh mongod

# What the tests named TestReal run on: docs/reality.md.
RELEASES ?= 2.4.3 2.10.0 2.16.2 2.17.1
.PHONY: real-fetch
real-fetch: ## fetch a real Ant Media Server and a real mongod for the tests, once, into ~/.cache/amsagent/real
	@tools/scripts/deps.sh test $(DEPS)
	@tools/scripts/deps.sh real $(DEPS)
	@tools/scripts/real.sh mongod $(RELEASES)

.PHONY: clean
clean: ## remove build/
	rm -rf $(BUILD)

# Tools are built once per version; their sources and versions are those of tools/go.mod.
TOOL_actionlint    := github.com/rhysd/actionlint/cmd/actionlint
TOOL_golangci-lint := github.com/golangci/golangci-lint/v2/cmd/golangci-lint
TOOL_gofumpt       := mvdan.cc/gofumpt
TOOL_hclfmt        := github.com/hashicorp/hcl/v2/cmd/hclfmt
TOOL_gotestsum     := gotest.tools/gotestsum
TOOL_staticcheck   := honnef.co/go/tools/cmd/staticcheck
TOOL_nfpm          := github.com/goreleaser/nfpm/v2/cmd/nfpm

$(BUILD)/tools/contract: $(wildcard tools/contract/*.go) tools/go.mod
	@mkdir -p $(BUILD)/tools
	cd tools && $(GO) build -buildvcs=false -ldflags '-s -w' -o ../$@ ./contract

$(BUILD)/tools/%: tools/go.mod tools/go.sum
	@mkdir -p $(BUILD)/tools
	@cd tools && ../tools/scripts/try.sh 'Go modules of $*' $(GO) list -deps $(TOOL_$*) >/dev/null
	cd tools && $(GO) build -buildvcs=false -ldflags '-s -w' -o ../$@ $(TOOL_$*)
	@touch $@

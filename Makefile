# gpulet. `make help` lists the targets; `make demo` and `make test` work on a fresh
# Debian or Ubuntu that has only Go, git and make.

SHELL       := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PROGRAMS := frontend planner worker loadgen
TOOLS    := evaluate
TOOL     := go tool -modfile=scripts/tools.mod
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
FUZZTIME ?= 30s
# make chaos: for how long faults are injected, and further flags (--seed 7 --rate 300 --faults 'kill|cut').
CHAOSTIME ?= 50m
CHAOS     ?=
SOAKTIME  ?= 1h
MEASURE_overload     = 20s
MEASURE_repartitions = 200
MEASURE_soak         = $(SOAKTIME) --json $(CURDIR)/build/soak.csv

include deploy/engine.mk

##@ Use
.PHONY: demo up build
demo: ## fresh machine to Poisson load on three real models, and a report (about 20 s of load)
	@scripts/demo.sh

up: ## the same system, left running, with its addresses and how to call it
	@scripts/demo.sh --up

build: $(PROGRAMS:%=bin/%) ## the four programs, into bin/

# Go knows best what is stale, so these always ask it.
.PHONY: $(PROGRAMS:%=bin/%)
$(PROGRAMS:%=bin/%): bin/%:
	@go build -trimpath -ldflags "-X github.com/gpulet/gpulet/shared/cli.Version=$(VERSION)" -o $@ ./$*

# The experiments' program lives with the scripts that run it.
.PHONY: $(TOOLS:%=bin/%) gpu-kit
$(TOOLS:%=bin/%): bin/%:
	@go build -trimpath -ldflags "-X github.com/gpulet/gpulet/shared/cli.Version=$(VERSION)" -o $@ ./scripts/gpu/$*

gpu-kit: $(PROGRAMS:%=bin/%) $(TOOLS:%=bin/%) ## the programs for a GPU host without Go: build/gpu-kit.tar.gz
	@mkdir -p build/kit/bin
	@for p in $(PROGRAMS) $(TOOLS); do cp bin/$$p build/kit/bin/ && strip build/kit/bin/$$p; done
	@CGO_ENABLED=1 go test -c -o build/kit/build/engine.test ./worker/internal/engine
	tar -C build/kit -czf build/gpu-kit.tar.gz .

##@ Check
.PHONY: setup test e2e chaos overload repartitions soak lint bench fuzz proto
setup: ## install what building and testing need (Debian, Ubuntu)
	@scripts/setup.sh --for test

test: setup build engine ## everything: race-enabled Go tests, the engine against LibTorch, end to end as processes
	GPULET_REQUIRE_TORCH=1 go test -race -timeout 15m $$(go list ./... | grep -v /e2e)
	GPULET_REQUIRE_TORCH=1 GPULET_REQUIRE_ZOO=1 go test -count=1 -p 1 -timeout 15m ./e2e/...

e2e: build engine ## only the whole-system tests, of the four programs as processes
	GPULET_REQUIRE_TORCH=1 GPULET_REQUIRE_ZOO=1 go test -count=1 -p 1 -v -timeout 15m ./e2e/...

chaos: build engine ## more than 1,000 faults into a running system, and what became of every request (up to CHAOSTIME a site)
	@mkdir -p build
	go test -count=1 -timeout 4h ./e2e/chaos -run TestChaos -v -args --full --for $(CHAOSTIME) --json $(CURDIR)/build/chaos.json $(CHAOS)

overload repartitions soak: build engine ## measurements: goodput beyond capacity; plan changes under load; memory over SOAKTIME
	go test -count=1 -timeout 4h ./e2e/chaos -run 'TestOverload|TestRepartitions|TestSoak' -v -args --$@ $(MEASURE_$@)

lint: ## go vet, gofumpt, staticcheck, clang-format
	go vet ./...
	@out=$$($(TOOL) gofumpt -l $$(git ls-files '*.go')); test -z "$$out" || { echo "gofumpt would change:"; echo "$$out"; exit 1; }
	$(TOOL) staticcheck ./...
	@if command -v clang-format >/dev/null; then clang-format --dry-run --Werror $$(git ls-files 'worker/engine/*.cc' 'worker/engine/*.c' 'worker/engine/*.h'); \
	else echo "clang-format is missing: apt-get install clang-format"; exit 1; fi

bench: ## Go benchmarks of the hot paths (figures only; nothing fails on them)
	go test -run '^$$' -bench . -benchmem $$(go list ./... | grep -v /e2e)

fuzz: ## every fuzz target for FUZZTIME (default 30s) each
	@scripts/fuzz.sh $(FUZZTIME)

# Needs protoc (apt-get install protobuf-compiler); its plugins are those of go.mod and scripts/tools.mod.
proto: ## the Go code of shared/oip/oip.proto anew (needs protobuf-compiler)
	@mkdir -p build/protoc
	go build -o build/protoc/ google.golang.org/protobuf/cmd/protoc-gen-go
	go build -modfile=scripts/tools.mod -o build/protoc/ google.golang.org/grpc/cmd/protoc-gen-go-grpc
	PATH=$(CURDIR)/build/protoc:$$PATH protoc --go_out=. --go_opt=paths=source_relative \
		--go-grpc_out=. --go-grpc_opt=paths=source_relative shared/oip/oip.proto
	$(TOOL) gofumpt -w shared/oip/*.pb.go

##@ Ship
.PHONY: images clean help
images: ## the container image of the four programs
	docker build -f deploy/Dockerfile -t gpulet:$(VERSION) -t gpulet:latest .

clean: ## remove what was built
	rm -rf bin build

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-zA-Z_-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

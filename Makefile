# make run    build, make a store in ./vde-store if there is none, mount it at ./mnt
# make stop   unmount it
# make cluster       three nodes on this machine, mounted at ./mnt1 to ./mnt3; make cluster-stop ends them
# make test   everything that is tested: formatting, vet, staticcheck, unit tests under the race detector, end-to-end tests on real mounts
# make help   the rest

GO      := ./.ci/go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.releaseVersion=$(VERSION)
# Without cgo the program is one static file, which runs wherever the kernel has FUSE.
BUILD   := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)'
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

STORE   ?= ./vde-store
MNT     ?= ./mnt
# Of make cluster: nodes are n1, n2, n3 in CLUSTER, mounted at MNT with 1, 2, 3 behind it, listening on CLUSTER_PORT and the two after it.
CLUSTER ?= ./vde-cluster
CLUSTER_PORT ?= 7421
SIZE    ?= 10G
PREFIX  ?= /usr/local
DESTDIR ?=

.PHONY: all build run stop cluster cluster-stop test check unit crashes crash sim e2e posix xfstests cluster-test bench bench-raft bench-png bench-cluster fmt install uninstall clean help

all: build

build:
	@$(BUILD) -o bin/vde ./cmd/vde

run:
	@./.ci/needs run
	@$(MAKE) --no-print-directory build
	@[ -e $(STORE)/vde.json ] || ./bin/vde format $(STORE) --size $(SIZE)
	@mkdir -p $(MNT) 2>/dev/null || true
	@if ./bin/vde status $(MNT) >/dev/null 2>&1; then \
		echo "$(STORE) is mounted at $(MNT) already."; \
	else \
		./bin/vde mount $(STORE) $(MNT) && echo "$(STORE) is mounted at $(MNT)."; \
	fi
	@printf '%s\n' '' 'Try:' \
		'  cp -a /usr/share/doc $(MNT)/          put something in' \
		'  ls -l $(MNT); df -h $(MNT)' \
		'  ./bin/vde status $(MNT)              what it is doing' \
		'  ./bin/vde info $(MNT)/doc            where a file lies' \
		'Stop:' \
		'  make stop                        unmount; everything is on disk when it returns' \
		'  ./bin/vde fsck $(STORE)          check the unmounted store'

stop:
	@if [ -x bin/vde ] && ./bin/vde status $(MNT) >/dev/null 2>&1; then \
		./bin/vde umount $(MNT) && echo "$(MNT) is unmounted; the data is in $(STORE)."; \
	else \
		echo "$(MNT) is not mounted."; \
	fi

cluster:
	@./.ci/needs run
	@$(MAKE) --no-print-directory build
	@./.ci/cluster start $(CLUSTER) $(MNT) $(CLUSTER_PORT) $(SIZE)

cluster-stop:
	@./.ci/cluster stop $(CLUSTER) $(MNT)

test:
	@./.ci/needs test
	@$(MAKE) --no-print-directory check unit crashes e2e

check:
	@echo '== format, vet, staticcheck'
	@unformatted=$$("$$($(GO) env GOROOT)/bin/gofmt" -l $$(git ls-files '*.go')); \
		if [ -n "$$unformatted" ]; then echo "not formatted, run make fmt:" $$unformatted; exit 1; fi
	@$(GO) vet ./...
	@$(GO) run $(STATICCHECK) ./...

unit:
	@echo '== unit tests, with the race detector'
	@$(GO) test -race -timeout 20m $$($(GO) list ./... | grep -v -e /test/e2e -e /test/crash -e /test/diff -e /test/cluster)

crashes:
	@echo '== crashes at any write, in memory'
	@CGO_ENABLED=0 $(GO) test -timeout 20m ./test/crash
	@echo '== simulated clusters, 500 seeds'
	@CGO_ENABLED=0 $(GO) test -timeout 20m -run 'TestSim$$' ./consensus

# Simulated clusters without end; a seed that fails is replayed with SIM_FROM=n SIM_SEEDS=1.
sim:
	@CGO_ENABLED=0 SIM_FOR=$${SIM_FOR:-8h} $(GO) test -timeout 0 -v -run 'TestSim$$' ./consensus

# Runs for hours; CRASH_POINTS says how many crashes are tried.
CRASH_POINTS ?= 1000000
crash:
	@CGO_ENABLED=0 $(GO) test -timeout 0 -v ./test/crash -args -crash.points=$(CRASH_POINTS)

# These run a program that they build, which go test does not see: its cache would answer for another one.
e2e:
	@echo '== end-to-end tests on real mounts'
	@CGO_ENABLED=0 $(GO) test -count=1 -timeout 20m ./test/e2e
	@echo '== random system calls, compared with ext4'
	@CGO_ENABLED=0 $(GO) test -count=1 -timeout 20m ./test/diff
	@echo '== a cluster in network namespaces: killed, stopped and cut'
	@CGO_ENABLED=0 $(GO) test -count=1 -timeout 20m ./test/cluster

cluster-test:
	@./.ci/needs test
	@CGO_ENABLED=0 $(GO) test -timeout 0 -v ./test/cluster -args -chaos.for=$${CLUSTER_FOR:-8h}

# Random system calls for hours, with new seeds; POSIX_FOR says for how long. A failure names the flags that repeat it.
posix:
	@CGO_ENABLED=0 $(GO) test -timeout 0 -v -run 'TestDiff$$' ./test/diff -args -diff.seed=0 -diff.for=$${POSIX_FOR:-8h}

# VDE_XFSTESTS names a directory with a built copy of xfstests; docs/testing.md says how to make one. XFSTESTS are the arguments of its check.
XFSTESTS ?= -g auto -x dangerous
xfstests: build
	@./test/xfstests/run $(XFSTESTS)

bench:
	@./.ci/needs bench
	@$(GO) run ./test/bench $(BENCHFLAGS)
	@$(MAKE) --no-print-directory bench-raft RAFTBENCHFLAGS='$(filter -json --json,$(BENCHFLAGS))'
	@$(MAKE) --no-print-directory bench-png PNGBENCHFLAGS='$(filter -json --json,$(BENCHFLAGS))'

# A group's log beside the disk that it lies on: that of the current directory, RAFTBENCHFLAGS='-dir=DIR' of another.
bench-raft:
	@CGO_ENABLED=0 $(GO) run ./test/bench/consensus $(RAFTBENCHFLAGS)

# PNGs of Debian packages: our levels beside other optimisers. oxipng takes part where it is installed.
bench-png:
	@./.ci/needs bench_png
	@CGO_ENABLED=0 $(GO) run ./test/bench/png $(PNGBENCHFLAGS)

# GlusterFS takes part where it is installed or can be.
bench-cluster:
	@./.ci/needs bench_cluster
	@./.ci/needs bench_cluster_optional || echo 'without GlusterFS, then' >&2
	@$(GO) run ./test/bench -cluster $(BENCHFLAGS)

fmt:
	@"$$($(GO) env GOROOT)/bin/gofmt" -w $$(git ls-files '*.go')

install: build
	install -D -m 755 bin/vde $(DESTDIR)$(PREFIX)/bin/vde
	install -d $(DESTDIR)/sbin $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	ln -sf $(PREFIX)/bin/vde $(DESTDIR)/sbin/mount.fuse.vde
	ln -sf $(PREFIX)/bin/vde $(DESTDIR)/sbin/umount.fuse.vde
	./bin/vde completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/vde

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/vde $(DESTDIR)/sbin/mount.fuse.vde $(DESTDIR)/sbin/umount.fuse.vde
	rm -f $(DESTDIR)$(PREFIX)/share/bash-completion/completions/vde

clean: stop
	rm -rf bin

help:
	@echo 'make run      build, make a store at STORE=$(STORE) (SIZE=$(SIZE)) if there is none, mount it at MNT=$(MNT)'
	@echo 'make stop     unmount it'
	@echo 'make cluster  three nodes on this machine, stores in CLUSTER=$(CLUSTER), mounted at $(MNT)1 to $(MNT)3; make cluster-stop'
	@echo 'make test     all tests (make check, make unit, make crashes, make e2e are its parts)'
	@echo 'make sim      simulated clusters for hours'
	@echo 'make crash    the crash test for hours; CRASH_POINTS=$(CRASH_POINTS)'
	@echo 'make posix    random system calls, compared with ext4, for hours'
	@echo 'make xfstests  the tests of VDE_XFSTESTS, a built copy of xfstests, for hours; XFSTESTS="-g quick" are arguments of its check'
	@echo 'make cluster-test  a cluster that is killed, stopped and cut, for hours (CLUSTER_FOR)'
	@echo 'make bench    speed beside the disk itself and a FUSE loopback; BENCHFLAGS=-json for programs'
	@echo 'make bench-raft  one Raft group beside the disk itself (part of make bench); RAFTBENCHFLAGS=-json'
	@echo 'make bench-png  how small and how fast PNG files become, beside other optimisers (part of make bench); PNGBENCHFLAGS=-json'
	@echo 'make bench-cluster  three nodes on this machine beside a store that stands alone, and GlusterFS'
	@echo 'make fmt      format the source'
	@echo 'make install  install bin/vde, the helpers of mount(8) and umount(8), and completion under PREFIX=$(PREFIX); make uninstall'

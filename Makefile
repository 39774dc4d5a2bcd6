# P2S2. `make` alone lists what there is.

CARGO ?= cargo
RELEASE = target/release
PREFIX ?= /usr/local
DIST = target/dist
# What finds faults of pages for people who hear or touch them: one file, of an archive that is known by its hash.
AXE = axe-core-4.14.1
AXE_SHA256 = e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745
AXE_FILE = target/$(AXE)/axe.min.js

.DEFAULT_GOAL := help
.PHONY: help build install run-server run-clients perf test test-full fuzz-http lint clean need-tools need-browser need-axe need-ip

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: need-tools ## build the programs (release)
	$(CARGO) build --release --locked

install: need-tools ## build small programs and install them, their manual and completions (PREFIX=/usr/local, DESTDIR)
	$(CARGO) build --profile dist --locked
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(PREFIX)/share/man/man1" \
	    "$(DESTDIR)$(PREFIX)/share/bash-completion/completions" "$(DESTDIR)$(PREFIX)/share/zsh/site-functions" \
	    "$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d"
	install -m 755 $(DIST)/p2s2 $(DIST)/p2s2-perf "$(DESTDIR)$(PREFIX)/bin"
	$(DIST)/p2s2 man "$(DESTDIR)$(PREFIX)/share/man/man1"
	$(DIST)/p2s2 completions bash > "$(DESTDIR)$(PREFIX)/share/bash-completion/completions/p2s2"
	$(DIST)/p2s2 completions zsh > "$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_p2s2"
	$(DIST)/p2s2 completions fish > "$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/p2s2.fish"

run-server: build ## run the server; everything it keeps is in data/state
	$(RELEASE)/p2s2 server

run-clients: build ## play one whole story against the running server (or one of its own)
	$(RELEASE)/p2s2 story

perf: build ## measure: how fast, and how far from what the machine could do; pages in data/perf
	$(RELEASE)/p2s2-perf trade
	$(RELEASE)/p2s2-perf shop
	$(RELEASE)/p2s2-perf registry --quick
	$(RELEASE)/p2s2-perf transfer --quick
	$(RELEASE)/p2s2-perf heartbeat
	$(RELEASE)/p2s2-perf duplicates --quick

test: need-tools need-browser need-axe need-ip ## every test; kills, simulations and floods at a tenth
	$(CARGO) test --locked --features internals

test-full: build need-browser need-axe need-ip ## every test in full, and the speed that is promised
	P2S2_TEST_SCALE=full $(CARGO) test --release --locked --features internals
	$(RELEASE)/p2s2-perf trade --quick
	$(RELEASE)/p2s2-perf shop --quick

fuzz-http: build ## both HTTP APIs against their own descriptions, by a property-based tester (from PyPI)
	tests/fuzz/http.sh $(RELEASE)/p2s2

lint: need-tools ## format, clippy and documentation, all without a word
	$(CARGO) fmt --all --check
	$(CARGO) clippy --lib --bins --examples --locked -- -D warnings # what nobody but a test uses is found here
	$(CARGO) clippy --all-targets --features internals --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --locked --document-private-items
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --locked

clean: ## remove what was built (not what the server keeps)
	$(CARGO) clean

# Rust has to be there; the C compiler (for SQLite, which is built in) is installed where we may.
need-tools:
	@command -v $(CARGO) >/dev/null || { echo "error: Rust is missing: install it from https://rustup.rs (1.95 or newer)" >&2; exit 1; }
	@command -v cc >/dev/null || { \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        apt-get update -qq && apt-get install -y -qq gcc libc6-dev; \
	    else \
	        echo "error: a C compiler is missing: install gcc (Debian: apt-get install gcc libc6-dev)" >&2; exit 1; \
	    fi; }

# Pages are looked at in a real browser.
need-browser:
	@command -v chromedriver >/dev/null && { command -v chromium || command -v google-chrome; } >/dev/null || { \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; \
	    else \
	        echo "error: a browser is missing: install Chromium with its driver (Debian: apt-get install chromium chromium-driver)" >&2; exit 1; \
	    fi; }

# Each page, in each of its states, is looked at by axe-core as well. Where that cannot be fetched, the tests say so and
# leave that look out.
need-axe: $(AXE_FILE)
$(AXE_FILE):
	@command -v curl >/dev/null || { \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        apt-get update -qq && apt-get install -y -qq --no-install-recommends curl ca-certificates; \
	    else \
	        echo "error: curl is missing: install it (Debian: apt-get install curl)" >&2; exit 1; \
	    fi; }
	@mkdir -p $(@D)
	@rm -f $(@D)/not-fetched
	@curl -sSfL --retry 3 -o $(@D)/$(AXE).tgz https://registry.npmjs.org/axe-core/-/$(AXE).tgz || { \
	    echo "warning: axe-core cannot be fetched, so pages are not looked at by it: to have that, put axe.min.js of" \
	        "its release 4.14.1 at $@" >&2; \
	    rm -f $(@D)/$(AXE).tgz; touch $(@D)/not-fetched; }
	@[ -e $(@D)/not-fetched ] || echo "$(AXE_SHA256)  $(@D)/$(AXE).tgz" | sha256sum --check --quiet || { \
	    echo "error: $(@D)/$(AXE).tgz is not what was published as axe-core 4.14.1: nothing of it is used" >&2; \
	    rm -f $(@D)/$(AXE).tgz; exit 1; }
	@[ -e $(@D)/not-fetched ] || { \
	    tar -xzf $(@D)/$(AXE).tgz -C $(@D) --strip-components=1 --touch package/axe.min.js && rm $(@D)/$(AXE).tgz; }

# Peers of a LAN meet in networks that the tests make for themselves. Where that cannot be, they say so
# and leave those tests out.
need-ip:
	@command -v ip >/dev/null || [ "$$(uname)" != Linux ] || { \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        apt-get update -qq && apt-get install -y -qq --no-install-recommends iproute2; \
	    else \
	        echo "note: the tests over networks of their own are left out: install ip (Debian: apt-get install iproute2)" >&2; \
	    fi; }

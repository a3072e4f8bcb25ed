# SPDX-License-Identifier: Apache-2.0
# Two commands do everything on a fresh Debian 12, as root: make demo, make test.

# What the product needs, what the lab needs, and how the tests are run.
DEBIAN_PRODUCT = python3 python3-venv python3-libvirt python3-lxml python3-pyudev python3-systemd \
	libvirt-daemon-system libvirt-clients mdevctl
DEBIAN_LAB = udev util-linux systemd-container qemu-system-misc qemu-user-static
DEBIAN = $(DEBIAN_PRODUCT) $(DEBIAN_LAB)

VENV = .venv
BIN = $(VENV)/bin
HOST ?= rdbkvm4

# What `make deb` and `make rpm` need besides.
DEBIAN_PACKAGING = build-essential debhelper dh-python fakeroot lintian rpm man-db mandoc bash-completion \
	python3-tomlkit
VERSION = $(shell sed -n 's/^VERSION = "\(.*\)"/\1/p' vfioapd/__init__.py)
SITE = $(wildcard $(VENV)/lib/python3*/site-packages)
BUILD = .cache/packages
RELEASE = 1
# `make rpm CARRIED=3.11`: for that Python, with the modules inside that a distribution has for its own alone.
CARRIED =
DEBIAN_CARRIED = gcc libc6-dev libsystemd-dev libvirt-dev pkg-config python$(CARRIED)-dev python3-setuptools
CARRIED_SOURCES = .cache/carried
RPMS = $(BUILD)$(if $(CARRIED),/python$(CARRIED))
BOOT_TESTS = tests/lab/test_boot_*.py tests/lab/test_guest_*.py tests/lab/test_lab_adopt.py
MODULAR = debian12-modular debian13-modular

.PHONY: help demo test test-boot test-modular test-crash lab bench man deb rpm wheel debian debian-packaging \
	clean

help:
	@echo "make demo    the main job, from nothing to a queue in a guest, narrated (needs root)"
	@echo "make test    every test, linter and rule (needs root for the lab tests)"
	@echo "make test-boot, test-modular, test-crash"
	@echo "             hosts that boot, the same on virtqemud for libvirtd, every moment of a change"
	@echo "make lab     a shell inside the lab, on host HOST=$(HOST)"
	@echo "make man     manual pages and completions, below .cache/man"
	@echo "make deb     Debian packages, below .cache/packages; make rpm and make wheel likewise"
	@echo "make bench   the measurements of bench/RESULTS.md"

demo: debian $(VENV)/ready
	@$(BIN)/vfioap-lab peers || echo "going on without IBM's own lszcrypt"
	@$(BIN)/vfioap-lab run rdbkvm4 -- $(BIN)/python -m vfioapd.lab.demo

test: debian $(VENV)/ready
	VFIOAP_EMULATOR_OPERATIONS=10000 VFIOAPD_TEST_HOOKS=1000 $(BIN)/pytest $(TESTS)

# Hosts that boot under a real systemd, with the packages as they would be shipped, on this machine's Debian
# and on Debian 13 (fetched once; see vfioapd/lab/roots.py). About forty minutes. Two releases of each rpm,
# so that one can be upgraded to the other.
test-boot: deb rpm
	@$(MAKE) --no-print-directory rpm RELEASE=2
	@$(MAKE) --no-print-directory rpm CARRIED=3.11
	@$(MAKE) --no-print-directory rpm CARRIED=3.11 RELEASE=2
	@$(MAKE) --no-print-directory debian DEBIAN=debootstrap
	$(BIN)/pytest -m 'not modular' $(BOOT_TESTS)

# The same on virtqemud and its siblings in place of libvirtd, built once from Debian's source of libvirt (six
# minutes for each of MODULAR; see vfioapd/lab/modular.py).
test-modular: deb
	@$(MAKE) --no-print-directory debian DEBIAN=debootstrap
	for system in $(MODULAR); do \
		$(BIN)/vfioap-lab boot --root $$system --deb $(BUILD)/vfioapd_$(VERSION)_all.deb $(HOST) \
			-- true || exit 1; done
	$(BIN)/pytest -m modular $(BOOT_TESTS)

# Every moment of a large reconfiguration, and 10,000 random ends and errors (about an hour).
test-crash: debian $(VENV)/ready
	VFIOAPD_CRASH_STRIDE=1 VFIOAPD_CRASH_SCHEDULES=10000 $(BIN)/pytest -s tests/crash --timeout 0

lab: debian $(VENV)/ready
	@$(BIN)/vfioap-lab run $(HOST) -- $${SHELL:-/bin/bash}

bench: debian $(VENV)/ready
	@$(BIN)/python -m bench

man: $(VENV)/ready
	$(BIN)/python docs/man/generate.py .cache/man

# Built in a copy, since dpkg wants a folder debian/ at the top.
deb: debian-packaging $(VENV)/ready
	packaging/tree.sh $(BUILD)/deb/vfioapd-$(VERSION) $(SITE)
	mv $(BUILD)/deb/vfioapd-$(VERSION)/packaging/deb $(BUILD)/deb/vfioapd-$(VERSION)/debian
	cd $(BUILD)/deb/vfioapd-$(VERSION) && dpkg-buildpackage -b -us -uc
	lintian --fail-on error,warning $(BUILD)/deb/*_$(VERSION)_*.deb
	mv $(BUILD)/deb/*_$(VERSION)_*.deb $(BUILD)/

# --nodeps: rpm knows nothing of what dpkg has installed. The source package is what is built anew on a
# distribution with rpm, without this file and without a network.
rpm: debian-packaging $(VENV)/ready $(if $(CARRIED),$(CARRIED_SOURCES)/ready)
	packaging/tree.sh $(BUILD)/rpm/vfioapd-$(VERSION) $(SITE) $(if $(CARRIED),$(CARRIED_SOURCES))
	mkdir -p $(BUILD)/rpm/SOURCES
	tar -C $(BUILD)/rpm -czf $(BUILD)/rpm/SOURCES/vfioapd-$(VERSION).tar.gz vfioapd-$(VERSION)
	rpmbuild --quiet -ba --nodeps --define '_topdir $(CURDIR)/$(BUILD)/rpm' \
		--define 'vfioapd_version $(VERSION)' --define 'vfioapd_release $(RELEASE)' \
		$(if $(CARRIED),--with carried_modules --define 'vfioapd_python $(CARRIED)') \
		packaging/rpm/vfioapd.spec
	mkdir -p $(RPMS)
	mv $(BUILD)/rpm/RPMS/*/*.rpm $(BUILD)/rpm/SRPMS/*.rpm $(RPMS)/

# Fetched once, by name and hash. pip looks into sources before it keeps them, which needs what builds them.
$(CARRIED_SOURCES)/ready: packaging/rpm/carried.txt $(VENV)/ready
	@$(MAKE) --no-print-directory debian DEBIAN='$(DEBIAN_CARRIED)'
	rm -rf $(@D)
	$(BIN)/pip download -q --no-deps --no-build-isolation --require-hashes -d $(@D) -r $<
	@touch $@

# For where neither fits; see docs/packages.md. What setuptools left in build/ would be shipped, too.
wheel: debian $(VENV)/ready
	rm -rf build
	$(BIN)/pip wheel -q --no-deps --wheel-dir $(BUILD) .

debian-packaging:
	@$(MAKE) --no-print-directory debian DEBIAN='$(DEBIAN_PACKAGING)'

# Asks dpkg first, so that a machine which has everything needs neither root nor a network.
debian:
	@missing=$$(for p in $(DEBIAN); do \
		dpkg-query -W -f='$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		apt-get update -q && \
		DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends $$missing; \
	fi

# Debian's interpreter and its libvirt, lxml, pyudev and systemd modules; the rest by name from PyPI.
$(VENV)/ready: pyproject.toml
	/usr/bin/python3 -m venv --system-site-packages $(VENV)
	$(BIN)/pip install -q -e '.[lab,test]'
	@touch $@

clean:
	rm -rf $(VENV) .cache build dist *.egg-info

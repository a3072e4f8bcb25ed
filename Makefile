# SPDX-License-Identifier: Apache-2.0
# Two commands do everything on a fresh Debian 12, as root: make demo, make test.

# What the product needs, what the lab needs, and how the tests are run.
DEBIAN_PRODUCT = python3 python3-venv python3-libvirt python3-lxml python3-pyudev python3-systemd \
	libvirt-daemon-system libvirt-clients mdevctl
DEBIAN_LAB = udev fuse3 libfuse3-3 iproute2 util-linux qemu-system-misc qemu-user-static
DEBIAN = $(DEBIAN_PRODUCT) $(DEBIAN_LAB)

VENV = .venv
BIN = $(VENV)/bin
HOST ?= rdbkvm4

.PHONY: help demo test lab bench debian clean

help:
	@echo "make demo    the main job, from nothing to a queue in a guest, narrated (needs root)"
	@echo "make test    every test, linter and rule (needs root for the lab tests)"
	@echo "make lab     a shell inside the lab, on host HOST=$(HOST)"
	@echo "make bench   the measurements of bench/RESULTS.md"

demo: debian $(VENV)/ready
	@$(BIN)/vfioap-lab peers || echo "going on without IBM's own lszcrypt"
	@$(BIN)/vfioap-lab run rdbkvm4 -- $(BIN)/python -m vfioapd.lab.demo

test: debian $(VENV)/ready
	$(BIN)/pytest $(TESTS)

lab: debian $(VENV)/ready
	@$(BIN)/vfioap-lab run $(HOST) -- $${SHELL:-/bin/bash}

bench: debian $(VENV)/ready
	@$(BIN)/python -m bench

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

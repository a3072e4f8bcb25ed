# SPDX-License-Identifier: Apache-2.0
"""Exit statuses, and which problem leads to which. docs/problems.md lists both."""

OK = 0
FAILED = 1  # a step failed; the host is as before but for what the message says
USAGE = 2  # the command line could not be read (argparse)
REFUSED = 3  # the request cannot be met as it stands; nothing was changed
UNAVAILABLE = 4  # something outside is missing: daemon, bus, module, libvirt, lock; nothing was changed
PERMISSION = 5  # the caller may not; nothing was changed
UNHEALTHY = 6  # doctor has found an error on this host, or status --check shows a problem
INTERRUPTED = 130  # by Ctrl-C, as shells count it; whether something was changed, vfioapctl status shows

_BY_PROBLEM = {
    "step-failed": FAILED,
    "write-hangs": FAILED,
    "verify-failed": FAILED,
    "internal-error": FAILED,
    "not-running": UNAVAILABLE,
    "ap-bus-missing": UNAVAILABLE,
    "vfio-ap-missing": UNAVAILABLE,
    "libvirt-unavailable": UNAVAILABLE,
    "lock-held": UNAVAILABLE,
    "no-permission": PERMISSION,
    "read-only": PERMISSION,
}


def exit_for(problem: str) -> int:
    """The exit status for a problem code; whatever is not listed is a refusal."""
    return _BY_PROBLEM.get(problem, REFUSED)

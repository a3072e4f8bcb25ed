# SPDX-License-Identifier: Apache-2.0
"""News from outside: kernel uevents and files that others change. The only room that imports pyudev."""

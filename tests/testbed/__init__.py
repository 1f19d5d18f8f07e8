# SPDX-License-Identifier: BSD-2-Clause
"""Ganeti nodes on one machine: fresh Debian roots booted with systemd, in namespaces of their own."""

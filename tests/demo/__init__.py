# SPDX-License-Identifier: BSD-2-Clause
"""The demonstration: a fresh node, two customized and firewalled clones, a snapshot, and the proofs."""

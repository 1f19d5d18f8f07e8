# SPDX-License-Identifier: BSD-2-Clause
"""`./run bench`: the project's figures, each measured beside a peer, in one run."""

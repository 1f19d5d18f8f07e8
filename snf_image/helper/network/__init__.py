# SPDX-License-Identifier: BSD-2-Clause
"""Guest network configuration: `plan.py` decides, one file per driver writes it down as a distribution wants it."""

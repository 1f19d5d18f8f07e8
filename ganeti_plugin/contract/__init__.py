# SPDX-License-Identifier: BSD-2-Clause
"""Ganeti's environment as frozen records, one module per contract. Nothing else in the suite reads os.environ."""

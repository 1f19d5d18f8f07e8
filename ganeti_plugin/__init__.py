# SPDX-License-Identifier: BSD-2-Clause
"""What any Ganeti plugin needs, with nothing but the standard library."""

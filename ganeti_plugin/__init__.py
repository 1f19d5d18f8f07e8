# SPDX-License-Identifier: BSD-2-Clause
"""What any Ganeti plugin needs, with nothing but the standard library."""

#: The version of the whole suite; debian/changelog says the same, and a test compares them.
__version__ = "0.1.0"

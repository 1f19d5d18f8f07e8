# SPDX-License-Identifier: BSD-2-Clause
"""Puts an image on the disks of an instance and has it customized in an isolated helper VM."""

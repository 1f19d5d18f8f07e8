# SPDX-License-Identifier: BSD-2-Clause
"""The guest side: what runs as process 1 inside the helper VM.

It needs the standard library, `snf_image/protocol.py` and nothing else; the builder packs it with a kernel and a few
tools into one initramfs. The disks it works on are hostile: it mounts them, reads and replaces files in them with
bounded, link-safe calls (`tree.py`), and never executes anything they hold.
"""

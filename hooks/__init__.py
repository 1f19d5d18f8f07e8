# SPDX-License-Identifier: BSD-2-Clause
"""What the suite does when Ganeti says that something happened: one module per reaction, dispatched by `dispatch.py`.

The executable ganeti-hook is called by the small files in /etc/ganeti/hooks (package snf-network).
"""

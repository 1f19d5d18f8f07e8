# SPDX-License-Identifier: BSD-2-Clause
"""Archipelago: thin volumes, snapshots and clones as a Ganeti ExtStorage provider.

The folder `archipelago/` is what Ganeti sees; the flow of one call is request (`ganeti_plugin.contract.extstorage`),
plan (`plan.py`), apply (`apply.py`), answer (`answer.py`). Below them: `catalog.py` makes and removes volumes,
`volume.py` reads and writes one, `maps.py` and `pages.py` are the pure arithmetic, `store.py` says what a store must
do, `files_store.py` and `rados_store.py` do it. docs/architecture.md introduces all modules.
"""

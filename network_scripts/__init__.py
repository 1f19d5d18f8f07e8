# SPDX-License-Identifier: BSD-2-Clause
"""NICs of instances on the node: who a guest is, where it may go, and who may talk to it.

The flow is intent (NIC -> wanted state), render (wanted state -> firewall elements), apply and links (firewall and
kernel), and cleanup for what a vanished guest interface leaves behind.
"""

# SPDX-License-Identifier: BSD-2-Clause
"""A real Ceph for the nodes: one monitor and one OSD on the first node, its objects in memory.

No key is asked for: the management network is the testbed's own. Everything ends with the node.
"""

from __future__ import annotations

import uuid

from ganeti_plugin import log
from tests.testbed.layout import Node
from tests.testbed.node import inside

PACKAGES = ("ceph-common", "ceph-mon", "ceph-osd", "python3-rados", "qemu-block-extra")
POOL = "snf-archipelago"

CONFIGURATION = """[global]
fsid = {fsid}
mon_host = {address}
mon_initial_members = {name}
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
public_addr = {address}
osd_objectstore = memstore
memstore_device_bytes = 4294967296
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
paxos_propose_interval = 0.05
"""

#: Arguments: monitor's name, its address, fsid, pool. Not by the units of the packages: those want prepared devices.
START = """
name=$1 address=$2 fsid=$3
again() {
    # A client that meets the monitor or the OSD in the moment of its start may wait for ever: ask anew.
    end=$(($(date +%s) + 60))
    while [ $(date +%s) -lt $end ]; do
        ! timeout 15 "$@" >/dev/null 2>/run/ceph/problem || return 0
        sleep 0.2
    done
    echo "no success: $*: $(tail -n 3 /run/ceph/problem)" >&2
    return 1
}
osd_up() {
    # An OSD ends with "wrong fsid" when it asks the monitor for something before it was told the monitors' map
    # (Ceph 16.2, MonClient::_send_command): start it anew, it holds nothing yet.
    end=$(($(date +%s) + 120))
    while [ $(date +%s) -lt $end ]; do
        systemctl --quiet is-active testbed-ceph-osd ||
            systemd-run --quiet --collect --unit=testbed-ceph-osd ceph-osd -f -i 0 --setuser ceph --setgroup ceph
        ! timeout 15 sh -c 'ceph osd stat | grep -q "1 up"' 2>/dev/null || return 0
        sleep 0.2
    done
    echo "the OSD does not come up: $(journalctl --quiet --no-pager --unit=testbed-ceph-osd --lines=10)" >&2
    return 1
}
systemctl --quiet mask --now ceph-mon.service ceph-osd.service 2>/dev/null || true
mkdir -p /var/lib/ceph/mon/ceph-$name /var/lib/ceph/osd/ceph-0 /run/ceph
monmaptool --create --clobber --add $name $address --fsid $fsid /run/ceph/monmap >/dev/null
ceph-mon --mkfs -i $name --monmap /run/ceph/monmap
chown -R ceph: /var/lib/ceph /run/ceph
systemd-run --quiet --unit=testbed-ceph-mon ceph-mon -f -i $name --setuser ceph --setgroup ceph
identity=$(cat /proc/sys/kernel/random/uuid)
again ceph osd new $identity
again ceph-osd -i 0 --mkfs --osd-uuid $identity --setuser ceph --setgroup ceph
osd_up
again ceph osd pool create $4 8
again ceph osd pool application enable $4 snf-archipelago
again rados -p $4 put testbed /etc/hostname
again rados -p $4 rm testbed
"""


def make(nodes: list[Node]) -> None:
    """Start Ceph and tell every node where it is; returns when an object could be written."""
    first = nodes[0]
    log.info("starting Ceph on %s, pool %s", first.name, POOL)
    fsid = str(uuid.uuid4())
    text = CONFIGURATION.format(fsid=fsid, address=first.address, name=first.name)
    for node in nodes:
        inside(node, ["sh", "-ec", "mkdir -p /etc/ceph; cat > /etc/ceph/ceph.conf"], stdin=text.encode())
    inside(first, ["sh", "-ec", START, "sh", first.name, first.address, fsid, POOL], timeout=600)

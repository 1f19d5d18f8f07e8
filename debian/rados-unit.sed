# SPDX-License-Identifier: BSD-2-Clause
# Makes the unit of volumes in RADOS from that of volumes in a directory: the same sandbox, with the network.
s/^# One NBD server for each attached volume;/# One NBD server for each attached volume in RADOS;/
/^PrivateNetwork=/d
s/^RestrictAddressFamilies=.*/RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK/

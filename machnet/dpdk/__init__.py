# SPDX-License-Identifier: MIT
"""The DPDK NIC. Built only where libdpdk is found; nothing here yet."""

# SPDX-License-Identifier: MIT
"""Questions about ``dpdk:`` strings that are asked without opening what they name."""

from __future__ import annotations

import errno

from machnet.dpdk.devices import SYSFS, find, resolve
from machnet.dpdk.records import RUN

__all__ = ["absent", "identity"]


def absent(rest: str, sysfs: str = SYSFS, run: str = RUN) -> str:
    """That a ``dpdk:`` string names nothing that this machine has, and what there is; "": it does.

    A virtual device of DPDK is there when it is made.
    """
    try:
        resolve(rest, sysfs=sysfs, run=run)
    except OSError as error:
        return str(error.strerror) if error.errno == errno.ENODEV else ""
    except ValueError:
        return ""
    return ""


def identity(rest: str, sysfs: str = SYSFS, run: str = RUN) -> str:
    """A name that all ``dpdk:`` strings have in common which mean the same NIC.

    It is the interface that it goes through, the address of the device, with the MAC address where that
    has several ports, or else ``rest`` itself.
    """
    name = rest.removeprefix("vdev:").partition(",")[0]
    try:
        target = resolve(rest, sysfs=sysfs, run=run)
    except (OSError, ValueError):
        try:
            return find(name, sysfs, run).name  # there, but not yet to be used
        except OSError:
            return rest
    if target.interface is not None:
        return target.interface
    if target.device is None:
        return rest
    return f"{target.device.name} {target.mac or ''}".strip()

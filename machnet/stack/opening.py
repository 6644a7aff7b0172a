# SPDX-License-Identifier: MIT

"""Opening and closing an engine: configuration, secret, memory, and the order of the end."""

from __future__ import annotations

import errno
import warnings
from typing import TYPE_CHECKING, Any

from machnet._native import ffi, lib
from machnet.errors import ConcurrentUseError, os_error
from machnet.stack.names import format_ip, parse_interface, parse_ip

if TYPE_CHECKING:
    from machnet.config import Settings
    from machnet.stack.clock import Clock
    from machnet.stack.nics import Nic

__all__ = [
    "StackCore",
    "check_mtu",
    "check_unused",
    "finalize",
    "native_config",
    "open_native",
    "set_secret",
]

#: An IPv4 header without options and the longest TCP header: a packet has them beside its payload.
_MTU_BESIDE_MSS = 20 + 60


class StackCore:
    """What must be closed in order when a stack goes: the engine, then its NICs."""

    def __init__(self, native: Any, base: Nic, nics: list[Nic], clock: Clock) -> None:
        self.native = native
        self.base = base  # must outlive the engine, which gives its packets back
        self.nics = nics
        self.clock = clock
        self.closed = False

    def close(self) -> None:
        """End the engine, without a word to its peers, then close the NICs that are its own."""
        if self.closed:
            return
        rc = lib.mn_stack_close(self.native)
        if rc == -errno.EBUSY:
            raise ConcurrentUseError("the stack is being stepped or closed by another thread")
        self.closed = True
        if rc < 0:
            return  # -ECHILD: it belongs to the process that this one was forked from
        for nic in self.nics:
            nic.close()


def native_config(ip: str, gateway: str | None, settings: Settings) -> Any:
    """The core's configuration: its defaults, the addresses, and what was set."""
    config = ffi.new("struct mn_config *")
    lib.mn_config_defaults(config)
    config.isn_option = True  # one owner: no other tenant's numbers can be made known
    config.ip, config.prefix = parse_interface(ip)
    mask = (0xFFFFFFFF << (32 - config.prefix)) & 0xFFFFFFFF
    if config.prefix < 31 and config.ip & ~mask & 0xFFFFFFFF in {0, ~mask & 0xFFFFFFFF}:
        network = f"{format_ip(config.ip & mask)}/{config.prefix}"
        raise ValueError(
            f"ip: {format_ip(config.ip)} is the address of network {network} itself or its broadcast"
        )
    if gateway is not None:
        config.gateway = parse_ip(gateway, "gateway")
        if config.gateway == config.ip:
            raise ValueError(f"gateway: {gateway} is the address of this NIC")
        if (config.gateway ^ config.ip) & mask:
            raise ValueError(f"gateway: {gateway} is not in the network of {ip}")
    for name, value in settings.given().items():
        setattr(config, name, value)
    wrong = lib.mn_config_check(config)
    if wrong != ffi.NULL:
        field = ffi.string(wrong).decode()
        shown = ip if field in {"ip", "prefix"} else getattr(config, field, None)
        raise ValueError(f"{field}: {shown} is out of its range")
    return config


def check_mtu(config: Any, mtu: int, nic: object) -> None:
    """Refuse an MTU that leaves TCP less than the configuration says."""
    least = _MTU_BESIDE_MSS + config.mss_min_bytes
    if mtu < least:
        raise ValueError(
            f"mtu: {mtu} bytes on {nic} are too few: TCP wants at least {least} (the longest "
            f"headers and mss_min_bytes, {config.mss_min_bytes})"
        )


def set_secret(
    config: Any, seed: int | None, *, virtual: bool, shared: bytes | None = None
) -> None:
    """Fill the secret from a seed, or from the kernel's generator when there is none.

    ``shared`` goes before: the engines of one address have the same.
    """
    if shared is not None:
        config.secret = list(shared)
        return
    if seed is None and virtual:
        seed = 0
    size = len(config.secret)
    if seed is not None and not isinstance(seed, int):
        raise TypeError(f"seed: {seed!r} is no integer")
    if seed is not None:
        lib.mn_host_seeded(seed & (2**64 - 1), config.secret, size)
        return
    rc = lib.mn_host_random(config.secret, size)
    if rc < 0:
        raise os_error(-rc, "the kernel's random generator")


def check_unused(nic: Nic) -> None:
    """Refuse a NIC that another stack runs on."""
    user = nic.user()
    if user is not None:
        raise ValueError(f"nic: {nic} is in use by {user}")


def open_native(config: Any, nic: Nic, clock: Clock) -> Any:
    """Open the engine on a clock's group, and let it tell the NICs what time it is."""
    out = ffi.new("struct mn_stack **")
    rc = lib.mn_stack_open(out, config, nic.native, clock.native)
    if rc == -errno.ENOMEM:
        raise MemoryError("no address space for an engine of these limits")
    if rc == -errno.EBUSY:
        raise ConcurrentUseError("the stacks of this clock are being stepped by another thread")
    if rc == -errno.EINVAL:
        check_mtu(config, nic.mtu, nic)
    if rc < 0:
        raise os_error(-rc, "opening the engine")
    native = ffi.gc(out[0], lib.mn_stack_free)
    for set_now, ctx in nic.watchers():
        cast = ffi.cast("void (*)(void *, uint64_t)", set_now)
        rc = lib.mn_stack_watch_time(native, cast, ffi.cast("void *", ctx))
        if rc < 0:
            lib.mn_stack_close(native)
            raise os_error(-rc, "opening the engine")
    return native


def finalize(core: StackCore) -> None:
    """A stack that was forgotten still ends its thread and gives its memory back."""
    if not core.closed:
        core.close()
        warnings.warn("a machnet.Stack was never closed", ResourceWarning, stacklevel=2)

# SPDX-License-Identifier: MIT
"""The sidecar's NICs with their engines, and the channels that are lent to applications."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from typing import TYPE_CHECKING, Any

from machnet._native import ffi, lib
from machnet.config import ChannelSettings
from machnet.errors import os_error
from machnet.sidecar import ports
from machnet.sidecar.config import NicConfig
from machnet.sidecar.protocol import Geometry
from machnet.stack.engines import EngineView, SharedNic
from machnet.stack.lending import Lent, lend
from machnet.stack.nics import Nic, Tap, open_nic, with_faults
from machnet.stack.stack import Stack

if TYPE_CHECKING:
    from machnet.dpdk import Port as DpdkPort
    from machnet.sim.nicstr import NicSpec
    from machnet.stack.clock import Clock
    from machnet.stack.nics import Wire

__all__ = ["Engines", "Port", "Recorder", "SwitchedNic", "channel_bytes"]

#: How many bytes a pipe of a capture holds, when the system permits it.
PIPE_BYTES = 1 << 20
_CAPTURE_BUF_BYTES = 4 << 20
_F_SETPIPE_SZ = 1031
#: Descriptors that were inherited, one for each queue.
_TAP_FD = re.compile(r"tap:fd=(\d{1,9}(?:,\d{1,9})*)(?=\?|$)")


class SwitchedNic(Nic):
    """Middleware: a NIC whose frames can be recorded while an engine runs on it.

    Args:
        inner: Stays the caller's.
    """

    def __init__(self, inner: Nic) -> None:
        out = ffi.new("struct mn_nic **")
        rc = lib.mn_capswitch_open(inner.native, out)
        if rc < 0:
            raise os_error(-rc, f"{inner}")
        self._inner = inner
        self.realtime = inner.realtime
        super().__init__(out[0], inner.name)

    def watchers(self) -> list[tuple[Any, Any]]:
        """The inner NIC's, and its own for the stamps of a capture."""
        mine = (ffi.addressof(lib, "mn_capswitch_set_now"), self.native)
        return [*self._inner.watchers(), mine]

    def new_clock(self) -> Clock:
        """The clock of the inner NIC."""
        return self._inner.new_clock()

    def hand_fed_wire(self) -> Wire | None:
        """The inner NIC's."""
        return self._inner.hand_fed_wire()

    def prepare(self, ip: str, isn: int | None) -> int | None:
        """What the inner NIC needs."""
        return self._inner.prepare(ip, isn)

    def shared_secret(self) -> bytes | None:
        """That of all engines on the NIC."""
        return self._inner.shared_secret()

    def opened(self, native: Any) -> None:
        """The engine may hand over frames, if it is one of several."""
        self._inner.opened(native)

    def _release(self) -> None:
        lib.mn_capswitch_close(self._handle)


class Recorder:
    """Writes what passes a switched NIC to a pipe, in pcapng format, until `stop`.

    A reader that is too slow loses frames, which are counted; it never holds the engine up.

    Args:
        stack: The stack on the NIC.
        nic: The NIC.
        snaplen: Bytes kept of each frame; 0: all.

    Raises:
        OSError: ``EBUSY``: another capture is on.
    """

    def __init__(self, stack: Stack, nic: SwitchedNic, snaplen: int = 0) -> None:
        self._stack, self._nic = stack, nic
        self._on = False
        self._writer: Any = None
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        #: The end that is read from; the caller closes it.
        self.reader = reader
        with contextlib.suppress(OSError):
            import fcntl

            fcntl.fcntl(writer, _F_SETPIPE_SZ, PIPE_BYTES)
        config, out = ffi.new("struct mn_pcapng_config *"), ffi.new("struct mn_pcapng **")
        app = ffi.new("char[]", b"machnet")
        config.fd, config.app, config.buf_bytes = writer, app, _CAPTURE_BUF_BYTES
        rc = lib.mn_pcapng_open(config, out)
        if rc < 0:
            os.close(writer)
            os.close(reader)
            raise os_error(-rc, "capture")
        self._writer = out[0]
        name = ffi.new("char[]", nic.name.encode())
        capture = ffi.new("struct mn_capture_config *")
        capture.writer, capture.if_name, capture.snaplen = self._writer, name, snaplen
        capture.epoch_ns = time.time_ns() - time.monotonic_ns()
        rc = self._order("mn_capswitch_on", capture)
        if rc < 0:
            os.close(reader)
            self.close()
            raise os_error(-rc, f"capture on {nic}")
        self._on = True

    def _order(self, what: str, config: Any = ffi.NULL) -> int:
        order = ffi.new("struct mn_capswitch_order *")
        order.nic, order.cfg = self._nic.native, config
        function = ffi.addressof(lib, what)
        return int(lib.mn_stack_run(self._stack.core.native, function, order))

    def flush(self) -> bool:
        """Hand over what has gathered; False: nobody reads any more."""
        if self._on:
            rc = self._order("mn_capswitch_flush")
        else:
            rc = int(lib.mn_pcapng_flush(self._writer))
        return rc != -errno.EPIPE

    def stop(self) -> None:
        """Record no more; `flush` and `close` are still to come."""
        if self._on:
            self._on = False
            self._order("mn_capswitch_off")

    def stats(self) -> dict[str, int]:
        """Frames written and dropped, after `stop`."""
        out = ffi.new("struct mn_pcapng_stats *")
        lib.mn_pcapng_get_stats(self._writer, out)
        return {"frames": int(out.packets), "dropped": int(out.dropped)}

    def drained(self) -> bool:
        """Whether all is handed over, after `stop`."""
        return bool(lib.mn_pcapng_flush(self._writer) == 0)

    def close(self) -> None:
        """End the file. Again: nothing."""
        if self._writer is not None:
            self.stop()
            lib.mn_pcapng_close(self._writer)
            self._writer = None


class Port:
    """One NIC of the configuration with its engines, running.

    Attributes:
        dpdk: The DPDK port below everything else, if it is one.
    """

    def __init__(self, config: NicConfig) -> None:
        self.config = config
        self._closing = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:
            base, self.dpdk = _open(config)
            opened.callback(base.close)
            self.nic = base
            cpus = config.cpus()
            settings: dict[str, Any] = config.settings.given()
            self.switches: list[SwitchedNic] = []
            self.stacks: list[Stack] = []
            views = _views(base, config.engine_threads, opened)
            self.views = [view for view in views if isinstance(view, EngineView)]
            for number, view in enumerate(views):
                switch = SwitchedNic(view)
                opened.callback(switch.close)
                stack = Stack(
                    switch,
                    config.address,
                    config.gateway,
                    thread=True,
                    poll=config.poll,
                    spin_us=config.spin_us,
                    cpu=cpus[number] if cpus else None,
                    tenants=True,
                    **settings,
                )
                opened.callback(stack.close, 0)
                self.switches.append(switch)
                self.stacks.append(stack)
            self._closing = opened.pop_all()

    def describe(self) -> dict[str, Any]:
        """What there is, for the log and for admin."""
        return {
            "nic": self.nic.name,
            "mac": self.nic.mac,
            "ip": self.config.address,
            "gateway": self.config.gateway,
            "mtu": self.nic.mtu,
            "engines": len(self.stacks),
            "poll": self.config.poll,
            **(ports.describe(self.dpdk) if self.dpdk is not None else {}),
        }

    def state(self) -> dict[str, Any] | None:
        """What the DPDK port has counted; None: it is another NIC."""
        return ports.state(self.nic.name, self.dpdk) if self.dpdk is not None else None

    def between(self, number: int) -> dict[str, int]:
        """What passed between engine ``number`` and the others; empty: it is alone."""
        return self.views[number].stats() if self.views else {}

    def close(self) -> None:
        """End the engines without a word, then the NIC."""
        self._closing.close()


def _open(config: NicConfig) -> tuple[Nic, DpdkPort | None]:
    """The NIC, with its faults around it, and the DPDK port inside."""
    from machnet.sim.linknic import LinkNic
    from machnet.sim.nicstr import parse_nic

    spec = parse_nic(config.string)
    queues = 1 if spec.faults else config.engine_threads
    if spec.scheme == "dpdk":
        port = _open_dpdk(config, spec, queues)
        return with_faults(port, spec), port
    if spec.scheme == "link" and config.mac is not None:
        mtu = {} if config.mtu is None else {"mtu": config.mtu}
        return with_faults(LinkNic(spec.rest, mac=config.mac, **mtu), spec), None
    if spec.scheme != "tap":
        return open_nic(config.nic, config.mtu, queues=queues), None
    options: dict[str, Any] = {"mtu": config.mtu, "mac": config.mac, "offload": not spec.faults}
    inherited = _TAP_FD.match(config.nic)
    if inherited:
        first, *more = (int(fd) for fd in inherited[1].split(","))
        return with_faults(Tap(fd=first, more_fds=more, **options), spec), None
    tap = Tap(spec.rest, queues=queues, kernel_ip=config.kernel_ip, **options)
    return with_faults(tap, spec), None


def _open_dpdk(config: NicConfig, spec: NicSpec, queues: int) -> DpdkPort:
    from machnet.dpdk import open_port

    wanted = {"rx_desc": config.rx_desc, "tx_desc": config.tx_desc, "pool_mbufs": config.pool_mbufs}
    if config.nic:  # else the port is found by its address
        wanted["mac"] = config.mac  # type: ignore[assignment]
    return open_port(
        spec.rest,
        mtu=config.mtu,
        queues=queues,
        bind=config.bind,
        offload=not spec.faults,
        **{name: value for name, value in wanted.items() if value is not None},
    )


def _views(base: Nic, engines: int, opened: contextlib.ExitStack) -> list[Nic]:
    """A NIC for each engine."""
    if engines == 1:
        return [base]
    shared = SharedNic(base, engines)
    opened.callback(shared.close)
    return list(shared.views)


def native_geometry(geometry: Geometry) -> Any:
    """As a ``struct mn_chan_geometry *``."""
    native = ffi.new("struct mn_chan_geometry *")
    for name, value in geometry._asdict().items():
        setattr(native, name, value)
    return native


def channel_bytes(geometry: Geometry) -> int:
    """Bytes of a channel's memory; 0: there can't be such a channel."""
    return int(lib.mn_chan_bytes(native_geometry(geometry)))


class Engines:
    """All NICs of a configuration, running.

    Raises:
        OSError, ValueError, MemoryError: One of them can't be opened; none is then.
    """

    def __init__(self, nics: tuple[NicConfig, ...]) -> None:
        self.ports: list[Port] = []
        try:
            for config in nics:
                try:
                    self.ports.append(Port(config))
                except (OSError, ValueError) as error:  # noqa: PERF203 - a handful, once
                    kind = OSError if isinstance(error, OSError) else ValueError
                    raise kind(*_labelled(config.label, error)) from error
        except BaseException:
            self.close()
            raise

    @property
    def stacks(self) -> list[Stack]:
        """All engines, in the order of a channel's lanes."""
        return [stack for port in self.ports for stack in port.stacks]

    def lend(self, geometry: Geometry) -> Lent:
        """A channel for an application.

        Raises:
            ValueError: There can't be one of these sizes.
            OSError: ``ENOSPC`` (``lanes_max`` channels), ``EMFILE`` and so on.
            MemoryError: There is no address space for it.
        """
        names = ChannelSettings.__struct_fields__
        sizes = {name: value for name, value in geometry._asdict().items() if name in names}
        return lend(self.stacks, ChannelSettings(**sizes))

    def owing(self) -> int:
        """Connections that still owe their peer something."""
        total, out = 0, ffi.new("uint32_t *")
        for stack in self.stacks:
            if lib.mn_stack_owing(stack.core.native, out) == 0:
                total += out[0]
        return total

    def close(self) -> None:
        """End all engines. Connections that are left vanish without a word. Again: nothing."""
        while self.ports:
            self.ports.pop().close()


def _labelled(label: str, error: Exception) -> tuple[Any, ...]:
    """Arguments for an error that says which NIC it is about, if it does not do so itself."""
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    if isinstance(error, OSError) and number is not None:
        text = error.strerror or os.strerror(number)
    if not text.removeprefix("dpdk:").startswith(label.removeprefix("dpdk:")):
        text = f"{label}: {text}"
    return (text,) if number is None else (number, text)

# SPDX-License-Identifier: MIT
"""`machnet.testing.check_nic` passes our NICs, and finds each fault that a driver could have."""

from __future__ import annotations

import contextlib
import errno
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from wire_bench import WireBench

from machnet.sim import KernelHost, Tap, Wire
from machnet.sim.faulty import Faulty
from machnet.stack.nics import Capture
from machnet.testing import arp
from machnet.testing.nic import (
    CSUM_PARTIAL,
    Meta,
    NicBench,
    NicCheckError,
    NicHandle,
    check_nic,
    nic_checks,
)

CHECKS = dict(nic_checks())


class PairBench:
    """One wire of a pair; the other end is driven as a NIC too."""

    wire_marks = True

    def __init__(self) -> None:
        self.ends = Wire.pair(1500, segmentation=True)
        self.nic, self.other = (NicHandle(end.native) for end in self.ends)

    def deliver(self, frame: bytes) -> None:
        self.other.send(frame)

    def collect(self) -> list[bytes]:
        return list(iter(self.other.recv, None))

    def close(self) -> None:
        for end in self.ends:
            end.close()


class CaptureBench(WireBench):
    """Capture around a wire."""

    def __init__(self, path: Path) -> None:
        super().__init__(segmentation=True)
        self.capture = Capture(self.wire, path)
        self.nic = NicHandle(self.capture.native)

    def close(self) -> None:
        self.capture.close()
        super().close()


class FaultLayerBench(WireBench):
    """The fault layer around a wire, with nothing to do."""

    def __init__(self) -> None:
        super().__init__(checksums=True)
        self.layer = Faulty(self.wire)
        self.nic = NicHandle(self.layer.native)

    def close(self) -> None:
        self.layer.close()
        super().close()


class TapBench:
    """Two TAPs of one kernel, bridged. The other one has no offloads: the kernel finishes frames."""

    wire_marks = False

    def __init__(self, host: KernelHost, offload: bool) -> None:
        one, two = host.open_tap("one", vnet_hdr=offload), host.open_tap("two", vnet_hdr=False)
        self.taps = [Tap(fd=one, offload=offload), Tap(fd=two, offload=False)]
        with host.iproute() as ip:
            ip.link("add", ifname="br", kind="bridge", br_stp_state=0)
            bridge = ip.link_lookup(ifname="br")[0]
            for name in ("one", "two"):
                ip.link("set", index=ip.link_lookup(ifname=name)[0], master=bridge)
            ip.link("set", index=bridge, state="up")
        self.host = host
        self.nic, self.other = (NicHandle(tap.native) for tap in self.taps)
        self._wait_until_forwarding()

    def _wait_until_forwarding(self) -> None:
        probe, end = arp().build(eth_dst="ff:ff:ff:ff:ff:ff"), time.monotonic() + 10
        while time.monotonic() < end:
            self.other.send(probe)
            select.select([self.nic.info.rx_fd], [], [], 0.05)
            if probe in iter(self.nic.recv, None):
                break
        else:
            raise TimeoutError("the bridge forwards nothing")
        while select.select([self.nic.info.rx_fd], [], [], 0.05)[0]:
            self.nic.recv()

    def deliver(self, frame: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            self.other.send(frame)

    def collect(self) -> list[bytes]:
        select.select([self.other.info.rx_fd], [], [], 0.01)
        return list(iter(self.other.recv, None))

    def close(self) -> None:
        for tap in self.taps:
            tap.close()
        with self.host.iproute() as ip:
            ip.link("del", ifname="br")


@pytest.fixture
def host() -> Iterator[KernelHost]:
    if reason := KernelHost.tap_available():
        pytest.skip(reason)
    with KernelHost("nic-kit", ipv6=False) as host:
        yield host


@pytest.mark.parametrize(
    "settings", [{}, {"mtu": 68}, {"mtu": 9000}, {"mtu": 68, "segmentation": True}], ids=str
)
def test_a_wire_passes(settings: dict[str, Any]) -> None:
    assert check_nic(lambda: WireBench(**settings)) == list(CHECKS)


def test_one_of_a_pair_passes() -> None:
    check_nic(PairBench)


def test_capture_passes(tmp_path: Path) -> None:
    check_nic(lambda: CaptureBench(tmp_path / "seen.pcapng"))


def test_the_fault_layer_without_faults_passes() -> None:
    check_nic(FaultLayerBench)


@pytest.mark.parametrize("offload", [False, True])
def test_a_tap_passes(host: KernelHost, offload: bool) -> None:
    check_nic(lambda: TapBench(host, offload))


# --- it finds what is wrong ---------------------------------------------------------------------


class Handle(NicHandle):
    """A driver with a fault: each method may be replaced."""

    def __init__(self, nic: Any, **faults: Callable[..., Any]) -> None:
        super().__init__(nic)
        self.faults = faults
        self.calls = 0

    def _faulty(self, name: str, *arguments: Any) -> Any:
        self.calls += 1
        right = getattr(super(), name)
        fault = self.faults.get(name)
        return right(*arguments) if fault is None else fault(self, right, *arguments)

    @property
    def info(self) -> Any:
        info = super().info
        if "info" in self.faults:
            self.faults["info"](info)
        return info

    def recv_meta(self, *arguments: Any) -> Any:
        return self._faulty("recv_meta", *arguments)

    def send(self, *arguments: Any) -> Any:
        return self._faulty("send", *arguments)

    def probe_alloc(self, *arguments: Any) -> Any:
        return self._faulty("probe_alloc", *arguments)

    def bounce(self, *arguments: Any) -> Any:
        return self._faulty("bounce", *arguments)


class FaultyBench(WireBench):
    def __init__(self, marks: bool = False, **faults: Callable[..., Any]) -> None:
        super().__init__(segmentation=True)
        self.wire_marks = marks
        self.nic = Handle(self.wire.native, **faults)


def every(period: int, fault: Callable[..., Any]) -> Callable[..., Any]:
    """A fault that shows at each so many calls only."""

    def sometimes(handle: Handle, right: Callable[..., Any], *arguments: Any) -> Any:
        if handle.calls % period:
            return right(*arguments)
        return fault(right, *arguments)

    return sometimes


def lose(right: Callable[..., Any], *arguments: Any) -> Any:
    return None


def lose_received(right: Callable[..., Any], *arguments: Any) -> Any:
    right(*arguments)
    return right(*arguments)


def cut(right: Callable[..., Any], *arguments: Any) -> Any:
    got = right(*arguments)
    return got and (got[0][:-1], got[1])


def run_out(right: Callable[..., Any], *arguments: Any) -> Any:
    raise OSError(errno.ENOBUFS, "ENOBUFS")


def send_twice(right: Callable[..., Any], *arguments: Any) -> Any:
    right(*arguments)
    return right(*arguments)


def spoil(right: Callable[..., Any], frame: bytes, *rest: Any) -> Any:
    return right(frame[:20] + b"\xff" + frame[21:], *rest)


def set_info(**fields: Any) -> Callable[[Any], None]:
    def change(info: Any) -> None:
        for name, value in fields.items():
            setattr(info, name, value)

    return change


FAULTS = [
    ("public_fields", {"info": set_info(mtu=67)}, "mtu is 67"),
    ("public_fields", {"info": set_info(queues=0)}, "queues is 0"),
    ("public_fields", {"info": set_info(rx_max_frame=1513)}, "rx_max_frame 1513 is below"),
    ("public_fields", {"info": set_info(tx_max_frame=1513)}, "tx_max_frame 1513 is below"),
    ("public_fields", {"info": set_info(tx_gso=0)}, "but tx_gso is not set"),
    ("public_fields", {"info": set_info(tx_csum_tcp=0)}, "tx_gso without tx_csum_tcp"),
    ("public_fields", {"info": set_info(mac=b"\1\0\0\0\0\0")}, "no address of a host"),
    ("public_fields", {"info": set_info(mac=bytes(6))}, "no address of a host"),
    ("receives", {"recv_meta": every(3, lose_received)}, "received: 8 frames of 10"),
    ("receives", {"recv_meta": every(4, cut)}, "bytes, wanted"),
    ("transmits", {"send": every(5, lose)}, "transmitted: 8 frames of 10"),
    ("transmits", {"send": every(10, send_twice)}, "transmitted: 11 frames of 10"),
    ("transmits", {"send": every(7, spoil)}, "frame 6: byte 20 differs"),
    ("bursts", {"bounce": lambda handle, right, count: right(count + 1)}, "a burst of 3 had 4"),
    ("packets", {"probe_alloc": lambda handle, right, size: size - 1}, "has room for 0"),
    ("packets", {"probe_alloc": every(4000, run_out)}, "after 3995 packets allocated and freed"),
    ("no_leak_receiving", {"recv_meta": every(5000, cut)}, "bytes, wanted 60"),
    ("no_leak_transmitting", {"send": every(5000, run_out)}, "after 4992 frames: [Errno 105]"),
    ("overload", {"recv_meta": every(50, cut)}, "changed"),
    ("checksums", {}, "tcp: the checksum is not finished"),
    ("segmentation", {}, "in segments of 536 came as [2000]"),
]


@pytest.mark.parametrize(("check", "faults", "said"), FAULTS)
def test_a_fault_is_found(
    check: str, faults: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("machnet.testing.nic._WAIT_S", 0.05)
    bench = FaultyBench(**faults)
    with pytest.raises(NicCheckError) as caught:
        CHECKS[check](bench)
    assert str(caught.value).startswith(f"{check}: ")
    assert said in str(caught.value)
    bench.close()


class ReorderingBench(WireBench):
    def collect(self) -> list[bytes]:
        return super().collect()[::-1]


def test_reordering_is_told_as_such() -> None:
    with pytest.raises(
        NicCheckError, match=r"transmits: transmitted: frame 0: it came as frame \d"
    ):
        CHECKS["transmits"](ReorderingBench())


def test_all_findings_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("machnet.testing.nic._WAIT_S", 0.05)
    closed: list[NicBench] = []

    class Bench(FaultyBench):
        def close(self) -> None:
            closed.append(self)
            super().close()

    with pytest.raises(NicCheckError) as caught:
        check_nic(lambda: Bench(info=set_info(mtu=67), bounce=lambda *_: 0))
    findings = [line.split(":")[0] for line in str(caught.value).splitlines() if line[0] != " "]
    assert findings == ["public_fields", "bursts", "checksums", "segmentation"]
    assert "\n  MTU, MAC address and capabilities make sense together." in str(caught.value)
    assert len(closed) == len(CHECKS)


def test_a_handle_has_the_nic_s_errors() -> None:
    bench = WireBench()
    assert bench.nic.mac == "02:4d:4e:00:00:01"
    assert bench.nic.recv() is None
    for frame, meta, name in (
        (b"", None, "EMSGSIZE"),
        (bytes(1515), None, "EMSGSIZE"),
        (bytes(60), Meta(CSUM_PARTIAL, 34, 16), "EINVAL"),
    ):
        with pytest.raises(OSError, match=name) as caught:
            bench.nic.send(frame, meta)
        assert caught.value.errno == getattr(errno, name)
    bench.deliver(bytes(100))
    with pytest.raises(OSError, match="EMSGSIZE"):
        bench.nic.recv_meta(99)
    assert bench.nic.recv() is None
    bench.close()

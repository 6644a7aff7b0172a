# SPDX-License-Identifier: MIT
"""Faults around a NIC as Python sees them: parameters, changes while it runs, ownership."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from wire_bench import WireBench

from machnet import Stack
from machnet.sim import Faulty, GilbertElliott, Wire
from machnet.sim.faulty import check_faults, split_params
from machnet.sim.nicstr import FAULT_KEYS, parse_nic
from machnet.stack.nics import open_nic
from machnet.testing.nic import NicHandle, check_nic

if TYPE_CHECKING:
    from collections.abc import Iterator

MS = 10**6
A, B, PORT = "10.0.0.1", "10.0.0.2", 888


@contextlib.contextmanager
def pair(**faults: Any) -> Iterator[tuple[Faulty, Any, Any]]:
    """A faulty NIC, a client's channel behind it, and a listening server's on the other side."""
    a, b = Wire.pair()
    faulty = Faulty(a, **faults)
    with Stack(faulty, f"{A}/24") as client, Stack(b, f"{B}/24") as server:
        listener = server.attach()
        listener.listen(B, PORT, protocol="tcp")
        yield faulty, client.attach(), listener
    for nic in (faulty, a, b):
        nic.close()


def connected(channel: Any) -> Any:
    return channel.connect(A, B, PORT, protocol="tcp", timeout=60)


def test_latency_in_virtual_time() -> None:
    with pair(tx={"latency": "2ms"}, rx={"latency": "3ms"}) as (_, client, server):
        flow = connected(client)
        assert client.stack.now_ns == 10 * MS  # ARP there and back, SYN there and back
        client.send(flow, b"ping")
        assert server.recv(timeout=1).data == b"ping"
        assert client.stack.now_ns == 12 * MS


def transfer(client: Any, server: Any, sizes: list[int]) -> None:
    flow = connected(client)
    for n, size in enumerate(sizes):
        data = bytes([n]) * size
        client.send(flow, data, timeout=60)
        message = server.recv(timeout=60)
        assert message.data == data
        server.send(message.flow, data, timeout=60)
        assert client.recv(timeout=60).data == data


@pytest.mark.parametrize(
    "faults",
    [
        {"loss": 0.1},
        {"burst_loss": GilbertElliott(bad=0.02, good=0.3)},
        {"reorder": "20%", "reorder_delay": "5ms"},
        {"duplicate": 0.3, "duplicate_delay": "2ms"},
        {"corrupt": 0.1},
        {"latency": "5ms", "jitter": "5ms", "distribution": "exponential", "keep_order": False},
        {"bandwidth": "10Mbps", "queue": "20p", "latency": "10ms"},
        {"loss": 0.03, "reorder": 0.1, "duplicate": 0.1, "corrupt": 0.03, "jitter": "1ms"},
    ],
    ids=lambda faults: "+".join(faults),
)
def test_transfers_survive(faults: dict[str, Any]) -> None:
    with pair(**faults) as (faulty, client, server):
        transfer(client, server, [1, 100_000, 50_000, 3])
        client.stack.advance(100 * MS)
        stats = faulty.stats()
        for name in ("loss", "reorder", "duplicate", "corrupt"):
            assert (stats[f"tx_{name}"] + stats[f"rx_{name}"] > 0) == (name in faults)
        assert stats["tx_waiting"] == stats["rx_waiting"] == 0


def test_same_seed_same_run() -> None:
    def run(seed: int) -> dict[str, int]:
        faults = {"loss": 0.1, "duplicate": 0.1, "jitter": "1ms", "latency": "1ms"}
        with pair(seed=seed, **faults) as (faulty, client, server):
            transfer(client, server, [50_000])
            return {**faulty.stats(), "now": client.stack.now_ns}

    assert run(5) == run(5)
    assert run(5) != run(6)


def test_set_changes_one_direction_or_both() -> None:
    with pair() as (faulty, client, server):
        flow = connected(client)
        faulty.set(tx={"latency": "4ms"}, latency="1ms")
        before = client.stack.now_ns
        client.send(flow, b"x")
        message = server.recv(timeout=1)
        assert client.stack.now_ns - before == 4 * MS
        server.send(message.flow, b"y")
        client.recv(timeout=1)
        assert client.stack.now_ns - before == 5 * MS
        faulty.set(loss=0.0)  # the latency stays
        client.send(flow, b"x")
        server.recv(timeout=1)
        assert client.stack.now_ns - before == 9 * MS


def test_degraded_while_the_context_lasts() -> None:
    with pair() as (faulty, client, server):
        flow = connected(client)
        with faulty.degraded(loss=1.0):
            client.send(flow, b"lost")
            client.stack.advance(10 * MS)
            assert server.try_recv() is None
        assert server.recv(timeout=5).data == b"lost"
        assert faulty.stats()["tx_loss"] == 1


def test_partition_and_clog() -> None:
    with pair() as (faulty, client, server):
        flow = connected(client)
        with faulty.clogged("tx"), faulty.clogged("tx"):
            client.send(flow, b"1")
            client.stack.advance(10 * MS)
            assert faulty.stats()["tx_waiting"] == 1
            assert server.try_recv() is None
        assert server.recv(timeout=0.001).data == b"1"
        client.stack.advance(100 * MS)
        with faulty.partitioned():
            client.send(flow, b"2")
            client.stack.advance(10 * MS)
        assert faulty.stats()["tx_blocked"] == 1
        assert server.recv(timeout=5).data == b"2"
        with pytest.raises(ValueError, match="neither 'tx' nor 'rx'"), faulty.clogged("up"):
            pass


def test_contexts_may_outlive_the_nic() -> None:
    faulty = Faulty(Wire())
    with faulty.degraded(loss=1.0), faulty.partitioned():
        faulty.close()


def test_thread_takes_new_parameters_at_once() -> None:
    wire = Wire()
    faulty = Faulty(wire, rx={"loss": 1.0})
    query = bytes.fromhex(
        "ffffffffffff 020000000009 0806 0001 0800 06 04 0001 020000000009 0a000002"
        "000000000000 0a000001"
    )
    with Stack(faulty, f"{A}/24", thread=True) as stack:
        faulty.set(loss=0.0)
        with faulty.clogged():
            wire.inject(query)
            stack.usage()  # wakes the thread: this wire can't
            stack.usage()
            assert stack.stats()["rx_frames"] == 0
            assert faulty.stats()["rx_waiting"] == 1
        assert stack.stats()["rx_frames"] == 1
    faulty.close()
    wire.close()


def test_hand_fed_wire_is_fed_through_the_layer() -> None:
    wire = Wire()
    with Stack(Faulty(wire, latency="1ms"), f"{A}/24") as stack:
        channel = stack.attach()
        with contextlib.suppress(TimeoutError):
            channel.connect(A, B, PORT, protocol="tcp", timeout=0.005)
        ((when, query),) = stack.drain()
        assert (when, query[12:14]) == (MS, b"\x08\x06")
        stack.inject(query)
        assert stack.stats()["rx_frames"] == 0
        stack.advance(MS)
        assert stack.stats()["rx_frames"] == 1


class FaultyBench(WireBench):
    """The layer on a hand-fed wire, for the kit of driver authors."""

    def __init__(self, **faults: Any) -> None:
        super().__init__()
        self.faulty = Faulty(self.wire, **faults)
        self.nic = NicHandle(self.faulty.native)

    def close(self) -> None:
        self.faulty.close()
        super().close()


@pytest.mark.parametrize("faults", [{}, {"mtu": 1500}], ids=["plain", "mtu"])
def test_layer_keeps_the_contract_of_a_nic(faults: dict[str, Any]) -> None:
    assert len(check_nic(lambda: FaultyBench(**faults))) > 5


# ---- ownership -----------------------------------------------------------------------------------


def test_inner_nic_is_in_use_while_it_is_wrapped() -> None:
    wire = Wire()
    faulty = Faulty(wire)
    with pytest.raises(RuntimeError, match="wire is in use by wire with faults"):
        wire.close()
    with pytest.raises(ValueError, match="is in use by"):
        Stack(wire, f"{A}/24")
    with pytest.raises(ValueError, match="is in use by"):
        Faulty(wire)
    with Stack(faulty, f"{A}/24"), pytest.raises(RuntimeError, match="is in use by"):
        faulty.close()
    faulty.close()
    with Stack(wire, f"{A}/24"), pytest.raises(ValueError, match="is in use by"):
        Faulty(wire)
    wire.close()


def test_layer_of_a_string_owns_what_is_inside() -> None:
    nic = open_nic("wire:x?loss=1%&tx.latency=1ms")
    assert isinstance(nic, Faulty)
    assert str(nic) == "wire:x?loss=1%&tx.latency=1ms"
    inner = nic.inner
    nic.close()
    with pytest.raises(ValueError, match="is closed"):
        _ = inner.native


def test_nic_with_segmentation_is_refused() -> None:
    wire = Wire(segmentation=True)
    with pytest.raises(ValueError, match=r"open it without offload \(Tap\(..., offload=False\)\)"):
        Faulty(wire)
    wire.close()


def test_pair_with_faults_can_only_be_stepped() -> None:
    a, _ = Wire.pair()
    with pytest.raises(ValueError, match="thread: the wires of a pair can only be stepped"):
        Stack(Faulty(a), f"{A}/24", thread=True)


# ---- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "error", "said"),
    [
        ({"losss": 1}, TypeError, "did you mean 'loss'"),
        ({"tx": {"latncy": 1}}, TypeError, "tx of a faulty NIC has no parameter 'latncy'"),
        ({"loss": 2}, ValueError, "loss: 2 is no probability"),
        ({"latency": 0.5}, ValueError, "latency: 0.5 is no duration"),
        ({"bandwidth": 10}, ValueError, "bandwidth: 10 is out of its range: 1 kbps"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], error: type[Exception], said: str) -> None:
    wire = Wire()
    with pytest.raises(error, match=said):
        Faulty(wire, **params)
    faulty = Faulty(wire)
    with pytest.raises(error):
        faulty.set(**params)
    faulty.close()
    wire.close()


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("loss=2", "loss: '2' is no probability"),
        ("latency=5", "latency: '5' is no duration"),
        ("distribution=norml", "'norml' is none of 'fixed'"),
        ("ge_bad=1%", "bursts need both ge_bad and ge_good"),
        ("ge_bad=x&ge_good=1", "bad: 'x' is no probability"),
        ("seed=x", "seed: 'x' is no whole number"),
        ("mtu=5", "mtu: 5 is not within 68"),
        ("queue=0p", "queue: '0p'"),
        ("keep_order=yes", "keep_order: 'yes' is neither 0 nor 1"),
        ("tx.bandwidth=1bps", "bandwidth: '1bps' is out of its range"),
    ],
)
def test_wrong_values_in_a_string(query: str, said: str) -> None:
    text = f"wire:w?{query}"
    with pytest.raises(ValueError) as opened:
        open_nic(text)
    with pytest.raises(ValueError) as checked:
        check_faults(parse_nic(text))
    assert str(opened.value) == str(checked.value)
    assert str(opened.value).startswith(f"NIC {text!r}: ")
    assert said in str(opened.value)


def test_every_key_of_a_string() -> None:
    values = {
        "latency": "1ms",
        "jitter": "1ms",
        "distribution": "normal",
        "bandwidth": "1Gbps",
        "queue": "256p,64KiB",
        "reorder_delay": "1ms",
        "duplicate_delay": "1ms",
        "mtu": "1000",
        "keep_order": "0",
        "seed": "7",
    }
    query = "&".join(f"{key}={values.get(key, '5%')}" for key in FAULT_KEYS)
    spec = parse_nic(f"wire:w?{query}&tx.loss=1&rx.ge_bad=1%&rx.ge_good=1%")
    both, own = split_params(spec)
    assert (both["seed"], both["mtu"], both["keep_order"]) == (7, 1000, False)
    assert both["burst_loss"] == GilbertElliott("5%", "5%", "5%", "5%")
    assert own["tx"] == {"loss": "1"}
    assert own["rx"] == {"burst_loss": GilbertElliott("1%", "1%")}
    open_nic(str(spec)).close()

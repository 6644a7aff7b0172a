# SPDX-License-Identifier: MIT
"""NIC strings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machnet.sim.nicstr import SCHEMES, NicSpec, parse_nic


@pytest.mark.parametrize(
    ("text", "scheme", "rest"),
    [
        ("tap:mn0", "tap", "mn0"),
        ("tap:fifteen-bytes-x", "tap", "fifteen-bytes-x"),
        ("wire:a", "wire", "a"),
        ("pcap:dir/in.pcapng", "pcap", "dir/in.pcapng"),
        ("pcap:a:b", "pcap", "a:b"),
        ("dpdk:eth1", "dpdk", "eth1"),
        ("dpdk:0000:03:00.0", "dpdk", "0000:03:00.0"),
        ("eth1", "dpdk", "eth1"),
        ("0000:03:00.0", "dpdk", "0000:03:00.0"),
        ("03:00.1", "dpdk", "03:00.1"),
        ("10000:E1:00.0", "dpdk", "10000:E1:00.0"),
        ("0000:03:00.0,rx_burst=1:2", "dpdk", "0000:03:00.0,rx_burst=1:2"),
        ("52:54:00:12:34:56", "dpdk", "52:54:00:12:34:56"),
        ("52:54:00:AB:CD:EF", "dpdk", "52:54:00:AB:CD:EF"),
        ("dpdk:52:54:00:12:34:56", "dpdk", "52:54:00:12:34:56"),
        ("net_af_packet0,iface=veth0", "dpdk", "net_af_packet0,iface=veth0"),
        ("net_pcap0,rx_pcap=a:b", "dpdk", "net_pcap0,rx_pcap=a:b"),
        ("dpdk:net_pcap0,rx_pcap=a:b", "dpdk", "net_pcap0,rx_pcap=a:b"),
        ("pcap:a:b,c:d", "pcap", "a:b,c:d"),
        ("link:a:b", "link", "a:b"),
    ],
)
def test_accepted(text: str, scheme: str, rest: str) -> None:
    spec = parse_nic(text)
    assert spec == NicSpec(scheme, rest, {})
    assert parse_nic(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it names no NIC: dpdk:NAME"),
        ("tap:", "it names no NIC: tap:NAME"),
        (":mn0", "there is no driver '': it is dpdk, link, pcap, tap or wire"),
        ("tun:mn0", "there is no driver 'tun': it is dpdk, link, pcap, tap or wire"),
        ("TAP:mn0", "there is no driver 'TAP'"),
        ("52:54:00:12:34", "there is no driver '52'"),
        ("52:54:00:12:34:56:78", "there is no driver '52'"),
        ("0000:03:00.8", "there is no driver '0000'"),
        ("tap:sixteen-bytes-xx", "at most 15 bytes"),
        ("tap:ä" + "x" * 14, "at most 15 bytes"),
        ("tap:ä", "is ASCII"),
        ("tap:a/b", "without '/'"),
        ("tap:a:b", "without '/', ':'"),
        ("tap:tap%d", "'%'"),
        ("tap:..", "'..'"),
        ("tap:mn 0", "blanks"),
        ("tap:mn0\n", "blanks"),
        ("tap:mn0?losss=0.01", "the fault layer has no 'losss': did you mean 'loss'?"),
        ("tap:mn0?tx.latncy=1ms", "did you mean 'tx.latency'?"),
        ("tap:mn0?up.loss=1", "the fault layer has no 'up.loss'"),
        ("tap:mn0?tx.=1", "the fault layer has no 'tx.'"),
        ("tap:mn0?xyzzy=1", "it has latency, jitter, "),
        ("tap:mn0?tx.seed=1", "the fault layer has no 'tx.seed'"),
        ("tap:mn0?", "'' after the '?' is not of the form key=value"),
        ("tap:mn0?loss", "'loss' after the '?' is not of the form key=value"),
        ("tap:mn0?loss=", "'loss=' after the '?'"),
        ("tap:mn0?=1", "'=1' after the '?'"),
        ("tap:mn0?loss=1&loss=2", "'loss' is given twice"),
    ],
)
def test_refused_with_the_value_and_the_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_nic(text)
    assert str(caught.value).startswith(f"NIC {text!r}: ")
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("tap:mn0?loss=0.01", {"loss": "0.01"}),
        ("eth1?loss=1%&latency=1ms", {"loss": "1%", "latency": "1ms"}),
        ("52:54:00:12:34:56?loss=1%", {"loss": "1%"}),
        ("net_af_packet0,iface=veth0?loss=1%", {"loss": "1%"}),
        ("tap:mn0?tx.loss=0.5&rx.loss=0&loss=1", {"tx.loss": "0.5", "rx.loss": "0", "loss": "1"}),
        ("pcap:a,b?queue=256p,64KiB&seed=7", {"queue": "256p,64KiB", "seed": "7"}),
    ],
)
def test_faults(text: str, faults: dict[str, str]) -> None:
    spec = parse_nic(text)
    assert spec.faults == faults
    assert parse_nic(str(spec)) == spec


@given(st.text(max_size=30) | st.from_regex(r"(tap|pcap|wire|dpdk|x):[a-z0-9?&=:]{0,20}"))
def test_any_text_parses_or_says_why_not(text: str) -> None:
    try:
        spec = parse_nic(text)
    except ValueError as error:
        said = str(error)
    else:
        assert spec.scheme in SCHEMES
        assert spec.rest
        assert parse_nic(str(spec)) == spec
        return
    assert repr(text) in said

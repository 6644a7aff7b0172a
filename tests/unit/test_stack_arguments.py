# SPDX-License-Identifier: MIT
"""What `machnet.Stack`, its NICs and its settings take, and what they say when it is wrong."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

import machnet
from machnet._native import ffi, lib
from machnet.config import ChannelSettings, Settings, convert
from machnet.sim import Tap, Wire
from machnet.stack.names import parse_interface, parse_ip, parse_mac, parse_port


@pytest.fixture
def stack() -> Iterator[machnet.Stack]:
    with machnet.Stack(Wire(mtu=1500), ip="10.0.0.2/24") as stack:
        yield stack


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"ip": "10.0.0"}, ValueError, "ip: '10.0.0' is no IPv4 address"),
        ({"ip": "10.0.0.2/33"}, ValueError, "prefix length"),
        ({"ip": 5}, TypeError, "ip: an interface address is a string"),
        ({"gateway": "x"}, ValueError, "gateway: 'x' is no IPv4 address"),
        ({"gateway": "10.0.1.1"}, ValueError, "not in the network"),
        ({"poll": "lazy"}, ValueError, "'adaptive' nor 'busy'"),
        ({"isn": 2**32}, ValueError, "isn: 4294967296"),
        ({"isn": -1}, ValueError, "isn: -1"),
        ({"spin_us": -1.0}, ValueError, "spin_us"),
        ({"spin_us": float("nan")}, ValueError, "spin_us"),
        ({"flow_max": 3}, TypeError, "did you mean 'flows_max'"),
        ({"flows_max": 0}, ValueError, "flows_max"),
        ({"flows_max": "3"}, TypeError, "flows_max"),
        ({"loop_slots": 3}, ValueError, "loop_slots: 3 is out of its range"),
        ({"mtu": 9000}, ValueError, "MTU of 1500 bytes already"),
        ({"ip": "0.0.0.0/24"}, ValueError, "ip"),
        ({"ip": "224.0.0.1/24"}, ValueError, "ip"),
        ({"ip": "10.0.0.0/24"}, ValueError, "10.0.0.0 is the address of network 10.0.0.0/24"),
        ({"ip": "10.0.255.255/16"}, ValueError, "network 10.0.0.0/16 itself or its broadcast"),
        ({"gateway": "10.0.0.2"}, ValueError, "gateway: 10.0.0.2 is the address of this NIC"),
        ({"seed": "7"}, TypeError, "seed: '7' is no integer"),
    ],
)
def test_a_wrong_argument_is_named(arguments, error, text):
    with pytest.raises(error) as caught:
        machnet.Stack(Wire(), **{"ip": "10.0.0.2/24", **arguments})
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("nic", "text"),
    [
        ("tap:" + "x" * 16, "at most 15 bytes"),
        ("wire:w?lost=0.1", "the fault layer has no 'lost': did you mean 'loss'?"),
        ("wire:w?loss=2", "loss: '2' is no probability"),
        ("foo:bar", "there is no driver 'foo'"),
    ],
)
def test_a_nic_string_that_cannot_be_opened_is_explained(nic, text):
    with pytest.raises(ValueError, match=r".") as caught:
        machnet.Stack(nic, ip="10.0.0.2/24")
    assert text in str(caught.value)


@pytest.mark.parametrize("ip", ["10.0.0.0/31", "10.0.0.255/32", "10.0.1.0/23"])
def test_where_a_network_has_no_address_of_its_own_any_is_a_hosts(ip):
    with machnet.Stack(Wire(), ip=ip) as stack:
        assert f"{stack.ip}/{stack.prefix}" == ip


@pytest.mark.parametrize("nic", [5, None])
def test_what_is_no_nic_is_named(nic):
    with pytest.raises(TypeError, match=f"nic: a NIC is a string .* not {nic}"):
        machnet.Stack(nic, ip="10.0.0.2/24")


@pytest.mark.parametrize("arguments", [{"mtu": 0}, {"queue_frames": 0}])
def test_a_wire_of_nothing_is_refused(arguments):
    with pytest.raises(ValueError, match="MTU of 68 to 65535 bytes and queues of 1 to 262144"):
        Wire(**arguments)


@pytest.mark.parametrize(("settings", "least"), [({}, 168), ({"mss_min_bytes": 536}, 616)])
def test_an_mtu_that_is_too_small_for_tcp_is_named(settings, least):
    with machnet.Stack(Wire(mtu=least), ip="10.0.0.2/24", **settings) as stack:
        assert stack.mtu == least
    with pytest.raises(ValueError, match=rf"mtu: {least - 1} .* at least {least}"):
        machnet.Stack(Wire(mtu=least - 1), ip="10.0.0.2/24", **settings)


def test_a_nic_string_opens_a_wire():
    with machnet.Stack("wire:w0", ip="10.0.0.2", mtu=9000) as stack:
        assert (stack.ip, stack.prefix, stack.mtu, stack.gateway) == ("10.0.0.2", 24, 9000, None)
        nic = stack.nic
    with pytest.raises(ValueError, match="is closed"):
        _ = nic.mtu


def test_a_wire_has_one_stack_at_a_time_and_outlives_it():
    wire = Wire(mtu=1400, mac="02:00:00:00:00:07")
    with machnet.Stack(wire, ip="10.0.0.2") as stack:
        assert stack.mac == "02:00:00:00:00:07"
        with pytest.raises(ValueError, match="is in use by"):
            machnet.Stack(wire, ip="10.0.0.3")
        with pytest.raises(RuntimeError, match="close that first"):
            wire.close()
    with machnet.Stack(wire, ip="10.0.0.3") as stack:
        assert stack.mtu == 1400
    wire.close()
    wire.close()
    with pytest.raises(ValueError, match="is closed"):
        machnet.Stack(wire, ip="10.0.0.3")


@pytest.mark.parametrize("arguments", [{"mtu": 67}, {"mtu": 65536}, {"queue_frames": 1 << 19}])
def test_a_wire_with_a_number_out_of_range_is_refused(arguments):
    with pytest.raises(ValueError, match="a wire has an MTU of 68 to 65535"):
        Wire(**arguments)


def test_a_tap_needs_one_name():
    with pytest.raises(TypeError, match="a name or a file descriptor"):
        Tap()
    with pytest.raises(OSError, match=r"not a TAP|cannot|descriptor"):
        Tap(fd=os.open(os.devnull, os.O_RDWR))


def test_addresses_are_checked():
    assert parse_ip("10.0.0.1") == 0x0A000001
    assert parse_interface("10.0.0.1/8") == (0x0A000001, 8)
    assert parse_mac("02:00:00:00:00:0f") == bytes([2, 0, 0, 0, 0, 15])
    for bad in ("02:00:00:00:00", "02:00:00:00:00:1", "02:00:00:00:00:gg", ""):
        with pytest.raises(ValueError, match="no MAC address"):
            parse_mac(bad)
    for bad_port in (0, 65536, -1):
        with pytest.raises(ValueError, match="port"):
            parse_port(bad_port)
    for no_port in ("80", True, 8.0):
        with pytest.raises(TypeError, match="port"):
            parse_port(no_port)


# --- settings -------------------------------------------------------------------------------------


def test_every_field_of_the_core_is_a_setting():
    names = {name for name, _ in ffi.typeof("struct mn_config").fields}
    others = {"ip", "prefix", "gateway", "secret", "isn_option"}
    assert set(Settings.__struct_fields__) == names - others


def test_the_cores_defaults_are_within_the_ranges():
    config = ffi.new("struct mn_config *")
    lib.mn_config_defaults(config)
    values = {name: getattr(config, name) for name in Settings.__struct_fields__}
    assert convert(Settings, values, "defaults").given() == values


def test_settings_reach_the_engine(stack):
    assert stack.settings.rto_min_us == 200_000
    with machnet.Stack(Wire(), ip="10.0.0.2", rto_min_us=1000, sack=False) as other:
        assert (other.settings.rto_min_us, other.settings.sack) == (1000, False)


@pytest.mark.parametrize(
    ("sizes", "error"),
    [
        ({"buf_bytes": 100}, ValueError),
        ({"buf_bytes": 3000}, ValueError),
        ({"tx_buf": 32}, TypeError),
        ({"flows_max": 65536}, ValueError),
    ],
)
def test_channel_sizes_are_checked(stack, sizes, error):
    with pytest.raises(error, match=r"Stack\.attach"):
        stack.attach(**sizes)


def test_channel_defaults_hold_the_longest_message():
    sizes = ChannelSettings()
    assert sizes.tx_bufs * 7 // 8 * sizes.buf_bytes > lib.MN_MSG_MAX_BYTES
    assert sizes.rx_bufs * 7 // 8 * sizes.buf_bytes > lib.MN_MSG_MAX_BYTES


def test_channels_are_limited_by_lanes_max():
    with machnet.Stack(Wire(), ip="10.0.0.2", lanes_max=2) as stack:
        first, second = stack.attach(), stack.attach()
        with pytest.raises(OSError, match="attach") as caught:
            stack.attach()
        assert caught.value.errno == errno.ENOSPC
        first.close()
        third = stack.attach()
        assert not third.closed
        assert second.flows() == []

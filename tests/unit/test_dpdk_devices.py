# SPDX-License-Identifier: MIT
"""What a ``dpdk:`` string names, in machines made of plain files."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from fake_sysfs import FakeSysfs
from own_netns import run_in_own_netns

from machnet.dpdk.devices import Device, Target, find, inventory, resolve
from machnet.dpdk.records import Former, Record, remember

VF = "2f3e:00:02.0"
UUID = "000d3a11-2233-000d-3a11-2233000d3a11"


@pytest.fixture
def tree(tmp_path: Path) -> FakeSysfs:
    """A machine with a NIC of each kind."""
    made = FakeSysfs(tmp_path)
    made.pci("0000:00:02.0", "virtio-pci", kind="0x010000", ident="1af4:1042")  # a disk
    made.pci("0000:00:03.0", "virtio-pci", "eth0", "52:54:00:00:00:01", ident="1af4:1041", virtio=2)
    made.pci("0000:00:05.0", "e1000", "eth1", "52:54:00:00:00:02", numa=1, group=7)
    made.pci("0000:08:00.0", "mlx5_core", "enp8", "b8:ce:f6:00:00:01", ident="15b3:101d")
    made.virtual("veth0")
    made.virtual("lo", "00:00:00:00:00:00", mtu=65536, kind=772)
    return made


def resolved(tree: FakeSysfs, rest: str, **more: Any) -> Target:
    return resolve(rest, sysfs=tree.sysfs, run=tree.run, **more)


def refused(tree: FakeSysfs, rest: str, **more: Any) -> OSError:
    with pytest.raises(OSError) as caught:
        resolved(tree, rest, **more)
    return caught.value


def bound(tree: FakeSysfs, address: str, driver: str = "vfio-pci") -> None:
    """As after `machnet nic bind`, less the record."""
    nic = tree.nics[address]
    tree.load(driver, nic.bus)
    tree.detach(nic)
    tree.attach(nic, driver)


def recorded(tree: FakeSysfs, address: str, name: str, mac: str, bus: str = "pci") -> None:
    remember(Record(address, bus, "e1000", "vfio-pci", (Former(name, mac),)), tree.run)


def by_name(tree: FakeSysfs) -> dict[str, Device]:
    return {device.name: device for device in inventory(tree.sysfs, tree.run)}


# ---- what there is -------------------------------------------------------------------------------


def test_nics_and_interfaces_are_listed_and_disks_are_not(tree: FakeSysfs) -> None:
    tree.load("vfio-pci")
    found = by_name(tree)
    assert list(found) == ["eth0", "eth1", "enp8", "lo", "veth0"]
    assert found["eth1"] == Device(
        address="0000:00:05.0",
        bus="pci",
        ident="8086:100e",
        interfaces=("eth1",),
        macs=("52:54:00:00:00:02",),
        driver="e1000",
        usable=("vfio-pci",),
        numa_node=1,
        iommu_group=7,
        state="kernel",
    )
    assert found["eth1"].vendor == "Intel"
    assert found["eth1"].mac == "52:54:00:00:00:02"
    assert (found["eth0"].numa_node, found["eth0"].iommu_group) == (None, None)
    assert found["enp8"].state == "bifurcated"
    assert found["veth0"].state == "virtual"


def test_a_virtio_nic_is_its_pci_function(tree: FakeSysfs) -> None:
    assert by_name(tree)["eth0"].address == "0000:00:03.0"


def test_this_machine_can_be_looked_at() -> None:
    found = {device.name: device for device in inventory()}
    names = [name for device in found.values() for name in device.interfaces]
    assert len(names) == len(set(names))
    assert (found["lo"].state, found["lo"].mac) == ("virtual", "00:00:00:00:00:00")
    with pytest.raises(OSError, match=r"lo carries no Ethernet frames \(type 772\)"):
        resolve("lo")


OURS = """
from pyroute2 import IPRoute
from machnet.dpdk.devices import inventory, resolve
mac = "02:00:00:00:00:77"
IPRoute().link("add", ifname="mine0", kind="veth", mtu=9000, address=mac, peer={"ifname": "mine1"})
virtual = [device.name for device in inventory() if device.state == "virtual"]
assert virtual == ["lo", "mine0", "mine1"], virtual
assert resolve("mine0") == resolve(mac)
print(resolve("mine0").devargs)
"""


def test_interfaces_are_those_of_our_network_namespace() -> None:
    """Which sysfs does not show: it is that of another one."""
    sizes = "blocksz=36864,framesz=9216,framecnt=512"
    assert run_in_own_netns(OURS) == [f"net_af_packet0,iface=mine0,{sizes},qpairs=1"]


def test_nothing_is_there() -> None:
    assert inventory("/nonexistent", "/nonexistent") == []


# ---- names of NICs -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["enp8", "0000:08:00.0", "08:00.0", "pci:0000:08:00.0"])
def test_a_bifurcated_nic_is_used_as_it_is(tree: FakeSysfs, name: str) -> None:
    assert resolved(tree, name).devargs == "0000:08:00.0"
    assert resolved(tree, name + ",mprq_en=1").devargs == "0000:08:00.0,mprq_en=1"


@pytest.mark.parametrize("name", ["b8:ce:f6:00:00:01", "B8:CE:F6:00:00:01"])
def test_a_nic_by_its_mac_address(tree: FakeSysfs, name: str) -> None:
    target = resolved(tree, name)
    assert (target.devargs, target.mac, target.candidates) == ("0000:08:00.0", None, ())


def test_upper_case_addresses(tree: FakeSysfs) -> None:
    tree.pci("0000:af:00.1", "mana", "eth9", ident="1414:00ba")
    assert resolved(tree, "0000:AF:00.1").devargs == "0000:af:00.1"
    assert resolved(tree, "AF:00.1,a=B").devargs == "0000:af:00.1,a=B"


@pytest.mark.parametrize("driver", ["vfio-pci", "uio_pci_generic", "igb_uio"])
def test_a_bound_nic_is_found_by_its_address(tree: FakeSysfs, driver: str) -> None:
    bound(tree, "0000:00:05.0", driver)
    target = resolved(tree, "00:05.0")
    assert (target.devargs, target.interface, target.mac) == ("0000:00:05.0", None, None)
    assert target.device is not None
    assert (target.device.state, target.device.driver) == ("userspace", driver)


@pytest.mark.parametrize("name", ["eth1", "52:54:00:00:00:02"])
def test_a_bound_nic_is_found_by_its_former_names(tree: FakeSysfs, name: str) -> None:
    recorded(tree, "0000:00:05.0", "eth1", "52:54:00:00:00:02")
    bound(tree, "0000:00:05.0")
    target = resolved(tree, name)
    assert (target.devargs, target.mac, target.candidates) == ("0000:00:05.0", None, ())


def test_a_former_name_yields_to_an_interface_of_that_name(tree: FakeSysfs) -> None:
    recorded(tree, "0000:00:05.0", "veth0", "52:54:00:00:00:02")
    bound(tree, "0000:00:05.0")
    assert resolved(tree, "veth0").interface == "veth0"


def test_a_record_of_a_nic_that_the_kernel_has_again_counts_for_nothing(tree: FakeSysfs) -> None:
    recorded(tree, "0000:00:05.0", "old", "52:54:00:00:00:99")
    assert by_name(tree)["eth1"].former == ()
    assert "there is no NIC 'old'" in str(refused(tree, "old"))


def test_a_mac_address_that_only_the_driver_knows(tree: FakeSysfs) -> None:
    bound(tree, "0000:00:05.0")
    tree.pci("0000:00:06.0", bound=False)
    bound(tree, "0000:00:06.0")
    target = resolved(tree, "52:54:00:AA:00:99,x=1")
    assert target.devargs == ""
    assert target.mac == "52:54:00:aa:00:99"
    assert target.candidates == ("0000:00:05.0,x=1", "0000:00:06.0,x=1")


def test_one_whose_address_is_on_record_is_no_candidate(tree: FakeSysfs) -> None:
    recorded(tree, "0000:00:05.0", "eth1", "52:54:00:00:00:02")
    bound(tree, "0000:00:05.0")
    text = str(refused(tree, "52:54:00:aa:00:99"))
    assert "no NIC has the MAC address" in text
    assert "(lo)" not in text


def test_the_ports_of_one_function_are_told_apart(tree: FakeSysfs) -> None:
    ports = [("enp9", "b8:ce:f6:00:00:08"), ("enp9d1", "b8:ce:f6:00:00:09")]
    tree.pci("0000:09:00.0", "mlx4_core", ports=ports, ident="15b3:1003")
    assert resolved(tree, "enp9d1").mac == "b8:ce:f6:00:00:09"
    assert resolved(tree, "B8:CE:F6:00:00:08").mac == "b8:ce:f6:00:00:08"
    assert resolved(tree, "09:00.0").mac is None


def test_a_nic_of_hyper_v(tree: FakeSysfs) -> None:
    tree.vmbus(UUID, "eth3", "00:0d:3a:11:22:33")
    why = "eth3 (000d3a11-2233-000d-3a11-2233000d3a11): the kernel has it (hv_netvsc): "
    assert why + "`machnet nic bind eth3`" in str(refused(tree, "eth3"))
    bound(tree, UUID, "uio_hv_generic")
    for name in (UUID, UUID.upper(), f"vmbus:{UUID}"):
        assert resolved(tree, name).devargs == f"vmbus:{UUID}"


def test_the_fast_path_of_a_nic_of_hyper_v_has_the_same_mac_address(tree: FakeSysfs) -> None:
    tree.vmbus(UUID, "eth3", "00:0d:3a:11:22:33")
    tree.pci(VF, "mlx5_core", "enP1", "00:0d:3a:11:22:33", ident="15b3:101a")
    found = find("00:0d:3a:11:22:33", tree.sysfs, tree.run)
    assert (found.name, found.bus) == ("eth3", "vmbus")
    assert resolved(tree, "enP1").devargs == VF


def test_a_bridge_that_has_the_address_of_a_nic_is_not_meant(tree: FakeSysfs) -> None:
    tree.virtual("br0", "b8:ce:f6:00:00:01")
    assert resolved(tree, "b8:ce:f6:00:00:01").devargs == "0000:08:00.0"


# ---- virtual interfaces and devices --------------------------------------------------------------


def test_a_virtual_interface_goes_through_af_packet(tree: FakeSysfs) -> None:
    sizes = "blocksz=8192,framesz=2048,framecnt=512"
    target = resolved(tree, "veth0")
    assert target == Target(
        f"net_af_packet0,iface=veth0,{sizes},qpairs=1", interface="veth0", room=2048
    )
    more = resolved(tree, "veth0", number=5, queues=4).devargs
    assert more == f"net_af_packet5,iface=veth0,{sizes},qpairs=4"


def test_a_virtual_interface_by_its_mac_address(tree: FakeSysfs) -> None:
    assert resolved(tree, "02:00:00:00:00:0A").interface == "veth0"


@pytest.mark.parametrize(
    ("mtu", "frame"),
    [(68, 2048), (1500, 2048), (1964, 2048), (1965, 3072), (9000, 9216), (64428, 64512)],
)
def test_frames_hold_what_the_interface_carries(tree: FakeSysfs, mtu: int, frame: int) -> None:
    tree.virtual("veth1", mtu=mtu)
    for target in (resolved(tree, "veth1"), resolved(tree, "veth0", mtu=mtu)):
        given = dict(part.split("=") for part in target.devargs.split(",")[1:])
        frames, block, count = (int(given[name]) for name in ("framesz", "blocksz", "framecnt"))
        # What Linux asks of a packet ring, and DPDK on top: frames fill their blocks.
        assert frames == frame == target.room
        assert frames % 16 == block % 4096 == block % frames == count % (block // frames) == 0
        # Behind 66 bytes of header a frame has its Ethernet header and a VLAN tag.
        assert frames - 66 >= mtu + 18


def test_an_mtu_for_which_there_is_no_buffer(tree: FakeSysfs) -> None:
    error = refused(tree, "veth0", mtu=64429)
    assert error.errno == errno.EMSGSIZE
    assert "at most 64428 bytes: ip link set veth0 mtu 64428" in str(error)


@pytest.mark.parametrize(
    "rest",
    [
        "net_null0",
        "net_ring0",
        "net_pcap0,rx_pcap=a:b.pcap,tx_pcap=out.pcap",
        "net_memif0,role=server,socket=/run/m.sock",
        "net_tap0,iface=dtap9",
        "virtio_user0,path=/tmp/vhost,queues=2",
        "net_no_such_driver7,a=b",
    ],
)
def test_virtual_devices_pass_through(tree: FakeSysfs, rest: str) -> None:
    assert resolved(tree, rest, queues=2, mtu=9000) == Target(rest)
    assert resolved(tree, f"vdev:{rest}") == Target(rest)


def test_af_packet_by_hand_gets_what_is_not_said(tree: FakeSysfs) -> None:
    target = resolved(tree, "net_af_packet3,iface=veth0", queues=2)
    sizes = "blocksz=8192,framesz=2048,framecnt=512"
    assert target.devargs == f"net_af_packet3,iface=veth0,{sizes},qpairs=2"
    said = "net_af_packet3,iface=veth0,framesz=4096,qpairs=1,qdisc_bypass=0"
    target = resolved(tree, said, queues=2)
    assert (target.devargs, target.interface, target.room) == (said, "veth0", 4096)


def test_af_xdp_by_hand(tree: FakeSysfs) -> None:
    target = resolved(tree, "net_af_xdp0,iface=veth0", queues=2)
    assert target == Target("net_af_xdp0,iface=veth0", interface="veth0")


def test_an_interface_that_is_called_like_a_driver(tree: FakeSysfs) -> None:
    tree.virtual("net_lab0")
    assert resolved(tree, "net_lab0").interface == "net_lab0"


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["eth1", "0000:00:05.0", "52:54:00:00:00:02"])
def test_the_kernel_has_it(tree: FakeSysfs, name: str) -> None:
    error = refused(tree, name)
    assert error.errno == errno.EBUSY
    assert error.strerror == (
        "eth1 (0000:00:05.0): the kernel has it (e1000): `machnet nic bind eth1` takes it from there, "
        "--bind for the time of one run"
    )


def test_nobody_has_it(tree: FakeSysfs) -> None:
    tree.pci("0000:00:06.0", bound=False)
    error = refused(tree, "00:06.0")
    assert error.errno == errno.EBUSY
    assert error.strerror == (
        "0000:00:06.0: it has no driver: `machnet nic bind 0000:00:06.0` gives it one"
    )


def test_a_bus_without_drivers_in_dpdk(tree: FakeSysfs) -> None:
    tree.other("usb0", "usb")
    assert refused(tree, "usb0").strerror == (
        "usb0: it is on the usb bus, for which DPDK has no drivers: "
        "dpdk:net_af_packet0,iface=usb0 goes through the kernel"
    )


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        (
            "eth9",
            "there is no NIC 'eth9': did you mean 'eth1'? There are eth0 (0000:00:03.0), eth1",
        ),
        ("xyzzy", "there is no NIC 'xyzzy': There are eth0 (0000:00:03.0), eth1 (0000:00:05.0), "),
        ("0000:00:04.0", "there is no NIC '0000:00:04.0': did you mean '0000:00:0"),
        ("00:02.0", "0000:00:02.0 is no network device: its class is 0x010000, not 0x02...."),
        ("52:54:00:00:00:99", "There are 52:54:00:00:00:01 (eth0), 52:54:00:00:00:02 (eth1), "),
        (UUID, f"there is no NIC '{UUID}'"),
        ("net_af_packet0,iface=veth9", "there is no NIC 'veth9': did you mean 'veth0'?"),
        ("net_af_xdp0,iface=veth9", "there is no NIC 'veth9': did you mean 'veth0'?"),
        ("lo", "lo carries no Ethernet frames (type 772)"),
    ],
)
def test_refused_with_what_is_there(tree: FakeSysfs, rest: str, why: str) -> None:
    error = refused(tree, rest)
    assert error.errno in {errno.ENODEV, errno.EPROTONOSUPPORT}
    assert why in str(error)


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        ("", "a name, and behind a comma its device arguments"),
        (",a=b", "a name, and behind a comma"),
        ("eth1,", "a name, and behind a comma"),
        ("net_af_packet0", "net_af_packet0: iface=NAME is missing"),
        ("net_af_packet0,qpairs=2", "iface=NAME is missing"),
        ("net_af_xdp1,iface=", "net_af_xdp1: iface=NAME is missing"),
        ("veth0,qpairs=2", "dpdk:net_af_packet0,iface=veth0,qpairs=2"),
    ],
)
def test_malformed(tree: FakeSysfs, rest: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        resolved(tree, rest)
    assert why in str(caught.value)


def test_a_mac_address_that_two_nics_have(tree: FakeSysfs) -> None:
    tree.pci("0000:00:06.0", "e1000", "eth5", "52:54:00:00:00:02")
    error = refused(tree, "52:54:00:00:00:02")
    assert error.errno == errno.ENOTUNIQ
    assert "2 NICs have the MAC address 52:54:00:00:00:02: eth1 (0000:00:05.0), eth5" in str(error)


def test_a_long_list_is_cut(tree: FakeSysfs) -> None:
    for number in range(20):
        tree.virtual(f"tap{number}")
    assert str(refused(tree, "zzz")).endswith(" and 12 more")


# ---- records -------------------------------------------------------------------------------------


def test_what_others_could_have_written_is_not_believed(tree: FakeSysfs) -> None:
    recorded(tree, "0000:00:05.0", "eth1", "52:54:00:00:00:02")
    bound(tree, "0000:00:05.0")
    assert resolved(tree, "eth1").devargs == "0000:00:05.0"
    assert Path(tree.run).stat().st_mode & 0o777 == 0o700
    Path(tree.run).chmod(0o770)
    assert "there is no NIC 'eth1'" in str(refused(tree, "eth1"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"address": "0000:00:05.0"}', '{"a": 1}', "\xff"])
def test_a_damaged_record_is_none(tree: FakeSysfs, text: str) -> None:
    recorded(tree, "0000:00:05.0", "eth1", "52:54:00:00:00:02")
    bound(tree, "0000:00:05.0")
    (Path(tree.run) / "0000:00:05.0.json").write_text(text, encoding="latin-1")
    assert "there is no NIC 'eth1'" in str(refused(tree, "eth1"))
    assert resolved(tree, "00:05.0").devargs == "0000:00:05.0"


def test_a_record_under_another_name_is_none(tree: FakeSysfs) -> None:
    recorded(tree, "0000:00:05.0", "eth1", "52:54:00:00:00:02")
    path = Path(tree.run) / "0000:00:05.0.json"
    path.rename(path.with_name("0000:00:06.0.json"))
    bound(tree, "0000:00:05.0")
    assert "there is no NIC 'eth1'" in str(refused(tree, "eth1"))

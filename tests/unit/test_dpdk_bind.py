# SPDX-License-Identifier: MIT
"""Taking NICs from the kernel and giving them back, in machines made of plain files."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_sysfs import FakeLinks, FakeSysfs, Reacting, fake_machine, hasty
from own_netns import run_in_own_netns

from machnet.dpdk.bind import Machine, bind, unbind, users
from machnet.dpdk.devices import inventory, resolve
from machnet.dpdk.records import Former, Owner, Record, load_all, new_owner, remember

NIC = "0000:00:05.0"
OTHER = "0000:00:06.0"
UUID = "000d3a11-2233-000d-3a11-2233000d3a11"


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[FakeSysfs]:
    """A machine with a NIC that the kernel has, and no userspace driver."""
    made = FakeSysfs(tmp_path)
    made.pci(NIC, "e1000", "eth1", "52:54:00:00:00:02")
    made.virtual("veth0")
    with Reacting(made):
        yield made


@pytest.fixture
def machine(tree: FakeSysfs) -> Machine:
    return fake_machine(tree)


def links(machine: Machine) -> FakeLinks:
    assert isinstance(machine.links, FakeLinks)
    return machine.links


def override(tree: FakeSysfs, address: str = NIC) -> str:
    return (tree.nics[address].path / "driver_override").read_text().strip()


def refused(machine: Machine, name: str = "eth1", driver: str | None = None) -> OSError:
    with pytest.raises(OSError) as caught:
        bind(name, driver, machine=machine)
    return caught.value


# ---- bind ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["eth1", NIC, "00:05.0", "52:54:00:00:00:02"])
def test_bind_and_give_back(tree: FakeSysfs, machine: Machine, name: str) -> None:
    tree.load("uio_pci_generic")
    device = bind(name, machine=machine)
    assert (device.state, device.driver, device.former) == (
        "userspace",
        "uio_pci_generic",
        ("eth1",),
    )
    assert tree.driver(NIC) == "uio_pci_generic"
    assert not (tree.sys / "class/net/eth1").exists()
    assert resolve("eth1", sysfs=tree.sysfs, run=tree.run).devargs == NIC

    assert unbind(name, machine=machine) == []
    assert tree.driver(NIC) == "e1000"
    assert override(tree) == ""
    assert [one.interfaces for one in inventory(tree.sysfs, tree.run)] == [("eth1",), ("veth0",)]
    assert load_all(tree.run) == {}


def test_with_an_iommu_it_is_vfio(tree: FakeSysfs, machine: Machine) -> None:
    tree.pci(OTHER, "virtio-pci", "eth2", "52:54:00:00:00:03", group=4, virtio=1)
    tree.load("vfio-pci")
    tree.load("uio_pci_generic")
    assert bind("eth2", machine=machine).driver == "vfio-pci"
    assert unbind("eth2", machine=machine) == []
    assert tree.driver(OTHER) == "virtio-pci"


def test_without_an_iommu_it_is_vfio_if_that_is_permitted(
    tree: FakeSysfs, machine: Machine
) -> None:
    tree.load("vfio-pci")
    tree.load("uio_pci_generic")
    tree.noiommu = True
    mode = tree.sys / "module/vfio/parameters/enable_unsafe_noiommu_mode"
    mode.parent.mkdir(parents=True)
    mode.write_text("N\n")
    assert bind("eth1", machine=machine).driver == "uio_pci_generic"
    unbind("eth1", machine=machine)
    mode.write_text("Y\n")
    assert bind("eth1", machine=machine).driver == "vfio-pci"


def test_igb_uio_where_it_is_what_there_is(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("igb_uio")
    assert bind("eth1", machine=machine).driver == "igb_uio"


def test_a_driver_is_loaded_when_it_is_not_there(tree: FakeSysfs, machine: Machine) -> None:
    asked: list[str] = []

    def load(driver: str) -> str:
        asked.append(driver)
        tree.load(driver)
        return ""

    machine = dataclasses.replace(machine, load=load)
    assert bind("eth1", machine=machine).driver == "uio_pci_generic"
    assert asked == ["uio_pci_generic"]
    assert unbind("eth1", machine=machine) == []


def test_a_nic_of_hyper_v(tree: FakeSysfs, machine: Machine) -> None:
    tree.vmbus(UUID, "eth3")
    tree.load("hv_netvsc", "vmbus")  # its control files are watched from now on
    tree.load("uio_hv_generic", "vmbus")
    assert bind("eth3", machine=machine).driver == "uio_hv_generic"
    assert resolve("eth3", sysfs=tree.sysfs, run=tree.run).devargs == f"vmbus:{UUID}"
    assert unbind("eth3", machine=machine) == []
    assert tree.driver(UUID) == "hv_netvsc"


def test_one_that_is_bound_stays_as_it_is(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    bind("eth1", machine=machine)
    before = load_all(tree.run)
    assert bind("eth1", machine=machine).driver == "uio_pci_generic"
    assert bind("eth1", "uio_pci_generic", machine=machine).driver == "uio_pci_generic"
    assert load_all(tree.run) == before


def test_from_one_userspace_driver_to_another(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    tree.load("igb_uio")
    bind("eth1", machine=machine)
    device = bind("eth1", "igb_uio", machine=machine)
    assert (device.driver, device.former) == ("igb_uio", ("eth1",))
    assert unbind("eth1", machine=machine) == []
    assert tree.driver(NIC) == "e1000"


def test_one_without_a_driver(tree: FakeSysfs, machine: Machine) -> None:
    tree.pci(OTHER, "e1000", bound=False)
    tree.load("uio_pci_generic")
    assert bind(OTHER, machine=machine).driver == "uio_pci_generic"
    assert unbind(OTHER, machine=machine) == []


# ---- what the kernel uses ------------------------------------------------------------------------


def test_a_nic_that_this_machine_needs_is_not_taken(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    links(machine).default.add("eth1")
    links(machine).known["eth1"] = Former(
        "eth1", "52:54:00:00:00:02", True, 1500, ("10.0.2.15/24",)
    )
    error = refused(machine)
    assert error.errno == errno.EBUSY
    assert error.strerror == (
        "eth1 (0000:00:05.0): the kernel uses it: it carries the default route, it has the address "
        "10.0.2.15/24. `machnet nic bind --force eth1` takes it all the same"
    )
    assert tree.driver(NIC) == "e1000"
    assert load_all(tree.run) == {}
    assert bind("eth1", force=True, machine=machine).driver == "uio_pci_generic"


def test_a_nic_of_another_namespace_is_not_taken(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    links(machine).elsewhere.add("eth1")
    assert "it is in another network namespace, and nobody here sees what for" in str(
        refused(machine)
    )
    assert bind("eth1", force=True, machine=machine).driver == "uio_pci_generic"


def test_one_at_a_time(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    bind("eth1", machine=machine)
    with (Path(tree.run) / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for call in (bind, unbind):
            with pytest.raises(OSError, match="another process is changing the driver of a NIC"):
                call("eth1", machine=machine)
    assert unbind("eth1", machine=machine) == []


def test_a_port_of_a_bridge_is_not_taken(tree: FakeSysfs, machine: Machine) -> None:
    tree.virtual("br0")
    (tree.sys / "class/net/eth1/master").symlink_to("../../../../virtual/net/br0")
    assert "the kernel uses it: it is a port of br0. " in str(refused(machine))


def test_its_addresses_come_back(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    was = Former("eth1", "52:54:00:00:00:02", True, 9000, ("10.0.2.15/24", "fd00::5/64"))
    links(machine).known["eth1"] = was
    bind("eth1", force=True, machine=machine)
    assert load_all(tree.run)[NIC].interfaces == (was,)
    tree.nics[NIC].ports = [("eth0", "52:54:00:00:00:02")]  # the kernel counts anew
    assert unbind("eth1", machine=hasty(machine)) == []
    assert links(machine).restored == [(was, "eth0")]


def test_what_does_not_come_back_is_said(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    bind("eth1", machine=machine)
    links(machine).refusal = OSError(errno.EPERM, "Operation not permitted")
    assert unbind("eth1", machine=machine) == [
        "eth1: it is the kernel's again, but not quite as it was: Operation not permitted"
    ]
    links(machine).refusal = None
    bind("eth1", machine=machine)
    tree.nics[NIC].ports = []
    assert unbind("eth1", machine=hasty(machine)) == [
        "eth1 (0000:00:05.0): its interface did not come back"
    ]
    assert load_all(tree.run) == {}


# ---- refusals ------------------------------------------------------------------------------------


def test_no_driver_and_no_iommu(machine: Machine) -> None:
    error = refused(machine)
    assert error.errno == errno.ENODEV
    text = str(error.strerror)
    assert text.startswith(
        "eth1 (0000:00:05.0): no userspace driver is loaded: `modprobe uio_pci_generic` "
        "(Module uio_pci_generic not found.). vfio-pci needs an IOMMU, and the kernel has none"
    )
    assert "enable_unsafe_noiommu_mode` lets vfio-pci do without" in text


def test_no_driver_though_there_is_an_iommu(tree: FakeSysfs, machine: Machine) -> None:
    tree.pci(OTHER, "e1000", "eth2", group=1)
    assert refused(machine, "eth2").strerror == (
        "eth2 (0000:00:06.0): no userspace driver is loaded: `modprobe vfio-pci` "
        "(Module vfio-pci not found.)."
    )


def test_vfio_without_an_iommu(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("vfio-pci")
    error = refused(machine, driver="vfio-pci")
    assert error.errno == errno.ENODEV
    assert "vfio-pci needs an IOMMU" in str(error)
    assert "`modprobe uio_pci_generic` loads a driver that needs none" in str(error)


@pytest.mark.parametrize("driver", ["e1000", "", "../x", "uio_hv_generic"])
def test_no_such_driver(machine: Machine, driver: str) -> None:
    with pytest.raises(ValueError) as caught:
        bind("eth1", driver, machine=machine)
    assert str(caught.value) == (
        f"driver {driver!r}: on the pci bus it is vfio-pci or uio_pci_generic or igb_uio"
    )


def test_an_iommu_group_is_taken_whole(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("vfio-pci")
    tree.pci(OTHER, "e1000", "eth2", "52:54:00:00:00:03", group=3)
    tree.pci("0000:00:07.0", "e1000", "eth3", "52:54:00:00:00:04", group=3)
    tree.pci("0000:00:08.0", "pcieport", kind="0x060400", group=3)
    error = refused(machine, "eth2")
    assert error.errno == errno.EBUSY
    assert error.strerror == (
        "eth2 (0000:00:06.0): its IOMMU group 3 also has 0000:00:07.0 (e1000): vfio-pci hands over whole "
        "groups. Name all of them in one `machnet nic bind`, if they are NICs; another slot, if not"
    )
    both = (OTHER, "0000:00:07.0")
    bind("eth2", together=both, machine=machine)
    with pytest.raises(OSError, match=r"group 3 also has 0000:00:07\.0 \(e1000\)"):
        resolve("eth2", sysfs=tree.sysfs, run=tree.run)
    bind("eth3", together=both, machine=machine)
    assert resolve("eth2", sysfs=tree.sysfs, run=tree.run).devargs == OTHER


def test_a_virtual_interface_has_nothing_to_bind(machine: Machine) -> None:
    assert refused(machine, "veth0").strerror == (
        "veth0: a virtual interface has no driver to change; DPDK uses it as it is: --nic veth0"
    )


def test_a_bifurcated_driver_has_nothing_to_bind(tree: FakeSysfs, machine: Machine) -> None:
    tree.pci(OTHER, "mlx5_core", "enp6")
    for call in (bind, unbind):
        with pytest.raises(OSError) as caught:
            call("enp6", machine=machine)
        assert caught.value.strerror == (
            "enp6 (0000:00:06.0): mlx5_core serves the kernel and DPDK at once, there is nothing to "
            "bind: --nic enp6"
        )


def test_another_bus(tree: FakeSysfs, machine: Machine) -> None:
    tree.other("usb0", "usb")
    assert "it is on the usb bus, for which DPDK has no drivers" in str(refused(machine, "usb0"))


def test_not_a_nic(tree: FakeSysfs, machine: Machine) -> None:
    tree.pci(OTHER, "ahci", kind="0x010601")
    assert "0000:00:06.0 is no network device: its class is 0x010601" in str(
        refused(machine, OTHER)
    )
    assert "there is no NIC 'eth9': did you mean 'eth1'?" in str(refused(machine, "eth9"))


def test_not_root(tree: FakeSysfs, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    error = refused(machine)
    assert error.errno == errno.EPERM
    assert str(error.strerror).endswith("changing the driver of a NIC takes root: sudo")
    assert not Path(tree.run).exists()


def test_a_sysfs_that_is_read_only(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    error = refused(machine)
    assert error.errno == errno.EROFS
    assert str(error.strerror).endswith("can't be written, as in a container; bind it outside")


def test_a_kernel_without_driver_override(tree: FakeSysfs, machine: Machine) -> None:
    (tree.nics[NIC].path / "driver_override").unlink()
    assert "this kernel is too old: there is no " in str(refused(machine))


def test_a_driver_that_does_not_take_it(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    tree.refusing.add("uio_pci_generic")
    error = refused(hasty(machine))
    assert error.errno == errno.EIO
    assert error.strerror == (
        "eth1 (0000:00:05.0): uio_pci_generic did not take it: the kernel does not say why; `dmesg` may. "
        "It needs a NIC with a legacy interrupt, which virtual functions have not"
    )
    # All is as it was.
    assert tree.driver(NIC) == "e1000"
    assert override(tree) == ""
    assert (tree.sys / "class/net/eth1").exists()
    assert load_all(tree.run) == {}


# ---- give back -----------------------------------------------------------------------------------


def test_what_was_bound_by_others_is_given_back_too(tree: FakeSysfs, machine: Machine) -> None:
    nic = tree.nics[NIC]
    tree.load("vfio-pci")
    tree.detach(nic)
    tree.attach(nic, "vfio-pci")
    assert unbind("00:05.0", machine=machine) == []
    assert tree.driver(NIC) == "e1000"


def test_what_the_kernel_has_is_left_alone(tree: FakeSysfs, machine: Machine) -> None:
    assert unbind("eth1", machine=machine) == []
    assert (tree.driver(NIC), override(tree)) == ("e1000", "")


def test_a_driver_that_was_told_of_this_kind_of_device_does_not_get_it_again(
    tree: FakeSysfs, machine: Machine
) -> None:
    tree.load("uio_pci_generic")
    bind("eth1", machine=machine)
    tree.nics[NIC].native = "uio_pci_generic"  # what the kernel chooses by itself now
    tree.nics[NIC].ports, ports = [], tree.nics[NIC].ports
    assert ports
    assert unbind("eth1", machine=hasty(machine)) == [
        "eth1 (0000:00:05.0): its interface did not come back"
    ]
    assert tree.driver(NIC) == "e1000"


def test_nobody_takes_it_back(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    bind("eth1", machine=machine)
    tree.refusing.add("e1000")
    with pytest.raises(OSError, match="no driver of the kernel took it") as caught:
        unbind("eth1", machine=hasty(machine))
    assert caught.value.errno == errno.EIO
    # It is still known as eth1, so that it can be tried again.
    tree.refusing.clear()
    assert unbind("eth1", machine=machine) == []
    assert tree.driver(NIC) == "e1000"


def test_a_nic_that_a_process_has_open(tree: FakeSysfs, machine: Machine) -> None:
    tree.pci(OTHER, "e1000", "eth2", group=3)
    tree.load("vfio-pci")
    bind("eth2", machine=machine)
    folder = Path(machine.proc) / "4711/fd"
    folder.mkdir(parents=True)
    (folder / "5").symlink_to("/dev/vfio/3")
    assert users(machine.find("eth2"), machine) == [4711]
    with pytest.raises(OSError, match="process 4711 has it open; end it first") as caught:
        unbind("eth2", machine=machine)
    assert caught.value.errno == errno.EBUSY
    assert unbind("eth2", force=True, machine=machine) == []


def test_who_has_it_open_by_uio(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    bind("eth1", machine=machine)
    (tree.nics[NIC].path / "uio/uio2").mkdir(parents=True)
    folder = Path(machine.proc) / "4712/fd"
    folder.mkdir(parents=True)
    (folder / "3").symlink_to("/dev/uio2")
    assert users(machine.find("eth1"), machine) == [4712]


# ---- records and interfaces ----------------------------------------------------------------------


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    run = str(tmp_path / "a/nic")
    former = Former("eth1", "52:54:00:00:00:02", True, 9000, ("10.0.0.1/24",))
    record = Record(NIC, "pci", "e1000", "vfio-pci", (former,), new_owner())
    remember(record, run)
    remember(dataclasses.replace(record, owner=None), run)
    remember(record, run)
    assert load_all(run) == {NIC: record}
    assert [path.name for path in Path(run).iterdir()] == [f"{NIC}.json"]


def test_an_owner_is_alive_until_it_ends() -> None:
    assert new_owner().alive()
    assert not dataclasses.replace(new_owner(), started=1).alive()
    process = subprocess.Popen([sys.executable, "-c", ""])
    started = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not Owner(process.pid, started).alive()  # a zombie
    process.wait()
    assert not Owner(process.pid, started).alive()


LINKS = """
import json, sys
from pyroute2 import IPRoute
from machnet.dpdk.links import Links
from machnet.dpdk.records import Former
ip, links = IPRoute(), Links()
ip.link("add", ifname="d0", kind="veth", peer={"ifname": "d1"})
ip.link("set", index=ip.link_lookup(ifname="d1")[0], state="up")
index = ip.link_lookup(ifname="d0")[0]
mac = "02:00:00:00:00:01"
assert links.here("d0") and not links.here("nowhere")
print(links.former("d0", mac), links.former("nowhere", mac), links.has_default_route("d0"))
was = Former("eth7", mac, True, 1400, ("10.9.0.1/24", "fd09::1/64"))
links.restore(was, "d0")
links.restore(was, "eth7")
now = links.former("eth7", mac)
assert now == was, now
seen = {(a.get("IFA_LOCAL") or a.get("IFA_ADDRESS"), a["prefixlen"]) for a in ip.get_addr(index=index)}
assert {("10.9.0.1", 24), ("fd09::1", 64)} <= seen, seen
link = ip.link("get", index=index)[0]
assert (link.get("ifname"), link.get("mtu"), link["state"]) == ("eth7", 1400, "up"), link
ip.route("add", dst="default", gateway="10.9.0.2")
print(links.has_default_route("eth7"), links.has_default_route("d1"))
ip.route("del", dst="default", gateway="10.9.0.2")
ip.route("add", dst="::/0", family=10, oif=index)
print(links.has_default_route("eth7"), links.has_default_route("d1"))
try:
    links.restore(was, "nowhere")
except OSError as error:
    print(error.errno)
"""


def test_interfaces_of_a_host_are_restored() -> None:
    """In a network namespace of its own."""
    mac = "02:00:00:00:00:01"
    assert run_in_own_netns(LINKS) == [
        f"{Former('d0', mac, mtu=1500)} {Former('nowhere', mac)} False",
        "True False",
        "True False",
        str(errno.ENODEV),
    ]


def test_no_record_is_written_or_believed_where_others_could_lead_root(tmp_path: Path) -> None:
    record = Record(NIC, "pci", "e1000", "vfio-pci")
    real, link = tmp_path / "real", tmp_path / "link"
    remember(record, str(real))
    link.symlink_to(real)
    with pytest.raises(OSError, match="link"):
        remember(record, str(link))
    assert load_all(str(link)) == {}
    secret = tmp_path / "secret"
    secret.write_text("kept")
    (real / f"{NIC}.{os.getpid()}.new").symlink_to(secret)
    with pytest.raises(OSError, match="symbolic"):
        remember(record, str(real))
    assert secret.read_text() == "kept"
    real.chmod(0o770)
    with pytest.raises(OSError, match="others than root can write to it"):
        remember(record, str(real))
    assert load_all(str(real)) == {}


def test_the_lock_is_no_way_to_another_file(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    folder = Path(machine.run)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = folder.parent / "made"
    (folder / "lock").symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        bind("eth1", machine=machine)
    assert not target.exists()

# SPDX-License-Identifier: MIT
"""What is done with a guest, step by step: each takes the lab and says in a few words what it saw."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import signal
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

from guest import PCI, Command, Guest, GuestError
from lab import (
    GUEST_IP,
    KERNEL_IP,
    NIC,
    OTHER_IP,
    PATIENCE_S,
    PEER_NIC,
    HostCommand,
    Lab,
    installed,
)

ROOT = Path(__file__).resolve().parent.parent.parent
PORTABLE = ROOT / "tests" / "portable"
#: Of each experiment: enough to go round all rings, little enough for an emulated processor.
MESSAGES = 2_000
SUITE_S = 400.0

Step = Callable[[Lab], str]


def need(condition: bool, what: str) -> None:
    """Raise GuestError unless something is so."""
    if not condition:
        raise GuestError(what)


# --- drivers ------------------------------------------------------------------------------------


def driver_now(lab: Lab) -> str:
    """The kernel's driver that has the NIC; empty for none."""
    link = f"/sys/bus/pci/devices/{PCI[NIC]}/driver"
    return lab.run("sh", "-c", f"readlink {link} || true").strip().rpartition("/")[2]


def wait_for_interface(lab: Lab) -> None:
    """Wait until the kernel of the guest has the NIC."""
    lab.run("sh", "-c", f"until ip link show {NIC}; do sleep 0.1; done")


def row_of_nic(lab: Lab) -> dict[str, object]:
    """What `machnet nic list` says of the NIC."""
    rows = json.loads(lab.run("machnet", "nic", "list", "--json"))
    found = [row for row in rows if row["address"] == PCI[NIC]]
    need(len(found) == 1, f"{PCI[NIC]} is not listed once: {rows}")
    return dict(found[0])


def bind(lab: Lab) -> str:
    """Give both NICs to DPDK."""
    lab.run("machnet", "nic", "bind", NIC, PEER_NIC, f"--driver={lab.driver}")
    need(driver_now(lab) == lab.driver, f"after bind the driver is {driver_now(lab)!r}")
    return lab.driver


def refused_until_bound(lab: Lab) -> str:
    """The NIC has its kernel driver: it is listed, refused with the command that helps, and bound."""
    row = row_of_nic(lab)
    need(row["state"] == "kernel", f"not the kernel's at first: {row}")
    said = lab.run(
        "python", "-c", f"import machnet; machnet.Stack('{NIC}', '{GUEST_IP}')", status=None
    )
    need(f"machnet nic bind {NIC}" in said, f"the refusal names no command:\n{said}")
    bind(lab)
    row = row_of_nic(lab)
    need(row["state"] == "userspace", f"not DPDK's after bind: {row}")
    return f"refused, then bound to {lab.driver}"


def unbind(lab: Lab) -> str:
    """Return both NICs to the kernel."""
    lab.run("machnet", "nic", "unbind", NIC, PEER_NIC)
    need(driver_now(lab) == lab.machine.driver, f"after unbind: {driver_now(lab)!r}")
    lab.run("ip", "link", "show", NIC)
    return f"back with {lab.machine.driver}"


def given_back_after_a_crash(lab: Lab) -> str:
    """`--bind` binds the NIC for a run; the kernel has it again although the run was killed."""
    need(driver_now(lab) == lab.machine.driver, "the NIC is not the kernel's at first")
    sidecar = start_sidecar(lab, "--bind")
    need(driver_now(lab) == lab.driver, f"--bind bound it to {driver_now(lab)!r}")
    sidecar.send_signal(signal.SIGKILL)
    sidecar.wait()
    wait_for_interface(lab)
    need(driver_now(lab) == lab.machine.driver, f"given back to {driver_now(lab)!r}")
    return "bound for a run, given back after SIGKILL"


# --- tests --------------------------------------------------------------------------------------


def portable_tests(lab: Lab) -> str:
    """pytest on the NIC, against the kernel TCP of the host."""
    token = secrets.token_hex(16)
    file = lab.folder / "token"
    file.write_text(token)
    agent = lab.on_host(
        installed("python"),
        *("-m", "machnet.testing.agent", f"--listen={Guest.HOST_IP}:0"),
        *(f"--address={KERNEL_IP}", f"--token-file={file}", "--allow-run"),
    )
    said = "machnet agent: listening on "
    agent.expect(f"{Guest.HOST_IP}:")
    where = agent.output.partition(said)[2].split()[0]
    # Plugins that are not needed cost seconds to import here.
    suite = lab.start(
        *("python", "-m", "pytest", "-c", "/dev/null", f"--rootdir={PORTABLE}"),
        *(f"--confcutdir={PORTABLE}", "-rs", "-q", "--durations=8"),
        *("--import-mode=importlib", "-p", "no:cacheprovider", "-p", "pytest_machnet.plugin"),
        *("-p", "pytest_timeout", "--timeout=120", f"--junitxml={lab.folder}/report.xml"),
        *(f"--machnet-nic={NIC}", f"--machnet-ip={GUEST_IP}/24", f"--machnet-peer=tcp://{where}"),
        f"--machnet-peer-nic={PEER_NIC}",
        str(PORTABLE),
        MACHNET_AGENT_TOKEN=token,
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
    )
    status = suite.wait(SUITE_S)
    need(status == 0, f"pytest: status {status}\n{suite.output}")
    need(agent.stop() in {0, -15, 143}, f"the agent failed:\n{agent.output}")
    found = re.search(r"\d+ passed.*?(?= in )", suite.output)
    need(found is not None, f"pytest's last line is not as known:\n{suite.output}")
    assert found is not None
    return found[0]


# --- experiments --------------------------------------------------------------------------------


def start_sidecar(lab: Lab, *flags: str) -> Command:
    """A sidecar in the guest that is ready."""
    address = (f"--nic={NIC}", f"--ip={GUEST_IP}/24", f"--engine_threads={lab.machine.queues}")
    sidecar = lab.start("machnet", "run", *address, "--drain_ms=100", *flags)
    sidecar.expect("ready", PATIENCE_S)
    return sidecar


def check_pair(
    client: Command | HostCommand, server: Command | HostCommand, messages: int | None = MESSAGES
) -> None:
    """Every message was answered, and rightly; so many, or any number."""
    status = client.wait()
    said = f"client:\n{client.output}\nserver:\n{server.output}"
    need(status == 0, f"the client ended with status {status}\n{said}")
    server.send_signal(signal.SIGINT)
    status = server.wait()
    said = f"client:\n{client.output}\nserver:\n{server.output}"
    need(status == 0, f"the server ended with status {status}\n{said}")
    answered = client.figures()["rx_msgs"]
    need(server.figures()["tx_msgs"] == answered == (messages or answered) > 0, said)


def experiments(lab: Lab) -> str:
    """Experiments 1, 2 and 3, the sidecar of the guest on one side."""
    sidecar = start_sidecar(lab)
    common = ("--json", "--verify", "--msg_size=64")
    client = ("--msg_window=8", f"--msg_nr={MESSAGES}")
    own = ("msg_gen", "--protocol=tcp", f"--local_ip={GUEST_IP}", *common)

    # 1: the host's kernel asks, and is answered by machnet in the guest
    server: Command | HostCommand = lab.start(*own)
    server.expect("[LISTENING]")
    check_pair(
        lab.on_host(installed("tcp_msg_gen"), f"--remote_ip={GUEST_IP}", *common, *client), server
    )

    # 3: the guest asks the host's kernel
    server = lab.on_host(installed("tcp_msg_gen"), *common)
    server.expect("[LISTENING]")
    check_pair(lab.start(*own, f"--remote_ip={KERNEL_IP}", *client), server)

    # 2: machnet on both sides
    tap = (f"--nic=tap:fd={lab.tap}", f"--local_ip={OTHER_IP}", "--protocol=tcp", *common)
    server = lab.on_host(installed("msg_gen"), *tap, fds=[lab.tap])
    server.expect("[LISTENING]")
    check_pair(lab.start(*own, f"--remote_ip={OTHER_IP}", *client), server)

    need(sidecar.stop() == 0, f"the sidecar failed:\n{sidecar.output}")
    return f"1, 2 and 3, {MESSAGES} messages each"


def both_queues(lab: Lab) -> str:
    """Connections are spread over the card's queues, each of which has an engine."""
    sidecar = start_sidecar(lab)
    server = lab.start("msg_gen", "--protocol=tcp", f"--local_ip={GUEST_IP}")
    server.expect("[LISTENING]")
    request = struct.pack(">I", 64) + bytes(64)
    with contextlib.ExitStack() as exits:
        # All on one queue: once in 2 ** 23 runs.
        for _ in range(24):
            sock = exits.enter_context(lab.host.socket())
            sock.settimeout(PATIENCE_S)
            sock.connect((GUEST_IP, 888))
            sock.sendall(request)
            need(len(sock.recv(68, socket.MSG_WAITALL)) == 68, "an answer was cut off")
        engines = json.loads(lab.run("machnet", "stat", "--json"))["engines"]
    received = [engine["stats"]["rx_frames"] for engine in engines]
    need(len(received) == lab.machine.queues and all(received), f"frames of each queue: {received}")
    server.stop()
    need(sidecar.stop() == 0, f"the sidecar failed:\n{sidecar.output}")
    return f"frames received: {received}"


# --- what goes away and comes back ---------------------------------------------------------------


def seconds_of(client: HostCommand) -> list[int]:
    """How many replies came in each second that is over."""
    lines = [line for line in client.output.splitlines(keepends=True) if line.startswith("{")]
    return [json.loads(line)["rx_msgs"] for line in lines if line.endswith("\n")]


def wait_for_replies(client: HostCommand) -> None:
    """Wait for a whole second in which there were replies."""
    end = time.monotonic() + PATIENCE_S
    # The second that is under way now has replies of before.
    known = len(seconds_of(client)) + 1
    while not any(seconds_of(client)[known:]):
        need(time.monotonic() < end, f"no replies within {PATIENCE_S:g} s:\n{client.output}")
        time.sleep(0.1)


def pulled_out(lab: Lab) -> str:
    """The cable is pulled, then the NIC, while messages pass; both come back, and so do the messages."""
    sidecar = start_sidecar(lab)
    own = ("--protocol=tcp", f"--local_ip={GUEST_IP}")
    server = lab.start("msg_gen", *own, "--json", "--verify")
    server.expect("[LISTENING]")
    client = lab.on_host(
        installed("tcp_msg_gen"), f"--remote_ip={GUEST_IP}", "--json", "--verify", "--msg_window=1"
    )
    wait_for_replies(client)

    lab.guest.set_cable(NIC, plugged=False)
    sidecar.expect("link=down")
    lab.guest.set_cable(NIC, plugged=True)
    sidecar.expect("nic_link")
    wait_for_replies(client)

    lab.guest.unplug(NIC)
    sidecar.expect("nic_unplugged")
    lab.guest.plug(NIC)
    wait_for_interface(lab)
    lab.run("machnet", "nic", "bind", NIC, f"--driver={lab.driver}")
    sidecar.expect("nic_back")
    wait_for_replies(client)

    (port,) = json.loads(lab.run("machnet", "stat", "--json"))["ports"]
    counted = {name: port["stats"][name] for name in ("unplugged", "replugged")}
    need(counted == {"unplugged": 1, "replugged": 1}, f"counted: {port}")
    client.send_signal(signal.SIGINT)
    check_pair(client, server, None)
    need(sidecar.stop() == 0, f"the sidecar failed:\n{sidecar.output}")
    return "cable and NIC were missed and came back, the connection lived on"

# SPDX-License-Identifier: MIT
"""A port that goes through a packet socket, and the kernel at its other end."""

from __future__ import annotations

from dpdk_kit import KERNEL_IP, OUR_IP, wait_for

import machnet

CLIENT = f"""
import socket, struct
with socket.create_connection(("{OUR_IP}", 888), timeout=20) as sock:
    for size in (0, 1, 5000, 200_000):
        sock.sendall(struct.pack(">I", size) + b"x" * size)
        want = size + 4
        while want:
            want -= len(sock.recv(want))
print("done")
"""

SERVER = f"""
import socket
with socket.create_server(("{KERNEL_IP}", 99)) as listener:
    print("up", flush=True)
    print(listener.accept()[0].recv(9))
"""


def test_the_kernel_talks_to_a_server_on_it(veth):
    with machnet.Stack(veth.nic, ip=f"{OUR_IP}/24", thread=True) as stack, stack.attach() as ch:
        ch.listen(OUR_IP, 888, protocol="tcp")
        client = veth.popen("python3", "-c", CLIENT, stdout=-1)
        for _ in range(4):
            message = ch.recv(timeout=20)
            ch.send(message.flow, message.data, timeout=20)
        assert client.communicate(timeout=20)[0] == "done\n"
        assert stack.nic.driver == "net_af_packet"
        stats = stack.nic.stats()
        assert stats["rx_frames"] == stats["ipackets"] > 4
        assert stats["tx_frames"] == stats["opackets"] > 4
        assert stack.nic.link()[0]


def test_a_device_that_is_pulled_out_and_put_in_again_goes_on(veth):
    with machnet.Stack(veth.nic, ip=f"{OUR_IP}/24", thread=True) as stack, stack.attach() as ch:
        mac = stack.nic.mac
        veth.unplug()
        stack.nic.look()
        assert not stack.nic.link()[0]
        assert not stack.nic.info()["present"]
        veth.plug_in()
        stack.nic.look()
        wait_for(lambda: stack.nic.link()[0])  # the kernel tells of links in its own time
        assert stack.nic.mac == mac
        stats = stack.nic.stats()
        assert (stats["unplugged"], stats["replugged"]) == (1, 1)
        server = veth.popen("python3", "-c", SERVER, stdout=-1)
        assert server.stdout.readline() == "up\n"
        flow = ch.connect(OUR_IP, KERNEL_IP, 99, protocol="stream", timeout=20)
        flow.send(b"again")
        assert server.communicate(timeout=20)[0] == "b'again'\n"

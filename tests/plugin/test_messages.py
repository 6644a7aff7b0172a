# SPDX-License-Identifier: MIT
"""The fixtures with the message transport over UDP, which is the default one."""

from __future__ import annotations

from plugin_runs import ECHO


def test_the_example_over_udp_for_many_seeds(outer):
    source = ECHO.replace('protocol="tcp"', 'protocol="udp"')
    assert source != ECHO
    outer(source, "--machnet-sim", "--machnet-seeds=20").assert_outcomes(passed=20)


def test_udp_is_the_default_and_hosts_of_all_kinds_speak_it(outer):
    source = """
        import pytest

        @pytest.mark.machnet(loss=0.1, reorder=0.05, duplicate=0.05, corrupt=0.01)
        def test_messages(machnet_channel, machnet_host, machnet_peer):
            ch = machnet_channel()
            for host in [machnet_peer, machnet_host(), machnet_host()]:
                server = host.attach()
                server.listen(host.ip, 7000)
                flow = ch.connect(ch.ip, host.ip, 7000, timeout=10)
                assert flow.protocol == "udp"
                for size in (1, 2000, 100_000):
                    ch.send(flow, bytes(size))
                    message = server.recv(timeout=10)
                    assert message.data == bytes(size)
                    server.send(message.flow, bytes(size // 2 + 1))
                    assert ch.recv(timeout=10).data == bytes(size // 2 + 1)
    """
    outer(source, "--machnet-seeds=5").assert_outcomes(passed=5)


def test_a_scripted_peer_speaks_plain_mode(outer):
    source = """
        import struct
        from machnet.testing import udp

        def plain(kind, seq, ack, flags=0, payload=b""):
            return struct.pack(">HBBII42x", 0x4e53, kind, flags, seq, ack) + payload

        def test_listener(machnet_channel, raw_peer):
            ch = machnet_channel()
            ch.listen(ch.ip, 888)
            raw_peer.send(udp(sport=1024, dport=888, payload=plain(1, 0, 0)))
            answer = raw_peer.expect(udp(sport=888, dport=1024), within="1ms").payload
            kind, seq, ack = answer[2], *struct.unpack(">II", answer[4:12])
            assert (kind, ack) == (3, 1) and answer[12:54] == bytes(42)
            raw_peer.send(udp(sport=1024, dport=888, payload=plain(2, 1, seq + 1)))
            data = plain(0, 1, 0xFFFFFFFF, 5, b"hello")
            raw_peer.send(udp(sport=1024, dport=888, payload=data))
            assert ch.recv(timeout=1).data == b"hello"
            raw_peer.expect(udp(payload=plain(2, (seq + 1) % 2**32, 2)), within="1ms")
    """
    outer(source, "--machnet-seeds=3").assert_outcomes(passed=3)


def test_asyncio_over_udp(outer):
    source = """
        import asyncio
        import machnet
        from machnet import aio

        def test_aio(machnet_net, machnet_peer, machnet_channel):
            local = machnet_channel().stack

            async def serve():
                async with aio.attach(machnet_peer.stack) as ch:
                    ch.listen(machnet_peer.ip, 7000)
                    while True:
                        message = await ch.recv()
                        await ch.send(message.flow, message.data.upper())

            async def main():
                task = asyncio.ensure_future(serve())
                async with aio.attach(local) as ch:
                    flow = await ch.connect(local.ip, machnet_peer.ip, 7000, timeout=5)
                    await asyncio.sleep(60)
                    await ch.send(flow, b"hello")
                    assert (await ch.recv(timeout=5)).data == b"HELLO"
                task.cancel()

            machnet_net.run(main())
    """
    outer(source).assert_outcomes(passed=1)


def test_a_failure_shows_the_datagrams(outer):
    source = """
        def test_fails(machnet_channel, machnet_peer):
            server = machnet_peer.attach()
            server.listen(machnet_peer.ip, 7000)
            ch = machnet_channel()
            flow = ch.connect(ch.ip, machnet_peer.ip, 7000, timeout=5)
            ch.send(flow, b"ping")
            assert server.recv(timeout=5).data == b"pong"
    """
    result = outer(source)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*.7000: *MNP SYN *", "*.7000: *MNP DATA *"])

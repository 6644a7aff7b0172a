# SPDX-License-Identifier: MIT
"""`machnet ping` and `machnet pktgen` as processes: over a link, and against the Linux kernel."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tcp_tool import Tool, tools

import machnet
from machnet.cli import ping, pktgen
from machnet.sim import KernelHost
from machnet.testing import RawPeer, TapPort, arp, icmp, udp

KERNEL, OURS = "10.9.0.1", "10.9.0.2"
PING, PKTGEN = "machnet.cli.ping", "machnet.cli.pktgen"
_numbers = itertools.count()


@pytest.fixture
def start() -> Iterator[Callable[..., Tool]]:
    with tools() as starter:
        yield starter


@pytest.fixture
def nic() -> Iterator[str]:
    path = Path(f"/tmp/mn-ping-{os.getpid()}-{next(_numbers)}")
    yield f"link:{path}"
    for left in (path, Path(f"{path}.lock")):
        left.unlink(missing_ok=True)


@pytest.fixture
def bouncer(start: Callable[..., Tool], nic: str) -> Tool:
    tool = start(f"--nic={nic}", f"--ip={OURS}", module=PKTGEN)
    tool.line(r"^\[BOUNCING\] ")
    return tool


def final(tool: Tool, code: int = 0) -> dict[str, Any]:
    ended, out, err = tool.end()
    assert ended == code, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["event"] for line in lines[:-1]] == ["interval"] * (len(lines) - 1)
    assert lines[-1]["event"] == "final"
    assert lines[-1]["exit_code"] == code
    return lines[-1]


class TestPing:
    def test_answers_are_printed_and_summed_up(
        self, start: Callable[..., Tool], bouncer: Tool, nic: str
    ) -> None:
        tool = start(OURS, f"--nic={nic}", f"--ip={KERNEL}", "-c", "3", "-i", "0.02", module=PING)
        code, out, _ = tool.end()
        assert code == 0
        lines = out.splitlines()
        assert lines[0].startswith(f"PING {OURS} from {KERNEL}/24 ({nic}, ")
        for number, line in enumerate(lines[1:4], 1):
            assert re.fullmatch(
                rf"64 bytes from {OURS}: icmp_seq={number} ttl=64 time=\d+\.\d{{3}} ms", line
            )
        assert f"--- {OURS} ping statistics ---" in lines
        assert "3 packets transmitted, 3 received, 0% packet loss" in out
        assert re.search(
            r"^RTT \(us\): min [\d.]+, p50 [\d.]+, .*p99\.99 .*mean", out, re.MULTILINE
        )

    def test_one_after_the_other_as_json(
        self, start: Callable[..., Tool], bouncer: Tool, nic: str
    ) -> None:
        flags = ["--count=500", "--interval=0", "--size=1472", "--json"]
        end = final(start(OURS, f"--nic={nic}", f"--ip={KERNEL}", *flags, module=PING))
        assert (end["tx_packets"], end["rx_packets"], end["answered"]) == (500, 500, 500)
        assert (end["lost"], end["payload_faults"], end["duplicates"]) == (0, 0, 0)
        assert end["tx_bytes"] == 500 * 1514
        assert end["latency_samples"] == 500
        assert end["parameters"]["interval_s"] == 0
        assert end["parameters"]["size_bytes"] == 1472
        assert end["ended"] == "count"

    def test_losses_are_counted_and_told(
        self, start: Callable[..., Tool], bouncer: Tool, nic: str
    ) -> None:
        # The first frame through the fault layer is the question for the address.
        flags = ["-c", "40", "-i", "0.005", "-W", "0.2"]
        tool = start(OURS, f"--nic={nic}?rx.loss=30%&seed=3", f"--ip={KERNEL}", *flags, module=PING)
        code, out, _ = tool.end()
        assert code == 0
        found = re.search(r"40 packets transmitted, (\d+) received, ([\d.]+)% packet loss", out)
        assert found
        assert 10 < int(found[1]) < 40
        assert float(found[2]) == pytest.approx(100 * (40 - int(found[1])) / 40)
        assert out.count("no answer to icmp_seq=") == 40 - int(found[1])

    def test_ctrl_c_ends_it_with_the_summary(
        self, start: Callable[..., Tool], bouncer: Tool, nic: str
    ) -> None:
        tool = start(OURS, f"--nic={nic}", f"--ip={KERNEL}", module=PING)
        tool.line("icmp_seq=1 ")
        tool.signal(signal.SIGINT)
        code, out, _ = tool.end()
        assert code == 0
        assert "received, 0% packet loss" in out

    def test_nobody_answers_to_the_address(
        self, start: Callable[..., Tool], bouncer: Tool, nic: str
    ) -> None:
        flags = ["--arp_timeout=0.1", "--json"]
        tool = start("10.9.0.77", f"--nic={nic}", f"--ip={KERNEL}", *flags, module=PING)
        end = final(tool, 1)
        assert end["error"] == f"nobody answers to 10.9.0.77 on {nic}"
        assert end["arp_requests"] >= 1

    def test_a_machnet_stack_answers(self, start: Callable[..., Tool], nic: str) -> None:
        with machnet.Stack(nic, ip=f"{OURS}/24"):
            end = final(
                start(OURS, f"--nic={nic}", f"--ip={KERNEL}", "-c",
                      "3", "-i", "0.01", "--json", module=PING)
            )  # fmt: skip
        assert (end["rx_packets"], end["lost"]) == (3, 0)

    def test_a_target_in_another_network_wants_a_gateway(
        self, start: Callable[..., Tool], nic: str
    ) -> None:
        code, _, err = start("10.8.0.1", f"--nic={nic}", f"--ip={OURS}", module=PING).end()
        assert (code, err) == (
            1,
            "machnet ping: 10.8.0.1 is outside 10.9.0.0/24: give a --gateway",
        )


class TestKernel:
    """The other end is Linux, over a TAP."""

    @pytest.fixture
    def host(self) -> Iterator[KernelHost]:
        if reason := KernelHost.tap_available():
            pytest.skip(reason)
        with KernelHost("pinged", ipv6=False) as host:
            yield host

    @pytest.fixture
    def flags(self, host: KernelHost) -> Iterator[tuple[int, list[str]]]:
        fd = host.open_tap("mn0", kernel_ip=f"{KERNEL}/24")
        yield fd, [f"--nic=tap:fd={fd}", f"--ip={OURS}/24", "--json"]
        os.close(fd)

    def test_linux_answers_a_ping(
        self, start: Callable[..., Tool], flags: tuple[int, list[str]]
    ) -> None:
        fd, common = flags
        more = ["-c", "50", "-i", "0", "-s", "1000"]
        end = final(start(KERNEL, *common, *more, module=PING, pass_fds=(fd,)))
        assert (end["rx_packets"], end["lost"], end["payload_faults"]) == (50, 0, 0)

    def test_linux_pings_a_bouncer(
        self, start: Callable[..., Tool], host: KernelHost, flags: tuple[int, list[str]]
    ) -> None:
        fd, common = flags
        tool = start(*common, module=PKTGEN, pass_fds=(fd,))
        tool.line(r"^\[BOUNCING\] ", "err")
        with host.socket(type=2) as sock:  # UDP
            sock.settimeout(20)
            sock.connect((OURS, 7))
            for size in (0, 1, 1472):
                data = os.urandom(size)
                sock.send(data)
                assert sock.recv(2000) == data
        tool.signal()
        end = final(tool)
        assert (end["bounced"], end["rx_packets"]) == (3, 3)
        assert end["rx_bytes"] == 3 * 42 + 1473

    def test_linux_says_that_the_port_is_closed(
        self, start: Callable[..., Tool], flags: tuple[int, list[str]]
    ) -> None:
        fd, common = flags
        more = [f"--remote_ip={KERNEL}", "--count=3", "--burst=1", "--timeout=0.1"]
        end = final(start(*common, *more, module=PKTGEN, pass_fds=(fd,)))
        assert (end["tx_packets"], end["rx_packets"], end["lost"]) == (3, 0, 3)
        assert end["unreachable"] == 3


class TestPktgen:
    def test_ping_mode_measures_each_packet(
        self, start: Callable[..., Tool], bouncer: Tool, nic: str, tmp_path: Path
    ) -> None:
        log = tmp_path / "rtt.log"
        flags = [f"--remote_ip={OURS}", "--mode=ping", "--count=300", f"--rtt_log={log}"]
        tool = start(f"--nic={nic}", f"--ip={KERNEL}", *flags, "--histogram", module=PKTGEN)
        code, out, err = tool.end()
        assert code == 0, err
        assert "Packets sent/received: 300/300" in out
        rows = re.findall(r"^  <= +([\d.einf+]+) us +(\d+) #+$", out, re.MULTILINE)
        assert sum(int(count) for _, count in rows) == 300
        lines = [line.split() for line in log.read_text(encoding="ascii").splitlines()]
        assert lines[0] == ["#", "seq", "what", "rtt_ns"]
        assert [(int(seq), what) for seq, what, _ in lines[1:]] == [
            (n, "reply") for n in range(300)
        ]
        assert all(int(ns) > 0 for _, _, ns in lines[1:])
        bouncer.signal()
        code, out, _ = bouncer.end()
        assert code == 0
        assert "Packets sent/received: 300/300" in out

    def test_a_rate_is_kept(self, start: Callable[..., Tool], bouncer: Tool, nic: str) -> None:
        flags = [f"--remote_ip={OURS}", "--rate=1000", "--count=300", "--size=1514", "--json"]
        end = final(start(f"--nic={nic}", f"--ip={KERNEL}", *flags, module=PKTGEN))
        assert (end["tx_packets"], end["tx_bytes"]) == (300, 300 * 1514)
        assert end["answered"] + end["lost"] == 300
        # The last one is due 299 ms after the first.
        assert end["elapsed_s"] >= 0.299
        assert end["parameters"]["rate_per_s"] == 1000
        assert end["latency_hdr_ns"].startswith("HIST")

    def test_what_a_stalled_sender_was_late_is_part_of_the_round_trip(
        self, start: Callable[..., Tool], bouncer: Tool, nic: str
    ) -> None:
        flags = [f"--remote_ip={OURS}", "--rate=1000", "--duration=1.5", "--json", "--timeout=5"]
        tool = start(f"--nic={nic}", f"--ip={KERNEL}", *flags, module=PKTGEN)
        assert tool.process.stdout is not None
        tool.line('"event": "interval"')
        bouncer.signal(signal.SIGSTOP)
        tool.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, tool.process.pid, os.WSTOPPED | os.WNOWAIT)
        os.waitid(os.P_PID, bouncer.process.pid, os.WSTOPPED | os.WNOWAIT)
        # Nothing can happen meanwhile; this is how long nothing happens.
        end_of_stall = signal.sigtimedwait([], 0.3)
        assert end_of_stall is None
        bouncer.signal(signal.SIGCONT)
        tool.process.send_signal(signal.SIGCONT)
        end = final(tool)
        # Those that were due meanwhile, one a millisecond, waited from 0 to 300 ms.
        assert end["latency_us"]["max"] >= 250_000
        assert end["latency_us"]["p90"] >= 20_000

    def test_as_fast_as_it_goes_ends_at_once_by_ctrl_c(
        self, start: Callable[..., Tool], bouncer: Tool, nic: str
    ) -> None:
        tool = start(f"--nic={nic}", f"--ip={KERNEL}", f"--remote_ip={OURS}", module=PKTGEN)
        tool.line("TX/RX")
        tool.signal()
        code, out, _ = tool.end()
        assert code == 0
        assert "summary" in out

    def test_ping_mode_without_an_answer_fails(
        self, start: Callable[..., Tool], bouncer: Tool, nic: str
    ) -> None:
        flags = [f"--remote_ip={OURS}", "--mode=ping", "--remote_port=9", "--count=2", "--json"]
        end = final(start(f"--nic={nic}", f"--ip={KERNEL}", *flags, module=PKTGEN), 1)
        assert (end["lost"], end["answered"]) == (2, 0)

    def test_a_generator_that_ends_before_it_has_sent_anything_fails(
        self, start: Callable[..., Tool], bouncer: Tool, nic: str
    ) -> None:
        tool = start(
            f"--nic={nic}", f"--ip={KERNEL}", "--remote_ip=10.9.0.77", "--duration=0.1",
            module=PKTGEN,
        )  # fmt: skip
        code, out, err = tool.end()
        assert code == 1
        said = f"nobody has answered to 10.9.0.77 on {nic} yet: nothing was sent"
        assert (out + err).count(said) == 1


class TestHostileAnswers:
    """The other end is scripted: what it says is matched with what was sent."""

    @pytest.fixture
    def peer(self, nic: str) -> Iterator[RawPeer]:
        from machnet.sim import LinkNic

        link = LinkNic(nic.removeprefix("link:"))
        yield RawPeer(TapPort(link, KERNEL, remote_ip=OURS))
        link.close()

    def test_echoes_that_are_wrong_twice_or_not_asked_for(
        self, start: Callable[..., Tool], nic: str, peer: RawPeer
    ) -> None:
        flags = ["-c", "2", "-i", "0.3", "-W", "1", "--json"]
        tool = start(KERNEL, f"--nic={nic}", f"--ip={OURS}", *flags, module=PING)
        first = peer.expect(icmp("echo-request", seq=0), skip=True)
        right = icmp("echo-reply", id=first.icmp_id, seq=0, payload=first.payload)
        peer.send(right)
        peer.send(right)
        peer.send(icmp("echo-reply", id=first.icmp_id ^ 1, seq=0, payload=first.payload))
        peer.send(icmp("echo-reply", id=first.icmp_id, seq=7, payload=first.payload))
        peer.send(udp(b"hello", dport=7, sport=9))
        second = peer.expect(icmp("echo-request", seq=1), skip=True)
        peer.send(icmp("echo-reply", id=second.icmp_id, seq=1, payload=second.payload[:-1] + b"?"))
        end = final(tool, 1)
        assert (end["answered"], end["duplicates"], end["lost"]) == (2, 1, 0)
        assert end["payload_faults"] == 1
        assert end["other"] >= 3

    def test_a_bouncer_sends_nothing_to_another_one(
        self, start: Callable[..., Tool], nic: str, peer: RawPeer
    ) -> None:
        tool = start(f"--nic={nic}", f"--ip={OURS}", "--json", module=PKTGEN)
        tool.line(r"^\[BOUNCING\] ", "err")
        peer.send(udp(b"from another", sport=7, dport=7))
        peer.send(udp(b"wrong port", sport=99, dport=8))
        sent = peer.send(udp(b"right", sport=99, dport=7))
        answer = peer.expect(udp(b"right", sport=7, dport=99), skip=True)
        assert answer.payload == sent.payload
        tool.signal()
        end = final(tool)
        assert (end["bounced"], end["other"]) == (1, 2)


USAGE = [
    (ping.main, ["--nic=link:x", "--ip=10.0.0.1"], "Missing argument 'TARGET'"),
    (ping.main, ["--ip=10.0.0.1", "10.0.0.2"], "Missing option '--nic'"),
    (ping.main, ["--nic=wire:x", "--ip=10.0.0.1", "10.0.0.2"], "use tap:NAME or link:PATH"),
    (ping.main, ["--nic=link:x", "--ip=10.0.0.1", "10.0.0"], "'10.0.0' is not an IPv4 address"),
    (
        ping.main,
        ["--nic=link:x", "--ip=10.0.0.1", "-i", "-1", "10.0.0.2"],
        "'-1' is not a positive",
    ),
    (
        ping.main,
        ["--nic=link:x", "--ip=10.0.0.1", "--kernel_ip=10.0.0.3", "10.0.0.2"],
        "--kernel_ip is for a TAP",
    ),
    (pktgen.main, ["--nic=link:x", "--ip=10.0.0.1", "--mode=ping"], "needs a --remote_ip"),
    (
        pktgen.main,
        ["--nic=link:x", "--ip=10.0.0.1", "--mode=bouncer", "--remote_ip=10.0.0.2"],
        "--remote_ip is for the other modes",
    ),
    (pktgen.main, ["--nic=link:x", "--ip=10.0.0.1", "--rate=5"], "--rate is for the other modes"),
    (pktgen.main, ["--nic=link:x", "--ip=10.0.0.1", "--local_port=7"], "must differ"),
    (pktgen.main, ["--nic=link:x", "--ip=10.0.0.1", "--remote_mac=x"], "'x'"),
    (pktgen.main, ["--nic=link:x", "--ip=10.0.0.1", "--size=59"], "from 60 to 65535 bytes"),
]


@pytest.mark.parametrize(("command", "args", "text"), USAGE)
def test_a_wrong_command_line_is_refused(command: Any, args: list[str], text: str) -> None:
    result = CliRunner().invoke(command, args, env={"MACHNET_NIC": ""})
    assert result.exit_code == 2
    assert text in result.output


def test_a_frame_larger_than_the_mtu(start: Callable[..., Tool], nic: str) -> None:
    flags = [f"--remote_ip={OURS}", "--size=1515"]
    code, _, err = start(f"--nic={nic}", f"--ip={KERNEL}", *flags, module=PKTGEN).end()
    assert (code, err) == (
        1,
        "machnet pktgen: --size 1515: frames of this NIC have at most 1514 bytes",
    )


def test_arp_is_answered(start: Callable[..., Tool], nic: str) -> None:
    from machnet.sim import LinkNic

    link = LinkNic(nic.removeprefix("link:"))
    peer = RawPeer(TapPort(link, KERNEL, remote_ip=OURS))
    tool = start(f"--nic={nic}", f"--ip={OURS}", module=PKTGEN)
    tool.line(r"^\[BOUNCING\] ")
    peer.send(icmp("echo-request", id=1, seq=2, payload=b"x"))  # asks for the address first
    peer.expect(icmp("echo-reply", id=1, seq=2, payload=b"x"), skip=True)
    assert [seen.packet.kind for seen in peer.log if seen.way == ">"] == ["arp", "icmp"]
    assert arp is not None
    link.close()

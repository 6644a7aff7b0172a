# SPDX-License-Identifier: MIT
"""Packetdrill scripts on machnet: what passes, and what a failure says."""

from __future__ import annotations

import re

import pkt_reader
import pytest

arms = pkt_reader.module("arms")
errors = pkt_reader.module("errors")
flows = pkt_reader.module("flows")
notation = pkt_reader.module("notation")
parse = pkt_reader.module("parser").parse
report = pkt_reader.module("report")
runner = pkt_reader.module("run")

LISTEN = """0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3
+0 bind(3, ..., ...) = 0
+0 listen(3, 4) = 0
"""
OPEN = f"""{LISTEN}+0 < S 0:0(0) win 32792 <mss 1460,sackOK>
+0 > S. 0:0(0) ack 1 <mss 1460,nop,nop,sackOK>
+.1 < . 1:1(0) ack 1 win 32792
+0 accept(3, ..., ...) = 4
"""


def run(text: str, arm: str = "machnet", **options):
    return runner.run(parse(text, "x.pkt"), arm, **options)


def fails(text: str) -> list[str]:
    """The lines of the failure."""
    with pytest.raises(report.ScriptFailedError) as caught:
        run(text)
    return str(caught.value).split("\n")


def test_log_is_in_the_scripts_notation_and_times():
    lines = str(run(OPEN + "+0 write(4, ..., 3) = 3\n+0 > P. 1:4(3) ack 1")).split("\n")
    assert [line.split(maxsplit=1)[1] for line in lines[3:]] == [
        "< S 0:0(0) win 32792 <mss 1460,sackOK>",
        "> S. 0:0(0) ack 1 win 65535 <mss 1460,nop,nop,sackOK>",
        "< . 1:1(0) ack 1 win 32792",
        "= accept() = 4",
        "= write() = 3",
        "> P. 1:4(3) ack 1 win 65535",
    ]
    assert [line.split()[0] for line in lines[3:]] == ["0.000000"] * 2 + ["0.100000"] * 4


def test_two_runs_give_the_same_log():
    text = OPEN + "+0 write(4, ..., 3000) = 3000\n+0 > . 1:1461(1460) ack 1\n"
    assert str(run(text)) == str(run(text))


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ("P. 1:101(100) ack 2", "ack: expected 2, found 1"),
        (". 1:101(100) ack 1", "flags: expected ., found P."),
        ("FP. 1:101(100) ack 1", "flags: expected FP., found P."),
        ("P. 2:102(100) ack 1", "seq: expected 2, found 1"),
        ("P. 1:100(99) ack 1", "length: expected 99, found 100"),
        ("P. 1:101(100) ack 1 win 7", "win: expected 7, found 65535"),
        ("P. 1:101(100) ack 1 urg 7", "urg: expected 7, found 0"),
        ("P. 1:101(100) ack 1 <nop>", "options: expected <nop>, found none"),
        ("P. 1:101(100) ack 1 <nop,...>", "options: expected nop, found none"),
        ("[ce] P. 1:101(100) ack 1", "ECN: expected ce, found noecn"),
        ("[tos 0x20] P. 1:101(100) ack 1", "tos: expected 0x20, found 0x0"),
        ("[ttl 9] P. 1:101(100) ack 1", "ttl: expected 9, found 64"),
        ("udp (100)", "protocol: expected udp, found tcp"),
    ],
)
def test_mismatch_is_shown_field_by_field(wrong, what):
    text = OPEN + f"+0 write(4, ..., 100) = 100\n+0 > {wrong}"
    lines = fails(text)
    assert lines[0] == f"x.pkt:{text.count(chr(10)) + 1}: the packet is not the one expected"
    assert lines[1] == f"    +0 > {wrong}"
    assert lines[3].startswith("  found:    P. 1:101(100) ack 1 win 65535")
    assert lines[4] == f"  {what}"
    assert lines[5] == "on machnet, at 0.100000 s; so far:"
    assert lines[-1].endswith("> P. 1:101(100) ack 1 win 65535")


def test_several_fields_are_shown_together():
    lines = fails(OPEN + "+0 write(4, ..., 100) = 100\n+0 > . 5:105(100) ack 3")
    assert lines[4:7] == [
        "  flags: expected ., found P.",
        "  seq: expected 5, found 1",
        "  ack: expected 3, found 1",
    ]


def test_push_may_be_left_open():
    run(OPEN + "+0 write(4, ..., 100) = 100\n+0 > P?. 1:101(100) ack 1")


def test_packet_that_does_not_come():
    lines = fails(OPEN + "+.5 > . 1:1(0) ack 1")
    assert lines[0].endswith(": no such packet came")
    assert lines[2] == "  expected: . 1:1(0) ack 1"
    assert lines[3] == "on machnet, at 0.604000 s; so far:"


@pytest.mark.parametrize(("time", "fine"), [(".3", True), (".296", True), (".304", True),
                                            (".294", False), (".306", False),
                                            (".1~+.35", True), (".31~+.4", False),
                                            (".1~+.29", False)])  # fmt: skip
def test_time_of_a_packet_and_its_tolerance(time, fine):
    text = OPEN + f"+0 write(4, ..., 9) = 9\n+0 > P. 1:10(9) ack 1\n+{time} > P. 1:10(9) ack 1"
    if fine:
        run(text)
        return
    first, *rest = fails(text)
    assert any(line.startswith("  time: expected 0.") and "+- 0.004" in line for line in rest) or (
        "no such packet" in first
    )


def test_tolerance_is_an_option():
    text = OPEN + "+0 write(4, ..., 9) = 9\n+0 > P. 1:10(9) ack 1\n+.28 > P. 1:10(9) ack 1"
    fails(text)
    run("--tolerance_usecs=25000\n" + text)


def test_any_time():
    text = OPEN + "+0 write(4, ..., 9) = 9\n* > P. 1:10(9) ack 1\n* > P. 1:10(9) ack 1"
    assert "0.400000 > P. 1:10(9)" in str(run(text))


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ("read(4, ..., 10) = 5", "result: expected 5, found 10"),
        ("read(4, ..., 10) = -1 EAGAIN (x)", "result: expected -1 EAGAIN, found 10"),
        ('read(4, "0123456789", 10) = 10', "data: octet 0 of the stream is 0x00, expected 0x30"),
        ("ioctl(4, SIOCINQ, [11]) = 0", "value: expected 11, found 10"),
        ("getsockopt(4, SOL_SOCKET, SO_TYPE, [7], [4]) = 0", "value: expected 7, found 1"),
        ("shutdown(3, SHUT_WR) = -1 EPIPE (x)", "errno: expected EPIPE, found ENOTCONN"),
        ("poll([{fd=4, events=POLLIN, revents=0}], 1, 0) = 1",
         "revents of 4: expected 0, found POLLIN"),
    ],
)  # fmt: skip
def test_call_that_returns_something_else(call, what):
    lines = fails(OPEN + f"+0 < P. 1:11(10) ack 1 win 100\n* > . 1:1(0) ack 11\n+0 {call}")
    assert lines[0].endswith("() did not return what the script says")
    assert lines[2] == f"  {what}"


def test_call_that_blocks():
    lines = fails(OPEN + "+0 read(4, ..., 10) = 10")
    assert "read() blocks" in lines[0]
    lines = fails(OPEN + "+0...+.3 read(4, ..., 10) = 10")
    assert "read() still blocks" in lines[0]
    assert lines[2] == "  expected: it returns at 0.400000 s"


def test_call_that_returns_early():
    text = OPEN + "+0...+.3 read(4, ..., 10) = 10\n+.1 < P. 1:11(10) ack 1 win 100"
    lines = fails(text)
    assert lines[1].strip().startswith("+0...+.3 read")
    assert lines[2] == (
        "  time of its return: expected 0.400000 +- 0.004000, found 0.200000"
    )  # fmt: skip


def test_payload_is_what_the_application_sent():
    run(OPEN + '+0 write(4, "abc", 3) = 3\n+0 > P. 1:4(3) ack 1')
    script = parse("0 > P. 1:4(3) ack 1")
    flow = flows.Flow(8080, 50000, live_isn=1000)
    ends = flows.Endpoints("10.0.0.1", "02:00:00:00:00:01", "10.0.0.2", "02:00:00:00:00:02")
    packet = script.events[0].action
    frame = pkt_reader.module("run").Frame(
        flows.tcp_frame(packet.body, packet.ip, flows.Flow(50000, 8080, remote_isn=0), ends)
    )
    sent = frame.with_(seq=1001, ack=1)
    assert flows.differences(packet.body, packet.ip, sent, flow) == []
    flow.wrote(b"abc", 3)
    assert flows.differences(packet.body, packet.ip, sent, flow) == [
        "payload: not the octets that the application sent at this place"
    ]


def test_timestamps_stand_for_those_on_the_wire():
    text = (
        "--tcp_ts_tick_usecs=1000\n"
        + LISTEN
        + """+0 < S 0:0(0) win 32792 <mss 1460,sackOK,TS val 7 ecr 0>
+0 > S. 0:0(0) ack 1 <mss 1460,sackOK,TS val 500 ecr 7>
+.1 < . 1:1(0) ack 1 win 100 <nop,nop,TS val 8 ecr 500>
+0 accept(3, ..., ...) = 4
+0 write(4, ..., 9) = 9
+0 > P. 1:10(9) ack 1 <nop,nop,TS val {} ecr 8>
"""
    )
    run(text.format(600))
    assert "  TS val: expected 200 ticks since the first, found 100" in fails(text.format(700))
    assert any("ecr 8>, found <nop,nop,TS" in line or "ecr 9" in line
               for line in fails(text.replace("ecr 8>\n", "ecr 9>\n", 2).format(600)))  # fmt: skip


# ---- code blocks ---------------------------------------------------------------------------------


def test_code_block_prints_into_the_log():
    log = str(run(OPEN + "+0 %{\nx = tcpi_snd_cwnd * 2\nprint('twice', x)\nassert x == 20\n}%"))
    assert "% twice 20" in log


def test_code_block_that_fails_shows_what_it_compared():
    lines = fails(OPEN + '+0 %{ assert tcpi_snd_cwnd == 9 + tcpi_unacked, "window" }%')
    assert lines[0].endswith(": the code block failed")
    assert lines[2:5] == [
        "  assert tcpi_snd_cwnd == 9 + tcpi_unacked: window",
        "  tcpi_snd_cwnd = 10",
        "  tcpi_unacked = 0",
    ]


def test_code_block_asks_for_what_machnet_does_not_tell():
    assert "  machnet does not tell tcpi_pmtu" in fails(OPEN + "+0 %{ assert tcpi_pmtu > 0 }%")


@pytest.mark.parametrize(
    "code",
    [
        "import os",
        "open('/etc/passwd')",
        "().__class__",
        "__builtins__",
        "[x for x in (1,)]",
        "lambda: 1",
        "exec('1')",
        "f'{(1).real}'",
        "while True: pass",
        "2 ** 99999999",
        "'%s'.format(1)",
        "print(1, file=2)",
        "def f(): pass",
    ],
)
def test_code_block_may_not(code):
    with pytest.raises(errors.ScriptError, match=r"may not be used|can't be called"):
        run(LISTEN + f"+0 %{{ {code} }}%")


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("+0 epoll_create(1) = 5", r"not supported: the system call epoll_create\(\)"),
        ("+0 `ls`", "a shell command; --machnet-pkt-allow-shell"),
        ("+0 fcntl(3, F_DUPFD, 1) = 5", "not supported: fcntl but F_GETFL and F_SETFL"),
        ("+0 listen(3, FOO) = 0", "there is no constant FOO"),
        ("+0 listen(3) = 0", "listen takes 2 arguments, not 1"),
        ("+0 close(9) = -1 EFOO", "there is no error EFOO"),
        (
            "+0 bind(3, {sa_family=AF_INET, sin_port=htons(99999), sin_addr=INADDR_ANY}, 16) = 0",
            "bind.*99999",
        ),
        (
            '+0 bind(3, {sa_family=AF_INET, sin_port=9, sin_addr=inet_addr("1.2")}, 16) = 0',
            "'1.2' is no IPv4 address",
        ),
        (
            "+0 bind(3, {sa_family=AF_INET6, sin_port=9, sin_addr=0}, 16) = 0",
            "addresses but AF_INET",
        ),
    ],
)
def test_what_can_not_be_run_is_said_with_its_line(text, what):
    with pytest.raises(errors.ScriptError, match=what) as caught:
        run(LISTEN + text)
    assert caught.value.where.line == 4
    assert str(caught.value).startswith("x.pkt:4:")
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("--ip_version=ipv6", "IPv4 only"),
        ("--wire_client", "the option --wire_client"),
        ("--nonsense=1", "the option --nonsense .it is not known"),
        ("--mtu=99999", "expected an integer from 68 to 65521, found '99999'"),
        ("--local_ip=1.2.3", "1.2.3"),
    ],
)
def test_options_that_are_refused(text, what):
    with pytest.raises(errors.ScriptError, match=what):
        run(f"{text}\n{LISTEN}")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("0 socket(..., SOCK_DGRAM, IPPROTO_UDP) = 3", "AF_INET, SOCK_STREAM only"),
        ("`sysctl -q net.ipv4.tcp_foo=1`\n" + LISTEN, "machnet has nothing like it"),
        ("`sysctl net.ipv4.tcp_ecn=1`\n" + LISTEN, "machnet has only 0 or 2"),
        (LISTEN + "+0 `sysctl -q net.ipv4.tcp_sack=0`", "before the first system call only"),
        (OPEN + '+0 setsockopt(4, IPPROTO_TCP, TCP_CONGESTION, "bbr", 4) = 0',
         "no socket option TCP_CONGESTION"),
    ],
)  # fmt: skip
def test_what_only_linux_can_do(text, what):
    with pytest.raises(errors.ArmUnsupportedError, match=what):
        run(text)


def test_options_that_are_followed():
    text = """--local_ip=10.1.2.3
--remote_ip=10.1.9.9
--mtu=1000
--bind_port=81
--connect_port=82
--ip_version=ipv4
--verbose
0 socket(..., SOCK_STREAM|SOCK_NONBLOCK, IPPROTO_TCP) = 3
+0 bind(3, {sa_family = AF_INET, sin_port = htons(0), sin_addr = inet_addr("10.1.2.3")}, 16) = 0
+0 connect(3, ..., ...) = -1 EINPROGRESS (x)
+0 > S 0:0(0) <mss 960,...>
+0 < S. 0:0(0) ack 1 win 100
+0 > . 1:1(0) ack 1
+0 connect(3, ..., ...) = 0
+0 getpeername(3, {sa_family=AF_INET, sin_port=htons(82), sin_addr=inet_addr("10.1.9.9")}, ...) = 0
"""
    run(text)


def test_sysctls_at_the_head_become_settings():
    text = "`sysctl -q -w net.ipv4.tcp_sack=0 net.ipv4.tcp_early_retrans=0`\n" + LISTEN
    run(text + "+0 < S 0:0(0) win 9 <mss 1460,sackOK>\n+0 > S. 0:0(0) ack 1 <mss 1460>")


def test_packet_that_is_too_long_for_the_wire():
    lines = fails(OPEN + "+0 < . 1:1601(1600) ack 1 win 9")
    assert "the packet can't be sent" in lines[0]


def test_arms_have_their_names():
    assert arms.ARMS == ("machnet", "linux")
    assert arms.unavailable("machnet") is None
    assert re.fullmatch(r"\d+\.\d{6}", notation.seconds(1))


def test_log_names_the_ports_where_there_are_several_connections():
    log = str(run(LISTEN + """+0 < 40001 > 8080 S 0:0(0) win 9 <mss 1460>
+0 > 8080 > 40001 S. 0:0(0) ack 1 <mss 1460>
+0 < 40002 > 8080 S 0:0(0) win 9 <mss 1460>
+0 > 8080 > 40002 S. 0:0(0) ack 1 <mss 1460>
"""))  # fmt: skip
    assert "< 40002 > 8080 S 0:0(0) win 9 <mss 1460>" in log
    assert "> 8080 > 40001 S. 0:0(0) ack 1 win 65535 <mss 1460>" in log


def test_log_shows_packets_that_the_script_does_not_speak_of():
    lines = fails(
        "0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3\n"
        "+0 bind(3, {sa_family=AF_INET, sin_port=htons(99), sin_addr=INADDR_ANY}, 16) = 0\n"
        "+0 connect(3, ..., ...) = 0"
    )
    assert "connect() blocks" in lines[0]
    assert "> 99 > 8080 S 0:0(0) win 65535 <mss 1460,sackOK,TS val" in lines[-1]

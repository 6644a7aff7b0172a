# SPDX-License-Identifier: MIT
"""The text of packetdrill scripts: what is read, and what is said of what can't be."""

from __future__ import annotations

import pkt_reader
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

nodes = pkt_reader.module("nodes")
errors = pkt_reader.module("errors")
parse = pkt_reader.module("parser").parse
SEC = 1_000_000_000


def event(text: str):
    (found,) = parse(text, "x.pkt").events
    return found


def action(text: str):
    return event(text).action


# ---- times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "start", "end"),
    [
        ("0", "absolute", 0, None),
        ("1.5", "absolute", 1_500_000_000, None),
        (".25", "absolute", 250_000_000, None),
        ("+0", "relative", 0, None),
        ("+.000001", "relative", 1_000, None),
        ("0.1~0.2", "absolute", 100_000_000, 200_000_000),
        ("+0.1~0.2", "relative", 100_000_000, 200_000_000),
        ("+0~+.3", "relative", 0, 300_000_000),
        ("*", "any", 0, None),
    ],
)
def test_time_of_a_packet(text, kind, start, end):
    time = event(f"{text} > . 1:1(0) ack 1").time
    assert (time.kind, time.start_ns, time.end_ns) == (kind, start, end)


@pytest.mark.parametrize(("text", "end"), [("0...0.5", SEC // 2), ("+1...+2.25", 9 * SEC // 4)])
def test_time_of_a_blocking_call(text, end):
    assert action(f"{text} accept(3, ..., ...) = 4").end_ns == end


# ---- packets -------------------------------------------------------------------------------------


def test_segment_with_everything():
    packet = action("0 < [ect0] FPU. 1:1001(1000) ack 2 win 3 urg 4 <nop,nop,TS val 5 ecr 6>")
    assert packet.inbound
    assert packet.ip.ecn == "ect0"
    body = packet.body
    assert body.flags == "FPU."
    assert (body.seq, body.end, body.length) == (1, 1001, 1000)
    assert (body.ack, body.window, body.urgent) == (2, 3, 4)
    assert [option.kind for option in body.options] == ["nop", "nop", "TS"]
    assert body.options[2].values == (5, 6)


def test_segment_with_little():
    body = action("0 > - 0:0(0)").body
    assert body.flags == ""
    assert (body.ack, body.window, body.urgent, body.options) == (None, None, None, ())


@pytest.mark.parametrize(
    ("text", "kinds", "more"),
    [
        ("<mss 1460,sackOK,nop,wscale 7,eol>", ["mss", "sackOK", "nop", "wscale", "eol"], False),
        ("<...>", None, False),
        ("<mss 1460,...>", ["mss"], True),
        ("<sack 1:2 3:4>", ["sack"], False),
        ("<FO>", ["FO"], False),
        ("<FOEXP 12ab34cd>", ["FOEXP"], False),
    ],
)
def test_options_of_an_expected_segment(text, kinds, more):
    body = action(f"0 > S. 0:0(0) ack 1 {text}").body
    assert (None if body.options is None else [option.kind for option in body.options]) == kinds
    assert body.more_options is more


def test_values_of_options():
    body = action("0 < S 0:0(0) win 9 <sack 1:2 3:4,FO 0102ab,mss 5>").body
    assert body.options[0].values == (1, 2, 3, 4)
    assert body.options[1].data == bytes((1, 2, 0xAB))
    assert body.options[2].values == (5,)


def test_flags_are_sorted_and_ports_are_kept():
    body = action("0 < 40000 > 8080 .WES 0:0(0) ack 0").body
    assert body.flags == "SEW."
    assert body.ports == (40000, 8080)


def test_the_numbers_of_a_segment_may_wrap():
    assert action("0 < . 4294967290:4(10) ack 1").body.end == 4


def test_icmp():
    body = action("0 < icmp unreachable frag_needed mtu 600 [1:1461(1460)]").body
    assert (body.type, body.code, body.mtu, body.seq, body.length) == (3, 4, 600, 1, 1460)
    assert action("0 < icmp time_exceeded ttl_exceeded [udp (10)]").body.udp


def test_udp():
    assert action("0 > udp (1000)").body.length == 1000


# ---- calls ---------------------------------------------------------------------------------------


def test_call_with_an_error_and_a_note():
    call = action("0 read(3, ..., 10) = -1 EAGAIN (Resource temporarily unavailable)")
    assert (call.name, call.result, call.errno) == ("read", nodes.Number(-1), "EAGAIN")
    assert call.args == (nodes.Number(3), nodes.Dots(), nodes.Number(10))


@pytest.mark.parametrize("text", ["?", "_"])
def test_call_whose_result_does_not_matter(text):
    assert action(f"0 close(3) = {text}").result == nodes.ANY


def test_flags_of_a_result_are_a_note():
    assert action("0 fcntl(3, F_GETFL) = 0x802 (flags O_RDWR|O_NONBLOCK)").result.value == 0x802


def test_arguments_of_all_kinds():
    call = action(
        '0 f({a = 1, b = inet_addr("1.2.3.4")}, [1, A|B], "x\\n" "y"..., -7, {..., 5}, '
        "{msg_name(...)=..., msg_iov(1)=[{...,9}]}) = 0"
    )
    struct, array, string, number, iovec, message = call.args
    assert [field.name for field in struct.fields] == ["a", "b"]
    assert struct.fields[1].value.name == "inet_addr"
    assert isinstance(array.items[1], nodes.Or)
    assert string.value == b"x\ny"
    assert number.value == -7
    assert [field.name for field in iovec.fields] == [None, None]
    assert message.fields[1].count == nodes.Number(1)


# ---- the whole -----------------------------------------------------------------------------------


def test_script_with_options_comments_commands_and_code():
    script = parse(
        """--tolerance_usecs=1000
        --define=PORT=81
        // one
        # two
        /* three
           lines */
        `sysctl -q net.ipv4.tcp_sack=0`
        +0 f(PORT) = 0 // four
        +0 %{
        assert 1 == 1  # five
        }%
        +1 `echo`
        `cleanup`
        """
    )
    assert [(option.name, option.value) for option in script.options] == [
        ("tolerance_usecs", "1000"),
        ("define", "PORT=81"),
    ]
    kinds = [type(event.action).__name__ for event in script.events]
    assert kinds == ["Command", "Call", "Code", "Command", "Command"]
    assert script.events[1].action.args == (nodes.Number(81),)
    assert [event.where.line for event in script.events] == [7, 8, 9, 12, 13]
    assert script.arms is None


def test_arms_of_a_script():
    script = parse("// @arms machnet: the kernel\n0 close(3) = 0".replace("\n", " is late\n", 1))
    assert (script.arms, script.arms_reason) == (("machnet",), "the kernel is late")
    with pytest.raises(errors.ScriptSyntaxError, match="expected '@arms machnet: reason'"):
        parse("# @arms machnet\n0 close(3) = 0")


@pytest.mark.parametrize(
    ("text", "column", "what"),
    [
        ("", 1, "expected an event"),
        ("+0 accept(3", 12, r"expected '\)' or ',' and another argument, found the end"),
        ("+0 accept(3, ...) 4", 19, "expected '=' and what accept returns, found '4'"),
        ("+0 accept", 10, r"expected '\(' and the arguments of accept"),
        ("x > . 1:1(0)", 1, "expected a time, such as 0, .*found 'x'"),
        ("0 ; x", 3, "expected an action.* found ';'"),
        ("0 > SS 0:0(0)", 5, "expected TCP flags.*found 'SS'"),
        ("0 > SX 0:0(0)", 5, "expected TCP flags.*found 'SX'"),
        ("0 > S 0:5(4)", 7, "0:5 are not 4 octets, but 5"),
        ("0 > S 0;0(0)", 8, "expected ':', found ';'"),
        ("0 > S 0:0(0) <foo>", 15, "expected a TCP option: .*found 'foo'"),
        ("0 > S 0:0(0) <mss>", 18, "expected a segment size, found '>'"),
        ("0 > S 0:0(0) <mss 70000>", 19, "a segment size is at most 65535: 70000"),
        ("0 > S 0:0(0) <..., nop>", 18, "expected '>' behind '...'"),
        ("0 < S 0:0(0) <...>", 14, "for packets that are expected"),
        ("0 > . 1:1(0) <sack 1:2", 23, "expected '>' or ',' and another option, found the end"),
        ("0 < icmp foo", 10, "expected an ICMP type: unreachable.*found 'foo'"),
        ("0 < icmp unreachable bar", 22, "expected a code of unreachable: .*found 'bar'"),
        ("* close(3) = 0", 1, r"'\*' is for packets that are expected"),
        ("0~1 close(3) = 0", 1, "a range of time is for packets that are expected"),
        ("2~1 > . 1:1(0)", 1, "backwards"),
        ("2...1 close(3) = 0", 1, "ends before it begins"),
        ('0 write(3, "abc', 12, 'a string that never ends: expected "'),
        ("0 %{ assert", 3, "code block that never ends: expected }%"),
        ("/* x", 1, r"comment that .*never ends: expected \*/"),
        ("0 `ls", 3, "a command that never ends"),
        ("0 close(3) = 0 @", 16, "'@' is not in the language"),
    ],
)
def test_error_has_its_place_and_what_was_expected(text, column, what):
    with pytest.raises(errors.ScriptSyntaxError, match=what) as caught:
        parse(text, "dir/x.pkt")
    assert (caught.value.where.line, caught.value.where.column) == (1, column)
    first, *rest = str(caught.value).split("\n")
    assert first.startswith(f"dir/x.pkt:1:{column}: ")
    if rest:
        assert rest == [f"    {text}", "    " + " " * (column - 1) + "^"]


def test_error_on_a_later_line():
    with pytest.raises(errors.ScriptSyntaxError) as caught:
        parse("/* a\n b */ 0 close(3) = 0\n\n  0 > S 0:1(0)\n", "x")
    assert (caught.value.where.line, caught.value.where.column) == (4, 9)


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ("0 > ipv4 1.2.3.4 > 5.6.7.8: . 1:1(0)", "encapsulation"),
        ("0 > gre: . 1:1(0)", "encapsulation"),
        ("0 > S5 0:0(0)", "accurate ECN"),
        ("0 > .5 1:1(0) ack 1", "accurate ECN"),
        ("0 < (flowlabel 0x1) . 1:1(0)", "flowlabel"),
        ("0 < icmp echo_request [1:1(0)]", "ICMP echo"),
        ("0 > icmp unreachable", "ICMP packets that are expected"),
        ("0 < S 0:0(0) <md5 00>", "MD5"),
        ("0 < S 0:0(0) {mut tcp mss}", "fuzzing"),
    ],
)
def test_what_is_not_supported_is_named(text, feature):
    with pytest.raises(errors.UnsupportedError, match=f"not supported: .*{feature}"):
        parse(text)


# ---- any text ------------------------------------------------------------------------------------

SEED = """--tolerance_usecs=1000
// @arms machnet: because
`sysctl -q net.ipv4.tcp_sack=0`
0...1 f({a = 1, b = inet_addr("1.2.3.4")}, [1, A|B], "x" ..., -7, 0x1f) = -1 EAGAIN (so it is)
+.1~+.2 > [ect0] SP?. 0:0(0) ack 1 win 2 urg 3 <mss 1,sack 1:2 3:4,TS val 1 ecr 2,FOEXP 12ab,...>
* > 80 > 81 . 1:1(0) <...>
+0 < icmp unreachable frag_needed mtu 600 [1:1461(1460)]
+0 %{ assert 1 }%
"""
PIECES = [*SEED.split(), *'<>[](){}"`%+-*~.,:;?=#/\n ', "...", "0x", "9" * 5000, "\0", "é"]


@given(
    edits=st.lists(
        st.tuples(
            st.integers(0, len(SEED)),
            st.integers(0, 12),
            st.lists(st.sampled_from(PIECES), max_size=3),
        ),
        max_size=4,
    )
)
@settings(max_examples=400)
def test_any_text_is_read_or_refused_with_its_place(edits):
    text = SEED
    for at, length, pieces in edits:
        text = text[:at] + "".join(pieces) + text[at + length :]
    problem = script = None
    try:
        script = parse(text)
    except errors.ScriptError as error:
        problem = error
    if problem is None:
        assert script.events
    else:
        assert 1 <= problem.where.line <= text.count("\n") + 1
        assert str(problem)

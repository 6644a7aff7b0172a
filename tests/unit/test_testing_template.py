# SPDX-License-Identifier: MIT
"""Templates of `machnet.testing`: what they accept, what they say when not, what they make."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machnet.testing import ABSENT, ANY, Packet, Template, arp, eth, icmp, ip, tcp, udp
from machnet.testing.template import table

SYN = {"mss": 1460, "wscale": 7, "sack_ok": True, "ts": (5, 0)}


def packet(template: Template, **fields: Any) -> Packet:
    return Packet(template.build(**fields))


def said(template: Template, got: Packet) -> list[tuple[str, str, str]]:
    return [(m.field, m.wanted, m.got) for m in template.match(got)]


class TestFlags:
    @pytest.mark.parametrize(
        ("wanted", "have", "matches"),
        [
            ("S", "S", True),
            ("S", "SA", False),
            ("AS", "SA", True),
            ("S.", "SA", True),
            ("", "", True),
            ("", "A", False),
            ("S*", "S", True),
            ("S*", "SAE", True),
            ("S*", "A", False),
            ("*", "", True),
            ("*", "FSRPAUEC", True),
            ("A(P)", "A", True),
            ("A(P)", "PA", True),
            ("A(P)", "P", False),
            ("A(P)", "FPA", False),
            ("(FP)A", "FPA", True),
            ("(EW)S", "SEC", True),
            ({"S", "SA"}, "SA", True),
            ({"S", "SA"}, "A", False),
        ],
    )
    def test_flags(self, wanted: Any, have: str, matches: bool) -> None:
        assert tcp(flags=wanted).matches(packet(tcp(have))) is matches

    @pytest.mark.parametrize("wrong", ["X", "s", "S(P", "S*A", "**"])
    def test_what_is_no_flag_is_refused(self, wrong: str) -> None:
        with pytest.raises(ValueError, match="flags "):
            tcp(wrong)

    def test_wanted_and_got_are_shown(self) -> None:
        assert said(tcp("S"), packet(tcp("SA"))) == [("tcp.flags", "S", "SA")]
        assert said(tcp("A(P)"), packet(tcp(""))) == [("tcp.flags", "A(P)", "none")]
        assert said(tcp(""), packet(tcp("R"))) == [("tcp.flags", "none", "R")]
        assert said(tcp({"S", "R"}), packet(tcp("A"))) == [("tcp.flags", "one of R, S", "A")]


class TestValues:
    def test_only_what_is_stated_matters(self) -> None:
        assert tcp().matches(packet(tcp("SA", **SYN, payload=b"abc")))
        assert tcp("SA", mss=1460).matches(packet(tcp("SA", **SYN)))

    def test_plain_values(self) -> None:
        got = packet(tcp("S", **SYN, seq=5, dport=99))
        template = tcp("S", seq=6, dport=99, mss=1400, ts=[5, 0], sack_ok=False)
        assert said(template, got) == [
            ("tcp.seq", "6", "5"),
            ("tcp.mss", "1400", "1460"),
            ("tcp.sack_ok", "False", "True"),
        ]

    def test_numbers_are_modulo_2_to_the_32(self) -> None:
        got = packet(tcp(seq=-1, ack=2**32 + 4, sack=[(-2, -1)]))
        assert (got.seq, got.ack, got.sack) == (2**32 - 1, 4, ((2**32 - 2, 2**32 - 1),))
        assert tcp(seq=-1, ack=2**32 + 4, sack=[(-2, -1)]).matches(got)

    def test_ranges_sets_and_predicates(self) -> None:
        def even(window: int) -> bool:
            """An even number."""
            return window % 2 == 0

        got = packet(tcp("S", window=101, ttl=63))
        assert tcp(window=range(100, 102), ttl={63, 64}).matches(got)
        assert tcp(window=lambda window: window == 101).matches(got)
        template = tcp(window=even, ttl={64, 255}, seq=range(1, 10), ip_id=range(1, 9, 2))
        assert said(template, got) == [
            ("tcp.seq", "1 to 9", "0"),
            ("tcp.window", "An even number.", "101"),
            ("ip.ttl", "one of 64, 255", "63"),
            ("ip.id", "range(1, 9, 2)", "0"),
        ]

    def test_a_predicate_is_not_asked_about_what_is_absent(self) -> None:
        template = tcp(ts=lambda ts: ts[0] > 5)
        assert said(template, packet(tcp("S"))) == [("tcp.ts", "<lambda>", "absent")]
        assert template.matches(packet(tcp(ts=(6, 0))))

    def test_absent_and_any(self) -> None:
        got = packet(tcp("S", mss=1460))
        template = tcp(mss=ABSENT, wscale=ABSENT, sack_ok=ABSENT, sack=ABSENT, ts=ANY)
        assert said(template, got) == [("tcp.mss", "ABSENT", "1460")]

    def test_addresses_in_any_form(self) -> None:
        got = packet(udp(), eth_src="02:aa:00:00:00:0b", src="10.1.2.3")
        assert udp(eth_src="02-AA-00-00-00-0B", src=b"\x0a\x01\x02\x03").matches(got)
        assert said(udp(src="10.1.2.4"), got) == [("ip.src", "10.1.2.4", "10.1.2.3")]
        assert said(udp(eth_src="02:aa:00:00:00:0c"), got)[0][0] == "eth.src"

    def test_payload_and_length(self) -> None:
        got = packet(udp(b"hello"))
        assert udp(b"hello", length=5, udp_len=13).matches(got)
        assert said(udp(b"x" * 30, length=30), got) == [
            ("udp.payload", f"30 bytes {b'x' * 20!r}...", "5 bytes b'hello'"),
            ("udp.length", "30", "5"),
        ]

    def test_options_in_order(self) -> None:
        got = packet(tcp("S", **SYN))
        order = [("mss", 1460), "sack_ok", ("ts", (5, 0)), "nop", ("wscale", 7)]
        assert tcp(options=order).matches(got)
        assert tcp(options=bytes(got)[54:]).matches(got)
        assert not tcp(options=order[1:]).matches(got)
        assert tcp(options=[("mss", 1), (254, b"a")]).matches(
            packet(tcp(options=[("mss", 1), (254, b"a")]))
        )

    def test_another_kind_is_one_mismatch(self) -> None:
        assert said(tcp("S", seq=5), packet(arp())) == [
            ("packet", "tcp", "arp: ARP, Request who-has 10.0.0.2 tell 10.0.0.1, length 28")
        ]
        assert said(eth(), Packet(b"")) == [
            (
                "packet",
                "eth",
                "none: 0 bytes [0 bytes: shorter than an Ethernet header]",
            )
        ]

    def test_ip_and_eth_take_whatever_is_in_them(self) -> None:
        got = packet(tcp(payload=b"abc", trailer=b"12"))
        assert ip(6, src="10.0.0.1", length=23, payload=bytes(got)[34:-2]).matches(got)
        assert eth(0x0800, length=45, payload=bytes(got)[14:]).matches(got)
        assert not ip(17).matches(got)
        assert said(ip(), packet(arp()))[0][0] == "packet"

    def test_arp_and_icmp_by_name(self) -> None:
        assert arp("reply", sender_ip="10.0.0.1").matches(packet(arp(2)))
        assert said(arp("request"), packet(arp("reply"))) == [("arp.op", "1", "2")]
        assert icmp("echo-request", id=3, seq=4).matches(packet(icmp(8, 0, id=3, seq=4)))
        assert said(icmp(type="unreachable"), packet(icmp(0))) == [("icmp.type", "3", "0")]
        with pytest.raises(ValueError, match="op='ask': it is a number or one of request, reply"):
            arp("ask")
        with pytest.raises(ValueError, match=r"icmp_type='pong': .* echo-reply"):
            icmp("pong")

    def test_quotations(self) -> None:
        original = packet(udp(b"0123456789", dport=7))
        error = packet(icmp("unreachable", 3, quoted=original))
        assert icmp(quoted=original).matches(error)
        assert icmp(quoted=udp(dport=7)).matches(error)
        short = packet(icmp(3, 3, quoted=Packet.from_ip(original.ip_packet[:28], cut=True)))
        assert icmp(quoted=original).matches(short)
        assert said(icmp(quoted=udp(dport=8)), short)[0][:2] == ("icmp.quoted", "udp(dport=8)")
        other = packet(udp(b"0123456789", dport=8))
        assert said(icmp(quoted=other), error) == [
            ("icmp.quoted", Packet.from_ip(other.ip_packet).summary(), original.summary())
        ]
        assert icmp(quoted=ABSENT).matches(packet(icmp(8)))
        made = Packet(icmp("unreachable", 1, quoted=tcp("S", seq=9)).build())
        assert made.quoted is not None
        assert (made.quoted.seq, made.quoted.flags) == (9, "S")


class TestForm:
    def test_checksums_are_looked_at_unless_one_is_stated(self) -> None:
        wrong = packet(tcp("S", csum=0x1234, ip_csum=0x4321))
        assert said(tcp("S"), wrong) == [
            ("ip.csum", "correct", "0x4321, which is wrong"),
            ("tcp.csum", "correct", "0x1234, which is wrong"),
        ]
        assert tcp("S", csum=ANY, ip_csum=ANY).matches(wrong)
        assert tcp("S", csum=0x1234, ip_csum=0x4321).matches(wrong)

    def test_so_is_the_form(self) -> None:
        wrong = packet(tcp("S", doff=15))
        assert said(tcp("S"), wrong) == [
            ("form", "well-formed", "TCP header of 60 bytes, 20 are there")
        ]
        assert tcp("S", doff=15).matches(wrong)

    def test_the_table_has_columns(self) -> None:
        got = packet(tcp("R", seq=1))
        assert table(tcp("SA", seq=1000).match(got)) == (
            "  field      wanted  got\n  tcp.flags  SA      R\n  tcp.seq    1000    1"
        )


class TestMaking:
    def test_defaults_stand_behind_the_template(self) -> None:
        defaults = {"src": "10.7.7.7", "sport": 5, "seq": 77, "icmp_id": 3}
        made = Packet(tcp("S", sport=6).build(defaults, ttl=3))
        assert (made.src, made.sport, made.seq, made.ttl, made.flags) == ("10.7.7.7", 6, 77, 3, "S")
        assert (made.error, made.csum_ok, made.window) == (None, True, 65535)

    def test_what_is_forced_is_wrong_on_the_wire(self) -> None:
        made = Packet(tcp("S", csum=1, ip_len=999, doff=9, ip_csum=2).build())
        assert (made.csum, made.ip_len, made.doff, made.ip_csum) == (1, 999, 9, 2)

    def test_length_is_a_payload_of_zeros(self) -> None:
        assert packet(udp(length=4)).payload == bytes(4)
        assert packet(udp(b"ab", length=4)).payload == b"ab"

    def test_what_could_be_several_things_needs_a_default(self) -> None:
        template = tcp("A(P)", window=range(10, 20))
        assert Packet(template.build({"flags": "PA", "window": 15})).window == 15
        for defaults in ({"flags": "PA"}, {"flags": "PA", "window": 20}, {"window": 15}):
            with pytest.raises(ValueError, match=r"can't be made: (window|flags) could be"):
                template.build(defaults)
        with pytest.raises(ValueError, match="length could be 1 to 9"):
            tcp(length=range(1, 10)).build()
        assert Packet(tcp(csum=ANY).build()).csum_ok

    def test_absent_leaves_an_option_of_the_defaults_out(self) -> None:
        made = Packet(tcp("S", mss=ABSENT).build(SYN))
        assert (made.mss, made.wscale, made.ts) == (None, 7, (5, 0))

    def test_templates_are_changed_by_copy(self) -> None:
        template = tcp("S", seq=1)
        assert template.with_(seq=2, flags=None).fields == {"seq": 2}
        assert template.over({"seq": 9, "ack": 3}).fields == {"seq": 1, "ack": 3, "flags": "S"}
        assert template.fields == {"flags": "S", "seq": 1}

    def test_a_field_that_does_not_exist_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"udp\(\): udp has no field 'seq'; it has .*dport"):
            udp(seq=1)
        with pytest.raises(TypeError, match="tcp has no field 'windw'"):
            tcp(windw=1)
        with pytest.raises(TypeError, match="arp has no field 'ttl'"):
            arp().build(ttl=1)

    def test_repr_is_how_it_was_written(self) -> None:
        template = tcp("SA", mss=1460, window=range(3), ttl={64})
        assert repr(template) == "tcp(flags='SA', window=range(0, 3), mss=1460, ttl={64})"
        assert eval(repr(template)).fields == template.fields


@given(
    st.dictionaries(
        st.sampled_from(["sport", "dport", "window", "urgent", "ip_id", "mss"]),
        st.integers(0, 0xFFFF),
    ),
    st.sets(st.sampled_from("FSRPAUEC")).map("".join),
    st.binary(max_size=40),
)
def test_a_template_matches_what_it_makes(
    fields: dict[str, int], flags: str, payload: bytes
) -> None:
    template = tcp(flags, payload=payload, length=len(payload), **fields)
    assert template.match(Packet(template.build())) == []

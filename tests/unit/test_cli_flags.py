# SPDX-License-Identifier: MIT
"""Flags in gflags' spelling, as both message generators take them."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from machnet.cli._flags import GflagsCommand, message_options


@click.command(cls=GflagsCommand)
@message_options(msg_size_min=9, local_ip=None)
@click.option("--spare_name", default="none")
@click.pass_context
def command(ctx: click.Context, /, **values: Any) -> None:
    ctx.obj.update(values)


def parse(*args: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    result = CliRunner().invoke(command, ["--local_ip=10.0.0.1", *args], obj=values)
    assert result.exit_code == 0, result.output
    return values


def refusal(*args: str) -> str:
    result = CliRunner().invoke(command, args, obj={})
    assert result.exit_code == 2, result.output
    return result.output


def test_defaults():
    assert parse() == {
        "local_ip": "10.0.0.1",
        "local_port": 888,
        "remote_ip": "",
        "remote_port": 888,
        "msg_size": 64,
        "msg_window": 8,
        "msg_nr": None,
        "verify": False,
        "duration": None,
        "poll": "adaptive",
        "spin_us": 50,
        "as_json": False,
        "spare_name": "none",
    }


@pytest.mark.parametrize(
    "args",
    [
        ["--msg_size=1024"],
        ["--msg_size", "1024"],
        ["-msg_size=1024"],
        ["-msg_size", "1024"],
        ["--msg-size=1024"],
        ["--msg-size", "1024"],
        ["-msg-size", "1024"],
        ["--msg_size=64", "--msg_size=1024"],
    ],
)
def test_spellings_of_a_value(args):
    assert parse(*args)["msg_size"] == 1024


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--verify"], True),
        (["-verify"], True),
        (["--verify=true"], True),
        (["--verify=1"], True),
        (["--verify=T"], True),
        (["-verify=yes"], True),
        (["--noverify"], False),
        (["-noverify"], False),
        (["--verify=false"], False),
        (["--verify=0"], False),
        (["--verify=No"], False),
        (["--verify", "--noverify"], False),
        (["--noverify", "--verify"], True),
    ],
)
def test_spellings_of_a_boolean(args, expected):
    assert parse(*args)["verify"] is expected


def test_json_is_a_boolean_too():
    assert parse("--json")["as_json"] is True
    assert parse("--json=false")["as_json"] is False


def test_a_value_is_taken_as_it_is_even_if_it_looks_like_an_option():
    assert parse("--spare_name", "-x-y")["spare_name"] == "-x-y"
    assert parse("--spare_name=--no-dash-is-changed=1")["spare_name"] == "--no-dash-is-changed=1"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--msg_size=8"], ["--msg_size", "'8'", "9 to 8388608 bytes"]),
        (["--msg_size=8388609"], ["--msg_size", "'8388609'", "9 to 8388608 bytes"]),
        (["--msg_size=large"], ["--msg_size", "'large'", "9 to 8388608 bytes"]),
        (["--msg_size="], ["--msg_size", "''", "9 to 8388608 bytes"]),
        (["--msg_size", "-5"], ["--msg_size", "'-5'"]),
        (["--msg_window=0"], ["--msg_window", "'0'", "1 to 65536 messages"]),
        (["--msg_nr=0"], ["--msg_nr", "'0'", "from 1"]),
        (["--local_port=65536"], ["--local_port", "'65536'", "0 to 65535"]),
        (["--remote_port=0"], ["--remote_port", "'0'", "1 to 65535"]),
        (["--remote_ip=10.0.0.256"], ["--remote_ip", "'10.0.0.256'", "IPv4 address"]),
        (["--remote_ip=somewhere"], ["--remote_ip", "'somewhere'", "IPv4 address"]),
        (["--duration=0"], ["--duration", "'0'", "positive"]),
        (["--duration=nan"], ["--duration", "'nan'", "positive"]),
        (["--duration=inf"], ["--duration", "'inf'", "positive"]),
        (["--duration=5s"], ["--duration", "'5s'", "positive"]),
        (["--verify=maybe"], ["--verify", "'maybe'", "true nor false"]),
        (["--poll=never"], ["--poll", "'never'", "'busy', 'adaptive'"]),
        (["--msg_sise=64"], ["--msg_sise", "--msg_size"]),
        (["--msg_size"], ["--msg_size", "argument"]),
        (["extra"], ["unexpected extra argument", "extra"]),
        (["--", "--verify"], ["unexpected extra argument", "--verify"]),
    ],
)
def test_what_is_wrong_is_named_with_what_is_accepted(args, words):
    text = refusal("--local_ip=10.0.0.1", *args)
    for word in words:
        assert word in text


def test_a_required_address_is_asked_for():
    assert "--local_ip" in refusal()

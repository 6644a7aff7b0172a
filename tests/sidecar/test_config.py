# SPDX-License-Identifier: MIT
"""The sidecar's configuration: what is taken, and what is said about what is not."""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fake_sysfs import FakeSysfs

from machnet.cli import check, run
from machnet.dpdk import EalSettings, names
from machnet.sidecar.checks import group_id, parse_listen, user_id
from machnet.sidecar.config import (
    SOCKET_DEFAULT,
    Config,
    ConfigError,
    Controller,
    Dpdk,
    NicConfig,
    Quotas,
    changes,
    load_config,
    parse_config,
    socket_path,
)

MAC = "02:00:00:00:00:01"
OTHER = "02:00:00:00:00:02"


def text(entry: dict[str, Any] | None = None, mac: str = MAC, **top: Any) -> str:
    nic = {"ip": "10.0.0.2", "nic": "tap:mn0"}
    return json.dumps({"machnet_config": {mac: {**nic, **(entry or {})}}, **top})


def problems(config: str) -> list[str]:
    with pytest.raises(ConfigError) as failure:
        parse_config(config)
    assert str(failure.value) == "; ".join(failure.value.problems)
    return failure.value.problems


def problem(entry: dict[str, Any] | None = None, **more: Any) -> str:
    (only,) = problems(text(entry, **more))
    return only


def test_the_seeds_form_with_a_nic_is_enough() -> None:
    config = parse_config(text({"engine_threads": 1, "cpu_mask": "0xffffffff"}))
    (nic,) = config.nics
    assert (nic.mac, nic.address, nic.nic, nic.poll) == (MAC, "10.0.0.2/24", "tap:mn0", "adaptive")
    assert nic.cpus() == sorted(os.sched_getaffinity(0))
    assert config.controller == Controller()


def test_every_addition_arrives() -> None:
    entry = {
        "ip": "10.1.0.2",
        "prefix": 16,
        "gateway": "10.1.255.254",
        "mtu": 9000,
        "nic": "tap:mn1?loss=1%",
        "kernel_ip": "10.1.0.1/16",
        "engine_threads": 1,
        "cpu_mask": 1 << min(os.sched_getaffinity(0)),
        "poll": "busy",
        "spin_us": 0,
        "settings": {"rto_min_us": 5000, "sack": False},
    }
    controller = {
        "socket": "/tmp/x.sock",
        "mode": "0660",
        "users": ["root", 12345],
        "groups": [0],
        "quotas": {"channels_max": 3},
        "channel": {"tx_bufs": 64},
        "metrics": "127.0.0.1:0",
        "drain_ms": 100,
        "log_level": "debug",
        "log_format": "json",
    }
    config = parse_config(text(entry, controller=controller))
    (nic,) = config.nics
    assert nic.address == "10.1.0.2/16"
    assert nic.cpus() == [min(os.sched_getaffinity(0))]
    assert nic.settings.given() == {"rto_min_us": 5000, "sack": False}
    assert config.controller.quotas.channels_max == 3
    assert config.controller.quotas.connections_max == 1024
    assert config.controller.channel.tx_bufs == 64


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"engine_thread": 1}, ".engine_thread: there is no such setting: did you mean 'engine_threads'?"),
        ({"zzz": 1}, "there are ip, prefix"),
        ({"engine_threads": 0}, ".engine_threads: 0 is not a whole number from 1 to 16"),
        ({"engine_threads": "2"}, '.engine_threads: "2" is not a whole number'),
        ({"engine_threads": True}, ".engine_threads: true is not a whole number"),
        ({"ip": 5}, ".ip: 5 is not an IPv4 address of this host"),
        ({"ip": "10.0.0"}, "ip: '10.0.0' is not an IPv4 address"),
        ({"ip": "10.0.0.2/16", "prefix": 24}, "has another length than prefix, which is 24"),
        ({"ip": "10.0.0.255"}, "10.0.0.255 is the address of network 10.0.0.0/24 itself or its broadcast"),
        ({"prefix": 33}, ".prefix: 33 is not a whole number from 1 to 32"),
        ({"gateway": "10.0.1.1"}, "gateway: 10.0.1.1 is not in the network of 10.0.0.2/24"),
        ({"gateway": "10.0.0.2"}, "gateway: 10.0.0.2 is the address of this NIC"),
        ({"mtu": 12}, ".mtu: 12 is not a whole number from 256 to 65535 (bytes)"),
        ({"nic": "tap:a b"}, "nic: NIC 'tap:a b': it has blanks"),
        ({"nic": "wire:x"}, "is not one that runs by the clock"),
        ({"bind": True}, "bind: only a NIC of DPDK can be bound, not tap:mn0"),
        ({"bind": 1}, ".bind: 1 is not true or false"),
        ({"rx_desc": 64}, "rx_desc: only a NIC of DPDK has this, not tap:mn0"),
        ({"tx_desc": 1}, ".tx_desc: 1 is not a whole number from 32 to 32768 (descriptors)"),
        ({"pool_mbuf": 1}, ".pool_mbuf: there is no such setting: did you mean 'pool_mbufs'?"),
        ({"nic": "tap:mn0?los=1%"}, "did you mean"),
        ({"nic": "link:/tmp/x", "kernel_ip": "10.0.0.1/24"}, "only a TAP device has an end in the kernel"),
        ({"kernel_ip": "10.0.0.2/24"}, "kernel_ip: 10.0.0.2 is the address of the engines"),
        ({"kernel_ip": "x"}, "kernel_ip: 'x' is no IPv4 address"),
        ({"cpu_mask": "zz"}, "cpu_mask: 'zz' is not a mask of CPUs, such as 0x3"),
        ({"cpu_mask": "-1"}, "cpu_mask: '-1' is not a mask of CPUs"),
        ({"cpu_mask": hex(1 << 1000)}, "has none of the CPUs that this process may use"),
        ({"cpu_mask": hex(1 << min(os.sched_getaffinity(0))), "engine_threads": 2}, "leaves 1 CPUs for 2 engine_threads"),
        ({"poll": "bus"}, '.poll: "bus" is not "adaptive" or "busy"'),
        ({"settings": {"rto_min": 1}}, ".settings.rto_min: there is no such setting: did you mean 'rto_min_us'?"),
        ({"settings": {"ttl": 0}}, ".settings.ttl: 0 is not a whole number from 1 to 255"),
        ({"settings": {"loop_slots": 3}}, "loop_slots: 3 is out of its range"),
        ({"settings": []}, ".settings: [] is not an object"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_nic_is_named(entry: dict[str, Any], said: str) -> None:
    assert said in problem(entry)


def test_a_nic_of_dpdk_wants_dpdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("machnet.dpdk.available", lambda: True, raising=False)
    named = parse_config(text({"nic": "eth1", "bind": True})).nics[0]
    assert (named.string, named.bind) == ("eth1", True)
    assert parse_config(text({"nic": ""})).nics[0].string == f"dpdk:{MAC}"
    monkeypatch.setattr("machnet.dpdk.available", lambda: False, raising=False)
    monkeypatch.setattr("machnet.dpdk.missing_reason", lambda: "install it", raising=False)
    assert "nic: 'eth1': install it" in problem({"nic": "eth1"})
    assert f"nic: 'dpdk:{MAC}': install it" in problem({"nic": ""})


def test_settings_of_dpdk_are_those_of_its_environment_layer() -> None:
    assert parse_config(text()).dpdk is None
    values = {"huge": "off", "memory_mb": 64, "cores": [min(os.sched_getaffinity(0))]}
    dpdk = parse_config(text(dpdk=values | {"log_level": "debug", "args": ["--no-pci"]})).dpdk
    assert dpdk is not None
    assert dpdk.settings() == values | {
        "log_level": "debug",
        "args": ["--no-pci"],
        "file_prefix": None,
    }
    fields = {field.name: field.default for field in dataclasses.fields(EalSettings)}
    plain = Dpdk().settings()
    assert {**plain, "cores": tuple(plain["cores"]), "args": tuple(plain["args"])} == fields
    (nic,) = parse_config(text({"nic": "eth1", "rx_desc": 64, "tx_desc": 128})).nics
    assert (nic.rx_desc, nic.tx_desc, nic.pool_mbufs) == (64, 128, None)


# fmt: off
@pytest.mark.parametrize(
    ("dpdk", "said"),
    [
        ({"hug": "on"}, "dpdk.hug: there is no such setting: did you mean 'huge'?"),
        ({"huge": True}, 'dpdk.huge: true is not "auto" or "on" or "off"'),
        ({"memory_mb": 8}, "dpdk.memory_mb: 8 is not a whole number from 16 to 1048576 (MiB)"),
        ({"file_prefix": "a b"}, "dpdk.file_prefix: \"a b\" is not 1 to 63 letters"),
        ({"cores": [65000]}, "dpdk.cores: this process may not run on CPU 65000, only on "),
        ({"cores": "0"}, "dpdk.cores: \"0\" is not a list, each item a whole number"),
        ({"log_level": "loud"}, 'dpdk.log_level: "loud" is not "emergency" or "alert"'),
        ([], "dpdk: [] is not an object"),
    ],
)
def test_what_is_wrong_with_settings_of_dpdk_is_named(dpdk: Any, said: str) -> None:
    assert said in problem(dpdk=dpdk)
# fmt: on


@pytest.mark.parametrize(
    ("controller", "said"),
    [
        ({"sockets": "/x"}, "controller.sockets: there is no such setting: did you mean 'socket'?"),
        ({"socket": "x"}, "controller.socket: 'x' is not an absolute path"),
        ({"socket": "/" + "x" * 107}, "has 108 bytes: a socket's path has at most 107"),
        ({"mode": "rw"}, 'controller.mode: "rw" is not the socket file\'s permissions'),
        ({"users": ["no such user"]}, "controller.users: there is no user 'no such user'"),
        ({"users": "root"}, '"root" is not a list, each item a user\'s name, or a whole number'),
        ({"groups": ["no such group"]}, "there is no group 'no such group' on this machine"),
        ({"groups": [-1]}, "-1 is no number of a group"),
        ({"quotas": {"channels": 1}}, ".quotas.channels: there is no such setting"),
        ({"quotas": {"memory_bytes_max": 1}}, "is not a whole number from 65536"),
        ({"channel": {"buf_bytes": 1}}, "is not a whole number from 512 to 65536"),
        ({"metrics": "0.0.0.0:9464"}, "would be open to other machines"),
        ({"metrics": "9464"}, "is not an address with a port, such as 127.0.0.1:9464"),
        ({"metrics": "unix:x"}, "controller.metrics: 'x' is not an absolute path"),
        ({"drain_ms": -1}, "controller.drain_ms: -1 is not a whole number from 0 to 600000 (ms)"),
        ({"log_level": "loud"}, 'is not "debug" or "info" or "warning" or "error"'),
    ],
)
def test_what_is_wrong_with_the_controller_is_named(controller: dict[str, Any], said: str) -> None:
    assert said in problem(controller=controller)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "line 1, column 2:"),
        ("[]", "the configuration: [] is not an object"),
        ("{}", "'machnet_config' is missing"),
        ('{"machnet_config": {}}', "it names no NIC"),
        ('{"machnet_config": 1}', "machnet_config: 1 is not an object"),
        ('{"machnet_config": {"02:00:00:00:00:01": 1}}', "1 is not an object"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_configuration_is_refused(config: str, said: str) -> None:
    assert said in problems(config)[0]


def test_the_key_is_a_mac_address_of_a_station() -> None:
    assert "'eth1' is no MAC address" in problem(mac="eth1")
    assert "is a group's MAC address" in problem(mac="01:00:5e:00:00:01")
    assert "is no station's" in problem(mac="00:00:00:00:00:00")


def test_all_that_is_wrong_is_said_at_once() -> None:
    found = problems(text({"mtu": 1, "poll": "x"}, controler={}, controller={"mode": "9"}))
    assert len(found) == 4
    assert "controler: there is no such key: did you mean 'controller'?" in found


def test_values_are_looked_at_also_when_others_have_the_wrong_form() -> None:
    entries = {
        MAC: {"ip": "10.0.0.2", "nic": "tapp:mn0", "cpu_mask": "zz"},
        OTHER: {"ip": "10.0.0.3", "nic": "tap:mn1", "mtu": 1},
    }
    config = {"machnet_config": entries, "controller": {"metrics": "0.0.0.0:1"}}
    found = "\n".join(problems(json.dumps(config)))
    for said in ("no driver 'tapp'", "'zz' is not a mask", ".mtu: 1 is not", "would be open"):
        assert said in found
    assert len(found.splitlines()) == 4


def test_two_entries_may_not_share_what_is_one_nics() -> None:
    entry = {"ip": "10.0.0.2", "nic": "tap:mn0"}
    found = problems(json.dumps({"machnet_config": {MAC: entry, OTHER: entry}}))
    assert found == [
        f"ip 10.0.0.2 is that of two entries: {MAC} and {OTHER}",
        f"nic tap:mn0 is that of two entries: {MAC} and {OTHER}",
    ]


@pytest.mark.parametrize(
    "other", ["dpdk:net_af_packet0,iface=near0", "near0?loss=1%", "net_af_xdp0,iface=near0"]
)
def test_two_names_of_one_nic_are_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other: str
) -> None:
    """They are looked up on the machine where the configuration is checked."""
    tree = FakeSysfs(tmp_path)
    tree.virtual("near0")
    tree.virtual("far0", "02:00:00:00:00:0b")
    monkeypatch.setattr("machnet.dpdk.available", lambda: True, raising=False)
    monkeypatch.setattr(names.identity, "__defaults__", (tree.sysfs, tree.run))
    entries = {MAC: {"ip": "10.0.0.2", "nic": "near0"}, OTHER: {"ip": "10.0.0.3", "nic": other}}
    said = f"nic near0 is that of two entries: {MAC} and {OTHER}"
    assert problems(json.dumps({"machnet_config": entries})) == [said]
    entries[OTHER]["nic"] = other.replace("near0", "far0")
    assert len(parse_config(json.dumps({"machnet_config": entries})).nics) == 2


def test_a_key_that_is_there_twice_is_refused() -> None:
    once = json.dumps({"ip": "10.0.0.2", "nic": "tap:mn0"})
    doubled = f'{{"machnet_config": {{"{MAC}": {once}, "{MAC}": {once}}}}}'
    assert problems(doubled) == [f"'{MAC}' is there 2 times"]


def test_what_needs_a_new_process_is_known() -> None:
    old = parse_config(text(controller={"metrics": "127.0.0.1:1", "drain_ms": 1}))
    assert changes(old, old) == []
    new = parse_config(text({"mtu": 9000}, controller={"drain_ms": 2}))
    assert changes(old, new) == ["machnet_config", "controller.metrics"]
    assert changes(old, parse_config(text(controller={"metrics": "127.0.0.1:1"}, dpdk={}))) == [
        "dpdk"
    ]


def test_the_socket_is_that_of_option_file_environment_or_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MACHNET_SOCKET", raising=False)
    assert socket_path(None) == SOCKET_DEFAULT
    monkeypatch.setenv("MACHNET_SOCKET", "/e")
    assert socket_path(None) == "/e"
    assert socket_path(None, Controller(socket="/c")) == "/c"
    assert socket_path("/o", Controller(socket="/c")) == "/o"


def test_users_and_groups_are_names_or_numbers() -> None:
    me = pwd.getpwuid(0)
    assert user_id(me.pw_name) == user_id(0) == 0
    assert group_id(0) == 0


def test_metrics_on_an_address_that_is_taken_say_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        link = ["--nic", f"link:{tmp_path}/cable", "--ip", "10.0.0.2"]
        arguments = [*link, "--socket", f"{tmp_path}/s", "--metrics", where]
        result = subprocess.run(
            [sys.executable, "-P", "-m", "machnet.cli.run", *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert result.returncode == 1
    assert f"metrics on {where}: Address already in use" in result.stderr


def test_metrics_are_served_on_this_machine_alone() -> None:
    assert parse_listen("127.0.0.1:9464") == ("127.0.0.1", 9464)
    assert parse_listen("[::1]:1") == ("::1", 1)
    assert parse_listen("unix:/run/m") == "/run/m"
    with pytest.raises(ValueError, match="is not an address with a port"):
        parse_listen("localhost:99999")


# ---- machnet check, and machnet run up to its start ------------------------------------------------


def test_check_says_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "machnet.json"
    file.write_text(text(controller={"socket": "/tmp/x.sock"}))
    result = CliRunner().invoke(check.main, [str(file)])
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        f"{MAC}: 10.0.0.2/24 on tap:mn0, 1 engine, adaptive polling",
        "controller: /tmp/x.sock",
    ]


def test_check_of_a_wrong_file_is_status_1_with_a_line_for_each(tmp_path: Path) -> None:
    file = tmp_path / "machnet.json"
    file.write_text(text({"mtu": 1, "poll": "x"}))
    result = CliRunner().invoke(check.main, [str(file)])
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{file}: machnet_config.{MAC}.") for line in lines)


@pytest.mark.parametrize("content", [b"\xff", b" " * (1 << 20) + b"{}", b""])
def test_check_of_what_is_no_text_is_status_1(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "machnet.json"
    file.write_bytes(content)
    assert CliRunner().invoke(check.main, [str(file)]).exit_code == 1


def test_check_of_no_file_is_a_usage_error(tmp_path: Path) -> None:
    assert CliRunner().invoke(check.main, [str(tmp_path / "absent")]).exit_code == 2
    assert CliRunner().invoke(check.main, []).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--ip is missing"),
        (["--ip=10.0.0.2"], "it is not said which NIC: --mac MAC or --nic NIC"),
        (
            ["--ip=10.0.0.2", "--nic=tap:mn0", "--bind"],
            "only a NIC of DPDK can be bound, not tap:mn0",
        ),
        (["--config=/dev/null", "--bind"], "--bind is in the file that --config names, not beside"),
        (["--ip=10.0.0.2", "--mac=x"], "--mac: 'x' is no MAC address"),
        (["--ip=x"], "is not an IPv4 address"),
        # It is named once; of what is wrong beside it, it is said whose it is.
        (["--ip=10.0.0.2", "--nic=dpkd:near0"], "Error: nic: NIC 'dpkd:near0': there is no driver"),
        (["--ip=10.0.0.255", "--nic=tap:mn0"], "Error: tap:mn0: ip: 10.0.0.255 is the address of"),
        (["--ip=10.0.0.2", "--nic=tap:mn0", "--cpu_mask=x"], "'x' is not a mask of CPUs"),
        (["--ip=10.0.0.2", "--nic=tap:mn0", "--socket=x"], "'x' is not an absolute path"),
        (["--ip=10.0.0.2", "--nic=tap:mn0", "--metrics=x"], "such as 127.0.0.1:9464"),
        (["--ip=10.0.0.2", "--nic=tap:mn0", "--mtu=1"], "from 256 to 65535 bytes"),
        (["--config=/no/such/file"], "No such file or directory"),
        (["--config=/dev/null"], "/dev/null: line 1, column 1"),
        (["--config=/dev/null", "--ip=10.0.0.2"], "--ip is in the file that --config names"),
    ],
)
def test_run_refuses_a_wrong_command_line(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(run.main, arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_a_file_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "machnet.json"
    file.write_text(text())
    assert isinstance(load_config(file), Config)


# ---- the documentation -------------------------------------------------------------------------------


def test_the_page_has_every_key_with_its_default(repo: Path) -> None:
    page = (repo / "docs" / "sidecar.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w.]+)` \|\s*([^|]*?)\s*\|", page, re.MULTILINE))
    quotas = {f"quotas.{name}" for name in Quotas.__struct_fields__}
    names = {*NicConfig.__struct_fields__, *Controller.__struct_fields__, *quotas}
    names |= {*Dpdk.__struct_fields__}
    assert rows.keys() == names - {"mac", "quotas"}
    for name in ("channels_max", "connections_max", "connections_per_user_max", "flows_max"):
        assert rows[f"quotas.{name}"] == str(getattr(Quotas(), name))
    assert rows["drain_ms"] == str(Controller().drain_ms)


def test_the_pages_example_is_right(repo: Path) -> None:
    page = (repo / "docs" / "sidecar.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    example = example.replace("alice", "root").replace('"0x1"', f'"{2 ** min(os.sched_getaffinity(0)):#x}"')  # fmt: skip
    assert parse_config(example).nics[0].nic == "tap:mn0"

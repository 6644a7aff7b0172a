# SPDX-License-Identifier: MIT
"""``machnet dissector``: where Wireshark's dissector of mnp is, and how it is used."""

from __future__ import annotations

from pathlib import Path

import click

import machnet

_HOW = """\
Wireshark's dissector of mnp, the Machnet message protocol:

    {path}

Once:       tshark -X lua_script:"$(machnet dissector --path)" -r FILE -Y mnp
For good:   ln -s "$(machnet dissector --path)" ~/.local/lib/wireshark/plugins/

Filters:    mnp.seqno == 7                    one packet and its retransmissions
            mnp.net_flags == 0x80             resets; mnp.reset_reason in extended mode
            mnp.stream == 0 && mnp.mode == "extended"
            mnp.analysis.retransmission || mnp.analysis.duplicate_ack
            mnp.message.bytes > 1000000       packets that complete a large message
            mnp.expert                        all that is remarkable

On ports that another protocol is known for (7 is echo): -o udp.try_heuristic_first:TRUE, or
-d udp.port==7,mnp.

The mode of a flow is read from its handshake. Where that was not captured it is taken for plain
mode; -o mnp.unseen:extended says otherwise. Filters for tshark are quoted for the shell.
"""


def dissector_path() -> Path:
    """Where the Lua file is that came with this installation."""
    return Path(machnet.__file__).resolve().parent / "data" / "mnp.lua"


@click.command()
@click.option("--path", "only_path", is_flag=True, help="Print the path of the Lua file, no more.")
def main(only_path: bool) -> None:
    """Wireshark's dissector of the message protocol: where it is, how it is used."""
    path = dissector_path()
    click.echo(str(path) if only_path else _HOW.format(path=path), nl=only_path)

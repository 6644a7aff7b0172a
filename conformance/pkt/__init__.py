# SPDX-License-Identifier: MIT
"""A reader for packetdrill's script language: a user's ``.pkt`` files against Linux and machnet.

`parser.parse` makes events of a text (`nodes`), `run.run` plays them to a stack behind a wire
(`arms`), and `collect` makes pytest items of files. docs/packetdrill.md says what is supported.
"""

# SPDX-License-Identifier: MIT
"""The commands: ``machnet`` with its subcommands, ``msg_gen`` and ``tcp_msg_gen``."""

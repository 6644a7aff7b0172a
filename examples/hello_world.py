# SPDX-License-Identifier: MIT
"""A server waits for one message and prints it; with --remote, a client sends "Hello World!".

python hello_world.py --local 10.0.0.2
python hello_world.py --local 10.0.0.3 --remote 10.0.0.2
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys

import machnet


def address(text: str) -> str:
    """An IPv4 address, as it was given."""
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def port(text: str) -> int:
    """A port number."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 65535, not {text!r}")
    return int(text)


def main() -> int:
    """Be the server or the client; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--local", type=address, required=True, help="the address of the machnet sidecar here"
    )
    parser.add_argument(
        "--remote", type=address, help="send to the server there; without it, be the server"
    )
    parser.add_argument(
        "--port", type=port, default=31580, help="the server's (default %(default)s)"
    )
    parser.add_argument(
        "--protocol",
        choices=["udp", "tcp"],
        default=os.environ.get("MACHNET_PROTOCOL") or "udp",
        help="default: MACHNET_PROTOCOL, else udp",
    )
    options = parser.parse_args()
    try:
        with machnet.attach() as channel:
            if options.remote is not None:
                flow = channel.connect(
                    options.local,
                    options.remote,
                    options.port,
                    protocol=options.protocol,
                    timeout=10,
                )
                channel.send(flow, b"Hello World!")
                print(f"sent to {options.remote}:{options.port}", file=sys.stderr)
            else:
                channel.listen(options.local, options.port, protocol=options.protocol)
                print(f"listening on {options.local}:{options.port}", file=sys.stderr, flush=True)
                message = channel.recv()
                print(f"received from {message.flow}", file=sys.stderr)
                print(message.data.decode())
    except (OSError, ValueError) as error:
        print(f"hello_world: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: MIT
"""``machnet check``: is a configuration right?"""

from __future__ import annotations

import sys

import click


@click.command(name="check", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(dir_okay=False, exists=True, readable=True))
def main(*, file: str) -> None:
    """Check the configuration FILE of a sidecar, on the machine where it is to be used.

    Exit status: 0 when it is right; 1 when it is not: each line says where, what is there and what is
    accepted; 2 when the command line is wrong.
    """
    from machnet.sidecar.config import ConfigError, load_config, socket_path

    try:
        config = load_config(file)
    except ConfigError as error:
        for problem in error.problems:
            print(f"{file}: {problem}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        raise click.UsageError(f"{file}: {error.strerror}.") from None
    for nic in config.nics:
        engines = f"{nic.engine_threads} engine{'s' if nic.engine_threads > 1 else ''}"
        print(f"{nic.mac}: {nic.address} on {nic.string}, {engines}, {nic.poll} polling")
    print(f"controller: {socket_path(None, config.controller)}")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: MIT
"""Every language's hello world to every other's, through real sidecars."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from language_kit import PROTOCOLS, Program, run
from sidecar import Sidecar

LANGUAGES = ("c", "python", "js", "csharp")
PAIRS = list(itertools.product(LANGUAGES, repeat=2))
Command = Callable[[str], list[str | Path]]


def greet(
    server: list[str | Path],
    client: list[str | Path],
    *,
    at: Sidecar,
    client_at: Sidecar,
    env: dict[str, str],
    cwd: Path | None = None,
) -> None:
    """The client says hello to the server; both end well, and the server has printed it."""
    with Program(
        [*server, "--local", at.ip], {**env, "MACHNET_SOCKET": at.socket}, cwd
    ) as listening:
        listening.wait_said("listening on")
        status, out, err = run(
            [*client, "--local", client_at.ip, "--remote", at.ip],
            {**env, "MACHNET_SOCKET": client_at.socket},
            cwd,
        )
        assert (status, out) == (0, ""), err
        status, out, err = listening.finish()
        assert (status, out) == (0, "Hello World!\n"), err


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("server", "client"), PAIRS, ids=lambda language: language)
def test_each_language_says_hello_to_each(
    hello: Command,
    sidecars: tuple[Sidecar, Sidecar],
    shim_env: dict[str, str],
    server: str,
    client: str,
    protocol: str,
    port: int,
) -> None:
    """Half of them to an application of the same sidecar, half to that of another: every pair has both."""
    first, second = sidecars
    same = (PAIRS.index((server, client)) + PROTOCOLS.index(protocol)) % 2 == 0
    where = ["--port", str(port)]
    greet(
        [*hello(server), *where],
        [*hello(client), *where],
        at=first,
        client_at=first if same else second,
        env={**shim_env, "MACHNET_PROTOCOL": protocol},
    )


def test_python_without_a_sidecar_says_where_it_looked(
    hello: Command, shim_env: dict[str, str], tmp_path: Path
) -> None:
    socket = str(tmp_path / "none.sock")
    status, out, err = run(
        [*hello("python"), "--local", "10.0.0.1"], {**shim_env, "MACHNET_SOCKET": socket}
    )
    assert (status, out) == (1, "")
    assert err.startswith("hello_world: ")
    assert socket in err
    assert err.count("\n") == 1


def test_python_that_is_interrupted_says_nothing(
    hello: Command, sidecars: tuple[Sidecar, Sidecar], shim_env: dict[str, str], port: int
) -> None:
    sidecar = sidecars[0]
    command = [*hello("python"), "--local", sidecar.ip, "--port", str(port)]
    with Program(command, {**shim_env, "MACHNET_SOCKET": sidecar.socket}) as server:
        server.wait_said("listening on")
        server.process.send_signal(signal.SIGINT)
        status, out, err = server.finish()
    assert (status, out) == (130, "")
    assert err == f"listening on {sidecar.ip}:{port}\n"


@pytest.mark.plain_only
@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ([], "--local"),
        (["--local", "10.0.0.300"], "'10.0.0.300'"),
        (["--local", "10.0.0.1", "--port", "0"], "from 1 to 65535, not '0'"),
        (["--local", "10.0.0.1", "--protocol", "sctp"], "'sctp'"),
    ],
)
def test_python_with_wrong_arguments_is_status_2(
    hello: Command, args: list[str], complaint: str
) -> None:
    status, out, err = run([*hello("python"), *args], {})
    assert (status, out) == (2, "")
    assert complaint in err.splitlines()[-1]

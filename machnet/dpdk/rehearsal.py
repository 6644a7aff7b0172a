# SPDX-License-Identifier: MIT
"""EAL's start, tried in a process of its own.

EAL calls ``exit`` on some arguments (``--help``; from 25.11 on all that it does not know), which would end
the application. Where somebody has given arguments of their own, they are tried elsewhere first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

__all__ = ["survives"]

_LIMIT_S = 60
_BEGAN, _LIVED = "began", "lived"
# Whether EAL starts is nothing to this process: the real start says why not.
_CODE = f"""
import os, sys
from machnet._dpdk import ffi, lib
kept = [ffi.new("char[]", os.fsencode(arg)) for arg in sys.argv[1:]]
text = ffi.new("char[]", lib.MN_DPDK_ERR_BYTES)
os.write(1, b"{_BEGAN}")
if lib.mn_dpdk_init(len(kept), kept, 1, text, lib.MN_DPDK_ERR_BYTES) == 0:
    lib.mn_dpdk_fini()
os.write(1, b"{_LIVED}")
"""


def survives(args: Sequence[str]) -> bool:
    """Whether a process outlives the start of EAL with these arguments.

    Args:
        args: EAL's command line, the program's name in front.

    Returns:
        Also True where it can't be tried: there is no Python to run, it does not find this package, or
        takes over a minute.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        return True
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        trial = subprocess.run(
            [sys.executable, "-c", _CODE, *args],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return True
    return _BEGAN not in trial.stdout or trial.stdout.endswith(_LIVED)

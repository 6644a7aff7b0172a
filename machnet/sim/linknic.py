# SPDX-License-Identifier: MIT
"""`LinkNic`: a NIC whose other end is a NIC of another process on this machine."""

from __future__ import annotations

import os

from machnet._native import ffi, lib
from machnet.errors import os_error
from machnet.stack.names import parse_mac
from machnet.stack.nics import Nic

__all__ = ["LinkNic"]


class LinkNic(Nic):
    """One end of a cable between two processes: a UNIX socket, which takes no privileges.

    Whoever comes first listens, the other one connects; the order does not matter. When one end
    goes away the other one waits for the next, and a third one waits for its turn. Frames that are
    sent while nobody is there are lost.

    Args:
        path: Of the socket, 1 to 107 bytes; a lock of the same name and ``.lock`` is beside it.
            Both are for this user alone, and go away with the end that made them.
        mtu: Bytes, 68 to 65521; the same at both ends, as on any cable.
        mac: This end's address; None: a random one.

    Raises:
        OSError: It can't be opened; the text says why.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, mtu: int = 1500, mac: str | None = None
    ) -> None:
        c_path = ffi.new("char[]", os.fsencode(path))
        config = ffi.new("struct mn_linknic_config *")
        config.path, config.mtu = c_path, mtu
        if mac is not None:
            config.mac = list(parse_mac(mac))
        out, text = ffi.new("struct mn_nic **"), ffi.new("char[]", lib.MN_LINKNIC_ERR_BYTES)
        rc = lib.mn_linknic_open(config, out, text, lib.MN_LINKNIC_ERR_BYTES)
        if rc < 0:
            said = ffi.string(text).decode(errors="replace")
            raise OSError(-rc, said) if said else os_error(-rc, f"link:{os.fspath(path)}")
        super().__init__(ffi.gc(out[0], lib.mn_linknic_close), f"link:{os.fspath(path)}")

    @property
    def connected(self) -> bool:
        """Whether the other end is there, as of the last time that this one was polled."""
        return bool(self._info().link_up)

    def stats(self) -> dict[str, int]:
        """Frames, bytes and messages of the socket, and what was lost for which reason."""
        out = ffi.new("struct mn_linknic_stats *")
        lib.mn_linknic_get_stats(self.native, out)
        return {name: int(getattr(out, name)) for name, _ in ffi.typeof(out).item.fields}

    def _release(self) -> None:
        ffi.release(self._handle)

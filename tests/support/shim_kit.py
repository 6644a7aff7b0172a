# SPDX-License-Identifier: MIT
"""The C library in tests: through ctypes as `Api`, and in programs that `Compiler` makes."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from machnet._native import lib as native
from machnet.cli import paths

PORT = 888
IP = "10.0.0.2"
UDP, TCP, STREAM = 0, 1, 2
NO_EINTR = 0x100
#: Of events that must come, in seconds.
PATIENCE_S = 30.0
SANITIZED = bool(native.mn_build_sanitized())


class Flow(ctypes.Structure):
    """struct MachnetFlow."""

    _fields_ = (
        ("src_ip", ctypes.c_uint32),
        ("dst_ip", ctypes.c_uint32),
        ("src_port", ctypes.c_uint16),
        ("dst_port", ctypes.c_uint16),
    )

    def key(self) -> tuple[int, int, int, int]:
        return (self.src_ip, self.dst_ip, self.src_port, self.dst_port)

    def swapped(self) -> Flow:
        return Flow(self.dst_ip, self.src_ip, self.dst_port, self.src_port)


class Iovec(ctypes.Structure):
    """struct MachnetIovec."""

    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class MsgHdr(ctypes.Structure):
    """struct MachnetMsgHdr."""

    _fields_ = (
        ("msg_size", ctypes.c_uint32),
        ("flow_info", Flow),
        ("msg_iov", ctypes.POINTER(Iovec)),
        ("msg_iovlen", ctypes.c_size_t),
        ("flags", ctypes.c_uint16),
    )


class Pieces:
    """A MsgHdr over buffers of its own, which live as long as it."""

    def __init__(self, parts: list[bytes | int], flow: Flow | None = None) -> None:
        self.buffers = [
            ctypes.create_string_buffer(part, len(part) or 1)
            if isinstance(part, bytes)
            else ctypes.create_string_buffer(part or 1)
            for part in parts
        ]
        sizes = [len(part) if isinstance(part, bytes) else part for part in parts]
        self.iov = (Iovec * max(len(parts), 1))(
            *[
                Iovec(ctypes.addressof(buffer), size)
                for buffer, size in zip(self.buffers, sizes, strict=True)
            ]
        )
        self.hdr = MsgHdr(sum(sizes), flow or Flow(), self.iov, len(parts), 0)

    def data(self) -> list[bytes]:
        return [buffer.raw[: self.iov[i].len] for i, buffer in enumerate(self.buffers)]


_PTR, _INT, _U16, _TEXT = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint16, ctypes.c_char_p
_FLOW_PTR, _HDR_PTR = ctypes.POINTER(Flow), ctypes.POINTER(MsgHdr)
_PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "init": (_INT,),
    "attach": (_PTR,),
    "detach": (_INT, _PTR),
    "set_protocol": (_INT, _PTR, _INT),
    "fd": (_INT, _PTR),
    "version": (_TEXT,),
    "listen": (_INT, _PTR, _TEXT, _U16),
    "listen_proto": (_INT, _PTR, _TEXT, _U16, _INT),
    "unlisten": (_INT, _PTR, _TEXT, _U16),
    "connect": (_INT, _PTR, _TEXT, _TEXT, _U16, _FLOW_PTR),
    "connect_proto": (_INT, _PTR, _TEXT, _TEXT, _U16, _FLOW_PTR, _INT),
    "close": (_INT, _PTR, Flow),
    "flow_error": (_INT, _PTR, Flow),
    "send": (_INT, _PTR, Flow, _TEXT, ctypes.c_size_t, ctypes.POINTER(ctypes.c_uint64)),
    "sendmsg": (_INT, _PTR, _HDR_PTR),
    "sendmmsg": (_INT, _PTR, _HDR_PTR, _INT),
    "recv": (_INT, _PTR, _PTR, ctypes.c_size_t, _FLOW_PTR),
    "recvmsg": (_INT, _PTR, _HDR_PTR),
    "recv_wait": (_INT, _PTR, _HDR_PTR, ctypes.c_int64),
}


class Api:
    """libmachnet_shim.so in this process: ``api.listen(ctx, ...)`` is ``machnet_listen``."""

    def __init__(self) -> None:
        self.so = ctypes.CDLL(str(paths.lib_path("lib")), use_errno=True)
        for name, (result, *arguments) in _PROTOTYPES.items():
            call = getattr(self.so, f"machnet_{name}")
            call.restype, call.argtypes = result, arguments

    def __getattr__(self, name: str) -> Any:
        return getattr(self.so, f"machnet_{name}")

    def fails(self, name: str, *arguments: Any) -> int:
        """The errno of a call that has to fail."""
        ctypes.set_errno(0)
        result = getattr(self, name)(*arguments)
        assert result == (None if name == "attach" else -1), (name, result)
        return ctypes.get_errno()

    def connected(self, ctx: int, port: int = PORT, protocol: int = TCP, ip: str = IP) -> Flow:
        flow = Flow()
        assert self.connect_proto(ctx, ip.encode(), ip.encode(), port, flow, protocol) == 0, (
            os.strerror(ctypes.get_errno())
        )
        return flow

    def put(self, ctx: int, flow: Flow, data: bytes) -> None:
        end = time.monotonic() + PATIENCE_S
        while self.send(ctx, flow, data, len(data), None) != 0:
            assert ctypes.get_errno() == 11, os.strerror(ctypes.get_errno())
            assert time.monotonic() < end, "no room for a message"

    def get(self, ctx: int, size: int = 65536) -> tuple[bytes, Flow]:
        """The next message, waiting for it."""
        message = Pieces([size])
        message.hdr.flags = NO_EINTR
        rc = self.recv_wait(ctx, message.hdr, int(PATIENCE_S * 1e6))
        assert rc == 1, (rc, os.strerror(ctypes.get_errno()))
        return message.data()[0][: message.hdr.msg_size], message.hdr.flow_info


class Compiler:
    """Makes C programs that use one of the libraries. A context manager."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="mn-shim-")
        self.directory = Path(self._directory.name)

    def build(
        self,
        source: Path,
        name: str,
        library: str | Path = "lib",
        command: tuple[str, ...] = ("gcc", "-std=c99"),
        flags: tuple[str, ...] = (),
    ) -> Path:
        """The program. ``library``: a build of `machnet.cli.paths.lib_path`, or a directory."""
        where = library if isinstance(library, Path) else paths.lib_path(library).parent
        out = self.directory / name
        sanitizers = ("-fsanitize=address,undefined",) if SANITIZED else ()
        subprocess.run(
            [
                *command,
                "-Wall",
                "-Wextra",
                "-Werror",
                "-g",
                *sanitizers,
                *flags,
                f"-I{paths.include_dir()}",
                str(source),
                "-o",
                str(out),
                f"-L{where}",
                "-lmachnet_shim",
                f"-Wl,-rpath,{where}",
            ],
            check=True,
            # A compiler need not be watched by the sanitizers that are preloaded for Python.
            env={k: v for k, v in os.environ.items() if k != "LD_PRELOAD"},
        )
        return out

    def close(self) -> None:
        self._directory.cleanup()

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class Program:
    """A program that runs with a sidecar's socket. A context manager that ends it."""

    def __init__(self, *command: str | Path, socket: str, **env: str) -> None:
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "MACHNET_SOCKET": socket, **env},
        )

    def line(self) -> str:
        """The next line that it prints on stderr, which is where the programs say how far they are."""
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert line, f"it ended: {self.process.wait(PATIENCE_S)}"
        return line.rstrip("\n")

    def result(self) -> tuple[int, str, str]:
        """Exit status and what it printed, once it has ended."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err

    def ends_well(self) -> str:
        status, out, err = self.result()
        assert status == 0, (status, out, err)
        return out

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


def have(tool: str) -> bool:
    return shutil.which(tool) is not None

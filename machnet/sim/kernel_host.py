# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (connect() works on two hosts of this class)
"""A Linux host for a test: network namespaces that come without root and vanish by themselves."""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import itertools
import marshal
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from machnet.sim import _hostcall, _nsinit
from machnet.sim._hostcore import KernelHostError, failure
from machnet.sim._hostnet import HostNetwork, check_ifname

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["CommandError", "KernelHost", "KernelHostError"]

T = TypeVar("T")

# Unlike the kernel's own choice, never the same at both ends: of a device whose peer has its index,
# Linux takes the change of carrier for something that may wait for a second.
_veth_indices = itertools.count(1001)


class CommandError(subprocess.CalledProcessError):
    """A command ended with a status other than 0; the text shows the end of what it said."""

    def __str__(self) -> str:
        said = [f"\n{name}:\n{str(text)[-2000:]}" for name, text in
                (("stdout", self.stdout), ("stderr", self.stderr)) if text]  # fmt: skip
        return f"{super().__str__()}{''.join(said)}"


class KernelHost(HostNetwork):
    """A Linux host of a test's own: a network namespace with a process that holds it.

    With the right to do so (root) it is a network namespace alone; without, it lies in a user
    namespace in which the caller is root, as ``unshare -Urn`` makes it. ``lo`` is up, nothing else
    exists. Nothing is visible outside, nothing has a name outside, and everything ends with the
    process that made it, even by SIGKILL: the holder watches its owner, and on the owner's end
    kills what still runs inside and leaves; the kernel removes a namespace that nobody uses.

    Use it as a context manager, or call `close`. Methods may be called from any thread.

    Args:
        name: for messages and `ps`.
        ipv6: False disables IPv6 on every interface, so that no router solicitation or neighbour
            discovery disturbs a capture. (Where /proc/sys is read-only it can't be: `ipv6` tells.)
        user_namespace: None decides by what is permitted; True insists on a user namespace.

    Raises:
        KernelHostError: The host can't be made; the text has the reason and what helps.
            `available` asks beforehand.
    """

    # ---- running things --------------------------------------------------------------------------

    def popen(self, command: Sequence[str | os.PathLike[str]], **options: Any) -> Any:
        """Start a command on this host and return its `subprocess.Popen`.

        Returns once the command has been executed. It is an ordinary child of this process; it ends
        with the host at the latest.

        Args:
            command: program and arguments; for a shell say ``["sh", "-c", ...]``.
            options: those of `subprocess.Popen`, but for ``executable``, ``shell``,
                ``preexec_fn``, ``user``, ``group`` and ``extra_groups``.

        Raises:
            FileNotFoundError, PermissionError: There is no such command, or it may not be run.
        """
        self._check_open()
        if isinstance(command, str | bytes):
            raise TypeError(
                f'the command is a list: {shlex.split(str(command))}, or ["sh", "-c", ...]'
            )
        for option in ("executable", "shell", "preexec_fn", "user", "group", "extra_groups"):
            if option in options:
                raise TypeError(f"KernelHost.popen does not take {option}=")
        environment = options.get("env")
        drop_lc_ctype = "LC_CTYPE" not in (os.environ if environment is None else environment)
        user_fd = self._user.fd if self._user else -1
        words = [os.fspath(word) for word in command]
        more_fds = options.pop("pass_fds", ())
        with _hostcall.FORK_LOCK:
            error_fd, their_error_fd = os.pipe()
            fds = [self._owner_fd, user_fd, self._net_fd, their_error_fd]
            program = [sys.executable, "-I", "-S", _nsinit.__file__, "exec", *map(str, fds)]
            try:
                process = subprocess.Popen(
                    [*program, str(int(drop_lc_ctype)), "--", *words],
                    pass_fds=[*more_fds, *(fd for fd in fds if fd >= 0)],
                    **options,
                )
            except BaseException:
                os.close(error_fd)
                raise
            finally:
                os.close(their_error_fd)
        # Kept until they have ended, so that one which the caller forgets is ended and collected.
        self._processes = [other for other in self._processes if other.poll() is None]
        self._processes.append(process)
        process.args = words
        try:
            self._raise_exec_error(process, words, error_fd)
        finally:
            os.close(error_fd)
        return process

    def _raise_exec_error(
        self, process: subprocess.Popen[Any], words: list[str], error_fd: int
    ) -> None:
        """Wait until the command has been executed (the pipe closes), or for why it wasn't."""
        report = os.read(error_fd, _nsinit.MESSAGE_BYTES_MAX)
        if not report:
            return
        process.communicate()
        step, number = marshal.loads(report)  # noqa: S302 (from our own child)
        if step == "running the command":
            raise OSError(number, f"{os.strerror(number)} (on {self})", words[0])
        raise failure(f"{self}, {shlex.join(words)}", step, number)

    def run(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        timeout: float | None = 30.0,
        check: bool = True,
        input: str | bytes | None = None,  # noqa: A002 (subprocess.run's name)
        **options: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a command on this host to its end and return its output.

        Args:
            command: program and arguments.
            timeout: seconds until it and what it has started are killed; None waits for ever.
            check: raise if its exit status is not 0.
            input: what it reads; without it, it reads an empty file.
            options: those of `popen`. The output is captured as text unless they say otherwise.

        Raises:
            CommandError: It ended with another status than 0 (a `subprocess.CalledProcessError`).
            subprocess.TimeoutExpired: It took too long and was killed.
        """
        options.setdefault("stdin", subprocess.DEVNULL if input is None else subprocess.PIPE)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        options.setdefault("text", not isinstance(input, bytes))
        options["start_new_session"] = True  # a group of its own, to be killed as one
        with self.popen(command, **options) as process:
            try:
                out, err = process.communicate(input, timeout)
            except BaseException as error:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                if isinstance(error, subprocess.TimeoutExpired):
                    error.stdout, error.stderr = process.communicate()
                    error.cmd = process.args
                raise
        if check and process.returncode != 0:
            raise CommandError(process.returncode, process.args, out, err)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def call(
        self, func: Callable[..., T], *args: Any, timeout: float | None = 30.0, **kwargs: Any
    ) -> T:
        """Run a Python function on this host, in a forked child, and return its result.

        Any callable will do, closures too. Its result (or exception) is pickled on the way back;
        what it changes in memory is lost. The child has the calling thread only: it must not wait
        for a lock or a queue that another thread of this process uses, and an engine that runs in
        a thread does not run there. `socket` is the better way to a kernel socket.

        Args:
            func: the function.
            args: its arguments.
            timeout: seconds until the child is killed; None waits for ever.
            kwargs: its keyword arguments.

        Raises:
            TimeoutError: It took longer than `timeout` and was killed.
            KernelHostError: It ended without a result that can be passed on.
        """
        self._check_open()
        user_fd = self._user.fd if self._user else -1
        enter = functools.partial(_nsinit.enter_namespaces, self._owner_fd, user_fd, self._net_fd)
        what = getattr(func, "__qualname__", repr(func))
        try:
            result: T = _hostcall.call_in_child(
                enter, functools.partial(func, *args, **kwargs), timeout
            )
        except _hostcall.LostResultError as error:
            raise KernelHostError(f"{self}: {what}() gave no result: {error}") from error
        except _hostcall.CallTimeoutError as error:
            raise TimeoutError(f"{self}: {what}() took longer than {timeout} s") from error
        return result

    @staticmethod
    def connect(
        a: KernelHost,
        b: KernelHost,
        a_ip: str | None = None,
        b_ip: str | None = None,
        *,
        mtu: int = 1500,
        offloads: bool = True,
        names: tuple[str, str] | None = None,
    ) -> tuple[str, str]:
        """Connect two hosts of this process by a cable (a veth pair), up and ready for traffic.

        Args:
            a: one host.
            b: the other one.
            a_ip: address of `a` on it, as "10.0.1.1/24".
            b_ip: address of `b` on it.
            mtu: bytes without the Ethernet header, 68 to 65535.
            offloads: False turns checksum and segmentation offloads off at both ends, so that
                every frame is complete and within the MTU.
            names: of the interfaces; None takes the next free ``vethN`` of each.

        Returns:
            The names of the interfaces on `a` and `b`.

        Raises:
            KernelHostError: The kernel refused.
        """
        if names is None:
            names = f"veth{next(a._veths)}", f"veth{next(b._veths)}"
        ends = [(a, check_ifname(names[0]), a_ip), (b, check_ifname(names[1]), b_ip)]
        for _, _, ip in ends:
            if ip is not None:
                ipaddress.IPv4Interface(ip)
        b._check_open()
        # Of two hosts, the one outside a user namespace has the right over both.
        (near, near_name, _), (far, far_name, _) = ends if b.in_user_namespace else ends[::-1]
        peer = {
            "ifname": far_name,
            "index": next(_veth_indices),
            "mtu": mtu,
            "address": far._new_mac(),
            "net_ns_fd": far._net_fd,
        }
        link = {
            "ifname": near_name,
            "index": next(_veth_indices),
            "mtu": mtu,
            "address": near._new_mac(),
            "kind": "veth",
            "peer": peer,
        }
        step = f"connecting {near_name} to {far_name} of {far}"
        near._netlink(step, lambda route: route.link("add", **link))
        for host, name, ip in ends:
            if not offloads:
                host.set_offloads(name, on=False)
            if ip is not None:
                host.add_address(name, ip)
            host.set_link(name, up=True)
        for host, name, _ in ends:
            host._wait_running(name)
        return names

    def open_veth(
        self, name: str, outside: str, *, mtu: int = 1500, kernel_ip: str | None = None
    ) -> None:
        """Connect this host with this process's own namespace by a cable (a veth pair).

        For a driver that takes over an interface that it can see, such as DPDK's net_af_packet: the
        kernel here leaves the outer end alone. What the host sends on its end is finished and within
        the MTU. Delete either end to take the pair away; it goes with the host, too.

        Args:
            name: the interface's name on the host.
            outside: its other end's name in this process's namespace, at most 15 bytes.
            mtu: bytes without the Ethernet header, 68 to 65535.
            kernel_ip: the host's address on it, as "10.0.0.1/24".

        Raises:
            KernelHostError: The kernel refused (EPERM: it takes the right over this namespace, as
                root has it; EEXIST: there is an interface of this name).
        """
        check_ifname(outside)
        own_fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            peer = {"ifname": outside, "mtu": mtu, "address": self._new_mac()}
            link = {
                "ifname": check_ifname(name),
                "index": next(_veth_indices),
                "mtu": mtu,
                "address": self._new_mac(),
                "kind": "veth",
                "peer": {**peer, "net_ns_fd": own_fd},
            }
            step = f"connecting {name} to {outside} of this process's namespace"
            self._netlink(step, lambda route: route.link("add", **link))
        finally:
            os.close(own_fd)
        leave_alone(outside)
        self.set_offloads(name, on=False)
        if kernel_ip is not None:
            self.add_address(name, kernel_ip)
        self.set_link(name, up=True)
        self._netlink_here(f"bringing {outside} up", outside, state="up")
        self._wait_running(name)

    def adopt(self, name: str) -> None:
        """Take an interface of this process's own namespace over, until `give_back`.

        It comes without addresses; it is up, and its offloads are off. If the host ends before, so
        does a virtual interface; a physical one goes to the first namespace of the machine.

        Raises:
            KernelHostError: The kernel refused (EPERM: it takes root).
        """
        self._netlink_here(f"moving {name} to {self}", name, net_ns_fd=self._net_fd)
        self.set_offloads(name, on=False)
        self.set_link(name, up=True)
        self._wait_running(name)

    def give_back(self, name: str) -> None:
        """Return an interface that was adopted; it is down then.

        Raises:
            KernelHostError: The kernel refused.
        """
        own_fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._netlink(
                f"moving {name} back",
                lambda ip: ip.link("set", index=self._index(ip, name), net_ns_fd=own_fd),
            )
        finally:
            os.close(own_fd)

    def _netlink_here(self, step: str, name: str, **changes: Any) -> None:
        """Change an interface of this process's own namespace."""
        number = change_link(name, **changes)
        if number:
            raise failure(self, step, number)

    # ---- probes ----------------------------------------------------------------------------------

    @classmethod
    def available(cls) -> str | None:
        """Why there can be no KernelHost here; None if there can.

        It is tried once per process.
        """
        return _why_no_host()

    @classmethod
    def tap_available(cls) -> str | None:
        """Why a KernelHost can't open a TAP device here; None if it can.

        It is tried once per process.
        """
        return _why_no_tap()


def change_link(name: str, **changes: Any) -> int:
    """Change an interface of this process's own namespace: 0, or the kernel's errno."""

    def work() -> int:
        from pyroute2 import IPRoute  # type: ignore[import-untyped,unused-ignore]
        from pyroute2.netlink.exceptions import (  # type: ignore[import-untyped,unused-ignore]
            NetlinkError,
        )

        with IPRoute() as route:
            found = route.link_lookup(ifname=name)
            if not found:
                return errno.ENODEV
            verb = "del" if changes == {"delete": True} else "set"
            try:
                route.link(verb, index=found[0], **({} if verb == "del" else changes))
            except NetlinkError as error:
                return int(error.code)
        return 0

    from concurrent.futures import ThreadPoolExecutor

    # pyroute2 can't work in a thread that runs an event loop.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def leave_alone(name: str) -> None:
    """Keep the kernel of this namespace from answering or forwarding what comes in on an interface.

    It belongs to a driver that reads it beside the kernel: an address that this machine happens to
    have elsewhere must not be taken for the one that the driver's user has. Where settings are
    read-only they stay as they are.
    """
    settings = {"ipv4": {"forwarding": 0, "arp_ignore": 8, "rp_filter": 1}}
    settings["ipv6"] = {"disable_ipv6": 1}
    for family, values in settings.items():
        for key, value in values.items():
            with contextlib.suppress(OSError):
                Path(f"/proc/sys/net/{family}/conf/{name}/{key}").write_text(str(value))


@functools.cache
def _why_no_host() -> str | None:
    try:
        KernelHost("probe").close()
    except OSError as error:
        return str(error)
    return None


@functools.cache
def _why_no_tap() -> str | None:
    try:
        with KernelHost("probe") as host:
            os.close(host.open_tap("probe0"))
    except OSError as error:
        return str(error)
    return None

# SPDX-License-Identifier: MIT
"""The sidecar's life: engines, controller and metrics up; signals; drained and down."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from machnet.errors import DeadlockError
from machnet.sidecar.access import AllowList
from machnet.sidecar.config import (
    FIXED,
    Config,
    ConfigError,
    Dpdk,
    changes,
    load_config,
)
from machnet.sidecar.engines import Engines
from machnet.sidecar.listen import ControlSocket
from machnet.sidecar.log import Log
from machnet.sidecar.metrics import MetricsServer
from machnet.sidecar.notify import notify_ready, notify_reloading, notify_stopping
from machnet.sidecar.ports import PortWatch, route_log, unroute_log
from machnet.sidecar.server import Server, raise_descriptor_limit
from machnet.stack.cpus import usable_cpus

__all__ = ["Sidecar", "StartError"]

_END = frozenset({signal.SIGTERM, signal.SIGINT})
_DRAIN_STEP_S = 0.005
#: A thread of Python's that collects counters must not keep an attach waiting for long.
_SWITCH_INTERVAL_S = 0.0005


class StartError(Exception):
    """The sidecar can't be started; the text says why."""


class Sidecar:
    """A sidecar in this process, whose main thread `run` is called from.

    Args:
        config: What it is to do.
        socket_path: Of the controller.
        config_path: File that SIGHUP reads anew; None: there is none.
        log: Where events go.
        isolate: Whether threads that are no engines keep off the engines' CPUs.
    """

    def __init__(
        self,
        config: Config,
        socket_path: str,
        config_path: str | None,
        log: Log,
        *,
        isolate: bool = False,
    ) -> None:
        self._config, self._path, self._config_path = config, socket_path, config_path
        self._log, self._isolate = log, isolate
        self._signals: list[int] = []
        self._server: Server | None = None

    def run(self, ready: Callable[[str], None]) -> int:
        """Serve until a signal ends it.

        Args:
            ready: Called once, with a line that says where the controller is.

        Returns:
            The exit status: 0 once all is drained, 128 and the signal when it was told twice.

        Raises:
            StartError: A NIC or the socket can't be opened.
        """
        raise_descriptor_limit()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        with contextlib.ExitStack() as cleanup:
            wake = cleanup.enter_context(self._catch_signals())
            settings = self._config.controller
            try:
                control = _open_control(self._path, int(settings.mode, 8))
                cleanup.callback(control.close)
                cleanup.callback(unroute_log, route_log(self._log))
                if self._config.dpdk is not None:
                    _configure(self._config.dpdk)
                engines = Engines(self._config.nics)
                cleanup.callback(engines.close)
                if self._isolate:  # before any other thread is made
                    self._keep_off()
                server = Server(engines, control, settings, self._log, self._reload)
                cleanup.callback(server.close)
                self._server = server
                if settings.metrics is not None:
                    metrics = MetricsServer(settings.metrics, engines, server.status)
                    cleanup.callback(metrics.close)
                    self._log.info("metrics", address=metrics.address)
                watched = [
                    (port.nic.name, port.dpdk, port.stacks) for port in engines.ports if port.dpdk
                ]
                cleanup.callback(PortWatch(watched, self._log).close)
            except (OSError, ValueError, MemoryError, DeadlockError) as error:
                raise StartError(_text(error)) from error
            server.watch(wake.fileno(), lambda: _empty(wake))
            for port in engines.ports:
                fields = port.describe()
                fields.pop("missing", None)  # said when the port was opened
                self._log.info("nic", **fields)
            self._log.info("ready", socket=self._path, pid=os.getpid())
            ready(self._path)
            notify_ready(f"serving on {self._path}")
            return self._serve(server, engines)

    def _keep_off(self) -> None:
        from machnet.sidecar.isolate import engine_cpus
        from machnet.sidecar.measures import Measures

        mine = engine_cpus(self._config.nics, usable_cpus())
        item = Measures.keep_off(frozenset(cpu for cpus in mine for cpu in cpus))
        write = self._log.info if item.state == "ok" else self._log.warning
        write("isolate", **item.as_dict())

    def _serve(self, server: Server, engines: Engines) -> int:
        while True:
            server.step()
            while self._signals:
                number = self._signals.pop(0)
                if number == signal.SIGHUP:
                    self._reload()
                elif number in _END:
                    return self._drain(server, engines, number)

    def _drain(self, server: Server, engines: Engines, number: int) -> int:
        """Listeners go, what was published is sent, then the end."""
        limit_ms = self._config.controller.drain_ms
        self._log.info("draining", signal=signal.Signals(number).name, limit_ms=limit_ms)
        notify_stopping("draining")
        server.drain(limit_ms)
        end = time.monotonic() + limit_ms / 1000
        while (left := engines.owing()) and time.monotonic() < end:
            if any(again in _END for again in self._signals):
                self._log.warning("ended_at_once", connections_left=left)
                return 128 + self._signals.pop()
            time.sleep(_DRAIN_STEP_S)
        self._log.info("ended", connections_left=left)
        return 0

    def _reload(self) -> dict[str, Any]:
        """Read the configuration anew and apply what is safe; what was done."""
        if self._config_path is None:
            self._log.warning("reload", why="there is no configuration file")
            return {"ok": False, "problems": ["this sidecar has no configuration file"]}
        notify_reloading()
        try:
            new = load_config(self._config_path)
            AllowList(new.controller)
        except (ConfigError, OSError, ValueError) as error:
            problems = error.problems if isinstance(error, ConfigError) else [_text(error)]
            for problem in problems:
                self._log.error("reload_failed", why=problem)
            notify_ready("the new configuration is wrong; going on with the old one")
            return {"ok": False, "problems": problems}
        restart = changes(self._config, new)
        # What is not applied stays as it is, so that a later reload says so again.
        kept = {name: getattr(self._config.controller, name) for name in FIXED}
        controller = type(new.controller)(
            **{
                name: kept.get(name, getattr(new.controller, name))
                for name in new.controller.__struct_fields__
            }
        )
        self._config = Config(nics=self._config.nics, controller=controller, dpdk=self._config.dpdk)
        assert self._server is not None
        self._server.reconfigure(controller)
        self._log.set_level(controller.log_level)
        self._log.info("reload", needs_restart=",".join(restart))
        notify_ready(f"serving on {self._path}")
        return {"ok": True, "needs_restart": restart}

    @contextlib.contextmanager
    def _catch_signals(self) -> Iterator[socket.socket]:
        """Signals are noted, and make a socket readable."""
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)

        def note(number: int, _frame: FrameType | None) -> None:
            self._signals.append(number)

        before = {number: signal.signal(number, note) for number in (*_END, signal.SIGHUP)}
        old = signal.set_wakeup_fd(far.fileno(), warn_on_full_buffer=False)
        try:
            yield near
        finally:
            signal.set_wakeup_fd(old)
            for number, handler in before.items():
                signal.signal(number, handler)
            near.close()
            far.close()


def _open_control(path: str, mode: int) -> ControlSocket:
    try:
        return ControlSocket(path, mode)
    except PermissionError as error:
        remedy = "run as root, or give --socket PATH where this user may write"
        raise StartError(f"{_text(error)}: {remedy}") from error


def _configure(dpdk: Dpdk) -> None:
    from machnet.dpdk import configure

    configure(**dpdk.settings())


def _empty(sock: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while sock.recv(256):
            pass


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return str(error)

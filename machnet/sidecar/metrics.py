# SPDX-License-Identifier: MIT
"""The sidecar's counters for Prometheus, over HTTP on a loopback address or a UNIX socket."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, generate_latest, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

import machnet
from machnet.sidecar.admin import Status, counters, port_states
from machnet.sidecar.checks import parse_listen
from machnet.sidecar.ports import PORT_LEVELS, PORT_STATS
from machnet.stack.engines import VIEW_STATS
from machnet.stack.stack import Stack

if TYPE_CHECKING:
    from machnet.sidecar.engines import Engines

__all__ = ["MetricsServer", "exposition"]

#: How long a client may take over its request.
_PATIENCE_S = 5.0
_NOW = frozenset({"connections", "pending", "channels"})
_CONTROLLER = {
    "connects": "connections accepted",
    "hellos": "applications that were let in",
    "attaches": "channels attached",
    "detaches": "channels detached",
    "refused": "requests refused",
    "malformed": "connections ended for a packet that is none of the protocol",
    "hello_timeouts": "connections ended because they did not say hello",
    "hello_evicted": "connections without a hello that had to make room",
    "captures": "captures begun",
    "channels_broken": "channels ended because their application broke the rules",
}
_HOST = {
    "passes": "passes of the engine's thread",
    "sleeps": "times that the engine's thread went to sleep",
    "calls": "questions to the engine's thread",
}


class _Collector(Collector):
    """Reads everything anew at each scrape."""

    def __init__(self, engines: Engines, status: Status) -> None:
        self._engines, self._status = engines, status

    def collect(self) -> Iterable[Metric]:
        """All metrics."""
        yield InfoMetricFamily("machnet", "the sidecar", {"version": machnet.__version__})
        yield from self._of_engines()
        yield from self._of_ports()
        yield from self._of_controller()

    def _of_engines(self) -> Iterator[Metric]:
        rows = [
            ((row["nic"], row["ip"], str(row["engine"])), row) for row in counters(self._engines)
        ]
        labels = ["nic", "ip", "engine"]
        for name, what in Stack.stat_docs().items():
            family = CounterMetricFamily(f"machnet_{name}", what, labels=labels)
            for values, row in rows:
                family.add_metric(values, row["stats"][name])
            yield family
        for name in rows[0][1]["usage"] if rows else ():
            gauge = GaugeMetricFamily(f"machnet_{name}", f"{name} in use", labels=labels)
            for values, row in rows:
                gauge.add_metric(values, row["usage"][name])
            yield gauge
        for name, what in _HOST.items():
            family = CounterMetricFamily(f"machnet_engine_{name}", what, labels=labels)
            for values, row in rows:
                family.add_metric(values, row["host"][name])
            yield family
        for name, what in VIEW_STATS.items():
            family = CounterMetricFamily(f"machnet_between_{name}", what, labels=labels)
            for values, row in rows:
                if name in row["between"]:
                    family.add_metric(values, row["between"][name])
            yield family
        memory = GaugeMetricFamily("machnet_engine_memory_bytes", "address space", labels=labels)
        lingering = GaugeMetricFamily(
            "machnet_channels_lingering", "closed channels whose flows still send", labels=labels
        )
        for values, row in rows:
            memory.add_metric(values, row["host"]["mem_bytes"])
            lingering.add_metric(values, row["host"]["lanes_lingering"])
        yield memory
        yield lingering

    def _of_ports(self) -> Iterator[Metric]:
        labels = ["nic", "driver", "device"]
        rows = [([row[name] for name in labels], row) for row in port_states(self._engines)]
        for name, what in PORT_STATS.items() if rows else ():
            family = CounterMetricFamily(f"machnet_port_{name}", what, labels=labels)
            for values, row in rows:
                family.add_metric(values, row["stats"][name])
            yield family
        for name, what in PORT_LEVELS.items() if rows else ():
            gauge = GaugeMetricFamily(f"machnet_port_{name}", what, labels=labels)
            for values, row in rows:
                gauge.add_metric(values, row["levels"][name])
            yield gauge

    def _of_controller(self) -> Iterator[Metric]:
        numbers, channels = self._status()
        for name, what in _CONTROLLER.items():
            yield CounterMetricFamily(
                f"machnet_controller_{name}", what, value=numbers.get(name, 0)
            )
        for name in sorted(_NOW):
            yield GaugeMetricFamily(
                f"machnet_controller_{name}", f"{name} now", value=numbers.get(name, 0)
            )
        labels = ["channel", "pid", "application"]
        memory = GaugeMetricFamily("machnet_channel_bytes", "memory of a channel", labels=labels)
        for record in channels:
            memory.add_metric([str(record.number), str(record.pid), record.name], record.bytes)
        yield memory


def registry(engines: Engines, status: Status) -> CollectorRegistry:
    """A registry with the sidecar's metrics and nothing else."""
    found = CollectorRegistry()
    found.register(_Collector(engines, status))
    return found


def exposition(engines: Engines, status: Status) -> bytes:
    """All metrics in Prometheus's text form."""
    return generate_latest(registry(engines, status))


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_S

    def address_string(self) -> str:
        client: Any = self.client_address
        return super().address_string() if isinstance(client, tuple) else "unix"

    def get_environ(self) -> dict[str, Any]:
        client: Any = self.client_address
        if not client:  # a UNIX socket's other end has no name
            self.client_address = ("unix", 0)
        return super().get_environ()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class _Server(WSGIServer):
    """One request at a time: scrapes are seldom, and can't pile up threads."""

    request_queue_size = 16

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away


class _UnixServer(_Server):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        from machnet.sidecar.listen import bound_socket

        self.socket.close()
        path = str(self.server_address)
        Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.socket = bound_socket(path, 0o660, socket.SOCK_STREAM)
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()

    def server_close(self) -> None:
        super().server_close()
        Path(str(self.server_address)).unlink(missing_ok=True)


class _TcpServer(_Server):
    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # without a look-up of the host's name
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


class _Tcp6Server(_TcpServer):
    address_family = socket.AF_INET6


class MetricsServer:
    """Serves ``/metrics`` in a thread of its own.

    Args:
        where: See `machnet.sidecar.checks.parse_listen`.

    Raises:
        OSError: It can't listen there.
    """

    def __init__(self, where: str, engines: Engines, status: Status) -> None:
        place = parse_listen(where)
        kind: type[_Server]
        address: Any = place
        if isinstance(place, str):
            kind = _UnixServer
        else:
            kind = _Tcp6Server if ":" in place[0] else _TcpServer
        try:
            self._server = kind(address, _Handler)
        except OSError as error:
            raise OSError(error.errno, f"metrics on {where}: {error.strerror or error}") from error
        self._server.set_app(make_wsgi_app(registry(engines, status)))
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="machnet-metrics", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        """Where it is, with the port that was chosen."""
        bound: Any = self._server.server_address
        return f"unix:{bound}" if isinstance(bound, str) else f"{bound[0]}:{bound[1]}"

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

# SPDX-License-Identifier: MIT
"""Runs a script on an arm."""

from __future__ import annotations

import functools
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from machnet.testing import Packet as Frame

from .arms import open_arm
from .calls import CALL_NAMES, Calls, Names
from .code import CodeError, check_code, run_code
from .constants import errno_name, errno_number
from .errors import ArmUnsupportedError, ScriptError, ScriptSyntaxError, UnsupportedError
from .flows import Flow, differences, icmp_frame, tcp_frame, udp_frame
from .nodes import AnyValue, Call, Code, Command, IcmpPacket, Packet, TcpPacket
from .notation import describe, packet_text, seconds
from .options import read_setup, sysctls_of
from .report import Log
from .values import Values

if TYPE_CHECKING:
    from .arms import Arm, Pending
    from .files import Job
    from .nodes import Event, Script, UdpPacket
    from .options import Setup

__all__ = ["check", "run"]

_SEC = 1_000_000_000
#: The script's first port on its own side.
_FIRST_PORT = 50000
#: How long ``*`` waits: in virtual time beyond every timer of TCP, in real time beyond most.
_PATIENCE_NS = {False: 300 * _SEC, True: 20 * _SEC}
#: What the script may be behind its times before it stops making sense, on a real clock.
_LATE_NS = _SEC


def check(script: Script, *, allow_shell: bool = False) -> None:
    """Look whether a script can be run, before anything of it is.

    Raises:
        UnsupportedError: It uses what is not supported, or a shell that was not allowed.
        ScriptSyntaxError: A code block is wrong.
    """
    for event in script.events:
        action, where = event.action, event.where
        place = (script.source, script.line(where))
        if isinstance(action, Call) and action.name not in CALL_NAMES:
            raise UnsupportedError(where, f"not supported: the system call {action.name}()", *place)
        if isinstance(action, Call) and action.errno and errno_number(action.errno) is None:
            raise ScriptError(where, f"there is no error {action.errno}", *place)
        if isinstance(action, Command) and sysctls_of(action.text) is None and not allow_shell:
            raise UnsupportedError(
                where, "a shell command; --machnet-pkt-allow-shell runs those, on the Linux arm",
                *place,
            )  # fmt: skip
        if isinstance(action, Code):
            try:
                check_code(action.text)
            except CodeError as error:
                raise ScriptError(where, str(error), *place) from None


def run(
    script: Script, arm_name: str, *, allow_shell: bool = False, kernel_defaults: bool = False
) -> Log:
    """Run a script on an arm of its own.

    Args:
        script: The script.
        arm_name: "machnet" or "linux".
        allow_shell: Run its shell commands (on Linux).
        kernel_defaults: Leave Linux as the kernel has it.

    Returns:
        What happened.

    Raises:
        ScriptFailedError: The stack did not do what the script says.
        ArmUnsupportedError: This arm can't run it.
        ScriptError: The script is wrong, or nothing here can run it.
        OSError: The arm can't be made.
    """
    check(script, allow_shell=allow_shell)
    setup = read_setup(script, kernel_defaults=kernel_defaults)
    try:
        arm = open_arm(arm_name, setup.configuration)
    except ValueError as error:
        where = script.events[0].where
        raise ArmUnsupportedError(where, str(error), script.source, script.line(where)) from error
    runner = _Runner(script, arm, setup)
    try:
        runner.run()
    finally:
        runner.close()
        arm.close()
    return runner.log


class _Runner:
    """One run of a script."""

    def __init__(self, script: Script, arm: Arm, setup: Setup) -> None:
        self.script, self.arm, self.setup = script, arm, setup
        self.tolerance_ns = setup.tolerance_ns * arm.tolerance_factor
        self.log = Log()
        self.flows: list[Flow] = []
        self.flow: Flow | None = None
        self.start_ns = arm.now_ns
        self.event = script.events[0]
        self.base_ns = self.start_ns
        self._logged = 0
        self._pending: tuple[Pending, Job, Event, int] | None = None
        self._call_slack = 0
        configuration = setup.configuration
        self.calls = Calls(
            arm,
            Names(configuration.local_ip, configuration.remote_ip, setup.bind_port,
                  setup.connect_port),
            self._flow_by_ports,
        )  # fmt: skip

    def run(self) -> None:
        """Every event at its time."""
        in_head = True
        for event in self.script.events:
            self.event = event
            # Sysctls at the head are in force already.
            in_head = in_head and isinstance(event.action, Command)
            if in_head and isinstance(event.action, Command) and sysctls_of(event.action.text):
                continue
            try:
                self._step(event)
            except ScriptError as error:
                if not error.source:
                    kind, place = type(error), (self.script.source, self.script.line(error.where))
                    raise kind(error.where, error.what, *place) from error
                raise
        self._finish_pending()

    def close(self) -> None:
        """Close the script's sockets."""
        self.calls.close_all()

    def _step(self, event: Event) -> None:
        action = event.action
        if isinstance(action, Packet) and not action.inbound:
            self._expect(event, action)
            return
        at = self._base(event) + event.time.start_ns
        self._wait_until(at)
        late = self.arm.now_ns - at
        if late > max(self.tolerance_ns, _LATE_NS if self.arm.realtime else 0):
            self._fail("too late for it", [f"its time was {seconds(at - self.start_ns)} s"])
        self.base_ns = at if not self.arm.realtime else self.arm.now_ns
        if isinstance(action, Packet):
            self._inject(action)
        elif isinstance(action, Call):
            self._call(event, action, self.base_ns)
        elif isinstance(action, Code):
            self._code(action)
        else:
            self._command(action)

    # ---- time ------------------------------------------------------------------------------------

    def _base(self, event: Event) -> int:
        return self.base_ns if event.time.kind == "relative" else self.start_ns

    def _script_time(self, t_ns: int) -> int:
        return t_ns - self.start_ns

    def _timer_slack(self, wait_ns: int) -> int:
        """A kernel's timer may be late by an eighth: its wheel gets coarser further out."""
        return max(wait_ns, 0) // 8 if self.arm.realtime else 0

    def _wait_until(self, until_ns: int) -> None:
        while True:
            pending = self._pending[0] if self._pending else None
            self.arm.wait(until_ns, pending)
            self._note_frames()
            if pending is not None and pending.done:
                self._finish_pending()
            if self.arm.now_ns >= until_ns:
                return

    def _note_frames(self) -> None:
        """Enter what has newly come from the stack into the log."""
        for t_ns, frame in self.arm.frames[self._logged :]:
            # As text when it is shown: the connection's first number may be learnt by then.
            show = functools.partial(self._sent_text, Frame(frame))
            self.log.add(self._script_time(t_ns), ">", show)
        self._logged = len(self.arm.frames)

    def _sent_text(self, packet: Frame) -> str:
        owner = next((flow for flow in self.flows if flow.owns(packet)), None)
        if packet.tcp is None and packet.udp is None:
            return packet.summary()
        ports = f"{packet.sport} > {packet.dport} "
        if owner is None:  # of no connection of the script: a SYN is counted from itself
            base = packet.seq if packet.tcp is not None and "S" in packet.flags else 0
            return ports + packet_text(packet, base)
        text = owner.text(packet, inbound=False)
        return ports + text if len(self.flows) > 1 else text

    def _fail(self, what: str, details: list[str]) -> NoReturn:
        now = self._script_time(self.arm.now_ns)
        self._note_frames()
        raise self.log.failure(self.script, self.event, what, details, now, self.arm.name)

    # ---- packets that come in --------------------------------------------------------------------

    def _flow_by_ports(self, local: int, remote: int) -> Flow | None:
        for flow in reversed(self.flows):
            if (flow.local_port, flow.remote_port) == (local, remote):
                return flow
        return None

    def _new_flow(self, local: int, remote: int, *, active: bool) -> Flow:
        flow = Flow(local, remote, active)
        self.flows.append(flow)
        self.flow = flow
        return flow

    def _flow_for(self, body: TcpPacket | UdpPacket | IcmpPacket) -> Flow:
        """The connection of a packet that comes in; a SYN may begin one."""
        if isinstance(body, TcpPacket) and body.ports is not None:
            remote, local = body.ports
            self.flow = self._flow_by_ports(local, remote)
            return self.flow or self._new_flow(local, remote, active=False)
        if self.flow is None:
            used = {flow.remote_port for flow in self.flows}
            remote = next(port for port in range(_FIRST_PORT, 65536) if port not in used)
            return self._new_flow(self.calls.listen_port, remote, active=False)
        return self.flow

    def _inject(self, packet: Packet) -> None:
        body, ends = packet.body, self.arm.ends
        flow = self._flow_for(body)
        if isinstance(body, TcpPacket):
            if "S" in body.flags and flow.remote_isn is None:
                flow.remote_isn = body.seq
            frame = tcp_frame(body, packet.ip, flow, ends)
        elif isinstance(body, IcmpPacket):
            frame = icmp_frame(body, packet.ip, flow, ends)
        else:
            frame = udp_frame(body, packet.ip, flow, ends)
        text = flow.text(Frame(frame), inbound=True)
        if isinstance(body, TcpPacket) and body.ports is not None:
            text = "{} > {} {}".format(*body.ports, text)
        self.log.add(self._script_time(self.arm.now_ns), "<", text)
        try:
            self.arm.send(frame)
        except (OSError, ValueError) as error:
            self._fail("the packet can't be sent", [str(error)])
        self.arm.settle()
        self._note_frames()
        if self._pending is not None:
            self._wait_until(self.arm.now_ns)

    # ---- packets that go out ---------------------------------------------------------------------

    def _expect(self, event: Event, packet: Packet) -> None:
        base = self._base(event)
        earliest = latest = None
        time = event.time
        if time.kind == "any":
            until = self.arm.now_ns + _PATIENCE_NS[self.arm.realtime]
        else:
            earliest = base + time.start_ns - self.tolerance_ns
            latest = base + (time.start_ns if time.end_ns is None else time.end_ns)
            latest += self.tolerance_ns
            latest += self._timer_slack(latest - self.base_ns)
            until = max(latest, self.arm.now_ns)
            if self.arm.realtime:
                until += _LATE_NS  # so that a late one is shown as late
        body = packet.body
        assert not isinstance(body, IcmpPacket)
        self.arm.settle()
        self._note_frames()
        while (found := self._take(body)) is None:
            if self.arm.now_ns >= until:
                wanted = describe(body)
                self._fail("no such packet came", [f"expected: {wanted}"])
            self._wait_for_frame(until)
        t_ns, frame, flow = found
        self._learn(flow, body, frame, t_ns)
        lines = differences(body, packet.ip, frame, flow)
        lines += self._stamp_differences(flow, body, frame, t_ns)
        if (earliest is not None and t_ns < earliest) or (latest is not None and t_ns > latest):
            low = base + time.start_ns - self.start_ns
            wanted = seconds(low)
            if time.end_ns is not None:
                wanted += f" to {seconds(base + time.end_ns - self.start_ns)}"
            lines.append(
                f"time: expected {wanted} +- {seconds(self.tolerance_ns)}, "
                f"found {seconds(self._script_time(t_ns))}"
            )
        if lines:
            text = flow.text(frame, inbound=False)
            self._fail(
                "the packet is not the one expected",
                [f"expected: {describe(body)}", f"found:    {text}", *lines],
            )
        self.base_ns = t_ns if not self.arm.realtime else max(t_ns, self.base_ns)

    def _wait_for_frame(self, until_ns: int) -> None:
        pending = self._pending[0] if self._pending else None
        self.arm.wait(until_ns, pending)
        self._note_frames()
        if pending is not None and pending.done:
            self._finish_pending()

    def _take(self, body: TcpPacket | UdpPacket) -> tuple[int, Frame, Flow] | None:
        """The next frame of the connection that the script speaks of."""
        opens = isinstance(body, TcpPacket) and "S" in body.flags and "." not in body.flags
        for i, (t_ns, raw) in enumerate(self.arm.frames):
            frame = Frame(raw)
            flow = self._owner(body, frame, opens=opens)
            if flow is not None:
                del self.arm.frames[i]
                self._logged -= 1
                return t_ns, frame, flow
        return None

    def _owner(self, body: TcpPacket | UdpPacket, frame: Frame, *, opens: bool) -> Flow | None:
        if (frame.tcp is None and frame.udp is None) or frame.src != self.arm.ends.local_ip:
            return None
        flow = self._flow_by_ports(frame.sport, frame.dport)
        if isinstance(body, TcpPacket) and body.ports is not None:
            if body.ports != (frame.sport, frame.dport):
                return None
            self.flow = flow or self._new_flow(*body.ports, active=True)
            return self.flow
        if flow is None:
            # Only a SYN begins a connection of the stack's own; the rest belongs to nobody.
            is_syn = frame.tcp is not None and frame.flags in {"S", "SEC"}
            ours = frame.udp is not None and not isinstance(body, TcpPacket)
            if ours or (opens and is_syn) or (self.flow is None and not self.flows):
                return self._new_flow(frame.sport, frame.dport, active=True)
            return None
        if flow is self.flow:
            return flow
        return None

    def _learn(self, flow: Flow, body: TcpPacket | UdpPacket, frame: Frame, t_ns: int) -> None:
        """Numbers of the stack's own choice: of its SYN, and its timestamps."""
        if not isinstance(body, TcpPacket) or frame.tcp is None:
            return
        if flow.live_isn is None and "S" in frame.flags and "S" in body.flags:
            flow.live_isn, flow.script_isn = frame.tcp.seq, body.seq
        stamp = next((option for option in body.options or () if option.kind == "TS"), None)
        if stamp is not None and frame.ts is not None:
            flow.stamps[stamp.values[0]] = frame.ts[0]
            if flow.stamp_times is None:
                flow.stamp_times = stamp.values[0], frame.ts[0], t_ns

    def _stamp_differences(
        self, flow: Flow, body: TcpPacket | UdpPacket, frame: Frame, t_ns: int
    ) -> list[str]:
        """Whether the stack's timestamps go at the pace that the script asks for."""
        del t_ns
        tick = self.setup.ts_tick_ns
        if not tick or not isinstance(body, TcpPacket) or frame.ts is None:
            return []
        stamp = next((option for option in body.options or () if option.kind == "TS"), None)
        if stamp is None or flow.stamp_times is None:
            return []
        script, live, _ = flow.stamp_times
        wanted = (stamp.values[0] - script) * tick
        found = ((frame.ts[0] - live) % 2**32) * tick
        if abs(wanted - found) <= self.tolerance_ns + tick:
            return []
        return [f"TS val: expected {wanted // tick} ticks since the first, found {found // tick}"]

    # ---- calls -----------------------------------------------------------------------------------

    def _call(self, event: Event, call: Call, began_ns: int) -> None:
        if self._pending is not None:
            self._finish_pending()
        self.arm.settle()
        self._note_frames()
        try:
            job = self.calls.prepare(event, call)
            pending = self.arm.start(job.work, blocking=job.blocking)
        except (ValueError, OverflowError, struct.error) as error:
            raise ScriptSyntaxError(event.where, f"{call.name}(): {error}") from error
        offset = 0 if call.end_ns is None else call.end_ns - event.time.start_ns
        self._pending = pending, job, event, began_ns + offset
        self._call_slack = self._timer_slack(offset)
        if call.end_ns is None or pending.done:
            self._finish_pending()
        if call.name == "socket":
            self.flow = None  # what comes next is about this one

    def _finish_pending(self) -> None:
        """Wait until the call under way returns, at its time, and compare."""
        if self._pending is None:
            return
        pending, job, event, end_ns = self._pending
        call = event.action
        assert isinstance(call, Call)
        until = (
            end_ns + self.tolerance_ns + self._call_slack + (_LATE_NS if self.arm.realtime else 0)
        )
        while not pending.done:
            if self.arm.now_ns >= until:
                self.event = event
                blocks = "still blocks" if call.end_ns is not None else "blocks"
                when = seconds(end_ns - self.start_ns)
                self._fail(f"{call.name}() {blocks}", [f"expected: it returns at {when} s"])
            self.arm.wait(until, pending)
            self._note_frames()
        self._pending = None
        self._returned(event, call, pending, job, end_ns)

    def _returned(self, event: Event, call: Call, pending: Pending, job: Job, end_ns: int) -> None:
        self.event = event
        self.calls.complaints.clear()
        values = Values(event.where)
        wanted = None if isinstance(call.result, AnyValue) else values.number(call.result)
        error: str | None = None
        try:
            found = job.finish(pending.result())
        except OSError as problem:
            found, error = -1, errno_name(problem.errno or 0)
        self.log.add(self._script_time(pending.ended_ns), "=", f"{call.name}() = {found}"
                     + (f" {error}" if error else ""))  # fmt: skip
        lines = list(self.calls.complaints)
        if wanted is not None and wanted != found:
            lines.append(
                f"result: expected {wanted}{_also(call.errno)}, found {found}{_also(error)}"
            )
        elif call.errno and errno_number(call.errno) != errno_number(error or ""):
            lines.append(f"errno: expected {call.errno}, found {error or 'none'}")
        off = pending.ended_ns - end_ns
        timed = call.end_ns is not None or not self.arm.realtime
        if timed and not -self.tolerance_ns <= off <= self.tolerance_ns + self._call_slack:
            lines.append(
                f"time of its return: expected {seconds(end_ns - self.start_ns)} +- "
                f"{seconds(self.tolerance_ns)}, found {seconds(self._script_time(pending.ended_ns))}"
            )
        if lines:
            self._fail(f"{call.name}() did not return what the script says", lines)
        if call.name == "listen":
            self.flow = None

    # ---- the rest --------------------------------------------------------------------------------

    def _code(self, code: Code) -> None:
        self.arm.settle()
        self._note_frames()
        file = self.calls.under_test
        fields: dict[str, int] = {}
        try:
            if file is not None:
                fields = self.arm.tcp_info(file.sock)
            printed = run_code(code.text, fields, self.arm.name)
        except (CodeError, OSError, ValueError) as error:
            self._fail("the code block failed", [str(error)])
        for line in printed:
            self.log.add(self._script_time(self.arm.now_ns), "%", line)

    def _command(self, command: Command) -> None:
        sysctls = sysctls_of(command.text)
        try:
            if sysctls is None:
                self.arm.shell(command.text, str(Path(self.script.source).parent))
            for name, value in sysctls or ():
                self.arm.sysctl(name, value)
        except ValueError as error:
            where = self.event.where
            if self.arm.realtime:
                self._fail("the command failed", [str(error)])
            raise ArmUnsupportedError(where, str(error)) from error


def _also(name: str | None) -> str:
    return f" {name}" if name else ""

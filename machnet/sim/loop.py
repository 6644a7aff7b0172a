# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (the loop and its tasks and timers are one implementation)
"""asyncio on virtual time: an event loop whose clock is that of stepped stacks.

    loop = VirtualLoop(clock)
    loop.run(main())              # `await asyncio.sleep(60)` in it costs nothing

Where a loop of asyncio would sleep in a selector, this one lets the stacks go on to its next timer,
or to the first moment at which a channel is woken. Everything runs in one thread, in an order that
depends on nothing but the program.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import socket
import threading
from asyncio import base_events
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from machnet.errors import DeadlockError, ReentrantError, SimulationLimitError
from machnet.sim._looprefuse import Refusals
from machnet.sim._loopreport import Failures, describe_task, duration

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from typing_extensions import TypeVarTuple, Unpack

    from machnet.stack.clock import Clock

    Ts = TypeVarTuple("Ts")

__all__ = ["VirtualLoop"]

T = TypeVar("T")

_NEVER_NS = 2**64 - 1
#: A stack whose NIC takes nothing is looked at again after this.
_BLOCKED_NS = 100_000
_UNDER_WAY = "the virtual event loop (a coroutine or a callback of it)"


class VirtualLoop(Refusals, base_events.BaseEventLoop):
    """An asyncio event loop in the virtual time of a `Clock`.

    ``time()`` is the clock's time in seconds. Executors, subprocesses, descriptors, sockets of the
    operating system and signal handlers raise ``NotImplementedError`` that says what to use.

    A task that ends with an exception nobody asks for, and a callback that raises, make `run` and
    ``run_until_complete`` raise that exception at their end, unless an exception handler was set.

    Args:
        clock: The clock of the stacks.
        instant_max: Passes of the loop at one moment of virtual time.

    Raises:
        ValueError: The clock is a real one.
    """

    # Of BaseEventLoop, which has been the same in this from Python 3.10 on.
    _ready: Any
    _scheduled: list[Any]
    _stopping: bool
    _thread_id: int | None
    _task_factory: Any
    _timer_cancelled_count: int
    _check_closed: Any

    def __init__(self, clock: Clock, *, instant_max: int = 1_000_000) -> None:
        if clock.realtime:
            raise ValueError("clock: a virtual event loop needs a virtual clock")
        super().__init__()
        self.clock = clock
        self.instant_max = instant_max
        self._selector = _Stepper(self)
        self._clock_resolution = 0.0  # `step` has taken all timers that are due
        self._owner = threading.get_ident()
        self._failures = Failures(self)
        #: Tasks that are not done, in the order they were made; asyncio itself has weak references.
        self._live: dict[asyncio.Future[Any], None] = {}
        self._timers = 0
        self._tasks_made = 0
        self._stepping = False
        self._frozen = False
        self._until_ns: int | None = None
        self._predicate: Callable[[], object] | None = None
        self._met = False
        self._instant_ns = -1
        self._instant_passes = 0

    # ---- time ------------------------------------------------------------------------------------

    def time(self) -> float:
        """The virtual time in seconds."""
        return self.clock.now_ns / 1e9

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: Unpack[Ts],
        context: Any = None,
    ) -> asyncio.TimerHandle:
        """Call at a virtual time, to the nanosecond; what is due together, in the order asked for.

        Args:
            when: Seconds. Infinity: never.
            callback: What to call.
            args: With these.
            context: In this context.

        Raises:
            ValueError: ``when`` is not a number.
        """
        if when is None:
            raise TypeError("when cannot be None")
        if math.isnan(when):
            raise ValueError("when: NaN is no time")
        self._check_closed()
        due_ns = min(round(when * 1e9), _NEVER_NS) if when < math.inf else _NEVER_NS
        self._timers += 1
        timer = _Timer(due_ns, self._timers, when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True
        if self._stepping:
            self.clock.kick()
        return timer

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: Unpack[Ts], context: Any = None
    ) -> asyncio.Handle:
        """Call in the next pass, at the present time."""
        if self._stepping:
            self.clock.kick()  # it came out of the network: time must not go on past it
        return super().call_soon(callback, *args, context=context)

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: Unpack[Ts], context: Any = None
    ) -> asyncio.Handle:
        """As `call_soon`: from this thread only.

        Raises:
            RuntimeError: It was called in another thread.
        """
        if threading.get_ident() != (self._thread_id or self._owner):
            raise RuntimeError(
                "call_soon_threadsafe: virtual time belongs to one thread, in which everything is "
                "in order: no other thread may put something in; use a task of this loop"
            )
        return self.call_soon(callback, *args, context=context)

    def next_ns(self) -> int | None:
        """When the loop itself has something to do, in ns; None: never. The network is apart."""
        if self._ready:
            return self.clock.now_ns
        due = [t._due_ns for t in self._scheduled if not t._cancelled]
        first = min(due, default=_NEVER_NS)
        return None if first == _NEVER_NS else max(first, self.clock.now_ns)

    # ---- tasks -----------------------------------------------------------------------------------

    def create_task(self, coro: Any, **settings: Any) -> Any:
        """A task; names are "Task-1" and so on in each loop. It is kept alive until it is done."""
        self._check_closed()
        if self._task_factory is not None:
            task = super().create_task(coro, **settings)
        else:
            self._tasks_made += 1
            if settings.get("name") is None:
                settings["name"] = f"Task-{self._tasks_made}"
            task = _Task(coro, loop=self, **settings)
        if not task.done():
            self._live[task] = None
            task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Future[Any]) -> None:
        if task in self._live:
            del self._live[task]
            self._failures.note(task)

    def tasks(self) -> list[asyncio.Task[Any]]:
        """The tasks that are not done, in the order they were made."""
        return [t for t in self._live if isinstance(t, asyncio.Task) and not t.done()]

    def waiting(self) -> list[str]:
        """For each task that is not done: its name, and where it waits for what."""
        return [describe_task(task) for task in self.tasks()]

    # ---- running ---------------------------------------------------------------------------------

    def run(self, main: Awaitable[T]) -> T:
        """Run until ``main`` is done; its result. Other tasks stay, and go on in the next run.

        Raises:
            DeadlockError: It can never be done: no timer, no event of the network is to come.
            ReentrantError: The loop is running.
            SimulationLimitError: The loop is busy at one moment of time without end.
            Exception: What ``main`` raised; else the first failure that nobody has seen.
        """
        result: T = self.run_until_complete(main)
        return result

    def run_until_complete(self, future: Any) -> Any:
        """As `run`."""
        if self.is_running():
            if asyncio.iscoroutine(future):
                future.close()
            raise ReentrantError("run: the virtual event loop is running already: await it")
        self._check_closed()
        own = not asyncio.isfuture(future)
        task = asyncio.ensure_future(future, loop=self)
        if own:
            task._log_destroy_pending = False
        try:
            result = super().run_until_complete(task)
        except BaseException as error:
            if own:
                self._abandon(task)
            self._collect()
            self._failures.report_beside(error)
            raise
        self._collect()
        self._failures.raise_first()
        return result

    def _abandon(self, task: asyncio.Future[Any]) -> None:
        """The run has ended before its task: the task must not go on in the next run."""
        if not task.done():
            task.cancel()
            self._run_frozen()
        if task.done() and not task.cancelled():
            task.exception()

    def _collect(self) -> None:
        for task in [t for t in self._live if t.done()]:
            self._task_done(task)

    def run_forever(self) -> None:
        """Run until `stop`; for `run` and its like.

        Raises:
            DeadlockError: Nothing will ever happen any more.
        """
        before, self.clock.under_way = self.clock.under_way, _UNDER_WAY
        on_error, self.clock.on_error = self.clock.on_error, self._hook_failed
        try:
            super().run_forever()
        finally:
            # Who raises out of the stepping has not stopped the loop in an orderly way.
            self._stopping = False
            self.clock.under_way = before
            self.clock.on_error = on_error

    def advance_to(self, until_ns: int) -> None:
        """Run what there is up to a virtual time, which it then is.

        Raises:
            ReentrantError: The loop is running.
            Exception: The first failure that nobody has seen.
        """
        self.run_until(None, until_ns)

    def run_until(
        self, predicate: Callable[[], object] | None, until_ns: int | None = None
    ) -> bool:
        """Run until the predicate is true; asked after each event of the network and each pass.

        Args:
            predicate: None: run to ``until_ns``.
            until_ns: The virtual time at which to give up; None: when nothing is to come.

        Returns:
            Whether it became true.

        Raises:
            ReentrantError: The loop is running.
            Exception: The first failure that nobody has seen.
        """
        if self.is_running():
            raise ReentrantError("run_until: the virtual event loop is running already")
        self._until_ns = until_ns if until_ns is not None else _NEVER_NS
        self._predicate, self._met = predicate, False
        try:
            self.run_forever()
        finally:
            self._until_ns = self._predicate = None
        self._collect()
        self._failures.raise_first()
        return self._met

    def _run_frozen(self) -> None:
        """Run what is ready while time stands still."""
        self._frozen = True
        try:
            self.run_forever()
        except Exception as error:  # noqa: BLE001 (what led here is what counts)
            self._failures.add("ending a task", error)
        finally:
            self._frozen = False

    def shutdown(self, grace_ns: int = 1_000_000_000) -> None:
        """Cancel all tasks, let them end, and close the loop. Failures are logged.

        Args:
            grace_ns: Virtual time that they may take; 0: none passes.
        """
        if self.is_closed():
            return
        tasks = self.tasks()
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            task.cancel()
        self._run_frozen()
        if self.tasks() and grace_ns > 0:
            try:
                self.run_until(lambda: not self.tasks(), self.clock.now_ns + grace_ns)
            except Exception as error:  # noqa: BLE001 (nobody is left who could handle it)
                self._failures.add("ending the tasks", error)
        closing = self.create_task(self.shutdown_asyncgens())
        closing._log_destroy_pending = False
        self._run_frozen()
        self._collect()
        self._failures.log_all()
        self.close()

    def close(self) -> None:
        """Close the loop; what was still to be called is forgotten."""
        super().close()
        self._live.clear()

    def __del__(self) -> None:
        """Nothing of the operating system is held: no warning if it was not closed."""

    # ---- a pass ----------------------------------------------------------------------------------

    def step(self) -> None:
        """Let time go on until there is something to run: what the loop has for a selector."""
        clock = self.clock
        idle = 0
        clock.dispatch()
        while not self._stopping and not self._take_due() and not self._ready:
            if self._frozen or self._finished():
                self.stop()
                break
            until_ns = self._target_ns()
            self._stepping = True
            try:
                done = clock.step(until_ns)
            finally:
                self._stepping = False
            # A callback that was told may have sent something: only the second time is sure.
            idle = idle + 1 if done and until_ns is None and not self._ready else 0
            if idle == 2:
                self._nothing_to_come()
        self._take_due()
        self._count_pass()

    def _take_due(self) -> bool:
        """Have the timers that are due called in this pass; whether there were any."""
        found = False
        while self._scheduled and self._scheduled[0]._due_ns <= self.clock.now_ns:
            timer = heapq.heappop(self._scheduled)
            timer._scheduled = False
            if timer._cancelled:
                self._timer_cancelled_count -= 1
            else:
                self._ready.append(timer)
                found = True
        return found

    def _target_ns(self) -> int | None:
        while self._scheduled and self._scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(self._scheduled)._scheduled = False
        first = self._scheduled[0]._due_ns if self._scheduled else _NEVER_NS
        if self._until_ns is not None:
            first = min(first, self._until_ns)
        if self._predicate is not None:
            first = min(first, self._event_ns())
        return None if first == _NEVER_NS else first

    def _event_ns(self) -> int:
        """When the network has something to do, after this moment."""
        clock = self.clock
        event = clock.deadline()
        if event is not None and event <= clock.now_ns:
            clock.step(clock.now_ns)
            event = clock.deadline()
            if event is not None and event <= clock.now_ns:
                event = clock.now_ns + _BLOCKED_NS
        return _NEVER_NS if event is None else event

    def _finished(self) -> bool:
        if self._predicate is not None and self._predicate():
            self._met = True
            return True
        return self._until_ns is not None and self.clock.now_ns >= self._until_ns

    def _nothing_to_come(self) -> None:
        if self._until_ns is not None:
            self.stop()
            return
        self._collect()
        waiting = self.waiting()
        lines = [f"  {text}" for text in waiting]
        failed = self._failures.lines()
        if failed:
            lines += ["failed before:", *(f"  {text}" for text in failed)]
        what = f"{len(waiting)} tasks wait" if len(waiting) != 1 else "1 task waits"
        raise DeadlockError(
            f"at {duration(self.clock.now_ns)} of virtual time {what} for what can never happen: "
            "no frame is under way and no timer is armed\n" + "\n".join(lines)
        ) from self._failures.first()

    def _count_pass(self) -> None:
        now_ns = self.clock.now_ns
        if now_ns != self._instant_ns:
            self._instant_ns, self._instant_passes = now_ns, 0
        self._instant_passes += 1
        if self._instant_passes > self.instant_max:
            self._instant_passes = 0
            self._too_busy(now_ns)

    def _too_busy(self, now_ns: int) -> NoReturn:
        owners = (getattr(h._callback, "__self__", None) for h in self._ready)
        busy = [describe_task(t) for t in owners if isinstance(t, asyncio.Task)]
        lines = "".join(f"\n  {text}" for text in busy[:10])
        raise SimulationLimitError(
            f"{self.instant_max} passes of the event loop at {duration(now_ns)} of virtual time, "
            "which does not go on while something is ready: wait with await asyncio.sleep(0.001), "
            f"not sleep(0){lines}"
        )

    # ---- what goes wrong -------------------------------------------------------------------------

    def _hook_failed(self, error: Exception) -> None:
        self.call_exception_handler({"message": "on_ready callback failed", "exception": error})

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep an exception, for the end of the run; log what is none."""
        error = context.get("exception")
        if isinstance(error, asyncio.CancelledError):
            return  # of asyncio's streams before Python 3.12, when a handler is cancelled
        if isinstance(error, Exception) and not self.is_closed():
            self._failures.add(str(context.get("message", "a callback failed")), error)
        else:
            super().default_exception_handler(context)

    @property
    def has_handler(self) -> bool:
        """Whether an exception handler was set, which then sees all failures."""
        return self.get_exception_handler() is not None

    # ---- names -----------------------------------------------------------------------------------

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002 (asyncio's name)
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        """Of literal addresses and numeric ports; there is no name service in virtual time.

        Raises:
            socket.gaierror: It is a name.
        """
        numeric = flags | socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return socket.getaddrinfo(host, port, family, type, proto, numeric)

    async def getnameinfo(self, sockaddr: Any, flags: int = 0) -> Any:
        """Numbers, always: there is no name service in virtual time."""
        return socket.getnameinfo(sockaddr, flags | socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)

    # ---- what asyncio.base_events wants of its subclasses ----------------------------------------

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none: `step` has called what there was to call."""

    def _write_to_self(self) -> None:
        """Nobody has to be woken."""

    def __repr__(self) -> str:
        state = "closed" if self.is_closed() else "running" if self.is_running() else "stopped"
        return f"<VirtualLoop {state} at {duration(self.clock.now_ns)}, {len(self._live)} tasks>"


class _Stepper:
    """What `BaseEventLoop` takes for a selector."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        # The timeout has lost its nanoseconds: the loop looks at its timers itself.
        self._loop.step()
        return []


class _Timer(asyncio.TimerHandle):
    """Due at a nanosecond; timers that are due together keep their order."""

    __slots__ = ("_due_ns", "_number")
    _scheduled: bool

    def __init__(self, due_ns: int, number: int, *args: Any) -> None:
        super().__init__(*args)
        self._due_ns = due_ns
        self._number = number

    def __lt__(self, other: Any) -> bool:
        return (self._due_ns, self._number) < (other._due_ns, other._number)


class _Task(asyncio.Task):  # type: ignore[type-arg]
    """Hashed by its number: sets of tasks, as asyncio itself has them, have the same order always."""

    def __init__(self, coro: Coroutine[Any, Any, Any], *, loop: VirtualLoop, **settings: Any):
        self._number = loop._tasks_made
        super().__init__(coro, loop=loop, **settings)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other

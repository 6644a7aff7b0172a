# SPDX-License-Identifier: MIT
"""No wake-up is lost: every interleaving of the two sides of a channel, with store buffers.

Both sides run the same protocol in both directions. Who sleeps sets its flag, fences, looks again and
sleeps; who publishes moves its index, fences, reads the other's flag and kicks if it is set. The
programs below are what chan_app.c does (app_publish, mn_app_prepare_sleep, mn_app_cancel_sleep),
and what the engine's side must do, one memory access per step.

Memory is as weak as x86 makes it (each side's stores wait in a queue that only it sees, and a fence
waits until the queue is empty), or weaker: stores to different places may leave the queue in any
order. The checker walks all reachable states and looks for one in which nothing can move any more
although a side has not finished. That it can find one is shown with programs that leave out or misplace
a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

Regs = tuple[int, int]  # what was last read, what was consumed
Buffer = tuple[tuple[str, int], ...]
SEEN = 1


@dataclass(frozen=True)
class Step:
    """One instruction; what it does is in ``kind``."""

    kind: str  # store load fence branch kick sleep set
    place: str = ""
    value: int | Callable[[Regs], int] = 0
    target: str = ""


@dataclass(frozen=True)
class Program:
    """Steps, with the index of each label."""

    steps: tuple[Step, ...]
    labels: dict[str, int]


def assemble(*lines: Step | str) -> Program:
    """Strings are labels of the step behind them."""
    steps: list[Step] = []
    labels = {}
    for line in lines:
        if isinstance(line, str):
            labels[line] = len(steps)
        else:
            steps.append(line)
    return Program(tuple(steps), labels)


def store(place: str, value: int | Callable[[Regs], int]) -> Step:
    return Step("store", place, value)


def load(place: str) -> Step:
    return Step("load", place)


def branch(condition: Callable[[Regs], bool], target: str) -> Step:
    return Step("branch", value=lambda regs: int(condition(regs)), target=target)


FENCE = Step("fence")
# The value read becomes the value consumed.
CONSUME = Step("set")


@dataclass(frozen=True)
class Thread:
    """Where a side stands."""

    pc: int
    regs: Regs
    buffer: Buffer


@dataclass(frozen=True)
class State:
    """Everything; ``memory`` has values by place, kicks included."""

    threads: tuple[Thread, ...]
    memory: tuple[tuple[str, int], ...]


class Checker:
    """Walks the states of some programs that run side by side."""

    def __init__(self, programs: list[Program], any_order: bool) -> None:
        self.programs = programs
        self.any_order = any_order
        self.states = 0

    def drains(self, state: State, who: int) -> list[State]:
        """What happens when a store of a side leaves its queue."""
        thread = state.threads[who]
        found = []
        places = set()
        for i, (place, value) in enumerate(thread.buffer):
            if place not in places and (i == 0 or self.any_order):
                rest = thread.buffer[:i] + thread.buffer[i + 1 :]
                moved = Thread(thread.pc, thread.regs, rest)
                found.append(self.replace(state, who, moved, {place: value}))
            places.add(place)
        return found

    @staticmethod
    def replace(state: State, who: int, thread: Thread, writes: dict[str, int]) -> State:
        threads = (*state.threads[:who], thread, *state.threads[who + 1 :])
        memory = tuple(sorted({**dict(state.memory), **writes}.items()))
        return State(threads, memory)

    def step(self, state: State, who: int) -> State | None:
        """The next instruction of a side, or None when it can't go on."""
        thread = state.threads[who]
        program = self.programs[who]
        if thread.pc == len(program.steps):
            return None
        step = program.steps[thread.pc]
        pc, regs, buffer = thread.pc + 1, thread.regs, thread.buffer
        memory = dict(state.memory)
        writes: dict[str, int] = {}
        value = step.value(regs) if callable(step.value) else step.value
        if step.kind == "store":
            buffer = (*buffer, (step.place, value))
        elif step.kind == "load":
            own = [v for place, v in buffer if place == step.place]
            regs = (own[-1] if own else memory[step.place], regs[SEEN])
        elif step.kind == "set":
            regs = (regs[0], regs[0])
        elif step.kind == "fence":
            if buffer:
                return None
        elif step.kind == "branch":
            pc = program.labels[step.target] if value else pc
        elif step.kind == "kick":
            writes[step.place] = 1
        else:
            assert step.kind == "sleep"
            if memory[step.place] == 0:
                return None
            writes[step.place] = 0
        return self.replace(state, who, Thread(pc, regs, buffer), writes)

    def lost(self) -> State | None:
        """A state that nothing leaves although a side has not finished; None when there is none."""
        places = {s.place: 0 for program in self.programs for s in program.steps if s.place}
        start = State(
            tuple(Thread(0, (0, 0), ()) for _ in self.programs), tuple(sorted(places.items()))
        )
        known = {start}
        stack = [start]
        while stack:
            state = stack.pop()
            following = []
            for who in range(len(self.programs)):
                following += self.drains(state, who)
                after = self.step(state, who)
                if after is not None:
                    following.append(after)
            done = all(
                thread.pc == len(program.steps)
                for thread, program in zip(state.threads, self.programs, strict=True)
            )
            if not following and not done:
                return state
            fresh = [s for s in following if s not in known]
            known.update(fresh)
            stack.extend(fresh)
        self.states = len(known)
        return None


# The protocol; ``me`` and ``you`` name the sides, ``leave_out`` and ``order`` break it.


@dataclass(frozen=True)
class Variant:
    """The protocol, or a way to get it wrong."""

    sleeper_fence: bool = True
    look_again: bool = True
    flag_before_look: bool = True
    publisher_fence: bool = True
    flag_read_behind: bool = True


RIGHT = Variant()
WRONG = {
    "sleeper does not fence": Variant(sleeper_fence=False),
    "sleeper does not look again": Variant(look_again=False),
    "sleeper looks before it sets its flag": Variant(flag_before_look=False),
    "publisher does not fence": Variant(publisher_fence=False),
    "publisher reads the flag before it publishes": Variant(flag_read_behind=False),
}


def publish(me: str, you: str, value: int, variant: Variant) -> list[Step | str]:
    """Move the index, wake the other side if it sleeps."""
    skip = f"awake{value}"
    index = store(f"tail_{me}", value)
    fence = [FENCE] if variant.publisher_fence else []
    look: list[Step | str] = [load(f"flag_{you}")]
    order = [index, *fence, *look] if variant.flag_read_behind else [*look, index, *fence]
    return [
        *order,
        branch(lambda regs: regs[0] == 0, skip),
        Step("kick", f"kick_{you}"),
        skip,
    ]


def wait(me: str, you: str, want: int, variant: Variant, name: str) -> list[Step | str]:
    """Take in what the other side published, sleeping in between, until ``want`` is reached."""
    flag = store(f"flag_{me}", 1)
    fence = [FENCE] if variant.sleeper_fence else []
    look = [load(f"tail_{you}"), branch(lambda regs: regs[0] != regs[SEEN], f"up{name}")]
    if not variant.look_again:
        prepare = [flag, *fence]
    elif variant.flag_before_look:
        prepare = [flag, *fence, *look]
    else:
        prepare = [*look, flag, *fence]
    return [
        f"take{name}",
        load(f"tail_{you}"),
        CONSUME,
        branch(lambda regs: regs[SEEN] >= want, f"enough{name}"),
        *prepare,
        Step("sleep", f"kick_{me}"),
        f"up{name}",
        store(f"flag_{me}", 0),
        branch(lambda _: True, f"take{name}"),
        f"enough{name}",
    ]


def one_way(variant: Variant, items: int) -> list[Program]:
    """One side publishes some items, one after the other; the other one wants all of them."""
    lines: list[Step | str] = []
    for value in range(1, items + 1):
        lines += publish("a", "b", value, variant)
    return [assemble(*lines), assemble(*wait("b", "a", items, variant, "w"))]


def ping_pong(variant: Variant, rounds: int) -> list[Program]:
    """Requests and replies: both sides publish and sleep in turn."""
    asks: list[Step | str] = []
    answers: list[Step | str] = []
    for value in range(1, rounds + 1):
        asks += publish("a", "b", value, variant) + wait("a", "b", value, variant, f"a{value}")
        answers += wait("b", "a", value, variant, f"b{value}") + publish("b", "a", value, variant)
    return [assemble(*asks), assemble(*answers)]


def crossing(variant: Variant) -> list[Program]:
    """Both publish one item and wait for the other's, in no order."""
    return [
        assemble(*publish(me, you, 1, variant), *wait(me, you, 1, variant, "w"))
        for me, you in (("a", "b"), ("b", "a"))
    ]


def one_fence_for_both(fence: bool) -> list[Program]:
    """mn_app_prepare_sleep: what was published just before shares the fence of the sleep flag."""
    app: list[Step | str] = [
        "take",
        load("tail_b"),
        CONSUME,
        branch(lambda regs: regs[SEEN] >= 1, "enough"),
        store("tail_a", 1),
        store("flag_a", 1),
        *([FENCE] if fence else []),
        load("flag_b"),
        branch(lambda regs: regs[0] == 0, "awake"),
        Step("kick", "kick_b"),
        "awake",
        load("tail_b"),
        branch(lambda regs: regs[0] != regs[SEEN], "up"),
        Step("sleep", "kick_a"),
        "up",
        store("flag_a", 0),
        branch(lambda _: True, "take"),
        "enough",
    ]
    engine = assemble(*wait("b", "a", 1, RIGHT, "w"), *publish("b", "a", 1, RIGHT))
    return [assemble(*app), engine]


SCENARIOS: dict[str, Callable[[Variant], list[Program]]] = {
    "one item": lambda variant: one_way(variant, 1),
    "three items": lambda variant: one_way(variant, 3),
    "three round trips": lambda variant: ping_pong(variant, 3),
    "crossing": crossing,
}

orders = pytest.mark.parametrize("any_order", [False, True], ids=["x86", "any order"])


@orders
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_wake_up_is_lost(scenario: str, any_order: bool) -> None:
    checker = Checker(SCENARIOS[scenario](RIGHT), any_order)
    assert checker.lost() is None
    assert checker.states > 50


@orders
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_loses_a_wake_up(scenario: str, mistake: str, any_order: bool) -> None:
    state = Checker(SCENARIOS[scenario](WRONG[mistake]), any_order).lost()
    assert state is not None
    memory = dict(state.memory)
    # It sleeps, with its flag set and no kick on the way, and something was published for it.
    asleep = [me for me in "ab" if memory.get(f"flag_{me}") and not memory[f"kick_{me}"]]
    assert asleep


@orders
def test_one_fence_serves_what_was_published_and_the_flag(any_order: bool) -> None:
    assert Checker(one_fence_for_both(fence=True), any_order).lost() is None
    assert Checker(one_fence_for_both(fence=False), any_order).lost() is not None

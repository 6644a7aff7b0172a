# SPDX-License-Identifier: MIT
"""The agent's protocol with bytes of all kinds, both ways: nothing hangs, and errors are clear."""

from __future__ import annotations

import argparse
import io
import json
import os
import struct
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machnet.testing import agent
from machnet.testing.remote import Agent, AgentError

TOKEN = "secret"
PATIENCE_S = 30.0

NUMBERS = st.sampled_from([0, 1, -1, 2, 3, 16, 64, 70000, 1 << 31, 1 << 40, 10**30, 0.5])
WORDS = st.sampled_from(
    ["", "127.0.0.1", "echo", "net.ipv4.tcp_sack", "net/../x", "no-such-nic", "\ud800", "x" * 2000]
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS | st.just(float("inf")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
OPS = sorted(
    agent.BLOCKING
    | agent.QUICK
    | {"socket", "close", "service", "run", "sysctl", "address", "interfaces", "reset", "__init__"}
)


def raw(value: Any, data: bytes = b"") -> bytes:
    text = json.dumps(value).encode()
    return struct.pack(">II", len(text), len(data)) + text + data


@st.composite
def spoiled(draw: st.DrawFn, messages: st.SearchStrategy[Any]) -> bytes:
    """Messages, of which one may be cut, changed in a byte, or none at all."""
    out = b""
    for value in draw(st.lists(messages, max_size=6)):
        out += raw(value, draw(st.binary(max_size=20)))
    match draw(st.integers(0, 5)):
        case 0:
            out = out[: draw(st.integers(0, len(out)))]
        case 1 if out:
            at = draw(st.integers(0, len(out) - 1))
            out = out[:at] + draw(st.binary(min_size=1, max_size=4)) + out[at + 1 :]
        case 2:
            out += draw(st.binary(max_size=30))
        case 3:
            out += struct.pack(">II", *draw(st.tuples(*[st.integers(0, 2**32 - 1)] * 2)))
        case _:
            pass
    return out


def answers(written: list[bytes]) -> list[dict[str, Any]]:
    stream = io.BytesIO(b"".join(written))
    return [message[0] for message in iter(lambda: agent.read_message(stream), None)]


class Heard:
    """What a session hears: ``data``, after the proof if it is to have one."""

    def __init__(self, data: bytes, proof: bool) -> None:
        self.written: list[bytes] = []
        self.trusted = False
        self._data, self._proof = data, proof
        self.stream = io.BytesIO()

    def write(self, message: bytes) -> None:
        self.written.append(message)
        if len(self.written) == 1:
            nonce = answers([message])[0]["nonce"]
            first = raw({"proof": agent.prove(TOKEN, nonce)}) if self._proof else b""
            self.stream.write(first + self._data)
            self.stream.seek(0)

    def trust(self) -> None:
        self.trusted = True

    def serve(self) -> None:
        """In a thread, which must end."""
        given_ = argparse.Namespace(token=TOKEN, allow_run=False, address=None)
        failures: list[BaseException] = []

        def run() -> None:
            try:
                agent.serve(self.stream, self.write, given_, self.trust)
            except agent.ProtocolError:
                pass
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        assert failures == []


GREETINGS = st.fixed_dictionaries({"proof": VALUES}) | VALUES


@given(spoiled(GREETINGS | st.fixed_dictionaries({"id": NUMBERS, "op": st.sampled_from(OPS)})))
def test_nothing_is_taken_from_who_has_not_shown_the_token(data: bytes) -> None:
    heard = Heard(data, proof=False)
    heard.serve()
    assert not heard.trusted
    hello, *rest = answers(heard.written)
    assert hello["auth"] is True
    assert rest in ([], [{"error": ["PermissionError", 13, "the token is another one"]}])
    assert heard.stream.tell() <= 8 + 4096


REQUESTS = st.fixed_dictionaries(
    {"id": st.integers(0, 9), "op": st.sampled_from(OPS), "args": st.lists(VALUES, max_size=4)}
)
SOCKETS = st.builds(
    lambda kind: {"id": 1, "op": "socket", "args": [2, kind, 0]}, st.sampled_from([1, 2])
)
CALLS = st.builds(
    lambda op, handle, args: {"id": 2, "op": op, "args": [handle, *args]},
    st.sampled_from(sorted(agent.BLOCKING | agent.QUICK)),
    st.integers(1, 3),
    st.lists(VALUES | st.just(["127.0.0.1", 0]), max_size=3),
)


@given(spoiled(SOCKETS | CALLS | REQUESTS | VALUES))
def test_a_session_answers_what_it_can_and_ends_with_what_it_cannot(data: bytes) -> None:
    heard = Heard(data, proof=True)
    heard.serve()
    assert heard.trusted
    _, about, *rest = answers(heard.written)
    assert set(about["ok"]) >= {"host", "run"}
    for answer in rest:
        assert type(answer["id"]) is int
        if "error" in answer:
            kind, number, text = answer["error"]
            assert isinstance(kind, str)
            assert number is None or type(number) is int
            assert len(text) <= 1000


class Played:
    """An agent that says what the test wants: a greeting, then bytes behind each request."""

    def __init__(self, greeting: bytes, replies: list[bytes] | None) -> None:
        read, self.descriptor = os.pipe()
        self.stream = os.fdopen(read, "rb")
        self._replies = iter(replies or [])
        self._open = True
        self._say(greeting)
        if replies is None:
            self.end()  # it says no more

    def _say(self, data: bytes) -> None:
        if self._open:
            os.write(self.descriptor, data)

    def write(self, message: bytes) -> None:
        value, _ = agent.read_message(io.BytesIO(message)) or ({}, b"")
        if "id" not in value:
            return
        reply = next(self._replies, None)
        if reply is not None:
            self._say(reply.replace(b"NUMBER", str(value["id"]).encode().rjust(6)))
        if reply is None or b"NUMBER" not in reply:
            self.end()  # else nobody would answer

    def end(self) -> str:
        if self._open:
            self._open = False
            os.close(self.descriptor)
        return ""

    def connect(self) -> Agent:
        return Agent("a test", self.stream, self.write, TOKEN, self.end)

    def close(self) -> None:
        self.end()
        self.stream.close()


def within(seconds: float, what: Any) -> BaseException | None:
    """What it raises; it must be over in time."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            what()
            raised.append(None)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert raised, "it hangs"
    return raised[0]


HELLO = {"agent": agent.VERSION, "nonce": "00", "auth": True}
ABOUT = {"ok": {"host": "h", "run": True, "root": True, "address": None}}


@given(
    spoiled(st.just(HELLO) | st.just(ABOUT) | VALUES | st.fixed_dictionaries({"error": VALUES})),
    st.booleans(),
)
def test_who_is_no_agent_is_said_to_be_none(data: bytes, hello: bool) -> None:
    played = Played((raw(HELLO) if hello else b"") + data, None)
    error = within(PATIENCE_S, lambda: played.connect().close())
    played.close()
    assert error is None or type(error) in {AgentError, PermissionError}
    assert error is None or "a test: " in str(error)


def use(remote: Agent, which: int) -> None:
    """Calls whose answers have a form."""
    if which == 0:
        remote.interfaces()
        remote.service("echo", "127.0.0.1")
        remote.sysctl("net.ipv4.tcp_sack")
    elif which == 1:
        remote.run(["true"])
    else:
        sock = remote.socket()
        sock.getsockname()
        sock.recv_into(bytearray(4))
        sock.recvfrom(4)
        sock.connect_ex(("127.0.0.1", 1))
        sock.send(b"x")
        sock.accept()


@settings(max_examples=60)
@given(
    st.lists(
        st.builds(
            lambda value, error, data: raw(
                {"id": "NUMBER", "error" if error else "ok": value}, data
            ).replace(b'"NUMBER"', b"  NUMBER"),
            VALUES | st.just(["OSError", 98, "in use"]) | st.just([0, 3]),
            st.booleans(),
            st.binary(max_size=8),
        )
        | spoiled(st.fixed_dictionaries({"id": VALUES, "ok": VALUES})),
        max_size=5,
    ),
    st.integers(0, 2),
)
def test_answers_of_any_form_are_understood_or_an_error(replies: list[bytes], which: int) -> None:
    played = Played(raw(HELLO) + raw(ABOUT), replies)
    with played.connect() as remote:
        error = within(PATIENCE_S, lambda: use(remote, which))
    played.close()
    assert error is None or isinstance(error, (OSError, ValueError, TypeError, OverflowError))
    if isinstance(error, (ValueError, TypeError, OverflowError)):
        assert any(type(error).__name__.encode() in reply for reply in replies)


@pytest.mark.parametrize("number", ["null", "[]", "Infinity", "{}", '"1"'])
def test_an_answer_without_a_number_ends_the_conversation_of_all_who_wait(number: str) -> None:
    text = f'{{"id": {number}, "ok": 1}}'.encode()
    reply = struct.pack(">II", len(text), 0) + text
    played = Played(raw(HELLO) + raw(ABOUT), [reply])
    with played.connect() as remote:
        error = within(PATIENCE_S, remote.interfaces)
        assert isinstance(error, AgentError)
    played.close()


def test_a_long_request_under_way_holds_up_no_answers() -> None:
    """Both sides may be writing: who does not read what comes meanwhile waits for ever."""
    played = Played(raw(HELLO) + raw(ABOUT), [])
    short, long, go = threading.Event(), threading.Event(), threading.Event()

    def write(message: bytes) -> None:
        if b'"short"' in message:
            short.set()
        elif b'"long"' in message:
            long.set()
            assert go.wait(PATIENCE_S)

    remote = Agent("a test", played.stream, write, TOKEN, played.end)
    got: list[Any] = []
    threads = [
        threading.Thread(target=lambda: got.append(remote.ask("short")[0])),
        threading.Thread(target=lambda: got.append(remote.ask("long")[0])),
    ]
    for thread, event in zip(threads, (short, long), strict=True):
        thread.start()
        assert event.wait(PATIENCE_S)
    os.write(played.descriptor, raw({"id": 1, "ok": 5}))
    threads[0].join(PATIENCE_S)
    assert got == [5]
    go.set()
    os.write(played.descriptor, raw({"id": 2, "ok": 6}))
    threads[1].join(PATIENCE_S)
    assert got == [5, 6]
    remote.close()
    played.close()

# SPDX-License-Identifier: MIT
"""KernelHost: the commands and functions it runs, its end, and what other users may do."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from machnet.sim import kernel_host
from machnet.sim.kernel_host import CommandError, KernelHost, KernelHostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE_S = 20.0  # far more than anything here takes: reached only when something is broken

pytestmark = pytest.mark.usefixtures("_needs_namespaces")


@pytest.fixture
def host() -> Iterator[KernelHost]:
    with KernelHost() as made:
        yield made


def wait_until_ended(pidfds: list[int]) -> None:
    """Return once all these processes have ended (by event), and close the descriptors."""
    poll = select.poll()
    for fd in pidfds:
        poll.register(fd, select.POLLIN)
    waiting = set(pidfds)
    deadline = time.monotonic() + DEADLINE_S
    while waiting and (left := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            poll.unregister(fd)
            waiting.discard(fd)
    for fd in pidfds:
        os.close(fd)
    assert not waiting, "processes are still running"


def own_namespace(pid: int | str = "self") -> int:
    return Path(f"/proc/{pid}/ns/net").stat().st_ino


def open_descriptors() -> set[str]:
    """What this process has open, by number and target."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that listed them
            found.add(f"{path.name} {path.readlink()}")
    return found


def assert_works(host: KernelHost) -> None:
    """A datagram through the host's lo, by sockets used from here."""
    with host.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE_S)
        sock.bind(("127.0.0.1", 0))
        sock.sendto(b"to myself", sock.getsockname())
        assert sock.recv(100) == b"to myself"


# ---- commands -----------------------------------------------------------------------------------


def test_run_returns_the_output(make_host: Callable[..., KernelHost]) -> None:
    host = make_host()
    done = host.run(["sh", "-c", "cat; echo $0 >&2; exit 3", "word"], input="abc", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "abc", "word\n")
    assert host.run(["cat"], input=b"\xff\x00").stdout == b"\xff\x00"
    assert host.run(["cat"]).stdout == ""


def test_run_checks_the_exit_status_and_shows_what_was_said(host: KernelHost) -> None:
    with pytest.raises(CommandError, match="exit status 7") as caught:
        host.run(["sh", "-c", "echo the reason >&2; exit 7"])
    assert isinstance(caught.value, subprocess.CalledProcessError)
    assert "the reason" in str(caught.value)


def test_run_that_takes_too_long_ends_with_all_it_started(host: KernelHost) -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        host.run(["sh", "-c", "sleep 1000 & echo $!; wait"], timeout=0.3)
    assert caught.value.cmd[0] == "sh"
    pid = int(caught.value.stdout)
    with contextlib.suppress(ProcessLookupError):
        wait_until_ended([os.pidfd_open(pid)])


def test_a_command_gets_a_clean_start(host: KernelHost) -> None:
    assert host.run(["env"], env={"PATH": os.environ["PATH"], "A": "b"}).stdout.split() == [
        f"PATH={os.environ['PATH']}",
        "A=b",
    ]
    status = host.run(["grep", "SigIgn", "/proc/self/status"]).stdout
    ignored = int(status.split()[1], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1))
    # Three streams, and the directory that ls itself has opened.
    assert host.run(["ls", "/proc/self/fd"]).stdout.split() == ["0", "1", "2", "3"]


def test_descriptors_can_be_passed_to_a_command(host: KernelHost) -> None:
    read_fd, write_fd = os.pipe()
    host.run(["sh", "-c", f"echo through >/dev/fd/{write_fd}"], pass_fds=[write_fd])
    os.close(write_fd)
    assert os.read(read_fd, 100) == b"through\n"
    os.close(read_fd)


def test_popen_is_an_ordinary_popen(host: KernelHost) -> None:
    with host.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert own_namespace(process.pid) == own_namespace(host.pid)
        process.stdin.write("one\n")
        process.stdin.flush()
        assert process.stdout.readline() == "one\n"
        process.terminate()
        assert process.wait(DEADLINE_S) == -signal.SIGTERM


def test_a_command_that_is_not_there_or_misused_is_refused(host: KernelHost) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-command"):
        host.run(["no-such-command"], env={"PATH": "/usr/bin:/bin"})
    with pytest.raises(PermissionError):
        host.run(["/dev/null"])
    with pytest.raises(TypeError, match="list"):
        host.run("ls -l")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="shell"):
        host.popen(["ls"], shell=True)


# ---- functions ----------------------------------------------------------------------------------


class NoExceptionEither(BaseException):
    """As what pytest ends a test with."""


class NotRebuiltError(Exception):
    """Pickles, and can't be unpickled: its arguments are not what it is made from."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def test_call_runs_closures_inside(make_host: Callable[..., KernelHost]) -> None:
    host = make_host()
    base, changed = 40, []

    def add(number: int, *, scale: int = 1) -> tuple[int, int]:
        changed.append(number)
        return (base + number) * scale, os.getpid()

    result, pid = host.call(add, 2, scale=10)
    assert result == 420
    assert pid != os.getpid()
    assert not changed
    assert len(host.call(lambda: bytes(8 << 20))) == 8 << 20


def test_call_raises_what_the_function_raises(host: KernelHost) -> None:
    def fail(error: BaseException) -> None:
        raise error

    with pytest.raises(ZeroDivisionError, match="by nought") as caught:
        host.call(fail, ZeroDivisionError("by nought"))
    assert "raise error" in str(caught.value.__cause__)
    with pytest.raises(TimeoutError, match="its own"):
        host.call(fail, TimeoutError("its own"))
    with pytest.raises(NoExceptionEither, match="from inside"):
        host.call(fail, NoExceptionEither("from inside"))
    with pytest.raises(KernelHostError, match="1 and 2"):
        host.call(fail, NotRebuiltError(1, 2))
    with pytest.raises(KernelHostError, match="SystemExit: 3"):
        host.call(fail, SystemExit(3))
    with pytest.raises(KernelHostError, match="closed") as closed:
        host.call(fail, KernelHostError("a closed one", 9))
    assert closed.value.errno == 9


def test_call_without_a_result_says_why(host: KernelHost) -> None:
    with pytest.raises(KernelHostError, match="can't be pickled"):
        host.call(lambda: lambda: 0)
    with pytest.raises(KernelHostError, match="killed by signal 9"):
        host.call(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(KernelHostError, match="exit status 5"):
        host.call(lambda: os._exit(5))


def test_call_that_takes_too_long_is_killed(host: KernelHost, tmp_path: Path) -> None:
    def hang() -> None:
        (tmp_path / "pid").write_text(str(os.getpid()))
        signal.pause()

    with pytest.raises(TimeoutError, match=r"hang\(\) took longer than 0.3 s"):
        host.call(hang, timeout=0.3)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_call_does_not_wait_for_what_the_function_left_behind(host: KernelHost) -> None:
    assert host.call(lambda: subprocess.Popen(["sleep", "1000"], close_fds=False).pid > 0)


def test_call_and_popen_do_not_wait_for_a_call_of_another_thread(host: KernelHost) -> None:
    ready_fd, tell_fd = os.pipe()
    wait_fd, release_fd = os.pipe()

    def hold() -> bytes:
        os.write(tell_fd, b"x")
        return os.read(wait_fd, 1)

    results: list[bytes] = []
    thread = threading.Thread(target=lambda: results.append(host.call(hold)))
    thread.start()
    assert os.read(ready_fd, 1) == b"x"
    assert host.run(["echo", "meanwhile"]).stdout == "meanwhile\n"
    assert host.call(lambda: 1) == 1
    with KernelHost("short-lived") as other:
        assert other.call(lambda: 2) == 2
    os.write(release_fd, b"y")
    thread.join()
    assert results == [b"y"]
    for fd in (ready_fd, tell_fd, wait_fd, release_fd):
        os.close(fd)


def test_a_host_can_not_be_used_from_a_forked_child(host: KernelHost) -> None:
    def misuse() -> None:
        host.close()  # does nothing: it is not this process's
        host._control = control
        host.socket()

    control = host._control
    with pytest.raises(KernelHostError, match="belongs to process"):
        host.call(misuse)
    assert_works(host)


# ---- ending -------------------------------------------------------------------------------------


def start_stragglers(host: KernelHost) -> list[int]:
    """A child and a grandchild in a session of its own, as pidfds."""
    process = host.popen(["sh", "-c", "setsid sleep 1000 & echo $!; exec sleep 1000"],
                         stdout=subprocess.PIPE, text=True)  # fmt: skip
    return [os.pidfd_open(process.pid), os.pidfd_open(int(process.stdout.readline()))]


def test_close_ends_everything_inside(make_host: Callable[..., KernelHost]) -> None:
    host = make_host()
    pidfds = [*start_stragglers(host), os.pidfd_open(host.pid)]
    host.close()
    wait_until_ended(pidfds)
    assert host.closed
    host.close()
    with pytest.raises(KernelHostError, match="closed"):
        host.socket()
    with pytest.raises(KernelHostError, match="closed"):
        _ = host.pid


def test_a_forgotten_host_is_closed() -> None:
    host = KernelHost()
    pidfd = os.pidfd_open(host.pid)
    del host
    gc.collect()
    wait_until_ended([pidfd])


def test_a_host_outlives_the_thread_that_made_it() -> None:
    made: list[KernelHost] = []
    thread = threading.Thread(target=lambda: made.append(KernelHost()))
    thread.start()
    thread.join()
    with made[0] as host:
        assert_works(host)


def test_a_host_whose_holder_was_killed_says_so(host: KernelHost) -> None:
    pidfd = os.pidfd_open(host.pid)
    process = host.popen(["sleep", "1000"])
    os.kill(host.pid, signal.SIGKILL)
    wait_until_ended([pidfd])
    with pytest.raises(KernelHostError, match="does not answer"):
        host.socket()
    assert host.closed
    assert process.returncode == -signal.SIGKILL


OWNER = """
    import os, signal, sys, threading
    from machnet.sim.kernel_host import KernelHost

    hosts = [KernelHost(user_namespace=mode) for mode in (None, True)]
    pids = [host.pid for host in hosts]
    for host in hosts:
        process = host.popen(["sh", "-c", "setsid sleep 1000 & echo $!; exec sleep 1000"],
                             stdout=-1, text=True)
        pids += [process.pid, int(process.stdout.readline())]

    def in_host():
        print(os.getpid(), *pids, flush=True)
        signal.pause()

    if sys.argv[1] == "exit":
        print(*pids, flush=True)
        sys.stdin.readline()
        os._exit(0)
    hosts[0].call(in_host, timeout=None)
"""


@pytest.mark.usefixtures("_needs_user_namespace")
@pytest.mark.parametrize("end", ["kill", "exit"])
def test_nothing_outlives_an_owner_that_ends_without_closing(end: str, tmp_path: Path) -> None:
    script = tmp_path / "owner.py"
    script.write_text(textwrap.dedent(OWNER))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # fmt: off
    with subprocess.Popen(
        [sys.executable, str(script), end],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    ) as owner:
        # fmt: on
        assert owner.stdout is not None
        assert owner.stdin is not None
        pidfds = [os.pidfd_open(int(pid)) for pid in owner.stdout.readline().split()]
        assert len(pidfds) == (7 if end == "kill" else 6)
        if end == "kill":
            owner.kill()
        else:
            owner.stdin.write("\n")
            owner.stdin.flush()
        wait_until_ended(pidfds)


@pytest.mark.usefixtures("_needs_user_namespace")
def test_fifty_hosts_leave_no_descriptor_and_no_child() -> None:
    with KernelHost() as warm:
        warm.set_link("lo", mtu=2000)  # what is imported lazily, now
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = open_descriptors()
    # Hosts of other tests may be there for as long as the process.
    others = children.read_text() if children.exists() else ""
    hosts = [KernelHost(f"host-{i}", user_namespace=i % 2 == 0) for i in range(50)]
    for host in hosts:
        host.set_link("lo", mtu=3000)
        host.run(["true"])
        host.call(int)
    for host in hosts:
        host.close()
    assert open_descriptors() == before
    if children.exists():
        assert children.read_text() == others


# ---- other users --------------------------------------------------------------------------------

VISITOR = """
    import os, socket, sys
    from machnet.sim.kernel_host import KernelHost

    print(os.getuid(), os.geteuid(), KernelHost.available(), sep="|")
    with KernelHost("a") as a, KernelHost("b") as b:
        assert a.in_user_namespace and b.in_user_namespace
        KernelHost.connect(a, b, "10.0.1.1/24", "10.0.1.2/24", offloads=False)
        with b.socket() as listener, a.socket() as client:
            listener.bind(("10.0.1.2", 7000)); listener.listen()
            client.connect(("10.0.1.2", 7000))
            client.sendall(b"x")
            conn, _ = listener.accept()
            with conn:
                print(conn.recv(1), a.run(["id", "-u"]).stdout.strip(), b.call(os.getuid), sep="|")
        a.sysctl("net.ipv4.tcp_sack", 0)
    print(KernelHost.tap_available())
"""


def run_as_nobody(directory: Path, script: str, tun_mode: str) -> list[str]:
    """Run a script without privileges, with /dev/net/tun of this mode; the lines that it prints.

    For the visitor the interpreter and the packages are bound to places that it can read, in a
    mount namespace that ends with it: the tree may lie in root's home.
    """
    if shutil.which("setpriv") is None or shutil.which("unshare") is None:
        pytest.skip("setpriv and unshare (util-linux) are not installed")
    package = directory / "package" / "machnet" / "sim"
    package.mkdir(parents=True)
    for part in (package.parent, package):
        (part / "__init__.py").touch()
    for source in Path(kernel_host.__file__).parent.glob("*.py"):
        if source.name != "__init__.py":
            shutil.copy(source, package)
    (directory / "visitor.py").write_text(textwrap.dedent(script))
    pyroute2 = pytest.importorskip("pyroute2")
    base = Path(sys.base_prefix)
    python = Path(sys.executable).resolve().relative_to(base.resolve())
    setup = """
        set -e
        mount -t tmpfs -o mode=755 none "$1/mnt"
        mkdir "$1/mnt/python" "$1/mnt/site"
        mount --bind "$2" "$1/mnt/python"
        mount --bind "$3" "$1/mnt/site"
        mknod "$1/mnt/tun" c 10 200
        chmod "$5" "$1/mnt/tun"
        mount --bind "$1/mnt/tun" /dev/net/tun
        cd /
        export PYTHONPATH="$1/package:$1/mnt/site" LD_LIBRARY_PATH="$1/mnt/python/lib"
        export PYTHONDONTWRITEBYTECODE=1
        exec setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set=-all \\
            "$1/mnt/python/$4" -W error "$1/visitor.py"
    """
    site = Path(pyroute2.__file__).parent.parent
    words = [str(directory), str(base), str(site), str(python), tun_mode]
    # fmt: off
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", setup, "sh", *words],
        capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )
    # fmt: on
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory that any user can read, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="machnet-") as name:
        Path(name).chmod(0o755)
        (Path(name) / "mnt").mkdir()
        yield Path(name)


@pytest.mark.usefixtures("_needs_user_namespace")
@pytest.mark.parametrize("tun_mode", ["666", "600"])
def test_everything_works_without_root(public_directory: Path, tun_mode: str) -> None:
    with KernelHost() as host:
        if host.in_user_namespace:
            pytest.skip("only root can become another user; the other tests show this one's rights")
    who, traffic, tap = run_as_nobody(public_directory, VISITOR, tun_mode)
    assert who == "65534|65534|None"
    assert traffic == "b'x'|0|0"
    if tun_mode == "666":
        assert tap == "None"
    else:
        assert "opening /dev/net/tun failed: Permission denied; run as root, or let root" in tap


@pytest.mark.usefixtures("_needs_user_namespace")
def test_a_refusal_comes_with_its_reason(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("unshare (util-linux) is not installed")
    code = "from machnet.sim.kernel_host import KernelHost as K; print(K.available())"
    limit = 'echo 0 > /proc/sys/user/max_net_namespaces; exec "$0" -c "$1"'
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # fmt: off
    done = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", limit, sys.executable, code],
        capture_output=True, text=True, timeout=DEADLINE_S, env=environment, cwd=tmp_path,
        check=True,
    )
    # fmt: on
    assert "creating a network namespace failed: No space left" in done.stdout
    assert "raise the sysctl user.max_net_namespaces" in done.stdout

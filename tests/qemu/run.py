# SPDX-License-Identifier: MIT
"""Runs machnet on real PCI NICs: poll-mode drivers of DPDK in guests of QEMU, without KVM.

    python tests/qemu/run.py                     every guest, as CI does
    python tests/qemu/run.py vmxnet3             one of them
    python tests/qemu/run.py vmxnet3 --step experiments

A line for each step. The first one that fails ends its guest; what the guest said last is shown, and the exit
status is 1. Where no guest can be had, the reason is printed and the status is 0 (in CI, 1).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import steps
from guest import Machine
from image import Image, ImageError, prepare
from lab import Lab

from machnet import dpdk
from machnet.sim.kernel_host import KernelHost


@dataclass(frozen=True)
class Plan:
    """A guest, the driver that DPDK is to have there, and what is done in it."""

    machine: Machine
    driver: str
    steps: tuple[steps.Step, ...]


PLANS = {
    "e1000e": Plan(
        Machine("e1000e", "e1000e", iommu=True),
        "vfio-pci",
        (
            steps.refused_until_bound,
            steps.portable_tests,
            steps.experiments,
            steps.pulled_out,
            steps.unbind,
        ),
    ),
    "virtio": Plan(
        Machine(
            "virtio-net-pci",
            "virtio_net",
            queues=2,
            iommu=True,
            options="disable-legacy=on,iommu_platform=on,mq=on,vectors=6,rss=on,hash=on",
        ),
        "vfio-pci",
        (steps.bind, steps.portable_tests, steps.experiments, steps.both_queues),
    ),
    "vmxnet3": Plan(
        Machine("vmxnet3", "vmxnet3"),
        "uio_pci_generic",
        (
            steps.given_back_after_a_crash,
            steps.bind,
            steps.portable_tests,
            steps.experiments,
        ),
    ),
}
#: A guest has two processors, of which one is mostly idle.
JOBS = min(2, len(os.sched_getaffinity(0)))
_labs: set[Lab] = set()
_ended = threading.Event()
_print_lock = threading.Lock()


def say(name: str, text: str) -> None:
    """Print a line of a guest's."""
    with _print_lock:
        print(f"{name:8} {text}", flush=True)


def run_guest(name: str, image: Image, wanted: list[str], keep: Path | None) -> bool:
    """Run a guest and its steps; whether all went well."""
    plan = PLANS[name]
    chosen = [step for step in plan.steps if not wanted or step.__name__ in wanted]
    began = time.monotonic()
    with contextlib.ExitStack() as exits:
        if keep is None:
            made = exits.enter_context(tempfile.TemporaryDirectory(prefix="machnet-qemu-"))
        folder = Path(made) if keep is None else keep / name
        folder.mkdir(parents=True, exist_ok=True)
        what = "start"
        try:
            lab = exits.enter_context(Lab(image, plan.machine, plan.driver, folder))
            _labs.add(lab)
            exits.callback(_labs.discard, lab)
            say(name, f"{plan.machine.model} is up ({time.monotonic() - began:.1f} s)")
            for step in chosen:
                what, start = step.__name__, time.monotonic()
                said = step(lab)
                say(name, f"{what}: {said} ({time.monotonic() - start:.1f} s)")
        except Exception:
            if not _ended.is_set():
                say(name, f"{what} FAILED\n{traceback.format_exc()}{last_words(folder)}")
            return False
    return True


def last_words(folder: Path) -> str:
    """What the console of a guest has."""
    console = folder / "console.txt"
    text = console.read_text(errors="replace") if console.exists() else ""
    return f"console:\n{text[-6000:]}" if text.strip() else "(nothing on the console)"


def run_guests(
    names: list[str], image: Image, wanted: list[str], keep: Path | None, jobs: int
) -> bool:
    """Run guests, so many at a time; whether all went well."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run_guest, name, image, wanted, keep) for name in names]
        try:
            return all(future.result() for future in futures)
        except BaseException:
            _ended.set()
            for future in futures:
                future.cancel()
            for lab in list(_labs):
                lab.close()
            raise


def why_not() -> str | None:
    """Why there can be no guest here."""
    if os.uname().machine != "x86_64":
        return f"the NICs are those of a PC, and this is {os.uname().machine}"
    return dpdk.missing_reason() or KernelHost.tap_available()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("guest", nargs="*", choices=[*PLANS, []], help="default: all")
    parser.add_argument(
        "--step", action="append", default=[], help="only this one; may be repeated"
    )
    parser.add_argument("--keep", type=Path, help="leave the guests' folders in this one")
    parser.add_argument(
        "--jobs", type=int, default=JOBS, help=f"guests at a time (here {JOBS} by default)"
    )
    options = parser.parse_args()
    reason = why_not()
    try:
        image = None if reason else prepare()
    except ImageError as error:
        reason = str(error)
    if reason is not None or image is None:
        print(f"skipped: {reason}")
        return 1 if os.environ.get("CI") else 0
    began = time.monotonic()
    names, keep = options.guest or list(PLANS), options.keep and options.keep.absolute()
    well = run_guests(names, image, options.step, keep, options.jobs)
    print(f"{time.monotonic() - began:.0f} s")
    return 0 if well else 1


def stop(number: int, _frame: FrameType | None) -> None:
    """Turn SIGTERM into what Ctrl-C is."""
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

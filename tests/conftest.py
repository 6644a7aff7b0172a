# SPDX-License-Identifier: MIT
"""Settings and fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
from sanitized import SANITIZED, fewer

# A run says the same thing twice. To look for new examples: --hypothesis-profile=explore.
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, print_blob=True
)
hypothesis.settings.register_profile("explore", deadline=None, print_blob=True, max_examples=2_000)
# Sanitizers are for the C code below, of which each example runs the same again, slowly.
hypothesis.settings.register_profile(
    "sanitized", hypothesis.settings.get_profile("repeatable"), max_examples=fewer(100, 30)
)
hypothesis.settings.load_profile("sanitized" if SANITIZED else "repeatable")

#: About Python alone, or about programs that are built for the test: nothing of machnet's C that has
#: sanitizers in it runs there, or only what other files run too (test_pkt_collect.py: conformance/).
PYTHON_ONLY = [
    "net/test_kernel_host.py",
    "net/test_kernel_host_life.py",
    "net/test_kernel_host_veth.py",
    "unit/test_agent.py",
    "unit/test_conventions.py",
    "unit/test_dissector.py",
    "unit/test_dpdk_bind.py",
    "unit/test_dpdk_devices.py",
    "unit/test_dpdk_forrun.py",
    "unit/test_fuzz_agent.py",
    "unit/test_machnet_sh.py",
    "unit/test_nic_command.py",
    "unit/test_nicstr.py",
    "unit/test_pkt_collect.py",
    "unit/test_pkt_parser.py",
    "unit/test_prune.py",
    "unit/test_sleep_protocol.py",
]
collect_ignore = PYTHON_ONLY if SANITIZED else []


@pytest.fixture(scope="session")
def repo() -> Path:
    """The checkout that these tests are part of."""
    return Path(__file__).resolve().parent.parent


#: Real time: processes, threads and kernels share a clock, and two cores, with the rest of the
#: machine. See docs/design/real-time-tests.md.
REAL_TIME_FOLDERS = {
    "attacks",
    "dpdk",
    "languages",
    "net",
    "plugin",
    "portable",
    "shim",
    "sidecar",
}
REAL_TIME_FILES = {
    "test_agent.py",
    "test_aio.py",
    "test_aio_ends.py",
    "test_channel_waiting.py",
    "test_engines_threads.py",
    "test_readme.py",
    "test_shm_attach.py",
    "test_shm_lanes.py",
    "test_stack_api.py",
}


#: Files that take longest, by the CPU time of `py` and `asan` together: workers take these first. What
#: begins last should be short, or one worker is still at it when the others have nothing left to do.
LONG_FILES = (
    "sim/test_suite_chaos.py",
    "net/test_msg_gen.py",
    "plugin/test_others.py",
    "sim/test_suite_steps.py",
    "unit/test_wire_mutation.py",
    "net/test_kernel_host_life.py",
    "plugin/test_failure.py",
    "tcp/test_state_table.py",
    "net/test_demo.py",
    "sidecar/test_commands.py",
    "plugin/test_nic.py",
    "unit/test_scale.py",
    "sim/test_determinism.py",
    "net/test_tcp_msg_gen.py",
    "plugin/test_guard.py",
    "unit/test_shm_tsan.py",
    "sim/test_mnp_golden.py",
    "plugin/test_shrink.py",
    "unit/test_core_is_sans_io.py",
    "net/test_kernel_host.py",
    "sim/test_golden.py",
    "net/test_tcp_linux_loss.py",
    "unit/test_testing_nic.py",
    "plugin/test_simulation.py",
    "languages/test_hello.py",
    "shim/test_c_programs.py",
    "net/test_tcp_linux_differential.py",
    "unit/test_channel_model.py",
    "sim/test_network_chaos.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).resolve().parent
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = {here / name: at for at, name in enumerate(LONG_FILES)}
        items.sort(key=lambda item: place.get(item.path, len(place)))
    if not os.environ.get("CI"):
        return
    for item in items:
        if here in item.path.parents and (
            item.path.relative_to(here).parts[0] in REAL_TIME_FOLDERS
            or item.path.name in REAL_TIME_FILES
        ):
            item.add_marker(pytest.mark.flaky(reruns=1))

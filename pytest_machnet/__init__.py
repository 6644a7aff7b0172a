# SPDX-License-Identifier: MIT
"""machnet's pytest plugin: tests on a simulated network, or on a NIC, with a real TCP/IP engine.

Nothing is imported here, and `pytest_machnet.plugin`, which pytest loads, imports neither machnet
nor anything beyond pytest: they come with the first fixture that needs them.
"""

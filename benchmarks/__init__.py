# SPDX-License-Identifier: MIT
"""Benchmarks of machnet and of the peers it is measured against."""

# SPDX-License-Identifier: MIT
"""NICs without hardware (wire, TAP), capture, and Linux peers for tests."""

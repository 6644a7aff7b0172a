# SPDX-License-Identifier: MIT
"""The wire-protocol conformance suite: each case once, against Linux and against machnet."""

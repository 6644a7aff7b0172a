# SPDX-License-Identifier: MIT
"""Other stacks doing the same work, so that a figure has something to stand beside."""

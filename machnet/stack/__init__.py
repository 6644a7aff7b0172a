# SPDX-License-Identifier: MIT
"""The engine: a TCP/IP stack as a library, in the caller's process or a thread of its own."""

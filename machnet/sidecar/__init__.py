# SPDX-License-Identifier: MIT
"""The sidecar: the process that owns the NICs, and that applications attach to.

`config` is what it is told, `server` its controller (the UNIX socket), `engines` the NICs with their
engines, `admin` the questions that may be asked, `metrics` the same for Prometheus, `process` its
life from the first line of the log to the last. ``machnet run`` starts it.
"""

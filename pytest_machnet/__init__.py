# SPDX-License-Identifier: MIT
"""The pytest plugin: options, fixtures and reports. Nothing here yet."""

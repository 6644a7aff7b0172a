# SPDX-License-Identifier: MIT
"""The reader of packetdrill scripts, which is part of the conformance suite and is not installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

_PACKAGE = "conformance_pkt"


def module(name: str) -> Any:
    """One of its modules, from the checkout, which is not on ``sys.path``."""
    if _PACKAGE not in sys.modules:
        folder = Path(__file__).resolve().parents[2] / "conformance" / "pkt"
        spec = importlib.util.spec_from_file_location(
            _PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules[_PACKAGE] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"{_PACKAGE}.{name}")

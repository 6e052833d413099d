# SPDX-License-Identifier: Apache-2.0
"""Libraries for LD_PRELOAD that make a system slow or its disk fail, built with gcc when a test wants one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def built(name: str, where: Path) -> Path:
    """``NAME.c`` as a library in ``where``; skips the test without gcc."""
    if shutil.which("gcc") is None:
        pytest.skip(f"NO SHIM: {name}.c is built with gcc, which is not installed")
    library = where / f"{name}.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, HERE / f"{name}.c", "-ldl"], check=True)
    return library

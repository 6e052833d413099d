# SPDX-License-Identifier: Apache-2.0
"""The wire's tests under the oldest cbor2 that we meet, Debian 12's, in place of the one installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DEBIAN = "5.4.6"
TESTS = Path(__file__).parents[1] / "protocol/test_wire.py"


def test_messages_are_the_same_under_debians_cbor2(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path, f"cbor2=={DEBIAN}"]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        pytest.skip(f"cbor2 {DEBIAN} cannot be had here: {done.stderr[-200:]}")
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *(path for path in sys.path if path)])}
    show = "from importlib.metadata import version; print(version('cbor2'))"
    found = subprocess.run([sys.executable, "-c", show], env=here, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == DEBIAN
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", TESTS],
        env=here,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-4000:]
    print(f"Shows 9: the wire and its table of hostile CBOR, cbor2 {DEBIAN}: all pass")

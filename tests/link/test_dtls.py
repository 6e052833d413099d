# SPDX-License-Identifier: Apache-2.0
"""Datagrams, timers and look-ups at closing DTLS sessions, under valgrind: no entry into freed memory of OpenSSL's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NET = Path(__file__).parents[1] / "net"
CARELESS = """
from dtls_pair import KEY
from fl_tiny.net.dtls import Context
context = Context.client("dev", KEY)
session = context.connect()
context.calls.SSL_free(session.pointer)  # and the pointer is kept
session.take()
"""


def faults(*command: object) -> list[str]:
    """Valgrind's complaints that go through OpenSSL; those of Python's string comparisons are known and harmless."""
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    path = os.pathsep.join([str(NET), *(path for path in sys.path if path)])
    here = {**os.environ, "PYTHONPATH": path, "PYTHONMALLOC": "malloc"}
    python = Path(sys.executable).resolve()
    valgrind = ["valgrind", "-q", "--undef-value-errors=no", "--num-callers=12", "--error-limit=no"]
    done = subprocess.run(
        [*valgrind, python, *command],
        env=here,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=900,
        check=False,
    )
    assert done.returncode == 0 or "==" in done.stderr, done.stderr[-2000:]
    blocks = re.split(r"(?m)^==\d+== $", done.stderr)
    crashed = [f"exit {done.returncode}: {done.stderr[-2000:]}"] if done.returncode else []
    return [block for block in blocks if "libssl" in block or "libcrypto" in block] + crashed


@pytest.mark.parametrize("examples", [2, pytest.param(40, marks=pytest.mark.full)])
def test_a_storm_at_closing_sessions_enters_no_freed_memory(examples: int) -> None:
    assert faults(NET / "storm.py", str(examples)) == []


def test_valgrind_sees_an_entry_into_a_freed_session() -> None:
    assert "free'd" in "".join(faults("-c", CARELESS))

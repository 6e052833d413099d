# SPDX-License-Identifier: Apache-2.0
"""Tests of another folder as a part of these: run in a process of its own, counted, and told in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def passed(*words: str | Path, limit_s: float = 600.0) -> str:
    """How many passed, as pytest says it; skipped ones are named with their reason. Fails when one failed."""
    command = [sys.executable, "-m", "pytest", "-rs", "-o", "addopts=--strict-markers", *map(str, words)]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in (str(ROOT), *sys.path) if path)}
    done = subprocess.run(command, cwd=ROOT, env=here, capture_output=True, text=True, timeout=limit_s, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    skipped = re.findall(r"^SKIPPED .*$", done.stdout, re.MULTILINE)
    return ", ".join([re.sub(r" in [\d.]+s.*|=+ ?", "", done.stdout.strip().split("\n")[-1]).strip(), *skipped])

# SPDX-License-Identifier: Apache-2.0
"""Every fuzz target for a while, by a mutator of our own or atheris, and the table of hostile CBOR."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from .inner import ROOT, passed

SECONDS, FULL_S = 4, 60


@pytest.mark.parametrize("seconds", [SECONDS, pytest.param(FULL_S, marks=pytest.mark.full)])
def test_no_target_crashes_hangs_or_leaves_a_traceback(seconds: int) -> None:
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    words = [sys.executable, "-m", "fuzz", str(seconds)]
    done = subprocess.run(words, cwd=ROOT, env=here, capture_output=True, text=True, check=False)
    inputs = re.findall(r"^(\S+): passed, (\d+) inputs", done.stdout, re.MULTILINE)
    print(f"Shows 9: {len(inputs)} targets, {seconds} s each, {sum(int(n) for _, n in inputs):,} inputs, none found")
    assert done.returncode == 0 and inputs, done.stdout[-4000:] + done.stderr[-1000:]


def test_hostile_cbor_is_answered_quickly() -> None:
    print(
        f"Shows 9: the wire and its table of hostile CBOR, cbor2 as installed: {passed('tests/protocol/test_wire.py')}"
    )

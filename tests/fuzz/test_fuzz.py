# SPDX-License-Identifier: Apache-2.0
"""A short run of every fuzz target, and proof that a run sees what it looks for; ``scripts/fuzz`` runs for minutes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fuzz import engine
from fuzz.engine import Finding, tried
from fuzz.seeds import seeds
from fuzz.targets import TARGETS, Target

INPUTS, SECONDS = 3000, 1.5


@pytest.mark.parametrize("name", TARGETS)
def test_no_hostile_input_does_more_than_be_refused(name: str) -> None:
    last = b""

    def note(data: bytes) -> None:
        nonlocal last
        last = data

    until = time.monotonic() + SECONDS
    try:
        tried(TARGETS[name], seeds(name), 7, lambda n: n < INPUTS and time.monotonic() < until, note)
    except Finding as found:
        pytest.fail(f"{found}\n{last.hex()}")


def _raises(data: bytes) -> None:
    if len(data) > 20:
        raise IndexError("ours")


def _hangs(data: bytes) -> None:
    while len(data) > 20:
        pass


def _swells(data: bytes) -> None:
    if len(data) > 20:
        bytearray(b"x" * (engine.INPUT_KIB * 1024 + (1 << 26)))


@pytest.mark.parametrize(("broken", "said"), [(_raises, "IndexError"), (_hangs, "s of CPU"), (_swells, "MiB for one")])
def test_a_traceback_a_hang_and_swelling_memory_are_found(broken: object, said: str) -> None:
    code = f"""
from fuzz.engine import Finding, tried
from fuzz.targets import Target
from fuzz.test_fuzz import {broken.__name__}
try:
    tried(Target({broken.__name__}), [b"seed"], 1, lambda n: n < 5000, lambda data: None)
except Finding as found:
    print(found)
"""  # a process of its own: a hang of this one would be the test's
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ballast = bytearray(b"x" * 2 * (engine.INPUT_KIB * 1024 + (1 << 26)))  # a parent's peak must not hide a child's
    done = subprocess.run(
        [sys.executable, "-c", code], env=here, capture_output=True, text=True, timeout=60, check=True
    )
    del ballast
    assert said in done.stdout


def test_the_input_of_a_process_that_died_is_kept(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from pathlib import Path
from fuzz import engine, targets
def dies(data):
    if len(data) > 60:
        os.kill(os.getpid(), signal.SIGSEGV)
targets.TARGETS["cbor"] = targets.Target(dies)
engine._by_ourselves("cbor", 20, 1, Path({str(tmp_path)!r}))
"""
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=here, capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGSEGV
    data = engine.rescued(tmp_path)
    assert data is not None and len(data) > 60
    assert engine.keep(tmp_path / "corpus", "cbor", data).read_bytes() == data


def test_a_fault_of_ours_is_no_finding() -> None:
    def refuses(data: bytes) -> None:
        raise ValueError("as it should")

    assert tried(Target(refuses, (ValueError,)), [b"seed"], 1, lambda n: n < 100, lambda data: None) == 100

# SPDX-License-Identifier: Apache-2.0
"""Ledger and device database from every kind of state that a power cut may leave: what was acknowledged is there."""

from __future__ import annotations

import hashlib
import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fl_tiny.device.store import DeviceStore
from fl_tiny.errors import FlTinyError
from fl_tiny.gateway.store import Store

from .crashed import Replay, can_trace, put, record, states
from .guest import device_state, gateway_state
from .test_power import tree_of

pytestmark = pytest.mark.skipif(not can_trace(), reason="NO CRASH STATES: strace is not installed, or may not trace")


@contextmanager
def memory_folder(fallback: Path) -> Iterator[Path]:
    """Where a thousand databases may be opened without wearing a disk."""
    base = Path("/dev/shm")
    folder = base / f"fl-tiny-{hashlib.sha256(str(fallback).encode()).hexdigest()[:16]}" if base.is_dir() else fallback
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def found(role: str, path: Path) -> dict[str, Any]:
    """What our own code finds in a state. Raises: FlTinyError when it refuses it."""
    store: Any = Store.open(path) if role == "gateway" else DeviceStore.open(path)
    try:
        return gateway_state(store) if role == "gateway" else device_state(store)
    finally:
        store.close()


def enumerate_states(root: Path, role: str, acks: int, drawn: int, synchronous: str = "FULL") -> list[str]:
    """Every acknowledged thing that is missing in a state, and each fault, as text."""
    tree = tree_of(role, root)
    before = {path.name: path.read_bytes() for path in tree.iterdir() if path.name.startswith("state.db")}
    before.pop("state.db-shm", None)
    trace = record(role, tree, acks, synchronous)
    rng, seen, lost, moments = random.Random(acks), set(), [], 0
    with memory_folder(root / "states") as folder:
        for cut in Replay(before, str(tree)).moments(trace):
            moments += 1
            for state in states(cut, rng, drawn):
                key = (*sorted(cut.acks.items()), *(hashlib.sha256(state[name]).digest() for name in sorted(state)))
                if key in seen:
                    continue
                seen.add(key)
                try:
                    has = found(role, put(folder, state))
                except (FlTinyError, sqlite3.DatabaseError) as fault:
                    lost.append(f"moment {moments}: {fault}")
                    continue
                lost += [f"moment {moments}: {fault}" for fault in has.get("faults", [])]
                lost += [
                    f"moment {moments}: {w} {has[w]} of {n}" for w, n in cut.acks.items() if w in has and has[w] < n
                ]
    counts = f"{acks} acknowledged, {moments} moments, {len(seen)} states, {len(lost)} losses"
    print(f"Shows 3: {role} {synchronous}, crash states: {counts}")
    assert moments >= acks - 3, "the trace may lack its last lines, since strace was killed"
    assert synchronous == "OFF" or bytes(cut.files["state.db"].sure) != before["state.db"], "no checkpoint came"
    return lost


@pytest.mark.parametrize("role", ["gateway", "device"])
def test_no_state_that_a_power_cut_may_leave_lacks_what_was_acknowledged(tmp_path: Path, role: str) -> None:
    assert enumerate_states(tmp_path, role, 80, 12) == []


@pytest.mark.full
@pytest.mark.parametrize("role", ["gateway", "device"])
def test_no_state_of_a_long_session_lacks_what_was_acknowledged(tmp_path: Path, role: str) -> None:
    assert enumerate_states(tmp_path, role, 400, 60) == []


@pytest.mark.parametrize("role", ["gateway", "device"])
@pytest.mark.parametrize("synchronous", ["OFF", "NORMAL"])
def test_without_full_synchronisation_some_state_lacks_it(tmp_path: Path, role: str, synchronous: str) -> None:
    assert enumerate_states(tmp_path, role, 30, 2, synchronous) != []

# SPDX-License-Identifier: Apache-2.0
"""How long a device that is gone without a word counts as online, and one that is at work stays so."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fl_tiny.gateway.presence import RETURN_S
from fl_tiny.gateway.service import Gateway
from fl_tiny.gateway.store import Store
from fl_tiny.protocol.rounds import RoundSettings

from ..link.light import Harness
from .test_commit import opened


def gateway_of(root: Path, interval_s: float) -> tuple[Gateway, bytes]:
    harness = Harness(root, 1)
    gateway = opened(Store.open(harness.directory / "state.db"), harness.directory, 1)
    gateway.settings = RoundSettings(1, 1.0, 600.0, interval_s)
    gateway.rounds.settings = gateway.settings
    return gateway, harness.devices[0].did


@pytest.mark.parametrize(("interval_s", "poll_s"), [(0.0, 60.0), (3600.0, 240.0)])
def test_a_device_is_offline_a_minute_after_its_heartbeat_was_due(
    tmp_path: Path, interval_s: float, poll_s: float
) -> None:
    gateway, did = gateway_of(tmp_path, interval_s)
    device = gateway.store.device(did)
    assert device
    gateway._next_open = time.monotonic() + interval_s
    began = time.monotonic()
    told = gateway.registered(device)
    assert told.poll_ms <= poll_s * 1000
    assert gateway.attendance.online(began + told.poll_ms / 1000 + RETURN_S - 1) == {did}
    assert gateway.attendance.online(began + poll_s + RETURN_S + 1) == frozenset()


def test_a_device_that_asks_for_blocks_of_a_large_model_stays_online(tmp_path: Path) -> None:
    gateway, did = gateway_of(tmp_path, 0.0)
    device = gateway.store.device(did)
    assert device
    gateway.registered(device)
    later = time.monotonic() + 600
    gateway.attendance.is_at_work(did, later)  # as each request does
    assert gateway.attendance.online(later + RETURN_S - 1) == {did}

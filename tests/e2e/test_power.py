# SPDX-License-Identifier: Apache-2.0
"""The short form of tests/link/test_power.py: one power cut each."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..link import test_power

pytestmark = test_power.pytestmark


@pytest.mark.parametrize("role", ["gateway", "device"])
def test_nothing_acknowledged_is_lost_by_a_power_cut(tmp_path: Path, role: str) -> None:
    assert test_power.cycles(tmp_path, role, 1) == []

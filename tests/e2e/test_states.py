# SPDX-License-Identifier: Apache-2.0
"""The short form of tests/link/test_states.py: fewer commits, fewer states drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..link.test_states import enumerate_states, pytestmark

__all__ = ["pytestmark"]


@pytest.mark.parametrize("role", ["gateway", "device"])
def test_no_state_that_a_power_cut_may_leave_lacks_what_was_acknowledged(tmp_path: Path, role: str) -> None:
    assert enumerate_states(tmp_path, role, 30, 3) == []


def test_without_fsync_some_state_lacks_it(tmp_path: Path) -> None:
    assert enumerate_states(tmp_path, "gateway", 12, 1, "OFF") != []

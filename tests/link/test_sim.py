# SPDX-License-Identifier: Apache-2.0
"""More runs of the fleet on a clock of its own than scripts/test draws."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.test_fleet import root, run_examples

__all__ = ["root"]


@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.full)])
def test_whatever_happens_in_whichever_order(root: tuple[Path, list[bytes]], count: int) -> None:
    run_examples(root, count)

# SPDX-License-Identifier: Apache-2.0
"""Every head of the zoo learns, and int8 costs it a point at most; what cannot be trained is refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_tiny.lab.heads import rows

MODELS = Path(__file__).parent.parent / "models"
NAMES = [str(path.relative_to(MODELS).with_suffix("")) for path in sorted(MODELS.glob("zoo/**/*.tflite"))]
REFUSED = {"zoo/dynamic_range", "zoo/float_model", "zoo/streaming", "zoo/two_heads", "zoo/tf219/dynamic_range"}


@pytest.mark.parametrize("name", NAMES)
def test_every_head_of_the_zoo_learns_or_is_refused_in_a_sentence(name: str) -> None:
    pytest.importorskip("tflite_runtime", reason="tflite-runtime has no wheel for this Python")
    found = rows((MODELS / f"{name}.tflite").read_bytes())
    trained = [row for row in found if row.reason is None]
    assert bool(trained) is (name not in REFUSED)
    for row in trained:
        assert row.before is not None and row.after is not None and row.float_head is not None
        assert row.after > row.before + 0.1, row
        assert row.float_head - row.after <= 0.0101, row
    assert all(row.reason and "\n" not in row.reason for row in found if row.reason is not None)

# SPDX-License-Identifier: Apache-2.0
"""Every operator by itself, with every option that its kernel takes: numpy's values are the interpreters'."""

from __future__ import annotations

import numpy as np
import pytest

from fl_tiny.learn.kernels.plan import prepare
from fl_tiny.learn.kernels.rounding import Rule
from fl_tiny.learn.tflite import read_model
from tests.learn.kernels.nets import NETS
from tests.learn.kernels.truth import inputs, interpreted, rules

DRAWS = 40
KINDS = [(name, kind) for name, (kinds, _, _) in NETS.items() for kind in kinds]


@rules
@pytest.mark.parametrize(("name", "kind"), KINDS, ids=[" ".join(each) for each in KINDS])
def test_an_operator_gives_the_interpreters_values(name: str, kind: str, rule: Rule) -> None:
    _, draw, more = NETS[name]
    different = set()
    for seed in range(DRAWS):
        data = draw(np.random.default_rng(seed), kind, **more)
        model = read_model(data)
        x = inputs(model, 6, seed)
        if kind != "float32" and x[0].size % 256 == 0:
            x[0].flat = np.arange(x[0].size)  # every code
        y, truth = prepare(model, rule).run(x), interpreted(data, x, rule)
        if y.dtype == np.float32 and kind == "float32":
            assert np.allclose(y, truth, rtol=1e-5, atol=1e-5), seed
        else:
            assert np.array_equal(y, truth), f"seed {seed}: {np.flatnonzero(y != truth)[:5]}"
        different.update(np.unique(truth).tolist())
    assert len(different) > 50

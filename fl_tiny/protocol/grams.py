# SPDX-License-Identifier: Apache-2.0
"""Many devices' sums become one: what is checked of each, and the exact total."""

from __future__ import annotations

import numpy as np

from fl_tiny.errors import RemoteError
from fl_tiny.learn.gram import LARGEST, Plan, Sums, from_bytes, size_bytes
from fl_tiny.protocol.wire import Code, GramConfig


class GramSum:
    """The sums of all devices in int64; the order of additions does not matter.

    exclusive: a sample has one class, so that the counts of several outputs add up to the samples.
    """

    def __init__(self, plan: Plan, min_samples: int, *, exclusive: bool) -> None:
        self.plan = plan
        self.size = size_bytes(plan.width, plan.outputs)
        self.total = Sums(np.zeros((plan.width + 1,) * 2, np.int64), np.zeros((plan.width + 1, plan.outputs), np.int64))
        self.updates = 0
        self._min_samples = min_samples
        self._exclusive = exclusive

    @property
    def weight(self) -> int:
        """How many samples are in the total."""
        return self.total.samples

    def check(self, body: bytes, samples: int) -> None:
        """Could ``body`` have come from ``samples`` samples? Changes nothing.

        Raises: RemoteError with Code.SHAPE for another length, Code.SUMS for numbers that no samples add up to.
        """
        if len(body) != self.size:
            raise RemoteError(f"sums of {len(body)} B instead of {self.size}", code=Code.SHAPE)
        sums = from_bytes(body, self.plan.width, self.plan.outputs)
        if sums.samples != samples or samples < self._min_samples:
            raise RemoteError(f"sums of {sums.samples} samples for {samples} stated", code=Code.SUMS)
        diagonal = np.diag(sums.gram)
        if diagonal.min() < 0 or diagonal.max() > samples * LARGEST**2:
            raise RemoteError("sums of squares beyond what the samples can add up to", code=Code.SUMS)
        roots = np.sqrt(diagonal.astype(np.float64))
        if (np.abs(sums.gram) > np.outer(roots, roots) * (1 + 1e-9)).any():  # 1e-9: the roots are rounded
            raise RemoteError("sums of products larger than those of squares allow", code=Code.SUMS)
        counts = sums.moments[-1]
        whole = counts.sum() == samples if self._exclusive and len(counts) > 1 else counts.max() <= samples
        if counts.min() < 0 or not whole or (np.abs(sums.moments) > LARGEST * counts).any():
            raise RemoteError("class counts that do not add up to the samples", code=Code.SUMS)

    def add(self, body: bytes) -> None:
        """Add one device's sums, which ``check`` has passed."""
        self.total = self.total.plus(from_bytes(body, self.plan.width, self.plan.outputs))
        self.updates += 1


def config_of(plan: Plan, min_samples: int) -> GramConfig:
    """A plan as an offer carries it."""
    return GramConfig(plan.layer, plan.width, plan.outputs, min_samples, plan.seed, plan.shift)

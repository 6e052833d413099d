# SPDX-License-Identifier: Apache-2.0
"""Many devices' sums become one: what is checked of each, and the exact total."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fl_tiny.errors import RemoteError
from fl_tiny.learn.gram import LARGEST, Plan, Sums, from_bytes, size_bytes
from fl_tiny.protocol.aggregate import WHOLE, lower_median
from fl_tiny.protocol.wire import Code, GramConfig

NEGATIVE = 1e-6  # of the largest eigenvalue; honest sums give 1e-16, forged moments 2e-2 (docs/adr/0062)


def factors(samples: Sequence[int]) -> list[int]:
    """What each device's sums count, of ``WHOLE``. samples: how many each device states.

    A device that states more samples than the median device is cut to about as many.
    """
    most = lower_median(samples) if samples else 0
    return [max(1, WHOLE * min(n, most) // n) for n in samples]


class GramSum:
    """The sums of all devices in int64, each times a factor; the order of additions does not matter.

    exclusive: a sample has one class, so that the counts of several outputs add up to the samples.
    """

    def __init__(self, plan: Plan, min_samples: int, *, exclusive: bool) -> None:
        self.plan = plan
        self.size = size_bytes(plan.width, plan.outputs)
        width = plan.width + 1
        self._total = Sums(np.zeros((width, width), np.int64), np.zeros((width, plan.outputs), np.int64))
        self._min_samples = min_samples
        self._exclusive = exclusive

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
        if not _is_positive(sums, joint=self._exclusive and len(counts) > 1):
            raise RemoteError("sums that no real samples have: their matrix has a negative eigenvalue", code=Code.SUMS)

    def add(self, body: bytes, factor: int = WHOLE) -> None:
        """Add one device's sums, which ``check`` has passed, times ``factor``."""
        self._total = self._total.plus(from_bytes(body, self.plan.width, self.plan.outputs), factor)

    @property
    def total(self) -> Sums:
        """The sums of all, in samples: a part of one is exact in float64."""
        return Sums(self._total.gram / WHOLE, self._total.moments / WHOLE)


def config_of(plan: Plan, min_samples: int) -> GramConfig:
    """A plan as an offer carries it."""
    return GramConfig(plan.layer, plan.width, plan.outputs, min_samples, plan.seed, plan.shift)


def _is_positive(sums: Sums, *, joint: bool) -> bool:
    """True when the matrix of all sums is positive semidefinite, as that of any real samples is.

    joint: of features and classes together, [[G, M], [M^T, diag(counts)]], which holds where a sample has one class.
    """
    matrix = sums.gram.astype(np.float64)
    if joint:
        matrix = np.block([[matrix, sums.moments], [sums.moments.T, np.diag(sums.moments[-1])]])
    roots = np.sqrt(np.diag(matrix))
    used = roots > 0  # not so: a feature that is always 0, or a class without samples
    if matrix[~used].any():
        return False
    values = np.linalg.eigvalsh(matrix[np.ix_(used, used)] / np.outer(roots[used], roots[used]))
    return bool(values[0] >= -NEGATIVE * values[-1])

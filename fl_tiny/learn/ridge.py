# SPDX-License-Identifier: Apache-2.0
"""Ridge regression from integer sums alone, its penalty chosen by generalised cross-validation.

Source: Golub, Heath and Wahba, Technometrics 21 (1979); Hastie et al., The Elements of Statistical Learning, 3.4.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_tiny.errors import DataError
from fl_tiny.learn.gram import Sums

Floats = NDArray[np.float64]

PENALTIES = tuple(2.0**power for power in range(-16, 13))  # of the mean eigenvalue; measured best: 2^-9 to 2^0


@dataclass(frozen=True, slots=True, eq=False)
class Ridge:
    """scores = f @ coefficients for codes f with a constant 1 appended.

    coefficients: (width + 1, outputs).   mean, spread: (outputs,), of the scores over the samples: mean and standard
    deviation.   penalty: the one chosen.
    """

    coefficients: Floats
    mean: Floats
    spread: Floats
    penalty: float


def solve(sums: Sums, *, origin: int | None, offset: float, penalty: float | None = None) -> Ridge:
    """The ridge regression of targets less ``offset`` on codes; the same sums give the same bits.

    origin: None fits an intercept, which no penalty holds; else scores are zero where every code is ``origin``, for
    layers without a bias.   penalty: None chooses the one of least generalised cross-validation error.
    Raises: DataError without samples.
    """
    n = float(sums.gram[-1, -1])
    if n < 1:
        raise DataError("there are no samples to solve a head from")
    total = sums.gram[-1, :-1].astype(np.float64)
    counts = sums.moments[-1].astype(np.float64)
    shift = total / n if origin is None else np.full_like(total, origin)
    centre = counts / n - offset if origin is None else np.zeros_like(counts)
    gram = _about(sums, shift)
    moments = sums.moments[:-1] - np.outer(shift, counts) - np.outer(total - n * shift, offset + centre)
    square = counts * (1 - 2 * (offset + centre)) + n * (offset + centre) ** 2  # targets are 0 or 1
    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values, 0)
    rotated = vectors.T @ moments
    if penalty is None:
        penalty = _penalty(values, rotated, float(square.sum()), n, origin is None)
    weights = vectors @ (rotated / (values + penalty)[:, None])
    mean = centre + weights.T @ (total / n - shift)
    about_mean = _about(sums, total / n)
    spread = np.sqrt(np.maximum(((about_mean @ weights) * weights).sum(axis=0) / n, 0))
    return Ridge(np.vstack([weights, centre - shift @ weights]), mean, spread, penalty)


def mean_loss(ridge: Ridge, sums: Sums, offset: float) -> float:
    """The mean over samples, known by their sums, of the squared error that ``ridge`` makes."""
    b = ridge.coefficients.copy()
    b[-1] += offset
    square = sums.moments[-1].sum() - 2 * (b * sums.moments).sum() + ((sums.gram @ b) * b).sum()
    return float(max(square, 0.0)) / float(sums.gram[-1, -1])


def _about(sums: Sums, shift: Floats) -> Floats:
    """sum((f - shift) (f - shift)^T) without the constant."""
    total = sums.gram[-1, :-1].astype(np.float64)
    crossed = np.outer(shift, total)
    return np.asarray(
        sums.gram[:-1, :-1] - crossed - crossed.T + sums.gram[-1, -1] * np.outer(shift, shift), np.float64
    )


def _penalty(values: Floats, rotated: Floats, square: float, n: float, intercept: bool) -> float:
    """The penalty of least n * RSS / (n - df)^2, all from the eigenvalues; the larger one of equals."""
    scale = float(values.mean()) or 1.0
    best, chosen = np.inf, PENALTIES[-1] * scale
    for penalty in (each * scale for each in reversed(PENALTIES)):
        shrunk = rotated / (values + penalty)[:, None]
        residual = square - 2 * float((shrunk * rotated).sum()) + float((shrunk * shrunk * values[:, None]).sum())
        free = n - float((values / (values + penalty)).sum()) - intercept
        if free > 0 and (error := n * max(residual, 0.0) / free**2) < best:
            best, chosen = error, penalty
    return chosen

# SPDX-License-Identifier: Apache-2.0
"""What a head is taught, and how far it is from it: tasks, targets, losses and the share that is right."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray["np.floating[Any]"]  # text: numpy 1.21 (Ubuntu 22.04, JetPack 6) cannot subscript it
Targets = NDArray[Any]  # (n,) int64 of classes, or (n, outputs) float32 of labels or values


class Task(str, Enum):
    """What the outputs are taught; values are the names users see."""

    CLASSES = "classification"
    LABELS = "multi-label"  # each output is a yes or no of its own
    VALUES = "regression"


class Loss(str, Enum):
    """What training makes small."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    SQUARED = "squared"


def loss_and_grad(
    loss: Loss, outputs: Floats, targets: Targets, *, weights: Floats | None = None, smoothing: float = 0.0
) -> tuple[float, Floats]:
    """The mean loss over samples of a head's outputs, and its gradient with respect to them.

    outputs: (n, k) floats.   targets: (n,) classes in [0, k), in {0, 1} where k = 1; or (n, k) floats, in [0, 1] for
    labels, in the outputs' real units for values.   weights: (n,) of the samples, mean one.   smoothing: the share of
    each target that is spread evenly over all classes, or over yes and no; values have none.
    Nats for the first two losses, squared units for the third. The gradient has the dtype of ``outputs``.
    Source of ``smoothing``: Szegedy et al., Rethinking the Inception Architecture (CVPR 2016), section 7.
    """
    rows = {Loss.SOFTMAX: _softmax, Loss.SIGMOID: _sigmoid, Loss.SQUARED: _squared}[loss]
    losses, grad = rows(outputs, targets, smoothing)
    if weights is not None:
        losses = losses * weights
        grad *= weights.astype(grad.dtype)[:, None]
    grad /= len(targets)
    return float(np.mean(losses)), grad


def class_weights(targets: Targets) -> Floats | None:
    """A weight a sample, (n,) float32, mean one, by which each class that occurs counts the same; None for vectors."""
    if targets.ndim > 1:
        return None
    found, counts = np.unique(targets, return_counts=True)
    weights = np.zeros(int(found[-1]) + 1, np.float32)
    weights[found] = len(targets) / (len(found) * counts)
    return np.asarray(weights[targets])


def _softmax(logits: Floats, labels: Targets, smoothing: float) -> tuple[Floats, Floats]:
    """Cross-entropies in nats, (n,), and their gradients; each row of these sums to zero.

    Source: Bishop, Pattern Recognition and Machine Learning (2006), section 4.3.4.
    """
    rows = np.arange(len(labels))
    z = logits - logits.max(axis=1, keepdims=True)  # exp() of a trained head's logits overflows float32
    grad = np.exp(z)
    total = grad.sum(axis=1, keepdims=True)
    losses = np.log(total[:, 0]) - z[rows, labels]
    grad /= total
    if smoothing:
        losses = losses + smoothing * (z[rows, labels] - z.mean(axis=1))
        grad -= smoothing / logits.shape[1]
    grad[rows, labels] -= 1 - smoothing
    return losses, grad


def _sigmoid(logits: Floats, targets: Targets, smoothing: float) -> tuple[Floats, Floats]:
    """Summed binary cross-entropies, (n,), and their gradients; a class is its own output's yes, all others' no.

    Source: log(1 + exp(-|z|)) form, Murphy, Probabilistic Machine Learning (2022), section 10.2.3.
    """
    wanted = _indicators(targets, logits) * (1 - smoothing) + smoothing / 2
    small = np.exp(-np.abs(logits))
    losses = (np.maximum(logits, 0) - logits * wanted + np.log1p(small)).sum(axis=1)
    chance = np.where(logits >= 0, 1, small) / (1 + small)
    return losses, (chance - wanted).astype(logits.dtype)


def _squared(outputs: Floats, targets: Targets, _smoothing: float) -> tuple[Floats, Floats]:
    """Half the summed squared errors, (n,), and their gradients."""
    error = outputs - targets.astype(outputs.dtype)
    return 0.5 * (error * error).sum(axis=1), error


def classes_of(logits: Floats) -> NDArray[np.int64]:
    """The class each row stands for: the largest output, or whether the only output is above zero."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).astype(np.int64)
    return np.asarray(logits.argmax(axis=1), np.int64)


def right_share(task: Task, outputs: Floats, targets: Targets) -> float:
    """How good ``outputs`` are, 1 at best: the share of right classes, or of right labels; for values R squared.

    outputs: (n, k) logits or values.   R squared is 1 - squared error / squared distance of targets from their mean.
    """
    if task is Task.VALUES:
        error, spread = outputs - targets, targets - targets.mean(axis=0)
        return float(1 - (error * error).sum() / max(float((spread * spread).sum()), 1e-12))
    if targets.ndim == 2:
        return float(np.mean((outputs > 0) == (targets > 0.5)))
    return float(np.mean(classes_of(outputs) == targets))


def strata(targets: Targets) -> NDArray[np.int64]:
    """A number a sample, alike for like targets, (n,): what a split should have its share of on both sides."""
    if targets.ndim == 1:
        return targets.astype(np.int64)
    if ((targets == 0) | (targets == 1)).all():
        return np.unique(targets, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return np.zeros(len(targets), np.int64)


def _indicators(targets: Targets, logits: Floats) -> Floats:
    if targets.ndim == 2:
        return targets.astype(logits.dtype)
    wanted = np.zeros_like(logits)
    if logits.shape[1] == 1:
        wanted[:, 0] = targets
    else:
        wanted[np.arange(len(targets)), targets] = 1
    return wanted

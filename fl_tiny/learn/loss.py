# SPDX-License-Identifier: Apache-2.0
"""What a head is taught, and how far it is from it: tasks, targets, losses and the share that is right."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
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


def loss_and_grad(loss: Loss, outputs: Floats, targets: Targets) -> tuple[float, Floats]:
    """The mean loss over samples of a head's outputs, and its gradient with respect to them.

    outputs: (n, k) floats.   targets: (n,) classes in [0, k), in {0, 1} where k = 1; or (n, k) floats, in [0, 1] for
    labels, in the outputs' real units for values.   Nats for the first two losses, squared units for the third.
    """
    if loss is Loss.SQUARED:
        return squared_error(outputs, targets)
    if loss is Loss.SIGMOID:
        return sigmoid_xent(outputs, targets)
    return softmax_xent(outputs, targets)


def softmax_xent(logits: Floats, labels: Targets) -> tuple[float, Floats]:
    """Mean cross-entropy in nats, and its gradient with respect to ``logits``.

    logits: (n, k) float, unbounded.   labels: (n,) int64, each in [0, k).
    The gradient is (n, k), of the dtype of ``logits``; each row sums to zero.
    Source: Bishop, Pattern Recognition and Machine Learning (2006), section 4.3.4.
    """
    rows = np.arange(len(labels))
    z = logits - logits.max(axis=1, keepdims=True)  # exp() of a trained head's logits overflows float32
    grad = np.exp(z)
    total = grad.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(total[:, 0]) - z[rows, labels]))
    grad /= total
    grad[rows, labels] -= 1
    grad /= len(labels)
    return loss, grad


def sigmoid_xent(logits: Floats, targets: Targets) -> tuple[float, Floats]:
    """Mean over samples of the summed binary cross-entropies, and the gradient with respect to ``logits``.

    logits: (n, k) float, unbounded.   targets: (n, k) in [0, 1]; or (n,) classes, each output standing for its own
    class, a single one for class 1 against 0.
    Source: log(1 + exp(-|z|)) form, Murphy, Probabilistic Machine Learning (2022), section 10.2.3.
    """
    wanted = _indicators(targets, logits)
    small = np.exp(-np.abs(logits))
    loss = float(np.mean((np.maximum(logits, 0) - logits * wanted + np.log1p(small)).sum(axis=1)))
    chance = np.where(logits >= 0, 1, small) / (1 + small)
    return loss, (chance - wanted) / len(targets)


def squared_error(outputs: Floats, targets: Targets) -> tuple[float, Floats]:
    """Mean over samples of half the summed squared errors, and the gradient with respect to ``outputs``.

    outputs, targets: (n, k), the same units.
    """
    error = outputs - targets.astype(outputs.dtype)
    return float(0.5 * (error * error).sum(axis=1).mean()), error / len(targets)


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

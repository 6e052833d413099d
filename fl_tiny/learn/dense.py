# SPDX-License-Identifier: Apache-2.0
"""Dense layers in floating point: forward, losses, backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_tiny.learn.head import Activation, HeadSpec
from fl_tiny.learn.trail import Tail

Floats = NDArray[np.floating[Any]]


def forward(spec: HeadSpec, params: Sequence[Floats], x: Floats) -> list[Floats]:
    """The input and each layer's output, activation applied.

    x: (n, in), real units of the features.   Each output: (n, out) of the dtype of x and params.
    """
    values, place = [x], 0
    for layer in spec.layers:
        y = values[-1] @ params[place].T
        place += 1
        if layer.bias is not None:
            y += params[place]
            place += 1
        if layer.activation is not Activation.NONE:
            np.maximum(y, 0, out=y)
        if layer.activation is Activation.RELU6:
            np.minimum(y, 6, out=y)
        values.append(y)
    return values


def backward(spec: HeadSpec, params: Sequence[Floats], values: Sequence[Floats], grad: Floats) -> list[Floats]:
    """Gradients of all parameters, in their order, from the gradient ``grad`` (n, out) of the last layer's output.

    values: what ``forward`` returned for the same parameters.
    """
    grads: list[Floats] = []
    place = len(params)
    for depth in range(len(spec.layers) - 1, -1, -1):
        layer, x, y = spec.layers[depth], values[depth], values[depth + 1]
        if layer.activation is not Activation.NONE:
            grad = grad * ((y > 0) & (y < 6)) if layer.activation is Activation.RELU6 else grad * (y > 0)
        if layer.bias is not None:
            grads.append(grad.sum(axis=0))
            place -= 1
        grads.append(grad.T @ x)
        place -= 1
        if depth:
            grad = grad @ params[place]
    return grads[::-1]


def loss_and_grad(tail: Tail, logits: Floats, labels: NDArray[np.int64]) -> tuple[float, Floats]:
    """The mean loss in nats of the last layer's output under the model's tail, and its gradient.

    logits: (n, k) floats.   labels: (n,) int64 in [0, k); in {0, 1} where k = 1.
    """
    return sigmoid_xent(logits, labels) if tail is Tail.LOGISTIC else softmax_xent(logits, labels)


def softmax_xent(logits: Floats, labels: NDArray[np.int64]) -> tuple[float, Floats]:
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


def sigmoid_xent(logits: Floats, labels: NDArray[np.int64]) -> tuple[float, Floats]:
    """Mean over samples of the summed binary cross-entropies, and the gradient with respect to ``logits``.

    logits: (n, k) float, unbounded; each output stands for its own class, or one output for class 1 against 0.
    Source: log(1 + exp(-|z|)) form, Murphy, Probabilistic Machine Learning (2022), section 10.2.3.
    """
    target = np.zeros_like(logits)
    if logits.shape[1] == 1:
        target[:, 0] = labels
    else:
        target[np.arange(len(labels)), labels] = 1
    small = np.exp(-np.abs(logits))
    loss = float(np.mean((np.maximum(logits, 0) - logits * target + np.log1p(small)).sum(axis=1)))
    chance = np.where(logits >= 0, 1, small) / (1 + small)
    return loss, (chance - target) / len(labels)


def classes_of(logits: Floats) -> NDArray[np.int64]:
    """The class each row stands for: the largest output, or whether the only output is above zero."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).astype(np.int64)
    return np.asarray(logits.argmax(axis=1), np.int64)

# SPDX-License-Identifier: Apache-2.0
"""Layers in floating point: forward and backward, activations and pooling included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fl_tiny.learn.head import HeadSpec
from fl_tiny.learn.layer import Activation, Dense
from fl_tiny.learn.loss import Floats


class Passed(NamedTuple):
    """What samples became on their way through the layers.

    inputs: of each layer, (n * places, in).   outputs: of each layer, activation applied, (n * places, out).
    final: what leaves the last layer, (n, outputs).
    """

    inputs: list[Floats]
    outputs: list[Floats]
    final: Floats


def forward(spec: HeadSpec, params: Sequence[Floats], x: Floats) -> Passed:
    """Take ``x`` through the layers.

    params: all of them, in order.   x: (n, features), real units.   Results have the dtype of x and params.
    """
    inputs, outputs, place, n = [], [], 0, len(x)
    for layer in spec.layers:
        x = x.reshape(n * layer.places, -1)
        inputs.append(x)
        y = x @ params[place].T
        place += 1
        if layer.bias is not None:
            y += params[place]
            place += 1
        _activate(layer.activation, y)
        outputs.append(y)
        x = y.reshape(n, layer.places, -1).mean(axis=1) if layer.pool else y
    return Passed(inputs, outputs, x.reshape(n, -1))


def backward(spec: HeadSpec, params: Sequence[Floats], passed: Passed, grad: Floats) -> list[Floats]:
    """Gradients of all parameters, in their order, from the gradient ``grad`` (n, outputs) of what leaves the head.

    passed: what ``forward`` returned for the same parameters.
    """
    grads: list[Floats] = []
    place, n = len(params), len(grad)
    for depth in range(len(spec.layers) - 1, -1, -1):
        layer, x, y = spec.layers[depth], passed.inputs[depth], passed.outputs[depth]
        grad = _bent(layer, y, _spread(layer, grad, n))
        if layer.bias is not None:
            grads.append(grad.sum(axis=0))
            place -= 1
        grads.append(grad.T @ x)
        place -= 1
        if depth:
            grad = grad @ params[place]
    return grads[::-1]


def _activate(activation: Activation, y: Floats) -> None:
    """Apply an activation in place."""
    if activation is Activation.TANH:
        np.tanh(y, out=y)
    elif activation is not Activation.NONE:
        np.maximum(y, 0, out=y)
    if activation is Activation.RELU6:
        np.minimum(y, 6, out=y)


def _spread(layer: Dense, grad: Floats, n: int) -> Floats:
    """The gradient of a layer's outputs, (n * places, out), from that of what leaves it."""
    units = layer.weights.shape[0]
    if layer.pool is None:
        return grad.reshape(n * layer.places, units)
    return np.repeat(grad.reshape(n, units) / layer.places, layer.places, axis=0)


def _bent(layer: Dense, y: Floats, grad: Floats) -> Floats:
    """The gradient before a layer's activation, whose result was ``y``."""
    if layer.activation is Activation.TANH:
        return grad * (1 - y * y)
    if layer.activation is Activation.RELU6:
        return grad * ((y > 0) & (y < 6))
    return grad * (y > 0) if layer.activation is Activation.RELU else grad

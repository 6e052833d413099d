# SPDX-License-Identifier: Apache-2.0
"""A head in one step: which sums over samples it needs, and the head that their ridge regression makes.

The solution is a linear map. In a head of one layer it is that layer. In a longer one it starts at the last but one
and goes through as many of its units as there are outputs, or, where they cannot carry it, it is the last layer alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fl_tiny.errors import ModelError
from fl_tiny.learn.gram import Plan, Sums, layer_input, projection, widest
from fl_tiny.learn.head import Array, HeadSpec
from fl_tiny.learn.layer import Activation
from fl_tiny.learn.loss import Loss, Task
from fl_tiny.learn.quant import HEAD_ROOM, Affine
from fl_tiny.learn.requant import requantise
from fl_tiny.learn.ridge import Floats, Ridge, solve

LEAST_WIDTH = 8  # guess: fewer sums than that tell classes apart badly

# Scores are about 1 for a sample's class and 0 for others; logits are that times so much. Measured, least held-out
# loss: Fashion 8 (200 and 2,000 samples), watch 8, random features 8; two classes 4 to 6; sigmoids 6 to 16.
SOFTMAX_GAIN, TWO_GAIN, SIGMOID_GAIN = 8.0, 4.0, 10.0
REACH = 6.0  # standard deviations about the mean that a score is given codes for
FADED = 4.0  # the same below the mean in a unit that clips: what is lost there is the score of a class out of question


@dataclass(frozen=True, slots=True, eq=False)
class ExactHead:
    """params: in the order of ``spec.tensors``.   ranges: lo, hi of each layer's output."""

    params: list[Array]
    ranges: tuple[float, ...]


def plan(spec: HeadSpec, seed: bytes, limit_bytes: int) -> Plan:
    """What is to be summed for this head. seed: of a projection, should one be needed.

    Raises: ModelError, saying why a head cannot be solved for.
    """
    last, outputs = spec.layers[-1], spec.layers[-1].weights.shape[0]
    if spec.task is Task.VALUES or spec.biases_only:
        what = "values" if spec.task is Task.VALUES else "biases alone"
        raise ModelError(f"an exact start solves for classes and labels, with all weights of a layer, not for {what}")
    if last.activation is not Activation.NONE or last.places > 1:
        raise ModelError(f"the last layer is {last.kind}: a linear solution cannot stand for it")
    layer = len(spec.layers) - (2 if _carries(spec) else 1)
    inputs, width = spec.layers[layer].weights.shape[1], widest(outputs, limit_bytes)
    if inputs <= width:
        return Plan(layer, inputs, outputs)
    if width < LEAST_WIDTH:
        raise ModelError(f"sums for {outputs} outputs have room for {width} features only")
    # The sum of `inputs` signed codes has about sqrt(inputs) times their size, guessed as 64: three times that fits.
    shift = max(1, math.ceil(math.log2(3 * 64 * math.sqrt(inputs) / 127)))
    return Plan(layer, width, outputs, seed, shift)


def offset(spec: HeadSpec) -> float:
    """What is taken from the targets: logits are about zero where nothing is known."""
    return 0.5 if spec.loss is Loss.SIGMOID else 1 / spec.classes


def regression(spec: HeadSpec, base: Sequence[Array], made: Plan, sums: Sums, penalty: float | None = None) -> Ridge:
    """The ridge regression of the classes. base: the head whose layers before ``made.layer`` were summed behind."""
    if spec.layers[-1].bias is not None:
        origin = None
    else:
        origin = 0 if made.seed is not None else layer_input(spec, base, made.layer)[1].zero_point
    return solve(sums, origin=origin, offset=offset(spec), penalty=penalty)


def exact_head(spec: HeadSpec, base: Sequence[Array], made: Plan, sums: Sums) -> ExactHead:
    """The head that the sums determine; its layers before ``made.layer`` are those of ``base``.

    Raises: DataError without samples.
    """
    ridge = regression(spec, base, made, sums)
    _, source = layer_input(spec, base, made.layer)
    weights, bias = _in_real_units(made, spec, source, ridge)
    spans = _kept_ranges(spec, base)
    gain = _gain(spec, ridge)
    size = sum(1 if layer.bias is None else 2 for layer in spec.layers[made.layer :])
    params: list[Floats | Array] = list(base[:-size])
    if made.layer == len(spec.layers) - 1:
        params += [gain * weights] if spec.layers[-1].bias is None else [gain * weights, gain * bias]
    else:
        carried, span = _carried(base[-4:], weights, bias, ridge, gain)
        params += carried
        spans[-2] = (spans[-2][0], max(spans[-2][1], span))
    spans[-1] = _reach(ridge, gain)
    ranges = tuple(float(value) for span in spans for value in span)
    return ExactHead([np.asarray(each, np.float32) for each in params], ranges)


def _carries(spec: HeadSpec) -> bool:
    """Can a linear map to the outputs go through the last but one layer's units?"""
    if len(spec.layers) < 2:
        return False
    hidden, last = spec.layers[-2:]
    linear = hidden.activation in (Activation.NONE, Activation.RELU) and hidden.places == 1
    return linear and hidden.bias is not None and last.bias is not None and len(hidden.weights) >= len(last.weights)


def _in_real_units(made: Plan, spec: HeadSpec, source: Affine, ridge: Ridge) -> tuple[Floats, Floats]:
    """(outputs, inputs) weights and (outputs,) bias of the scores, for the layer's input in real units."""
    weights, bias = ridge.coefficients[:-1], ridge.coefficients[-1]
    signs = projection(made, spec.layers[made.layer].weights.shape[1])
    if signs is not None and made.shift is not None:
        return ((signs @ weights) / (2.0**made.shift * source.scale)).T, bias
    return (weights / source.scale).T, bias + source.zero_point * weights.sum(axis=0)


def _gain(spec: HeadSpec, ridge: Ridge) -> float:
    """How many logits a score of one is; fewer where the model's own output scale, which stays, has no room."""
    gain = SOFTMAX_GAIN if spec.classes > 2 else TWO_GAIN
    if spec.loss is Loss.SIGMOID:
        gain = SIGMOID_GAIN
    last = spec.layers[-1]
    if last.keeps_output:
        low, high = _limits(last.output)
        lowest, highest = _reach(ridge, 1.0)
        for room, need in ((high, highest), (-low, -lowest)):
            if need > 0 and room > 0:
                gain = min(gain, room / need)
    return gain


def _reach(ridge: Ridge, gain: float) -> tuple[float, float]:
    reach = REACH * ridge.spread
    return gain * float((ridge.mean - reach).min()), gain * float((ridge.mean + reach).max())


def _carried(
    base: Sequence[Array], weights: Floats, bias: Floats, ridge: Ridge, gain: float
) -> tuple[list[Floats], float]:
    """The last two layers' parameters: one unit an output takes its score, shifted above zero, the last layer passes
    it on. The units that matter least give way; the others stay, unused until training finds a use.

    Also the largest value that the new units reach.
    """
    hidden, hidden_bias, after, _ = (np.array(each, np.float64) for each in base)
    weight = np.square(after).sum(axis=0) * np.square(hidden).sum(axis=1)
    units = np.argsort(weight, kind="stable")[: len(weights)]
    shift = FADED * ridge.spread - ridge.mean
    size = np.abs(hidden).max() / max(float(np.abs(weights).max()), 1e-12)  # one scale then suits old units and new
    hidden[units] = size * weights
    hidden_bias[units] = size * (bias + shift)
    after = np.zeros_like(after)
    after[np.arange(len(units)), units] = gain / size
    span = size * (FADED + REACH) * float(ridge.spread.max())
    return [hidden, hidden_bias, after, -gain * shift], span


def _kept_ranges(spec: HeadSpec, base: Sequence[Array]) -> list[tuple[float, float]]:
    """The outputs' ranges that the head's own scales stand for."""
    limits = [_limits(layer.output) for layer in requantise(spec, base, None).layers]
    return [(low / HEAD_ROOM, high / HEAD_ROOM) for low, high in limits]


def _limits(output: Affine) -> tuple[float, float]:
    return (-128 - output.zero_point) * output.scale, (127 - output.zero_point) * output.scale

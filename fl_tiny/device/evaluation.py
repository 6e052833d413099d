# SPDX-License-Identifier: Apache-2.0
"""A data set put through a model: its features for training, or the share of labels that the model finds."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from fl_tiny.device.backbone import Backbone
from fl_tiny.device.sources import Samples
from fl_tiny.errors import DataError, ModelError
from fl_tiny.learn.head import HeadSpec
from fl_tiny.learn.quant import Affine
from fl_tiny.learn.tflite import Model, cut

MAX_FEATURE_BYTES = 256 << 20  # guess: what a board of 512 MB can hold beside the rest


def features_of(
    model: Model, spec: HeadSpec, data: Samples, opened: Callable[[bytes], AbstractContextManager[Backbone]]
) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """(n, features) int8 codes of the feature tensor and (n,) labels of the samples in ``data``.

    Raises: DataError for samples that do not fit, ModelError for a backbone that does not run.
    """
    assert data.labels is not None
    if data.samples * spec.feature_size > MAX_FEATURE_BYTES:
        raise DataError(f"{data.samples} samples are too many", hint="train on a part of them")
    features = np.empty((data.samples, spec.feature_size), np.int8)
    done = 0
    with opened(cut(model, spec.feature_tensor)) as backbone:
        for batch in data.batches():
            features[done : done + len(batch)] = backbone.run(batch)
            done += len(batch)
    return features, data.labels


def output_classes(model: Model) -> int:
    """How many classes the whole model tells apart. Raises: ModelError when its output is none of classes."""
    output = model.output
    values = math.prod(output.shape[1:])
    if len(output.shape) < 1 or values < 1 or output.dtype not in ("int8", "uint8", "float32"):
        raise ModelError(f"the output is {output.dtype} {list(output.shape)}: it tells no classes apart")
    return max(2, values)


def accuracy(model: Model, backbone: Backbone, data: Samples) -> tuple[float, int]:
    """The share of samples in ``data`` whose label the whole model finds, and how many samples there are."""
    assert data.labels is not None
    right = done = 0
    for batch in data.batches():
        y = backbone.run(batch)
        found = _real(model, y)[:, 0] > 0.5 if y.shape[1] == 1 else y.argmax(axis=1)
        right += int((found == data.labels[done : done + len(batch)]).sum())
        done += len(batch)
    return right / done, done


def _real(model: Model, y: NDArray[np.generic]) -> NDArray[np.float32]:
    scale = model.output.quantisation
    if y.dtype == np.float32 or scale is None:
        return y.astype(np.float32)
    return Affine(scale.scale[0], scale.zero_point[0]).to_real(y)  # type: ignore[arg-type]


def classes_of_outputs(model: Model, y: NDArray[np.generic]) -> NDArray[np.int64]:
    """The class of each row of a model's output, (n,): the largest value's, or a single sigmoid above one half."""
    if y.shape[1] == 1:
        return (_real(model, y)[:, 0] > 0.5).astype(np.int64)
    found: NDArray[np.int64] = y.argmax(axis=1)
    return found

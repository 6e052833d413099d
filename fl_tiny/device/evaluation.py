# SPDX-License-Identifier: Apache-2.0
"""A data set put through a model: its features for training, or the share of labels that the model finds."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_tiny.device.backbone import Backbone
from fl_tiny.device.dataset import Expected
from fl_tiny.device.sources.files import Samples
from fl_tiny.errors import DataError, ModelError
from fl_tiny.learn.head import HeadSpec
from fl_tiny.learn.loss import Targets, Task, right_share
from fl_tiny.learn.quant import Affine
from fl_tiny.learn.tflite import Model, Tensor, cut
from fl_tiny.learn.trail import Tail, follow

MAX_FEATURE_BYTES = 256 << 20  # guess: what a board of 512 MB can hold beside the rest


def expected_of(model: Model) -> Expected:
    """The labels that fit a model's outputs: classes, or a number for each output; none for an autoencoder.

    Raises: ModelError when the output is no vector of numbers.
    """
    output = model.output
    values = math.prod(output.shape[1:])
    if len(output.shape) < 1 or values < 1 or output.dtype not in ("int8", "uint8", "float32"):
        raise ModelError(f"the output is {output.dtype} {list(output.shape)}: it tells no classes apart")
    own = values == math.prod(model.input.shape[1:]) and follow(model).tail is not Tail.SOFTMAX
    return Expected(max(2, values), values, optional=own)


def task_of(model: Model, labels: Targets | None) -> Task:
    """What ``labels`` teach a model: classes, labels of their own behind a LOGISTIC, or values; None: its own input."""
    tail = follow(model).tail
    if labels is None or labels.ndim == 2:
        return Task.LABELS if tail is Tail.LOGISTIC else Task.VALUES
    single = math.prod(model.output.shape[1:]) == 1 and tail is Tail.LOGITS
    return Task.VALUES if single else Task.CLASSES


def features_of(
    model: Model, spec: HeadSpec, data: Samples, opened: Callable[[bytes], AbstractContextManager[Backbone]]
) -> tuple[NDArray[np.int8], Targets]:
    """(n, features) int8 codes of the feature tensor, and the targets that ``spec`` is taught for each sample.

    Raises: DataError for samples that do not fit, ModelError for a backbone that does not run.
    """
    if data.samples * spec.feature_size > MAX_FEATURE_BYTES:
        raise DataError(f"{data.samples} samples are too many", hint="train on a part of them")
    features = np.empty((data.samples, spec.feature_size), np.int8)
    own = []
    done = 0
    with opened(cut(model, spec.feature_tensor)) as backbone:
        for batch in data.batches():
            features[done : done + len(batch)] = backbone.run(batch)
            done += len(batch)
            if data.labels is None:
                own.append(real_values(model.input, batch).reshape(len(batch), -1))
    features = features[:done]  # without what could not be read
    return features, np.concatenate(own) if data.labels is None else as_targets(spec.task, data.labels)


def as_targets(task: Task, labels: Targets) -> Targets:
    """``labels`` in the form that the task is taught in: values and labels as (n, outputs) float32."""
    return labels.reshape(len(labels), -1).astype(np.float32) if task is not Task.CLASSES else labels


def accuracy(model: Model, backbone: Backbone, data: Samples) -> tuple[float, Task]:
    """How good the whole model is on ``data``, as ``loss.right_share`` says it, and what it was asked."""
    task = task_of(model, data.labels)
    outputs, own = [], []
    for batch in data.batches():
        outputs.append(real_values(model.output, backbone.run(batch)))
        if data.labels is None:
            own.append(real_values(model.input, batch).reshape(len(batch), -1))
    found = np.concatenate(outputs)
    labels = np.concatenate(own) if data.labels is None else as_targets(task, data.labels)
    if task is Task.LABELS or (task is Task.CLASSES and found.shape[1] == 1):
        found = found - np.float32(0.5)  # probabilities: sure by a half
    return right_share(task, found, labels), task


def real_values(tensor: Tensor, codes: NDArray[Any]) -> NDArray[np.float32]:
    """What codes of a model's input or output mean, in real units."""
    scale = tensor.quantisation
    if codes.dtype == np.float32 or scale is None:
        return codes.astype(np.float32)
    return Affine(scale.scale[0], scale.zero_point[0]).to_real(codes)


def classes_of_outputs(model: Model, y: NDArray[np.generic]) -> NDArray[np.int64]:
    """The class of each row of a model's output, (n,): the largest value's, or a single sigmoid above one half."""
    if y.shape[1] == 1:
        return (real_values(model.output, y)[:, 0] > 0.5).astype(np.int64)
    found: NDArray[np.int64] = y.argmax(axis=1)
    return found

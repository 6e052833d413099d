# SPDX-License-Identifier: Apache-2.0
"""A model's backbone with a new int8 head for other classes: cut at its features, dense layers and a SOFTMAX appended.

For a workstation: the file is rewritten by the schema that LiteRT brings (extra [model]). What comes out is an
ordinary int8 model, for stock interpreters and for a fleet.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_tiny.errors import EnvironmentFault, ModelError
from fl_tiny.labels import METADATA_MARK, METADATA_NAME, TENSOR_AXIS_LABELS
from fl_tiny.learn.calibrate import calibrated
from fl_tiny.learn.dense import forward
from fl_tiny.learn.head import Array, HeadSpec, default_layers, head_spec, read_parameters
from fl_tiny.learn.requant import patch
from fl_tiny.learn.tflite import Model, read_model

SEED = 1  # of the new weights: the same model gives the same file
TYPICAL = 0.2  # of the features' range: what a feature is like before samples tell (guess)
IMAGINED = 256  # samples by which scales are set before real ones come
LEAST_SPREAD = 0.05  # of the mean spread: a feature that hardly varies is not trusted with more
LABELS_FILE = "labels.txt"
ALIGNMENT = 16  # of buffers, as the converter writes them


@dataclass(frozen=True, slots=True)
class NewHead:
    """What to append. hidden: units of a layer with RELU between, None: none.   labels: names of the classes, or None.

    cut: how many of the model's own last layers go; None: its dense ones, at most two.
    """

    classes: int
    hidden: int | None = None
    labels: tuple[str, ...] | None = None
    cut: int | None = None


def rehead(model: Model, new: NewHead) -> bytes:
    """A model file with the new head, its weights at random. Raises: ModelError, EnvironmentFault without LiteRT."""
    old = head_spec(model, new.cut or default_layers(model))
    if old.layers[0].places > 1 and len(old.feature_shape) != 4:
        raise ModelError(f"the features have shape {list(old.feature_shape)}: no picture that can be averaged")
    surgery = _Surgery(model, old)
    at = surgery.features()
    rng = np.random.default_rng(SEED)
    for units in [each for each in (new.hidden, new.classes) if each is not None]:
        at = surgery.dense(at, units, relu=units is new.hidden and new.hidden is not None, rng=rng)
    surgery.finish(at, model.output.dtype)
    data = surgery.written(new.labels)
    made = read_model(data)
    spec = head_spec(made, 1 if new.hidden is None else 2)
    codes = np.clip(np.abs(rng.normal(size=(IMAGINED, spec.feature_size))) * TYPICAL * 255 - 128, -128, 127)
    return patch(data, spec, calibrated(spec, read_parameters(spec), codes.astype(np.int8)))


def imprinted(model: Model, spec: HeadSpec, features: NDArray[np.int8], labels: NDArray[np.int64]) -> bytes:
    """``model`` with a last layer that names the class whose mean is nearest, features measured in their own spread.

    features: (n, features) codes.   labels: (n,).   Classes without a sample are left unlikely.
    Source: Qi et al., Low-Shot Learning with Imprinted Weights (CVPR 2018), with a pooled variance instead of a norm:
    log likelihoods of normal classes, which are linear in the features.
    """
    start = read_parameters(spec)
    x = np.concatenate(
        [_last_input(spec, start, features[at : at + IMAGINED]) for at in range(0, len(features), IMAGINED)]
    )
    seen = np.unique(labels)
    means = np.zeros((spec.classes, x.shape[1]))
    means[seen] = [x[labels == each].mean(axis=0) for each in seen]
    means[np.setdiff1d(np.arange(spec.classes), seen)] = x.mean(axis=0)
    spread = ((x - means[labels]) ** 2).mean(axis=0)
    spread += max(LEAST_SPREAD * float(spread.mean()), 1e-12)
    middle = x.mean(axis=0)
    weights = (means - middle) / spread
    bias = -((means**2 - middle**2) / (2 * spread)).sum(axis=1)
    logits = x @ weights.T + bias
    tame = np.float32(
        1 / max(1.0, float(np.sqrt((logits.std(axis=0) ** 2).mean())) / 4)
    )  # features are not independent
    made = [*start[:-2], (weights * tame).astype(np.float32), (bias * tame).astype(np.float32)]
    return patch(model.data, spec, calibrated(spec, made, features))


def _last_input(spec: HeadSpec, params: list[Array], features: NDArray[np.int8]) -> NDArray[np.float64]:
    return forward(spec, params, spec.features.to_real(features)).inputs[-1].astype(np.float64)


class _Surgery:
    """A model as the schema's objects, cut at the features, in the course of getting a head."""

    def __init__(self, model: Model, old: HeadSpec) -> None:
        try:
            from ai_edge_litert import schema_py_generated as schema  # noqa: PLC0415 - the extra is asked for here
        except ImportError as cause:
            raise EnvironmentFault("the TFLite schema is not installed", hint="pip install 'fl-tiny[model]'") from cause
        self._schema: Any = schema
        self._model: Any = schema.ModelT.InitFromPackedBuf(model.data, 0)
        self._graph: Any = self._model.subgraphs[0]
        self._old = old
        self._scale = old.features.scale, old.features.zero_point
        self._keep_needed()
        self._model.signatureDefs = None  # they name outputs that are gone
        self._model.metadata = self._model.metadataBuffer = None

    def features(self) -> int:
        """The feature tensor as one vector a sample; a MEAN over places where it is a picture."""
        at, shape = self._old.feature_tensor, self._old.feature_shape
        width = self._old.layers[0].weights.shape[1]
        if self._old.layers[0].places > 1:
            axes = self._constant(np.array([1, 2], np.int32), [2], self._schema.TensorType.INT32)
            at = self._add(
                "MEAN", [at, axes], self._tensor([1, width], *self._scale), 2, self._schema.ReducerOptionsT()
            )
        elif len(shape) != 2:
            target = self._constant(np.array([-1, width], np.int32), [2], self._schema.TensorType.INT32)
            options = self._schema.ReshapeOptionsT()
            options.newShape = [-1, width]
            at = self._add("RESHAPE", [at, target], self._tensor([1, width], *self._scale), 1, options)
        self._width = width
        return at

    def dense(self, at: int, units: int, *, relu: bool, rng: np.random.Generator) -> int:
        """A dense layer with random weights and no bias yet; its output's scale is a guess that calibration replaces.

        Source of the weights' size: He et al., Delving Deep into Rectifiers (ICCV 2015), equation 10.
        """
        scale, _ = self._scale
        weights = rng.normal(size=(units, self._width)) * np.sqrt(2 / self._width)
        weights /= 1.0 if relu else 255 * TYPICAL * scale  # logits of about one
        step = float(np.abs(weights).max() / 127)
        int8, int32 = self._schema.TensorType.INT8, self._schema.TensorType.INT32
        codes = np.clip(np.rint(weights / step), -127, 127).astype(np.int8)
        kernel = self._constant(codes, [units, self._width], int8, step)
        bias = self._constant(np.ones(units, np.int32), [units], int32, step * scale)  # zeros might be taken for none
        options = self._schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = int(relu)
        self._width, self._scale = units, (0.1, -128 if relu else 0)
        return self._add("FULLY_CONNECTED", [at, kernel, bias], self._tensor([1, units], *self._scale), 4, options)

    def finish(self, at: int, output_type: str) -> None:
        """SOFTMAX, and the type of output that the model had."""
        options = self._schema.SoftmaxOptionsT()
        options.beta = 1.0
        at = self._add("SOFTMAX", [at], self._tensor([1, self._width], 1 / 256, -128), 2, options)
        if output_type == "float32":
            result = self._tensor([1, self._width], None, 0, self._schema.TensorType.FLOAT32)
            at = self._add("DEQUANTIZE", [at], result, 2, None)
        elif output_type == "uint8":
            result = self._tensor([1, self._width], 1 / 256, 0, self._schema.TensorType.UINT8)
            at = self._add("QUANTIZE", [at], result, 1, None)
        self._graph.outputs = [at]

    def written(self, labels: tuple[str, ...] | None) -> bytes:
        """The file, with its labels as metadata."""
        import flatbuffers  # noqa: PLC0415 - comes with the schema

        if labels is not None:
            entry = self._schema.MetadataT()
            entry.name = METADATA_NAME
            entry.buffer = self._buffer(_label_metadata(flatbuffers))
            self._model.metadata = [entry]
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        data = bytes(builder.Output())
        return data if labels is None else data + _zipped(labels)

    def _keep_needed(self) -> None:
        """Drop the operators that the features do not come from."""
        needed, kept = {self._old.feature_tensor}, []
        for operator in reversed(self._graph.operators):
            if needed & set(operator.outputs):
                needed |= {index for index in operator.inputs if index >= 0}
                kept.append(operator)
        self._graph.operators = kept[::-1]

    def _add(self, name: str, inputs: list[int], output: int, version: int, options: Any) -> int:
        code = self._schema.OperatorCodeT()
        code.builtinCode = getattr(self._schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = version
        self._model.operatorCodes.append(code)
        operator = self._schema.OperatorT()
        operator.opcodeIndex = len(self._model.operatorCodes) - 1
        operator.inputs, operator.outputs = inputs, [output]
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(self._schema.BuiltinOptions, kind)
            operator.builtinOptions = options
        self._graph.operators.append(operator)
        return output

    def _tensor(
        self, shape: list[int], scale: float | None, zero_point: int, kind: int | None = None, buffer: int = 0
    ) -> int:
        tensor = self._schema.TensorT()
        tensor.shape, tensor.buffer = shape, buffer
        tensor.type = self._schema.TensorType.INT8 if kind is None else kind
        tensor.name = f"new_head_{len(self._graph.tensors)}".encode()
        if scale is not None:
            tensor.quantization = self._schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [scale], [zero_point]
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def _constant(self, values: NDArray[Any], shape: list[int], kind: int, scale: float | None = None) -> int:
        return self._tensor(shape, scale, 0, kind, self._buffer(values.tobytes()))

    def _buffer(self, raw: bytes) -> int:
        buffer = self._schema.BufferT()
        buffer.data = np.frombuffer(raw, np.uint8)
        self._model.buffers.append(buffer)
        return len(self._model.buffers) - 1


def _label_metadata(flatbuffers: Any) -> bytes:
    """A ModelMetadata that names the file of labels of the first output; see ``fl_tiny.labels`` for the schema."""
    b = flatbuffers.Builder(256)

    def table(slots: int, fields: dict[int, int], flag: int | None = None) -> int:
        b.StartObject(slots)
        for slot, offset in fields.items():
            b.PrependUOffsetTRelativeSlot(slot, offset, 0)
        if flag is not None:
            b.PrependInt8Slot(2, flag, 0)
        return int(b.EndObject())

    def vector(offset: int) -> int:
        b.StartVector(4, 1, 4)
        b.PrependUOffsetTRelative(offset)
        return int(b.EndVector())

    file = vector(table(5, {0: b.CreateString(LABELS_FILE)}, TENSOR_AXIS_LABELS))
    tensor = vector(table(7, {6: file}))
    graph = vector(table(7, {3: tensor}))
    version = b.CreateString("1.0.0")
    b.Finish(table(8, {3: graph, 7: version}), METADATA_MARK)
    return bytes(b.Output())


def _zipped(labels: tuple[str, ...]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(LABELS_FILE), "\n".join(labels) + "\n")
    return packed.getvalue()

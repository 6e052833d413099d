# SPDX-License-Identifier: Apache-2.0
"""The reader accepts real files, and refuses everything else with a ModelError."""

from __future__ import annotations

import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_tiny.errors import ModelError
from fl_tiny.learn.flatbuffer import MAX_TABLES
from fl_tiny.learn.head import candidates, head_spec, read_parameters
from fl_tiny.learn.requant import patch, requantise
from fl_tiny.learn.tflite import MAX_FILE_BYTES, cut, read_model
from tests.learn.tiny import Net, classifier, silabs, write

WAND = silabs("tflite_micro_magic_wand")


def use_all_of(data: bytes) -> None:
    """What commands do with a file before an interpreter sees it."""
    model = read_model(data)
    for offered in candidates(model):
        if offered.trainable:
            spec = head_spec(model, offered.layers)
            assert patch(data, spec, requantise(spec, read_parameters(spec), None)) == data
            cut(model, spec.feature_tensor)


@pytest.mark.parametrize("name", ["image_classification", "keyword_spotting", "tflite_micro_magic_wand"])
def test_a_real_file_is_read_as_the_interpreter_reads_it(name: str) -> None:
    data = silabs(name)
    runtime = pytest.importorskip("tflite_runtime.interpreter")
    plain = runtime.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # a delegate would stand among the operators
    interpreter = runtime.Interpreter(model_content=data, experimental_op_resolver_type=plain)
    model = read_model(data)
    assert [each["op_name"] for each in interpreter._get_ops_details()] == [op.name for op in model.main.operators]
    for detail in interpreter.get_tensor_details():
        tensor = model.main.tensors[detail["index"]]
        assert tensor.shape == tuple(detail["shape"])
        assert np.dtype(tensor.dtype) == detail["dtype"]
        assert list(tensor.quantisation.scale if tensor.quantisation else ()) == list(
            detail["quantization_parameters"]["scales"]
        )
    assert model.input.index == interpreter.get_input_details()[0]["index"]
    assert model.output.index == interpreter.get_output_details()[0]["index"]


@pytest.mark.parametrize(
    "data", [b"", b"TFL3", b"hello, this is text\n" * 50, bytes(5000), b"\0\0\0\0TFL3" + bytes(64)]
)
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError):
        read_model(data)


def test_a_file_cut_off_anywhere_is_refused() -> None:
    for end in [*range(64), *range(64, len(WAND), 37), len(WAND) - 1]:
        with pytest.raises(ModelError):
            read_model(WAND[:end])


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_noise_behind_the_mark_is_refused(noise: bytes) -> None:
    with pytest.raises(ModelError):
        read_model(b"\x10\0\0\0TFL3" + noise)


@settings(max_examples=500)
@given(
    st.sampled_from([WAND, classifier(("dense relu", "dense"), (12, 7, 4)), classifier(tail="uint8")]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6),
)
def test_a_changed_file_is_used_or_refused_but_never_an_accident(
    data: bytes, changes: list[tuple[float, bytes]]
) -> None:
    copy = bytearray(data)
    for share, new in changes:
        at = int(share * (len(data) - len(new)))
        copy[at : at + len(new)] = new
    began = time.monotonic()
    try:
        use_all_of(bytes(copy))
    except ModelError as fault:
        assert fault.what
    assert time.monotonic() - began < 5  # no hang; a normal file takes milliseconds


def test_every_single_byte_turned_over_is_used_or_refused() -> None:
    small = classifier(("dense relu", "dense"), (6, 4, 3))
    for at in range(len(small)):
        copy = bytearray(small)
        copy[at] ^= 0xFF
        try:
            use_all_of(bytes(copy))
        except ModelError:
            continue


def test_tables_that_are_counted_a_million_times_are_refused_quickly() -> None:
    table = struct.pack("<HHI", 4, 4, 0)  # a vtable of no fields and no table
    bomb = bytearray(classifier())
    count = MAX_TABLES + 1
    vector = len(bomb) + (-len(bomb)) % 4
    bomb += bytes(vector - len(bomb)) + struct.pack("<I", count) + table * (count // 2 + 1)
    root = struct.unpack_from("<I", bomb, 0)[0]
    vtable = root - struct.unpack_from("<i", bomb, root)[0]
    tensors = root + struct.unpack_from("<H", bomb, vtable + 4 + 2 * 4)[0]  # Model.buffers
    struct.pack_into("<I", bomb, tensors, vector - tensors)
    began = time.monotonic()
    with pytest.raises(ModelError):
        read_model(bytes(bomb))
    assert time.monotonic() - began < 1


def test_a_file_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(ModelError, match="more than"):
        read_model(bytes(MAX_FILE_BYTES + 1))


def test_a_shape_of_a_terabyte_is_refused() -> None:
    net = Net()
    net.inputs = [net.tensor([1, 1 << 20, 1 << 20])]
    net.outputs = [net.tensor([1, 2])]
    with pytest.raises(ModelError, match="would take"):
        read_model(net.model())


def test_weights_behind_the_flatbuffer_or_in_other_files_are_refused_in_a_sentence() -> None:
    net = Net()
    net.buffers.append({1: ("Q", 4096), 2: ("Q", 64)})
    net.inputs = net.outputs = [net.tensor([1, 2])]
    with pytest.raises(ModelError, match="behind the flatbuffer"):
        read_model(net.model())
    net = Net()
    net.inputs = net.outputs = [net.tensor([1, 2], _10=("I", 1))]
    with pytest.raises(ModelError, match="other files"):
        read_model(net.model())


def test_another_schema_version_is_named() -> None:
    with pytest.raises(ModelError, match="version 2"):
        read_model(write({0: ("I", 2)}))


def test_a_cut_changes_one_number_only() -> None:
    model = read_model(WAND)
    spec = head_spec(model, 2)
    copy = cut(model, spec.feature_tensor)
    assert len(copy) == len(WAND)
    assert sum(a != b for a, b in zip(copy, WAND, strict=True)) <= 4
    assert read_model(copy).output.index == spec.feature_tensor

# SPDX-License-Identifier: Apache-2.0
"""The interpreter behind one face: batches, cut models, refusals, and crashes that stay in the child."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fl_tiny.device.backbone import RUNTIMES, open_backbone, runtime_name
from fl_tiny.device.isolated import isolated_backbone
from fl_tiny.errors import EnvironmentFault, ModelError
from fl_tiny.learn.head import head_spec
from fl_tiny.learn.tflite import cut, read_model
from tests.learn.tiny import RESHAPE, Net, classifier, dense, silabs

WAND = silabs("tflite_micro_magic_wand")
CRASHES = [(5407, 127)]  # byte and value: our reader finds nothing wrong, tflite-runtime 2.14 ends with SIGSEGV


def runs_one_by_one() -> bytes:
    """A model whose RESHAPE has the batch of one written into it."""
    rng, net = np.random.default_rng(0), Net()
    net.inputs = [net.tensor([1, 2, 4], "int8", [0.1], [0])]
    flat = net.tensor([1, 8], "int8", [0.1], [0])
    shape = net.tensor([2], "int32", data=np.array([1, 8], "<i4"))
    net.operator("RESHAPE", [net.inputs[0], shape], [flat], options=(RESHAPE, {0: ("vi", [1, 8])}))
    net.outputs = [dense(net, flat, (8, 3), rng=rng)]
    return net.model()


@pytest.mark.parametrize("data", [WAND, silabs("image_classification"), classifier(), runs_one_by_one()])
@pytest.mark.parametrize("count", [1, 7, 8, 20])
def test_samples_in_a_batch_give_what_each_gives_alone(data: bytes, count: int) -> None:
    source = read_model(data).input
    x = np.random.default_rng(1).integers(-128, 128, (count, *source.shape[1:])).astype(source.dtype)
    backbone = open_backbone(data)
    alone = np.concatenate([backbone.run(each[None]) for each in x])
    assert np.array_equal(backbone.run(x), alone)
    assert alone.shape[0] == count


def test_a_cut_model_gives_the_feature_tensor() -> None:  # facts.md, trap 1
    """Truth: the interpreter with all tensors kept, where nothing runs in place."""
    runtime = pytest.importorskip("tflite_runtime.interpreter")
    model = read_model(WAND)
    spec = head_spec(model, 2)
    x = np.random.default_rng(2).normal(size=(1, 128, 3, 1)).astype(np.float32) * 300
    kept = runtime.Interpreter(model_content=WAND, experimental_preserve_all_tensors=True)
    kept.allocate_tensors()
    kept.set_tensor(model.input.index, x)
    kept.invoke()
    features = open_backbone(cut(model, spec.feature_tensor)).run(x)
    assert np.array_equal(features, kept.get_tensor(spec.feature_tensor).reshape(1, -1))
    assert len(np.unique(features)) > 20


def test_the_name_says_runtime_and_version() -> None:
    name, version = open_backbone(WAND).name.split()
    assert name in RUNTIMES
    assert version[0].isdigit()
    assert runtime_name() == f"{name} {version}"


def test_without_a_runtime_the_hint_says_what_to_install() -> None:
    missing = next((name for name in RUNTIMES if runtime_name(name) is None), None)
    if missing is None:
        pytest.skip("all runtimes are installed here")
    assert runtime_name(missing) is None
    with pytest.raises(EnvironmentFault, match="pip install"):
        open_backbone(WAND, runtime=missing)


def test_an_operator_that_the_runtime_lacks_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"FULLY_CONNECTED.*99"):
        open_backbone(classifier(version=99))


def test_bytes_that_our_reader_refuses_reach_no_interpreter() -> None:  # trap 12
    for data in (b"", WAND[:5000], b"\x18\0\0\0TFL3" + bytes(range(256)) * 20):
        with pytest.raises(ModelError):
            open_backbone(data)
        with pytest.raises(ModelError), isolated_backbone(data):
            pytest.fail("opened")


def test_a_child_gives_the_same_as_this_process() -> None:
    x = np.random.default_rng(1).normal(size=(19, 128, 3, 1)).astype(np.float32)
    with isolated_backbone(WAND) as backbone:
        assert backbone.name == open_backbone(WAND).name
        assert np.array_equal(backbone.run(x), open_backbone(WAND).run(x))
        assert np.array_equal(backbone.run(x[:1]), open_backbone(WAND).run(x[:1]))


def test_a_crash_of_the_runtime_is_a_model_error() -> None:  # trap 12
    if not (runtime_name() or "").startswith("tflite-runtime 2.14"):
        pytest.skip("found with tflite-runtime 2.14")
    for at, value in CRASHES:
        data = bytearray(WAND)
        data[at] = value
        code = "import sys; from fl_tiny.device.backbone import open_backbone; open_backbone(sys.stdin.buffer.read())"
        env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
        bare = subprocess.run(
            [sys.executable, "-c", code], input=bytes(data), env=env, capture_output=True, check=False
        )
        assert bare.returncode < 0, "the control: this file does crash the runtime"
        with pytest.raises(ModelError, match="died of the model"), isolated_backbone(bytes(data)) as backbone:
            backbone.run(np.zeros((1, 128, 3, 1), np.float32))


def test_a_refusal_in_the_child_arrives_as_itself() -> None:
    with pytest.raises(ModelError, match=r"FULLY_CONNECTED.*99"), isolated_backbone(classifier(version=99)):
        pytest.fail("opened")


def test_no_child_is_left_behind() -> None:
    def children() -> set[str]:
        return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())

    before = children()
    with isolated_backbone(WAND) as backbone:
        backbone.run(np.zeros((1, 128, 3, 1), np.float32))
        assert len(children()) == len(before) + 1
    assert children() == before

# SPDX-License-Identifier: Apache-2.0
"""The interpreter behind one face: batches, cut models, refusals, and crashes that stay in the child."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fl_tiny import config
from fl_tiny.device.backbone import open_backbone, runtime_name, runtimes_for
from fl_tiny.device.isolated import isolated_backbone
from fl_tiny.device.runtimes import RUNTIMES, installed, same_features
from fl_tiny.errors import EnvironmentFault, ModelError
from fl_tiny.learn.head import head_spec
from fl_tiny.learn.tflite import cut, read_model
from tests.learn.tiny import RESHAPE, Net, classifier, dense, silabs

WAND = silabs("tflite_micro_magic_wand")
ZOO = Path(__file__).parents[1] / "models" / "zoo"
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
    name = open_backbone(WAND).name
    distribution, version = name.split()[:2]
    assert distribution in {each.distribution for each in RUNTIMES.values()}
    assert version[0].isdigit()
    assert runtime_name() == name


@pytest.mark.parametrize("name", [name for name in RUNTIMES if not installed(name)] or [None])
def test_a_runtime_that_is_not_installed_is_refused_with_what_to_do(name: str | None) -> None:
    if name is None:
        pytest.skip("all runtimes are installed here")
    with pytest.raises(EnvironmentFault, match=r"not installed.*pip install"):
        open_backbone(WAND, runtime=name)


def test_without_an_interpreter_numpy_is_taken() -> None:
    code = (
        "import sys; sys.modules.update(tflite_runtime=None, ai_edge_litert=None);"
        "from fl_tiny.device.backbone import open_backbone; print(open_backbone(sys.stdin.buffer.read()).name)"
    )
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], input=WAND, env=env, capture_output=True, check=True)
    assert done.stdout.decode().strip() == f"numpy {np.__version__} (tflite rounding)"


@pytest.mark.parametrize("rounding", ["tflite", "litert"])
def test_numpy_gives_what_the_runtime_gives_that_it_is_named_after(rounding: str) -> None:
    if not installed(rounding):
        pytest.skip(f"{rounding} is not installed here")
    data = silabs("keyword_spotting")
    x = np.random.default_rng(3).normal(size=(20, *read_model(data).input.shape[1:])).astype(np.float32) * 40
    named = "numpy" if rounding == "tflite" else f"numpy:{rounding}"
    truth = open_backbone(data, runtime=rounding).run(x)
    assert np.array_equal(open_backbone(data, runtime=named).run(x), truth)
    with isolated_backbone(data, runtime=named) as backbone:
        assert np.array_equal(backbone.run(x), truth)
        assert backbone.name == f"numpy {np.__version__} ({rounding} rounding)"


def test_the_setting_names_the_runtimes_that_there_are() -> None:
    assert tuple(RUNTIMES) == config.RUNTIMES


def test_numpys_version_changes_no_feature_and_its_rounding_does() -> None:
    assert same_features("numpy 1.26.4 (tflite rounding)", "numpy 2.1.0 (tflite rounding)")
    assert not same_features("numpy 1.26.4 (tflite rounding)", "numpy 1.26.4 (litert rounding)")
    assert not same_features("tflite-runtime 2.14.0", "numpy 1.26.4 (tflite rounding)")
    assert same_features("tflite-runtime 2.14.0", "tflite-runtime 2.14.0")


def test_what_can_run_a_model_is_said_of_each_runtime() -> None:
    found = runtimes_for(read_model((ZOO / "tf219" / "dynamic_range.tflite").read_bytes()))
    assert found["tflite"] == ("refuses FULLY_CONNECTED version 12" if installed("tflite") else "not installed")
    assert found["litert"] == (True if installed("litert") else "not installed")
    assert str(found["numpy"]).startswith("numpy cannot run FULLY_CONNECTED")
    assert runtimes_for(read_model(WAND))["numpy"] is True


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
    if not runtime_name().startswith("tflite-runtime 2.14"):
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


def test_a_model_that_keeps_state_is_refused_by_the_operators_that_keep_it() -> None:
    """48 of 60 steps differed on a second pass: what resets variables leaves those of VAR_HANDLE as they are."""
    data = (Path(__file__).parents[1] / "models/zoo/streaming.tflite").read_bytes()
    with pytest.raises(ModelError, match="ASSIGN_VARIABLE, READ_VARIABLE, VAR_HANDLE"):
        open_backbone(data)
    assert all(isinstance(why, str) for why in runtimes_for(read_model(data)).values())

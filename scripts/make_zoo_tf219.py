# SPDX-License-Identifier: Apache-2.0
"""Make tests/models/zoo/tf219/*.tflite: tails that only a newer converter writes.

Run as ``python scripts/make_zoo_tf219.py [OUTDIR]`` in an environment made by
``pip install tensorflow-cpu==2.19.1 tflite-runtime==2.14.0 "numpy<2"``;
2.15.1 writes neither.

Whether a file loads is asked of tflite-runtime in a process without TensorFlow: beside 2.19 it takes what
2.14 alone refuses.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tensorflow as tf
from heads import operators
from make_zoo import Build, dense, plain
from tensorflow.lite.tools import flatbuffer_utils

MODELS: dict[str, tuple[str, Build]] = {
    "per_channel": ("two dense layers whose weights have a scale per output; 2.14 runs it", dense(12, 4)),
    "dynamic_range": ("FULLY_CONNECTED of version 12, which tflite-runtime 2.14 does not load: refused", plain(True)),
}


def main(out: Path) -> None:
    """Write both models and their index; print the dense layers' versions and numbers of weight scales."""
    if not tf.__version__.startswith("2.19."):
        raise SystemExit(f"TensorFlow {tf.__version__} is installed; 2.19 is what writes these files")
    out.mkdir(parents=True, exist_ok=True)
    index: dict[str, dict[str, Any]] = {}
    for name, (what, build) in MODELS.items():
        data = build(name)
        (out / f"{name}.tflite").write_bytes(data)
        index[f"zoo/tf219/{name}.tflite"] = {"what": what, "operators": operators(data)}
        print(f"{name}\t{len(data)} bytes\t{' '.join(operators(data))}\t{dense_layers(data)}")
    (out / "zoo.json").write_text(json.dumps(index, indent=1) + "\n")


def dense_layers(data: bytes) -> list[tuple[int, int]]:
    """(version, number of weight scales) of each FULLY_CONNECTED."""
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(data))
    graph, found = model.subgraphs[0], []
    for op, name in zip(graph.operators, operators(data), strict=True):
        if name == "FULLY_CONNECTED":
            quantization = graph.tensors[op.inputs[1]].quantization
            scales = quantization.scale if quantization is not None else None
            found.append((model.operatorCodes[op.opcodeIndex].version, 0 if scales is None else len(scales)))
    return found


if __name__ == "__main__":
    default = Path(__file__).resolve().parent.parent / "tests" / "models" / "zoo" / "tf219"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)

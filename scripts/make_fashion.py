# SPDX-License-Identifier: Apache-2.0
"""Make tests/models/fashion.tflite: a small int8 backbone for Fashion-MNIST, to be tried on images turned upside down.

Run as ``python scripts/make_fashion.py [OUTDIR]`` in an environment made by
``pip install tensorflow-cpu==2.15.1 tflite-runtime==2.14.0 "numpy<2"``, with Debian's package ``dataset-fashion-mnist``
installed. About two minutes on two cores.

The model is trained on upright training images only. What a device sees are test images rotated by 180 degrees and of
low contrast (`upside_down`), so the untouched model is nearly useless and the head has something to learn.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from heads import Array, Head, accuracy, cut_at_features, fedavg, head_of, operators, quantise, run, to_int8, train

DATA = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package puts its files
SEED = 1
CONTRAST = 0.4
CHANNELS, HIDDEN, CLASSES = (12, 24, 24), 32, 10
EPOCHS = 4
CLIENTS, ALPHA, EACH = 15, 0.3, 2000  # EACH: samples in all; a client has 133 on average


def main(out: Path) -> None:
    """Train, convert, check and write the file into ``out``."""
    images, labels = read("train")
    model = backbone(images, labels)
    white_and_black = np.array([0, 1], np.float32).reshape(2, 1, 1, 1) * np.ones((1, 28, 28, 1), np.float32)
    data = to_int8(model, np.concatenate([images[:400], white_and_black]))
    report(model, data)
    out.mkdir(parents=True, exist_ok=True)
    (out / "fashion.tflite").write_bytes(data)
    print(f"fashion.tflite\t{len(data)} bytes")


def read(part: str) -> tuple[Array, Array]:
    """Images (n, 28, 28, 1) float32 in [0, 1] and labels (n,) int64 of ``part``, "train" or "t10k"."""
    files = [DATA / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    if not all(file.is_file() for file in files):
        raise SystemExit(f"{files[0]} is absent; install the Debian package dataset-fashion-mnist")
    raw = [gzip.decompress(file.read_bytes()) for file in files]
    images = np.frombuffer(raw[0], np.uint8, offset=16).reshape(-1, 28, 28, 1)  # idx3 header: 16 bytes, idx1: 8
    return images.astype(np.float32) / 255, np.frombuffer(raw[1], np.uint8, offset=8).astype(np.int64)


def upside_down(images: Array) -> Array:
    """``images``: (n, 28, 28, 1) in [0, 1], rotated by 180 degrees, contrast cut to CONTRAST around mid grey."""
    return (images[:, ::-1, ::-1] - np.float32(0.5)) * np.float32(CONTRAST) + np.float32(0.5)


def backbone(images: Array, labels: Array) -> tf.keras.Model:
    """Three strided convolutions, pooled to 2 x 2 x 24 = 96 features, two dense layers, softmax.

    Contrast and brightness vary in training, as a camera's would; without that the features of a low-contrast image
    hold too little (one layer .53, two .62 on 500 samples instead of the figures below).
    """
    tf.keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    rng = np.random.default_rng(SEED)
    contrast = rng.uniform(0.3, 1, (len(images), 1, 1, 1)).astype(np.float32)
    level = rng.uniform(0, 1, (len(images), 1, 1, 1)).astype(np.float32)
    layers = tf.keras.layers
    at = start = tf.keras.Input((28, 28, 1))
    for channels in CHANNELS:
        at = layers.Conv2D(channels, 3, strides=2, padding="same", use_bias=False)(at)
        at = layers.ReLU()(layers.BatchNormalization()(at))
    at = layers.Flatten()(layers.AveragePooling2D(2)(at))
    at = layers.Dense(CLASSES, "softmax")(layers.Dense(HIDDEN, "relu")(at))
    model = tf.keras.Model(start, at)
    model.compile(tf.keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy")
    model.fit(images * contrast + level * (1 - contrast), labels, batch_size=128, epochs=EPOCHS, verbose=0)
    return model


def report(model: tf.keras.Model, data: bytes) -> None:
    """Print what a head can reach upside down: the first 5,000 test images to learn from, the others to test on."""
    images, y = read("t10k")
    print(" ".join(operators(data)))
    print(f"int8, upright: {np.mean(run(data, quantise(data, images)).argmax(axis=1) == y):.3f}")
    q = quantise(data, upside_down(images))
    print(f"int8, upside down, before: {np.mean(run(data, q).argmax(axis=1)[5000:] == y[5000:]):.3f}")
    head, x = head_of(model, run(cut_at_features(data), q))
    print(f"features: {x.shape[1]}; parameters of the last two layers: {sum(w.size for w in head)}")
    test = x[5000:], y[5000:]
    for layers in (1, 2):
        rng = np.random.default_rng(SEED)
        shards = [(x[at : at + 500], y[at : at + 500]) for at in range(0, 5000, 1000)]
        reached = [accuracy(train(head, *s, epochs=60, rate=0.01, rng=rng, layers=layers), *test) for s in shards]
        print(f"500 samples, {layers} layers: {np.mean(reached):.3f} ({min(reached):.3f} to {max(reached):.3f})")
    federate(head, x, y)


def federate(head: Head, x: Array, y: Array) -> None:
    """Print accuracies of CLIENTS clients whose labels follow Dirichlet(ALPHA): together, federated, alone."""
    rng = np.random.default_rng(SEED)
    test = x[5000:], y[5000:]
    parts: list[list[Array]] = [[] for _ in range(CLIENTS)]
    for c in range(CLASSES):
        rows = np.flatnonzero(y[:EACH] == c)
        cuts = (np.cumsum(rng.dirichlet(np.full(CLIENTS, ALPHA)))[:-1] * len(rows)).astype(int)
        for part, chunk in zip(parts, np.split(rows, cuts), strict=True):
            part.append(chunk)
    shards = [(x[rows], y[rows]) for rows in map(np.concatenate, parts) if len(rows)]
    print(f"clients' samples: {sorted(len(s[1]) for s in shards)}")
    together = train(head, x[:EACH], y[:EACH], epochs=60, rate=0.01, rng=rng)
    print(f"centralised: {accuracy(together, *test):.3f}")
    alone = [accuracy(train(head, *s, epochs=60, rate=0.01, rng=rng), *test) for s in shards]
    print(f"alone: {np.mean(alone):.3f}")
    for rounds in (20, 60):
        shared = fedavg(head, shards, rounds=rounds, epochs=1, rate=0.01, rng=np.random.default_rng(SEED))
        print(f"FedAvg, {rounds} rounds of one epoch: {accuracy(shared, *test):.3f}")


if __name__ == "__main__":
    default = Path(__file__).resolve().parent.parent / "tests" / "models"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)

# SPDX-License-Identifier: Apache-2.0
"""Make the demo's fleet: fl_tiny/lab/data/watch.tflite and watch.npz, from seglearn's smartwatch exercises.

Run as ``python scripts/make_watch.py [OUTDIR]`` in an environment made by
``pip install tensorflow-cpu==2.15.1 tflite-runtime==2.14.0 "numpy<2"`` and ``pip install --no-deps seglearn==1.2.5``
(only seglearn's data file is read). About one minute on two cores; the table it prints is in ORIGIN.md.

Ten wearers, two arms, seven shoulder exercises, one recording of each. The backbone sees wearers 1, 2, 4 and 5 only.
The ten arms of wearers 6 to 10 are the fleet; the left arm of wearer 3 is a device that joins without labels.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from heads import Array, Head, accuracy, cut_at_features, fedavg, head_of, operators, quantise, run, to_int8, train

SEED = 1
WINDOW, HOP = 100, 25  # samples at 50 Hz: 2 s windows, a new one each half second
EARLIER = 0.6  # of each recording's time; what comes after is test, and no window spans the cut
CLIP = 4.0  # standard deviations; sets the int8 input range
MIRROR = np.array([-1, 1, 1, 1, -1, -1.0])  # a right arm seen in a mirror across the watch's x axis: an
# acceleration keeps y and z, a rotation keeps x. The mean of ax is +1.0 g left and -1.1 g right without it.
BACKBONE, FLEET, COLD = (1, 2, 4, 5), (6, 7, 8, 9, 10), 3
COLD_ARM = 10
EPOCHS = 3  # on purpose short: more epochs fit four wearers better and transfer worse
CHANNELS, POOLED, HIDDEN, CLASSES = (16, 32, 32), 6, 32, 7


def main(out: Path) -> None:
    """Train, convert, check and write both files into ``out``."""
    watch = load_watch()
    mean, std = constants(watch)
    table = windows(watch, mean, std)
    known = np.isin(table["wearer"], BACKBONE)
    model = backbone(table["x"][known], table["y"][known])
    data = to_int8(model, table["x"][known][::7])
    table["x"] = quantise(data, table["x"])
    report(model, data, table)
    out.mkdir(parents=True, exist_ok=True)
    (out / "watch.tflite").write_bytes(data)
    kept = {key: column[~known & (table["arm"] >= 0)] for key, column in table.items()}
    order = np.lexsort((kept["part"], kept["arm"]))  # stable: recordings stay in their order, windows in time
    kept = {key: column[order] for key, column in kept.items()}
    kept["y"], kept["arm"] = kept["y"].astype(np.uint8), kept["arm"].astype(np.uint8)
    np.savez_compressed(out / "watch.npz", **kept, classes=np.array(watch["y_labels"]), mean=mean, std=std)
    for name in ("watch.tflite", "watch.npz"):
        print(f"{name}\t{(out / name).stat().st_size} bytes")


def load_watch() -> dict[str, Any]:
    """seglearn's recordings, right arms mirrored: X (list of (n, 6) float64), y, subject, side, y_labels."""
    spec = importlib.util.find_spec("seglearn")
    if spec is None or spec.origin is None:
        raise SystemExit("seglearn is not installed; pip install --no-deps seglearn==1.2.5")
    path = Path(spec.origin).parent / "data" / "watch_dataset.npy"
    watch: dict[str, Any] = np.load(path, allow_pickle=True).item()  # a pickle, from a package the caller installed
    watch["X"] = [x * MIRROR if side == 1 else x for x, side in zip(watch["X"], watch["side"], strict=True)]
    return watch


def constants(watch: dict[str, Any]) -> tuple[Array, Array]:
    """Mean and standard deviation of the six channels over the backbone's wearers: (6,) float32 each."""
    seen = np.concatenate([x for x, who in zip(watch["X"], watch["subject"], strict=True) if who in BACKBONE])
    return seen.mean(axis=0).astype(np.float32), seen.std(axis=0).astype(np.float32)


def windows(watch: dict[str, Any], mean: Array, std: Array) -> dict[str, Array]:
    """Every window as a row: x (n, 100, 1, 6) float32, y, arm, wearer, side, part; see ORIGIN.md for the meanings."""
    rows = []
    for x, y, wearer, side in zip(watch["X"], watch["y"], watch["subject"], watch["side"], strict=True):
        z = np.clip((x - mean) / std, -CLIP, CLIP).astype(np.float32)
        cut = int(len(z) * EARLIER)
        arm = arm_of(int(wearer), int(side))
        for part, start, stop in ((0, 0, cut), (1, cut, len(z))):
            for at in range(start, stop - WINDOW + 1, HOP):
                label = 1 if arm == COLD_ARM else part  # that device has no labels: all of it is test
                rows.append((z[at : at + WINDOW, None], int(y), arm, int(wearer), int(side), label))
    x, y, arm, wearer, side, part = zip(*rows, strict=True)
    columns = {"wearer": wearer, "side": side, "part": part}
    small = {key: np.array(column, np.uint8) for key, column in columns.items()}
    return {"x": np.stack(x), "y": np.array(y), "arm": np.array(arm), **small}


def arm_of(wearer: int, side: int) -> int:
    """The device a recording belongs to: 0 to 9 the fleet, 10 the cold start, -1 none."""
    if wearer in FLEET:
        return (wearer - FLEET[0]) * 2 + side
    return COLD_ARM if (wearer, side) == (COLD, 0) else -1


def backbone(x: Array, y: Array) -> tf.keras.Model:
    """Three strided convolutions over time, their output pooled to six steps, two dense layers, softmax."""
    tf.keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    layers = tf.keras.layers
    at = start = tf.keras.Input((WINDOW, 1, 6))
    for channels in CHANNELS:
        at = layers.Conv2D(channels, (5, 1), strides=(2, 1), padding="same", use_bias=False)(at)
        at = layers.ReLU()(layers.BatchNormalization()(at))
    at = layers.Flatten()(layers.AveragePooling2D((at.shape[1] // POOLED, 1))(at))
    at = layers.Dense(CLASSES, "softmax")(layers.Dense(HIDDEN, "relu")(at))
    model = tf.keras.Model(start, at)
    model.compile(tf.keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=64, epochs=EPOCHS, verbose=0)
    return model


def report(model: tf.keras.Model, data: bytes, table: dict[str, Array]) -> None:
    """Print what the fleet can reach with this backbone: features by tflite-runtime, heads in float64."""
    arm, part, y = table["arm"], table["part"], table["y"]
    right = run(data, table["x"]).argmax(axis=1) == y
    before = [right[(arm == k) & (part == 1)].mean() for k in range(10)]
    print(" ".join(operators(data)))
    print(f"int8 before: mean {np.mean(before):.3f}, arms {np.round(before, 2)}")
    print(f"int8 before, cold start: {right[arm == COLD_ARM].mean():.3f}")
    head, features = head_of(model, run(cut_at_features(data), table["x"]))
    print(f"features: {features.shape[1]}; parameters of the last two layers: {sum(w.size for w in head)}")
    print("labels\tpick\tone layer\talone\tglobal\tpersonal\tcold start\t(means of three seeds)")
    for pick in ("spread", "first"):
        for labels in (5, 10, 20, None):
            scores = [federate(head, features, table, labels=labels, pick=pick, seed=seed) for seed in range(3)]
            print(f"{labels or 'all'}\t{pick}\t" + "\t".join(f"{s:.3f}" for s in np.mean(scores, axis=0)))


def federate(
    head: Head, x: Array, table: dict[str, Array], *, labels: int | None, pick: str, seed: int
) -> tuple[float, float, float, float, float]:
    """Accuracies on later data: last layer alone, both alone, global, personal; then the global head on the cold arm.

    ``labels`` a class and device, drawn at random from the earlier part ("spread") or its earliest ones ("first").
    """
    rng = np.random.default_rng(seed)
    arm, part, y = table["arm"], table["part"], table["y"]
    shards, tests = [], []
    for k in range(10):
        pools = [np.flatnonzero((arm == k) & (part == 0) & (y == c)) for c in range(CLASSES)]
        taken = np.concatenate([(rng.permutation(p) if pick == "spread" else p)[:labels] for p in pools])
        shards.append((x[taken], y[taken]))
        tests.append((x[(arm == k) & (part == 1)], y[(arm == k) & (part == 1)]))

    def mean(heads: list[Head]) -> float:
        return float(np.mean([accuracy(h, *test) for h, test in zip(heads, tests, strict=True)]))

    one = mean([train(head, *shard, epochs=60, rate=0.01, rng=rng, layers=1) for shard in shards])
    alone = mean([train(head, *shard, epochs=60, rate=0.01, rng=rng) for shard in shards])
    shared = fedavg(head, shards, rounds=40, epochs=2, rate=0.03, rng=rng)
    personal = mean([train(shared, *shard, epochs=20, rate=0.01, rng=rng) for shard in shards])
    cold = accuracy(shared, x[arm == COLD_ARM], y[arm == COLD_ARM])
    return one, alone, mean([shared] * 10), personal, cold


if __name__ == "__main__":
    default = Path(__file__).resolve().parent.parent / "fl_tiny" / "lab" / "data"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)

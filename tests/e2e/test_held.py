# SPDX-License-Identifier: Apache-2.0
"""What a board says of its accuracy is what its owner gets, whatever was given to it twice, in bursts or at random."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_tiny.device.store import DeviceStore
from fl_tiny.lab import fashion

from .fleet import Fleet, cli

MODEL = Path(__file__).parents[1] / "models/fashion.tflite"
ROUNDS = 2
RNG = np.random.default_rng
pytestmark = pytest.mark.skipif(
    not fashion.IMAGES.exists(), reason="SKIPPED: install Debian's package dataset-fashion-mnist"
)


@pytest.fixture(scope="module")
def pictures() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures of the first four classes, and their labels."""
    x = np.frombuffer(fashion.read("images-idx3"), np.uint8).reshape(-1, 28, 28, 1)
    y = np.frombuffer(fashion.read("labels-idx1"), np.uint8).astype(np.int64)
    return x[y < 4], y[y < 4]


@pytest.fixture
def clothes(tmp_path: Path) -> Iterator[Fleet]:
    found = Fleet(tmp_path, MODEL, 2)
    found.gateway("--rounds", ROUNDS, "--clients", 1, "--interval", 0)
    yield found
    found.end()


def saved(path: Path, x: NDArray[Any], y: NDArray[np.int64]) -> Path:
    """As the model's input takes them: upside down, contrast cut."""
    np.savez(path, x=fashion.upside_down(x.astype(np.float32) / 255), y=y)
    return path


def bursts(
    x: NDArray[np.uint8], y: NDArray[np.int64], frames: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """``frames`` nearly equal pictures of each, as a camera gives them: noise and the light differ a little."""
    many = np.repeat(x, frames, axis=0).astype(np.float64)
    light = 1 + 0.03 * rng.standard_normal((len(many), 1, 1, 1))
    return np.clip(many * light + rng.normal(0, 3, many.shape), 0, 255), np.repeat(y, frames)


def learned(fleet: Fleet, device: Path) -> dict[str, Any]:
    """What the board says of itself after the rounds, alone in its fleet."""
    run = fleet.run(device, "--rounds", ROUNDS)
    assert (fleet.daemons[0].wait(), run.wait()) == (0, 0)
    found: dict[str, Any] = cli("device", "status", device)
    return found


def truth(device: Path, test: Path) -> tuple[float, int]:
    """The accuracy of the board's model on other pictures, and how many those are."""
    labels = np.load(test)["y"]
    said = np.array(cli("predict", device, "--data", test)["labels"])
    return float(np.mean(said == labels)), len(labels)


def agrees(figure: float, on: int, true: float) -> bool:
    """True when a share of so many samples may come from the true one: within three standard errors."""
    return abs(figure - true) <= 3 * math.sqrt(max(true * (1 - true), 1 / on) / on)


@pytest.mark.parametrize("times", [1, 3])
def test_random_labels_are_never_said_to_be_learnt(
    clothes: Fleet, pictures: tuple[NDArray[np.uint8], NDArray[np.int64]], times: int
) -> None:
    x, y = pictures
    labels = RNG(5).permutation(y[:48])
    device = clothes.device("board", samples=0)
    data = saved(clothes.root / "random.npz", x[:48], labels)
    assert cli("samples", "add", device, "--data", data)["added"] == 48
    for _ in range(times - 1):
        again = cli("samples", "add", device, "--data", data)
        assert (again["added"], again["known"], again["relabelled"], again["samples"]) == (0, 48, 0, 48)
    found = learned(clothes, device)
    shares = [found["accuracy"][name] for name in ("previous", "global", "personal")]
    assert shares == [None] * 3 and 0 < found["accuracy"]["samples"] < 20, "too few to tell"


def test_many_random_labels_are_told_as_what_they_are(
    clothes: Fleet, pictures: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> None:
    x, y = pictures
    device = clothes.device("board", samples=0)
    for seed in range(3):  # each time other labels: the newest counts
        labels = RNG(seed).permutation(y[:160])
        found = cli("samples", "add", device, "--data", saved(clothes.root / "random.npz", x[:160], labels))
    assert found["samples"] == 160 and found["relabelled"] > 80
    status = learned(clothes, device)
    test = saved(clothes.root / "test.npz", x[200:600], RNG(9).permutation(y[200:600]))
    true, _ = truth(device, test)
    print("RANDOM", status, true)
    for name in ("previous", "global", "personal"):
        assert agrees(status["accuracy"][name], status["accuracy"]["samples"], true), (status["accuracy"], true)


def test_thirty_copies_of_one_picture_say_nothing_of_others(
    clothes: Fleet, pictures: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> None:
    x, y = pictures
    device = clothes.device("board", samples=0)
    exact = saved(clothes.root / "exact.npz", np.repeat(x[:1], 30, axis=0), np.repeat(y[:1], 30))
    found = cli("samples", "add", device, "--data", exact)
    assert (found["added"], found["known"]) == (1, 29)
    many = bursts(x[:1], y[:1], 30, RNG(1))
    cli("samples", "add", device, "--data", saved(clothes.root / "near.npz", *many))
    assert cli("samples", "stats", device)["held_out"] == 0, "one group, which is trained on"
    few = saved(clothes.root / "few.npz", x[1:41], y[1:41])
    cli("samples", "add", device, "--data", few)
    before = cli("samples", "stats", device)
    assert 5 <= before["held_out"] <= 14
    found = learned(clothes, device)
    assert found["accuracy"]["personal"] is None, "too few to tell"
    cli("samples", "add", device, "--data", saved(clothes.root / "again.npz", *bursts(x[1:41], y[1:41], 3, RNG(2))))
    with contextlib.closing(DeviceStore.open(device / "state.db")) as store:
        rows = [(sample.group, held) for sample, held in store.samples()]
    assert len(rows) == 31 + 40 + 120 and len(set(rows)) == len({group for group, _ in rows}) <= 45, "whole groups"


def test_the_figure_of_a_board_with_bursts_is_what_other_scenes_give(
    clothes: Fleet, pictures: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> None:
    """60 scenes of twelve frames: about 144 are held out, of whole scenes."""
    x, y = pictures
    device = clothes.device("board", samples=0)
    frames = bursts(x[:60], y[:60], 12, RNG(3))
    cli("samples", "add", device, "--data", saved(clothes.root / "bursts.npz", *frames))
    found = learned(clothes, device)
    true, _ = truth(device, saved(clothes.root / "test.npz", x[200:1000], y[200:1000]))
    accuracy = found["accuracy"]
    assert accuracy["samples"] >= 100 and accuracy["groups"] >= 10
    print("BURSTS", found, true)
    assert agrees(accuracy[found["kept"]], accuracy["groups"], true), (accuracy, true)


@pytest.mark.parametrize("joined", [True, False], ids=["joined", "control"])
def test_an_older_stores_copies_on_both_sides_are_not_told_as_held_out(
    clothes: Fleet, pictures: tuple[NDArray[np.uint8], NDArray[np.int64]], joined: bool
) -> None:
    """Every fifth sample held out by its place, as before version 8; the control leaves them so."""
    x, y = pictures
    device = clothes.device("board", samples=0)
    frames = bursts(x[:30], y[:30], 10, RNG(3))
    cli("samples", "add", device, "--data", saved(clothes.root / "bursts.npz", *frames))
    with contextlib.closing(DeviceStore.open(device / "state.db")) as store, store.write() as db:
        db.execute("UPDATE sample SET grp=NULL, held=(id % 5 = 4)")
    if joined:
        with contextlib.closing(DeviceStore.open(device / "state.db")) as store:
            store.put(unjoined=len(frames[0]))
    found = learned(clothes, device)
    assert found["held_out"] == 60, "what was held out stays so"
    if joined:
        assert found["accuracy"]["samples"] < 20 and found["accuracy"]["personal"] is None
    else:
        assert found["accuracy"]["samples"] == 60 and found["accuracy"]["personal"] > 0.95


def test_personalise_on_bursts_tells_the_truth(
    tmp_path: Path, pictures: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> None:
    """The mean of six folders of 12 scenes, 20 frames each."""
    x, y = pictures
    test = saved(tmp_path / "test.npz", x[1000:2000], y[1000:2000])
    told, true = [], []
    for draw in range(6):
        scenes = slice(60 * draw, 60 * draw + 12)
        data = saved(tmp_path / "bursts.npz", *bursts(x[scenes], y[scenes], 20, RNG(draw)))
        found = cli("model", "personalise", MODEL, "--data", data, "--out", tmp_path / "out.tflite")
        assert (found["samples"], found["groups"], found["tells"]) == (240, 12, True)
        if found["accepted"]:
            told.append(found["after"])
            true.append(cli("model", "evaluate", tmp_path / "out.tflite", "--data", test)["accuracy"])
    print("PERS", told, true)
    assert len(told) >= 3 and abs(np.mean(told) - np.mean(true)) < 0.12, (told, true)

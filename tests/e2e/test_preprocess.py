# SPDX-License-Identifier: Apache-2.0
"""What the gateway says of preprocessing is signed, and the same on every device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fl_tiny import statedir
from fl_tiny.device.store import DeviceStore
from fl_tiny.protocol import signed, wire
from fl_tiny.protocol.preprocess import Images

from .fleet import Fleet, cli

Image = pytest.importorskip("PIL.Image", reason="SKIPPED: pictures need Pillow, the extra [data]")
FASHION = Path(__file__).parents[1] / "models/fashion.tflite"
NAMES = [f"kind{i}" for i in range(10)]


def folder(root: Path, pixels: np.ndarray, labels: np.ndarray) -> Path:
    for number, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        place = root / NAMES[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{number:03}.png")
    return root


def manifest(directory: Path) -> wire.Manifest:
    return wire.decode(
        wire.Manifest, signed.payload_of(DeviceStore.open(directory / statedir.DATABASE).get("manifest"))
    )


def test_pictures_become_what_their_pixels_do_on_every_device(tmp_path: Path) -> None:
    (tmp_path / "gw").mkdir()
    settings = tmp_path / "gw" / "fl-tiny.toml"
    settings.write_text('interval = 0\n[preprocess]\nkind = "image"\nresize = "crop"\n')
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    fleet = Fleet(tmp_path, FASHION, 2, "--labels", tmp_path / "names.txt")
    try:
        fleet.gateway()
        settings.write_text('interval = 0\n[preprocess]\nkind = "image"\nrange = [0, 255]\n')  # has no effect any more
        first, second = fleet.device("a", samples=0), fleet.device("b", samples=0)
        assert manifest(first).preprocess == Images("image", "crop", "grey", (0.0, 1.0))
        rng = np.random.default_rng(0)
        pixels, labels = rng.integers(0, 256, (40, 28, 28), np.uint8), np.sort(rng.integers(0, 10, 40))
        root = folder(tmp_path / "pictures", pixels, labels)
        assert cli("samples", "add", first, "--images", root) == {
            "added": 40,
            "known": 0,
            "relabelled": 0,
            "samples": 40,
            "skipped": 0,
        }
        np.savez(tmp_path / "d.npz", x=pixels[..., None] / np.float32(255), y=labels)
        cli("samples", "add", second, "--data", tmp_path / "d.npz")
        stored = [list(DeviceStore.open(each / statedir.DATABASE).samples()) for each in (first, second)]
        assert stored[0] == stored[1]
        found = cli("predict", first, "--images", root)
        assert found["files"] == sorted(map(str, root.rglob("*.png")))
        assert found["labels"] == cli("predict", second, "--data", tmp_path / "d.npz")["labels"]
        assert len(cli("predict", first, "--images", found["files"][3])["labels"]) == 1
        Image.fromarray(pixels[0]).save(tmp_path / "pictures" / NAMES[0] / "x.png", "GIF")
        assert "x.png" in cli("samples", "add", first, "--images", root, code=65)
        assert "kind image" in cli("samples", "add", first, "--wav", root, code=65)
        assert cli("samples", "stats", first)["samples"] == 40
    finally:
        fleet.end()


def test_a_table_that_does_not_fit_makes_no_gateway(tmp_path: Path) -> None:
    table = tmp_path / "p.toml"
    for text, said in (
        ('kind = "image"\ncolour = "rgb"', "colour"),
        ('kind = "audio"', "a clip gives [16000] samples"),
        ('kind = "image"\nrezise = "crop"', "did you mean"),
        (f'kind = "series"\ncolumns = {[f"{i:046}" for i in range(28)]}'.replace("'", '"'), "at most 1024 fit"),
    ):
        table.write_text(text)
        line = cli("gateway", "init", tmp_path / "gw", "--model", FASHION, "--preprocess", table, code=78)
        assert said in line
        assert not (tmp_path / "gw").exists()

# SPDX-License-Identifier: Apache-2.0
"""From a folder of pictures, of recordings or a table to a personalised model, by commands alone."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from fl_tiny.learn.tflite import read_model
from tests import fashion, sounds
from tests.learn.tiny import SILABS, classifier

from .test_model import fl_tiny, refused

Image = pytest.importorskip("PIL.Image", reason="SKIPPED: pictures need Pillow, the extra [data]")
FASHION = Path(__file__).parents[1] / "models/fashion.tflite"
KEYWORDS = """
[preprocess]
kind = "audio"
clip_ms = 1010  # 50 frames, as the model takes
features = "mel"
frame_ms = 30
hop_ms = 20
mels = 10
low_hz = 125
high_hz = 4000
floor = 1e-3
scale = 12  # the model's input holds 0 to 225
offset = 83
"""
NAMES = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


@pytest.fixture(scope="module")
def clothes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``train`` and ``test`` of pictures by the number of their class, and the same pixels as .npz."""
    if not fashion.DATA.is_dir():
        pytest.skip("SKIPPED: Debian package dataset-fashion-mnist is not installed")
    root = tmp_path_factory.mktemp("clothes")
    images, labels = fashion.read("t10k")
    pixels = np.rint(fashion.upside_down(images) * 255).astype(np.uint8)
    for part, which in (("train", slice(0, 400)), ("test", slice(5000, 5600))):
        order = np.argsort(labels[which], kind="stable")  # as the folder is read
        for number, (picture, label) in enumerate(zip(pixels[which][order], labels[which][order], strict=True)):
            folder = root / part / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture[..., 0]).save(folder / f"{number:04}.png")
        np.savez(root / f"{part}.npz", x=pixels[which][order] / np.float32(255), y=labels[which][order])
    return root


def accuracy(model: Path, *source: object) -> float:
    found: float = json.loads(fl_tiny("evaluate", model, *source, "--json").stdout)["accuracy"]
    return found


def test_a_folder_of_pictures_gives_the_model_that_its_pixels_give(clothes: Path, tmp_path: Path) -> None:
    table = tmp_path / "p.toml"
    table.write_text('[preprocess]\nkind = "image"\nrange = [0, 1]\n')
    options = ("--epochs", 30)
    fl_tiny("personalise", FASHION, "--data", clothes / "train.npz", "--out", tmp_path / "npz.tflite", *options)
    for name, more in (("default", ()), ("table", ("--preprocess", table))):
        out = tmp_path / name
        fl_tiny("personalise", FASHION, "--images", clothes / "train", "--out", out, *options, *more)
        assert out.read_bytes() == (tmp_path / "npz.tflite").read_bytes()
    before, after = (accuracy(each, "--images", clothes / "test") for each in (FASHION, out))
    assert after == accuracy(out, "--data", clothes / "test.npz")
    assert after > before + 0.4


def test_labels_are_classes_by_their_names(clothes: Path, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        (tmp_path / "named" / name).mkdir(parents=True)
        for each in sorted((clothes / "test" / str(number)).iterdir())[:3]:
            (tmp_path / "named" / name / each.name).write_bytes(each.read_bytes())
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    done = fl_tiny("evaluate", FASHION, "--images", tmp_path / "named")
    assert f"{sorted(NAMES)[0]}=0" in done.stderr, "what the alphabet says is shown"
    done = fl_tiny("evaluate", FASHION, "--images", tmp_path / "named", "--labels", tmp_path / "names.txt")
    assert "alphabet" not in done.stderr
    (tmp_path / "named" / "hat").mkdir()
    (tmp_path / "named" / "hat" / "a.png").write_bytes(each.read_bytes())
    said = refused("evaluate", FASHION, "--images", tmp_path / "named", "--labels", tmp_path / "names.txt", code=65)
    assert "hat is no class" in said and "top, trouser" in said
    assert "11 labels" in refused("evaluate", FASHION, "--images", tmp_path / "named", code=65)


def test_numbers_that_cannot_be_right_are_warned_of(clothes: Path, tmp_path: Path) -> None:
    table = tmp_path / "p.toml"
    for low, high, said in ((0, 255, "cut off"), (0, 0.01, "less than 5%")):
        table.write_text(f'kind = "image"\nrange = [{low}, {high}]\n')
        done = fl_tiny("evaluate", FASHION, "--images", clothes / "test", "--preprocess", table)
        (line,) = (line for line in done.stderr.split("\n") if line.startswith("warning: "))
        assert said in line and "holds 0 to 1" in line
    with np.load(clothes / "test.npz") as arrays:
        np.savez(tmp_path / "d.npz", x=arrays["x"] * 255, y=arrays["y"])
        np.savez(tmp_path / "same.npz", x=np.zeros_like(arrays["x"]), y=arrays["y"])
    assert "cut off" in fl_tiny("evaluate", FASHION, "--data", tmp_path / "d.npz").stderr
    assert "nothing to tell" in fl_tiny("evaluate", FASHION, "--data", tmp_path / "same.npz").stderr
    for source in (("--images", clothes / "test"), ("--data", clothes / "test.npz")):
        assert "warning" not in fl_tiny("evaluate", FASHION, *source).stderr


def test_a_bad_table_ends_with_78_and_all_its_faults(clothes: Path, tmp_path: Path) -> None:
    table = tmp_path / "p.toml"
    faulty = {
        'kind = "image"\nresiz = "crop"\nrange = [0]\ncolour = 3': (
            "did you mean preprocess.resize",
            "range",
            "colour",
        ),
        'kind = "image"\ncolour = "rgb"\nrange = [0, 1]\nmean = [1.0]': ("colour", "mean and std", "range"),
        'kind = "picture"': ("preprocess.kind is none of image, audio, series",),
        "kind = ": ("p.toml",),
        "": ("preprocess.kind",),
    }
    for text, said in faulty.items():
        table.write_text(text)
        line = refused("evaluate", FASHION, "--images", clothes / "test", "--preprocess", table, code=78)
        assert all(each in line for each in said), line
    table.write_text('kind = "audio"')
    assert "kind audio" in refused("evaluate", FASHION, "--images", clothes / "test", "--preprocess", table, code=65)
    missing = tmp_path / "none.toml"
    refused("evaluate", FASHION, "--images", clothes / "test", "--preprocess", missing, code=78)


def test_one_source_is_needed_and_no_more(tmp_path: Path) -> None:
    fl_tiny("evaluate", FASHION, check=2)
    fl_tiny("evaluate", FASHION, "--data", "a.npz", "--images", "b", check=2)
    for option in ("--images", "--wav", "--csv", "--data"):
        refused("evaluate", FASHION, option, tmp_path / "none", code=65)


def test_a_folder_of_recordings_gives_a_model_that_tells_them_apart(tmp_path: Path) -> None:
    table = tmp_path / "p.toml"
    table.write_text(KEYWORDS)
    train = sounds.write_folder(tmp_path / "train", each=12, seed=0)
    test = sounds.write_folder(tmp_path / "test", each=8, seed=1)
    model, out = SILABS / "keyword_spotting.tflite", tmp_path / "out.tflite"
    fl_tiny("personalise", model, "--wav", train, "--preprocess", table, "--out", out)
    before, after = (accuracy(each, "--wav", test, "--preprocess", table) for each in (model, out))
    assert before < 0.1 and after > 0.9
    table.write_text(KEYWORDS.replace("1010", "1000"))
    line = refused("evaluate", model, "--wav", test, "--preprocess", table, code=78)
    assert "clip_ms = 1010 gives 50" in line


def test_a_table_of_rows_is_as_good_as_the_array(tmp_path: Path) -> None:
    model = tmp_path / "m.tflite"
    model.write_bytes(classifier(sizes=(12, 4)))
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 200)
    x = (rng.normal(size=(4, 12)) * 4)[y] + rng.normal(size=(200, 12))
    header = ",".join([*(f"c{i}" for i in range(12)), "label"])
    rows = [",".join([*map(repr, map(float, row)), f"{label}"]) for row, label in zip(x, y, strict=True)]
    (tmp_path / "d.csv").write_text("\n".join([header, *rows]) + "\n")
    np.savez(tmp_path / "d.npz", x=x, y=y)
    outs = []
    for option, file in (("--csv", "d.csv"), ("--data", "d.npz")):
        outs.append(tmp_path / f"{file}.tflite")
        fl_tiny("personalise", model, option, tmp_path / file, "--out", outs[-1])
    assert outs[0].read_bytes() == outs[1].read_bytes() != model.read_bytes()


def test_model_commands_go_on_without_bad_files_and_say_how_many(clothes: Path, tmp_path: Path) -> None:
    root = tmp_path / "some"
    for number in range(10):
        (root / str(number)).mkdir(parents=True)
        for each in sorted((clothes / "test" / str(number)).iterdir())[:8]:
            (root / str(number) / each.name).write_bytes(each.read_bytes())
        (root / str(number) / "bad.png").write_bytes(b"text")
    assert "10 of 90 files cannot be used" in refused("evaluate", FASHION, "--images", root, code=65)
    refused("personalise", FASHION, "--images", root, "--out", tmp_path / "o.tflite", code=65)
    assert not (tmp_path / "o.tflite").exists()
    done = fl_tiny("evaluate", FASHION, "--images", root, "--skip-bad", "--json")
    found = json.loads(done.stdout)
    assert (found["samples"], found["skipped"]) == (80, 10)
    assert "passed over: 10 of 90 files cannot be used" in done.stderr
    words = ("personalise", FASHION, "--images", root, "--skip-bad", "--out", tmp_path / "o.tflite", "--json")
    assert json.loads(fl_tiny(*words).stdout)["skipped"] == 10


def test_the_keyword_example_runs_as_the_readme_prints_it(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (line,) = re.findall(r"^    fl-tiny (model personalise keywords\.tflite .*)$", text, re.MULTILINE)
    (table,) = re.findall(r"```toml\n(\[preprocess\]\nkind = \"audio\".*?)```", text, re.DOTALL)
    (tmp_path / "keywords.toml").write_text(table)
    (tmp_path / "keywords.tflite").write_bytes((SILABS / "keyword_spotting.tflite").read_bytes())
    names = [*sounds.KINDS, *(f"unused {n}" for n in range(12 - len(sounds.KINDS)))]
    (tmp_path / "keywords.txt").write_text("\n".join(names) + "\n")
    sounds.write_folder(tmp_path / "numbers", each=4, seed=0)
    (tmp_path / "recordings").mkdir()
    for number, kind in enumerate(sounds.KINDS):
        (tmp_path / "numbers" / str(number)).rename(tmp_path / "recordings" / kind)
    own = {"keywords.tflite", "keywords.toml", "keywords.txt", "recordings", "mine.tflite"}
    words = [tmp_path / word if word in own else word for word in line.split()[1:]]
    fl_tiny(*words)
    assert (tmp_path / "mine.tflite").exists()


def test_a_model_whose_input_says_no_range_gets_ways_on_that_work(tmp_path: Path) -> None:
    model = tmp_path / "m.tflite"
    scale = struct.pack("<f", read_model(FASHION.read_bytes()).input.quantisation.scale[0])  # type: ignore[union-attr]
    model.write_bytes(FASHION.read_bytes().replace(scale, struct.pack("<f", 0.05), 1))
    (tmp_path / "p/0").mkdir(parents=True)
    for n in range(3):
        Image.fromarray(np.full((28, 28), 80 * n, np.uint8)).save(tmp_path / f"p/0/{n}.png")
    line = refused("evaluate", model, "--images", tmp_path / "p", code=65)
    for words in re.findall(r"\[[-0-9, ]+\]", line.split("(")[-1]):
        (tmp_path / "p.toml").write_text(f'kind = "image"\nrange = {words}\n')
        fl_tiny("evaluate", model, "--images", tmp_path / "p", "--preprocess", tmp_path / "p.toml")
    assert line.count("[") >= 3 and "--preprocess" in line and len(line) <= 400


def test_every_refusal_of_a_reader_is_one_short_line_with_the_file_and_a_way_out(tmp_path: Path) -> None:
    long = "long name " * 20
    for kind, name, data in (
        ("--images", "a.png", b"text"),
        ("--images", f"{long}.png", b"text"),
        ("--images", f"{long}.heic", b""),
        ("--wav", f"{long}.wav", b"RIFF"),
        ("--wav", f"{long}.m4a", b""),
        ("--wav", "\x1b[2J\n\u202e.wav", b"RIFF"),
    ):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        (root / "0").mkdir(parents=True)
        (root / "0" / name).write_bytes(data)
        table = tmp_path / "t.toml"
        table.write_text(KEYWORDS)
        more = ("--preprocess", table) if kind == "--wav" else ()
        model = SILABS / "keyword_spotting.tflite" if kind == "--wav" else FASHION
        line = refused("evaluate", model, kind, root, *more, code=65)
        assert len(line) <= 400 and line.endswith(")") and line.isprintable(), line
        assert name[:20] in line or not name.isprintable()
    names = ",".join(f"column number {n}" for n in range(500))
    (tmp_path / "d.csv").write_text(f"{names}\n")
    line = refused("evaluate", FASHION, "--csv", tmp_path / "d.csv", code=65)
    assert len(line) <= 400 and "more" in line and "d.csv" in line

# SPDX-License-Identifier: Apache-2.0
"""A folder's name is a class, by name, by number or by the alphabet; nothing is passed over in silence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fl_tiny.device.faults import Faults
from fl_tiny.device.folder import all_files, class_numbers, labelled_files
from fl_tiny.errors import DataError

HERE = Path("here")


def test_labels_are_classes_by_name_by_number_or_by_the_alphabet() -> None:
    assert class_numbers(["cat", "ant"], ["bee", "ant", "cat"], 3, HERE).numbers == {"cat": 2, "ant": 1}
    assert class_numbers(["2", "0"], None, 3, HERE).numbers == {"0": 0, "2": 2}
    guessed = class_numbers(["b", "c", "a", "b"], None, 3, HERE)
    assert guessed.numbers == {"a": 0, "b": 1, "c": 2}
    assert guessed.note == "classes by the alphabet: a=0 b=1 c=2"
    assert class_numbers(["2"], None, 3, HERE).note == ""


@pytest.mark.parametrize(
    ("labels", "names", "said"),
    [
        (["cow"], ["ant", "bee", "cat"], "cow is no class of the model .*ant, bee, cat"),
        (["cow", "ewe", "cat"], ["ant", "bee", "cat"], "cow, ewe are no classes of the model"),
        (["1"], ["ant", "bee", "cat"], "1 is no class"),
        (["ant"], ["ant", "bee", "cat", "dog"], "4 names of labels for 3 classes"),
        (["3"], None, "class 3; the model has classes 0 to 2"),
        (["99999999999999999999"], None, "classes 0 to 2"),
        (["a", "b"], None, "2 labels .a, b. for 3 classes .*--labels"),
        (["²"], None, "1 labels"),
    ],
)
def test_a_label_that_is_no_class_is_named(labels: list[str], names: list[str] | None, said: str) -> None:
    with pytest.raises(DataError) as fault:
        class_numbers(labels, names, 3, HERE)
    assert re.search(said, str(fault.value)), str(fault.value)


def test_hidden_files_are_passed_over_and_all_others_must_be_readable(tmp_path: Path) -> None:
    for name in ("b/2.wav", "a/1.WAV", "a/deep/0.wav", "a/.hidden", ".git/x", "a/.x/y.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = labelled_files(tmp_path, {".wav"}, Faults())
    assert [str(p.relative_to(tmp_path)) for p in found.paths] == ["a/1.WAV", "a/deep/0.wav", "b/2.wav"]
    assert found.labels == ("a", "a", "b")
    assert all_files(tmp_path, {".wav"}, Faults()).paths == found.paths
    (tmp_path / "a" / "deep" / "loop").symlink_to(tmp_path)
    faults = Faults()
    assert labelled_files(tmp_path, {".wav"}, faults).paths == found.paths
    with pytest.raises(DataError, match="loop is no file of this kind"):
        faults.check(3)


@pytest.mark.parametrize(
    "name",
    ["Thumbs.db", "desktop.ini", ".DS_Store", "._1.wav", ".directory", "Icon\r", "ehthumbs.db", "THUMBS.DB"]
    + [f"{folder}/x.txt" for folder in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "#recycle")],
)
def test_what_systems_leave_behind_is_passed_over(tmp_path: Path, name: str) -> None:
    for path in (tmp_path / "a/1.wav", tmp_path / name, tmp_path / "a" / name):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    faults = Faults()
    assert labelled_files(tmp_path, {".wav"}, faults).labels == ("a",)
    assert all_files(tmp_path, {".wav"}, faults).paths == (tmp_path / "a/1.wav",)
    assert not faults


def test_all_faults_are_one_message_with_counts_and_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for n in range(40):
        (tmp_path / "a" / f"{n:02}.wav").touch()
        (tmp_path / "a" / f"{n:02}{'n' * 200}.txt").touch()
    for n in range(3):
        (tmp_path / "a" / f"{n}.m4a").touch()
    (tmp_path / "stray.wav").touch()
    faults = Faults(tmp_path)
    assert len(labelled_files(tmp_path, {".wav"}, faults).paths) == 40
    with pytest.raises(DataError) as said:
        faults.check(40)
    line = str(said.value)
    assert "44 of 84 files cannot be used: is no file of this kind (a/0.m4a, a/00nn" in line and len(line) <= 400
    assert "and 40 more" in line and "stands in no folder of a label (stray.wav)" in line and "--skip-bad" in line
    faults = Faults(skip=True)
    assert len(labelled_files(tmp_path, {".wav"}, faults).paths) == 40 and len(faults) == 44
    faults.check(40)
    with pytest.raises(DataError, match="none is left"):
        faults.check(0)


@pytest.mark.parametrize(("name", "way_out"), [("a.m4a", "ffmpeg"), ("a.HEIC", "heif-convert"), ("a.xlsx", "CSV")])
def test_what_phones_and_offices_write_is_refused_with_what_converts_it(
    tmp_path: Path, name: str, way_out: str
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).touch()
    with pytest.raises(DataError, match=f"is no file of this kind .*{way_out}"):
        labelled_files(tmp_path, {".wav"}, Faults())


def test_what_is_no_folder_of_labels_says_how_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no files .*LABEL"):
        labelled_files(tmp_path, {".wav"}, Faults())
    with pytest.raises(DataError, match="no directory"):
        labelled_files(tmp_path / "none", {".wav"}, Faults())
    (tmp_path / "1.wav").touch()
    with pytest.raises(DataError, match="stands in no folder of a label"):
        labelled_files(tmp_path, {".wav"}, Faults())
    (tmp_path / "1.wav").unlink()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"notes\.txt is no file of this kind"):
        labelled_files(tmp_path, {".wav"}, Faults())

# SPDX-License-Identifier: Apache-2.0
"""Archives are checked before they are unpacked, and every fault names what was expected."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_tiny.device.dataset import MAX_X_BYTES, Expected, open_dataset
from fl_tiny.errors import DataError
from fl_tiny.learn.tflite import Tensor, read_model
from tests.learn.tiny import classifier, silabs

SOURCE = read_model(classifier()).input  # int8 [1, 12], scale 0.1, zero point -3
FLOAT = read_model(silabs("tflite_micro_magic_wand")).input  # float32 [1, 128, 3, 1]


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path / "d.npz", **arrays)
    return path / "d.npz"


FIVE = Expected(5)


def codes(path: Path, source: Tensor = SOURCE, expected: Expected | None = FIVE) -> np.ndarray:
    return np.concatenate(list(open_dataset(path, source, expected=expected).batches()))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_real_numbers_are_rounded_and_clipped_to_the_inputs_codes(tmp_path: Path, dtype: type) -> None:
    x = np.tile(np.array([0, 0.1, 0.16, -0.24, 99, -99], dtype), (70, 2))
    y = np.arange(70) % 5
    found = codes(saved(tmp_path, x=x, y=y))
    assert found.dtype == np.int8
    assert found[0].tolist() == [-3, -2, -1, -5, 127, -128] * 2
    assert found.shape == (70, 12)


def test_the_inputs_own_integers_are_its_codes(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(-128, 128, (70, 12), np.int8)
    assert np.array_equal(codes(saved(tmp_path, x=x, y=np.zeros(70, np.uint8))), x)


def test_a_float_input_takes_real_numbers_as_they_are(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(3, 128, 3, 1))
    found = codes(saved(tmp_path, x=x, y=np.zeros(3, int)), FLOAT)
    assert np.array_equal(found, x.astype(np.float32))


def test_an_array_in_fortran_order_is_read_all_the_same(tmp_path: Path) -> None:
    x = np.asfortranarray(np.random.default_rng(0).integers(-128, 128, (70, 12), np.int8))
    assert np.array_equal(codes(saved(tmp_path, x=x, y=np.zeros(70, np.uint8))), x)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_labels_of_any_integer_type_are_read(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "d.npz", x=np.zeros((3, 12), np.float32), y=np.array([0, 4, 2], np.uint8))
    labels = open_dataset(tmp_path / "d.npz", SOURCE, expected=Expected(5)).labels
    assert labels is not None
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 4, 2]


def test_labels_are_not_needed_where_none_are_asked_for(tmp_path: Path) -> None:
    data = open_dataset(saved(tmp_path, x=np.zeros((3, 12), np.float32)), SOURCE, expected=None)
    assert (data.samples, data.labels) == (3, None)


X = np.zeros((4, 12), np.float32)
Y = np.zeros(4, np.int64)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"y": Y}, "no array x"),
        ({"x": X}, "no array y"),
        ({"x": X[:, :11], "y": Y}, r"\[4, 11\]; the model takes \[n, 12\]"),
        ({"x": X[0], "y": Y}, r"\[12\]; the model takes"),
        ({"x": X.astype(np.uint8), "y": Y}, "uint8; the model takes int8"),
        ({"x": X.astype(np.int16), "y": Y}, "int16"),
        ({"x": X.astype(bool), "y": Y}, "bool"),
        ({"x": X.astype(complex), "y": Y}, "complex"),
        ({"x": X.astype(np.longdouble), "y": Y}, "float128|longdouble"),
        ({"x": X.astype("U3"), "y": Y}, "<U3"),
        ({"x": X[:0], "y": Y[:0]}, "no samples"),
        ({"x": X, "y": Y[:3]}, "4 samples and y 3"),
        ({"x": X, "y": Y.astype(np.float32)}, "one integer a sample"),
        ({"x": X, "y": Y[:, None]}, "one integer a sample"),
        ({"x": X, "y": np.array([0, 1, 5, 0])}, r"y\[2\] is 5; the model has classes 0 to 4"),
        ({"x": X, "y": np.array([0, -1, 0, 0])}, r"y\[1\] is -1"),
        ({"x": np.array([{}] * 4, object), "y": Y}, "object"),
        ({"x": X, "y": np.array([{}] * 4, object)}, "object"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        open_dataset(saved(tmp_path, **arrays), SOURCE, expected=Expected(5))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused_with_its_sample(tmp_path: Path, bad: float) -> None:
    x = np.zeros((70, 12), np.float32)
    x[66, 3] = bad
    with pytest.raises(DataError, match=r"x\[66\]"):
        codes(saved(tmp_path, x=x, y=np.zeros(70, int)))


def test_missing_files_directories_and_other_files_are_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").touch()
    np.save(tmp_path / "alone.npy", X)
    for name in ("missing", ".", "text", "empty", "alone.npy"):
        with pytest.raises(DataError) as fault:
            open_dataset(tmp_path / name, SOURCE, expected=Expected(5))
        assert fault.value.hint


def test_a_compression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    path, zeros = tmp_path / "d.npz", bytes(5_000_000)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", zeros)
    data = path.read_bytes().replace(struct.pack("<I", len(zeros)), struct.pack("<I", MAX_X_BYTES + 1))
    path.write_bytes(data)
    assert len(data) < 10_000
    with pytest.raises(DataError, match="unpacks to"):
        open_dataset(path, SOURCE, expected=Expected(5))


def test_a_header_that_promises_more_than_the_archive_holds_is_refused(tmp_path: Path) -> None:
    for shape in ((1 << 40, 12), (1 << 62, 12), (-4, 12)):
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for name in ("x", "y"):
            other = io.BytesIO()
            np.save(other, X if name == "y" else Y)
            with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
                archive.writestr(f"{name}.npy", head.getvalue() + bytes(100))
                archive.writestr(f"{'y' if name == 'x' else 'x'}.npy", other.getvalue())
            with pytest.raises(DataError):
                codes(tmp_path / "d.npz")


def test_a_flipped_byte_in_the_samples_is_found_by_the_checksum(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.random.default_rng(0).integers(-128, 128, (70, 12), np.int8), y=np.zeros(70, int))
    data = bytearray(path.read_bytes())
    at = data.find(b"x.npy") + 400
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="can be read"):
        codes(path)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5), st.booleans()
)
def test_a_changed_archive_is_read_or_refused(tmp_path: Path, changes: list[tuple[float, int]], short: bool) -> None:
    (np.savez_compressed if short else np.savez)(tmp_path / "d.npz", x=np.ones((5, 12), np.int8), y=np.arange(5))
    data = bytearray((tmp_path / "d.npz").read_bytes())
    for share, value in changes:
        data[int(share * len(data))] = value
    (tmp_path / "d.npz").write_bytes(data)
    try:
        codes(tmp_path / "d.npz")
    except DataError as fault:
        assert fault.what


def test_a_zip64_length_of_exabytes_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, x=X, y=Y)
    data = path.read_bytes()
    size = struct.pack("<I", len(X.tobytes()) + 128)
    path.write_bytes(data.replace(size, struct.pack("<I", 0xFFFFFFF0)))
    with pytest.raises(DataError):
        open_dataset(path, SOURCE, expected=Expected(5))


def test_an_archive_of_very_many_members_is_refused_before_they_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(70_000):  # more than 65,535: with a zip64 record
            archive.writestr(f"{number}", b"")
    code = (
        "import sys; from pathlib import Path; from fl_tiny.device.dataset import open_dataset\n"
        "from tests.learn.tiny import taking\n"
        "try: open_dataset(Path(sys.argv[1]), taking((4,)).input, expected=None)\n"
        "except Exception as fault: print(type(fault).__name__, fault)\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    words = [sys.executable, "-c", code, path]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60, cwd=Path(__file__).parents[2])
    assert "DataError" in done.stdout and "more than 64 members" in done.stdout
    assert int(done.stdout.split()[-1]) < 60_000, "zipfile takes 50 MB for their names"


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_method_that_numpy_does_not_write_is_refused(tmp_path: Path, method: int) -> None:
    out = io.BytesIO()
    np.save(out, np.zeros((3, 4, 3), np.float32))
    with zipfile.ZipFile(tmp_path / "d.npz", "w", method) as archive:
        archive.writestr("x.npy", out.getvalue())
    with pytest.raises(DataError, match=r"x\.npy is packed by a method"):
        open_dataset(tmp_path / "d.npz", SOURCE, expected=None)

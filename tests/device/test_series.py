# SPDX-License-Identifier: Apache-2.0
"""A table's rows become windows that never mix two labels or groups, and a bad cell is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_tiny.device.dataset import Expected
from fl_tiny.device.sources.files import Source, Wanted, open_samples
from fl_tiny.errors import DataError, FlTinyError
from fl_tiny.protocol.preprocess import Series
from tests.learn.tiny import taking


def table(path: Path, *lines: str) -> Path:
    (path / "d.csv").write_text("\n".join(lines) + "\n")
    return path / "d.csv"


def read(
    path: Path, how: Series | None = None, classes: int | None = 3, shape: tuple[int, ...] = (4, 2, 1)
) -> tuple[np.ndarray, list[int] | None]:
    samples, _ = open_samples(
        Source("csv", path), Wanted(taking(shape, "float32"), None if classes is None else Expected(classes), None, how)
    )
    x = np.concatenate(list(samples.batches()))
    return x, None if samples.labels is None else samples.labels.tolist()


def rows(labels: str, groups: str = "") -> list[str]:
    """Rows x = number, y = -number, and the label and group of each."""
    groups = groups or "a" * len(labels)
    return ["x,y,label,who", *(f"{i},{-i},{k},{g}" for i, (k, g) in enumerate(zip(labels, groups, strict=True)))]


def test_windows_lie_side_by_side_within_one_label(tmp_path: Path) -> None:
    x, labels = read(table(tmp_path, *rows("0000000011111222")), Series(columns=("x", "y")))
    assert x[:, 0, 0, 0].tolist() == [0, 4, 8] and labels == [0, 0, 1]
    assert x[0, :, :, 0].tolist() == [[0, 0], [1, -1], [2, -2], [3, -3]]


@pytest.mark.parametrize(("hop", "firsts"), [(1, [0, 1, 2, 3, 4, 5, 6]), (2, [0, 2, 4, 6]), (4, [0, 4]), (6, [0, 6])])
def test_a_hop_lets_windows_overlap_or_leaves_rows_out(tmp_path: Path, hop: int, firsts: list[int]) -> None:
    x, _ = read(table(tmp_path, *rows("0" * 10)), Series(columns=("x", "y"), hop=hop))
    assert x[:, 0, 0, 0].tolist() == firsts


@pytest.mark.parametrize(("window", "runs"), [(4, [10, 5, 10]), (1, [1] * 100)])
def test_ten_windows_in_a_row_are_one_stretch_and_single_rows_are_none(
    tmp_path: Path, window: int, runs: list[int]
) -> None:
    lines = rows("0" * 60 + "1" * 40)
    wanted = Wanted(taking((window, 2, 1), "float32"), Expected(3), None, Series(columns=("x", "y")))
    samples, _ = open_samples(Source("csv", table(tmp_path, *lines)), wanted)
    assert samples.stretches is not None and len(samples.stretches) == samples.samples
    assert np.unique(np.array(samples.stretches), return_counts=True)[1].tolist() == runs


def test_a_new_group_ends_a_window_and_all_other_columns_are_numbers(tmp_path: Path) -> None:
    x, _ = read(table(tmp_path, *rows("0" * 10, "aaaaaabbbb")), Series(group="who"))
    assert x[:, 0, 0, 0].tolist() == [0, 6]
    x, labels = read(table(tmp_path, *rows("0011001100", "a" * 10)), Series(group="who"), classes=None)
    assert x[:, 0, 0, 0].tolist() == [0, 4] and labels is None, "without labels they end no window"


def test_columns_are_taken_in_the_tables_order_and_scaled(tmp_path: Path) -> None:
    how = Series(columns=("y", "x"), mean=(1.0, 2.0), std=(10.0, 0.5))
    x, labels = read(table(tmp_path, *rows("01")), how, shape=(2,))
    assert np.allclose(x, [[(0 - 1) / 10, (0 - 2) / 0.5], [(-1 - 1) / 10, (1 - 2) / 0.5]]) and labels == [0, 1]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_spreadsheets_write_it_otherwise(tmp_path: Path, delimiter: str) -> None:
    lines = [line.replace(",", delimiter) for line in ["x,y,label", '1,"2",b', " 3 , 4 , c", "", "5,6,a"]]
    path = tmp_path / "d.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    x, labels = read(path, shape=(2,))
    assert x.tolist() == [[1, 2], [3, 4], [5, 6]] and labels == [1, 2, 0]


@pytest.mark.parametrize(
    "text",
    [
        "x;y;label\n1,5;-2,25;0\n3;4e1;1\n",
        "x\ty\tlabel\n1,5\t-2,25\t0\n3\t40\t1\n",
        "sep=;\nx;y;label\n1,5;-2,25;0\n3,0;40;1\n",
        "# logger 7\n# 12:00\nx,y,label\n1.5,-2.25,0\n# a break\n3,40,1\n",
        "x,y,label,\n1.5,-2.25,0,\n,,,\n3,40,1,\n",
        "x,y,label,,\n1.5,-2.25,0\n3,40,1,,,\n",
        '"x","y","label"\r\n"1.5","-2.25","0"\r\n"3","40","1"\r\n',
        '"x, metres";y;label\n1,5;-2,25;0\n3;40;1\n',
        "x,y,label\r1.5,-2.25,0\r3,40,1\r",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_is_read_as_spreadsheets_and_loggers_write_it(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "d.csv").write_bytes(text.encode(encoding))
    x, labels = read(tmp_path / "d.csv", shape=(2,))
    assert x.tolist() == [[1.5, -2.25], [3, 40]] and labels == [0, 1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('x,y,label\n"1,5",2,0\n', "row 2, x: '1,5' may be a decimal comma or thousands.*semicolons"),
        ("x,y,label\n1,5,2,5,0\n", "row 2 has 5 cells, the header 3 .*semicolons"),
        ("x;y;label\n1.234,5;2;0\n", "row 2, x: '1.234,5' groups thousands"),
        ("x;y;label\n1 234;2;0\n", "groups thousands"),
        ("x;y;label\n12.345.678;2;0\n", "groups thousands"),
        ("x;y;label\n1,5;2.5;0\n", "row 2, y: '2.5': other numbers have ',', this one '.'"),
        ("x,y,label\n1,,0\n", "row 2, y is empty"),
        ("x,y,label\n1,1_000,0\n", "'1_000' is no number"),
        ("x,y,label\n1,nan,0\n", "'nan' is no number"),
        ("x,y,label\n1,1e999,0\n", "'1e999' is no number"),
        ("1,2,0\n3,4,1\n", "holds numbers and no names of columns"),
        ("# only\n", "no header"),
    ],
)
def test_what_may_mean_two_things_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(DataError, match=said) as fault:
        read(tmp_path / "d.csv", shape=(2,))
    assert fault.value.hint and len(str(fault.value)) <= 400


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le", "utf-16-be"])
def test_another_encoding_is_named_with_a_way_out(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "d.csv").write_bytes("temperature °C,y,label\n1,2,0\n".encode(encoding))
    with pytest.raises(DataError, match=r"no text in UTF-8 .*iconv"):
        read(tmp_path / "d.csv", shape=(2,))


def test_bad_rows_are_told_of_together_or_passed_over_and_end_a_window(tmp_path: Path) -> None:
    lines = rows("0" * 12)
    lines[3], lines[8] = "broken", "7,,0,a"
    path = table(tmp_path, *lines)
    with pytest.raises(DataError, match=r"2 of 12 rows cannot be used: .*row 4.*row 9.*--skip-bad"):
        read(path, Series(columns=("x", "y"), window=2, hop=2), shape=(2, 2, 1))
    wanted = Wanted(taking((2, 2, 1), "float32"), Expected(3), None, Series(columns=("x", "y"), window=2, hop=2))
    samples, _ = open_samples(Source("csv", path), wanted, skip_bad=True)
    x = np.concatenate(list(samples.batches()))
    assert x[:, :, 0, 0].tolist() == [[0, 1], [3, 4], [5, 6], [8, 9], [10, 11]]
    assert len(samples.faults) == 2 and samples.labels is not None and len(samples.labels) == 5


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["x,y,label", "1,two,0"], "row 2, y: 'two' is no number"),
        (["x,y,label", "1,inf,0"], "is no number"),
        (["x,y,label", "1,2,0", "1,2"], "row 3 has 2 cells, the header 3"),
        (["x,y,class", "1,2,0"], "has no column label .*x, y, class"),
        (["x,label", "1,0"], "1 columns of numbers"),
        (["x,x,label", "1,2,0"], "no header of different names"),
        (["x,y,label", "1,2,5"], "classes 0 to 2"),
        (["x,y,label"], "has no 1 consecutive rows"),
        ([""], "no header|no column"),
        (["x,y,label", "1" * 70_000 + ",2,0"], "more than 65536 characters"),
    ],
)
def test_what_is_wrong_is_named_with_its_row(tmp_path: Path, lines: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(table(tmp_path, *lines), shape=(2,))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_table_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(table(tmp_path, *rows("0000111122")).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "d.csv").write_bytes(raw)
    try:
        x, labels = read(tmp_path / "d.csv", Series(columns=("x", "y")))
        assert np.isfinite(x).all() and labels is not None and len(labels) == len(x)
    except FlTinyError as fault:
        assert "d.csv" in fault.what

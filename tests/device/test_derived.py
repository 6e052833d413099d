# SPDX-License-Identifier: Apache-2.0
"""model/current.tflite is made again, byte for byte, wherever it lies and however it was lost."""

from __future__ import annotations

import hashlib
import os
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_tiny.device import derived, slots
from fl_tiny.device.layout import CURRENT, FORMER
from fl_tiny.errors import ConfigError, DataError
from tests.device.test_slots import OLD_MODEL, Board

BASE = OLD_MODEL.read_bytes()


@given(
    st.binary(max_size=400),
    st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), max_size=20),
    st.binary(max_size=100),
)
def test_what_differs_makes_the_one_of_the_other(base: bytes, changes: list[tuple[int, int]], near: bytes) -> None:
    other = bytearray(base)
    for at, value in changes:
        if at < len(other):
            other[at] = value
    assert derived.applied(base, derived.difference(base, bytes(other), near), near) == other
    assert derived.applied(base, derived.difference(base, bytes(other)), near) == other, "as older ones were stored"


def test_a_patch_near_a_head_is_small_and_of_no_use_with_another() -> None:
    head = os.urandom(20_000)
    mine = bytearray(head)
    mine[::50] = bytes(400)
    patch, alone = (derived.difference(bytes(20_000), bytes(mine), near) for near in (head, b""))
    assert len(patch) < len(alone) / 4
    with pytest.raises(DataError):
        derived.applied(bytes(20_000), patch, head[::-1])


@given(st.binary(max_size=60))
def test_a_damaged_patch_is_refused_or_gives_a_file_as_long(junk: bytes) -> None:
    whole = derived.difference(bytes(300), bytes(100) + b"x" * 100 + bytes(100))
    for patch in (junk, whole[: len(junk)], whole[:-1] + junk):
        with suppress(DataError):
            assert len(derived.applied(bytes(300), patch)) == 300
    with pytest.raises(DataError):
        derived.applied(bytes(150), whole)


@pytest.fixture
def mine(tmp_path: Path) -> tuple[Board, bytes]:
    """A board that chose a head of its own."""
    board = Board(tmp_path / "dev")
    data = bytearray(BASE)
    data[len(data) // 2] ^= 1
    with closing(board.store()) as store:
        runs = derived.difference(BASE, bytes(data))
        store.put_kept(replace(store.kept(), digest=hashlib.sha256(data).digest(), fitted=True, patch=runs))
        assert slots.put_right(board.directory, store)
    return board, bytes(data)


@pytest.mark.parametrize("memory", [True, False], ids=["in memory", "on the disk"])
@pytest.mark.parametrize("harm", ["missing", "torn", "another"])
def test_a_lost_file_is_made_again(mine: tuple[Board, bytes], tmp_path: Path, memory: bool, harm: str) -> None:
    board, data = mine
    place = tmp_path / "run/fl-tiny" if memory else None
    derived.settle_place(board.directory, place)
    path = derived.path_of(board.directory)
    assert path == (place / CURRENT if place else board.folder / CURRENT)
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if harm == "torn" else BASE)
    with closing(board.store()) as store:
        assert slots.boot(board.directory, store) is slots.Boot.KEEP
    assert (board.folder / CURRENT).read_bytes() == data


def test_with_the_memory_gone_a_start_makes_place_and_file(mine: tuple[Board, bytes], tmp_path: Path) -> None:
    board, data = mine
    place = tmp_path / "run"
    derived.settle_place(board.directory, place)
    assert (board.folder / CURRENT).is_symlink() and (board.folder / CURRENT).read_bytes() == data
    (place / CURRENT).unlink()
    place.rmdir()
    with closing(board.store()) as store:
        assert slots.current(board.directory, store) == data, "a program beside need not wait for the daemon"
        derived.settle_place(board.directory, place)
        assert slots.put_right(board.directory, store)
    assert (board.folder / CURRENT).read_bytes() == data
    derived.settle_place(board.directory, None)
    assert not (board.folder / CURRENT).is_symlink() and (board.folder / CURRENT).read_bytes() == data


def test_a_place_that_cannot_be_is_said(mine: tuple[Board, bytes], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="model_dir"):
        derived.settle_place(mine[0].directory, tmp_path / "file/run")
    assert (mine[0].folder / CURRENT).read_bytes() == mine[1]


@pytest.mark.parametrize("name", [CURRENT, *FORMER])
def test_a_file_chosen_before_patches_were_stored_is_kept(mine: tuple[Board, bytes], name: str) -> None:
    board, data = mine
    with closing(board.store()) as store:
        store.put_kept(replace(store.kept(), patch=None))
        (board.folder / CURRENT).write_bytes(BASE)
        (board.folder / name).write_bytes(data)
        slots.adopt(board.directory, store)
        assert not any((board.folder / former).exists() for former in FORMER)
        assert slots.put_right(board.directory, store)
    assert (board.folder / CURRENT).read_bytes() == data


def test_the_file_of_a_day_of_rounds_is_written_to_memory_alone(mine: tuple[Board, bytes], tmp_path: Path) -> None:
    board, data = mine
    derived.settle_place(board.directory, tmp_path / "run")
    before = {p: p.lstat().st_mtime_ns for p in board.folder.iterdir()} | {
        board.folder: board.folder.stat().st_mtime_ns
    }
    for _ in range(3):
        derived.put(board.directory, os.urandom(len(data)))
    assert before == {p: p.lstat().st_mtime_ns for p in before}

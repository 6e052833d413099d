# SPDX-License-Identifier: Apache-2.0
"""docs/porting.md names every key of a board file, and no other; what it points at is there."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest

from tests.image.linters import ROOT

PAGE = (ROOT / "docs/porting.md").read_text()


def test_every_key_of_a_board_file_is_explained() -> None:
    boards = pytest.importorskip("fl_tiny.image.boards")
    hints = get_type_hints(boards.Board)
    keys = set()
    for field in fields(boards.Board):
        kind = hints[field.name]
        keys |= {f"{field.name}.{each.name}" for each in fields(kind)} if is_dataclass(kind) else {field.name}
    table = PAGE.split("### Keys of a board file")[1].split("\n\n")[1]
    explained = {key for row in table.split("\n")[2:] for key in re.findall(r"`([a-z_.]+)`", row.split("|")[1])}
    assert explained == keys - {"name"}  # its file's


def test_what_the_page_points_at_is_there() -> None:
    ours = re.findall(r"`((?:image/layers|image/templates|deploy|tests/image|scripts)/[\w./*-]*\w)`", PAGE)
    assert len(ours) > 8
    for path in ours:
        if path not in ("scripts/image", "tests/image/plans/my-board.txt"):
            assert list(ROOT.glob(path)), path

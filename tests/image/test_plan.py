# SPDX-License-Identifier: Apache-2.0
"""Plans of all boards as text, in review. Goldens: `fl-tiny image plan BOARD > tests/image/plans/BOARD.txt`."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from e2e.fleet import COMMAND

import fl_tiny
from fl_tiny.image import boards, plan

RECIPES = Path(__file__).parents[2] / "image"
PLANS = Path(__file__).parent / "plans"
NAMES = boards.names(RECIPES)


def steps(name: str) -> tuple[plan.Step, ...]:
    board = boards.load_board(RECIPES, name)
    kernel = "KERNEL.deb" if board.kernel.brought else ""
    return plan.plan(board, boards.load_base(RECIPES), plan.Release("VERSION", "RELEASE", kernel=kernel))


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_is_the_one_that_was_reviewed(name: str) -> None:
    assert plan.describe(steps(name)) == (PLANS / f"{name}.txt").read_text()


def test_a_plan_can_be_read_before_there_is_a_kernel() -> None:
    words = [*COMMAND, "image", "plan", "jetson-orin-nano"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    reviewed = (PLANS / "jetson-orin-nano.txt").read_text()
    assert said.replace(f"fl-tiny-{fl_tiny.__version__}-", "fl-tiny-VERSION-") == reviewed


def test_every_reviewed_plan_is_of_a_board() -> None:
    assert sorted(path.stem for path in PLANS.glob("*.txt")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_partitions_follow_each_other_within_the_disk(name: str) -> None:
    disk = next(step for step in steps(name) if isinstance(step, plan.Disk))
    spans = [(start, start + size) for _, start, size, _ in disk.parts]
    assert spans[0][0] >= 1 and spans[-1][1] == disk.size_mib
    assert all(one[1] == other[0] for one, other in pairwise(spans))


def test_what_names_a_disk_is_the_boards_alone() -> None:
    found = [plan.signature(boards.load_board(RECIPES, name)) for name in NAMES]
    assert len(set(found)) == len(found)

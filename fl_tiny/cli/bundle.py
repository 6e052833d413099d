# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny gateway bundle``: releases of boards' systems that a gateway offers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fl_tiny.cli.common import command, gateway_store, group, share, show, table

COLUMNS = ("board", "release", "share", "size", "boards", "running", "refused", "why")


def add_commands(parent: Any) -> None:
    """Declare the commands of this group."""
    sub = group(parent, "bundle", "offer another release of their systems to boards")
    p = command(sub, "add", add, "fl-tiny gateway bundle add gw fl-tiny-rpi-4-2026.11.24.raucb --share 0.1")
    p.add_argument("dir", type=Path)
    p.add_argument("file", type=Path, help="what fl-tiny image bundle or rauc bundle made, in the verity format")
    p.add_argument("--share", type=share, default=1.0, help="of the boards, above 0 (default: 1, all of them)")
    command(sub, "list", list_, "fl-tiny gateway bundle list gw").add_argument("dir", type=Path)
    p = command(sub, "withdraw", withdraw, "fl-tiny gateway bundle withdraw gw fl-tiny-rpi-4")
    p.add_argument("dir", type=Path)
    p.add_argument("board", help="the boards that are offered nothing any more, as `bundle list` names them")


def add(args: argparse.Namespace) -> None:
    """Offer a release to a share of the boards it is for, or to all; each board checks its signature."""
    from fl_tiny.gateway import bundles

    made = bundles.add(args.dir, gateway_store(args.dir), args.file, args.share)
    found = {"board": made.board, "release": made.bundle.release, "share": made.share, "size": made.bundle.size}
    show(args, found, f"release {made.bundle.release} is for {made.share:.0%} of the {made.board} boards")


def list_(args: argparse.Namespace) -> None:
    """List what is offered, and what became of it."""
    from fl_tiny.gateway import bundles

    rows = bundles.listed(gateway_store(args.dir, reading=True))
    show(args, rows, table(rows, COLUMNS))


def withdraw(args: argparse.Namespace) -> None:
    """Offer these boards nothing any more; boards that run it already stay with it."""
    from fl_tiny.gateway import bundles

    gone = bundles.withdraw(args.dir, gateway_store(args.dir), args.board)
    found = {"board": gone.board, "release": gone.bundle.release}
    show(args, found, f"release {gone.bundle.release} is offered to no {gone.board} any more")

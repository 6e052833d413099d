# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny device doctor`` and ``fl-tiny gateway doctor``: what is missing or odd, and what to do about it."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from fl_tiny.cli.common import command, show, table

DONE, TODO = 0, 1


def add(sub: Any, role: str, example: str) -> None:
    """Declare the command in the group of its role."""
    p = command(sub, "doctor", doctor, f"fl-tiny {role} doctor {example}")
    p.add_argument("dir", type=Path)
    p.set_defaults(role=role)


def doctor(args: argparse.Namespace) -> int:
    """Look for what is missing or odd and say what to do; exit 1 when something must be done."""
    from fl_tiny import statedir

    if args.dir.exists():
        statedir.act_as_owner(args.dir)
    found = importlib.import_module(f"fl_tiny.{args.role}.doctor").examine(args.dir)
    rows = [{"check": f.check, "state": f.state.value, "detail": f.detail, "todo": f.todo or None} for f in found]
    show(args, rows, table(rows, ("check", "state", "detail", "todo")))
    return TODO if any(row["state"] == "fail" for row in rows) else DONE

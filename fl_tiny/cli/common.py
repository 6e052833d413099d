# SPDX-License-Identifier: Apache-2.0
"""What every command shares: declaring itself with an example, and printing a result as text or JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

Command = Callable[[argparse.Namespace], int | None]


def command(
    group: Any, name: str, run: Command, example: str, *, json_flag: bool = True
) -> argparse.ArgumentParser:
    """Add ``name`` to ``group`` with its first docstring sentence as help and ``example`` below the options."""
    summary = (run.__doc__ or "").strip().split("\n")[0]
    parser: argparse.ArgumentParser = group.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if json_flag:
        parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    parser.set_defaults(run=run)
    return parser


def group(parent: Any, name: str, summary: str) -> Any:
    """Add a group of commands (``fl-tiny model …``) and return its subparsers."""
    parser = parent.add_parser(name, help=summary, description=summary)
    return parser.add_subparsers(dest="command", metavar="COMMAND", required=True)


def show(args: argparse.Namespace, result: Any, text: str) -> None:
    """Print ``result`` as JSON when ``--json`` was given, else ``text``."""
    print(json.dumps(result) if args.json else text)


def progress(line: str) -> None:
    """One line of progress on stderr; stdout is for results."""
    print(line, file=sys.stderr, flush=True)

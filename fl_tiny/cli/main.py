# SPDX-License-Identifier: Apache-2.0
"""The entry point: parse, run one command, turn a fault into one line on stderr and an exit code."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from fl_tiny import __version__
from fl_tiny.errors import FlTinyError
from fl_tiny.protocol.fields import shown

GROUPS = ("model", "gateway", "device", "samples", "predict", "fleet", "image", "demo", "simulate", "config")
INTERRUPTED = 130  # 128 + SIGINT, the shell's convention


class OneLine(logging.Formatter):
    """A log in which a peer's text makes no line of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Called by logging."""
        return shown(super().formatMessage(record))


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; each group of commands declares itself in its own file under cli/."""
    parser = argparse.ArgumentParser(
        prog="fl-tiny",
        description="Boards train the last layers of an int8 TFLite model together, over CoAP and DTLS.",
        epilog="Start with: fl-tiny demo",
    )
    parser.add_argument("--version", action="version", version=f"fl-tiny {__version__}")
    groups = parser.add_subparsers(dest="group", metavar="COMMAND", required=True)
    for group in GROUPS:
        importlib.import_module(f"fl_tiny.cli.{group}").add(groups)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Errors leave stdout empty and one line on stderr."""
    args = build_parser().parse_args(argv)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    run: Callable[[argparse.Namespace], int | None] = args.run
    try:
        return run(args) or 0
    except FlTinyError as fault:
        print(shown(f"fl-tiny: {fault}".replace("\n", " ")), file=sys.stderr)
        return fault.EXIT
    except KeyboardInterrupt:
        print("fl-tiny: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return 0
    except Exception as cause:
        return _say(cause, getattr(args, "dir", None))


def _say(ours: Exception, directory: Path | None) -> int:
    """Say whose fault it is, the machine's where its disk is; the exit code."""
    fault = _of_the_disk(ours, directory)
    if fault is not None:
        print(shown(f"fl-tiny: {fault}"), file=sys.stderr)
        return fault.EXIT
    at = traceback.extract_tb(ours.__traceback__)[-1]
    where = f"{Path(at.filename).name}:{at.lineno}"
    line = f"fl-tiny: our own fault: {type(ours).__name__} at {where}: {ours}".replace("\n", " ")
    print(shown(line), file=sys.stderr)
    logging.getLogger(__name__).debug("where it came from", exc_info=ours)
    return FlTinyError.EXIT


def _of_the_disk(cause: Exception, directory: Path | None) -> FlTinyError | None:
    """What a disk that is full, read-only or failing raised, also in a query, as ours."""
    from fl_tiny import database, disks

    if isinstance(cause, OSError) and cause.errno in disks.FAULTS:
        path = Path(os.fsdecode(cause.filename)) if isinstance(cause.filename, (str, bytes)) else directory or Path()
        return disks.fault_of(cause.errno, path, f"{path} cannot be used")
    return database.fault_of(cause, directory or Path(), f"{directory or 'a database'} cannot be used")


def entry() -> NoReturn:
    """What the installed ``fl-tiny`` script calls."""
    sys.exit(main())

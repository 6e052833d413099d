# SPDX-License-Identifier: Apache-2.0
"""What every command shares: declaring itself with an example, and printing a result as text or JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, TypeVar

from fl_tiny.config import RUNTIMES
from fl_tiny.errors import EnvironmentFault
from fl_tiny.protocol.fields import shown

Command = Callable[[argparse.Namespace], int | None]
B = TypeVar("B", bound=Sized)
T = TypeVar("T")

PROGRESS_S = 2.0


def command(group: Any, name: str, run: Command, example: str, *, json_flag: bool = True) -> argparse.ArgumentParser:
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


def runtime_option(parser: argparse.ArgumentParser) -> None:
    """Declare ``--runtime``: None lets what is installed decide."""
    what = "what runs the model (default: the first of these that is installed)"
    parser.add_argument("--runtime", choices=RUNTIMES, help=what)


def if_needed_option(parser: argparse.ArgumentParser, already: str) -> None:
    """Declare ``--if-needed``, for whoever starts a container or a service and cannot know whether it is the first."""
    parser.add_argument(
        "--if-needed", action="store_true", help=f"exit 0, changing nothing, when DIR {already} already"
    )


def running_option(parser: argparse.ArgumentParser) -> None:
    """Declare ``--running``, for health checks."""
    parser.add_argument("--running", action="store_true", help="exit 69 unless DIR's daemon runs; for a health check")


def must_run(args: argparse.Namespace, running: bool) -> None:
    """Raises: EnvironmentFault when ``--running`` was given and no daemon runs in DIR."""
    if args.running and not running:
        raise EnvironmentFault(f"{args.dir}: its daemon does not run")


def group(parent: Any, name: str, summary: str) -> Any:
    """Add a group of commands (``fl-tiny model …``) and return its subparsers."""
    parser = parent.add_parser(name, help=summary, description=summary)
    return parser.add_subparsers(dest="command", metavar="COMMAND", required=True)


def show(args: argparse.Namespace, result: Any, text: str) -> None:
    """Print ``result`` as JSON when ``--json`` was given, else ``text``."""
    print(json.dumps(result) if args.json else lines(text))


def lines(text: str) -> str:
    """``text`` for a terminal: what peers and older databases put into it can move no cursor and turn no line round."""
    return "".join(part if part in "\n\t" else shown(part) for part in re.split(r"([\n\t])", text))


def table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """``rows`` as aligned text under their names; unknown is a dash."""
    cells = [list(names)] + [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def events(args: argparse.Namespace) -> Callable[[str, dict[str, Any]], None]:
    """How a daemon reports: one JSON object a line, flushed, under ``--json``; else nothing (the log tells)."""

    def emit(event: str, facts: dict[str, Any]) -> None:
        if args.json:
            print(json.dumps({"event": event, **facts}), flush=True)

    return emit


def as_owner(directory: Path) -> None:
    """Act as DIR's owner from now on, where there is such a directory and root runs the command."""
    from fl_tiny import statedir

    if directory.exists():
        statedir.act_as_owner(directory)


def gateway_store(directory: Path, *, reading: bool = False) -> Any:
    """The ledger of a gateway's DIR, as DIR's owner. reading: nothing is written, also where nothing can be."""
    from fl_tiny import statedir
    from fl_tiny.gateway.store import Store

    as_owner(directory)
    return Store.open(directory / statedir.DATABASE, reading=reading)


def duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``30m``, ``12h`` or ``7d``, for argparse."""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86_400}.get(text[-1:].lower())
    number = text[:-1] if unit else text
    try:
        seconds = float(number) * (unit or 1)
    except ValueError:
        seconds = -1.0
    if not 1 <= seconds <= 366 * 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 30m, 12h or 7d")
    return seconds


def share(text: str) -> float:
    """A share above 0 and up to 1, for argparse."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share above 0 and up to 1")
    return found


def positive(text: str) -> int:
    """A number from 1 to 100000, for argparse."""
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 100000")
    return int(text)


def progress(line: str) -> None:
    """One line of progress on stderr; stdout is for results."""
    print(lines(line), file=sys.stderr, flush=True)


def steady(batches: Iterable[B], what: str, total: int) -> Iterator[B]:
    """``batches`` as they are, with a line of progress on stderr every two seconds of longer work."""
    done, told = 0, pace(what)
    for batch in batches:
        yield batch
        done += len(batch)
        told(done, total)


def pace(what: str) -> Callable[[int, int], None]:
    """A function to call with what is done and the total: every two seconds a line on stderr, with the time left."""
    began = last = time.monotonic()

    def told(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done and now - last > PROGRESS_S:
            last = now
            progress(f"{what}: {done} of {total}, about {(now - began) * (total - done) / done:.0f} s left")

    return told


def until_signal(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; SIGINT, SIGTERM or SIGHUP lets it clean up, then raises KeyboardInterrupt."""

    async def watched() -> T:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    return asyncio.run(watched())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else shown(str(value))

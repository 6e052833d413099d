# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny device update``, ``confirm`` and ``slot``: another release of a board's whole system."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from fl_tiny.cli.common import PROGRESS_S, command, duration, progress, show

DIR = Path("/var/lib/fl-tiny/device")
ACTIONS = ("get-primary", "set-primary", "get-state", "set-state", "get-current", "may-install")


def add(sub: Any) -> None:
    """Declare the commands."""
    p = command(sub, "update", update, "fl-tiny device update https://example.org/board-2026.11.24.raucb --reboot")
    p.add_argument(
        "bundle", metavar="BUNDLE|URL|DIR", help="a bundle, its address, or DIR: what its daemon has fetched"
    )
    p.add_argument("dir", type=Path, nargs="?", default=DIR, help="the device of this board (default: %(default)s)")
    p.add_argument("--reboot", action="store_true", help="try it at once; otherwise the next start does")
    root_option(p)
    p = command(sub, "confirm", confirm, "fl-tiny device confirm")
    p.add_argument("dir", type=Path, nargs="?", default=DIR, help="the device of this board (default: %(default)s)")
    p.add_argument("--within", type=duration, default=900.0, help="time to reach the gateway (default: 15m)")
    p.add_argument("--offline", type=duration, default=300.0, help="health that is enough without one (default: 5m)")
    root_option(p)
    p = command(sub, "slot", slot, "fl-tiny device slot get-primary", json_flag=False)
    p.add_argument("action", choices=ACTIONS)
    p.add_argument("values", nargs="*", metavar="SLOT|good|bad|FILE")
    root_option(p)


def update(args: argparse.Namespace) -> None:
    """Install a signed bundle into the other slot, which is tried at the next start."""
    from fl_tiny.device import host
    from fl_tiny.device.machine import Machine
    from fl_tiny.device.update import update

    shown = -PROGRESS_S

    def say(what: str, percent: int) -> None:
        nonlocal shown
        if percent == 100 or time.monotonic() - shown >= PROGRESS_S:
            shown = time.monotonic()
            progress(f"{percent:3} % {what}")

    directory = Path(args.bundle) if Path(args.bundle).is_dir() else args.dir
    done = update(Machine(args.root), directory, args.bundle, say)
    if done is None:
        return show(args, {"release": None}, "no bundle has been fetched")
    found = {"release": done.release.number, "board": done.release.board, "slot": done.slot}
    next_step = "restarting" if args.reboot else "next: restart the board"
    show(args, found, f"release {done.release.number} is in slot {done.slot}\n{next_step}")
    return host.reboot() if args.reboot else None


def confirm(args: argparse.Namespace) -> None:
    """Keep a release that is being tried once it is seen to work; else restart into the one before."""
    from fl_tiny.device.confirm import Patience, confirm
    from fl_tiny.device.machine import Machine

    became = confirm(Machine(args.root), args.dir, Patience(args.within, args.offline))
    show(args, {"became": became}, became)


def slot(args: argparse.Namespace) -> None:
    """Answer RAUC: which slot boots, which one may, and whether a bundle's release may be installed."""
    from fl_tiny.device.machine import Machine
    from fl_tiny.device.update import boot_files, judge_contents
    from fl_tiny.errors import ConfigError

    machine = Machine(args.root)
    files = boot_files(machine)
    match (args.action, *args.values):
        case ("get-primary",):
            print(files.next())
        case ("get-current",):
            print(files.booted or "")
        case ("get-state", "A" | "B" as name):
            print("good" if files.is_good(name) else "bad")
        case ("set-primary", "A" | "B" as name):
            files.stage(name)
        case ("set-state", "A" | "B" as name, "bad"):
            files.drop(name)
        case ("set-state", "A" | "B" as name, "good") if name == files.booted:
            files.confirm()
        case ("may-install", file):
            judge_contents(machine, Path(file))
        case _:
            raise ConfigError(f"no such question: {' '.join((args.action, *args.values))}", "fl-tiny device slot -h")


def root_option(parser: argparse.ArgumentParser) -> None:
    """Declare ``--root``, which only tests give."""
    parser.add_argument("--root", type=Path, default=Path("/"), help="where this system's files lie (default: /)")

# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny demo``: a whole fleet on this machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fl_tiny.cli.common import command, runtime_option, show, table, until_signal

OUT = Path("fl-tiny-demo")
DEVICES, ROUNDS, LABELS = 10, 6, "5"


def add(parent: Any) -> None:
    """Declare the command."""
    p = command(parent, "demo", demo, "fl-tiny demo --out /tmp/demo")
    p.add_argument("--devices", type=_from_1(10), default=DEVICES, metavar="N", help=f"1 to 10 (default: {DEVICES})")
    p.add_argument("--rounds", type=_from_1(100), default=ROUNDS, metavar="R", help=f"default: {ROUNDS}")
    p.add_argument(
        "--labels-per-class",
        type=_labels,
        default=_labels(LABELS),
        metavar="M",
        help=f"labelled samples a class and device, or all (default: {LABELS})",
    )
    p.add_argument("--out", type=Path, default=OUT, metavar="DIR", help=f"what it leaves behind (default: {OUT})")
    runtime_option(p)


def demo(args: argparse.Namespace) -> None:
    """Run a gateway and its devices on this machine, see what they learn, write a report."""
    from fl_tiny.device.runtimes import chosen
    from fl_tiny.lab import report
    from fl_tiny.lab.demo import FIGURES, PAGE, Options, prepare, run
    from fl_tiny.lab.measure import device_rows, summary

    options = Options(args.devices, args.rounds, args.labels_per_class, args.out, args.runtime)
    chosen(args.runtime)
    prepare(args.out)
    progress = _Progress()
    try:
        result = until_signal(run(options, progress))
    finally:
        progress.clear()
    found = summary(result)
    report.write(result, args.out / PAGE, args.out / FIGURES)
    rows = table(device_rows(result), ("device", "labels", "before", "alone", "global", "personal", "gain", "kept"))
    cold = (
        f"{result.cold_name}, without labels: {result.cold[0]:.3f} before, {result.cold[1]:.3f} with the fleet's head"
    )
    bytes_line = (
        f"{found['bytes_per_round']} B a device and round on the wire, {found['raw_bytes_kept']} B of raw inputs stayed"
        f" on the devices, {found['seconds']:.0f} s in all"
    )
    where = (
        f"report: {args.out / PAGE}\nmodels: {args.out}/devices/*/model/current.tflite, {args.out}/models/fleet.tflite"
    )
    show(args, found, f"{rows}\n\n{cold}\n{bytes_line}\n{where}")


class _Progress:
    """Progress on stderr: on a terminal one line is written over, elsewhere only what is done is told."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()

    def line(self, text: str) -> None:
        """Something is done."""
        self.clear()
        print(text, file=sys.stderr, flush=True)

    def status(self, text: str) -> None:
        """Something is going on."""
        if self._live:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leave no half-said line behind."""
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _from_1(most: int) -> Any:
    def number(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {most}")
        return int(text)

    return number


def _labels(text: str) -> int | None:
    return None if text == "all" else int(_from_1(1000)(text))
